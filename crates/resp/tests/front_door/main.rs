//! The front end as clients see it: real sockets, the real loop, an engine that does as the test says.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

mod clients;
mod engine;
mod harness;
mod limits;
mod redis;
mod requests;
mod waiting;

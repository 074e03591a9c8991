//! Doors as clients, services and peers see them: over TCP, mostly in raw bytes.

// Helpers of tests are tests too, which clippy.toml exempts only inside `#[test]` functions.
#![allow(clippy::unwrap_used)]

mod forwarding;
mod hops;
mod hygiene;
mod limits;
mod raw;
mod retries;
mod sessions;
mod smuggling;
mod streaming;
mod world;

//! The walking planet from outside: the real binary, real clients, and everything that may befall them.

#![allow(clippy::unwrap_used)] // a test that unwraps fails, which is what it is for

mod lifetime;
mod planet;
mod regions;
mod sessions;
mod support;

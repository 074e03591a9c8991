//! How one geode calls another.
//!
//! A geode has one TCP port for its peers, whatever they want of it. A call opens with a *preface*: which planet the
//! caller belongs to, who calls whom, for what [`Purpose`], in which protocol versions. The acceptor answers in one
//! round trip with the version both speak, or with a refusal in words that both sides can log. After that the bytes
//! belong to whoever asked for the connection; each purpose has connections of its own, so that a bulk transfer never
//! delays a heartbeat. Mutual TLS will live here, below the preface; until then `geode run` keeps links on loopback.
//!
//! This crate exists so that replication, hops, gossip and questions share one answer to "who is this?". It must not
//! know what is said on a connection.

mod dialer;
mod listener;
mod preface;
mod stream;

pub use dialer::{Dialer, LinkError};
pub use listener::{Call, Listener};
pub use preface::{Identity, Purpose};
pub use stream::Stream;

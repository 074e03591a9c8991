//! The Redis protocol front end: connections, requests and replies around one [`geode_store::Store`].
//!
//! One thread owns the store and every connection. Its unit of work is the *batch*: all that the sockets had to say is
//! parsed and executed in place, then the engine hands the log to the kernel once, and only then does each connection
//! get its replies, with one write. So no reply, a read's included, tells of something that a killed process could
//! forget. Everything that a peer can make grow is bounded by [`Limits`].
//!
//! This crate must not know what commands mean (but for those about the connection itself, such as HELLO and CLIENT)
//! nor which engine holds the rows.

mod accept;
mod client;
mod connection;
mod handle;
mod inline;
mod input;
mod limits;
mod metrics;
mod output;
pub mod parse;
mod serve;
mod server;
pub mod write;

pub use accept::listen;
pub use handle::Handle;
pub use limits::Limits;
pub use metrics::{Count, RespMetrics};
pub use server::{Server, ServerError};
pub use write::Protocol;

//! The store: Redis commands as effects on replicated rows, over any engine.
//!
//! A command is one synchronous, side-effect-free, restartable function: it reads a [`View`], appends operations to
//! the open entry and writes one reply, or says what it needs first. The [`Store`] drives it: it opens and closes
//! entries, applies their operations, runs transactions, and parks what must wait. Engines hold the rows; front ends
//! speak protocols. This crate knows neither, nor sockets, files or clocks.

mod arguments;
mod commands;
mod context;
mod effect;
pub mod engine;
mod errors;
mod flush;
mod glob;
mod listing;
mod once;
mod position;
mod random;
mod recorded;
pub mod reply;
mod session;
mod store;
mod sweep;
mod transaction;
pub mod view;
mod waiting;

#[cfg(feature = "conformance")]
pub mod conformance;
#[cfg(feature = "conformance")]
pub mod reference;

pub use commands::server::REDIS_VERSION;
pub use engine::{Engine, Extent, FlushError, Position, Ticket};
pub use once::RECORD_PREFIX;
pub use reply::Reply;
pub use session::{Flow, Session};
pub use store::{Conditional, DATABASES, InfoLines, Options, Store};
pub use view::{KeyView, Loaded, Need, Part, View};

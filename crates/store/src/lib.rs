//! The store: Redis commands as effects on replicated rows, over any engine.
//!
//! A command is one synchronous, side-effect-free, restartable function: it reads a [`View`], appends operations to
//! the open entry and writes one reply, or says what it needs first. The [`Store`] drives it: it opens and closes
//! entries, applies their operations, runs transactions, and parks what must wait. Engines hold the rows; front ends
//! speak protocols. This crate knows neither, nor sockets, files or clocks.

pub mod engine;
pub mod reply;
pub mod view;

pub use engine::{Engine, Position, Ticket};
pub use reply::Reply;
pub use view::{KeyView, Loaded, Need, Part, View};

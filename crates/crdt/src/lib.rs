//! Data that converges: hybrid clocks, dots, version vectors, rows, and how concurrent rows fold into one value.
//!
//! Every write in geode is a set of *rows* with unique names. Rows are only ever added, replaced by a greater version
//! of themselves, or removed by name by somebody who saw them; so replicas that delivered the same entries hold the
//! same rows, whatever the order, and the value a user reads is a pure function (*fold*) of the rows of its cell.
//! This crate is that algebra and the byte format in which rows travel and rest ([`frame`]).
//!
//! It must not know clocks, sockets, files, randomness, commands or protocols: time and identity are given to it.

pub mod actor;
pub mod amount;
pub mod cell;
pub mod codec;
pub mod digest;
pub mod dot;
pub mod frame;
pub mod hybrid;
pub mod image;
pub mod join;
pub mod op;
pub mod token;
pub mod vector;

pub use actor::{ActorId, ActorIndex, Actors};
pub use amount::Amount;
pub use cell::{Cancel, Cell, CellRef, Deadline, Folded, Put, PutRef, Run};
pub use digest::Digest;
pub use dot::{Dot, Mark};
pub use frame::{Frame, FrameBuilder, FrameError};
pub use hybrid::{HybridClock, HybridTime};
pub use join::Join;
pub use op::{KeyName, Kind, Op, SYSTEM_DATABASE};
pub use vector::VersionVector;

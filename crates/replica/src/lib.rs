//! Causal delivery of entries among the regions of a planet: the part of replication that thinks.
//!
//! A [`Replica`] is a state machine. It is told what happened (a link came up, a message arrived, time passed, the disk
//! is done) and answers with [`Action`]s; entries that may be delivered go straight to its [`Host`]. Every region
//! streams the entries of its own actors to every peer, so each row crosses each link once; what a region cannot send
//! because it is dead or cut off, any other that holds it supplies. An entry is delivered when its predecessor and all
//! it depends on are, one by one, however frames were cut.
//!
//! It must not know clocks, sockets, files, threads or randomness, and the same events give the same actions: one
//! seeded simulator drives many of them through what networks do.

mod catch_up;
mod drift;
mod ends;
mod exclusion;
pub mod facts;
mod heartbeat;
mod life;
mod names;
mod peer;
mod pending;
mod replica;
mod snapshot;
mod vector;
pub mod wire;

pub use ends::Standing;
pub use facts::Fact;
pub use life::Coverage;
pub use replica::{Action, Host, Now, PENDING_BYTES, Replica, Report, Unreadable};
pub use snapshot::Joinable;
pub use vector::Vector;
pub use wire::Message;

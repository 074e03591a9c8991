//! The embedded engine: a region's rows in memory, its log on disk, its links to the other regions.
//!
//! One append-only log per region is write-ahead log and replication stream at once. The data thread owns the rows and
//! writes the log; other threads force it onto the disk and ship it to peers straight from the file. What may be
//! delivered when is decided by the pure core in `geode_replica`. This crate knows no protocol and no command.

mod checkpoint;
mod cold;
mod config;
mod conflict;
mod delivery;
mod engine;
mod error;
mod floor;
mod handle;
mod identity;
mod inbox;
mod inspect;
mod life;
mod links;
mod log;
mod outbox;
mod recovery;
mod rows;
mod snapshot;
mod table;
mod trouble;

pub use config::{Config, FsyncMode};
pub use conflict::{Conflict, ConflictQuery, ConflictReport, Rule, Side};
pub use engine::{Dial, Embedded, Wake};
pub use error::OpenError;
pub use geode_replica::{Standing, Vector};
pub use handle::{
    ClosedActor, EmbeddedHandle, HeldState, MembershipError, MemoryUse, PeerStats, Regions, Stats, Stopped,
};
pub use inspect::read_frames;
pub use links::{Channel, Connection, PathState, PeerTraffic};
pub use snapshot::JoinProgress;
pub use snapshot::backup::{Backup, BackupSummary, RestoreError, check_backup, restore};
pub use table::Table;

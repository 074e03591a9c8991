//! What the rest of the process asks an engine, from any thread.

use std::io;
use std::time::Duration;

use geode_replica::Vector;
use tokio::net::TcpStream;

use crate::conflict::ConflictReport;

/// Questions to an engine. Cheap to clone; the answers come from the data thread, between two batches.
#[derive(Clone, Debug)]
pub struct EmbeddedHandle {}

/// What a replica holds, for comparison with others at equal vectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldState {
    /// What it has delivered.
    pub vector: Vector,
    /// One sum for each of the 256 key ranges.
    pub digest: Vec<u64>,
}

/// Sizes and distances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Keys with live data over all databases.
    pub keys: u64,
    /// Estimate of the bytes that rows take in memory.
    pub memory_bytes: u64,
    /// Bytes of log on disk.
    pub log_bytes: u64,
    /// The incarnation under which this region writes.
    pub actor: String,
    /// Deliveries that left a conflict, by rule.
    pub conflicts: Vec<(&'static str, u64)>,
    /// The other regions.
    pub peers: Vec<PeerStats>,
}

/// How one other region stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStats {
    /// Its name.
    pub region: String,
    /// Whether a link to it is up and agreed.
    pub connected: bool,
    /// Entries held here that it has not yet said to hold.
    pub behind_entries: u64,
    /// Entries that it says to hold and that are not yet held here.
    pub ahead_entries: u64,
}

/// The data thread is gone or has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store has stopped")]
pub struct Stopped;

impl EmbeddedHandle {
    /// Takes over a connection for replication that `from_region` made to this one.
    pub fn accept(&self, from_region: &str, stream: TcpStream) {
        unimplemented!("{from_region} {stream:?}")
    }

    /// What is delivered here and in the kernel. Reads a few atomics; never waits for the data thread.
    pub fn vector(&self) -> Vector {
        unimplemented!()
    }

    /// Waits until everything in `vector` is delivered here, at most for `patience`. Returns whether it is.
    pub async fn wait_for(&self, vector: &Vector, patience: Duration) -> bool {
        unimplemented!("{vector:?} {patience:?}")
    }

    /// The connected regions that have said to hold everything in `vector`, by name.
    pub fn holders(&self, vector: &Vector) -> Vec<String> {
        unimplemented!("{vector:?}")
    }

    /// The vector and the digest at it.
    ///
    /// # Errors
    /// [`Stopped`]
    pub async fn held_state(&self) -> Result<HeldState, Stopped> {
        unimplemented!()
    }

    /// Up to `limit` keys (database, name) of a key range of the digest, for people.
    ///
    /// # Errors
    /// [`Stopped`]
    pub async fn example_keys(&self, range: u8, limit: usize) -> Result<Vec<(u8, Vec<u8>)>, Stopped> {
        unimplemented!("{range} {limit}")
    }

    /// The last `limit` conflicts, newest first, and the counts by rule.
    ///
    /// # Errors
    /// [`Stopped`]
    pub async fn conflicts(&self, limit: usize) -> Result<ConflictReport, Stopped> {
        unimplemented!("{limit}")
    }

    /// Sizes and distances.
    ///
    /// # Errors
    /// [`Stopped`]
    pub async fn stats(&self) -> Result<Stats, Stopped> {
        unimplemented!()
    }

    /// Flushes, forces the log onto the disk and leaves the mark of a clean stop. Nothing can be written afterwards.
    ///
    /// # Errors
    /// What the disk said; the mark is then missing.
    pub async fn stop(&self) -> io::Result<()> {
        unimplemented!()
    }
}

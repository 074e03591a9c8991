//! What an embedded engine is told when it opens.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use geode_crdt::HybridTime;

/// When the log is forced onto the disk. In every mode a record is in the kernel before its answer, so a killed
/// process loses nothing; the modes differ in what a crash of the machine may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FsyncMode {
    /// Replies wait until their record is on disk; one fsync covers all that came before it.
    Always,
    /// Once a second: a machine crash may lose the last second.
    EverySecond,
    /// When the system likes. Other regions' WAIT never counts this one.
    Never,
}

impl FsyncMode {
    /// The word in planet.toml.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::EverySecond => "everysec",
            Self::Never => "never",
        }
    }
}

impl FromStr for FsyncMode {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::Always, Self::EverySecond, Self::Never].into_iter().find(|mode| mode.name() == text).ok_or(())
    }
}

/// Where an engine keeps its data and who it is.
#[derive(Clone, Debug)]
pub struct Config {
    /// The data directory; created if it is missing. One process at a time.
    pub data: PathBuf,
    /// The planet's name.
    pub planet: String,
    /// This region's name.
    pub region: String,
    /// The names of the planet's other regions.
    pub peers: Vec<String>,
    /// When the log is forced onto the disk.
    pub fsync: FsyncMode,
    /// A log file is closed and the next one begun at about this many bytes.
    pub segment_bytes: u64,
    /// Bytes of log that are kept for regions that are away; older segments are removed once a checkpoint holds what they
    /// say.
    pub retention: u64,
    /// A checkpoint is not made before the log has grown by this many bytes since the last one.
    pub checkpoint_bytes: u64,
    /// What rows, and the part of the checkpoint that is kept at hand, may take in memory: keys that were not used for long
    /// are then on disk alone. `None` is no limit.
    pub memory: Option<u64>,
    /// Reads the wall clock. Whoever drives the engine tells it the same clock.
    pub clock: fn() -> HybridTime,
}

impl Config {
    /// Bytes of a log segment: small enough to be dropped one by one, large enough that there are few.
    pub const SEGMENT_BYTES: u64 = 64 << 20;

    /// At a thousand writes of 100 bytes a second, a day and a half.
    pub const RETENTION: u64 = 20 << 30;

    /// What a start replays in well under a second; Redis rewrites its log from the same size on.
    pub const CHECKPOINT_BYTES: u64 = 64 << 20;

    /// What the checkpoint's B-tree may keep in memory without a limit, and the least that it needs.
    const DISK_CACHE: usize = 32 << 20;
    const LEAST_DISK_CACHE: u64 = 4 << 20;

    /// What the checkpoint's B-tree may keep in memory: with a limit an eighth of it, which holds the inner nodes above eight
    /// times as much data as there is memory for.
    pub(crate) fn disk_cache(&self) -> usize {
        self.memory.map_or(Self::DISK_CACHE, |memory| (memory / 8).max(Self::LEAST_DISK_CACHE) as usize)
    }

    /// The defaults for a region of a planet: fsync every second.
    pub fn new(data: impl Into<PathBuf>, planet: &str, region: &str, peers: &[&str]) -> Self {
        Self {
            data: data.into(),
            planet: planet.to_owned(),
            region: region.to_owned(),
            peers: peers.iter().map(|&peer| peer.to_owned()).collect(),
            fsync: FsyncMode::EverySecond,
            segment_bytes: Self::SEGMENT_BYTES,
            checkpoint_bytes: Self::CHECKPOINT_BYTES,
            retention: Self::RETENTION,
            memory: None,
            clock: system_time,
        }
    }
}

/// The system's wall clock.
pub(crate) fn system_time() -> HybridTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    HybridTime(since.as_micros() as u64)
}

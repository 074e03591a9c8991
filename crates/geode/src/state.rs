//! What one geode says of itself, and what goes over a gossip connection.
//!
//! Messages are JSON, one a line. A reader ignores fields it does not know and takes the default of those it misses, so
//! that two neighbouring releases understand each other.

use std::collections::BTreeMap;

use geode_embedded::MemoryUse;
use geode_planet::RegionName;
use serde::{Deserialize, Serialize};

use crate::geode::VERSION;

/// Everything a geode tells the others about itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct GeodeState {
    pub(crate) region: RegionName,
    /// When this process started, in milliseconds since 1970: a later process of the same region has a greater one.
    pub(crate) incarnation: u64,
    /// How many times this process has spoken; orders its states.
    pub(crate) beat: u64,
    /// The version of the binary.
    pub(crate) version: String,
    /// The digest of the meaning of its planet.toml.
    pub(crate) config_digest: String,
    /// The digest of its service's command and files; none for an upstream, or until an instance started.
    #[serde(default)]
    pub(crate) service_digest: Option<String>,
    /// Why it cannot serve now; none if it can.
    #[serde(default)]
    pub(crate) trouble: Option<String>,
    /// It is being emptied, or stops.
    #[serde(default)]
    pub(crate) draining: bool,
    /// What its service does; none if the planet has no service.
    #[serde(default)]
    pub(crate) service: Option<ServiceState>,
    /// What its store holds; none until the store is ready.
    #[serde(default)]
    pub(crate) store: Option<StoreState>,
    /// In how many days its bundle ends, if that is soon; negative if it has ended.
    #[serde(default)]
    pub(crate) bundle_days_left: Option<i64>,
}

/// A service in one region.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct ServiceState {
    /// Instances that take requests.
    pub(crate) healthy: u32,
    /// Instances in any state.
    pub(crate) instances: u32,
    /// Requests in flight over all instances.
    pub(crate) in_flight: u32,
    /// Requests in flight over what all instances it may start can carry, smoothed: 0 is idle, 1 is full.
    pub(crate) load: f64,
}

/// A store in one region.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoreState {
    /// For each actor the greatest sequence it holds.
    pub(crate) vector: BTreeMap<String, u64>,
    /// How far its clock is ahead of the other regions', while it refuses writes for that.
    #[serde(default)]
    pub(crate) clock_ahead_ms: Option<u64>,
    /// Why it refuses writes, while its disk does not take them.
    #[serde(default)]
    pub(crate) refuses_writes: Option<String>,
    /// What it keeps in memory, if that is limited.
    #[serde(default)]
    pub(crate) memory: Option<MemoryState>,
}

/// What a store with a limit of memory keeps there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MemoryState {
    /// What rows may take, and take by estimate.
    pub(crate) limit_bytes: u64,
    pub(crate) taken_bytes: u64,
    /// Keys with live data, and keys that are on disk alone.
    pub(crate) keys: u64,
    pub(crate) cold_keys: u64,
    /// Keys that commands had to wait for since it started.
    pub(crate) fetched_keys: u64,
}

impl From<MemoryUse> for MemoryState {
    fn from(told: MemoryUse) -> Self {
        let MemoryUse { limit_bytes, taken_bytes, keys, cold_keys, fetched_keys } = told;
        Self { limit_bytes, taken_bytes, keys, cold_keys, fetched_keys }
    }
}

impl GeodeState {
    /// A geode of this release that has nothing to complain of, and neither service nor store yet.
    pub(crate) fn new(region: RegionName, incarnation: u64, config_digest: String) -> Self {
        Self {
            region,
            incarnation,
            beat: 0,
            version: VERSION.into(),
            config_digest,
            service_digest: None,
            trouble: None,
            draining: false,
            service: None,
            store: None,
            bundle_days_left: None,
        }
    }

    /// Whether this was said after `other`, by the same region.
    pub(crate) fn is_newer_than(&self, other: &Self) -> bool {
        (self.incarnation, self.beat) > (other.incarnation, other.beat)
    }
}

/// One line of gossip.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Message {
    /// The sender.
    pub(crate) state: GeodeState,
    /// What the sender sees of the other regions, the receiver left out.
    pub(crate) sees: Vec<Seen>,
    /// The sender's clock, for the echo.
    pub(crate) sent_ms: u64,
    /// The receiver's last message, so that it learns the round trip.
    pub(crate) echo: Option<Echo>,
}

/// One region as seen by the sender of a message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Seen {
    pub(crate) region: RegionName,
    /// Whether the sender reaches it.
    pub(crate) reachable: bool,
    /// For how long that has been so.
    pub(crate) for_ms: u64,
    /// What it last said, with its age; only if the receiver told that it does not reach that region itself.
    #[serde(default)]
    pub(crate) last: Option<(GeodeState, u64)>,
}

/// A message's own clock, sent back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Echo {
    pub(crate) sent_ms: u64,
    /// How long it lay here before it was sent back.
    pub(crate) held_ms: u64,
}

//! What a decision is made from.

use geode_planet::{Coordinates, OnAllDown, Place, RegionName};
use xxhash_rust::xxh3::xxh3_64;

use crate::RegionHealth;

/// Who asks.
#[derive(Debug, Clone, PartialEq)]
pub struct Client {
    /// Where the client is, if known.
    pub place: Option<Place>,
    /// Stable for this client. It spreads clients over near-equal regions and picks those that leave a full one.
    pub key: u64,
}

impl Client {
    /// A client whose key is a hash of something that stays the same for it: its network, address or name.
    pub fn new(place: Option<Place>, identity: &[u8]) -> Self {
        Self { place, key: xxh3_64(identity) }
    }
}

/// The operator's choices, from `[steering]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Policy {
    /// What to answer when no region is healthy.
    pub on_all_down: OnAllDown,
    /// Regions at most this many milliseconds farther than the closest count as equally close.
    pub band_ms: f64,
}

impl From<&geode_planet::Steering> for Policy {
    fn from(steering: &geode_planet::Steering) -> Self {
        Self { on_all_down: steering.on_all_down, band_ms: steering.band.as_secs_f64() * 1000.0 }
    }
}

/// One region as the decider sees it now.
#[derive(Debug, Clone, PartialEq)]
pub struct RegionState {
    /// Its name; names are distinct.
    pub name: RegionName,
    /// Where it is.
    pub coordinates: Coordinates,
    /// Relative to the other regions, positive.
    pub capacity: f64,
    /// Whether it may be used.
    pub health: RegionHealth,
    /// Requests in flight over what its instances can carry, smoothed over some seconds: 0 is idle, 1 is full.
    pub load: f64,
    /// Round trip between this region and the client's network, if somebody measured it.
    pub measured_rtt_ms: Option<f64>,
}

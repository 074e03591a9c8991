//! What a geode tells about its store: shared by the admin API, the questions between geodes and the command line.

use std::collections::BTreeMap;

use geode_planet::RegionName;
use serde::{Deserialize, Serialize};

/// What one region's store holds. Regions of equal vectors must have equal digests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Proof {
    /// For each actor the greatest sequence delivered.
    pub(crate) vector: BTreeMap<String, u64>,
    /// One sum of 16 hexadecimal digits for each key range.
    pub(crate) digests: Vec<String>,
    /// Some keys of the key ranges that were asked for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) examples: BTreeMap<u8, Vec<String>>,
}

/// The conflicts of one region.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Conflicts {
    /// How many there were since the process started, by rule.
    pub(crate) totals: BTreeMap<String, u64>,
    /// The latest, newest first.
    pub(crate) recent: Vec<Conflict>,
}

/// One conflict, as text: bytes that are no UTF-8 are escaped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Conflict {
    /// When it was found here, in microseconds since 1970.
    pub(crate) time_us: u64,
    pub(crate) database: u8,
    pub(crate) key: String,
    /// The type of the cell, as TYPE names it.
    pub(crate) kind: String,
    /// Its field or member; empty for a string.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) element: String,
    /// The rule that decided.
    pub(crate) rule: String,
    pub(crate) winner: Side,
    /// Of a clear there is no value.
    pub(crate) loser: Side,
}

/// One side of a conflict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Side {
    pub(crate) value: String,
    /// The name of the write.
    pub(crate) dot: String,
    /// When it was written, in microseconds since 1970.
    pub(crate) time_us: u64,
}

/// What each region answered, through the one that was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PlanetReport<T> {
    pub(crate) asked: RegionName,
    pub(crate) regions: BTreeMap<RegionName, RegionAnswer<T>>,
}

/// One region's answer, or in words why there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RegionAnswer<T> {
    Answer(T),
    Error(String),
}

//! From several geodes' views of one region to its health.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Whether a region may be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum RegionHealth {
    /// It serves.
    Healthy,
    /// It is being emptied on an operator's word.
    Draining,
    /// It is there, but its service is not well.
    Unhealthy {
        /// What it says about itself.
        reason: String,
    },
    /// Most of those who look cannot reach it.
    Unreachable {
        /// For how long, in milliseconds.
        for_ms: u64,
    },
}

/// What a region last said about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Why its service is not well; none if it is.
    pub trouble: Option<String>,
    /// Whether it is drained.
    pub draining: bool,
}

/// What one geode, this one included, sees of another region. Times are this geode's clock: when it saw, or
/// when the other's word came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sighting {
    /// Whether the region can be reached from there.
    pub reachable: bool,
    /// Since when it is so.
    pub since_ms: u64,
    /// When this was heard.
    pub heard_ms: u64,
}

/// A region's health as its own report and all vantage points tell it.
///
/// It is unreachable if more than half of those who have been heard within `fresh_ms` cannot reach it, whatever it last
/// said: one broken path between two regions takes neither away from its users. The views of those who are themselves
/// gone grow stale and do not count; with no fresh view the region's own last report stands, and with none of that
/// either it is not healthy. O(vantage points).
pub fn region_health(
    report: Option<&Report>,
    sightings: &[Sighting],
    fresh_ms: u64,
    now_ms: u64,
) -> RegionHealth {
    let fresh = |sighting: &&Sighting| now_ms.saturating_sub(sighting.heard_ms) <= fresh_ms;
    let (mut seen, mut missed, mut missed_since_ms) = (0, 0, u64::MAX);
    for sighting in sightings.iter().filter(fresh) {
        if sighting.reachable {
            seen += 1;
        } else {
            missed += 1;
            missed_since_ms = missed_since_ms.min(sighting.since_ms);
        }
    }
    if missed > seen {
        return RegionHealth::Unreachable { for_ms: now_ms.saturating_sub(missed_since_ms) };
    }
    match report {
        None => RegionHealth::Unhealthy { reason: "not heard from yet".into() },
        Some(Report { trouble: Some(reason), .. }) => RegionHealth::Unhealthy { reason: reason.clone() },
        Some(Report { draining: true, .. }) => RegionHealth::Draining,
        Some(_) => RegionHealth::Healthy,
    }
}

impl fmt::Display for RegionHealth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Healthy => write!(f, "healthy"),
            Self::Draining => write!(f, "draining"),
            Self::Unhealthy { reason } => write!(f, "unhealthy: {reason}"),
            Self::Unreachable { for_ms } => write!(f, "unreachable for {for_ms} ms"),
        }
    }
}

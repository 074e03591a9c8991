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

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: u64 = 100_000;
    const FRESH_MS: u64 = 1000;

    fn sees(reachable: bool, since_ms: u64) -> Sighting {
        Sighting { reachable, since_ms, heard_ms: NOW_MS - 500 }
    }

    fn health(report: Option<&Report>, sightings: &[Sighting]) -> RegionHealth {
        region_health(report, sightings, FRESH_MS, NOW_MS)
    }

    #[test]
    fn most_of_those_who_look_decide() {
        let well = Report { trouble: None, draining: false };
        let (seen, missed) = (sees(true, 0), sees(false, NOW_MS - 3000));
        assert_eq!(health(Some(&well), &[seen, seen]), RegionHealth::Healthy);
        // One broken path: still there for the users.
        assert_eq!(health(Some(&well), &[seen, missed]), RegionHealth::Healthy);
        assert_eq!(health(Some(&well), &[seen, missed, missed]), RegionHealth::Unreachable { for_ms: 3000 });
        let earlier = sees(false, NOW_MS - 7000);
        assert_eq!(health(Some(&well), &[missed, earlier]), RegionHealth::Unreachable { for_ms: 7000 });
    }

    #[test]
    fn stale_views_do_not_count() {
        let well = Report { trouble: None, draining: false };
        let stale = Sighting { reachable: true, since_ms: 0, heard_ms: NOW_MS - FRESH_MS - 1 };
        let missed = sees(false, NOW_MS);
        // Cut off from everybody, this geode's own view is all there is.
        assert_eq!(health(Some(&well), &[stale, stale, missed]), RegionHealth::Unreachable { for_ms: 0 });
        assert_eq!(health(Some(&well), &[Sighting { reachable: false, ..stale }]), RegionHealth::Healthy);
    }

    #[test]
    fn a_region_that_is_reached_is_what_it_says() {
        let report = |trouble: Option<&str>, draining| Report { trouble: trouble.map(Into::into), draining };
        let unhealthy = |reason: &str| RegionHealth::Unhealthy { reason: reason.into() };
        let seen = [sees(true, 0)];
        assert_eq!(health(Some(&report(None, true)), &seen), RegionHealth::Draining);
        assert_eq!(
            health(Some(&report(Some("0 of 2 instances"), true)), &seen),
            unhealthy("0 of 2 instances")
        );
        assert_eq!(health(None, &seen), unhealthy("not heard from yet"));
        assert_eq!(health(None, &[]), unhealthy("not heard from yet"));
    }
}

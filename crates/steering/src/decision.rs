//! A decision, and how it reads.

use std::fmt;

use geode_planet::{Place, RegionName, RttSource};
use serde::Serialize;

use crate::RegionHealth;

/// Which regions serve a client, in which order, and why; and why the others do not.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Decision {
    /// Where the client was taken to be.
    pub place: Option<Place>,
    /// Every region: first those to try, in order, then those passed over.
    pub candidates: Vec<Candidate>,
}

/// One region's part in a decision.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Candidate {
    /// The region.
    pub region: RegionName,
    /// Whether it is to be tried when those before it fail.
    pub eligible: bool,
    /// Round trip to the client, if there is any idea of it.
    pub rtt_ms: Option<f64>,
    /// Where the round trip comes from.
    pub source: Source,
    /// Why it stands where it stands.
    pub reason: Reason,
}

/// Where a round trip comes from, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Somebody measured it.
    Measured,
    /// The latency model, over the cable graph.
    Model,
    /// Great-circle distance.
    Distance,
    /// The client's whereabouts are not known.
    Unknown,
}

/// Why a region stands where it stands in a decision.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Reason {
    /// First: no other region is closer, and none is as close.
    Closest,
    /// First: the closest of those left; closer ones were passed over.
    ClosestLeft {
        /// How much farther than the closest of all.
        by_ms: f64,
    },
    /// As close as the closest of those left, give or take the band: the order among these is drawn by the client's
    /// key, in proportion to capacity.
    InBand {
        /// How much farther than the closest of those left.
        by_ms: f64,
    },
    /// Farther than those, by more than the band.
    Farther {
        /// How much farther than the closest of those left.
        by_ms: f64,
    },
    /// Nothing is known about its distance from this client: drawn by the client's key, in proportion to capacity.
    Unplaced,
    /// It has no room for this client, so others come first.
    Overflow {
        /// Its load in percent.
        load_percent: f64,
    },
    /// Passed over because of its health.
    PassedOver {
        /// That health.
        health: RegionHealth,
    },
    /// Tried whatever its health, since no region is healthy and the policy says `on_all_down = "open"`.
    Fallback {
        /// That health.
        health: RegionHealth,
    },
}

impl Decision {
    /// The regions to try, in order. Empty if there is none, or all are down and the policy is to send nobody.
    pub fn order(&self) -> impl Iterator<Item = &Candidate> {
        self.candidates.iter().filter(|candidate| candidate.eligible)
    }

    /// The first choice.
    pub fn chosen(&self) -> Option<&Candidate> {
        self.order().next()
    }
}

impl From<RttSource> for Source {
    fn from(source: RttSource) -> Self {
        match source {
            RttSource::Model => Self::Model,
            RttSource::Distance => Self::Distance,
        }
    }
}

/// The table of `geode explain`.
impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some(place) => writeln!(f, "client in {place}")?,
            None => writeln!(f, "client of unknown place")?,
        }
        let width =
            self.candidates.iter().map(|candidate| candidate.region.as_str().len()).max().unwrap_or(0);
        for (index, candidate) in self.candidates.iter().enumerate() {
            let rank = if candidate.eligible { (index + 1).to_string() } else { "-".into() };
            let rtt = candidate.rtt_ms.map_or_else(|| "?".into(), |rtt_ms| format!("{rtt_ms:.1}"));
            let (region, source, reason) = (&candidate.region, candidate.source, &candidate.reason);
            writeln!(f, "{rank:>3}  {region:width$}  {rtt:>6} ms  {source:8}  {reason}")?;
        }
        if self.chosen().is_none() {
            writeln!(f, "nobody serves this client")?;
        }
        Ok(())
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Measured => "measured",
            Self::Model => "model",
            Self::Distance => "distance",
            Self::Unknown => "unknown",
        })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closest => write!(f, "closest"),
            Self::ClosestLeft { by_ms } => write!(f, "closest left, {by_ms:.1} ms farther than the closest"),
            Self::InBand { by_ms } => write!(f, "within the band (+{by_ms:.1} ms), drawn by weight"),
            Self::Farther { by_ms } => write!(f, "{by_ms:.1} ms farther"),
            Self::Unplaced => write!(f, "distance unknown, drawn by weight"),
            Self::Overflow { load_percent } => {
                write!(f, "nearly full (load {load_percent:.0} %), after those with room")
            }
            Self::PassedOver { health } => write!(f, "passed over: {health}"),
            Self::Fallback { health } => write!(f, "no region is healthy, tried although {health}"),
        }
    }
}

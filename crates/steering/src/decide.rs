//! The decision.

use std::cmp::Ordering;

use geode_planet::{OnAllDown, rtt};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::{Candidate, Client, Decision, Policy, Reason, RegionHealth, RegionState, Source};

/// Below this load a region serves everybody; from here to full, a growing share of its clients goes elsewhere, so
/// that it fills gently and the next region is not hit by all at once. Fly's proxy has the same two limits, soft and
/// hard; the soft one is our choice.
const SPILL_FROM_LOAD: f64 = 0.8;
const FULL_LOAD: f64 = 1.0;

/// Orders all regions for one client.
///
/// Healthy regions come first, by round trip: measured, else modelled, else by distance. Those within the policy's band
/// of the closest count as equal, and the client's key draws their order in proportion to capacity (weighted
/// rendezvous hashing), so the same client always gets the same one and a capacity change moves as few as it can.
/// Regions that run full pass a growing share of their clients, picked by key, on to the next: at most half of all
/// regions, rounded down, the fullest. Regions that are draining, unhealthy or unreachable are passed over; when no
/// other is left, the policy says whether they are tried all the same, in that order.
///
/// Regions whose distance nobody knows come after those that are known, drawn by key as well.
///
/// Deterministic, independent of the order of `regions`, and total: senseless numbers (NaN, a negative round trip) count
/// as not known. O(n log n) for n regions, with one allocation, and a microsecond a region for the latency model;
/// doors keep the decision of a place until a region's state changes.
pub fn decide(client: &Client, policy: &Policy, regions: &[RegionState]) -> Decision {
    let mut ranked: Vec<Ranked<'_>> =
        regions.iter().map(|region| Ranked::new(client, region, regions)).collect();
    ranked.sort_unstable_by(Ranked::by_latency);
    let outcome = Outcome::new(&ranked, policy);
    ranked[..outcome.equally_close].sort_unstable_by(Ranked::by_draw);
    let candidates =
        ranked.iter().enumerate().map(|(index, ranked)| outcome.candidate(index, ranked)).collect();
    Decision { place: client.place.clone(), candidates }
}

/// What decides a region's place in the order, the most important first.
struct Ranked<'a> {
    state: &'a RegionState,
    standing: Standing,
    /// Infinite if not known.
    rtt_ms: f64,
    source: Source,
    /// The client's draw for this region; the least wins.
    draw: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    Open,
    Overflow,
    Draining,
    Unhealthy,
    Unreachable,
}

impl<'a> Ranked<'a> {
    fn new(client: &Client, state: &'a RegionState, regions: &[RegionState]) -> Self {
        let standing = match state.health {
            RegionHealth::Healthy if spills(client, state, regions) => Standing::Overflow,
            RegionHealth::Healthy => Standing::Open,
            RegionHealth::Draining => Standing::Draining,
            RegionHealth::Unhealthy { .. } => Standing::Unhealthy,
            RegionHealth::Unreachable { .. } => Standing::Unreachable,
        };
        let (rtt_ms, source) = round_trip(client, state);
        // The region whose exponential race ends first wins with probability capacity / total capacity.
        let draw = -uniform(client.key, state, "band").ln() / state.capacity.max(f64::MIN_POSITIVE);
        Self { state, standing, rtt_ms, source, draw }
    }

    fn by_latency(&self, other: &Self) -> Ordering {
        self.standing
            .cmp(&other.standing)
            .then(self.rtt_ms.total_cmp(&other.rtt_ms))
            .then_with(|| self.by_draw(other))
    }

    fn by_draw(&self, other: &Self) -> Ordering {
        self.draw.total_cmp(&other.draw).then_with(|| self.state.name.cmp(&other.state.name))
    }
}

fn round_trip(client: &Client, state: &RegionState) -> (f64, Source) {
    let sensible = |rtt_ms: &f64| rtt_ms.is_finite() && *rtt_ms >= 0.0;
    if let Some(measured_ms) = state.measured_rtt_ms.filter(sensible) {
        return (measured_ms, Source::Measured);
    }
    match &client.place {
        Some(place) => {
            let estimate = rtt(place.coordinates, state.coordinates);
            (estimate.rtt_ms, estimate.source.into())
        }
        None => (f64::INFINITY, Source::Unknown),
    }
}

/// Whether this region passes this client on. A client that leaves at some load leaves at every higher one.
fn spills(client: &Client, state: &RegionState, regions: &[RegionState]) -> bool {
    let share = (state.load - SPILL_FROM_LOAD) / (FULL_LOAD - SPILL_FROM_LOAD);
    share > uniform(client.key, state, "spill") && {
        let fuller = |other: &&RegionState| {
            other.health == RegionHealth::Healthy
                && (other.load > state.load || other.load == state.load && other.name < state.name)
        };
        regions.iter().filter(fuller).count() < regions.len() / 2
    }
}

/// A number above 0 and at most 1, fixed for this client, region and purpose.
fn uniform(key: u64, state: &RegionState, purpose: &str) -> f64 {
    let seed = key ^ xxh3_64(purpose.as_bytes());
    let bits = xxh3_64_with_seed(state.name.as_str().as_bytes(), seed);
    // 53 bits: all that a double holds exactly.
    ((bits >> 11) + 1) as f64 / (1u64 << 53) as f64
}

/// What holds for the decision as a whole, found from the regions in order of latency.
struct Outcome {
    /// Whether regions that are not healthy are tried.
    fallback: bool,
    /// How many of the first count as equally close.
    equally_close: usize,
    /// Of the closest region of all.
    closest_ms: f64,
    /// Of the closest of those left.
    closest_left_ms: f64,
}

impl Outcome {
    fn new(ranked: &[Ranked<'_>], policy: &Policy) -> Self {
        let best =
            ranked.first().map_or((Standing::Open, f64::INFINITY), |first| (first.standing, first.rtt_ms));
        let (standing, closest_left_ms) = best;
        let limit_ms = closest_left_ms + policy.band_ms.max(0.0);
        let equal = |ranked: &&Ranked<'_>| ranked.standing == standing && ranked.rtt_ms <= limit_ms;
        Self {
            fallback: standing > Standing::Overflow && policy.on_all_down == OnAllDown::Open,
            equally_close: ranked.iter().take_while(equal).count(),
            closest_ms: ranked.iter().map(|ranked| ranked.rtt_ms).fold(f64::INFINITY, f64::min),
            closest_left_ms,
        }
    }

    fn candidate(&self, index: usize, ranked: &Ranked<'_>) -> Candidate {
        Candidate {
            region: ranked.state.name.clone(),
            eligible: self.fallback || ranked.standing <= Standing::Overflow,
            rtt_ms: ranked.rtt_ms.is_finite().then_some(ranked.rtt_ms),
            source: ranked.source,
            reason: self.reason(index, ranked),
        }
    }

    fn reason(&self, index: usize, ranked: &Ranked<'_>) -> Reason {
        let by_ms = ranked.rtt_ms - self.closest_left_ms;
        match ranked.standing {
            Standing::Draining | Standing::Unhealthy | Standing::Unreachable => {
                let health = ranked.state.health.clone();
                if self.fallback { Reason::Fallback { health } } else { Reason::PassedOver { health } }
            }
            Standing::Overflow => Reason::Overflow { load_percent: ranked.state.load * 100.0 },
            Standing::Open if ranked.source == Source::Unknown => Reason::Unplaced,
            Standing::Open if index >= self.equally_close => Reason::Farther { by_ms },
            Standing::Open if self.equally_close > 1 => Reason::InBand { by_ms },
            Standing::Open if self.closest_left_ms > self.closest_ms => {
                Reason::ClosestLeft { by_ms: self.closest_left_ms - self.closest_ms }
            }
            Standing::Open => Reason::Closest,
        }
    }
}

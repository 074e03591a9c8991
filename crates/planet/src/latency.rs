//! The latency model: round trips between any two places, for when nobody has measured them.
//!
//! Great-circle distance alone misjudges whole corridors (Europe to East Asia goes around Africa or Russia, Brazil to
//! Africa through Europe). The model routes over a small graph of cable landings and backbone cities instead: with L
//! the length of the shortest path, `rtt_ms = 8 + 1.36·L/100` met two providers' published region-to-region tables
//! (156 pairs) with a median error of 4 to 6 %, straight lines with 11 to 13 %. It describes data-centre backbones: a
//! user's access line adds to it. Its worst known error is Brazil to South Africa (113 ms for 326).

mod hubs;

use std::sync::LazyLock;

use serde::Serialize;

use crate::Coordinates;
use crate::coordinates::SpherePoint;
use hubs::{CABLES, HUBS};

/// A round-trip time and where it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RttEstimate {
    /// Round trip in milliseconds, positive.
    pub rtt_ms: f64,
    /// How it was found.
    pub source: RttSource,
}

/// How a modelled round trip was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RttSource {
    /// Over the cable graph: about ±10 %.
    Model,
    /// From the great-circle distance, because an end lies far from every hub: about ±30 %.
    Distance,
}

/// Two points nearer than this share a metropolitan area and its exchange.
const SAME_METRO_KM: f64 = 50.0;
/// What crossing a metropolitan area takes: the median of a dozen pairs of different providers' regions in one city,
/// measured at 1.5 to 4 ms.
const SAME_METRO_RTT_MS: f64 = 2.0;
/// Nearer pairs may be joined directly, by fibre a fifth longer than the straight line.
const DIRECT_KM: f64 = 800.0;
const DIRECT_DETOUR: f64 = 1.2;
/// Each end joins its nearest hubs, this many.
const NEAREST_HUBS: usize = 3;
/// A place farther than this from every hub is outside the graph (inner Siberia, the poles, the southern oceans).
const HUB_REACH_KM: f64 = 3000.0;

/// The modelled round trip between two points. Symmetric, and never below what light in fibre needs (1 ms per
/// 100 km). About a microsecond.
pub fn rtt(a: Coordinates, b: Coordinates) -> RttEstimate {
    let (a, b) = (a.on_sphere(), b.on_sphere());
    let direct_km = a.arc_km(b);
    if direct_km < SAME_METRO_KM {
        return RttEstimate { rtt_ms: SAME_METRO_RTT_MS, source: RttSource::Model };
    }
    let over_hubs_km = hub_path_km(a, b);
    let near_km = (direct_km < DIRECT_KM).then_some(DIRECT_DETOUR * direct_km);
    match over_hubs_km.into_iter().chain(near_km).reduce(f64::min) {
        Some(path_km) => RttEstimate { rtt_ms: 8.0 + 1.36 * path_km / 100.0, source: RttSource::Model },
        None => RttEstimate { rtt_ms: 5.0 + 1.6 * direct_km / 100.0, source: RttSource::Distance },
    }
}

/// The modelled one-way delay in milliseconds: half of the round trip.
pub fn one_way_ms(a: Coordinates, b: Coordinates) -> f64 {
    rtt(a, b).rtt_ms / 2.0
}

/// The shortest way from `a` over hubs to `b`, if both are within reach of the graph.
fn hub_path_km(a: SpherePoint, b: SpherePoint) -> Option<f64> {
    let graph = &*GRAPH;
    let (from, to) = (graph.nearest(a)?, graph.nearest(b)?);
    let pairs = from.iter().flat_map(|from| to.iter().map(move |to| (from, to)));
    // The ends are added to each other first, so that both directions round alike.
    pairs.map(|(from, to)| (from.1 + to.1) + graph.between_km(from.0, to.0)).reduce(f64::min)
}

struct Graph {
    points: [SpherePoint; HUBS.len()],
    /// Shortest paths between all pairs of hubs.
    path_km: [[f64; HUBS.len()]; HUBS.len()],
}

static GRAPH: LazyLock<Graph> = LazyLock::new(|| {
    let points =
        HUBS.map(|(_, latitude_deg, longitude_deg)| Coordinates { latitude_deg, longitude_deg }.on_sphere());
    let index = |code: &str| HUBS.iter().position(|hub| hub.0 == code);
    let mut path_km = [[f64::INFINITY; HUBS.len()]; HUBS.len()];
    for (from, to) in CABLES.iter().filter_map(|(from, to)| Some((index(from)?, index(to)?))) {
        path_km[from][to] = points[from].arc_km(points[to]);
        path_km[to][from] = path_km[from][to];
    }
    // Floyd and Warshall: 47³ steps, once.
    for via in 0..HUBS.len() {
        path_km[via][via] = 0.0;
        let onwards_km = path_km[via];
        for row in &mut path_km {
            let to_via_km = row[via];
            for (km, onward_km) in row.iter_mut().zip(onwards_km) {
                *km = km.min(to_via_km + onward_km);
            }
        }
    }
    Graph { points, path_km }
});

impl Graph {
    /// The shortest path between two hubs, read from one half of the table: the other may round differently.
    fn between_km(&self, a: usize, b: usize) -> f64 {
        self.path_km[a.min(b)][a.max(b)]
    }

    /// The nearest hubs and the distance to them, if any is within reach.
    fn nearest(&self, point: SpherePoint) -> Option<[(usize, f64); NEAREST_HUBS]> {
        let mut nearest = [(0, f64::INFINITY); NEAREST_HUBS];
        for (hub, at) in self.points.iter().enumerate() {
            let chord_squared = point.chord_squared(*at);
            let rank = nearest.partition_point(|(_, other)| *other <= chord_squared);
            if rank < NEAREST_HUBS {
                nearest[rank..].rotate_right(1);
                nearest[rank] = (hub, chord_squared);
            }
        }
        let nearest = nearest.map(|(hub, _)| (hub, point.arc_km(self.points[hub])));
        (nearest[0].1 <= HUB_REACH_KM).then_some(nearest)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Place;

    fn between(a: &str, b: &str) -> RttEstimate {
        rtt(Place::find(a).unwrap().coordinates, Place::find(b).unwrap().coordinates)
    }

    #[test]
    fn every_cable_joins_two_known_hubs_and_every_hub_is_reachable() {
        for (from, to) in CABLES {
            assert!(
                HUBS.iter().any(|hub| hub.0 == from) && HUBS.iter().any(|hub| hub.0 == to),
                "{from} {to}"
            );
        }
        assert!(GRAPH.path_km.iter().flatten().all(|km| km.is_finite()));
    }

    /// Round trips that providers publish for these pairs; the bands are the model's tail error.
    #[test]
    fn agrees_with_published_round_trips() {
        for (a, b, published_ms, tolerance) in [
            ("us-east-1", "eu-west-1", 68.0, 0.25),
            ("us-east-1", "us-west-2", 64.0, 0.20),
            ("us-east-1", "ap-southeast-2", 200.0, 0.15),
            ("us-east-1", "sa-east-1", 115.0, 0.15),
            ("eu-west-1", "ap-southeast-2", 255.0, 0.20),
            ("eu-central-1", "ap-southeast-1", 160.0, 0.20),
            ("london", "tokyo", 230.0, 0.20),
            ("us-west-1", "ap-northeast-1", 107.0, 0.20),
            ("eu-central-1", "eu-west-2", 15.0, 0.25),
        ] {
            let estimate = between(a, b);
            assert_eq!(estimate.source, RttSource::Model);
            let error = (estimate.rtt_ms - published_ms).abs() / published_ms;
            assert!(error <= tolerance, "{a} {b}: {:.1} ms, published {published_ms} ms", estimate.rtt_ms);
        }
    }

    #[test]
    fn one_metro_is_near_and_the_end_of_the_world_is_by_distance() {
        assert_eq!(
            between("sydney", "ap-southeast-2"),
            RttEstimate { rtt_ms: 2.0, source: RttSource::Model }
        );
        assert_eq!(between("novosibirsk", "london").source, RttSource::Distance);
        assert_eq!(one_way_ms(Coordinates::new(0.0, 0.0).unwrap(), Coordinates::new(0.0, 0.0).unwrap()), 1.0);
    }

    proptest! {
        #[test]
        fn symmetric_positive_and_not_faster_than_light(a in any_point(), b in any_point()) {
            let estimate = rtt(a, b);
            prop_assert_eq!(estimate, rtt(b, a));
            prop_assert!(estimate.rtt_ms.is_finite() && estimate.rtt_ms >= SAME_METRO_RTT_MS);
            prop_assert!(estimate.rtt_ms >= a.great_circle_km(b) / 100.0);
        }
    }

    fn any_point() -> impl Strategy<Value = Coordinates> {
        (-90.0..=90.0f64, -180.0..=180.0f64)
            .prop_map(|(latitude_deg, longitude_deg)| Coordinates { latitude_deg, longitude_deg })
    }
}

//! The decision through the front door: what is chosen, why, how it reads, and what always holds.

use geode_planet::{OnAllDown, Place};
use geode_steering::{Client, Decision, Policy, Reason, RegionHealth, RegionState, Source, decide};
use proptest::prelude::*;

const OPEN: Policy = Policy { on_all_down: OnAllDown::Open, band_ms: 15.0 };
const EMPTY: Policy = Policy { on_all_down: OnAllDown::Empty, band_ms: 15.0 };

fn region(name: &str) -> RegionState {
    RegionState {
        name: name.parse().expect("tests use valid names"),
        coordinates: Place::find(name).expect("tests use known places").coordinates,
        capacity: 1.0,
        health: RegionHealth::Healthy,
        load: 0.0,
        measured_rtt_ms: None,
    }
}

/// Three regions, changed by a closure each.
fn planet(change: impl Fn(&mut RegionState)) -> Vec<RegionState> {
    let mut regions: Vec<_> = ["us-east-1", "eu-west-1", "ap-southeast-2"].into_iter().map(region).collect();
    regions.iter_mut().for_each(change);
    regions
}

fn client(place: &str) -> Client {
    Client::new(Some(Place::find(place).expect("tests use known places")), place.as_bytes())
}

fn order(decision: &Decision) -> Vec<&str> {
    decision.order().map(|candidate| candidate.region.as_str()).collect()
}

#[test]
fn the_closest_serves_and_the_table_says_why() {
    assert_eq!(
        decide(&client("sydney"), &OPEN, &planet(|_| ())).to_string(),
        "\
client in sydney (-33.87, 151.21)
  1  ap-southeast-2     2.0 ms  model     closest
  2  us-east-1        224.9 ms  model     222.9 ms farther
  3  eu-west-1        293.8 ms  model     291.8 ms farther
"
    );
}

#[test]
fn the_table_names_what_is_wrong_with_each_region() {
    let regions = planet(|region| match region.name.as_str() {
        "ap-southeast-2" => region.health = RegionHealth::Unreachable { for_ms: 1200 },
        "eu-west-1" => region.health = RegionHealth::Unhealthy { reason: "0 of 2 instances are up".into() },
        _ => region.measured_rtt_ms = Some(199.5),
    });
    assert_eq!(
        decide(&client("sydney"), &OPEN, &regions).to_string(),
        "\
client in sydney (-33.87, 151.21)
  1  us-east-1        199.5 ms  measured  closest left, 197.5 ms farther than the closest
  -  eu-west-1        293.8 ms  model     passed over: unhealthy: 0 of 2 instances are up
  -  ap-southeast-2     2.0 ms  model     passed over: unreachable for 1200 ms
"
    );
}

#[test]
fn a_region_without_room_comes_after_those_with_room() {
    let regions =
        planet(|region| region.load = if region.name.as_str() == "ap-southeast-2" { 1.3 } else { 0.1 });
    assert_eq!(
        decide(&client("sydney"), &OPEN, &regions).to_string(),
        "\
client in sydney (-33.87, 151.21)
  1  us-east-1        224.9 ms  model     closest left, 222.9 ms farther than the closest
  2  eu-west-1        293.8 ms  model     69.0 ms farther
  3  ap-southeast-2     2.0 ms  model     nearly full (load 130 %), after those with room
"
    );
}

#[test]
fn when_all_are_down_the_policy_speaks() {
    let regions = planet(|region| {
        region.health = match region.name.as_str() {
            "us-east-1" => RegionHealth::Draining,
            "eu-west-1" => RegionHealth::Unhealthy { reason: "crashing".into() },
            _ => RegionHealth::Unreachable { for_ms: 10 },
        }
    });
    assert_eq!(
        decide(&client("sydney"), &OPEN, &regions).to_string(),
        "\
client in sydney (-33.87, 151.21)
  1  us-east-1        224.9 ms  model     no region is healthy, tried although draining
  2  eu-west-1        293.8 ms  model     no region is healthy, tried although unhealthy: crashing
  3  ap-southeast-2     2.0 ms  model     no region is healthy, tried although unreachable for 10 ms
"
    );
    assert_eq!(
        decide(&client("sydney"), &EMPTY, &regions).to_string(),
        "\
client in sydney (-33.87, 151.21)
  -  us-east-1        224.9 ms  model     passed over: draining
  -  eu-west-1        293.8 ms  model     passed over: unhealthy: crashing
  -  ap-southeast-2     2.0 ms  model     passed over: unreachable for 10 ms
nobody serves this client
"
    );
}

#[test]
fn json_has_the_same_facts() {
    let regions = planet(|region| match region.name.as_str() {
        "us-east-1" => region.health = RegionHealth::Unreachable { for_ms: 7 },
        _ => region.measured_rtt_ms = Some(20.0),
    });
    let regions = &regions[..2];
    let decision = decide(&Client::new(None, b"192.0.2.0/24"), &OPEN, regions);
    assert_eq!(
        serde_json::to_value(&decision).unwrap(),
        serde_json::json!({ "place": null, "candidates": [
            { "region": "eu-west-1", "eligible": true, "rtt_ms": 20.0, "source": "measured",
              "reason": { "kind": "closest" } },
            { "region": "us-east-1", "eligible": false, "rtt_ms": null, "source": "unknown",
              "reason": { "kind": "passed-over", "health": { "state": "unreachable", "for_ms": 7 } } },
        ]})
    );
}

#[test]
fn measured_beats_modelled_and_nonsense_is_not_measured() {
    let measured = |rtt_ms: f64| {
        let regions = planet(|region| {
            region.measured_rtt_ms = (region.name.as_str() == "eu-west-1").then_some(rtt_ms);
        });
        let decision = decide(&client("sydney"), &OPEN, &regions);
        let first = decision.chosen().unwrap();
        (first.region.to_string(), first.source)
    };
    assert_eq!(measured(-0.0), ("eu-west-1".into(), Source::Measured));
    for nonsense in [f64::NAN, f64::INFINITY, -1.0] {
        assert_eq!(measured(nonsense), ("ap-southeast-2".into(), Source::Model));
    }
}

/// With a wide band London and Frankfurt are equally close to a Londoner, and Virginia is not.
#[test]
fn the_band_spreads_clients_by_capacity_and_keeps_each_where_it_is() {
    let mut regions = vec![region("eu-west-2"), region("eu-central-1"), region("us-east-1")];
    regions[0].capacity = 3.0;
    let policy = Policy { band_ms: 40.0, ..OPEN };
    let london = Place::find("london").unwrap();
    let mut chosen = [0.0, 0.0];
    for key in 0..20_000u64 {
        let client = Client::new(Some(london.clone()), &key.to_be_bytes());
        let decision = decide(&client, &policy, &regions);
        let first = decision.chosen().unwrap();
        assert!(matches!(first.reason, Reason::InBand { .. }));
        assert_eq!(decision.candidates[2].region.as_str(), "us-east-1");
        chosen[usize::from(first.region.as_str() == "eu-central-1")] += 1.0;
    }
    // Three to one; the standard deviation of the share is 0.3 %.
    assert!((chosen[1] / 20_000.0 - 0.25f64).abs() < 0.02, "{chosen:?}");
}

#[test]
fn a_filling_region_lets_its_clients_go_one_after_the_other() {
    let sydney = Place::find("sydney").unwrap();
    let leaves = |key: u64, load: f64| {
        let regions =
            planet(|region| region.load = if region.name.as_str() == "ap-southeast-2" { load } else { 0.5 });
        let decision = decide(&Client::new(Some(sydney.clone()), &key.to_be_bytes()), &OPEN, &regions);
        order(&decision)[0] != "ap-southeast-2"
    };
    let share = |load: f64| (0..2000).filter(|key| leaves(*key, load)).count() as f64 / 2000.0;
    assert_eq!((share(0.8), share(1.0), share(f64::INFINITY), share(f64::NAN)), (0.0, 1.0, 1.0, 0.0));
    assert!((share(0.9) - 0.5).abs() < 0.06);
    for key in 0..500 {
        let left: Vec<bool> = [0.82, 0.86, 0.9, 0.94, 0.98].map(|load| leaves(key, load)).to_vec();
        assert!(left.is_sorted(), "client {key} came back while the load grew: {left:?}");
    }
}

#[test]
fn load_takes_away_at_most_half_of_the_regions() {
    let regions = planet(|region| region.load = if region.name.as_str() == "us-east-1" { 3.0 } else { 2.0 });
    let decision = decide(&client("virginia"), &OPEN, &regions);
    assert_eq!(order(&decision), ["eu-west-1", "ap-southeast-2", "us-east-1"]);
    assert_eq!(order(&decide(&client("virginia"), &OPEN, &regions[..1])), ["us-east-1"]);
    let alike = planet(|region| region.load = 2.0);
    assert_eq!(
        order(&decide(&client("sydney"), &OPEN, &alike)),
        ["us-east-1", "eu-west-1", "ap-southeast-2"]
    );
    assert_eq!(
        order(&decide(&client("virginia"), &OPEN, &alike)),
        ["us-east-1", "eu-west-1", "ap-southeast-2"]
    );
}

#[test]
fn a_client_of_unknown_place_gets_a_region_of_its_own_draw() {
    let regions = planet(|_| ());
    let firsts: std::collections::BTreeSet<String> = (0..50u8)
        .map(|key| decide(&Client::new(None, &[key]), &OPEN, &regions).chosen().unwrap().region.to_string())
        .collect();
    assert_eq!(firsts.len(), 3);
    let decision = decide(&Client::new(None, b"x"), &OPEN, &regions);
    assert!(decision.candidates.iter().all(|candidate| candidate.reason == Reason::Unplaced));
    assert!(decision.to_string().starts_with("client of unknown place\n  1  "));
    assert_eq!(
        decide(&client("sydney"), &OPEN, &[]).to_string(),
        "client in sydney (-33.87, 151.21)\nnobody serves this client\n"
    );
}

const NAMES: [&str; 6] =
    ["us-east-1", "us-west-2", "eu-west-1", "eu-central-1", "ap-southeast-2", "sa-east-1"];

fn any_regions() -> impl Strategy<Value = Vec<RegionState>> {
    let health = prop_oneof![
        4 => Just(RegionHealth::Healthy),
        1 => Just(RegionHealth::Draining),
        1 => Just(RegionHealth::Unhealthy { reason: "broken".into() }),
        1 => (0..9999u64).prop_map(|for_ms| RegionHealth::Unreachable { for_ms }),
    ];
    let load = prop_oneof![3 => 0.0..1.4f64, 1 => Just(f64::NAN)];
    let measured = prop::option::of(prop_oneof![5 => 0.0..400.0f64, 1 => any::<f64>()]);
    let capacity = prop_oneof![5 => 0.1..4.0f64, 1 => any::<f64>()];
    let names = prop::sample::subsequence(NAMES.to_vec(), 0..=NAMES.len());
    (names, prop::collection::vec((health, load, measured, capacity), NAMES.len())).prop_map(
        |(names, states)| {
            let states = names.into_iter().zip(states);
            states
                .map(|(name, (health, load, measured_rtt_ms, capacity))| RegionState {
                    health,
                    load,
                    measured_rtt_ms,
                    capacity,
                    ..region(name)
                })
                .collect()
        },
    )
}

fn any_client() -> impl Strategy<Value = Client> {
    let place =
        prop::option::of(prop::sample::select(vec!["sydney", "london", "lima", "novosibirsk", "tokyo"]));
    (place, any::<u64>())
        .prop_map(|(place, key)| Client { place: place.map(|name| Place::find(name).expect("known")), key })
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let band = prop_oneof![Just(0.0), Just(15.0), 0.0..200.0f64, any::<f64>()];
    (prop::sample::select(vec![OnAllDown::Open, OnAllDown::Empty]), band)
        .prop_map(|(on_all_down, band_ms)| Policy { on_all_down, band_ms })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn total_deterministic_and_blind_to_the_order_of_the_input(
        client in any_client(), policy in any_policy(), regions in any_regions(), rotation in 0..6usize, reversed: bool
    ) {
        let decision = decide(&client, &policy, &regions);
        let mut names: Vec<_> = decision.candidates.iter().map(|candidate| candidate.region.clone()).collect();
        names.sort();
        let mut expected: Vec<_> = regions.iter().map(|region| region.name.clone()).collect();
        expected.sort();
        prop_assert_eq!(names, expected);

        let mut permuted = regions.clone();
        permuted.rotate_left(rotation % regions.len().max(1));
        if reversed {
            permuted.reverse();
        }
        prop_assert_eq!(decide(&client, &policy, &permuted).to_string(), decision.to_string());
    }

    #[test]
    fn healthy_regions_come_first_and_alone_unless_there_is_none(
        client in any_client(), policy in any_policy(), regions in any_regions()
    ) {
        let decision = decide(&client, &policy, &regions);
        let healthy = |name: &str| {
            regions.iter().any(|region| region.name.as_str() == name && region.health == RegionHealth::Healthy)
        };
        let is_healthy: Vec<bool> =
            decision.candidates.iter().map(|candidate| healthy(candidate.region.as_str())).collect();
        prop_assert!(is_healthy.is_sorted_by(|a, b| a >= b), "{decision}");
        let eligible: Vec<bool> = decision.candidates.iter().map(|candidate| candidate.eligible).collect();
        if is_healthy.contains(&true) {
            prop_assert_eq!(eligible, is_healthy);
        } else {
            prop_assert!(eligible.iter().all(|eligible| *eligible == (policy.on_all_down == OnAllDown::Open)));
        }
    }

    /// While nothing is full, the choice lies within the band of the closest healthy region, and a small change of
    /// round trips moves no client farther than the band and the change.
    #[test]
    fn the_choice_stays_within_the_band(
        client in any_client(), rtts_ms in prop::collection::vec((0.0..300.0f64, -2.0..2.0f64), NAMES.len())
    ) {
        let states = |with_change: bool| -> Vec<RegionState> {
            let rtts_ms = rtts_ms.iter().map(|(rtt_ms, change_ms)| if with_change { rtt_ms + change_ms } else { *rtt_ms });
            let measured = NAMES.iter().zip(rtts_ms);
            measured.map(|(name, rtt_ms)| RegionState { measured_rtt_ms: Some(rtt_ms.max(0.0)), ..region(name) }).collect()
        };
        let before_ms = |name: &str| NAMES.iter().zip(&rtts_ms).find(|(other, _)| **other == name).map(|(_, rtt)| rtt.0);
        let closest_ms = rtts_ms.iter().map(|rtt| rtt.0).fold(f64::INFINITY, f64::min);
        for (with_change, slack_ms) in [(false, 0.0), (true, 4.0)] {
            let decision = decide(&client, &OPEN, &states(with_change));
            let chosen_ms = decision.chosen().and_then(|chosen| before_ms(chosen.region.as_str())).unwrap();
            prop_assert!(chosen_ms <= closest_ms + OPEN.band_ms + slack_ms);
        }
    }

    /// Within the band no change of round trips moves a client at all.
    #[test]
    fn within_the_band_the_choice_does_not_change(
        key: u64, rtts_ms in prop::collection::vec((0.0..15.0f64, 0.0..15.0f64), NAMES.len())
    ) {
        let client = Client { place: None, key };
        let chosen = |which: fn(&(f64, f64)) -> f64| {
            let measured = NAMES.iter().zip(rtts_ms.iter().map(which));
            let regions: Vec<_> = measured
                .map(|(name, rtt_ms)| RegionState { measured_rtt_ms: Some(50.0 + rtt_ms), ..region(name) })
                .collect();
            decide(&client, &OPEN, &regions).chosen().unwrap().region.clone()
        };
        prop_assert_eq!(chosen(|rtt| rtt.0), chosen(|rtt| rtt.1));
    }

    /// Losing a region moves only the clients it had.
    #[test]
    fn losing_a_region_moves_only_its_own_clients(client in any_client(), lost in 0..6usize) {
        let policy = Policy { band_ms: 100.0, ..OPEN };
        let mut regions: Vec<_> = NAMES.into_iter().map(|name| RegionState { measured_rtt_ms: Some(30.0), ..region(name) }).collect();
        let before = decide(&client, &policy, &regions).chosen().unwrap().region.clone();
        regions[lost].health = RegionHealth::Unreachable { for_ms: 1 };
        let after = decide(&client, &policy, &regions).chosen().unwrap().region.clone();
        prop_assert!(after == before || before.as_str() == NAMES[lost]);
    }
}

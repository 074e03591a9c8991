//! Random planets converge, whatever networks and disks do.

#![allow(clippy::unwrap_used)] // a test that unwraps fails, which is what it is for

mod simulator;

use geode_crdt::{ActorId, ActorIndex, Actors, FrameBuilder, HybridTime, KeyName, Kind};
use geode_replica::Report;
use proptest::prelude::*;
use simulator::Simulation;

const NAMES: [&str; 4] = ["ap", "eu", "sa", "us"];

/// What may go wrong in a run.
#[derive(Clone, Copy, Debug)]
struct Failures {
    /// Links break, and are at times slower than anybody's patience.
    cuts: bool,
    kills: bool,
    /// A killed node may lose its tail and know it.
    lost_tails: bool,
    /// A killed node may lose its tail and not know it.
    rollbacks: bool,
}

/// One random history, up to the point where everything is connected again and settles.
fn run(names: &[&str], seed: u64, steps: usize, failures: Failures) -> Simulation {
    let mut planet = Simulation::new(names, seed);
    planet.connect_all();
    for _ in 0..steps {
        let (from, to) = (planet.random.below(names.len()), planet.random.below(names.len()));
        if from == to {
            continue;
        }
        match planet.random.below(16) {
            0..=4 => drop(planet.write(from)),
            5 => planet.flush(from),
            6..=8 => drop(planet.pump(from, to)),
            9..=11 => drop(planet.arrive(from, to)),
            12 => planet.duplicate_frame(from, to),
            13 => {
                let milliseconds =
                    [1, 5, 20, 300, 2_500][planet.random.below(if failures.cuts { 5 } else { 2 })];
                planet.advance(milliseconds);
            }
            14 if failures.cuts => {
                if planet.random.one_in(2) {
                    planet.cut(from, to)
                } else {
                    planet.connect(from, to)
                }
            }
            15 if failures.kills && planet.random.one_in(3) => {
                if planet.nodes[from].alive {
                    planet.kill(from);
                } else {
                    let loses = planet.random.one_in(2) && (failures.lost_tails || failures.rollbacks);
                    let lost = if loses { planet.random.below(4) } else { 0 };
                    let proven = lost == 0 || failures.rollbacks;
                    planet.revive(from, lost, proven);
                }
            }
            _ => {}
        }
    }
    planet
}

fn heal(planet: &mut Simulation) {
    for node in 0..planet.nodes.len() {
        if !planet.nodes[node].alive {
            planet.revive(node, 0, true);
        }
    }
    planet.connect_all();
    planet.settle();
}

fn assert_converged(planet: &Simulation) {
    for node in planet.nodes.iter().filter(|node| node.alive) {
        println!("{} {:?} {:?}", node.name, node.disk.vector(), node.reports);
    }
    assert!(planet.converged());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn replicas_converge_through_cuts_and_duplicates(seed: u64, count in 2usize..=4) {
        let failures = Failures { cuts: true, kills: false, lost_tails: false, rollbacks: false };
        let mut planet = run(&NAMES[..count], seed, 600, failures);
        heal(&mut planet);
        assert_converged(&planet);
    }

    #[test]
    fn replicas_converge_through_kills(seed: u64) {
        let failures = Failures { cuts: true, kills: true, lost_tails: false, rollbacks: false };
        let mut planet = run(&NAMES[..3], seed, 600, failures);
        heal(&mut planet);
        assert_converged(&planet);
    }

    #[test]
    fn a_dead_regions_entries_reach_everybody_from_whoever_has_them(seed: u64) {
        let failures = Failures { cuts: true, kills: false, lost_tails: false, rollbacks: false };
        let mut planet = run(&NAMES[..3], seed, 400, failures);
        planet.kill(0);
        planet.connect_all();
        planet.settle();
        assert_converged(&planet);
    }

    #[test]
    fn two_regions_that_never_see_each_other_converge_through_a_third(seed: u64) {
        let failures = Failures { cuts: true, kills: false, lost_tails: false, rollbacks: false };
        let mut planet = run(&NAMES[..3], seed, 400, failures);
        planet.cut(0, 2);
        planet.connect(0, 1);
        planet.connect(1, 2);
        planet.settle();
        assert_converged(&planet);
    }

    #[test]
    fn a_lost_tail_that_others_hold_comes_back(seed: u64) {
        // Nobody else loses anything, so whatever an entry depends on exists somewhere.
        let failures = Failures { cuts: true, kills: false, lost_tails: false, rollbacks: false };
        let mut planet = run(&NAMES[..3], seed, 300, failures);
        let lost = planet.random.below(6);
        planet.kill(1);
        planet.revive(1, lost, false);
        for _ in 0..5 {
            planet.write(1);
        }
        heal(&mut planet);
        assert_converged(&planet);
    }

    #[test]
    fn a_rolled_back_volume_takes_a_new_incarnation_before_it_writes(seed: u64) {
        let failures = Failures { cuts: false, kills: false, lost_tails: false, rollbacks: false };
        let mut planet = run(&NAMES[..3], seed, 200, failures);
        planet.settle();
        planet.write_surely(1);
        planet.settle();
        let known = planet.nodes[0].disk.vector()[&ActorId::new("eu", 1)];
        planet.kill(1);
        planet.revive(1, 1_000, true);
        prop_assert!(!planet.write(1), "nobody was heard yet");
        planet.connect_all();
        planet.exchange();
        (0..5).for_each(|_| planet.write_surely(1));
        planet.settle();
        assert_converged(&planet);
        let vector = planet.nodes[1].disk.vector();
        prop_assert_eq!(vector[&ActorId::new("eu", 1)], known, "no dot is used twice");
        prop_assert_eq!(vector[&ActorId::new("eu", 2)], 5);
    }

    #[test]
    fn without_failures_each_entry_crosses_each_link_once(seed: u64) {
        let failures = Failures { cuts: false, kills: false, lost_tails: false, rollbacks: false };
        let mut planet = run(&NAMES[..3], seed, 800, failures);
        planet.settle();
        assert_converged(&planet);
        let vector = planet.nodes[0].disk.vector();
        for (from, name) in NAMES[..3].iter().enumerate() {
            let written = vector.get(&ActorId::new(name, 1)).copied().unwrap_or(0);
            for to in (0..3).filter(|to| *to != from) {
                prop_assert_eq!(planet.carried(from, to), written, "{} to {}", name, NAMES[to]);
            }
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_run(seed: u64) {
        let failures = Failures { cuts: true, kills: true, lost_tails: true, rollbacks: false };
        let trace = |planet: &Simulation| -> Vec<_> {
            planet.nodes.iter().map(|node| (node.disk.vector(), format!("{:?}", node.replica))).collect()
        };
        let runs = [0, 1].map(|_| trace(&run(&NAMES[..3], seed, 300, failures)));
        prop_assert_eq!(&runs[0], &runs[1]);
    }
}

#[test]
fn frames_whose_entries_depend_on_each_other_in_turns_do_not_deadlock() {
    let mut planet = Simulation::new(&NAMES[..3], 7);
    planet.connect_all();
    planet.exchange();
    // a1, b1 after a1, a2 after b1, b2 after a2: neither frame as a whole can come before the other.
    let mut actors = Actors::default();
    let [ap, eu] = [0, 1].map(|node: usize| actors.intern(&ActorId::new(NAMES[node], 1)));
    let frame = |writer: ActorIndex, dependencies: [Option<(ActorIndex, u64)>; 2]| {
        let mut builder = FrameBuilder::new(writer, 1);
        for (index, depends) in dependencies.into_iter().enumerate() {
            builder.begin_entry(HybridTime(1_000 + index as u64), depends);
            builder.put(KeyName { database: 0, name: b"k" }, Kind::String, b"", b"v", []);
            builder.finish_entry();
        }
        let mut bytes = Vec::new();
        builder.finish_into(&mut bytes, &actors);
        bytes
    };
    planet.inject(1, 2, &frame(eu, [Some((ap, 1)), Some((ap, 2))]));
    assert!(planet.nodes[2].disk.vector().is_empty());
    planet.inject(0, 2, &frame(ap, [None, Some((eu, 1))]));
    assert_eq!(planet.nodes[2].disk.vector().into_values().collect::<Vec<_>>(), [2, 2]);
}

#[test]
fn an_entry_ahead_of_the_clock_is_held_and_reported_and_then_delivered() {
    let mut planet = Simulation::new(&NAMES[..2], 1);
    planet.set_skew(0, 2_000_000);
    planet.set_skew(1, 0);
    planet.connect_all();
    planet.exchange();
    planet.write_surely(0);
    planet.flush(0);
    planet.exchange();
    let actor = ActorId::new("ap", 1);
    assert_eq!(planet.nodes[1].disk.vector().get(&actor), None);
    assert_eq!(
        planet.nodes[1].reports,
        [Report::Ahead { actor: actor.clone(), sequence: 1, ahead_ms: 2_000 }]
    );
    planet.advance(1_400);
    assert_eq!(planet.nodes[1].disk.vector().get(&actor), None);
    planet.advance(100);
    assert_eq!(planet.nodes[1].disk.vector().get(&actor), Some(&1));
    assert_eq!(planet.nodes[1].reports.len(), 1);
}

#[test]
fn after_a_minute_what_has_passed_no_longer_waits_for_a_region_that_is_away() {
    let mut planet = Simulation::new(&NAMES[..3], 5);
    planet.connect_all();
    planet.settle();
    planet.advance(100);
    planet.exchange();
    planet.write_surely(2);
    planet.flush(2);
    // Only "eu" has what "sa" wrote last.
    planet.cut(0, 2);
    planet.exchange();
    planet.kill(2);
    let died = planet.nodes[0].replica.passed();
    planet.settle();
    let minute = |planet: &mut Simulation| {
        (0..550).for_each(|_| {
            planet.advance(100);
            planet.exchange();
        })
    };
    minute(&mut planet);
    let passed = |planet: &Simulation| {
        let replica = &planet.nodes[0].replica;
        (replica.passed(), replica.passed_without_away())
    };
    let (all, reached) = passed(&planet);
    assert_eq!(all, reached, "within the minute it is waited for");
    planet.advance(5_000);
    planet.exchange();
    let (still, reached) = passed(&planet);
    assert_eq!(still, all);
    assert!(reached.0 > died.0 + 55_000_000, "{reached} is not long after {died}");
    planet.cut(0, 1);
    let (still, reached) = passed(&planet);
    assert_eq!(still, reached, "one region of three cannot tell whether it is away itself");
    planet.connect(0, 1);
    planet.revive(2, 0, true);
    planet.connect_all();
    planet.exchange();
    let (all, reached) = passed(&planet);
    assert_eq!(all, reached, "it is back, and what it did meanwhile counts");
    planet.advance(100);
    planet.exchange();
    let (all, reached) = passed(&planet);
    assert_eq!(all, reached);
    assert!(all.0 > died.0 + 55_000_000, "{all} is not long after {died}");
}

/// What each node thinks of its own clock after some heartbeats, each of which takes `latency_ms`.
fn clocks(planet: &mut Simulation, latency_ms: u64) -> Vec<Option<u64>> {
    let count = planet.nodes.len();
    let under_way = latency_ms / 100;
    (0..under_way).for_each(|_| planet.advance(100));
    for _ in 0..3 + 2 * under_way {
        planet.advance(100);
        for (from, to) in (0..count).flat_map(|from| (0..count).map(move |to| (from, to))) {
            assert!(from == to || planet.arrive(from, to) || planet.is_cut(from, to));
        }
    }
    planet.nodes.iter().map(|node| node.replica.clock_ahead_ms()).collect()
}

/// A connected planet with clocks set so many milliseconds from the right time.
fn planet_with_clocks(skews_ms: &[i64]) -> Simulation {
    let mut planet = Simulation::new(&NAMES[..skews_ms.len()], 1);
    for (node, skew_ms) in skews_ms.iter().enumerate() {
        planet.set_skew(node, skew_ms * 1000);
    }
    planet.connect_all();
    planet.exchange();
    planet
}

#[test]
fn a_region_ahead_of_the_others_knows_it_until_its_clock_is_right() {
    let mut planet = planet_with_clocks(&[2_000, 0, 0]);
    assert_eq!(clocks(&mut planet, 0), [Some(2_000), None, None]);
    planet.advance(10);
    assert_eq!(planet.nodes[0].reports, [Report::OwnClock { ahead_ms: Some(2_000) }]);
    planet.set_skew(0, 400_000);
    assert_eq!(clocks(&mut planet, 0), [None, None, None]);
    planet.advance(1_000);
    assert_eq!(planet.nodes[0].reports[1..], [Report::OwnClock { ahead_ms: None }]);
    assert!(planet.nodes[1..].iter().all(|node| node.reports.is_empty()));
}

#[test]
fn a_region_refuses_exactly_what_the_others_would_hold_back() {
    for (skew_ms, refuses) in [(499, false), (501, true)] {
        let mut planet = planet_with_clocks(&[skew_ms, 0]);
        assert_eq!(clocks(&mut planet, 0)[0].is_some(), refuses);
        planet.write_surely(0);
        planet.flush(0);
        planet.exchange();
        assert_eq!(planet.nodes[1].disk.vector().is_empty(), refuses);
    }
}

#[test]
fn latency_is_no_drift() {
    for latency_ms in [0, 200, 3_000, 10_000] {
        let mut planet = planet_with_clocks(&[0, 0, 0]);
        assert_eq!(clocks(&mut planet, latency_ms), [None, None, None]);
    }
    let mut planet = planet_with_clocks(&[2_000, 0, 0]);
    assert_eq!(clocks(&mut planet, 300), [Some(1_700), None, None], "less what the way took");
}

#[test]
fn one_slow_clock_does_not_stop_the_others() {
    let mut planet = planet_with_clocks(&[0, 0, -5_000]);
    assert_eq!(clocks(&mut planet, 0), [None, None, None]);
    let mut planet = planet_with_clocks(&[3_000, 0, -5_000]);
    assert_eq!(clocks(&mut planet, 0), [Some(3_000), None, None]);
}

#[test]
fn a_region_alone_does_not_judge_its_clock() {
    let mut planet = planet_with_clocks(&[2_000, 0]);
    assert_eq!(clocks(&mut planet, 0), [Some(2_000), None]);
    planet.cut(0, 1);
    assert_eq!(clocks(&mut planet, 0), [None, None]);
    planet.connect(0, 1);
    planet.exchange();
    assert_eq!(clocks(&mut planet, 0), [Some(2_000), None]);
}

#[test]
fn acknowledgements_count_regions_whose_disk_has_the_entry() {
    let mut planet = Simulation::new(&NAMES[..3], 3);
    planet.connect_all();
    planet.exchange();
    planet.write_surely(0);
    planet.flush(0);
    assert_eq!(planet.nodes[0].replica.acknowledged(1, &planet.nodes[0].disk.actors), 0);
    planet.cut(0, 2);
    planet.exchange();
    assert_eq!(
        planet.nodes[0].replica.acknowledged(1, &planet.nodes[0].disk.actors),
        0,
        "delivered is not yet on disk"
    );
    planet.advance(1);
    planet.exchange();
    assert_eq!(planet.nodes[0].replica.acknowledged(1, &planet.nodes[0].disk.actors), 1);
    planet.connect(0, 2);
    planet.settle();
    planet.advance(1);
    planet.exchange();
    assert_eq!(planet.nodes[0].replica.acknowledged(1, &planet.nodes[0].disk.actors), 2);
    assert_eq!(planet.nodes[0].replica.acknowledged(2, &planet.nodes[0].disk.actors), 0);
}

#[test]
fn a_replica_of_another_planet_is_refused_in_one_line() {
    let mut planet = Simulation::new(&NAMES[..2], 1);
    planet.set_planet(1, "other");
    planet.connect_all();
    planet.exchange();
    // Whoever reads the other's hello first says no, and the link is closed.
    let reports: Vec<&Report> = planet.nodes.iter().flat_map(|node| &node.reports).collect();
    let reason = "it belongs to planet \"simulated\", this region to \"other\": check planet.toml".to_owned();
    assert_eq!(reports, [&Report::Refused { peer: "ap".into(), reason }]);
    planet.write_surely(0);
    planet.flush(0);
    planet.settle();
    assert!(planet.nodes[1].disk.vector().is_empty());
}

#[test]
fn what_exceeds_the_bound_on_undeliverable_frames_is_asked_for_again() {
    let mut planet = Simulation::new(&NAMES[..3], 11);
    planet.connect(0, 1);
    planet.connect(0, 2);
    planet.exchange();
    planet.write_surely(1);
    planet.flush(1);
    planet.exchange();
    // All that "ap" writes now depends on an entry of "eu" that "sa" lacks; it is far more than may wait there.
    planet.value_bytes = 1 << 20;
    for _ in 0..160 {
        planet.write_surely(0);
        planet.flush(0);
        planet.exchange();
    }
    assert!(planet.nodes[2].disk.vector().is_empty());
    // Its heartbeat says how much there is.
    planet.advance(100);
    planet.exchange();
    let sent = planet.carried(0, 2);
    planet.connect(1, 2);
    // A second: nobody waits for what cannot come by itself.
    for _ in 0..50 {
        planet.exchange();
        planet.advance(20);
    }
    assert_converged(&planet);
    assert!(planet.carried(0, 2) > sent, "what was dropped came again");
    assert!(planet.carried(0, 2) < 2 * sent, "what was kept did not");
}

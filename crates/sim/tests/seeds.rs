//! Many seeds, every rule; and a seed is a run.

use std::sync::atomic::{AtomicU64, Ordering};

use geode_sim::{Fsync, Plan, Plant, cost, run, shrink};

/// Seeds that are played on every machine: about twenty seconds on two cores.
const SEEDS: u64 = 500;
const THREADS: usize = 2;

#[test]
fn every_rule_holds_in_every_run() {
    let next = AtomicU64::new(1);
    let play = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed > SEEDS {
                return;
            }
            if let Err(violation) = run(&Plan::of(seed), None, None) {
                panic!("seed {seed}: {violation}\nsee it with: cargo xtask sim --seed {seed}");
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(play);
        }
    });
}

/// What searches beyond the first seeds found, and is cured.
#[test]
fn what_failed_once_holds() {
    for (seed, what) in [
        (1_325, "two regions past each other's retention waited for each other's snapshot for ever"),
        (40_642, "a new region waited for what its peer had lost meanwhile, before it said where that ends"),
        (
            1_583,
            "a region restored from a backup wrote too early after a kill: it no longer knew that it was behind",
        ),
        (215, "two regions that were behind refused each other the snapshot that both needed"),
        (62_229, "what a lost FLUSHDB had deleted is back, and the oracle did not expect it"),
        (3_898, "a region reported under a view that a crash then took from it"),
    ] {
        let outcome = run(&Plan::of(seed), None, None);
        assert!(outcome.is_ok(), "seed {seed}: {what}: {}", outcome.unwrap_err());
    }
}

#[test]
fn a_seed_is_a_run_to_the_byte() {
    for seed in [2, 7, 13, 20] {
        let trace = || {
            let mut lines = String::new();
            let counts = run(&Plan::of(seed), None, Some(&mut |line| lines += &format!("{line}\n")));
            (lines, counts)
        };
        let (lines, counts) = trace();
        assert_eq!((&lines, &counts), (&trace().0, &trace().1));
        assert!(lines.lines().count() > 100, "a line for each event");
        assert_eq!(counts, run(&Plan::of(seed), None, None), "to look at it changes nothing");
    }
}

#[test]
fn what_failed_is_made_small_and_fails_again() {
    let plant = Some(Plant::ReusedIncarnation);
    let failing = (1..400).map(Plan::of).find_map(|plan| {
        let violation = run(&plan, plant, None).err()?;
        (plan.faults.len() >= 4).then_some((plan, violation))
    });
    let (plan, violation) = failing.expect("it is found");
    let small = shrink(&plan, plant, violation.clone());
    assert!(small.faults.len() <= plan.faults.len() / 2, "{small:?} of {}", plan.faults.len());
    assert_eq!(small.violation.rule, violation.rule);
    assert_eq!(run(&plan.with_faults(&small.faults), plant, None), Err(small.violation));
    assert!(run(&plan.with_faults(&small.faults), None, None).is_ok(), "without the plant it holds");
}

#[test]
fn a_write_crosses_each_link_once_and_the_rest_are_heartbeats() {
    let [few, many] = [3, 10].map(|regions| cost(regions, Fsync::EverySecond).expect("every rule holds"));
    assert!((2.0..4.0).contains(&few.messages_per_write), "{few:?}");
    assert!((9.0..12.0).contains(&many.messages_per_write), "{many:?}");
}

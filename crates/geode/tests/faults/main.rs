//! Real geodes under faults: one process for each region, real clients, a network that stops, disks and clocks that fail,
//! machines that crash. What was asked and answered, and the logs in the end, are judged by the rules of the simulator
//! (docs/simulator.md).
//!
//! A seed fixes what is planned and what clients choose; when things happen is up to the machine, so a seed that fails may
//! have to be played more than once. `cargo xtask faults --seeds N` plays more than the tests do.

#![cfg(target_os = "linux")] // where a disk can be put under a process
#![allow(clippy::unwrap_used)] // a test that unwraps fails, which is what it is for

mod client;
#[path = "../../../faulty-disk/src/control.rs"]
#[allow(dead_code, unreachable_pub)] // the library's half of it
mod control;
mod disk;
mod geode;
mod judge;
mod plan;
mod plants;
mod record;
mod relay;
mod run;
mod volume;

use std::ops::RangeInclusive;

use control::Writes;
use geode_sim::Tail;
use plan::{Fault, Kind, Plan};

/// Seeds that are played on every machine.
const SEEDS: RangeInclusive<u64> = 1..=4;
/// More of them, as `FIRST..=LAST`; set by `cargo xtask faults`.
const WANTED: &str = "GEODE_FAULTS_SEEDS";

fn seeds() -> RangeInclusive<u64> {
    let Ok(text) = std::env::var(WANTED) else { return SEEDS };
    let bounds = text.split_once("..=").and_then(|(from, to)| Some(from.parse().ok()?..=to.parse().ok()?));
    bounds.unwrap_or_else(|| panic!("{WANTED} is {text:?}, not FIRST..=LAST"))
}

#[test]
fn every_rule_holds_for_real_processes() {
    for seed in seeds() {
        let plan = Plan::of(seed);
        let directory = tempfile::tempdir().unwrap();
        match run::play(&plan, directory.path()) {
            Ok(counts) => println!("seed {seed}: {counts:?}"),
            Err(violation) => {
                let kept = directory.keep();
                let faults: Vec<String> = plan.faults.iter().map(|fault| format!("  {fault}")).collect();
                panic!(
                    "seed {seed} ({}): {violation}\n{}\nlogs and data: {}\nagain: cargo xtask faults --seed {seed} \
                     (the same plan; when things happen differs from run to run)",
                    plan.fsync.join(", "),
                    faults.join("\n"),
                    kept.display()
                );
            }
        }
    }
}

/// Plays a plan in which every rule must hold.
fn holds(plan: &Plan) -> judge::Counts {
    let directory = tempfile::tempdir().unwrap();
    run::play(plan, directory.path()).unwrap_or_else(|violation| {
        panic!("{violation}; logs and data: {}", directory.keep().display());
    })
}

#[test]
fn a_crash_takes_what_was_not_synced_and_nothing_else() {
    let region = 2;
    let faults = vec![
        Fault { at_ms: 300, kind: Kind::Partition { region, silent: true, for_ms: 2_500 } },
        Fault { at_ms: 2_500, kind: Kind::Crash { region, tail: Tail::Lost, down_ms: 100 } },
    ];
    let plan = |mode| Plan { fsync: vec![mode; 3], faults: faults.clone(), length_ms: 3_500, ..Plan::of(1) };
    let lost = holds(&plan("never")).lost;
    assert!(lost > 10, "all that was written for two seconds is lost, not {lost} writes");
    assert_eq!(holds(&plan("always")).lost, 0);
}

#[test]
fn two_machines_that_crash_together_lose_what_only_they_had_and_the_third_waits_for_nothing() {
    let crash = |region| Fault { at_ms: 2_500, kind: Kind::Crash { region, tail: Tail::Lost, down_ms: 100 } };
    let faults = vec![
        Fault { at_ms: 300, kind: Kind::Partition { region: 2, silent: true, for_ms: 2_600 } },
        crash(0),
        crash(1),
    ];
    let plan = |mode| Plan { fsync: vec![mode; 3], faults: faults.clone(), length_ms: 3_600, ..Plan::of(1) };
    let lost = holds(&plan("never")).lost;
    assert!(lost > 10, "all that two wrote for two seconds is lost, not {lost} writes");
    assert_eq!(holds(&plan("always")).lost, 0);
}

#[test]
fn a_region_survives_fsyncs_and_writes_that_fail_and_loses_nothing() {
    let at = |at_ms, kind| Fault { at_ms, kind };
    let syncs = |region, at_ms, for_ms| at(at_ms, Kind::Syncs { region, for_ms });
    let writes =
        |region, at_ms, writes| at(at_ms, Kind::Writes { region, writes, room: 2_000, for_ms: 1_200 });
    let plan = Plan { fsync: vec!["everysec", "always", "never"], ..Plan::of(1) };
    let faults = vec![
        syncs(0, 400, 1_100),
        // Shorter than what a retry waits for, and longer.
        syncs(1, 600, 30),
        syncs(1, 1_500, 1_400),
        writes(2, 700, Writes::Error),
        writes(0, 2_400, Writes::ReadOnly),
        writes(1, 3_400, Writes::Error),
    ];
    let counts = holds(&Plan { faults, ..plan });
    assert_eq!(counts.lost, 0);
}

#[test]
fn a_region_survives_a_disk_that_cannot_be_read_and_takes_it_for_no_other() {
    let at = |at_ms, kind| Fault { at_ms, kind };
    let reads = |region, at_ms, for_ms| at(at_ms, Kind::Reads { region, for_ms });
    let plan = Plan { fsync: vec!["everysec", "always", "never"], ..Plan::of(1) };
    let faults = vec![
        // What is sent to others is read from the log.
        reads(0, 400, 900),
        at(700, Kind::Break { a: 0, b: 1 }),
        // Nothing that a start finds unreadable is taken for damaged, or for not there.
        reads(1, 1_500, 1_500),
        at(1_700, Kind::Kill { region: 1, down_ms: 10 }),
        reads(2, 3_200, 900),
        at(3_300, Kind::Kill { region: 2, down_ms: 10 }),
    ];
    let counts = holds(&Plan { faults, ..plan });
    // Nor does a region take itself for another, because it cannot compare its log with what others hold of it.
    assert_eq!((counts.lost, counts.writers), (0, 3));
}

#[test]
fn a_region_whose_file_system_is_read_only_starts_again_when_it_is_not() {
    let read_only = |region, at_ms| Fault { at_ms, kind: Kind::ReadOnly { region, for_ms: 1_200 } };
    let plan = Plan { fsync: vec!["everysec", "always", "never"], ..Plan::of(1) };
    let counts =
        holds(&Plan { faults: vec![read_only(0, 400), read_only(1, 1_800), read_only(2, 3_200)], ..plan });
    assert_eq!((counts.lost, counts.writers), (0, 3));
}

#[test]
fn what_failed_to_be_synced_survives_a_crash_once_it_is_answered() {
    let (region, tail) = (1, Tail::Lost);
    let at = |at_ms, kind| Fault { at_ms, kind };
    let faults = vec![
        at(400, Kind::Partition { region, silent: true, for_ms: 2_600 }),
        at(900, Kind::Syncs { region, for_ms: 300 }),
        at(2_700, Kind::Crash { region, tail, down_ms: 100 }),
    ];
    let plan = Plan { fsync: vec!["always"; 3], faults, length_ms: 3_600, ..Plan::of(1) };
    assert_eq!(holds(&plan).lost, 0);
}

#[test]
fn a_full_file_system_takes_nothing_that_was_acknowledged() {
    let full = |region, at_ms| Fault { at_ms, kind: Kind::Full { region, for_ms: 1_200 } };
    let plan = Plan { fsync: vec!["everysec", "always", "never"], ..Plan::of(1) };
    let plan = Plan { faults: vec![full(0, 400), full(1, 800), full(0, 2_600), full(2, 3_000)], ..plan };
    holds(&plan);
}

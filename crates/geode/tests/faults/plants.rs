//! The rules can fail: mistakes are planted in what a sound run left behind, and in the disk below a real process.

use std::collections::BTreeSet;

use geode_crdt::ActorId;
use geode_sim::Tail;
use geode_sim::rules::Objection;
use geode_store::conformance::Value;

use crate::client::Outcome;
use crate::judge::{Evidence, judge};
use crate::plan::{Fault, Kind, Plan};
use crate::record::Name;
use crate::run;

/// What a mistake does to the evidence, and the rule that must find it.
type Plant = (&'static str, &'static str, fn(&mut Evidence));

const PLANTS: [Plant; 10] = [
    ("an acknowledged write is in no log", "durability", |evidence| {
        let lost = acknowledged(evidence, 5);
        take_out(evidence, &lost);
    }),
    (
        "a write that another region had on disk is lost in a crash that takes others",
        "durability",
        |evidence| {
            let lost = acknowledged(evidence, 5);
            evidence.asked.iter_mut().filter(|asked| asked.mark == lost).for_each(|asked| {
                asked.outcome = Outcome::Confirmed;
            });
            evidence.excused = BTreeSet::from([lost.clone()]);
            take_out(evidence, &lost);
        },
    ),
    ("a region never gets an entry", "convergence", |evidence| {
        let lost = acknowledged(evidence, 5);
        evidence.logs[1].retain(|_, entry| entry.mark.as_ref() != Some(&lost));
    }),
    ("a name stands for two entries", "names", |evidence| {
        let entry = evidence.logs[2].values_mut().next().unwrap();
        entry.checksum ^= 1;
    }),
    ("nobody asked for an entry", "names", |evidence| {
        let unknown = acknowledged(evidence, 7);
        evidence.asked.retain(|asked| asked.mark != unknown);
    }),
    ("a request is done twice", "once", |evidence| {
        let (first, second) = (acknowledged(evidence, 3), acknowledged(evidence, 9));
        let entries = evidence.logs.iter_mut().flat_map(|log| log.values_mut());
        for entry in entries.filter(|entry| entry.mark.as_ref() == Some(&second)) {
            entry.mark = Some(first.clone());
        }
    }),
    ("what was refused is done", "refusals", |evidence| {
        let mark = acknowledged(evidence, 4);
        evidence.asked.iter_mut().filter(|asked| asked.mark == mark).for_each(|asked| {
            asked.outcome = Outcome::Refused;
        });
    }),
    ("two replies are swapped", "oracle", |evidence| {
        let mut values = evidence.asked.iter().enumerate().filter_map(|(number, asked)| {
            let (_, answers) = asked.reads.as_ref()?;
            let (at, value) = answers.iter().enumerate().find_map(|(at, (line, value))| {
                (line.starts_with("GET") && matches!(value, Value::Bulk(_))).then_some((at, value.clone()))
            })?;
            Some((number, at, value))
        });
        let (one, at, value) = values.next().unwrap();
        let (other, there, others) = values.find(|(.., other)| *other != value).unwrap();
        evidence.asked[one].reads.as_mut().unwrap().1[at].1 = others;
        evidence.asked[other].reads.as_mut().unwrap().1[there].1 = value;
    }),
    ("an entry depends on what is written later", "order of time", |evidence| {
        let last = evidence.logs[0].iter().max_by_key(|(_, entry)| entry.time).unwrap().0.clone();
        let other = |name: &Name| name.0 != last.0;
        let early = evidence.logs[0].keys().find(|name| other(name)).unwrap().clone();
        for log in &mut evidence.logs {
            log.get_mut(&early).unwrap().changed.push(last.clone());
        }
    }),
    ("a region reads another value in the end", "oracle", |evidence| {
        let left = evidence.finally[3].answers.iter_mut().find(|(line, _)| line.starts_with("PTTL"));
        left.unwrap().1 = Value::Integer(77);
    }),
];

/// The mark of the acknowledged write of this number that wrote an entry.
fn acknowledged(evidence: &Evidence, number: usize) -> String {
    let asked = evidence.asked.iter().filter(|asked| asked.outcome == Outcome::Acknowledged);
    asked.map(|asked| asked.mark.clone()).nth(number).unwrap()
}

/// Takes the entry of a request out of all logs, and what would show it otherwise: the later entries of its actor.
fn take_out(evidence: &mut Evidence, mark: &str) {
    let held = |log: &crate::record::Log| -> Option<(ActorId, u64)> {
        log.iter().find(|(_, entry)| entry.mark.as_deref() == Some(mark)).map(|(name, _)| name.clone())
    };
    let name = held(&evidence.logs[0]).unwrap();
    evidence.logs.iter_mut().for_each(|log| drop(log.remove(&name)));
}

#[test]
fn mistakes_planted_in_what_a_run_left_behind_are_found() {
    let directory = tempfile::tempdir().unwrap();
    let plan = Plan { length_ms: 2_500, faults: Vec::new(), ..Plan::of(1) };
    let evidence = run::evidence(&plan, directory.path()).unwrap();
    let counts = judge(&evidence).unwrap();
    assert!(counts.checked_reads > 20 && counts.unknown == 0, "{counts:?}");
    for (mistake, expected, plant) in PLANTS {
        let mut planted = evidence.clone();
        plant(&mut planted);
        let found: Result<_, Objection> = judge(&planted);
        assert_eq!(found.map_err(|(rule, _)| rule), Err(expected), "{mistake}");
    }
}

#[test]
fn a_disk_that_lies_about_what_it_wrote_is_found() {
    let (region, silent) = (1, true);
    let at = |at_ms, kind| Fault { at_ms, kind };
    let plan = Plan {
        fsync: vec!["always"; 3],
        faults: vec![
            at(300, Kind::Partition { region, silent, for_ms: 3_000 }),
            at(400, Kind::Lie { region }),
            at(2_000, Kind::Crash { region, tail: Tail::Lost, down_ms: 100 }),
        ],
        length_ms: 3_500,
        ..Plan::of(1)
    };
    let directory = tempfile::tempdir().unwrap();
    let violation = run::play(&plan, directory.path()).unwrap_err();
    // The region may also see for itself that its log is shorter than it was on disk, and refuse to start.
    assert!(["durability", "processes"].contains(&violation.rule), "{violation}");
}

#[test]
fn sessions_that_move_without_their_token_are_found() {
    let plan = Plan {
        delay_ms: vec![vec![200; 3]; 3],
        faults: Vec::new(),
        think_ms: 5,
        ignores_tokens: true,
        ..Plan::of(1)
    };
    let directory = tempfile::tempdir().unwrap();
    let violation = run::play(&plan, directory.path()).unwrap_err();
    assert_eq!(violation.rule, "reads your writes", "{violation}");
}

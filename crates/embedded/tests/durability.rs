//! The published page on durability, held to the tests that it names.

#![allow(clippy::unwrap_used)] // a test that unwraps fails, which is what it is for

use std::path::Path;

const PAGE: &str = include_str!("../../../docs/durability.md");
/// Where the page's links begin.
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs");
const MODES: [&str; 3] = ["always", "everysec", "never"];

/// The rows below the heading, cell by cell.
fn rows() -> Vec<Vec<&'static str>> {
    let (_, section) = PAGE.split_once("\n## Each event\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let lines = section.lines().filter(|line| line.starts_with('|')).skip(2);
    lines.map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

#[test]
fn every_row_names_tests_that_are_there() {
    for row in rows() {
        let [event, .., proof] = &row[..] else { panic!("{row:?}") };
        assert_eq!(row.len(), 6, "{event}");
        let mut links = proof.split("](").skip(1).peekable();
        assert!(links.peek().is_some(), "{event} names no test");
        for link in links {
            let (file, names) = link.split_once(')').unwrap();
            let text = std::fs::read_to_string(Path::new(FOLDER).join(file)).unwrap();
            let names: Vec<&str> = names.split('`').skip(1).step_by(2).collect();
            assert!(!names.is_empty(), "{event}: no test of {file}");
            for name in names {
                let is_there = if name.contains(' ') {
                    text.contains(name)
                } else {
                    let tests = text.split("#[test]").chain(text.split("#[tokio::test")).skip(1);
                    tests.into_iter().any(|test| {
                        let function = test.split_once("fn ").map(|(_, rest)| rest);
                        function.is_some_and(|rest| rest.starts_with(&format!("{name}(")))
                    })
                };
                assert!(is_there, "{event}: {file} has no test {name}");
            }
        }
    }
}

#[test]
fn every_event_is_said_for_every_mode() {
    let events = [
        "process killed",
        "machine crash",
        "disk full, met in time",
        "disk full, replication",
        "a write fails (EIO), or the file system is read-only",
        "a start on a file system that is read-only",
        "a read fails (EIO)",
        "an fsync fails",
        "process killed after a failed fsync",
        "volume rolled back, or the directory copied",
        "log damaged where it was on disk",
        "log damaged where it was not known to be on disk",
        "checkpoint damaged",
        "a region lost for ever",
        "clock ahead, behind or jumping",
    ];
    let rows = rows();
    for event in events {
        for mode in MODES {
            let said = rows.iter().any(|row| row[0] == event && row[1].contains(&format!("`{mode}`")));
            assert!(said, "{event} with {mode}");
        }
    }
}

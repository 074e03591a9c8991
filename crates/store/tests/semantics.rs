//! The published page of semantics, held to the rules of the suite and to the command table.

mod reference_replica;

use std::collections::BTreeSet;
use std::path::Path;

use geode_store::conformance::script::{self, Rule, Step};
use geode_store::conformance::{Planet, RULES, Value};
use reference_replica::ReferenceReplica;

const PAGE: &str = include_str!("../../../docs/semantics.md");

/// Where the page's links begin.
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs");

fn rules_of(text: &str) -> Vec<Rule> {
    script::parse(text).expect("the suite itself refuses files that it cannot read")
}

/// The lines from a heading to the next.
fn section(heading: &str) -> &'static str {
    let (_, section) = PAGE.split_once(heading).unwrap_or_else(|| panic!("no heading {heading:?}"));
    section.split("\n## ").next().unwrap_or_default()
}

/// Every title of the list, with the link before it: file and title. Titles may be broken over lines.
fn named_rules() -> BTreeSet<(String, String)> {
    let mut named = BTreeSet::new();
    for item in section("\n## All rules, by file\n").split("\n- [").skip(1) {
        let (file, titles) = item.split_once(']').expect("an item begins with a link");
        for quoted in titles.split('“').skip(1) {
            let (title, _) = quoted.split_once('”').expect("a title has an end");
            let title = title.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(named.insert((file.to_owned(), title.clone())), "{file} names {title:?} twice");
        }
    }
    named
}

#[test]
fn the_page_names_every_rule_under_its_file_and_no_other() {
    let titles = |(file, text): &(&str, &str)| {
        let file = (*file).to_owned();
        rules_of(text).into_iter().map(move |rule| (file.clone(), rule.title))
    };
    let rules: BTreeSet<(String, String)> = RULES.iter().flat_map(titles).collect();
    let named = named_rules();
    let missing: Vec<_> = rules.difference(&named).collect();
    let invented: Vec<_> = named.difference(&rules).collect();
    assert!(missing.is_empty() && invented.is_empty(), "missing: {missing:#?}\nno rules: {invented:#?}");
}

#[test]
fn every_family_says_which_rules_prove_it() {
    let files: Vec<String> = RULES.iter().map(|(file, _)| format!("[{file}]")).collect();
    for heading in ["\n## Each family of commands", "\n## What is refused, and why\n"] {
        for cells in rows(section(heading)) {
            let proof = cells.last().expect("a row has cells");
            assert!(files.iter().any(|file| proof.contains(file)), "{} names no rules: {proof}", cells[0]);
        }
    }
}

/// The cells of a table's rows, without the header.
fn rows(section: &'static str) -> impl Iterator<Item = Vec<&'static str>> {
    let lines = section.lines().filter(|line| line.starts_with('|')).skip(2);
    lines.map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
}

#[test]
fn the_page_lists_every_command_once_and_no_other() {
    let table = section("\n## Each family of commands");
    let mut listed: Vec<&str> = rows(table).flat_map(|cells| cells[1].split_whitespace()).collect();
    listed.sort_unstable();
    let make = &mut |region: &str, regions| ReferenceReplica::new(region, regions, 1);
    let mut planet = Planet::new(&["here".to_owned()], make);
    let Value::Array(known) = planet.execute(0, &[b"COMMAND", b"LIST"]) else { panic!("no list") };
    let name = |command: &Value| match command {
        Value::Bulk(name) => String::from_utf8_lossy(name).to_uppercase(),
        other => panic!("{other} is no name"),
    };
    let mut known: Vec<String> = known.iter().map(name).collect();
    known.sort_unstable();
    assert_eq!(listed, known);
}

#[test]
fn every_error_on_the_page_is_one_that_a_rule_expects() {
    let rules: Vec<Rule> = RULES.iter().flat_map(|(_, text)| rules_of(text)).collect();
    let expects = |rule: &Rule, error: &str| {
        let is = |step: &Step| matches!(step, Step::Command { expected, .. } if expected.strip_prefix('!') == Some(error));
        rule.steps.iter().any(|(_, step)| is(step))
    };
    let quoted: Vec<&str> = PAGE.split('`').skip(1).step_by(2).collect();
    let errors: Vec<&&str> = quoted.iter().filter(|text| text.starts_with("ERR ")).collect();
    assert!(errors.len() >= 3, "SETNX, WATCH and CONFIG SET are refused");
    for error in errors {
        assert!(rules.iter().any(|rule| expects(rule, error)), "no rule expects {error:?}");
    }
}

#[test]
fn every_link_of_the_page_leads_somewhere() {
    for (file, _) in RULES {
        let line = format!("[{file}]: ../crates/store/src/conformance/rules/{file}.txt");
        assert!(PAGE.lines().any(|found| found == line), "missing: {line}");
    }
    let inline = PAGE.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let definitions =
        PAGE.lines().filter(|line| line.starts_with('[')).filter_map(|line| line.split("]: ").nth(1));
    let mut links = 0;
    for link in inline.chain(definitions) {
        assert!(Path::new(FOLDER).join(link).exists(), "{link} leads nowhere");
        links += 1;
    }
    assert!(links > RULES.len());
}

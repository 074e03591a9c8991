//! The published semantics as rules that every engine is run against.
//!
//! The rules are text ([`script`]), a file for each subject, under `rules/`; [`run`] plays them on planets of replicas that
//! the engine's test makes. Time is the script's, and so is the network: frames travel when it says so.

pub mod oracle;
pub mod planet;
pub mod script;
pub mod value;

use std::collections::BTreeMap;

use geode_crdt::Digest;

use crate::engine::Engine;
use crate::store::Store;
pub use planet::Planet;
use script::{Rule, Step};
pub use value::{Recorder, Value};

/// A store on the engine under test, as the suite needs it.
pub trait Replica {
    /// The engine under test.
    type Engine: Engine;

    /// The store.
    fn store(&mut self) -> &mut Store<Self::Engine>;

    /// The frames of what this replica itself wrote since the last call, in order.
    fn take_frames(&mut self) -> Vec<Vec<u8>>;

    /// Receives a frame of another replica; `false` if it cannot be merged before something else arrives (the suite
    /// tries again then). Once it says `true` the entries are visible.
    fn deliver(&mut self, frame: &[u8]) -> bool;

    /// The digest of all rows.
    fn digest(&mut self) -> Digest;
}

/// The files of rules: name and text.
pub const RULES: &[(&str, &str)] = &[
    ("strings", include_str!("rules/strings.txt")),
    ("counters", include_str!("rules/counters.txt")),
    ("keys", include_str!("rules/keys.txt")),
    ("expiry", include_str!("rules/expiry.txt")),
    ("sets", include_str!("rules/sets.txt")),
    ("hashes", include_str!("rules/hashes.txt")),
    ("lists", include_str!("rules/lists.txt")),
    ("server", include_str!("rules/server.txt")),
    ("sessions", include_str!("rules/sessions.txt")),
    ("once", include_str!("rules/once.txt")),
    ("transactions", include_str!("rules/transactions.txt")),
    ("concurrency", include_str!("rules/concurrency.txt")),
    ("traps", include_str!("rules/traps.txt")),
];

/// Plays every rule. `make` gives an empty replica in a region of a planet of so many regions.
///
/// # Panics
/// If a rule does not hold, with all of them that do not: file, line, what came and what should.
pub fn run<R: Replica>(make: impl FnMut(&str, usize) -> R) {
    run_except("", make);
}

/// Plays every rule but those whose title contains `except`, if that is not empty.
///
/// # Panics
/// As [`run`].
pub fn run_except<R: Replica>(except: &str, mut make: impl FnMut(&str, usize) -> R) {
    let mut failures = Vec::new();
    for (file, text) in RULES {
        let rules = script::parse(text).unwrap_or_else(|problem| panic!("{file}.txt {problem}"));
        let is_excepted = |rule: &&Rule| !except.is_empty() && rule.title.contains(except);
        for rule in rules.iter().filter(|rule| !is_excepted(rule)) {
            failures.extend(play(rule, &mut make).map_err(|failure| format!("{file}.txt {failure}")).err());
        }
    }
    assert!(failures.is_empty(), "{} rules do not hold:\n{}", failures.len(), failures.join("\n"));
}

/// Plays the rule whose title contains `title`, for a test of its own.
///
/// # Panics
/// If there is no such rule, or it does not hold.
pub fn run_rule<R: Replica>(title: &str, mut make: impl FnMut(&str, usize) -> R) {
    let rules = RULES.iter().flat_map(|(_, text)| script::parse(text).unwrap_or_default());
    let found: Vec<Rule> = rules.filter(|rule| rule.title.contains(title)).collect();
    assert!(!found.is_empty(), "no rule is called {title:?}");
    for rule in found {
        play(&rule, &mut make).unwrap_or_else(|failure| panic!("{failure}"));
    }
}

fn play<R: Replica>(rule: &Rule, make: &mut impl FnMut(&str, usize) -> R) -> Result<(), String> {
    let mut planet = Planet::new(&rule.regions, make);
    if rule.conditional_local {
        planet.decide_locally();
    }
    let mut kept = BTreeMap::new();
    for (line, step) in &rule.steps {
        play_step(&mut planet, step, &mut kept)
            .map_err(|problem| format!("line {line}, {}: {problem}", rule.title))?;
    }
    Ok(())
}

/// Replies that a script keeps, by their names with `$`.
type Kept = BTreeMap<Vec<u8>, Vec<u8>>;

fn play_step<R: Replica>(planet: &mut Planet<R>, step: &Step, kept: &mut Kept) -> Result<(), String> {
    match step {
        Step::Command { region, arguments, expected } => {
            for index in planet.indexes(region.as_deref()) {
                let words = arguments.iter().map(|word| kept.get(word).unwrap_or(word).as_slice());
                let got = planet.execute(index, &words.collect::<Vec<_>>());
                if let (Value::Bulk(bytes), true) = (&got, expected.starts_with('$')) {
                    kept.insert(expected.clone().into_bytes(), bytes.clone());
                    continue;
                }
                matches(&got, expected).map_err(|problem| format!("in {}: {problem}", planet.name(index)))?;
            }
        }
        Step::Send { from, to } => {
            for (from, to) in planet.indexes(Some(from)).zip(planet.indexes(Some(to))) {
                planet.send(from, to);
            }
        }
        Step::Sync => planet.sync()?,
        Step::Advance { region, milliseconds } => {
            for index in planet.indexes(region.as_deref()) {
                planet.advance(index, *milliseconds);
            }
        }
    }
    Ok(())
}

/// Compares a reply with its spelling in a rule.
pub fn matches(got: &Value, expected: &str) -> Result<(), String> {
    let spelled = match expected.strip_prefix('~') {
        Some(_) => got.clone().unordered().to_string(),
        None => got.to_string(),
    };
    let wanted = expected.strip_prefix('~').map_or_else(|| expected.to_owned(), unordered);
    // Scripts end their lines without spaces; Redis does not always.
    if wanted == "*" || spelled.trim_end() == wanted {
        return Ok(());
    }
    Err(format!("expected {wanted}, got {spelled}"))
}

/// `["b" "a"]` as the set `{"a" "b"}`.
fn unordered(array: &str) -> String {
    let inner = array.trim_start_matches('[').trim_end_matches(']');
    let mut words: Vec<&str> = inner.split(' ').collect();
    words.sort_unstable();
    format!("{{{}}}", words.join(" "))
}

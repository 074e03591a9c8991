//! The dependency invariants of ARCHITECTURE.md, held by reading every crate's manifest.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What a pure crate may link: data structures and derive macros, nothing that reads a clock, a socket, a file or
/// randomness.
const PURE: [&str; 4] = ["planet", "steering", "crdt", "replica"];
const ALLOWED_IN_PURE: [&str; 7] =
    ["crc32fast", "ipnet", "serde", "smallvec", "thiserror", "toml", "xxhash-rust"];

/// Who must not know whom, and why.
const FORBIDDEN: [(&str, &[&str], &str); 7] = [
    (
        "store",
        &["embedded", "resp", "link", "door", "host", "planet"],
        "commands know neither engines nor protocols",
    ),
    (
        "embedded",
        &["resp", "door", "host", "planet", "steering"],
        "an engine knows no protocol and no routing",
    ),
    ("resp", &["embedded", "replica", "link", "door", "planet"], "a front end knows no engine"),
    (
        "door",
        &["store", "embedded", "resp", "crdt", "host"],
        "the door knows the store only as opaque vectors",
    ),
    (
        "host",
        &["store", "embedded", "resp", "door", "crdt"],
        "the host runs processes, whatever they talk to",
    ),
    ("link", &["crdt", "replica", "store", "door"], "a link does not know what is said on it"),
    ("demo", &["store", "embedded", "crdt", "door", "planet"], "the demo is a service like any user's"),
];

fn crates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates")
}

/// The names under `[dependencies]` of a crate's manifest.
fn dependencies(name: &str) -> BTreeSet<String> {
    let manifest = crates().join(name).join("Cargo.toml");
    let text =
        std::fs::read_to_string(&manifest).unwrap_or_else(|error| panic!("{}: {error}", manifest.display()));
    let section = text.split("\n[").find_map(|section| section.strip_prefix("dependencies]"));
    let names = section.unwrap_or_default().lines().filter_map(|line| line.split(['.', ' ', '=']).next());
    names.filter(|name| !name.is_empty() && !name.starts_with('#')).map(str::to_owned).collect()
}

#[test]
fn pure_crates_link_nothing_that_acts() {
    for name in PURE {
        for dependency in dependencies(name) {
            let own = dependency.strip_prefix("geode-").is_some_and(|own| PURE.contains(&own));
            let allowed = own || ALLOWED_IN_PURE.contains(&dependency.as_str());
            assert!(allowed, "crates/{name} is pure and must not depend on {dependency}");
        }
    }
}

#[test]
fn nobody_knows_whom_they_must_not_know() {
    for (name, others, why) in FORBIDDEN {
        let held = dependencies(name);
        for other in others {
            assert!(
                !held.contains(&format!("geode-{other}")),
                "crates/{name} depends on crates/{other}: {why}"
            );
        }
    }
}

#[test]
fn crates_stand_in_an_order() {
    let entries = std::fs::read_dir(crates()).expect("the crates folder");
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut left: BTreeMap<String, BTreeSet<String>> = names
        .map(|name| {
            let own = dependencies(&name)
                .into_iter()
                .filter_map(|held| held.strip_prefix("geode-").map(str::to_owned));
            (name.clone(), own.collect())
        })
        .collect();
    assert!(left.len() > 5, "the crates were found");
    while !left.is_empty() {
        let free: Vec<String> = left
            .iter()
            .filter(|(_, held)| held.is_disjoint(&left.keys().cloned().collect()))
            .map(|(name, _)| name.clone())
            .collect();
        assert!(!free.is_empty(), "these crates depend on each other in a circle: {:?}", left.keys());
        left.retain(|name, _| !free.contains(name));
    }
}

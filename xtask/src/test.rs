//! `cargo xtask test`: set-up, then every test of the workspace in the one profile that tests use, and simulated planets
//! that no machine has played before.

use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::{Outcome, install, sim};

/// How many seeds of the day are played: about a quarter of a minute. The tests play five hundred that are always the same.
const SEEDS_OF_THE_DAY: u64 = 200;
/// Between the first seeds of two days; the tests' own stay below.
const DAY: u64 = 1_000;

/// Runs everything, or what `rest` selects as `cargo test` would.
pub(crate) fn run(rest: &[String]) -> Outcome {
    install::programs(&install::FOR_TESTS)?;
    install::language_clients()?;
    crate::run(Command::new("cargo").args(["test", "--workspace", "--locked"]).args(rest))?;
    if rest.is_empty() { sim::run(&seeds_of_the_day()) } else { Ok(()) }
}

/// Seeds that are the same for everybody all day, and others tomorrow: so the search goes on, and what fails fails again.
fn seeds_of_the_day() -> [String; 4] {
    let days = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / (24 * 60 * 60);
    ["--seeds".into(), SEEDS_OF_THE_DAY.to_string(), "--from".into(), (days * DAY).to_string()]
}

//! `cargo xtask faults`: real geodes under faults (docs/simulator.md). The tests play a few seeds; this plays more.

use std::process::Command;

use crate::Outcome;

/// Which seeds are played.
#[derive(clap::Args)]
pub(crate) struct Faults {
    /// Plays so many seeds.
    #[arg(long, default_value_t = 50, conflicts_with = "seed")]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1, conflicts_with = "seed")]
    from: u64,
    /// Plays this one seed.
    #[arg(long)]
    seed: Option<u64>,
}

/// Plays seeds until a rule does not hold.
pub(crate) fn run(faults: &Faults) -> Outcome {
    let (from, to) = match faults.seed {
        Some(seed) => (seed, seed),
        None => (faults.from, faults.from + faults.seeds.saturating_sub(1)),
    };
    let cargo = ["test", "--quiet", "--locked", "--package", "geode", "--test", "faults"];
    let only = ["--", "--nocapture", "every_rule_holds_for_real_processes"];
    crate::run(
        Command::new("cargo").args(cargo).args(only).env("GEODE_FAULTS_SEEDS", format!("{from}..={to}")),
    )
}

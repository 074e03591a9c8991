//! `cargo xtask sim`: the seeded simulator (docs/simulator.md). It is a program of its own, so that nothing depends on it.

use std::process::Command;

use crate::Outcome;

/// Hands everything on to the simulator.
pub(crate) fn run(rest: &[String]) -> Outcome {
    let cargo = ["run", "--quiet", "--locked", "--package", "geode-sim", "--"];
    crate::run(Command::new("cargo").args(cargo).args(rest))
}

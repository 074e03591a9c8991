//! `cargo xtask test`: set-up, then every test of the workspace in the one profile that tests use.

use std::process::Command;

use crate::{Outcome, install};

/// Runs everything, or what `rest` selects as `cargo test` would.
pub(crate) fn run(rest: &[String]) -> Outcome {
    install::programs(&install::FOR_TESTS)?;
    install::language_clients()?;
    crate::run(Command::new("cargo").args(["test", "--workspace", "--locked"]).args(rest))
}

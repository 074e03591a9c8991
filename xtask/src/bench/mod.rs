//! `cargo xtask bench`: geode beside its real peers in the same run, as ratios with their spread, with CPU.
//!
//! The binary is built with the profile `dist`. Figures move with the machine; ratios of the same run are what counts.

mod build;
#[cfg(target_os = "linux")]
mod link;
mod memory;
mod planet;
mod process;
mod redis_client;
mod report;
mod store;

use std::path::PathBuf;
use std::process::Command;

use clap::Subcommand;

use crate::{Outcome, install, root, run as run_command};

/// What to measure.
#[derive(Subcommand)]
pub(crate) enum Bench {
    /// One geode and a real redis-server under redis-benchmark, in turn.
    Store {
        /// Rounds; the order of the two servers alternates.
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Requests of each measurement without pipeline (four times as many with `-P 16`).
        #[arg(long, default_value_t = 200_000)]
        requests: usize,
    },
    /// Three geodes on this machine: start time, idle memory, replication delay, a region's death.
    Planet {
        /// Seconds of writing while the replication delay is measured.
        #[arg(long, default_value_t = 10)]
        seconds: u64,
    },
    /// One geode with a limit on memory and a real redis-server without: load, memory, random reads, restart.
    Memory {
        #[arg(long, default_value_t = 10_000_000)]
        keys: u64,
        /// `store.memory` of the geode.
        #[arg(long, default_value = "256MiB")]
        memory: String,
        /// Random reads of each kind.
        #[arg(long, default_value_t = 1_000_000)]
        reads: u64,
    },
    /// A region that was away catches up over a long path that loses packets, while the others write (root, Linux).
    #[cfg(target_os = "linux")]
    Link {
        /// How many writes it missed.
        #[arg(long, default_value_t = 1_000_000)]
        missed: usize,
        /// How often it is away.
        #[arg(long, default_value_t = 5)]
        rounds: usize,
    },
    /// From a clean target directory to a ready planet, as README's first command does it.
    Build,
}

/// Runs one of the benchmarks, of a binary that is built already or of one that it builds.
pub(crate) fn run(what: &Bench, binary: Option<PathBuf>) -> Outcome {
    let binary = || {
        install::programs(&install::FOR_BENCHMARKS)?;
        binary.map_or_else(dist_binary, Ok)
    };
    match what {
        Bench::Store { rounds, requests } => store::run(&binary()?, *rounds, *requests),
        Bench::Planet { seconds } => planet::run(&binary()?, *seconds),
        Bench::Memory { keys, memory, reads } => memory::run(&binary()?, *keys, memory, *reads),
        #[cfg(target_os = "linux")]
        Bench::Link { missed, rounds } => link::run(&binary()?, *missed, *rounds),
        Bench::Build => build::run(),
    }
}

fn dist_binary() -> Result<PathBuf, String> {
    run_command(Command::new("cargo").args([
        "build",
        "--locked",
        "--profile",
        "dist",
        "--package",
        "geode",
    ]))?;
    Ok(root().join("target/dist/geode"))
}

/// An empty directory below `target/bench`.
fn fresh_directory(name: &str) -> Result<PathBuf, String> {
    let directory = root().join("target/bench").join(name);
    let _ = std::fs::remove_dir_all(&directory);
    std::fs::create_dir_all(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    Ok(directory)
}

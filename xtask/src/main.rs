//! The project's own tasks. `cargo xtask test` and `cargo xtask bench` bring what they need themselves; `cargo xtask sim` and
//! `cargo xtask faults` need nothing.

mod bench;
mod faults;
mod install;
mod sim;
mod test;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The project's own tasks.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Installs what the tests need and runs every test.
    Test {
        /// Passed on to `cargo test`, e.g. a test's name.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Measures geode beside its real peers and prints ratios.
    Bench {
        #[command(subcommand)]
        what: bench::Bench,
        /// A binary that is built already, instead of one of the profile `dist`.
        #[arg(long, global = true)]
        binary: Option<PathBuf>,
    },
    /// Plays seeds with real geodes: killed, frozen, cut off, on failing disks.
    Faults(faults::Faults),
    /// Plays seeded planets through everything that may go wrong: --seeds N, --minutes M, --seed S, --cost.
    #[command(disable_help_flag = true)]
    Sim {
        /// Passed on to the simulator.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().task {
        Task::Test { rest } => test::run(&rest),
        Task::Bench { what, binary } => bench::run(&what, binary),
        Task::Faults(faults) => faults::run(&faults),
        Task::Sim { rest } => sim::run(&rest),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Tasks fail with one line for a person.
type Outcome = Result<(), String>;

/// The root of the workspace.
fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().map(Into::into).unwrap_or_default()
}

/// Runs a command in the workspace's root and fails with what failed.
fn run(command: &mut std::process::Command) -> Outcome {
    let shown = format!("{command:?}");
    let status =
        command.current_dir(root()).status().map_err(|error| format!("cannot start {shown}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{shown} failed: {status}")) }
}

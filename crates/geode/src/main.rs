//! geode: one region's complete copy of a backend service, with a door in front and a store behind it.
//!
//! The binary assembles one geode of the other crates (`geode run`), runs a whole planet of them on one machine (`geode
//! dev`), and is the operator's tool that asks any geode about the planet. It must not hold what belongs to one part:
//! how a client is steered, what a command does, what goes over a link.

mod admin;
mod ask;
mod backup_body;
mod bundle;
mod chaos;
mod cli;
mod dev;
mod doors;
mod geode;
mod gossip;
mod info;
mod init;
mod life;
mod membership;
mod metrics;
mod open_files;
mod operator;
mod questions;
mod regions;
mod router;
mod run;
mod service;
mod state;
mod store;
mod store_report;
mod terminal;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}

//! `bench build`: what a newcomer waits for: from nothing compiled to a ready planet.

use std::process::Command;
use std::time::Instant;

use super::fresh_directory;
use super::planet::DevPlanet;
use super::report::machine;
use crate::{Outcome, run as run_command};

/// Measures and prints. Crates are fetched before the clock starts: the network is not what is measured.
pub(crate) fn run() -> Outcome {
    run_command(Command::new("cargo").args(["fetch", "--locked"]))?;
    let target = fresh_directory("build")?;
    let start = Instant::now();
    let mut build = Command::new("cargo");
    build.args(["build", "--release", "--locked", "--package", "geode"]).env("CARGO_TARGET_DIR", &target);
    run_command(&mut build)?;
    let built = start.elapsed();
    let planet = DevPlanet::start(&target.join("release/geode"))?;
    println!("{}", machine());
    println!(
        "clean build {:.0} s, then a ready planet after {:.2} s: {:.0} s in all",
        built.as_secs_f64(),
        planet.started_in.as_secs_f64(),
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

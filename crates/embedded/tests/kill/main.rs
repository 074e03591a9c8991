//! A process that is killed in the middle of writes loses nothing that it answered, and goes on as itself.
//!
//! Run with `write DIRECTORY` this program is that process; without arguments it is the test.

#![allow(clippy::unwrap_used)] // a test that unwraps fails, which is what it is for

#[path = "../support/mod.rs"]
mod support;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use geode_embedded::{Config, FsyncMode};
use geode_store::Engine;
use support::{Local, PLANET};

/// How many answers are read before each kill.
const ROUNDS: [u64; 5] = [1, 700, 90, 1_500, 333];

fn config(data: &Path, fsync: FsyncMode) -> Config {
    Config {
        fsync,
        segment_bytes: 30_000,
        checkpoint_bytes: 20_000,
        ..Config::new(data, PLANET, "eu-west-1", &[])
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [_, "write", directory, mode] => write(Path::new(directory), mode.parse().unwrap()),
        // The test runner's own flags; listing says that there is nothing to choose from.
        [_, flags @ ..] if flags.contains(&"--list") => {}
        _ => {
            for mode in [FsyncMode::EverySecond, FsyncMode::Always, FsyncMode::Never] {
                a_killed_process_loses_nothing(mode);
                println!("a killed process loses nothing, fsync {}: ok", mode.name());
            }
        }
    }
}

/// Writes until it is killed; says each number once it may be answered.
fn write(directory: &Path, fsync: FsyncMode) {
    let mut region = Local::open(config(directory, fsync)).unwrap();
    let mut stdout = std::io::stdout().lock();
    loop {
        let count: u64 = region.run("INCR count").parse().unwrap();
        region.run(&format!("SET key:{count} {count:0200}"));
        region.run(&format!("RPUSH list {count}"));
        // Checkpoints are made meanwhile, and the kill comes at any point of theirs.
        region.store.engine.turn();
        // The test kills this process, so a closed pipe is only a race with that.
        if writeln!(stdout, "{count}").and_then(|()| stdout.flush()).is_err() {
            return;
        }
    }
}

fn a_killed_process_loses_nothing(fsync: FsyncMode) {
    let data = tempfile::tempdir().unwrap();
    // A number is skipped where a kill came between its increment and its answer.
    let mut answered: Vec<u64> = Vec::new();
    for answers in ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg("write")
            .arg(data.path())
            .arg(fsync.name())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        for _ in 0..answers {
            answered.push(lines.next().unwrap().unwrap().parse().unwrap());
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What was in the pipe was answered too; a line is written at once or not at all.
        answered.extend(lines.map(|line| line.unwrap().parse::<u64>().unwrap()));
        let mut region = Local::open(config(data.path(), fsync)).unwrap();
        let count: u64 = region.run("GET count").trim_matches('"').parse().unwrap();
        let last = answered[answered.len() - 1];
        assert!(count == last || count == last + 1, "{count} after {last}");
        for number in &answered {
            assert_eq!(region.run(&format!("GET key:{number}")), format!("\"{number:0200}\""));
        }
        assert!(region.run("LLEN list").parse::<usize>().unwrap() >= answered.len());
        assert_eq!(region.incarnations().len(), 1, "it is the same writer");
    }
}

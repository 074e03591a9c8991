//! A disk without room: real file systems of a size of their own. Mounting one needs root.

#![allow(clippy::unwrap_used)] // a test that unwraps fails, which is what it is for

mod support;

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use geode_embedded::{Config, FsyncMode};
use geode_store::conformance::Recorder;
use geode_store::{Engine, Flow, FlushError, Session};
use support::{DEADLINE, Local, Network, Node, PLANET, assert_equal, eventually};

const REGION: &str = "eu-west-1";
const PEER: &str = "us-east-1";
const MIB: usize = 1 << 20;

/// A file system in memory, of which all but a part is taken.
struct Disk {
    directory: tempfile::TempDir,
}

impl Disk {
    fn new(mib: usize, free_mib: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"])
            .arg(directory.path())
            .status()
            .unwrap();
        assert!(mounted.success(), "these tests mount a tmpfs, which needs root");
        let disk = Self { directory };
        fs::write(disk.ballast(), vec![0; (mib - free_mib) * MIB]).unwrap();
        disk
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn data(&self) -> std::path::PathBuf {
        self.path().join("data")
    }

    fn ballast(&self) -> std::path::PathBuf {
        self.path().join("ballast")
    }

    /// Takes all room that is left.
    fn fill(&self) {
        let mut ballast = File::options().append(true).open(self.ballast()).unwrap();
        for bytes in [MIB, 4096] {
            while ballast.write_all(&vec![0; bytes]).is_ok() {}
        }
    }

    /// Gives the room back that was taken.
    fn free(&self) {
        File::create(self.ballast()).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(self.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

fn config(disk: &Disk, fsync: FsyncMode) -> Config {
    Config { fsync, segment_bytes: 3 << 20, ..Config::new(disk.data(), PLANET, REGION, &[]) }
}

fn value(bytes: usize) -> String {
    "x".repeat(bytes)
}

/// Writes until a write is refused; returns how many were taken, and the refusal.
fn fill(region: &mut Local) -> (usize, String) {
    for number in 0.. {
        let answer = region.run(&format!("SET key:{number} {}", value(64 << 10)));
        if answer != "OK" {
            return (number, answer);
        }
    }
    unreachable!("a disk is finite")
}

/// Turns until the region takes writes.
fn wait_for_writes(region: &mut Local) {
    let until = Instant::now() + DEADLINE;
    while let Some(refusal) = region.store.engine.write_refusal() {
        assert!(Instant::now() < until, "{refusal}");
        region.store.engine.turn();
    }
}

#[test]
fn a_full_disk_is_met_before_a_command_runs_and_writes_go_on_when_there_is_room() {
    for mode in [FsyncMode::Always, FsyncMode::EverySecond, FsyncMode::Never] {
        let disk = Disk::new(48, 16);
        let mut region = Local::open(config(&disk, mode)).unwrap();
        let (taken, refusal) = fill(&mut region);
        assert!(taken > 100, "the room is used: {taken}");
        assert!(refusal.starts_with("!DISK there is no room for the log in "), "{refusal}");
        assert!(
            refusal.contains("/data/log (No space left on device") && refusal.contains("free some"),
            "{refusal}"
        );
        assert_eq!(region.handle.write_refusal().map(|text| format!("!{text}")), Some(refusal.clone()));
        for write in ["INCR n", "DEL key:0", "FLUSHALL"] {
            assert_eq!(region.run(write), refusal);
        }
        assert_eq!(region.run("DBSIZE"), taken.to_string());
        assert_eq!(region.run("EXISTS key:0 n"), "1");
        disk.free();
        wait_for_writes(&mut region);
        assert_eq!(region.run("INCR n"), "1");
        assert_eq!(region.handle.write_refusal(), None);
        drop(region);
        let mut region = Local::open(config(&disk, mode)).unwrap();
        assert_eq!(region.run("DBSIZE"), (taken + 1).to_string());
        assert_eq!(region.incarnations().len(), 1, "nothing that was written is in doubt");
    }
}

#[test]
fn a_write_that_was_executed_and_found_no_room_is_kept_and_reaches_the_log() {
    let disk = Disk::new(48, 16);
    let mut region = Local::open(config(&disk, FsyncMode::Always)).unwrap();
    assert_eq!(region.run("SET before 1"), "OK");
    let once = format!("GEODE.ONCE id SET big {}", value(20 * MIB));
    let doubt = region.try_run(&once).unwrap_err();
    let FlushError::Doubtful(doubt) = doubt else { panic!("{doubt}") };
    assert!(doubt.starts_with("DISK ") && doubt.contains("it may or may not happen"), "{doubt}");
    assert!(region.run("SET after 1").starts_with("!DISK there is no room"));
    assert_eq!(
        (region.run("GET before").as_str(), region.run("STRLEN big")),
        ("\"1\"", (20 * MIB).to_string())
    );
    assert!(
        region.run(&once).starts_with("!DISK there is no room"),
        "what is in memory alone is not answered as done"
    );
    disk.free();
    wait_for_writes(&mut region);
    assert_eq!((region.run(&once), region.run("SET after 1")), ("OK".to_owned(), "OK".to_owned()));
    drop(region);
    let mut region = Local::open(config(&disk, FsyncMode::Always)).unwrap();
    assert_eq!(region.run("STRLEN big"), (20 * MIB).to_string());
    assert_eq!(region.run("DBSIZE"), "3");
    assert_eq!(region.incarnations().len(), 1);
}

#[test]
fn a_process_that_ends_before_there_is_room_loses_only_the_write_in_doubt() {
    let disk = Disk::new(48, 16);
    let mut region = Local::open(config(&disk, FsyncMode::EverySecond)).unwrap();
    assert_eq!(region.run("SET before 1"), "OK");
    assert!(region.try_run(&format!("SET big {}", value(20 * MIB))).is_err());
    drop(region);
    let mut region = Local::open(config(&disk, FsyncMode::EverySecond)).unwrap();
    assert_eq!(region.run("EXISTS before big"), "1");
    assert_eq!(region.run("SET after 1"), "OK");
    assert_eq!(region.incarnations(), [2], "nobody saw its name");
}

#[test]
fn a_full_disk_stops_the_sweep_and_costs_no_key_its_lifetime() {
    let disk = Disk::new(48, 16);
    let mut region = Local::open(config(&disk, FsyncMode::EverySecond)).unwrap();
    assert_eq!(region.run("SET short v PX 1"), "OK");
    fill(&mut region);
    let until = Instant::now() + DEADLINE;
    while region.run("EXISTS short") != "0" {
        assert!(Instant::now() < until);
    }
    assert_eq!(region.store.sweep(10), 0);
    disk.free();
    wait_for_writes(&mut region);
    assert_eq!(region.store.sweep(10), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replication_in_waits_for_room_and_the_link_stays_up() {
    let (network, elsewhere, disk) = (Network::new(), tempfile::tempdir().unwrap(), Disk::new(48, 12));
    let small = Config { segment_bytes: 3 << 20, ..Config::new(disk.data(), PLANET, REGION, &[PEER]) };
    let full = Node::start_with(&network, small);
    let peer = Node::start(&network, elsewhere.path(), PEER, &[REGION]);
    for number in 0..320 {
        assert_eq!(peer.run(&format!("SET key:{number} {}", value(64 << 10))), "OK");
    }
    eventually("the disk is full", async || full.handle.write_refusal().is_some()).await;
    assert!(full.run("SET k v").starts_with("!DISK "));
    assert!(full.run("GET key:0").len() > 60_000, "reads go on");
    // Longer than a link may be silent.
    let began = Instant::now();
    while began.elapsed() < std::time::Duration::from_secs(6) {
        assert!(peer.stats().await.peers[0].connected, "the link is down");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert!(!full.handle.wait_for(&peer.vector(), std::time::Duration::ZERO).await);
    disk.free();
    full.reaches(&peer.vector()).await;
    eventually("writes go on", async || full.run("SET k v") == "OK").await;
    assert_equal(&[&full, &peer]).await;
    assert_eq!(full.run("DBSIZE"), "321");
}

/// Runs FLUSHALL to its end, as a front end does, with a flush of the log after each step; returns what it answers.
fn flush_all(region: &mut Local) -> String {
    let (mut session, mut reply) = (Session::default(), Recorder::default());
    region.store.engine.set_wall(support::wall());
    let mut flow = region.store.execute(&mut session, &[b"FLUSHALL"], &mut reply);
    loop {
        match (region.store.engine.flush(), flow) {
            (Err(doubt), _) => return doubt.to_string(),
            (Ok(_), Flow::Done) => return reply.finish().unwrap().to_string(),
            (Ok(_), Flow::Wait { .. }) => flow = region.store.resume(&mut session, &mut reply),
        }
    }
}

#[test]
fn flushall_in_steps_that_meets_a_full_disk_says_so_and_can_be_sent_again() {
    const KEYS: usize = 15_000;
    let disk = Disk::new(96, 88);
    let mut region = Local::open(config(&disk, FsyncMode::EverySecond)).unwrap();
    // Long names, so that to clear them takes more than the room that was taken ahead.
    let name = "n".repeat(1_000);
    for number in 0..KEYS {
        assert_eq!(region.execute(&format!("SET {name}:{number} v")), "OK");
        if number % 256 == 0 {
            region.store.engine.flush().unwrap();
        }
    }
    region.store.engine.flush().unwrap();
    disk.fill();
    let answer = flush_all(&mut region);
    assert!(answer.contains("DISK "), "{answer}");
    let left: usize = region.run("DBSIZE").parse().unwrap();
    assert!((1..KEYS).contains(&left), "{left}");
    assert!(region.run("SET k v").starts_with("!DISK there is no room"));
    disk.free();
    wait_for_writes(&mut region);
    assert_eq!((flush_all(&mut region).as_str(), region.run("DBSIZE").as_str()), ("OK", "0"));
    drop(region);
    let mut region = Local::open(config(&disk, FsyncMode::EverySecond)).unwrap();
    assert_eq!(region.run("DBSIZE"), "0");
    assert_eq!(region.incarnations().len(), 1);
}

//! Checkpoints: what a start finds on disk, replays, believes and refuses.

#![allow(clippy::unwrap_used)] // a test that unwraps fails, which is what it is for

mod support;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use geode_embedded::{Config, FsyncMode, OpenError};
use geode_store::Engine;
use support::{DEADLINE, Local, PLANET};

const REGION: &str = "eu-west-1";
const FILE: &str = "checkpoint.redb";

/// A checkpoint whenever anything was written.
fn config(data: &Path) -> Config {
    Config { checkpoint_bytes: 0, segment_bytes: 4_000, ..Config::new(data, PLANET, REGION, &[]) }
}

fn open(data: &Path) -> Local {
    Local::open(config(data)).unwrap()
}

/// Lets the engine work until a start would replay nothing.
fn complete(region: &mut Local) {
    let until = Instant::now() + DEADLINE;
    while region.store.engine.tail_bytes() > 0 {
        assert!(Instant::now() < until, "the checkpoint is never completed");
        region.store.engine.turn();
        std::thread::yield_now();
    }
}

/// Writes every type, and takes some of it away again.
fn write(region: &mut Local, round: usize) {
    for command in [
        &format!("SET string:{round} value"),
        &format!("SET string {round}"),
        "INCRBY counter 41",
        "RPUSH list a b c",
        "LPOP list",
        &format!("HSET hash f {round} field:{round} v"),
        &format!("HDEL hash field:{}", round.wrapping_sub(1)),
        &format!("SADD set m member:{round}"),
        &format!("SET short:{round} v EX 1000"),
        &format!("DEL string:{}", round.wrapping_sub(2)),
        "DEL gone",
        "INCR gone",
    ] {
        region.run(command);
    }
}

/// What users see of all that was written.
fn shown(region: &mut Local) -> Vec<String> {
    let keys =
        ["DBSIZE", "GET string", "GET counter", "GET gone", "LRANGE list 0 -1", "HGET hash f", "SCARD set"];
    keys.iter().map(|command| region.run(command)).collect()
}

fn digest(region: &Local) -> geode_crdt::Digest {
    region.store.engine.view().digest().clone()
}

#[test]
fn a_start_from_a_checkpoint_shows_what_a_replay_of_the_whole_log_shows() {
    let data = tempfile::tempdir().unwrap();
    let mut region = open(data.path());
    for round in 0..8 {
        write(&mut region, round);
        if round % 3 == 1 {
            complete(&mut region);
        }
    }
    let (before, sums) = (shown(&mut region), digest(&region));
    drop(region);
    let mut region = open(data.path());
    assert_eq!((shown(&mut region), digest(&region)), (before.clone(), sums.clone()));
    assert_eq!(region.run("TTL short:3"), "1000");
    assert_eq!(region.incarnations().len(), 1, "it is the same writer");
    drop(region);
    fs::remove_file(data.path().join(FILE)).unwrap();
    let mut region = open(data.path());
    assert_eq!((shown(&mut region), digest(&region)), (before, sums));
}

#[test]
fn what_stands_before_the_mark_is_not_read() {
    let data = tempfile::tempdir().unwrap();
    let mut region = open(data.path());
    for round in 0..40 {
        write(&mut region, round);
    }
    complete(&mut region);
    region.run("SET after 1");
    let (before, sums) = (shown(&mut region), digest(&region));
    region.store.engine.stop().unwrap();
    drop(region);
    // The first segment's content is not what it was: a replay of the whole log would refuse.
    let segment =
        OpenOptions::new().write(true).open(data.path().join("log/00000000000000000000.log")).unwrap();
    segment.write_all_at(&[0xff; 500], 200).unwrap();
    let mut region = open(data.path());
    assert_eq!((shown(&mut region), digest(&region)), (before, sums));
    assert_eq!(region.run("GET after"), "\"1\"");
}

#[test]
fn writing_goes_on_while_a_checkpoint_is_made() {
    let data = tempfile::tempdir().unwrap();
    let mut region = open(data.path());
    for round in 0..300 {
        write(&mut region, round);
        region.store.engine.turn();
    }
    let (before, sums) = (shown(&mut region), digest(&region));
    drop(region);
    let mut region = open(data.path());
    assert_eq!((shown(&mut region), digest(&region)), (before, sums));
    // And what was deleted while its image was on its way does not come back with the next start.
    complete(&mut region);
    let (before, sums) = (shown(&mut region), digest(&region));
    drop(region);
    let mut region = open(data.path());
    assert_eq!((shown(&mut region), digest(&region)), (before, sums));
}

/// What a kill leaves: the greatest own sequence, and the rows.
fn state(region: &Local) -> (u64, geode_crdt::Digest) {
    (region.store.engine.last_sequence(), digest(region))
}

#[test]
fn a_checkpoint_knows_nothing_that_is_not_in_the_log() {
    for wait_for in [2, 3, 5, 8] {
        let data = tempfile::tempdir().unwrap();
        let mut region = open(data.path());
        let until = Instant::now() + DEADLINE;
        let (mut completed, mut tail) = (0, 0);
        let mut states = Vec::new();
        // As a data thread that never comes to the end of its batch: only the checkpoint itself flushes.
        while completed < wait_for {
            assert!(Instant::now() < until, "only {completed} checkpoints were completed");
            region.execute("INCR count");
            states.push(state(&region));
            region.store.engine.turn();
            let before = std::mem::replace(&mut tail, region.store.engine.tail_bytes());
            completed += usize::from(tail < before);
        }
        drop(region);
        let region = open(data.path());
        let found = state(&region);
        assert!(states.contains(&found), "{} entries make other rows than they did", found.0);
        drop(region);
        fs::remove_file(data.path().join(FILE)).unwrap();
        let region = open(data.path());
        assert_eq!(state(&region), found, "the log says it all");
        assert_eq!(region.incarnations().len(), 1, "it is the same writer");
    }
}

#[test]
fn a_mark_may_name_writers_that_no_key_does() {
    let data = tempfile::tempdir().unwrap();
    let mut region = open(data.path());
    complete(&mut region);
    drop(region);
    // The incarnation has written nothing yet.
    let mut region = open(data.path());
    assert_eq!(region.run("INCR count"), "1");
    assert_eq!(region.incarnations(), [1], "it is the same writer");
}

#[test]
fn a_damaged_checkpoint_is_set_aside_while_the_log_says_all_of_it() {
    let data = tempfile::tempdir().unwrap();
    let mut region = open(data.path());
    (0..20).for_each(|round| write(&mut region, round));
    complete(&mut region);
    let (before, sums) = (shown(&mut region), digest(&region));
    drop(region);
    let path = data.path().join(FILE);
    let whole = fs::read(&path).unwrap();
    let mut harms: Vec<Vec<u8>> = [0, 100, 4096, 40_000].map(|length| whole[..length].to_vec()).to_vec();
    // Damage at any place: some of it is in pages that nothing uses any more.
    for at in (0..whole.len()).step_by(whole.len() / 24) {
        let mut bytes = whole.clone();
        let end = (at + 3000).min(bytes.len());
        bytes[at..end].iter_mut().for_each(|byte| *byte ^= 0x5a);
        harms.push(bytes);
    }
    let mut set_aside = 0;
    for harm in harms {
        let _ = fs::remove_file(data.path().join("checkpoint.damaged"));
        fs::write(&path, &harm).unwrap();
        let mut region = open(data.path());
        assert_eq!((shown(&mut region), digest(&region)), (before.clone(), sums.clone()));
        set_aside += usize::from(data.path().join("checkpoint.damaged").exists());
        drop(region);
    }
    assert!(set_aside >= 6, "only {set_aside} were noticed");
}

#[test]
fn a_damaged_or_missing_checkpoint_is_refused_when_the_log_does_not_say_all_of_it() {
    let data = tempfile::tempdir().unwrap();
    let mut region = open(data.path());
    (0..40).for_each(|round| write(&mut region, round));
    complete(&mut region);
    region.store.engine.stop().unwrap();
    drop(region);
    fs::remove_file(data.path().join("log/00000000000000000000.log")).unwrap();
    let path = data.path().join(FILE);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..5000]).unwrap();
    let message = |error: OpenError| error.to_string();
    let refused = message(Local::open(config(data.path())).map(drop).unwrap_err());
    assert!(refused.contains("checkpoint.redb cannot be used") && refused.contains("move"), "{refused}");
    assert_eq!(fs::read(&path).unwrap().len(), 5000, "nothing was changed");
    fs::remove_file(&path).unwrap();
    let refused = message(Local::open(config(data.path())).map(drop).unwrap_err());
    assert!(refused.contains("it is missing"), "{refused}");
    fs::write(&path, &whole).unwrap();
    assert_eq!(open(data.path()).run("GET string"), "\"39\"");
}

#[test]
fn a_log_that_ends_before_its_checkpoint_is_refused() {
    let data = tempfile::tempdir().unwrap();
    let never = |data: &Path| Config { fsync: FsyncMode::Never, ..config(data) };
    let mut region = Local::open(never(data.path())).unwrap();
    (0..3).for_each(|round| write(&mut region, round));
    complete(&mut region);
    drop(region);
    let mut segments: Vec<_> =
        fs::read_dir(data.path().join("log")).unwrap().map(|entry| entry.unwrap().path()).collect();
    segments.sort();
    let last = &segments[segments.len() - 1];
    let length = fs::metadata(last).unwrap().len();
    OpenOptions::new().write(true).open(last).unwrap().set_len(length - 20).unwrap();
    let refused = Local::open(never(data.path())).map(drop).unwrap_err();
    assert!(matches!(refused, OpenError::Damaged { .. }), "{refused}");
}

#[test]
fn a_checkpoint_of_another_region_or_a_newer_release_is_refused() {
    let (data, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for (directory, region) in [(&data, REGION), (&other, "us-east-1")] {
        let own = Config { region: region.to_owned(), ..config(directory.path()) };
        let mut region = Local::open(own).unwrap();
        write(&mut region, 1);
        complete(&mut region);
    }
    fs::copy(other.path().join(FILE), data.path().join(FILE)).unwrap();
    let refused = Local::open(config(data.path())).map(drop).unwrap_err();
    assert!(matches!(&refused, OpenError::OtherRegion { found, .. } if found == "us-east-1"), "{refused}");
}

#[test]
fn a_checkpoint_that_cannot_be_written_is_tried_again_and_writing_goes_on() {
    let data = tempfile::tempdir().unwrap();
    // A directory in the file's place.
    fs::create_dir(data.path().join(FILE)).unwrap();
    let blocked = Local::open(config(data.path()));
    assert!(matches!(blocked.map(drop), Err(OpenError::Io { .. })));
    fs::remove_dir(data.path().join(FILE)).unwrap();
    let mut region = open(data.path());
    fs::create_dir(data.path().join(FILE)).unwrap();
    write(&mut region, 1);
    let until = Instant::now() + DEADLINE;
    while region.store.engine.failed_checkpoints() == 0 {
        assert!(Instant::now() < until);
        region.store.engine.turn();
    }
    write(&mut region, 2);
    fs::remove_dir(data.path().join(FILE)).unwrap();
    complete(&mut region);
    let (before, sums) = (shown(&mut region), digest(&region));
    drop(region);
    let mut region = open(data.path());
    assert_eq!((shown(&mut region), digest(&region)), (before, sums));
}

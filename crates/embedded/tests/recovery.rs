//! What a start finds, believes and refuses.

#![allow(clippy::unwrap_used)] // a test that unwraps fails, which is what it is for

mod support;

use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use geode_embedded::{Config, FsyncMode, OpenError};
use geode_store::Engine;
use support::{Local, PLANET};

const REGION: &str = "eu-west-1";

fn config(data: &Path, fsync: FsyncMode) -> Config {
    Config { fsync, ..Config::new(data, PLANET, REGION, &[]) }
}

fn open(data: &Path) -> Local {
    Local::open(config(data, FsyncMode::EverySecond)).unwrap()
}

fn segments(data: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(data.join("log")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn flip(path: &Path, offset: u64) {
    let mut file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.seek(SeekFrom::Start(offset)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(offset)).unwrap();
    file.write_all(&[byte[0] ^ 0x10]).unwrap();
}

fn edit_identity(data: &Path, change: impl FnOnce(&mut serde_json::Value)) {
    let path = data.join("identity.json");
    let mut identity = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut identity);
    fs::write(path, identity.to_string()).unwrap();
}

/// As after a crash of the machine: another boot, and no clean stop.
fn pretend_another_boot(data: &Path) {
    edit_identity(data, |identity| identity["boot"] = "00000000-0000-0000-0000-000000000000".into());
}

#[test]
fn everything_is_there_after_a_start_and_the_incarnation_goes_on() {
    let data = tempfile::tempdir().unwrap();
    let mut region = open(data.path());
    region.run("SET string value");
    region.run("INCRBY counter 41");
    region.run("RPUSH list a b c");
    region.run("HSET hash f v");
    region.run("SADD set m");
    region.run("SET short v EX 1000");
    let digest = region.store.engine.view().digest().clone();
    drop(region);
    let mut region = open(data.path());
    assert_eq!(region.store.engine.view().digest(), &digest);
    assert_eq!(region.run("INCR counter"), "42");
    assert_eq!(region.run("LRANGE list 0 -1"), "[\"a\" \"b\" \"c\"]");
    assert_eq!(region.run("TTL short"), "1000");
    assert_eq!(region.incarnations(), [7]);
}

#[test]
fn a_record_cut_short_by_the_end_of_the_file_is_cut_and_the_incarnation_kept() {
    let data = tempfile::tempdir().unwrap();
    // Not even the thread that forces the log onto the disk may do so meanwhile.
    let mut region = Local::open(config(data.path(), FsyncMode::Never)).unwrap();
    region.run("SET a 1");
    region.run("SET b 2");
    drop(region);
    let segment = &segments(data.path())[0];
    let length = fs::metadata(segment).unwrap().len();
    OpenOptions::new().write(true).open(segment).unwrap().set_len(length - 3).unwrap();
    let mut region = open(data.path());
    assert_eq!(region.run("MGET a b"), "[\"1\" nil]");
    region.run("SET c 3");
    assert_eq!(region.incarnations(), [2], "the sequence of what was cut is used again");
    drop(region);
    assert_eq!(open(data.path()).run("MGET a b c"), "[\"1\" nil \"3\"]");
}

#[test]
fn a_flipped_bit_in_what_was_never_synced_is_cut_under_a_new_incarnation() {
    let data = tempfile::tempdir().unwrap();
    // Not even the thread that forces the log onto the disk may do so meanwhile.
    let mut region = Local::open(config(data.path(), FsyncMode::Never)).unwrap();
    region.run("SET a 1");
    region.run("SET b 2");
    drop(region);
    let segment = &segments(data.path())[0];
    flip(segment, fs::metadata(segment).unwrap().len() - 3);
    let mut region = open(data.path());
    assert_eq!(region.run("MGET a b"), "[\"1\" nil]");
    region.run("SET c 3");
    assert_eq!(region.incarnations(), [1, 1]);
    drop(region);
    assert_eq!(open(data.path()).incarnations(), [1, 1], "one damage, one new incarnation");
}

#[test]
fn a_flipped_bit_in_what_was_synced_is_refused_and_nothing_is_changed() {
    for (mode, clean) in [(FsyncMode::EverySecond, true), (FsyncMode::Always, false)] {
        let data = tempfile::tempdir().unwrap();
        let mut region = Local::open(config(data.path(), mode)).unwrap();
        for number in 0..50 {
            region.run(&format!("SET key:{number} {number}"));
        }
        if clean {
            region.store.engine.stop().unwrap();
        }
        drop(region);
        let segment = &segments(data.path())[0];
        let middle = fs::metadata(segment).unwrap().len() / 2;
        flip(segment, middle);
        let before = fs::read(segment).unwrap();
        let error = Local::open(config(data.path(), mode)).err().unwrap();
        let OpenError::Damaged { path, offset, .. } = &error else { panic!("{error}") };
        assert_eq!(path, segment);
        assert!(*offset <= middle && middle < offset + 100, "{offset} {middle}");
        let text = error.to_string();
        assert!(text.contains("rebuild this region from its peers") && !text.contains('\n'), "{text}");
        assert_eq!(fs::read(segment).unwrap(), before);
    }
}

#[test]
fn a_start_that_died_after_it_cut_damage_away_does_not_forget_it() {
    let data = tempfile::tempdir().unwrap();
    let mut region = Local::open(config(data.path(), FsyncMode::Never)).unwrap();
    region.run("SET a 1");
    let segment = &segments(data.path())[0];
    let whole = fs::metadata(segment).unwrap().len();
    region.run("SET b 2");
    drop(region);
    flip(segment, fs::metadata(segment).unwrap().len() - 3);
    // The next start ends where it says the time: just before the cut, which is made for it.
    let (clock, kept) = (data.path().join("clock"), data.path().join("clock.kept"));
    fs::rename(&clock, &kept).unwrap();
    std::os::unix::fs::symlink("/dev/full", &clock).unwrap();
    assert!(matches!(Local::open(config(data.path(), FsyncMode::Never)), Err(OpenError::Io { .. })));
    OpenOptions::new().write(true).open(segment).unwrap().set_len(whole).unwrap();
    fs::rename(&kept, &clock).unwrap();
    let mut region = open(data.path());
    assert_eq!(region.run("MGET a b"), "[\"1\" nil]");
    region.run("SET c 3");
    assert_eq!(region.incarnations(), [1, 1], "what was cut may be known elsewhere by its old name");
}

/// Waits until the region says on disk that its whole log is there too.
fn wait_until_synced(data: &Path) {
    let until = Instant::now() + support::DEADLINE;
    let length: u64 = segments(data).iter().map(|segment| fs::metadata(segment).unwrap().len()).sum();
    // The position in the third slot of the file.
    let said = || fs::read(data.join("clock")).unwrap().get(8200..8208).map(<[u8]>::to_vec);
    while said().is_none_or(|bytes| bytes != length.to_le_bytes()) {
        assert!(Instant::now() < until, "the log is never said to be synced up to {length}");
        std::thread::yield_now();
    }
}

#[test]
fn a_flipped_bit_in_the_last_synced_record_of_an_idle_region_without_peers_is_refused() {
    for mode in [FsyncMode::Always, FsyncMode::EverySecond] {
        let data = tempfile::tempdir().unwrap();
        let mut region = Local::open(config(data.path(), mode)).unwrap();
        region.run("SET first 1");
        region.run("SET second 2");
        if mode == FsyncMode::EverySecond {
            wait_until_synced(data.path());
        }
        drop(region);
        let segment = &segments(data.path())[0];
        flip(segment, fs::metadata(segment).unwrap().len() - 3);
        let opened = Local::open(config(data.path(), mode));
        assert!(matches!(opened, Err(OpenError::Damaged { .. })), "{mode:?}: an answered write was cut away");
    }
}

#[test]
fn a_start_says_that_what_it_found_is_synced_now() {
    let data = tempfile::tempdir().unwrap();
    Local::open(config(data.path(), FsyncMode::Never)).unwrap().run("SET a 1");
    drop(Local::open(config(data.path(), FsyncMode::Never)).unwrap());
    let segment = &segments(data.path())[0];
    flip(segment, fs::metadata(segment).unwrap().len() - 3);
    let opened = Local::open(config(data.path(), FsyncMode::Never));
    assert!(matches!(opened, Err(OpenError::Damaged { .. })));
}

#[test]
fn a_log_that_lost_files_is_refused() {
    let data = tempfile::tempdir().unwrap();
    let small = || Config { segment_bytes: 500, ..config(data.path(), FsyncMode::EverySecond) };
    let mut region = Local::open(small()).unwrap();
    (0..50).for_each(|number| drop(region.run(&format!("SET key:{number} {number}"))));
    region.store.engine.stop().unwrap();
    drop(region);
    let files = segments(data.path());
    assert!(files.len() > 3);
    fs::rename(&files[1], data.path().join("elsewhere")).unwrap();
    assert!(matches!(Local::open(small()), Err(OpenError::Damaged { .. })));
    fs::rename(data.path().join("elsewhere"), &files[1]).unwrap();
    fs::remove_dir_all(data.path().join("log")).unwrap();
    assert!(matches!(Local::open(small()), Err(OpenError::Damaged { .. })));
}

#[test]
fn many_segments_are_replayed_in_order() {
    let data = tempfile::tempdir().unwrap();
    let small = || Config { segment_bytes: 300, ..config(data.path(), FsyncMode::Always) };
    for round in 0..3 {
        let mut region = Local::open(small()).unwrap();
        for number in 0..40 {
            assert_eq!(region.run("INCR counter"), (round * 40 + number + 1).to_string());
        }
        assert_eq!(region.incarnations(), [u64::from(round as u32 + 1) * 40]);
    }
    assert!(segments(data.path()).len() > 10);
}

#[test]
fn a_copied_directory_takes_a_new_incarnation() {
    let (data, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut region = open(data.path());
    region.run("SET a 1");
    region.store.engine.stop().unwrap();
    drop(region);
    fs::create_dir(copy.path().join("log")).unwrap();
    for file in ["identity.json", "clock", "log/00000000000000000000.log"] {
        fs::copy(data.path().join(file), copy.path().join(file)).unwrap();
    }
    let mut region = open(copy.path());
    assert_eq!(region.run("GET a"), "\"1\"");
    region.run("SET a 2");
    assert_eq!(region.incarnations(), [1, 1]);
}

#[test]
fn another_boot_needs_a_clean_stop_or_fsync_always() {
    for (mode, clean, kept) in [
        (FsyncMode::EverySecond, false, false),
        (FsyncMode::Never, false, false),
        (FsyncMode::EverySecond, true, true),
        (FsyncMode::Always, false, true),
    ] {
        let data = tempfile::tempdir().unwrap();
        let mut region = Local::open(config(data.path(), mode)).unwrap();
        region.run("SET a 1");
        if clean {
            region.store.engine.stop().unwrap();
        }
        drop(region);
        pretend_another_boot(data.path());
        let mut region = Local::open(config(data.path(), mode)).unwrap();
        region.run("SET b 1");
        assert_eq!(region.incarnations().len() == 1, kept, "{mode:?} {clean}");
    }
}

#[test]
fn the_mark_of_a_clean_stop_counts_once() {
    let data = tempfile::tempdir().unwrap();
    let mut region = open(data.path());
    region.run("SET a 1");
    region.store.engine.stop().unwrap();
    drop(region);
    drop(open(data.path()));
    pretend_another_boot(data.path());
    let mut region = open(data.path());
    region.run("SET b 1");
    assert_eq!(region.incarnations().len(), 2);
}

#[test]
fn a_failed_write_in_the_last_run_takes_the_proof_away() {
    let data = tempfile::tempdir().unwrap();
    open(data.path()).run("SET a 1");
    edit_identity(data.path(), |identity| identity["failed"] = true.into());
    let mut region = open(data.path());
    region.run("SET b 1");
    assert_eq!(region.incarnations().len(), 2);
    drop(region);
    fs::remove_file(data.path().join("identity.json")).unwrap();
    let mut region = open(data.path());
    region.run("SET c 1");
    assert_eq!(region.incarnations().len(), 3);
}

#[test]
fn after_a_stop_nothing_can_be_written() {
    let data = tempfile::tempdir().unwrap();
    let mut region = open(data.path());
    region.run("SET a 1");
    region.store.engine.stop().unwrap();
    region.store.engine.stop().unwrap();
    region.store.engine.begin();
    let name = geode_crdt::KeyName { database: 0, name: b"b" };
    region.store.engine.parts().1.set(name, b"2", []);
    region.store.engine.end();
    assert!(region.store.engine.flush().is_err());
}

#[test]
fn directories_of_others_are_refused_in_one_line() {
    let data = tempfile::tempdir().unwrap();
    let region = open(data.path());
    let refused = |config: Config| Local::open(config).err().unwrap().to_string();
    let path = data.path().display();
    assert_eq!(
        refused(config(data.path(), FsyncMode::Always)),
        format!("{path} is in use by another geode; stop it or choose another data directory")
    );
    drop(region);
    let mine = || config(data.path(), FsyncMode::Always);
    assert_eq!(
        refused(Config { planet: "mars".to_owned(), ..mine() }),
        format!("{path} holds data of planet \"tested\", not of \"mars\"; choose another data directory")
    );
    assert_eq!(
        refused(Config { region: "us-east-1".to_owned(), ..mine() }),
        format!("{path} holds data of region eu-west-1, not of us-east-1; choose another data directory")
    );
    // The log itself says so too.
    fs::remove_file(data.path().join("identity.json")).unwrap();
    assert!(
        refused(Config { planet: "mars".to_owned(), ..mine() }).contains("holds data of planet \"tested\"")
    );
    drop(open(data.path()));
    edit_identity(data.path(), |identity| identity["format"] = 9.into());
    assert_eq!(
        refused(mine()),
        format!("{path}/identity.json has format 9, this release knows up to 1; run a newer geode")
    );
}

#[test]
fn time_never_runs_back_behind_what_was_promised() {
    let data = tempfile::tempdir().unwrap();
    let mut region = open(data.path());
    region.run("SET a 1");
    let last = region.store.engine.now();
    drop(region);
    let mut region = open(data.path());
    region.store.engine.set_wall(geode_crdt::HybridTime(1));
    assert!(region.store.engine.begin() >= last);
    region.store.engine.end();
    drop(region);
    // After another boot, time goes on above what was reserved, which is above all that was used.
    pretend_another_boot(data.path());
    let mut region = open(data.path());
    region.store.engine.set_wall(geode_crdt::HybridTime(1));
    assert!(region.store.engine.begin() > last);
}

/// The time that the next entry gets by a wall clock that stands still.
fn next_time(region: &mut Local) -> geode_crdt::HybridTime {
    region.store.engine.set_wall(geode_crdt::HybridTime(1));
    let time = region.store.engine.begin();
    region.store.engine.end();
    time
}

#[test]
fn after_damage_on_the_same_boot_time_goes_on_above_what_was_cut() {
    let data = tempfile::tempdir().unwrap();
    let mut region = Local::open(config(data.path(), FsyncMode::Never)).unwrap();
    region.run("SET a 1");
    region.run("SET b 2");
    let last = region.store.engine.now();
    drop(region);
    let segment = &segments(data.path())[0];
    flip(segment, fs::metadata(segment).unwrap().len() - 3);
    assert!(next_time(&mut open(data.path())) > last, "the lost write may be known elsewhere with its time");
}

#[test]
fn a_machine_that_crashes_over_and_over_does_not_drive_time_away() {
    let data = tempfile::tempdir().unwrap();
    for _ in 0..20 {
        open(data.path()).run("SET a 1");
        pretend_another_boot(data.path());
    }
    let ahead_us = next_time(&mut open(data.path())).0 - support::wall().0;
    // Each start that takes no time at all costs a second; nothing does where machines take longer than that.
    assert!(ahead_us < 31_000_000, "{} s ahead", ahead_us / 1_000_000);
}

/// A data directory after twenty commands, with many segments; and how long each file is.
fn written(data: &Path) -> Vec<(PathBuf, u64)> {
    let small = Config { segment_bytes: 700, ..config(data, FsyncMode::Never) };
    let mut region = Local::open(small).unwrap();
    for number in 1..=20 {
        region.run("INCR count");
        region.run(&format!("SET key:{number} {number}"));
    }
    drop(region);
    let mut files = segments(data);
    files.extend([data.join("identity.json"), data.join("clock")]);
    files.into_iter().map(|file| (file.clone(), fs::metadata(&file).unwrap().len())).collect()
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig {
        cases: 40,
        failure_persistence: None,
        ..proptest::prelude::ProptestConfig::default()
    })]

    #[test]
    fn whatever_happens_to_a_file_a_start_refuses_or_shows_a_prefix(
        file: proptest::sample::Index,
        at: proptest::sample::Index,
        how in 0..3,
        garbage in proptest::collection::vec(proptest::prelude::any::<u8>(), 1..60),
    ) {
        let data = tempfile::tempdir().unwrap();
        let files = written(data.path());
        let (path, length) = &files[file.index(files.len())];
        let at = at.index(*length as usize) as u64;
        let mut opened = OpenOptions::new().write(true).open(path).unwrap();
        match how {
            0 => opened.set_len(at).unwrap(),
            1 => {
                opened.seek(SeekFrom::Start(at)).unwrap();
                opened.write_all(&garbage).unwrap();
            }
            _ => {
                opened.seek(SeekFrom::End(0)).unwrap();
                opened.write_all(&garbage).unwrap();
            }
        }
        drop(opened);
        if let Ok(mut region) = Local::open(config(data.path(), FsyncMode::Never)) {
            let count = region.run("GET count").trim_matches('"').parse::<usize>().unwrap_or(0);
            let keys = region.run("DBSIZE").parse::<usize>().unwrap() - usize::from(count > 0);
            proptest::prop_assert!(keys == count || keys + 1 == count, "{} keys after {} increments", keys, count);
            proptest::prop_assert_eq!(region.run("SET after 1"), "OK");
            drop(region);
            let mut region = Local::open(config(data.path(), FsyncMode::Never)).unwrap();
            proptest::prop_assert_eq!(region.run("GET after"), "\"1\"");
        }
    }
}

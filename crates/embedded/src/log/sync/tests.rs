//! A log that cannot be forced onto the disk.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use geode_crdt::{HybridTime, KeyName};
use geode_store::{Engine, FlushError, Position};

use super::*;
use crate::{Config, Embedded};

const PLANET: &str = "tested";
const REGION: &str = "eu-west-1";
/// Far beyond what anything here takes.
const DEADLINE: Duration = Duration::from_secs(60);

/// A file that cannot be forced onto a disk.
fn unsyncable() -> File {
    let null = File::options().write(true).open("/dev/null").unwrap();
    assert!(null.sync_data().is_err());
    null
}

fn floor(data: &Path) -> Floor {
    Floor::open(&data.join("clock"), crate::config::system_time).unwrap().0
}

#[test]
fn a_segment_counts_as_synced_only_when_its_directory_is() {
    let data = tempfile::tempdir().unwrap();
    let file = || Arc::new(tempfile::tempfile().unwrap());
    let sync = Durability::new(FsyncMode::Always, unsyncable(), file(), 0, floor(data.path()));
    sync.written(10);
    sync.sync_now().unwrap();
    assert_eq!(sync.synced(), 10, "no segment was begun");
    sync.rotated(file());
    sync.written(20);
    assert!(sync.sync_now().is_err());
    assert_eq!((sync.synced(), *sync.shippable().borrow()), (10, 10));
}

#[test]
fn after_a_failed_fsync_no_later_one_is_believed() {
    let data = tempfile::tempdir().unwrap();
    let directory = File::open(data.path()).unwrap();
    let failing = Arc::new(unsyncable());
    let sync = Durability::new(FsyncMode::EverySecond, directory, failing, 0, floor(data.path()));
    sync.rotated(Arc::new(tempfile::tempfile().unwrap()));
    sync.written(10);
    assert!(sync.sync_now().is_err());
    // The file that failed is out of the queue; the one that is left would succeed.
    assert!(sync.sync_now().is_err());
    assert_eq!((sync.synced(), sync.has_failed()), (0, true));
}

#[test]
fn after_a_failed_fsync_the_thread_touches_no_file_until_the_data_thread_lets_go() {
    let data = tempfile::tempdir().unwrap();
    let opened = crate::recovery::open(&Config::new(data.path(), PLANET, REGION, &[])).unwrap();
    let (sync, segments) = (Arc::clone(opened.log.sync()), Arc::clone(opened.log.segments()));
    let (said, heard) = std::sync::mpsc::channel();
    let tell = move |event| said.send(event).map_err(io::Error::other);
    let _thread = SyncThread::start(Arc::clone(&sync), segments, tell).unwrap();
    // The thread looks every second; what it tells comes in order.
    let heard = || heard.recv_timeout(DEADLINE).unwrap();
    sync.rotated(Arc::new(unsyncable()));
    sync.written(sync.written_up_to() + 1);
    assert_eq!((heard(), heard()), (Event::Failed, Event::News));
    assert!(sync.has_failed() && heard() == Event::News);
    // What was claimed to be written is not there.
    assert!(matches!(sync.repair(), Repair::Begun));
    assert_eq!(heard(), Event::News);
    assert!(matches!(sync.repair(), Repair::Lost(_)));
}

#[test]
fn a_failed_fsync_of_an_idle_region_is_known_to_its_next_start() {
    let data = tempfile::tempdir().unwrap();
    let open = || Embedded::open(Config::new(data.path(), "tested", "eu-west-1", &[])).unwrap().0;
    let actor = |engine: &Embedded| engine.stats().actor;
    let engine = open();
    let first = actor(&engine);
    let sync = Arc::clone(engine.core().log.sync());
    sync.rotated(Arc::new(unsyncable()));
    sync.written(sync.synced() + 1);
    let until = Instant::now() + Duration::from_secs(60);
    let identity = || std::fs::read_to_string(data.path().join("identity.json")).unwrap();
    while !identity().contains("\"failed\": true") {
        assert!(Instant::now() < until, "{}", identity());
        std::thread::yield_now();
    }
    drop(engine);
    let second = open();
    assert_ne!(actor(&second), first);
    let second_actor = actor(&second);
    drop(second);
    assert_eq!(actor(&open()), second_actor, "one failure, one new incarnation");
}

#[test]
fn after_a_failed_fsync_time_goes_on_above_what_may_be_lost() {
    let data = tempfile::tempdir().unwrap();
    let open = || Embedded::open(Config::new(data.path(), "tested", "eu-west-1", &[])).unwrap().0;
    let mut engine = open();
    let log = data.path().join("log/00000000000000000000.log");
    let before = std::fs::metadata(&log).unwrap().len();
    engine.core().log.sync().rotated(Arc::new(unsyncable()));
    engine.set_wall(HybridTime(crate::config::system_time().0 + 3_000_000));
    let time = engine.begin();
    engine.parts().1.set(KeyName { database: 0, name: b"k" }, b"v", []);
    engine.end();
    engine.flush().unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    while !std::fs::read_to_string(data.path().join("identity.json")).unwrap().contains("\"failed\": true") {
        assert!(Instant::now() < until);
        std::thread::yield_now();
    }
    drop(engine);
    File::options().write(true).open(log).unwrap().set_len(before).unwrap();
    let mut engine = open();
    engine.set_wall(HybridTime(1));
    assert!(engine.begin() > time);
}

#[test]
fn time_is_reserved_ahead_of_the_wall_clock_while_nothing_is_written() {
    static SHIFT_US: AtomicU64 = AtomicU64::new(0);
    fn clock() -> HybridTime {
        HybridTime(crate::config::system_time().0 + SHIFT_US.load(Ordering::Relaxed))
    }
    let data = tempfile::tempdir().unwrap();
    let config = Config { clock, ..Config::new(data.path(), "tested", "eu-west-1", &[]) };
    let engine = Embedded::open(config).unwrap().0;
    SHIFT_US.store(60_000_000, Ordering::Relaxed);
    let until = Instant::now() + Duration::from_secs(60);
    while engine.core().log.sync().floor().reserved() < clock() {
        assert!(Instant::now() < until, "the first write would have to wait for the disk");
        std::thread::yield_now();
    }
}

/// An engine whose log stands in one segment.
struct Region {
    engine: Embedded,
    data: tempfile::TempDir,
}

impl Region {
    fn open(fsync: FsyncMode) -> Self {
        let data = tempfile::tempdir().unwrap();
        Self { engine: open(data.path(), fsync), data }
    }

    /// The process ends and starts again.
    fn restart(mut self, fsync: FsyncMode) -> Self {
        drop(self.engine);
        self.engine = open(self.data.path(), fsync);
        self
    }

    fn log(&self) -> PathBuf {
        self.data.path().join("log/00000000000000000000.log")
    }

    /// What names the file of the log.
    fn inode(&self) -> u64 {
        std::fs::metadata(self.log()).unwrap().ino()
    }

    fn actor(&self) -> String {
        self.engine.stats().actor
    }

    fn set(&mut self, name: &[u8]) -> Result<Position, FlushError> {
        self.engine.begin();
        self.engine.parts().1.set(KeyName { database: 0, name }, b"v", []);
        self.engine.end();
        self.engine.flush()
    }

    /// The next fsync fails, and all that follow of the same file. Returns when it has.
    fn fail_fsync(&mut self, name: &[u8]) -> Position {
        let sync = Arc::clone(self.engine.core().log.sync());
        sync.rotated(Arc::new(unsyncable()));
        let position = self.set(name).unwrap();
        self.wait("the fsync fails", |_| sync.has_failed());
        position
    }

    /// Waits without a turn of the data thread.
    fn wait(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let until = Instant::now() + DEADLINE;
        while !is_so(self) {
            assert!(Instant::now() < until, "{what}");
            std::thread::yield_now();
        }
    }

    fn turn_until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let until = Instant::now() + DEADLINE;
        while !is_so(self) {
            assert!(Instant::now() < until, "{what}: {:?}", self.engine.write_refusal());
            self.engine.turn();
        }
    }

    fn takes_writes(&self) -> bool {
        !self.engine.core().log.sync().has_failed() && self.engine.write_refusal().is_none()
    }

    /// Nothing can be written where a new file would be, until this is removed.
    fn block_new_files(&self) -> PathBuf {
        let draft = self.log().with_extension("log.new");
        std::fs::create_dir(&draft).unwrap();
        draft
    }

    fn keys(&self) -> u64 {
        self.engine.stats().keys
    }
}

fn open(data: &Path, fsync: FsyncMode) -> Embedded {
    Embedded::open(Config { fsync, ..Config::new(data, PLANET, REGION, &[]) }).unwrap().0
}

#[test]
fn after_a_failed_fsync_the_log_goes_on_in_a_new_file_and_nothing_is_lost() {
    for mode in [FsyncMode::Always, FsyncMode::EverySecond] {
        let mut region = Region::open(mode);
        let (actor, inode) = (region.actor(), region.inode());
        region.set(b"before").unwrap();
        let position = region.fail_fsync(b"unsynced");
        let before = region.engine.core().log.sync().synced();
        assert!(before < position.0, "nothing rests on it");
        assert!(region.engine.core().log.sync().sync_now().is_err());
        region.turn_until("writes go on", Region::takes_writes);
        assert_ne!(region.inode(), inode);
        assert!(region.engine.core().log.sync().synced() >= position.0, "answers that wait for it may leave");
        region.set(b"after").unwrap();
        region.engine.core().log.sync().sync_now().unwrap();
        region = region.restart(mode);
        assert_eq!((region.keys(), region.actor()), (3, actor), "all is there, and nothing in doubt");
    }
}

#[test]
fn while_new_files_cannot_be_written_writes_are_refused_and_whoever_waits_is_told_once() {
    let mut region = Region::open(FsyncMode::Always);
    let blocked = region.block_new_files();
    region.fail_fsync(b"unsynced");
    let synced = region.engine.core().log.sync().synced();
    region.turn_until("it was tried", |region| region.engine.core().log.sync().is_repair_delayed());
    let Err(FlushError::Unproven(doubt)) = region.engine.flush() else { panic!("nobody is told") };
    assert!(doubt.starts_with("DISK the log in ") && doubt.contains("may or may not"), "{doubt}");
    assert_eq!(region.engine.flush(), Ok(Position(synced)), "reads go on");
    let refusal = region.engine.write_refusal().unwrap();
    assert!(
        refusal.contains("could not be forced onto the disk (") && refusal.contains("File exists"),
        "{refusal}"
    );
    assert_eq!(region.engine.durable(), Position(synced));
    std::fs::remove_dir(blocked).unwrap();
    region.turn_until("writes go on", Region::takes_writes);
    assert!(region.engine.durable() > Position(synced));
    let after = region.set(b"after").unwrap();
    region.wait("it comes onto the disk", |region| region.engine.durable() >= after);
}

#[test]
fn what_cannot_be_read_back_after_a_failed_fsync_ends_the_process() {
    let mut region = Region::open(FsyncMode::EverySecond);
    region.set(b"before").unwrap();
    region.engine.core().log.sync().sync_now().unwrap();
    let position = region.fail_fsync(b"unsynced");
    let file = File::options().write(true).open(region.log()).unwrap();
    file.write_all_at(&[0; 4], position.0 - 4).unwrap();
    let actor = region.actor();
    let until = Instant::now() + DEADLINE;
    let lost = loop {
        region.engine.turn();
        match region.engine.flush() {
            Ok(_) => assert!(Instant::now() < until),
            Err(error) => break error,
        }
    };
    assert!(
        matches!(&lost, FlushError::Final(text) if text.contains("lost what was not yet on disk")),
        "{lost}"
    );
    region = region.restart(FsyncMode::EverySecond);
    assert_eq!(region.keys(), 1);
    assert_ne!(region.actor(), actor);
}

#[test]
fn a_start_after_a_failed_fsync_does_not_believe_the_same_file() {
    let mut region = Region::open(FsyncMode::EverySecond);
    let (actor, inode) = (region.actor(), region.inode());
    region.fail_fsync(b"unsynced");
    let identity = region.data.path().join("identity.json");
    region
        .wait("it is recorded", |_| std::fs::read_to_string(&identity).unwrap().contains("\"failed\": true"));
    region = region.restart(FsyncMode::EverySecond);
    assert_ne!(region.inode(), inode);
    assert_eq!(region.keys(), 1);
    assert_ne!(region.actor(), actor, "nobody proved it before the process ended");
    let (actor, inode) = (region.actor(), region.inode());
    region = region.restart(FsyncMode::EverySecond);
    assert_eq!((region.actor(), region.inode()), (actor, inode), "one failure, one new file");
}

#[test]
fn a_quick_disk_is_forced_by_the_data_thread_and_a_slow_one_by_the_other() {
    let data = tempfile::tempdir().unwrap();
    let directory = File::open(data.path()).unwrap();
    let file = Arc::new(tempfile::tempfile().unwrap());
    let sync = Durability::new(FsyncMode::Always, directory, file, 0, floor(data.path()));
    let soon = |position| {
        sync.written(position);
        sync.sync_soon().unwrap()
    };
    assert!(!soon(10), "nothing is known of the disk");
    sync.note_time(QUICK / 2);
    assert!(soon(20));
    assert_eq!((sync.synced(), *sync.shippable().borrow()), (20, 20));
    assert!(!sync.sync_soon().unwrap(), "there is nothing to do");
    let one = sync.syncing.lock().unwrap();
    assert!(!soon(30), "the other thread is at it, and is not waited for");
    drop(one);
    sync.note_time(QUICK * 2 * u32::try_from(TYPICAL_OF).unwrap());
    assert!(!soon(40));
    assert_eq!(sync.synced(), 20);
}

#[test]
fn a_failed_fsync_of_the_data_thread_is_a_failure_for_all() {
    let data = tempfile::tempdir().unwrap();
    let directory = File::open(data.path()).unwrap();
    let sync = Durability::new(FsyncMode::Always, directory, Arc::new(unsyncable()), 0, floor(data.path()));
    sync.note_time(QUICK);
    sync.written(10);
    assert!(sync.sync_soon().is_err());
    assert_eq!((sync.synced(), sync.has_failed()), (0, true));
    assert!(!sync.sync_soon().unwrap(), "it is not tried again");
}

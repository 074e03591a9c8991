//! Forces the log onto the disk, on a thread of its own: an fsync takes as long as the disk likes.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::watch;

use crate::config::FsyncMode;
use crate::floor::Floor;

/// How often the log is forced onto the disk in the mode of that name, and the floor of time looked at in every mode.
const INTERVAL: Duration = Duration::from_secs(1);

/// What the data thread and the sync thread tell each other.
#[derive(Debug)]
pub(crate) struct Durability {
    mode: FsyncMode,
    queue: Mutex<Queue>,
    work: Condvar,
    /// Held while one thread forces the log: whoever comes second must not speak for files the first still waits for.
    syncing: Mutex<()>,
    /// Holds the names of the segments.
    directory: File,
    synced: AtomicU64,
    failed: AtomicBool,
    /// Up to where peers may be sent the log: what is in the kernel, or with [`FsyncMode::Always`] what is on disk.
    shippable: watch::Sender<u64>,
    floor: Floor,
}

#[derive(Debug, Default)]
struct Queue {
    /// Files with unsynced bytes, the current one last.
    files: Vec<Arc<File>>,
    written: u64,
    /// A segment was begun whose name may not be on disk.
    rotated: bool,
    stop: bool,
}

/// What is to be forced onto the disk.
struct Unsynced {
    files: Vec<Arc<File>>,
    rotated: bool,
    /// Up to where the log is on disk once it is done.
    position: u64,
}

/// The thread; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct SyncThread {
    sync: Arc<Durability>,
    thread: Option<JoinHandle<()>>,
}

impl Durability {
    /// For a log in `directory` that goes on in `file`, and of which everything up to `position` is on disk.
    pub(crate) fn new(
        mode: FsyncMode,
        directory: File,
        file: Arc<File>,
        position: u64,
        floor: Floor,
    ) -> Self {
        let queue = Queue { files: vec![file], written: position, ..Queue::default() };
        Self {
            mode,
            queue: Mutex::new(queue),
            work: Condvar::new(),
            syncing: Mutex::new(()),
            directory,
            synced: AtomicU64::new(position),
            failed: AtomicBool::new(false),
            shippable: watch::Sender::new(position),
            floor,
        }
    }

    pub(crate) fn floor(&self) -> &Floor {
        &self.floor
    }

    /// Up to where the log is known to be on disk.
    pub(crate) fn synced(&self) -> u64 {
        self.synced.load(Ordering::Acquire)
    }

    /// Whether an fsync failed. The kernel may have dropped what was written, so nothing can be promised any more.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    pub(crate) fn shippable(&self) -> watch::Receiver<u64> {
        self.shippable.subscribe()
    }

    /// The data thread wrote up to `position`.
    pub(crate) fn written(&self, position: u64) {
        self.lock().written = position;
        if self.mode == FsyncMode::Always {
            self.work.notify_one();
        } else {
            self.shippable.send_replace(position);
        }
    }

    /// The data thread goes on in another file.
    pub(crate) fn rotated(&self, file: Arc<File>) {
        let mut queue = self.lock();
        queue.files.push(file);
        queue.rotated = true;
    }

    /// Forces everything written onto the disk, here and now. After an error, every later call is one too: the kernel
    /// may have dropped what it could not write and call the next fsync a success.
    pub(crate) fn sync_now(&self) -> io::Result<()> {
        let _one = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.has_failed() {
            return Err(io::Error::other("the log could not be forced onto the disk before"));
        }
        let unsynced = self.take();
        let position = unsynced.position;
        // Said before anybody learns of it: see `floor`.
        let result = self.force(&unsynced).and_then(|()| self.floor.say_synced(position));
        match result {
            Ok(()) => {
                self.synced.fetch_max(position, Ordering::AcqRel);
                if self.mode == FsyncMode::Always {
                    self.shippable.send_if_modified(|shippable| {
                        let grows = *shippable < position;
                        *shippable = position.max(*shippable);
                        grows
                    });
                }
            }
            Err(_) => self.failed.store(true, Ordering::Release),
        }
        result
    }

    /// A record is on disk only if its file can be found there too.
    fn force(&self, unsynced: &Unsynced) -> io::Result<()> {
        unsynced.files.iter().try_for_each(|file| file.sync_data())?;
        if unsynced.rotated { self.directory.sync_all() } else { Ok(()) }
    }

    /// What was written since the last call. The current file stays in the queue.
    fn take(&self) -> Unsynced {
        let mut queue = self.lock();
        let last = queue.files.len().saturating_sub(1);
        let mut files: Vec<Arc<File>> = queue.files.drain(..last).collect();
        files.extend(queue.files.last().map(Arc::clone));
        Unsynced { files, rotated: std::mem::take(&mut queue.rotated), position: queue.written }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing panics while it is locked.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is something to sync, or the interval has passed. False: stop.
    fn wait(&self) -> bool {
        let queue = self.lock();
        let idle = |queue: &mut Queue| {
            !queue.stop && (self.mode != FsyncMode::Always || queue.written <= self.synced())
        };
        let waited = self.work.wait_timeout_while(queue, INTERVAL, idle);
        !waited.unwrap_or_else(PoisonError::into_inner).0.stop
    }

    fn has_work(&self) -> bool {
        let queue = self.lock();
        match self.mode {
            FsyncMode::Never => queue.files.len() > 1,
            FsyncMode::Always | FsyncMode::EverySecond => queue.written > self.synced(),
        }
    }
}

impl SyncThread {
    /// Starts the thread. `done` is called after each fsync with what came of it; after a failure the thread ends.
    pub(crate) fn start(
        sync: Arc<Durability>,
        done: impl Fn(&io::Result<()>) + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::clone(&sync);
        let run = move || {
            while shared.wait() {
                if shared.has_work() {
                    let result = shared.sync_now();
                    done(&result);
                    if let Err(error) = result {
                        return tracing::error!(%error, "the log cannot be forced onto the disk");
                    }
                } else if let Err(error) = shared.floor.force_synced() {
                    tracing::error!(%error, "what is known of the log cannot be forced onto the disk");
                }
                if let Err(error) = shared.floor.renew(shared.synced()) {
                    tracing::error!(%error, "the floor of time cannot be written");
                }
            }
        };
        let thread = std::thread::Builder::new().name("geode-sync".to_owned()).spawn(run)?;
        Ok(Self { sync, thread: Some(thread) })
    }
}

impl Drop for SyncThread {
    fn drop(&mut self) {
        self.sync.lock().stop = true;
        self.sync.work.notify_all();
        if let Some(thread) = self.thread.take() {
            // It ends after at most one fsync; if it panicked there is nothing more to do.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use geode_crdt::HybridTime;

    use super::*;

    /// A file that cannot be forced onto a disk.
    fn unsyncable() -> File {
        let null = File::options().write(true).open("/dev/null").unwrap();
        assert!(null.sync_data().is_err());
        null
    }

    fn floor(data: &std::path::Path) -> Floor {
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
    fn the_thread_ends_at_a_failed_fsync_and_says_so() {
        let data = tempfile::tempdir().unwrap();
        let directory = File::open(data.path()).unwrap();
        let failing = Arc::new(unsyncable());
        let sync = Arc::new(Durability::new(FsyncMode::Always, directory, failing, 0, floor(data.path())));
        let (said, heard) = std::sync::mpsc::channel();
        let _thread =
            SyncThread::start(Arc::clone(&sync), move |done| said.send(done.is_ok()).unwrap()).unwrap();
        sync.written(10);
        assert_eq!(heard.iter().collect::<Vec<_>>(), [false], "the sender is gone with the thread");
    }

    #[test]
    fn a_failed_fsync_of_an_idle_region_is_known_to_its_next_start() {
        use crate::{Config, Embedded};
        let data = tempfile::tempdir().unwrap();
        let open = || Embedded::open(Config::new(data.path(), "tested", "eu-west-1", &[])).unwrap().0;
        let actor = |engine: &Embedded| engine.stats().actor;
        let engine = open();
        let first = actor(&engine);
        let sync = Arc::clone(engine.core().log.sync());
        sync.rotated(Arc::new(unsyncable()));
        sync.written(sync.synced() + 1);
        let until = std::time::Instant::now() + Duration::from_secs(60);
        let identity = || std::fs::read_to_string(data.path().join("identity.json")).unwrap();
        while !identity().contains("\"failed\": true") {
            assert!(std::time::Instant::now() < until, "{}", identity());
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
        use crate::{Config, Embedded};
        use geode_crdt::KeyName;
        use geode_store::Engine;
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
        let until = std::time::Instant::now() + Duration::from_secs(60);
        while !std::fs::read_to_string(data.path().join("identity.json"))
            .unwrap()
            .contains("\"failed\": true")
        {
            assert!(std::time::Instant::now() < until);
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
        use crate::{Config, Embedded};
        static SHIFT_US: AtomicU64 = AtomicU64::new(0);
        fn clock() -> HybridTime {
            HybridTime(crate::config::system_time().0 + SHIFT_US.load(Ordering::Relaxed))
        }
        let data = tempfile::tempdir().unwrap();
        let config = Config { clock, ..Config::new(data.path(), "tested", "eu-west-1", &[]) };
        let engine = Embedded::open(config).unwrap().0;
        SHIFT_US.store(60_000_000, Ordering::Relaxed);
        let until = std::time::Instant::now() + Duration::from_secs(60);
        while engine.core().log.sync().floor().reserved() < clock() {
            assert!(std::time::Instant::now() < until, "the first write would have to wait for the disk");
            std::thread::yield_now();
        }
    }
}

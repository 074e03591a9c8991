//! Forces the log onto the disk, on a thread of its own: an fsync takes as long as the disk likes. Where the disk lately took
//! less than handing over to that thread and back costs, the data thread does it itself.

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::rewrite::rewrite;
use super::segments::Segments;
use crate::config::FsyncMode;
use crate::floor::Floor;

/// How often the log is forced onto the disk in the mode of that name, and the floor of time looked at in every mode.
const INTERVAL: Duration = Duration::from_secs(1);

/// Up to which typical time of an fsync the data thread does it itself, as a Redis does with any: while it is forced, no command
/// runs. Two busy threads on two cores hand over within about as much (`cargo xtask bench store`, fsync always).
const QUICK: Duration = Duration::from_micros(300);
/// The typical time is a moving average of about so many.
const TYPICAL_OF: u64 = 8;

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
    /// How long the last fsyncs took, in nanoseconds; zero before the first.
    typical_ns: AtomicU64,
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
    repair: Repair,
    stop: bool,
}

/// How it stands with a log of which an fsync failed.
#[derive(Clone, Debug, Default)]
pub(crate) enum Repair {
    /// The data thread may not know of it yet, and write.
    #[default]
    Unseen,
    /// The data thread keeps its hands off the files, and new ones are written.
    Begun,
    /// They cannot be written yet, for this reason; it is tried again at intervals.
    Delayed(Arc<str>),
    /// Everything is on disk, in new files; the data thread may go on in this one.
    Done(Arc<File>),
    /// What was written cannot be read back.
    Lost(Arc<str>),
}

/// What the sync thread has to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// There is news for the data thread.
    News,
    /// The log could not be forced onto the disk: what was written since the last time may be lost.
    Failed,
    /// The log stands in new files and is on disk after all. It counts only if that can be recorded.
    Rewritten,
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
            typical_ns: AtomicU64::new(0),
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

    /// Up to where the log is in the kernel.
    #[cfg(test)]
    pub(crate) fn written_up_to(&self) -> u64 {
        self.lock().written
    }

    /// Whether an fsync failed. The kernel may have dropped what was written, so nothing can be promised any more.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    pub(crate) fn shippable(&self) -> watch::Receiver<u64> {
        self.shippable.subscribe()
    }

    /// The data thread wrote up to `position`, and asks for it with [`Self::sync_soon`] if answers wait.
    pub(crate) fn written(&self, position: u64) {
        self.lock().written = position;
        if self.mode != FsyncMode::Always {
            self.shippable.send_replace(position);
        }
    }

    /// With [`FsyncMode::Always`] sees to it that what is written comes onto the disk: here and now where that is quick,
    /// otherwise by the thread. Returns whether it was done here.
    ///
    /// # Errors
    /// As [`Self::sync_now`].
    pub(crate) fn sync_soon(&self) -> io::Result<bool> {
        if self.mode != FsyncMode::Always || self.lock().written <= self.synced() || self.has_failed() {
            return Ok(false);
        }
        let typical = Duration::from_nanos(self.typical_ns.load(Ordering::Relaxed));
        let quick = !typical.is_zero() && typical <= QUICK;
        match self.syncing.try_lock() {
            Ok(one) if quick => self.sync_alone(&one).map(|()| true),
            Err(TryLockError::Poisoned(_)) | Err(TryLockError::WouldBlock) | Ok(_) => {
                self.work.notify_one();
                Ok(false)
            }
        }
    }

    /// How it stands since an fsync failed. Whoever calls this is the data thread, and does not touch the log's files until
    /// the repair is done; then it goes on in the file that it is given.
    pub(crate) fn repair(&self) -> Repair {
        let mut queue = self.lock();
        match &queue.repair {
            Repair::Unseen => {
                queue.repair = Repair::Begun;
                self.work.notify_one();
                Repair::Begun
            }
            Repair::Done(_) => {
                self.failed.store(false, Ordering::Release);
                std::mem::take(&mut queue.repair)
            }
            other => other.clone(),
        }
    }

    /// Whether new files were tried and could not be written.
    pub(crate) fn is_repair_delayed(&self) -> bool {
        matches!(self.lock().repair, Repair::Delayed(_))
    }

    /// Writes the log into new files if that is to be done; `record` has the last word.
    fn rewrite(&self, segments: &Segments, record: impl Fn() -> io::Result<()>) {
        let end = {
            let queue = self.lock();
            if !matches!(queue.repair, Repair::Begun | Repair::Delayed(_)) {
                return;
            }
            queue.written
        };
        let rewritten = rewrite(segments, self.synced(), end)
            .and_then(|file| self.floor.say_synced(end).and_then(|()| record()).map(|()| Arc::new(file)));
        let mut queue = self.lock();
        queue.repair = match rewritten {
            Ok(file) => {
                tracing::info!("after a failed fsync the log is on disk in new files");
                (queue.files, queue.rotated) = (vec![Arc::clone(&file)], false);
                self.advance(end);
                Repair::Done(file)
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Repair::Lost(error.to_string().into())
            }
            Err(error) => Repair::Delayed(error.to_string().into()),
        };
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
        self.sync_alone(&self.syncing.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn sync_alone(&self, _one: &MutexGuard<'_, ()>) -> io::Result<()> {
        if self.has_failed() {
            return Err(io::Error::other("the log could not be forced onto the disk before"));
        }
        let unsynced = self.take();
        let (position, began) = (unsynced.position, Instant::now());
        // Said before anybody learns of it: see `floor`.
        let result = self.force(&unsynced).and_then(|()| self.floor.say_synced(position));
        self.note_time(began.elapsed());
        match result {
            Ok(()) => self.advance(position),
            Err(_) => self.failed.store(true, Ordering::Release),
        }
        result
    }

    fn note_time(&self, taken: Duration) {
        let taken = u64::try_from(taken.as_nanos()).unwrap_or(u64::MAX).clamp(1, u64::MAX / TYPICAL_OF);
        // Only whoever holds `syncing` gets here.
        let typical = match self.typical_ns.load(Ordering::Relaxed) {
            0 => taken,
            typical => (typical * (TYPICAL_OF - 1) + taken) / TYPICAL_OF,
        };
        self.typical_ns.store(typical, Ordering::Relaxed);
    }

    /// Everything up to `position` is on disk.
    fn advance(&self, position: u64) {
        self.synced.fetch_max(position, Ordering::AcqRel);
        if self.mode == FsyncMode::Always {
            self.shippable.send_if_modified(|shippable| {
                let grows = *shippable < position;
                *shippable = position.max(*shippable);
                grows
            });
        }
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
            let has_work = match queue.repair {
                Repair::Unseen => {
                    self.mode == FsyncMode::Always && queue.written > self.synced() && !self.has_failed()
                }
                Repair::Begun => true,
                Repair::Delayed(_) | Repair::Done(_) | Repair::Lost(_) => false,
            };
            !queue.stop && !has_work
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
    /// Starts the thread for the log in `segments`. What it does it tells. A file of which an fsync failed is not forced
    /// again: as soon as the data thread keeps its hands off it, a new one takes its place.
    pub(crate) fn start(
        sync: Arc<Durability>,
        segments: Arc<Segments>,
        tell: impl Fn(Event) -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::clone(&sync);
        let run = move || {
            while shared.wait() {
                if shared.has_failed() {
                    shared.rewrite(&segments, || tell(Event::Rewritten));
                    // It only wakes.
                    let _ = tell(Event::News);
                    continue;
                }
                if shared.has_work() {
                    let result = shared.sync_now();
                    let event = if result.is_ok() { Event::News } else { Event::Failed };
                    let told = tell(event);
                    if let Err(error) = result.and(told) {
                        tracing::error!(%error, "the log cannot be forced onto the disk");
                        continue;
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

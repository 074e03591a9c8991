//! The thread that writes the checkpoint: a B-tree waits for the disk, and the data thread must not.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use geode_crdt::{ActorId, Actors};
use redb::WriteTransaction;

use super::file::{self, FileError};
use super::mark::Mark;
use super::shared::SharedFile;
use super::totals::Totals;
use crate::table::Chunk;

/// Jobs that may wait for the thread: each holds a chunk at most.
const JOBS: usize = 8;

/// A part of a checkpoint.
#[derive(Debug)]
pub(crate) enum Task {
    /// Images of changed keys.
    Chunk(Batch),
    /// Every key that was dirty at the mark has come.
    Finish(Box<Mark>, Frames),
}

impl Task {
    /// Actors that were met since the task before.
    pub(crate) fn actors(&self) -> &[ActorId] {
        match self {
            Self::Chunk(batch) => &batch.actors,
            Self::Finish(_, frames) => &frames.actors,
        }
    }
}

/// Where in the log an actor's entries are, and who the actors are, as far as a mark changes it.
#[derive(Debug)]
pub(crate) struct Frames {
    /// The log begins here; nothing before it is known any more.
    pub(crate) from: u64,
    /// Actor, first sequence and position of some frames before the mark.
    pub(crate) new: Vec<(u32, u64, u64)>,
    /// Actors that were met since the last batch: the mark names them, even if no key does.
    pub(crate) actors: Vec<ActorId>,
}

/// What the thread is to do. After a failure it does nothing more of the same checkpoint.
#[derive(Debug)]
pub(crate) enum Job {
    /// A part of the checkpoint of this number, counted from 1.
    Part(u64, Task),
    /// Files of the log that are no longer of use.
    Remove(Vec<PathBuf>),
}

/// A chunk and what it needs to mean the same later.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) chunk: Chunk,
    /// Batches are numbered without gaps.
    pub(crate) number: u64,
    /// Up to where the log must be on disk before these images may be.
    pub(crate) through: u64,
    /// Actors that were met since the last batch.
    pub(crate) actors: Vec<ActorId>,
}

/// How far the thread is.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// All batches up to this number are on disk.
    committed: AtomicU64,
    /// The position of the last mark on disk, plus one; 0 is none.
    marked: AtomicU64,
    /// Bytes of the file, and of the images in it.
    file_bytes: AtomicU64,
    image_bytes: AtomicU64,
    stop: AtomicBool,
    failure: Mutex<Option<String>>,
}

impl Progress {
    pub(crate) fn committed(&self) -> u64 {
        self.committed.load(Ordering::Acquire)
    }

    /// The position of the last mark on disk.
    pub(crate) fn marked(&self) -> Option<u64> {
        self.marked.load(Ordering::Acquire).checked_sub(1)
    }

    pub(crate) fn file_bytes(&self) -> u64 {
        self.file_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn image_bytes(&self) -> u64 {
        self.image_bytes.load(Ordering::Relaxed)
    }

    /// What went wrong since this was last asked. What was not committed is lost.
    pub(crate) fn take_failure(&self) -> Option<String> {
        // Nothing panics while it is locked.
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Forces the log onto the disk up to a position, and wakes the data thread.
pub(crate) trait Surroundings: Send + 'static {
    /// Returns when the log is on disk up to `position`.
    ///
    /// # Errors
    /// It cannot be forced onto the disk.
    fn force_log(&self, position: u64) -> io::Result<()>;
    /// There is news in the progress, or room for jobs.
    fn wake(&self);
}

/// The thread; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Writer {
    jobs: Option<SyncSender<Job>>,
    progress: Arc<Progress>,
    thread: Option<JoinHandle<()>>,
}

/// The thread's own state.
struct Work<S> {
    // Dropped before the file it belongs to.
    open: Option<WriteTransaction>,
    file: Arc<SharedFile>,
    /// Bytes of images that are committed at once.
    commit_bytes: usize,
    /// Of what is committed, and of what is written.
    committed: Totals,
    totals: Totals,
    actors: Actors,
    /// Actors that are in the file.
    stored_actors: usize,
    failed_cycle: u64,
    /// Bytes, the last batch, and how far the log must reach, of what is written and not committed.
    bytes: usize,
    number: u64,
    through: u64,
    progress: Arc<Progress>,
    surroundings: S,
}

impl Writer {
    /// Starts the thread on a file with its totals and actors.
    pub(crate) fn start(
        file: Arc<SharedFile>,
        (totals, actors): (Totals, Actors),
        commit_bytes: usize,
        surroundings: impl Surroundings,
    ) -> io::Result<Self> {
        let (jobs, queue) = sync_channel(JOBS);
        let progress = Arc::new(Progress::default());
        progress.image_bytes.store(totals.bytes, Ordering::Relaxed);
        progress.file_bytes.store(file.bytes(), Ordering::Relaxed);
        let work = Work {
            file,
            commit_bytes,
            committed: totals.clone(),
            totals,
            stored_actors: actors.len(),
            actors,
            open: None,
            failed_cycle: 0,
            bytes: 0,
            number: 0,
            through: 0,
            progress: Arc::clone(&progress),
            surroundings,
        };
        let thread = std::thread::Builder::new()
            .name("geode-checkpoint".to_owned())
            .spawn(move || work.run(&queue))?;
        Ok(Self { jobs: Some(jobs), progress, thread: Some(thread) })
    }

    /// Hands a job over; gives it back if too many wait. The data thread is woken when there is room.
    pub(crate) fn offer(&self, job: Job) -> Result<(), Job> {
        use std::sync::mpsc::TrySendError::{Disconnected, Full};
        match self.jobs.as_ref().map(|jobs| jobs.try_send(job)) {
            Some(Err(Full(job) | Disconnected(job))) => Err(job),
            _ => Ok(()),
        }
    }

    pub(crate) fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.progress.stop.store(true, Ordering::Release);
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // It ends after the job at hand; what is not committed is in the log.
            let _ = thread.join();
        }
    }
}

impl<S: Surroundings> Work<S> {
    fn run(mut self, queue: &Receiver<Job>) {
        while let Ok(job) = queue.recv() {
            if self.progress.stop.load(Ordering::Acquire) {
                return;
            }
            match job {
                Job::Part(cycle, task) => self.part(cycle, task),
                Job::Remove(files) => remove(&files),
            }
            self.surroundings.wake();
        }
    }

    fn part(&mut self, cycle: u64, task: Task) {
        // Even of a part that is passed over: the data thread will not name them again.
        for id in task.actors() {
            self.actors.intern(id);
        }
        if cycle > self.failed_cycle
            && let Err(error) = self.run_task(task)
        {
            self.failed_cycle = cycle;
            self.fail(error);
        }
    }

    fn run_task(&mut self, task: Task) -> Result<(), FileError> {
        match task {
            Task::Chunk(batch) => {
                (self.number, self.through) = (batch.number, batch.through);
                let mut totals = std::mem::take(&mut self.totals);
                let written = self.transaction().and_then(|transaction| {
                    file::write_chunk(&transaction, &mut totals, &self.actors, &batch.chunk)
                        .map(|()| transaction)
                });
                self.totals = totals;
                self.open = Some(written?);
                self.bytes += batch.chunk.bytes();
                if self.bytes >= self.commit_bytes { self.commit(None) } else { Ok(()) }
            }
            Task::Finish(mark, frames) => {
                self.through = self.through.max(mark.position);
                let transaction = self.transaction()?;
                file::write_index(&transaction, frames.from, &frames.new)?;
                self.open = Some(transaction);
                self.commit(Some(&mark))
            }
        }
    }

    fn transaction(&mut self) -> Result<WriteTransaction, FileError> {
        if let Some(open) = self.open.take() {
            return Ok(open);
        }
        self.file.get()?.begin()
    }

    fn commit(&mut self, mark: Option<&Mark>) -> Result<(), FileError> {
        let transaction = self.transaction()?;
        let ids: Vec<ActorId> =
            self.actors.iter().skip(self.stored_actors).map(|(_, id)| id.clone()).collect();
        file::write_actors(&transaction, self.stored_actors as u32, &ids)?;
        file::write_totals(&transaction, &self.totals, self.through)?;
        if let Some(mark) = mark {
            file::write_mark(&transaction, mark)?;
        }
        // Write-ahead: no image may be on disk before the entries that it shows.
        self.surroundings.force_log(self.through).map_err(FileError::Io)?;
        transaction.commit()?;
        self.stored_actors = self.actors.len();
        self.committed = self.totals.clone();
        self.bytes = 0;
        let progress = &self.progress;
        progress.image_bytes.store(self.totals.bytes, Ordering::Relaxed);
        progress.file_bytes.store(self.file.bytes(), Ordering::Relaxed);
        progress.committed.store(self.number, Ordering::Release);
        if let Some(mark) = mark {
            progress.marked.store(mark.position + 1, Ordering::Release);
        }
        Ok(())
    }

    /// Goes back to what is committed.
    fn fail(&mut self, error: FileError) {
        // After an error of the disk the library takes nothing more until it is opened again.
        self.open = None;
        self.file.close();
        self.totals = self.committed.clone();
        self.bytes = 0;
        *self.progress.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
    }
}

/// What cannot be removed now is found, and removed, by the next start. The oldest go first, and none after one that stays: what
/// is left of a log has no gap.
fn remove(files: &[PathBuf]) {
    let removed = files.iter().try_for_each(|file| fs::remove_file(file).map_err(|error| (file, error)));
    if let Err((file, error)) = removed {
        tracing::warn!(
            "{}, which is older than the log is to be, cannot be removed: {error}",
            file.display()
        );
    }
}

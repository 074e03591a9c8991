//! Where a snapshot is collected while it comes: a file beside the log, written by a thread of its own.
//!
//! Nothing of it is seen before all of it is here, checked, and on the disk. What came before a break, or before this
//! process began, is kept, and its source asked to go on.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use geode_replica::wire;
use tokio::sync::OwnedSemaphorePermit;

use super::check::Check;
use super::format::{self, Begin, Blocks, End, Kind};
use crate::inbox::Inbox;

/// The file while it is not whole.
const INCOMING: &str = "incoming";

/// A snapshot that is here as a whole.
#[derive(Clone, Debug)]
pub(crate) struct Staged {
    pub(crate) id: u64,
    pub(crate) begin: Begin,
    pub(crate) end: End,
}

/// What became of what came.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// All of it is here, on the disk.
    Whole(Box<Staged>),
    /// What is here of it is known: its source is to go on behind that.
    Ready(Vec<u8>),
    /// It cannot be used, or not be kept.
    Useless(String),
}

/// What the thread tells.
#[derive(Debug, Default)]
struct Progress {
    keys: AtomicU64,
    of_keys: AtomicU64,
    outcomes: Mutex<VecDeque<Outcome>>,
}

/// What the thread is to do.
#[derive(Debug)]
enum Job {
    /// The named region is to be asked.
    Attempt(Arc<str>),
    /// A block came.
    Block(Vec<u8>, Option<OwnedSemaphorePermit>),
}

/// The thread; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Staging {
    jobs: Option<Sender<Job>>,
    progress: Arc<Progress>,
    thread: Option<JoinHandle<()>>,
}

impl Staging {
    /// Goes on with what is found in `directory`, which is made if it is missing.
    pub(crate) fn start(directory: PathBuf, planet: String, inbox: Arc<Inbox>) -> io::Result<Self> {
        let progress = Arc::new(Progress::default());
        let mut work = Work { directory, planet, check: Check::default(), file: None, progress };
        work.take_up()?;
        let progress = Arc::clone(&work.progress);
        let (jobs, queue) = channel();
        let thread = std::thread::Builder::new()
            .name("geode-snapshot".to_owned())
            .spawn(move || work.run(&queue, &inbox))?;
        Ok(Self { jobs: Some(jobs), progress, thread: Some(thread) })
    }

    /// The body of a block message came. How many wait is bounded by their permits.
    pub(crate) fn block(&self, bytes: Vec<u8>, permit: Option<OwnedSemaphorePermit>) {
        self.job(Job::Block(bytes, permit));
    }

    /// `source` is to be asked, once all that came before is looked at.
    pub(crate) fn attempt(&self, source: &Arc<str>) {
        self.job(Job::Attempt(Arc::clone(source)));
    }

    fn job(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            // The thread ends after this only.
            let _ = jobs.send(job);
        }
    }

    pub(crate) fn take_outcome(&self) -> Option<Outcome> {
        self.progress.lock().pop_front()
    }

    /// Images that are here, and about how many there are.
    pub(crate) fn keys(&self) -> (u64, u64) {
        (self.progress.keys.load(Ordering::Relaxed), self.progress.of_keys.load(Ordering::Relaxed))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // It ends after what is queued.
            let _ = thread.join();
        }
    }
}

impl Progress {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Outcome>> {
        // Nothing panics while it is locked.
        self.outcomes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread's own state.
struct Work {
    directory: PathBuf,
    planet: String,
    check: Check,
    file: Option<File>,
    progress: Arc<Progress>,
}

impl Work {
    /// Reads what is there from before; what is not whole of it is cut.
    fn take_up(&mut self) -> io::Result<()> {
        fs::create_dir_all(&self.directory)?;
        let path = self.directory.join(INCOMING);
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let Ok(mut blocks) = Blocks::new(&file) else { return fs::remove_file(&path) };
        let mut whole = blocks.position;
        while let Some(block) = blocks.next()? {
            if self.check.take(&block, Some(&self.planet)).is_err() {
                break;
            }
            if block.kind == Kind::End {
                // An end without its new name: the disk may not have all of it.
                self.check = Check::default();
                break;
            }
            whole = blocks.position;
        }
        drop(blocks);
        if self.check.begin().is_none() {
            return fs::remove_file(&path);
        }
        file.set_len(whole)?;
        (&file).seek(SeekFrom::End(0))?;
        self.file = Some(file);
        self.tell();
        Ok(())
    }

    fn run(mut self, queue: &Receiver<Job>, inbox: &Inbox) {
        while let Ok(job) = queue.recv() {
            let outcome = match job {
                Job::Attempt(source) => Some(Outcome::Ready(self.resume(&source))),
                Job::Block(bytes, _permit) => match self.block(&bytes) {
                    Ok(None) => None,
                    Ok(Some(staged)) => Some(Outcome::Whole(Box::new(staged))),
                    Err(reason) => {
                        self.forget();
                        Some(Outcome::Useless(reason))
                    }
                },
            };
            self.tell();
            if let Some(outcome) = outcome {
                self.progress.lock().push_back(outcome);
                inbox.wake();
            }
        }
    }

    /// What `source` is to be told of what is here from it.
    fn resume(&self, source: &str) -> Vec<u8> {
        let is_its = self.check.begin().is_some_and(|begin| *begin.source.region == *source);
        if is_its { self.check.resume() } else { Vec::new() }
    }

    fn block(&mut self, bytes: &[u8]) -> Result<Option<Staged>, String> {
        let kept = |error: io::Error| format!("it cannot be kept here: {error}");
        let (_, bytes) = wire::split_block(bytes).ok_or("it is too short")?;
        let block = format::read_block(bytes).map_err(|error| error.to_string())?;
        self.check.take(&block, Some(&self.planet))?;
        if block.kind == Kind::Begin {
            self.file = None;
            let mut file = File::create(self.directory.join(INCOMING)).map_err(kept)?;
            file.write_all(&format::file_head()).map_err(kept)?;
            self.file = Some(file);
        }
        let Some(file) = &mut self.file else { return Err("it has no beginning".to_owned()) };
        file.write_all(bytes).map_err(kept)?;
        let (Some(begin), Some(end)) = (self.check.begin(), self.check.end()) else { return Ok(None) };
        let staged = Staged { id: block.snapshot, begin: begin.clone(), end: end.clone() };
        file.sync_all().map_err(kept)?;
        fs::rename(self.directory.join(INCOMING), path(&self.directory, staged.id)).map_err(kept)?;
        File::open(&self.directory).and_then(|directory| directory.sync_all()).map_err(kept)?;
        (self.check, self.file) = (Check::default(), None);
        Ok(Some(staged))
    }

    fn forget(&mut self) {
        (self.check, self.file) = (Check::default(), None);
        // It is overwritten by the next, and read as far as it is whole by the next start.
        let _ = fs::remove_file(self.directory.join(INCOMING));
    }

    fn tell(&self) {
        let begin = self.check.begin();
        self.progress.keys.store(self.check.keys(), Ordering::Relaxed);
        self.progress.of_keys.store(begin.map_or(0, |begin| begin.keys), Ordering::Relaxed);
    }
}

/// The file of a whole snapshot.
pub(crate) fn path(directory: &Path, id: u64) -> PathBuf {
    directory.join(format!("{id:016x}.snapshot"))
}

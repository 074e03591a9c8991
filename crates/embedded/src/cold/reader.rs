//! The thread that reads cold keys: a disk may take its time, and the data thread must not wait for it.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use geode_crdt::{HybridTime, KeyName};
use geode_store::Ticket;

use crate::checkpoint::{FileError, Look, Progress, SharedFile};
use crate::inbox::Inbox;
use crate::table::{Found, Place};

/// Batches that may wait for the thread; what is asked for meanwhile becomes one batch.
const BATCHES: usize = 2;
/// How long the thread waits before it asks a failing disk again.
const PAUSE: Duration = Duration::from_secs(1);

/// What is to be read.
#[derive(Debug)]
pub(crate) enum Wanted {
    /// One key.
    Key { hash: u64, database: u8, name: Box<[u8]> },
    /// The keys that the frame of this number meets.
    Frame { number: u64, keys: Vec<Place> },
    /// All keys of a segment of the table.
    Segment(usize),
    /// The hashes of these.
    Names(usize),
    /// Up to so many keys whose deadline is below a time, with data or without, behind a place in their order.
    Due { is_inert: bool, before: HybridTime, after: Option<Box<[u8]>>, limit: usize },
}

/// Something to be read, and the ticket of who waits for it, if anybody does.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) ticket: Option<Ticket>,
    pub(crate) wanted: Wanted,
}

/// What was read.
#[derive(Debug, Default)]
pub(crate) struct Read {
    pub(crate) found: Vec<Found>,
    /// Of [`Wanted::Due`]: behind which place there may be more.
    pub(crate) more: Option<Box<[u8]>>,
    /// Of [`Wanted::Names`].
    pub(crate) names: Vec<u64>,
}

/// What was read for a request.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) request: Request,
    pub(crate) read: Read,
    /// The last batch of the checkpoint that was committed when it was read, at least.
    pub(crate) as_of: u64,
}

/// The thread; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Reader {
    batches: Option<SyncSender<Vec<Request>>>,
    answers: Arc<Mutex<Vec<Answer>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// The thread's own state.
struct Work {
    file: Arc<SharedFile>,
    progress: Arc<Progress>,
    inbox: Arc<Inbox>,
    answers: Arc<Mutex<Vec<Answer>>>,
    stop: Arc<AtomicBool>,
}

impl Reader {
    /// Starts the thread on the checkpoint's file.
    pub(crate) fn start(
        file: Arc<SharedFile>,
        progress: Arc<Progress>,
        inbox: Arc<Inbox>,
    ) -> io::Result<Self> {
        let (batches, queue) = sync_channel(BATCHES);
        let (answers, stop) = (Arc::<Mutex<Vec<Answer>>>::default(), Arc::<AtomicBool>::default());
        let work = Work { file, progress, inbox, answers: Arc::clone(&answers), stop: Arc::clone(&stop) };
        let thread =
            std::thread::Builder::new().name("geode-fetch".to_owned()).spawn(move || work.run(&queue))?;
        Ok(Self { batches: Some(batches), answers, stop, thread: Some(thread) })
    }

    /// Hands a batch over; gives it back if too many wait.
    pub(crate) fn offer(&self, batch: Vec<Request>) -> Result<(), Vec<Request>> {
        match self.batches.as_ref().map(|batches| batches.try_send(batch)) {
            Some(Err(TrySendError::Full(batch) | TrySendError::Disconnected(batch))) => Err(batch),
            _ => Ok(()),
        }
    }

    /// What was read since the last call.
    pub(crate) fn answers(&self) -> Vec<Answer> {
        std::mem::take(&mut *lock(&self.answers))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.batches = None;
        if let Some(thread) = self.thread.take() {
            // It ends after the key at hand.
            let _ = thread.join();
        }
    }
}

fn lock(answers: &Mutex<Vec<Answer>>) -> std::sync::MutexGuard<'_, Vec<Answer>> {
    // Nothing panics while it is locked.
    answers.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Work {
    fn run(self, queue: &Receiver<Vec<Request>>) {
        // Those who asked for it wait, so there is no more of it than they are.
        let (mut failing, mut retry_at) = (Vec::new(), Instant::now());
        loop {
            let batch = if failing.is_empty() {
                queue.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                queue.recv_timeout(retry_at.saturating_duration_since(Instant::now()))
            };
            match batch {
                Ok(batch) => self.serve(batch, &mut failing),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            // However much else there is to read.
            if Instant::now() >= retry_at {
                self.serve(std::mem::take(&mut failing), &mut failing);
                retry_at = Instant::now() + PAUSE;
            }
        }
    }

    /// Answers a batch; what cannot be read, alone or with others, is left for another time.
    fn serve(&self, mut batch: Vec<Request>, failing: &mut Vec<Request>) {
        if batch.is_empty() {
            return;
        }
        // What lies together is read together.
        batch.sort_by_key(|request| match &request.wanted {
            Wanted::Key { hash, .. } => *hash,
            Wanted::Frame { .. } | Wanted::Segment(_) | Wanted::Names(_) | Wanted::Due { .. } => u64::MAX,
        });
        match self.read(&batch) {
            Ok(read) => return self.answer(batch, read),
            Err(_) if batch.len() > 1 => {}
            Err(error) => return self.put_off(batch, failing, &error),
        }
        for request in batch {
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            let alone = vec![request];
            match self.read(&alone) {
                Ok(read) => self.answer(alone, read),
                Err(error) => self.put_off(alone, failing, &error),
            }
        }
    }

    fn put_off(&self, mut batch: Vec<Request>, failing: &mut Vec<Request>, error: &FileError) {
        if failing.is_empty() {
            tracing::error!(
                "keys that are not in memory cannot be read from the checkpoint: {error}; commands that need them wait. It \
                 is tried again every second; the disk may be failing"
            );
        }
        failing.append(&mut batch);
    }

    /// For each request what was read, and of what commit it is.
    fn read(&self, batch: &[Request]) -> Result<(u64, Vec<Read>), FileError> {
        let as_of = self.progress.committed();
        let read = self.file.look(|keys| batch.iter().map(|request| one(keys, &request.wanted)).collect())?;
        Ok((as_of, read.unwrap_or_else(|| batch.iter().map(|request| nothing(&request.wanted)).collect())))
    }

    fn answer(&self, batch: Vec<Request>, (as_of, read): (u64, Vec<Read>)) {
        let read = batch.into_iter().zip(read);
        lock(&self.answers).extend(read.map(|(request, read)| Answer { request, read, as_of }));
        self.inbox.wake();
    }
}

fn one(keys: &Look, wanted: &Wanted) -> Result<Read, FileError> {
    let (mut found, mut more, mut names) = (Vec::new(), None, Vec::new());
    let mut take = |hash: u64, key: KeyName<'_>, image: &[u8]| {
        found.push(Found { hash, database: key.database, name: key.name.into(), image: Some(image.into()) });
    };
    match wanted {
        Wanted::Key { hash, database, name } => {
            let image = keys.key(*hash, KeyName { database: *database, name })?;
            found.push(Found { hash: *hash, database: *database, name: name.clone(), image });
        }
        Wanted::Frame { keys: places, .. } => {
            for (hash, database, name) in places {
                let image = keys.key(*hash, KeyName { database: *database, name })?;
                found.push(Found { hash: *hash, database: *database, name: name.clone(), image });
            }
        }
        Wanted::Segment(segment) => keys.segment(*segment, take)?,
        Wanted::Names(segment) => keys.segment(*segment, |hash, _, _| names.push(hash))?,
        Wanted::Due { is_inert, before, after, limit } => {
            more = keys.due(*is_inert, *before, after.as_deref(), *limit, &mut take)?;
        }
    }
    Ok(Read { found, more, names })
}

/// What there is for a request before anything is on disk.
fn nothing(wanted: &Wanted) -> Read {
    let found = match wanted {
        Wanted::Key { hash, database, name } => {
            vec![Found { hash: *hash, database: *database, name: name.clone(), image: None }]
        }
        // Before there is anything on disk nobody waits for keys there.
        Wanted::Frame { .. } | Wanted::Segment(_) | Wanted::Names(_) | Wanted::Due { .. } => Vec::new(),
    };
    Read { found, ..Read::default() }
}

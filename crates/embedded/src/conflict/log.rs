//! The conflicts that were found: the newest in memory, for every thread; all that are kept, on disk.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use geode_crdt::HybridTime;
use tokio::sync::watch;

use super::file::{self, Files};
use super::{Conflict, ConflictQuery, Rule};

/// Conflicts that are kept in memory, and their bytes.
const RING_LENGTH: usize = 10_000;
const RING_BYTES: usize = 4 << 20;
/// What a conflict takes besides its names and values: an estimate.
const CONFLICT_BYTES: usize = 256;
/// Conflicts that are encoded at once while the data thread may have to wait.
const BATCH: usize = 256;

/// The log. The data thread adds, others ask, a thread of its own writes.
#[derive(Debug)]
pub(crate) struct ConflictLog {
    folder: PathBuf,
    state: Mutex<State>,
    /// There is something to write, or the end has come.
    written: Condvar,
    /// The time of the newest.
    newest: watch::Sender<HybridTime>,
}

#[derive(Debug, Default)]
struct State {
    ring: VecDeque<Conflict>,
    bytes: usize,
    totals: BTreeMap<Rule, u64>,
    last: HybridTime,
    /// How many at the end of the ring are not with the thread yet.
    unwritten: usize,
    closed: bool,
}

/// The thread that writes. Dropped, it writes what is left and ends.
#[derive(Debug)]
pub(crate) struct ConflictWriter {
    log: Arc<ConflictLog>,
    thread: Option<JoinHandle<()>>,
}

impl ConflictLog {
    /// A log that goes on after what stands in `folder`.
    ///
    /// # Errors
    /// No thread could be started.
    pub(crate) fn open(folder: PathBuf) -> io::Result<(Arc<Self>, ConflictWriter)> {
        let last = file::newest(&folder).unwrap_or_else(|error| {
            tracing::warn!(%error, folder = %folder.display(), "the conflict log cannot be read; it begins anew");
            HybridTime(0)
        });
        let state = Mutex::new(State { last, ..State::default() });
        let log = Arc::new(Self { folder, state, written: Condvar::new(), newest: watch::Sender::new(last) });
        let writing = Arc::clone(&log);
        let thread =
            std::thread::Builder::new().name("conflicts".to_owned()).spawn(move || writing.write())?;
        Ok((Arc::clone(&log), ConflictWriter { log, thread: Some(thread) }))
    }

    /// Adds a conflict that was found at about `now`.
    pub(super) fn push(&self, mut conflict: Conflict, now: HybridTime) {
        let mut state = self.lock();
        state.last = now.max(HybridTime(state.last.0 + 1));
        conflict.time = state.last;
        *state.totals.entry(conflict.rule).or_default() += 1;
        state.bytes += size_of(&conflict);
        state.ring.push_back(conflict);
        state.unwritten += 1;
        while state.ring.len() > RING_LENGTH || state.bytes > RING_BYTES {
            let Some(oldest) = state.ring.pop_front() else { break };
            state.bytes -= size_of(&oldest);
        }
        // More than the disk could take in time; the counts still know of them.
        state.unwritten = state.unwritten.min(state.ring.len());
        let (last, first_unwritten) = (state.last, state.unwritten == 1);
        drop(state);
        if first_unwritten {
            self.written.notify_one();
        }
        self.newest.send_replace(last);
    }

    /// How many there were since the process started, by rule.
    pub(crate) fn totals(&self) -> Vec<(Rule, u64)> {
        let state = self.lock();
        Rule::ALL.into_iter().map(|rule| (rule, state.totals.get(&rule).copied().unwrap_or(0))).collect()
    }

    /// What is asked for, newest first, as far as it takes no more bytes than memory keeps. Reads files if that lies further back than memory.
    ///
    /// # Errors
    /// A file could not be read.
    pub(crate) fn search(&self, query: &ConflictQuery) -> io::Result<Vec<Conflict>> {
        let state = self.lock();
        let wanted = state.ring.iter().rev().filter(|conflict| query.wants(conflict));
        let mut found: Vec<Conflict> = wanted.take(query.limit).cloned().collect();
        let oldest = state.ring.front().map_or(HybridTime(u64::MAX), |conflict| conflict.time);
        drop(state);
        if found.len() < query.limit && query.after < oldest {
            let rest = ConflictQuery { limit: query.limit - found.len(), ..query.clone() };
            found.append(&mut file::search(&self.folder, &rest, oldest)?);
        }
        // Files may hold longer names than memory would keep so many of.
        let mut bytes = 0;
        let fits = |conflict: &Conflict| {
            bytes += size_of(conflict);
            bytes <= RING_BYTES
        };
        Ok(found.into_iter().take_while(fits).collect())
    }

    /// Tells the time of the newest conflict, and of each that comes.
    pub(crate) fn watch(&self) -> watch::Receiver<HybridTime> {
        self.newest.subscribe()
    }

    /// The thread's life.
    fn write(&self) {
        let mut files = Files::new(self.folder.clone());
        let mut failing = false;
        while let Some((first, records)) = self.next_batch() {
            let result = files.append(first, &records);
            if let (Err(error), false) = (&result, failing) {
                warn(&self.folder, error);
            }
            failing = result.is_err();
        }
    }

    /// Waits for conflicts; `None` when all are written and no more come.
    fn next_batch(&self) -> Option<(HybridTime, Vec<u8>)> {
        let state = self.lock();
        let waited = self.written.wait_while(state, |state| state.unwritten == 0 && !state.closed);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        let from = state.ring.len() - state.unwritten;
        let count = state.unwritten.min(BATCH);
        let first = state.ring.get(from)?.time;
        let mut records = Vec::new();
        state.ring.range(from..from + count).for_each(|conflict| file::put(&mut records, conflict));
        state.unwritten -= count;
        Some((first, records))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is locked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn warn(folder: &Path, error: &io::Error) {
    tracing::warn!(%error, folder = %folder.display(),
        "conflicts cannot be written; until they can, only the newest are known, and not after a restart");
}

fn size_of(conflict: &Conflict) -> usize {
    let values = conflict.winner.value.len() + conflict.loser.value.len();
    CONFLICT_BYTES + conflict.key.len() + conflict.element.len() + values
}

impl Drop for ConflictWriter {
    fn drop(&mut self) {
        self.log.lock().closed = true;
        self.log.written.notify_one();
        if let Some(thread) = self.thread.take() {
            // It does not panic; and if it did, nobody here could do anything about it.
            let _ = thread.join();
        }
    }
}

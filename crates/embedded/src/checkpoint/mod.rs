//! The checkpoint: all keys on disk as they were at some position of the log or later, so that a start replays only
//! what stands behind it.
//!
//! It is *fuzzy*: while the keys that had changed by a position, the mark, are handed to the thread that writes them,
//! commands go on, and some keys are written in a newer state. Replaying the log from the mark over such keys gives the
//! same rows, because rows have names: what is put or removed again changes nothing (ARIES calls this redo idempotent
//! by page; here it is by row). Two rules make that whole: no image is on disk before the entries that it shows are
//! (write-ahead), and a start replays at least as far as any image goes. Keys that change while a checkpoint is made
//! stay dirty for the next one.
//!
//! Source: Mohan et al., "ARIES", TODS 1992, for fuzzy checkpoints and redo.

mod file;
#[cfg(test)]
mod golden;
mod mark;
mod record;
mod shared;
mod totals;
mod writer;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use geode_crdt::{ActorId, Actors, VersionVector};
use geode_store::View;

pub(crate) use file::{CheckpointFile, FORMAT, FileError, Look, Owner, Stored};
pub(crate) use mark::Mark;
pub(crate) use shared::SharedFile;
use totals::Totals;
pub(crate) use writer::Progress;
use writer::{Batch, Frames, Job, Task, Writer};

use crate::config::Config;
use crate::delivery::Core;
use crate::engine;
use crate::identity::IdentityFile;
use crate::inbox::Inbox;
use crate::log::Durability;
use crate::table::{Captured, Chunk, Removed, Table};

/// The name of the file in the data directory.
pub(crate) const FILE: &str = "checkpoint.redb";
/// Bytes of images that are made at once: a third of a millisecond of the data thread.
const CHUNK_BYTES: usize = 256 << 10;
/// Entries of the table that are looked at at once for changed ones.
const CHUNK_PATIENCE: usize = 32 << 10;
/// After a failure the next attempt waits, longer each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The longest while memory is wanted.
const PRESSED_PAUSE: Duration = Duration::from_secs(4);

/// Bytes of images that are committed at once: what a commit costs besides is small against writing them.
const COMMIT_BYTES: u64 = 64 << 20;

/// A checkpoint as it was found at a start.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) file: Arc<SharedFile>,
    pub(crate) totals: Totals,
    pub(crate) actors: Actors,
    /// The position of its mark.
    pub(crate) position: u64,
}

/// What the writing thread needs of the engine.
pub(crate) struct Surroundings {
    pub(crate) sync: Arc<Durability>,
    pub(crate) identity: Arc<IdentityFile>,
    pub(crate) inbox: Arc<Inbox>,
}

/// The data thread's end of the checkpoint.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    writer: Writer,
    file: Arc<SharedFile>,
    /// Memory is wanted that changed keys take.
    is_pressed: bool,
    stage: Stage,
    /// Number of the last checkpoint that was begun, and of the last batch.
    cycle: u64,
    batch: u64,
    /// A job for which there was no room.
    pending: Option<Job>,
    /// Actors that the writer knows.
    known_actors: usize,
    /// Position of the last mark on disk.
    marked: u64,
    completed: Option<Instant>,
    /// Keys that were handed over as gone, by batch.
    removed: VecDeque<(u64, Removed)>,
    failures: u64,
    /// Why the last attempt failed, until one succeeds.
    failing: Option<String>,
    pause: Duration,
    retry_at: Option<Instant>,
    /// Log behind the mark that is always worth less than a checkpoint.
    least_tail: u64,
    /// Bytes of log that are kept.
    retention: u64,
    /// Number of the last checkpoint that was completed, and of one after which another is wanted whatever the tail's length.
    finished: u64,
    demanded: Option<u64>,
    /// Every mark is this one, if there is one.
    held_mark: Option<Box<Mark>>,
}

#[derive(Debug)]
enum Stage {
    Idle,
    /// Changed keys are handed over.
    Walking(Box<Mark>, Captured),
    /// All were; the mark with this position is on its way to the disk.
    Finishing(u64),
}

impl writer::Surroundings for Surroundings {
    fn force_log(&self, position: u64) -> io::Result<()> {
        if self.sync.synced() >= position {
            return Ok(());
        }
        self.sync.sync_now().inspect_err(|_| engine::distrust(&self.identity, &self.sync))
    }

    fn wake(&self) {
        self.inbox.wake();
    }
}

impl Checkpoint {
    /// Goes on from what was found in the data directory, if anything was.
    pub(crate) fn start(
        owner: Owner,
        found: Option<Found>,
        surroundings: Surroundings,
        config: &Config,
    ) -> io::Result<Self> {
        let (marked, known_actors) =
            found.as_ref().map_or((0, 0), |found| (found.position, found.actors.len()));
        let (file, known) = match found {
            Some(found) => (found.file, (found.totals, found.actors)),
            None => {
                let path = config.data.join(FILE);
                (Arc::new(SharedFile::new(path, owner, config.disk_cache(), None)), Default::default())
            }
        };
        // What waits for a commit takes memory.
        let commit_bytes = config.memory.map_or(COMMIT_BYTES, |memory| COMMIT_BYTES.min(memory / 8));
        Ok(Self {
            writer: Writer::start(Arc::clone(&file), known, commit_bytes as usize, surroundings)?,
            file,
            is_pressed: false,
            stage: Stage::Idle,
            cycle: 0,
            batch: 0,
            pending: None,
            known_actors,
            marked,
            completed: None,
            removed: VecDeque::new(),
            failures: 0,
            failing: None,
            pause: FIRST_PAUSE,
            retry_at: None,
            least_tail: config.checkpoint_bytes,
            retention: config.retention,
            finished: 0,
            demanded: None,
            held_mark: None,
        })
    }

    /// Takes note of what the writing thread did, and says whether [`Self::step`] is to follow, after a flush. What is decided
    /// here is not decided again there: between the two, the log says all that the rows show.
    pub(crate) fn is_to_step(&mut self, core: &mut Core, now: Instant) -> bool {
        self.settle(&mut core.rows.table, now);
        if self.offer_pending() {
            self.trim(core);
        }
        let has_room = self.pending.is_none();
        match self.stage {
            Stage::Idle => has_room && self.is_due(core, now),
            Stage::Walking(..) => has_room,
            Stage::Finishing(_) => false,
        }
    }

    /// One bounded step. Everything that was applied is in the kernel: otherwise a mark would lie about where it stands, and
    /// an image outlive entries that a kill takes. Returns whether there is more to do at once.
    pub(crate) fn step(&mut self, core: &mut Core, held: &VersionVector) -> bool {
        debug_assert!(core.is_flushed());
        match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Idle => {
                self.cycle += 1;
                let mark = self.held_mark.clone().unwrap_or_else(|| Box::new(mark(core, held)));
                self.stage = Stage::Walking(mark, Captured::default());
                true
            }
            Stage::Walking(mark, at) => {
                self.walk(core, mark, at);
                self.pending.is_none()
            }
            Stage::Finishing(position) => {
                self.stage = Stage::Finishing(position);
                false
            }
        }
    }

    /// The file, for those who read keys from it.
    pub(crate) fn file(&self) -> &Arc<SharedFile> {
        &self.file
    }

    /// How far the writing thread is.
    pub(crate) fn progress(&self) -> &Arc<Progress> {
        self.writer.progress()
    }

    /// Whether memory is wanted that changed keys take: then a checkpoint is due.
    pub(crate) fn press(&mut self, is_pressed: bool) {
        self.is_pressed = is_pressed;
    }

    /// Until [`Self::release_mark`] every mark stands here: what follows in the log stands for more than it says, and a
    /// replay has to begin before it. Changed keys go to the disk all the same. Everything applied is in the kernel.
    pub(crate) fn hold_mark(&mut self, core: &Core, held: &VersionVector) {
        self.held_mark = Some(Box::new(mark(core, held)));
    }

    /// Whether [`Self::hold_mark`] is in force.
    pub(crate) fn holds_mark(&self) -> bool {
        self.held_mark.is_some()
    }

    pub(crate) fn release_mark(&mut self) {
        self.held_mark = None;
    }

    /// A checkpoint that begins from now on is wanted soon. [`Self::has_finished_since`] tells, by the number returned,
    /// when it is there.
    pub(crate) fn demand(&mut self) -> u64 {
        self.demanded = Some(self.cycle);
        self.cycle
    }

    /// Whether a checkpoint is on disk that began after the demand of this number.
    pub(crate) fn has_finished_since(&self, demand: u64) -> bool {
        self.finished > demand
    }

    /// Position of the last mark on disk: what stands before it is not needed to start.
    pub(crate) fn marked(&self) -> u64 {
        self.marked
    }

    /// When the last checkpoint was completed, if this process completed one.
    pub(crate) fn completed(&self) -> Option<Instant> {
        self.completed
    }

    /// How many checkpoints could not be written.
    pub(crate) fn failures(&self) -> u64 {
        self.failures
    }

    /// Why the last attempt failed, if none has succeeded since.
    pub(crate) fn failing(&self) -> Option<&str> {
        self.failing.as_deref()
    }

    /// Bytes of the file.
    pub(crate) fn file_bytes(&self) -> u64 {
        self.writer.progress().file_bytes()
    }

    /// Writing a key to the B-tree costs several times what a SET does. So the log may grow by as much as there is data
    /// before all that changed is written again, as Redis does by `auto-aof-rewrite-percentage 100`.
    fn is_due(&self, core: &Core, now: Instant) -> bool {
        let tail = core.log.written() - self.marked.min(core.log.written());
        let data = core.rows.table.memory_bytes().max(self.writer.progress().image_bytes());
        let long = tail > self.least_tail.max(data.min(self.least_tail.saturating_mul(64)));
        // Or the log is longer than it may be, and only for want of a mark.
        let wanted = || {
            core.log.trimmed_to(self.marked, self.retention).is_none()
                && core.log.trimmed_to(core.log.written(), self.retention).is_some()
        };
        let demanded = self.demanded.is_some_and(|cycle| self.finished <= cycle);
        let due = match self.held_mark {
            Some(_) => self.is_pressed,
            None => long || demanded || self.is_pressed || core.log.bytes() > self.retention && wanted(),
        };
        due && self.retry_at.is_none_or(|at| now >= at)
    }

    /// Removes the oldest segments of a log that is longer than it may be, as far as no start needs them.
    fn trim(&mut self, core: &mut Core) {
        if core.log.bytes() <= self.retention {
            return;
        }
        let Some(base) = core.log.trimmed_to(self.marked, self.retention) else { return };
        let files = core.log.trim(base);
        // Of files that are left behind the next start is told by their names.
        self.pending = Some(Job::Remove(files));
        self.offer_pending();
    }

    /// Takes note of what the writing thread did.
    fn settle(&mut self, table: &mut Table, now: Instant) {
        let progress = self.writer.progress();
        if let Some(reason) = progress.take_failure() {
            tracing::warn!(
                "the checkpoint could not be written ({reason}); it is tried again in {:?}. Until then a restart takes \
                 longer; nothing is lost",
                self.pause
            );
            self.failures += 1;
            self.failing = Some(reason);
            self.stage = Stage::Idle;
            if let Some(Job::Part(_, task)) = self.pending.take_if(|job| matches!(job, Job::Part(..))) {
                self.known_actors -= task.actors().len();
            }
            self.removed.clear();
            table.mark_all_dirty();
            self.retry_at = Some(now + self.pause);
            self.pause = (self.pause * 2).min(if self.is_pressed { PRESSED_PAUSE } else { LONGEST_PAUSE });
            return;
        }
        let committed = progress.committed();
        while let Some((_, removed)) = self.removed.pop_front_if(|(batch, _)| *batch <= committed) {
            table.forget(removed, committed);
        }
        if let Stage::Finishing(position) = self.stage
            && progress.marked() == Some(position)
        {
            self.stage = Stage::Idle;
            (self.marked, self.finished) = (position, self.cycle);
            self.completed = Some(now);
            (self.pause, self.retry_at, self.failing) = (FIRST_PAUSE, None, None);
        }
    }

    /// Whether no job is left for which there was no room.
    fn offer_pending(&mut self) -> bool {
        if let Some(job) = self.pending.take() {
            self.pending = self.writer.offer(job).err();
        }
        self.pending.is_none()
    }

    fn walk(&mut self, core: &mut Core, mark: Box<Mark>, mut at: Captured) {
        let number = self.batch + 1;
        let (mut chunk, removed) = (Chunk::default(), &mut self.removed);
        let table = &mut core.rows.table;
        table.capture(&mut at, (&mut chunk, number), CHUNK_BYTES, CHUNK_PATIENCE, |key| {
            removed.push_back((number, key))
        });
        if !chunk.is_empty() {
            self.batch = number;
            let actors = new_actors(table, &mut self.known_actors);
            let batch = Batch { chunk, number, through: core.log.written(), actors };
            self.pending = Some(Job::Part(self.cycle, Task::Chunk(batch)));
            self.offer_pending();
        }
        // The mark comes after the last chunk.
        if !at.is_done() || self.pending.is_some() {
            self.stage = Stage::Walking(mark, at);
        } else {
            let frames = core.log.index().since(self.marked);
            let new = frames.into_iter().filter(|(_, _, position)| *position < mark.position).collect();
            let from = core.log.segments().bases().first().copied().unwrap_or(0);
            self.stage = Stage::Finishing(mark.position);
            let actors = new_actors(&core.rows.table, &mut self.known_actors);
            self.pending = Some(Job::Part(self.cycle, Task::Finish(mark, Frames { from, new, actors })));
            self.offer_pending();
        }
    }
}

/// The actors that the writer does not know yet, of which `known` are.
fn new_actors(table: &Table, known: &mut usize) -> Vec<ActorId> {
    let actors: Vec<_> = table.actors().iter().skip(*known).map(|(_, id)| id.clone()).collect();
    *known += actors.len();
    actors
}

/// What a replay from here on needs to know. Everything applied is in the log.
fn mark(core: &Core, held: &VersionVector) -> Mark {
    let rows = &core.rows;
    Mark {
        position: core.log.written(),
        own: rows.own.0,
        clock: rows.clock.last().0,
        held: held.iter().map(|(actor, sequence)| (actor.0, sequence)).collect(),
        changed: rows.changed.iter().map(|actor| actor.0).collect(),
        times: rows.times.iter().map(|(region, time)| (region.to_string(), time.0)).collect(),
        depends: rows.table.depends().map(|(owner, by, sequence)| (owner.0, by.0, sequence)).collect(),
        passed_over: core.log.index().passed_over().map(|(actor, upto)| (actor.0, upto)).collect(),
        unfinished: rows.unfinished,
    }
}

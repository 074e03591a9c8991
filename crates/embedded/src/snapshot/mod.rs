//! Snapshots: a region that is past the other regions' retention, or new, gets all their rows, and joins them into its own.
//!
//! The source reads its rows and its log while it goes on ([`source`]); what it sends, a sequence of checked blocks
//! ([`format`]), is collected in a file beside the log ([`staging`]), however often it breaks. Nothing is seen of it until
//! it is whole and its source vouches for it (`geode_replica::snapshot`). Then a record in the log says that it is joined
//! *here*, and the rows are joined in bounded steps ([`join`]); meanwhile nothing is delivered, and every checkpoint's mark
//! stands before that record, so that joined keys may leave the memory. So a crash at any point leaves either no record, and nothing was joined, or one that the next
//! start joins again over the very rows that were held there; the file is as good as a part of the log until a checkpoint
//! holds what it said and the entries in it are delivered too. They go the way of all entries: into the log.
//!
//! It is the shape of PostgreSQL's `pg_basebackup -X stream`: a copy of data that changes, with the log from its beginning
//! to its end, of which nothing is usable before that end.

pub(crate) mod backup;
pub(crate) mod check;
pub(crate) mod format;
pub(crate) mod join;
pub(crate) mod source;
pub(crate) mod staging;
#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use geode_crdt::FrameError;
use geode_replica::{Joinable, Message, Replica, wire};
use geode_store::View;

use self::join::{Joining, Manner, Tail};
pub(crate) use self::source::{Source, Surroundings};
use self::staging::{Outcome, Staged, Staging};
use crate::delivery::Core;
use crate::engine::Embedded;

/// The directory in the data directory.
pub(crate) const DIRECTORY: &str = "snapshot";
/// While so many bytes of entries from a snapshot cannot be delivered, no more are read.
const WAITING_BYTES: usize = 1 << 20;

/// How far a region is that gets a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinProgress {
    /// The region that it comes from.
    pub source: String,
    /// Keys that came; while they are joined, those that are.
    pub keys: u64,
    /// About how many there are.
    pub of_keys: u64,
    /// Whether all of it is here: it is joined, and the region is not to be read.
    pub is_here: bool,
}

/// The data thread's end of the snapshot that comes in.
#[derive(Debug)]
pub(crate) struct Snapshots {
    directory: PathBuf,
    staging: Option<Staging>,
    /// Whom it comes from.
    source: Option<Arc<str>>,
    staged: Option<Box<Staged>>,
    joining: Option<Joining>,
    /// What was joined and is still needed: its number, and its entries that are not delivered.
    joined: Option<u64>,
    tail: Option<Tail>,
    /// The demand for a checkpoint after which it is not needed.
    demand: Option<u64>,
    /// Tells the blocks that are waited for from others.
    attempt: u64,
    /// Tenths of the keys that were told to the operator.
    told: u64,
}

impl Snapshots {
    /// Goes on where the last process of this region ended: `joined` names a snapshot whose rows are held.
    pub(crate) fn open(
        data: &Path,
        joined: Option<u64>,
        replica: &mut Replica,
        core: &mut Core,
    ) -> io::Result<Self> {
        let directory = data.join(DIRECTORY);
        let mut tail = None;
        if let Some(id) = joined {
            let path = staging::path(&directory, id);
            let (_, end) = join::read_ends(&path)?;
            replica.await_tail(format::intern(&end.end, core.rows.table.actors_mut()));
            tail = replica.awaits_tail().then(|| Tail::new(&path)).transpose()?;
        }
        let this = Self {
            demand: None,
            directory,
            staging: None,
            source: None,
            staged: None,
            joining: None,
            joined,
            tail,
            attempt: 0,
            told: 0,
        };
        this.clean(&[joined, backup::marked(&this.directory)?])?;
        Ok(this)
    }

    /// Removes whole snapshots that nothing needs.
    fn clean(&self, needed: &[Option<u64>]) -> io::Result<()> {
        let needed = needed.iter().flatten().map(|id| staging::path(&self.directory, *id));
        let needed: Vec<PathBuf> = needed.collect();
        let files = match fs::read_dir(&self.directory) {
            Ok(files) => files,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        for file in files {
            let path = file?.path();
            let is_whole = path.extension().is_some_and(|extension| extension == "snapshot");
            if is_whole && !needed.contains(&path) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    pub(crate) fn progress(&self) -> Option<JoinProgress> {
        let ((keys, of_keys), is_here) = match (&self.joining, &self.staging) {
            (Some(joining), _) => (joining.keys(), true),
            (None, Some(staging)) => (staging.keys(), self.staged.is_some()),
            (None, None) => return None,
        };
        let source = self.source.as_ref()?.to_string();
        Some(JoinProgress { source, keys, of_keys, is_here })
    }
}

impl Embedded {
    /// A source is to send a snapshot, or to go on with the one that it was sending.
    pub(crate) fn fetch_snapshot(&mut self, peer: &Arc<str>) {
        match self.start_staging() {
            Ok(staging) => staging.attempt(peer),
            Err(error) => {
                tracing::error!("a snapshot cannot be kept here: {error}");
                return self.replica.snapshot_failed();
            }
        }
        self.snapshots.attempt += 1;
        self.snapshots.source = Some(Arc::clone(peer));
    }

    fn start_staging(&mut self) -> io::Result<&Staging> {
        let snapshots = &mut self.snapshots;
        if snapshots.staging.is_none() {
            let (directory, inbox) = (snapshots.directory.clone(), Arc::clone(self.shared.inbox()));
            snapshots.staging = Some(Staging::start(directory, self.config.planet.clone(), inbox)?);
        }
        snapshots.staging.as_ref().ok_or_else(|| io::Error::other("the thread ended"))
    }

    /// Has a peer sent the rows of this region.
    pub(crate) fn send_snapshot(&mut self, peer: &Arc<str>, attempt: u64, resume: Vec<u8>) {
        let Some(outbox) = self.outbox(peer) else { return };
        let surroundings = self.snapshot_surroundings();
        tracing::info!(
            "{peer} is sent {} of all rows",
            if resume.is_empty() { "a copy" } else { "the rest" }
        );
        let source = |runtime| Source::new(surroundings, runtime, resume);
        if !self.shared.send_snapshot(peer, &outbox, attempt, source) {
            outbox.send(Message::Unable { reason: "the bulk connection is not there yet".to_owned() });
        }
    }

    pub(crate) fn snapshot_surroundings(&self) -> Surroundings {
        Surroundings {
            inbox: Arc::clone(self.shared.inbox()),
            segments: Arc::clone(self.core.log.segments()),
            shippable: self.core.log.sync().shippable(),
        }
    }

    /// A block came from a peer.
    pub(crate) fn snapshot_block(
        &mut self,
        peer: &Arc<str>,
        bytes: Vec<u8>,
        permit: Option<tokio::sync::OwnedSemaphorePermit>,
    ) {
        let Some((attempt, _)) = wire::split_block(&bytes) else { return };
        if attempt != self.snapshots.attempt || !self.replica.snapshot_goes_on(peer) {
            return tracing::debug!(%peer, "sends a block of a snapshot that nobody asked for");
        }
        if let Some(staging) = &self.snapshots.staging {
            staging.block(bytes, permit);
        }
        self.tell_progress();
    }

    fn tell_progress(&mut self) {
        let Some(progress) = self.snapshots.progress().filter(|progress| progress.of_keys > 0) else {
            return;
        };
        let tenths = (progress.keys * 10 / progress.of_keys).min(10);
        if tenths > self.snapshots.told {
            self.snapshots.told = tenths;
            let JoinProgress { source, of_keys, .. } = progress;
            tracing::info!("joining: {} % of {of_keys} keys from {source}", tenths * 10);
        }
    }

    /// One bounded step of whatever is under way. Returns whether there is more to do at once.
    pub(crate) fn keep_snapshot(&mut self) -> bool {
        self.shared.show_whole(self.replica.is_whole());
        if self.is_stopped() {
            return false;
        }
        if let Some(outcome) = self.snapshots.staging.as_ref().and_then(Staging::take_outcome) {
            self.staged(outcome);
            self.act();
        }
        if self.snapshots.joining.is_some() {
            return self.step_join();
        }
        if self.is_in_trouble() {
            return false;
        }
        let more = self.step_tail();
        self.forget_joined();
        more
    }

    fn staged(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Whole(staged) => {
                let actors = self.core.rows.table.actors_mut();
                let snapshot = Joinable {
                    source: actors.intern(&staged.begin.source),
                    start: format::intern(&staged.begin.start, actors),
                    end: format::intern(&staged.end.end, actors),
                    clock: staged.end.clock,
                };
                tracing::info!("all {} keys from {} are here", staged.end.keys, staged.begin.source.region);
                self.snapshots.staged = Some(staged);
                self.replica.snapshot_staged(snapshot, self.core.rows.table.actors());
            }
            Outcome::Ready(resume) => {
                let outbox = self.snapshots.source.as_ref().and_then(|source| self.outbox(source));
                if let Some(outbox) = outbox {
                    outbox.send(Message::Ask { attempt: self.snapshots.attempt, resume });
                }
            }
            Outcome::Useless(reason) => {
                let source = self.snapshots.source.take();
                let source = source.as_deref().unwrap_or("a region");
                tracing::error!("a snapshot from {source} is of no use: {reason}; nothing of it was taken");
                self.replica.snapshot_failed();
            }
        }
    }

    /// The snapshot that is here is not to be joined.
    pub(crate) fn discard_snapshot(&mut self, reason: &str) {
        tracing::warn!("the snapshot that came is not joined: {reason}; another is fetched if it is needed");
        if let Some(staged) = self.snapshots.staged.take() {
            remove(&staging::path(&self.snapshots.directory, staged.id));
        }
        (self.snapshots.source, self.snapshots.told) = (None, 0);
    }

    /// Says in the log that the snapshot is joined here, and begins to do it.
    pub(crate) fn join_snapshot(&mut self) {
        let manner = if self.replica.is_reseeding() { Manner::Reseed } else { Manner::Join };
        if self.is_in_trouble() {
            // It is asked again when the log takes something.
            return;
        }
        let Some(staged) = self.snapshots.staged.take() else { return };
        if let Err(error) = self.begin_join(&staged, manner) {
            tracing::error!("the snapshot cannot be joined: {error}");
            self.replica.snapshot_failed();
        }
    }

    fn begin_join(&mut self, staged: &Staged, manner: Manner) -> io::Result<()> {
        let path = staging::path(&self.snapshots.directory, staged.id);
        let joining = Joining::new(&path, &self.core.rows, self.replica.held(), manner)?;
        let held = self.replica.held();
        let actors = self.core.rows.table.actors_mut();
        let start = format::intern(&staged.begin.start, actors);
        let gaps: Vec<_> = start.iter().filter(|(actor, upto)| *upto > held.get(*actor)).collect();
        self.core.flush().map_err(io::Error::other)?;
        self.on_disk.hold_mark(&self.core, self.replica.held());
        self.core.log.append_joined(staged.id, manner.code(), &gaps)?;
        // What cannot be written now is kept, and is before all that follows.
        let _ = self.core.log.flush();
        self.replica.begin_join();
        self.snapshots.joining = Some(joining);
        (self.snapshots.joined, self.snapshots.demand) = (Some(staged.id), None);
        Ok(())
    }

    fn step_join(&mut self) -> bool {
        let Some(joining) = &mut self.snapshots.joining else { return false };
        let done = match joining.step(&mut self.core.rows) {
            Ok(None) => return true,
            Ok(Some(done)) => done,
            Err(error) => {
                tracing::error!(
                    "the snapshot in {} cannot be read any more ({error}): this region cannot serve. To rebuild it from its \
                     peers, stop it, move its data directory away and start again",
                    self.snapshots.directory.display()
                );
                self.snapshots.joining = None;
                return false;
            }
        };
        self.snapshots.joining = None;
        self.on_disk.release_mark();
        let id = self.snapshots.joined.unwrap_or(0);
        self.replica.joined(&done.start, &done.end, &done.begin.times, &mut self.core);
        self.remember();
        self.snapshots.tail = Tail::new(&staging::path(&self.snapshots.directory, id)).ok();
        self.core.rows.unfinished = self.replica.awaits_tail().then_some(id);
        self.snapshots.told = 0;
        tracing::info!("joined {} keys from {}", done.begin.keys, done.begin.source.region);
        // What came over the links meanwhile was dropped, or is delivered now.
        self.act();
        true
    }

    /// Whether rows of a snapshot are being joined.
    const fn is_applying(&self) -> bool {
        self.snapshots.joining.is_some()
    }

    /// Delivers what came with the snapshot behind its start.
    fn step_tail(&mut self) -> bool {
        if self.replica.supplied_bytes() > WAITING_BYTES || !self.replica.awaits_tail() {
            return false;
        }
        let Some(next) = self.snapshots.tail.as_mut().map(Tail::next) else { return false };
        match next {
            Ok(Some(content)) => {
                let delivered = self.supply(&content);
                if let Err(error) = delivered {
                    tracing::error!("entries of the snapshot cannot be read: {error}");
                }
                self.act();
                true
            }
            // What cannot be delivered yet waits like any entry.
            Ok(None) => false,
            Err(error) => {
                tracing::error!("entries of the snapshot cannot be read: {error}; others are asked for them");
                self.snapshots.tail = None;
                false
            }
        }
    }

    fn supply(&mut self, content: &[u8]) -> Result<(), FrameError> {
        let mut reader = geode_crdt::codec::Reader::new(content);
        while !reader.is_empty() {
            let bytes = reader.bytes()?;
            let frame = geode_crdt::Frame::parse(bytes, self.core.rows.table.actors_mut())?;
            self.replica.supply(&frame, &mut self.core);
        }
        Ok(())
    }

    /// Removes a snapshot that a checkpoint holds and whose entries are in the log.
    fn forget_joined(&mut self) {
        let Some(id) = self.snapshots.joined else { return };
        if self.replica.awaits_tail() {
            return;
        }
        (self.snapshots.tail, self.core.rows.unfinished) = (None, None);
        let demand = *self.snapshots.demand.get_or_insert_with(|| self.on_disk.demand());
        if self.on_disk.has_finished_since(demand) {
            remove(&staging::path(&self.snapshots.directory, id));
            (self.snapshots.joined, self.snapshots.demand, self.snapshots.source) = (None, None, None);
            if self.snapshots.staged.is_none() {
                self.snapshots.staging = None;
            }
        }
    }
}

fn remove(path: &Path) {
    // What stays is removed by the next start.
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!("{} cannot be removed: {error}", path.display());
    }
}

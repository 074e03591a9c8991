//! Snapshots: what brings a region up to date that needs what no log holds any more.
//!
//! Whoever is asked for entries that its log no longer holds says so. If nobody in touch can supply them, one that holds
//! them is asked for a snapshot: all its rows, as they were from some vector on (the *start*), and the entries from there
//! to its end. It is collected aside, and joined when all of it is here and its source still vouches for it: the source is in
//! touch, goes on under the same actor, and still holds all of the start; and of no closed actor does the start hold more
//! than may be taken from anybody now (see [`crate::ends`]). While the rows are joined nothing is delivered, since what
//! was delivered when decides what a row that only one side has means; and until the entries up to the end are delivered
//! too, what is held is not whole and the region is neither read nor written.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use geode_crdt::{ActorIndex, Actors, HybridTime, VersionVector};

use crate::replica::{Action, Host, Replica, Report, SNAPSHOT};
use crate::wire::{Message, SNAPSHOTS_SINCE};

/// How long a source may send nothing before another is asked: many of the longest round trips, and time for a busy disk.
const PATIENCE_MS: u64 = 15_000;
/// How long nobody is asked after a source was not able.
const PAUSE_MS: u64 = 1_000;
/// How long a region whose rows are not to be trusted holds still for somebody who has seen all that it holds: what it wrote
/// last is elsewhere within seconds, or not before other things are done.
const RESEED_PATIENCE_MS: u64 = 10_000;
/// How long a snapshot waits for a source that is no longer in touch to come back and vouch for it.
const VOUCH_MS: u64 = 60_000;

/// What is known of a snapshot that is here as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joinable {
    /// The actor under which its source wrote.
    pub source: ActorIndex,
    /// What the source held when the first row was read.
    pub start: VersionVector,
    /// What it held when the last row was read: all entries from the start up to here come with the rows.
    pub end: VersionVector,
    /// No row of it is later.
    pub clock: HybridTime,
}

/// What is lacking, who was asked, and what came.
#[derive(Debug, Default)]
pub(crate) struct Snapshots {
    /// By actor, the first entry lacking, and the peers whose logs do not hold it.
    gone: BTreeMap<ActorIndex, (u64, BTreeSet<usize>)>,
    /// Who was asked, and when it last sent anything.
    source: Option<(usize, u64)>,
    not_before_ms: u64,
    failed: Option<usize>,
    staged: Option<(Joinable, u64)>,
    /// What is held is not to be trusted: all of it is fetched from somebody who has seen all of it.
    /// Since when.
    reseeds: Option<u64>,
    applied: bool,
    /// Until this is held, what is held is not whole.
    until: Option<VersionVector>,
}

impl Snapshots {
    /// Whether the peer's log does not hold what follows `held`.
    pub(crate) fn is_gone(&self, actor: ActorIndex, held: u64, peer: usize) -> bool {
        self.gone.get(&actor).is_some_and(|(from, peers)| *from == held + 1 && peers.contains(&peer))
    }

    /// Whether somebody's log does not hold what follows `held`.
    pub(crate) fn is_gone_somewhere(&self, actor: ActorIndex, held: u64) -> bool {
        self.gone.get(&actor).is_some_and(|(from, _)| *from == held + 1)
    }

    /// Whether rows are being joined.
    pub(crate) const fn is_applied(&self) -> bool {
        self.applied
    }

    /// Whether nothing is to be delivered.
    pub(crate) const fn holds_still(&self) -> bool {
        self.applied || self.reseeds.is_some()
    }

    pub(crate) const fn is_joining(&self) -> bool {
        self.applied || self.reseeds.is_some() || self.until.is_some()
    }

    /// The link to a peer is gone. When it comes back its log may say otherwise, and the snapshot goes on.
    pub(crate) fn lost(&mut self, peer: usize) {
        self.gone.values_mut().for_each(|(_, peers)| peers.retain(|gone| *gone != peer));
        self.source.take_if(|(source, _)| *source == peer);
    }
}

impl Replica {
    /// The log of a peer does not hold `from` of an actor, which this region may need.
    pub(crate) fn note_trimmed(&mut self, index: usize, actor: ActorIndex, from: u64) {
        if from != self.held.get(actor) + 1 {
            return;
        }
        let gone = self.snapshots.gone.entry(actor).or_default();
        if gone.0 != from {
            *gone = (from, BTreeSet::new());
        }
        gone.1.insert(index);
        self.catch_up.trimmed(actor, index);
    }

    /// From now on this region holds still until it has got all rows anew from a member that has seen all that it holds. What
    /// it holds is trusted as entries, not as rows. Ends with the process, if nothing came.
    ///
    /// # Errors
    /// In words: why not now.
    pub fn reseed(&mut self) -> Result<(), String> {
        if self.is_joining() {
            return Err("it is joining already".to_owned());
        }
        if !self.is_member() {
            return Err("it was evicted".to_owned());
        }
        if self.sources().next().is_none() {
            return Err("no other region is in touch that could send its rows".to_owned());
        }
        self.snapshots.reseeds = Some(self.now.monotonic_ms);
        Ok(())
    }

    /// Whether the snapshot that comes takes the place of what is held.
    pub const fn is_reseeding(&self) -> bool {
        self.snapshots.reseeds.is_some()
    }

    /// A peer wants a snapshot. One that is not whole helps nobody. One of a region that has still to catch up does: two such
    /// regions may each have what the other lacks.
    pub(crate) fn asked_for_snapshot(&mut self, index: usize, attempt: u64, resume: Vec<u8>) {
        let peer = Arc::clone(&self.peers[index].region);
        if !self.is_whole() {
            let reason = "it is joining itself".to_owned();
            return self.send(index, Message::Unable { reason });
        }
        self.actions.push_back(Action::SendSnapshot { peer, attempt, resume });
    }

    /// A peer that was asked sends no snapshot.
    pub(crate) fn no_snapshot(&mut self, index: usize, reason: String) {
        if self.snapshots.source.take_if(|(source, _)| *source == index).is_none() {
            return;
        }
        self.snapshots.failed = Some(index);
        self.snapshots.not_before_ms = self.now.monotonic_ms + PAUSE_MS;
        let peer = Arc::clone(&self.peers[index].region);
        self.actions.push_back(Action::Report(Report::NoSnapshot { peer, reason }));
    }

    /// Something of the snapshot came from `peer`. Returns whether it was asked for.
    pub fn snapshot_goes_on(&mut self, peer: &str) -> bool {
        let (index, now_ms) = (self.index_of(peer), self.now.monotonic_ms);
        match &mut self.snapshots.source {
            Some((source, since_ms)) if index == Some(*source) => {
                *since_ms = now_ms;
                true
            }
            _ => false,
        }
    }

    /// What came of a snapshot cannot be used; another attempt begins from nothing, with another source if there is one.
    pub fn snapshot_failed(&mut self) {
        if let Some((source, _)) = self.snapshots.source.take() {
            self.snapshots.failed = Some(source);
        }
        self.snapshots.staged = None;
        self.snapshots.not_before_ms = self.now.monotonic_ms + PAUSE_MS;
    }

    /// All of a snapshot is here. [`Action::Join`] or [`Action::DiscardSnapshot`] follow when it is known which.
    pub fn snapshot_staged(&mut self, snapshot: Joinable, actors: &Actors) {
        self.snapshots.source = None;
        self.snapshots.staged = Some((snapshot, self.now.monotonic_ms));
        self.look_after_snapshot(actors);
    }

    /// From now on rows of a snapshot are joined into those held at this moment: nothing is delivered until
    /// [`Self::joined`], and this region is not to be read.
    pub fn begin_join(&mut self) {
        (self.snapshots.applied, self.snapshots.reseeds) = (true, None);
        self.snapshots.staged = None;
    }

    /// All rows were joined: what `start` holds is held, and what is held is whole once `end` is. `times`: by region, the
    /// time below which every entry of it is held.
    pub fn joined(
        &mut self,
        start: &VersionVector,
        end: &VersionVector,
        times: &BTreeMap<Arc<str>, HybridTime>,
        host: &mut impl Host,
    ) {
        self.held.join(start);
        times.iter().for_each(|(region, time)| self.replayed(region, *time));
        self.snapshots.applied = false;
        self.snapshots.gone.clear();
        self.snapshots.until = Some(end.clone());
        self.look_whether_whole();
        self.drain(host);
    }

    /// A snapshot was joined before this process began, and not all entries up to `end` were delivered.
    pub fn await_tail(&mut self, end: VersionVector) {
        self.snapshots.until = Some(end);
        self.look_whether_whole();
    }

    /// What this region holds, or will before it speaks with anybody, is from a backup, or came to a process before this one
    /// that ended while [`Self::is_behind`]: until it has caught up with those in touch it is a region that began with nothing.
    pub fn begins_behind(&mut self) {
        self.began_empty = true;
    }

    /// Whether what is held is a state that there was: not while a snapshot takes its place, or is joined, or the entries
    /// that come with one are not all delivered.
    pub const fn is_whole(&self) -> bool {
        !self.snapshots.is_joining()
    }

    /// Whether rows of a snapshot are being joined.
    pub const fn is_applying_snapshot(&self) -> bool {
        self.snapshots.is_applied()
    }

    /// Bytes of entries that came with a snapshot and wait for something.
    pub fn supplied_bytes(&self) -> usize {
        self.pending.bytes_of(SNAPSHOT)
    }

    /// What was on its way from `peer` is lost though its link is up: it is asked to go on.
    pub fn snapshot_interrupted(&mut self, peer: &str) {
        if let Some(index) = self.index_of(peer) {
            self.snapshots.source.take_if(|(source, _)| *source == index);
        }
    }

    /// Whether the entries that come with a joined snapshot are not all delivered.
    pub fn awaits_tail(&self) -> bool {
        self.snapshots.until.is_some()
    }

    /// Takes note if the last entry that was lacking is delivered.
    pub(crate) fn look_whether_whole(&mut self) {
        let is_lacking = |(actor, sequence)| self.ends.clamp(actor, sequence) > self.held.get(actor);
        if self.snapshots.until.as_ref().is_some_and(|until| !until.iter().any(is_lacking)) {
            self.snapshots.until = None;
        }
    }

    /// Brings whatever is to happen with snapshots a step on. Linear in the actors if anything is.
    pub(crate) fn look_after_snapshot(&mut self, actors: &Actors) {
        self.look_whether_whole();
        if self.snapshots.applied || self.snapshots.until.is_some() {
            return;
        }
        if self.snapshots.staged.is_some() {
            return self.judge_staged(actors);
        }
        let held = &self.held;
        self.snapshots.gone.retain(|actor, (from, _)| *from == held.get(*actor) + 1);
        let now_ms = self.now.monotonic_ms;
        if let Some((source, since_ms)) = self.snapshots.source {
            if now_ms < since_ms + PATIENCE_MS {
                return;
            }
            self.no_snapshot(source, "it sends nothing".to_owned());
        }
        if now_ms < self.snapshots.not_before_ms {
            return;
        }
        if let Some(since_ms) = self.snapshots.reseeds {
            // Whoever has seen all of it, which is soon: nothing is added here.
            let knows = |(_, peer): &(usize, &crate::peer::Peer)| peer.held.includes(&self.held);
            let source =
                self.sources().filter(knows).max_by_key(|(index, _)| self.snapshots.failed != Some(*index));
            if let Some((source, peer)) = source {
                let peer = Arc::clone(&peer.region);
                self.snapshots.source = Some((source, now_ms));
                self.actions.push_back(Action::Fetch { peer });
            } else if now_ms >= since_ms + RESEED_PATIENCE_MS {
                // Somebody may need a snapshot of this region to see it.
                self.snapshots.reseeds = None;
                let peer = Arc::clone(self.region());
                let reason = "nobody has seen all that was written here; repair it again later".to_owned();
                self.actions.push_back(Action::Report(Report::NoSnapshot { peer, reason }));
            }
            return;
        }
        let Some((actor, from)) = self.out_of_reach() else { return };
        let Some(source) = self.best_source(actor) else { return };
        self.snapshots.source = Some((source, now_ms));
        let (peer, actor) = (Arc::clone(&self.peers[source].region), actors.id(actor).clone());
        let report = Report::OutOfReach { source: Arc::clone(&peer), actor, from };
        self.actions.extend([Action::Report(report), Action::Fetch { peer }]);
    }

    /// An actor of which more is held by peers in touch, and by the log of none of them.
    fn out_of_reach(&self) -> Option<(ActorIndex, u64)> {
        let lacks = |actor: ActorIndex, from: u64| {
            let mut able = self.peers.iter().enumerate().filter(|(_, peer)| {
                peer.is_up()
                    && peer.version >= SNAPSHOTS_SINCE
                    && self.ends.clamp(actor, peer.held.get(actor)) >= from
            });
            let mut some = false;
            able.all(|(index, _)| {
                some = true;
                self.snapshots.is_gone(actor, from - 1, index)
            }) && some
        };
        let gone = self.snapshots.gone.iter();
        gone.map(|(actor, (from, _))| (*actor, *from)).find(|(actor, from)| lacks(*actor, *from))
    }

    /// Whom to ask: who holds most of the actor, whoever failed last.
    fn best_source(&self, actor: ActorIndex) -> Option<usize> {
        let able = self.sources().filter(|(_, peer)| peer.held.get(actor) > self.held.get(actor));
        let rank = |(index, peer): &(usize, &crate::peer::Peer)| {
            (self.snapshots.failed != Some(*index), peer.held.get(actor))
        };
        able.max_by_key(rank).map(|(index, _)| index)
    }

    /// Who could be asked.
    fn sources(&self) -> impl Iterator<Item = (usize, &crate::peer::Peer)> {
        self.peers.iter().enumerate().filter(|(_, peer)| {
            let closed = peer.actor.is_none_or(|actor| self.ends.is_closed(actor));
            peer.is_up() && peer.version >= SNAPSHOTS_SINCE && !peer.evicted && !closed
        })
    }

    /// Whether the snapshot that is here may be joined now, or never.
    fn judge_staged(&mut self, actors: &Actors) {
        let Some((staged, since_ms)) = &self.snapshots.staged else { return };
        let region = &actors.id(staged.source).region;
        let source = self.index_of(region).map(|index| &self.peers[index]);
        let beyond =
            |(actor, sequence): (ActorIndex, u64)| sequence > self.ends.ceiling(actor).unwrap_or(u64::MAX);
        let Some(source) = source.filter(|source| source.is_up()) else {
            if self.now.monotonic_ms >= since_ms + VOUCH_MS {
                let reason = format!("{region} has gone before it could be joined");
                self.discard(reason);
            }
            return;
        };
        if source.evicted || source.actor != Some(staged.source) || self.ends.is_closed(staged.source) {
            let reason = format!("{region} goes on as another writer since it was read");
            return self.discard(reason);
        }
        if self.snapshots.reseeds.is_some() && !staged.start.includes(&self.held) {
            return self.discard("its source had not seen all that is held here".to_owned());
        }
        if staged.start.iter().any(beyond) {
            return self.discard("it holds more of an actor than where that ended".to_owned());
        }
        let may_be_taken =
            |(actor, sequence)| self.held.get(actor) >= sequence || self.allowed(actor) >= sequence;
        let is_vouched = source.held.includes(&staged.start) && staged.start.iter().all(may_be_taken);
        // If more of this writer is there than it remembers, it is another one soon.
        let knows_itself = staged.start.get(self.own) <= self.held.get(self.own);
        if is_vouched && knows_itself && staged.clock <= self.latest() {
            self.actions.push_back(Action::Join);
        }
    }

    fn discard(&mut self, reason: String) {
        self.snapshots.staged = None;
        self.snapshots.not_before_ms = self.now.monotonic_ms + PAUSE_MS;
        self.actions.push_back(Action::DiscardSnapshot { reason });
    }
}

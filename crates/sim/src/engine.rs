//! One region's engine: the production cores in the shell that `crates/embedded` puts around them, without threads,
//! sockets and files.
//!
//! Commands come from `geode_store::Store`, delivery from `geode_replica::Replica`, rows, frames and clocks from
//! `geode_crdt`. What stands here follows `crates/embedded` step by step: when a batch is closed, what is flushed before
//! what, what a heartbeat may promise, where a stream begins.

mod core;
mod links;
mod planted;
mod snapshot;
mod start;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use geode_crdt::frame::Checkpoint;
use geode_crdt::{ActorId, ActorIndex, FrameBuilder, HybridTime, Op, VersionVector};
use geode_replica::{Action, Message, Now, Replica, Report, Vector};
use geode_store::reference::Rows;
use geode_store::{Engine, Extent, FlushError, Need, Position, Ticket, View};

pub(crate) use self::core::Core;
use self::core::note_logged;
use self::links::Link;
pub(crate) use self::links::Out;
use self::snapshot::Incoming;
pub(crate) use self::snapshot::{Block, Joined, Snapshot};
pub(crate) use self::start::Settings;
use crate::plan::Fsync;
use crate::plant::Plant;

pub(crate) const PLANET: &str = "simulated";

/// How far ahead time is reserved, as in `crates/embedded`.
const RESERVE_US: u64 = 10_000_000;

/// What the checkers want to know.
#[derive(Clone, Debug)]
pub(crate) enum Note {
    /// An entry was delivered, or replayed.
    Delivered { actor: ActorId, sequence: u64, time: HybridTime, passed: HybridTime },
    /// An entry is in the log.
    Logged { actor: ActorId, sequence: u64, fingerprint: u32 },
    /// A snapshot was joined, and so these entries are held that were not.
    Joined(Vector),
    /// The region goes on as another actor.
    Incarnation { actor: ActorId, reason: String },
    /// Something for the operator.
    Report(String),
}

/// An own entry.
#[derive(Clone, Debug)]
pub(crate) struct Wrote {
    pub(crate) actor: ActorId,
    pub(crate) sequence: u64,
    pub(crate) time: HybridTime,
    pub(crate) keys: Vec<(u8, Vec<u8>)>,
    /// If it is a sweep, of what.
    pub(crate) extent: Extent,
}

/// An engine over simulated disk and network.
pub(crate) struct SimEngine {
    pub(crate) core: Core,
    pub(crate) replica: Replica,
    region: Arc<str>,
    regions: usize,
    fsync: Fsync,
    pub(crate) wall: HybridTime,
    pub(crate) time: HybridTime,
    entry_from: Option<Checkpoint>,
    extent: Extent,
    pub(crate) wrote: Vec<Wrote>,
    links: BTreeMap<Arc<str>, Link>,
    pub(crate) out: Vec<Out>,
    needs: Vec<(Ticket, Need)>,
    tickets: u64,
    done: Vec<Ticket>,
    pub(crate) failed: bool,
    /// Incarnations come from the seed.
    incarnations: u64,
    /// Tells this process from others.
    process: u64,
    /// The snapshot that comes in.
    incoming: Incoming,
}

impl SimEngine {
    /// Whether peers have said what they know of this region.
    pub(crate) fn is_known(&self) -> bool {
        self.replica.all_answered() && !self.replica.awaits_verdict()
    }

    pub(crate) fn own(&self) -> &ActorId {
        self.core.rows.actors().id(self.core.own)
    }

    /// Runs an event of the replica, with what it says had passed before it.
    fn passing(&mut self, event: impl FnOnce(&mut Self)) {
        self.core.passed = self.replica.passed();
        event(self);
        self.act();
    }

    /// Time passed.
    pub(crate) fn timer(&mut self, mut now: Now) {
        self.core.finish_transaction();
        if self.core.is(Plant::AdoptedClock) {
            now.wall = HybridTime(now.wall.0 + 1_000_000_000_000);
        }
        self.passing(|engine| engine.replica.timer(now, &mut engine.core));
        self.keep_snapshots();
    }

    /// Says to peers where this region stands, if it is time.
    pub(crate) fn heartbeat(&mut self, monotonic_ms: u64) {
        // Whoever was told just before is told at the next timer.
        self.replica.acknowledge(monotonic_ms, self.core.rows.actors());
        self.act();
        if !self.replica.heartbeat_due() || self.flush_log().is_err() {
            return;
        }
        let clock = &mut self.core.clock;
        let ahead_us = self.replica.clock_ahead_ms().unwrap_or(0) * 1_000;
        let now = clock.peek(HybridTime(self.wall.0.saturating_sub(ahead_us)));
        let promise = now.min(self.core.disk.reserved());
        self.core.disk.say(promise);
        clock.observe(promise);
        self.replica.heartbeat(promise, self.core.rows.actors());
        self.act();
    }

    /// Reserves more time if half of it is used up.
    pub(crate) fn renew_floor(&mut self) {
        let clock = self.core.clock.peek(self.wall).0;
        if clock + RESERVE_US / 2 > self.core.disk.reserved().0 {
            self.core.disk.reserve(HybridTime(clock + RESERVE_US));
        }
    }

    /// The log is on disk up to `position`.
    pub(crate) fn synced(&mut self, position: u64) {
        self.core.disk.synced = position.max(self.core.disk.synced);
        self.note_synced(self.core.disk.synced);
    }

    /// A region that began with nothing goes on as any other once it has caught up and a crash does not take that away.
    pub(crate) fn look_whether_behind(&mut self) {
        let disk = &mut self.core.disk;
        disk.is_behind &= self.replica.is_behind() || disk.synced < disk.written();
    }

    fn note_synced(&mut self, upto: u64) {
        while let Some((position, actor, sequence)) = self.core.unsynced.front().copied() {
            if position > upto {
                break;
            }
            self.core.unsynced.pop_front();
            self.replica.synced(actor, sequence);
        }
    }

    /// Hands everything to the kernel.
    pub(crate) fn flush_log(&mut self) -> Result<u64, &'static str> {
        if self.failed {
            return Err("the log failed before");
        }
        if self.core.clock.last() > self.core.disk.reserved() {
            self.renew_floor();
        }
        let flushed = self.core.flush();
        self.failed |= flushed.is_err();
        if self.core.is(Plant::SyncedOnArrival) {
            self.note_synced(u64::MAX);
        }
        flushed
    }

    pub(crate) fn act(&mut self) {
        self.learn();
        while let Some(action) = self.replica.next_action() {
            match action {
                Action::Send { peer, message } => {
                    let request = matches!(message, Message::Request { .. });
                    if request && self.core.is(Plant::LostTailStaysLost) {
                        continue;
                    }
                    self.tell_peer(&peer, &message);
                }
                Action::Stream { peer, held } => {
                    self.tell_trimmed_own(&peer, &held);
                    let actors = self.core.rows.actors();
                    let held =
                        held.into_iter().map(|(actor, held)| (actors.id(actor).incarnation, held)).collect();
                    if let Some(link) = self.links.get_mut(&peer) {
                        (link.tail, link.held) = (Some(0), held);
                    }
                }
                Action::Serve { peer, actor, from, to } => {
                    let actor = self.core.rows.actors().id(actor).clone();
                    self.tell_trimmed(&peer, &actor, from);
                    if let Some(link) = self.links.get_mut(&peer) {
                        link.ranges.push_back((actor, from, to));
                    }
                }
                Action::Disconnect { peer, reason } => {
                    if let Some(link) = self.links.remove(&peer) {
                        self.out.push(Out::Close { link: link.id, reason });
                        self.replica.lost(&peer);
                    }
                }
                Action::Fetch { peer } => self.fetch_snapshot(&peer),
                Action::SendSnapshot { peer, attempt, resume } => self.send_snapshot(&peer, attempt, &resume),
                Action::Join => self.join_snapshot(),
                Action::DiscardSnapshot { reason } => {
                    self.incoming.staged = None;
                    self.core.notes.push(Note::Report(format!("the snapshot is not joined: {reason}")));
                }
                Action::Report(Report::OutOfReach { source, actor, from }) => {
                    let line =
                        format!("entry {from} of {actor} is in no log; {source} is asked for all rows");
                    self.core.notes.push(Note::Report(line));
                }
                Action::Report(Report::NoSnapshot { peer, reason }) => {
                    self.core.notes.push(Note::Report(format!("{peer} sends no snapshot: {reason}")));
                }
                Action::NewIncarnation { reason } => self.begin_incarnation(&reason),
                Action::Report(Report::Refused { peer, reason }) => {
                    self.core.notes.push(Note::Report(format!("{peer} refused: {reason}")));
                }
                Action::Report(Report::OwnClock { ahead_ms }) => {
                    self.core.notes.push(Note::Report(format!("its clock is ahead by {ahead_ms:?} ms")));
                }
                Action::Report(Report::BeyondEnd { actor, end, sequence }) => {
                    let line = format!("entry {sequence} of {actor} is beyond its end {end}");
                    self.core.notes.push(Note::Report(line));
                }
                Action::Report(Report::Ahead { actor, sequence, ahead_ms }) => {
                    let line = format!("entry {sequence} of {actor} is {ahead_ms} ms ahead");
                    self.core.notes.push(Note::Report(line));
                }
            }
        }
    }

    fn tell_peer(&mut self, peer: &str, message: &Message) {
        if let Some(link) = self.links.get_mut(peer) {
            let mut bytes = Vec::new();
            link.encoder.encode(message, &mut bytes);
            self.out.push(Out::Bytes { link: link.id, bytes });
        }
    }

    /// Tells a peer if it needs an entry that this log no longer holds.
    fn tell_trimmed(&mut self, peer: &str, actor: &ActorId, from: u64) {
        if self.core.disk.is_trimmed(actor, from) {
            self.tell_peer(peer, &Message::Trimmed { actor: actor.clone(), from });
        }
    }

    /// The same for what would be streamed to a peer that holds `held` of this region's actors.
    fn tell_trimmed_own(&mut self, peer: &str, held: &[(ActorIndex, u64)]) {
        let of_peer = |actor| held.iter().find(|(held, _)| *held == actor).map_or(0, |(_, held)| *held);
        let actors = self.core.rows.actors();
        let own = self.replica.held().iter().filter(|(actor, _)| actors.id(*actor).region == self.region);
        let missing = own.filter(|(actor, held)| of_peer(*actor) < *held);
        let missing: Vec<_> =
            missing.map(|(actor, _)| (actors.id(actor).clone(), of_peer(actor) + 1)).collect();
        missing.iter().for_each(|(actor, from)| self.tell_trimmed(peer, actor, *from));
    }

    /// Completes fetches; whether there were any.
    pub(crate) fn complete_fetches(&mut self) -> bool {
        let needs = std::mem::take(&mut self.needs);
        for (ticket, need) in &needs {
            self.core.rows.load(need);
            self.done.push(*ticket);
        }
        !needs.is_empty()
    }

    /// The process is killed while the batch is written: a part of it reaches the kernel.
    pub(crate) fn write_part(&mut self, whole: usize) {
        self.core.close_batch();
        let mut batch = std::mem::take(&mut self.core.batch);
        let whole = whole.min(batch.len().saturating_sub(1));
        let from = self.core.disk.records.len();
        self.core.disk.append_part(&mut batch, whole);
        for record in &self.core.disk.records[from..] {
            note_logged(record, &mut self.core.notes);
        }
    }
}

impl Engine for SimEngine {
    type View = Rows;

    fn set_wall(&mut self, wall: HybridTime) {
        self.wall = wall;
    }

    fn now(&self) -> HybridTime {
        self.core.clock.peek(self.wall)
    }

    fn begin(&mut self) -> HybridTime {
        self.time = self.core.clock.tick(self.wall);
        let held = self.replica.held();
        let silent = self.core.is(Plant::SkippedDependencies);
        let changed = self.core.changed.iter().filter(|_| !silent);
        let changed = changed.map(|actor| (*actor, held.get(*actor))).filter(|(_, held)| *held > 0);
        self.core.builder.begin_entry(self.time, changed);
        self.entry_from = Some(self.core.builder.checkpoint());
        self.time
    }

    fn parts(&mut self) -> (&Rows, &mut FrameBuilder) {
        (&self.core.rows, &mut self.core.builder)
    }

    fn view(&self) -> &Rows {
        &self.core.rows
    }

    fn apply(&mut self, from: Checkpoint) {
        let builder = std::mem::replace(&mut self.core.builder, FrameBuilder::new(self.core.own, 1));
        let ops: Vec<Op<'_>> = builder.ops_since(from).map_while(Result::ok).collect();
        self.core.apply(&ops, self.time, (self.core.own, builder.sequence()));
        ops.iter().for_each(|op| self.core.rows.keep_written(op));
        self.core.rows.drop_own_dead(self.core.own);
        drop(ops);
        self.core.builder = builder;
    }

    fn end(&mut self) -> Option<u64> {
        let mut keys = BTreeSet::new();
        if let Some(from) = self.entry_from.take() {
            let ops = self.core.builder.ops_since(from).map_while(Result::ok);
            keys.extend(ops.map(|op| (op.key().database, op.key().name.to_vec())));
        }
        let sequence = self.core.builder.finish_entry()?;
        self.core.changed.clear();
        self.replica.committed(sequence);
        let (actor, time) = (self.own().clone(), self.time);
        let (keys, extent) = (keys.into_iter().collect(), self.extent);
        self.wrote.push(Wrote { actor, sequence, time, keys, extent });
        Some(sequence)
    }

    fn fetch(&mut self, need: &Need) -> Ticket {
        self.tickets += 1;
        self.needs.push((Ticket(self.tickets), need.clone()));
        Ticket(self.tickets)
    }

    fn completed(&mut self, tickets: &mut Vec<Ticket>) {
        tickets.append(&mut self.done);
    }

    fn flush(&mut self) -> Result<Position, FlushError> {
        self.flush_log().map(Position).map_err(|error| FlushError::Final(error.to_owned()))
    }

    fn spill(&mut self) -> bool {
        self.flush_log().is_ok()
    }

    fn durable(&self) -> Position {
        match self.fsync {
            Fsync::Always if !self.core.is(Plant::AnsweredBeforeSync) => Position(self.core.disk.synced),
            _ => Position(u64::MAX),
        }
    }

    fn last_sequence(&self) -> u64 {
        self.replica.held().get(self.replica.own())
    }

    fn held(&self) -> &VersionVector {
        self.replica.held()
    }

    fn end_of(&self, actor: ActorIndex) -> Option<u64> {
        self.replica.end_of(actor)
    }

    fn acknowledged(&self, sequence: u64) -> usize {
        self.replica.acknowledged(sequence, self.core.rows.actors())
    }

    fn write_refusal(&self) -> Option<String> {
        self.replica.exclusion().map(ToOwned::to_owned)
    }

    fn clock_ahead_ms(&self) -> Option<u64> {
        self.replica.clock_ahead_ms()
    }

    fn regions(&self) -> usize {
        self.regions
    }

    fn is_sweeper(&self) -> bool {
        self.replica.is_sweeper() || self.core.is(Plant::ExpiryTakesTtl)
    }

    fn swept_until(&self, extent: Extent) -> HybridTime {
        let early = self.core.is(Plant::ExpiryTakesTtl) || self.core.is(Plant::SweepTooEarly);
        let passed = match extent {
            _ if early => self.now(),
            Extent::Whole => self.replica.passed(),
            Extent::Data => self.replica.passed_without_away(),
        };
        passed.min(self.now())
    }

    fn due(&mut self, extent: Extent, until: HybridTime, limit: usize) -> Vec<(u8, Box<[u8]>)> {
        self.extent = extent;
        self.core.rows.due(extent, until, limit)
    }

    fn turn(&mut self) -> bool {
        false
    }
}

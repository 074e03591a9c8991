//! One region's engine: the production cores in the shell that `crates/embedded` puts around them, without threads,
//! sockets and files.
//!
//! Commands come from `geode_store::Store`, delivery from `geode_replica::Replica`, rows, frames and clocks from
//! `geode_crdt`. What stands here follows `crates/embedded` step by step: when a batch is closed, what is flushed before
//! what, what a heartbeat may promise, where a stream begins.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;

use geode_crdt::frame::{self, Checkpoint};
use geode_crdt::{
    ActorId, ActorIndex, Actors, Frame, FrameBuilder, HybridClock, HybridTime, Kind as CellKind, Mark, Op,
    VersionVector,
};
use geode_replica::{Action, Host, Message, Now, Replica, Report, wire};
use geode_store::reference::Rows;
use geode_store::{Engine, Extent, KeyView, Need, Part, Position, Ticket, View};

use crate::disk::{Disk, Kind, Opened, Record};
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

/// What goes out on a link.
#[derive(Debug)]
pub(crate) enum Out {
    Bytes { link: u64, bytes: Vec<u8> },
    Close { link: u64, reason: String },
}

/// The sending half of a link.
#[derive(Debug)]
struct Link {
    id: u64,
    /// The next record of the log that the stream looks at.
    tail: Option<usize>,
    /// What the peer held when the stream began, by incarnation.
    held: BTreeMap<u64, u64>,
    ranges: VecDeque<(ActorId, u64, u64)>,
}

/// What an entry passes through.
pub(crate) struct Core {
    pub(crate) rows: Rows,
    depends: BTreeMap<ActorIndex, VersionVector>,
    pub(crate) clock: HybridClock,
    own: ActorIndex,
    /// Actors of which entries were delivered since the last own entry.
    changed: BTreeSet<ActorIndex>,
    builder: FrameBuilder,
    batch: Vec<Record>,
    pub(crate) disk: Disk,
    pub(crate) notes: Vec<Note>,
    passed: HybridTime,
    plant: Option<Plant>,
    /// The second half of a transaction that was cut.
    rest: Option<(Vec<u8>, u64)>,
    /// Log positions that are not synced yet, with what they hold.
    unsynced: VecDeque<(u64, ActorIndex, u64)>,
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
}

impl Core {
    fn empty(disk: Disk, region: &str, plant: Option<Plant>) -> Self {
        let mut rows = Rows::default();
        let own = rows.actors_mut().intern(&ActorId::new(region, 0));
        Self {
            rows,
            depends: BTreeMap::new(),
            clock: HybridClock::default(),
            own,
            changed: BTreeSet::new(),
            builder: FrameBuilder::new(own, 1),
            batch: Vec::new(),
            disk,
            notes: Vec::new(),
            passed: HybridTime(0),
            plant,
            rest: None,
            unsynced: VecDeque::new(),
        }
    }

    fn is(&self, plant: Plant) -> bool {
        self.plant == Some(plant)
    }

    fn close_batch(&mut self) {
        if self.builder.is_empty() {
            return;
        }
        let last = self.builder.sequence() - 1;
        let actor = self.rows.actors().id(self.builder.writer()).clone();
        let mut bytes = Vec::new();
        self.builder.finish_into(&mut bytes, self.rows.actors());
        let first = frame::peek(&bytes).map_or(last, |head| head.first_sequence);
        self.push(Kind::Own, actor, first, last, bytes);
    }

    fn push(&mut self, kind: Kind, actor: ActorId, first: u64, last: u64, frame: Vec<u8>) {
        let synced = self.disk.synced;
        self.batch.push(Record { kind, frame, actor, first, last, synced, end: 0 });
    }

    fn flush(&mut self) -> Result<u64, &'static str> {
        self.close_batch();
        let from = self.disk.records.len();
        self.disk.append(&mut self.batch)?;
        for record in &self.disk.records[from..] {
            note_logged(record, &mut self.notes);
            if let Some(actor) = self.rows.actors().find(&record.actor)
                && record.last > 0
            {
                self.unsynced.push_back((record.end, actor, record.last));
            }
        }
        Ok(self.disk.written())
    }

    /// Applies the entries `from..=to` of a frame to rows, clock and dependencies.
    fn merge(&mut self, frame: &Frame<'_>, from: u64, to: u64) {
        let writer = frame.writer();
        for entry in frame.entries().filter(|entry| (from..=to).contains(&entry.sequence)) {
            let depends = self.depends.entry(writer).or_default();
            entry.changed().for_each(|(actor, sequence)| depends.raise(actor, sequence));
            depends.raise(writer, entry.sequence);
            let ops: Vec<Op<'_>> = entry.ops().map_while(Result::ok).collect();
            if self.is(Plant::CutTransaction) && ops.len() > 1 && writer != self.own {
                self.finish_transaction();
                let (now, later) = ops.split_at(ops.len() / 2);
                self.apply(now, entry.time, (writer, entry.sequence));
                if !later.is_empty() {
                    self.rest = Some((frame.bytes().to_vec(), entry.sequence));
                }
            } else {
                self.apply(&ops, entry.time, (writer, entry.sequence));
            }
            if !self.is(Plant::DeadByGossip) {
                self.rows.drop_dead(writer, &self.depends[&writer]);
            }
            self.rows.drop_own_dead(self.own);
            if !self.is(Plant::UnboundClock) {
                self.clock.observe(entry.time);
            }
            let actor = self.rows.actors().id(writer).clone();
            let (sequence, time, passed) = (entry.sequence, entry.time, self.passed);
            self.notes.push(Note::Delivered { actor, sequence, time, passed });
        }
        if writer == self.own {
            self.changed.clear();
        } else {
            self.changed.insert(writer);
        }
    }

    /// Planted: the second half of a transaction comes later.
    pub(crate) fn finish_transaction(&mut self) {
        let Some((bytes, sequence)) = self.rest.take() else { return };
        let Ok(frame) = Frame::parse(&bytes, self.rows.actors_mut()) else { return };
        let writer = frame.writer();
        for entry in frame.entries().filter(|entry| entry.sequence == sequence) {
            let ops: Vec<Op<'_>> = entry.ops().map_while(Result::ok).collect();
            self.apply(&ops[ops.len() / 2..], entry.time, (writer, sequence));
        }
    }

    fn apply(&mut self, ops: &[Op<'_>], time: HybridTime, by: (ActorIndex, u64)) {
        for op in ops {
            match self.plant {
                None => self.rows.apply(op, time, by),
                Some(plant) => self.apply_planted(plant, op, ops, time, by),
            }
        }
    }

    fn apply_planted(
        &mut self,
        plant: Plant,
        op: &Op<'_>,
        ops: &[Op<'_>],
        time: HybridTime,
        by: (ActorIndex, u64),
    ) {
        let mut op = op.clone();
        match (plant, &mut op) {
            (Plant::OneNamePerEntry, Op::Sum { start, dot, .. }) => {
                (start.ordinal, dot.mark.ordinal) = (0, 0);
            }
            (Plant::OneNamePerEntry, Op::Cancel { upto, .. }) => upto.ordinal = 0,
            (Plant::RunsWithoutStart, Op::Sum { start, .. }) => *start = Mark { sequence: 0, ordinal: 0 },
            (Plant::SetWithoutNever, Op::Set { key, dot, value, replaces }) => {
                let (key, dot, value, replaces) = (*key, *dot, *value, *replaces);
                for dot in replaces {
                    let gone = Op::Remove { key, kind: CellKind::Ttl, element: b"", dot };
                    self.rows.apply(&gone, time, by);
                }
                op = Op::Put { key, kind: CellKind::String, element: b"", dot, value, replaces };
            }
            (Plant::HiddenTypesStay, Op::Remove { key, kind, .. } | Op::Cancel { key, kind, .. }) => {
                let (key, kind) = (*key, *kind);
                let is_of_other_type = ops.iter().any(|other| match other {
                    Op::Put { key: of, kind: put, .. } | Op::Sum { key: of, kind: put, .. } => {
                        *of == key && *put != kind && *put != CellKind::Ttl && kind != CellKind::Ttl
                    }
                    _ => false,
                });
                if is_of_other_type {
                    return;
                }
            }
            (Plant::ArrivalOrder, Op::Put { key, kind, element, .. }) => {
                self.remove_all(*key, *kind, element, time, by);
            }
            (Plant::ArrivalOrder, Op::Set { key, .. }) => {
                self.remove_all(*key, CellKind::String, b"", time, by);
            }
            _ => {}
        }
        self.rows.apply(&op, time, by);
    }

    fn remove_all(
        &mut self,
        key: geode_crdt::KeyName<'_>,
        kind: CellKind,
        element: &[u8],
        time: HybridTime,
        by: (ActorIndex, u64),
    ) {
        let (database, name) = (key.database, Box::from(key.name));
        self.rows.load(&Need { database, name, part: Part::Summary });
        let name = Box::from(key.name);
        self.rows.load(&Need { database, name, part: Part::Cell(kind, element.into()) });
        let held = self.rows.key(key).ok().flatten().and_then(|key| key.cell(kind, element).ok().flatten());
        let dots: Vec<_> = held.into_iter().flat_map(|cell| cell.puts().map(|put| put.dot)).collect();
        for dot in dots {
            self.rows.apply(&Op::Remove { key, kind, element, dot }, time, by);
        }
    }
}

fn note_logged(record: &Record, notes: &mut Vec<Note>) {
    let mut actors = Actors::default();
    let Ok(frame) = Frame::parse(&record.frame, &mut actors) else { return };
    for sequence in record.first..=record.last {
        if let Some(fingerprint) = fingerprint(&frame, sequence, &actors) {
            notes.push(Note::Logged { actor: record.actor.clone(), sequence, fingerprint });
        }
    }
}

fn fingerprint(frame: &Frame<'_>, sequence: u64, actors: &Actors) -> Option<u32> {
    let cut = frame.slice(sequence, sequence, actors);
    Frame::parse(&cut, &mut Actors::default()).ok().map(|frame| frame.checksum())
}

impl Host for Core {
    fn actors(&mut self) -> &mut Actors {
        self.rows.actors_mut()
    }

    fn deliver(&mut self, frame: &Frame<'_>, from: u64, to: u64) {
        self.close_batch();
        let actor = self.rows.actors().id(frame.writer()).clone();
        let own = actor.region == self.rows.actors().id(self.own).region;
        let kind = if own { Kind::Own } else { Kind::Foreign };
        let bytes = frame.slice(from, to, self.rows.actors());
        self.push(kind, actor, from, to, bytes);
        self.merge(frame, from, to);
    }

    fn fingerprint(&mut self, actor: ActorIndex, sequence: u64) -> Option<u32> {
        self.flush().ok()?;
        let id = self.rows.actors().id(actor);
        let holds = |record: &&Record| {
            record.actor == *id
                && (record.first..=record.last).contains(&sequence)
                && !record.frame.is_empty()
        };
        let record = self.disk.records.iter().rev().find(holds)?;
        let mut actors = Actors::default();
        let frame = Frame::parse(&record.frame, &mut actors).ok()?;
        fingerprint(&frame, sequence, &actors)
    }
}

/// What an engine is told about itself.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) names: Vec<String>,
    pub(crate) region: usize,
    pub(crate) fsync: Fsync,
    pub(crate) plant: Option<Plant>,
    /// Where new incarnations come from.
    pub(crate) seed: u64,
}

impl SimEngine {
    /// A process starts on what is on the disk: judges the log, replays it, and goes on as before or as another actor.
    /// Also returns whether it is another one. An error is a refusal.
    pub(crate) fn start(
        mut disk: Disk,
        settings: &Settings,
        now: Now,
    ) -> Result<(Self, bool), Box<(Disk, String)>> {
        let Settings { names, region, fsync, plant, seed } = settings;
        let name = &names[*region];
        let Opened { verdict, floor } = match disk.open(*fsync == Fsync::Always, *plant) {
            Ok(opened) => opened,
            Err(reason) => return Err(Box::new((disk, reason))),
        };
        let mut core = Core::empty(disk, name, *plant);
        let (held, times) = core.replay(name);
        if *plant == Some(Plant::ForgottenChanges) {
            core.changed.clear();
        }
        if *plant != Some(Plant::ForgottenFloor) {
            core.clock.observe(floor);
        }
        let reserve = core.clock.last().max(now.wall).0 + RESERVE_US;
        core.disk.reserve(HybridTime(reserve));
        let peers: Vec<String> = names.iter().filter(|peer| *peer != name).cloned().collect();
        let own = core.own;
        let mut replica = Replica::new(PLANET, name, own, &peers, held, now);
        for (region, time) in times {
            replica.replayed(&region, time);
        }
        let next = replica.held().get(own) + 1;
        core.builder = FrameBuilder::new(own, next);
        let mut engine = Self {
            core,
            replica,
            region: name.as_str().into(),
            regions: names.len(),
            fsync: *fsync,
            wall: now.wall,
            time: HybridTime(0),
            entry_from: None,
            extent: Extent::Whole,
            wrote: Vec::new(),
            links: BTreeMap::new(),
            out: Vec::new(),
            needs: Vec::new(),
            tickets: 0,
            done: Vec::new(),
            failed: false,
            incarnations: *seed,
        };
        let silent = engine.cut_silently(&verdict);
        let fresh = verdict.is_err() && !silent;
        if let (Err(reason), false) = (verdict, silent) {
            engine.begin_incarnation(reason);
            let written = engine.core.disk.written();
            engine.synced(written);
        }
        Ok((engine, fresh))
    }

    /// Planted: damage of the tail is cut and nothing more is thought of it.
    fn cut_silently(&self, verdict: &Result<u64, &'static str>) -> bool {
        let damaged = *verdict == Err("the end of its log was damaged");
        damaged
            && self.core.is(Plant::SilentCut)
            && self.core.rows.actors().id(self.core.own).incarnation != 0
    }

    pub(crate) fn own(&self) -> &ActorId {
        self.core.rows.actors().id(self.core.own)
    }

    /// Goes on under a new actor, after everything that was written under the old one.
    fn begin_incarnation(&mut self, reason: &str) {
        self.incarnations = self.incarnations.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        let incarnation = self.incarnations | 1;
        let id = ActorId::new(&self.region, incarnation);
        self.core.close_batch();
        self.core.push(Kind::Incarnation(incarnation), id.clone(), 1, 0, Vec::new());
        if self.flush_log().is_err() {
            return;
        }
        let own = self.core.rows.actors_mut().intern(&id);
        self.core.own = own;
        self.core.changed = self.replica.held().iter().map(|(actor, _)| actor).collect();
        self.replica.begin_incarnation(own);
        self.core.builder = FrameBuilder::new(own, 1);
        self.core.disk.set_incarnation(incarnation);
        self.core.notes.push(Note::Incarnation { actor: id, reason: reason.to_owned() });
    }

    /// A link to a peer is up.
    pub(crate) fn connected(&mut self, peer: &str, id: u64) {
        let link = Link { id, tail: None, held: BTreeMap::new(), ranges: VecDeque::new() };
        if let Some(old) = self.links.insert(peer.into(), link) {
            self.out.push(Out::Close { link: old.id, reason: "another took its place".into() });
            self.replica.lost(peer);
        }
        self.passing(|engine| engine.replica.connected(peer, &mut engine.core));
    }

    /// A link is gone; nothing if another took its place.
    pub(crate) fn lost(&mut self, peer: &str, id: u64) {
        if self.link(peer) == Some(id) {
            self.links.remove(peer);
            self.replica.lost(peer);
            self.act();
        }
    }

    pub(crate) fn link(&self, peer: &str) -> Option<u64> {
        self.links.get(peer).map(|link| link.id)
    }

    /// One message arrived.
    pub(crate) fn receive(&mut self, peer: &str, bytes: &[u8]) -> Result<String, String> {
        let (head, body) = bytes.split_at(wire::HEAD);
        let head = head.try_into().map_err(|_| "a short head")?;
        let (kind, _) = wire::read_head(head).map_err(|error| error.to_string())?;
        if kind == wire::Kind::Frame {
            let head = frame::peek(body).map_err(|error| error.to_string())?;
            let shown = format!(
                "entries {}..={} of {}#{:04x}",
                head.first_sequence,
                head.last_sequence,
                head.region,
                head.incarnation & 0xffff
            );
            self.apply_twice(body);
            self.passing(|engine| engine.replica.frame(peer, body, &mut engine.core));
            return Ok(shown);
        }
        let message = Message::decode(kind, body).map_err(|error| error.to_string())?;
        let (message, shown) = self.before_message(message);
        self.passing(|engine| engine.replica.message(peer, message, &mut engine.core));
        Ok(shown)
    }

    /// Planted faults that touch messages, and a line about each.
    fn before_message(&mut self, mut message: Message) -> (Message, String) {
        let shown = match &mut message {
            Message::Hello { witnesses, held, .. } => {
                if self.core.is(Plant::IgnoredWitness) {
                    witnesses.clear();
                    held.0.retain(|actor, _| actor.region != self.region);
                }
                format!("a hello that holds {} actors", held.0.len())
            }
            Message::Heartbeat { actor, sequence, held, .. } => {
                if self.core.is(Plant::PromiseBeforeEntries) {
                    *sequence = 0;
                }
                if self.core.is(Plant::DeadByGossip) {
                    let actors = self.core.rows.actors_mut();
                    let (owner, seen) = (actors.intern(actor), held.intern(actors));
                    self.core.rows.drop_dead(owner, &seen);
                }
                format!("a heartbeat at {sequence}")
            }
            Message::Request { actor, from, to } => {
                format!("a request for {from}..={to} of {}", actor.region)
            }
            Message::Refuse { reason } => format!("a refusal: {reason}"),
        };
        (message, shown)
    }

    /// Planted: what comes again is applied again.
    fn apply_twice(&mut self, body: &[u8]) {
        if !self.core.is(Plant::AppliedTwice) {
            return;
        }
        let Ok(frame) = Frame::parse(body, self.core.rows.actors_mut()) else { return };
        let held = self.replica.held().get(frame.writer());
        for entry in frame.entries().filter(|entry| entry.sequence <= held) {
            let ops: Vec<Op<'_>> = entry.ops().map_while(Result::ok).collect();
            self.core.apply(&ops, entry.time, (frame.writer(), entry.sequence));
        }
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
    }

    /// Says to peers where this region stands, if it is time.
    pub(crate) fn heartbeat(&mut self) {
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

    /// Sends what links may be sent.
    pub(crate) fn pump(&mut self) {
        let limit = match self.fsync {
            Fsync::Always => self.core.disk.synced,
            Fsync::EverySecond | Fsync::Never => u64::MAX,
        };
        let records = &self.core.disk.records;
        let end = records.partition_point(|record| record.end <= limit);
        for link in self.links.values_mut() {
            if let Some(tail) = &mut link.tail {
                for record in records.get(*tail..end).unwrap_or_default() {
                    if record.kind == Kind::Own {
                        let held = link.held.get(&record.actor.incarnation).copied().unwrap_or(0);
                        put_entries(&mut self.out, link.id, record, held + 1, u64::MAX);
                    }
                }
                *tail = end.max(*tail);
            }
            for (actor, from, to) in link.ranges.drain(..) {
                for record in records[..end].iter().filter(|record| record.actor == actor) {
                    put_entries(&mut self.out, link.id, record, from, to);
                }
            }
        }
    }

    fn act(&mut self) {
        while let Some(action) = self.replica.next_action() {
            match action {
                Action::Send { peer, message } => {
                    let request = matches!(message, Message::Request { .. });
                    if request && self.core.is(Plant::LostTailStaysLost) {
                        continue;
                    }
                    if let Some(link) = self.links.get(&peer) {
                        let mut bytes = Vec::new();
                        message.encode(&mut bytes);
                        self.out.push(Out::Bytes { link: link.id, bytes });
                    }
                }
                Action::Stream { peer, held } => {
                    let actors = self.core.rows.actors();
                    let held =
                        held.into_iter().map(|(actor, held)| (actors.id(actor).incarnation, held)).collect();
                    if let Some(link) = self.links.get_mut(&peer) {
                        (link.tail, link.held) = (Some(0), held);
                    }
                }
                Action::Serve { peer, actor, from, to } => {
                    let actor = self.core.rows.actors().id(actor).clone();
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
                Action::NewIncarnation { reason } => self.begin_incarnation(&reason),
                Action::Report(Report::Refused { peer, reason }) => {
                    self.core.notes.push(Note::Report(format!("{peer} refused: {reason}")));
                }
                Action::Report(Report::OwnClock { ahead_ms }) => {
                    self.core.notes.push(Note::Report(format!("its clock is ahead by {ahead_ms:?} ms")));
                }
                Action::Report(Report::Ahead { actor, sequence, ahead_ms }) => {
                    let line = format!("entry {sequence} of {actor} is {ahead_ms} ms ahead");
                    self.core.notes.push(Note::Report(line));
                }
            }
        }
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

impl Core {
    /// Replays the log. Returns what is held, and the time of each other region's last entry.
    fn replay(&mut self, region: &str) -> (VersionVector, BTreeMap<Arc<str>, HybridTime>) {
        let (mut held, mut times) = (VersionVector::default(), BTreeMap::new());
        let records = std::mem::take(&mut self.disk.records);
        for record in &records {
            if let Kind::Incarnation(incarnation) = record.kind {
                self.own = self.rows.actors_mut().intern(&ActorId::new(region, incarnation));
                self.changed = held.iter().map(|(actor, _)| actor).collect();
                continue;
            }
            // The simulated disk gives back what was written.
            let Ok(frame) = Frame::parse(&record.frame, self.rows.actors_mut()) else { continue };
            self.merge(&frame, record.first, record.last);
            held.raise(frame.writer(), record.last);
            if record.kind == Kind::Foreign {
                let time = frame.entries().last().map_or(HybridTime(0), |entry| entry.time);
                let passed: &mut HybridTime = times.entry(Arc::clone(&record.actor.region)).or_default();
                *passed = time.max(*passed);
            }
        }
        self.finish_transaction();
        self.disk.records = records;
        self.notes.clear();
        (held, times)
    }
}

/// Sends a record's frame, cut to the entries `from..=to`; nothing if it holds none of them.
fn put_entries(out: &mut Vec<Out>, link: u64, record: &Record, from: u64, to: u64) {
    if record.last < from || record.first > to || record.frame.is_empty() {
        return;
    }
    let mut bytes = Vec::new();
    if record.first >= from && record.last <= to {
        wire::put_frame_head(&mut bytes, record.frame.len());
        bytes.extend_from_slice(&record.frame);
    } else {
        let mut actors = Actors::default();
        let Ok(frame) = Frame::parse(&record.frame, &mut actors) else { return };
        let cut = frame.slice(from, to.min(record.last), &actors);
        wire::put_frame_head(&mut bytes, cut.len());
        bytes.extend_from_slice(&cut);
    }
    out.push(Out::Bytes { link, bytes });
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

    fn flush(&mut self) -> io::Result<Position> {
        self.flush_log().map(Position).map_err(io::Error::other)
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

    fn acknowledged(&self, sequence: u64) -> usize {
        self.replica.acknowledged(sequence, self.core.rows.actors())
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

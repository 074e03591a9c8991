//! The reference engine: plain ordered rows, as slow and as awkward as an engine may be.
//!
//! It loads nothing until asked, completes every fetch some turns late and out of order, and evicts loaded rows between
//! commands, so it finds commands that take rows for granted. It keeps no log and no connection: its entries are handed
//! out as frames and taken in as frames, and a test plays the network. It is the oracle of the property tests, not for
//! use.

mod rows;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use geode_crdt::frame::{Checkpoint, EntryRef};
use geode_crdt::{
    ActorId, ActorIndex, Digest, Frame, FrameBuilder, FrameError, HybridClock, HybridTime, VersionVector,
};

use crate::engine::{Engine, Extent, FlushError, Position, Ticket};
use crate::random::Random;
use crate::view::{Need, Part};
pub use rows::{KeyId, ReferenceKey, Rows};

/// The longest time that a fetch takes.
const SLOWEST_TURNS: u64 = 4;

/// One in so many turns evicts something.
const TURNS_PER_EVICTION: u64 = 4;

/// An engine over [`Rows`].
#[derive(Debug)]
pub struct ReferenceEngine {
    rows: Rows,
    writer: ActorIndex,
    regions: usize,
    builder: FrameBuilder,
    clock: HybridClock,
    wall: HybridTime,
    /// The time of the open entry.
    time: HybridTime,
    /// What was delivered, own entries included.
    vector: VersionVector,
    /// The vector of the writer's last entry: the next one says only what changed since.
    announced: VersionVector,
    /// What the entries of each actor depend on.
    depends: BTreeMap<ActorIndex, VersionVector>,
    /// Up to which time each other region was delivered in order.
    heard: BTreeMap<Arc<str>, HybridTime>,
    /// Regions that have been away for long.
    away: BTreeSet<Arc<str>>,
    acknowledged: Vec<u64>,
    /// Where actors end that will never write again.
    ends: BTreeMap<ActorIndex, u64>,
    sweeper: bool,
    clock_ahead_ms: Option<u64>,
    frames: Vec<Vec<u8>>,
    random: Random,
    fetches: Vec<Fetch>,
    next_ticket: u64,
    completed: Vec<Ticket>,
}

#[derive(Debug)]
struct Fetch {
    ticket: Ticket,
    need: Need,
    turns: u64,
}

/// Why a frame was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Its bytes are wrong.
    Frame(FrameError),
    /// An entry of its writer before it, or one that it depends on, is missing.
    Early,
}

impl ReferenceEngine {
    /// An empty replica in `region`, one of `regions`. The seed decides how late fetches are and what is evicted.
    pub fn new(region: &str, regions: usize, seed: u64) -> Self {
        let mut rows = Rows::default();
        let writer = rows.actors.intern(&ActorId::new(region, seed));
        Self {
            rows,
            writer,
            regions,
            builder: FrameBuilder::new(writer, 1),
            clock: HybridClock::default(),
            wall: HybridTime::default(),
            time: HybridTime::default(),
            vector: VersionVector::default(),
            announced: VersionVector::default(),
            depends: BTreeMap::new(),
            heard: BTreeMap::new(),
            away: BTreeSet::new(),
            acknowledged: vec![0; regions.saturating_sub(1)],
            ends: BTreeMap::new(),
            sweeper: false,
            clock_ahead_ms: None,
            frames: Vec::new(),
            random: Random::new(seed),
            fetches: Vec::new(),
            next_ticket: 0,
            completed: Vec::new(),
        }
    }

    /// The entries written since the last call, one frame each.
    pub fn take_frames(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.frames)
    }

    /// Merges another replica's frame. Entries that are here already are passed over; one that lacks what it depends on
    /// is refused, and so is all behind it.
    pub fn deliver(&mut self, bytes: &[u8]) -> Result<(), Refused> {
        let frame = Frame::parse(bytes, &mut self.rows.actors).map_err(Refused::Frame)?;
        for entry in frame.entries() {
            let (writer, held) = (entry.writer(), self.vector.get(entry.writer()));
            if entry.sequence <= held {
                continue;
            }
            let complete = entry.changed().all(|(actor, sequence)| sequence <= self.vector.get(actor));
            if entry.sequence != held + 1 || !complete {
                return Err(Refused::Early);
            }
            self.merge(writer, &entry);
        }
        Ok(())
    }

    fn merge(&mut self, writer: ActorIndex, entry: &EntryRef<'_>) {
        self.clock.observe(entry.time);
        self.vector.raise(writer, entry.sequence);
        let depends = self.depends.entry(writer).or_default();
        entry.changed().for_each(|(actor, sequence)| depends.raise(actor, sequence));
        depends.raise(writer, entry.sequence);
        // `Frame::parse` decoded every operation once.
        for op in entry.ops().map_while(Result::ok) {
            self.rows.apply(&op, entry.time, (writer, entry.sequence));
        }
        self.rows.drop_dead(writer, &self.depends[&writer]);
        self.rows.drop_own_dead(self.writer);
        let region = Arc::clone(&self.rows.actors.id(writer).region);
        self.hear(&region, entry.time);
    }

    /// A heartbeat: `region` will write nothing more at or below `time`, and all that it wrote until then is here.
    pub fn hear(&mut self, region: &Arc<str>, time: HybridTime) {
        let heard = self.heard.entry(Arc::clone(region)).or_default();
        *heard = time.max(*heard);
    }

    /// A time that this replica's later entries will exceed, for [`Self::hear`] elsewhere.
    pub fn heartbeat(&mut self) -> HybridTime {
        self.clock.tick(self.wall)
    }

    /// Makes this replica the one that sweeps.
    pub const fn set_sweeper(&mut self, sweeper: bool) {
        self.sweeper = sweeper;
    }

    /// Makes this replica's clock one that is so far ahead, or right.
    pub const fn set_clock_ahead(&mut self, ahead_ms: Option<u64>) {
        self.clock_ahead_ms = ahead_ms;
    }

    /// Makes a region one that has been away for long, or one that is back.
    pub fn set_away(&mut self, region: &Arc<str>, away: bool) {
        if away {
            self.away.insert(Arc::clone(region));
        } else {
            self.away.remove(region);
        }
    }

    /// Another region has this writer's entries up to `sequence` on disk.
    pub fn acknowledge(&mut self, region: usize, sequence: u64) {
        self.acknowledged[region] = sequence;
    }

    /// An actor will never write again: nothing of it exists beyond `sequence`.
    pub fn end(&mut self, actor: &ActorId, sequence: u64) {
        let actor = self.rows.actors.intern(actor);
        self.ends.insert(actor, sequence);
    }

    /// The writer goes on under another name, as after a start that could not prove what it held.
    pub fn begin_incarnation(&mut self, incarnation: u64) {
        let region = Arc::clone(&self.rows.actors.id(self.writer).region);
        self.writer = self.rows.actors.intern(&ActorId::new(&region, incarnation));
        self.builder = FrameBuilder::new(self.writer, 1);
        self.announced = VersionVector::default();
    }

    /// The digest of all rows, computed anew.
    pub fn digest(&self) -> Digest {
        self.rows.digest()
    }
}

impl Engine for ReferenceEngine {
    type View = Rows;

    fn set_wall(&mut self, wall: HybridTime) {
        self.wall = wall;
    }

    fn now(&self) -> HybridTime {
        self.clock.peek(self.wall)
    }

    fn begin(&mut self) -> HybridTime {
        self.time = self.clock.tick(self.wall);
        let others = self.vector.iter().filter(|(actor, _)| *actor != self.writer);
        let changed = others.filter(|(actor, sequence)| *sequence > self.announced.get(*actor));
        self.builder.begin_entry(self.time, changed);
        self.time
    }

    fn parts(&mut self) -> (&Rows, &mut FrameBuilder) {
        (&self.rows, &mut self.builder)
    }

    fn view(&self) -> &Rows {
        &self.rows
    }

    fn apply(&mut self, from: Checkpoint) {
        let sequence = self.builder.sequence();
        // The builder wrote these bytes itself.
        for op in self.builder.ops_since(from).map_while(Result::ok) {
            self.rows.apply(&op, self.time, (self.writer, sequence));
            self.rows.keep_written(&op);
        }
        self.rows.drop_own_dead(self.writer);
    }

    fn end(&mut self) -> Option<u64> {
        let sequence = self.builder.finish_entry()?;
        self.vector.raise(self.writer, sequence);
        self.announced = self.vector.clone();
        let mut frame = Vec::new();
        self.builder.finish_into(&mut frame, &self.rows.actors);
        self.frames.push(frame);
        Some(sequence)
    }

    fn fetch(&mut self, need: &Need) -> Ticket {
        self.next_ticket += 1;
        let ticket = Ticket(self.next_ticket);
        let turns = 1 + self.random.below(SLOWEST_TURNS);
        self.fetches.push(Fetch { ticket, need: need.clone(), turns });
        ticket
    }

    fn completed(&mut self, tickets: &mut Vec<Ticket>) {
        tickets.append(&mut self.completed);
    }

    fn spill(&mut self) -> bool {
        self.flush().is_ok()
    }

    fn flush(&mut self) -> Result<Position, FlushError> {
        Ok(Position(self.last_sequence()))
    }

    fn durable(&self) -> Position {
        Position(u64::MAX)
    }

    fn last_sequence(&self) -> u64 {
        self.vector.get(self.writer)
    }

    fn writer(&self) -> u64 {
        self.writer.0.into()
    }

    fn held(&self) -> &VersionVector {
        &self.vector
    }

    fn end_of(&self, actor: ActorIndex) -> Option<u64> {
        self.ends.get(&actor).copied()
    }

    fn acknowledged(&self, sequence: u64) -> usize {
        self.acknowledged.iter().filter(|held| **held >= sequence).count()
    }

    fn clock_ahead_ms(&self) -> Option<u64> {
        self.clock_ahead_ms
    }

    fn regions(&self) -> usize {
        self.regions
    }

    fn is_sweeper(&self) -> bool {
        self.sweeper
    }

    fn swept_until(&self, extent: Extent) -> HybridTime {
        let is_away = |region: &Arc<str>| extent == Extent::Data && self.away.contains(region);
        let unheard = |region: &&Arc<str>| !self.heard.contains_key(*region);
        let away = self.away.iter().filter(|region| is_away(region)).filter(unheard);
        if self.heard.len() + away.count() + 1 < self.regions {
            return HybridTime::default();
        }
        let heard = self.heard.iter().filter(|(region, _)| !is_away(region)).map(|(_, time)| *time);
        // No later entry of its own can be earlier than now.
        heard.fold(self.now(), HybridTime::min)
    }

    fn due(&mut self, extent: Extent, until: HybridTime, limit: usize) -> Vec<(u8, Box<[u8]>)> {
        self.rows.due(extent, until, limit)
    }

    fn turn(&mut self) -> bool {
        if self.random.below(TURNS_PER_EVICTION) == 0 {
            self.rows.evict(&mut self.random);
        }
        for mut fetch in std::mem::take(&mut self.fetches) {
            fetch.turns -= 1;
            if fetch.turns == 0 {
                self.rows.loaded.insert(fetch.need);
                self.completed.push(fetch.ticket);
            } else {
                self.fetches.push(fetch);
            }
        }
        !self.fetches.is_empty()
    }
}

/// What is in memory.
type LoadedRows = BTreeSet<Need>;

fn need(database: u8, name: &[u8], part: Part) -> Box<Need> {
    Box::new(Need { database, name: name.into(), part })
}

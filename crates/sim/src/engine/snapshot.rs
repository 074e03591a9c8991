//! Snapshots: a source reads its rows and its log while it goes on, as `crates/embedded` does; what comes is collected on
//! the target's disk, and joined when the replica says so.
//!
//! Two keys at a time, so that much happens in between. A block is one message, and carries where its source goes on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use geode_crdt::{
    ActorId, ActorIndex, Frame, HybridTime, Join, SYSTEM_DATABASE, VersionVector, codec, image,
};
use geode_replica::{Fact, Joinable, Message, Replica, Vector};
use geode_store::View;
use geode_store::reference::KeyId;

use super::{Core, Note, SimEngine};
use crate::disk::Kind;
use crate::plant::Plant;

/// How many keys are read or joined at once.
const KEYS: usize = 2;

/// A part of a snapshot.
#[derive(Debug)]
pub(crate) struct Block {
    /// Where its source goes on behind it.
    place: Place,
    content: Content,
}

#[derive(Clone, Debug)]
enum Content {
    Begin(Begin),
    /// Keys with their images, and the actors that these number.
    Images {
        actors: Vec<ActorId>,
        images: Vec<(KeyId, Vec<u8>)>,
    },
    /// Frames of the log.
    Tail(Vec<Vec<u8>>),
    End(End),
}

#[derive(Clone, Debug)]
struct Begin {
    source: ActorId,
    start: Vector,
    times: BTreeMap<Arc<str>, HybridTime>,
    depends: Vec<(ActorId, Vector)>,
}

#[derive(Clone, Debug)]
struct End {
    clock: HybridTime,
    end: Vector,
}

/// A whole snapshot.
pub(crate) type Snapshot = Vec<Arc<Block>>;

/// What a record says of a snapshot that is joined.
#[derive(Debug)]
pub(crate) struct Joined {
    pub(super) snapshot: Arc<Snapshot>,
    /// What the log will never hold of each actor, up to here.
    pub(crate) gaps: Vec<(ActorId, u64)>,
}

/// Where a source goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    snapshot: u64,
    process: u64,
    incarnation: u64,
    /// The next record of the log.
    tail: usize,
    /// The next key, `None` behind the last.
    key: Option<KeyId>,
}

/// What is sent to a peer.
#[derive(Debug)]
pub(super) struct Sending {
    pub(super) attempt: u64,
    place: Place,
    end: Option<(u64, End)>,
    is_done: bool,
    /// Blocks, and up to where the log must be safe before they are shown.
    pub(super) queue: VecDeque<(u64, Arc<Block>)>,
}

/// The snapshot that comes in.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    attempt: u64,
    source: Option<Arc<str>>,
    pub(super) staged: Option<Arc<Snapshot>>,
    joining: Option<Joining>,
    /// What was joined, and how many of its blocks were looked at for entries.
    tail: Option<(Arc<Snapshot>, usize)>,
}

/// A snapshot on its way into the rows.
#[derive(Debug)]
pub(super) struct Joining {
    snapshot: Arc<Snapshot>,
    next: usize,
    held: VersionVector,
    start: VersionVector,
    seen: BTreeSet<KeyId>,
}

/// What was joined.
pub(super) struct Done {
    pub(super) start: VersionVector,
    end: VersionVector,
    times: BTreeMap<Arc<str>, HybridTime>,
}

impl Block {
    pub(crate) const fn is_end(&self) -> bool {
        matches!(self.content, Content::End(_))
    }
}

fn ends(snapshot: &Snapshot) -> Option<(&Begin, &End)> {
    match (&snapshot.first()?.content, &snapshot.last()?.content) {
        (Content::Begin(begin), Content::End(end)) => Some((begin, end)),
        _ => None,
    }
}

impl Place {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for word in [self.snapshot, self.process, self.incarnation, self.tail as u64] {
            codec::put_varint(&mut out, word);
        }
        if let Some((database, name)) = &self.key {
            codec::put_varint(&mut out, (*database).into());
            codec::put_bytes(&mut out, name);
        }
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = codec::Reader::new(bytes);
        let mut word = || reader.varint().ok();
        let (snapshot, process, incarnation, tail) = (word()?, word()?, word()?, word()?);
        let key = match reader.is_empty() {
            true => None,
            false => Some((reader.varint().ok()?.try_into().ok()?, reader.bytes().ok()?.into())),
        };
        Some(Self { snapshot, process, incarnation, tail: tail as usize, key })
    }
}

impl Joining {
    pub(super) fn new(snapshot: Arc<Snapshot>, held: VersionVector) -> Self {
        Self { snapshot, next: 0, held, start: VersionVector::default(), seen: BTreeSet::new() }
    }

    /// Joins one block, at last the keys of which the snapshot has no row. Returns whether that was all.
    pub(super) fn step(&mut self, core: &mut Core) -> bool {
        let snapshot = Arc::clone(&self.snapshot);
        let Some(block) = snapshot.get(self.next) else {
            let others = core.rows.key_ids().filter(|key| !self.seen.contains(*key));
            for key in others.cloned().collect::<Vec<_>>() {
                self.join(&key, image::Cells::new(), core);
            }
            return true;
        };
        self.next += 1;
        match &block.content {
            Content::Begin(begin) => {
                let actors = core.rows.actors_mut();
                self.start = begin.start.intern(actors);
                for (owner, depends) in &begin.depends {
                    let (owner, depends) = (actors.intern(owner), depends.intern(actors));
                    core.depends.entry(owner).or_default().join(&depends);
                }
            }
            Content::Images { actors, images } => {
                let names: Vec<ActorIndex> =
                    actors.iter().map(|actor| core.rows.actors_mut().intern(actor)).collect();
                for (key, image) in images {
                    // The source wrote it.
                    let Ok(cells) = image::cells(image, |number| names.get(number as usize).copied()) else {
                        continue;
                    };
                    self.join(key, cells, core);
                    self.seen.insert(key.clone());
                }
            }
            Content::Tail(_) | Content::End(_) => {}
        }
        false
    }

    fn join(&self, key: &KeyId, cells: image::Cells, core: &mut Core) {
        if core.is(Plant::SnapshotReplaces) {
            core.rows.replace(key, cells);
        } else {
            core.rows.join(key, cells, Join { held: &self.held, start: &self.start });
        }
    }

    /// All rows were joined: what else came with them.
    pub(super) fn finish(self, core: &mut Core) -> Done {
        let mut done = Done { start: self.start, end: VersionVector::default(), times: BTreeMap::new() };
        let Some((begin, end)) = ends(&self.snapshot) else { return done };
        core.clock.observe(end.clock);
        done.end = end.end.intern(core.rows.actors_mut());
        let news =
            done.start.iter().filter(|(actor, upto)| *upto > self.held.get(*actor) && *actor != core.own);
        core.changed.extend(news.map(|(actor, _)| actor));
        let own_region = Arc::clone(&core.rows.actors().id(core.own).region);
        for (region, time) in begin.times.iter().filter(|(region, _)| **region != own_region) {
            let last = core.times.entry(Arc::clone(region)).or_default();
            *last = (*time).max(*last);
        }
        done.times = core.times.clone();
        for (owner, depends) in &core.depends {
            core.rows.drop_dead(*owner, depends);
        }
        core.rows.drop_own_dead(core.own);
        let facts = core.rows.puts(SYSTEM_DATABASE);
        let facts =
            facts.filter_map(|((_, key), field, put)| Some((Fact::parse(key, field, &put.value)?, put.time)));
        core.facts.extend(facts.collect::<Vec<_>>());
        done
    }
}

impl Incoming {
    /// After a start: the entries of the last snapshot that was joined may not all be here.
    pub(super) fn after(joined: Option<Arc<Joined>>, replica: &mut Replica, core: &mut Core) -> Self {
        let mut this = Self::default();
        if let Some(joined) = joined
            && let Some((_, end)) = ends(&joined.snapshot)
        {
            replica.await_tail(end.end.intern(core.rows.actors_mut()));
            this.tail = Some((Arc::clone(&joined.snapshot), 0));
        }
        this
    }
}

/// The source.
impl SimEngine {
    pub(super) fn send_snapshot(&mut self, peer: &str, attempt: u64, resume: &[u8]) {
        match self.begin_sending(attempt, resume) {
            Ok(sending) => {
                if let Some(link) = self.links.get_mut(peer) {
                    link.sending = Some(sending);
                }
            }
            Err(reason) => self.tell_peer(peer, &Message::Unable { reason: reason.to_owned() }),
        }
    }

    fn begin_sending(&mut self, attempt: u64, resume: &[u8]) -> Result<Sending, &'static str> {
        let position = self.log_of_whole()?;
        let incarnation = self.own().incarnation;
        let mut sending = Sending {
            attempt,
            place: Place {
                snapshot: self.wall.0,
                process: self.process,
                incarnation,
                tail: self.core.disk.records.len(),
                key: Some((0, Box::default())),
            },
            end: None,
            is_done: false,
            queue: VecDeque::new(),
        };
        let (trimmed, _) = self.core.disk.visible();
        if let Some(place) = Place::decode(resume)
            && (place.process, place.incarnation) == (self.process, incarnation)
            && place.tail >= trimmed
        {
            sending.place = place;
            return Ok(sending);
        }
        let actors = self.core.rows.actors();
        let mut times = self.core.times.clone();
        times.insert(Arc::clone(&self.region), self.core.clock.last());
        let depends = self.core.depends.iter();
        let begin = Begin {
            source: self.own().clone(),
            start: Vector::of(self.replica.held(), actors),
            times,
            depends: depends.map(|(owner, by)| (actors.id(*owner).clone(), Vector::of(by, actors))).collect(),
        };
        sending.put(position, Content::Begin(begin));
        Ok(sending)
    }

    /// Everything that is shown is in the log before the returned position.
    fn log_of_whole(&mut self) -> Result<u64, &'static str> {
        if !self.is_whole() {
            return Err("it is joining itself");
        }
        self.flush_log()
    }

    /// Reads some more for a peer.
    fn read_for(&mut self, sending: &mut Sending) -> Result<(), &'static str> {
        let position = self.log_of_whole()?;
        if self.own().incarnation != sending.place.incarnation {
            return Err("it goes on as another writer");
        }
        let core = &self.core;
        if let Some(key) = sending.place.key.take() {
            let mut numbers = Vec::new();
            let (images, next) = core.rows.images(&key, KEYS, |actor| {
                let known = numbers.iter().position(|known| *known == actor);
                known.unwrap_or_else(|| {
                    numbers.push(actor);
                    numbers.len() - 1
                }) as u32
            });
            sending.place.key = next;
            let actors = numbers.into_iter().map(|actor| core.rows.actors().id(actor).clone()).collect();
            sending.put(position, Content::Images { actors, images });
        }
        if sending.place.key.is_none() && sending.end.is_none() {
            let end = Vector::of(self.replica.held(), core.rows.actors());
            sending.end = Some((position, End { clock: core.clock.last(), end }));
        }
        let end = sending.end.as_ref().map_or(u64::MAX, |(end, _)| *end);
        let limit = self.shippable().min(end);
        let (trimmed, _) = core.disk.visible();
        if sending.place.tail < trimmed {
            return Err("its log no longer reaches back to where the snapshot began");
        }
        let mut frames = Vec::new();
        for record in core.disk.records[sending.place.tail..].iter().take_while(|record| record.end <= limit)
        {
            match record.kind {
                Kind::Own | Kind::Foreign => frames.push(record.frame.clone()),
                // What was read before is no part of what is held now.
                Kind::Incarnation(_) | Kind::Joined => {
                    *sending = self.begin_sending(sending.attempt, &[])?;
                    return Ok(());
                }
            }
            sending.place.tail += 1;
        }
        if !frames.is_empty() {
            sending.put(0, Content::Tail(frames));
        }
        let read = sending.place.tail.checked_sub(1).map_or(0, |last| core.disk.records[last].end);
        if let Some((position, end)) = sending.end.take_if(|(end, _)| *end <= read) {
            sending.put(position, Content::End(end));
            sending.is_done = true;
        }
        Ok(())
    }
}

impl Sending {
    fn put(&mut self, position: u64, content: Content) {
        self.queue.push_back((position, Arc::new(Block { place: self.place.clone(), content })));
    }
}

/// Backups: the same in a file.
impl SimEngine {
    /// All of a snapshot at once; `None` if this region is not whole.
    pub(crate) fn back_up(&mut self) -> Option<Arc<Snapshot>> {
        let position = self.log_of_whole().ok()?;
        // It waits for the disk, as it does for keys.
        self.synced(position);
        let mut sending = self.begin_sending(0, &[]).ok()?;
        while !sending.is_done {
            self.read_for(&mut sending).ok()?;
        }
        Some(Arc::new(sending.queue.into_iter().map(|(_, block)| block).collect()))
    }
}

/// The target.
impl SimEngine {
    /// Whether what is held is a state that there was.
    pub(crate) const fn is_whole(&self) -> bool {
        self.replica.is_whole() || self.core.serves_before_tail(&self.replica)
    }

    pub(super) fn fetch_snapshot(&mut self, peer: &Arc<str>) {
        self.incoming.attempt += 1;
        self.incoming.source = Some(Arc::clone(peer));
        let staging = &self.core.disk.staging;
        let is_its = staging.first().is_some_and(|block| match &block.content {
            Content::Begin(begin) => begin.source.region == *peer,
            _ => false,
        });
        let resume = staging.last().filter(|_| is_its).map_or_else(Vec::new, |block| block.place.encode());
        let attempt = self.incoming.attempt;
        self.tell_peer(peer, &Message::Ask { attempt, resume });
    }

    /// A block of a snapshot arrived. Returns a line about it.
    pub(crate) fn receive_block(&mut self, peer: &str, attempt: u64, block: Arc<Block>) -> String {
        if attempt != self.incoming.attempt || !self.replica.snapshot_goes_on(peer) {
            return "a block of a snapshot that nobody asked for".to_owned();
        }
        let staging = &mut self.core.disk.staging;
        let begins = matches!(block.content, Content::Begin(_));
        if begins {
            staging.clear();
        }
        if !begins && staging.last().is_none_or(|last| last.place.snapshot != block.place.snapshot) {
            staging.clear();
            self.replica.snapshot_failed();
            return "a block of another snapshot".to_owned();
        }
        staging.push(block);
        let shown = format!("block {} of a snapshot", staging.len());
        if staging.last().is_some_and(|block| block.is_end()) {
            self.stage();
            self.act();
        }
        shown
    }

    /// All of a snapshot is here.
    fn stage(&mut self) {
        let snapshot = std::mem::take(&mut self.core.disk.staging);
        let Some((begin, end)) = ends(&snapshot) else { return };
        let actors = self.core.rows.actors_mut();
        let joinable = Joinable {
            source: actors.intern(&begin.source),
            start: begin.start.intern(actors),
            end: end.end.intern(actors),
            clock: end.clock,
        };
        self.incoming.staged = Some(Arc::new(snapshot));
        self.replica.snapshot_staged(joinable, self.core.rows.actors());
    }

    /// Planted: what came before the link broke is taken for all.
    pub(super) fn join_what_came(&mut self, peer: &str) {
        let staging = &mut self.core.disk.staging;
        if self.core.plant != Some(Plant::JoinedThoughCut)
            || self.incoming.source.as_deref() != Some(peer)
            || staging.len() < 2
        {
            return;
        }
        let (Some(first), Some(last)) = (staging.first(), staging.last()) else { return };
        if let Content::Begin(begin) = &first.content {
            let end = End { clock: HybridTime(0), end: begin.start.clone() };
            let block = Block { place: last.place.clone(), content: Content::End(end) };
            staging.push(Arc::new(block));
            self.stage();
        }
    }

    pub(super) fn join_snapshot(&mut self) {
        if let Some(snapshot) = self.incoming.staged.take() {
            self.begin_join(snapshot);
        }
    }

    /// The region begins with a backup, at once.
    pub(super) fn begin_with_backup(&mut self, backup: Arc<Snapshot>) {
        self.replica.begins_behind();
        self.core.disk.is_behind = true;
        self.begin_join(backup);
        while let Some(joining) = &mut self.incoming.joining {
            if joining.step(&mut self.core) {
                self.end_join();
            }
        }
        let written = self.core.disk.written();
        self.synced(written);
    }

    /// Says in the log that the snapshot is joined here, and begins to do it.
    fn begin_join(&mut self, snapshot: Arc<Snapshot>) {
        let Some((begin, _)) = ends(&snapshot) else { return };
        let held = self.replica.held().clone();
        let start = begin.start.intern(self.core.rows.actors_mut());
        let gaps = start.iter().filter(|(actor, upto)| *upto > held.get(*actor));
        let actors = self.core.rows.actors();
        let gaps = gaps.map(|(actor, upto)| (actors.id(actor).clone(), upto)).collect();
        self.core.push_joined(Arc::new(Joined { snapshot: Arc::clone(&snapshot), gaps }));
        // Otherwise the process ends with this turn.
        if self.flush_log().is_ok() {
            self.replica.begin_join();
            self.incoming.joining = Some(Joining::new(snapshot, held));
        }
    }

    /// One step of whatever is under way, in both directions.
    pub(super) fn keep_snapshots(&mut self) {
        if let Some(joining) = &mut self.incoming.joining {
            if joining.step(&mut self.core) {
                self.end_join();
            }
        } else if self.replica.awaits_tail() {
            self.step_tail();
        } else {
            self.incoming.tail = None;
        }
        for peer in self.links.keys().cloned().collect::<Vec<_>>() {
            let Some(mut sending) = self.links.get_mut(&peer).and_then(|link| link.sending.take()) else {
                continue;
            };
            if !sending.is_done
                && let Err(reason) = self.read_for(&mut sending)
            {
                self.tell_peer(&peer, &Message::Unable { reason: reason.to_owned() });
            } else if let Some(link) = self.links.get_mut(&peer) {
                link.sending = Some(sending);
            }
        }
    }

    fn end_join(&mut self) {
        let Some(joining) = self.incoming.joining.take() else { return };
        self.incoming.tail = Some((Arc::clone(&joining.snapshot), 0));
        let held = joining.held.clone();
        let done = joining.finish(&mut self.core);
        let mut news = VersionVector::default();
        let came = done.start.iter().filter(|(actor, upto)| *upto > held.get(*actor));
        came.for_each(|(actor, upto)| news.raise(actor, upto));
        self.core.notes.push(Note::Joined(Vector::of(&news, self.core.rows.actors())));
        self.passing(|engine| {
            engine.replica.joined(&done.start, &done.end, &done.times, &mut engine.core);
        });
    }

    /// Delivers what came with the snapshot behind its start.
    fn step_tail(&mut self) {
        let Some((snapshot, next)) = &mut self.incoming.tail else { return };
        let block = snapshot.get(*next).cloned();
        *next += 1;
        if let Some(Content::Tail(frames)) = block.as_ref().map(|block| &block.content) {
            self.passing(|engine| {
                for bytes in frames {
                    if let Ok(frame) = Frame::parse(bytes, engine.core.rows.actors_mut()) {
                        engine.replica.supply(&frame, &mut engine.core);
                    }
                }
            });
        }
    }
}

impl Core {
    /// Planted: the entries that came with a snapshot are not waited for.
    const fn serves_before_tail(&self, replica: &Replica) -> bool {
        matches!(self.plant, Some(Plant::ServedBeforeTail)) && !replica.is_applying_snapshot()
    }
}

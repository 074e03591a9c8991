//! What an entry passes through: rows, clock, dependencies, the log.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use geode_crdt::frame;
use geode_crdt::{
    ActorId, ActorIndex, Actors, Frame, FrameBuilder, HybridClock, HybridTime, Op, VersionVector,
};
use geode_replica::{Fact, Host, Unreadable};
use geode_store::View;
use geode_store::reference::Rows;

use super::{Joined, Note};
use crate::disk::{Disk, Kind, Record};
use crate::life::fact_of;
use crate::plant::Plant;

/// What an entry passes through.
pub(crate) struct Core {
    pub(crate) rows: Rows,
    pub(super) depends: BTreeMap<ActorIndex, VersionVector>,
    /// By region, the time of its last entry that is held.
    pub(super) times: BTreeMap<Arc<str>, HybridTime>,
    pub(crate) clock: HybridClock,
    pub(super) own: ActorIndex,
    /// Actors of which entries were delivered since the last own entry.
    pub(super) changed: BTreeSet<ActorIndex>,
    pub(super) builder: FrameBuilder,
    pub(super) batch: Vec<Record>,
    pub(crate) disk: Disk,
    pub(crate) notes: Vec<Note>,
    pub(super) passed: HybridTime,
    /// What was learned of the life of regions and actors, and not yet told to the replica.
    pub(crate) facts: Vec<(Fact, HybridTime)>,
    pub(super) plant: Option<Plant>,
    /// The second half of a transaction that was cut.
    pub(super) rest: Option<(Vec<u8>, u64)>,
    /// Log positions that are not synced yet, with what they hold.
    pub(super) unsynced: VecDeque<(u64, ActorIndex, u64)>,
}

impl Core {
    pub(super) fn empty(disk: Disk, region: &str, plant: Option<Plant>) -> Self {
        let mut rows = Rows::default();
        let own = rows.actors_mut().intern(&ActorId::new(region, 0));
        Self {
            rows,
            depends: BTreeMap::new(),
            times: BTreeMap::new(),
            clock: HybridClock::default(),
            own,
            changed: BTreeSet::new(),
            builder: FrameBuilder::new(own, 1),
            batch: Vec::new(),
            disk,
            notes: Vec::new(),
            passed: HybridTime(0),
            facts: Vec::new(),
            plant,
            rest: None,
            unsynced: VecDeque::new(),
        }
    }

    pub(crate) fn is(&self, plant: Plant) -> bool {
        self.plant == Some(plant)
    }

    pub(super) fn close_batch(&mut self) {
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

    pub(super) fn push(&mut self, kind: Kind, actor: ActorId, first: u64, last: u64, frame: Vec<u8>) {
        let synced = self.disk.synced;
        self.batch.push(Record { kind, frame, actor, first, last, synced, end: 0, joined: None });
    }

    /// Says in the log that a snapshot is joined here.
    pub(super) fn push_joined(&mut self, joined: Arc<Joined>) {
        self.close_batch();
        let actor = self.rows.actors().id(self.own).clone();
        let (kind, synced) = (Kind::Joined, self.disk.synced);
        let joined = Some(joined);
        self.batch.push(Record { kind, frame: Vec::new(), actor, first: 1, last: 0, synced, end: 0, joined });
    }

    pub(super) fn flush(&mut self) -> Result<u64, &'static str> {
        self.close_batch();
        let from = self.disk.records.len();
        self.disk.append(&mut self.batch)?;
        for record in &self.disk.records[from..] {
            note_logged(record, &mut self.notes);
            for (actor, upto) in record.joined.iter().flat_map(|joined| &joined.gaps) {
                self.unsynced.extend(self.rows.actors().find(actor).map(|actor| (record.end, actor, *upto)));
            }
            if let Some(actor) = self.rows.actors().find(&record.actor)
                && record.last > 0
            {
                self.unsynced.push_back((record.end, actor, record.last));
            }
        }
        Ok(self.disk.written())
    }

    /// Applies the entries `from..=to` of a frame to rows, clock and dependencies.
    pub(super) fn merge(&mut self, frame: &Frame<'_>, from: u64, to: u64) {
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
            if actor.region != self.rows.actors().id(self.own).region {
                let last = self.times.entry(Arc::clone(&actor.region)).or_default();
                *last = entry.time.max(*last);
            }
            let (sequence, time, passed) = (entry.sequence, entry.time, self.passed);
            self.notes.push(Note::Delivered { actor, sequence, time, passed });
        }
        if writer == self.own {
            self.changed.clear();
        } else {
            self.changed.insert(writer);
        }
    }

    pub(super) fn apply(&mut self, ops: &[Op<'_>], time: HybridTime, by: (ActorIndex, u64)) {
        for op in ops {
            self.facts.extend(fact_of(op).map(|fact| (fact, time)));
            match self.plant {
                None => self.rows.apply(op, time, by),
                Some(plant) => self.apply_planted(plant, op, ops, time, by),
            }
        }
    }
}

pub(super) fn note_logged(record: &Record, notes: &mut Vec<Note>) {
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

    fn fingerprint(&mut self, actor: ActorIndex, sequence: u64) -> Result<Option<u32>, Unreadable> {
        if self.flush().is_err() {
            return Ok(None);
        }
        let id = self.rows.actors().id(actor);
        let holds = |record: &&Record| {
            record.actor == *id
                && (record.first..=record.last).contains(&sequence)
                && !record.frame.is_empty()
        };
        let found = self.disk.visible().1.iter().rev().find(holds).and_then(|record| {
            let mut actors = Actors::default();
            let frame = Frame::parse(&record.frame, &mut actors).ok()?;
            fingerprint(&frame, sequence, &actors)
        });
        Ok(found)
    }

    fn is_trimmed(&mut self, actor: ActorIndex, sequence: u64) -> bool {
        self.disk.is_trimmed(self.rows.actors().id(actor), sequence)
    }
}

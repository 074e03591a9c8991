//! The rows and what their next entry depends on: the state that the log, replayed, gives again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use geode_crdt::{ActorIndex, Frame, HybridClock, HybridTime, SYSTEM_DATABASE, VersionVector};
use geode_replica::Fact;
use geode_store::View;

use crate::life::fact_of;
use crate::table::{Origin, Table, Trace};

/// The state of a replica.
#[derive(Debug)]
pub(crate) struct Rows {
    pub(crate) table: Table,
    pub(crate) clock: HybridClock,
    /// The incarnation under which this region writes.
    pub(crate) own: ActorIndex,
    /// Actors of which entries were delivered since the last own entry.
    pub(crate) changed: BTreeSet<ActorIndex>,
    /// What was delivered of the life of regions and actors, and not yet told to the replica.
    pub(crate) facts: Vec<(Fact, HybridTime)>,
    /// The greatest time delivered of each other region.
    pub(crate) times: BTreeMap<Arc<str>, HybridTime>,
    /// The snapshot that was joined and whose entries are not all delivered.
    pub(crate) unfinished: Option<u64>,
}

impl Rows {
    /// No rows, and a clock that stands at zero.
    pub(crate) fn new(table: Table, own: ActorIndex) -> Self {
        let clock = HybridClock::default();
        Self {
            table,
            clock,
            own,
            changed: BTreeSet::new(),
            facts: Vec::new(),
            times: BTreeMap::new(),
            unfinished: None,
        }
    }

    /// Applies the entries `from..=to` of a frame. `suspect` is told of entries that may have left a conflict.
    pub(crate) fn deliver(
        &mut self,
        frame: &Frame<'_>,
        from: u64,
        to: u64,
        mut suspect: impl FnMut(&Table, &geode_crdt::frame::EntryRef<'_>),
    ) {
        let (writer, mut last) = (frame.writer(), None);
        for entry in frame.entries().filter(|entry| (from..=to).contains(&entry.sequence)) {
            self.table.entry_delivered(writer, entry.changed());
            let origin = Origin { time: entry.time, writer, sequence: entry.sequence, own: self.own };
            let mut trace = Trace::Clean;
            // The frame was checked as a whole, so no operation is an error.
            for op in entry.ops().flatten() {
                if op.key().database == SYSTEM_DATABASE {
                    self.facts.extend(fact_of(&op).map(|fact| (fact, entry.time)));
                }
                if self.table.apply(&op, origin) == Trace::Suspect {
                    trace = Trace::Suspect;
                }
            }
            if trace == Trace::Suspect {
                suspect(&self.table, &entry);
            }
            self.clock.observe(entry.time);
            last = Some(entry.time);
        }
        if let Some(time) = last {
            self.note_time(writer, time);
        }
        if writer == self.own {
            self.changed.clear();
        } else {
            self.changed.insert(writer);
        }
    }

    /// An entry of `writer` from `time` was delivered.
    fn note_time(&mut self, writer: ActorIndex, time: HybridTime) {
        let actors = self.table.actors();
        let region = &actors.id(writer).region;
        if *region == actors.id(self.own).region {
            return;
        }
        match self.times.get_mut(region) {
            Some(passed) => *passed = time.max(*passed),
            None => drop(self.times.insert(Arc::clone(region), time)),
        }
    }

    /// Goes on as `own`, whose first entry depends on everything held.
    pub(crate) fn begin_incarnation(&mut self, own: ActorIndex, held: &VersionVector) {
        self.own = own;
        self.changed = held.iter().map(|(actor, _)| actor).collect();
    }

    /// Time never runs back behind `floor`.
    pub(crate) fn raise_clock(&mut self, floor: HybridTime) {
        self.clock.observe(floor);
    }
}

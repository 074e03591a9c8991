//! What regions tell each other about their own life: facts, as rows of the system database.

use std::sync::Arc;

use geode_crdt::{HybridTime, KeyName, Kind, Op, SYSTEM_DATABASE};
use geode_replica::Fact;
use geode_store::{Engine, KeyView, Need, Part, View};

use crate::engine::SimEngine;
use crate::plant::Plant;
use crate::world::World;

/// What an operation says, if it is about the life of regions.
pub(crate) fn fact_of(op: &Op<'_>) -> Option<Fact> {
    match op {
        Op::Put { key, kind: Kind::Hash, element, value, .. } if key.database == SYSTEM_DATABASE => {
            Fact::parse(key.name, element, value)
        }
        _ => None,
    }
}

impl SimEngine {
    /// Tells the replica what was delivered of such facts.
    pub(crate) fn learn(&mut self) {
        while !self.core.facts.is_empty() {
            let facts = std::mem::take(&mut self.core.facts);
            self.replica.learned(&facts, &mut self.core);
        }
    }

    /// Writes what this region owes the others, as one entry.
    fn tell(&mut self) {
        if self.core.is(Plant::EndWithoutMember) {
            self.speak_for_others();
        }
        let owed = self.replica.owed(self.core.rows.actors());
        if owed.is_empty() || self.failed {
            return;
        }
        self.write_facts(&owed);
    }

    /// Planted: whoever has not reported is taken to hold nothing.
    fn speak_for_others(&mut self) {
        let closed: Vec<_> =
            self.core.rows.actors().iter().map(|(index, actor)| (index, actor.clone())).collect();
        let closed = closed.into_iter().filter(|(index, _)| self.replica.is_closed(*index));
        let regions: Vec<Arc<str>> = self.replica.peers().map(|(region, ..)| Arc::clone(region)).collect();
        let view = self.replica.view();
        for (_, actor) in closed {
            for region in &regions {
                let (actor, region) = (actor.clone(), Arc::clone(region));
                self.core.facts.push((Fact::Report { actor, region, view, upto: 0 }, HybridTime(0)));
            }
        }
        self.learn();
    }

    pub(crate) fn write_facts(&mut self, facts: &[Fact]) {
        self.begin();
        let from = self.parts().1.checkpoint();
        for fact in facts {
            let (field, value) = fact.to_field();
            let key = KeyName { database: SYSTEM_DATABASE, name: fact.key() };
            for part in [Part::Summary, Part::Cell(Kind::Hash, field.as_slice().into())] {
                self.core.rows.load(&Need { database: key.database, name: key.name.into(), part });
            }
            let (rows, builder) = self.parts();
            let cell =
                rows.key(key).ok().flatten().and_then(|key| key.cell(Kind::Hash, &field).ok().flatten());
            let seen: Vec<_> = cell.into_iter().flat_map(|cell| cell.puts().map(|put| put.dot)).collect();
            builder.put(key, Kind::Hash, &field, &value, seen);
        }
        self.apply(from);
        self.end();
        self.act();
    }
}

impl World<'_> {
    /// A region tells the others what it owes them.
    pub(crate) fn tell(&mut self, region: usize) {
        let Some(process) = &mut self.regions[region].process else { return };
        let engine = &mut process.store.engine;
        if process.first_write_us.is_some() || engine.clock_ahead_ms().is_some() {
            return;
        }
        engine.tell();
        for entry in std::mem::take(&mut engine.wrote) {
            self.say(|world| format!("{} says what it owes, entry {}", world.names[region], entry.sequence));
            self.check_order(region, entry.time);
            self.history.write_elsewhere(region, entry.time.0);
        }
    }
}

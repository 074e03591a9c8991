//! What regions tell each other about their own life: facts, as rows of the system database.

use std::collections::BTreeSet;
use std::sync::Arc;

use geode_crdt::{ActorId, HybridTime, KeyName, Kind, Op, SYSTEM_DATABASE};
use geode_replica::{Coverage, Fact};
use geode_store::{Engine, KeyView, Need, Part, View};

use crate::disk::Disk;
use crate::engine::SimEngine;
use crate::plan::FaultKind;
use crate::plant::Plant;
use crate::world::{Event, Region, World};

/// When an operator tries again who found nobody to ask.
const AGAIN_US: u64 = 50_000;
/// How often he looks whether the region is back for good, and until when after everything is healed.
const LOOK_US: u64 = 1_000_000;
const LAST_LOOK_MS: u64 = 20_000;

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
        if owed.iter().any(|fact| matches!(fact, Fact::Report { .. })) {
            // A report is a promise: no crash may take away what it rests on.
            let Ok(position) = self.flush_log() else { return };
            self.synced(position);
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
    /// A region's machine is lost with its disk.
    pub(crate) fn lose(&mut self, region: usize) {
        self.regions[region].is_up = false;
        let lost = self.end_process(region).or_else(|| self.regions[region].disk.take());
        self.say(|world| format!("{} is lost", world.names[region]));
        if lost.is_none() {
            return;
        }
        let name = self.names[region].clone();
        let wrote = self.acknowledged.keys().filter(|(actor, _)| *actor.region == *name).cloned();
        self.excused.extend(wrote.collect::<Vec<_>>());
        // What only it had on disk beside a writer that crashed.
        let others = (0..self.plan.regions).filter(|other| *other != region);
        let kept: BTreeSet<(ActorId, u64)> = others.flat_map(|other| self.on_disk(other)).collect();
        let gone: Vec<_> = self.confirmed.difference(&kept).cloned().collect();
        for name in gone {
            self.confirmed.remove(&name);
            self.excused.insert(name);
        }
    }

    /// A backup is taken of a region that serves; otherwise there is none.
    pub(crate) fn back_up(&mut self, fault: usize, region: usize) {
        let Some(process) = &mut self.regions[region].process else { return };
        if let Some(backup) = process.store.engine.back_up() {
            self.backups.insert(fault, backup);
            self.end_turn(region);
        }
    }

    /// A region's machine is lost with its disk, and the region begins with its backup.
    pub(crate) fn restore(&mut self, fault: usize) {
        let FaultKind::Restore { region, down_ms, .. } = self.plan.faults[fault].kind else { return };
        let Some(backup) = self.backups.remove(&fault).filter(|_| !self.is_quiet) else { return };
        self.lose(region);
        self.say(|world| format!("{} is restored from a backup", world.names[region]));
        self.regions[region].disk = Some(Disk::restored(backup));
        self.start_in(region, down_ms);
    }

    fn on_disk(&self, region: usize) -> Vec<(ActorId, u64)> {
        let Region { process, disk, .. } = &self.regions[region];
        let disk = process.as_ref().map(|process| &process.store.engine.core.disk).or(disk.as_ref());
        // What is only in the kernel may go with the next crash.
        let safe = |disk: &Disk| disk.records.partition_point(|record| record.end <= disk.synced);
        let records = disk.into_iter().flat_map(|disk| &disk.records[..safe(disk)]);
        records
            .flat_map(|record| {
                let came = record.joined.iter().flat_map(|joined| joined.gaps.iter().cloned());
                let came =
                    came.flat_map(|(actor, upto)| (1..=upto).map(move |sequence| (actor.clone(), sequence)));
                let logged = (record.first..=record.last).map(|sequence| (record.actor.clone(), sequence));
                logged.chain(came)
            })
            .collect()
    }

    /// The first region that can say something for the operator of another.
    fn spokesman(&self, region: usize) -> Option<usize> {
        (0..self.plan.regions).find(|other| {
            let process = self.regions[*other].process.as_ref();
            *other != region
                && process.is_some_and(|process| {
                    let engine = &process.store.engine;
                    process.first_write_us.is_none()
                        && engine.is_whole()
                        && engine.clock_ahead_ms().is_none()
                        && engine.replica.is_member()
                })
        })
    }

    fn say_for(&mut self, spokesman: usize, facts: &[Fact]) {
        let wall = self.wall(spokesman);
        let Some(process) = &mut self.regions[spokesman].process else { return };
        process.store.engine.set_wall(wall);
        process.store.engine.write_facts(facts);
        // Before anything else is asked of it: by what was said its clock may be one that no longer writes.
        self.record_told(spokesman);
        self.tell(spokesman);
        self.end_turn(spokesman);
    }

    /// An operator evicts a region, on his word alone.
    pub(crate) fn evict(&mut self, fault: usize) {
        let FaultKind::Evict { region, back_ms, .. } = self.plan.faults[fault].kind else { return };
        let Some(spokesman) = self.spokesman(region) else {
            return self.at(self.now_us + AGAIN_US, Event::Evict(fault));
        };
        self.say(|world| format!("{} evicts {}", world.names[spokesman], world.names[region]));
        let Some(process) = &self.regions[spokesman].process else { return };
        let engine = &process.store.engine;
        let facts = engine.replica.eviction(&self.names[region], "", engine.core.rows.actors());
        self.say_for(spokesman, &facts);
        self.at(self.now_us + back_ms * 1_000, Event::Rejoin(fault));
    }

    /// An evicted region comes back with an empty disk, as soon as whoever is asked knows that it was evicted.
    pub(crate) fn rejoin(&mut self, fault: usize) {
        let FaultKind::Evict { region, .. } = self.plan.faults[fault].kind else { return };
        let Some(spokesman) = self.spokesman(region) else {
            return self.at(self.now_us + AGAIN_US, Event::Rejoin(fault));
        };
        let Some(process) = &self.regions[spokesman].process else { return };
        let Some(fact) = process.store.engine.replica.readmission(&self.names[region]) else {
            let is_back = self.regions[region].process.is_some() || self.regions[region].disk.is_some();
            // Otherwise whoever said it has crashed before others heard of it.
            return if is_back { self.look_again(fault) } else { self.evict(fault) };
        };
        self.lose(region);
        self.say_for(spokesman, &[fact]);
        self.say(|world| format!("{} comes back as new", world.names[region]));
        self.regions[region].disk = Some(Disk::new());
        self.start(region);
        self.look_again(fault);
    }

    /// An eviction by somebody else may become known only now, and stand.
    fn look_again(&mut self, fault: usize) {
        if self.now_us < (self.plan.length_ms + LAST_LOOK_MS) * 1_000 {
            self.at(self.now_us + LOOK_US, Event::Rejoin(fault));
        }
    }

    /// Whether a part of what a session saw is lost for good.
    pub(crate) fn is_lost(&self, region: usize, client: usize) -> bool {
        self.regions[region].process.as_ref().is_some_and(|process| {
            let engine = &process.store.engine;
            engine.replica.covers(&self.clients[client].token, engine.core.rows.actors()) == Coverage::Lost
        })
    }

    /// A region tells the others what it owes them.
    pub(crate) fn tell(&mut self, region: usize) {
        let Some(process) = &mut self.regions[region].process else { return };
        let engine = &mut process.store.engine;
        if process.first_write_us.is_some() || engine.clock_ahead_ms().is_some() || !engine.is_whole() {
            return;
        }
        engine.tell();
        self.record_told(region);
    }

    fn record_told(&mut self, region: usize) {
        let Some(process) = &mut self.regions[region].process else { return };
        for entry in std::mem::take(&mut process.store.engine.wrote) {
            self.say(|world| format!("{} says what it owes, entry {}", world.names[region], entry.sequence));
            self.check_order(region, entry.time);
            self.history.write_elsewhere(region, entry.time.0);
        }
    }
}

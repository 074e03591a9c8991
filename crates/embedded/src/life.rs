//! What regions tell each other about their own life: facts, as rows of the system database.

use std::io;
use std::sync::Arc;

use geode_crdt::{Dot, KeyName, Kind, Op, SYSTEM_DATABASE};
use geode_replica::{Fact, facts};
use geode_store::{Engine, KeyView, Loaded, View};

use crate::engine::Embedded;
use crate::handle::{ClosedActor, MembershipError};

/// What an operation on the system database says, if it is about the life of regions.
pub(crate) fn fact_of(op: &Op<'_>) -> Option<Fact> {
    match op {
        Op::Put { key, kind: Kind::Hash, element, value, .. } => Fact::parse(key.name, element, value),
        _ => None,
    }
}

const fn key(name: &[u8]) -> KeyName<'_> {
    KeyName { database: SYSTEM_DATABASE, name }
}

impl Embedded {
    /// Tells the replica what stands in the rows after a start.
    pub(crate) fn remember(&mut self) {
        self.core.rows.facts.clear();
        let mut known = Vec::new();
        facts::KEYS.iter().for_each(|name| self.core.rows.table.require(key(name)));
        let table = &self.core.rows.table;
        for name in facts::KEYS {
            let Ok(Some(rows)) = table.key(key(name)) else { continue };
            let Ok(fields) = rows.cells(Kind::Hash) else { continue };
            for (field, cell) in fields {
                let puts = cell.puts();
                known.extend(puts.filter_map(|put| Some((Fact::parse(name, field, put.value)?, put.time))));
            }
        }
        self.core.rows.facts = known;
        self.act();
        self.show_regions();
    }

    /// Shows what was said of regions, and begins links to those that are new.
    fn show_regions(&mut self) {
        let standings = self.replica.standings();
        let regions = standings.map(|(region, standing)| (Arc::clone(region), standing.clone()));
        self.shared.show_regions(regions.collect());
        self.link();
    }

    /// Tells the replica what was delivered.
    pub(crate) fn learn(&mut self) {
        while !self.core.rows.facts.is_empty() {
            let facts = std::mem::take(&mut self.core.rows.facts);
            self.replica.learned(&facts, &mut self.core);
            let actors = self.core.rows.table.actors().iter();
            let ends = actors.filter_map(|(actor, id)| Some((id.clone(), self.replica.end_of(actor)?)));
            self.shared.show_ends(ends.collect());
            if facts.iter().any(|(fact, _)| matches!(fact, Fact::Member { .. })) {
                self.show_regions();
            }
        }
    }

    /// Writes what this region owes the others, as one entry, if it may write. Otherwise it is owed again soon.
    pub(crate) fn tell(&mut self) {
        let owed = self.replica.owed(self.core.rows.table.actors());
        if owed.is_empty() || !self.may_write() {
            return;
        }
        let promises = owed.iter().any(|fact| matches!(fact, Fact::Report { .. }));
        if promises && !self.is_on_disk() {
            return;
        }
        self.write_facts(&owed);
    }

    /// Forces what is known here onto the disk, in any mode, and says whether it is there. A report is a promise
    /// ([`geode_replica`]'s `ends`), and a crash that took the knowledge on which it rests would break it. Crashes and
    /// evictions alone ask for it.
    fn is_on_disk(&mut self) -> bool {
        let Ok(position) = self.hand_over() else { return false };
        let sync = self.core.log.sync();
        if sync.synced() >= position {
            return true;
        }
        let synced = sync.sync_now();
        if let Err(error) = &synced {
            tracing::error!(%error, "the log cannot be forced onto the disk");
            self.distrust_log();
        }
        synced.is_ok()
    }

    /// Records that this region is one that began with nothing, whoever goes on with its data.
    pub(crate) fn begins_behind(&mut self) -> io::Result<()> {
        self.replica.begins_behind();
        self.behind = true;
        self.identity.record(true, |identity| identity.behind = true)
    }

    /// Once it has caught up with all others, and a crash does not take that away, it is one no more.
    pub(crate) fn look_whether_behind(&mut self) {
        if !self.behind || self.replica.is_behind() || !self.is_on_disk() {
            return;
        }
        self.behind = false;
        if let Err(error) = self.identity.record(true, |identity| identity.behind = false) {
            tracing::warn!(%error, "the next start of this region will wait for the others, although it need not");
        }
    }

    /// Lets a new region belong to the planet, with what else is to be known of it.
    pub(crate) fn admit(&mut self, region: &str, details: &str) -> Result<(), MembershipError> {
        if let Some(obstacle) = self.replica.obstacle_to_admit(region) {
            return Err(MembershipError::Impossible(obstacle));
        }
        self.announce(&[Fact::Member { region: region.into(), evicted: false, details: details.into() }])
    }

    /// Evicts a region: from now on the planet goes on without it.
    pub(crate) fn evict(&mut self, region: &str, force: bool, details: &str) -> Result<(), MembershipError> {
        if let Some(obstacle) = self.replica.obstacle_to_evict(region) {
            return Err(MembershipError::Impossible(obstacle));
        }
        if let Some(objection) = self.replica.objection_to_evict(region).filter(|_| !force) {
            return Err(MembershipError::NeedsForce(objection));
        }
        let facts = self.replica.eviction(region, details, self.core.rows.table.actors());
        self.announce(&facts)
    }

    /// Lets a region that was evicted come back, with nothing of what it held.
    pub(crate) fn readmit(&mut self, region: &str) -> Result<(), MembershipError> {
        let fact = self.replica.readmission(region).ok_or_else(|| {
            MembershipError::Impossible(format!("{region} was not evicted, as far as this region knows"))
        })?;
        self.announce(&[fact])
    }

    /// Writes on an operator's word; afterwards it is in the log.
    fn announce(&mut self, facts: &[Fact]) -> Result<(), MembershipError> {
        let written = self.may_write() && self.write_facts(facts) && self.hand_over().is_ok();
        if written { Ok(()) } else { Err(MembershipError::NotWritten) }
    }

    /// Returns whether they are written.
    fn write_facts(&mut self, facts: &[Fact]) -> bool {
        let fields: Vec<_> = facts.iter().map(|fact| (fact.key(), fact.to_field())).collect();
        let seen = fields.iter().map(|(name, (field, _))| self.dots(name, field)).collect::<Loaded<Vec<_>>>();
        // Until the rows are in memory, nothing is told.
        let Ok(seen) = seen else { return false };
        facts.iter().for_each(|fact| tracing::info!("{}", shown(fact)));
        let time = self.begin();
        let builder = self.parts().1;
        let from = builder.checkpoint();
        for ((name, (field, value)), seen) in fields.iter().zip(seen) {
            builder.put(key(name), Kind::Hash, field, value, seen);
        }
        self.apply(from);
        self.end();
        self.core.rows.facts.extend(facts.iter().map(|fact| (fact.clone(), time)));
        self.act();
        true
    }

    /// The actors that will write no more.
    pub(crate) fn closed_actors(&self) -> Vec<ClosedActor> {
        let actors = self.core.rows.table.actors().iter().filter(|(actor, _)| self.replica.is_closed(*actor));
        actors
            .map(|(index, id)| ClosedActor { actor: id.clone(), end: self.replica.agreed_end(index) })
            .collect()
    }

    fn dots(&self, name: &[u8], field: &[u8]) -> Loaded<Vec<Dot>> {
        let Some(rows) = self.core.rows.table.key(key(name))? else { return Ok(Vec::new()) };
        let cell = rows.cell(Kind::Hash, field)?;
        Ok(cell.into_iter().flat_map(|cell| cell.puts().map(|put| put.dot)).collect())
    }
}

/// A fact as the operator reads it.
fn shown(fact: &Fact) -> String {
    match fact {
        Fact::Closed { actor } => format!("{actor} will write no more; the regions agree on where it ends"),
        Fact::Report { actor, upto, .. } => format!("this region holds {actor} up to entry {upto}"),
        Fact::End { actor, at } => format!("{actor} ended at entry {at}; every region holds it up to there"),
        Fact::Member { region, evicted: true, .. } => format!("{region} is evicted"),
        Fact::Member { region, evicted: false, .. } => format!("{region} belongs to the planet"),
    }
}

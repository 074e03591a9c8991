//! The rules that must hold, looked at while a run goes on and when everything has settled.

use std::collections::BTreeMap;
use std::fmt;

use geode_crdt::{ActorId, Actors, Digest, Frame, HybridTime};
use geode_replica::PENDING_BYTES;
use geode_store::{Engine, Extent};

use crate::rules;
use crate::serve::read;
use crate::workload::{KEYS, RATES};
use crate::world::World;

/// How long an expired key may stay after everything has settled: a few rounds of heartbeats.
const SWEPT_WITHIN_US: u64 = 3_000_000;

/// How far ahead of the clock an entry may be that is delivered.
const DRIFT_US: u64 = 500_000;
/// How old a region's reading of its clock may be.
const STALE_US: u64 = 20_000;

impl World<'_> {
    /// After every event in a region.
    pub(crate) fn check_turn(&mut self, region: usize) {
        self.check_memory(region);
        if self.is_whole(region) && std::mem::take(&mut self.regions[region].has_news) {
            self.check_digest(region);
            self.check_transactions(region);
            self.check_lifetimes(region);
            if self.random.one_in(8) {
                self.check_keys(region);
            }
        }
    }

    /// Whether what a region holds is a state that there was: not while a snapshot is joined.
    fn is_whole(&self, region: usize) -> bool {
        self.regions[region].process.as_ref().is_some_and(|process| process.store.engine.is_whole())
    }

    /// Memory: what cannot be delivered yet is bounded for each peer.
    fn check_memory(&mut self, region: usize) {
        let Some(process) = &self.regions[region].process else { return };
        let most = process.store.engine.replica.pending_bytes();
        if most > PENDING_BYTES {
            self.violate(
                "memory",
                format!("{} holds {most} undeliverable bytes for one peer", self.names[region]),
            );
        }
    }

    /// Nothing is delivered that is far ahead of the clock. A clock that was just set back may have been looked at before.
    pub(crate) fn check_time(&mut self, region: usize, time: HybridTime) {
        let set_back_us = self.regions[region].set_back_us;
        let ahead_us = time.0.saturating_sub(self.wall(region).0);
        if ahead_us > DRIFT_US && set_back_us.is_none_or(|at_us| self.now_us > at_us + STALE_US) {
            let name = &self.names[region];
            self.violate("clocks", format!("{name} delivers an entry that is {} ms ahead", ahead_us / 1_000));
        }
    }

    /// Whatever is written is later than all that its writer saw.
    pub(crate) fn check_order(&mut self, region: usize, time: HybridTime) {
        let latest = std::mem::replace(&mut self.regions[region].latest, time);
        if time <= latest {
            let name = &self.names[region];
            self.violate("order of time", format!("{name} writes at {time}, but has seen {latest}"));
        }
    }

    /// Equal digests at equal vectors, whoever reached them and when.
    fn check_digest(&mut self, region: usize) {
        let vector = self.vector(region);
        let Some(process) = &self.regions[region].process else { return };
        let digest = in_short(&process.store.engine.core.rows.digest());
        let (known, by) = *self.digests.entry(vector.clone()).or_insert((digest, region));
        if known != digest {
            let (name, other) = (&self.names[region], &self.names[by]);
            let message = format!("{name} and {other} differ, each at {:?}", vector.0);
            self.violate("digests", message);
        }
    }

    fn check_transactions(&mut self, region: usize) {
        let Some(process) = &mut self.regions[region].process else { return };
        let objection = rules::transactions(|key| read(&mut process.store, 1, &format!("GET {key}")));
        self.object(region, objection);
    }

    fn check_lifetimes(&mut self, region: usize) {
        let Some(process) = &mut self.regions[region].process else { return };
        let objection = rules::lifetimes(|key| read(&mut process.store, 0, &format!("PTTL {key}")));
        self.object(region, objection);
    }

    /// Every key reads as history says.
    pub(crate) fn check_keys(&mut self, region: usize) {
        if !self.is_whole(region) {
            return;
        }
        let wall = self.wall(region);
        for key in KEYS.into_iter().chain(RATES) {
            let Some(process) = &mut self.regions[region].process else { return };
            let store = &mut process.store;
            store.engine.set_wall(wall);
            let now = store.engine.now().0;
            let objection = rules::key(&self.history, region, key, now, |line| read(store, 0, line));
            self.object(region, objection);
        }
    }

    fn object(&mut self, region: usize, objection: Option<rules::Objection>) {
        if let Some((rule, message)) = objection {
            self.violate(rule, format!("{}: {message}", self.names[region]));
        }
    }

    /// What is not settled yet, `None` if everything is.
    pub(crate) fn unsettled(&self) -> Option<String> {
        let first = self.vector(0);
        for region in 0..self.plan.regions {
            let name = &self.names[region];
            let Some(process) = &self.regions[region].process else { return Some(format!("{name} is down")) };
            let engine = &process.store.engine;
            if !engine.replica.peers().all(|(_, is_up, _)| is_up) {
                return Some(format!("{name} is not linked to everybody"));
            }
            let vector = self.vector(region);
            if !engine.is_whole() {
                return Some(format!("{name} has not joined all of a snapshot"));
            }
            if engine.replica.has_open_ends() {
                return Some(format!("{name} does not know where an actor ended"));
            }
            if vector != first {
                let (this, other) = (&vector.0, &first.0);
                return Some(format!("{name} holds {this:?} and {} holds {other:?}", self.names[0]));
            }
            if !process.pending.is_empty() {
                return Some(format!("{name} has not answered everybody"));
            }
            // Keys that expired long ago are gone.
            let wall = self.wall(region).0;
            let long_ago = HybridTime(wall.saturating_sub(SWEPT_WITHIN_US));
            if let Some((_, key)) = engine.core.rows.due(Extent::Whole, long_ago, 1).pop() {
                return Some(format!("{name} never sweeps {}", String::from_utf8_lossy(&key)));
            }
        }
        None
    }

    pub(crate) fn check_at_end(&mut self) {
        for region in 0..self.plan.regions {
            self.check_digest(region);
            self.check_keys(region);
        }
        self.check_acknowledged();
    }

    /// Nothing that was acknowledged is lost but what a crash may take.
    fn check_acknowledged(&mut self) {
        // By entry, its time in whatever log has it. What came with a snapshot may stand in another region's log alone.
        let mut times = BTreeMap::new();
        for process in self.regions.iter().filter_map(|region| region.process.as_ref()) {
            for record in &process.store.engine.core.disk.records {
                let mut actors = Actors::default();
                let Ok(frame) = Frame::parse(&record.frame, &mut actors) else { continue };
                for entry in frame.entries() {
                    times.insert((record.actor.clone(), entry.sequence), entry.time);
                }
            }
        }
        let held = self.vector(0);
        let name = |write: &Acknowledged| (write.actor.clone(), write.sequence);
        let acknowledged = self.acknowledged.iter().map(|((actor, sequence), time)| Acknowledged {
            actor: actor.clone(),
            sequence: *sequence,
            time: *time,
        });
        let judged = rules::durability(
            acknowledged,
            |write| {
                let time = times.get(&name(write)).copied();
                write.sequence <= held.get(&write.actor) && time.is_none_or(|time| time == write.time)
            },
            |write| self.confirmed.contains(&name(write)),
            |write| self.excused.contains(&name(write)),
        );
        match judged {
            Ok(lost) => self.counts.lost += lost,
            Err((rule, message)) => self.violate(rule, message),
        }
    }
}

/// An entry that was acknowledged.
struct Acknowledged {
    actor: ActorId,
    sequence: u64,
    time: HybridTime,
}

impl fmt::Display for Acknowledged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "entry {} of {}", self.sequence, self.actor)
    }
}

fn in_short(digest: &Digest) -> u64 {
    let mix = |sum: u64, range: &u64| (sum ^ range).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    digest.sums().iter().fold(1, mix)
}

//! The rules that must hold, looked at while a run goes on and when everything has settled.

use std::collections::BTreeSet;

use geode_crdt::{Actors, Digest, Frame, HybridTime};
use geode_replica::PENDING_BYTES;
use geode_store::conformance::Value;
use geode_store::conformance::oracle::{self, NEVER};
use geode_store::{Engine, Extent};

use crate::client::{KEYS, RATES};
use crate::serve::read;
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
        if std::mem::take(&mut self.regions[region].has_news) {
            self.check_digest(region);
            self.check_transactions(region);
            self.check_lifetimes(region);
            if self.random.one_in(8) {
                self.check_keys(region);
            }
        }
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

    /// What one transaction wrote is seen together.
    fn check_transactions(&mut self, region: usize) {
        let Some(process) = &mut self.regions[region].process else { return };
        let mut get = |key: &str| read(&mut process.store, 1, &format!("GET {key}"));
        let both = (get("both:1"), get("both:2"));
        let accounts = (get("account:1"), get("account:2"));
        let number = |value: &Value| match value {
            Value::Bulk(bytes) => String::from_utf8_lossy(bytes).parse::<i64>().unwrap_or(i64::MIN),
            _ => 0,
        };
        if both.0 != both.1 || number(&accounts.0) + number(&accounts.1) != 0 {
            let message = format!("{} sees {both:?} and {accounts:?}", self.names[region]);
            self.violate("transactions", message);
        }
    }

    /// No counter that always had a lifetime is without one.
    fn check_lifetimes(&mut self, region: usize) {
        for key in RATES {
            let Some(process) = &mut self.regions[region].process else { return };
            if read(&mut process.store, 0, &format!("PTTL {key}")) == Value::Integer(-1) {
                self.violate("lifetimes", format!("{key} has lost its TTL in {}", self.names[region]));
            }
        }
    }

    /// Every key reads as history says.
    pub(crate) fn check_keys(&mut self, region: usize) {
        let wall = self.wall(region);
        for key in KEYS.into_iter().chain(RATES) {
            let Some(process) = &mut self.regions[region].process else { return };
            let store = &mut process.store;
            store.engine.set_wall(wall);
            let now = store.engine.now().0;
            let expected = self.history.visible(region, key, now);
            let shown = oracle::read(key, |line| read(store, 0, line));
            let left = read(store, 0, &format!("PTTL {key}"));
            let left_ms = match &expected {
                None => -2,
                Some((.., NEVER)) => -1,
                Some((.., deadline)) => (deadline - now).div_ceil(1_000) as i64,
            };
            let expected = expected.map(|(kind, cells, _)| (kind, cells));
            if shown != expected || left != Value::Integer(left_ms) {
                let name = &self.names[region];
                let message = format!(
                    "{key} reads {shown:?} with {left} ms in {name}, not {expected:?} with {left_ms}"
                );
                return self.violate("oracle", message);
            }
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
        let mut times = BTreeSet::new();
        let Some(process) = &self.regions[0].process else { return };
        for record in &process.store.engine.core.disk.records {
            let mut actors = Actors::default();
            let Ok(frame) = Frame::parse(&record.frame, &mut actors) else { continue };
            for entry in frame.entries() {
                times.insert((record.actor.clone(), entry.sequence, entry.time));
            }
        }
        for ((actor, sequence), time) in self.acknowledged.clone() {
            let name = (actor, sequence);
            if times.contains(&(name.0.clone(), sequence, time)) {
                continue;
            }
            if self.confirmed.contains(&name) {
                let message = format!("entry {sequence} of {} was on disk in two regions", name.0);
                self.violate("durability", message);
            } else if !self.excused.contains(&name) {
                self.violate(
                    "durability",
                    format!("entry {sequence} of {} was acknowledged and is lost", name.0),
                );
            } else {
                self.counts.lost += 1;
            }
        }
    }
}

fn in_short(digest: &Digest) -> u64 {
    let mix = |sum: u64, range: &u64| (sum ^ range).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    digest.sums().iter().fold(1, mix)
}

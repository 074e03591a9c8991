//! A planet of replicas, its clocks and its network in the hand of a test.

use geode_crdt::HybridTime;

use super::{Recorder, Replica, Value};
use crate::engine::Engine;
use crate::session::{Flow, Session};
use crate::store::Conditional;

/// Turns without an answer after which a command is stuck.
const PATIENCE_TURNS: usize = 100_000;

/// When scripts begin: 2026-01-01, in microseconds.
const BEGINNING: HybridTime = HybridTime(1_767_225_600_000_000);

/// Replicas that see of each other what a test lets through.
#[derive(Debug)]
pub struct Planet<R> {
    regions: Vec<Region<R>>,
}

#[derive(Debug)]
struct Region<R> {
    name: String,
    replica: R,
    session: Session,
    wall: HybridTime,
    /// All that was written here, and how much of it each region received.
    frames: Vec<Vec<u8>>,
    received: Vec<usize>,
}

impl<R: Replica> Planet<R> {
    /// A planet with an empty replica in each region.
    pub fn new(regions: &[String], make: &mut impl FnMut(&str, usize) -> R) -> Self {
        let count = regions.len();
        let region = |name: &String| Region {
            name: name.clone(),
            replica: make(name, count),
            session: Session::default(),
            wall: BEGINNING,
            frames: Vec::new(),
            received: vec![0; count],
        };
        Self { regions: regions.iter().map(region).collect() }
    }

    /// The region of this name, or all of them.
    pub fn indexes(&self, name: Option<&str>) -> std::ops::Range<usize> {
        match name.and_then(|name| self.regions.iter().position(|region| region.name == name)) {
            Some(index) => index..index + 1,
            None => 0..self.regions.len(),
        }
    }

    /// A region's name.
    pub fn name(&self, index: usize) -> &str {
        &self.regions[index].name
    }

    /// A region's replica.
    pub fn replica(&mut self, index: usize) -> &mut R {
        &mut self.regions[index].replica
    }

    /// Accepts the risk of conditional writes everywhere.
    pub fn decide_locally(&mut self) {
        for region in &mut self.regions {
            region.replica.store().options.conditional = Conditional::Local;
        }
    }

    /// Lets time pass in a region.
    pub fn advance(&mut self, index: usize, milliseconds: u64) {
        self.regions[index].wall.0 += milliseconds * 1000;
    }

    /// Runs a command to its end, through whatever it has to wait for.
    ///
    /// # Panics
    /// If it is never answered, or not by exactly one reply.
    pub fn execute(&mut self, index: usize, arguments: &[&[u8]]) -> Value {
        let region = &mut self.regions[index];
        let store = region.replica.store();
        store.engine.set_wall(region.wall);
        let mut reply = Recorder::default();
        let mut flow = store.execute(&mut region.session, arguments, &mut reply);
        let mut turns = 0;
        while let Flow::Wait { until } = flow {
            assert!(reply.is_empty(), "a command that waits has replied: {reply:?}");
            assert!(turns < PATIENCE_TURNS, "{} is never answered", arguments[0].escape_ascii());
            turns += 1;
            let busy = store.engine.turn();
            // Nothing else happens before the deadline.
            if let (Some(until), false) = (until, busy) {
                region.wall = region.wall.max(until);
                store.engine.set_wall(region.wall);
            }
            flow = store.resume(&mut region.session, &mut reply);
        }
        store.engine.flush().unwrap_or_else(|error| panic!("the engine lost its log: {error}"));
        region.frames.extend(region.replica.take_frames());
        reply.finish().unwrap_or_else(|problem| panic!("{}: {problem}", arguments[0].escape_ascii()))
    }

    /// Takes note of what a region wrote otherwise than by [`Self::execute`].
    pub fn collect(&mut self, index: usize) {
        let region = &mut self.regions[index];
        region.frames.extend(region.replica.take_frames());
    }

    /// The frames that a region wrote.
    pub fn frames(&self, index: usize) -> &[Vec<u8>] {
        &self.regions[index].frames
    }

    /// Delivers the next frame that `from` wrote to `to`. Returns whether it was taken.
    pub fn send_one(&mut self, from: usize, to: usize) -> bool {
        let next = self.regions[from].received[to];
        if from == to || next == self.regions[from].frames.len() {
            return false;
        }
        let frame = self.regions[from].frames[next].clone();
        let region = &mut self.regions[to];
        region.replica.store().engine.set_wall(region.wall);
        let taken = region.replica.deliver(&frame);
        if taken {
            self.regions[from].received[to] += 1;
        }
        taken
    }

    /// Delivers what `from` wrote to `to`, as far as it can be merged there.
    pub fn send(&mut self, from: usize, to: usize) {
        while self.send_one(from, to) {}
    }

    /// Delivers everything to everybody and compares digests.
    pub fn sync(&mut self) -> Result<(), String> {
        let pairs = |count: usize| (0..count).flat_map(move |from| (0..count).map(move |to| (from, to)));
        let count = self.regions.len();
        // Each round frees what waited for the one before.
        for _ in 0..count {
            pairs(count).for_each(|(from, to)| self.send(from, to));
        }
        while pairs(count).any(|(from, to)| self.send_one(from, to)) {}
        let undelivered = pairs(count).any(|(from, to)| {
            from != to && self.regions[from].received[to] < self.regions[from].frames.len()
        });
        if undelivered {
            return Err("frames wait for what never comes".into());
        }
        let digests: Vec<_> = self.regions.iter_mut().map(|region| region.replica.digest()).collect();
        if digests.iter().all(|digest| *digest == digests[0]) {
            Ok(())
        } else {
            Err("digests differ although everything was delivered".into())
        }
    }
}

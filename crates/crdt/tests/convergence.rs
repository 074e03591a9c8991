//! Rows converge: replicas that deliver the same entries in any causal order hold the same rows and fold to the value
//! that the history defines.
//!
//! The history is one counter-capable cell of three replicas. The oracle never looks at rows: it computes the value
//! from who saw what. Not modelled: several cells, expiry, lost tails, dropping of dead runs.

#![allow(clippy::unwrap_used)] // a test that unwraps fails, which is what it is for

use std::collections::BTreeMap;

use geode_crdt::{
    ActorId, ActorIndex, Actors, Amount, Cancel, Cell, CellRef, Digest, Dot, Folded, Frame, FrameBuilder,
    HybridClock, HybridTime, KeyName, Kind, Op, Put, Run, VersionVector, digest,
};
use proptest::prelude::*;

const KEY: KeyName<'static> = KeyName { database: 0, name: b"k" };
const REPLICAS: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    Put(usize, &'static str),
    Increment(usize, i64),
    Clear(usize),
    /// Replica, and which of the deliverable frames.
    Deliver(usize, usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let replica = 0..REPLICAS;
    let step = prop_oneof![
        2 => (replica.clone(), prop_oneof![Just("10"), Just("7"), Just("abc"), Just("2.5")]).prop_map(|(at, value)| Step::Put(at, value)),
        4 => (replica.clone(), -5i64..100).prop_map(|(at, by)| Step::Increment(at, by)),
        2 => replica.clone().prop_map(Step::Clear),
        6 => (replica, any::<usize>()).prop_map(|(at, which)| Step::Deliver(at, which)),
    ];
    proptest::collection::vec(step, 1..60)
}

/// One event of the history, as the oracle sees it.
#[derive(Clone, Debug)]
struct Event {
    actor: usize,
    sequence: u64,
    time: HybridTime,
    seen: [u64; REPLICAS],
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    Put(&'static str),
    Increment(i64),
    Clear,
}

struct Replica {
    actors: Actors,
    me: ActorIndex,
    clock: HybridClock,
    vector: VersionVector,
    announced: VersionVector,
    cell: Cell,
    builder: FrameBuilder,
}

impl Replica {
    fn new(index: usize) -> Self {
        let mut actors = Actors::default();
        // Every replica meets the actors in another order, so local indexes differ.
        for step in 0..REPLICAS {
            actors.intern(&actor_id((index + step) % REPLICAS));
        }
        let me = actors.find(&actor_id(index)).unwrap();
        Self {
            actors,
            me,
            clock: HybridClock::default(),
            vector: VersionVector::default(),
            announced: VersionVector::default(),
            cell: Cell::default(),
            builder: FrameBuilder::new(me, 1),
        }
    }

    fn write(&mut self, what: &What) -> (HybridTime, Vec<u8>) {
        let time = self.clock.tick(HybridTime(1));
        let changed: Vec<_> = self
            .vector
            .iter()
            .filter(|(actor, seen)| *actor != self.me && *seen > self.announced.get(*actor))
            .collect();
        let seen = self.vector.clone();
        self.builder.begin_entry(time, changed);
        let from = self.builder.checkpoint();
        match what {
            What::Put(value) => {
                self.cancel_live();
                let seen: Vec<Dot> = self.cell.puts().iter().map(|put| put.dot).collect();
                self.builder.put(KEY, Kind::String, b"", value.as_bytes(), seen);
            }
            What::Increment(by) => {
                let by = Amount::Integer((*by).into());
                let own =
                    self.cell.runs().iter().find(|run| run.actor == self.me && run.live_amount().is_some());
                let (start, total) = own.map_or((None, by), |run| (Some(run.start), run.total.plus(by)));
                self.builder.sum(KEY, Kind::String, b"", start, total);
            }
            What::Clear => {
                self.cancel_live();
                for put in self.cell.puts() {
                    self.builder.remove(KEY, Kind::String, b"", put.dot);
                }
            }
        }
        let ops: Vec<_> = self.builder.ops_since(from).map(Result::unwrap).collect();
        for op in &ops {
            apply(&mut self.cell, op, time);
        }
        let sequence = self.builder.finish_entry();
        if let Some(sequence) = sequence {
            self.vector.raise(self.me, sequence);
            // Only an entry that stays announces what was seen; one that was taken back tells nobody.
            self.announced = seen;
        }
        let mut bytes = Vec::new();
        self.builder.finish_into(&mut bytes, &self.actors);
        (time, bytes)
    }

    fn cancel_live(&mut self) {
        let live: Vec<Run> =
            self.cell.runs().iter().filter(|run| run.live_amount().is_some()).copied().collect();
        for run in live {
            self.builder.cancel(KEY, Kind::String, b"", run.actor, run.last, run.total);
        }
    }

    fn can_deliver(&mut self, bytes: &[u8]) -> bool {
        let frame = Frame::parse(bytes, &mut self.actors).unwrap();
        let next = frame.first_sequence() == self.vector.get(frame.writer()) + 1;
        next && frame
            .entries()
            .all(|entry| entry.changed().all(|(actor, seen)| self.vector.get(actor) >= seen))
    }

    fn deliver(&mut self, bytes: &[u8]) {
        let frame = Frame::parse(bytes, &mut self.actors).unwrap();
        for entry in frame.entries() {
            self.clock.observe(entry.time);
            for op in entry.ops() {
                apply(&mut self.cell, &op.unwrap(), entry.time);
            }
            self.vector.raise(entry.writer(), entry.sequence);
        }
    }

    fn value(&self) -> Option<String> {
        CellRef::Cell(&self.cell)
            .fold(&self.actors)
            .map(|value| String::from_utf8(value.to_bytes().into()).unwrap())
    }

    /// The digest computed from the rows as they stand.
    fn digest(&self) -> Digest {
        let mut sums = Digest::default();
        let key_hash = digest::key_hash(KEY);
        for put in self.cell.puts() {
            let row = digest::put_hash(key_hash, Kind::String, b"", put.dot, &put.value, &self.actors);
            sums.add(key_hash, row);
        }
        for (run, amount) in CellRef::Cell(&self.cell).live_runs() {
            let row = digest::amount_hash(key_hash, Kind::String, b"", run.dot(), amount, &self.actors);
            sums.add(key_hash, row);
        }
        sums
    }
}

fn apply(cell: &mut Cell, op: &Op<'_>, time: HybridTime) {
    match op {
        Op::Put { dot, value, replaces, .. } => {
            for old in *replaces {
                cell.remove(old);
            }
            cell.put(Put { dot: *dot, time, value: (*value).into() });
        }
        Op::Remove { dot, .. } => {
            cell.remove(*dot);
        }
        Op::Sum { start, dot, total, .. } => {
            cell.sum(Run {
                actor: dot.actor,
                start: *start,
                last: dot.mark,
                total: *total,
                time,
                cancelled: None,
            });
        }
        Op::Cancel { target, upto, amount, .. } => {
            cell.cancel(*target, Cancel { upto: *upto, amount: *amount, by: (*target, 0) });
        }
        Op::Set { .. } => unreachable!("this history has no plain SET"),
    }
}

fn actor_id(index: usize) -> ActorId {
    ActorId::new(["us", "eu", "ap"][index], index as u64)
}

/// The value by definition: what no clear or put had seen, the latest put as the base, all increments on top.
fn oracle(events: &[Event], seen: &VersionVector, actors: &Actors) -> Option<String> {
    let delivered = |event: &&Event| event.sequence <= seen.get(actors.find(&actor_id(event.actor)).unwrap());
    let delivered: Vec<&Event> = events.iter().filter(delivered).collect();
    let cleared = |event: &Event| {
        delivered.iter().any(|later| {
            let clears = !matches!(later.what, What::Increment(_));
            let saw = later.seen[event.actor] >= event.sequence;
            clears && saw && (later.actor, later.sequence) != (event.actor, event.sequence)
        })
    };
    let live: Vec<&Event> = delivered.iter().copied().filter(|event| !cleared(event)).collect();
    let puts = live.iter().filter_map(|event| match event.what {
        What::Put(value) => Some(((event.time, actor_id(event.actor)), value)),
        _ => None,
    });
    let base = puts.collect::<BTreeMap<_, _>>().pop_last().map(|(_, value)| value);
    let increments: Vec<i64> = live
        .iter()
        .filter_map(|event| match event.what {
            What::Increment(by) => Some(by),
            _ => None,
        })
        .collect();
    match (base, increments.is_empty()) {
        (base, true) => base.map(str::to_owned),
        (Some("abc"), false) => Some("abc".to_owned()),
        (base, false) => {
            let sum = increments.iter().sum::<i64>();
            Some(match base {
                Some("2.5") => Folded::Float(2.5 + sum as f64),
                base => Folded::Integer(base.map_or(0, |value| value.parse::<i64>().unwrap()) + sum),
            })
            .map(|value| String::from_utf8(value.to_bytes().into()).unwrap())
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_causal_order_gives_the_value_that_history_defines(steps in steps()) {
        let mut replicas: Vec<Replica> = (0..REPLICAS).map(Replica::new).collect();
        let mut frames: Vec<Vec<u8>> = Vec::new();
        let mut events: Vec<Event> = Vec::new();
        for step in steps {
            let (at, what) = match step {
                Step::Put(at, value) => (at, What::Put(value)),
                Step::Increment(at, by) => (at, What::Increment(by)),
                Step::Clear(at) => (at, What::Clear),
                Step::Deliver(at, which) => {
                    let replica = &mut replicas[at];
                    let ready: Vec<&Vec<u8>> = frames.iter().filter(|bytes| replica.can_deliver(bytes)).collect();
                    if let Some(bytes) = ready.get(which.checked_rem(ready.len()).unwrap_or(0)) {
                        replica.deliver(bytes);
                    }
                    prop_assert_eq!(replica.value(), oracle(&events, &replica.vector, &replica.actors));
                    continue;
                }
            };
            let replica = &mut replicas[at];
            let before = replica.vector.get(replica.me);
            let (time, bytes) = replica.write(&what);
            let sequence = replica.vector.get(replica.me);
            if sequence > before {
                let of = |index| replica.vector.get(replica.actors.find(&actor_id(index)).unwrap());
                events.push(Event { actor: at, sequence, time, seen: [of(0), of(1), of(2)], what });
                frames.push(bytes);
            }
            prop_assert_eq!(replica.value(), oracle(&events, &replica.vector, &replica.actors));
        }
        for replica in &mut replicas {
            while let Some(bytes) = frames.iter().find(|bytes| replica.can_deliver(bytes)) {
                replica.deliver(bytes);
            }
        }
        for replica in &replicas {
            prop_assert_eq!(replica.digest(), replicas[0].digest());
            prop_assert_eq!(replica.value(), replicas[0].value());
            prop_assert_eq!(replica.value(), oracle(&events, &replica.vector, &replica.actors));
        }
    }
}

//! A snapshot joined into a replica: whatever was written, removed, counted and dropped on both sides, before, during and
//! after it was read, every key then reads what the history defines, and equal vectors have equal rows.
//!
//! Four replicas share three counter-capable keys. A snapshot is read key by key while its source goes on writing and
//! delivering; whoever joins it does so at any later moment, with writes of its own that nobody has. The oracle computes
//! values from who saw what. Mistakes in the rule are planted to see that they are found.

#![allow(clippy::unwrap_used)] // a test that unwraps fails, which is what it is for

use std::collections::BTreeMap;

use geode_crdt::image::Cells;
use geode_crdt::{
    ActorId, ActorIndex, Actors, Amount, Cancel, Cell, CellRef, Digest, Dot, Frame, FrameBuilder,
    HybridClock, HybridTime, Join, KeyName, Kind, Op, Put, Run, VersionVector, digest,
};
use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestRunner};

const REPLICAS: usize = 4;
const KEYS: [&[u8]; 3] = [b"a", b"b", b"c"];

#[derive(Clone, Debug)]
enum Step {
    Write(usize, usize, What),
    /// Replica, and which of the deliverable entries.
    Deliver(usize, usize),
    /// A source begins to be read.
    Begin(usize),
    /// Its next key is read.
    Read,
    /// A replica joins what was read.
    Join(usize),
}

#[derive(Clone, Copy, Debug)]
enum What {
    Put(&'static str),
    Increment(i64),
    Clear,
}

/// How a snapshot is joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Right,
    /// It replaces what is held.
    Replace,
    /// Rows of both sides stay, whatever the vectors say.
    Union,
    /// Its sums simply merge.
    SumsMerge,
    /// What it holds counts as removed up to its end.
    ByItsEnd,
    /// It counts as complete before the entries up to its end are delivered.
    WithoutTail,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let replica = 0..REPLICAS;
    let what = prop_oneof![
        2 => prop_oneof![Just("10"), Just("7"), Just("abc")].prop_map(What::Put),
        4 => (-5i64..100).prop_map(What::Increment),
        3 => Just(What::Clear),
    ];
    let step = prop_oneof![
        8 => (replica.clone(), 0..KEYS.len(), what).prop_map(|(at, key, what)| Step::Write(at, key, what)),
        8 => (replica.clone(), any::<usize>()).prop_map(|(at, which)| Step::Deliver(at, which)),
        2 => replica.clone().prop_map(Step::Begin),
        5 => Just(Step::Read),
        3 => replica.prop_map(Step::Join),
    ];
    proptest::collection::vec(step, 1..120)
}

/// One event of the history, as the oracle sees it.
#[derive(Clone, Debug)]
struct Event {
    key: usize,
    actor: ActorIndex,
    sequence: u64,
    time: HybridTime,
    seen: VersionVector,
    what: What,
}

struct Replica {
    me: ActorIndex,
    clock: HybridClock,
    vector: VersionVector,
    announced: VersionVector,
    /// What the delivered entries of each actor depend on.
    depends: BTreeMap<ActorIndex, VersionVector>,
    keys: [Cell; KEYS.len()],
    builder: FrameBuilder,
}

/// What was read of a source.
#[derive(Clone)]
struct Snapshot {
    source: usize,
    start: VersionVector,
    depends: BTreeMap<ActorIndex, VersionVector>,
    keys: Vec<Cell>,
    /// Set when the last key was read.
    end: Option<VersionVector>,
}

fn name(key: usize) -> KeyName<'static> {
    KeyName { database: 0, name: KEYS[key] }
}

impl Replica {
    fn new(me: ActorIndex) -> Self {
        Self {
            me,
            clock: HybridClock::default(),
            vector: VersionVector::default(),
            announced: VersionVector::default(),
            depends: BTreeMap::new(),
            keys: Default::default(),
            builder: FrameBuilder::new(me, 1),
        }
    }

    fn write(&mut self, key: usize, what: What, actors: &Actors) -> Option<(Event, Vec<u8>)> {
        let time = self.clock.tick(HybridTime(1));
        let news =
            |(actor, seen): &(ActorIndex, u64)| *actor != self.me && *seen > self.announced.get(*actor);
        let changed: Vec<_> = self.vector.iter().filter(news).collect();
        let before = self.vector.clone();
        self.builder.begin_entry(time, changed);
        let from = self.builder.checkpoint();
        let (cell, builder) = (&self.keys[key], &mut self.builder);
        let live: Vec<Run> = cell.runs().iter().filter(|run| run.live_amount().is_some()).copied().collect();
        if !matches!(what, What::Increment(_)) {
            for run in &live {
                builder.cancel(name(key), Kind::String, b"", run.actor, run.last, run.total);
            }
        }
        match what {
            What::Put(value) => {
                let seen: Vec<Dot> = cell.puts().iter().map(|put| put.dot).collect();
                builder.put(name(key), Kind::String, b"", value.as_bytes(), seen);
            }
            What::Increment(by) => {
                let by = Amount::Integer(by.into());
                let own = live.iter().find(|run| run.actor == self.me);
                let (start, total) = own.map_or((None, by), |run| (Some(run.start), run.total.plus(by)));
                builder.sum(name(key), Kind::String, b"", start, total);
            }
            What::Clear => {
                for put in cell.puts() {
                    builder.remove(name(key), Kind::String, b"", put.dot);
                }
            }
        }
        let sequence = self.builder.sequence();
        let ops: Vec<Op<'_>> = self.builder.ops_since(from).map(Result::unwrap).collect();
        ops.iter().for_each(|op| apply(&mut self.keys[key], op, time, (self.me, sequence)));
        drop(ops);
        let sequence = self.builder.finish_entry()?;
        self.vector.raise(self.me, sequence);
        self.announced = before;
        self.drop_dead();
        let mut bytes = Vec::new();
        self.builder.finish_into(&mut bytes, actors);
        Some((Event { key, actor: self.me, sequence, time, seen: self.vector.clone(), what }, bytes))
    }

    fn can_deliver(&self, bytes: &[u8], actors: &mut Actors) -> bool {
        let frame = Frame::parse(bytes, actors).unwrap();
        let next = frame.first_sequence() == self.vector.get(frame.writer()) + 1;
        next && frame
            .entries()
            .all(|entry| entry.changed().all(|(actor, seen)| self.vector.get(actor) >= seen))
    }

    fn deliver(&mut self, bytes: &[u8], actors: &mut Actors) {
        let frame = Frame::parse(bytes, actors).unwrap();
        for entry in frame.entries() {
            self.clock.observe(entry.time);
            let depends = self.depends.entry(entry.writer()).or_default();
            entry.changed().for_each(|(actor, seen)| depends.raise(actor, seen));
            for op in entry.ops().map(Result::unwrap) {
                let key = KEYS.iter().position(|key| *key == op.key().name).unwrap();
                apply(&mut self.keys[key], &op, entry.time, (entry.writer(), entry.sequence));
            }
            self.vector.raise(entry.writer(), entry.sequence);
        }
        self.drop_dead();
    }

    /// Dead runs go when their owner cannot extend them any more.
    fn drop_dead(&mut self) {
        for cell in &mut self.keys {
            let safe = |run: &&Run| {
                let by = run.cancelled.map(|cancel| cancel.by);
                let seen = |(actor, sequence)| {
                    self.depends.get(&run.actor).is_some_and(|seen| seen.get(actor) >= sequence)
                };
                run.actor == self.me || by.is_some_and(|by| by.0 == run.actor || seen(by))
            };
            let owners: Vec<ActorIndex> = cell.runs().iter().filter(safe).map(|run| run.actor).collect();
            for owner in owners {
                cell.drop_dead(owner);
            }
        }
    }

    fn join(&mut self, snapshot: &Snapshot, how: How) {
        let end = snapshot.end.as_ref().unwrap();
        let nothing = VersionVector::default();
        let start = if how == How::ByItsEnd { end } else { &snapshot.start };
        let join = Join { held: &self.vector, start };
        let union = Join { held: &nothing, start: &nothing };
        for (ours, theirs) in self.keys.iter_mut().zip(&snapshot.keys) {
            *ours = match how {
                How::Replace => theirs.clone(),
                How::Union => union.cell(ours, theirs),
                How::SumsMerge => {
                    let (mut joined, merged) = (join.cell(ours, theirs), union.cell(ours, theirs));
                    for run in merged.runs() {
                        joined.sum(*run);
                    }
                    joined
                }
                _ => {
                    let cells = |cell: &Cell| Cells::from([((Kind::String, Box::default()), cell.clone())]);
                    let joined = join.key(cells(ours), cells(theirs));
                    let again = join.key(joined.clone(), cells(theirs));
                    assert_eq!(rows(&joined), rows(&again), "to join again changes nothing");
                    joined.into_values().next().unwrap_or_default()
                }
            };
        }
        for (actor, seen) in &snapshot.depends {
            self.depends.entry(*actor).or_default().join(seen);
        }
        self.vector.join(&snapshot.start);
        if how == How::WithoutTail {
            self.vector.join(end);
        }
    }
}

/// Rows in one order.
fn rows(cells: &Cells) -> Vec<String> {
    let mut rows: Vec<String> = Vec::new();
    for cell in cells.values() {
        rows.extend(cell.puts().iter().map(|put| format!("{put:?}")));
        rows.extend(cell.runs().iter().map(|run| format!("{run:?}")));
    }
    rows.sort();
    rows
}

fn apply(cell: &mut Cell, op: &Op<'_>, time: HybridTime, by: (ActorIndex, u64)) {
    match op {
        Op::Put { dot, value, replaces, .. } => {
            replaces.for_each(|old| drop(cell.remove(old)));
            cell.put(Put { dot: *dot, time, value: (*value).into() });
        }
        Op::Remove { dot, .. } => drop(cell.remove(*dot)),
        Op::Sum { start, dot, total, .. } => {
            let (actor, last) = (dot.actor, dot.mark);
            cell.sum(Run { actor, start: *start, last, total: *total, time, cancelled: None });
        }
        Op::Cancel { target, upto, amount, .. } => {
            cell.cancel(*target, Cancel { upto: *upto, amount: *amount, by });
        }
        Op::Set { .. } => unreachable!("this history has no plain SET"),
    }
}

/// The value by definition: what no clear or put had seen, the latest put as the base, all increments on top.
fn oracle(events: &[Event], key: usize, held: &VersionVector, actors: &Actors) -> Option<String> {
    let delivered = |event: &&Event| event.key == key && event.sequence <= held.get(event.actor);
    let delivered: Vec<&Event> = events.iter().filter(delivered).collect();
    let cleared = |event: &Event| {
        delivered.iter().any(|later| {
            let clears = !matches!(later.what, What::Increment(_));
            let saw = later.seen.get(event.actor) >= event.sequence;
            clears && saw && (later.actor, later.sequence) != (event.actor, event.sequence)
        })
    };
    let live = || delivered.iter().filter(|event| !cleared(event));
    let puts = live().filter_map(|event| match event.what {
        What::Put(value) => Some(((event.time, actors.id(event.actor).clone()), value)),
        _ => None,
    });
    let base = puts.collect::<BTreeMap<_, _>>().pop_last().map(|(_, value)| value);
    let counts =
        live().filter_map(|event| if let What::Increment(by) = event.what { Some(by) } else { None });
    let counts: Vec<i64> = counts.collect();
    match (base, counts.is_empty()) {
        (base, true) => base.map(str::to_owned),
        (Some("abc"), false) => Some("abc".to_owned()),
        (base, false) => Some(
            (base.map_or(0, |value| value.parse::<i64>().unwrap()) + counts.iter().sum::<i64>()).to_string(),
        ),
    }
}

fn digest_of(replica: &Replica, actors: &Actors) -> Digest {
    let mut sums = Digest::default();
    for (key, cell) in replica.keys.iter().enumerate() {
        let hash = digest::key_hash(name(key));
        for put in cell.puts() {
            sums.add(hash, digest::put_hash(hash, Kind::String, b"", put.dot, &put.value, actors));
        }
        for (run, amount) in CellRef::Cell(cell).live_runs() {
            sums.add(hash, digest::amount_hash(hash, Kind::String, b"", run.dot(), amount, actors));
        }
    }
    sums
}

/// Looks at what a replica shows, and at what others showed at its vector.
fn check(
    replica: &Replica,
    events: &[Event],
    digests: &mut Vec<(VersionVector, Digest)>,
    actors: &Actors,
) -> Result<(), TestCaseError> {
    for key in 0..KEYS.len() {
        let value = CellRef::Cell(&replica.keys[key]).fold(actors);
        let value = value.map(|value| String::from_utf8(value.to_bytes().into()).unwrap());
        prop_assert_eq!(value, oracle(events, key, &replica.vector, actors));
    }
    let digest = digest_of(replica, actors);
    match digests.iter().find(|(vector, _)| *vector == replica.vector) {
        Some((_, known)) => prop_assert_eq!(known, &digest),
        None => digests.push((replica.vector.clone(), digest)),
    }
    Ok(())
}

fn play(steps: &[Step], how: How) -> Result<(), TestCaseError> {
    let mut actors = Actors::default();
    let me =
        |index: usize, actors: &mut Actors| actors.intern(&ActorId::new(["us", "eu", "ap", "sa"][index], 1));
    let mut replicas: Vec<Replica> =
        (0..REPLICAS).map(|index| Replica::new(me(index, &mut actors))).collect();
    let (mut frames, mut events, mut digests) = (Vec::<Vec<u8>>::new(), Vec::new(), Vec::new());
    let mut snapshot: Option<Snapshot> = None;
    for step in steps {
        let at = match *step {
            Step::Write(at, key, what) => {
                if let Some((event, bytes)) = replicas[at].write(key, what, &actors) {
                    events.push(event);
                    frames.push(bytes);
                }
                at
            }
            Step::Deliver(at, which) => {
                let ready: Vec<&Vec<u8>> =
                    frames.iter().filter(|bytes| replicas[at].can_deliver(bytes, &mut actors)).collect();
                if let Some(bytes) = ready.get(which.checked_rem(ready.len()).unwrap_or(0)) {
                    replicas[at].deliver(bytes, &mut actors);
                }
                at
            }
            Step::Begin(source) => {
                let (start, depends) = (replicas[source].vector.clone(), replicas[source].depends.clone());
                snapshot = Some(Snapshot { source, start, depends, keys: Vec::new(), end: None });
                continue;
            }
            Step::Read => {
                let Some(reading) = snapshot.as_mut().filter(|reading| reading.end.is_none()) else {
                    continue;
                };
                let source = &replicas[reading.source];
                reading.keys.push(source.keys[reading.keys.len()].clone());
                if reading.keys.len() == KEYS.len() {
                    reading.end = Some(source.vector.clone());
                }
                continue;
            }
            Step::Join(at) => {
                let Some(read) = snapshot.as_ref().filter(|read| read.end.is_some()) else { continue };
                replicas[at].join(read, how);
                // The entries between its beginning and its end come with it.
                let end = read.end.clone().unwrap();
                let in_tail = |bytes: &&Vec<u8>, actors: &mut Actors| {
                    let frame = Frame::parse(bytes, actors).unwrap();
                    frame.last_sequence() <= end.get(frame.writer())
                };
                while let Some(bytes) = frames
                    .iter()
                    .find(|bytes| in_tail(bytes, &mut actors) && replicas[at].can_deliver(bytes, &mut actors))
                {
                    replicas[at].deliver(bytes, &mut actors);
                }
                prop_assert!(replicas[at].vector.includes(&end));
                at
            }
        };
        check(&replicas[at], &events, &mut digests, &actors)?;
    }
    for replica in &mut replicas {
        while let Some(bytes) = frames.iter().find(|bytes| replica.can_deliver(bytes, &mut actors)) {
            replica.deliver(bytes, &mut actors);
        }
        check(replica, &events, &mut digests, &actors)?;
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_joined_snapshot_reads_as_history_says(steps in steps()) {
        play(&steps, How::Right)?;
    }
}

#[test]
fn every_simpler_rule_fails() {
    for how in [How::Replace, How::Union, How::SumsMerge, How::ByItsEnd, How::WithoutTail] {
        let config = ProptestConfig {
            cases: 5000,
            failure_persistence: None,
            max_shrink_iters: 0,
            ..ProptestConfig::default()
        };
        let outcome = TestRunner::new_with_rng(
            config,
            proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
        )
        .run(&steps(), |steps| play(&steps, how));
        assert!(outcome.is_err(), "{how:?} was not found");
    }
}

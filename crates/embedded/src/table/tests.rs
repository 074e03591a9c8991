//! The table against plain cells: the same rows whatever form they are kept in, and whatever was dropped.

mod redo;

use std::collections::{BTreeMap, BTreeSet};

use geode_crdt::op::Op;
use geode_crdt::{
    ActorId, ActorIndex, Amount, Cancel, Cell, CellRef, Deadline, Digest, Frame, FrameBuilder, HybridTime,
    KeyName, Kind, Put, Run, VersionVector, digest,
};
use geode_store::{Extent, KeyView, View};
use proptest::prelude::*;

use super::entry::{Entry, Slot};
use super::{Deadlines, Table};
use crate::rows::Rows;

const KEYS: [&[u8]; 3] = [b"a", b"b", b"c"];
const ELEMENTS: [(Kind, &[u8]); 6] = [
    (Kind::Ttl, b""),
    (Kind::String, b""),
    (Kind::Hash, b"f"),
    (Kind::Hash, b"g"),
    (Kind::Set, b"m"),
    (Kind::List, b"\x80"),
];

/// A replica whose rows are kept twice: in a table, and in plain cells that never drop anything.
struct Replica {
    rows: Rows,
    held: VersionVector,
    builder: FrameBuilder,
    cells: BTreeMap<(usize, usize), Cell>,
    frames: Vec<Vec<u8>>,
}

#[derive(Clone, Debug)]
enum Step {
    /// A plain SET of a key; the length of its value.
    Set(usize, usize, usize),
    Put(usize, usize, usize, u8),
    Increment(usize, usize, usize),
    Clear(usize, usize, usize),
    /// Receiver and sender.
    Deliver(usize, usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (replica, key, element) = (0..3usize, 0..KEYS.len(), 0..ELEMENTS.len());
    let step = prop_oneof![
        3 => (replica.clone(), key.clone(), 0..3usize).prop_map(|(at, key, length)| Step::Set(at, key, length)),
        3 => (replica.clone(), key.clone(), element.clone(), any::<u8>())
            .prop_map(|(at, key, element, value)| Step::Put(at, key, element, value)),
        5 => (replica.clone(), key.clone(), 1..4usize)
            .prop_map(|(at, key, element)| Step::Increment(at, key, element)),
        4 => (replica.clone(), key, element).prop_map(|(at, key, element)| Step::Clear(at, key, element)),
        9 => (replica.clone(), replica).prop_map(|(to, from)| Step::Deliver(to, from)),
    ];
    proptest::collection::vec(step, 1..120)
}

impl Replica {
    fn new(index: usize) -> Self {
        let mut table = Table::new(index as u64);
        // Local indexes differ from replica to replica.
        let ids = (0..3).map(|step| ActorId::new(["ap", "eu", "us"][(index + step) % 3], 1));
        let actors: Vec<ActorIndex> = ids.map(|id| table.actors_mut().intern(&id)).collect();
        let own = actors[0];
        let rows = Rows::new(table, own);
        Self {
            rows,
            held: VersionVector::default(),
            builder: FrameBuilder::new(own, 1),
            cells: BTreeMap::new(),
            frames: Vec::new(),
        }
    }

    fn write(&mut self, step: &Step) {
        let time = self.rows.clock.tick(HybridTime(1));
        let held = &self.held;
        let changed: Vec<_> = self.rows.changed.iter().map(|actor| (*actor, held.get(*actor))).collect();
        let builder = &mut self.builder;
        builder.begin_entry(time, changed);
        match *step {
            Step::Set(_, key, length) => {
                let name = KeyName { database: 0, name: KEYS[key] };
                let mut seen = BTreeSet::new();
                for element in [0, 1] {
                    let Some(cell) = self.cells.get(&(key, element)) else { continue };
                    seen.extend(cell.puts().iter().map(|put| (put.dot.actor, put.dot.mark)));
                    cancel_live(builder, name, ELEMENTS[element], cell);
                }
                let value = vec![b'v'; length];
                builder.set(
                    name,
                    &value,
                    seen.into_iter().map(|(actor, mark)| geode_crdt::Dot { actor, mark }),
                );
            }
            Step::Put(_, key, element, value) => {
                let (name, place) = (KeyName { database: 0, name: KEYS[key] }, ELEMENTS[element]);
                let cell = self.cells.entry((key, element)).or_default();
                cancel_live(builder, name, place, cell);
                let deadline = Deadline(HybridTime(u64::from(value))).to_bytes();
                let value = if place.0 == Kind::Ttl { &deadline[..] } else { &[value] };
                builder.put(name, place.0, place.1, value, cell.puts().iter().map(|put| put.dot));
            }
            Step::Increment(_, key, element) => {
                let (name, place) = (KeyName { database: 0, name: KEYS[key] }, ELEMENTS[element]);
                let runs = self.cells.get(&(key, element)).map_or(&[][..], Cell::runs);
                let own = runs.iter().find(|run| run.actor == self.rows.own && run.live_amount().is_some());
                let one = Amount::Integer(1);
                let (start, total) = own.map_or((None, one), |run| (Some(run.start), run.total.plus(one)));
                builder.sum(name, place.0, place.1, start, total);
            }
            Step::Clear(_, key, element) => {
                let (name, place) = (KeyName { database: 0, name: KEYS[key] }, ELEMENTS[element]);
                let cell = self.cells.entry((key, element)).or_default();
                cancel_live(builder, name, place, cell);
                cell.puts().iter().for_each(|put| builder.remove(name, place.0, place.1, put.dot));
            }
            Step::Deliver(..) => unreachable!("not a write"),
        }
        if let Some(sequence) = builder.finish_entry() {
            let mut bytes = Vec::new();
            builder.finish_into(&mut bytes, self.rows.table.actors());
            self.frames.push(bytes.clone());
            self.deliver(&bytes);
            assert_eq!(self.held.get(self.rows.own), sequence);
        }
    }

    /// Whether the frame was the next one and all it depends on is here.
    fn deliver(&mut self, bytes: &[u8]) -> bool {
        let frame = Frame::parse(bytes, self.rows.table.actors_mut()).unwrap();
        let (writer, sequence) = (frame.writer(), frame.last_sequence());
        let entry = frame.entries().next().unwrap();
        if sequence != self.held.get(writer) + 1
            || entry.changed().any(|(actor, seen)| seen > self.held.get(actor))
        {
            return false;
        }
        for op in entry.ops().map(Result::unwrap) {
            apply(&mut self.cells, &op, entry.time);
        }
        self.rows.deliver(&frame, sequence, sequence, |_, _| {});
        self.held.raise(writer, sequence);
        true
    }

    /// The table shows what the plain cells say.
    fn check(&self) {
        let table = &self.rows.table;
        let actors = table.actors();
        let (mut sums, mut live_keys) = (Digest::default(), 0);
        for (key, name) in KEYS.iter().enumerate() {
            let name = KeyName { database: 0, name };
            let key_hash = digest::key_hash(name);
            let rows = table.key(name).unwrap();
            let mut newest = Vec::new();
            let mut counts: BTreeMap<Kind, u64> = BTreeMap::new();
            for (element, (kind, bytes)) in ELEMENTS.iter().enumerate() {
                let empty = Cell::default();
                let plain = CellRef::Cell(self.cells.get(&(key, element)).unwrap_or(&empty));
                let held = rows.and_then(|rows| rows.cell(*kind, bytes).unwrap());
                assert_eq!(held.and_then(|cell| cell.fold(actors)), plain.fold(actors));
                assert_eq!(held.is_some_and(CellRef::is_live), plain.is_live());
                for put in plain.puts() {
                    sums.add(key_hash, digest::put_hash(key_hash, *kind, bytes, put.dot, put.value, actors));
                }
                for (run, amount) in plain.live_runs() {
                    sums.add(
                        key_hash,
                        digest::amount_hash(key_hash, *kind, bytes, run.dot(), amount, actors),
                    );
                }
                if let Some(found) = plain.newest(actors) {
                    *counts.entry(*kind).or_default() += 1;
                    newest.extend((*kind != Kind::Ttl).then_some((found, *kind)));
                }
            }
            let shown = newest.iter().max_by(|left, right| geode_crdt::Dot::compare(left.0, right.0, actors));
            assert_eq!(rows.and_then(KeyView::shown), shown.map(|(_, kind)| *kind));
            for kind in [Kind::Ttl, Kind::String, Kind::Hash, Kind::Set, Kind::List] {
                let count = rows.map_or(0, |rows| rows.live_cells(kind));
                assert_eq!(count, counts.get(&kind).copied().unwrap_or(0), "{kind:?}");
                let cells: Vec<&[u8]> = rows.map_or_else(Vec::new, |rows| {
                    rows.cells(kind).unwrap().map(|(element, _)| element).collect()
                });
                assert_eq!(cells.len() as u64, count);
                for (index, element) in cells.iter().enumerate() {
                    let nth = rows.unwrap().nth_cell(kind, index as u64).unwrap().map(|(element, _)| element);
                    assert_eq!(nth, Some(*element));
                }
            }
            live_keys += u64::from(shown.is_some());
            self.check_deadline(name);
        }
        assert_eq!(table.digest(), &sums);
        assert_eq!(table.key_count(0).unwrap(), live_keys);
        assert_eq!(table.live_keys(), live_keys);
    }

    fn check_deadline(&self, name: KeyName<'_>) {
        let rows = self.rows.table.key(name).unwrap();
        let greatest = rows.and_then(|rows| rows.deadlines().map(|(_, deadline)| deadline).max());
        let is_due = |extent| {
            let due: Vec<_> = self.rows.table.due(extent, HybridTime(u64::MAX), 10);
            due.iter().any(|(database, key)| (*database, &**key) == (name.database, name.name))
        };
        let has_deadline = greatest.is_some_and(|deadline| deadline != Deadline::NEVER);
        let is_live = rows.is_some_and(|rows| rows.shown().is_some());
        assert_eq!(is_due(Extent::Whole), has_deadline);
        assert_eq!(is_due(Extent::Data), has_deadline && is_live);
        let Deadlines { live, inert } = &self.rows.table.deadlines;
        assert!(live.is_disjoint(inert), "a key is looked at in one place");
    }

    /// Runs that are kept although nothing of them is live.
    fn dead_runs(&self) -> usize {
        let entries = self.rows.table.segments.iter().flat_map(|segment| segment.entries.iter());
        let cells = entries.flat_map(|entry| {
            let Entry { slot, .. } = entry;
            ELEMENTS.iter().filter_map(move |(kind, element)| match slot {
                Slot::Packed(_) => None,
                Slot::Full(state) => state.cell(*kind, element),
            })
        });
        cells.flat_map(|cell| cell.runs()).filter(|run| run.live_amount().is_none()).count()
    }
}

fn cancel_live(builder: &mut FrameBuilder, name: KeyName<'_>, (kind, element): (Kind, &[u8]), cell: &Cell) {
    for run in cell.runs().iter().filter(|run| run.live_amount().is_some()) {
        builder.cancel(name, kind, element, run.actor, run.last, run.total);
    }
}

/// An operation on plain cells.
fn apply(cells: &mut BTreeMap<(usize, usize), Cell>, op: &Op<'_>, time: HybridTime) {
    let key = KEYS.iter().position(|name| *name == op.key().name).unwrap();
    let mut cell = |kind: Kind, element: &[u8]| {
        let element = ELEMENTS.iter().position(|place| *place == (kind, element)).unwrap();
        std::mem::take(cells.entry((key, element)).or_default())
    };
    let mut changed = Vec::new();
    match op {
        Op::Set { dot, value, replaces, .. } => {
            let never = Deadline::NEVER.to_bytes();
            for (kind, value) in [(Kind::Ttl, &never[..]), (Kind::String, value)] {
                let mut held = cell(kind, b"");
                replaces.for_each(|dot| drop(held.remove(dot)));
                held.put(Put { dot: *dot, time, value: value.into() });
                changed.push((kind, &b""[..], held));
            }
        }
        Op::Put { kind, element, dot, value, replaces, .. } => {
            let mut held = cell(*kind, element);
            replaces.for_each(|dot| drop(held.remove(dot)));
            held.put(Put { dot: *dot, time, value: (*value).into() });
            changed.push((*kind, element, held));
        }
        Op::Remove { kind, element, dot, .. } => {
            let mut held = cell(*kind, element);
            held.remove(*dot);
            changed.push((*kind, element, held));
        }
        Op::Sum { kind, element, start, dot, total, .. } => {
            let mut held = cell(*kind, element);
            let (actor, last, total) = (dot.actor, dot.mark, *total);
            held.sum(Run { actor, start: *start, last, total, time, cancelled: None });
            changed.push((*kind, element, held));
        }
        Op::Cancel { kind, element, target, upto, amount, .. } => {
            let mut held = cell(*kind, element);
            held.cancel(*target, Cancel { upto: *upto, amount: *amount, by: (*target, 0) });
            changed.push((*kind, element, held));
        }
    }
    for (kind, element, held) in changed {
        let element = ELEMENTS.iter().position(|place| *place == (kind, element)).unwrap();
        cells.insert((key, element), held);
    }
}

fn exchange(replicas: &mut [Replica]) {
    loop {
        let mut moved = false;
        for to in 0..replicas.len() {
            for from in 0..replicas.len() {
                let frames = replicas[from].frames.clone();
                moved |= frames.iter().filter(|frame| replicas[to].deliver(frame)).count() > 0;
            }
        }
        if !moved {
            return;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_table_holds_what_plain_cells_hold(steps in steps()) {
        let mut replicas = [0, 1, 2].map(Replica::new);
        for step in &steps {
            match *step {
                Step::Deliver(to, from) => {
                    let frames = replicas[from].frames.clone();
                    if let Some(frame) = frames.iter().find(|frame| replicas[to].deliver(frame)) {
                        prop_assert!(!frame.is_empty());
                        replicas[to].check();
                    }
                }
                Step::Set(at, ..) | Step::Put(at, ..) | Step::Increment(at, ..) | Step::Clear(at, ..) => {
                    replicas[at].write(step);
                    replicas[at].check();
                }
            }
        }
        exchange(&mut replicas);
        replicas.iter().for_each(Replica::check);
        prop_assert_eq!(replicas[0].rows.table.digest(), replicas[1].rows.table.digest());
        prop_assert_eq!(replicas[0].rows.table.digest(), replicas[2].rows.table.digest());
        // Once every owner wrote something that depends on all cancels, nothing dead is left anywhere.
        for at in 0..3 {
            replicas[at].write(&Step::Put(at, 0, 4, 1));
            exchange(&mut replicas);
        }
        for at in 0..3 {
            replicas[at].write(&Step::Put(at, 0, 4, 2));
            exchange(&mut replicas);
        }
        for replica in &replicas {
            replica.check();
            prop_assert_eq!(replica.dead_runs(), 0);
        }
    }

    #[test]
    fn a_scan_visits_every_key_that_stays_however_the_table_grows(seed: u64, count in 1usize..50) {
        let mut table = Table::new(seed);
        let own = table.actors_mut().intern(&ActorId::new("eu", 1));
        let mut builder = FrameBuilder::new(own, 1);
        let mut put = |table: &mut Table, number: u32| {
            builder.begin_entry(HybridTime(u64::from(number) + 1), []);
            let from = builder.checkpoint();
            builder.set(KeyName { database: 0, name: &number.to_le_bytes() }, b"v", []);
            let origin = super::Origin { time: HybridTime(1), writer: own, sequence: builder.sequence(), own };
            for op in builder.ops_since(from).flatten() {
                assert_eq!(table.apply(&op, origin), super::Trace::Clean);
            }
            builder.finish_entry();
        };
        (0..500).for_each(|number| put(&mut table, number));
        let (mut seen, mut cursor, mut next) = (BTreeSet::new(), 0, 500);
        loop {
            cursor = table.scan(0, cursor, count, |name, _| {
                seen.insert(name.to_vec());
            }).unwrap();
            if cursor == 0 {
                break;
            }
            // It grows to many times its size, but not for ever: a scan could never end then.
            let grown = next.max(5_000.min(next + 20));
            (next..grown).for_each(|number| put(&mut table, number));
            next = grown;
        }
        for number in 0u32..500 {
            prop_assert!(seen.contains(&number.to_le_bytes()[..]));
        }
        prop_assert_eq!(table.scan(1, 0, 10, |_, _| panic!("another database")).unwrap(), 0);
    }
}

/// Dropping dead rows when vectors by gossip say so makes later counts start at minus the cancelled amount: an owner that *holds* a cancel may still have increments under way that it wrote before it saw it.
#[test]
fn a_cancelled_sum_is_kept_until_an_entry_of_its_owner_depends_on_the_cancel() {
    let mut replicas = [0, 1].map(Replica::new);
    let [owner, other] = &mut replicas;
    owner.write(&Step::Increment(0, 0, 1));
    assert!(other.deliver(&owner.frames[0]));
    other.write(&Step::Clear(1, 0, 1));
    // Written before the cancel is seen; the owner then holds the cancel, and everybody may know that.
    owner.write(&Step::Increment(0, 0, 1));
    assert!(owner.deliver(&other.frames[0]));
    assert_eq!(other.dead_runs(), 1);
    assert!(other.deliver(&owner.frames[1]));
    other.check();
    owner.check();
    assert_eq!(owner.rows.table.digest(), other.rows.table.digest());
}

/// A later cancel takes the place of an earlier one: that the owner saw the earlier one says nothing about the later.
#[test]
fn a_sum_cancelled_twice_is_kept_until_its_owner_saw_the_second_cancel() {
    let mut replicas = [0, 1].map(Replica::new);
    let [owner, other] = &mut replicas;
    owner.write(&Step::Increment(0, 0, 1));
    assert!(other.deliver(&owner.frames[0]));
    other.write(&Step::Clear(1, 0, 1));
    owner.write(&Step::Increment(0, 0, 1));
    assert!(other.deliver(&owner.frames[1]));
    other.write(&Step::Clear(1, 0, 1));
    // The owner sees the first cancel only, and goes on.
    assert!(owner.deliver(&other.frames[0]));
    owner.write(&Step::Increment(0, 0, 1));
    assert!(other.deliver(&owner.frames[2]));
    other.check();
    assert!(owner.deliver(&other.frames[1]));
    owner.check();
    assert_eq!(owner.rows.table.digest(), other.rows.table.digest());
}

#[test]
fn a_slot_is_two_words_and_a_packed_string_one_allocation() {
    assert_eq!(size_of::<Slot>(), 16);
    assert_eq!(size_of::<Entry>(), 24);
    assert_eq!(size_of::<super::cell::CellState>(), 48);
}

#[test]
fn counters_that_are_deleted_take_no_memory() {
    let mut replicas = [Replica::new(0), Replica::new(1)];
    let own = |replica: &mut Replica| {
        replica.write(&Step::Increment(0, 0, 2));
        replica.write(&Step::Clear(0, 0, 2));
    };
    own(&mut replicas[0]);
    assert_eq!(replicas[0].rows.table.memory_bytes(), 0);
    // The other one deletes, and drops the pair once the owner has seen that.
    replicas[0].write(&Step::Increment(0, 0, 2));
    let [left, right] = &mut replicas;
    left.frames.iter().for_each(|frame| assert!(right.deliver(frame)));
    right.write(&Step::Clear(0, 0, 2));
    right.frames.iter().for_each(|frame| assert!(left.deliver(frame)));
    left.write(&Step::Set(0, 1, 1));
    assert!(right.deliver(&left.frames[left.frames.len() - 1]));
    assert_eq!(left.rows.table.memory_bytes(), right.rows.table.memory_bytes());
    let mut alone = Replica::new(0);
    alone.write(&Step::Set(0, 1, 1));
    assert_eq!(right.rows.table.memory_bytes(), alone.rows.table.memory_bytes());
}

#[test]
fn rows_that_are_wrong_are_made_right_from_anothers_image() {
    use geode_crdt::Join;

    use crate::snapshot::join::Manner;

    let (mut right, mut wrong) = (Replica::new(0), Replica::new(0));
    for step in
        [Step::Set(0, 0, 2), Step::Put(0, 1, 3, 7), Step::Increment(0, 1, 1), Step::Increment(0, 2, 2)]
    {
        right.write(&step);
        wrong.write(&step);
    }
    let held = right.held.clone();
    // Two keys are lost.
    let key = |index: usize| KeyName { database: 0, name: KEYS[index] };
    let nothing = VersionVector::default();
    for index in [1, 2] {
        let lost = Join { held: &nothing, start: &held };
        wrong.rows.table.join(key(index), None, |_| None, lost, Manner::Join).unwrap();
    }
    assert_ne!(right.rows.table.digest(), wrong.rows.table.digest());
    let mut images: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    right.rows.table.images(
        0,
        usize::MAX,
        |actor| actor.0,
        |key, image| {
            images.push((key.name.to_vec(), image.to_vec()));
        },
    );
    for manner in [Manner::Join, Manner::Reseed] {
        let known = if manner == Manner::Join { &held } else { &nothing };
        let vectors = Join { held: known, start: &held };
        for (name, image) in &images {
            let key = KeyName { database: 0, name };
            let actor = |number| Some(ActorIndex(number));
            wrong.rows.table.join(key, Some(image), actor, vectors, manner).unwrap();
        }
        let equal = right.rows.table.digest() == wrong.rows.table.digest();
        assert_eq!(equal, manner == Manner::Reseed, "a join takes what is lacking for removed");
    }
    assert_eq!(right.rows.table.memory_bytes(), wrong.rows.table.memory_bytes());
}

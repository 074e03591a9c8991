//! What one operation does to the rows, and to everything that is kept about them.

use geode_crdt::op::Dots;
use geode_crdt::{
    ActorIndex, Actors, Cancel, Deadline, Digest, Dot, HybridTime, KeyName, Kind, Op, Put, PutRef, Run,
    digest,
};
use hashbrown::hash_table::{self, OccupiedEntry};

use super::cell::CellState;
use super::dead::DeadRun;
use super::entry::{Entry, Segment, Slot};
use super::key::KeyState;
use super::{Table, record, segment_of, table_hash};

/// What a row takes besides its bytes, and a key besides its rows: estimates, for reports.
pub(super) const ROW_BYTES: u64 = 64;
pub(super) const KEY_BYTES: u64 = 160;
pub(super) const PACKED_BYTES: u64 = 40;

/// The entry around an operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin {
    /// When it was written.
    pub(crate) time: HybridTime,
    /// Who wrote it.
    pub(crate) writer: ActorIndex,
    /// Its place in the writer's stream.
    pub(crate) sequence: u64,
    /// The incarnation under which this region writes at this point of its log.
    pub(crate) own: ActorIndex,
}

/// What an operation left behind, as far as the conflict log may be interested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trace {
    /// Nothing that its writer had not seen.
    Clean,
    /// Perhaps rows that its writer had not seen.
    Suspect,
}

/// Everything but the key itself that an operation touches.
pub(super) struct Books<'t> {
    pub(super) actors: &'t Actors,
    pub(super) digest: &'t mut Digest,
    pub(super) memory_bytes: &'t mut u64,
    pub(super) key_hash: u64,
}

impl Table {
    /// Does one operation. Constant time but for removals from cells with many siblings.
    pub(crate) fn apply(&mut self, op: &Op<'_>, origin: Origin) -> Trace {
        let key = op.key();
        let hash = self.hash(key);
        if self.segments[segment_of(hash)].may_hold_cold(hash) {
            self.load_cold(hash, key);
        }
        let Self { actors, segments, digest, live_keys, memory_bytes, deadlines, dead, .. } = self;
        let mut books = Books { actors, digest, memory_bytes, key_hash: digest::key_hash(key) };
        let Segment { entries, dirty, cold, .. } = &mut segments[segment_of(hash)];
        let same = |entry: &Entry| entry.is(hash, key);
        let place = entries.entry(table_hash(hash), same, |entry| table_hash(entry.hash()));
        let mut entry = match place {
            hash_table::Entry::Occupied(entry) => entry,
            hash_table::Entry::Vacant(vacant) => match op {
                Op::Set { dot, value, .. } if record::fits(key, *dot) => {
                    let row = PutRef { dot: *dot, time: origin.time, value };
                    vacant.insert(Entry::dirty(hash, Slot::Packed(books.pack(key, row))));
                    *dirty += 1;
                    live_keys[usize::from(key.database)] += 1;
                    return Trace::Clean;
                }
                Op::Remove { .. } | Op::Cancel { .. } => return Trace::Clean,
                _ => {
                    *books.memory_bytes += KEY_BYTES + key.name.len() as u64;
                    *dirty += 1;
                    vacant.insert(Entry::dirty(hash, Slot::Full(Box::new(KeyState::new(key)))))
                }
            },
        };
        if let (Op::Set { dot, value, replaces, .. }, Slot::Packed(bytes)) = (op, &mut entry.get_mut().slot) {
            let row = PutRef { dot: *dot, time: origin.time, value };
            if books.overwrite(bytes, key, row, *replaces) {
                *dirty += usize::from(entry.get().set_dirty());
                return Trace::Clean;
            }
        }
        let slot = &mut entry.get_mut().slot;
        let was_live = slot.is_live();
        let state = books.unpack(slot);
        let old_deadline = state.deadline();
        let trace = books.change(state, op, origin, |owner, cancel, run| dead.push(owner, cancel, run));
        let (new_deadline, is_live) = (state.deadline(), state.is_live());
        if (was_live, old_deadline) != (is_live, new_deadline) {
            old_deadline.map(|Deadline(time)| deadlines.of(was_live).remove(&(time, hash)));
            new_deadline.map(|Deadline(time)| deadlines.of(is_live).insert((time, hash)));
        }
        let count = &mut live_keys[usize::from(key.database)];
        match (was_live, is_live) {
            (false, true) => *count += 1,
            (true, false) => *count -= 1,
            _ => {}
        }
        books.repack(slot);
        settle(entry, dirty, *cold > 0, memory_bytes);
        trace
    }

    /// Takes note of what an entry of `writer` depends on and drops the cancelled sums that this makes safe to drop.
    /// To be called before the entry's operations.
    pub(crate) fn entry_delivered(
        &mut self,
        writer: ActorIndex,
        changed: impl Iterator<Item = (ActorIndex, u64)>,
    ) {
        for run in self.dead.delivered(writer, changed) {
            let key = KeyName { database: run.database, name: &run.name };
            let hash = self.hash(key);
            // Of a key that is only on disk nothing is dropped before it is loaded.
            let Segment { entries, dirty, cold, .. } = &mut self.segments[segment_of(hash)];
            let Ok(mut entry) = entries.find_entry(table_hash(hash), |entry| entry.is(hash, key)) else {
                continue;
            };
            let Slot::Full(state) = &mut entry.get_mut().slot else { continue };
            let held = state.cell(run.kind, &run.element).and_then(|cell| {
                let mut runs = cell.runs().iter();
                runs.find(|held| held.actor == writer)?.cancelled
            });
            if held.is_some_and(|cancel| cancel.upto == run.upto) {
                drop_dead(state, run.kind, &run.element, writer, &mut self.memory_bytes);
                settle(entry, dirty, *cold > 0, &mut self.memory_bytes);
            }
        }
    }
}

/// Ends a change of an entry's rows. One without rows stays for as long as the disk may know of the key, and so does the
/// knowledge that there are none where others are only on disk.
pub(super) fn settle(
    entry: OccupiedEntry<'_, Entry>,
    dirty: &mut usize,
    has_cold: bool,
    memory_bytes: &mut u64,
) {
    let is_forgotten = entry.get().slot.is_absent() && !entry.get().is_stored();
    if is_forgotten && has_cold {
        entry.get().set_clean();
        *dirty -= 1;
    } else if is_forgotten {
        *dirty -= 1;
        *memory_bytes -= KEY_BYTES + entry.get().slot.key().name.len() as u64;
        entry.remove();
    } else {
        *dirty += usize::from(entry.get().set_dirty());
    }
}

pub(super) fn drop_dead(
    state: &mut KeyState,
    kind: Kind,
    element: &[u8],
    owner: ActorIndex,
    memory_bytes: &mut u64,
) {
    let dropped = state.update(kind, element, |cell| {
        matches!(cell, CellState::Many(Some(_))) && cell.with_cell(|cell| cell.drop_dead(owner))
    });
    if dropped {
        *memory_bytes -= ROW_BYTES + element.len() as u64;
    }
}

impl Books<'_> {
    fn change(
        &mut self,
        state: &mut KeyState,
        op: &Op<'_>,
        origin: Origin,
        mut dies: impl FnMut(ActorIndex, (ActorIndex, u64), DeadRun),
    ) -> Trace {
        match op {
            Op::Set { dot, value, replaces, .. } => {
                let never = self.put(state, (Kind::Ttl, &[]), *dot, origin.time, &record::NEVER, *replaces);
                let string = self.put(state, (Kind::String, &[]), *dot, origin.time, value, *replaces);
                if never == Trace::Clean { string } else { never }
            }
            Op::Put { kind, element, dot, value, replaces, .. } => {
                self.put(state, (*kind, element), *dot, origin.time, value, *replaces)
            }
            Op::Remove { kind, element, dot, .. } => {
                state.update(*kind, element, |cell| {
                    self.remove(cell, *kind, element, *dot);
                    // What is left was not seen by whoever removed.
                    if cell.is_live() { Trace::Suspect } else { Trace::Clean }
                })
            }
            Op::Sum { kind, element, start, dot, total, .. } => {
                let run = Run {
                    actor: dot.actor,
                    start: *start,
                    last: dot.mark,
                    total: *total,
                    time: origin.time,
                    cancelled: None,
                };
                let beside_put = state.update(*kind, element, |cell| {
                    self.sum(cell, *kind, element, run);
                    cell.rows().is_some_and(|rows| rows.puts().next().is_some())
                });
                if beside_put || state.live_kinds().nth(1).is_some() { Trace::Suspect } else { Trace::Clean }
            }
            Op::Cancel { key, kind, element, target, upto, amount } => {
                let row = Cancel { upto: *upto, amount: *amount, by: (origin.writer, origin.sequence) };
                let (dead, live) = state.update(*kind, element, |cell| {
                    let dead = self.cancel(cell, *kind, element, *target, row);
                    (dead, cell.is_live())
                });
                if dead && (*target == origin.own || *target == origin.writer) {
                    drop_dead(state, *kind, element, *target, self.memory_bytes);
                } else if dead {
                    let run = DeadRun {
                        database: key.database,
                        name: key.name.into(),
                        kind: *kind,
                        element: (*element).into(),
                        upto: *upto,
                    };
                    dies(*target, (origin.writer, origin.sequence), run);
                }
                if live { Trace::Suspect } else { Trace::Clean }
            }
        }
    }

    fn put(
        &mut self,
        state: &mut KeyState,
        (kind, element): (Kind, &[u8]),
        dot: Dot,
        time: HybridTime,
        value: &[u8],
        replaces: Dots<'_>,
    ) -> Trace {
        let siblings = state.update(kind, element, |cell| {
            replaces.for_each(|dot| self.remove(cell, kind, element, dot));
            if cell.put(Put { dot, time, value: value.into() }) {
                self.count_put(kind, element, dot, value);
            }
            !matches!(cell, CellState::One(_))
        });
        if siblings || state.live_kinds().nth(1).is_some() { Trace::Suspect } else { Trace::Clean }
    }

    pub(super) fn remove(&mut self, cell: &mut CellState, kind: Kind, element: &[u8], dot: Dot) {
        if let Some(put) = cell.remove(dot) {
            self.uncount_put(kind, element, put.dot, &put.value);
        }
    }

    fn sum(&mut self, cell: &mut CellState, kind: Kind, element: &[u8], row: Run) {
        let (before, after) = cell.with_cell(|cell| {
            let before = held_run(cell, row.actor);
            cell.sum(row);
            (before, held_run(cell, row.actor))
        });
        if before.is_none() && after.is_some() {
            *self.memory_bytes += ROW_BYTES + element.len() as u64;
        }
        self.recount_amount(kind, element, before, after);
    }

    /// Returns whether the run is held and nothing of it is live any more.
    fn cancel(
        &mut self,
        cell: &mut CellState,
        kind: Kind,
        element: &[u8],
        target: ActorIndex,
        row: Cancel,
    ) -> bool {
        if !matches!(cell, CellState::Many(Some(_))) {
            return false;
        }
        let (before, taken, after) = cell.with_cell(|cell| {
            let before = held_run(cell, target);
            let taken = cell.cancel(target, row);
            (before, taken, held_run(cell, target))
        });
        self.recount_amount(kind, element, before, after);
        taken && after.is_some_and(|run| run.live_amount().is_none())
    }

    pub(super) fn recount_amount(
        &mut self,
        kind: Kind,
        element: &[u8],
        before: Option<Run>,
        after: Option<Run>,
    ) {
        let hash = |run: Run| {
            let amount = run.live_amount()?;
            Some(digest::amount_hash(self.key_hash, kind, element, run.dot(), amount, self.actors))
        };
        let (before, after) = (before.and_then(hash), after.and_then(hash));
        if let Some(hash) = before {
            self.digest.subtract(self.key_hash, hash);
        }
        if let Some(hash) = after {
            self.digest.add(self.key_hash, hash);
        }
    }

    pub(super) fn count_put(&mut self, kind: Kind, element: &[u8], dot: Dot, value: &[u8]) {
        *self.memory_bytes += ROW_BYTES + (element.len() + value.len()) as u64;
        self.add_put(kind, element, dot, value);
    }

    fn uncount_put(&mut self, kind: Kind, element: &[u8], dot: Dot, value: &[u8]) {
        *self.memory_bytes -= ROW_BYTES + (element.len() + value.len()) as u64;
        self.subtract_put(kind, element, dot, value);
    }

    fn add_put(&mut self, kind: Kind, element: &[u8], dot: Dot, value: &[u8]) {
        let hash = digest::put_hash(self.key_hash, kind, element, dot, value, self.actors);
        self.digest.add(self.key_hash, hash);
    }

    fn subtract_put(&mut self, kind: Kind, element: &[u8], dot: Dot, value: &[u8]) {
        let hash = digest::put_hash(self.key_hash, kind, element, dot, value, self.actors);
        self.digest.subtract(self.key_hash, hash);
    }

    fn add_packed(&mut self, row: PutRef<'_>) {
        self.add_put(Kind::String, &[], row.dot, row.value);
        self.add_put(Kind::Ttl, &[], row.dot, &record::NEVER);
    }

    fn subtract_packed(&mut self, row: PutRef<'_>) {
        self.subtract_put(Kind::String, &[], row.dot, row.value);
        self.subtract_put(Kind::Ttl, &[], row.dot, &record::NEVER);
    }

    pub(super) fn pack(&mut self, key: KeyName<'_>, row: PutRef<'_>) -> Box<[u8]> {
        let bytes = record::pack(key, row);
        *self.memory_bytes += PACKED_BYTES + bytes.len() as u64;
        self.add_packed(row);
        bytes
    }

    /// A plain SET that saw the packed row: the new row takes its place. False if it did not see it or does not fit.
    fn overwrite(
        &mut self,
        bytes: &mut Box<[u8]>,
        key: KeyName<'_>,
        row: PutRef<'_>,
        replaces: Dots<'_>,
    ) -> bool {
        let mut replaces = replaces;
        let held = record::row(bytes);
        if !record::fits(key, row.dot) || !replaces.any(|dot| dot == held.dot) {
            return false;
        }
        self.subtract_packed(held);
        if record::overwrite(bytes, key, row) {
            self.add_packed(row);
        } else {
            *self.memory_bytes -= PACKED_BYTES + bytes.len() as u64;
            *bytes = self.pack(key, row);
        }
        true
    }

    /// Makes any slot a full one, without changing its rows.
    pub(super) fn unpack<'s>(&mut self, slot: &'s mut Slot) -> &'s mut KeyState {
        if let Slot::Packed(bytes) = slot {
            let mut state = Box::new(KeyState::new(record::key(bytes)));
            let row = record::row(bytes);
            for (kind, value) in [(Kind::Ttl, &record::NEVER[..]), (Kind::String, row.value)] {
                let put = Put { dot: row.dot, time: row.time, value: value.into() };
                *self.memory_bytes += ROW_BYTES + value.len() as u64;
                state.update(kind, &[], |cell| cell.put(put));
            }
            *self.memory_bytes += KEY_BYTES + state.key().name.len() as u64;
            *self.memory_bytes -= PACKED_BYTES + bytes.len() as u64;
            *slot = Slot::Full(state);
        }
        match slot {
            Slot::Full(state) => state,
            Slot::Packed(_) => unreachable!("unpacked above"),
        }
    }

    /// Packs a full slot again when its rows allow it.
    pub(super) fn repack(&mut self, slot: &mut Slot) {
        let Slot::Full(state) = slot else { return };
        let (CellState::One(string), CellState::One(ttl)) = (state.string(), state.ttl()) else { return };
        let (key, packable) = (state.key(), string.dot == ttl.dot && string.time == ttl.time);
        if !packable
            || *ttl.value != record::NEVER
            || !state.is_string_only()
            || !record::fits(key, string.dot)
        {
            return;
        }
        let row = PutRef { dot: string.dot, time: string.time, value: &string.value };
        let bytes = record::pack(key, row);
        *self.memory_bytes += PACKED_BYTES + bytes.len() as u64;
        *self.memory_bytes -= KEY_BYTES + key.name.len() as u64;
        *self.memory_bytes -= 2 * ROW_BYTES + (record::NEVER.len() + string.value.len()) as u64;
        *slot = Slot::Packed(bytes);
    }
}

fn held_run(cell: &geode_crdt::Cell, actor: ActorIndex) -> Option<Run> {
    cell.runs().iter().find(|run| run.actor == actor).copied()
}

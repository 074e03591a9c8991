//! Keys on their way to another region, and keys of another region joined into those that are held.

use geode_crdt::image::{Cells, ImageBuilder, Row, Rows, cells};
use geode_crdt::{ActorIndex, Cell, CellRef, Deadline, FrameError, Join, KeyName, Run, digest};
use hashbrown::hash_table;

use crate::snapshot::join::Manner;

use super::apply::{Books, KEY_BYTES, drop_dead, settle};
use super::cell::CellState;
use super::cold::Found;
use super::dead::DeadRun;
use super::entry::{Entry, Segment, Slot};
use super::key::KeyState;
use super::{SEGMENTS, Table, record, segment_of, table_hash};

impl Table {
    /// Visits keys with rows from the hash `from` on, in the order of hashes, with their images, in which actors stand as the
    /// numbers that `number` gives, until about `bytes` of images were made. Returns the hash at which to go on, if there may
    /// be more. Keys of one hash come together, and a key keeps its hash, so nothing is passed over.
    pub(crate) fn images(
        &self,
        from: u64,
        bytes: usize,
        mut number: impl FnMut(ActorIndex) -> u32,
        mut visit: impl FnMut(KeyName<'_>, &[u8]),
    ) -> Option<u64> {
        let (mut made, mut image, mut last) = (0, Vec::new(), None);
        for index in segment_of(from)..SEGMENTS {
            let segment = &self.segments[index];
            let mut keys: Vec<Shown<'_>> = self.cold_images(index).into_iter().map(Shown::Cold).collect();
            keys.extend(segment.entries.iter().filter(|entry| !entry.slot.is_absent()).map(Shown::Warm));
            keys.retain(|key| key.hash() >= from);
            keys.sort_unstable_by_key(Shown::hash);
            for key in keys {
                if made >= bytes && last != Some(key.hash()) {
                    return Some(key.hash());
                }
                last = Some(key.hash());
                image.clear();
                key.put(&mut image, &mut number);
                visit(key.name(), &image);
                made += image.len();
            }
        }
        None
    }

    /// Joins the image of a key, or none if the snapshot has no row of it, into the rows that are held. Returns the key's
    /// hash in this table. Linear in the rows of both, and in the square of those of one cell.
    ///
    /// # Errors
    /// The bytes are no image.
    pub(crate) fn join(
        &mut self,
        key: KeyName<'_>,
        image: Option<&[u8]>,
        actor: impl Fn(u32) -> Option<ActorIndex>,
        vectors: Join<'_>,
        manner: Manner,
    ) -> Result<u64, FrameError> {
        let hash = self.hash(key);
        self.load_cold(hash, key);
        if let Some(image) = image
            && manner == Manner::Join
            && self.join_plain(hash, key, image, &actor, vectors)?
        {
            return Ok(hash);
        }
        let theirs = image.map(|image| cells(image, actor)).transpose()?.unwrap_or_default();
        self.join_cells(hash, key, theirs, vectors, manner);
        Ok(hash)
    }

    /// The keys of a segment with their hashes, from [`segment_count`] of them; those that are on disk alone are read.
    pub(crate) fn keys_of_segment(&mut self, segment: usize) -> impl Iterator<Item = (u64, KeyName<'_>)> {
        self.load_segment(segment);
        let entries = self.segments[segment].entries.iter().filter(|entry| !entry.slot.is_absent());
        entries.map(|entry| (entry.hash(), entry.slot.key()))
    }

    /// Whether no key has a row.
    pub(crate) fn is_empty(&self) -> bool {
        self.cold_keys() == 0 && self.segments.iter().all(|segment| segment.entries.is_empty())
    }

    /// What a plain SET left, where nothing is held or the same. Returns whether that was the case.
    fn join_plain(
        &mut self,
        hash: u64,
        key: KeyName<'_>,
        image: &[u8],
        actor: &impl Fn(u32) -> Option<ActorIndex>,
        vectors: Join<'_>,
    ) -> Result<bool, FrameError> {
        let mut rows = Rows::new(image, actor)?;
        let Some(Row::Plain(row)) = rows.next().transpose()? else { return Ok(false) };
        if !rows.is_done() || !record::fits(key, row.dot) {
            return Ok(false);
        }
        let Self { actors, segments, digest, live_keys, memory_bytes, .. } = self;
        let Segment { entries, dirty, .. } = &mut segments[segment_of(hash)];
        let same = |entry: &Entry| entry.is(hash, key);
        match entries.entry(table_hash(hash), same, |entry| table_hash(entry.hash())) {
            hash_table::Entry::Occupied(entry) => match &entry.get().slot {
                Slot::Packed(bytes) => Ok(record::row(bytes).dot == row.dot),
                Slot::Full(_) => Ok(false),
            },
            hash_table::Entry::Vacant(_) if vectors.held.covers(row.dot) => Ok(true),
            hash_table::Entry::Vacant(vacant) => {
                let mut books = Books { actors, digest, memory_bytes, key_hash: digest::key_hash(key) };
                vacant.insert(Entry::dirty(hash, Slot::Packed(books.pack(key, row))));
                *dirty += 1;
                live_keys[usize::from(key.database)] += 1;
                Ok(true)
            }
        }
    }

    fn join_cells(&mut self, hash: u64, key: KeyName<'_>, theirs: Cells, vectors: Join<'_>, manner: Manner) {
        let Self { actors, segments, digest, live_keys, memory_bytes, deadlines, dead, .. } = self;
        let mut books = Books { actors, digest, memory_bytes, key_hash: digest::key_hash(key) };
        let Segment { entries, dirty, cold, .. } = &mut segments[segment_of(hash)];
        let same = |entry: &Entry| entry.is(hash, key);
        let place = entries.entry(table_hash(hash), same, |entry| table_hash(entry.hash()));
        let mut entry = match place {
            hash_table::Entry::Occupied(entry) => entry,
            hash_table::Entry::Vacant(_) if theirs.is_empty() => return,
            hash_table::Entry::Vacant(vacant) => {
                *books.memory_bytes += KEY_BYTES + key.name.len() as u64;
                *dirty += 1;
                vacant.insert(Entry::dirty(hash, Slot::Full(Box::new(KeyState::new(key)))))
            }
        };
        let slot = &mut entry.get_mut().slot;
        let was_live = slot.is_live();
        let state = books.unpack(slot);
        let old_deadline = state.deadline();
        let ours = state.to_cells();
        let trusted = if manner == Manner::Join { ours.clone() } else { unseen(&ours, vectors) };
        let joined = vectors.key(trusted, theirs);
        let changed = books.replace(state, &ours, &joined);
        for ((kind, element), cell) in &joined {
            let dead_runs = cell.runs().iter().filter(|run| run.live_amount().is_none());
            for Run { actor, cancelled, .. } in dead_runs {
                let Some(cancel) = cancelled else { continue };
                if dead.is_safe(*actor, cancel.by) {
                    drop_dead(state, *kind, element, *actor, books.memory_bytes);
                } else {
                    let (name, element) = (key.name.into(), element.clone());
                    let run =
                        DeadRun { database: key.database, name, kind: *kind, element, upto: cancel.upto };
                    dead.push(*actor, cancel.by, run);
                }
            }
        }
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
        if changed || entry.get().is_dirty() {
            // What did not change and is dirty was so before, or is new.
            *dirty += usize::from(entry.get().set_dirty());
            settle(entry, dirty, *cold > 0, memory_bytes);
        }
    }
}

/// The rows that the snapshot's source had not seen.
fn unseen(ours: &Cells, vectors: Join<'_>) -> Cells {
    let mut unseen = Cells::new();
    for (name, cell) in ours {
        let mut kept = Cell::default();
        for put in cell.puts().iter().filter(|put| !vectors.start.covers(put.dot)) {
            kept.put(put.clone());
        }
        let runs = cell.runs().iter().filter(|run| !vectors.start.covers(run.dot()));
        kept.set_runs(runs.copied().collect());
        unseen.insert(name.clone(), kept);
    }
    unseen
}

/// A key of a segment, in memory or read from the disk.
enum Shown<'t> {
    Warm(&'t Entry),
    Cold(Found),
}

impl Shown<'_> {
    fn hash(&self) -> u64 {
        match self {
            Self::Warm(entry) => entry.hash(),
            Self::Cold(found) => found.hash,
        }
    }

    fn name(&self) -> KeyName<'_> {
        match self {
            Self::Warm(entry) => entry.slot.key(),
            Self::Cold(found) => found.key(),
        }
    }

    fn put(&self, out: &mut Vec<u8>, number: impl FnMut(ActorIndex) -> u32) {
        let mut builder = ImageBuilder::new(out, number);
        match self {
            Self::Warm(Entry { slot: Slot::Packed(bytes), .. }) => builder.plain(record::row(bytes)),
            Self::Warm(Entry { slot: Slot::Full(state), .. }) => {
                state.each_cell(|kind, element, rows| builder.cell(kind, element, rows));
            }
            Self::Cold(found) => {
                // Its checksum was right, and on disk actors stand as the table numbers them.
                let rows =
                    cells(found.image.as_deref().unwrap_or_default(), |number| Some(ActorIndex(number)));
                for ((kind, element), cell) in rows.unwrap_or_default() {
                    builder.cell(kind, &element, CellRef::Cell(&cell));
                }
            }
        }
    }
}

/// How many segments there are to walk over.
pub(crate) const fn segment_count() -> usize {
    SEGMENTS
}

impl Books<'_> {
    /// Makes the rows of a key those of `joined`. Returns whether any differ.
    fn replace(&mut self, state: &mut KeyState, ours: &Cells, joined: &Cells) -> bool {
        let mut changed = false;
        let nothing = Cell::default();
        let names = ours.keys().chain(joined.keys().filter(|name| !ours.contains_key(*name)));
        for (kind, element) in names {
            let name = (*kind, element.clone());
            let (before, after) =
                (ours.get(&name).unwrap_or(&nothing), joined.get(&name).unwrap_or(&nothing));
            let gone = before.puts().iter().filter(|put| !after.puts().contains(put));
            let new = after.puts().iter().filter(|put| !before.puts().contains(put));
            let runs_differ = before.runs() != after.runs();
            let (gone, new): (Vec<_>, Vec<_>) = (gone.collect(), new.collect());
            if gone.is_empty() && new.is_empty() && !runs_differ {
                continue;
            }
            changed = true;
            state.update(*kind, element, |cell| {
                for put in gone {
                    self.remove(cell, *kind, element, put.dot);
                }
                for put in new {
                    if cell.put(put.clone()) {
                        self.count_put(*kind, element, put.dot, &put.value);
                    }
                }
                if runs_differ {
                    self.replace_runs(cell, *kind, element, after.runs());
                }
            });
        }
        changed
    }

    fn replace_runs(&mut self, cell: &mut CellState, kind: geode_crdt::Kind, element: &[u8], runs: &[Run]) {
        let before = cell.with_cell(|cell| {
            let before = cell.runs().to_vec();
            cell.set_runs(runs.to_vec());
            before
        });
        for run in before {
            *self.memory_bytes -= super::apply::ROW_BYTES + element.len() as u64;
            self.recount_amount(kind, element, Some(run), None);
        }
        for run in runs {
            *self.memory_bytes += super::apply::ROW_BYTES + element.len() as u64;
            self.recount_amount(kind, element, None, Some(*run));
        }
    }
}

impl KeyState {
    /// All rows, by cell.
    fn to_cells(&self) -> Cells {
        let mut cells = Cells::new();
        self.each_cell(|kind, element, rows| {
            let cell = cells.entry((kind, element.into())).or_default();
            for put in rows.puts() {
                let (dot, time, value) = (put.dot, put.time, put.value.into());
                cell.put(geode_crdt::Put { dot, time, value });
            }
            cell.set_runs(rows.runs().to_vec());
        });
        cells
    }
}

//! Rows on their way to the disk and back: images of changed keys for the checkpoint, and keys made from images.

use geode_crdt::image::{ImageBuilder, Row, Rows};
use geode_crdt::{ActorIndex, FrameError, KeyName, Kind, Put};

use super::apply::{KEY_BYTES, PACKED_BYTES, ROW_BYTES};
use super::cell::CellState;
use super::dead::DeadRun;
use super::entry::{Entry, Segment, Slot};
use super::key::KeyState;
use super::{SEGMENTS, Table, record, segment_of, table_hash};

/// Images of changed keys, one behind the other. Actors stand in them as the table numbers them.
#[derive(Debug, Default)]
pub(crate) struct Chunk {
    bytes: Vec<u8>,
    records: Vec<Record>,
}

#[derive(Clone, Copy, Debug)]
struct Record {
    hash: u64,
    database: u8,
    /// Where the name and the image end; the name begins where the record before ends.
    name: usize,
    image: usize,
}

/// One key of a chunk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Changed<'c> {
    pub(crate) hash: u64,
    pub(crate) key: KeyName<'c>,
    /// All rows of the key; `None` if it has none any more.
    pub(crate) image: Option<&'c [u8]>,
}

impl Chunk {
    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The keys in the order of their hashes.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Changed<'_>> {
        let mut start = 0;
        self.records.iter().map(move |record| {
            let (name, image) = (&self.bytes[start..record.name], &self.bytes[record.name..record.image]);
            start = record.image;
            let key = KeyName { database: record.database, name };
            Changed { hash: record.hash, key, image: (!image.is_empty()).then_some(image) }
        })
    }

    fn push(&mut self, entry: &Entry) {
        let key = entry.slot.key();
        self.bytes.extend_from_slice(key.name);
        let name = self.bytes.len();
        if !entry.slot.is_absent() {
            let mut builder = ImageBuilder::new(&mut self.bytes, |actor: ActorIndex| actor.0);
            match &entry.slot {
                Slot::Packed(bytes) => builder.plain(record::row(bytes)),
                Slot::Full(state) => state.each_cell(|kind, element, rows| builder.cell(kind, element, rows)),
            }
        }
        let (hash, database, image) = (entry.hash(), key.database, self.bytes.len());
        self.records.push(Record { hash, database, name, image });
    }
}

/// How far a walk over the changed keys is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Captured {
    segment: usize,
    /// The least hash in it that was not looked at.
    from: u64,
}

impl Captured {
    /// Whether every segment was walked over.
    pub(crate) const fn is_done(self) -> bool {
        self.segment >= SEGMENTS
    }
}

/// A key without rows that was handed over as such, by its hash. Its place can go once the disk knows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Removed(u64);

impl Table {
    /// Hands over the changed keys from `at` on, until the chunk holds about `bytes`, or `patience` entries were looked at.
    /// They count as stored from now on, by the batch of this number. `removed` is told of those that are gone.
    pub(crate) fn capture(
        &mut self,
        at: &mut Captured,
        (chunk, batch): (&mut Chunk, u64),
        bytes: usize,
        mut patience: usize,
        mut removed: impl FnMut(Removed),
    ) {
        while !at.is_done() && patience > 0 && chunk.bytes() < bytes {
            let segment = &mut self.segments[at.segment];
            patience = patience.saturating_sub(1);
            if segment.dirty > 0 {
                patience = patience.saturating_sub(segment.entries.len());
                let from = at.from;
                let mut changed: Vec<&Entry> =
                    segment.entries.iter().filter(|entry| entry.is_dirty() && entry.hash() >= from).collect();
                changed.sort_unstable_by_key(|entry| entry.hash());
                for entry in changed {
                    // Keys of one hash stay together, so that the next call can begin at a hash.
                    if chunk.bytes() >= bytes && entry.hash() > at.from {
                        at.from = entry.hash();
                        return;
                    }
                    at.from = entry.hash();
                    chunk.push(entry);
                    if entry.slot.is_absent() {
                        removed(Removed(entry.hash()));
                    }
                    entry.set_clean();
                    segment.captured = batch;
                    segment.dirty -= 1;
                }
            }
            *at = Captured { segment: at.segment + 1, from: 0 };
        }
    }

    /// Forgets a key that was handed over without rows, now that the disk knows by the commit of batch `committed`, unless
    /// it has come back.
    pub(crate) fn forget(&mut self, Removed(hash): Removed, committed: u64) {
        let Segment { entries, left, .. } = &mut self.segments[segment_of(hash)];
        let gone = |entry: &Entry| entry.hash() == hash && entry.slot.is_absent() && !entry.is_dirty();
        while let Ok(entry) = entries.find_entry(table_hash(hash), gone) {
            self.memory_bytes -= KEY_BYTES + entry.get().slot.key().name.len() as u64;
            entry.remove();
            *left = committed;
        }
    }

    /// Nothing that was handed over since `at` is known to be on disk: all of it is to be handed over again.
    pub(crate) fn mark_all_dirty(&mut self) {
        for segment in &mut self.segments {
            for entry in segment.entries.iter() {
                segment.dirty += usize::from(entry.set_dirty());
            }
        }
    }

    /// Makes a key that is on disk out of its image. Digest and counts cover it already.
    pub(crate) fn load(&mut self, hash: u64, key: KeyName<'_>, image: &[u8]) -> Result<(), FrameError> {
        let known = self.actors.len() as u32;
        let mut rows = Rows::new(image, |number| (number < known).then_some(ActorIndex(number)))?;
        let (first, mut changed) = (rows.next().transpose()?, false);
        let slot = match first {
            Some(Row::Plain(row)) if rows.is_done() && record::fits(key, row.dot) => {
                let bytes = record::pack(key, row);
                self.memory_bytes += PACKED_BYTES + bytes.len() as u64;
                Slot::Packed(bytes)
            }
            first => {
                let mut state = Box::new(KeyState::new(key));
                for row in first.map(Ok).into_iter().chain(rows) {
                    changed |= self.load_row(key, &mut state, &row?);
                }
                self.memory_bytes += KEY_BYTES + key.name.len() as u64;
                if let Some(deadline) = state.deadline() {
                    self.deadlines.of(state.is_live()).insert((deadline.0, hash));
                }
                Slot::Full(state)
            }
        };
        let entry = Entry::clean(hash, slot);
        let Segment { entries, dirty, .. } = &mut self.segments[segment_of(hash)];
        *dirty += usize::from(changed && entry.set_dirty());
        entries.insert_unique(table_hash(hash), entry, |entry| table_hash(entry.hash()));
        Ok(())
    }

    /// Returns whether the row was left out: a dead run that an entry delivered since has made safe to drop.
    fn load_row(&mut self, key: KeyName<'_>, state: &mut KeyState, row: &Row<'_>) -> bool {
        let (kind, element, put) = match *row {
            Row::Run(kind, element, run) => {
                if let (None, Some(cancel)) = (run.live_amount(), run.cancelled) {
                    if self.dead.is_safe(run.actor, cancel.by) {
                        return true;
                    }
                    let (database, name, element) = (key.database, key.name.into(), element.into());
                    let dead = DeadRun { database, name, kind, element, upto: cancel.upto };
                    self.dead.push(run.actor, cancel.by, dead);
                }
                state.update(kind, element, |cell| cell.with_cell(|cell| cell.sum(run)));
                self.memory_bytes += ROW_BYTES + element.len() as u64;
                return false;
            }
            Row::Put(kind, element, put) => (kind, element, put),
            Row::Plain(put) => {
                let never = Put { dot: put.dot, time: put.time, value: record::NEVER.into() };
                self.memory_bytes += ROW_BYTES + record::NEVER.len() as u64;
                state.update(Kind::Ttl, &[], |cell: &mut CellState| cell.put(never));
                (Kind::String, &[][..], put)
            }
        };
        let put = Put { dot: put.dot, time: put.time, value: put.value.into() };
        self.memory_bytes += ROW_BYTES + (element.len() + put.value.len()) as u64;
        state.update(kind, element, |cell| cell.put(put));
        false
    }
}

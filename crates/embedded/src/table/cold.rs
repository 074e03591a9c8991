//! Cold keys: those that are on disk alone. What is not in memory is as the disk has it; while a segment has no cold
//! key, or none of that name, what is not in memory is nowhere.
//!
//! Only clean keys leave, when the batch for the disk into which they went is committed, in the order of CLOCK: a hand
//! goes round, and a key that was read since it came by stays for another round. A key leaves and comes back as a whole.
//!
//! Source: Corbató, "A paging experiment with the MULTICS system", 1968, for CLOCK.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use geode_crdt::{Deadline, Frame, FrameError, KeyName, SYSTEM_DATABASE};
use geode_store::{Need, Part, RECORD_PREFIX};

use super::apply::{KEY_BYTES, PACKED_BYTES, ROW_BYTES};
use super::entry::{Entry, Segment, Slot};
use super::key::KeyState;
use super::names::Names;
use super::{SEGMENT_BITS, SEGMENTS, Table, segment_of, table_hash};

/// The keys on disk, as they are by the last commit.
pub(crate) trait Disk: fmt::Debug + Send + Sync {
    /// Gives the image of a key to `found`, or `None` if there is none. Waits for a disk that does not answer.
    fn read(&self, hash: u64, key: KeyName<'_>, found: &mut dyn FnMut(Option<&[u8]>));

    /// Gives the images of those of the keys (hash, database, name) that are there to `found`.
    fn read_all(&self, keys: &[Place], found: &mut dyn FnMut(u64, KeyName<'_>, &[u8]));

    /// Gives the images of all keys of a segment to `found`, in the order of their hashes.
    fn read_segment(&self, segment: usize, found: &mut dyn FnMut(u64, KeyName<'_>, &[u8]));
}

/// So many names that are no longer on disk are kept for nothing in a segment before it is worth a read.
const LEAST_NAMES: u64 = 256;

/// What the table keeps about all cold keys.
#[derive(Debug, Default)]
pub(super) struct Cold {
    /// Where cold keys are.
    disk: Option<Arc<dyn Disk>>,
    /// How many there are.
    keys: u64,
    /// The segment to which the evicting hand comes next.
    hand: usize,
    /// Keys that were read from the disk while the data thread waited.
    waited: u64,
}

/// A key by hash, database and name.
pub(crate) type Place = (u64, u8, Box<[u8]>);

/// A key as it was read from the disk.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) hash: u64,
    pub(crate) database: u8,
    pub(crate) name: Box<[u8]>,
    /// All its rows; `None` if it was not there.
    pub(crate) image: Option<Box<[u8]>>,
}

impl Found {
    pub(crate) const fn key(&self) -> KeyName<'_> {
        KeyName { database: self.database, name: &self.name }
    }
}

/// What became of a key that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fetched {
    /// It is in memory, or known not to exist.
    Loaded,
    /// It, or one near it, left the memory after it was read: it is to be read again.
    Stale,
}

/// What a key asks for that is not in memory.
#[cold]
pub(super) fn need(key: KeyName<'_>) -> Box<Need> {
    Box::new(Need { database: key.database, name: key.name.into(), part: Part::Summary })
}

/// What a scan asks for.
pub(super) fn need_keys(database: u8, from: u64) -> Box<Need> {
    Box::new(Need { database, name: Box::default(), part: Part::Keys { from } })
}

/// The least hash of a segment.
pub(crate) const fn first_hash(segment: usize) -> u64 {
    (segment as u64) << (u64::BITS - SEGMENT_BITS)
}

impl Table {
    /// Lets keys be cold: they are read from `disk`, where nothing is yet or all of it is in memory.
    pub(crate) fn attach(&mut self, disk: Arc<dyn Disk>) {
        self.cold.disk = Some(disk);
    }

    /// Nothing of what is on disk is in memory: so many keys of each segment.
    pub(crate) fn begin_cold(&mut self, keys: &[u64]) {
        for (segment, keys) in self.segments.iter_mut().zip(keys) {
            segment.cold = *keys;
            segment.names = if *keys == 0 { Names::default() } else { Names::Unknown };
        }
        self.cold.keys = keys.iter().sum();
    }

    /// How many keys are on disk alone.
    pub(crate) fn cold_keys(&self) -> u64 {
        self.cold.keys
    }

    /// How many keys of a segment are on disk alone.
    pub(crate) fn cold_keys_of(&self, segment: usize) -> u64 {
        self.segments[segment].cold
    }

    /// How many keys the data thread read from the disk itself.
    pub(crate) fn waited_loads(&self) -> u64 {
        self.cold.waited
    }

    /// The hash under which the disk has a key.
    pub(crate) fn hash_of(&self, key: KeyName<'_>) -> u64 {
        self.hash(key)
    }

    /// Keys in memory, and how many of them changed since the disk was told. Linear in the segments.
    pub(crate) fn resident_keys(&self) -> (u64, u64) {
        let count = |sums: (usize, usize), segment: &Segment| {
            (sums.0 + segment.entries.len(), sums.1 + segment.dirty)
        };
        let (keys, dirty) = self.segments.iter().fold((0, 0), count);
        (keys as u64, dirty as u64)
    }

    /// The hash of a key that is not in memory, unless it is known not to exist.
    pub(crate) fn perhaps_cold(&self, key: KeyName<'_>) -> Option<u64> {
        let hash = self.hash(key);
        let segment = &self.segments[segment_of(hash)];
        let is_there = || segment.entries.find(table_hash(hash), |entry| entry.is(hash, key)).is_some();
        (segment.may_hold_cold(hash) && !is_there()).then_some(hash)
    }

    /// The keys that the entries of a frame meet and that are not in memory, unless they are known not to exist; in the order
    /// of their hashes.
    pub(crate) fn perhaps_cold_in(&self, frame: &Frame<'_>) -> Vec<Place> {
        if self.cold.keys == 0 {
            return Vec::new();
        }
        let mut places = BTreeMap::new();
        for op in frame.entries().flat_map(|entry| entry.ops().flatten()) {
            let key = op.key();
            if let Some(hash) = self.perhaps_cold(key) {
                places.entry((hash, key.database)).or_insert_with(|| Box::from(key.name));
            }
        }
        places.into_iter().map(|((hash, database), name)| (hash, database, name)).collect()
    }

    /// Reads keys from the disk now.
    pub(crate) fn load_places(&mut self, places: &[Place]) {
        if let Some(disk) = self.cold.disk.clone().filter(|_| !places.is_empty()) {
            disk.read_all(places, &mut |hash, key, image| self.take_in_unless_there(hash, key, image));
        }
    }

    /// Reads a key from the disk now, unless it is in memory or known not to exist.
    pub(super) fn load_cold(&mut self, hash: u64, key: KeyName<'_>) {
        let Some(disk) = self.cold.disk.clone().filter(|_| self.perhaps_cold(key).is_some()) else { return };
        disk.read(hash, key, &mut |image| {
            if let Some(image) = image {
                self.take_in_unless_there(hash, key, image);
            }
        });
    }

    /// Loads a key that this region cannot do without.
    pub(crate) fn require(&mut self, key: KeyName<'_>) {
        self.load_cold(self.hash(key), key);
    }

    /// Reads all cold keys from the disk now, if they are not more than `limit`. Returns whether none is left.
    pub(crate) fn load_all(&mut self, limit: u64) -> bool {
        let Some(disk) = self.cold.disk.clone().filter(|_| self.cold.keys > 0) else { return true };
        if self.cold.keys > limit {
            return false;
        }
        for segment in 0..SEGMENTS {
            if self.segments[segment].cold > 0 {
                disk.read_segment(segment, &mut |hash, key, image| {
                    self.take_in_unless_there(hash, key, image)
                });
            }
        }
        true
    }

    /// Reads the cold keys of a segment from the disk now.
    pub(super) fn load_segment(&mut self, segment: usize) {
        if let Some(disk) = self.cold.disk.clone().filter(|_| self.segments[segment].cold > 0) {
            disk.read_segment(segment, &mut |hash, key, image| self.take_in_unless_there(hash, key, image));
        }
    }

    /// The cold keys of a segment, which stay cold.
    pub(super) fn cold_images(&self, segment: usize) -> Vec<Found> {
        let mut found = Vec::new();
        let Segment { entries, cold, .. } = &self.segments[segment];
        if let Some(disk) = self.cold.disk.as_ref().filter(|_| *cold > 0) {
            disk.read_segment(segment, &mut |hash, key, image| {
                if entries.find(table_hash(hash), |entry| entry.is(hash, key)).is_none() {
                    let (database, name) = (key.database, key.name.into());
                    found.push(Found { hash, database, name, image: Some(image.into()) });
                }
            });
        }
        found
    }

    /// Takes in a key that was read just now.
    pub(crate) fn take_in_unless_there(&mut self, hash: u64, key: KeyName<'_>, image: &[u8]) {
        let entries = &self.segments[segment_of(hash)].entries;
        if entries.find(table_hash(hash), |entry| entry.is(hash, key)).is_none() {
            self.cold.waited += 1;
            if let Err(error) = self.take_in(hash, key, image) {
                // Its checksum is right, so this release wrote it.
                tracing::error!("the image of a key cannot be read: {error}");
            }
        }
    }

    /// Takes in a key as it was read from the disk after the commit of batch `as_of`.
    pub(crate) fn fetched(&mut self, found: &Found, as_of: u64) -> Result<Fetched, FrameError> {
        let (hash, key) = (found.hash, found.key());
        let segment = &mut self.segments[segment_of(hash)];
        if segment.cold == 0 || segment.entries.find(table_hash(hash), |entry| entry.is(hash, key)).is_some()
        {
            return Ok(Fetched::Loaded);
        }
        if segment.left > as_of {
            return Ok(Fetched::Stale);
        }
        if let Some(image) = &found.image {
            self.take_in(hash, key, image)?;
        } else {
            let entry = Entry::clean(hash, Slot::Full(Box::new(KeyState::new(key))));
            segment.entries.insert_unique(table_hash(hash), entry, |entry| table_hash(entry.hash()));
            self.memory_bytes += KEY_BYTES + key.name.len() as u64;
        }
        Ok(Fetched::Loaded)
    }

    /// Whether the names on disk of a key's segment are to be read: a key was asked for that was not there, and nothing is
    /// known of the segment's names, or most of those known have left it.
    pub(crate) fn wants_names(&self, segment: usize) -> bool {
        let Segment { names, cold, entries, .. } = &self.segments[segment];
        let is_misleading = |known| known as u64 > (*cold + entries.len() as u64) * 2 + LEAST_NAMES;
        *cold > 0 && names.len().is_none_or(is_misleading)
    }

    /// Takes note of the names that the disk has in a segment by the commit of batch `as_of`, by their hashes. Returns
    /// whether they are of use: not if a key left the memory since.
    pub(crate) fn learn_names(&mut self, segment: usize, hashes: &[u64], as_of: u64) -> bool {
        let segment = &mut self.segments[segment];
        if segment.left > as_of {
            return false;
        }
        if segment.cold > 0 {
            let before = segment.names.bytes();
            segment.names = Names::of(hashes.len(), hashes.iter().copied());
            self.memory_bytes = self.memory_bytes - before + segment.names.bytes();
        }
        true
    }

    /// A cold key comes into memory.
    fn take_in(&mut self, hash: u64, key: KeyName<'_>, image: &[u8]) -> Result<(), FrameError> {
        self.load(hash, key, image)?;
        let segment = &mut self.segments[segment_of(hash)];
        segment.cold -= 1;
        self.cold.keys -= 1;
        if segment.cold == 0 {
            self.memory_bytes -= segment.names.bytes();
            segment.names = Names::default();
        }
        Ok(())
    }

    /// Takes clean keys out of memory until no more than `bytes` are taken or about `patience` entries were looked at.
    /// All batches up to `committed` are on disk. Returns how many left.
    pub(crate) fn evict(&mut self, committed: u64, bytes: u64, patience: usize) -> usize {
        if self.cold.disk.is_none() {
            return 0;
        }
        let (mut patience, mut laps, mut evicted) = (patience, 0, 0);
        while self.memory_bytes > bytes && patience > 0 && laps < SEGMENTS {
            let at = self.cold.hand;
            self.cold.hand = (at + 1) % SEGMENTS;
            laps += 1;
            patience = patience.saturating_sub(1);
            if self.segments[at].captured <= committed {
                patience = patience.saturating_sub(self.segments[at].entries.len());
                evicted += self.evict_segment(at, committed);
            }
        }
        evicted
    }

    fn evict_segment(&mut self, at: usize, committed: u64) -> usize {
        let Self { segments, memory_bytes, deadlines, cold, .. } = self;
        let segment = &mut segments[at];
        if segment.dirty == segment.entries.len() {
            return 0;
        }
        let (before, names_before) = (segment.entries.len(), segment.names.bytes());
        let names = &mut segment.names;
        segment.entries.retain(|entry| {
            if !entry.is_passed() || !may_leave(&entry.slot) {
                return true;
            }
            *memory_bytes -= bytes_of(&entry.slot);
            if let Slot::Full(state) = &entry.slot
                && let Some(Deadline(time)) = state.deadline()
            {
                deadlines.of(state.is_live()).remove(&(time, entry.hash()));
            }
            if !entry.slot.is_absent() {
                segment.cold += 1;
                cold.keys += 1;
                names.insert(entry.hash());
            }
            false
        });
        *memory_bytes += segment.names.bytes() - names_before;
        let evicted = before - segment.entries.len();
        if evicted > 0 {
            segment.left = committed;
        }
        evicted
    }
}

/// Whether a clean key may leave. What regions say about themselves is asked for at any time. A key without data and
/// deadline waits for rows to be dropped, which nobody would ask for again.
fn may_leave(slot: &Slot) -> bool {
    let key = slot.key();
    let is_own = key.database == SYSTEM_DATABASE && !key.name.starts_with(RECORD_PREFIX);
    let Slot::Full(state) = slot else { return !is_own };
    !is_own && (state.is_empty() || state.is_live() || state.deadline().is_some())
}

/// What a slot counts for in the table's memory.
fn bytes_of(slot: &Slot) -> u64 {
    let state = match slot {
        Slot::Packed(bytes) => return PACKED_BYTES + bytes.len() as u64,
        Slot::Full(state) => state,
    };
    let mut bytes = KEY_BYTES + state.key().name.len() as u64;
    state.each_cell(|_, element, rows| {
        let puts = rows.puts().map(|put| ROW_BYTES + (element.len() + put.value.len()) as u64);
        bytes += puts.sum::<u64>() + rows.runs().len() as u64 * (ROW_BYTES + element.len() as u64);
    });
    bytes
}

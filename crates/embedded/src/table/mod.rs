//! The rows of a region in memory.
//!
//! Keys stand in many small hash tables (*segments*) that grow one at a time, so no write ever waits for a large table
//! to be rehashed. A plain string is one packed allocation; everything else is a [`key::KeyState`]. The digest, the
//! counts and the index of deadlines are kept with every row that comes or goes.

mod apply;
mod capture;
mod cell;
mod cold;
mod dead;
mod entry;
mod join;
mod key;
mod names;
mod record;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::iter;

use geode_crdt::{
    ActorId, ActorIndex, Actors, CellRef, Deadline, Digest, Dot, HybridTime, KeyName, Kind, SYSTEM_DATABASE,
    digest,
};
use geode_store::{Extent, KeyView, Loaded, View};
use xxhash_rust::xxh3::xxh3_64_with_seed;

pub(crate) use apply::{Origin, Trace};
pub(crate) use capture::{Captured, Changed, Chunk, Removed};
use cold::Cold;
pub(crate) use cold::{Disk, Fetched, Found, Place, first_hash};
use dead::DeadRuns;
use entry::{Entry, Segment, Slot};
pub(crate) use join::segment_count;
use key::{Cells, KeyState};

/// Bits of a key's hash that choose its segment: with 100 million keys a segment holds 50 000, rehashed in under a
/// millisecond.
const SEGMENT_BITS: u32 = 11;
/// How many segments there are.
pub(crate) const SEGMENTS: usize = 1 << SEGMENT_BITS;
/// A scan looks at this many keys of other databases for each one that was asked for before it returns a cursor.
const SCAN_PATIENCE: usize = 100;

/// All rows, and what is kept about them.
#[derive(Debug)]
pub struct Table {
    actors: Actors,
    seed: u64,
    segments: Box<[Segment]>,
    digest: Digest,
    live_keys: Box<[u64; 256]>,
    memory_bytes: u64,
    deadlines: Deadlines,
    dead: DeadRuns,
    cold: Cold,
}

/// When keys end, with their hashes in this table. Those without data stand apart: while a region is away they are not
/// to be swept, and there may be any number of them.
#[derive(Debug, Default)]
struct Deadlines {
    live: BTreeSet<(HybridTime, u64)>,
    inert: BTreeSet<(HybridTime, u64)>,
}

impl Deadlines {
    /// The set for keys with data, or for those without.
    fn of(&mut self, is_live: bool) -> &mut BTreeSet<(HybridTime, u64)> {
        if is_live { &mut self.live } else { &mut self.inert }
    }

    fn before(&self, extent: Extent, time: HybridTime) -> impl Iterator<Item = (HybridTime, u64)> {
        let inert = (extent == Extent::Whole).then_some(&self.inert);
        iter::once(&self.live).chain(inert).flat_map(move |set| set.range(..(time, 0)).copied())
    }
}

/// The rows of one key, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct KeyRef<'v>(Rows<'v>);

#[derive(Clone, Copy, Debug)]
enum Rows<'v> {
    Packed(&'v [u8]),
    Full(&'v KeyState, &'v Actors),
}

impl Table {
    /// An empty table. `seed` makes its hashes unpredictable to clients who choose keys.
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            actors: Actors::default(),
            seed,
            segments: (0..SEGMENTS).map(|_| Segment::default()).collect(),
            digest: Digest::default(),
            live_keys: Box::new([0; 256]),
            memory_bytes: 0,
            deadlines: Deadlines::default(),
            dead: DeadRuns::default(),
            cold: Cold::default(),
        }
    }

    /// An empty table for keys that are on disk: `digest` and `live_keys` (by database) say what they amount to.
    pub(crate) fn restored(seed: u64, actors: &[ActorId], digest: Digest, live_keys: [u64; 256]) -> Self {
        let mut table = Self { digest, live_keys: Box::new(live_keys), ..Self::new(seed) };
        for id in actors {
            table.actors.intern(id);
        }
        table
    }

    /// Seeds the hashes of this table.
    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    /// Owner, canceller, sequence: of which entry of the second the delivered entries of the first depend.
    pub(crate) fn depends(&self) -> impl Iterator<Item = (ActorIndex, ActorIndex, u64)> {
        self.dead.depends()
    }

    /// Whether a write was seen by an entry of `writer` that was delivered.
    pub(crate) fn has_seen(&self, writer: ActorIndex, dot: Dot) -> bool {
        dot.actor == writer || self.dead.is_safe(writer, (dot.actor, dot.mark.sequence))
    }

    /// Entries of `owner` that were delivered depend on `sequence` of `canceller`.
    pub(crate) fn depend(&mut self, owner: ActorIndex, canceller: ActorIndex, sequence: u64) {
        self.dead.depend(owner, canceller, sequence);
    }

    pub(crate) fn actors_mut(&mut self) -> &mut Actors {
        &mut self.actors
    }

    /// The digest of all rows, kept with every change.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Keys with live data over all databases of users.
    pub(crate) fn live_keys(&self) -> u64 {
        self.live_keys[..usize::from(SYSTEM_DATABASE)].iter().sum()
    }

    /// An estimate of what rows and keys take.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// Up to `limit` live keys of a range of the digest. Linear in all keys: for people.
    pub(crate) fn keys_of_range(&self, range: u8, limit: usize) -> Vec<(u8, Vec<u8>)> {
        let entries = self.segments.iter().flat_map(|segment| segment.entries.iter());
        let keys = entries.filter(|entry| !entry.slot.is_absent()).map(|entry| entry.slot.key());
        let matching = keys.filter(|key| digest::range_of(digest::key_hash(*key)) == usize::from(range));
        matching.take(limit).map(|key| (key.database, key.name.to_vec())).collect()
    }

    /// Up to `limit` keys whose greatest deadline is below `before`, those with data first and of each kind the earliest;
    /// for [`Extent::Data`] only those with data.
    pub(crate) fn due(&self, extent: Extent, before: HybridTime, limit: usize) -> Vec<(u8, Box<[u8]>)> {
        let mut keys = Vec::new();
        for (deadline, hash) in self.deadlines.before(extent, before) {
            let entries = self.segments[segment_of(hash)].entries.iter_hash(table_hash(hash));
            for entry in entries.filter(|entry| entry.hash() == hash) {
                let Slot::Full(state) = &entry.slot else { continue };
                let wanted = extent == Extent::Whole || state.is_live();
                if wanted && state.deadline() == Some(Deadline(deadline)) {
                    keys.push((state.key().database, state.key().name.into()));
                }
            }
            if keys.len() >= limit {
                break;
            }
        }
        // Keys of one deadline and hash came together.
        keys.truncate(limit);
        keys
    }

    fn hash(&self, key: KeyName<'_>) -> u64 {
        entry::hash(xxh3_64_with_seed(key.name, self.seed ^ u64::from(key.database)))
    }
}

pub(crate) fn segment_of(hash: u64) -> usize {
    (hash >> (u64::BITS - SEGMENT_BITS)) as usize
}

/// What the hash tables see: their tags are the top bits, which are equal within a segment, so lower ones are mixed in.
fn table_hash(hash: u64) -> u64 {
    hash ^ (hash << 32)
}

impl View for Table {
    type Key<'v> = KeyRef<'v>;

    fn actors(&self) -> &Actors {
        &self.actors
    }

    fn key<'v>(&'v self, key: KeyName<'_>) -> Loaded<Option<KeyRef<'v>>> {
        let hash = self.hash(key);
        let segment = &self.segments[segment_of(hash)];
        match segment.entries.find(table_hash(hash), |entry| entry.is(hash, key)) {
            Some(entry) => {
                entry.touch();
                Ok((!entry.slot.is_absent()).then(|| entry.slot.as_ref(&self.actors)))
            }
            None if !segment.may_hold_cold(hash) => Ok(None),
            None => Err(cold::need(key)),
        }
    }

    /// The cursor is the least hash not visited yet. Hashes do not change when a table grows, so nothing is missed.
    fn scan<'v>(
        &'v self,
        database: u8,
        cursor: u64,
        count: usize,
        mut visit: impl FnMut(&'v [u8], KeyRef<'v>),
    ) -> Loaded<u64> {
        if self.live_keys[usize::from(database)] == 0 {
            return Ok(0);
        }
        let mut candidates: Vec<&Entry> = Vec::new();
        let (mut left, mut patience) = (count.max(1), count.max(1).saturating_mul(SCAN_PATIENCE));
        let first = segment_of(cursor);
        for (index, segment) in self.segments.iter().enumerate().skip(first) {
            if segment.cold > 0 {
                let from = cursor.max(first_hash(index));
                return if index == first { Err(cold::need_keys(database, from)) } else { Ok(from) };
            }
            candidates.clear();
            candidates.extend(segment.entries.iter().filter(|entry| entry.hash() >= cursor));
            candidates.sort_unstable_by_key(|entry| entry.hash());
            for (index, entry) in candidates.iter().enumerate() {
                // Keys of equal hash share a place, so they are visited together.
                let same_place = index > 0 && candidates[index - 1].hash() == entry.hash();
                if (left == 0 || patience == 0) && !same_place {
                    return Ok(entry.hash());
                }
                patience = patience.saturating_sub(1);
                let key = entry.slot.key();
                if key.database == database && entry.slot.is_live() {
                    left = left.saturating_sub(1);
                    visit(key.name, entry.slot.as_ref(&self.actors));
                }
            }
        }
        Ok(0)
    }

    fn key_count(&self, database: u8) -> Loaded<u64> {
        Ok(self.live_keys[usize::from(database)])
    }
}

impl<'v> KeyView<'v> for KeyRef<'v> {
    fn shown(self) -> Option<Kind> {
        match self.0 {
            Rows::Packed(_) => Some(Kind::String),
            Rows::Full(state, actors) => state.shown(actors),
        }
    }

    fn live_cells(self, kind: Kind) -> u64 {
        match self.0 {
            Rows::Packed(_) => u64::from(matches!(kind, Kind::String | Kind::Ttl)),
            Rows::Full(state, _) => state.live_cells(kind),
        }
    }

    fn deadlines(self) -> impl Iterator<Item = (Dot, Deadline)> {
        let rows = match self.0 {
            Rows::Packed(bytes) => Some(CellRef::One(record::never_row(bytes))),
            Rows::Full(state, _) => state.ttl().rows(),
        };
        let puts = rows.into_iter().flat_map(CellRef::puts);
        puts.map(|put| (put.dot, Deadline::from_bytes(put.value)))
    }

    fn cell(self, kind: Kind, element: &[u8]) -> Loaded<Option<CellRef<'v>>> {
        Ok(match self.0 {
            Rows::Packed(bytes) => packed_cell(bytes, kind).filter(|_| element.is_empty()),
            Rows::Full(state, _) => state.cell(kind, element),
        })
    }

    fn cells(self, kind: Kind) -> Loaded<impl DoubleEndedIterator<Item = (&'v [u8], CellRef<'v>)>> {
        Ok(match self.0 {
            Rows::Packed(bytes) => Cells::One(packed_cell(bytes, kind)),
            Rows::Full(state, _) => state.cells(kind),
        })
    }

    fn nth_cell(self, kind: Kind, index: u64) -> Loaded<Option<(&'v [u8], CellRef<'v>)>> {
        Ok(match self.0 {
            Rows::Packed(bytes) => {
                packed_cell(bytes, kind).filter(|_| index == 0).map(|cell| (&[][..], cell))
            }
            Rows::Full(state, _) => state.nth_cell(kind, index),
        })
    }
}

fn packed_cell(bytes: &[u8], kind: Kind) -> Option<CellRef<'_>> {
    match kind {
        Kind::String => Some(CellRef::One(record::row(bytes))),
        Kind::Ttl => Some(CellRef::One(record::never_row(bytes))),
        Kind::Hash | Kind::Set | Kind::List => None,
    }
}

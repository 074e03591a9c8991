//! Rows in ordered maps, and which of them count as loaded.

use std::collections::BTreeMap;

use geode_crdt::digest::{self, Digest};
use geode_crdt::image::{Cells, ImageBuilder};
use geode_crdt::{
    ActorIndex, Actors, Cancel, Cell, CellRef, Deadline, Dot, HybridTime, Join, KeyName, Kind, Mark, Op, Put,
    Run, VersionVector,
};

use super::{LoadedRows, need};
use crate::context::ONLY;
use crate::engine::Extent;
use crate::random::Random;
use crate::view::{KeyView, Loaded, Need, Part, View};

/// All rows of a replica.
#[derive(Debug, Default)]
pub struct Rows {
    pub(super) actors: Actors,
    pub(super) loaded: LoadedRows,
    keys: BTreeMap<KeyId, Cells>,
    dead: Vec<DeadPair>,
}

/// A database and a key's name.
pub type KeyId = (u8, Box<[u8]>);
type CellId = (Kind, Box<[u8]>);

/// A sum with a cancel that leaves nothing of it, until it is safe to drop both.
#[derive(Debug)]
struct DeadPair {
    key: KeyId,
    cell: CellId,
    owner: ActorIndex,
    /// The cancel: up to which increment, and by which entry.
    upto: Mark,
    cancelled_by: (ActorIndex, u64),
}

/// One key's rows.
#[derive(Clone, Copy, Debug)]
pub struct ReferenceKey<'v> {
    rows: &'v Rows,
    id: &'v KeyId,
    cells: &'v Cells,
}

impl Rows {
    /// The table of actors.
    pub const fn actors_mut(&mut self) -> &mut Actors {
        &mut self.actors
    }

    /// Rows that were asked for are in memory from now on.
    pub fn load(&mut self, need: &Need) {
        self.loaded.insert(need.clone());
    }

    /// Merges one operation of the entry `written_by`.
    pub fn apply(&mut self, op: &Op<'_>, time: HybridTime, written_by: (ActorIndex, u64)) {
        let name = op.key();
        let key: KeyId = (name.database, name.name.into());
        match *op {
            Op::Set { dot, value, replaces, .. } => {
                let never = Deadline::NEVER.to_bytes();
                for (kind, value) in [(Kind::String, value), (Kind::Ttl, &never[..])] {
                    self.change(&key, (kind, ONLY.into()), |cell| {
                        replaces.for_each(|replaced| drop(cell.remove(replaced)));
                        cell.put(Put { dot, time, value: value.into() });
                    });
                }
            }
            Op::Put { kind, element, dot, value, replaces, .. } => {
                self.change(&key, (kind, element.into()), |cell| {
                    replaces.for_each(|replaced| drop(cell.remove(replaced)));
                    cell.put(Put { dot, time, value: value.into() });
                });
            }
            Op::Remove { kind, element, dot, .. } => {
                self.change(&key, (kind, element.into()), |cell| drop(cell.remove(dot)));
            }
            Op::Sum { kind, element, start, dot, total, .. } => {
                let row = Run { actor: dot.actor, start, last: dot.mark, total, time, cancelled: None };
                self.change(&key, (kind, element.into()), |cell| {
                    cell.sum(row);
                });
            }
            Op::Cancel { kind, element, target, upto, amount, .. } => {
                let cell: CellId = (kind, element.into());
                let mut dead = false;
                self.change(&key, cell.clone(), |cell| {
                    let taken = cell.cancel(target, Cancel { upto, amount, by: written_by });
                    let run = cell.runs().iter().find(|run| run.actor == target);
                    dead = taken && run.is_some_and(|run| run.live_amount().is_none());
                });
                if dead {
                    self.dead.push(DeadPair { key, cell, owner: target, upto, cancelled_by: written_by });
                }
            }
        }
    }

    /// What a command wrote is in memory.
    pub fn keep_written(&mut self, op: &Op<'_>) {
        let (name, kind, element) = match *op {
            Op::Set { key, .. } => (key, Kind::String, ONLY),
            Op::Put { key, kind, element, .. }
            | Op::Remove { key, kind, element, .. }
            | Op::Sum { key, kind, element, .. }
            | Op::Cancel { key, kind, element, .. } => (key, kind, element),
        };
        self.loaded.insert(*need(name.database, name.name, Part::Cell(kind, element.into())));
    }

    fn change(&mut self, key: &KeyId, id: CellId, change: impl FnOnce(&mut Cell)) {
        let cells = self.keys.entry(key.clone()).or_default();
        let cell = cells.entry(id.clone()).or_default();
        change(cell);
        if cell.is_empty() {
            cells.remove(&id);
        }
        if cells.is_empty() {
            self.keys.remove(key);
        }
    }

    /// Drops the pairs of an owner whose entries, delivered in order, depend on the cancel: it will extend that run no
    /// more.
    pub fn drop_dead(&mut self, owner: ActorIndex, depends: &VersionVector) {
        self.drop_pairs(|pair| {
            pair.owner == owner && pair.cancelled_by.1 <= depends.get(pair.cancelled_by.0)
        });
    }

    /// The owner drops its own at once.
    pub fn drop_own_dead(&mut self, owner: ActorIndex) {
        self.drop_pairs(|pair| pair.owner == owner);
    }

    fn drop_pairs(&mut self, safe: impl Fn(&DeadPair) -> bool) {
        let (dropped, kept) = std::mem::take(&mut self.dead).into_iter().partition(safe);
        self.dead = kept;
        let dropped: Vec<DeadPair> = dropped;
        for pair in dropped {
            self.change(&pair.key, pair.cell, |cell| {
                // A later cancel has a pair of its own.
                let same = |run: &&Run| run.cancelled.is_some_and(|cancel| cancel.upto == pair.upto);
                if cell.runs().iter().filter(|run| run.actor == pair.owner).any(|run| same(&run)) {
                    cell.drop_dead(pair.owner);
                }
            });
        }
    }

    /// The first `count` keys from `from` on with their images, in which actors stand as the numbers that `number` gives;
    /// and the key after them, if there is one.
    pub fn images(
        &self,
        from: &KeyId,
        count: usize,
        mut number: impl FnMut(ActorIndex) -> u32,
    ) -> (Vec<(KeyId, Vec<u8>)>, Option<KeyId>) {
        let mut keys = self.keys.range(from.clone()..);
        let images = keys.by_ref().take(count).map(|(key, cells)| {
            let mut image = Vec::new();
            let mut builder = ImageBuilder::new(&mut image, &mut number);
            for ((kind, element), cell) in cells {
                builder.cell(*kind, element, CellRef::Cell(cell));
            }
            (key.clone(), image)
        });
        let images = images.collect();
        (images, keys.next().map(|(key, _)| key.clone()))
    }

    /// The keys that have rows.
    pub fn key_ids(&self) -> impl Iterator<Item = &KeyId> {
        self.keys.keys()
    }

    /// The put rows of a database.
    pub fn puts(&self, database: u8) -> impl Iterator<Item = (&KeyId, &[u8], &Put)> {
        let keys = self.keys.iter().filter(move |(id, _)| id.0 == database);
        let cells =
            keys.flat_map(|(id, cells)| cells.iter().map(move |((_, element), cell)| (id, element, cell)));
        cells.flat_map(|(id, element, cell)| cell.puts().iter().map(move |put| (id, &**element, put)))
    }

    /// Joins the rows that a snapshot has of a key, none if it has no row of it, into those that are held.
    pub fn join(&mut self, key: &KeyId, snapshot: Cells, vectors: Join<'_>) {
        let held = self.keys.remove(key).unwrap_or_default();
        self.replace(key, vectors.key(held, snapshot));
    }

    /// From now on these are the rows of a key.
    pub fn replace(&mut self, key: &KeyId, cells: Cells) {
        self.dead.retain(|pair| pair.key != *key);
        for (cell, rows) in &cells {
            for run in rows.runs().iter().filter(|run| run.live_amount().is_none()) {
                if let Some(Cancel { upto, by, .. }) = run.cancelled {
                    let (key, cell, owner) = (key.clone(), cell.clone(), run.actor);
                    self.dead.push(DeadPair { key, cell, owner, upto, cancelled_by: by });
                }
            }
        }
        if cells.is_empty() {
            self.keys.remove(key);
        } else {
            self.keys.insert(key.clone(), cells);
        }
    }

    /// Keys whose deadline lies below `until`, for [`Extent::Data`] those with live data.
    pub fn due(&self, extent: Extent, until: HybridTime, limit: usize) -> Vec<KeyId> {
        let keys = self.keys.iter().map(|(id, cells)| (id, ReferenceKey { rows: self, id, cells }));
        let is_due = |key: ReferenceKey<'_>| {
            (extent == Extent::Whole || key.shown().is_some())
                && key
                    .deadlines()
                    .map(|(_, deadline)| deadline)
                    .max()
                    .is_some_and(|last| last.passed_at(until))
        };
        keys.filter(|(_, key)| is_due(*key)).map(|(id, _)| id.clone()).take(limit).collect()
    }

    /// Forgets that something is in memory.
    pub(super) fn evict(&mut self, random: &mut Random) {
        if !self.loaded.is_empty() {
            let index = random.below(self.loaded.len() as u64) as usize;
            if let Some(evicted) = self.loaded.iter().nth(index).cloned() {
                self.loaded.remove(&evicted);
            }
        }
    }

    /// The digest of all rows, computed anew.
    pub fn digest(&self) -> Digest {
        let mut digest = Digest::default();
        for ((database, name), cells) in &self.keys {
            let key = digest::key_hash(KeyName { database: *database, name });
            for ((kind, element), cell) in cells {
                for put in cell.puts() {
                    let row = digest::put_hash(key, *kind, element, put.dot, &put.value, &self.actors);
                    digest.add(key, row);
                }
                for (run, amount) in CellRef::Cell(cell).live_runs() {
                    let row = digest::amount_hash(key, *kind, element, run.dot(), amount, &self.actors);
                    digest.add(key, row);
                }
            }
        }
        digest
    }

    fn require(&self, database: u8, name: &[u8], part: Part) -> Loaded<()> {
        let need = need(database, name, part);
        if self.loaded.contains(&need) { Ok(()) } else { Err(need) }
    }

    fn key_at<'v>(&'v self, (id, cells): (&'v KeyId, &'v Cells)) -> ReferenceKey<'v> {
        ReferenceKey { rows: self, id, cells }
    }

    /// The order of a scan: by hash, so that new keys do not shift it.
    fn hash_of(id: &KeyId) -> u64 {
        // Never 0 and never the last number, so that a cursor can stand behind any key.
        digest::key_hash(KeyName { database: id.0, name: &id.1 }).clamp(1, u64::MAX - 1)
    }
}

impl View for Rows {
    type Key<'v> = ReferenceKey<'v>;

    fn actors(&self) -> &Actors {
        &self.actors
    }

    fn key<'v>(&'v self, key: KeyName<'_>) -> Loaded<Option<ReferenceKey<'v>>> {
        self.require(key.database, key.name, Part::Summary)?;
        let found = self.keys.get_key_value(&(key.database, key.name.into()));
        Ok(found.map(|found| self.key_at(found)))
    }

    fn scan<'v>(
        &'v self,
        database: u8,
        cursor: u64,
        count: usize,
        mut visit: impl FnMut(&'v [u8], ReferenceKey<'v>),
    ) -> Loaded<u64> {
        self.require(database, b"", Part::Keys { from: 0 })?;
        let keys = self.keys.iter().filter(|(id, _)| id.0 == database);
        let mut keys: Vec<_> = keys.filter(|(id, _)| Self::hash_of(id) >= cursor).collect();
        keys.sort_by_key(|(id, _)| Self::hash_of(id));
        let mut last = 0;
        for (visited, found) in keys.into_iter().enumerate() {
            let hash = Self::hash_of(found.0);
            // Keys of one hash are visited together.
            if visited >= count && hash != last {
                return Ok(hash);
            }
            visit(&found.0.1, self.key_at(found));
            last = hash;
        }
        Ok(0)
    }

    fn key_count(&self, database: u8) -> Loaded<u64> {
        self.require(database, b"", Part::Keys { from: 0 })?;
        let keys = self.keys.iter().filter(|(id, _)| id.0 == database);
        Ok(keys.filter(|found| self.key_at(*found).shown().is_some()).count() as u64)
    }
}

impl<'v> ReferenceKey<'v> {
    /// All rows of a kind, dead ones too.
    fn of_kind(self, kind: Kind) -> impl DoubleEndedIterator<Item = (&'v [u8], CellRef<'v>)> {
        let cells = self.cells.iter().filter(move |((of, _), _)| *of == kind);
        cells.map(|((_, element), cell)| (&**element, CellRef::Cell(cell)))
    }

    fn is_loaded(self, kind: Kind, element: &[u8]) -> bool {
        let loaded = |part| self.rows.require(self.id.0, &self.id.1, part).is_ok();
        loaded(Part::Cells(kind)) || loaded(Part::Cell(kind, element.into()))
    }

    fn all_loaded(self, kind: Kind) -> bool {
        // Commands take no notice of cells without live rows.
        self.of_kind(kind).all(|(element, cell)| !cell.is_live() || self.is_loaded(kind, element))
    }
}

impl<'v> KeyView<'v> for ReferenceKey<'v> {
    fn shown(self) -> Option<Kind> {
        let data = self.cells.iter().filter(|((kind, _), _)| *kind != Kind::Ttl);
        let newest = data
            .filter_map(|((kind, _), cell)| Some((*kind, CellRef::Cell(cell).newest(&self.rows.actors)?)));
        let newest = newest.max_by(|left, right| Dot::compare(left.1, right.1, &self.rows.actors));
        newest.map(|(kind, _)| kind)
    }

    fn live_cells(self, kind: Kind) -> u64 {
        self.of_kind(kind).filter(|(_, cell)| cell.is_live()).count() as u64
    }

    fn deadlines(self) -> impl Iterator<Item = (Dot, Deadline)> {
        let puts = self.of_kind(Kind::Ttl).flat_map(|(_, cell)| cell.puts());
        puts.map(|put| (put.dot, Deadline::from_bytes(put.value)))
    }

    fn cell(self, kind: Kind, element: &[u8]) -> Loaded<Option<CellRef<'v>>> {
        if !self.is_loaded(kind, element) && !self.all_loaded(kind) {
            return Err(need(self.id.0, &self.id.1, Part::Cell(kind, element.into())));
        }
        Ok(self.cells.get(&(kind, element.into())).map(CellRef::Cell))
    }

    fn cells(self, kind: Kind) -> Loaded<impl DoubleEndedIterator<Item = (&'v [u8], CellRef<'v>)>> {
        if !self.all_loaded(kind) {
            return Err(need(self.id.0, &self.id.1, Part::Cells(kind)));
        }
        Ok(self.of_kind(kind).filter(|(_, cell)| cell.is_live()))
    }

    fn nth_cell(self, kind: Kind, index: u64) -> Loaded<Option<(&'v [u8], CellRef<'v>)>> {
        Ok(self.cells(kind)?.nth(index as usize))
    }
}

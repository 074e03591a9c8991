//! All rows of one key that is more than a plain string.

use std::cell::Cell as Cached;
use std::collections::{BTreeMap, btree_map};
use std::hash::RandomState;

use geode_crdt::{Actors, CellRef, Deadline, KeyName, Kind};
use indexmap::{IndexMap, map};

use super::cell::CellState;

/// Fields or members: found in constant time, picked by number in constant time.
type Elements = IndexMap<Box<[u8]>, CellState, RandomState>;
/// List positions in their order.
type Positions = BTreeMap<Box<[u8]>, CellState>;
/// Cells with rows of which none is live.
type DeadCells = BTreeMap<(Kind, Box<[u8]>), CellState>;

/// The rows of one key. Cells with live data stand apart from cells whose rows are all cancelled, so that counts and
/// random picks see live ones only.
#[derive(Debug)]
pub(crate) struct KeyState {
    database: u8,
    name: Box<[u8]>,
    ttl: CellState,
    string: CellState,
    hash: Option<Box<Elements>>,
    set: Option<Box<Elements>>,
    list: Option<Box<Positions>>,
    dead: Option<Box<DeadCells>>,
    /// The shown kind while more than one is live; computed when it is asked for.
    shown: Cached<Option<Kind>>,
}

impl KeyState {
    pub(super) fn new(key: KeyName<'_>) -> Self {
        Self {
            database: key.database,
            name: key.name.into(),
            ttl: CellState::EMPTY,
            string: CellState::EMPTY,
            hash: None,
            set: None,
            list: None,
            dead: None,
            shown: Cached::new(None),
        }
    }

    pub(super) fn key(&self) -> KeyName<'_> {
        KeyName { database: self.database, name: &self.name }
    }

    pub(super) fn string(&self) -> &CellState {
        &self.string
    }

    pub(super) fn ttl(&self) -> &CellState {
        &self.ttl
    }

    /// Whether there are only a string and a TTL cell, live or not.
    pub(super) fn is_string_only(&self) -> bool {
        self.hash.is_none() && self.set.is_none() && self.list.is_none() && self.dead.is_none()
    }

    /// Whether there is no row at all.
    pub(super) fn is_empty(&self) -> bool {
        self.is_string_only() && self.string.is_empty() && self.ttl.is_empty()
    }

    pub(super) fn live_cells(&self, kind: Kind) -> u64 {
        let count = match kind {
            Kind::Ttl => usize::from(self.ttl.is_live()),
            Kind::String => usize::from(self.string.is_live()),
            Kind::Hash => self.hash.as_ref().map_or(0, |elements| elements.len()),
            Kind::Set => self.set.as_ref().map_or(0, |elements| elements.len()),
            Kind::List => self.list.as_ref().map_or(0, |positions| positions.len()),
        };
        count as u64
    }

    pub(super) fn live_kinds(&self) -> impl Iterator<Item = Kind> + '_ {
        Kind::DATA.into_iter().filter(|kind| self.live_cells(*kind) > 0)
    }

    pub(super) fn is_live(&self) -> bool {
        self.live_kinds().next().is_some()
    }

    /// The live kind with the newest live row. Linear in the live cells when several kinds are live, once per change.
    pub(super) fn shown(&self, actors: &Actors) -> Option<Kind> {
        let mut kinds = self.live_kinds();
        let first = kinds.next()?;
        if kinds.next().is_none() {
            return Some(first);
        }
        if self.shown.get().is_none() {
            let newest = |kind: Kind| {
                let times = self.cells(kind).filter_map(|(_, cell)| cell.newest(actors));
                times.max_by(|left, right| geode_crdt::Dot::compare(*left, *right, actors))
            };
            let dated = self.live_kinds().filter_map(|kind| Some((newest(kind)?, kind)));
            let shown = dated.max_by(|left, right| geode_crdt::Dot::compare(left.0, right.0, actors));
            self.shown.set(shown.map(|(_, kind)| kind));
        }
        self.shown.get()
    }

    /// The greatest deadline, `None` if there is none or it is NEVER.
    pub(super) fn deadline(&self) -> Option<Deadline> {
        let rows = self.ttl.rows()?;
        let greatest = rows.puts().map(|put| Deadline::from_bytes(put.value)).max()?;
        (greatest != Deadline::NEVER).then_some(greatest)
    }

    pub(super) fn cell(&self, kind: Kind, element: &[u8]) -> Option<CellRef<'_>> {
        let live = match kind {
            Kind::Ttl => return if element.is_empty() { self.ttl.rows() } else { None },
            Kind::String => return if element.is_empty() { self.string.rows() } else { None },
            Kind::Hash => self.hash.as_ref().and_then(|elements| elements.get(element)),
            Kind::Set => self.set.as_ref().and_then(|elements| elements.get(element)),
            Kind::List => self.list.as_ref().and_then(|positions| positions.get(element)),
        };
        let dead = || self.dead.as_ref()?.get(&(kind, Box::from(element)));
        live.or_else(dead)?.rows()
    }

    pub(super) fn cells<'s>(&'s self, kind: Kind) -> Cells<'s> {
        let one = |cell: &'s CellState| Cells::One(cell.rows().filter(|rows| rows.is_live()));
        match kind {
            Kind::Ttl => one(&self.ttl),
            Kind::String => one(&self.string),
            Kind::Hash => {
                self.hash.as_ref().map_or(Cells::One(None), |fields| Cells::Elements(fields.iter()))
            }
            Kind::Set => {
                self.set.as_ref().map_or(Cells::One(None), |members| Cells::Elements(members.iter()))
            }
            Kind::List => self.list.as_ref().map_or(Cells::One(None), |list| Cells::Positions(list.iter())),
        }
    }

    /// Visits every cell that has a row, dead ones too.
    pub(super) fn each_cell<'s>(&'s self, mut visit: impl FnMut(Kind, &'s [u8], CellRef<'s>)) {
        for (kind, cell) in [(Kind::Ttl, &self.ttl), (Kind::String, &self.string)] {
            cell.rows().into_iter().for_each(|rows| visit(kind, &[], rows));
        }
        for kind in [Kind::Hash, Kind::Set, Kind::List] {
            self.cells(kind).for_each(|(element, rows)| visit(kind, element, rows));
        }
        for ((kind, element), cell) in self.dead.iter().flat_map(|dead| dead.iter()) {
            cell.rows().into_iter().for_each(|rows| visit(*kind, element, rows));
        }
    }

    pub(super) fn nth_cell(&self, kind: Kind, index: u64) -> Option<(&[u8], CellRef<'_>)> {
        let index = usize::try_from(index).ok()?;
        let elements = match kind {
            Kind::Hash => self.hash.as_ref()?,
            Kind::Set => self.set.as_ref()?,
            _ => return self.cells(kind).nth(index),
        };
        let (element, cell) = elements.get_index(index)?;
        Some((element, cell.rows()?))
    }

    /// Changes one cell and puts it where it then belongs.
    pub(super) fn update<R>(
        &mut self,
        kind: Kind,
        element: &[u8],
        change: impl FnOnce(&mut CellState) -> R,
    ) -> R {
        self.shown.set(None);
        match kind {
            Kind::Ttl if element.is_empty() => return change(&mut self.ttl),
            Kind::String if element.is_empty() => return change(&mut self.string),
            _ => {}
        }
        if let Some(cell) = self.live_mut(kind, element) {
            let result = change(cell);
            if !cell.is_live() {
                self.bury(kind, element);
            }
            return result;
        }
        let mut cell = self.exhume(kind, element);
        let result = change(&mut cell);
        self.place(kind, element, cell);
        result
    }

    fn live_mut(&mut self, kind: Kind, element: &[u8]) -> Option<&mut CellState> {
        match kind {
            Kind::Hash => self.hash.as_mut()?.get_mut(element),
            Kind::Set => self.set.as_mut()?.get_mut(element),
            Kind::List => self.list.as_mut()?.get_mut(element),
            Kind::Ttl | Kind::String => None,
        }
    }

    /// Takes a cell that is no longer live out of its map; keeps it among the dead if it has rows.
    fn bury(&mut self, kind: Kind, element: &[u8]) {
        fn take(elements: &mut Option<Box<Elements>>, element: &[u8]) -> Option<CellState> {
            let cell = elements.as_mut()?.swap_remove(element);
            if elements.as_ref().is_some_and(|elements| elements.is_empty()) {
                *elements = None;
            }
            cell
        }
        let cell = match kind {
            Kind::Hash => take(&mut self.hash, element),
            Kind::Set => take(&mut self.set, element),
            Kind::List => {
                let cell = self.list.as_mut().and_then(|list| list.remove(element));
                if self.list.as_ref().is_some_and(|list| list.is_empty()) {
                    self.list = None;
                }
                cell
            }
            Kind::Ttl | Kind::String => None,
        };
        if let Some(cell) = cell.filter(|cell| !cell.is_empty()) {
            self.dead.get_or_insert_default().insert((kind, element.into()), cell);
        }
    }

    fn exhume(&mut self, kind: Kind, element: &[u8]) -> CellState {
        let Some(dead) = &mut self.dead else { return CellState::EMPTY };
        let cell = dead.remove(&(kind, Box::from(element))).unwrap_or(CellState::EMPTY);
        if dead.is_empty() {
            self.dead = None;
        }
        cell
    }

    fn place(&mut self, kind: Kind, element: &[u8], cell: CellState) {
        if cell.is_empty() {
            return;
        }
        let live = cell.is_live();
        match kind {
            Kind::Hash if live => drop(self.hash.get_or_insert_default().insert(element.into(), cell)),
            Kind::Set if live => drop(self.set.get_or_insert_default().insert(element.into(), cell)),
            Kind::List if live => drop(self.list.get_or_insert_default().insert(element.into(), cell)),
            // Also rows that no release writes: a string or TTL cell with an element. They are kept, and show nothing.
            _ => drop(self.dead.get_or_insert_default().insert((kind, element.into()), cell)),
        }
    }
}

/// The live cells of a kind, in a stable order.
#[derive(Debug)]
pub(crate) enum Cells<'v> {
    /// The one cell of a string or TTL, or none.
    One(Option<CellRef<'v>>),
    /// Fields or members.
    Elements(map::Iter<'v, Box<[u8]>, CellState>),
    /// List positions.
    Positions(btree_map::Iter<'v, Box<[u8]>, CellState>),
}

impl<'v> Iterator for Cells<'v> {
    type Item = (&'v [u8], CellRef<'v>);

    fn next(&mut self) -> Option<Self::Item> {
        let (element, cell) = match self {
            Self::One(cell) => return cell.take().map(|cell| (&[][..], cell)),
            Self::Elements(elements) => elements.next()?,
            Self::Positions(positions) => positions.next()?,
        };
        // Only cells with rows stand in the maps.
        Some((element, cell.rows()?))
    }

    fn nth(&mut self, index: usize) -> Option<Self::Item> {
        match self {
            Self::Elements(elements) => {
                let (element, cell) = elements.nth(index)?;
                Some((element, cell.rows()?))
            }
            _ => {
                for _ in 0..index {
                    self.next()?;
                }
                self.next()
            }
        }
    }
}

impl DoubleEndedIterator for Cells<'_> {
    fn next_back(&mut self) -> Option<Self::Item> {
        let (element, cell) = match self {
            Self::One(_) => return self.next(),
            Self::Elements(elements) => elements.next_back()?,
            Self::Positions(positions) => positions.next_back()?,
        };
        Some((element, cell.rows()?))
    }
}

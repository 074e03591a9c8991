//! A cell as the table stores it.

use geode_crdt::{Cell, CellRef, Dot, Put, PutRef};

/// One put row in place, or any rows behind a pointer. Most members and fields are one put row.
#[derive(Debug)]
pub(super) enum CellState {
    /// Exactly one put row.
    One(Put),
    /// Any other rows; `None` is no row at all.
    Many(Option<Box<Cell>>),
}

impl CellState {
    /// No row.
    pub(super) const EMPTY: Self = Self::Many(None);

    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::Many(None))
    }

    /// The rows, `None` if there are none.
    pub(super) fn rows(&self) -> Option<CellRef<'_>> {
        match self {
            Self::One(put) => Some(CellRef::One(PutRef { dot: put.dot, time: put.time, value: &put.value })),
            Self::Many(cell) => cell.as_deref().map(CellRef::Cell),
        }
    }

    pub(super) fn is_live(&self) -> bool {
        self.rows().is_some_and(CellRef::is_live)
    }

    /// Adds a put row; false if it was there.
    pub(super) fn put(&mut self, row: Put) -> bool {
        match self {
            Self::Many(None) => {
                *self = Self::One(row);
                true
            }
            _ => self.with_cell(|cell| cell.put(row)),
        }
    }

    /// Removes a put row by name.
    pub(super) fn remove(&mut self, dot: Dot) -> Option<Put> {
        match std::mem::replace(self, Self::EMPTY) {
            Self::One(put) if put.dot == dot => Some(put),
            Self::Many(None) => None,
            other => {
                *self = other;
                if matches!(self, Self::One(_)) { None } else { self.with_cell(|cell| cell.remove(dot)) }
            }
        }
    }

    /// Changes the rows as a whole [`Cell`] and returns to the smallest form afterwards.
    pub(super) fn with_cell<R>(&mut self, change: impl FnOnce(&mut Cell) -> R) -> R {
        let mut cell = match std::mem::replace(self, Self::EMPTY) {
            Self::Many(Some(cell)) => cell,
            Self::Many(None) => Box::default(),
            Self::One(put) => {
                let mut cell = Box::<Cell>::default();
                cell.put(put);
                cell
            }
        };
        let result = change(&mut cell);
        *self = match (cell.puts(), cell.runs()) {
            ([], []) => Self::EMPTY,
            ([put], []) => {
                let dot = put.dot;
                cell.remove(dot).map_or(Self::EMPTY, Self::One)
            }
            _ => Self::Many(Some(cell)),
        };
        result
    }
}

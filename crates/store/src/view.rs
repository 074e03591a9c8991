//! What a command may observe: rows that are in memory, or the word that they are not loaded yet.

use geode_crdt::{Actors, CellRef, Deadline, Dot, KeyName, Kind};

/// An answer from memory, or what has to be fetched before the command can be run again.
pub type Loaded<T> = Result<T, Box<Need>>;

/// Rows that an engine has to fetch.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Need {
    /// The database of the key.
    pub database: u8,
    /// The key's name; empty for [`Part::Keys`].
    pub name: Box<[u8]>,
    /// Which of its rows.
    pub part: Part,
}

/// Which rows of a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// What [`View::key`] answers from: live counts, the shown type, TTL rows.
    Summary,
    /// One cell.
    Cell(Kind, Box<[u8]>),
    /// All live cells of a kind.
    Cells(Kind),
    /// The names and summaries of the keys of the database: those that a scan visits next from a cursor, or all of them.
    Keys {
        /// The cursor of [`View::scan`].
        from: u64,
    },
}

/// The rows of a store as they are now.
pub trait View {
    /// One key's rows.
    type Key<'v>: KeyView<'v>
    where
        Self: 'v;

    /// The names behind actor indexes; folds need their order.
    fn actors(&self) -> &Actors;

    /// The key's rows, `None` if it has none at all (not even inert ones).
    fn key<'v>(&'v self, key: KeyName<'_>) -> Loaded<Option<Self::Key<'v>>>;

    /// Visits about `count` keys of a database from `cursor` (0 to begin) on and returns the next cursor, 0 at the
    /// end. A key that is there during the whole scan is visited at least once, however the table grows meanwhile.
    fn scan<'v>(
        &'v self,
        database: u8,
        cursor: u64,
        count: usize,
        visit: impl FnMut(&'v [u8], Self::Key<'v>),
    ) -> Loaded<u64>;

    /// How many keys of a database hold live data (expired ones count until they are swept). Constant time.
    fn key_count(&self, database: u8) -> Loaded<u64>;
}

/// The rows of one key. Expiry is not considered here: that is the command's rule.
pub trait KeyView<'v>: Copy {
    /// The type that users see: that of the live row with the greatest (time, dot). `None` if no data is live.
    fn shown(self) -> Option<Kind>;

    /// How many cells of a kind are live. Constant time.
    fn live_cells(self, kind: Kind) -> u64;

    /// The put rows of the TTL cell.
    fn deadlines(self) -> impl Iterator<Item = (Dot, Deadline)>;

    /// One cell, `None` if it has no row. Logarithmic or better. Commands ask only for kinds that have live cells, and
    /// take no notice of cells without live rows.
    fn cell(self, kind: Kind, element: &[u8]) -> Loaded<Option<CellRef<'v>>>;

    /// All live cells of a kind: list positions in byte order, everything else in an order that is stable while the
    /// key is not written.
    fn cells(self, kind: Kind) -> Loaded<impl DoubleEndedIterator<Item = (&'v [u8], CellRef<'v>)>>;

    /// The live cell number `index` (below [`Self::live_cells`]) of a set or hash in the order of [`Self::cells`], for
    /// random picks. Constant time unless the key holds many dead cells.
    fn nth_cell(self, kind: Kind, index: u64) -> Loaded<Option<(&'v [u8], CellRef<'v>)>>;
}

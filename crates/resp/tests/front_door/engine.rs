//! An engine without rows whose log, disk and other regions do as the test says.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};

use geode_crdt::frame::Checkpoint;
use geode_crdt::{
    ActorId, ActorIndex, Actors, CellRef, Deadline, Dot, FrameBuilder, HybridTime, KeyName, Kind,
    VersionVector,
};
use geode_store::{Engine, FlushError, KeyView, Loaded, Need, Part, Position, Ticket, View};

/// What the test decides and observes.
#[derive(Debug)]
pub(crate) struct Controls {
    /// Up to where the log is on disk.
    pub(crate) durable: AtomicU64,
    /// The answer to WAIT.
    pub(crate) acknowledged: AtomicUsize,
    /// Whether keys that begin with `cold` are in memory.
    pub(crate) warm: AtomicBool,
    /// Whether the log cannot be written any more.
    pub(crate) broken: AtomicBool,
    /// The next flush that has writes says that it is not known what becomes of them.
    pub(crate) doubtful: AtomicBool,
    /// And neither of what waits for the disk.
    pub(crate) unproven: AtomicBool,
    /// How many writes the engine has seen.
    pub(crate) writes: AtomicU64,
    /// How many turns it had.
    pub(crate) turns: AtomicU64,
}

impl Default for Controls {
    fn default() -> Self {
        Self {
            durable: AtomicU64::new(u64::MAX),
            acknowledged: AtomicUsize::new(0),
            warm: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            doubtful: AtomicBool::new(false),
            unproven: AtomicBool::new(false),
            writes: AtomicU64::new(0),
            turns: AtomicU64::new(0),
        }
    }
}

pub(crate) struct TestEngine {
    controls: Arc<Controls>,
    rows: NoRows,
    builder: FrameBuilder,
    wall: HybridTime,
    writer: ActorIndex,
    held: VersionVector,
    fetching: Vec<Ticket>,
    next_ticket: u64,
    /// How many writes the flushes before have seen.
    flushed: u64,
}

impl TestEngine {
    pub(crate) fn new(controls: Arc<Controls>) -> Self {
        let mut actors = Actors::default();
        let writer = actors.intern(&ActorId::new("here", 1));
        Self {
            rows: NoRows { actors, controls: Arc::clone(&controls) },
            controls,
            builder: FrameBuilder::new(writer, 1),
            wall: HybridTime(0),
            writer,
            held: VersionVector::default(),
            fetching: Vec::new(),
            next_ticket: 0,
            flushed: 0,
        }
    }
}

impl Engine for TestEngine {
    type View = NoRows;

    fn set_wall(&mut self, wall: HybridTime) {
        self.wall = self.wall.max(wall);
    }

    fn now(&self) -> HybridTime {
        HybridTime(self.wall.0 + 1)
    }

    fn begin(&mut self) -> HybridTime {
        self.wall = self.now();
        self.builder.begin_entry(self.wall, []);
        self.wall
    }

    fn parts(&mut self) -> (&NoRows, &mut FrameBuilder) {
        (&self.rows, &mut self.builder)
    }

    fn view(&self) -> &NoRows {
        &self.rows
    }

    fn apply(&mut self, _: Checkpoint) {}

    fn end(&mut self) -> Option<u64> {
        let sequence = self.builder.finish_entry()?;
        self.held.raise(self.writer, sequence);
        self.controls.writes.store(sequence, SeqCst);
        Some(sequence)
    }

    fn fetch(&mut self, _: &Need) -> Ticket {
        self.next_ticket += 1;
        self.fetching.push(Ticket(self.next_ticket));
        Ticket(self.next_ticket)
    }

    fn completed(&mut self, tickets: &mut Vec<Ticket>) {
        if self.controls.warm.load(SeqCst) {
            tickets.append(&mut self.fetching);
        }
    }

    fn spill(&mut self) -> bool {
        self.flush().is_ok()
    }

    fn flush(&mut self) -> Result<Position, FlushError> {
        if self.controls.broken.load(SeqCst) {
            return Err(FlushError::Final("the disk is gone".to_owned()));
        }
        let writes = self.controls.writes.load(SeqCst);
        let is_news = std::mem::replace(&mut self.flushed, writes) != writes;
        if is_news && self.controls.doubtful.swap(false, SeqCst) {
            return Err(FlushError::Doubtful("DISK it may or may not happen".to_owned()));
        }
        if self.controls.unproven.swap(false, SeqCst) {
            return Err(FlushError::Unproven("DISK it may or may not happen".to_owned()));
        }
        Ok(Position(self.controls.writes.load(SeqCst)))
    }

    fn durable(&self) -> Position {
        Position(self.controls.durable.load(SeqCst))
    }

    fn last_sequence(&self) -> u64 {
        self.controls.writes.load(SeqCst)
    }

    fn held(&self) -> &VersionVector {
        &self.held
    }

    fn acknowledged(&self, _: u64) -> usize {
        self.controls.acknowledged.load(SeqCst)
    }

    fn regions(&self) -> usize {
        2
    }

    fn turn(&mut self) -> bool {
        self.controls.turns.fetch_add(1, SeqCst);
        false
    }
}

/// Rows of an empty store.
pub(crate) struct NoRows {
    actors: Actors,
    controls: Arc<Controls>,
}

impl View for NoRows {
    type Key<'v> = NoKey;

    fn actors(&self) -> &Actors {
        &self.actors
    }

    fn key(&self, key: KeyName<'_>) -> Loaded<Option<NoKey>> {
        if key.name.starts_with(b"cold") && !self.controls.warm.load(SeqCst) {
            return Err(Box::new(Need {
                database: key.database,
                name: key.name.into(),
                part: Part::Summary,
            }));
        }
        Ok(None)
    }

    fn scan<'v>(&'v self, _: u8, _: u64, _: usize, _: impl FnMut(&'v [u8], NoKey)) -> Loaded<u64> {
        Ok(0)
    }

    fn key_count(&self, _: u8) -> Loaded<u64> {
        Ok(0)
    }
}

/// There is none.
#[derive(Clone, Copy)]
pub(crate) enum NoKey {}

impl<'v> KeyView<'v> for NoKey {
    fn shown(self) -> Option<Kind> {
        match self {}
    }

    fn live_cells(self, _: Kind) -> u64 {
        match self {}
    }

    fn deadlines(self) -> impl Iterator<Item = (Dot, Deadline)> {
        std::iter::empty()
    }

    fn cell(self, _: Kind, _: &[u8]) -> Loaded<Option<CellRef<'v>>> {
        match self {}
    }

    fn cells(self, _: Kind) -> Loaded<impl DoubleEndedIterator<Item = (&'v [u8], CellRef<'v>)>> {
        Ok(std::iter::empty())
    }

    fn nth_cell(self, _: Kind, _: u64) -> Loaded<Option<(&'v [u8], CellRef<'v>)>> {
        match self {}
    }
}

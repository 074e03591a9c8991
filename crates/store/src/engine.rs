//! What holds the rows: opens, applies and commits entries, and fetches what is not in memory.

use geode_crdt::frame::Checkpoint;
use geode_crdt::{ActorIndex, FrameBuilder, HybridTime, VersionVector};

use crate::view::{Need, View};

/// A fetch that was asked for; engines complete them in batches and in any order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// A place in the engine's log. Everything committed before a position is durable once [`Engine::durable`] reaches it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position(pub u64);

/// Why what was committed is not in the log. The text is one line, as clients get it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlushError {
    /// The engine holds it in memory and tries again by itself; until then it refuses writes
    /// ([`Engine::write_refusal`]) and answers reads. Nobody knows yet whether it will be kept: a client that wrote is told
    /// so. It is said once for what was committed since the flush before.
    #[error("{0}")]
    Doubtful(String),
    /// As [`Self::Doubtful`], and moreover what earlier flushes handed over did not get onto the disk yet: replies that wait
    /// for [`Engine::durable`] are in doubt too. What comes later waits for it no more.
    #[error("{0}")]
    Unproven(String),
    /// The engine cannot go on: nothing may be answered any more.
    #[error("{0}")]
    Final(String),
}

/// What a sweep takes of an expired key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Data and deadline, once the deadline has passed for every write that can still come.
    Whole,
    /// The data alone, once the deadline has passed for every write of the regions that can be reached, while others
    /// have been away for long. An increment that one of these made within the key's life still finds its deadline.
    Data,
}

/// An engine. One thread owns it; nothing here blocks except [`Engine::flush`], which hands bytes to the kernel.
///
/// Rows that a command saw loaded stay loaded until the next [`turn`](Self::turn), and so do rows it wrote: a
/// transaction checks that everything it touches is there and then runs to its end. Once all [`Part::Cells`] of a kind
/// are there, [`KeyView::cell`] of that kind asks for nothing more.
///
/// [`Part::Cells`]: crate::view::Part::Cells
/// [`KeyView::cell`]: crate::view::KeyView::cell
///
/// Life of a writing command: [`begin`](Self::begin); then, once or (in MULTI) several times, a command appends
/// operations to the builder from [`parts`](Self::parts) and [`apply`](Self::apply) makes them visible to the next
/// one; then [`end`](Self::end). No other command runs in between, so a transaction is atomic here, and it is one
/// entry, so it is atomic everywhere. Before any reply leaves the process: [`flush`](Self::flush).
pub trait Engine {
    /// What commands observe.
    type View: View;

    /// Takes note of the wall clock; called once for each batch of commands.
    fn set_wall(&mut self, wall: HybridTime);

    /// The time at which reads happen and which the next entry would get.
    fn now(&self) -> HybridTime;

    /// Opens an entry and returns its time.
    fn begin(&mut self) -> HybridTime;

    /// What a command reads and where it writes.
    fn parts(&mut self) -> (&Self::View, &mut FrameBuilder);

    /// The rows, for commands that only read.
    fn view(&self) -> &Self::View;

    /// Applies the operations that were added to the open entry since `from` to the rows.
    fn apply(&mut self, from: Checkpoint);

    /// Closes the entry. Returns its sequence, `None` if it had no operations and therefore never was.
    fn end(&mut self) -> Option<u64>;

    /// Asks for rows; the ticket shows up in [`Self::completed`] when they are loaded (they may be evicted again, so
    /// the command is simply run again).
    fn fetch(&mut self, need: &Need) -> Ticket;

    /// Brings all keys into memory now, for a transaction that looks at all of them, and blocks for as long as that takes.
    /// Returns whether they are there: more than `limit` are not read.
    fn load_all(&mut self, limit: u64) -> bool {
        let _ = limit;
        true
    }

    /// Moves the tickets completed since the last call to the end of `tickets`.
    fn completed(&mut self, tickets: &mut Vec<Ticket>);

    /// Hands everything committed so far to the kernel and returns the place for which answers have to wait.
    ///
    /// # Errors
    /// [`FlushError`]; what was executed since the last call must not be answered as done.
    fn flush(&mut self) -> Result<Position, FlushError>;

    /// Hands what was committed to the kernel early, in the middle of a long command; what came of it the next
    /// [`Self::flush`] says, also if this failed. Returns whether the command may go on.
    fn spill(&mut self) -> bool;

    /// Called before it is asked whether a command may write. It may block, once after a start: until other regions have said
    /// what they know of this one, or are given up on.
    fn before_write(&mut self) {}

    /// Why nothing can be written now, in one line: what is wrong, where, and what to do. `None` if writes go on. Asked
    /// before each write.
    fn write_refusal(&self) -> Option<String> {
        None
    }

    /// Up to where the log is on disk. With `fsync = always` a reply waits until this reaches its position; in the
    /// other modes an engine answers `Position(u64::MAX)` here.
    fn durable(&self) -> Position;

    /// The sequence of this writer's last entry, 0 before the first.
    fn last_sequence(&self) -> u64;

    /// Which writer this is: another number once its sequences begin anew.
    fn writer(&self) -> u64 {
        0
    }

    /// How many *other* regions have this writer's entry `sequence` on disk; of a writer that has written nothing, 0, what
    /// its region wrote before. WAIT counts these.
    fn acknowledged(&self, sequence: u64) -> usize;

    /// What is delivered here, own entries included.
    fn held(&self) -> &VersionVector;

    /// The last sequence of an actor that will never write again, once that is agreed: nothing beyond it exists anywhere.
    fn end_of(&self, actor: ActorIndex) -> Option<u64> {
        let _ = actor;
        None
    }

    /// How far this region's clock is ahead of the other regions', in milliseconds, if that is so far that they would
    /// hold back what is written here; `None` if writes go on. Asked before each write.
    fn clock_ahead_ms(&self) -> Option<u64> {
        None
    }

    /// Whether this region has just come and does not hold yet what the others held then: until it does, nothing may be
    /// written. Asked before each write.
    fn is_joining(&self) -> bool {
        false
    }

    /// Whether what is held is a state that there was: false while rows from another region are taken in. Until then
    /// nothing may be read. Asked before each command.
    fn is_whole(&self) -> bool {
        true
    }

    /// An estimate of the bytes that rows take in memory, if the engine keeps one.
    fn memory_bytes(&self) -> Option<u64> {
        None
    }

    /// The bytes that rows may take in memory, and how many keys are on disk alone, if memory is limited.
    fn memory_limit(&self) -> Option<(u64, u64)> {
        None
    }

    /// How many regions the planet has; in a planet of one, conditional writes are exact.
    fn regions(&self) -> usize;

    /// Whether this region sweeps expired keys: the lowest one that is reachable. By default none does.
    fn is_sweeper(&self) -> bool {
        false
    }

    /// Deadlines below this time are due. For [`Extent::Whole`]: the least time up to which *every* region is known to
    /// have been delivered in order, by an entry or a heartbeat; zero while nothing is known of one of them. For
    /// [`Extent::Data`] the regions that have been away for long do not count; never less than the former.
    fn swept_until(&self, extent: Extent) -> HybridTime {
        let _ = extent;
        HybridTime(0)
    }

    /// At most `limit` keys (database, name) whose deadline lies below `until`, the earliest first if the engine knows;
    /// for [`Extent::Data`] only those with live data, and without looking at the others. They stay due until they are
    /// swept or written.
    fn due(&mut self, extent: Extent, until: HybridTime, limit: usize) -> Vec<(u8, Box<[u8]>)> {
        let _ = (extent, until, limit);
        Vec::new()
    }

    /// Work between batches: merge what arrived, keep time, complete fetches. Bounded; returns whether there is more
    /// to do at once.
    fn turn(&mut self) -> bool;
}

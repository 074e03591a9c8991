//! Cells: all rows of one element (the string, one field, member, list position or the TTL) and their fold.

use std::borrow::Cow;

use smallvec::SmallVec;

use crate::actor::{ActorIndex, Actors};
use crate::amount::{self, Amount};
use crate::dot::{Dot, Mark};
use crate::hybrid::HybridTime;

/// A put row: a value under a unique name. It stays until it is removed by that name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    /// The row's name.
    pub dot: Dot,
    /// When it was written.
    pub time: HybridTime,
    /// What was written.
    pub value: Box<[u8]>,
}

/// The sum row of one actor together with the cancel row that targets it.
///
/// Its increments since `start` add up to `total` at `last`. A cancel says: what stood at `upto` (`cancelled`) was
/// cleared by somebody who saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Whose increments these are.
    pub actor: ActorIndex,
    /// The first increment of this run.
    pub start: Mark,
    /// The last increment so far.
    pub last: Mark,
    /// All increments from `start` to `last`.
    pub total: Amount,
    /// When the last increment was written.
    pub time: HybridTime,
    /// The greatest cancel.
    pub cancelled: Option<Cancel>,
}

/// The cancel row that targets a run.
#[derive(Clone, Copy, Debug)]
pub struct Cancel {
    /// The last increment that is cleared.
    pub upto: Mark,
    /// The run's total there.
    pub amount: Amount,
    /// Who cleared it, in which of its entries. Several may have cleared the same; this is the one heard of first.
    pub by: (ActorIndex, u64),
}

/// Equal as rows: `upto` names the row, and who said it first is another matter on every replica.
impl PartialEq for Cancel {
    fn eq(&self, other: &Self) -> bool {
        self.upto == other.upto && self.amount == other.amount
    }
}

impl Eq for Cancel {}

impl Run {
    /// What is left of the run, `None` if all of it is cancelled.
    pub fn live_amount(&self) -> Option<Amount> {
        match self.cancelled {
            Some(cancel) if self.last <= cancel.upto => None,
            Some(cancel) if self.start <= cancel.upto => Some(self.total.minus(cancel.amount)),
            _ => Some(self.total),
        }
    }

    /// The name of the run's last increment.
    pub const fn dot(&self) -> Dot {
        Dot { actor: self.actor, mark: self.last }
    }
}

/// All rows of one cell. Nearly always one put row, or one run for each region that counts.
#[derive(Clone, Debug, Default)]
pub struct Cell {
    puts: SmallVec<[Put; 1]>,
    runs: Vec<Run>,
}

impl Cell {
    /// Adds a put row. Adding the same row again changes nothing. Returns whether it is new.
    pub fn put(&mut self, row: Put) -> bool {
        let new = self.puts.iter().all(|held| held.dot != row.dot);
        if new {
            self.puts.push(row);
        }
        new
    }

    /// Removes a put row by name; removing it again changes nothing.
    pub fn remove(&mut self, dot: Dot) -> Option<Put> {
        let index = self.puts.iter().position(|held| held.dot == dot)?;
        Some(self.puts.swap_remove(index))
    }

    /// Merges a sum row: the greater `last` stands. A row that was cancelled keeps its cancel.
    /// Returns whether the row was taken.
    pub fn sum(&mut self, row: Run) -> bool {
        match self.runs.iter_mut().find(|run| run.actor == row.actor) {
            Some(held) if held.last >= row.last => false,
            Some(held) => {
                *held = Run { cancelled: held.cancelled, ..row };
                true
            }
            None => {
                self.runs.push(row);
                true
            }
        }
    }

    /// Merges a cancel row: the greater `upto` stands. A cancel whose sum is not held is ignored: causal delivery
    /// brings the sum first, so it was dropped as dead. Returns whether the row was taken.
    pub fn cancel(&mut self, target: ActorIndex, row: Cancel) -> bool {
        let Some(run) = self.runs.iter_mut().find(|run| run.actor == target) else { return false };
        if run.cancelled.is_some_and(|held| held.upto >= row.upto) {
            return false;
        }
        run.cancelled = Some(row);
        true
    }

    /// Makes `runs` the runs of this cell; one for each actor.
    pub fn set_runs(&mut self, runs: Vec<Run>) {
        self.runs = runs;
    }

    /// Drops the run of `actor` if nothing of it is live. When that is safe is the replica's knowledge: the owner at
    /// once, others after an entry of the owner that depends on the cancel.
    pub fn drop_dead(&mut self, actor: ActorIndex) -> bool {
        let before = self.runs.len();
        self.runs.retain(|run| run.actor != actor || run.live_amount().is_some());
        self.runs.len() != before
    }

    /// The put rows, in no particular order.
    pub fn puts(&self) -> &[Put] {
        &self.puts
    }

    /// All runs, dead ones too.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// Whether the cell holds no row at all, not even a dead one.
    pub fn is_empty(&self) -> bool {
        self.puts.is_empty() && self.runs.is_empty()
    }
}

/// A deadline or its absence, as a put row in a TTL cell holds it. The fold is the greatest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(pub HybridTime);

impl Deadline {
    /// The key never expires.
    pub const NEVER: Self = Self(HybridTime(u64::MAX));

    /// The bytes that stand in the row.
    pub const fn to_bytes(self) -> [u8; 8] {
        self.0.0.to_le_bytes()
    }

    /// From a row's bytes; anything that is not eight bytes is NEVER, which cannot lose data.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        bytes.try_into().map_or(Self::NEVER, |bytes| Self(HybridTime(u64::from_le_bytes(bytes))))
    }

    /// Whether a reader or writer at `now` sees the key as gone.
    pub fn passed_at(self, now: HybridTime) -> bool {
        now > self.0
    }
}

/// A borrowed put row.
#[derive(Clone, Copy, Debug)]
pub struct PutRef<'a> {
    /// The row's name.
    pub dot: Dot,
    /// When it was written.
    pub time: HybridTime,
    /// What was written.
    pub value: &'a [u8],
}

/// The rows of a cell as an engine stores them: packed for the common single put, or a whole [`Cell`].
#[derive(Clone, Copy, Debug)]
pub enum CellRef<'a> {
    /// Exactly one put row and nothing else.
    One(PutRef<'a>),
    /// Any rows.
    Cell(&'a Cell),
}

/// The value of a cell: what a user reads.
#[derive(Clone, Debug, PartialEq)]
pub enum Folded<'a> {
    /// The value as it was put.
    Bytes(&'a [u8]),
    /// Base plus live amounts, saturated at 64 bits.
    Integer(i64),
    /// Base plus live amounts where one of them is a float.
    Float(f64),
}

impl<'a> Folded<'a> {
    /// The value as Redis would hold it.
    pub fn to_bytes(&self) -> Cow<'a, [u8]> {
        match self {
            Self::Bytes(bytes) => Cow::Borrowed(bytes),
            Self::Integer(value) => Cow::Owned(value.to_string().into_bytes()),
            Self::Float(value) => Cow::Owned(amount::format_float(*value).into_bytes()),
        }
    }
}

impl<'a> CellRef<'a> {
    /// The put rows, in no particular order.
    pub fn puts(self) -> impl Iterator<Item = PutRef<'a>> {
        let (one, many) = match self {
            Self::One(put) => (Some(put), &[][..]),
            Self::Cell(cell) => (None, cell.puts()),
        };
        let borrow = |put: &'a Put| PutRef { dot: put.dot, time: put.time, value: &put.value };
        one.into_iter().chain(many.iter().map(borrow))
    }

    /// The runs, dead ones too.
    pub fn runs(self) -> &'a [Run] {
        match self {
            Self::One(_) => &[],
            Self::Cell(cell) => cell.runs(),
        }
    }

    /// The live amounts with their runs.
    pub fn live_runs(self) -> impl Iterator<Item = (&'a Run, Amount)> {
        self.runs().iter().filter_map(|run| Some((run, run.live_amount()?)))
    }

    /// Whether a put row or a live amount is here, zero included.
    pub fn is_live(self) -> bool {
        self.puts().next().is_some() || self.live_runs().next().is_some()
    }

    /// The put row that wins: the greatest (time, dot).
    pub fn base(self, actors: &Actors) -> Option<PutRef<'a>> {
        self.puts().max_by(|left, right| Dot::compare((left.time, left.dot), (right.time, right.dot), actors))
    }

    /// The greatest (time, dot) over all live rows: decides which type a key shows.
    pub fn newest(self, actors: &Actors) -> Option<(HybridTime, Dot)> {
        let puts = self.puts().map(|put| (put.time, put.dot));
        let runs = self.live_runs().map(|(run, _)| (run.time, run.dot()));
        puts.chain(runs).max_by(|left, right| Dot::compare(*left, *right, actors))
    }

    /// The value of the cell, `None` if nothing in it is live.
    ///
    /// Numeric or absent base: base plus live amounts. Any other base hides the amounts until something clears them.
    /// Floats are summed in actor order, so that every replica rounds alike. Linear in the rows of the cell.
    pub fn fold(self, actors: &Actors) -> Option<Folded<'a>> {
        let base = self.base(actors);
        if self.live_runs().next().is_none() {
            return base.map(|put| Folded::Bytes(put.value));
        }
        let start = match base {
            None => Amount::ZERO,
            Some(put) => match number(put.value) {
                Some(amount) => amount,
                None => return Some(Folded::Bytes(put.value)),
            },
        };
        Some(match self.add_amounts(start, actors) {
            Amount::Integer(total) => Folded::Integer(total.clamp(i64::MIN.into(), i64::MAX.into()) as i64),
            Amount::Float(total) => Folded::Float(total),
        })
    }

    /// Whether live amounts are hidden behind a base that is not a number.
    pub fn hides_amounts(self, actors: &Actors) -> bool {
        let hidden = |put: PutRef<'_>| number(put.value).is_none();
        self.live_runs().next().is_some() && self.base(actors).is_some_and(hidden)
    }

    fn add_amounts(self, start: Amount, actors: &Actors) -> Amount {
        let mut live: SmallVec<[(ActorIndex, Amount); 4]> =
            self.live_runs().map(|(run, amount)| (run.actor, amount)).collect();
        live.sort_by(|left, right| actors.compare(left.0, right.0));
        // Integers first in 128 bits: exact, whatever the order.
        let integers = live.iter().filter_map(|(_, amount)| match amount {
            Amount::Integer(value) => Some(*value),
            Amount::Float(_) => None,
        });
        let exact = Amount::Integer(integers.fold(0, i128::saturating_add));
        let floats = live.iter().filter(|(_, amount)| matches!(amount, Amount::Float(_)));
        floats.fold(start.plus(exact), |sum, (_, amount)| finite(sum.plus(*amount)))
    }
}

/// A sum of finite floats may still overflow; it saturates like the integers do instead of becoming infinite.
fn finite(amount: Amount) -> Amount {
    match amount {
        Amount::Float(value) => Amount::Float(value.clamp(f64::MIN, f64::MAX)),
        Amount::Integer(_) => amount,
    }
}

/// The number a put value stands for as the base of a counter.
fn number(value: &[u8]) -> Option<Amount> {
    match amount::parse_integer(value) {
        Some(integer) => Some(Amount::Integer(integer.into())),
        None => amount::parse_float(value).map(Amount::Float),
    }
}

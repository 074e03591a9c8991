//! The conflict log: what a delivery found that its writer had not seen.
//!
//! Each region logs what it sees when it delivers, so two regions may log one conflict from their two sides. Equal values
//! are no conflict: nothing is lost.

use std::collections::{BTreeMap, VecDeque};

use geode_crdt::frame::EntryRef;
use geode_crdt::{Amount, Deadline, Dot, Folded, HybridTime, KeyName, Kind, Mark, Op, PutRef};
use geode_store::{KeyView, View};

use crate::table::{KeyRef, Table};

/// Bytes of a value that are kept.
const VALUE_LIMIT: usize = 256;
/// Conflicts that are kept, and their bytes.
const RING_LENGTH: usize = 10_000;
const RING_BYTES: usize = 4 << 20;
/// What a conflict takes besides its names and values: an estimate.
const CONFLICT_BYTES: usize = 256;

/// Which rule decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// Two values in one cell: the later hybrid time stands.
    LaterWrite,
    /// Two deadlines on one key: the longest stands, NEVER beats all.
    LongestDeadline,
    /// Two types on one key: the type written last is shown.
    ShownType,
    /// Increments of a value that is no number: hidden until something clears them.
    HiddenAmount,
    /// A clear did not see what was written concurrently: that survives.
    SurvivedClear,
}

impl Rule {
    /// All rules.
    pub const ALL: [Self; 5] =
        [Self::LaterWrite, Self::LongestDeadline, Self::ShownType, Self::HiddenAmount, Self::SurvivedClear];

    /// The rule's name in reports and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::LaterWrite => "later-write",
            Self::LongestDeadline => "longest-deadline",
            Self::ShownType => "shown-type",
            Self::HiddenAmount => "hidden-amount",
            Self::SurvivedClear => "survived-clear",
        }
    }
}

/// One side of a conflict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Side {
    /// What stands there, at most 256 bytes of it.
    pub value: Vec<u8>,
    /// The name of its write: `region#incarnation/sequence.ordinal`.
    pub dot: String,
    /// When it was written.
    pub time: HybridTime,
}

/// One conflict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// When the entry was delivered here.
    pub time: HybridTime,
    /// The key's database.
    pub database: u8,
    /// The key's name.
    pub key: Vec<u8>,
    /// The kind of the cell.
    pub kind: Kind,
    /// Its field, member or position; empty for a string.
    pub element: Vec<u8>,
    /// Which rule decided.
    pub rule: Rule,
    /// What stands.
    pub winner: Side,
    /// What does not. Of a clear there is no value.
    pub loser: Side,
}

/// The newest conflicts and how many there were.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConflictReport {
    /// Newest first.
    pub recent: Vec<Conflict>,
    /// All since the process started, by rule.
    pub totals: Vec<(Rule, u64)>,
}

/// The newest conflicts, and counts.
#[derive(Debug, Default)]
pub(crate) struct Conflicts {
    ring: VecDeque<Conflict>,
    bytes: usize,
    totals: BTreeMap<Rule, u64>,
}

/// One delivered entry and what it is compared with.
struct Examined<'a> {
    table: &'a Table,
    entry: &'a EntryRef<'a>,
    key: KeyName<'a>,
    rows: KeyRef<'a>,
}

impl Conflicts {
    /// Looks at what a delivered entry left behind, after all its operations. `now` is the time of delivery.
    pub(crate) fn examine(&mut self, table: &Table, entry: &EntryRef<'_>, now: HybridTime) {
        let mut typed: Option<KeyName<'_>> = None;
        for op in entry.ops().flatten() {
            let key = op.key();
            let Ok(Some(rows)) = table.key(key) else { continue };
            let examined = Examined { table, entry, key, rows };
            let (written, found) = match &op {
                Op::Set { .. } => {
                    let cells = [(Kind::String, &[][..]), (Kind::Ttl, &[][..])];
                    (Some(Kind::String), cells.map(|(kind, element)| examined.written(kind, element)))
                }
                Op::Put { kind, element, .. } | Op::Sum { kind, element, .. } => {
                    (Some(*kind), [examined.written(*kind, element), None])
                }
                Op::Remove { kind, element, .. } | Op::Cancel { kind, element, .. } => {
                    (None, [examined.survivor(*kind, element), None])
                }
            };
            // One for each key and entry: the types differ for all fields of a hash alike.
            let types = written.filter(|_| typed != Some(key)).and_then(|kind| examined.types(kind));
            typed = if types.is_some() { Some(key) } else { typed };
            for conflict in found.into_iter().chain([types]).flatten() {
                self.push(Conflict { time: now, ..conflict });
            }
        }
    }

    /// The newest conflicts first, at most `limit`, and all counts.
    pub(crate) fn report(&self, limit: usize) -> ConflictReport {
        ConflictReport {
            recent: self.ring.iter().rev().take(limit).cloned().collect(),
            totals: self.totals(),
        }
    }

    /// How many there were, by rule.
    pub(crate) fn totals(&self) -> Vec<(Rule, u64)> {
        Rule::ALL.into_iter().map(|rule| (rule, self.totals.get(&rule).copied().unwrap_or(0))).collect()
    }

    fn push(&mut self, conflict: Conflict) {
        *self.totals.entry(conflict.rule).or_default() += 1;
        self.bytes += size_of(&conflict);
        self.ring.push_back(conflict);
        while self.ring.len() > RING_LENGTH || self.bytes > RING_BYTES {
            let Some(oldest) = self.ring.pop_front() else { break };
            self.bytes -= size_of(&oldest);
        }
    }
}

fn size_of(conflict: &Conflict) -> usize {
    let values = conflict.winner.value.len() + conflict.loser.value.len();
    CONFLICT_BYTES + conflict.key.len() + conflict.element.len() + values
}

impl Examined<'_> {
    /// Whether the entry's row stands beside one that its writer had not seen.
    fn written(&self, kind: Kind, element: &[u8]) -> Option<Conflict> {
        let cell = self.rows.cell(kind, element).ok()??;
        let actors = self.table.actors();
        let is_new = |dot: Dot| dot.actor == self.entry.writer() && dot.mark.sequence == self.entry.sequence;
        let base = cell.base(actors);
        if kind != Kind::Ttl && cell.hides_amounts(actors) {
            let (run, amount) = cell.live_runs().next()?;
            let hidden = match amount {
                Amount::Integer(value) => value.to_string(),
                Amount::Float(value) => value.to_string(),
            };
            let loser = self.side(hidden.as_bytes(), run.dot(), run.time);
            return Some(self.conflict(kind, element, Rule::HiddenAmount, self.put(base?), loser));
        }
        let new = cell.puts().find(|put| is_new(put.dot))?;
        let other = cell.puts().find(|put| !is_new(put.dot) && put.value != new.value)?;
        let greatest = |put: &PutRef<'_>| Deadline::from_bytes(put.value);
        let (rule, new_wins) = match kind {
            Kind::Ttl => (Rule::LongestDeadline, greatest(&new) > greatest(&other)),
            _ => {
                let order = Dot::compare((new.time, new.dot), (other.time, other.dot), actors);
                (Rule::LaterWrite, order.is_gt())
            }
        };
        let (winner, loser) = if new_wins { (new, other) } else { (other, new) };
        Some(self.conflict(kind, element, rule, self.put(winner), self.put(loser)))
    }

    /// Whether data of another type than the one just written is live.
    fn types(&self, kind: Kind) -> Option<Conflict> {
        let other =
            Kind::DATA.into_iter().find(|other| *other != kind && self.rows.live_cells(*other) > 0)?;
        if kind == Kind::Ttl || self.rows.live_cells(kind) == 0 {
            return None;
        }
        let (shown, hidden) = if self.rows.shown() == Some(kind) { (kind, other) } else { (other, kind) };
        let side = |kind: Kind| {
            let (_, cell) = self.rows.cells(kind).ok()?.next()?;
            let (time, dot) = cell.newest(self.table.actors())?;
            Some(self.side(kind.name().as_bytes(), dot, time))
        };
        Some(self.conflict(shown, &[], Rule::ShownType, side(shown)?, side(hidden)?))
    }

    /// Whether something is left in a cell that the entry cleared and did not write itself.
    fn survivor(&self, kind: Kind, element: &[u8]) -> Option<Conflict> {
        let cell = self.rows.cell(kind, element).ok()??;
        let (time, dot) = cell.newest(self.table.actors())?;
        let own = dot.actor == self.entry.writer() && dot.mark.sequence == self.entry.sequence;
        if kind == Kind::Ttl || own {
            return None;
        }
        let value = cell.fold(self.table.actors());
        let value = value.as_ref().map(Folded::to_bytes).unwrap_or_default();
        let clear =
            Dot { actor: self.entry.writer(), mark: Mark { sequence: self.entry.sequence, ordinal: 0 } };
        let winner = self.side(&value, dot, time);
        Some(self.conflict(
            kind,
            element,
            Rule::SurvivedClear,
            winner,
            self.side(&[], clear, self.entry.time),
        ))
    }

    fn conflict(&self, kind: Kind, element: &[u8], rule: Rule, winner: Side, loser: Side) -> Conflict {
        Conflict {
            time: self.entry.time,
            database: self.key.database,
            key: self.key.name.to_vec(),
            kind,
            element: element[..element.len().min(VALUE_LIMIT)].to_vec(),
            rule,
            winner,
            loser,
        }
    }

    fn put(&self, put: PutRef<'_>) -> Side {
        self.side(put.value, put.dot, put.time)
    }

    fn side(&self, value: &[u8], dot: Dot, time: HybridTime) -> Side {
        let id = self.table.actors().id(dot.actor);
        Side {
            value: value[..value.len().min(VALUE_LIMIT)].to_vec(),
            dot: format!("{id}/{}.{}", dot.mark.sequence, dot.mark.ordinal),
            time,
        }
    }
}

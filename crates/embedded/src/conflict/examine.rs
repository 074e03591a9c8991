//! Finding conflicts: what a delivered entry left behind beside rows that its writer had not seen.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use geode_crdt::frame::EntryRef;
use geode_crdt::{
    ActorIndex, Amount, CellRef, Deadline, Dot, Folded, HybridTime, KeyName, Kind, Mark, Op, PutRef, Run,
    SYSTEM_DATABASE,
};
use geode_store::{KeyView, RECORD_PREFIX, View};

use super::{Conflict, ConflictLog, NAME_LIMIT, Rule, Side, VALUE_LIMIT};
use crate::table::{KeyRef, Table};

/// A conflict between the same two rows is told once in this time: a counter that goes on being hidden is one conflict.
const AGAIN_US: u64 = 60 * 1_000_000;
/// How many conflicts are remembered for that.
const REMEMBERED: usize = 16 * 1024;
/// What stands before the reply in a record of GEODE.ONCE: its format and the hash of the command.
const RECORD_HEAD: usize = 9;

/// Looks at what is delivered.
#[derive(Debug)]
pub(crate) struct Conflicts {
    log: Arc<ConflictLog>,
    told: Told,
}

/// The conflicts that were told lately, the oldest first.
#[derive(Debug, Default)]
struct Told {
    times: HashMap<u64, HybridTime>,
    order: VecDeque<u64>,
}

/// One delivered entry and what it is compared with.
struct Examined<'a> {
    table: &'a Table,
    entry: &'a EntryRef<'a>,
    key: KeyName<'a>,
    rows: KeyRef<'a>,
}

/// A side of a conflict, and the row that it is: a run of increments stays one row while it grows.
struct Row {
    side: Side,
    name: (ActorIndex, Mark),
}

/// A conflict that was found.
struct Found {
    conflict: Conflict,
    rows: [(ActorIndex, Mark); 2],
}

impl Conflicts {
    pub(crate) fn new(log: Arc<ConflictLog>) -> Self {
        Self { log, told: Told::default() }
    }

    pub(crate) fn log(&self) -> &Arc<ConflictLog> {
        &self.log
    }

    /// Looks at what a delivered entry left behind, after all its operations. `now` is the time of delivery.
    pub(crate) fn examine(&mut self, table: &Table, entry: &EntryRef<'_>, now: HybridTime) {
        let mut typed: Option<KeyName<'_>> = None;
        for op in entry.ops().flatten() {
            let key = op.key();
            let Ok(Some(rows)) = table.key(key) else { continue };
            let examined = Examined { table, entry, key, rows };
            let mut found = Vec::new();
            let written = match &op {
                _ if key.database == SYSTEM_DATABASE => {
                    found.extend(examined.executed_twice(&op));
                    None
                }
                Op::Set { .. } => {
                    examined.written(Kind::String, &[], &mut found);
                    examined.written(Kind::Ttl, &[], &mut found);
                    Some(Kind::String)
                }
                Op::Put { kind, element, .. } | Op::Sum { kind, element, .. } => {
                    examined.written(*kind, element, &mut found);
                    Some(*kind)
                }
                Op::Remove { kind, element, .. } | Op::Cancel { kind, element, .. } => {
                    found.extend(examined.survivor(*kind, element));
                    None
                }
            };
            // One for each key and entry: the types differ for all fields of a hash alike.
            let types = written.filter(|_| typed != Some(key)).and_then(|kind| examined.types(kind));
            typed = if types.is_some() { Some(key) } else { typed };
            found.into_iter().chain(types).for_each(|found| self.tell(found, now));
        }
    }

    fn tell(&mut self, found: Found, now: HybridTime) {
        if self.told.is_new(&found, now) {
            self.log.push(found.conflict, now);
        }
    }
}

impl Told {
    fn is_new(&mut self, found: &Found, now: HybridTime) -> bool {
        let Found { conflict, rows } = found;
        let mut hasher = DefaultHasher::new();
        (conflict.database, &conflict.key, conflict.kind, &conflict.element, conflict.rule).hash(&mut hasher);
        rows.hash(&mut hasher);
        let hash = hasher.finish();
        let before = self.times.insert(hash, now);
        if before.is_none() {
            self.order.push_back(hash);
            if self.order.len() > REMEMBERED
                && let Some(oldest) = self.order.pop_front()
            {
                self.times.remove(&oldest);
            }
        }
        let is_new = before.is_none_or(|before| now.0 >= before.0.saturating_add(AGAIN_US));
        if let (Some(before), false) = (before, is_new) {
            self.times.insert(hash, before);
        }
        is_new
    }
}

impl Examined<'_> {
    /// Whether the entry's row stands beside some that its writer had not seen.
    fn written(&self, kind: Kind, element: &[u8], found: &mut Vec<Found>) {
        let Ok(Some(cell)) = self.rows.cell(kind, element) else { return };
        if let Some(new) = cell.puts().find(|put| self.is_own(put.dot)) {
            // Whatever else is left in the cell was not seen.
            found.extend(self.put_beside(kind, element, cell, new));
            let other = cell.live_runs().find(|(run, _)| !self.is_own(run.dot()));
            found
                .extend(other.and_then(|(run, amount)| self.amount_beside(kind, element, cell, run, amount)));
        } else {
            found.extend(self.counted_beside(kind, element, cell));
        }
    }

    /// Another value beside the one that was put.
    fn put_beside(&self, kind: Kind, element: &[u8], cell: CellRef<'_>, new: PutRef<'_>) -> Option<Found> {
        let actors = self.table.actors();
        let other = cell.puts().find(|put| !self.is_own(put.dot) && put.value != new.value)?;
        let deadline = |put: &PutRef<'_>| Deadline::from_bytes(put.value);
        let (rule, new_wins) = match kind {
            Kind::Ttl => (Rule::LongestDeadline, deadline(&new) > deadline(&other)),
            _ => {
                let order = Dot::compare((new.time, new.dot), (other.time, other.dot), actors);
                (Rule::LaterWrite, order.is_gt())
            }
        };
        let (winner, loser) = if new_wins { (new, other) } else { (other, new) };
        Some(self.conflict(kind, element, rule, self.put(winner), self.put(loser)))
    }

    /// Increments arrived: a value beside them may be one that their writer had not seen.
    fn counted_beside(&self, kind: Kind, element: &[u8], cell: CellRef<'_>) -> Option<Found> {
        let (run, amount) = cell.live_runs().find(|(run, _)| self.is_own(run.dot()))?;
        let base = cell.base(self.table.actors())?;
        let unseen =
            cell.hides_amounts(self.table.actors()) || !self.table.has_seen(self.entry.writer(), base.dot);
        unseen.then(|| self.amount_beside(kind, element, cell, run, amount)).flatten()
    }

    /// Increments beside a value: a number and they add up, so they survived its clear; a text hides them.
    fn amount_beside(
        &self,
        kind: Kind,
        element: &[u8],
        cell: CellRef<'_>,
        run: &Run,
        amount: Amount,
    ) -> Option<Found> {
        let actors = self.table.actors();
        let base = self.put(cell.base(actors)?);
        let name = (run.actor, run.start);
        if cell.hides_amounts(actors) {
            let hidden = match amount {
                Amount::Integer(value) => value.to_string(),
                Amount::Float(value) => value.to_string(),
            };
            let loser = Row { side: self.side(hidden.as_bytes(), run.dot(), run.time), name };
            return Some(self.conflict(kind, element, Rule::HiddenAmount, base, loser));
        }
        let value = cell.fold(actors)?.to_bytes().into_owned();
        let winner = Row { side: self.side(&value, run.dot(), run.time), name };
        Some(self.conflict(kind, element, Rule::SurvivedClear, winner, base))
    }

    /// Whether data of another type than the one just written is live.
    fn types(&self, kind: Kind) -> Option<Found> {
        let other =
            Kind::DATA.into_iter().find(|other| *other != kind && self.rows.live_cells(*other) > 0)?;
        if kind == Kind::Ttl || self.rows.live_cells(kind) == 0 {
            return None;
        }
        let (shown, hidden) = if self.rows.shown() == Some(kind) { (kind, other) } else { (other, kind) };
        let row = |kind: Kind| {
            let (_, cell) = self.rows.cells(kind).ok()?.next()?;
            let (time, dot) = cell.newest(self.table.actors())?;
            // Each further element that a writer adds unaware is of the same conflict.
            let name = (dot.actor, Mark { sequence: kind as u64, ordinal: 0 });
            Some(Row { side: self.side(kind.name().as_bytes(), dot, time), name })
        };
        Some(self.conflict(shown, &[], Rule::ShownType, row(shown)?, row(hidden)?))
    }

    /// Whether something is left in a cell that the entry cleared and did not write itself.
    fn survivor(&self, kind: Kind, element: &[u8]) -> Option<Found> {
        let cell = self.rows.cell(kind, element).ok()??;
        let (time, dot) = cell.newest(self.table.actors())?;
        if kind == Kind::Ttl || self.is_own(dot) {
            return None;
        }
        let run = cell.live_runs().find(|(run, _)| run.dot() == dot);
        let name = (dot.actor, run.map_or(dot.mark, |(run, _)| run.start));
        let value = cell.fold(self.table.actors());
        let value = value.as_ref().map(Folded::to_bytes).unwrap_or_default();
        let winner = Row { side: self.side(&value, dot, time), name };
        let mark = Mark { sequence: self.entry.sequence, ordinal: 0 };
        let clear = Dot { actor: self.entry.writer(), mark };
        let loser = Row { side: self.side(&[], clear, self.entry.time), name: (clear.actor, mark) };
        Some(self.conflict(kind, element, Rule::SurvivedClear, winner, loser))
    }

    /// Whether two records of one id stand beside each other, equal or not: both were executed.
    fn executed_twice(&self, op: &Op<'_>) -> Option<Found> {
        let id = self.key.name.strip_prefix(RECORD_PREFIX)?;
        let Op::Put { kind: Kind::String, .. } = op else { return None };
        let cell = self.rows.cell(Kind::String, &[]).ok()??;
        let other = cell.puts().find(|put| !self.is_own(put.dot))?;
        let new = cell.puts().find(|put| self.is_own(put.dot))?;
        let reply = |put: PutRef<'_>| {
            let value = put.value.get(RECORD_HEAD..).unwrap_or_default();
            Row { side: self.side(value, put.dot, put.time), name: (put.dot.actor, put.dot.mark) }
        };
        let later = Dot::compare((new.time, new.dot), (other.time, other.dot), self.table.actors()).is_gt();
        let (winner, loser) = if later { (new, other) } else { (other, new) };
        let mut found = self.conflict(Kind::String, &[], Rule::ExecutedTwice, reply(winner), reply(loser));
        found.conflict.key = id.to_vec();
        Some(found)
    }

    /// Whether the entry wrote this.
    fn is_own(&self, dot: Dot) -> bool {
        dot.actor == self.entry.writer() && dot.mark.sequence == self.entry.sequence
    }

    fn conflict(&self, kind: Kind, element: &[u8], rule: Rule, winner: Row, loser: Row) -> Found {
        let rows = [winner.name, loser.name];
        let conflict = Conflict {
            time: self.entry.time,
            database: self.key.database,
            key: self.key.name[..self.key.name.len().min(NAME_LIMIT)].to_vec(),
            kind,
            element: element[..element.len().min(NAME_LIMIT)].to_vec(),
            rule,
            winner: winner.side,
            loser: loser.side,
        };
        Found { conflict, rows }
    }

    fn put(&self, put: PutRef<'_>) -> Row {
        Row { side: self.side(put.value, put.dot, put.time), name: (put.dot.actor, put.dot.mark) }
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

//! The conflict log: what a delivery found that its writer had not seen.
//!
//! Each region logs what it sees when it delivers, so two regions may log one conflict from their two sides. Equal values
//! are no conflict: nothing is lost. Nothing is decided here.

mod examine;
mod file;
mod log;

use geode_crdt::{HybridTime, Kind};

pub(crate) use examine::Conflicts;
pub(crate) use log::{ConflictLog, ConflictWriter};

/// Bytes of a value, and of an element's or key's name, that are kept.
const VALUE_LIMIT: usize = 256;
const NAME_LIMIT: usize = 1024;

/// Which rule decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// Two values in one cell: the later hybrid time stands.
    LaterWrite,
    /// Two deadlines on one key: the longest stands, NEVER beats all.
    LongestDeadline,
    /// Two types on one key: the type written last is shown.
    ShownType,
    /// Increments of a value that is no number: hidden until something clears them.
    HiddenAmount,
    /// A clear (DEL and its relatives, or a SET of a counter) did not see what was written concurrently: that survives.
    SurvivedClear,
    /// Two regions executed the command of one id of GEODE.ONCE: the effects merge, the later record answers.
    ExecutedTwice,
}

impl Rule {
    /// All rules.
    pub const ALL: [Self; 6] = [
        Self::LaterWrite,
        Self::LongestDeadline,
        Self::ShownType,
        Self::HiddenAmount,
        Self::SurvivedClear,
        Self::ExecutedTwice,
    ];

    /// The rule's name in reports and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::LaterWrite => "later-write",
            Self::LongestDeadline => "longest-deadline",
            Self::ShownType => "shown-type",
            Self::HiddenAmount => "hidden-amount",
            Self::SurvivedClear => "survived-clear",
            Self::ExecutedTwice => "executed-twice",
        }
    }
}

/// One side of a conflict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Side {
    /// What was written, at most 256 bytes of it; of hidden increments their sum, of a type its name.
    pub value: Vec<u8>,
    /// The name of its write: `region#incarnation/sequence.ordinal`.
    pub dot: String,
    /// When it was written.
    pub time: HybridTime,
}

/// One conflict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// When the entry was delivered here. No two conflicts of a region have the same.
    pub time: HybridTime,
    /// The key's database.
    pub database: u8,
    /// The key's name, at most 1024 bytes of it; of [`Rule::ExecutedTwice`] the id.
    pub key: Vec<u8>,
    /// The kind of the cell.
    pub kind: Kind,
    /// Its field, member or position, at most 1024 bytes of it; empty for a string.
    pub element: Vec<u8>,
    /// Which rule decided.
    pub rule: Rule,
    /// What stands.
    pub winner: Side,
    /// What does not. Of a clear there is no value.
    pub loser: Side,
}

/// Which conflicts are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConflictQuery {
    /// At most so many, the latest.
    pub limit: usize,
    /// Only of this key, or of this id.
    pub key: Option<Vec<u8>>,
    /// Only those after this time.
    pub after: HybridTime,
}

impl ConflictQuery {
    /// The latest of all.
    pub const fn latest(limit: usize) -> Self {
        Self { limit, key: None, after: HybridTime(0) }
    }

    fn wants(&self, conflict: &Conflict) -> bool {
        let same = |key: &Vec<u8>| key[..key.len().min(NAME_LIMIT)] == conflict.key;
        conflict.time > self.after && self.key.as_ref().is_none_or(same)
    }
}

/// Conflicts and how many there were.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConflictReport {
    /// Those asked for, newest first.
    pub recent: Vec<Conflict>,
    /// All since the process started, by rule.
    pub totals: Vec<(Rule, u64)>,
}

#[cfg(test)]
mod tests {
    use super::Rule;

    const PAGE: &str = include_str!("../../../../docs/semantics.md");

    #[test]
    fn the_published_page_has_a_row_for_every_rule_and_no_other() {
        let (_, section) =
            PAGE.split_once("\n## What stands in the conflict log\n").expect("the section is there");
        let section = section.split("\n## ").next().unwrap_or_default();
        let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
        let named: Vec<&str> = rows.map(|(rule, _)| rule).collect();
        assert_eq!(named, Rule::ALL.map(Rule::name));
    }
}

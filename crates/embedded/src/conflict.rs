//! The conflict log: what a delivery found that its writer had not seen.

use geode_crdt::{HybridTime, Kind};

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
    /// What does not; `None` where the rule knows no loser's value (a removed row).
    pub loser: Option<Side>,
}

/// The newest conflicts and how many there were.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConflictReport {
    /// Newest first.
    pub recent: Vec<Conflict>,
    /// All since the process started, by rule.
    pub totals: Vec<(Rule, u64)>,
}

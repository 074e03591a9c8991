//! What a run comes to: counts, or the rule that did not hold.

use std::fmt;

/// A rule that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which checker says so.
    pub rule: &'static str,
    /// Microseconds since the start of the run.
    pub at_us: u64,
    /// What it saw.
    pub message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}: {}", self.rule, Clock(self.at_us), self.message)
    }
}

/// Counts of one run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events that were played.
    pub events: u64,
    /// Entries that were written.
    pub writes: u64,
    /// Requests that were answered.
    pub answers: u64,
    /// Requests of which the client never heard.
    pub unknown: u64,
    /// Times that a session's token could not be satisfied.
    pub stale: u64,
    /// Acknowledged writes that a crash took within the stated durability.
    pub lost: u64,
    /// Snapshots that were joined.
    pub joined: u64,
    /// Messages between regions.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Messages while clients were at work.
    pub load_messages: u64,
    /// Their bytes.
    pub load_bytes: u64,
}

impl Counts {
    /// Both together.
    pub const fn plus(&self, other: &Self) -> Self {
        Self {
            events: self.events + other.events,
            writes: self.writes + other.writes,
            answers: self.answers + other.answers,
            unknown: self.unknown + other.unknown,
            stale: self.stale + other.stale,
            lost: self.lost + other.lost,
            joined: self.joined + other.joined,
            messages: self.messages + other.messages,
            bytes: self.bytes + other.bytes,
            load_messages: self.load_messages + other.load_messages,
            load_bytes: self.load_bytes + other.load_bytes,
        }
    }
}

/// A moment as people read it.
pub(crate) struct Clock(pub(crate) u64);

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:3}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

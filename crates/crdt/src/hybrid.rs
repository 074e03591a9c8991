//! Hybrid logical time: physical microseconds that never run backwards and always pass what they have seen.
//!
//! Source: Kulkarni et al., "Logical Physical Clocks", OPODIS 2014, with the logical part folded into the low digits
//! of one 64-bit count of microseconds (a burst of n writes in one microsecond runs n microseconds ahead).

use std::fmt;

/// Microseconds since the Unix epoch, made monotonic and causal by [`HybridClock`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HybridTime(pub u64);

impl HybridTime {
    /// The time of a wall clock that reads `milliseconds` since the Unix epoch.
    pub const fn from_millis(milliseconds: u64) -> Self {
        Self(milliseconds.saturating_mul(1000))
    }

    /// Whole milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> u64 {
        self.0 / 1000
    }
}

impl fmt::Display for HybridTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

/// Gives the hybrid time of the next write. Reads no clock itself: the caller passes the wall clock.
#[derive(Clone, Debug, Default)]
pub struct HybridClock {
    last: HybridTime,
}

impl HybridClock {
    /// A clock whose first tick is above `floor` (all that was delivered or promised before a restart).
    pub const fn after(floor: HybridTime) -> Self {
        Self { last: floor }
    }

    /// The time of the next write: the wall clock, or one microsecond after the last tick or observation.
    pub fn tick(&mut self, wall: HybridTime) -> HybridTime {
        self.last = self.peek(wall);
        self.last
    }

    /// What [`Self::tick`] would return, without taking it. Reads use this as "now".
    pub fn peek(&self, wall: HybridTime) -> HybridTime {
        wall.max(HybridTime(self.last.0.saturating_add(1)))
    }

    /// Takes note of a time delivered from elsewhere, so that later ticks are above it.
    pub fn observe(&mut self, seen: HybridTime) {
        self.last = self.last.max(seen);
    }

    /// The greatest time ticked or observed.
    pub const fn last(&self) -> HybridTime {
        self.last
    }
}

//! From single checks to a verdict.

use geode_planet::HealthCheck;
use serde::Serialize;

/// How many checks change a verdict; both at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Successes in a row that bring it up, and that forgive the failures before them.
    pub up: u32,
    /// Failures that bring it down, unless `up` successes in a row came between.
    pub down: u32,
}

impl From<&HealthCheck> for Thresholds {
    fn from(check: &HealthCheck) -> Self {
        Self { up: check.up, down: check.down }
    }
}

/// The verdict on one thing that is checked again and again: an instance, a peer.
///
/// The rule is gdnsd's (`src/plugins/mon.c`): while up, failures add up even if successes stand between them, and `up`
/// successes in a row wipe them out; at `down` failures it is down, until `up` successes in a row. So neither one lost
/// probe nor a service that fails every other request passes unnoticed for what it is not. Unlike there, a start
/// is neither: the first success proves it up, and until then `down` failures prove it down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    thresholds: Thresholds,
    verdict: Verdict,
    since_ms: u64,
    /// Failures not yet forgiven while up or unproven.
    failures: u32,
    /// Successes in a row.
    successes: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Unproven,
    Up,
    Down,
}

/// A verdict that a check has just changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthChange {
    /// It is up from now on.
    Up,
    /// It is down from now on.
    Down,
}

impl Health {
    /// Nothing is known yet. `now_ms` is any clock that only goes forward, here and below.
    pub fn new(thresholds: Thresholds, now_ms: u64) -> Self {
        Self { thresholds, verdict: Verdict::Unproven, since_ms: now_ms, failures: 0, successes: 0 }
    }

    /// Takes one check's result. O(1).
    pub fn observe(&mut self, success: bool, now_ms: u64) -> Option<HealthChange> {
        if success {
            self.successes = self.successes.saturating_add(1);
            let enough = self.successes >= self.thresholds.up;
            if enough {
                self.failures = 0;
            }
            let up = self.verdict == Verdict::Unproven || (self.verdict == Verdict::Down && enough);
            up.then(|| self.change(Verdict::Up, HealthChange::Up, now_ms))
        } else {
            self.successes = 0;
            self.failures = self.failures.saturating_add(1);
            let down = self.verdict != Verdict::Down && self.failures >= self.thresholds.down;
            down.then(|| self.change(Verdict::Down, HealthChange::Down, now_ms))
        }
    }

    /// Proven up and not down since.
    pub fn is_up(&self) -> bool {
        self.verdict == Verdict::Up
    }

    /// Proven down and not up since. Before the first proof it is neither up nor down.
    pub fn is_down(&self) -> bool {
        self.verdict == Verdict::Down
    }

    /// When the verdict last changed.
    pub fn since_ms(&self) -> u64 {
        self.since_ms
    }

    /// Whether the last check spoke against the verdict, so that it pays to check again soon.
    pub fn is_wavering(&self) -> bool {
        match self.verdict {
            Verdict::Unproven => true,
            Verdict::Up => self.failures > 0,
            Verdict::Down => self.successes > 0,
        }
    }

    fn change(&mut self, verdict: Verdict, change: HealthChange, now_ms: u64) -> HealthChange {
        self.verdict = verdict;
        self.since_ms = now_ms;
        self.failures = 0;
        change
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Runs checks, `+` or `-`, one a millisecond, and shows what changed: `^` up, `v` down, `.` nothing.
    fn changes(thresholds: Thresholds, checks: &str) -> String {
        let mut health = Health::new(thresholds, 0);
        let mut shown = String::new();
        for (now_ms, check) in checks.chars().enumerate() {
            shown.push(match health.observe(check == '+', now_ms as u64) {
                Some(HealthChange::Up) => '^',
                Some(HealthChange::Down) => 'v',
                None => '.',
            });
        }
        shown
    }

    #[test]
    fn failures_add_up_until_successes_in_a_row_forgive_them() {
        let thresholds = Thresholds { up: 2, down: 3 };
        for (checks, expected) in [
            ("+", "^"),     // the first success proves it
            ("---", "..v"), // and until then failures are a slow start
            ("--+", "..^"),
            ("+--++--", "^......"),       // forgiven
            ("+-+-+-", "^....v"),         // every other check fails: not well
            ("+---+-++", "^..v...^"),     // two in a row bring it back
            ("+---------", "^..v......"), // said once
        ] {
            assert_eq!(changes(thresholds, checks), expected, "{checks}");
        }
    }

    #[test]
    fn tells_since_when_and_whether_to_look_again_soon() {
        let mut health = Health::new(Thresholds { up: 2, down: 2 }, 5);
        assert!(!health.is_up() && !health.is_down() && health.is_wavering());
        health.observe(true, 10);
        health.observe(true, 20);
        assert!(health.is_up() && health.since_ms() == 10 && !health.is_wavering());
        health.observe(false, 30);
        assert!(health.is_up() && health.is_wavering());
        health.observe(false, 40);
        assert!(health.is_down() && health.since_ms() == 40 && !health.is_wavering());
        health.observe(true, 50);
        assert!(health.is_down() && health.is_wavering());
    }

    proptest! {
        /// Between two changes lie at least as many checks as the threshold asks for.
        #[test]
        fn never_flaps_faster_than_its_thresholds(
            up in 1..5u32, down in 1..5u32, checks in prop::collection::vec(any::<bool>(), 0..200)
        ) {
            let mut health = Health::new(Thresholds { up, down }, 0);
            let mut last_change = None;
            for (index, check) in checks.into_iter().enumerate() {
                let Some(change) = health.observe(check, index as u64) else { continue };
                if let Some(last) = last_change {
                    let least = if change == HealthChange::Up { up } else { down };
                    prop_assert!(index - last >= least as usize);
                }
                prop_assert_eq!(health.is_up(), change == HealthChange::Up);
                prop_assert_eq!(check, health.is_up());
                last_change = Some(index);
            }
        }
    }
}

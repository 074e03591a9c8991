//! From single checks to a verdict.

/// How many checks change a verdict; both at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Successes in a row that bring it up, and that forgive the failures before them.
    pub up: u32,
    /// Failures that bring it down, unless `up` successes in a row came between.
    pub down: u32,
}

/// The verdict on one thing that is checked again and again, such as a peer.
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

impl Health {
    /// Nothing is known yet. `now_ms` is any clock that only goes forward, here and below.
    pub fn new(thresholds: Thresholds, now_ms: u64) -> Self {
        Self { thresholds, verdict: Verdict::Unproven, since_ms: now_ms, failures: 0, successes: 0 }
    }

    /// Takes one check's result. O(1).
    pub fn observe(&mut self, success: bool, now_ms: u64) {
        if success {
            self.successes = self.successes.saturating_add(1);
            let enough = self.successes >= self.thresholds.up;
            if enough {
                self.failures = 0;
            }
            if self.verdict == Verdict::Unproven || (self.verdict == Verdict::Down && enough) {
                self.change(Verdict::Up, now_ms);
            }
        } else {
            self.successes = 0;
            self.failures = self.failures.saturating_add(1);
            if self.verdict != Verdict::Down && self.failures >= self.thresholds.down {
                self.change(Verdict::Down, now_ms);
            }
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

    fn change(&mut self, verdict: Verdict, now_ms: u64) {
        self.verdict = verdict;
        self.since_ms = now_ms;
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Takes a check and tells the verdict if it changed it.
    fn change(health: &mut Health, success: bool, now_ms: u64) -> Option<Verdict> {
        let before = health.verdict;
        health.observe(success, now_ms);
        Some(health.verdict).filter(|verdict| *verdict != before)
    }

    /// Runs checks, `+` or `-`, one a millisecond, and shows what changed: `^` up, `v` down, `.` nothing.
    fn changes(thresholds: Thresholds, checks: &str) -> String {
        let mut health = Health::new(thresholds, 0);
        let mut shown = String::new();
        for (now_ms, check) in checks.chars().enumerate() {
            shown.push(match change(&mut health, check == '+', now_ms as u64) {
                Some(Verdict::Up) => '^',
                Some(Verdict::Down) => 'v',
                _ => '.',
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
    fn tells_since_when() {
        let mut health = Health::new(Thresholds { up: 2, down: 2 }, 5);
        assert!(!health.is_up() && !health.is_down());
        health.observe(true, 10);
        health.observe(true, 20);
        assert!(health.is_up() && health.since_ms() == 10);
        health.observe(false, 30);
        assert!(health.is_up());
        health.observe(false, 40);
        assert!(health.is_down() && health.since_ms() == 40);
        health.observe(true, 50);
        assert!(health.is_down());
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
                let Some(verdict) = change(&mut health, check, index as u64) else { continue };
                if let Some(last) = last_change {
                    let least = if verdict == Verdict::Up { up } else { down };
                    prop_assert!(index - last >= least as usize);
                }
                prop_assert_eq!(health.is_up(), verdict == Verdict::Up);
                prop_assert_eq!(check, health.is_up());
                last_change = Some(index);
            }
        }
    }
}

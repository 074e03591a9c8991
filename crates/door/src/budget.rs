//! The retry budget: what keeps retries from turning one failure into a storm.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// What a retry costs; a request deposits its share of this.
const UNITS_PER_RETRY: u64 = 100;

/// How many retries there may be.
///
/// The defaults are those of Envoy's `retry_budget` (20 % of the requests) and of Finagle's `RetryBudget` (20 %, and
/// 10 per second however few requests there are). `burst` is ours: all that was in flight to an upstream that dies
/// must be able to go elsewhere at once, also when the door has seen few requests so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetSettings {
    /// Retries earned by each hundred requests.
    pub percent_of_requests: u64,
    /// Retries earned by each second.
    pub per_second: u64,
    /// The most retries that can be saved up, and what a new budget starts with.
    pub burst: u64,
}

impl Default for BudgetSettings {
    fn default() -> Self {
        Self { percent_of_requests: 20, per_second: 10, burst: 1024 }
    }
}

/// A token bucket that requests and time fill and that retries empty. No lock; a full bucket costs a request one load.
#[derive(Debug)]
pub struct RetryBudget {
    settings: BudgetSettings,
    units: AtomicU64,
    born: Instant,
    /// Milliseconds since `born` up to which time has been credited.
    credited_ms: AtomicU64,
}

impl RetryBudget {
    /// A full budget.
    pub fn new(settings: BudgetSettings) -> Self {
        Self {
            settings,
            units: AtomicU64::new(settings.burst * UNITS_PER_RETRY),
            born: Instant::now(),
            credited_ms: AtomicU64::new(0),
        }
    }

    /// A new request arrived, which earns its share of a retry.
    pub fn deposit(&self) {
        self.credit(self.settings.percent_of_requests * UNITS_PER_RETRY / 100);
    }

    /// Takes one retry out of the budget, if there is one.
    #[must_use]
    pub fn withdraw(&self) -> bool {
        self.credit_time(u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX));
        self.units
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |units| units.checked_sub(UNITS_PER_RETRY))
            .is_ok()
    }

    fn credit_time(&self, now_ms: u64) {
        let credited_ms = self.credited_ms.load(Ordering::Relaxed);
        let due = now_ms.saturating_sub(credited_ms) * self.settings.per_second * UNITS_PER_RETRY / 1000;
        // Whoever loses this race leaves the credit to the winner.
        let claimed = due > 0
            && self
                .credited_ms
                .compare_exchange(credited_ms, now_ms, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if claimed {
            self.credit(due);
        }
    }

    fn credit(&self, units: u64) {
        let full = self.settings.burst * UNITS_PER_RETRY;
        // `Err` means that the bucket is full.
        let _ = self.units.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |have| {
            (have < full).then(|| full.min(have + units))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(budget: &RetryBudget) -> u64 {
        (0..).take_while(|_| budget.withdraw()).count() as u64
    }

    #[test]
    fn a_new_budget_allows_its_burst_and_then_a_fifth_of_the_requests() {
        let budget = RetryBudget::new(BudgetSettings { per_second: 0, ..BudgetSettings::default() });
        assert_eq!(drain(&budget), 1024);
        for _ in 0..500 {
            budget.deposit();
        }
        assert_eq!(drain(&budget), 100);
        for _ in 0..100_000 {
            budget.deposit();
        }
        assert_eq!(drain(&budget), 1024, "what is saved up is bounded");
    }

    #[test]
    fn time_earns_retries_without_requests() {
        let budget = RetryBudget::new(BudgetSettings { per_second: 0, ..BudgetSettings::default() });
        drain(&budget);
        let budget = RetryBudget { settings: BudgetSettings::default(), ..budget };
        budget.credit_time(99);
        budget.credit_time(2_000);
        // What `withdraw` credits for real time on top is nothing, as the clock is behind 2 s.
        assert_eq!(drain(&budget), 20);
    }
}

//! How many instances run.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::settings::InstanceLimits;
use crate::slot::{Slot, Slots, Wanted};

/// Starts `min` instances, more at once when requests need them, and stops one after each quiet period in which one
/// fewer would have sufficed. Never returns.
pub(crate) async fn scale(slots: Arc<Slots>, limits: InstanceLimits, quiet: Duration) {
    start(&slots, limits.min);
    let mut period_start = Instant::now();
    loop {
        tokio::select! {
            () = slots.demand.notified() => {
                let counted = slots.iter().filter(|slot| slot.counts()).count();
                let missing = needed(slots.in_flight(), limits).saturating_sub(counted);
                if start(&slots, missing) > 0 {
                    period_start = Instant::now();
                }
            }
            () = sleep_until(period_start + quiet) => {
                period_start = Instant::now();
                let running = slots.iter().filter(|slot| slot.in_use()).count();
                if running > needed(slots.take_peak(), limits) {
                    stop_one(&slots);
                }
            }
        }
    }
}

/// How many instances so many requests need, within the limits.
///
/// Fly's proxy keeps one more than the machines over their soft limit (`excess = n - (n_over_soft + 1)`, Fly.io
/// documentation, "Autostop/autostart"). This keeps at least as many, and never so few that the next
/// request would start the stopped instance again.
fn needed(in_flight: u32, limits: InstanceLimits) -> usize {
    let needed = usize::try_from(in_flight.div_ceil(limits.in_flight)).unwrap_or(usize::MAX);
    needed.clamp(limits.min, limits.max)
}

/// Puts up to `count` more slots into use, those still draining first: their instance is warm. Returns how many.
fn start(slots: &Slots, count: usize) -> usize {
    let mut free: Vec<usize> = (0..slots.len()).filter(|&index| !slots.slot(index).in_use()).collect();
    free.sort_by_key(|&index| !slots.slot(index).is_warm());
    free.truncate(count);
    for &index in &free {
        slots.want(index, Wanted::Run);
    }
    free.len()
}

fn stop_one(slots: &Slots) {
    let candidates = (0..slots.len()).rev().filter(|&index| slots.slot(index).in_use());
    if let Some(index) = candidates.min_by_key(|&index| Slot::usefulness(slots.slot(index))) {
        slots.want(index, Wanted::Empty);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn instances_follow_requests_in_flight_within_the_limits() {
        let limits = InstanceLimits { min: 2, max: 4, in_flight: 10 };
        let needs: Vec<usize> = [0, 20, 21, 30, 31, 40, 41, u32::MAX].map(|n| needed(n, limits)).into();
        assert_eq!(needs, [2, 2, 3, 3, 4, 4, 4, 4]);
    }

    proptest! {
        #[test]
        fn no_fewer_instances_are_kept_than_by_flys_rule(
            loads in prop::collection::vec(0_u32..100, 1..20),
            in_flight in 1_u32..50,
        ) {
            let limits = InstanceLimits { min: 1, max: loads.len(), in_flight };
            let over_soft = loads.iter().filter(|&&load| load > in_flight).count();
            let kept_by_fly = (over_soft + 1).min(loads.len());
            prop_assert!(needed(loads.iter().sum(), limits) >= kept_by_fly);
        }

        #[test]
        fn after_a_stop_the_same_load_starts_nothing(load in 0_u32..500, in_flight in 1_u32..50, running in 2_usize..10) {
            let limits = InstanceLimits { min: 1, max: 10, in_flight };
            if running > needed(load, limits) {
                prop_assert!(u64::from(load) <= (running as u64 - 1) * u64::from(in_flight));
            }
        }
    }
}

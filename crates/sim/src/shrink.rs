//! A failing run made small: faults are left out as long as the same rule still fails.

use crate::plan::Plan;
use crate::plant::Plant;
use crate::report::Violation;
use crate::world::run;

/// A failing run with no fault that it does not need.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// The numbers of the faults that are left.
    pub faults: Vec<usize>,
    /// What fails in the run with these alone.
    pub violation: Violation,
    /// How many runs it took.
    pub runs: usize,
}

/// Leaves faults out, halves first and then one by one (delta debugging, Zeller and Hildebrandt 2002, in its simplest
/// form). A fault that is left out changes what follows it, so what is left is small, not always the smallest.
pub fn shrink(plan: &Plan, plant: Option<Plant>, violation: Violation) -> Shrunk {
    let mut shrunk = Shrunk { faults: (0..plan.faults.len()).collect(), violation, runs: 0 };
    let mut size = shrunk.faults.len();
    while size > 0 {
        let mut from = 0;
        while from < shrunk.faults.len() {
            let mut kept = shrunk.faults.clone();
            kept.drain(from..(from + size).min(kept.len()));
            shrunk.runs += 1;
            match run(&plan.with_faults(&kept), plant, None) {
                Err(violation) if violation.rule == shrunk.violation.rule => {
                    (shrunk.faults, shrunk.violation) = (kept, violation);
                }
                _ => from += size,
            }
        }
        size /= 2;
    }
    shrunk
}

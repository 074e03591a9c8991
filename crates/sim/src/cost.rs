//! What replication costs on the wire, against the number of regions.

use crate::plan::{Fsync, Plan};
use crate::report::Counts;
use crate::world::run;

/// How long a planet is measured at work and at rest, in milliseconds.
const LENGTH_MS: u64 = 3_000;
const REST_MS: u64 = 2_000;
/// What work leaves behind, syncs and what they say, is over after this.
const AFTERMATH_MS: u64 = 1_200;

/// Messages and bytes between all regions of a planet without faults.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// How many regions.
    pub regions: usize,
    /// The mode of all of them.
    pub fsync: Fsync,
    /// What a planet at rest sends: heartbeats.
    pub idle_messages_per_second: f64,
    /// Their bytes.
    pub idle_bytes_per_second: f64,
    /// What a write adds to that.
    pub messages_per_write: f64,
    /// Its bytes.
    pub bytes_per_write: f64,
}

/// Measures a planet of so many regions, at work and at rest.
///
/// # Errors
/// A rule that did not hold.
pub fn cost(regions: usize, fsync: Fsync) -> Result<Cost, crate::Violation> {
    let mut plan = Plan::calm(1, regions);
    plan.fsync = vec![fsync; regions];
    let work = |length_ms, rest_ms| run(&Plan { length_ms, rest_ms, ..plan.clone() }, None, None);
    let busy = work(LENGTH_MS, 0)?;
    // The same again, and more time in which everybody knows of everybody and nobody writes.
    let calm = work(LENGTH_MS + AFTERMATH_MS, AFTERMATH_MS)?;
    let rest_ms = AFTERMATH_MS + REST_MS;
    let calmer = work(LENGTH_MS + rest_ms, rest_ms)?;
    let idle = |of: fn(&Counts) -> u64| (of(&calmer) - of(&calm)) as f64 / REST_MS as f64;
    let per_write = |of: fn(&Counts) -> u64| {
        let heartbeats = idle(of) * (LENGTH_MS + AFTERMATH_MS) as f64;
        (of(&calm) as f64 - heartbeats) / busy.writes.max(1) as f64
    };
    Ok(Cost {
        regions,
        fsync,
        idle_messages_per_second: 1_000.0 * idle(|counts| counts.load_messages),
        idle_bytes_per_second: 1_000.0 * idle(|counts| counts.load_bytes),
        messages_per_write: per_write(|counts| counts.load_messages),
        bytes_per_write: per_write(|counts| counts.load_bytes),
    })
}

//! The seeded simulator: the store's cores under everything that may go wrong.
//!
//! A planet of regions runs in one thread and in virtual time, all of it from one seed. The cores are those of
//! production: rows, frames and clocks of `geode_crdt`, causal delivery and catch-up of `geode_replica`, commands of
//! `geode_store`. The shell around them (disk, links, processes, clients) is simulated, and follows `crates/embedded`
//! step by step. What is recorded is checked while it happens and when everything has settled; docs/simulator.md lists
//! the faults, the rules, and the mistakes planted to see that the rules find them.
//!
//! **Not modelled** (yet): regions added; repairs; a backup that is taken while its region writes on, or restored where a
//! region was evicted; a disk that refuses writes for a while (it ends the process); homes, leases and bounded counters;
//! checkpoints and rows that are not in memory; segments of the log; a fault of the disk below what was synced; bandwidth;
//! the door and its waits but for session tokens; blocking commands. The rows are those of the reference engine, not the
//! packed table of `crates/embedded`; the decisions of its recovery (where a log is cut, whether an incarnation is proven)
//! and the floor of its clock are modelled in [`disk`](self), because they read files where they stand.
//!
//! Nothing that ships depends on this crate. What clients ask ([`workload`]) and what can be judged from outside ([`rules`]) are
//! shared with the tests that put real processes under faults (crates/geode/tests/faults).

mod checks;
mod client;
mod cost;
mod disk;
mod engine;
mod fault;
mod life;
mod network;
mod plan;
mod plant;
mod random;
mod region;
mod report;
pub mod rules;
mod serve;
mod shrink;
pub mod workload;
mod world;

pub use cost::{Cost, cost};
pub use plan::{Fault, FaultKind, Fsync, KillPoint, Plan, Tail};
pub use plant::Plant;
pub use random::Random;
pub use report::{Counts, Violation};
pub use shrink::{Shrunk, shrink};
pub use world::run;

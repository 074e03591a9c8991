//! Steering: which geodes serve a client, in which order, and why.
//!
//! One pure decision, [`decide`], is shared by every door, by whatever stands for the internet in front of them, and
//! by `geode explain`, so that all of them send a client the same way for the same stated reason. Beside it stands
//! [`Health`], the state machine that turns single checks into a verdict, and [`region_health`], which turns several
//! geodes' views of one region into another.
//!
//! Time comes in as a parameter. The crate must not know sockets, clocks, randomness, or which region this process is.

mod client;
mod decide;
mod decision;
mod health;
mod vantage;

pub use client::{Client, Policy, RegionState};
pub use decide::decide;
pub use decision::{Candidate, Decision, Reason, Source};
pub use health::{Health, Thresholds};
pub use vantage::{RegionHealth, Report, Sighting, region_health};

//! The planet: its regions and where they lie, the latency between places, and `planet.toml`.
//!
//! Everything else in geode asks this crate for names, coordinates, modelled round trips and settings, so that each
//! of them exists once. It is pure: text goes in and values come out. It must not know files, sockets, clocks or
//! randomness, nor which region this process is.

mod address;
mod config;
mod coordinates;
mod latency;
mod place;
mod planet;
mod prefixes;
mod region_name;
mod spelling;

pub use address::{HostPort, NotHostPort};
pub use config::{ConfigError, ConfigErrors};
pub use coordinates::Coordinates;
pub use latency::{RttEstimate, RttSource, one_way_ms, rtt};
pub use place::{Place, UnknownPlace};
pub use planet::{
    Conditional, Engine, Fsync, HealthCheck, Instances, Location, OnAllDown, Planet, Program, Region,
    Service, Settings, Steering, Store,
};
pub use prefixes::Prefixes;
pub use region_name::{InvalidRegionName, RegionName};

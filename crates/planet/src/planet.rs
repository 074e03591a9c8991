//! What `planet.toml` says, once it is understood.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::Serialize;
use xxhash_rust::xxh3::xxh3_64;

use crate::{HostPort, Place, Prefixes, RegionName, UnknownPlace};

/// The whole deployment, the same in every region. Made by [`Planet::parse`]; every default is filled in.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Planet {
    /// `planet.name`.
    pub name: String,
    /// `planet.domain`: the name that users call.
    pub domain: Option<String>,
    /// `planet.key_file`: the key that authenticates session tokens, shared by all regions.
    pub key_file: Option<PathBuf>,
    /// At least one region, by name.
    pub regions: BTreeMap<RegionName, Region>,
    /// What a geode runs for its users, if it runs anything beside the store.
    pub service: Option<Service>,
    /// `[store]`.
    pub store: Store,
    /// `[steering]`.
    pub steering: Steering,
}

/// One region.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Region {
    /// Its name, as in `[regions.NAME]`.
    pub name: RegionName,
    /// Where it is.
    pub place: Place,
    /// The addresses that users are sent to.
    pub public: Vec<IpAddr>,
    /// Where other geodes dial this one; always there if the planet has more than one region.
    pub link: Option<HostPort>,
    /// How much it can carry, relative to the others; 1 unless said otherwise, always positive.
    pub capacity: f64,
    /// What this region binds and where it keeps its data.
    pub settings: Settings,
}

/// What one region binds and where it keeps its data: its own settings, the planet's, or the defaults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// Where other geodes' links arrive: `link_listen`, else `link`; none in a planet of one region without a link.
    pub link_listen: Option<SocketAddr>,
    /// `redis.listen`, 127.0.0.1:6379 unless said otherwise.
    pub redis_listen: SocketAddr,
    /// `door.listen`, port 80 of every address unless said otherwise; never empty.
    pub door_listen: Vec<SocketAddr>,
    /// `admin.listen`, 127.0.0.1:7401 unless said otherwise.
    pub admin_listen: SocketAddr,
    /// `data`, /var/lib/geode unless said otherwise.
    pub data: PathBuf,
    /// `retention`, bytes of log that are kept for regions that are away: 20 GiB unless said otherwise.
    pub retention_bytes: u64,
    /// `memory`, bytes that rows may take in memory; no limit unless said otherwise.
    pub memory_bytes: Option<u64>,
}

/// `[service]`: the users' own process.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Service {
    /// What serves requests.
    pub program: Program,
    /// How many of it.
    pub instances: Instances,
    /// How it is checked.
    pub health: HealthCheck,
}

/// Who runs the service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Program {
    /// geode does: the program and its arguments, never empty.
    Run(Vec<String>),
    /// Somebody else does, and it answers plain HTTP here.
    Upstream(HostPort),
}

/// `service.instances`. For an upstream, `min` and `max` are 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Instances {
    /// Always running, at least 1.
    pub min: u32,
    /// Never more than this, at least `min`.
    pub max: u32,
    /// Requests in flight that one instance is meant to carry, at least 1.
    pub in_flight: u32,
}

/// `service.health`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HealthCheck {
    /// A path that answers GET with 2xx when the service is well. Without one, accepting a connection is enough.
    pub path: Option<String>,
    /// Time from one check to the next.
    pub interval: Duration,
    /// Successes in a row that bring it up.
    pub up: u32,
    /// Failures that bring it down.
    pub down: u32,
}

/// `[store]`. Where it keeps its data is in [`Settings`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Store {
    /// What holds the rows.
    pub engine: Engine,
    /// When writes reach the disk.
    pub fsync: Fsync,
    /// What happens to conditional writes in a planet of more than one region.
    pub conditional: Conditional,
}

/// `store.engine`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// In this binary.
    Embedded,
}

/// `store.fsync`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fsync {
    /// Before each answer.
    Always,
    /// Every second.
    EverySec,
    /// When the kernel likes.
    Never,
}

/// `store.conditional`: SETNX, SET NX and their like, which no store that accepts writes everywhere can make exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Conditional {
    /// They are refused.
    Reject,
    /// They are decided by what this region knows; two regions may both succeed.
    Local,
}

/// `[steering]`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Steering {
    /// What is answered when no region is healthy.
    pub on_all_down: OnAllDown,
    /// Regions this near to the closest count as equally close.
    pub band: Duration,
    /// Where users of these networks are.
    pub prefixes: Prefixes,
}

/// `steering.on_all_down`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnAllDown {
    /// Try them all the same: checks may be wrong, and an error is no worse than silence.
    Open,
    /// Send nobody anywhere.
    Empty,
}

/// What is known about an address's whereabouts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Location<'a> {
    /// The network of `steering.prefixes` that holds it.
    pub prefix: IpNet,
    /// Where its users are.
    pub place: &'a Place,
}

impl Planet {
    /// The region of this name.
    pub fn region(&self, name: &RegionName) -> Option<&Region> {
        self.regions.get(name)
    }

    /// Where the users of an IP address are, by the longest network of `steering.prefixes` that holds it.
    pub fn locate(&self, address: IpAddr) -> Option<Location<'_>> {
        self.steering.prefixes.locate(address).map(|(prefix, place)| Location { prefix, place })
    }

    /// The place of this name: one of the planet's regions, else a known place.
    pub fn place(&self, name: &str) -> Result<Place, UnknownPlace> {
        self.regions.get(name).map_or_else(|| Place::find(name), |region| Ok(region.place.clone()))
    }

    /// A digest of the configuration's meaning, 16 hexadecimal digits: equal for two files that differ only in
    /// comments, order, spelling of a value or defaults written out. It is XXH3 (64 bits) of the settings in
    /// canonical order, meant to show drift between regions, not to withstand an attacker. It may change with
    /// geode's version.
    pub fn digest(&self) -> String {
        // Serialising these types cannot fail: their keys are strings and their numbers finite. Were it to, the
        // message would differ from every honest digest.
        let canonical = toml::to_string(self).unwrap_or_else(|error| error.to_string());
        format!("{:016x}", xxh3_64(canonical.as_bytes()))
    }
}

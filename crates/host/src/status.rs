//! What `geode status` and the metrics show of a host.

use std::net::SocketAddr;

/// A host at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostStatus {
    /// The region.
    pub region: String,
    /// SHA-256, in hexadecimal, over the command and the files it names, as they were when an instance last
    /// started: equal in all regions that run the same service. `None` for an upstream, or not known yet.
    pub service_digest: Option<String>,
    /// Requests in flight over all instances.
    pub in_flight: u32,
    /// The instances, by number.
    pub instances: Vec<InstanceStatus>,
}

impl HostStatus {
    /// How many instances take requests.
    #[must_use]
    pub fn healthy(&self) -> usize {
        self.instances.iter().filter(|instance| instance.state == InstanceState::Healthy).count()
    }
}

/// An instance at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceStatus {
    /// Its number, from 0; kept over restarts.
    pub instance: usize,
    /// Process id, while there is a process of this host's.
    pub pid: Option<u32>,
    /// Where it listens; while it is starting, where it is first looked for.
    pub addr: Option<SocketAddr>,
    /// What it is doing.
    pub state: InstanceState,
    /// Its requests in flight.
    pub in_flight: u32,
    /// How often it died, or could not be started, and was tried again.
    pub restarts: u64,
    /// Why it last ended, in words.
    pub last_exit: Option<String>,
}

/// What an instance is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InstanceState {
    /// Nothing: no instance runs here.
    #[default]
    Empty,
    /// Started, and not healthy yet.
    Starting,
    /// Takes requests.
    Healthy,
    /// Runs, and takes no requests until its probes succeed.
    Unhealthy,
    /// Finishes its requests, then stops.
    Draining,
    /// Was asked to end.
    Stopping,
    /// Died; waits for its restart.
    BackingOff,
}

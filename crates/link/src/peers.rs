//! The other regions of the planet, as this geode knows them at the moment: who may call, and where to call.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use geode_planet::{HostPort, RegionName};

/// One other region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Where it is called; none for a region that only calls.
    pub address: Option<HostPort>,
    /// In words why it belongs to the planet no longer, if it does not. Its calls are refused with them, but for those for
    /// [`Purpose::Replication`](crate::Purpose::Replication): there it hears what that means for its data.
    pub evicted: Option<String>,
}

/// The other regions. Clones share what they know, so that all callers and listeners of a process hear of a change at once.
#[derive(Clone, Debug, Default)]
pub struct Peers(Arc<RwLock<Arc<BTreeMap<RegionName, Peer>>>>);

impl Peers {
    /// These regions and no others.
    pub fn new(peers: BTreeMap<RegionName, Peer>) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(peers))))
    }

    /// From now on these regions and no others; calls that are under way go on.
    pub fn set(&self, peers: BTreeMap<RegionName, Peer>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(peers);
    }

    /// The regions as they are known now, evicted ones included.
    pub fn now(&self) -> Arc<BTreeMap<RegionName, Peer>> {
        // Only ever replaced as a whole.
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The regions that belong to the planet.
    pub fn members(&self) -> Vec<RegionName> {
        let now = self.now();
        let members = now.iter().filter(|(_, peer)| peer.evicted.is_none());
        members.map(|(region, _)| region.clone()).collect()
    }
}

impl From<BTreeMap<RegionName, HostPort>> for Peers {
    fn from(addresses: BTreeMap<RegionName, HostPort>) -> Self {
        let peer = |address| Peer { address: Some(address), evicted: None };
        Self::new(addresses.into_iter().map(|(region, address)| (region, peer(address))).collect())
    }
}

/// Regions that may call.
impl From<Vec<RegionName>> for Peers {
    fn from(regions: Vec<RegionName>) -> Self {
        let peer = || Peer { address: None, evicted: None };
        Self::new(regions.into_iter().map(|region| (region, peer())).collect())
    }
}

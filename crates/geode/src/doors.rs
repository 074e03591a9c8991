//! What the door asks of its geode: an instance of the service, the way to other doors, and what sessions have seen.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use geode_door::{Boxed, Coverage, Peers, Service, Sessions};
use geode_embedded::Vector;
use geode_link::Purpose;
use geode_planet::RegionName;
use tokio::net::TcpStream;

use crate::geode::Geode;

/// This geode's copy of the service.
pub(crate) struct LocalService(pub(crate) Arc<Geode>);

/// A claim on one of its instances.
pub(crate) struct LocalLease(geode_host::Lease);

impl Service for LocalService {
    type Lease = LocalLease;

    fn acquire(&self) -> Option<LocalLease> {
        let geode = &self.0;
        // A geode that stops sends new requests on, unless there is nobody to send them to.
        if geode.draining.load(Ordering::Relaxed) && geode.dialer.peers().next().is_some() {
            return None;
        }
        geode.host.get()?.acquire().map(LocalLease)
    }
}

impl geode_door::Lease for LocalLease {
    fn addr(&self) -> SocketAddr {
        self.0.addr()
    }

    fn refused(&self) {
        self.0.refused();
    }
}

impl Peers for Geode {
    fn connect<'a>(&'a self, region: &'a RegionName) -> Boxed<'a, io::Result<TcpStream>> {
        Box::pin(async move {
            if self.gossip.is_cut_off(region) {
                // A request should not wait to learn what gossip knows.
                return Err(io::ErrorKind::HostUnreachable.into());
            }
            self.dialer.dial(region, Purpose::Hop).await.map_err(io::Error::other)
        })
    }
}

impl Sessions for Geode {
    fn current(&self, presented: Option<&[u8]>) -> Vec<u8> {
        let mut vector = self.store.get().map(|store| store.vector()).unwrap_or_default();
        if let Some(seen) = presented.and_then(|bytes| Vector::from_bytes(bytes).ok()) {
            for (actor, sequence) in seen.0 {
                let held = vector.0.entry(actor).or_default();
                *held = sequence.max(*held);
            }
        }
        vector.to_bytes()
    }

    fn covers(&self, vector: &[u8]) -> bool {
        match (self.store.get(), Vector::from_bytes(vector)) {
            (Some(store), Ok(vector)) => store.vector().includes(&vector),
            (None, _) => false,
            // A token that says nothing asks for nothing.
            (_, Err(_)) => true,
        }
    }

    fn wait<'a>(&'a self, vector: &'a [u8], at_most: Duration) -> Boxed<'a, Coverage> {
        Box::pin(async move {
            let (Some(store), Ok(vector)) = (self.store.get(), Vector::from_bytes(vector)) else {
                return Coverage::Behind { who_has: Vec::new() };
            };
            if store.wait_for(&vector, at_most).await {
                return Coverage::Covered;
            }
            let who_has = store.holders(&vector).into_iter().filter_map(|name| name.parse().ok()).collect();
            Coverage::Behind { who_has }
        })
    }
}

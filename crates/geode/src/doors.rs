//! What the door asks of its geode: an instance of the service, the way to other doors, and what sessions have seen.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use geode_door::{Boxed, Coverage, PeerStream, Peers, Service, Sessions};
use geode_embedded::Vector;
use geode_link::Purpose;
use geode_planet::RegionName;
use geode_steering::RegionHealth;

use crate::geode::Geode;
use crate::membership::RegionView;

/// A region that nobody has reached for so long has nothing on its way to anybody: the longest round trip on Earth, and
/// as much again for what passed through a third region.
const NOTHING_ON_ITS_WAY_MS: u64 = 1_000;

/// This geode's copy of the service.
pub(crate) struct LocalService(pub(crate) Arc<Geode>);

/// A claim on one of its instances.
pub(crate) struct LocalLease(geode_host::Lease);

impl Service for LocalService {
    type Lease = LocalLease;

    fn acquire(&self) -> Option<LocalLease> {
        let geode = &self.0;
        // A geode that stops sends new requests on, unless there is nobody to send them to.
        if geode.draining.load(Ordering::Relaxed) && !geode.dialer.peers().is_empty() {
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
    fn connect<'a>(&'a self, region: &'a RegionName) -> Boxed<'a, io::Result<PeerStream>> {
        Box::pin(async move {
            if self.gossip.is_cut_off(region) {
                // A request should not wait to learn what gossip knows.
                return Err(io::ErrorKind::HostUnreachable.into());
            }
            let stream = self.dialer.dial(region, Purpose::Hop).await.map_err(io::Error::other)?;
            Ok(Box::new(stream) as PeerStream)
        })
    }
}

/// Whether something of what a session has seen can only come from a region that is down, so that waiting for it would
/// keep a client waiting at each of its requests until the region is back.
fn is_lost_for_now(seen: &Vector, held: &Vector, regions: &[RegionView]) -> bool {
    let is_down = |name: &str| {
        let health = regions.iter().find(|view| view.region.as_str() == name).map(|view| &view.health);
        matches!(health, Some(RegionHealth::Unreachable { for_ms }) if *for_ms >= NOTHING_ON_ITS_WAY_MS)
    };
    seen.0.iter().any(|(actor, sequence)| {
        held.0.get(actor).is_none_or(|held| held < sequence) && is_down(&actor.region)
    })
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
            let who_has =
                || store.holders(&vector).into_iter().filter_map(|name| name.parse().ok()).collect();
            let lost_for_now = is_lost_for_now(&vector, &store.vector(), &self.gossip.views().borrow());
            if !(lost_for_now && store.holders(&vector).is_empty()) && store.wait_for(&vector, at_most).await
            {
                return Coverage::Covered;
            }
            Coverage::Behind { who_has: who_has() }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(dots: &[(&str, u64)]) -> Vector {
        Vector(
            dots.iter()
                .map(|(region, sequence)| (format!("{region}#7").parse().unwrap(), *sequence))
                .collect(),
        )
    }

    fn view(region: &str, health: RegionHealth) -> RegionView {
        let region = region.parse().unwrap();
        RegionView { region, health, reachable: false, rtt_ms: None, age_ms: 0, state: None }
    }

    #[test]
    fn only_what_a_region_that_is_down_took_with_it_is_not_waited_for() {
        let held = vector(&[("us", 5), ("eu", 3)]);
        let down =
            |for_ms| [view("us", RegionHealth::Unreachable { for_ms }), view("eu", RegionHealth::Healthy)];
        assert!(is_lost_for_now(&vector(&[("us", 6)]), &held, &down(1_000)));
        assert!(is_lost_for_now(&vector(&[("us", 6)]), &Vector::default(), &down(60_000)));
        assert!(!is_lost_for_now(&vector(&[("us", 6)]), &held, &down(999)), "it may be on its way");
        assert!(!is_lost_for_now(&vector(&[("us", 5), ("eu", 4)]), &held, &down(60_000)));
        assert!(!is_lost_for_now(&vector(&[("mars", 1)]), &held, &down(60_000)));
    }
}

//! Where a request may go, in order: this geode's own instances, then other geodes.

use std::io;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::sync::Arc;

use geode_planet::RegionName;
use http::{HeaderValue, request, response};
use tokio::net::TcpStream;

use crate::forward::Upstreams;
use crate::headers;
use crate::seams::{ClientHints, Lease, Peers, RouteEntry, Router, Service};
use crate::upstream_stream::UpstreamStream;

/// A door's upstreams: the instances of its own service, and the doors of other geodes.
pub struct Geode<S: Service> {
    pub(crate) peers: Arc<dyn Peers>,
    pub(crate) region_value: HeaderValue,
    pub(crate) service: PhantomData<fn() -> S>,
}

/// One place where a request may go.
pub enum Place<L> {
    /// An instance of this geode's own service.
    Instance(L),
    /// The door of another geode.
    Region(RegionName),
}

/// What a place is called.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PlaceName {
    /// An instance, by its address.
    Instance(SocketAddr),
    /// Another geode.
    Region(RegionName),
}

/// The client's session token, for the door that answers in the end. An extension of the request.
#[derive(Clone)]
pub(crate) struct PresentedToken(pub(crate) HeaderValue);

impl<S: Service> Upstreams for Geode<S> {
    type Target = Place<S::Lease>;
    type Name = PlaceName;
    type Stream = UpstreamStream;

    fn name(&self, place: &Self::Target) -> PlaceName {
        match place {
            Place::Instance(lease) => PlaceName::Instance(lease.addr()),
            Place::Region(region) => PlaceName::Region(region.clone()),
        }
    }

    async fn connect(&self, place: &Self::Target) -> io::Result<UpstreamStream> {
        match place {
            Place::Instance(lease) => {
                let stream = TcpStream::connect(lease.addr()).await?;
                stream.set_nodelay(true)?;
                Ok(UpstreamStream::Instance(stream))
            }
            Place::Region(region) => self.peers.connect(region).await.map(UpstreamStream::Peer),
        }
    }

    fn prepare(&self, place: &Self::Target, head: &mut request::Parts) {
        if let Place::Region(_) = place {
            head.headers.insert(headers::HOP_FROM, self.region_value.clone());
            if let Some(PresentedToken(token)) = head.extensions.get() {
                head.headers.insert(headers::HOP_SESSION, token.clone());
            }
        }
    }

    fn closes_idle(&self, place: &Self::Target) -> bool {
        // Doors keep idle connections for longer than anybody keeps them in a pool.
        matches!(place, Place::Instance(_))
    }

    fn refused(&self, place: &Self::Target, answer: &response::Parts) -> bool {
        matches!(place, Place::Region(_)) && answer.headers.contains_key(headers::HOP_REFUSED)
    }

    fn unreachable(&self, place: &Self::Target, _error: &io::Error) {
        if let Place::Instance(lease) = place {
            lease.refused();
        }
    }
}

/// How many times the own service is asked for an instance, for one request.
const LOCAL_ATTEMPTS: usize = 3;

/// The places for one request, found only as far as they are needed.
pub(crate) struct Itinerary<'d, S: Service> {
    service: &'d S,
    router: &'d dyn Router,
    own_region: &'d RegionName,
    /// None for a request that came from a peer: it goes no further.
    client: Option<ClientHints>,
    first: Option<S::Lease>,
    local_attempts: usize,
    /// Regions that have what the session has seen, to be asked before the own service.
    preferred: Vec<RegionName>,
    route: Option<Vec<RouteEntry>>,
    next_in_route: usize,
}

impl<'d, S: Service> Itinerary<'d, S> {
    pub(crate) fn new(
        service: &'d S,
        router: &'d dyn Router,
        own_region: &'d RegionName,
        client: Option<ClientHints>,
    ) -> Self {
        let first = service.acquire();
        let local_attempts = if first.is_some() { LOCAL_ATTEMPTS } else { 0 };
        Self {
            service,
            router,
            own_region,
            client,
            first,
            local_attempts,
            preferred: Vec::new(),
            route: None,
            next_in_route: 0,
        }
    }

    /// Whether the own service can take the request.
    pub(crate) fn has_local(&self) -> bool {
        self.first.is_some()
    }

    /// Puts those of the regions that serve this client before the own service.
    pub(crate) fn prefer(&mut self, regions: &[RegionName]) {
        let own = self.own_region;
        let route = self.route().iter().map(|entry| &entry.region);
        self.preferred =
            route.filter(|region| *region != own && regions.contains(region)).rev().cloned().collect();
        // The best last, as they are taken from the end.
    }

    /// Why the region stands where it stands.
    pub(crate) fn reason(&mut self, region: &RegionName) -> Option<&str> {
        self.route().iter().find(|entry| entry.region == *region).map(|entry| entry.reason.as_str())
    }

    fn route(&mut self) -> &[RouteEntry] {
        let (router, client) = (self.router, self.client);
        self.route.get_or_insert_with(|| client.map(|client| router.route(&client)).unwrap_or_default())
    }

    fn next_local(&mut self) -> Option<S::Lease> {
        self.local_attempts = self.local_attempts.checked_sub(1)?;
        self.first.take().or_else(|| self.service.acquire())
    }

    fn next_region(&mut self) -> Option<RegionName> {
        loop {
            let at = self.next_in_route;
            self.next_in_route += 1;
            let region = self.route().get(at)?.region.clone();
            if region != *self.own_region {
                return Some(region);
            }
        }
    }
}

impl<S: Service> Iterator for Itinerary<'_, S> {
    type Item = Place<S::Lease>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(region) = self.preferred.pop() {
            return Some(Place::Region(region));
        }
        self.next_local().map(Place::Instance).or_else(|| self.next_region().map(Place::Region))
    }
}

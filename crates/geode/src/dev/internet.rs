//! One address that stands for the internet, as anycast would: it takes each client to its closest healthy region.
//!
//! Where a client is, it says itself: `Geode-From: sydney`, a region's name, or an address of a documentation network.
//! One that says nothing is in the place of the first region. The request's head comes to the door one one-way latency
//! later and the head of the answer takes as long on its way back; bodies stream. When a door does not answer, the
//! rules are those of a door ([`Forwarder`]).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use geode_door::{
    Arrival, ConnectionLimits, ConnectionMetrics, DoorBody, EXPLAIN, ForwardMetrics, ForwardSettings,
    Forwarder, Outgoing, Upstreams,
};
use geode_planet::{Place, Planet, RegionName, one_way_ms};
use geode_steering::{
    Candidate, Client, Decision, Health, Policy, RegionHealth, RegionState, Thresholds, decide,
};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::plan::Plan;
use crate::ask::{AskError, ask};

/// Where the client says that it is. Never reaches a door.
const FROM: HeaderName = HeaderName::from_static("geode-from");
/// The answer to `Geode-Explain: 1`: where the client was taken to be, and why this region serves it.
const CLIENT_PLACE: HeaderName = HeaderName::from_static("geode-client-place");

/// Time between two looks at a geode that is up.
const CHECK_INTERVAL: Duration = Duration::from_millis(200);
/// Time between two looks at one that is not: a refused connection costs nothing.
const DOWN_CHECK_INTERVAL: Duration = Duration::from_millis(25);
/// How long a geode may take to answer one; a machine that runs a planet can be busy.
const CHECK_PATIENCE: Duration = Duration::from_secs(1);
/// One answer that is late proves nothing; a refused connection does, and counts as many.
const THRESHOLDS: Thresholds = Thresholds { up: 1, down: 2 };
/// Clients at a time, as many as a door takes; more wait in the kernel.
const MAX_CLIENTS: usize = 10_000;
/// How long accepting pauses when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// See the module.
pub(super) struct Internet {
    planet: Planet,
    /// Without `Geode-From`.
    home: Place,
    wan: bool,
    doors: Arc<[Door]>,
    forwarder: Forwarder<Doors>,
    connections: Arc<ConnectionMetrics>,
}

/// A region as the internet sees it.
struct Door {
    name: RegionName,
    place: Place,
    capacity: f64,
    address: SocketAddr,
    admin: SocketAddr,
    health: Mutex<Health>,
    born: Instant,
}

/// The doors as targets: indices into the list.
struct Doors(Arc<[Door]>);

impl Upstreams for Doors {
    type Target = usize;
    type Name = usize;
    type Stream = TcpStream;

    fn name(&self, target: &usize) -> usize {
        *target
    }

    async fn connect(&self, target: &usize) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(self.0[*target].address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    fn unreachable(&self, target: &usize, _error: &io::Error) {
        self.0[*target].observe(false, THRESHOLDS.down);
    }
}

impl Door {
    fn observe(&self, success: bool, times: u32) {
        let now_ms = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..times {
            health.observe(success, now_ms);
        }
    }

    fn is_up(&self) -> bool {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).is_up()
    }

    fn state(&self) -> RegionState {
        let health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        let health = if health.is_up() {
            RegionHealth::Healthy
        } else {
            let now_ms = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
            RegionHealth::Unreachable { for_ms: now_ms.saturating_sub(health.since_ms()) }
        };
        RegionState {
            name: self.name.clone(),
            coordinates: self.place.coordinates,
            capacity: self.capacity,
            health,
            load: 0.0,
            measured_rtt_ms: None,
        }
    }

    /// Looks at the geode for as long as it is polled.
    async fn watch(&self) {
        loop {
            match ask(self.admin, Method::GET, "/readyz", None, CHECK_PATIENCE).await {
                Ok((status, _)) => self.observe(status == StatusCode::OK, 1),
                Err(AskError::Connect(_)) => self.observe(false, THRESHOLDS.down),
                Err(_) => self.observe(false, 1),
            }
            tokio::time::sleep(if self.is_up() { CHECK_INTERVAL } else { DOWN_CHECK_INTERVAL }).await;
        }
    }
}

impl Internet {
    /// The internet around a plan's regions, which `planet` describes. Without `wan` nothing is delayed.
    pub(super) fn new(plan: &Plan, planet: &Planet, wan: bool) -> Self {
        let born = Instant::now();
        let door = |region: &super::plan::PlannedRegion| Door {
            name: region.name.clone(),
            place: region.place.clone(),
            capacity: planet.region(&region.name).map_or(1.0, |region| region.capacity),
            address: region.door(),
            admin: region.admin(),
            health: Mutex::new(Health::new(THRESHOLDS, 0)),
            born,
        };
        Self::around(plan.regions.iter().map(door).collect(), planet.clone(), wan)
    }

    /// The internet around doors, at least one; the first is where clients are that do not say.
    fn around(doors: Arc<[Door]>, planet: Planet, wan: bool) -> Self {
        let settings = ForwardSettings { attempts: doors.len(), ..ForwardSettings::default() };
        Self {
            planet,
            home: doors[0].place.clone(),
            wan,
            forwarder: Forwarder::new(
                Doors(Arc::clone(&doors)),
                settings,
                Arc::new(ForwardMetrics::default()),
            ),
            doors,
            connections: Arc::default(),
        }
    }

    /// Waits until it has seen every region up.
    pub(super) async fn until_all_up(&self) {
        while !self.doors.iter().all(Door::is_up) {
            tokio::time::sleep(DOWN_CHECK_INTERVAL).await;
        }
    }

    /// Serves clients for as long as it is polled.
    pub(super) async fn serve(self: Arc<Self>, listener: TcpListener) {
        for door in 0..self.doors.len() {
            let doors = Arc::clone(&self.doors);
            tokio::spawn(async move { doors[door].watch().await });
        }
        let clients = Arc::new(Semaphore::new(MAX_CLIENTS));
        loop {
            // The semaphore is never closed.
            let Ok(permit) = Arc::clone(&clients).acquire_owned().await else { return };
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "the internet cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let internet = Arc::clone(&self);
            tokio::spawn(async move {
                let metrics = Arc::clone(&internet.connections);
                let handler = |arrival| internet.answer(arrival, peer.ip());
                let served = geode_door::serve(stream, ConnectionLimits::default(), metrics, permit, handler);
                if let Err(error) = served.await {
                    tracing::debug!(%error, "a client's connection broke");
                }
            });
        }
    }

    async fn answer(&self, arrival: Arrival, peer: IpAddr) -> Response<DoorBody<Doors>> {
        match arrival {
            Ok(request) => self.carry(request, peer).await,
            Err(malformed) => refusal(malformed.status(), &malformed.to_string()),
        }
    }

    async fn carry(&self, request: Request<Incoming>, peer: IpAddr) -> Response<DoorBody<Doors>> {
        let (place, decision) = match self.decide(&request, peer) {
            Ok(decided) => decided,
            Err(text) => return refusal(StatusCode::BAD_REQUEST, &text),
        };
        let explain = request.headers().get(EXPLAIN).is_some_and(|value| value == "1");
        let mut outgoing = Outgoing::new(request);
        let headers = &mut outgoing.head_mut().headers;
        headers.remove(FROM);
        // HTTP/1.1, which doors are spoken to in, demands what HTTP/1.0 leaves out.
        headers.entry(header::HOST).or_insert_with(|| HeaderValue::from_static("localhost"));
        let order = || decision.order().filter_map(|candidate| self.index(&candidate.region));
        if let Some(first) = order().next() {
            self.travel(&place, first).await;
        }
        match self.forwarder.forward(outgoing, order()).await {
            Ok(forwarded) => {
                self.travel(&place, forwarded.from).await;
                let mut response = forwarded.response;
                if explain {
                    let serving =
                        decision.candidates.iter().find(|c| c.region == self.doors[forwarded.from].name);
                    let text = serving.map(|candidate| explanation(&place, candidate)).unwrap_or_default();
                    response
                        .headers_mut()
                        .extend(HeaderValue::from_str(&text).ok().map(|text| (CLIENT_PLACE, text)));
                }
                response.map(DoorBody::Upstream)
            }
            Err(failure) => refusal(failure.status(), &format!("{failure}; {}", failure.what_to_do())),
        }
    }

    /// Which regions serve the client, or why that cannot be said.
    fn decide<B>(&self, request: &Request<B>, peer: IpAddr) -> Result<(Place, Decision), String> {
        let from = request.headers().get(FROM);
        let place = match from {
            None => self.home.clone(),
            Some(value) => self.locate(value.to_str().unwrap_or_default().trim())?,
        };
        let peer = peer.to_string();
        let identity = from.map_or(peer.as_bytes(), HeaderValue::as_bytes);
        let client = Client::new(Some(place.clone()), identity);
        let states: Vec<RegionState> = self.doors.iter().map(Door::state).collect();
        Ok((place, decide(&client, &Policy::from(&self.planet.steering), &states)))
    }

    fn locate(&self, from: &str) -> Result<Place, String> {
        if let Ok(address) = from.parse::<IpAddr>() {
            let located = self.planet.locate(address).map(|location| location.place.clone());
            return located.ok_or_else(|| {
                format!("Geode-From: no network of [steering.prefixes] in planet.toml holds {address}; use a city, or an address such as 192.0.2.7")
            });
        }
        self.planet.place(from).map_err(|unknown| format!("Geode-From: {unknown}"))
    }

    fn index(&self, region: &RegionName) -> Option<usize> {
        self.doors.iter().position(|door| door.name == *region)
    }

    /// The way between a client and a region.
    async fn travel(&self, place: &Place, door: usize) {
        if self.wan {
            let one_way_ms = one_way_ms(place.coordinates, self.doors[door].place.coordinates);
            tokio::time::sleep(Duration::from_secs_f64(one_way_ms / 1000.0)).await;
        }
    }
}

fn explanation(place: &Place, candidate: &Candidate) -> String {
    let rtt = candidate.rtt_ms.map(|rtt_ms| format!("{rtt_ms:.1} ms from ")).unwrap_or_default();
    format!("{}; {rtt}{}, {}", place.name, candidate.region, candidate.reason)
}

fn refusal(status: StatusCode, text: &str) -> Response<DoorBody<Doors>> {
    let mut response = Response::new(DoorBody::Own(Some(Bytes::from(format!("{text}\n")))));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

#[cfg(test)]
mod tests;

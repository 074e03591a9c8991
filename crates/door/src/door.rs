//! The door: what it reads of a request, where it brings it, and what it says on the answer.

use std::marker::PhantomData;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use geode_planet::RegionName;
use http::header::{CACHE_CONTROL, HOST, SET_COOKIE};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri, request};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::answer::{DoorBody, problem};
use crate::connection::{self, Arrival, ConnectionLimits, Socket};
use crate::forward::{Failure, ForwardSettings, Forwarded, Forwarder, Outgoing};
use crate::headers;
use crate::itinerary::{Geode, Itinerary, PlaceName, PresentedToken};
use crate::metrics::DoorMetrics;
use crate::screen::Refusal;
use crate::seams::{ClientHints, Coverage, Origin, Peers, Router, Service, Sessions};
use crate::session::{self, SessionKey};
use crate::trace::TraceIds;

/// What a door is set to.
#[derive(Debug, Clone)]
pub struct DoorSettings {
    /// The region of this geode.
    pub region: RegionName,
    /// Seals session tokens; the same in every geode of the planet.
    pub session_key: SessionKey,
    /// The longest that a request waits for the store to reach its session.
    pub session_wait: Duration,
    /// The most client connections at once; further ones are answered 503.
    pub max_connections: usize,
    /// Limits of each connection.
    pub connection: ConnectionLimits,
    /// How requests are brought to instances and peers.
    pub forward: ForwardSettings,
}

impl DoorSettings {
    /// The defaults: 500 ms for sessions, 10 000 connections.
    pub fn new(region: RegionName, session_key: SessionKey) -> Self {
        Self {
            region,
            session_key,
            session_wait: Duration::from_millis(500),
            max_connections: 10_000,
            connection: ConnectionLimits::default(),
            forward: ForwardSettings::default(),
        }
    }
}

/// The rest of the geode, as the door sees it.
pub struct Seams<S: Service> {
    /// This geode's copy of the service.
    pub service: S,
    /// Which regions serve whom.
    pub router: Arc<dyn Router>,
    /// The other geodes' doors.
    pub peers: Arc<dyn Peers>,
    /// What the store has seen.
    pub sessions: Arc<dyn Sessions>,
}

/// The operating system gave no random bytes.
#[derive(Debug, thiserror::Error)]
#[error("the door cannot start: the operating system gave no random bytes: {0}")]
pub struct NoRandomness(getrandom::Error);

/// The front door of one geode. Clones are the same door.
pub struct Door<S: Service>(Arc<Inner<S>>);

impl<S: Service> Clone for Door<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Inner<S: Service> {
    settings: DoorSettings,
    service: S,
    router: Arc<dyn Router>,
    sessions: Arc<dyn Sessions>,
    forwarder: Forwarder<Geode<S>>,
    metrics: Arc<DoorMetrics>,
    trace_ids: TraceIds,
    connections: Arc<Semaphore>,
    region_value: HeaderValue,
    via: HeaderValue,
}

/// What a request says to the door.
struct Visit {
    explain: bool,
    safe: bool,
    /// What the client has seen, by its genuine token.
    seen: Option<Vec<u8>>,
}

/// How this geode's store stands to what the client has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sight {
    /// The client has no token, or it will not be served here.
    Unasked,
    Covered,
    /// Covered after a wait.
    CaughtUp,
    Behind,
    Lost,
}

type DoorAnswer<S> = Response<DoorBody<Geode<S>>>;

impl<S: Service> Door<S> {
    /// A door that waits for connections to be handed to it.
    ///
    /// # Errors
    /// The operating system gave no random bytes for trace identifiers.
    pub fn new(settings: DoorSettings, seams: Seams<S>) -> Result<Self, NoRandomness> {
        let Seams { service, router, peers, sessions } = seams;
        let metrics = Arc::new(DoorMetrics::default());
        let region_value = region_value(&settings.region);
        // A region's name is made of characters that may stand in a header.
        let via = HeaderValue::from_str(&format!("1.1 geode-{}", settings.region))
            .unwrap_or(HeaderValue::from_static("1.1 geode"));
        let upstreams = Geode { peers, region_value: region_value.clone(), service: PhantomData };
        Ok(Self(Arc::new(Inner {
            forwarder: Forwarder::new(upstreams, settings.forward, Arc::clone(&metrics.forward)),
            connections: Arc::new(Semaphore::new(settings.max_connections)),
            trace_ids: TraceIds::new().map_err(NoRandomness)?,
            settings,
            service,
            router,
            sessions,
            metrics,
            region_value,
            via,
        })))
    }

    /// What this door counts.
    pub fn metrics(&self) -> &Arc<DoorMetrics> {
        &self.0.metrics
    }

    /// Serves a client's connection until it ends. Dropping the future ends it at once.
    pub async fn serve_client(&self, stream: TcpStream, address: SocketAddr) {
        match Arc::clone(&self.0.connections).try_acquire_owned() {
            Ok(permit) => self.serve(stream, Origin::Client(address), permit).await,
            Err(_) => self.0.turn_away(&stream),
        }
    }

    /// Serves a connection from another geode's door, authenticated by whoever accepted it.
    pub async fn serve_peer(&self, stream: impl Socket, from: RegionName) {
        self.serve(stream, Origin::Peer(from), ()).await;
    }

    async fn serve<T: Send + Unpin + 'static>(&self, stream: impl Socket, origin: Origin, held: T) {
        let metrics = Arc::clone(&self.0.metrics.connections);
        let handler = |arrival| self.0.answer(&origin, arrival);
        let served = connection::serve(stream, self.0.settings.connection, metrics, held, handler).await;
        if let Err(error) = served {
            tracing::debug!(%error, ?origin, "a connection broke");
        }
    }
}

impl<S: Service> Inner<S> {
    async fn answer(&self, origin: &Origin, arrival: Arrival) -> DoorAnswer<S> {
        if matches!(origin, Origin::Peer(_)) {
            self.metrics.from_peers.add(1);
        }
        let request = match arrival {
            Ok(request) => request,
            Err(refusal) => return self.refuse(refusal),
        };
        let mut outgoing = Outgoing::new(request);
        let visit = match self.receive(origin, outgoing.head_mut()) {
            Ok(visit) => visit,
            Err(refusal) => return self.refuse(refusal),
        };
        let client = match origin {
            Origin::Client(address) => Some(ClientHints { address: address.ip() }),
            Origin::Peer(_) => None,
        };
        let mut itinerary = Itinerary::new(&self.service, &*self.router, &self.settings.region, client);
        let sight = self.look(&visit, &mut itinerary).await;
        match self.forwarder.forward(outgoing, &mut itinerary).await {
            Ok(forwarded) => self.hand_over(forwarded, &visit, sight, &mut itinerary),
            Err(failure) => self.fail(failure, origin),
        }
    }

    /// Reads what is meant for the door, removes what must not pass, and adds what the service is to know.
    fn receive(&self, origin: &Origin, head: &mut request::Parts) -> Result<Visit, Refusal> {
        make_origin_form(head)?;
        let headers = &mut head.headers;
        let explain = headers.get(headers::EXPLAIN).is_some_and(|value| value == "1");
        let token_field = match origin {
            Origin::Client(_) => headers::SESSION,
            Origin::Peer(_) => headers::HOP_SESSION,
        };
        let cookie = headers::take_cookie(headers, session::COOKIE_NAME);
        let token = headers.get(token_field).map(|value| value.as_bytes().to_vec()).or(cookie);
        headers::strip_geode(headers);
        if let Origin::Client(address) = origin {
            add_forwarded(headers, *address);
        }
        // HTTP/1.1, which the service is spoken to in, demands what HTTP/1.0 leaves out.
        headers.entry(HOST).or_insert_with(|| self.region_value.clone());
        headers::append_via(headers, &self.via);
        self.trace_ids.ensure(headers);
        let seen = token.as_deref().and_then(|token| self.settings.session_key.open(token));
        if let (Some(_), Some(Ok(token))) = (&seen, token.as_deref().map(HeaderValue::from_bytes)) {
            head.extensions.insert(PresentedToken(token));
        }
        Ok(Visit { explain, safe: is_safe(&head.method), seen })
    }

    /// Waits until the store has what the client has seen, or prefers regions that have it.
    async fn look(&self, visit: &Visit, itinerary: &mut Itinerary<'_, S>) -> Sight {
        let Some(seen) = visit.seen.as_deref().filter(|_| itinerary.has_local()) else {
            return Sight::Unasked;
        };
        if self.sessions.covers(seen) {
            return Sight::Covered;
        }
        let waiting = self.sessions.wait(seen, self.settings.session_wait);
        // The cap holds whatever the store does.
        match tokio::time::timeout(self.settings.session_wait * 2, waiting).await {
            Ok(Coverage::Covered) => Sight::CaughtUp,
            Ok(Coverage::Behind { who_has }) => {
                itinerary.prefer(&who_has);
                Sight::Behind
            }
            Ok(Coverage::Lost) => Sight::Lost,
            Err(_elapsed) => Sight::Behind,
        }
    }

    /// The answer of an instance or a peer, as the client gets it.
    fn hand_over(
        &self,
        forwarded: Forwarded<Geode<S>>,
        visit: &Visit,
        sight: Sight,
        itinerary: &mut Itinerary<'_, S>,
    ) -> DoorAnswer<S> {
        let Forwarded { response, from } = forwarded;
        let mut response = response.map(DoorBody::Upstream);
        let headers = response.headers_mut();
        headers::append_via(headers, &self.via);
        match &from {
            PlaceName::Instance(_) => {
                self.metrics.answered_locally.add(1);
                headers::strip_geode(headers);
                headers.insert(headers::REGION, self.region_value.clone());
                self.tell_session(headers, visit, sight);
            }
            PlaceName::Region(region) => {
                self.metrics.answered_by_peer.add(1);
                headers::strip_hop(headers);
                headers.entry(headers::REGION).or_insert_with(|| region_value(region));
            }
        }
        if visit.explain {
            let reason = self.reason(&from, sight, itinerary);
            headers.insert(headers::REASON, reason);
        }
        response
    }

    /// Says on an answer of the own service where it leaves the session.
    fn tell_session(&self, headers: &mut HeaderMap, visit: &Visit, sight: Sight) {
        if matches!(sight, Sight::Behind | Sight::Lost) {
            self.metrics.stale.add(1);
            headers.insert(headers::STALE, HeaderValue::from_static("1"));
        }
        let news = !visit.safe || matches!(sight, Sight::CaughtUp | Sight::Behind | Sight::Lost);
        // A shared cache would give one client's session to all.
        if !news || headers::has_token(headers, &CACHE_CONTROL, "public") {
            return;
        }
        // What is lost would never be covered again.
        let presented = visit.seen.as_deref().filter(|_| sight != Sight::Lost);
        let vector = self.sessions.current(presented);
        let Some(token) = self.settings.session_key.seal(&vector) else {
            tracing::warn!(
                vector_bytes = vector.len(),
                "the session vector is too long for a token; sessions are off"
            );
            return;
        };
        if let Some(cookie) = session::set_cookie(&token) {
            headers.append(SET_COOKIE, cookie);
        }
        headers.insert(headers::SESSION, token);
    }

    fn reason(&self, from: &PlaceName, sight: Sight, itinerary: &mut Itinerary<'_, S>) -> HeaderValue {
        let own = &self.settings.region;
        let text = match from {
            PlaceName::Instance(_) => {
                format!(
                    "{own}: {}",
                    itinerary.reason(own).unwrap_or("the door that was asked serves by itself")
                )
            }
            PlaceName::Region(region) => {
                let cause = if sight == Sight::Behind {
                    "lacks what this session has seen"
                } else {
                    "has no instance that can serve"
                };
                let reason = itinerary.reason(region).unwrap_or("next in order");
                format!("{region}: {reason}; {own} {cause}")
            }
        };
        // A reason is for people; what cannot stand in a header is replaced.
        let text: String =
            text.chars().map(|letter| if matches!(letter, ' '..='~') { letter } else { '?' }).collect();
        HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("?"))
    }

    fn fail(&self, failure: Failure, origin: &Origin) -> DoorAnswer<S> {
        let counter = match failure {
            Failure::Unreached => &self.metrics.unavailable,
            Failure::Uncertain | Failure::Exhausted => &self.metrics.failed,
            Failure::TimedOut => &self.metrics.timed_out,
            Failure::ClientBody => &self.metrics.refused,
        };
        counter.add(1);
        let mut response = self.problem(failure.status(), &failure.to_string(), failure.what_to_do());
        if failure == Failure::Unreached && matches!(origin, Origin::Peer(_)) {
            response.headers_mut().insert(headers::HOP_REFUSED, HeaderValue::from_static("1"));
        }
        response
    }

    fn refuse(&self, refusal: Refusal) -> DoorAnswer<S> {
        self.metrics.refused.add(1);
        self.problem(refusal.status(), &refusal.to_string(), "correct the request")
    }

    fn problem(&self, status: StatusCode, error: &str, what_to_do: &str) -> DoorAnswer<S> {
        let mut response = problem(status, error, what_to_do);
        response.headers_mut().insert(headers::REGION, self.region_value.clone());
        response
    }

    /// Tells a client that there are too many, without spending anything on it.
    fn turn_away(&self, stream: &TcpStream) {
        self.metrics.connections.turned_away.add(1);
        // If not even this fits into the socket's empty buffer, closing it says the same.
        let _ = stream.try_write(
            b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n",
        );
    }
}

fn region_value(region: &RegionName) -> HeaderValue {
    // A region's name is made of characters that may stand in a header.
    HeaderValue::from_str(region.as_str()).unwrap_or(HeaderValue::from_static("unknown"))
}

/// Methods that change nothing (RFC 9110, section 9.2.1).
fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE)
}

/// Turns `GET http://host/path` into `GET /path` with that host (RFC 9112, section 3.2.2).
fn make_origin_form(head: &mut request::Parts) -> Result<(), Refusal> {
    if head.method == Method::CONNECT {
        return Err(Refusal::Connect);
    }
    if let Some(authority) = head.uri.authority() {
        let host = authority.as_str().rsplit('@').next().unwrap_or_default();
        let host = HeaderValue::from_str(host).map_err(|_| Refusal::Host)?;
        head.headers.insert(HOST, host);
        let path = head.uri.path_and_query().cloned();
        // A target without a scheme has none either: `GET host:80`.
        head.uri = Uri::from(path.ok_or(Refusal::RequestLine)?);
    }
    if head.uri.path() == "*" && head.method != Method::OPTIONS {
        return Err(Refusal::RequestLine);
    }
    Ok(())
}

/// Tells the service who asks. What the client says of earlier hops stays; scheme and host are ours to say.
fn add_forwarded(headers: &mut HeaderMap, address: SocketAddr) {
    // An address has only characters that may stand in a header.
    if let Ok(address) = HeaderValue::from_str(&address.ip().to_canonical().to_string()) {
        headers::append_token(headers, headers::FORWARDED_FOR, address);
    }
    headers.insert(headers::FORWARDED_PROTO, HeaderValue::from_static("http"));
    match headers.get(HOST).cloned() {
        Some(host) => headers.insert(headers::FORWARDED_HOST, host),
        None => headers.remove(headers::FORWARDED_HOST),
    };
}

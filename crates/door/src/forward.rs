//! The core that brings a request to the first upstream that answers it, and its body and answer along, streaming.
//!
//! The rule: a request goes to the next target if it was *provably not sent*, or if it may be repeated (an idempotent
//! method or an `Idempotency-Key`), its body can be sent again from its first byte, and the budget allows it. After the
//! first byte of an answer nothing is repeated. So nothing unsafe is ever sent twice.
//!
//! A connection that was kept from an earlier request may be closed by the upstream at any moment. What may be repeated
//! is then sent again on a new connection, outside the budget: it is the same upstream, which saw nothing or died. What
//! may not be repeated takes a new connection at once where upstreams close idle ones as they like, since no evidence
//! could later tell a request that came too late from one that was processed.

use std::future::Future;
use std::hash::Hash;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderName, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, request, response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::budget::{BudgetSettings, RetryBudget};
use crate::headers;
use crate::metrics::ForwardMetrics;
use crate::replay::{Attempt, Replay};
use crate::tunnel;
use crate::upstream::{Connection, Pool, PoolSettings, Streaming};

/// A client that sends this may have its request repeated, whatever the method
/// (draft-ietf-httpapi-idempotency-key-header).
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The upstreams of a [`Forwarder`]: what a target is and how to reach it.
pub trait Upstreams: Send + Sync + 'static {
    /// One place where a request may go. It is held until the answer's last byte has been read, so a guard that counts
    /// requests in flight belongs in here.
    type Target: Send + Sync + Unpin + 'static;
    /// What an upstream is called. Connections to targets of one name are interchangeable.
    type Name: Clone + Eq + Hash + Send + Sync + Unpin + 'static;
    /// A connection to an upstream.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// The target's name.
    fn name(&self, target: &Self::Target) -> Self::Name;

    /// Opens a connection.
    fn connect(&self, target: &Self::Target) -> impl Future<Output = io::Result<Self::Stream>> + Send;

    /// Adds or removes what this target is to see of the request. `head` is a fresh copy for every attempt.
    fn prepare(&self, _target: &Self::Target, _head: &mut request::Parts) {}

    /// Whether upstreams like this close idle connections without notice, as any service may.
    fn closes_idle(&self, _target: &Self::Target) -> bool {
        true
    }

    /// Whether this answer proves that nobody processed the request, so that another target may.
    fn refused(&self, _target: &Self::Target, _answer: &response::Parts) -> bool {
        false
    }

    /// No connection to the target could be opened.
    fn unreachable(&self, _target: &Self::Target, _error: &io::Error) {}
}

/// Limits of a [`Forwarder`].
#[derive(Debug, Clone, Copy)]
pub struct ForwardSettings {
    /// The most of a request's body that is kept to send it again, in bytes.
    pub replay_bytes: usize,
    /// How long opening a connection may take.
    pub connect_timeout: Duration,
    /// How long the head of an answer may take after the request was sent; 60 s as in nginx (`proxy_read_timeout`).
    pub answer_timeout: Duration,
    /// The most targets that one request is brought to.
    pub attempts: usize,
    /// The most idle connections kept for each upstream.
    pub idle_per_upstream: usize,
    /// How long an idle connection is kept. Less than the 5 s after which Node's HTTP server closes one.
    pub keep_idle: Duration,
    /// How many retries there may be.
    pub budget: BudgetSettings,
}

impl Default for ForwardSettings {
    fn default() -> Self {
        Self {
            replay_bytes: 64 * 1024,
            connect_timeout: Duration::from_secs(3),
            answer_timeout: Duration::from_secs(60),
            attempts: 6,
            idle_per_upstream: 64,
            keep_idle: Duration::from_secs(4),
            budget: BudgetSettings::default(),
        }
    }
}

/// What of a client's request goes on: fields that concern only the client's connection are gone. A forwarding server
/// adds its own fields after that, so that no client can have them removed by listing them in `Connection`.
#[derive(Debug)]
pub struct Outgoing {
    head: request::Parts,
    body: Incoming,
    /// The protocol to switch to, and the client's side of the switch.
    upgrade: Option<(HeaderValue, OnUpgrade)>,
}

impl Outgoing {
    /// Takes over a client's request.
    pub fn new(mut request: Request<Incoming>) -> Self {
        let upgrade = tunnel::wanted_protocol(request.version(), request.headers())
            .map(|protocol| (protocol, hyper::upgrade::on(&mut request)));
        let (mut head, body) = request.into_parts();
        headers::strip_hop_by_hop(&mut head.headers);
        headers::strip_expectation(&mut head.headers);
        head.version = Version::HTTP_11;
        Self { head, body, upgrade }
    }

    /// The head that goes on.
    pub fn head(&self) -> &request::Parts {
        &self.head
    }

    /// The head that goes on, to be changed.
    pub fn head_mut(&mut self) -> &mut request::Parts {
        &mut self.head
    }
}

/// An answer, and who gave it.
pub struct Forwarded<U: Upstreams> {
    /// The answer; fields that concern only the upstream's connection are gone.
    pub response: Response<AnswerBody<U>>,
    /// The upstream that answered.
    pub from: U::Name,
}

/// Why there is no answer. The text is for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// No upstream was reached: the request was provably not processed.
    #[error("no copy of the service could be reached")]
    Unreached,
    /// An upstream may have processed the request before it failed, and the request may not be repeated.
    #[error("the service failed before it answered, and may or may not have processed the request")]
    Uncertain,
    /// The request may be repeated, but every upstream failed, or too many retries were going on.
    #[error("the service failed before it answered, and so did the attempts to get the answer elsewhere")]
    Exhausted,
    /// The upstream took the request and did not answer in time.
    #[error("the service did not begin to answer in time")]
    TimedOut,
    /// The client's own body ended early or was malformed.
    #[error("the request's body ended early or is malformed")]
    ClientBody,
}

impl Failure {
    /// The status that tells it.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Unreached => StatusCode::SERVICE_UNAVAILABLE,
            Self::Uncertain | Self::Exhausted => StatusCode::BAD_GATEWAY,
            Self::TimedOut => StatusCode::GATEWAY_TIMEOUT,
            Self::ClientBody => StatusCode::BAD_REQUEST,
        }
    }

    /// What the client should do.
    pub fn what_to_do(self) -> &'static str {
        match self {
            Self::Unreached | Self::Exhausted => "try again in a moment",
            Self::Uncertain | Self::TimedOut => {
                "check whether it took effect before you repeat it; with an Idempotency-Key header it may be repeated \
                 safely and is then retried elsewhere"
            }
            Self::ClientBody => "send the body complete and correctly framed",
        }
    }
}

/// Forwards requests. It owns the idle connections and the retry budget.
pub struct Forwarder<U: Upstreams> {
    upstreams: U,
    settings: ForwardSettings,
    pool: Arc<Pool<U::Name>>,
    budget: RetryBudget,
    metrics: Arc<ForwardMetrics>,
}

/// How one attempt ended without an answer for the client.
enum Setback {
    /// Not one byte of the request was sent, or the upstream says that nobody processed it.
    Unsent,
    /// The upstream may have processed it.
    Uncertain,
    /// As the client will be told.
    Final(Failure),
}

impl<U: Upstreams> Forwarder<U> {
    /// A forwarder without connections yet.
    pub fn new(upstreams: U, settings: ForwardSettings, metrics: Arc<ForwardMetrics>) -> Self {
        let pool = PoolSettings { per_upstream: settings.idle_per_upstream, keep: settings.keep_idle };
        Self {
            upstreams,
            settings,
            pool: Arc::new(Pool::new(pool)),
            budget: RetryBudget::new(settings.budget),
            metrics,
        }
    }

    /// Brings a request to the first target that answers. `targets` is asked for the next one only when it is needed.
    ///
    /// The body streams while this waits, and the answer's body streams afterwards. Dropping the future, or the
    /// answer's body, ends the request at the upstream too.
    ///
    /// # Errors
    /// No target answered: see [`Failure`].
    pub async fn forward(
        &self,
        outgoing: Outgoing,
        targets: impl Iterator<Item = U::Target>,
    ) -> Result<Forwarded<U>, Failure> {
        self.budget.deposit();
        let Outgoing { head, body, mut upgrade } = outgoing;
        let repeatable = is_repeatable(&head);
        let replay = Replay::new(body, self.settings.replay_bytes);
        let mut failure = Failure::Unreached;
        let mut is_retry = false;
        for target in targets.take(self.settings.attempts) {
            if is_retry && !self.may_retry() {
                break;
            }
            let name = self.upstreams.name(&target);
            let setback = match self.attempt(&head, &replay, repeatable, upgrade.as_ref(), &target).await {
                Ok(answer) => {
                    let exchange = (target, name.clone());
                    let response = self.answer(answer, exchange, &replay, upgrade.take());
                    return Ok(Forwarded { response, from: name });
                }
                Err(setback) => setback,
            };
            is_retry = matches!(setback, Setback::Uncertain);
            match setback {
                Setback::Final(failure) => return Err(failure),
                _ if replay.is_broken() => return Err(Failure::ClientBody),
                Setback::Unsent if replay.can_repeat() => {}
                Setback::Unsent => return Err(failure),
                Setback::Uncertain if repeatable && replay.can_repeat() => failure = Failure::Exhausted,
                Setback::Uncertain => return Err(Failure::Uncertain),
            }
        }
        Err(failure)
    }

    fn may_retry(&self) -> bool {
        let allowed = self.budget.withdraw();
        let counter = if allowed { &self.metrics.retries } else { &self.metrics.retries_denied };
        counter.add(1);
        allowed
    }

    /// Brings the request to one target: on a kept connection if that is safe, and on a new one otherwise.
    async fn attempt(
        &self,
        head: &request::Parts,
        replay: &Replay,
        repeatable: bool,
        upgrade: Option<&(HeaderValue, OnUpgrade)>,
        target: &U::Target,
    ) -> Result<Response<Streaming>, Setback> {
        let mut request = self.request(head, replay, upgrade, target);
        let safe = repeatable && replay.surely_repeatable(self.settings.replay_bytes);
        let kept = (safe || !self.upstreams.closes_idle(target))
            .then(|| self.pool.take(&self.upstreams.name(target)))
            .flatten();
        let mut seen = false;
        if let Some(connection) = kept {
            match self.send(connection, request, replay, target).await {
                Ok(answer) => return Ok(answer),
                Err((Setback::Unsent, Some(unsent))) => request = unsent,
                Err((Setback::Uncertain, _)) if repeatable && replay.can_repeat() => {
                    request = self.request(head, replay, upgrade, target);
                    seen = true;
                }
                Err((setback, _)) => return Err(setback),
            }
            self.metrics.stale_connections.add(1);
        }
        let connection = self.connect(target).await.map_err(|error| {
            tracing::debug!(%error, "an upstream could not be reached");
            self.metrics.connect_failures.add(1);
            self.upstreams.unreachable(target, &error);
            // What went out on the kept connection may have been processed before the upstream died.
            if seen { Setback::Uncertain } else { Setback::Unsent }
        })?;
        self.send(connection, request, replay, target).await.map_err(|(setback, _)| setback)
    }

    async fn connect(&self, target: &U::Target) -> io::Result<Connection> {
        let connecting = async {
            let stream = self.upstreams.connect(target).await?;
            Connection::handshake(stream).await.map_err(io::Error::other)
        };
        match tokio::time::timeout(self.settings.connect_timeout, connecting).await {
            Ok(connected) => connected,
            Err(_elapsed) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Sends the request and waits for the beginning of the answer; gives back a request of which nothing was sent.
    async fn send(
        &self,
        mut connection: Connection,
        request: Request<Attempt>,
        replay: &Replay,
        target: &U::Target,
    ) -> Result<Response<Streaming>, (Setback, Option<Request<Attempt>>)> {
        let asked_to_switch = request.headers().contains_key(UPGRADE);
        match self.in_time(replay, connection.send(request)).await {
            None => Err((Setback::Final(Failure::TimedOut), None)),
            Some(Err(mut failed)) => {
                tracing::debug!(error = %failed.error(), reused = connection.is_reused(), "an upstream did not answer");
                match failed.take_message() {
                    Some(unsent) => Err((Setback::Unsent, Some(unsent))),
                    None => Err((Setback::Uncertain, None)),
                }
            }
            Some(Ok(response)) => {
                let (head, body) = response.into_parts();
                if self.upstreams.refused(target, &head) {
                    return Err((Setback::Unsent, None));
                }
                if head.status == StatusCode::SWITCHING_PROTOCOLS && !asked_to_switch {
                    return Err((Setback::Final(Failure::Uncertain), None));
                }
                let mut streaming = Streaming::new(body, connection);
                match streaming.begin().await {
                    Ok(()) => Ok(Response::from_parts(head, streaming)),
                    Err(_broken) => Err((Setback::Uncertain, None)),
                }
            }
        }
    }

    /// Waits for an answer as long as the request's body still moves, and for `answer_timeout` after that.
    async fn in_time<F: Future>(&self, replay: &Replay, answer: F) -> Option<F::Output> {
        let mut answer = pin!(answer);
        loop {
            let before = replay.delivered();
            match tokio::time::timeout(self.settings.answer_timeout, answer.as_mut()).await {
                Ok(answered) => return Some(answered),
                Err(_elapsed) if replay.delivered() == before => return None,
                Err(_elapsed) => {}
            }
        }
    }

    /// The request as this target is to see it.
    fn request(
        &self,
        head: &request::Parts,
        replay: &Replay,
        upgrade: Option<&(HeaderValue, OnUpgrade)>,
        target: &U::Target,
    ) -> Request<Attempt> {
        let mut head = head.clone();
        self.upstreams.prepare(target, &mut head);
        let body = replay.attempt();
        if !body.is_end_stream() && body.size_hint().exact().is_none() {
            // Said plainly, as hyper sends no body of unknown length with a GET otherwise.
            head.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        if let Some((protocol, _)) = upgrade {
            tunnel::set_protocol(&mut head.headers, protocol.clone());
        }
        Request::from_parts(head, body)
    }

    /// Makes the client's answer of the upstream's.
    fn answer(
        &self,
        mut answer: Response<Streaming>,
        (target, name): (U::Target, U::Name),
        replay: &Replay,
        upgrade: Option<(HeaderValue, OnUpgrade)>,
    ) -> Response<AnswerBody<U>> {
        let switched_to = answer.headers().get(UPGRADE).cloned();
        let upstream_side = hyper::upgrade::on(&mut answer);
        let (mut head, mut streaming) = answer.into_parts();
        headers::strip_hop_by_hop(&mut head.headers);
        head.version = Version::HTTP_11;
        // An answer that comes before the request's end: the rest must flow even while the client does not read.
        if head.status == StatusCode::SWITCHING_PROTOCOLS || !replay.is_sent() {
            spawn_driver(streaming.take_connection());
        }
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            if let Some((protocol, client_side)) = upgrade {
                tunnel::set_protocol(&mut head.headers, switched_to.unwrap_or(protocol));
                tokio::spawn(tunnel::carry(client_side, upstream_side, target));
            }
            return Response::from_parts(head, AnswerBody { exchange: None });
        }
        if streaming.size_hint().exact().is_none() {
            // Beside `Transfer-Encoding` the number means nothing (RFC 9112, section 6.3).
            head.headers.remove(CONTENT_LENGTH);
        }
        let exchange = Exchange { streaming, name, pool: Arc::clone(&self.pool), _target: target };
        Response::from_parts(head, AnswerBody { exchange: Some(exchange) })
    }
}

fn spawn_driver(connection: Option<Connection>) {
    if let Some(driver) = connection.and_then(Connection::into_driver) {
        tokio::spawn(driver);
    }
}

/// Whether doing it twice is as good as once (RFC 9110, section 9.2.2), or the client vouches for it.
fn is_repeatable(head: &request::Parts) -> bool {
    matches!(head.method, Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE)
        || head.headers.contains_key(IDEMPOTENCY_KEY)
}

/// The body of an answer, as it arrives. Its error means that the upstream failed midway; whoever sends it on must
/// break off too, so that no client takes a part for the whole.
pub struct AnswerBody<U: Upstreams> {
    exchange: Option<Exchange<U>>,
}

struct Exchange<U: Upstreams> {
    streaming: Streaming,
    name: U::Name,
    pool: Arc<Pool<U::Name>>,
    _target: U::Target,
}

impl<U: Upstreams> AnswerBody<U> {
    /// The exchange is over: its connection can serve the next.
    fn finish(&mut self) {
        if let Some(mut exchange) = self.exchange.take()
            && let Some(connection) = exchange.streaming.take_connection()
        {
            exchange.pool.keep(exchange.name, connection);
        }
    }
}

impl<U: Upstreams> Body for AnswerBody<U> {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(exchange) = &mut self.exchange else { return Poll::Ready(None) };
        let polled = exchange.streaming.poll_frame(cx);
        match &polled {
            Poll::Ready(None) => self.finish(),
            Poll::Ready(Some(Err(_))) => self.exchange = None,
            Poll::Ready(Some(Ok(_))) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.exchange.as_ref().is_none_or(|exchange| exchange.streaming.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        match &self.exchange {
            Some(exchange) => exchange.streaming.size_hint(),
            None => SizeHint::with_exact(0),
        }
    }
}

impl<U: Upstreams> Drop for AnswerBody<U> {
    fn drop(&mut self) {
        // A body of known length is not asked again after its last byte.
        if self.is_end_stream() {
            self.finish();
        }
    }
}

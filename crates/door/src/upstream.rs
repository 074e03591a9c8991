//! Connections to upstreams, and the idle ones kept for the next request.
//!
//! A connection has no task of its own: whoever waits for its answer, or reads the answer's body, drives it. So a
//! request costs no wake-up across tasks, and a client that goes away takes its upstream request with it.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::pin::{Pin, pin};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::replay::Attempt;

/// The most that is buffered of an upstream's answer, heads included, on top of the socket's own buffers.
const BUFFER_BYTES: usize = 64 * 1024;

/// How often the pool looks for connections that nobody took.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

type Driver = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// One HTTP/1.1 connection to an upstream.
pub(crate) struct Connection {
    sender: SendRequest<Attempt>,
    /// What moves bytes; None once the connection has ended.
    driver: Option<Driver>,
    reused: bool,
}

impl Connection {
    /// Speaks HTTP on a stream.
    pub(crate) async fn handshake<S>(stream: S) -> hyper::Result<Self>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (sender, connection) =
            http1::Builder::new().max_buf_size(BUFFER_BYTES).handshake(TokioIo::new(stream)).await?;
        Ok(Self { sender, driver: Some(Box::pin(connection.with_upgrades())), reused: false })
    }

    /// Whether an earlier request used this connection, so that the upstream may be closing it just now.
    pub(crate) fn is_reused(&self) -> bool {
        self.reused
    }

    /// Sends a request and waits for the head of the answer. The error holds the request if not one byte of it went out.
    pub(crate) async fn send(
        &mut self,
        request: Request<Attempt>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Attempt>>> {
        let mut answer = pin!(self.sender.try_send_request(request));
        std::future::poll_fn(|cx| {
            drive(&mut self.driver, cx);
            answer.as_mut().poll(cx)
        })
        .await
    }

    /// Moves bytes.
    pub(crate) fn drive(&mut self, cx: &mut Context<'_>) {
        drive(&mut self.driver, cx);
    }

    /// What moves the bytes, for a task of its own.
    pub(crate) fn into_driver(self) -> Option<Driver> {
        self.driver
    }

    /// Whether the last exchange is over on both sides and the next may begin.
    fn is_idle(&mut self) -> bool {
        // Nobody waits here: who takes the connection from the pool drives it again.
        self.drive(&mut Context::from_waker(Waker::noop()));
        self.driver.is_some() && self.sender.is_ready()
    }
}

fn drive(driver: &mut Option<Driver>, cx: &mut Context<'_>) {
    // An error reaches whoever waits for the answer or reads its body.
    if driver.as_mut().is_some_and(|running| running.as_mut().poll(cx).is_ready()) {
        *driver = None;
    }
}

/// Idle connections by the name of their upstream, the one used last first.
pub(crate) struct Pool<N> {
    settings: PoolSettings,
    idle: Mutex<Idle<N>>,
}

/// How many idle connections there may be, and for how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PoolSettings {
    pub(crate) per_upstream: usize,
    pub(crate) keep: Duration,
}

struct Idle<N> {
    by_name: HashMap<N, Vec<(Instant, Connection)>>,
    swept: Instant,
}

impl<N: Eq + Hash> Pool<N> {
    pub(crate) fn new(settings: PoolSettings) -> Self {
        Self { settings, idle: Mutex::new(Idle { by_name: HashMap::new(), swept: Instant::now() }) }
    }

    /// An idle connection that, as far as anyone can tell here, is still open.
    pub(crate) fn take(&self, name: &N) -> Option<Connection> {
        loop {
            let (since, mut connection) = self.lock().by_name.get_mut(name)?.pop()?;
            if since.elapsed() < self.settings.keep && connection.is_idle() {
                connection.reused = true;
                return Some(connection);
            }
        }
    }

    /// Keeps a connection for later if its exchange is over and there is room.
    pub(crate) fn keep(&self, name: N, mut connection: Connection) {
        if !connection.is_idle() {
            return;
        }
        let now = Instant::now();
        let mut idle = self.lock();
        if now.duration_since(idle.swept) >= SWEEP_EVERY {
            idle.swept = now;
            idle.by_name.retain(|_, connections| {
                connections.retain(|(since, _)| now.duration_since(*since) < self.settings.keep);
                !connections.is_empty()
            });
        }
        let connections = idle.by_name.entry(name).or_default();
        if connections.len() < self.settings.per_upstream {
            connections.push((now, connection));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Idle<N>> {
        // Nothing that runs under this lock leaves half a change behind when it panics.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An answer's body as it comes from the upstream, driving its connection.
pub(crate) struct Streaming {
    incoming: Incoming,
    /// None when the connection has a task of its own.
    connection: Option<Connection>,
    /// What [`Self::begin`] found.
    first: Option<Frame<Bytes>>,
}

impl Streaming {
    pub(crate) fn new(incoming: Incoming, connection: Connection) -> Self {
        Self { incoming, connection: Some(connection), first: None }
    }

    /// Looks at what has arrived of the body, without waiting for more. An upstream that broke off already is known
    /// before a byte of its answer has gone to the client.
    pub(crate) async fn begin(&mut self) -> Result<(), hyper::Error> {
        if self.is_end_stream() {
            return Ok(());
        }
        match std::future::poll_fn(|cx| Poll::Ready(self.poll_frame(cx))).await {
            Poll::Ready(Some(Ok(frame))) => self.first = Some(frame),
            Poll::Ready(Some(Err(error))) => return Err(error),
            Poll::Ready(None) | Poll::Pending => {}
        }
        Ok(())
    }

    /// The connection, to be driven or kept by another.
    pub(crate) fn take_connection(&mut self) -> Option<Connection> {
        self.connection.take()
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        // Asking first tells the connection that somebody wants the next frame.
        let polled = Pin::new(&mut self.incoming).poll_frame(cx);
        match &mut self.connection {
            Some(connection) if polled.is_pending() => {
                connection.drive(cx);
                Pin::new(&mut self.incoming).poll_frame(cx)
            }
            _ => polled,
        }
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.incoming.is_end_stream()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        let first = self.first.as_ref().and_then(Frame::data_ref).map_or(0, |data| data.len() as u64);
        match self.incoming.size_hint().exact() {
            Some(rest) => SizeHint::with_exact(first + rest),
            None => SizeHint::default(),
        }
    }
}

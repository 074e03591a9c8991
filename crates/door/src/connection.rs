//! One connection from a client: its requests, its limits, and its end.
//!
//! The stream under the HTTP parser is wrapped: the wrapper shows every byte to the screen before the parser gets it,
//! and knows at each moment whom the connection waits for, so that it can end what waits too long. A request that is
//! refused is replaced by a stand-in, so that the answer takes its place in the order of answers.

use std::future::Future;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::UPGRADE;
use http::{Request, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::metrics::ConnectionMetrics;
use crate::screen::{Refusal, Screen, Then};

/// Limits of a connection.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionLimits {
    /// The largest head of a request, in bytes (32 KiB, as nginx's four buffers of 8 KiB).
    pub head_bytes: usize,
    /// How long a head may take from its first byte to its last.
    pub head_timeout: Duration,
    /// How long a client may keep a connection without a request (75 s, as nginx's `keepalive_timeout`).
    pub idle_timeout: Duration,
    /// How long a client may neither send the body it announced nor take the answer it asked for.
    pub stall_timeout: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            head_bytes: 32 * 1024,
            head_timeout: Duration::from_secs(15),
            idle_timeout: Duration::from_secs(75),
            stall_timeout: Duration::from_secs(60),
        }
    }
}

/// What arrives on a connection: a request, or what was none, after whose answer the connection ends.
pub type Arrival = Result<Request<Incoming>, Refusal>;

impl Refusal {
    /// The status that tells it.
    pub fn status(self) -> StatusCode {
        match self {
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::HeadTooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::Connect => StatusCode::NOT_IMPLEMENTED,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

/// What the parser buffers in each direction.
const BUFFER_BYTES: usize = 64 * 1024;

/// What the parser gets instead of a request that is refused. A client that sends the same gets an ordinary answer.
const STAND_IN: &[u8] = b"REFUSED / HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n";
const STAND_IN_METHOD: &str = "REFUSED";

/// A stream of bytes with a socket below it, whose options the connection sets.
pub trait Socket: AsyncRead + AsyncWrite + AsFd + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + AsFd + Send + Unpin + 'static> Socket for T {}

/// Speaks HTTP/1 with a client until either side ends it. `held` lives as long as the connection, tunnels included.
///
/// # Errors
/// The connection broke, or the client broke the protocol where no answer was possible.
pub async fn serve<S, H, A, B, T>(
    stream: S,
    limits: ConnectionLimits,
    metrics: Arc<ConnectionMetrics>,
    held: T,
    handler: H,
) -> Result<(), hyper::Error>
where
    S: Socket,
    H: Fn(Arrival) -> A,
    A: Future<Output = Response<B>>,
    B: Body<Data = Bytes> + Unpin + 'static,
    B::Error: std::error::Error + Send + Sync + Unpin + 'static,
    T: Send + Unpin + 'static,
{
    prepare_socket(&stream);
    metrics.open.add(1);
    let shared = Arc::new(Shared { metrics, ..Shared::default() });
    let stream = ClientStream::new(stream, limits, Arc::clone(&shared), held);
    let service = service_fn(|request: Request<Incoming>| {
        let exchange = Exchange::begin(&shared);
        let asks_to_switch = request.version() == Version::HTTP_11 && request.headers().contains_key(UPGRADE);
        shared.ends_by_closing.store(request.version() == Version::HTTP_10, Ordering::Relaxed);
        let refusal = shared.refusal.get().filter(|_| request.method() == STAND_IN_METHOD);
        let arrival = refusal.map_or(Ok(request), |refusal| Err(*refusal));
        let answering = handler(arrival);
        async move {
            let response = answering.await;
            if asks_to_switch {
                exchange.0.switch.decide(response.status() == StatusCode::SWITCHING_PROTOCOLS);
            }
            Ok::<_, std::convert::Infallible>(response.map(|body| InFlight {
                body,
                broken: None,
                _exchange: exchange,
            }))
        }
    });
    hyper::server::conn::http1::Builder::new()
        .max_buf_size(BUFFER_BYTES)
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await
}

/// Small answers go out at once, and a client that vanished is noticed within minutes, also in a tunnel.
fn prepare_socket(stream: &impl Socket) {
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(20));
    // A socket that refuses this is on its way out, and reading it will say so.
    let socket = socket2::SockRef::from(stream);
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_keepalive(&keepalive);
}

/// What the stream and the service of one connection tell each other.
#[derive(Default)]
struct Shared {
    /// Requests whose answers are not complete: one, or none.
    in_flight: AtomicUsize,
    refusal: OnceLock<Refusal>,
    /// Whether the client may take the end of the connection for the end of the answer, as HTTP/1.0 does.
    ends_by_closing: AtomicBool,
    switch: Switch,
    metrics: Arc<ConnectionMetrics>,
}

/// A request whose answer is not complete yet.
struct Exchange(Arc<Shared>);

impl Exchange {
    fn begin(shared: &Arc<Shared>) -> Self {
        shared.in_flight.fetch_add(1, Ordering::Relaxed);
        shared.metrics.in_flight.add(1);
        Self(Arc::clone(shared))
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.in_flight.subtract(1);
    }
}

/// Whether a request to switch protocols was granted.
#[derive(Default)]
struct Switch {
    state: AtomicU8,
    waiting: Mutex<Option<Waker>>,
}

const UNDECIDED: u8 = 0;
const DECLINED: u8 = 1;
const GRANTED: u8 = 2;

impl Switch {
    fn decide(&self, granted: bool) {
        self.state.store(if granted { GRANTED } else { DECLINED }, Ordering::Release);
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waker) = waiting {
            waker.wake();
        }
    }

    fn reset(&self) {
        self.state.store(UNDECIDED, Ordering::Release);
    }

    /// True: from now on the bytes are no HTTP.
    fn poll_decided(&self, cx: &mut Context<'_>) -> Poll<bool> {
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = Some(cx.waker().clone());
        match self.state.load(Ordering::Acquire) {
            UNDECIDED => Poll::Pending,
            state => Poll::Ready(state == GRANTED),
        }
    }
}

/// An answer's body, which marks the end of its exchange by its own end.
struct InFlight<B: Body> {
    body: B,
    /// Why the body broke off, until what came before has gone out.
    broken: Option<B::Error>,
    _exchange: Exchange,
}

impl<B> Body for InFlight<B>
where
    B: Body + Unpin,
    B::Error: Unpin,
{
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if let Some(error) = self.broken.take() {
            return Poll::Ready(Some(Err(error)));
        }
        match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(Err(error)) => {
                // The parser drops what it has not flushed when it gets an error, and flushes when it has to wait.
                self.broken = Some(error);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            frame => Poll::Ready(frame),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The stream under the parser.
struct ClientStream<S: Socket, T: Send + Unpin + 'static> {
    /// None only while it is being dropped.
    inner: Option<S>,
    shared: Arc<Shared>,
    limits: ConnectionLimits,
    screen: Screen,
    mode: Mode,
    /// Bytes from the client that the parser has not got: first `released` that it may have, then the others.
    buffer: Vec<u8>,
    released: usize,
    /// What the client is waited for, and since when.
    reading: Option<(ReadWait, Instant)>,
    writing: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
    shut_down: bool,
    held: Option<T>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Screening,
    AwaitingSwitch,
    /// The bytes are no HTTP any more.
    Tunnel,
    /// A request was refused: nothing more is taken from the client.
    Refused,
    /// A request's body is malformed from here on.
    Broken(Refusal),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReadWait {
    Head,
    Body,
    Idle,
}

/// How much is read at a time behind a partial head.
const READ_BYTES: usize = 8 * 1024;

impl<S: Socket, T: Send + Unpin + 'static> ClientStream<S, T> {
    fn new(inner: S, limits: ConnectionLimits, shared: Arc<Shared>, held: T) -> Self {
        Self {
            inner: Some(inner),
            shared,
            limits,
            screen: Screen::new(limits.head_bytes),
            mode: Mode::Screening,
            buffer: Vec::new(),
            released: 0,
            reading: None,
            writing: None,
            timer: None,
            shut_down: false,
            held: Some(held),
        }
    }

    fn hand_out(&mut self, out: &mut ReadBuf<'_>) {
        let count = self.released.min(out.remaining());
        out.put_slice(&self.buffer[..count]);
        self.buffer.drain(..count);
        self.released -= count;
        if self.buffer.is_empty() {
            // A connection at rest holds no buffer.
            self.buffer = Vec::new();
        }
    }

    /// Shows the bytes behind the released ones to the screen.
    fn screen_buffer(&mut self) {
        let verdict = self.screen.look(&self.buffer[self.released..]);
        self.released += verdict.pass;
        self.follow(verdict.then);
    }

    /// Shows what was just read into the parser's own buffer to the screen, and takes back what may not stay there.
    fn screen_in_place(&mut self, out: &mut ReadBuf<'_>, before: usize) {
        let verdict = self.screen.look(&out.filled()[before..]);
        let keep = before + verdict.pass;
        self.buffer.extend_from_slice(&out.filled()[keep..]);
        out.set_filled(keep);
        self.follow(verdict.then);
    }

    fn follow(&mut self, then: Then) {
        match then {
            Then::ReadOn => {}
            Then::AwaitSwitch => self.mode = Mode::AwaitingSwitch,
            Then::Refuse(refusal) if self.screen.in_body() => {
                self.mode = Mode::Broken(refusal);
                self.buffer.truncate(self.released);
            }
            Then::Refuse(refusal) => self.refuse(refusal),
        }
    }

    fn refuse(&mut self, refusal: Refusal) {
        // The first refusal is the only one: nothing is screened after it.
        let _ = self.shared.refusal.set(refusal);
        self.mode = Mode::Refused;
        self.buffer.truncate(self.released);
        self.buffer.extend_from_slice(STAND_IN);
        self.released = self.buffer.len();
    }

    /// The client sends nothing just now. Ends what it should have sent long ago.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let wait = if self.screen.in_body() {
            ReadWait::Body
        } else if !self.buffer.is_empty() {
            ReadWait::Head
        } else if self.shared.in_flight.load(Ordering::Relaxed) == 0 {
            ReadWait::Idle
        } else {
            // It is the client that waits.
            self.reading = None;
            return Poll::Pending;
        };
        let since = match self.reading {
            Some((before, since)) if before == wait => since,
            _ => Instant::now(),
        };
        self.reading = Some((wait, since));
        let patience = match wait {
            ReadWait::Head => self.limits.head_timeout,
            ReadWait::Body => self.limits.stall_timeout,
            ReadWait::Idle => self.limits.idle_timeout,
        };
        ready!(self.poll_timer(cx, since + patience));
        match wait {
            ReadWait::Head => self.refuse(Refusal::HeadTooSlow),
            ReadWait::Body => return Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            ReadWait::Idle => {}
        }
        Poll::Ready(Ok(()))
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        // An earlier deadline of the other direction stays: when it passes, both are looked at again.
        if timer.deadline() > deadline {
            timer.as_mut().reset(deadline);
        }
        while timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }

    fn read_inner(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<usize>> {
        let Some(inner) = &mut self.inner else { return Poll::Ready(Ok(0)) };
        let before = out.filled().len();
        ready!(Pin::new(inner).poll_read(cx, out))?;
        let read = out.filled().len() - before;
        self.shared.metrics.bytes_in.add(read as u64);
        Poll::Ready(Ok(read))
    }

    /// Reads behind what is held back.
    fn read_to_buffer(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let before = self.buffer.len();
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(before + READ_BYTES, 0);
        let mut out = ReadBuf::new(&mut buffer[before..]);
        let read = self.read_inner(cx, &mut out);
        let filled = out.filled().len();
        buffer.truncate(before + filled);
        self.buffer = buffer;
        read
    }

    /// Reads until there is something for the parser. Ready without a byte is the end.
    fn poll_next(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        loop {
            if self.released > 0 {
                self.hand_out(out);
                return Poll::Ready(Ok(()));
            }
            match self.mode {
                // The parser ends the connection after the answer.
                Mode::Refused => return Poll::Pending,
                Mode::Broken(refusal) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, refusal)));
                }
                Mode::Tunnel => {
                    ready!(self.read_inner(cx, out))?;
                    return Poll::Ready(Ok(()));
                }
                Mode::AwaitingSwitch => {
                    let granted = ready!(self.shared.switch.poll_decided(cx));
                    self.shared.switch.reset();
                    if granted {
                        self.mode = Mode::Tunnel;
                        self.released = self.buffer.len();
                    } else {
                        self.mode = Mode::Screening;
                        self.screen.switch_declined();
                        self.screen_buffer();
                    }
                    continue;
                }
                Mode::Screening => {}
            }
            let in_place = self.buffer.is_empty();
            let read = if in_place { self.read_inner(cx, out) } else { self.read_to_buffer(cx) };
            let Poll::Ready(read) = read else {
                ready!(self.poll_silence(cx))?;
                if self.mode == Mode::Refused {
                    continue;
                }
                return Poll::Ready(Ok(()));
            };
            if read? == 0 {
                return Poll::Ready(Ok(()));
            }
            if in_place {
                self.screen_in_place(out, before);
            } else {
                self.screen_buffer();
            }
            if self.released > 0 || out.filled().len() > before {
                self.reading = None;
            }
            if out.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Counts what was written, and ends a connection whose client takes nothing.
    fn written(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Ok(count)) => {
                self.writing = None;
                self.shared.metrics.bytes_out.add(count as u64);
                Poll::Ready(Ok(count))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            // A tunnel may be quiet for as long as it likes.
            Poll::Pending if self.mode == Mode::Tunnel => Poll::Pending,
            Poll::Pending => {
                let since = *self.writing.get_or_insert_with(Instant::now);
                ready!(self.poll_timer(cx, since + self.limits.stall_timeout));
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }

    fn socket(&mut self) -> io::Result<Pin<&mut S>> {
        self.inner.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl<S: Socket, T: Send + Unpin + 'static> AsyncRead for ClientStream<S, T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_next(cx, out)
    }
}

impl<S: Socket, T: Send + Unpin + 'static> AsyncWrite for ClientStream<S, T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = this.socket()?.poll_write(cx, bytes);
        this.written(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = this.socket()?.poll_write_vectored(cx, slices);
        this.written(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.as_ref().is_some_and(S::is_write_vectored)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().socket()?.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.shut_down = true;
        this.socket()?.poll_shutdown(cx)
    }
}

impl<S: Socket, T: Send + Unpin + 'static> Drop for ClientStream<S, T> {
    fn drop(&mut self) {
        self.shared.metrics.open.subtract(1);
        let unfinished = self.mode == Mode::Refused || self.screen.in_body();
        let (Some(inner), held) = (self.inner.take(), self.held.take()) else { return };
        if !self.shut_down && self.shared.ends_by_closing.load(Ordering::Relaxed) {
            // The answer broke off. Only a reset tells an HTTP/1.0 client that this is not its end.
            let _ = socket2::SockRef::from(&inner).set_linger(Some(Duration::ZERO));
        } else if self.shut_down
            && unfinished
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(linger(inner, held));
        }
    }
}

/// How long, and for how many bytes, a client that still sends is listened to after its last answer.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 1024 * 1024;

/// Reads on after the last answer. Closing a socket with unread bytes resets the connection, and a reset may overtake
/// the answer (RFC 9112, section 9.6).
async fn linger<T>(mut stream: impl Socket, held: T) {
    let mut unread = [0; READ_BYTES];
    let listening = async {
        let mut total = 0;
        while total < LINGER_BYTES
            && let Ok(read @ 1..) = stream.read(&mut unread).await
        {
            total += read;
        }
    };
    // Either way the connection ends now.
    let _ = tokio::time::timeout(LINGER, listening).await;
    drop(held);
}

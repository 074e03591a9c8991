//! The event loop.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use geode_crdt::HybridTime;
use geode_store::{Engine, FlushError, Position, Store};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use socket2::{SockRef, TcpKeepalive};

use crate::accept::Acceptor;
use crate::connection::{Connection, Connections, Phase};
use crate::handle::Handle;
use crate::limits::Limits;
use crate::metrics::{BatchCounts, RespMetrics};
use crate::output::Spares;

/// The buffer that all connections read into.
const SHARED_BYTES: usize = 64 * 1024;

/// Input executed in one batch, about. A bound on how long the first reply waits for the last command.
const BATCH_BYTES: u64 = 1024 * 1024;

/// Commands executed in one batch, about, for the same reason.
const BATCH_COMMANDS: u64 = 16 * 1024;

/// Connections accepted in one batch.
const BATCH_ACCEPTS: usize = 64;

/// The longest sleep: engines keep time and keys expire without anybody asking. Redis: `hz 10`.
const TICK: Duration = Duration::from_millis(100);

/// Expired keys swept in one batch.
const BATCH_SWEEPS: usize = 128;

/// How long a command may still wait when its peer sends no more. Enough to fetch any row; without it, WAIT 1 0 and
/// the like would stay for ever behind peers that are gone.
const HALF_CLOSED_PATIENCE: Duration = Duration::from_secs(10);

/// Idle time after which the kernel asks whether the peer is still there. Redis: `tcp-keepalive 300`.
const KEEPALIVE: Duration = Duration::from_secs(300);

/// Why the loop ended. Nothing that is not in the log was answered.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The engine cannot go on.
    #[error("{0}; nothing more was answered and the process has to stop")]
    Log(String),
    /// The system could not tell which connections are ready.
    #[error("cannot wait for connections: {0}")]
    Poll(#[source] io::Error),
}

/// A Redis protocol server for one store. [`Self::run`] makes the calling thread the data thread.
#[derive(Debug)]
pub struct Server {
    poll: Poll,
    acceptor: Acceptor,
    handle: Handle,
    metrics: Arc<RespMetrics>,
    pub(crate) limits: Limits,
    pub(crate) connections: Connections,
    /// Connections that have something to do, in order.
    ready: VecDeque<usize>,
    /// Connections with a command that waits.
    pub(crate) waiting: Vec<usize>,
    /// Connections to look after at the end of the batch: their replies, their end, their next turn.
    pub(crate) touched: Vec<usize>,
    /// Connections whose replies wait for the disk.
    held: Vec<usize>,
    pub(crate) shared: Vec<u8>,
    pub(crate) spares: Spares,
    pub(crate) counts: BatchCounts,
    /// The time of this batch.
    pub(crate) now: Instant,
    next_id: u64,
    /// The sum of what connections hold.
    held_bytes: usize,
    next_sweep: Instant,
}

impl Server {
    /// A server for connections that come to `listeners`. They have to be bound; nothing is accepted before
    /// [`Self::run`].
    ///
    /// # Errors
    /// When the system has no file descriptors left or a listener cannot be watched.
    pub fn new(listeners: Vec<std::net::TcpListener>, limits: Limits) -> io::Result<Self> {
        let poll = Poll::new()?;
        let acceptor = Acceptor::new(listeners, poll.registry())?;
        let handle = Handle::new(poll.registry(), Token(acceptor.count()))?;
        let input_bytes = limits.input_bytes.min(u32::MAX as usize);
        let now = Instant::now();
        Ok(Self {
            poll,
            acceptor,
            handle,
            metrics: Arc::default(),
            limits: Limits { input_bytes, ..limits },
            connections: Connections::default(),
            ready: VecDeque::new(),
            waiting: Vec::new(),
            touched: Vec::new(),
            held: Vec::new(),
            shared: vec![0; SHARED_BYTES],
            spares: Spares::default(),
            counts: BatchCounts::default(),
            now,
            next_id: 1,
            held_bytes: 0,
            next_sweep: now,
        })
    }

    /// What other threads (fsync, links) wake the loop with, and what stops it.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Counts, for whoever scrapes them.
    pub fn metrics(&self) -> Arc<RespMetrics> {
        Arc::clone(&self.metrics)
    }

    /// Serves until [`Handle::stop`]. Then, or on an error, every connection is closed and the store is the caller's
    /// again.
    ///
    /// # Errors
    /// [`ServerError::Log`]: replies of the last batch were not sent, because what they tell may not be in the log.
    pub fn run<E: Engine>(mut self, store: &mut Store<E>) -> Result<(), ServerError> {
        let mut events = Events::with_capacity(1024);
        let mut idle = Some(Duration::ZERO);
        while !self.handle.is_stopped() {
            match self.poll.poll(&mut events, idle) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    return Err(ServerError::Poll(error));
                }
                _ => {}
            }
            self.handle.begin_turn();
            let wall = self.read_clock();
            store.engine.set_wall(wall);
            self.note(&events);
            self.accept();
            self.serve_ready(store);
            let has_more = store.engine.turn();
            self.resume_waiting(store);
            let has_more = self.sweep(store) || has_more;
            let position = match store.engine.flush() {
                Ok(position) => position,
                Err(FlushError::Doubtful(error)) => self.fail_batch(&error),
                Err(FlushError::Unproven(error)) => {
                    self.fail_held(&error);
                    self.fail_batch(&error)
                }
                Err(FlushError::Final(error)) => {
                    tracing::error!("{error}; all connections are closed unanswered");
                    return Err(ServerError::Log(error));
                }
            };
            self.send(position, store.engine.durable());
            self.enforce_total();
            self.counts.publish(&self.metrics, self.connections.len(), self.held_bytes);
            idle = Some(self.may_sleep(has_more, wall));
        }
        Ok(())
    }

    /// The one reading of the clocks for a batch.
    fn read_clock(&mut self) -> HybridTime {
        self.now = Instant::now();
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        HybridTime(u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX))
    }

    /// Remembers what became possible.
    fn note(&mut self, events: &Events) {
        for event in events {
            let token = event.token().0;
            if token < self.acceptor.count() {
                self.acceptor.set_ready(token);
                continue;
            }
            let Some(slot) = token.checked_sub(self.acceptor.count() + 1) else { continue };
            let Some(connection) = self.connections.get_mut(slot) else { continue };
            connection.readable |= event.is_readable() || event.is_read_closed();
            connection.writable |= event.is_writable() || event.is_error() || event.is_write_closed();
            connection.hung_up |= event.is_error() || event.is_write_closed();
            if event.is_read_closed() {
                connection.half_closed.get_or_insert(self.now);
            }
            if !std::mem::replace(&mut connection.is_ready, true) {
                self.ready.push_back(slot);
            }
        }
    }

    fn accept(&mut self) {
        for _ in 0..BATCH_ACCEPTS {
            let Some((socket, peer)) = self.acceptor.next(self.now) else { return };
            if self.connections.len() >= self.limits.connections {
                self.counts.refused += 1;
                refuse(socket);
            } else if let Err(error) = self.welcome(socket, peer) {
                tracing::debug!(%peer, %error, "a new connection is gone already");
            }
        }
    }

    fn welcome(&mut self, mut socket: TcpStream, peer: SocketAddr) -> io::Result<()> {
        let options = SockRef::from(&socket);
        options.set_tcp_nodelay(true)?;
        options.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 3))?;
        let token = Token(self.connections.next_slot() + self.acceptor.count() + 1);
        self.poll.registry().register(&mut socket, token, Interest::READABLE | Interest::WRITABLE)?;
        self.connections.insert(Box::new(Connection::new(self.next_id, socket, peer, self.now)));
        self.next_id += 1;
        self.counts.accepted += 1;
        Ok(())
    }

    /// Gives each connection that was ready at the start of the batch its share, as long as the batch is not too large.
    fn serve_ready<E: Engine>(&mut self, store: &mut Store<E>) {
        for _ in 0..self.ready.len() {
            if self.counts.bytes_in >= BATCH_BYTES || self.counts.commands >= BATCH_COMMANDS {
                return;
            }
            let Some(slot) = self.ready.pop_front() else { return };
            let Some(mut connection) = self.connections.take(slot) else { continue };
            connection.is_ready = false;
            self.serve(&mut connection, store);
            self.touch(&mut connection);
            self.connections.put(connection);
        }
    }

    fn resume_waiting<E: Engine>(&mut self, store: &mut Store<E>) {
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.retain(|slot| {
            let Some(mut connection) = self.connections.take(*slot) else { return false };
            if matches!(connection.phase, Phase::Waiting(_)) {
                self.resume(&mut connection, store);
            }
            let still_waits = matches!(connection.phase, Phase::Waiting(_));
            if still_waits && connection.is_abandoned(self.now, HALF_CLOSED_PATIENCE) {
                connection.phase = Phase::Dead;
            }
            if !matches!(connection.phase, Phase::Waiting(_)) {
                self.touch(&mut connection);
            }
            self.connections.put(connection);
            still_waits
        });
        self.waiting = waiting;
    }

    /// Returns whether there may be more to sweep at once.
    fn sweep<E: Engine>(&mut self, store: &mut Store<E>) -> bool {
        if self.now < self.next_sweep {
            return false;
        }
        let has_more = store.sweep(BATCH_SWEEPS) == BATCH_SWEEPS;
        if !has_more {
            self.next_sweep = self.now + TICK;
        }
        has_more
    }

    /// Answers everybody in this batch with an error: what the replies tell of is not in the log. The errors wait for
    /// nothing.
    fn fail_batch(&mut self, error: &str) -> Position {
        for slot in &self.touched {
            if let Some(connection) = self.connections.get_mut(*slot) {
                self.counts.errors += connection.output.fail_unsealed(error) as u64;
            }
        }
        Position(0)
    }

    /// Answers everybody who waits for the disk with an error.
    fn fail_held(&mut self, error: &str) {
        for slot in &self.held {
            if let Some(connection) = self.connections.get_mut(*slot).filter(|connection| connection.is_held)
            {
                self.counts.errors += connection.output.fail_held(error) as u64;
            }
        }
    }

    /// Sends what is safe: replies up to this batch wait for `position`, and `durable` is reached.
    fn send(&mut self, position: Position, durable: Position) {
        let mut touched = std::mem::take(&mut self.touched);
        for held in std::mem::take(&mut self.held) {
            if let Some(connection) = self.connections.get_mut(held).filter(|connection| connection.is_held) {
                connection.is_held = false;
                if !std::mem::replace(&mut connection.is_touched, true) {
                    touched.push(held);
                }
            }
        }
        for slot in touched.drain(..) {
            let Some(mut connection) = self.connections.take(slot) else { continue };
            connection.is_touched = false;
            connection.output.seal(position);
            if connection.output.release(durable) {
                connection.is_held = true;
                self.held.push(slot);
            }
            self.counts.bytes_out += connection.send(&mut self.spares) as u64;
            self.settle(connection);
        }
        self.touched = touched;
    }

    /// Ends the connection or puts it where it belongs until something happens.
    fn settle(&mut self, mut connection: Box<Connection>) {
        let is_over = match connection.phase {
            Phase::Dead => true,
            Phase::Draining => connection.output.pending() == 0,
            _ => false,
        };
        self.held_bytes -= connection.accounted;
        if is_over {
            // Closing the socket takes it off the poll, too.
            self.connections.forget(connection.slot);
            return;
        }
        connection.accounted = connection.settle_memory();
        self.held_bytes += connection.accounted;
        let wants_service = connection.wants_service(self.limits.output_pause_bytes);
        if wants_service && !std::mem::replace(&mut connection.is_ready, true) {
            self.ready.push_back(connection.slot);
        }
        self.connections.put(connection);
    }

    fn touch(&mut self, connection: &mut Connection) {
        if !std::mem::replace(&mut connection.is_touched, true) {
            self.touched.push(connection.slot);
        }
    }

    /// Closes the connections that hold most until all together hold what they may.
    fn enforce_total(&mut self) {
        while self.held_bytes > self.limits.total_bytes {
            let Some(largest) = self.connections.iter_mut().max_by_key(|connection| connection.accounted)
            else {
                return;
            };
            tracing::warn!(peer = %largest.peer, bytes = largest.accounted,
                "connections hold too much together; the largest is closed");
            let slot = largest.slot;
            largest.phase = Phase::Dead;
            self.counts.over_limit += 1;
            if let Some(connection) = self.connections.take(slot) {
                self.settle(connection);
            }
        }
    }

    /// How long nothing can happen but events.
    fn may_sleep(&self, has_more: bool, wall: HybridTime) -> Duration {
        if has_more || !self.ready.is_empty() {
            return Duration::ZERO;
        }
        let accept = self.acceptor.due(self.now).map(|due| due.saturating_duration_since(self.now));
        accept.into_iter().chain(self.first_deadline(wall)).fold(TICK, Duration::min)
    }

    /// How far away the first deadline of a waiting command is.
    fn first_deadline(&self, wall: HybridTime) -> Option<Duration> {
        let phases = self.waiting.iter().filter_map(|slot| Some(self.connections.get(*slot)?.phase));
        let deadlines = phases.filter_map(|phase| match phase {
            Phase::Waiting(until) => until,
            _ => None,
        });
        deadlines.map(|until| Duration::from_micros(until.0.saturating_sub(wall.0))).min()
    }
}

/// Tells a peer that there are too many. Its socket's buffer is empty, so the text fits or the peer is gone.
fn refuse(mut socket: TcpStream) {
    let _ = io::Write::write(&mut socket, b"-ERR max number of clients reached\r\n");
}

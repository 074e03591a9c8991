//! The wide-area network of a planet on one machine: a TCP relay that geodes call each other through without knowing.
//!
//! Every connection takes as long as the modelled distance says: each byte leaves one one-way latency after it came,
//! in order, at any bandwidth, and a call costs a round trip before its first byte. A cut between two regions holds
//! everything that is on its way, and calls hang, as when a network drops every packet; healing sends it again.
//! A caller is known by the address it calls from.
//!
//! One thread serves all connections with `poll`, whose timeout is as exact as the kernel's high-resolution timers: a
//! timer wheel of whole milliseconds would add half a millisecond to every byte.

mod connection;
mod line;

use std::collections::{BTreeSet, HashMap};
use std::io::{ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::oneshot;

use connection::{CHUNK, Connection};

/// Connections carried at once; more wait in the kernel. Below the common limit of 1024 file descriptors, at two each.
const MAX_CONNECTIONS: usize = 400;
/// How long accepting pauses when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// One region as the network sees it.
#[derive(Debug)]
pub(super) struct Endpoint {
    /// The address the region calls from; `None` where all regions share one.
    pub(super) source: Option<IpAddr>,
    /// Where others call it: the relay's own socket, which must not block.
    pub(super) link: TcpListener,
    /// Where its geode listens.
    pub(super) link_listen: SocketAddr,
}

/// Which pairs of regions cannot reach each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cuts(BTreeSet<(usize, usize)>);

impl Cuts {
    /// Cuts two regions from each other.
    pub(super) fn cut(&mut self, a: usize, b: usize) {
        self.0.insert((a.min(b), a.max(b)));
    }

    /// Joins two regions again.
    pub(super) fn heal(&mut self, a: usize, b: usize) {
        self.0.remove(&(a.min(b), a.max(b)));
    }

    /// Whether the two are cut from each other.
    pub(super) fn between(&self, a: usize, b: usize) -> bool {
        self.0.contains(&(a.min(b), a.max(b)))
    }

    /// All pairs that are cut, the lower index first.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (usize, usize)> {
        self.0.iter().copied()
    }
}

enum Command {
    Cuts(Cuts, oneshot::Sender<()>),
}

/// The running relay; it ends when dropped.
#[derive(Debug)]
pub(super) struct Relay {
    commands: Option<mpsc::Sender<Command>>,
    waker: PipeWriter,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Relay {
    /// Carries calls between the endpoints, `one_way[a][b]` being the latency from the one at index a to that at b.
    ///
    /// # Errors
    /// When the system gives no thread, pipe or usable socket.
    pub(super) fn start(endpoints: Vec<Endpoint>, one_way: Vec<Vec<Duration>>) -> std::io::Result<Self> {
        let (wake, waker) = std::io::pipe()?;
        let (commands, inbox) = mpsc::channel();
        let sources = endpoints.iter().enumerate().filter_map(|(i, endpoint)| Some((endpoint.source?, i)));
        let sources = sources.collect();
        let network = Network { endpoints, sources, one_way, cuts: Cuts::default() };
        let thread = std::thread::Builder::new().name("relay".to_owned()).spawn(move || {
            precise_timers();
            Loop { network, connections: Vec::new(), inbox, wake, accept_at: None }.run();
        })?;
        Ok(Self { commands: Some(commands), waker, thread: Some(thread) })
    }

    /// Puts these cuts in place of the former; they hold when this returns.
    pub(super) async fn set_cuts(&self, cuts: Cuts) {
        let (done, applied) = oneshot::channel();
        if let Some(commands) = &self.commands
            && commands.send(Command::Cuts(cuts, done)).is_ok()
        {
            let _ = (&self.waker).write_all(&[1]);
            // An error means that the relay has ended: then nothing passes at all.
            let _ = applied.await;
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.commands = None;
        let _ = self.waker.write_all(&[0]);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Linux rounds a sleep up by 50 µs to save wake-ups; the relay wants to be on time.
fn precise_timers() {
    #[cfg(target_os = "linux")]
    {
        // Without it the relay is only a little less exact.
        let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
    }
}

#[derive(Debug)]
struct Network {
    endpoints: Vec<Endpoint>,
    sources: HashMap<IpAddr, usize>,
    one_way: Vec<Vec<Duration>>,
    cuts: Cuts,
}

impl Network {
    fn is_cut(&self, caller: Option<usize>, callee: usize) -> bool {
        caller.is_some_and(|caller| self.cuts.between(caller, callee))
    }

    fn carry(&self, near: TcpStream, peer: IpAddr, callee: usize, now: Instant) -> Connection {
        let caller = self.sources.get(&peer).copied();
        let one_way = caller.map_or(Duration::ZERO, |caller| self.one_way[caller][callee]);
        let source = caller.map(|_| peer);
        let target = self.endpoints[callee].link_listen;
        let mut connection = Connection::new(near, (caller, source), (callee, target), one_way, now);
        connection.set_cut(self.is_cut(caller, callee), now);
        connection
    }
}

/// Why the loop woke, apart from connections and due times.
#[derive(Clone, Copy, Debug, Default)]
struct Woken {
    command: bool,
    call: bool,
}

struct Loop {
    network: Network,
    connections: Vec<Connection>,
    inbox: mpsc::Receiver<Command>,
    wake: PipeReader,
    /// Out of file descriptors: accept again from then on.
    accept_at: Option<Instant>,
}

impl Loop {
    fn run(mut self) {
        let mut chunk = Box::new([0; CHUNK]);
        loop {
            let woken = self.wait();
            let now = Instant::now();
            if woken.command && !self.obey(now) {
                return;
            }
            if woken.call {
                self.accept(now);
            }
            self.connections.retain_mut(|connection| connection.drive(now, &mut chunk));
        }
    }

    /// Waits for the next event or due time. Readiness is noted in the connections.
    fn wait(&mut self) -> Woken {
        let due = self
            .connections
            .iter()
            .filter_map(Connection::next_due)
            .chain(self.accept_at.filter(|at| *at > Instant::now()))
            .min();
        let timeout = due.map(|due| due.saturating_duration_since(Instant::now()));
        let timeout = timeout.map(|wait| Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: wait.subsec_nanos().into(),
        });
        let mut polled = Vec::with_capacity(1 + self.network.endpoints.len() + 2 * self.connections.len());
        polled.push(PollFd::from_borrowed_fd(self.wake.as_fd(), PollFlags::IN));
        let paused = self.accept_at.is_some_and(|at| at > Instant::now());
        if !paused && self.connections.len() < MAX_CONNECTIONS {
            let endpoints = self.network.endpoints.iter();
            polled.extend(endpoints.map(|endpoint| PollFd::new(&endpoint.link, PollFlags::IN)));
        }
        let first = polled.len();
        for (fd, flags) in self.connections.iter().flat_map(Connection::interests).flatten() {
            polled.push(PollFd::from_borrowed_fd(fd, flags));
        }
        if poll(&mut polled, timeout.as_ref()).is_err() {
            return Woken::default(); // interrupted by a signal: look again
        }
        let events: Vec<PollFlags> = polled.iter().map(PollFd::revents).collect();
        let mut of_connections = events[first..].iter().copied();
        for connection in &mut self.connections {
            let noted = connection
                .interests()
                .map(|interest| interest.and_then(|_| of_connections.next()).unwrap_or(PollFlags::empty()));
            connection.set_events(noted);
        }
        Woken { command: !events[0].is_empty(), call: events[1..first].iter().any(|event| !event.is_empty()) }
    }

    /// Does what was asked; false when the relay is to end.
    fn obey(&mut self, now: Instant) -> bool {
        // `poll` saw a byte or the end, so this does not block.
        let _ = self.wake.read(&mut [0; 64]);
        loop {
            match self.inbox.try_recv() {
                Ok(Command::Cuts(cuts, done)) => {
                    self.network.cuts = cuts;
                    for connection in &mut self.connections {
                        let cut = self.network.is_cut(connection.caller, connection.callee);
                        connection.set_cut(cut, now);
                    }
                    let _ = done.send(());
                }
                Err(mpsc::TryRecvError::Empty) => return true,
                Err(mpsc::TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn accept(&mut self, now: Instant) {
        self.accept_at = None;
        for (callee, endpoint) in self.network.endpoints.iter().enumerate() {
            while self.connections.len() < MAX_CONNECTIONS {
                match endpoint.link.accept() {
                    Ok((near, peer)) => {
                        let prepared = near.set_nonblocking(true).and_then(|()| near.set_nodelay(true));
                        if prepared.is_ok() {
                            self.connections.push(self.network.carry(near, peer.ip(), callee, now));
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                    Err(error) => {
                        tracing::warn!(%error, "relay: cannot accept a connection");
                        self.accept_at = Some(now + ACCEPT_PAUSE);
                        return;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;

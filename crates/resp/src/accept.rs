//! New connections, in bounded numbers, and what happens when there are no file descriptors left.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};
use socket2::{Domain, Socket, Type};

/// How long nothing is accepted after the system refused. Connections wait in the listener's backlog meanwhile.
const PAUSE: Duration = Duration::from_millis(100);

/// Connections that may wait to be accepted. Beyond it the kernel drops handshakes and peers try again after a second.
/// Redis: `tcp-backlog 511`; the kernel's own bound (`net.core.somaxconn`) is 4096 by default.
const BACKLOG: i32 = 1024;

/// Binds a listener with a backlog that fits a server of thousands of connections (the standard library's is 128), and
/// so that a restart can bind again at once.
///
/// # Errors
/// What the system says, e.g. that the address is in use.
pub fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// The listeners and whether they may have something. Their tokens are 0, 1, ….
#[derive(Debug)]
pub(crate) struct Acceptor {
    listeners: Vec<(TcpListener, bool)>,
    paused_until: Option<Instant>,
    /// A refusal was reported and nothing was accepted since.
    reported: bool,
}

impl Acceptor {
    pub(crate) fn new(listeners: Vec<std::net::TcpListener>, registry: &Registry) -> io::Result<Self> {
        let mut registered = Vec::with_capacity(listeners.len());
        for (index, listener) in listeners.into_iter().enumerate() {
            listener.set_nonblocking(true)?;
            let mut listener = TcpListener::from_std(listener);
            registry.register(&mut listener, Token(index), Interest::READABLE)?;
            registered.push((listener, false));
        }
        Ok(Self { listeners: registered, paused_until: None, reported: false })
    }

    pub(crate) const fn count(&self) -> usize {
        self.listeners.len()
    }

    /// A listener has connections.
    pub(crate) fn set_ready(&mut self, index: usize) {
        self.listeners[index].1 = true;
    }

    /// When to call [`Self::next`] again, `None` if an event will tell.
    pub(crate) fn due(&self, now: Instant) -> Option<Instant> {
        let has_ready = self.listeners.iter().any(|(_, ready)| *ready);
        has_ready.then(|| self.paused_until.unwrap_or(now))
    }

    /// The next new connection.
    pub(crate) fn next(&mut self, now: Instant) -> Option<(TcpStream, SocketAddr)> {
        if self.paused_until.is_some_and(|until| now < until) {
            return None;
        }
        self.paused_until = None;
        for (listener, ready) in self.listeners.iter_mut().filter(|(_, ready)| *ready) {
            match listener.accept() {
                Ok(accepted) => {
                    self.reported = false;
                    return Some(accepted);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => *ready = false,
                // The peer gave up while it waited; the next one is for the next call.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
                    ) => {}
                // No file descriptors or no memory: trying again at once would spin.
                Err(error) => {
                    if !self.reported {
                        tracing::warn!(%error, "cannot accept connections; raise the limit of open files");
                    }
                    self.reported = true;
                    self.paused_until = Some(now + PAUSE);
                    return None;
                }
            }
        }
        None
    }
}

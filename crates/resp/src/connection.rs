//! One connection: its socket, its place in the protocol, and what it holds.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use geode_crdt::HybridTime;
use geode_store::Session;
use mio::net::TcpStream;

use crate::input::Input;
use crate::output::{Output, Spares};
use crate::parse::Parser;
use crate::write::Protocol;

/// What a connection does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// All complete commands are executed; more bytes are needed.
    Reading,
    /// There may be complete commands in its input: it has had its share of a batch, or the peer takes no replies.
    Backlogged,
    /// A command waits for the engine or a deadline. Nothing behind it is executed.
    Waiting(Option<HybridTime>),
    /// The replies it has are sent, then it is closed.
    Draining,
    /// It is closed at the end of the batch.
    Dead,
}

/// Which replies the peer wants (CLIENT REPLY).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Replies {
    #[default]
    All,
    None,
    /// Not the one to the next command.
    SkipNext,
    /// Not the one to the current command.
    Skip,
}

/// What a client says about itself (CLIENT SETNAME, CLIENT SETINFO).
#[derive(Debug, Default)]
pub(crate) struct Identity {
    pub(crate) name: Box<[u8]>,
    pub(crate) library: Box<[u8]>,
    pub(crate) library_version: Box<[u8]>,
}

#[derive(Debug)]
pub(crate) struct Connection {
    /// Unique in the life of the process.
    pub(crate) id: u64,
    /// Where it stands among the connections.
    pub(crate) slot: usize,
    pub(crate) socket: TcpStream,
    pub(crate) peer: SocketAddr,
    pub(crate) created: Instant,
    /// When it last executed something.
    pub(crate) active: Instant,
    pub(crate) identity: Identity,
    pub(crate) session: Session,
    pub(crate) protocol: Protocol,
    pub(crate) replies: Replies,
    pub(crate) parser: Parser,
    pub(crate) input: Input,
    pub(crate) output: Output,
    pub(crate) phase: Phase,
    /// The socket may have something to read. Sockets are registered once, edge-triggered, so this is remembered.
    pub(crate) readable: bool,
    /// The socket may take something.
    pub(crate) writable: bool,
    /// When the peer said that it will send no more, which may stand behind bytes that are not read yet.
    pub(crate) half_closed: Option<Instant>,
    /// The socket failed or was closed in both directions.
    pub(crate) hung_up: bool,
    /// It is in the list of those to serve.
    pub(crate) is_ready: bool,
    /// It is in the list of those to look after at the end of the batch.
    pub(crate) is_touched: bool,
    /// It is in the list of those whose replies wait for the disk.
    pub(crate) is_held: bool,
    /// The heap bytes that are counted for it.
    pub(crate) accounted: usize,
}

impl Connection {
    pub(crate) fn new(id: u64, socket: TcpStream, peer: SocketAddr, now: Instant) -> Self {
        Self {
            id,
            slot: 0,
            socket,
            peer,
            created: now,
            active: now,
            identity: Identity::default(),
            session: Session::default(),
            protocol: Protocol::default(),
            replies: Replies::default(),
            parser: Parser::default(),
            input: Input::default(),
            output: Output::default(),
            phase: Phase::Reading,
            readable: false,
            writable: true,
            half_closed: None,
            hung_up: false,
            is_ready: false,
            is_touched: false,
            is_held: false,
            accounted: 0,
        }
    }

    /// RESET: as if just connected, but for the id.
    pub(crate) fn reset(&mut self) {
        self.session.reset();
        self.protocol = Protocol::default();
        self.replies = Replies::default();
        self.identity.name = Box::default();
    }

    /// One read into `room`, which is not empty. Remembers what it tells about readiness; the end of the stream and
    /// errors end the connection once its replies are out. Returns how many bytes came.
    pub(crate) fn read(&mut self, room: &mut [u8]) -> usize {
        match self.socket.read(room) {
            Ok(0) => {
                self.readable = false;
                self.phase = Phase::Draining;
                0
            }
            Ok(length) => {
                // A short read emptied the socket (epoll(7)): no second call to hear "would block". Unless the end of
                // the stream was announced, which comes without another event.
                self.readable = length == room.len() || self.half_closed.is_some() || self.hung_up;
                length
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                0
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(_) => {
                self.phase = Phase::Dead;
                0
            }
        }
    }

    /// One write of what may leave. Returns how many bytes left.
    pub(crate) fn send(&mut self, spares: &mut Spares) -> usize {
        let bytes = self.output.sendable();
        if bytes.is_empty() || !self.writable || self.phase == Phase::Dead {
            return 0;
        }
        loop {
            match self.socket.write(bytes) {
                Ok(length) => {
                    self.writable = length == bytes.len();
                    self.output.sent(length, spares);
                    return length;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.writable = false;
                    return 0;
                }
                // Nobody to answer to. Replies to what it sent before are lost with the connection.
                Err(_) => {
                    self.phase = Phase::Dead;
                    return 0;
                }
            }
        }
    }

    /// Whether it has something to do as soon as it is its turn.
    pub(crate) fn wants_service(&self, pause_bytes: usize) -> bool {
        let has_work = match self.phase {
            Phase::Reading => self.readable,
            Phase::Backlogged => true,
            Phase::Waiting(_) | Phase::Draining | Phase::Dead => false,
        };
        has_work && self.output.pending() < pause_bytes
    }

    /// Whether the peer said long ago that it will send no more.
    pub(crate) fn is_abandoned(&self, now: Instant, patience: Duration) -> bool {
        self.half_closed.is_some_and(|since| now.duration_since(since) >= patience)
    }

    /// Gives back memory that an idle connection does not need, and returns what it still takes.
    pub(crate) fn settle_memory(&mut self) -> usize {
        self.parser.shrink();
        self.input.heap_bytes() + self.output.heap_bytes() + self.parser.heap_bytes()
    }
}

/// All connections, by slot.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    slots: Vec<Option<Box<Connection>>>,
    free: Vec<usize>,
}

impl Connections {
    /// How many there are, one that is taken included.
    pub(crate) const fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The slot that [`Self::insert`] will use.
    pub(crate) fn next_slot(&self) -> usize {
        self.free.last().copied().unwrap_or(self.slots.len())
    }

    pub(crate) fn insert(&mut self, mut connection: Box<Connection>) {
        let slot = self.free.pop().unwrap_or(self.slots.len());
        connection.slot = slot;
        if slot == self.slots.len() {
            self.slots.push(None);
        }
        self.slots[slot] = Some(connection);
    }

    pub(crate) fn get(&self, slot: usize) -> Option<&Connection> {
        self.slots.get(slot)?.as_deref()
    }

    pub(crate) fn get_mut(&mut self, slot: usize) -> Option<&mut Connection> {
        self.slots.get_mut(slot)?.as_deref_mut()
    }

    /// Takes a connection out while it is worked on, so that it can see the others.
    pub(crate) fn take(&mut self, slot: usize) -> Option<Box<Connection>> {
        self.slots.get_mut(slot)?.take()
    }

    /// Puts back what was taken.
    pub(crate) fn put(&mut self, connection: Box<Connection>) {
        let slot = connection.slot;
        self.slots[slot] = Some(connection);
    }

    /// Frees the slot of a connection that was taken and is not put back.
    pub(crate) fn forget(&mut self, slot: usize) {
        self.free.push(slot);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Connection> {
        self.slots.iter().flatten().map(AsRef::as_ref)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Connection> {
        self.slots.iter_mut().flatten().map(AsMut::as_mut)
    }
}

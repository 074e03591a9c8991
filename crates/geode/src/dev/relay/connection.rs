//! One relayed connection: two sockets, a [`Line`] each way, and the call between them.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use super::line::{End, Line};

/// Bytes moved in one read.
pub(super) const CHUNK: usize = 64 << 10;
/// Reads from one socket before the others have their turn.
const READS_PER_TURN: usize = 8;

/// Where the call to the far side stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    /// The SYN is on its way and arrives then.
    Travelling(Instant),
    /// The SYN arrived then; the kernel is connecting.
    Connecting(Instant),
    /// Both sockets stand, or the call was refused.
    Done,
}

/// One end: its socket and what it waits for.
#[derive(Debug)]
struct Side {
    socket: Option<TcpStream>,
    /// The kernel took no more bytes: wait until it does.
    blocked: bool,
    /// Our FIN has gone out to it.
    shut: bool,
    /// What `poll` last said of it.
    events: PollFlags,
}

impl Side {
    fn new(socket: Option<TcpStream>) -> Self {
        Self { socket, blocked: false, shut: false, events: PollFlags::empty() }
    }

    fn readable(&self) -> bool {
        self.events.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR)
    }
}

/// What may be polled of a connection: a socket, and for what.
pub(super) type Interest<'a> = Option<(BorrowedFd<'a>, PollFlags)>;

/// See the module.
#[derive(Debug)]
pub(super) struct Connection {
    /// Index of the calling region; `None` for a caller that is no region.
    pub(super) caller: Option<usize>,
    /// Index of the called region.
    pub(super) callee: usize,
    source: Option<IpAddr>,
    target: SocketAddr,
    one_way: Duration,
    cut: bool,
    call: Call,
    near: Side,
    far: Side,
    there: Line,
    back: Line,
}

impl Connection {
    /// A call that `near` made at `now` and that the relay carries on to `target`, leaving from `source`.
    pub(super) fn new(
        near: TcpStream,
        (caller, source): (Option<usize>, Option<IpAddr>),
        (callee, target): (usize, SocketAddr),
        one_way: Duration,
        now: Instant,
    ) -> Self {
        Self {
            caller,
            callee,
            source,
            target,
            one_way,
            cut: false,
            call: Call::Travelling(now + one_way),
            near: Side::new(Some(near)),
            far: Side::new(None),
            there: Line::new(one_way),
            back: Line::new(one_way),
        }
    }

    /// Cuts or heals the connection; the same again changes nothing.
    pub(super) fn set_cut(&mut self, cut: bool, now: Instant) {
        if cut == self.cut {
            return;
        }
        self.cut = cut;
        if cut {
            self.there.cut();
            self.back.cut();
        } else {
            self.there.heal(now);
            self.back.heal(now);
            if let Call::Travelling(at) = &mut self.call {
                *at = (*at).max(now + self.one_way);
            }
        }
    }

    /// What to poll for on the near and the far socket.
    pub(super) fn interests(&self) -> [Interest<'_>; 2] {
        let interest = |side: &Side, from: &Line, connecting: bool| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, from.room() > 0 && !connecting);
            flags.set(PollFlags::OUT, side.blocked || connecting);
            (!flags.is_empty()).then_some(flags)
        };
        let connecting = matches!(self.call, Call::Connecting(_));
        let near = interest(&self.near, &self.there, false);
        let far = interest(&self.far, &self.back, connecting);
        [
            self.near.socket.as_ref().zip(near).map(|(socket, flags)| (socket.as_fd(), flags)),
            self.far.socket.as_ref().zip(far).map(|(socket, flags)| (socket.as_fd(), flags)),
        ]
    }

    /// Notes what `poll` said.
    pub(super) fn set_events(&mut self, [near, far]: [PollFlags; 2]) {
        self.near.events = near;
        self.far.events = far;
    }

    /// When something is to be done without any event.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let call = match self.call {
            Call::Travelling(at) if !self.cut => Some(at),
            _ => None,
        };
        let there = self.there.next_due().filter(|_| !self.far.blocked);
        let back = self.back.next_due().filter(|_| !self.near.blocked);
        [call, there, back].into_iter().flatten().min()
    }

    /// Does everything that is possible at `now`. False when the connection is over.
    pub(super) fn drive(&mut self, now: Instant, chunk: &mut [u8; CHUNK]) -> bool {
        self.advance_call(now);
        receive(&self.near, &mut self.there, now, chunk);
        if self.cut && matches!(self.call, Call::Travelling(_)) && self.there.is_closing() {
            // The caller gave up before its SYN got through, and with it goes the call. Otherwise the calls that are
            // tried in vain during a long partition would pile up here.
            return false;
        }
        if self.call == Call::Done {
            receive(&self.far, &mut self.back, now, chunk);
        }
        let alive = deliver(&mut self.there, &mut self.far, &mut self.back, now)
            && deliver(&mut self.back, &mut self.near, &mut self.there, now);
        self.set_events([PollFlags::empty(); 2]);
        if !alive {
            self.reset();
        }
        alive && !(self.near.shut && self.far.shut)
    }

    fn advance_call(&mut self, now: Instant) {
        if let Call::Travelling(at) = self.call
            && at <= now
            && !self.cut
        {
            self.call = Call::Connecting(at);
            match connect(self.source, self.target) {
                Ok(socket) => self.far.socket = Some(socket),
                Err(_) => self.refuse(now),
            }
        } else if let Call::Connecting(arrived) = self.call
            && !self.far.events.is_empty()
        {
            let failed = self.far.socket.as_ref().is_none_or(|far| !matches!(far.take_error(), Ok(None)));
            if failed {
                return self.refuse(now);
            }
            // SYN, SYN-ACK, then the first data: the caller's bytes arrive two latencies after its SYN, those of the
            // called side, who may only speak when the ACK is there, three.
            self.call = Call::Done;
            self.there.open(arrived + 2 * self.one_way);
            self.back.open(arrived + 3 * self.one_way);
        }
    }

    /// Nobody listens there: the caller hears of it one latency later.
    fn refuse(&mut self, now: Instant) {
        self.call = Call::Done;
        self.far.socket = None;
        self.there.discard();
        self.back.open(now);
        self.back.finish(now, End::Reset);
    }

    /// Both sides see a reset. Without a linger time of zero they would see an orderly close.
    fn reset(&self) {
        for socket in [&self.near.socket, &self.far.socket].into_iter().flatten() {
            // Closing still works if this does not; the peer then sees a FIN.
            let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
        }
    }
}

fn connect(source: Option<IpAddr>, target: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    if let Some(source) = source {
        socket.bind(&SockAddr::from(SocketAddr::new(source, 0)))?;
    }
    match socket.connect(&SockAddr::from(target)) {
        Err(error) if error.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {
            Err(error)
        }
        _ => Ok(socket.into()),
    }
}

/// Reads what `side` sent into its line.
fn receive(side: &Side, line: &mut Line, now: Instant, chunk: &mut [u8; CHUNK]) {
    let Some(mut socket) = side.socket.as_ref() else { return };
    if !side.readable() {
        return;
    }
    for _ in 0..READS_PER_TURN {
        let room = line.room().min(CHUNK);
        if room == 0 {
            return;
        }
        match socket.read(&mut chunk[..room]) {
            Ok(0) => line.finish(now, End::Closed),
            Ok(count) => {
                line.push(now, &chunk[..count]);
                if count < room {
                    return;
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => line.finish(now, End::Reset),
        }
    }
}

/// Writes what is due on `line` to `side`, whose own bytes travel on `opposite`. False when the connection is broken.
fn deliver(line: &mut Line, side: &mut Side, opposite: &mut Line, now: Instant) -> bool {
    if side.events.intersects(PollFlags::OUT | PollFlags::HUP | PollFlags::ERR) {
        side.blocked = false;
    }
    if side.blocked {
        return true;
    }
    let Some(mut socket) = side.socket.as_ref() else { return true };
    loop {
        let bytes = line.due_bytes(now);
        if bytes.is_empty() {
            break;
        }
        match socket.write(bytes) {
            Ok(count) => line.sent(count),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                side.blocked = true;
                break;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => {
                line.discard();
                opposite.finish(now, End::Reset);
            }
        }
    }
    match line.take_end(now) {
        None => true,
        Some(End::Closed) => {
            // An error here means the peer is gone: its own direction says so.
            let _ = socket.shutdown(std::net::Shutdown::Write);
            side.shut = true;
            true
        }
        Some(End::Reset) => false,
    }
}

//! The relay over real loopback sockets. Delays are asserted from below only: a busy machine may be late.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::{Cuts, Endpoint, MAX_CONNECTIONS, Relay};

/// How long a test waits for what must happen.
const DEADLINE: Duration = Duration::from_secs(30);
const ONE_WAY: Duration = Duration::from_millis(40);

/// Region 0 calls region 1 through the relay; the test plays both geodes.
struct World {
    relay: Relay,
    called: TcpListener,
    link: SocketAddr,
}

fn world(one_way: Duration) -> World {
    let listener = |host: u8| TcpListener::bind((Ipv4Addr::new(127, 0, 0, host), 0)).unwrap();
    let called = listener(12);
    let links = [listener(11), listener(12)];
    let link = links[1].local_addr().unwrap();
    let endpoints = links.map(|link| {
        link.set_nonblocking(true).unwrap();
        Endpoint {
            source: Some(link.local_addr().unwrap().ip()),
            link,
            link_listen: called.local_addr().unwrap(),
        }
    });
    let latencies = vec![vec![Duration::ZERO, one_way], vec![one_way, Duration::ZERO]];
    World { relay: Relay::start(endpoints.into(), latencies).unwrap(), called, link }
}

impl World {
    fn call(&self) -> TcpStream {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 11], 0)).into()).unwrap();
        socket.connect(&self.link.into()).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
    }

    fn answer(&self) -> TcpStream {
        let (stream, peer) = self.called.accept().unwrap();
        assert_eq!(peer.ip(), Ipv4Addr::new(127, 0, 0, 11), "the called geode sees who calls");
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
    }

    fn cut(&self, cut: bool) {
        let mut cuts = Cuts::default();
        if cut {
            cuts.cut(1, 0);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(self.relay.set_cuts(cuts));
    }
}

fn read(stream: &mut TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_call_and_every_byte_take_their_time() {
    let world = world(ONE_WAY);
    let start = Instant::now();
    let mut near = world.call();
    near.write_all(b"ping").unwrap();
    let mut far = world.answer();
    assert!(start.elapsed() >= ONE_WAY, "the SYN travels");
    assert_eq!(read(&mut far, 4), b"ping");
    assert!(start.elapsed() >= 3 * ONE_WAY, "SYN, SYN-ACK, data");
    let answered = Instant::now();
    far.write_all(b"pong").unwrap();
    assert_eq!(read(&mut near, 4), b"pong");
    assert!(answered.elapsed() >= ONE_WAY);
    assert!(start.elapsed() >= 4 * ONE_WAY, "the first answer is two round trips after the call");
}

#[test]
fn much_data_arrives_whole_and_in_order_despite_a_slow_reader() {
    let world = world(Duration::from_millis(5));
    let mut near = world.call();
    let mut far = world.answer();
    // More than the line and the kernel's buffers hold together.
    let total: u64 = 96 << 20;
    let writer = std::thread::spawn(move || {
        let mut block = vec![0; 1 << 20];
        for start in (0..total).step_by(1 << 20) {
            for (i, word) in block.chunks_exact_mut(8).enumerate() {
                word.copy_from_slice(&(start + 8 * i as u64).to_le_bytes());
            }
            near.write_all(&block).unwrap();
        }
    });
    let mut block = vec![0; 1 << 20];
    for start in (0..total).step_by(1 << 20) {
        far.read_exact(&mut block).unwrap();
        let first = u64::from_le_bytes(*block.first_chunk().unwrap());
        let last = u64::from_le_bytes(*block.last_chunk().unwrap());
        assert_eq!((first, last), (start, start + (1 << 20) - 8));
    }
    writer.join().unwrap();
    assert_eq!(far.read(&mut block).unwrap(), 0, "then the close");
}

#[test]
fn a_half_close_passes_and_the_other_direction_lives_on() {
    let world = world(Duration::from_millis(1));
    let mut near = world.call();
    let mut far = world.answer();
    near.write_all(b"question").unwrap();
    near.shutdown(std::net::Shutdown::Write).unwrap();
    let mut question = Vec::new();
    far.read_to_end(&mut question).unwrap();
    assert_eq!(question, b"question");
    far.write_all(b"answer").unwrap();
    drop(far);
    let mut answer = Vec::new();
    near.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"answer");
}

#[test]
fn a_cut_holds_bytes_and_calls_until_healed() {
    let world = world(ONE_WAY);
    let mut near = world.call();
    let mut far = world.answer();
    world.cut(true);
    near.write_all(b"held").unwrap();
    let mut second = world.call();
    second.write_all(b"new").unwrap();
    // Nothing can be waited for while nothing may come: look for longer than it would take.
    far.set_read_timeout(Some(4 * ONE_WAY)).unwrap();
    assert!(far.read(&mut [0; 8]).is_err(), "nothing passes");
    world.called.set_nonblocking(true).unwrap();
    assert!(world.called.accept().is_err(), "no call passes");
    world.called.set_nonblocking(false).unwrap();
    far.set_read_timeout(Some(DEADLINE)).unwrap();
    let healed = Instant::now();
    world.cut(false);
    assert_eq!(read(&mut far, 4), b"held");
    assert!(healed.elapsed() >= ONE_WAY);
    let mut second_far = world.answer();
    assert_eq!(read(&mut second_far, 3), b"new");
}

#[test]
fn calls_given_up_during_a_cut_leave_nothing_behind() {
    let world = world(Duration::from_millis(1));
    world.cut(true);
    for _ in 0..2 * MAX_CONNECTIONS {
        drop(world.call());
    }
    let mut last = world.call();
    last.write_all(b"last").unwrap();
    world.cut(false);
    // Some of the others may have come through after all, when the relay saw the heal before their end.
    loop {
        let mut word = [0; 4];
        if world.answer().read_exact(&mut word).is_ok() && word == *b"last" {
            break;
        }
    }
}

#[test]
fn a_refused_call_is_reset_after_a_round_trip() {
    let World { relay: _relay, called, link } = {
        let world = world(ONE_WAY);
        World { called: TcpListener::bind("127.0.0.1:0").unwrap(), ..world }
    };
    drop(called);
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 11], 0)).into()).unwrap();
    let start = Instant::now();
    socket.connect(&link.into()).unwrap();
    let mut near = TcpStream::from(socket);
    near.set_read_timeout(Some(DEADLINE)).unwrap();
    let error = near.read(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert!(start.elapsed() >= 2 * ONE_WAY);
}

#[test]
fn a_caller_that_is_no_region_is_carried_without_delay() {
    let world = world(Duration::from_secs(3600));
    let mut near = TcpStream::connect(world.link).unwrap();
    near.write_all(b"hello").unwrap();
    let (mut far, _) = world.called.accept().unwrap();
    far.set_read_timeout(Some(DEADLINE)).unwrap();
    assert_eq!(read(&mut far, 5), b"hello");
}

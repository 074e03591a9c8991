//! What happens when the process has no file descriptors left. Alone in its process, because the limit is the process's.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use geode_resp::{Limits, Server};
use geode_store::{Options, Store};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[allow(dead_code, reason = "made for the front-door tests")]
#[path = "front_door/engine.rs"]
mod engine;

use engine::{Controls, TestEngine};

/// Runs out after `spare` more files.
fn leave_only(spare: u64) -> Rlimit {
    let before = getrlimit(Resource::Nofile);
    let lowest_free = File::open("/dev/null").unwrap().as_raw_fd() as u64;
    setrlimit(Resource::Nofile, Rlimit { current: Some(lowest_free + spare), ..before }).unwrap();
    before
}

fn ping(client: &mut TcpStream) {
    client.write_all(b"PING\r\n").unwrap();
    let mut reply = [0; 7];
    client.read_exact(&mut reply).unwrap();
    assert_eq!(&reply, b"+PONG\r\n");
}

#[test]
fn without_file_descriptors_the_others_are_served_and_nothing_spins() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::new(vec![listener], Limits::default()).unwrap();
    let handle = server.handle();
    let controls = std::sync::Arc::<Controls>::default();
    let engine = TestEngine::new(std::sync::Arc::clone(&controls));
    // They wait in the backlog until the server runs.
    let mut clients: Vec<TcpStream> = (0..4).map(|_| TcpStream::connect(address).unwrap()).collect();
    for client in &clients {
        client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    }
    let before = leave_only(2);
    let thread = std::thread::spawn(move || server.run(&mut Store::new(engine, Options::default())));
    ping(&mut clients[0]);
    ping(&mut clients[1]);

    // A loop that sleeps through the refusal needs half a pause for a batch on average, or longer.
    let turns = || controls.turns.load(std::sync::atomic::Ordering::SeqCst);
    let (start, first) = (Instant::now(), turns());
    while turns() < first + 6 {
        assert!(start.elapsed() < Duration::from_secs(60), "the loop sleeps for ever");
        std::thread::yield_now();
    }
    assert!(start.elapsed() >= Duration::from_millis(250), "the loop spins");

    // A connection that ends makes room for one that waits.
    ping(&mut clients[0]);
    drop(clients.remove(0));
    ping(&mut clients[1]);
    setrlimit(Resource::Nofile, before).unwrap();
    ping(&mut clients[2]);
    handle.stop();
    thread.join().unwrap().unwrap();
}

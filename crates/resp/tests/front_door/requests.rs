//! Requests and replies.

use std::net::Shutdown;
use std::sync::atomic::Ordering::SeqCst;

use crate::harness::{Client, Running, bulk, command, wait_until};

#[test]
fn a_pipeline_is_answered_in_order_however_it_is_cut() {
    let running = Running::start();
    let payloads: Vec<Vec<u8>> = (0..3000_usize).map(|n| vec![b'a' + (n % 26) as u8; n * 7 % 500]).collect();
    let requests: Vec<u8> = payloads.iter().flat_map(|payload| command(&[b"ECHO", payload])).collect();
    let replies: Vec<u8> = payloads.iter().flat_map(|payload| bulk(payload)).collect();
    for size in [7, 1000, 65_536, requests.len()] {
        let mut client = running.connect();
        let mut reader = reader_of(&client);
        let expected = replies.clone();
        let reading = std::thread::spawn(move || reader.expect(expected));
        for piece in requests.chunks(size) {
            client.send(piece);
        }
        reading.join().unwrap();
    }
    wait_until("the counts", || running.metrics.commands.get() == 4 * 3000);
    wait_until("bytes in", || running.metrics.bytes_in.get() == 4 * requests.len() as u64);
    wait_until("bytes out", || running.metrics.bytes_out.get() == 4 * replies.len() as u64);
}

/// The same connection for another thread.
fn reader_of(client: &Client) -> Client {
    Client(client.0.try_clone().unwrap())
}

#[test]
fn half_a_frame_waits_for_the_other_half() {
    let running = Running::start();
    let mut client = running.connect();
    client.send("*2\r\n$4\r\nEC");
    let mut other = running.connect();
    other.ask("PING", "+PONG\r\n");
    client.send("HO\r\n$2\r\nhi\r\nPI");
    client.expect("$2\r\nhi\r\n");
    client.send("NG\r\n");
    client.expect("+PONG\r\n");
}

#[test]
fn large_arguments_pass_through() {
    let running = Running::start();
    let mut client = running.connect();
    let large: Vec<u8> = (0..5_000_000_u32).map(|n| n.to_le_bytes()[n as usize % 3]).collect();
    let mut request = command(&[b"ECHO", &large]);
    request.extend_from_slice(&command(&[b"ECHO", b"small"]));
    request.extend_from_slice(&command(&[b"ECHO", &large]));
    let mut reader = reader_of(&client);
    let reading = std::thread::spawn(move || {
        reader.expect(bulk(&large));
        reader.expect("$5\r\nsmall\r\n");
        reader.expect(bulk(&large));
    });
    client.send(&request);
    reading.join().unwrap();
}

#[test]
fn empty_requests_have_no_reply() {
    let running = Running::start();
    running.connect().ask("\r\n\n*0\r\n*-1\r\n   \r\nPING", "+PONG\r\n");
}

#[test]
fn a_malformed_request_is_answered_and_ends_the_connection() {
    let running = Running::start();
    let cases = [
        ("*x\r\n", "-ERR Protocol error: invalid multibulk length\r\n"),
        ("*1048577\r\n", "-ERR Protocol error: invalid multibulk length\r\n"),
        ("*1\r\n$-2\r\n", "-ERR Protocol error: invalid bulk length\r\n"),
        ("*1\r\n$67108865\r\n", "-ERR Protocol error: invalid bulk length\r\n"),
        ("*1\r\n:1\r\n", "-ERR Protocol error: expected '$', got ':'\r\n"),
        ("GET \"a\r\n", "-ERR Protocol error: unbalanced quotes in request\r\n"),
    ];
    for (request, reply) in cases {
        let mut client = running.connect();
        client.send(format!("PING\r\n{request}PING\r\n"));
        client.expect(format!("+PONG\r\n{reply}"));
        client.expect_closed();
    }
    for (start, reply) in [
        ("*", "-ERR Protocol error: too big mbulk count string\r\n"),
        ("*1\r\n$", "-ERR Protocol error: too big bulk count string\r\n"),
        ("SET k ", "-ERR Protocol error: too big inline request\r\n"),
    ] {
        let mut client = running.connect();
        client.send(format!("{start}{}", "1".repeat(65_537)));
        client.expect(reply);
        client.expect_closed();
    }
    wait_until("the count", || running.metrics.protocol_errors.get() == 9);
    running.connect().ask("PING", "+PONG\r\n");
}

#[test]
fn a_request_from_a_browser_is_not_executed() {
    let running = Running::start();
    for start in ["POST / HTTP/1.1\r\n", "GET /\r\nHost: localhost\r\n"] {
        let mut client = running.connect();
        client.send(format!("{start}\r\nSET key value\r\n"));
        assert!(!client.rest().contains("OK"));
    }
    assert_eq!(running.controls.writes.load(SeqCst), 0);
}

#[test]
fn what_was_sent_before_the_end_of_the_stream_is_answered() {
    let running = Running::start();
    let mut client = running.connect();
    client.send("PING\r\nSET a 1\r\nECHO half");
    client.0.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.rest(), r"+PONG\r\n+OK\r\n");
}

#[test]
fn a_client_that_leaves_mid_command_leaves_nothing_behind() {
    let running = Running::start();
    for request in ["*2\r\n$4\r\nECHO\r\n$100\r\nabc", "SET a", "", "*1\r\n$4\r\nPI"] {
        let mut client = running.connect();
        client.ask("PING", "+PONG\r\n");
        client.send(request);
    }
    let large = command(&[b"ECHO", &[b'x'; 1_000_000]]);
    running.connect().send(&large[..900_000]);
    wait_until("all to be gone", || {
        running.metrics.connections_accepted.get() == 5 && running.metrics.connections_open.get() == 0
    });
    wait_until("memory", || running.metrics.bytes_held.get() == 0);
    running.connect().ask("PING", "+PONG\r\n");
}

#[test]
fn shapes_follow_the_version_from_hello_on() {
    let running = Running::start();
    let mut client = running.connect();
    client.send("CONFIG GET nothing\r\nGET missing\r\nHELLO 3\r\nCONFIG GET nothing\r\nGET missing\r\nSMEMBERS missing\r\n");
    client.send("HGETALL missing\r\nLRANGE missing 0 -1\r\nHELLO 2\r\nHGETALL missing\r\nSMEMBERS missing\r\nQUIT\r\n");
    let hello = |kind, version| {
        format!(
            "{kind}$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$6\r\n7.0.15\r\n$5\r\nproto\r\n:{version}\r\n\
             $2\r\nid\r\n:1\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n$7\r\nmodules\r\n*0\r\n"
        )
    };
    client.expect("*0\r\n$-1\r\n");
    client.expect(hello("%7\r\n", 3));
    client.expect("%0\r\n_\r\n~0\r\n%0\r\n*0\r\n");
    client.expect(hello("*14\r\n", 2));
    client.expect("*0\r\n*0\r\n+OK\r\n");
    client.expect_closed();
}

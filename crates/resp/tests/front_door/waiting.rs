//! Replies that have to wait: for the disk, for other regions, for rows.

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use geode_resp::ServerError;
use socket2::SockRef;

use crate::harness::{Running, wait_until};

#[test]
fn a_reply_leaves_only_when_the_log_is_durable() {
    let running = Running::start();
    running.controls.durable.store(0, SeqCst);
    let mut writer = running.connect();
    let mut reader = running.connect();
    reader.ask("PING", "+PONG\r\n");
    writer.send("SET a 1\r\n");
    wait_until("the write", || running.controls.writes.load(SeqCst) == 1);
    // A read sees the write, so its reply has to wait as well.
    reader.send("GET a\r\nQUIT\r\n");
    wait_until("the read", || running.metrics.commands.get() == 4);
    running.pass_two_batches();
    writer.expect_nothing();
    reader.expect_nothing();

    writer.send("SET a 2\r\nECHO x\r\n");
    wait_until("the second write", || running.controls.writes.load(SeqCst) == 2);
    running.controls.durable.store(1, SeqCst);
    running.handle.wake();
    writer.expect("+OK\r\n");
    reader.expect("$-1\r\n+OK\r\n");
    reader.expect_closed();
    running.pass_two_batches();
    writer.expect_nothing();
    running.controls.durable.store(2, SeqCst);
    running.handle.wake();
    writer.expect("+OK\r\n$1\r\nx\r\n");
}

#[test]
fn nothing_is_answered_when_the_log_cannot_be_written() {
    let running = Running::start();
    let mut client = running.connect();
    let mut idle = running.connect();
    idle.ask("PING", "+PONG\r\n");
    client.ask("SET a 1", "+OK\r\n");
    running.controls.broken.store(true, SeqCst);
    client.0.set_nodelay(true).unwrap();
    // The loop may have ended already: then the connection is closed under the request.
    let _ = std::io::Write::write_all(&mut client.0, b"SET a 2\r\n");
    client.expect_closed();
    idle.expect_closed();
    assert!(matches!(running.join(), Err(ServerError::Log(_))));
}

#[test]
fn every_reply_of_a_batch_that_is_not_in_the_log_is_an_error_and_the_next_is_served() {
    let running = Running::start();
    running.controls.durable.store(1, SeqCst);
    let mut client = running.connect();
    client.ask("SET a 0", "+OK\r\n");
    client.send("SET a 1\r\n");
    wait_until("the write", || running.controls.writes.load(SeqCst) == 2);
    running.pass_two_batches();
    // The one before is in the log, and waits for the disk.
    running.controls.doubtful.store(true, SeqCst);
    client.send("SET a 2\r\nECHO x\r\nMULTI\r\nECHO y\r\nEXEC\r\n");
    wait_until("the second batch", || !running.controls.doubtful.load(SeqCst));
    running.controls.durable.store(u64::MAX, SeqCst);
    running.handle.wake();
    let error = "-DISK it may or may not happen\r\n";
    client.expect(format!("+OK\r\n{}", error.repeat(5)));
    client.ask("ECHO x", "$1\r\nx\r\n");
}

#[test]
fn whoever_waits_for_a_disk_that_fails_gets_an_error_and_the_next_is_served() {
    let running = Running::start();
    running.controls.durable.store(1, SeqCst);
    let (mut first, mut second) = (running.connect(), running.connect());
    first.ask("SET a 0", "+OK\r\n");
    first.send("SET a 1\r\nECHO x\r\n");
    wait_until("the write", || running.controls.writes.load(SeqCst) == 2);
    second.send("SET a 2\r\n");
    wait_until("the write", || running.controls.writes.load(SeqCst) == 3);
    running.pass_two_batches();
    running.controls.unproven.store(true, SeqCst);
    running.handle.wake();
    let error = "-DISK it may or may not happen\r\n";
    first.expect(error.repeat(2));
    second.expect(error);
    // The disk is as slow as before, and works.
    first.send("SET a 3\r\n");
    wait_until("the write", || running.controls.writes.load(SeqCst) == 4);
    running.controls.durable.store(u64::MAX, SeqCst);
    running.handle.wake();
    first.expect("+OK\r\n");
}

#[test]
fn a_waiting_command_holds_back_only_its_own_connection() {
    let running = Running::start();
    let mut client = running.connect();
    client.send("SET a 1\r\nWAIT 1 0\r\nPING\r\n");
    client.expect("+OK\r\n");
    running.connect().ask("PING", "+PONG\r\n");
    running.pass_two_batches();
    client.send("ECHO behind\r\n");
    client.expect_nothing();
    running.controls.acknowledged.store(1, SeqCst);
    running.handle.wake();
    client.expect(":1\r\n+PONG\r\n$6\r\nbehind\r\n");
}

#[test]
fn a_wait_for_a_token_holds_back_only_its_own_connection() {
    let running = Running::start();
    let (mut client, mut other) = (running.connect(), running.connect());
    client.send("GEODE.VECTOR\r\nGEODE.WAIT 1~here.1.1 0\r\nGEODE.VECTOR\r\n");
    client.expect("$1\r\n1\r\n");
    other.ask("PING", "+PONG\r\n");
    running.pass_two_batches();
    client.expect_nothing();
    other.ask("SET a 1", "+OK\r\n");
    client.expect(":1\r\n$10\r\n1~here.1.1\r\n");
    client.ask("GEODE.WAIT 1~here.1.9 20", ":0\r\n");
}

#[test]
fn a_wait_ends_at_its_deadline() {
    let running = Running::start();
    let mut client = running.connect();
    let start = Instant::now();
    client.ask("WAIT 1 150", ":0\r\n");
    assert!(start.elapsed() >= Duration::from_millis(149));
}

#[test]
fn rows_that_are_not_in_memory_are_fetched() {
    let running = Running::start();
    let mut client = running.connect();
    client.send("CLIENT REPLY SKIP\r\nGET cold:1\r\nGET cold:2\r\nPING\r\n");
    wait_until("the command", || running.metrics.commands.get() == 2);
    running.pass_two_batches();
    client.expect_nothing();
    running.controls.warm.store(true, SeqCst);
    running.handle.wake();
    client.expect("$-1\r\n+PONG\r\n");
}

#[test]
fn a_peer_that_fails_while_it_waits_is_forgotten() {
    let running = Running::start();
    let mut client = running.connect();
    client.ask("PING", "+PONG\r\n");
    client.send("WAIT 5 0\r\n");
    wait_until("the command", || running.metrics.commands.get() == 2);
    // Closing with a linger of zero resets the connection.
    SockRef::from(&client.0).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    wait_until("it to be gone", || running.metrics.connections_open.get() == 0);
}

#[test]
fn half_closed_peers_still_get_rows_that_are_fetched() {
    let running = Running::start();
    let mut client = running.connect();
    client.send("GET cold\r\nPING\r\n");
    client.0.shutdown(std::net::Shutdown::Write).unwrap();
    wait_until("the command", || running.metrics.commands.get() == 1);
    running.pass_two_batches();
    running.controls.warm.store(true, SeqCst);
    running.handle.wake();
    assert_eq!(client.rest(), r"$-1\r\n+PONG\r\n");
}

#[test]
fn stop_ends_the_loop_and_closes_everything() {
    let running = Running::start();
    let mut client = running.connect();
    client.ask("PING", "+PONG\r\n");
    running.handle.stop();
    client.expect_closed();
    running.join().unwrap();
}

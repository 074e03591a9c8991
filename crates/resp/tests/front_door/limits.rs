//! What one peer may take from the others.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use geode_resp::Limits;

use crate::harness::{Client, Running, bulk, command, wait_until};

#[test]
fn a_slow_reader_is_not_read_from_and_loses_nothing() {
    let pause = 256 * 1024;
    let running = Running::with_limits(Limits { output_pause_bytes: pause, ..Limits::default() });
    let payload = vec![b'x'; 50_000];
    let (count, reply) = (1000, bulk(&payload));
    let mut client = running.connect();
    let mut writer = client.0.try_clone().unwrap();
    let request = command(&[b"ECHO", &payload]);
    let writing = std::thread::spawn(move || (0..count).for_each(|_| writer.write_all(&request).unwrap()));
    wait_until("replies to pile up", || running.metrics.bytes_held.get() >= pause as u64);
    for _ in 0..100 {
        running.connect().ask("PING", "+PONG\r\n");
        // Twice, because vectors grow by doubling; and what was read but not executed.
        assert!(running.metrics.bytes_held.get() <= 2 * (pause + reply.len() + 64 * 1024) as u64);
    }
    for _ in 0..count {
        client.expect(&reply);
    }
    writing.join().unwrap();
}

#[test]
fn large_replies_to_small_commands_stop_at_the_soft_limit() {
    let pause = 16 * 1024;
    let running = Running::with_limits(Limits { output_pause_bytes: pause, ..Limits::default() });
    let mut client = running.connect();
    client.ask("HELLO 3 SETNAME shop", "%7\r\n");
    let reply = client.take_until(b"*0\r\n");
    // Nothing leaves before the write is on disk.
    running.controls.durable.store(0, SeqCst);
    client.send(["SET a 1\r\n".to_owned(), "HELLO\r\n".repeat(9000)].concat());
    wait_until("replies", || running.metrics.bytes_held.get() >= pause as u64);
    running.pass_two_batches();
    assert!(running.metrics.bytes_held.get() <= (2 * pause + 64 * 1024) as u64);
    // The loop sleeps meanwhile.
    let (start, first) = (Instant::now(), running.controls.turns.load(SeqCst));
    wait_until("turns", || running.controls.turns.load(SeqCst) >= first + 5);
    assert!(start.elapsed() >= Duration::from_millis(250), "the loop spins");

    running.controls.durable.store(u64::MAX, SeqCst);
    running.handle.wake();
    client.expect("+OK\r\n");
    client.expect([b"%7\r\n", reply.as_slice()].concat().repeat(9000));
}

#[test]
fn replies_beyond_the_hard_limit_end_the_connection() {
    let running = Running::with_limits(Limits { output_bytes: 1_000_000, ..Limits::default() });
    let mut client = running.connect();
    client.send(command(&[b"ECHO", &[b'x'; 1_000_001]]));
    client.expect_closed();
    let mut client = running.connect();
    client.send(command(&[b"ECHO", &[b'x'; 900_000]]));
    client.expect(bulk(&[b'x'; 900_000]));
    assert_eq!(running.metrics.connections_over_limit.get(), 1);
}

#[test]
fn a_command_beyond_the_input_limit_ends_the_connection() {
    let running = Running::with_limits(Limits { input_bytes: 300_000, ..Limits::default() });
    let mut client = running.connect();
    // Exactly the limit, which is as good as beyond: the command cannot be complete.
    client.send(&command(&[b"ECHO", &[b'x'; 400_000]])[..300_000]);
    client.expect_closed();
    wait_until("the count", || running.metrics.connections_over_limit.get() == 1);
    running.connect().ask("PING", "+PONG\r\n");
}

#[test]
fn the_largest_goes_when_all_together_hold_too_much() {
    let running = Running::with_limits(Limits { total_bytes: 3_000_000, ..Limits::default() });
    let mut small = running.connect();
    small.send(&command(&[b"ECHO", &[b's'; 20_000]])[..10_000]);
    let unfinished = command(&[b"ECHO", &[b'x'; 10_000_000]]);
    let _large: Vec<Client> = (0..3)
        .map(|_| {
            let mut client = running.connect();
            // The server may close before all is taken.
            let _ = client.0.write_all(&unfinished[..2_000_000]);
            client
        })
        .collect();
    wait_until("one to go", || running.metrics.connections_over_limit.get() >= 1);
    wait_until("memory", || running.metrics.bytes_held.get() <= 3_000_000);
    small.send(&command(&[b"ECHO", &[b's'; 20_000]])[10_000..]);
    small.expect(bulk(&[b's'; 20_000]));
}

#[test]
fn one_connection_too_many_is_told_so() {
    let running = Running::with_limits(Limits { connections: 2, ..Limits::default() });
    let mut first = running.connect();
    let mut second = running.connect();
    first.ask("PING", "+PONG\r\n");
    second.ask("PING", "+PONG\r\n");
    let mut third = running.connect();
    third.expect("-ERR max number of clients reached\r\n");
    third.expect_closed();
    wait_until("the count", || running.metrics.connections_refused.get() == 1);
    first.ask("QUIT", "+OK\r\n");
    first.expect_closed();
    wait_until("a free place", || running.metrics.connections_open.get() == 1);
    running.connect().ask("PING", "+PONG\r\n");
}

#[test]
fn thousands_of_idle_connections_hold_nothing() {
    let running = Running::start();
    let count = idle_connections();
    let mut clients: Vec<Client> = (0..count)
        .map(|n| {
            let mut client = running.connect();
            client.send(if n % 2 == 0 { "PING\r\n" } else { "PING\r\n*1\r\n$4\r\nPI" });
            client
        })
        .collect();
    for client in &mut clients {
        client.expect("+PONG\r\n");
    }
    wait_until("the counts", || running.metrics.connections_open.get() == count as u64);
    assert!(running.metrics.bytes_held.get() <= 64 * count as u64, "{}", running.metrics.bytes_held.get());
    for (n, client) in clients.iter_mut().enumerate() {
        client.send(if n % 2 == 0 { "PING\r\n" } else { "NG\r\n" });
        client.expect("+PONG\r\n");
    }
    wait_until("tails to be gone", || running.metrics.bytes_held.get() == 0);
}

/// 5 000, or fewer where the system allows fewer files: each connection takes two here, and other tests need some.
fn idle_connections() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let open_files = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let soft = open_files.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(1024_usize);
    (soft.saturating_sub(500) / 2).min(5000)
}

#[test]
fn a_long_pipeline_takes_several_batches() {
    let running = Running::start();
    let mut client = running.connect();
    client.send("PING\r\n".repeat(9000));
    client.expect("+PONG\r\n".repeat(9000));
    wait_until("the count", || running.metrics.commands.get() == 9000);
    // At most 1024 of what was left over and 1024 of what was read.
    assert!(running.metrics.batches.get() >= 5, "{}", running.metrics.batches.get());
}

#[test]
fn an_endless_pipeline_does_not_starve_others() {
    let running = Running::start();
    let over = Arc::new(AtomicBool::new(false));
    let mut threads = Vec::new();
    for _ in 0..3 {
        let mut writer = running.connect().0;
        let mut reader = writer.try_clone().unwrap();
        let is_over = Arc::clone(&over);
        threads.push(std::thread::spawn(move || {
            let requests = "PING\r\n".repeat(10_000);
            while !is_over.load(SeqCst) {
                writer.write_all(requests.as_bytes()).unwrap();
            }
            writer.shutdown(std::net::Shutdown::Write).unwrap();
        }));
        threads.push(std::thread::spawn(move || {
            std::io::copy(&mut reader, &mut std::io::sink()).unwrap();
        }));
    }
    wait_until("the pipelines", || running.metrics.commands.get() > 10_000);
    let mut client = running.connect();
    for _ in 0..200 {
        client.ask("PING", "+PONG\r\n");
    }
    over.store(true, SeqCst);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

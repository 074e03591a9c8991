//! Bodies of any size and age pass, and none is held.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::AsyncWriteExt;

use crate::raw::{Server, soon};
use crate::world::{alone, eventually, planet};

#[tokio::test]
async fn what_a_service_sends_bit_by_bit_arrives_bit_by_bit() {
    for regions in [1, 2] {
        let (send, sent) = tokio::sync::watch::channel(0);
        let service = Server::start(move |_, mut raw| {
            let mut sent = sent.clone();
            async move {
                raw.request().await;
                raw.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
                    .await;
                for turn in 1..=3 {
                    sent.wait_for(|sent| *sent >= turn).await.unwrap();
                    raw.send(format!("6\r\nevent{turn}\r\n")).await;
                }
                raw.send("0\r\n\r\n").await;
            }
        })
        .await;
        let all = [("us", &[][..]), ("eu", &[service.addr][..])];
        let geodes = planet(&all[2 - regions..], |_| {}).await;
        let mut client = geodes[0].raw().await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        // The head comes before the service has sent anything of the body.
        assert!(client.head().await.unwrap().contains("text/event-stream"));
        for turn in 1..=3 {
            send.send_replace(turn);
            assert_eq!(client.chunk().await.unwrap(), format!("event{turn}").as_bytes());
        }
        assert_eq!(client.chunk().await.unwrap(), b"");
    }
}

#[tokio::test]
async fn what_a_client_sends_bit_by_bit_arrives_bit_by_bit() {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let service = Server::start(move |_, mut raw| {
        let tell = tell.clone();
        async move {
            raw.head().await.unwrap();
            while let Some(chunk) = raw.chunk().await.filter(|chunk| !chunk.is_empty()) {
                tell.send(chunk).unwrap();
            }
            raw.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        }
    })
    .await;
    let geode = alone(&[service.addr]).await;
    let mut client = geode.raw().await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    for word in ["one", "two", "six"] {
        client.send(format!("3\r\n{word}\r\n")).await;
        assert_eq!(soon("a chunk", told.recv()).await.unwrap(), word.as_bytes());
    }
    assert_eq!(client.exchange("0\r\n\r\n").await.status, 200);
}

#[tokio::test]
async fn both_directions_flow_at_once() {
    let service = Server::start(|_, mut raw| async move {
        raw.head().await.unwrap();
        raw.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        while let Some(chunk) = raw.chunk().await.filter(|chunk| !chunk.is_empty()) {
            raw.send(format!("{:x}\r\n{}\r\n", chunk.len(), String::from_utf8(chunk).unwrap())).await;
        }
        raw.send("0\r\n\r\n").await;
    })
    .await;
    let geode = alone(&[service.addr]).await;
    let mut client = geode.raw().await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    client.head().await.unwrap();
    for turn in 0..100 {
        let word = format!("word{turn}");
        client.send(format!("{:x}\r\n{word}\r\n", word.len())).await;
        assert_eq!(client.chunk().await.unwrap(), word.as_bytes());
    }
    client.send("0\r\n\r\n").await;
    assert_eq!(client.chunk().await.unwrap(), b"");
}

/// More than all buffers on the way, the kernel's included, can hold.
const LARGE: usize = 256 * 1024 * 1024;

/// What may be in flight at most: the door's buffers, and what the kernel lends four sockets (`tcp_rmem` and `tcp_wmem`
/// allow some MiB each).
const IN_FLIGHT: usize = 64 * 1024 * 1024;

#[tokio::test]
async fn a_slow_reader_slows_the_service_and_fills_no_memory() {
    let written = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&written);
    let service = Server::start(move |_, mut raw| {
        let counter = Arc::clone(&counter);
        async move {
            raw.request().await;
            raw.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n")).await;
            let block = vec![b'x'; 256 * 1024];
            while counter.load(Ordering::SeqCst) < LARGE {
                raw.stream.write_all(&block).await.unwrap();
                counter.fetch_add(block.len(), Ordering::SeqCst);
            }
            raw.rest().await;
        }
    })
    .await;
    let geode = alone(&[service.addr]).await;
    let mut client = geode.raw().await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    client.head().await.unwrap();
    let (mut read, mut furthest_ahead) = (0, 0);
    while read < LARGE {
        let count = client.bytes(256 * 1024).await.len();
        assert_ne!(count, 0, "the answer broke off after {read} bytes");
        read += count;
        // The others get their turns, and as far ahead as they can.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        furthest_ahead = furthest_ahead.max(written.load(Ordering::SeqCst).saturating_sub(read));
    }
    assert!(furthest_ahead < IN_FLIGHT, "{furthest_ahead} bytes were held");
}

#[tokio::test]
async fn a_slow_service_slows_the_client_and_fills_no_memory() {
    let (release, released) = tokio::sync::watch::channel(false);
    let service = Server::start(move |_, mut raw| {
        let mut released = released.clone();
        async move {
            raw.head().await.unwrap();
            released.wait_for(|released| *released).await.unwrap();
            let received = raw.bytes(LARGE / 4).await.len();
            raw.send(format!("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{received:9}")).await;
        }
    })
    .await;
    let geode = alone(&[service.addr]).await;
    let mut client = geode.raw().await;
    let length = LARGE / 4;
    client.send(format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n")).await;
    eventually("the request to arrive", || geode.in_flight() == 1).await;
    // Sends until nothing more is taken: some turns of everybody else without a byte of progress.
    let block = vec![b'x'; 256 * 1024];
    let (mut sent, mut idle_turns) = (0, 0);
    while sent < length && idle_turns < 1000 {
        match client.stream.try_write(&block[..block.len().min(length - sent)]) {
            Ok(count) => {
                sent += count;
                idle_turns = 0;
            }
            Err(_) => {
                idle_turns += 1;
                tokio::task::yield_now().await;
            }
        }
    }
    let taken = usize::try_from(geode.door.metrics().connections.bytes_in.get()).unwrap();
    assert!(sent < length, "all {sent} bytes were taken though nobody reads them");
    assert!(taken < IN_FLIGHT, "{taken} bytes went through the door though nobody reads them");
    release.send_replace(true);
    client.send(vec![b'x'; length - sent]).await;
    assert_eq!(client.reply().await.text().trim(), length.to_string());
}

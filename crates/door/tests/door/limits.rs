//! What a client may take of a door: bytes, time, connections.

use std::time::Duration;

use tokio::io::AsyncReadExt;

use crate::raw::{Server, soon};
use crate::world::{Geode, alone, eventually, planet};

async fn limited(adjust: impl Fn(&mut geode_door::DoorSettings)) -> (Geode, Server) {
    let service = Server::echo().await;
    let geode = planet(&[("us", &[service.addr])], adjust).await.remove(0);
    (geode, service)
}

#[tokio::test]
async fn a_head_beyond_the_limit_is_answered_431() {
    let overhead = "GET / HTTP/1.1\r\nHost: a\r\nX: \r\n\r\n".len();
    for (head_bytes, status) in [(32 * 1024, 200), (32 * 1024 + 1, 431), (10_000_000, 431)] {
        let (geode, _service) = limited(|_| {}).await;
        let padding = "x".repeat(head_bytes - overhead);
        let mut client = geode.raw().await;
        // The door stops reading long before the end of the longest.
        let sent = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {padding}\r\n\r\n");
        let (mut reader, mut writer) = client.stream.split();
        let writing = async {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut writer, sent.as_bytes()).await;
        };
        let mut first = [0; 12];
        soon("an answer", async { tokio::join!(writing, reader.read_exact(&mut first)).1 }).await.unwrap();
        assert_eq!(&first[9..], status.to_string().as_bytes(), "{head_bytes}");
    }
    let (geode, _service) = limited(|_| {}).await;
    let fields = "X: 1\r\n".repeat(101);
    assert_eq!(geode.ask(format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")).await.status, 431);
}

#[tokio::test]
async fn a_head_that_takes_too_long_is_answered_408() {
    for beginning in ["G", "GET / HTTP/1.1\r\nHost: a\r\n", "\r\n"] {
        let (geode, _service) =
            limited(|settings| settings.connection.head_timeout = Duration::from_millis(30)).await;
        let mut client = geode.raw().await;
        let reply = client.exchange(beginning).await;
        assert_eq!(reply.status, 408, "{beginning:?}");
        assert_eq!(client.rest().await, b"");
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed_without_a_word() {
    let (geode, _service) =
        limited(|settings| settings.connection.idle_timeout = Duration::from_millis(30)).await;
    assert_eq!(geode.raw().await.rest().await, b"");
    let mut client = geode.raw().await;
    assert_eq!(client.exchange("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.status, 200);
    assert_eq!(client.rest().await, b"");
    eventually("the connections to end", || geode.door.metrics().connections.open.get() == 0).await;
}

#[tokio::test]
async fn a_client_that_waits_for_its_answer_is_not_idle() {
    let (release, released) = tokio::sync::watch::channel(false);
    let service = Server::start(move |_, mut raw| {
        let mut released = released.clone();
        async move {
            raw.request().await;
            released.wait_for(|released| *released).await.unwrap();
            raw.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
            raw.rest().await;
        }
    })
    .await;
    let geode = planet(&[("us", &[service.addr])], |settings| {
        settings.connection.idle_timeout = Duration::from_millis(10);
        settings.connection.head_timeout = Duration::from_millis(10);
        settings.connection.stall_timeout = Duration::from_millis(10);
    })
    .await
    .remove(0);
    let mut client = geode.raw().await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    eventually("the request to arrive", || geode.in_flight() == 1).await;
    // Another client's whole idle time passes meanwhile.
    assert_eq!(geode.raw().await.rest().await, b"");
    release.send_replace(true);
    assert_eq!(client.reply().await.status, 200);
}

#[tokio::test]
async fn a_client_that_stops_sending_its_body_is_cut_off() {
    let (geode, _service) =
        limited(|settings| settings.connection.stall_timeout = Duration::from_millis(30)).await;
    let mut client = geode.raw().await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf").await;
    client.rest().await;
    eventually("the lease to end", || geode.in_flight() == 0).await;
}

#[tokio::test]
async fn a_client_that_stops_reading_is_cut_off() {
    let service = Server::start(|_, mut raw| async move {
        raw.request().await;
        raw.send("HTTP/1.1 200 OK\r\n\r\n").await;
        let endless = vec![b'x'; 64 * 1024];
        while tokio::io::AsyncWriteExt::write_all(&mut raw.stream, &endless).await.is_ok() {}
    })
    .await;
    let geode = planet(&[("us", &[service.addr])], |settings| {
        settings.connection.stall_timeout = Duration::from_millis(100);
    })
    .await
    .remove(0);
    let mut client = geode.raw().await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    client.head().await.unwrap();
    eventually("the lease to end", || geode.in_flight() == 0).await;
    eventually("the connection to end", || geode.door.metrics().connections.open.get() == 0).await;
}

#[tokio::test]
async fn clients_beyond_the_limit_are_answered_503_until_others_leave() {
    let (geode, _service) = limited(|settings| settings.max_connections = 2).await;
    let request = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let (mut one, mut two) = (geode.raw().await, geode.raw().await);
    assert_eq!((one.exchange(request).await.status, two.exchange(request).await.status), (200, 200));
    assert_eq!(geode.raw().await.reply().await.status, 503);
    assert_eq!(geode.door.metrics().connections.turned_away.get(), 1);
    drop(one);
    eventually("a place", || geode.door.metrics().connections.open.get() == 1).await;
    assert_eq!(geode.ask(request).await.status, 200);
}

#[tokio::test]
async fn what_is_left_of_a_refused_upload_does_not_destroy_the_answer() {
    let geode = alone(&[]).await;
    let mut client = geode.raw().await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\n").await;
    client.send(vec![b'x'; 300_000]).await;
    assert_eq!(client.reply().await.status, 503);
}

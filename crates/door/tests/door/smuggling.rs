//! Bytes that two servers could read as different requests are not passed on at all.

use crate::raw::Server;
use crate::world::{Geode, alone};

/// Sends the bytes and then a request that must never be read as one, and tells the statuses of the answers and how
/// many requests reached the service.
async fn fate(bytes: &str) -> (Vec<u16>, usize) {
    let requests = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = std::sync::Arc::clone(&requests);
    let service = Server::start(move |_, mut raw| {
        let counter = std::sync::Arc::clone(&counter);
        async move {
            while raw.request().await.is_some() {
                counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                raw.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
            }
        }
    })
    .await;
    let geode = alone(&[service.addr]).await;
    let statuses = statuses(&geode, bytes).await;
    (statuses, requests.load(std::sync::atomic::Ordering::SeqCst))
}

async fn statuses(geode: &Geode, bytes: &str) -> Vec<u16> {
    let mut client = geode.raw().await;
    client.send(bytes).await;
    client.send("GET /smuggled HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    let all = String::from_utf8(client.rest().await).unwrap();
    all.lines()
        .filter_map(|line| line.strip_prefix("HTTP/1.1 "))
        .map(|rest| rest[..3].parse().unwrap())
        .collect()
}

#[tokio::test]
async fn a_head_that_can_be_read_in_two_ways_is_answered_400_and_the_connection_ends() {
    for head in [
        // Where does the body end?
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nlatte",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\nlatte",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nlatte",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\nlatte",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5 \x0b\r\n\r\nlatte",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        // Where does a line, a name or a value end?
        "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded\r\n\r\n",
        "GET / HTTP/1.1\r\n Host: a\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 5\r\n\r\nlatte",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX 1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n: 1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX@Y: 1\r\n\r\n",
        "GET / HTTP/1.1\nHost: a\n\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: 1\nTransfer-Encoding: chunked\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: 1\rY: 2\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\x01b\r\n\r\n",
        // Whose request is it?
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: user@a\r\n\r\n",
        // Is it HTTP/1.1 at all?
        "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / x HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /\r\n\r\n",
        "GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        "GET / http/1.1\r\nHost: a\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "\x16\x03\x01\x02\n",
        "GET * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    ] {
        assert_eq!(fate(head).await, (vec![400], 0), "{head:?}");
    }
}

#[tokio::test]
async fn a_malformed_chunk_ends_the_request_and_the_connection() {
    for body in [
        "x\r\nabc\r\n0\r\n\r\n",
        "-3\r\nabc\r\n0\r\n\r\n",
        "+3\r\nabc\r\n0\r\n\r\n",
        "0x3\r\nabc\r\n0\r\n\r\n",
        " 3\r\nabc\r\n0\r\n\r\n",
        "3 4\r\nabc\r\n0\r\n\r\n",
        "\r\nabc\r\n0\r\n\r\n",
        "3\nabc\r\n0\r\n\r\n",
        "3;a\nb\r\nabc\r\n0\r\n\r\n",
        "3;a\rb\r\nabc\r\n0\r\n\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "3\r\nabc\n0\r\n\r\n",
        "3\r\nabc\r0\r\n\r\n",
        "fffffffffffffffff\r\nabc",
        "3\r\nabc\r\n0\r\nTrailer\r\n\r\n",
        "3\r\nabc\r\n0\r\n folded: 1\r\n\r\n",
        "3\r\nabc\r\n0\r\nX: 1\n\r\n",
        "3\r\nabc\r\n0\r\n\n",
    ] {
        let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(fate(&format!("{head}{body}")).await, (vec![400], 0), "{body:?}");
    }
}

#[tokio::test]
async fn what_can_be_read_in_one_way_only_is_served() {
    for request in [
        "GET / HTTP/1.1\r\nhOST:a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n",
        "GET / HTTP/1.1\r\nHost:\r\n\r\n",
        "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nlatte",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \t005 \r\n\r\nlatte",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \tCHUNKED \r\n\r\n0A;x=\"y\"\r\n0123456789\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n000\r\nTrailer: 1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: caf\u{e9}\r\n\r\n",
    ] {
        // The second is the request behind it.
        assert_eq!(fate(request).await, (vec![200, 200], 2), "{request:?}");
    }
}

#[tokio::test]
async fn requests_before_the_bad_one_are_answered_first() {
    let good = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_eq!(fate(&format!("{good}{good}GET / HTTP/1.1\r\n\r\n")).await, (vec![200, 200, 400], 2));
}

#[tokio::test]
async fn the_answer_says_what_is_wrong() {
    let geode = alone(&[]).await;
    let mut client = geode.raw().await;
    let reply = client
        .exchange(
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        )
        .await;
    assert_eq!((reply.status, reply.field("geode-region")), (400, Some("us")));
    assert_eq!(
        reply.text(),
        "{\"error\":\"a request must not have both Content-Length and Transfer-Encoding\",\
         \"what_to_do\":\"correct the request\"}"
    );
    assert_eq!(client.rest().await, b"");
    assert_eq!(geode.door.metrics().refused.get(), 1);
}

#[tokio::test]
async fn connect_is_refused_and_the_stand_in_cannot_be_forged() {
    let service = Server::echo().await;
    let geode = alone(&[service.addr]).await;
    let reply = geode.ask("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n").await;
    assert_eq!((reply.status, service.connections()), (501, 0));
    let reply = geode.ask("REFUSED / HTTP/1.1\r\nHost: refused\r\nConnection: close\r\n\r\n").await;
    assert_eq!(reply.status, 200);
}

//! The ordinary way: one request, one instance, one answer.

use crate::raw::{Raw, Server, fields};
use crate::world::{alone, eventually, planet};

#[tokio::test]
async fn a_request_reaches_the_service_and_its_answer_the_client() {
    let service = Server::echo().await;
    let geode = alone(&[service.addr]).await;
    let reply =
        geode.ask("POST /menu?cup=2 HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 5\r\n\r\nlatte").await;
    assert_eq!(reply.status, 200);
    assert!(reply.text().starts_with("POST /menu?cup=2 HTTP/1.1\r\n"), "{}", reply.text());
    assert!(reply.text().ends_with("\r\n\r\nlatte"));
    assert_eq!(reply.field("geode-region"), Some("us"));
    assert_eq!(reply.field("geode-reason"), None);
    eventually("the lease to end", || geode.in_flight() == 0).await;
    assert_eq!(geode.door.metrics().answered_locally.get(), 1);
    eventually("the request to end", || geode.door.metrics().connections.in_flight.get() == 0).await;
}

#[tokio::test]
async fn connections_are_kept_on_both_sides() {
    let service = Server::echo().await;
    let geode = alone(&[service.addr]).await;
    let mut client = geode.raw().await;
    for turn in 0..20 {
        let reply = client.exchange(format!("GET /{turn} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        assert!(reply.text().starts_with(&format!("GET /{turn} ")));
    }
    assert_eq!(service.connections(), 1);
    assert_eq!(geode.door.metrics().connections.open.get(), 1);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let service = Server::echo().await;
    let geode = alone(&[service.addr]).await;
    let mut client = geode.raw().await;
    client
        .send(
            "GET /one HTTP/1.1\r\nHost: a\r\n\r\nPOST /two HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc\
             GET /three HTTP/1.1\r\nHost: a\r\n\r\n",
        )
        .await;
    for path in ["GET /one ", "POST /two ", "GET /three "] {
        assert!(client.reply().await.text().starts_with(path));
    }
}

#[tokio::test]
async fn answers_without_a_body_stay_so() {
    for (method, answer, status, length) in [
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 42\r\n\r\n", 200, Some("42")),
        ("HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 200, None),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n", 204, None),
        ("GET", "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n", 304, None),
        ("DELETE", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, Some("0")),
    ] {
        let service = Server::fixed(answer).await;
        let geode = alone(&[service.addr]).await;
        let mut client = geode.raw().await;
        // The second answer shows that the first left nothing behind.
        for _ in 0..2 {
            client.send(format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n")).await;
            let reply = client.reply_to(method).await;
            assert_eq!(
                (reply.status, reply.field("content-length")),
                (status, length),
                "{method} {answer:?}"
            );
        }
    }
}

#[tokio::test]
async fn an_answer_with_two_lengths_has_the_one_of_its_chunks() {
    let chunked =
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
    let service = Server::fixed(chunked).await;
    let geode = alone(&[service.addr]).await;
    let mut client = geode.raw().await;
    for _ in 0..2 {
        let reply = client.exchange("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!((reply.status, reply.text().as_str(), reply.field("content-length")), (200, "ok", None));
    }
}

#[tokio::test]
async fn chunks_and_trailers_pass_both_ways() {
    let service = Server::start(|_, mut raw| async move {
        let head = raw.head().await.unwrap();
        assert_eq!(fields(&head, "transfer-encoding"), ["chunked"]);
        assert_eq!(fields(&head, "te"), ["trailers"]);
        let mut all = String::new();
        while !all.ends_with("\r\n\r\n") {
            all += &raw.until("\r\n").await.unwrap();
        }
        assert!(all.to_lowercase().contains("checksum: 1234\r\n"), "{all:?}");
        raw.send(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: Checksum\r\n\r\n\
             3\r\nabc\r\n0\r\nChecksum: 5678\r\n\r\n",
        )
        .await;
    })
    .await;
    let geode = alone(&[service.addr]).await;
    let mut client = geode.raw().await;
    client
        .send(
            "PUT / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: TE\r\nTransfer-Encoding: chunked\r\n\
             Trailer: Checksum\r\n\r\n4;ext=1\r\nwxyz\r\n0\r\nChecksum: 1234\r\n\r\n",
        )
        .await;
    let head = client.head().await.unwrap();
    assert_eq!(fields(&head, "trailer"), ["Checksum"]);
    let body = client.until("0\r\n").await.unwrap() + &client.until("\r\n\r\n").await.unwrap();
    assert_eq!(body.to_lowercase(), "3\r\nabc\r\n0\r\nchecksum: 5678\r\n\r\n");
}

#[tokio::test]
async fn a_client_that_expects_100_gets_it_when_the_service_is_there() {
    let service = Server::echo().await;
    let geode = alone(&[service.addr]).await;
    let mut client = geode.raw().await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n").await;
    assert_eq!(client.head().await.unwrap(), "HTTP/1.1 100 Continue\r\n\r\n");
    let reply = client.exchange("ok").await;
    assert_eq!(reply.status, 200);
    assert!(reply.text().ends_with("ok"));
    assert!(!reply.text().to_lowercase().contains("expect:"));
}

#[tokio::test]
async fn a_service_may_answer_before_it_has_read_the_body() {
    let service = Server::start(|_, mut raw| async move {
        raw.head().await.unwrap();
        raw.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig").await;
        raw.rest().await;
    })
    .await;
    let geode = alone(&[service.addr]).await;
    let mut client = geode.raw().await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nthe first bytes").await;
    let reply = client.reply().await;
    assert_eq!((reply.status, reply.text().as_str()), (413, "big"));
}

#[tokio::test]
async fn clients_of_http_1_0_are_served() {
    let service = Server::fixed(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
    )
    .await;
    let geode = alone(&[service.addr]).await;
    let reply = geode.ask("GET / HTTP/1.0\r\n\r\n").await;
    assert_eq!((reply.status, reply.text().as_str()), (200, "abcde"));
    assert_eq!(reply.field("transfer-encoding"), None);
    let service = Server::echo().await;
    let geode = alone(&[service.addr]).await;
    let reply = geode.ask("GET / HTTP/1.0\r\n\r\n").await;
    assert_eq!(
        (fields(&reply.text(), "host"), fields(&reply.text(), "x-forwarded-host")),
        (vec!["us"], vec![])
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_at_once_each_get_their_own_answers() {
    // Every instance closes each of its connections after a few requests, without a word.
    let fickle = |_, mut raw: Raw| async move {
        for _ in 0..7 {
            let Some((head, body)) = raw.request().await else { return };
            let length = head.len() + body.len();
            raw.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{head}")).await;
            raw.send(body).await;
        }
    };
    let (one, two) = (Server::start(fickle).await, Server::start(fickle).await);
    let regions = [("us", &[][..]), ("eu", &[one.addr, two.addr][..])];
    let geodes = std::sync::Arc::new(planet(&regions, |_| {}).await);
    let clients: Vec<_> = (0..32)
        .map(|client| {
            let geodes = std::sync::Arc::clone(&geodes);
            tokio::spawn(async move {
                let mut raw = geodes[client % 2].raw().await;
                for turn in 0..40 {
                    let body = "x".repeat(turn * 100);
                    let method = ["GET", "POST", "PUT"][turn % 3];
                    let path = format!("{method} /{client}/{turn} HTTP/1.1\r\n");
                    let length = body.len();
                    let reply = raw
                        .exchange(format!("{path}Host: a\r\nContent-Length: {length}\r\n\r\n{body}"))
                        .await;
                    assert_eq!(reply.status, 200, "{path} {reply:?}");
                    assert!(
                        reply.text().starts_with(&path) && reply.text().ends_with(&format!("\r\n\r\n{body}"))
                    );
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    eventually("the leases to end", || geodes[1].in_flight() == 0).await;
}

#[tokio::test]
async fn services_of_http_1_0_are_understood() {
    let service = Server::start(|_, mut raw| async move {
        raw.request().await.unwrap();
        raw.send("HTTP/1.0 200 OK\r\n\r\nuntil the end").await;
    })
    .await;
    let geode = alone(&[service.addr]).await;
    let mut client = geode.raw().await;
    for _ in 0..2 {
        let reply = client.exchange("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!((reply.text().as_str(), reply.whole), ("until the end", true));
    }
}

#[tokio::test]
async fn a_target_with_a_host_becomes_a_path_and_a_host() {
    let service = Server::echo().await;
    let geode = alone(&[service.addr]).await;
    let reply =
        geode.ask("GET http://user@real.example:81/x?y HTTP/1.1\r\nHost: other.example\r\n\r\n").await;
    assert!(reply.text().starts_with("GET /x?y HTTP/1.1\r\n"));
    assert_eq!(fields(&reply.text(), "host"), ["real.example:81"]);
    assert_eq!(fields(&reply.text(), "x-forwarded-host"), ["real.example:81"]);
    let reply = geode.ask("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(reply.text().starts_with("OPTIONS * HTTP/1.1\r\n"));
}

#[tokio::test]
async fn a_client_that_goes_away_ends_its_request_at_the_service() {
    let (ended, mut end) = tokio::sync::mpsc::unbounded_channel();
    let service = Server::start(move |_, mut raw| {
        let ended = ended.clone();
        async move {
            raw.head().await.unwrap();
            raw.rest().await;
            ended.send(()).unwrap();
        }
    })
    .await;
    let geode = alone(&[service.addr]).await;
    let mut client = geode.raw().await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    eventually("the request to arrive", || geode.in_flight() == 1).await;
    drop(client);
    crate::raw::soon("the service to see the end", end.recv()).await.unwrap();
    eventually("the lease to end", || geode.in_flight() == 0).await;
}

#[tokio::test]
async fn a_websocket_passes() {
    let service = Server::start(|_, mut raw| async move {
        let head = raw.head().await.unwrap();
        assert_eq!(
            (fields(&head, "connection"), fields(&head, "upgrade")),
            (vec!["upgrade"], vec!["websocket"])
        );
        echo_websocket(raw).await;
    })
    .await;
    let geode = alone(&[service.addr]).await;
    let mut client = geode.raw().await;
    client
        .send("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n")
        .await;
    talk_through(&mut client, "us").await;
    assert_eq!(geode.in_flight(), 1, "a tunnel is a request in flight");
    drop(client);
    eventually("the tunnel to end", || geode.in_flight() == 0).await;
    eventually("the connection to end", || geode.door.metrics().connections.open.get() == 0).await;
}

pub(crate) async fn echo_websocket(mut raw: Raw) {
    raw.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello")
        .await;
    loop {
        let bytes = raw.bytes(4).await;
        if bytes.is_empty() {
            return;
        }
        raw.send(bytes).await;
    }
}

/// What a tunnel carries is no HTTP, and neither its bytes nor its order change.
pub(crate) async fn talk_through(client: &mut Raw, region: &str) {
    let head = client.head().await.unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert_eq!(fields(&head, "connection"), ["upgrade"]);
    assert_eq!(fields(&head, "upgrade"), ["websocket"]);
    assert_eq!(fields(&head, "geode-region"), [region]);
    assert_eq!(client.bytes(5).await, b"hello");
    for word in ["\0\r\n\r", "ping", "GET "] {
        client.send(word).await;
        assert_eq!(client.bytes(4).await, word.as_bytes());
    }
}

#[tokio::test]
async fn a_declined_upgrade_is_an_ordinary_answer() {
    let service = Server::echo().await;
    let geode = alone(&[service.addr]).await;
    let mut client = geode.raw().await;
    // The request behind it was sent before the decision.
    client
        .send(
            "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\
             GET /next HTTP/1.1\r\nHost: a\r\n\r\n",
        )
        .await;
    assert!(client.reply().await.text().starts_with("GET /ws "));
    assert!(client.reply().await.text().starts_with("GET /next "));
    let reply = client
        .exchange("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n\r\n")
        .await;
    assert_eq!(reply.status, 200);
    for gone in ["upgrade:", "http2-settings:", "connection:"] {
        assert!(!reply.text().to_lowercase().contains(gone), "{gone}");
    }
}

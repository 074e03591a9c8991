//! From one geode's door to another's.

use crate::forwarding::{echo_websocket, talk_through};
use crate::raw::{Nobody, Raw, Server, fields};
use crate::world::{eventually, planet};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

#[tokio::test]
async fn without_a_local_service_the_next_region_answers() {
    let service = Server::echo().await;
    let geodes = planet(&[("us", &[]), ("eu", &[service.addr]), ("ap", &[service.addr])], |_| {}).await;
    let [us, eu, ap] = &geodes[..] else { unreachable!() };
    let reply = us.ask("POST / HTTP/1.1\r\nHost: a\r\nGeode-Explain: 1\r\nContent-Length: 2\r\n\r\nhi").await;
    assert_eq!((reply.status, reply.field("geode-region")), (200, Some("eu")));
    assert_eq!(
        reply.field("geode-reason"),
        Some("eu: number 2 for 127.0.0.1; us has no instance that can serve")
    );
    // The service sees the client, not the hop, and nothing of what doors say to each other.
    let seen = reply.text();
    assert_eq!(fields(&seen, "x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(fields(&seen, "x-forwarded-host"), ["a"]);
    assert_eq!(fields(&seen, "via"), ["1.1 geode-us, 1.1 geode-eu"]);
    assert!(!seen.to_lowercase().contains("\r\ngeode-"), "{seen}");
    assert!(seen.ends_with("\r\n\r\nhi"));
    assert_eq!(us.door.metrics().answered_by_peer.get(), 1);
    assert_eq!((eu.door.metrics().from_peers.get(), ap.door.metrics().from_peers.get()), (1, 0));
}

#[tokio::test]
async fn a_request_makes_one_hop_at_most() {
    // Every geode believes that the next one serves, and none does.
    let geodes = planet(&[("us", &[]), ("eu", &[]), ("ap", &[])], |_| {}).await;
    let reply = geodes[0].ask(GET).await;
    assert_eq!((reply.status, reply.field("geode-region")), (503, Some("us")));
    assert!(!reply.head.to_lowercase().contains("geode-hop"), "{}", reply.head);
    let from_peers: Vec<u64> = geodes.iter().map(|geode| geode.door.metrics().from_peers.get()).collect();
    assert_eq!(from_peers, [0, 1, 1]);
}

#[tokio::test]
async fn a_region_without_service_is_passed_over_with_the_whole_body() {
    let service = Server::echo().await;
    let nobody = Nobody::anywhere();
    // The body is not repeatable by its method, but a door that refuses proves that no service saw it.
    let geodes = planet(&[("us", &[]), ("eu", &[nobody.addr]), ("ap", &[service.addr])], |_| {}).await;
    let reply = geodes[0].ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nlatte").await;
    assert_eq!((reply.status, reply.field("geode-region")), (200, Some("ap")));
    assert!(reply.text().ends_with("\r\n\r\nlatte"));
    assert_eq!(geodes[0].door.metrics().forward.retries.get(), 0);
}

#[tokio::test]
async fn hop_fields_mean_nothing_on_the_client_port() {
    let service = Server::echo().await;
    let geodes = planet(&[("us", &[]), ("eu", &[service.addr])], |_| {}).await;
    // Taken for a hop, this would end here with 503.
    let reply = geodes[0]
        .ask("GET / HTTP/1.1\r\nHost: a\r\nGeode-Hop-From: ap\r\nGeode-Hop-Session: x\r\nGeode-Hop-Refused: 1\r\n\r\n")
        .await;
    assert_eq!((reply.status, reply.field("geode-region")), (200, Some("eu")));
    let answer = "HTTP/1.1 200 OK\r\nGeode-Hop-Refused: 1\r\nGeode-Region: mars\r\nContent-Length: 0\r\n\r\n";
    let liar = Server::fixed(answer).await;
    let geodes = planet(&[("us", &[]), ("eu", &[liar.addr])], |_| {}).await;
    let reply = geodes[0].ask(GET).await;
    assert_eq!(
        (reply.status, reply.field("geode-region")),
        (200, Some("eu")),
        "a service cannot speak for a door"
    );
}

#[tokio::test]
async fn the_peer_port_serves_but_never_forwards() {
    let service = Server::echo().await;
    let geodes = planet(&[("us", &[]), ("eu", &[service.addr])], |_| {}).await;
    let mut peer = Raw::connect(geodes[0].peer_addr).await;
    let reply = peer.exchange(GET).await;
    assert_eq!((reply.status, reply.field("geode-hop-refused")), (503, Some("1")));
    assert_eq!(geodes[1].door.metrics().from_peers.get(), 0);
}

#[tokio::test]
async fn hops_keep_their_connections() {
    let service = Server::echo().await;
    let geodes = planet(&[("us", &[]), ("eu", &[service.addr])], |_| {}).await;
    let mut client = geodes[0].raw().await;
    for _ in 0..10 {
        assert_eq!(client.exchange(GET).await.status, 200);
        assert_eq!(
            client.exchange("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi").await.status,
            200
        );
    }
    assert_eq!(geodes[1].door.metrics().connections.open.get(), 1);
}

#[tokio::test]
async fn a_websocket_passes_through_a_hop() {
    let service = Server::start(|_, mut raw| async move {
        raw.head().await.unwrap();
        echo_websocket(raw).await;
    })
    .await;
    let geodes = planet(&[("us", &[]), ("eu", &[service.addr])], |_| {}).await;
    let mut client = geodes[0].raw().await;
    client.send("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await;
    talk_through(&mut client, "eu").await;
    drop(client);
    eventually("the tunnel to end", || geodes[1].in_flight() == 0).await;
}

#[tokio::test]
async fn a_peer_that_dies_while_it_answers_is_passed_over_if_that_is_safe() {
    let service = Server::echo().await;
    for (request, status) in [(GET, 200), ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi", 502)]
    {
        let dying = Server::start(|_, mut raw| async move {
            raw.request().await;
        })
        .await;
        let geodes = planet(&[("us", &[]), ("eu", &[]), ("ap", &[service.addr])], |_| {}).await;
        geodes[0].map.move_peer("eu", dying.addr);
        let reply = geodes[0].ask(request).await;
        assert_eq!(reply.status, status, "{request}");
    }
}

//! A peer that does what none should: it says nothing, reads nothing, asks for everything, claims much, connects often, or
//! speaks an older version. What it takes up stays bounded, and the other regions notice nothing.

#![allow(clippy::unwrap_used)] // a test that unwraps fails, which is what it is for

mod support;

use std::io::ErrorKind;

use geode_crdt::{ActorId, HybridTime};
use geode_embedded::{Channel, Connection, Vector};
use geode_replica::wire::{self, Decoder, Encoder, Kind, Message, Versions};
use support::{DEADLINE, Network, Node, PLANET, assert_equal, meet};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::JoinSet;

/// The peer that the test plays. Its name comes first, so it is the one that dials.
const AP: &str = "ap-southeast-2";
const EU: &str = "eu-west-1";
const US: &str = "us-east-1";

/// What no test here may make the process grow by: several times all bounds of one peer, a fraction of what is sent.
const GROWTH: u64 = 96 << 20;

struct Planet {
    _network: std::sync::Arc<Network>,
    eu: Node,
    us: Node,
    _data: TempDir,
}

async fn planet() -> Planet {
    let (network, data) = (Network::new(), tempfile::tempdir().unwrap());
    let eu = Node::start(&network, &data.path().join("eu"), EU, &[AP, US]);
    let us = Node::start(&network, &data.path().join("us"), US, &[AP, EU]);
    meet(&[&eu, &us]).await;
    Planet { _network: network, eu, us, _data: data }
}

/// The test's end of a link.
struct Peer {
    stream: DuplexStream,
    encoder: Encoder,
    decoder: Decoder,
}

impl Peer {
    fn connect(to: &Node) -> Self {
        let (stream, theirs) = tokio::io::duplex(64 << 10);
        to.handle.accept(AP, Channel::Live, Connection::new(theirs));
        Self { stream, encoder: Encoder::default(), decoder: Decoder::default() }
    }

    async fn say(&mut self, message: &Message) -> std::io::Result<()> {
        let mut bytes = Vec::new();
        self.encoder.encode(message, &mut bytes);
        self.stream.write_all(&bytes).await
    }

    async fn hello(&mut self, versions: Versions, held: Vector) {
        self.greet(versions, held).await.unwrap();
    }

    async fn greet(&mut self, versions: Versions, held: Vector) -> std::io::Result<()> {
        let (planet, actor) = (PLANET.to_owned(), ActorId::new(AP, 1));
        self.say(&Message::Hello { versions, planet, actor, held, witnesses: Vec::new() }).await
    }

    /// The kind of the next message, and itself unless it carries frames.
    async fn hear(&mut self) -> std::io::Result<(Kind, Option<Message>)> {
        let mut head = [0; wire::HEAD];
        self.stream.read_exact(&mut head).await?;
        let (kind, length) = wire::read_head(head).unwrap();
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await?;
        let carries = matches!(kind, Kind::Frame | Kind::Packed);
        Ok((kind, (!carries).then(|| self.decoder.decode(kind, &body).unwrap())))
    }

    /// Reads until the other side ends the link.
    async fn hear_the_end(mut self) {
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(DEADLINE, self.stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "the link is still there");
    }
}

fn heartbeat(held: Vector) -> Message {
    let (actor, now) = (ActorId::new(AP, 1), support::wall());
    Message::Heartbeat { actor, sequence: 0, time: HybridTime(1), wall: now, ahead_us: 0, held }
}

/// Bytes of memory that this process has in use.
fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

async fn assert_replicating(planet: &Planet) {
    planet.eu.run("INCR alive");
    planet.us.run("INCR alive");
    for (node, other) in [(&planet.eu, &planet.us), (&planet.us, &planet.eu)] {
        node.reaches(&other.vector()).await;
    }
    assert_equal(&[&planet.eu, &planet.us]).await;
}

/// One test, because all look at the memory of one process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_peer_does_it_takes_up_little() {
    let planet = planet().await;
    let value = "v".repeat(10_000);
    for number in 0..2_000 {
        planet.eu.run(&format!("SET key:{number} {number}{value}"));
    }
    assert_replicating(&planet).await;
    reads_nothing_and_asks_for_everything(&planet).await;
    claims_long_messages(&planet).await;
    names_writers_without_end(&planet).await;
    claims_to_hold_what_nobody_wrote(&planet).await;
    connects_again_and_again(&planet).await;
}

async fn reads_nothing_and_asks_for_everything(planet: &Planet) {
    let before = resident();
    let mut peer = Peer::connect(&planet.eu);
    peer.hello(wire::VERSIONS, Vector::default()).await;
    let own = planet.eu.vector().0.into_keys().find(|actor| &*actor.region == EU).unwrap();
    // Each of these asks for 20 MB. All are taken: what is not served is dropped, nothing piles up.
    for _ in 0..20_000 {
        peer.say(&Message::Request { actor: own.clone(), from: 1, to: u64::MAX }).await.unwrap();
    }
    peer.say(&heartbeat(Vector::default())).await.unwrap();
    assert_replicating(planet).await;
    let grown = resident().saturating_sub(before);
    assert!(grown < GROWTH, "{grown} bytes more");
    drop(peer);
}

async fn claims_long_messages(planet: &Planet) {
    let before = resident();
    let mut peers = Vec::new();
    // A frame of 1 GiB, a hello of 4 MiB, a packed message of 1 MiB; and then nothing.
    for head in [[2, 0, 0, 0, 0x40], [1, 0, 0, 0x40, 0], [7, 0, 0, 0x10, 0]] {
        let mut peer = Peer::connect(&planet.eu);
        peer.stream.write_all(&head).await.unwrap();
        peers.push(peer);
    }
    for peer in peers {
        peer.hear_the_end().await;
    }
    // Beyond what may be: the link ends at once.
    for head in [[2, 0xff, 0xff, 0xff, 0xff], [3, 0, 0, 0, 1], [7, 0, 0, 0x11, 0], [99, 1, 0, 0, 0]] {
        let mut peer = Peer::connect(&planet.eu);
        peer.stream.write_all(&head).await.unwrap();
        peer.hear_the_end().await;
    }
    assert_replicating(planet).await;
    let grown = resident().saturating_sub(before);
    assert!(grown < GROWTH, "{grown} bytes more");
}

async fn names_writers_without_end(planet: &Planet) {
    let before = resident();
    let mut peer = Peer::connect(&planet.us);
    peer.hello(wire::VERSIONS, Vector::default()).await;
    let long_name = "r".repeat(200);
    let mut incarnation = 0;
    let ended = loop {
        let names = (0..1_000).map(|number| (ActorId::new(&long_name, incarnation + number), 1));
        let news = heartbeat(Vector(names.collect()));
        incarnation += 1_000;
        if let Err(error) = peer.say(&news).await {
            break error.kind();
        }
        assert!(incarnation < 10_000_000, "nobody stops it");
    };
    assert_eq!(ended, ErrorKind::BrokenPipe);
    assert_replicating(planet).await;
    let grown = resident().saturating_sub(before);
    assert!(grown < GROWTH, "{grown} bytes more");
}

async fn claims_to_hold_what_nobody_wrote(planet: &Planet) {
    let before = resident();
    let mut peer = Peer::connect(&planet.eu);
    let held = (0..2_000).map(|number| (ActorId::new(AP, number), u64::MAX));
    peer.hello(wire::VERSIONS, Vector(held.collect())).await;
    // It is asked for all that, and answers nothing.
    loop {
        let (_, message) = peer.hear().await.unwrap();
        peer.say(&heartbeat(Vector::default())).await.unwrap();
        if let Some(Message::Request { actor, from, to }) = message {
            assert_eq!((&*actor.region, from), (AP, 1));
            assert!(to <= 100_000, "it is asked for a part at a time");
            break;
        }
    }
    assert_replicating(planet).await;
    let grown = resident().saturating_sub(before);
    assert!(grown < GROWTH, "{grown} bytes more");
}

async fn connects_again_and_again(planet: &Planet) {
    let before = resident();
    let mut ends = JoinSet::new();
    for _ in 0..500 {
        let mut peer = Peer::connect(&planet.eu);
        // Another may have taken its place already.
        let _ = peer.greet(wire::VERSIONS, Vector::default()).await;
        let (mut bulk, theirs) = tokio::io::duplex(64 << 10);
        planet.eu.handle.accept(AP, Channel::Bulk, Connection::new(theirs));
        ends.spawn(async move { drop(peer.stream.read_to_end(&mut Vec::new()).await) });
        ends.spawn(async move { drop(bulk.read_to_end(&mut Vec::new()).await) });
    }
    // Only the latest of each stays, which here may be any.
    while ends.len() > 2 {
        let ended = tokio::time::timeout(DEADLINE, ends.join_next()).await;
        assert!(ended.is_ok(), "{} connections are still there", ends.len());
    }
    assert_replicating(planet).await;
    let grown = resident().saturating_sub(before);
    assert!(grown < GROWTH, "{grown} bytes more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_neighbour_that_knows_of_it_is_sent_packed_messages() {
    let planet = planet().await;
    for (newest, expected) in [(wire::PACKED_SINCE - 1, Kind::Frame), (wire::PACKED_SINCE, Kind::Packed)] {
        let mut peer = Peer::connect(&planet.eu);
        peer.hello(Versions { oldest: 1, newest }, Vector::default()).await;
        // Five hundred entries of one batch, long enough to be packed for whoever understands it.
        let many: Vec<String> =
            (0..500).map(|number| format!("key:{number} some value that repeats")).collect();
        let key =
            format!("MSET {}", many.join(" ").replace("some value that repeats", "some-value-that-repeats"));
        planet.eu.run(&key);
        let kind = loop {
            let (kind, _) = peer.hear().await.unwrap();
            if matches!(kind, Kind::Frame | Kind::Packed) {
                break kind;
            }
        };
        assert_eq!(kind, expected);
    }
    assert_replicating(&planet).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_frames_come_in_bulk_and_only_whole_ones() {
    let planet = planet().await;
    let mut message = Vec::new();
    Encoder::default().encode(&heartbeat(Vector::default()), &mut message);
    // A heartbeat; a packed message that is no Zstandard; one that claims more than there may be.
    let garbage =
        [message, [&[7, 8, 0, 0, 0][..], &[9; 8]].concat(), [&[7, 5, 0, 0, 0][..], &[0xff; 5]].concat()];
    for bytes in garbage {
        let (mut bulk, theirs) = tokio::io::duplex(64 << 10);
        planet.eu.handle.accept(AP, Channel::Bulk, Connection::new(theirs));
        bulk.write_all(&bytes).await.unwrap();
        let ended = tokio::time::timeout(DEADLINE, bulk.read_to_end(&mut Vec::new())).await;
        assert!(ended.is_ok(), "the bulk connection is still there");
    }
    assert_replicating(&planet).await;
}

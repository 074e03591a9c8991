//! Regions that are far behind: fed beside the live link, and without it where there is no bulk connection.

#![allow(clippy::unwrap_used)] // a test that unwraps fails, which is what it is for

mod support;

use std::sync::Arc;

use support::{Bulk, Network, Node, assert_equal, eventually, meet};
use tempfile::TempDir;

const AP: &str = "ap-southeast-2";
const EU: &str = "eu-west-1";
const US: &str = "us-east-1";

/// A megabyte is far behind; this is several.
const KEYS: u64 = 4_000;

/// A value of 1 KiB in which nothing repeats that is longer than chance has it.
fn value(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..128).flat_map(|_| next()).collect()
}

fn write(node: &Node, prefix: &str, keys: std::ops::Range<u64>) {
    for key in keys {
        let name = format!("{prefix}:{key}").into_bytes();
        assert_eq!(node.run_words(vec![b"SET".to_vec(), name, value(key)]), "OK");
    }
}

struct Pair {
    network: Arc<Network>,
    eu: Node,
    us: Node,
    _data: TempDir,
}

/// Two regions of which the first wrote much while they could not reach each other.
async fn far_behind() -> Pair {
    let (network, data) = (Network::new(), tempfile::tempdir().unwrap());
    let eu = Node::start(&network, &data.path().join("eu"), EU, &[US]);
    let us = Node::start(&network, &data.path().join("us"), US, &[EU]);
    meet(&[&eu, &us]).await;
    eu.run("SET before 1");
    us.reaches(&eu.vector()).await;
    network.cut(EU, US);
    eventually("the cut is seen", async || !us.stats().await.peers[0].connected).await;
    write(&eu, "eu", 0..KEYS);
    Pair { network, eu, us, _data: data }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_far_behind_comes_beside_the_live_link_and_then_the_live_link_goes_on() {
    let Pair { network, eu, us, _data } = far_behind().await;
    write(&us, "us", 0..KEYS);
    let (live_before, bulk_before) = network.carried();
    network.heal(EU, US);
    assert_equal(&[&eu, &us]).await;
    let (live, bulk) = network.carried();
    assert!(bulk - bulk_before > KEYS << 10, "{} bytes in bulk", bulk - bulk_before);
    assert!(live - live_before < KEYS << 9, "{} bytes on the live link", live - live_before);
    // The stream has gone back: what is written now comes live, as soon as what was under way is over.
    let mut key = KEYS;
    eventually("the live link carries the stream", async || {
        let (live, bulk) = network.carried();
        write(&eu, "eu", key..key + 20);
        key += 20;
        us.reaches(&eu.vector()).await;
        let (live_after, bulk_after) = network.carried();
        bulk_after == bulk && live_after - live > 20 << 10
    })
    .await;
    assert_equal(&[&eu, &us]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bulk_connection_that_breaks_again_and_again_goes_on_where_the_peer_stands() {
    let Pair { network, eu, us, _data } = far_behind().await;
    network.set_bulk(Bulk::BreaksAfter(700 << 10));
    let (_, before) = network.carried();
    network.heal(EU, US);
    assert_equal(&[&eu, &us]).await;
    let (_, bulk) = network.carried();
    assert!(bulk - before > 2 * (700 << 10), "it broke more than once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_neighbour_that_takes_no_bulk_connection_is_fed_over_the_live_link() {
    let Pair { network, eu, us, _data } = far_behind().await;
    network.set_bulk(Bulk::Refused);
    network.heal(EU, US);
    assert_equal(&[&eu, &us]).await;
    assert!(network.carried().0 > KEYS << 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_region_wrote_is_supplied_in_bulk() {
    let (network, data) = (Network::new(), tempfile::tempdir().unwrap());
    let start =
        |region: &str, peers: &[&str]| Node::start(&network, &data.path().join(region), region, peers);
    network.cut(AP, US);
    let (ap, eu, us) = (start(AP, &[EU, US]), start(EU, &[AP, US]), start(US, &[AP, EU]));
    // Many entries make a range long, not many bytes.
    for number in 0..10_000 {
        ap.run(&format!("RPUSH list {number}"));
    }
    let written = ap.vector();
    eu.reaches(&written).await;
    ap.vanish(&network, AP);
    us.reaches(&written).await;
    assert_equal(&[&eu, &us]).await;
    assert_eq!(us.run("LLEN list"), "10000");
    assert!(network.carried().1 > 100_000, "{:?}", network.carried());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_are_counted_by_peer_and_text_is_sent_compressed() {
    let (network, data) = (Network::new(), tempfile::tempdir().unwrap());
    let eu = Node::start(&network, &data.path().join("eu"), EU, &[US]);
    let us = Node::start(&network, &data.path().join("us"), US, &[EU]);
    meet(&[&eu, &us]).await;
    network.cut(EU, US);
    for number in 0..20_000 {
        eu.run(&format!("SET key:{number} {number:0100}"));
    }
    network.heal(EU, US);
    assert_equal(&[&eu, &us]).await;
    let (sent, received) = (eu.stats().await.peers[0].traffic, us.stats().await.peers[0].traffic);
    assert!(sent.sent_plain > 20_000 * 120, "{sent:?}");
    assert!(sent.sent < sent.sent_plain / 4, "{sent:?}");
    assert!(received.received <= sent.sent && received.received > sent.sent / 2, "{sent:?} {received:?}");
}

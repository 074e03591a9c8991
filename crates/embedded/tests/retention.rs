//! Retention: the log's bytes are bounded, and what it no longer holds is never taken for what never was.

#![allow(clippy::unwrap_used)] // a test that unwraps fails, which is what it is for

mod support;

use std::fs;
use std::path::Path;
use std::time::Instant;

use geode_embedded::Config;
use geode_store::Engine;
use support::{DEADLINE, Local, Network, Node, PLANET, assert_equal, eventually};

const RETENTION: u64 = 20_000;
const SEGMENT: u64 = 4_000;

fn config(data: &Path, region: &str, peers: &[&str]) -> Config {
    Config {
        retention: RETENTION,
        segment_bytes: SEGMENT,
        // Only retention asks for checkpoints.
        checkpoint_bytes: 1 << 40,
        ..Config::new(data, PLANET, region, peers)
    }
}

fn log_files(data: &Path) -> u64 {
    let files = fs::read_dir(data.join("log")).unwrap();
    files.map(|entry| entry.unwrap().metadata().map_or(0, |metadata| metadata.len())).sum()
}

#[test]
fn the_log_is_cut_behind_a_checkpoint_and_a_start_needs_no_more() {
    let data = tempfile::tempdir().unwrap();
    let open = || Local::open(config(data.path(), "eu-west-1", &[])).unwrap();
    let mut region = open();
    for number in 0..3_000 {
        region.run(&format!("SET key:{} {number:040}", number % 100));
        region.run("INCR count");
        region.store.engine.turn();
    }
    // Checkpoint and files are another thread's work; what it may take is bounded by what was written meanwhile.
    let until = Instant::now() + DEADLINE;
    while log_files(data.path()) > RETENTION + SEGMENT {
        assert!(Instant::now() < until, "{} bytes of log are left", log_files(data.path()));
        region.store.engine.turn();
    }
    let digest = region.store.engine.view().digest().clone();
    let vector = region.handle.vector();
    drop(region);
    // Not even the name of the first segment is left.
    assert!(!data.path().join("log/00000000000000000000.log").exists());
    for _ in 0..2 {
        let mut region = open();
        assert_eq!((region.store.engine.view().digest(), region.handle.vector()), (&digest, vector.clone()));
        assert_eq!(region.run("GET key:7"), format!("\"{:040}\"", 2_907));
        assert_eq!(region.run("GET count"), "\"3000\"");
        assert_eq!(region.incarnations().len(), 1, "it is the same writer");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_was_away_too_long_gets_all_rows_and_nobody_takes_a_new_incarnation() {
    let (ap_data, eu_data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let network = Network::new();
    let start =
        |data: &Path, region: &str, peer: &str| Node::start_with(&network, config(data, region, &[peer]));
    let ap = start(ap_data.path(), "ap", "eu");
    let eu = start(eu_data.path(), "eu", "ap");
    ap.run("SET before 1");
    // What ap wrote first, eu fetches before it writes.
    eventually("eu has come", async || eu.run("SET of-eu 1") == "OK").await;
    assert_equal(&[&ap, &eu]).await;
    network.cut("ap", "eu");
    // What is on its way still arrives.
    eventually("the link is down", async || !eu.stats().await.peers[0].connected).await;
    let actor = ap.stats().await.actor;
    for number in 0..2_000 {
        ap.run(&format!("SET key:{} {number:040}", number % 100));
    }
    eventually("the log is cut", async || ap.stats().await.log_bytes <= RETENTION + SEGMENT).await;
    network.heal("ap", "eu");
    // Its own log of that time is all that ap lacks; eu gets all rows.
    assert_equal(&[&ap, &eu]).await;
    assert_eq!(
        (eu.run("GET key:7"), eu.run("GET of-eu")),
        (format!("\"{:040}\"", 1_907), "\"1\"".to_owned())
    );
    assert_eq!(ap.stats().await.actor, actor, "eu's witness of an entry that was removed proves nothing");
    eventually("ap says no longer that eu is out of reach", async || {
        ap.stats().await.out_of_reach.is_empty()
    })
    .await;
    eu.run("SET late 1");
    ap.reaches(&eu.vector()).await;
    assert_eq!(ap.run("GET late"), "\"1\"");
    // And after a start of ap, which knows of its old entries only what the checkpoint says.
    ap.stop();
    let ap = start(ap_data.path(), "ap", "eu");
    assert_equal(&[&ap, &eu]).await;
    assert_eq!(ap.stats().await.actor, actor);
    ap.stop();
    eu.stop();
}

//! Regions that need what no log holds any more: past retention, or new.

#![allow(clippy::unwrap_used)] // a test that unwraps fails, which is what it is for

mod support;

use std::path::Path;
use std::sync::Arc;

use geode_embedded::Config;
use support::{Bulk, Network, Node, PLANET, assert_equal, eventually};
use tempfile::TempDir;

const AP: &str = "ap";
const EU: &str = "eu";
const US: &str = "us";
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

struct Planet {
    network: Arc<Network>,
    data: TempDir,
}

impl Planet {
    fn new() -> Self {
        Self { network: Network::new(), data: tempfile::tempdir().unwrap() }
    }

    fn start(&self, region: &str, peers: &[&str]) -> Node {
        Node::start_with(&self.network, config(&self.data.path().join(region), region, peers))
    }

    /// Two regions that are in touch and take writes.
    async fn pair(&self) -> (Node, Node) {
        let (ap, eu) = (self.start(AP, &[EU]), self.start(EU, &[AP]));
        for node in [&ap, &eu] {
            eventually("they are in touch", async || node.stats().await.peers[0].connected).await;
            eventually("it takes writes", async || node.run("SET begun 1") == "OK").await;
        }
        assert_equal(&[&ap, &eu]).await;
        (ap, eu)
    }

    fn has_snapshot(&self, region: &str) -> bool {
        let files = std::fs::read_dir(self.data.path().join(region).join("snapshot"));
        files.is_ok_and(|mut files| files.next().is_some())
    }
}

/// Writes more than any log keeps.
async fn write_much(node: &Node, round: usize) {
    for number in 0..1_200 {
        node.run(&format!("SET key:{} {round}:{number:040}", number % 100));
        node.run("INCR count");
        node.run(&format!("RPUSH list {number}"));
        node.run(&format!("HSET hash field:{} {round}:{number}", number % 50));
        if number % 7 == 0 {
            node.run("DEL list");
            node.run(&format!("HDEL hash field:{}", (number + 3) % 50));
            node.run("DEL count");
        }
    }
    eventually("the log is cut", async || node.stats().await.log_bytes <= RETENTION + SEGMENT).await;
}

/// The same, with values that hardly compress.
async fn write_incompressible(node: &Node, keys: u64) {
    for key in 0..keys {
        let value: String = (0u64..16)
            .map(|word| format!("{:016x}", (key * 16 + word + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
            .collect();
        node.run(&format!("SET key:{key} {value}"));
    }
    eventually("the log is cut", async || node.stats().await.log_bytes <= RETENTION + SEGMENT).await;
}

fn shown(node: &Node) -> Vec<String> {
    ["DBSIZE", "GET count", "LRANGE list 0 -1", "HLEN hash", "GET key:7"]
        .map(|command| node.run(command))
        .into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_was_away_past_retention_gets_all_rows_and_keeps_its_own() {
    let planet = Planet::new();
    let (ap, eu) = planet.pair().await;
    for command in ["SET before 1", "SADD set a b c", "INCRBY count 5", "SET short v PX 3600000"] {
        ap.run(command);
    }
    eu.run("SET of-eu 1");
    assert_equal(&[&ap, &eu]).await;
    planet.network.cut(AP, EU);
    write_much(&ap, 1).await;
    for command in ["DEL before", "SREM set a", "SET short w"] {
        ap.run(command);
    }
    // What eu writes meanwhile, and nobody has seen.
    for command in ["SADD set d", "SREM set b", "INCRBY count 7", "SET mine 1", "HSET hash mine 1"] {
        eu.run(command);
    }
    planet.network.heal(AP, EU);
    assert_equal(&[&ap, &eu]).await;
    assert_eq!(
        (eu.run("GET before"), eu.run("GET mine"), ap.run("GET mine")),
        ("nil".into(), "\"1\"".into(), "\"1\"".into())
    );
    assert_eq!(eu.run("GET short"), "\"w\"");
    assert_eq!(shown(&ap), shown(&eu));
    assert_eq!(ap.run("SCARD set"), "2");
    // Both go on, over the normal links.
    ap.run("SET after 1");
    eu.run("INCR count");
    assert_equal(&[&ap, &eu]).await;
    eventually("the snapshot is not needed", async || !planet.has_snapshot(EU)).await;
    assert_eq!(eu.stats().await.joining, None);
    eu.stop();
    let eu = planet.start(EU, &[AP]);
    assert_equal(&[&ap, &eu]).await;
    assert_eq!(shown(&ap), shown(&eu));
    ap.stop();
    eu.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_regions_past_each_others_retention_join_what_the_other_has() {
    let planet = Planet::new();
    let (ap, eu) = planet.pair().await;
    planet.network.cut(AP, EU);
    // What eu sends takes so long that it has joined what ap sends before that is over.
    write_incompressible(&eu, 12_000).await;
    write_much(&ap, 1).await;
    planet.network.heal(AP, EU);
    assert_equal(&[&ap, &eu]).await;
    assert_eq!(shown(&ap), shown(&eu));
    ap.stop();
    eu.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_region_joins_when_no_log_reaches_back() {
    let planet = Planet::new();
    let (ap, us) = (planet.start(AP, &[EU, US]), planet.start(US, &[AP, EU]));
    write_much(&ap, 1).await;
    write_much(&us, 2).await;
    assert_equal(&[&ap, &us]).await;
    let eu = planet.start(EU, &[AP, US]);
    let mut number = 0;
    eventually("eu holds what ap writes", async || {
        number += 1;
        ap.run(&format!("SET going-on {number}"));
        eu.vector().includes(&us.vector())
    })
    .await;
    assert_equal(&[&ap, &us, &eu]).await;
    assert_eq!(shown(&ap), shown(&eu));
    eu.run("SET of-eu 1");
    assert_equal(&[&ap, &us, &eu]).await;
    for node in [ap, us, eu] {
        node.stop();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_breaks_again_and_again_goes_on_where_it_was() {
    let planet = Planet::new();
    let ap = planet.start(AP, &[EU]);
    write_incompressible(&ap, 6_000).await;
    planet.network.set_bulk(Bulk::BreaksAfter(300 << 10));
    let (_, before) = planet.network.carried();
    let eu = planet.start(EU, &[AP]);
    assert_equal(&[&ap, &eu]).await;
    let (_, carried) = planet.network.carried();
    assert!((900 << 10..6 << 20).contains(&(carried - before)), "{} bytes in bulk", carried - before);
    ap.stop();
    eu.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_region_that_is_killed_before_it_caught_up_is_still_new() {
    let planet = Planet::new();
    let start = |region, peers: &[&str]| {
        Node::start(&planet.network, &planet.data.path().join(region), region, peers)
    };
    let ap = start(AP, &[EU]);
    let value = "x".repeat(100_000);
    for number in 0..300 {
        ap.run(&format!("SET key:{number} {number}{value}"));
    }
    let eu = start(EU, &[AP]);
    eventually("something is there", async || eu.vector().0.values().any(|held| *held > 0)).await;
    planet.network.cut(AP, EU);
    eu.vanish(&planet.network, EU);
    let eu = start(EU, &[AP]);
    assert!(!eu.vector().includes(&ap.vector()), "it was too quick for this test");
    planet.network.set_bulk(Bulk::BreaksAfter(0));
    planet.network.heal(AP, EU);
    eventually("they are in touch", async || eu.stats().await.peers[0].connected).await;
    assert!(eu.run("SET of-eu 1").contains("LOADING"), "it does not hold what ap holds");
    planet.network.set_bulk(Bulk::Carried);
    assert_equal(&[&ap, &eu]).await;
    eventually("it serves", async || eu.run("SET of-eu 1") == "OK").await;
    // From now on it is one that was away, and serves at once.
    planet.network.cut(AP, EU);
    eu.vanish(&planet.network, EU);
    for number in 0..300 {
        ap.run(&format!("SET key:{number} {value}"));
    }
    let eu = start(EU, &[AP]);
    planet.network.set_bulk(Bulk::BreaksAfter(0));
    planet.network.heal(AP, EU);
    eventually("they are in touch", async || eu.stats().await.peers[0].connected).await;
    assert_eq!(eu.run("SET of-eu 2"), "OK");
    ap.stop();
    eu.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_joiner_that_is_killed_again_and_again_ends_with_the_same_rows() {
    let planet = Planet::new();
    let (ap, mut eu) = planet.pair().await;
    eu.run("INCRBY count 3");
    ap.run("SADD set a b c");
    assert_equal(&[&ap, &eu]).await;
    for round in 0..6 {
        planet.network.cut(AP, EU);
        write_much(&ap, round).await;
        eu.run("SADD set mine");
        eu.run("INCRBY count 7");
        planet.network.heal(AP, EU);
        // At another moment of each round: while it comes, when it is here, when it is joined.
        match round % 3 {
            0 => eventually("something is here", async || planet.has_snapshot(EU)).await,
            1 => eventually("it comes", async || eu.stats().await.joining.is_some()).await,
            _ => eu.reaches(&ap.vector()).await,
        }
        eu.vanish(&planet.network, EU);
        eu = planet.start(EU, &[AP]);
        assert_equal(&[&ap, &eu]).await;
        assert_eq!(shown(&ap), shown(&eu));
    }
    ap.stop();
    eu.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_killed_goes_on_or_begins_again() {
    let planet = Planet::new();
    let mut ap = planet.start(AP, &[EU]);
    for round in 0..3 {
        write_much(&ap, round).await;
    }
    let eu = planet.start(EU, &[AP]);
    for _ in 0..3 {
        let comes = async || planet.has_snapshot(EU) || eu.vector().includes(&ap.vector());
        eventually("it comes, or came", comes).await;
        ap.vanish(&planet.network, AP);
        ap = planet.start(AP, &[EU]);
        ap.run("INCR count");
    }
    assert_equal(&[&ap, &eu]).await;
    assert_eq!(shown(&ap), shown(&eu));
    ap.stop();
    eu.stop();
}

/// Takes a backup of a region while it writes.
async fn back_up(node: &Node, file: &Path) {
    let mut backup = node.handle.backup().await.unwrap();
    let path = file.to_owned();
    let taken = tokio::task::spawn_blocking(move || {
        let mut out = Vec::new();
        while let Some(mut bytes) = backup.next_bytes().unwrap() {
            out.append(&mut bytes);
        }
        std::fs::write(path, out).unwrap();
    });
    while !taken.is_finished() {
        node.run("INCR meanwhile");
        tokio::task::yield_now().await;
    }
    taken.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_restored_from_an_old_backup_undoes_no_deletion_and_uses_no_name_twice() {
    let planet = Planet::new();
    let (ap, eu) = planet.pair().await;
    ap.run("SET gone 1");
    eu.run("SET of-eu 1");
    eu.run("INCRBY count 5");
    assert_equal(&[&ap, &eu]).await;
    let (file, actor) = (planet.data.path().join("eu.backup"), eu.stats().await.actor);
    back_up(&eu, &file).await;
    ap.run("DEL gone");
    eu.run("INCRBY count 2");
    assert_equal(&[&ap, &eu]).await;
    write_much(&ap, 3).await;
    assert_equal(&[&ap, &eu]).await;
    eu.vanish(&planet.network, EU);
    let data = planet.data.path().join(EU);
    let full = geode_embedded::restore(&file, &data, PLANET).unwrap_err().to_string();
    assert!(full.contains("is not empty"), "{full}");
    std::fs::remove_dir_all(&data).unwrap();
    let other = geode_embedded::restore(&file, &data, "mars").unwrap_err().to_string();
    assert!(other.contains("it is of planet \"tested\", not of \"mars\""), "{other}");
    assert!(!data.exists());
    let summary = geode_embedded::restore(&file, &data, PLANET).unwrap();
    assert_eq!((summary.region.as_str(), summary.bytes), (EU, std::fs::metadata(&file).unwrap().len()));
    let eu = planet.start(EU, &[AP]);
    assert_equal(&[&ap, &eu]).await;
    assert_eq!(shown(&ap), shown(&eu));
    assert_eq!((eu.run("GET gone"), eu.run("GET of-eu")), ("nil".into(), "\"1\"".into()));
    assert_ne!(eu.stats().await.actor, actor);
    let is_closed = async || {
        ap.stats().await.closed.iter().any(|closed| closed.actor.to_string() == actor && closed.end.is_some())
    };
    eventually("the regions agree where the old writer ended", is_closed).await;
    eu.run("INCRBY count 1");
    assert_equal(&[&ap, &eu]).await;
    ap.stop();
    eu.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_planet_begins_with_a_backup() {
    let planet = Planet::new();
    let eu = planet.start(EU, &[AP]);
    for number in 0..3_000 {
        eu.run(&format!("SET key:{number} {number}"));
    }
    eu.run("RPUSH list a b c");
    eu.run("INCRBY count 41");
    let file = planet.data.path().join("backup");
    back_up(&eu, &file).await;
    let meanwhile: i64 = eu.run("GET meanwhile").trim_matches('"').parse().unwrap();
    eu.vanish(&planet.network, EU);
    std::fs::remove_dir_all(planet.data.path().join(EU)).unwrap();
    // Any region may begin with it; the others join.
    geode_embedded::restore(&file, &planet.data.path().join(AP), PLANET).unwrap();
    let ap = planet.start(AP, &[EU]);
    eventually("it serves", async || ap.run("GET count") == "\"41\"").await;
    let restored: i64 = ap.run("GET meanwhile").trim_matches('"').parse().unwrap_or(0);
    assert!(restored <= meanwhile);
    // And after a kill it is as it was.
    ap.vanish(&planet.network, AP);
    let ap = planet.start(AP, &[EU]);
    let eu = planet.start(EU, &[AP]);
    ap.run("INCR count");
    assert_equal(&[&ap, &eu]).await;
    assert_eq!(
        (eu.run("GET count"), eu.run("LRANGE list 0 -1"), eu.run("GET key:77")),
        ("\"42\"".into(), ap.run("LRANGE list 0 -1"), "\"77\"".into())
    );
    // A damaged one is no backup.
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let error = geode_embedded::check_backup(&file).unwrap_err().to_string();
    assert!(error.contains("it ends early or is damaged"), "{error}");
    ap.stop();
    eu.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_gets_all_its_rows_anew_while_others_write() {
    let planet = Planet::new();
    let (ap, eu) = planet.pair().await;
    for number in 0..2_000 {
        let node = if number % 2 == 0 { &ap } else { &eu };
        node.run(&format!("SET key:{number} {number}"));
        node.run("INCR count");
        node.run(&format!("SADD set m:{}", number % 100));
    }
    planet.network.cut(AP, EU);
    eventually("the cut is seen", async || !eu.stats().await.peers[0].connected).await;
    assert_eq!(eu.handle.reseed().await.unwrap_err(), "no other region is in touch that could send its rows");
    eu.run("INCRBY count 1000");
    eu.run("SREM set m:7");
    planet.network.heal(AP, EU);
    assert_equal(&[&ap, &eu]).await;
    eu.handle.reseed().await.unwrap();
    assert_eq!(eu.handle.reseed().await.unwrap_err(), "it is joining already");
    for _ in 0..100 {
        ap.run("INCR count");
    }
    eventually("it serves again", async || !eu.run("GET count").contains("LOADING")).await;
    assert_equal(&[&ap, &eu]).await;
    assert_eq!((eu.run("GET count"), eu.run("SCARD set")), ("\"3100\"".into(), "99".into()));
    eu.run("INCR count");
    assert_equal(&[&ap, &eu]).await;
    // And the start after a kill says the same.
    eu.vanish(&planet.network, EU);
    let eu = planet.start(EU, &[AP]);
    assert_equal(&[&ap, &eu]).await;
    assert_eq!(eu.run("GET count"), "\"3101\"");
    ap.stop();
    eu.stop();
}

/// More data than memory, in the region that sends and in the one that joins.
#[tokio::test(flavor = "multi_thread")]
async fn regions_with_a_limit_of_memory_send_and_join() {
    let planet = Planet::new();
    let start = |region: &str, peers: &[&str]| {
        let config = config(&planet.data.path().join(region), region, peers);
        Node::start_with(&planet.network, Config { memory: Some(1 << 20), ..config })
    };
    let ap = start(AP, &[EU]);
    let value = "x".repeat(1_000);
    for number in 0..4_000 {
        eventually("the disk keeps up", async || {
            ap.run(&format!("SET key:{number} {number}:{value}")) == "OK"
        })
        .await;
        if number % 10 == 0 {
            ap.run(&format!("DEL key:{}", number / 2));
            ap.run(&format!("INCRBY count:{number} {number}"));
        }
    }
    eventually("most of it is on disk alone", async || ap.stats().await.cold_keys > 2_000).await;
    write_much(&ap, 1).await;
    let eu = start(EU, &[AP]);
    let mut number = 0;
    eventually("eu holds what ap writes", async || {
        number += 1;
        ap.run(&format!("INCRBY count:{} 1", number % 4_000));
        eu.vector().includes(&ap.vector())
    })
    .await;
    assert_equal(&[&ap, &eu]).await;
    eventually("it gives memory back", async || eu.stats().await.cold_keys > 2_000).await;
    for number in [1, 7, 1_003, 3_990, 3_999] {
        let get = format!("MGET key:{number} count:{number}");
        assert_eq!(ap.run(&get), eu.run(&get));
    }
    // A key that is on disk alone here and changed there.
    for number in (0..4_000).step_by(100) {
        eu.run(&format!("APPEND key:{number} more"));
        ap.run(&format!("INCRBY count:{number} 5"));
    }
    assert_equal(&[&ap, &eu]).await;
    // Killed, both are as they were.
    ap.vanish(&planet.network, AP);
    eu.vanish(&planet.network, EU);
    let (ap, eu) = (start(AP, &[EU]), start(EU, &[AP]));
    assert_equal(&[&ap, &eu]).await;
    let file = planet.data.path().join("backup");
    back_up(&eu, &file).await;
    geode_embedded::check_backup(&file).unwrap();
    ap.stop();
    eu.stop();
}

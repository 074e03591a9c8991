//! Two and three regions over loopback: they replicate, resume, catch up, and supply what a dead one wrote.

#![allow(clippy::unwrap_used)] // a test that unwraps fails, which is what it is for

mod support;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use geode_crdt::HybridTime;
use geode_embedded::{Config, ConflictQuery, FsyncMode};
use geode_store::conformance::Recorder;
use geode_store::{Flow, Session};
use support::{DEADLINE, Local, Network, Node, PLANET, assert_equal, eventually, meet, wall};

const AP: &str = "ap-southeast-2";
const EU: &str = "eu-west-1";
const US: &str = "us-east-1";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_of_both_regions_arrive_and_digests_are_equal() {
    let (network, data) = (Network::new(), tempfile::tempdir().unwrap());
    let eu = Node::start(&network, &data.path().join("eu"), EU, &[US]);
    let us = Node::start(&network, &data.path().join("us"), US, &[EU]);
    meet(&[&eu, &us]).await;
    assert_eq!(eu.run("SET greeting hallo"), "OK");
    us.reaches(&eu.vector()).await;
    assert_eq!(us.run("GET greeting"), "\"hallo\"");
    for number in 0..200 {
        eu.run(&format!("SET eu:{number} {number}"));
        us.run("INCR visits");
        eu.run("INCR visits");
        us.run(&format!("SADD members us-{number}"));
    }
    assert_equal(&[&eu, &us]).await;
    assert_eq!(eu.run("GET visits"), "\"400\"");
    assert_eq!(us.run("DBSIZE"), "203");
    assert_eq!(eu.run("SCARD members"), "200");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_was_cut_resumes_where_it_was() {
    let (network, data) = (Network::new(), tempfile::tempdir().unwrap());
    let eu = Node::start(&network, &data.path().join("eu"), EU, &[US]);
    let us = Node::start(&network, &data.path().join("us"), US, &[EU]);
    meet(&[&eu, &us]).await;
    eu.run("SET before 1");
    us.reaches(&eu.vector()).await;
    network.cut(EU, US);
    eventually("the cut is seen", async || !us.stats().await.peers[0].connected).await;
    for number in 0..500 {
        eu.run(&format!("SET eu:{number} {number}"));
        us.run(&format!("SET us:{number} {number}"));
        eu.run("SET contested eu");
        us.run("SET contested us");
    }
    assert_eq!(us.run("GET eu:1"), "nil");
    network.heal(EU, US);
    assert_equal(&[&eu, &us]).await;
    assert_eq!(eu.run("GET contested"), us.run("GET contested"));
    let report = us.handle.conflicts(ConflictQuery::latest(10)).await.unwrap();
    let conflict = &report.recent[0];
    assert_eq!((conflict.rule.name(), conflict.key.as_slice()), ("later-write", &b"contested"[..]));
    let mut values = [conflict.winner.value.as_slice(), &conflict.loser.value];
    values.sort_unstable();
    assert_eq!(values, [&b"eu"[..], b"us"]);
    assert!(conflict.winner.time > conflict.loser.time);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_that_was_dead_catches_up_over_many_segments() {
    let (network, data) = (Network::new(), tempfile::tempdir().unwrap());
    let config = |region: &str, peer: &str| Config {
        segment_bytes: 20_000,
        ..Config::new(data.path().join(region), PLANET, region, &[peer])
    };
    let eu = Node::start_with(&network, config(EU, US));
    let us = Node::start_with(&network, config(US, EU));
    meet(&[&eu, &us]).await;
    us.run("SET us 1");
    eu.reaches(&us.vector()).await;
    us.vanish(&network, US);
    for number in 0..2_000 {
        eu.run(&format!("SET key:{number} {:0100}", number));
    }
    assert!(std::fs::read_dir(data.path().join(EU).join("log")).unwrap().count() > 5);
    let us = Node::start_with(&network, config(US, EU));
    assert_equal(&[&eu, &us]).await;
    assert_eq!(us.run("DBSIZE"), "2001");
    // And the other way round: after a clean stop and a new start of the writer.
    eu.stop();
    let eu = Node::start_with(&network, config(EU, US));
    eu.run("SET after 1");
    assert_equal(&[&eu, &us]).await;
    assert_eq!(us.run("GET after"), "\"1\"");
    assert_eq!(
        us.vector().0.keys().filter(|actor| &*actor.region == EU).count(),
        1,
        "its incarnation was kept"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_third_region_supplies_what_a_dead_one_wrote() {
    let (network, data) = (Network::new(), tempfile::tempdir().unwrap());
    let start =
        |region: &str, peers: &[&str]| Node::start(&network, &data.path().join(region), region, peers);
    network.cut(AP, US);
    let (ap, eu, us) = (start(AP, &[EU, US]), start(EU, &[AP, US]), start(US, &[AP, EU]));
    for number in 0..100 {
        ap.run(&format!("RPUSH list {number}"));
    }
    let written = ap.vector();
    eu.reaches(&written).await;
    ap.vanish(&network, AP);
    // It never had a link to the dead region; what depends on its entries waits for them.
    eu.run("RPUSH list last");
    us.reaches(&written).await;
    assert_equal(&[&eu, &us]).await;
    assert_eq!(us.run("LLEN list"), "101");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wait_counts_other_regions_whose_disk_has_the_write() {
    let (network, data) = (Network::new(), tempfile::tempdir().unwrap());
    let config = |region: &str, peers: &[&str], fsync| Config {
        fsync,
        ..Config::new(data.path().join(region), PLANET, region, peers)
    };
    let ap = Node::start_with(&network, config(AP, &[EU, US], FsyncMode::Always));
    let eu = Node::start_with(&network, config(EU, &[AP, US], FsyncMode::EverySecond));
    let us = Node::start_with(&network, config(US, &[AP, EU], FsyncMode::Never));
    meet(&[&ap, &eu, &us]).await;
    assert_eq!(ap.run("SET k v"), "OK");
    us.reaches(&ap.vector()).await;
    // One region forces its log, if only once a second; the other never does.
    assert_eq!(ap.run("WAIT 1 0"), "1");
    assert_eq!(ap.run("WAIT 2 300"), "1");
    assert_eq!(eu.run("SET k w"), "OK");
    assert_eq!(eu.run("WAIT 1 0"), "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_waited_for_across_a_partition() {
    let (network, data) = (Network::new(), tempfile::tempdir().unwrap());
    let eu = Node::start(&network, &data.path().join("eu"), EU, &[US]);
    let us = Node::start(&network, &data.path().join("us"), US, &[EU]);
    meet(&[&eu, &us]).await;
    network.cut(EU, US);
    us.run("SET k v");
    let token = us.run("GEODE.VECTOR").replace('"', "");
    assert_eq!(eu.run(&format!("GEODE.WAIT {token} 100")), "0");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| (eu.run(&format!("GEODE.WAIT {token} 0")), eu.run("GET k")));
        network.heal(EU, US);
        assert_eq!(waiting.join().unwrap(), ("1".to_owned(), "\"v\"".to_owned()));
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_is_swept_everywhere_once_all_regions_passed_it() {
    let (network, data) = (Network::new(), tempfile::tempdir().unwrap());
    let eu = Node::start(&network, &data.path().join("eu"), EU, &[US]);
    let us = Node::start(&network, &data.path().join("us"), US, &[EU]);
    meet(&[&eu, &us]).await;
    assert_eq!(us.run("SET short lived PX 50"), "OK");
    assert_eq!(us.run("SET long lived"), "OK");
    eu.reaches(&us.vector()).await;
    eventually("only one key is left in both", async || eu.run("DBSIZE") == "1" && us.run("DBSIZE") == "1")
        .await;
    assert_equal(&[&eu, &us]).await;
    assert_eq!(us.run("GET short"), "nil");
    assert!(eu.vector().0.keys().any(|actor| &*actor.region == EU), "the first region by name swept");
}

/// How far the clock below is wrong, in microseconds.
static FAST_US: AtomicU64 = AtomicU64::new(0);

fn fast_clock() -> HybridTime {
    HybridTime(wall().0 + FAST_US.load(Ordering::SeqCst))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_whose_clock_is_ahead_refuses_writes_until_it_is_right() {
    let (network, data) = (Network::new(), tempfile::tempdir().unwrap());
    let eu = Node::start(&network, &data.path().join("eu"), EU, &[US]);
    let us = Config { clock: fast_clock, ..Config::new(data.path().join("us"), PLANET, US, &[EU]) };
    let us = Node::start_with(&network, us);
    assert_eq!(us.run("SET k 1"), "OK");
    eu.reaches(&us.vector()).await;
    FAST_US.store(3_000_000, Ordering::SeqCst);
    eventually("it refuses", async || us.handle.clock_ahead_ms().is_some()).await;
    let refused = us.run("SET k 2");
    assert!(refused.starts_with("!CLOCK this region's clock is "), "{refused}");
    assert_eq!(us.run("GET k"), "\"1\"");
    assert_eq!(eu.run("INCR k"), "2", "the other does not");
    us.reaches(&eu.vector()).await;
    network.cut(EU, US);
    eventually("alone, it writes", async || us.run("INCR k") == "3").await;
    network.heal(EU, US);
    eventually("it refuses again", async || us.handle.clock_ahead_ms().is_some()).await;
    FAST_US.store(0, Ordering::SeqCst);
    eventually("its clock is right", async || us.run("INCR k") == "4").await;
    assert_equal(&[&eu, &us]).await;
    assert_eq!(eu.run("GET k"), "\"4\"");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiting_session_is_woken_by_what_it_waits_for() {
    let (network, data) = (Network::new(), tempfile::tempdir().unwrap());
    let eu = Node::start(&network, &data.path().join("eu"), EU, &[US]);
    let us = Node::start(&network, &data.path().join("us"), US, &[EU]);
    meet(&[&eu, &us]).await;
    network.cut(EU, US);
    us.run("SET k v");
    let wanted = us.vector();
    assert!(!eu.handle.wait_for(&wanted, Duration::from_millis(50)).await);
    let waiting = tokio::spawn({
        let (handle, wanted) = (eu.handle.clone(), wanted.clone());
        async move { handle.wait_for(&wanted, DEADLINE).await }
    });
    network.heal(EU, US);
    assert!(waiting.await.unwrap());
    assert_eq!(eu.run("GET k"), "\"v\"");
    eventually("the other side's heartbeat says so", async || us.handle.holders(&wanted) == [EU]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_larger_than_any_buffer_pass() {
    let (network, data) = (Network::new(), tempfile::tempdir().unwrap());
    let eu = Node::start(&network, &data.path().join("eu"), EU, &[US]);
    let us = Node::start(&network, &data.path().join("us"), US, &[EU]);
    meet(&[&eu, &us]).await;
    let large = vec![b'x'; 9 << 20];
    eu.run_words(vec![b"SET".to_vec(), b"large".to_vec(), large]);
    for number in 0..50 {
        us.run_words(vec![b"SET".to_vec(), format!("{number}").into_bytes(), vec![b'y'; 300_000]]);
    }
    assert_equal(&[&eu, &us]).await;
    assert_eq!(us.run("STRLEN large"), (9 << 20).to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_that_was_rolled_back_takes_a_new_incarnation_before_its_first_write() {
    let (network, data) = (Network::new(), tempfile::tempdir().unwrap());
    // Never forced onto the disk, so the log itself cannot tell that something is missing.
    let config =
        || Config { fsync: FsyncMode::Never, ..Config::new(data.path().join(US), PLANET, US, &[EU]) };
    let segment = data.path().join(US).join("log/00000000000000000000.log");
    let eu = Node::start(&network, &data.path().join(EU), EU, &[US]);
    let us = Node::start_with(&network, config());
    meet(&[&eu, &us]).await;
    us.run("INCR kept");
    let earlier = std::fs::metadata(&segment).unwrap().len();
    us.run("INCR kept");
    us.run("SET lost 1");
    eu.reaches(&us.vector()).await;
    us.vanish(&network, US);
    std::fs::OpenOptions::new().write(true).open(&segment).unwrap().set_len(earlier).unwrap();
    let us = Node::start_with(&network, config());
    assert_eq!(us.vector().0.values().copied().collect::<Vec<_>>(), [1], "nothing local shows the loss");
    // Its links come up while the first write is being held.
    us.run("INCR kept");
    assert_equal(&[&eu, &us]).await;
    assert_eq!(us.run("GET kept"), "\"3\"");
    assert_eq!(us.run("GET lost"), "\"1\"");
    assert_eq!(us.vector().0.into_values().collect::<Vec<_>>().len(), 2, "the write has a new name");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_that_lost_its_disk_gets_everything_back() {
    let (network, data) = (Network::new(), tempfile::tempdir().unwrap());
    let start =
        |region: &str, peers: &[&str]| Node::start(&network, &data.path().join(region), region, peers);
    let (ap, eu, us) = (start(AP, &[EU, US]), start(EU, &[AP, US]), start(US, &[AP, EU]));
    meet(&[&ap, &eu, &us]).await;
    for (number, node) in [&ap, &eu, &us].into_iter().enumerate() {
        for step in 0..50 {
            node.run(&format!("HSET hash {number}:{step} v"));
            node.run("INCR count");
        }
    }
    assert_equal(&[&ap, &eu, &us]).await;
    eu.vanish(&network, EU);
    std::fs::remove_dir_all(data.path().join(EU)).unwrap();
    ap.run("SET meanwhile 1");
    let eu = start(EU, &[AP, US]);
    assert_equal(&[&ap, &eu, &us]).await;
    assert_eq!(eu.run("GET count"), "\"150\"");
    assert_eq!(eu.run("INCR count"), "151");
    assert_equal(&[&ap, &eu, &us]).await;
    assert_eq!(us.run("GET count"), "\"151\"");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_rule_of_the_conflict_log_is_seen_where_it_is_delivered() {
    let (network, data) = (Network::new(), tempfile::tempdir().unwrap());
    let eu = Node::start(&network, &data.path().join("eu"), EU, &[US]);
    let us = Node::start(&network, &data.path().join("us"), US, &[EU]);
    meet(&[&eu, &us]).await;
    for command in [
        "SET shown x",
        "SET ttl x",
        "INCR hidden",
        "SADD cleared m",
        "SET same 1",
        "SET seen 1",
        "SET base 5",
    ] {
        us.run(command);
    }
    assert_equal(&[&eu, &us]).await;
    network.cut(EU, US);
    eventually("the cut is seen", async || {
        !us.stats().await.peers[0].connected && !eu.stats().await.peers[0].connected
    })
    .await;
    for command in
        ["SET later eu", "DEL shown", "SADD shown m", "EXPIRE ttl 1000", "INCR hidden", "SREM cleared m"]
    {
        eu.run(command);
    }
    eu.run("SET same 2");
    for _ in 0..5 {
        eu.run("INCR counted");
        eu.run("INCR hidden");
        eu.run("INCR base");
    }
    eu.run("GEODE.ONCE retry INCR once");
    for command in
        ["SET later us", "DEL shown", "HSET shown f v", "EXPIRE ttl 2000", "SET hidden abc", "SADD cleared m"]
    {
        us.run(command);
    }
    us.run("SET same 2");
    us.run("SET seen 2");
    us.run("SET counted 100");
    us.run("GEODE.ONCE retry INCR once");
    network.heal(EU, US);
    assert_equal(&[&eu, &us]).await;
    let found = async |node: &Node| {
        let report = node.handle.conflicts(ConflictQuery::latest(100)).await.unwrap();
        let mut found: Vec<(String, &str)> = report
            .recent
            .iter()
            .map(|conflict| (String::from_utf8(conflict.key.clone()).unwrap(), conflict.rule.name()))
            .collect();
        found.sort();
        let logged: u64 = report.totals.iter().map(|(_, count)| count).sum();
        assert_eq!(logged, found.len() as u64);
        found
    };
    let both = |more: &[(&str, &'static str)]| {
        let common = [
            ("counted", "survived-clear"),
            ("retry", "executed-twice"),
            ("hidden", "hidden-amount"),
            ("later", "later-write"),
            ("shown", "shown-type"),
            ("ttl", "longest-deadline"),
        ];
        let mut all: Vec<(String, &str)> =
            common.iter().chain(more).map(|(key, rule)| ((*key).to_owned(), *rule)).collect();
        all.sort();
        all
    };
    // The removal was delivered in one region and found something; the other had removed and got an addition.
    assert_eq!(found(&us).await, both(&[("cleared", "survived-clear")]));
    assert_eq!(found(&eu).await, both(&[]));
    let report = us.handle.conflicts(ConflictQuery::latest(100)).await.unwrap();
    let of = |key: &[u8]| report.recent.iter().find(|conflict| conflict.key == key).unwrap();
    assert_eq!(
        (of(b"later").winner.value.as_slice(), of(b"later").loser.value.as_slice()),
        (&b"us"[..], &b"eu"[..])
    );
    assert_eq!(
        (of(b"hidden").winner.value.as_slice(), of(b"hidden").loser.value.as_slice()),
        (&b"abc"[..], &b"1"[..]),
        "told when it was first seen"
    );
    assert_eq!(
        (of(b"counted").winner.value.as_slice(), of(b"counted").loser.value.as_slice()),
        (&b"101"[..], &b"100"[..])
    );
    let retry = of(b"retry");
    assert_eq!(
        (retry.database, retry.winner.value.as_slice(), retry.loser.value.as_slice()),
        (255, &b":\x02"[..], &b":\x02"[..])
    );
    assert_eq!(
        (of(b"shown").winner.value.as_slice(), of(b"shown").loser.value.as_slice()),
        (&b"hash"[..], &b"set"[..])
    );
    assert!(
        of(b"later").winner.dot.starts_with("us-east-1#") && of(b"later").loser.dot.starts_with("eu-west-1#")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conflicts_are_known_after_a_restart_and_waited_for() {
    let (network, data) = (Network::new(), tempfile::tempdir().unwrap());
    let eu = Node::start(&network, &data.path().join("eu"), EU, &[US]);
    let us = Node::start(&network, &data.path().join("us"), US, &[EU]);
    meet(&[&eu, &us]).await;
    let contest = async |us: &Node, key: &str| {
        network.cut(EU, US);
        eu.run(&format!("SET {key} eu"));
        us.run(&format!("SET {key} us"));
        network.heal(EU, US);
        assert_equal(&[&eu, us]).await;
    };
    let first = us.handle.clone();
    let waiting = tokio::spawn(async move { first.wait_for_conflict(HybridTime(0), DEADLINE).await });
    contest(&us, "before").await;
    assert!(waiting.await.unwrap());
    let all = async |us: &Node| us.handle.conflicts(ConflictQuery::latest(100)).await;
    let old = all(&us).await.unwrap().recent;
    assert_eq!(old.len(), 1);
    us.vanish(&network, US);
    let us = Node::start(&network, &data.path().join("us"), US, &[EU]);
    let report = all(&us).await.unwrap();
    assert_eq!(report.recent, old);
    assert!(report.totals.iter().all(|(_, count)| *count == 0), "they count since the start");
    contest(&us, "after").await;
    let recent = all(&us).await.unwrap().recent;
    let keys: Vec<&[u8]> = recent.iter().map(|conflict| conflict.key.as_slice()).collect();
    assert_eq!(keys, [&b"after"[..], b"before"]);
    let of = async |query: ConflictQuery| us.handle.conflicts(query).await.unwrap().recent;
    assert_eq!(of(ConflictQuery { key: Some(b"before".to_vec()), ..ConflictQuery::latest(9) }).await, old);
    assert_eq!(of(ConflictQuery { after: old[0].time, ..ConflictQuery::latest(9) }).await, recent[..1]);
    assert_eq!(of(ConflictQuery::latest(1)).await, recent[..1]);
    assert!(!us.handle.wait_for_conflict(recent[0].time, Duration::from_millis(50)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_writer_has_seen_is_known_after_a_start_from_a_checkpoint() {
    let (network, data) = (Network::new(), tempfile::tempdir().unwrap());
    let start_us = || {
        let config = Config::new(data.path().join("us"), PLANET, US, &[EU]);
        Node::start_with(&network, Config { checkpoint_bytes: 0, ..config })
    };
    let (eu, us) = (Node::start(&network, &data.path().join("eu"), EU, &[US]), start_us());
    meet(&[&eu, &us]).await;
    us.run("SET stock 5");
    eu.reaches(&us.vector()).await;
    // The entry that says that eu has seen it.
    eu.run("SET seen 1");
    us.reaches(&eu.vector()).await;
    eventually("a checkpoint holds it all", async || us.stats().await.log_tail_bytes == 0).await;
    us.vanish(&network, US);
    let us = start_us();
    eu.run("INCR stock");
    us.reaches(&eu.vector()).await;
    assert_eq!(us.run("GET stock"), "\"6\"");
    assert_eq!(us.handle.conflicts(ConflictQuery::latest(9)).await.unwrap().recent, [], "it was no conflict");
}

#[test]
fn a_flush_of_everything_reaches_the_log_in_pieces() {
    let data = tempfile::tempdir().unwrap();
    let mut region = Local::open(Config::new(data.path(), PLANET, EU, &[])).unwrap();
    let unflushed = |region: &mut Local, words: &[&[u8]]| {
        let flow = region.store.execute(&mut Session::default(), words, &mut Recorder::default());
        assert_eq!(flow, Flow::Done);
    };
    for number in 0..3000 {
        unflushed(&mut region, &[b"SET", format!("key {number}").as_bytes(), b"v"]);
    }
    region.run("SET last v");
    assert_eq!(region.incarnations(), [3001]);
    unflushed(&mut region, &[b"FLUSHALL"]);
    assert!(region.incarnations()[0] > 3001, "all of it waits in memory");
    assert_eq!(region.run("DBSIZE"), "0");
}

//! A volume that was rolled back under its own inode looks whole; only what peers say of it can tell.

#![allow(clippy::unwrap_used)] // a test that unwraps fails, which is what it is for

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use support::{DEADLINE, Network, Node, assert_equal, eventually, meet};

/// Its name comes first, so it dials.
const EU: &str = "eu-west-1";
/// It is dialled.
const US: &str = "us-east-1";

/// The files of a data directory with their content.
struct Snapshot(Vec<(PathBuf, Vec<u8>)>);

impl Snapshot {
    fn take(data: &Path) -> Self {
        let logs = fs::read_dir(data.join("log")).unwrap().map(|entry| entry.unwrap().path());
        let files = logs.chain([data.join("clock"), data.join("identity.json")]);
        Self(files.map(|path| (path.clone(), fs::read(path).unwrap())).collect())
    }

    /// Puts the content back in place: inode and birth stay, as on a volume that is rolled back.
    fn restore(&self) {
        for (path, bytes) in &self.0 {
            fs::write(path, bytes).unwrap();
        }
    }
}

/// A writer and a peer; the writer's second half is then rolled back, and it is not running.
async fn rolled_back(network: &Arc<Network>, data: &Path) -> Node {
    let eu = Node::start(network, &data.join(EU), EU, &[US]);
    let us = Node::start(network, &data.join(US), US, &[EU]);
    meet(&[&eu, &us]).await;
    us.run("SADD drinks tea");
    eu.reaches(&us.vector()).await;
    us.vanish(network, US);
    let snapshot = Snapshot::take(&data.join(US));
    let us = Node::start(network, &data.join(US), US, &[EU]);
    us.run("SADD drinks coffee");
    eu.reaches(&us.vector()).await;
    us.vanish(network, US);
    snapshot.restore();
    eu
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolled_back_region_hears_a_reachable_peer_before_its_first_write() {
    let (network, data) = (Network::new(), tempfile::tempdir().unwrap());
    let eu = rolled_back(&network, data.path()).await;
    // The dialler waits for an answer that never comes.
    network.leave_calls_unanswered();
    eventually("the dialler calls a dead machine", async || network.unanswered() > 0).await;
    let us = Node::start(&network, &data.path().join(US), US, &[EU]);
    us.run("SADD drinks milk");
    assert_equal(&[&eu, &us]).await;
    assert_eq!(eu.run("SMEMBERS drinks"), us.run("SMEMBERS drinks"));
    assert_eq!(eu.run("SCARD drinks"), "3", "no dot was used twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wait_never_counts_entries_of_another_incarnation() {
    let (network, data) = (Network::new(), tempfile::tempdir().unwrap());
    let eu = rolled_back(&network, data.path()).await;
    network.cut(EU, US);
    let us = Node::start(&network, &data.path().join(US), US, &[EU]);
    us.run("SADD drinks milk");
    // The write takes a dot that the peer knows for another one: it can never arrive there.
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| us.run("WAIT 1 8000"));
        network.heal(EU, US);
        let fresh = || us.handle.vector().0.keys().filter(|actor| &*actor.region == US).count() > 1;
        let until = Instant::now() + DEADLINE;
        while !fresh() && Instant::now() < until {
            us.run("SADD others x");
        }
        for number in 0..10 {
            us.run(&format!("SADD others {number}"));
        }
        let answer = waiting.join().unwrap();
        let arrived = eu.run("SISMEMBER drinks milk");
        assert_eq!((answer.as_str(), arrived.as_str()), ("0", "0"), "WAIT counted what did not arrive");
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wait_counts_no_region_that_is_away_after_a_start_under_a_new_incarnation() {
    let (network, data) = (Network::new(), tempfile::tempdir().unwrap());
    let eu = Node::start(&network, &data.path().join(EU), EU, &[US]);
    let us = Node::start(&network, &data.path().join(US), US, &[EU]);
    meet(&[&eu, &us]).await;
    us.run("SET k v");
    assert_eq!(us.run("WAIT 1 0"), "1");
    network.cut(EU, US);
    us.run("SET k w");
    us.vanish(&network, US);
    // Without it nothing proves the incarnation.
    fs::remove_file(data.path().join(US).join("identity.json")).unwrap();
    let us = Node::start(&network, &data.path().join(US), US, &[EU]);
    assert_eq!(us.run("WAIT 1 100"), "0");
    network.heal(EU, US);
    assert_eq!(us.run("WAIT 1 0"), "1");
    assert_eq!(eu.run("GET k"), us.run("GET k"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_regions_agree_where_an_actor_ended_whose_disk_was_lost() {
    let (network, data) = (Network::new(), tempfile::tempdir().unwrap());
    let start = |region: &str, peer: &str| Node::start(&network, &data.path().join(region), region, &[peer]);
    let (eu, us) = (start(EU, US), start(US, EU));
    meet(&[&eu, &us]).await;
    us.run("SADD drinks tea");
    eu.reaches(&us.vector()).await;
    network.cut(EU, US);
    us.run("SADD drinks coffee");
    us.vanish(&network, US);
    fs::remove_dir_all(data.path().join(US)).unwrap();
    network.heal(EU, US);
    let us = start(US, EU);
    eventually("it may write", async || us.run("SADD drinks milk") == "1").await;
    assert_equal(&[&eu, &us]).await;
    assert_eq!((eu.run("SCARD drinks"), us.run("SCARD drinks")), ("2".into(), "2".into()), "tea and milk");
    for node in [&eu, &us] {
        let ended = async || {
            let closed = node.stats().await.closed;
            closed.len() == 1 && &*closed[0].actor.region == US && closed[0].end == Some(1)
        };
        eventually("the end is agreed", ended).await;
    }
    // What was agreed outlives a restart.
    eu.vanish(&network, EU);
    let eu = start(EU, US);
    assert_equal(&[&eu, &us]).await;
    let same = async || eu.stats().await.closed == us.stats().await.closed;
    eventually("it is known again", same).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_that_was_evicted_comes_back_with_nothing_and_no_other_way() {
    const AP: &str = "ap-southeast-2";
    let (network, data) = (Network::new(), tempfile::tempdir().unwrap());
    let start =
        |region: &str, peers: &[&str]| Node::start(&network, &data.path().join(region), region, peers);
    let (ap, eu, us) = (start(AP, &[EU, US]), start(EU, &[AP, US]), start(US, &[AP, EU]));
    meet(&[&ap, &eu, &us]).await;
    us.run("SADD drinks tea");
    ap.reaches(&us.vector()).await;
    eu.reaches(&us.vector()).await;
    let error = ap.handle.evict(US, false, "").await.unwrap_err().to_string();
    assert!(error.contains("is in touch"), "{error}");
    network.cut(AP, US);
    network.cut(EU, US);
    us.run("SADD drinks coffee");
    us.vanish(&network, US);
    eventually("us is out of touch", async || !ap.stats().await.peers[1].connected).await;
    ap.handle.evict(US, false, "").await.unwrap();
    let ended = async || {
        let closed = eu.stats().await.closed;
        closed.len() == 1 && &*closed[0].actor.region == US && closed[0].end == Some(1)
    };
    eventually("the others agree where its actor ended", ended).await;
    assert!(ap.handle.evict(US, true, "").await.unwrap_err().to_string().contains("already"));
    network.heal(AP, US);
    network.heal(EU, US);
    // It still holds what the planet went on without, and is refused, evicted or not.
    let us = start(US, &[AP, EU]);
    eu.handle.readmit(US).await.unwrap();
    ap.reaches(&eu.vector()).await;
    assert!(us.run("SADD drinks water").starts_with("!EXCLUDED no other region takes what is written here"));
    assert!(
        us.handle.write_refusal().is_some_and(|reason| reason.contains("as new")),
        "the operator sees it"
    );
    assert_eq!(us.run("SCARD drinks"), "2", "reads go on");
    eu.run("SADD drinks milk");
    ap.reaches(&eu.vector()).await;
    assert_eq!(ap.run("SCARD drinks"), "2", "tea and milk");
    us.vanish(&network, US);
    fs::remove_dir_all(data.path().join(US)).unwrap();
    let us = start(US, &[AP, EU]);
    eventually("it may write", async || us.run("SADD drinks juice") == "1").await;
    assert_equal(&[&ap, &eu, &us]).await;
    assert_eq!(ap.run("SCARD drinks"), "3", "tea, milk and juice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_that_hears_of_its_eviction_takes_no_more_writes_not_even_after_a_start() {
    const AP: &str = "ap-southeast-2";
    let (network, data) = (Network::new(), tempfile::tempdir().unwrap());
    let start =
        |region: &str, peers: &[&str]| Node::start(&network, &data.path().join(region), region, peers);
    let (ap, eu, us) = (start(AP, &[EU, US]), start(EU, &[AP, US]), start(US, &[AP, EU]));
    meet(&[&ap, &eu, &us]).await;
    ap.handle.evict(US, true, "").await.unwrap();
    let refused = |us: &Node| us.run("SADD drinks water").starts_with("!EXCLUDED ");
    eventually("it hears of it", async || refused(&us)).await;
    assert_eq!(eu.run("SADD drinks tea"), "1", "the others go on");
    us.vanish(&network, US);
    let us = start(US, &[AP, EU]);
    assert!(refused(&us), "it is told before its first write");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_halves_that_evict_each_other_both_go_on() {
    let (network, data) = (Network::new(), tempfile::tempdir().unwrap());
    let start =
        |region: &str, peers: &[&str]| Node::start(&network, &data.path().join(region), region, peers);
    let (eu, us) = (start(EU, &[US]), start(US, &[EU]));
    meet(&[&eu, &us]).await;
    network.cut(EU, US);
    eventually("the loss is noticed", async || {
        !eu.stats().await.peers[0].connected && !us.stats().await.peers[0].connected
    })
    .await;
    eu.handle.evict(US, true, "").await.unwrap();
    us.handle.evict(EU, true, "").await.unwrap();
    let before = network.carried().0;
    network.heal(EU, US);
    // Several calls, each with a hello and a refusal.
    eventually("they refuse each other", async || network.carried().0 > before + 1_000).await;
    assert_eq!((eu.run("SADD drinks tea"), us.run("SADD drinks milk")), ("1".to_owned(), "1".to_owned()));
    assert_eq!((eu.handle.write_refusal(), us.handle.write_refusal()), (None, None));
}

//! What a real geode makes of what it should never be given, over real links with mutual TLS: one clear line for each,
//! nothing applied, nothing lost, and it goes on.

#![allow(clippy::unwrap_used)] // a test that unwraps fails, which is what it is for

mod geode;
mod peer;

use geode_link::Authority;
use geode_replica::wire::{self, Versions};

use geode::{Geode, PLANET, Ports, wait_for};
use peer::{Peer, actor, entry};

const EU: &str = "eu-west-1";
const US: &str = "us-east-1";

/// A planet of two regions: one real, the other played by the test. Its name comes first, so it is the one that calls.
fn planet(directory: &tempfile::TempDir) -> (Authority, Geode) {
    let authority = Authority::new(PLANET).unwrap();
    let ports = Ports::free();
    let nobody = Ports::free().link;
    let us = Geode::new(&directory.path().join("us"), US, ports, &[(EU, nobody), (US, ports.link)]);
    let us = us.start(&authority);
    // A first write waits for what the other region may know; nobody is there.
    assert_eq!(us.command::<String>("SET kept 1").unwrap(), "OK");
    (authority, us)
}

/// All that was there before is there, nothing else is, and it takes writes.
fn assert_untouched(us: &Geode) {
    assert_eq!(us.command::<String>("GET kept").unwrap(), "1");
    assert_eq!(us.command::<u64>("SCARD s").unwrap(), 0);
    assert_eq!(us.command::<u64>("INCR counter").unwrap(), 1);
    assert_eq!(us.command::<u64>("DEL counter").unwrap(), 1);
}

#[tokio::test]
async fn a_peer_that_is_not_who_it_must_be_is_refused_in_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let (authority, us) = planet(&directory);
    let stranger = Authority::new(PLANET).unwrap();
    let Err(refused) = Peer::call(EU, &stranger, &us).await else { panic!("a stranger was let in") };
    let line = format!("{refused}");
    assert!(line.contains("not of this planet's authority") && line.lines().count() == 1, "{line}");
    us.says(&["refused a call", "does not know the authority of this geode's certificate"]);
    let Err(refused) = Peer::call("sa-east-1", &authority, &us).await else {
        panic!("an unknown region was let in")
    };
    let line = format!("{refused}");
    assert!(line.contains("sa-east-1") && line.lines().count() == 1, "{line}");
    us.says(&["refused a call", "sa-east-1"]);

    let newer = Versions { oldest: wire::VERSIONS.newest + 1, newest: wire::VERSIONS.newest + 3 };
    let greetings = [
        ("another", wire::VERSIONS, actor(EU), "it belongs to planet \"another\", this region to \"acme\""),
        (PLANET, newer, actor(EU), "upgrade one release at a time"),
        (PLANET, wire::VERSIONS, actor(US), "it says it is region us-east-1, not eu-west-1"),
    ];
    for (planet, versions, actor, words) in greetings {
        let mut peer = Peer::call(EU, &authority, &us).await.unwrap();
        peer.greet(planet, versions, actor).await;
        let reason = peer.hear_the_end().await.unwrap();
        assert!(reason.contains(words) && reason.lines().count() == 1, "{reason}");
        us.says(&["replication with eu-west-1 was refused", words]);
    }
    assert_untouched(&us);
}

#[tokio::test]
async fn a_peer_that_sends_garbage_loses_its_link_and_nothing_is_applied() {
    let directory = tempfile::tempdir().unwrap();
    let (authority, us) = planet(&directory);
    let good = entry(&actor(EU), 1);
    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    let long = [good.as_slice(), b"more"].concat();
    let frames = [vec![0xff; 200], Vec::new(), flipped(good.len() / 2), flipped(good.len() - 1), long];
    for bytes in frames {
        let mut peer = Peer::call(EU, &authority, &us).await.unwrap();
        peer.greet_well().await;
        peer.frame(&bytes).await;
        peer.hear_the_end().await;
        assert_untouched(&us);
    }
    us.says(&["replication link closed", "its frame cannot be read"]);
    // No message at all, and one that stops in the middle.
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 64]] {
        let mut peer = Peer::call(EU, &authority, &us).await.unwrap();
        peer.greet_well().await;
        peer.send(bytes).await;
        peer.hear_the_end().await;
    }
    assert_untouched(&us);
    // It goes on with the same peer as if nothing had been.
    let mut peer = Peer::call(EU, &authority, &us).await.unwrap();
    peer.greet_well().await;
    peer.frame(&good).await;
    peer.hears_that_it_holds(&actor(EU), 1).await;
    assert_eq!(us.command::<Vec<String>>("SMEMBERS s").unwrap(), ["1"]);
}

#[tokio::test]
async fn what_follows_a_gap_waits_for_it_and_what_comes_twice_counts_once() {
    let directory = tempfile::tempdir().unwrap();
    let (authority, us) = planet(&directory);
    let eu = actor(EU);
    let mut peer = Peer::call(EU, &authority, &us).await.unwrap();
    peer.greet_well().await;
    for sequence in [3, 5, 3] {
        peer.frame(&entry(&eu, sequence)).await;
    }
    peer.frame(&entry(&eu, 1)).await;
    peer.hears_that_it_holds(&eu, 1).await;
    assert_eq!(us.command::<Vec<String>>("SMEMBERS s").unwrap(), ["1"]);
    peer.frame(&entry(&eu, 2)).await;
    peer.hears_that_it_holds(&eu, 3).await;
    assert_eq!(us.command::<u64>("SCARD s").unwrap(), 3);
}

#[tokio::test]
async fn entries_under_the_names_of_its_own_change_nothing_that_it_wrote() {
    let directory = tempfile::tempdir().unwrap();
    let (authority, us) = planet(&directory);
    let mut peer = Peer::call(EU, &authority, &us).await.unwrap();
    peer.greet_well().await;
    let own = peer.hears_who_it_is().await;
    peer.frame(&entry(&own, 1)).await;
    peer.frame(&entry(&actor(EU), 1)).await;
    peer.hears_that_it_holds(&actor(EU), 1).await;
    assert_eq!(us.command::<Vec<String>>("SMEMBERS s").unwrap(), ["1"]);
    assert_eq!(us.command::<String>("GET kept").unwrap(), "1");
    // It says so to whoever has another entry of that name, and goes on under a name that nobody has.
    let mut peer = Peer::call(EU, &authority, &us).await.unwrap();
    peer.greet_with_another_entry_of(&own, 1).await;
    us.says(&["this region goes on as incarnation", "eu-west-1 holds another entry 1 of this region"]);
    assert_eq!(us.command::<String>("GET kept").unwrap(), "1");
    assert_eq!(us.command::<String>("SET kept 2").unwrap(), "OK");
    peer.hears_that_another_writes(&own).await;
}

#[test]
fn a_data_directory_of_another_region_or_a_newer_release_is_refused_and_left_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let (authority, mut us) = planet(&directory);
    us.kill();
    let data = us.directory.join("data");
    let files = || {
        let logs = std::fs::read_dir(data.join("log")).unwrap().map(|file| file.unwrap().path());
        let mut all: Vec<_> = logs.chain([data.join("identity.json")]).collect();
        all.sort();
        all.into_iter().map(|path| (std::fs::read(&path).unwrap(), path)).collect::<Vec<_>>()
    };
    let before = files();
    let ports = Ports::free();
    let elsewhere = directory.path().join("eu");
    let mut eu = Geode::new(&elsewhere, EU, ports, &[(EU, ports.link), (US, us.ports.link)]);
    let toml = elsewhere.join("planet.toml");
    let text = std::fs::read_to_string(&toml).unwrap();
    let text = text.replace(&elsewhere.join("data").display().to_string(), &data.display().to_string());
    std::fs::write(&toml, text).unwrap();
    std::fs::write(elsewhere.join("eu-west-1.bundle"), authority.issue(&EU.parse().unwrap()).unwrap().text())
        .unwrap();
    eu.start_again();
    assert_eq!(eu.ends(), Some(2));
    let last = eu.log().lines().last().unwrap().to_owned();
    assert!(last.contains("holds data of region us-east-1, not of eu-west-1"), "{last}");
    assert_eq!(files(), before);

    let identity = data.join("identity.json");
    let mut newer: serde_json::Value = serde_json::from_slice(&std::fs::read(&identity).unwrap()).unwrap();
    let kept = std::fs::read(&identity).unwrap();
    newer["format"] = 99.into();
    std::fs::write(&identity, newer.to_string()).unwrap();
    let before = files();
    us.start_again();
    assert_eq!(us.ends(), Some(2));
    let last = us.log().lines().last().unwrap().to_owned();
    assert!(last.contains("identity.json has format 99") && last.contains("run a newer geode"), "{last}");
    assert_eq!(files(), before);
    std::fs::write(&identity, kept).unwrap();

    let clock = data.join("clock");
    let kept = std::fs::read(&clock).unwrap();
    let mut newer = kept.clone();
    newer[16..20].copy_from_slice(&99_u32.to_le_bytes());
    let checksum = crc32fast::hash(&newer[..20]);
    newer[20..24].copy_from_slice(&checksum.to_le_bytes());
    std::fs::write(&clock, &newer).unwrap();
    let before = files();
    us.start_again();
    assert_eq!(us.ends(), Some(2));
    let last = us.log().lines().last().unwrap().to_owned();
    assert!(last.contains("clock has format 99") && last.contains("run a newer geode"), "{last}");
    assert_eq!((files(), std::fs::read(&clock).unwrap()), (before, newer));
    std::fs::write(&clock, kept).unwrap();
    us.start_again();
    wait_for("what was there", || us.redis().and_then(|_| us.command::<String>("GET kept").ok()));
    assert_untouched(&us);
}

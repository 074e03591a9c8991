//! A volume that was rolled back under its own inode looks whole; only what peers say of it can tell.

#![allow(clippy::unwrap_used)] // a test that unwraps fails, which is what it is for

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use support::{Network, Node, assert_equal, eventually};

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
    us.run("SADD drinks tea");
    eu.reaches(&us.vector()).await;
    us.vanish(network, US);
    let snapshot = Snapshot::take(&data.join(US));
    let us = Node::start(network, &data.join(US), US, &[EU]);
    us.run("SADD drinks coffee");
    eu.reaches(&us.vector()).await;
    // From here on the dialler waits for an answer that never comes.
    network.leave_calls_unanswered();
    us.vanish(network, US);
    eventually("the dialler calls a dead machine", async || network.unanswered() > 0).await;
    snapshot.restore();
    eu
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolled_back_region_hears_a_reachable_peer_before_its_first_write() {
    let (network, data) = (Network::new(), tempfile::tempdir().unwrap());
    let eu = rolled_back(&network, data.path()).await;
    let us = Node::start(&network, &data.path().join(US), US, &[EU]);
    us.run("SADD drinks milk");
    assert_equal(&[&eu, &us]).await;
    assert_eq!(eu.run("SMEMBERS drinks"), us.run("SMEMBERS drinks"));
    assert_eq!(eu.run("SCARD drinks"), "3", "no dot was used twice");
}

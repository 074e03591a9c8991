//! What a write takes on the wire before compression: a frame goes to each peer as it stands in the log.

#![allow(clippy::unwrap_used)] // a test that unwraps fails, which is what it is for

mod support;

use geode_crdt::Actors;
use geode_embedded::{Config, read_frames};
use geode_replica::wire;
use geode_store::conformance::Recorder;
use geode_store::{Engine, Flow, Session};
use support::{Local, PLANET, wall};

const EU: &str = "eu-west-1";

/// Bytes of messages for one SET of a key of 16 bytes and a value of 100, with so many in each batch.
fn bytes_per_set(batch: usize) -> usize {
    let data = tempfile::tempdir().unwrap();
    let mut region = Local::open(Config::new(data.path(), PLANET, EU, &[])).unwrap();
    for round in 0..20 {
        region.store.engine.set_wall(wall());
        for number in 0..batch {
            let (mut session, mut reply) = (Session::default(), Recorder::default());
            let (key, value) = (format!("key:{number:012}"), format!("{round:0100}"));
            let words = [b"SET".as_slice(), key.as_bytes(), value.as_bytes()];
            assert_eq!(region.store.execute(&mut session, &words, &mut reply), Flow::Done);
        }
        region.store.engine.flush().unwrap();
    }
    drop(region);
    let (mut bytes, mut entries) = (0, 0);
    read_frames(data.path(), (PLANET, EU), &mut Actors::default(), |frame, _| {
        bytes += wire::HEAD + frame.bytes().len();
        entries += frame.last_sequence() + 1 - frame.first_sequence();
    })
    .unwrap();
    assert_eq!(entries, 20 * batch as u64);
    bytes / entries as usize
}

#[test]
fn a_set_of_100_bytes_takes_at_most_160_on_the_wire() {
    // With 50 connections, and with one that pipelines 16.
    for batch in [4, 16, 50] {
        let bytes = bytes_per_set(batch);
        assert!(bytes <= 160, "{bytes} bytes with {batch} in a batch");
    }
}

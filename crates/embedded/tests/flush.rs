//! FLUSHALL of a large store holds nobody up for long.

#![allow(clippy::unwrap_used)] // a test that unwraps fails, which is what it is for

mod support;

use geode_embedded::Config;
use geode_store::conformance::Recorder;
use geode_store::{Engine, Flow, Session};
use support::{Local, PLANET};

#[test]
fn others_have_their_turn_while_a_large_store_is_flushed() {
    let data = tempfile::tempdir().unwrap();
    let mut region = Local::open(Config::new(data.path(), PLANET, "eu-west-1", &[])).unwrap();
    for first in (0..20_000).step_by(2_000) {
        let keys: Vec<String> = (first..first + 2_000).map(|n| format!("k{n} v")).collect();
        region.run(&format!("MSET {}", keys.join(" ")));
    }
    let (mut session, mut reply) = (Session::default(), Recorder::default());
    let mut flow = region.store.execute(&mut session, &[b"FLUSHALL"], &mut reply);
    let mut left = vec![20_000];
    while flow != Flow::Done {
        left.push(region.run("DBSIZE").parse().unwrap());
        assert_eq!(region.run("SET other 1"), "OK");
        region.store.engine.turn();
        flow = region.store.resume(&mut session, &mut reply);
    }
    assert_eq!(reply.finish().unwrap().to_string(), "OK");
    assert!(left.len() > 4, "others were served in between: {left:?}");
    assert!(left.is_sorted_by(|before, after| before > after), "{left:?}");
    assert!(region.run("DBSIZE").parse::<u32>().unwrap() <= 1, "only what was written meanwhile may stay");
}

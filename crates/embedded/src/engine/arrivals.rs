//! Entries that meet keys on disk: they wait, in their order, and nobody else does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use geode_crdt::{ActorId, HybridTime};
use geode_replica::{Message, Vector, wire};
use geode_store::conformance::Recorder;
use geode_store::{Engine, Flow, Options, Session, Store, View};
use tempfile::TempDir;

use crate::inbox::Incoming;
use crate::log::{Kind, Reader};
use crate::outbox::Outbox;
use crate::{Config, Embedded};

/// Far beyond what a disk takes.
const DEADLINE: Duration = Duration::from_secs(60);
const WALL: HybridTime = HybridTime(1_767_225_600_000_000);

struct Region {
    store: Store<Embedded>,
    shipped: Reader,
    outbox: Arc<Outbox>,
    data: TempDir,
}

impl Region {
    fn new(name: &str, peer: &str, memory: Option<u64>) -> Self {
        let data = tempfile::tempdir().unwrap();
        let config =
            Config { memory, checkpoint_bytes: 0, ..Config::new(data.path(), "tested", name, &[peer]) };
        let (engine, _) = Embedded::open(config).unwrap();
        let shipped = Reader::new(engine.core.log.segments().clone(), 0);
        let store = Store::new(engine, Options::default());
        let mut region = Self { store, shipped, outbox: Arc::default(), data };
        region.connect(peer);
        region
    }

    fn connect(&mut self, peer: &str) {
        let hello = Message::Hello {
            versions: wire::VERSIONS,
            planet: "tested".to_owned(),
            actor: ActorId::new(peer, 1),
            held: Vector::default(),
            witnesses: Vec::new(),
        };
        let (peer, outbox): (Arc<str>, _) = (peer.into(), Arc::clone(&self.outbox));
        let engine = &mut self.store.engine;
        engine.handle(Incoming::Connected { peer: Arc::clone(&peer), outbox: Arc::clone(&outbox) });
        engine.handle(Incoming::Message { peer, outbox, message: hello, _permit: None });
    }

    /// Runs a command that has not to wait.
    fn run(&mut self, command: &str) -> String {
        self.store.engine.set_wall(WALL);
        let mut reply = Recorder::default();
        let words: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
        assert_eq!(self.store.execute(&mut Session::default(), &words, &mut reply), Flow::Done, "{command}");
        self.store.engine.flush().unwrap();
        reply.finish().unwrap().to_string()
    }

    /// The frames that it has written since this was last asked.
    fn frames(&mut self) -> Vec<Vec<u8>> {
        let end = self.store.engine.core.flush().unwrap();
        let records = self.shipped.read(end).unwrap();
        records.filter(|record| record.kind == Kind::Own).map(|record| record.body.to_vec()).collect()
    }

    fn receive(&mut self, peer: &str, bytes: &[u8]) {
        let (peer, bytes, outbox) = (peer.into(), bytes.to_vec(), Arc::clone(&self.outbox));
        self.store.engine.receive(Incoming::Frame { peer, outbox, bytes, _permit: None });
    }

    fn receive_in_bulk(&mut self, peer: &str, bytes: &[u8]) {
        let (peer, bytes) = (peer.into(), bytes.to_vec());
        self.store.engine.receive(Incoming::Bulk { peer, bytes, _permit: None });
    }

    /// How many entries of a region it holds.
    fn held_of(&self, peer: &str) -> u64 {
        let engine = &self.store.engine;
        let actors = engine.core.rows.table.actors();
        let held = engine.replica.held().iter();
        held.filter(|(actor, _)| *actors.id(*actor).region == *peer).map(|(_, sequence)| sequence).sum()
    }

    fn turn_until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let until = Instant::now() + DEADLINE;
        while !is_so(self) {
            assert!(Instant::now() < until, "it never happens: {what}");
            self.store.engine.turn();
            std::thread::yield_now();
        }
    }
}

/// A region whose keys are all on disk alone, and another.
fn regions() -> (Region, Region) {
    let (mut eu, us) = (Region::new("eu", "us", Some(1 << 20)), Region::new("us", "eu", None));
    for number in 0..500 {
        eu.run(&format!("SET key:{number} {number}"));
    }
    eu.store.engine.cool();
    eu.store.engine.cold.as_mut().unwrap().stop_warming();
    assert_eq!(eu.store.engine.core.rows.table.cold_keys(), 500);
    (eu, us)
}

#[test]
fn entries_wait_for_keys_on_disk_while_commands_go_on() {
    let (mut eu, mut us) = regions();
    us.run("SADD key:7 member");
    let first = us.frames().remove(0);
    us.run("SET new value");
    let second = us.frames().remove(0);
    eu.receive("us", &first);
    assert_eq!(eu.held_of("us"), 0, "its key is being read");
    eu.receive("us", &second);
    assert_eq!(eu.held_of("us"), 0, "what came later is not delivered earlier");
    assert_eq!(eu.run("SET mine 1"), "OK", "nobody waits for them");
    eu.turn_until("they are delivered", |eu| eu.held_of("us") == 2);
    assert_eq!(eu.store.engine.core.rows.table.waited_loads(), 0, "the data thread read nothing");
    assert_eq!((eu.run("GET new"), eu.run("GET mine")), ("\"value\"".to_owned(), "\"1\"".to_owned()));
}

#[test]
fn what_comes_live_does_not_wait_for_what_came_in_bulk() {
    let (mut eu, mut us) = regions();
    us.run("SADD key:7 member");
    let first = us.frames().remove(0);
    us.run("SADD key:8 member");
    let second = us.frames().remove(0);
    eu.receive_in_bulk("us", &first);
    assert!(eu.store.engine.may_take_bulk());
    eu.receive_in_bulk("us", &second);
    assert!(!eu.store.engine.may_take_bulk(), "no more of it is taken than can be read ahead");
    eu.receive("us", &first);
    eu.turn_until("they are delivered", |eu| eu.held_of("us") == 2);
    assert!(eu.store.engine.may_take_bulk());
    assert_eq!(eu.store.engine.core.rows.table.waited_loads(), 0);
}

/// A link that is gone takes with it what it brought and nobody has delivered: it is sent again.
#[test]
fn what_waits_of_a_link_that_is_gone_is_not_delivered() {
    let (mut eu, mut us) = regions();
    us.run("SADD key:7 member");
    let frame = us.frames().remove(0);
    eu.receive("us", &frame);
    eu.outbox = Arc::default();
    eu.connect("us");
    eu.turn_until("its key is read", |eu| eu.store.engine.core.rows.table.cold_keys() == 499);
    eu.store.engine.turn();
    assert_eq!(eu.held_of("us"), 0);
    eu.receive("us", &frame);
    assert_eq!(eu.held_of("us"), 1);
}

/// While changed keys that no checkpoint takes fill the memory, entries wait as writes do.
#[test]
fn entries_wait_while_the_memory_is_full() {
    let (mut eu, mut us) = (Region::new("eu", "us", Some(1 << 20)), Region::new("us", "eu", None));
    let in_the_way = eu.data.path().join("checkpoint.redb");
    std::fs::create_dir(&in_the_way).unwrap();
    let value = "x".repeat(10_000);
    for number in 0.. {
        if eu.run(&format!("SET key:{number} {value}")).contains("OOM") {
            break;
        }
        eu.store.engine.turn();
    }
    us.run("SET key:us value");
    let (bytes, outbox) = (us.frames().remove(0), Arc::clone(&eu.outbox));
    let frame = Incoming::Frame { peer: "us".into(), outbox, bytes, _permit: None };
    eu.store.engine.shared.inbox().push(frame);
    eu.store.engine.turn();
    assert_eq!(eu.held_of("us"), 0, "there is no memory for it");
    std::fs::remove_dir(&in_the_way).unwrap();
    eu.turn_until("it is delivered", |eu| eu.held_of("us") == 1);
}

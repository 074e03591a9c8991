//! Data larger than memory, against the reference engine: whatever is on disk alone, and however often the region starts
//! again, commands answer the same.

use std::sync::Arc;
use std::time::{Duration, Instant};

use geode_crdt::HybridTime;
use geode_store::conformance::{Recorder, Value};
use geode_store::reference::ReferenceEngine;
use geode_store::{Engine, Flow, Options, Session, Store};
use proptest::prelude::*;
use tempfile::TempDir;

use crate::{Config, Embedded, EmbeddedHandle};

/// Far beyond what a disk takes.
const DEADLINE: Duration = Duration::from_secs(60);
const WALL: HybridTime = HybridTime(1_767_225_600_000_000);

impl Embedded {
    /// Completes a checkpoint and takes everything out of memory that may leave.
    pub(super) fn cool(&mut self) {
        let until = Instant::now() + DEADLINE;
        self.flush().unwrap();
        while self.tail_bytes() > 0 || self.core.rows.table.resident_keys().1 > 0 {
            assert!(Instant::now() < until, "the checkpoint is never completed");
            self.on_disk.press(self.core.rows.table.resident_keys().1 > 0);
            self.keep_checkpoint();
            std::thread::yield_now();
        }
        self.on_disk.press(false);
        let committed = self.on_disk.progress().committed();
        for _ in 0..2 {
            self.core.rows.table.evict(committed, 0, usize::MAX);
        }
    }
}

fn execute<E: Engine>(store: &mut Store<E>, session: &mut Session, line: &str) -> Value {
    let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
    store.engine.set_wall(WALL);
    let mut reply = Recorder::default();
    let mut flow = store.execute(session, &words, &mut reply);
    let until = Instant::now() + DEADLINE;
    while let Flow::Wait { .. } = flow {
        assert!(Instant::now() < until, "{line} is never answered");
        store.engine.turn();
        flow = store.resume(session, &mut reply);
    }
    store.engine.flush().unwrap();
    reply.finish().unwrap()
}

/// A region with a limit, and what it should be.
struct Pair {
    data: TempDir,
    store: Option<Store<Embedded>>,
    reference: Store<ReferenceEngine>,
}

#[derive(Clone, Debug)]
enum Step {
    Command(String),
    /// Everything is on disk alone.
    Cool,
    /// The engine works between two commands.
    Turn,
    /// The process ends, cleanly or not, and starts again, with a limit or without.
    Restart {
        is_clean: bool,
        is_limited: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let key = || proptest::sample::select(&["a", "b", "c", "d", "e", "f"]);
    let command = prop_oneof![
        (key(), 0..3u8).prop_map(|(key, value)| format!("SET {key} {value}")),
        (key(), 1..9u8).prop_map(|(key, by)| format!("INCRBY {key} {by}")),
        key().prop_map(|key| format!("DEL {key}")),
        (key(), key()).prop_map(|(left, right)| format!("DEL {left} {right}")),
        (key(), key()).prop_map(|(left, right)| format!("MSET {left} 1 {right} 2")),
        (key(), key()).prop_map(|(from, to)| format!("RENAME {from} {to}")),
        key().prop_map(|key| format!("SADD {key} m n")),
        key().prop_map(|key| format!("SREM {key} m")),
        key().prop_map(|key| format!("HINCRBY {key} f 2")),
        key().prop_map(|key| format!("HDEL {key} f")),
        key().prop_map(|key| format!("RPUSH {key} x y")),
        key().prop_map(|key| format!("LPOP {key}")),
        key().prop_map(|key| format!("EXPIRE {key} 1000")),
        key().prop_map(|key| format!("PERSIST {key}")),
        key().prop_map(|key| format!("TYPE {key}")),
        key().prop_map(|key| format!("TTL {key}")),
        key().prop_map(|key| format!("LRANGE {key} 0 -1")),
        Just("MGET a b c d e f".to_owned()),
        Just("EXISTS a b c d e f g".to_owned()),
        Just("KEYS *".to_owned()),
        Just("DBSIZE".to_owned()),
        Just("FLUSHALL".to_owned()),
        Just("MULTI".to_owned()),
        Just("EXEC".to_owned()),
        (0..2u8).prop_map(|database| format!("SELECT {database}")),
    ];
    prop_oneof![
        12 => command.prop_map(Step::Command),
        4 => Just(Step::Cool),
        2 => Just(Step::Turn),
        1 => any::<(bool, bool)>().prop_map(|(is_clean, is_limited)| Step::Restart { is_clean, is_limited }),
    ]
}

impl Pair {
    fn new(seed: u64) -> Self {
        let data = tempfile::tempdir().unwrap();
        let reference = Store::new(ReferenceEngine::new("eu", 1, seed), Options::default());
        let mut pair = Self { data, store: None, reference };
        pair.open(true);
        pair
    }

    fn open(&mut self, is_limited: bool) {
        self.store = None;
        let mut config = Config::new(self.data.path(), "tested", "eu", &[]);
        (config.checkpoint_bytes, config.segment_bytes) = (0, 2_000);
        config.memory = is_limited.then_some(1 << 20);
        let (engine, _) = Embedded::open(config).unwrap();
        self.store = Some(Store::new(engine, Options::default()));
    }

    fn store(&mut self) -> &mut Store<Embedded> {
        self.store.as_mut().unwrap()
    }

    fn play(&mut self, steps: &[Step]) -> Result<(), TestCaseError> {
        let mut sessions = [Session::default(), Session::default()];
        for step in steps {
            match step {
                Step::Command(line) => {
                    let expected = execute(&mut self.reference, &mut sessions[0], line);
                    let got = execute(self.store(), &mut sessions[1], line);
                    prop_assert_eq!(got.unordered(), expected.unordered(), "{}", line);
                }
                Step::Cool => self.store().engine.cool(),
                Step::Turn => drop(self.store().engine.turn()),
                Step::Restart { is_clean, is_limited } => {
                    let sums = self.store().engine.core.rows.table.digest().clone();
                    if *is_clean {
                        self.store().engine.stop().unwrap();
                    }
                    self.open(*is_limited);
                    let table = &self.store().engine.core.rows.table;
                    prop_assert_eq!(table.digest(), &sums);
                }
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn commands_answer_what_the_reference_engine_answers(
        steps in proptest::collection::vec(step(), 1..80),
        seed in any::<u64>(),
    ) {
        Pair::new(seed).play(&steps)?;
    }
}

/// What counters that were deleted wait for is known again after a start.
#[test]
fn a_start_knows_what_delivered_entries_depend_on() {
    let mut pair = Pair::new(1);
    let rows = &mut pair.store().engine.core.rows;
    let other = rows.table.actors_mut().intern(&geode_crdt::ActorId::new("us", 7));
    let own = rows.own;
    rows.table.depend(other, own, 5);
    execute(pair.store(), &mut Session::default(), "SET a 1");
    pair.store().engine.cool();
    for is_limited in [false, true] {
        pair.open(is_limited);
        let depends: Vec<_> = pair.store().engine.core.rows.table.depends().collect();
        assert_eq!(depends, [(other, own, 5)]);
    }
}

/// A mark names actors even where no key is left of all that they wrote.
#[test]
fn a_checkpoint_without_a_key_is_started_from() {
    let mut pair = Pair::new(1);
    let mut session = Session::default();
    execute(pair.store(), &mut session, "SET a 1");
    execute(pair.store(), &mut session, "DEL a");
    pair.store().engine.cool();
    pair.open(false);
    assert_eq!(execute(pair.store(), &mut session, "DBSIZE"), Value::Integer(0));
}

/// A start with a limit reads what stands behind the mark, and brings the rest in afterwards.
#[test]
fn a_start_with_a_limit_loads_nothing_and_warms_up() {
    let mut pair = Pair::new(1);
    let mut session = Session::default();
    for number in 0..500 {
        execute(pair.store(), &mut session, &format!("SET key:{number} {number}"));
    }
    pair.store().engine.cool();
    execute(pair.store(), &mut session, "SET key:3 new");
    pair.open(true);
    let engine = &mut pair.store().engine;
    assert_eq!(engine.core.rows.table.cold_keys(), 499, "only what is in the log's tail was loaded");
    let until = Instant::now() + DEADLINE;
    while engine.core.rows.table.cold_keys() > 0 {
        assert!(Instant::now() < until);
        engine.turn();
        std::thread::yield_now();
    }
    assert_eq!(engine.core.rows.table.waited_loads(), 1);
    assert_eq!(execute(pair.store(), &mut session, "GET key:3"), Value::Bulk(b"new".to_vec()));
    assert_eq!(execute(pair.store(), &mut session, "DBSIZE"), Value::Integer(500));
}

/// A key that was never there is not looked for on the disk; after a start not for long.
#[test]
fn new_keys_are_written_without_asking_the_disk() {
    let mut pair = Pair::new(1);
    let mut session = Session::default();
    for number in 0..3000 {
        execute(pair.store(), &mut session, &format!("SET key:{number} {number}"));
    }
    pair.store().engine.cool();
    for number in 3000..6000 {
        execute(pair.store(), &mut session, &format!("SET key:{number} {number}"));
    }
    let fetched = pair.store().engine.stats().fetched_keys;
    assert!(fetched < 100, "{fetched} of 3000 new keys were looked for on the disk");
    pair.store().engine.cool();
    pair.open(true);
    pair.store().engine.cold.as_mut().unwrap().stop_warming();
    let mut rounds = 6000..;
    let until = Instant::now() + DEADLINE;
    loop {
        assert!(Instant::now() < until, "the names on disk are never learned");
        let before = pair.store().engine.stats().fetched_keys;
        for number in rounds.by_ref().take(3000) {
            execute(pair.store(), &mut session, &format!("SET key:{number} {number}"));
        }
        if pair.store().engine.stats().fetched_keys - before < 100 {
            break;
        }
    }
    assert!(pair.store().engine.core.rows.table.cold_keys() > 5000);
}

/// What a scan finds while keys come and go between its calls, and what FLUSHALL leaves of keys that are on disk.
#[test]
fn scans_and_flushes_reach_keys_on_disk() {
    let mut pair = Pair::new(1);
    let mut session = Session::default();
    for number in 0..3000 {
        execute(pair.store(), &mut session, &format!("SET key:{number} {number}"));
    }
    pair.store().engine.cool();
    assert_eq!(pair.store().engine.core.rows.table.cold_keys(), 3000);
    let (mut cursor, mut names) = ("0".to_owned(), std::collections::BTreeSet::new());
    loop {
        let line = format!("SCAN {cursor} COUNT 100");
        let Value::Array(parts) = execute(pair.store(), &mut session, &line) else { panic!("not an array") };
        let [Value::Bulk(next), Value::Array(found)] = &parts[..] else { panic!("not a scan: {parts:?}") };
        names.extend(found.iter().map(ToString::to_string));
        cursor = String::from_utf8(next.clone()).unwrap();
        pair.store().engine.cool();
        if cursor == "0" {
            break;
        }
    }
    assert_eq!(names.len(), 3000);
    let Value::Array(listed) = execute(pair.store(), &mut session, "KEYS key:1*") else {
        panic!("not an array")
    };
    assert_eq!(listed.len(), 1111);
    pair.store().engine.cool();
    execute(pair.store(), &mut session, "FLUSHALL");
    pair.store().engine.cool();
    assert_eq!(execute(pair.store(), &mut session, "DBSIZE"), Value::Integer(0));
    assert_eq!(execute(pair.store(), &mut session, "KEYS *"), Value::Array(Vec::new()));
    assert_eq!(pair.store().engine.core.rows.table.cold_keys(), 0);
    pair.open(true);
    assert_eq!(execute(pair.store(), &mut session, "GET key:7"), Value::Null);
}

/// Keys on disk whose deadline has passed are found there and swept, with those that were deleted before.
#[test]
fn expired_keys_on_disk_are_swept() {
    let mut pair = Pair::new(1);
    let mut session = Session::default();
    for number in 0..600 {
        execute(pair.store(), &mut session, &format!("SET key:{number} v PX 1000"));
    }
    execute(pair.store(), &mut session, "SET inert v PX 1000");
    execute(pair.store(), &mut session, "DEL inert");
    execute(pair.store(), &mut session, "SET later v PX 100000000");
    execute(pair.store(), &mut session, "SET for-ever v");
    pair.store().engine.cool();
    let table = &pair.store().engine.core.rows.table;
    assert_eq!(table.resident_keys(), (0, 0), "all of it is on disk alone");
    let until = Instant::now() + DEADLINE;
    while pair.store().engine.core.rows.table.cold_keys() > 2
        || pair.store().engine.core.rows.table.live_keys() > 2
    {
        assert!(Instant::now() < until, "{:?}", pair.store().engine.core.rows.table.cold_keys());
        pair.store().engine.set_wall(HybridTime(WALL.0 + 10_000_000));
        pair.store().sweep(128);
        pair.store().engine.turn();
        std::thread::yield_now();
    }
    pair.store().engine.cool();
    pair.open(true);
    assert_eq!(execute(pair.store(), &mut session, "DBSIZE"), Value::Integer(2));
    assert_eq!(pair.store().engine.core.rows.table.cold_keys(), 2, "nothing is left of the others");
}

/// Bytes that rows may take in [`Pair::open`], and how many at most while changed keys cannot be put on disk.
const LIMIT: u64 = (1 << 20) / 8 * 7;
const CEILING: u64 = LIMIT / 2 * 3;

impl Pair {
    fn turn_until(&mut self, what: &str, is_so: impl Fn(&Embedded) -> bool) {
        let until = Instant::now() + DEADLINE;
        while !is_so(&self.store().engine) {
            assert!(Instant::now() < until, "it never happens: {what}");
            self.store().engine.turn();
            std::thread::yield_now();
        }
    }
}

fn is_refused(value: &Value) -> bool {
    value.to_string().contains("OOM changed keys take more than store.memory allows")
}

/// A checkpoint that cannot be written, while the log can: writes are refused before memory is gone, and go on afterwards.
#[test]
fn changed_keys_that_no_disk_takes_do_not_fill_the_memory() {
    let mut pair = Pair::new(1);
    let mut session = Session::default();
    let in_the_way = pair.data.path().join("checkpoint.redb");
    std::fs::create_dir(&in_the_way).unwrap();
    let value = "x".repeat(1000);
    let mut written = 0;
    let refusal = loop {
        assert!(written < 10_000, "nothing is ever refused");
        let got = execute(pair.store(), &mut session, &format!("SET key:{written} {value}"));
        if is_refused(&got) {
            break got;
        }
        assert_eq!(got, Value::Simple("OK".to_owned()));
        written += 1;
        pair.store().engine.turn();
    };
    assert!(refusal.to_string().contains("the checkpoint cannot be written"), "{refusal}");
    let engine = &pair.store().engine;
    assert!(engine.core.rows.table.memory_bytes() < CEILING + 2000, "it is refused in time");
    let handle = EmbeddedHandle::new(Arc::clone(&engine.shared));
    assert!(handle.write_refusal().is_some_and(|shown| shown.starts_with("OOM")), "others are told");
    for number in [0, written / 2, written - 1] {
        let got = execute(pair.store(), &mut session, &format!("GET key:{number}"));
        assert_eq!(got, Value::Bulk(value.clone().into_bytes()), "reads go on");
    }
    std::fs::remove_dir(&in_the_way).unwrap();
    pair.turn_until("writes go on", |engine| engine.write_refusal().is_none());
    assert_eq!(
        execute(pair.store(), &mut session, &format!("SET more {value}")),
        Value::Simple("OK".to_owned())
    );
    pair.turn_until("memory is given back", |engine| engine.core.rows.table.memory_bytes() <= LIMIT);
    assert_eq!(handle.write_refusal(), None);
    for number in 0..written {
        let got = execute(pair.store(), &mut session, &format!("GET key:{number}"));
        assert_eq!(got, Value::Bulk(value.clone().into_bytes()));
    }
    assert_eq!(execute(pair.store(), &mut session, "DBSIZE"), Value::Integer(written + 1));
}

/// A key that is larger than the limit is on disk as soon as it is written, and comes whole when it is read; that it is there
/// then stops no writes.
#[test]
fn a_key_that_is_larger_than_the_limit_is_written_and_read() {
    let mut pair = Pair::new(1);
    let mut session = Session::default();
    let value = "x".repeat(1000);
    for number in 0..3000 {
        let line = format!("HSET large field:{number} {value}");
        if is_refused(&execute(pair.store(), &mut session, &line)) {
            pair.turn_until("the disk has it", |engine| engine.write_refusal().is_none());
            assert_eq!(execute(pair.store(), &mut session, &line), Value::Integer(1));
        }
    }
    pair.turn_until("it is on disk alone", |engine| engine.core.rows.table.cold_keys() == 1);
    // The checkpoint is marked behind what it wrote: until then the log still counts as what the disk is late with.
    pair.store().engine.cool();
    assert!(pair.store().engine.core.rows.table.memory_bytes() < LIMIT);
    assert_eq!(
        execute(pair.store(), &mut session, "HGET large field:2999"),
        Value::Bulk(value.clone().into_bytes())
    );
    assert_eq!(execute(pair.store(), &mut session, "HLEN large"), Value::Integer(3000));
    assert!(pair.store().engine.core.rows.table.memory_bytes() > CEILING);
    for number in 0..100 {
        let got = execute(pair.store(), &mut session, &format!("SET key:{number} {number}"));
        assert_eq!(got, Value::Simple("OK".to_owned()));
        pair.store().engine.turn();
    }
    pair.turn_until("it leaves again", |engine| engine.core.rows.table.memory_bytes() < LIMIT);
}

/// A clean stop leaves nothing for the next start to replay; one whose checkpoint cannot be written does, and ends all the same.
#[test]
fn a_clean_stop_leaves_no_tail() {
    let mut pair = Pair::new(1);
    let mut session = Session::default();
    for number in 0..500 {
        execute(pair.store(), &mut session, &format!("SET key:{number} {number}"));
    }
    pair.store().engine.cool();
    for number in 400..900 {
        execute(pair.store(), &mut session, &format!("SET key:{number} new"));
    }
    assert!(pair.store().engine.tail_bytes() > 0);
    pair.store().engine.stop().unwrap();
    pair.open(true);
    let engine = &pair.store().engine;
    assert_eq!((engine.tail_bytes(), engine.core.rows.table.cold_keys()), (0, 900));
    assert_eq!(execute(pair.store(), &mut session, "GET key:399"), Value::Bulk(b"399".to_vec()));
    assert_eq!(execute(pair.store(), &mut session, "GET key:400"), Value::Bulk(b"new".to_vec()));

    let mut pair = Pair::new(1);
    let in_the_way = pair.data.path().join("checkpoint.redb");
    std::fs::create_dir(&in_the_way).unwrap();
    execute(pair.store(), &mut session, "SET key value");
    pair.store().engine.stop().unwrap();
    assert!(pair.store().engine.tail_bytes() > 0);
    std::fs::remove_dir(&in_the_way).unwrap();
    pair.open(true);
    assert_eq!(execute(pair.store(), &mut session, "GET key"), Value::Bulk(b"value".to_vec()));
}

/// A record that is not what was written is found when its key is needed. Who needs it waits, and nobody else does.
#[test]
fn a_damaged_record_holds_up_those_alone_who_need_it() {
    let mut pair = Pair::new(1);
    let mut session = Session::default();
    for number in 0..500 {
        execute(pair.store(), &mut session, &format!("SET key:{number} value-of-{number:06}"));
    }
    pair.store().engine.cool();
    pair.store().engine.stop().unwrap();
    pair.store = None;
    let path = pair.data.path().join("checkpoint.redb");
    let mut bytes = std::fs::read(&path).unwrap();
    let damaged = b"value-of-000007";
    let places: Vec<usize> =
        (0..bytes.len() - damaged.len()).filter(|at| bytes[*at..].starts_with(damaged)).collect();
    assert!(!places.is_empty());
    places.into_iter().for_each(|at| bytes[at] ^= 1);
    std::fs::write(&path, bytes).unwrap();
    pair.open(true);
    pair.store().engine.cold.as_mut().unwrap().stop_warming();
    let mut waiting = Session::default();
    let store = pair.store();
    store.engine.set_wall(WALL);
    let flow = store.execute(&mut waiting, &[b"GET", b"key:7"], &mut Recorder::default());
    assert!(matches!(flow, Flow::Wait { .. }));
    for number in [8, 499, 100] {
        let got = execute(pair.store(), &mut session, &format!("GET key:{number}"));
        assert_eq!(got, Value::Bulk(format!("value-of-{number:06}").into_bytes()));
    }
    assert_eq!(
        execute(pair.store(), &mut session, "SET key:9 new"),
        Value::Simple("OK".to_owned()),
        "writes go on"
    );
    let flow = pair.store().resume(&mut waiting, &mut Recorder::default());
    assert!(matches!(flow, Flow::Wait { .. }), "what is damaged is never shown");
}

//! What concerns a connection, or what an entry holds: waiting, transactions, the sweep, INFO.

mod reference_replica;

use std::sync::Arc;

use geode_crdt::{ActorId, Actors, Digest, Frame, HybridTime};
use geode_store::conformance::{Planet, Recorder, Replica, Value};
use geode_store::reference::ReferenceEngine;
use geode_store::{Engine, Extent, Flow, Options, Session, Store};
use reference_replica::ReferenceReplica;

fn planet(regions: &[&str]) -> Planet<ReferenceReplica> {
    let regions: Vec<String> = regions.iter().map(|&region| region.to_owned()).collect();
    Planet::new(&regions, &mut |region, regions| ReferenceReplica::new(region, regions, 7))
}

fn execute(planet: &mut Planet<ReferenceReplica>, at: usize, line: &str) -> String {
    let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
    planet.execute(at, &words).to_string()
}

fn store(regions: usize) -> Store<ReferenceEngine> {
    Store::new(ReferenceEngine::new("us", regions, 1), Options::default())
}

#[test]
fn reads_and_commands_that_change_nothing_leave_no_entry() {
    let mut planet = planet(&["us"]);
    for line in [
        "GET k",
        "DEL k",
        "SREM s m",
        "HDEL h f",
        "LPOP l",
        "LTRIM l 0 1",
        "PERSIST k",
        "EXPIRE k 10",
        "GETEX k",
        "GETDEL k",
        "SPOP s",
        "RENAME k l",
        "INCRBY k x",
        "MSET a",
        "FLUSHALL",
        "SET k v XX",
        "KEYS *",
        "MULTI",
        "GET k",
        "DEL k",
        "EXEC",
    ] {
        execute(&mut planet, 0, line);
        assert_eq!(planet.frames(0).len(), 0, "{line}");
    }
    execute(&mut planet, 0, "SET k v");
    assert_eq!(planet.frames(0).len(), 1);
    execute(&mut planet, 0, "SADD k m");
    assert_eq!(planet.frames(0).len(), 1, "an error leaves nothing behind");
}

#[test]
fn a_transaction_is_one_entry_and_a_flush_is_one_for_each_chunk() {
    let mut planet = planet(&["us"]);
    for line in ["MULTI", "SET a 1", "INCR n", "RPUSH l x y", "EXEC"] {
        execute(&mut planet, 0, line);
    }
    assert_eq!(planet.frames(0).len(), 1);
    let keys: Vec<String> = (0..2500).map(|n| format!("k{n} v")).collect();
    execute(&mut planet, 0, &format!("MSET {}", keys.join(" ")));
    assert_eq!(planet.frames(0).len(), 2);
    assert_eq!(execute(&mut planet, 0, "FLUSHALL"), "OK");
    assert_eq!(execute(&mut planet, 0, "DBSIZE"), "0");
    assert_eq!(planet.frames(0).len(), 2 + 3);
}

#[test]
fn a_scan_in_steps_sees_every_key_that_stays() {
    let mut planet = planet(&["us"]);
    for n in 0..100 {
        execute(&mut planet, 0, &format!("SET stays{n} v"));
    }
    let mut seen = std::collections::BTreeSet::new();
    let mut cursor = "0".to_owned();
    for step in 0.. {
        execute(&mut planet, 0, &format!("SET comes{step} v"));
        execute(&mut planet, 0, &format!("DEL comes{} none", step / 2));
        let reply = planet.execute(0, &[b"SCAN", cursor.as_bytes(), b"COUNT", b"7", b"MATCH", b"stays*"]);
        let Value::Array(parts) = reply else { panic!("SCAN answers an array") };
        let [Value::Bulk(next), Value::Array(keys)] = &parts[..] else { panic!("a cursor and keys") };
        seen.extend(keys.iter().map(Value::to_string));
        cursor = String::from_utf8_lossy(next).into_owned();
        if cursor == "0" {
            break;
        }
    }
    assert_eq!(seen.len(), 100);
}

#[test]
fn wait_answers_when_enough_regions_have_the_write_on_disk() {
    let mut store = store(3);
    let (mut session, mut reply) = (Session::default(), Recorder::default());
    let mut flow = store.execute(&mut session, &[b"SET", b"k", b"v"], &mut reply);
    while flow != Flow::Done {
        store.engine.turn();
        flow = store.resume(&mut session, &mut reply);
    }
    let mut reply = Recorder::default();
    let flow = store.execute(&mut session, &[b"WAIT", b"2", b"0"], &mut reply);
    assert_eq!(flow, Flow::Wait { until: None });
    let sequence = store.engine.last_sequence();
    store.engine.acknowledge(0, sequence);
    assert_eq!(store.resume(&mut session, &mut reply), Flow::Wait { until: None });
    assert!(reply.is_empty() && session.is_waiting());
    store.engine.acknowledge(1, sequence);
    assert_eq!(store.resume(&mut session, &mut reply), Flow::Done);
    assert_eq!(reply.finish(), Ok(Value::Integer(2)));
}

#[test]
fn wait_gives_up_at_its_deadline() {
    let mut store = store(3);
    store.engine.set_wall(HybridTime::from_millis(1_000_000));
    let (mut session, mut reply) = (Session::default(), Recorder::default());
    // More regions than there are: the timeout decides.
    let flow = store.execute(&mut session, &[b"WAIT", b"7", b"50"], &mut reply);
    let Flow::Wait { until: Some(until) } = flow else { panic!("{flow:?}") };
    assert_eq!(until, HybridTime::from_millis(1_000_050));
    store.engine.set_wall(HybridTime::from_millis(1_000_049));
    assert_eq!(store.resume(&mut session, &mut reply), flow);
    store.engine.set_wall(until);
    assert_eq!(store.resume(&mut session, &mut reply), Flow::Done);
    assert_eq!(reply.finish(), Ok(Value::Integer(2)), "sequence 0 is everywhere");
}

/// A store whose session is told what its engine hears, and its answers.
fn answer(store: &mut Store<ReferenceEngine>, session: &mut Session, line: &str) -> String {
    let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
    let mut reply = Recorder::default();
    let mut flow = store.execute(session, &words, &mut reply);
    while flow == (Flow::Wait { until: None }) {
        store.engine.turn();
        flow = store.resume(session, &mut reply);
    }
    assert_eq!(flow, Flow::Done, "{line}");
    reply.finish().expect("one reply").to_string()
}

#[test]
fn wait_tells_each_session_that_wrote_under_a_name_that_was_given_up() {
    let mut store = store(2);
    let [mut wrote, mut read, mut later] = [(); 3].map(|()| Session::default());
    answer(&mut store, &mut wrote, "SET k v");
    answer(&mut store, &mut read, "GET k");
    // The region's own place is another's now; what the other session writes does arrive.
    store.engine.begin_incarnation(99);
    answer(&mut store, &mut later, "SET k w");
    answer(&mut store, &mut wrote, "SET l w");
    store.engine.acknowledge(0, store.engine.last_sequence());
    assert_eq!(answer(&mut store, &mut later, "WAIT 1 0"), "1");
    assert_eq!(answer(&mut store, &mut read, "WAIT 1 0"), "1");
    assert_eq!(answer(&mut store, &mut wrote, "WAIT 1 0"), "0", "its first write may have arrived nowhere");
    assert_eq!(answer(&mut store, &mut wrote, "WAIT 1 0"), "1", "that was said");
}

#[test]
fn a_token_that_names_what_exists_nowhere_is_not_waited_for() {
    let mut store = store(2);
    let mut session = Session::default();
    let gone = ActorId::new("eu", 7);
    let waits = |store: &mut Store<ReferenceEngine>, session: &mut Session| {
        store.execute(session, &[b"GEODE.WAIT", b"1~eu.7.3", b"0"], &mut Recorder::default())
    };
    assert_eq!(waits(&mut store, &mut session), Flow::Wait { until: None });
    // Its last entries were lost with their machine; the regions agree while somebody waits.
    store.engine.end(&gone, 2);
    let mut reply = Recorder::default();
    assert_eq!(store.resume(&mut session, &mut reply), Flow::Done);
    assert_eq!(reply.finish(), Ok(Value::Integer(-1)));
    assert_eq!(answer(&mut store, &mut session, "GEODE.WAIT 1~eu.7.3 0"), "-1");
    // What it has written before its end may still come.
    let flow = store.execute(&mut session, &[b"GEODE.WAIT", b"1~eu.7.2", b"0"], &mut Recorder::default());
    assert_eq!(flow, Flow::Wait { until: None });
}

#[test]
fn a_reply_too_long_to_be_kept_is_refused_before_anything_happens() {
    let mut store = store(1);
    let mut session = Session::default();
    let long = "x".repeat(65 << 10);
    assert_eq!(answer(&mut store, &mut session, &format!("SET k {long}")), "OK");
    assert_eq!(
        answer(&mut store, &mut session, "GEODE.ONCE a GETDEL k"),
        "!ERR the reply is longer than 64 KiB and cannot be kept for a retry; nothing was executed"
    );
    assert_eq!(answer(&mut store, &mut session, "STRLEN k"), (65 << 10).to_string());
    assert_eq!(answer(&mut store, &mut session, "GEODE.ONCE a DEL k"), "1", "nor was the id taken");
}

#[test]
fn records_are_swept_like_all_that_expires() {
    let mut planet = planet(&["us"]);
    execute(&mut planet, 0, "GEODE.ONCE a INCR n");
    let alone = execute(&mut planet, 0, "GET n");
    planet.replica(0).store().engine.set_sweeper(true);
    let sweep = |planet: &mut Planet<ReferenceReplica>| {
        let store = planet.replica(0).store();
        (0..100)
            .map(|_| {
                store.engine.turn();
                store.sweep(10)
            })
            .sum::<usize>()
    };
    assert_eq!(sweep(&mut planet), 0);
    planet.advance(0, 601_000);
    assert_eq!(execute(&mut planet, 0, "GET n"), alone);
    assert_eq!(sweep(&mut planet), 1);
    assert_eq!(execute(&mut planet, 0, "GET n"), alone);
}

#[test]
fn a_transaction_larger_than_its_limit_is_aborted() {
    let mut store = store(1);
    let mut session = Session::default();
    let mut answer = |arguments: &[&[u8]]| {
        let mut reply = Recorder::default();
        assert_eq!(store.execute(&mut session, arguments, &mut reply), Flow::Done);
        reply.finish().expect("one reply").to_string()
    };
    let value = vec![b'x'; 40 << 20];
    assert_eq!(answer(&[b"MULTI"]), "OK");
    assert_eq!(answer(&[b"SET", b"a", &value]), "QUEUED");
    assert_eq!(answer(&[b"SET", b"b", &value]), "!ERR transaction is larger than 64 MiB");
    assert_eq!(answer(&[b"SET", b"c", b"small"]), "!ERR transaction is larger than 64 MiB");
    let aborted = "!EXECABORT Transaction discarded because of previous errors.";
    assert_eq!(answer(&[b"EXEC"]), aborted);
    assert_eq!(answer(&[b"PING"]), "PONG");
}

#[test]
fn reset_forgets_database_and_transaction() {
    let mut store = store(1);
    let mut session = Session::default();
    for arguments in [&[&b"SELECT"[..], b"3"][..], &[b"MULTI"]] {
        store.execute(&mut session, arguments, &mut Recorder::default());
    }
    assert!(session.in_transaction() && session.database() == 3);
    session.reset();
    assert!(!session.in_transaction() && session.database() == 0);
}

#[test]
fn random_picks_depend_on_the_seed_alone() {
    let picks = |seed| {
        let engine = ReferenceEngine::new("us", 1, 1);
        let mut store = Store::new(engine, Options { seed, ..Options::default() });
        let mut session = Session::default();
        let mut answer = |line: &str| {
            let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
            let mut reply = Recorder::default();
            let mut flow = store.execute(&mut session, &words, &mut reply);
            while flow != Flow::Done {
                store.engine.turn();
                flow = store.resume(&mut session, &mut reply);
            }
            reply.finish().expect("one reply").to_string()
        };
        answer("SADD s a b c d e f g h i j k l m n o p q r s t");
        ["SRANDMEMBER s 5", "SPOP s 3", "SRANDMEMBER s -9", "SCARD s"].map(answer)
    };
    assert_eq!(picks(1), picks(1));
    assert_ne!(picks(1), picks(2));
    assert_eq!(picks(1)[3], "17");
}

#[test]
fn info_has_what_the_store_knows_and_what_the_process_adds() {
    let mut planet = planet(&["us", "eu"]);
    execute(&mut planet, 0, "SET k v");
    planet.replica(0).store().set_info_lines(Box::new(|section, text| {
        if section == "clients" {
            text.push_str("connected_clients:1\r\n");
        }
    }));
    let info = execute(&mut planet, 0, "INFO");
    for line in [
        "# Server\\r\\nredis_version:7.0.15\\r\\n",
        "# Clients\\r\\nconnected_clients:1\\r\\n",
        "maxmemory_policy:noeviction\\r\\n",
        "# Keyspace\\r\\ndb0:keys=1",
        "geode_regions:2",
    ] {
        assert!(info.contains(line), "{line} in {info}");
    }
    let keyspace = execute(&mut planet, 0, "INFO keyspace");
    assert!(keyspace.contains("db0:keys=1") && !keyspace.contains("Server"), "{keyspace}");
    for line in ["MULTI", "INFO", "COMMAND DOCS get"] {
        execute(&mut planet, 0, line);
    }
    assert!(execute(&mut planet, 0, "EXEC").contains("db0:keys=1"));
}

/// Tells the sweeper how far another region's time has come, all its entries delivered.
fn heartbeat(planet: &mut Planet<ReferenceReplica>, from: usize, to: usize) {
    planet.send(from, to);
    execute(planet, from, "PING");
    let time = planet.replica(from).store().engine.heartbeat();
    let region: Arc<str> = planet.name(from).into();
    planet.replica(to).store().engine.hear(&region, time);
}

fn sweep(planet: &mut Planet<ReferenceReplica>, at: usize) -> usize {
    let mut swept = 0;
    // A command sets the clock.
    execute(planet, at, "PING");
    // What is not in memory is fetched first.
    for _ in 0..100 {
        swept += planet.replica(at).store().sweep(100);
        planet.replica(at).store().engine.turn();
    }
    planet.collect(at);
    swept
}

#[test]
fn the_sweep_waits_until_every_region_has_passed_the_deadline() {
    let mut planet = planet(&["eu", "us"]);
    planet.replica(0).store().engine.set_sweeper(true);
    execute(&mut planet, 0, "SET k v PX 1000");
    execute(&mut planet, 0, "SADD s m");
    execute(&mut planet, 0, "PEXPIRE s 1000");
    planet.sync().expect("digests are equal");
    planet.advance(0, 1001);
    heartbeat(&mut planet, 1, 0);
    assert_eq!(execute(&mut planet, 0, "GET k"), "nil", "reads hide it at once");
    assert_eq!(sweep(&mut planet, 0), 0, "the other region has not come so far");
    planet.advance(1, 1001);
    heartbeat(&mut planet, 1, 0);
    assert_eq!(sweep(&mut planet, 1), 0, "only the sweeper sweeps");
    assert_eq!(sweep(&mut planet, 0), 2);
    assert_eq!(execute(&mut planet, 0, "DBSIZE"), "0");
    planet.sync().expect("digests are equal");
    let nothing = Digest::default();
    assert_eq!(planet.replica(0).digest(), nothing, "deadlines go too");
    assert_eq!(planet.replica(1).digest(), nothing);
}

#[test]
fn the_sweep_leaves_what_was_created_anew() {
    let mut planet = planet(&["eu", "us"]);
    planet.replica(0).store().engine.set_sweeper(true);
    execute(&mut planet, 0, "SET k v PX 1000");
    planet.sync().expect("digests are equal");
    planet.advance(0, 1001);
    planet.advance(1, 1001);
    execute(&mut planet, 1, "INCR k");
    heartbeat(&mut planet, 1, 0);
    assert_eq!(sweep(&mut planet, 0), 0);
    planet.sync().expect("digests are equal");
    assert_eq!(execute(&mut planet, 0, "GET k"), "\"1\"");
}

/// A planet of three in which the third wrote nothing of its own lately and is now away.
fn planet_without_us() -> Planet<ReferenceReplica> {
    let mut planet = planet(&["ap", "eu", "us"]);
    planet.replica(0).store().engine.set_sweeper(true);
    execute(&mut planet, 0, "INCR k");
    execute(&mut planet, 0, "PEXPIRE k 1000");
    execute(&mut planet, 0, "SET other v PX 1000");
    planet.sync().expect("digests are equal");
    heartbeat(&mut planet, 2, 0);
    planet.replica(0).store().engine.set_away(&Arc::from("us"), true);
    planet
}

#[test]
fn the_data_of_expired_keys_does_not_wait_for_a_region_that_is_away() {
    let mut planet = planet_without_us();
    planet.advance(0, 1001);
    heartbeat(&mut planet, 1, 0);
    assert_eq!(sweep(&mut planet, 0), 0, "a region that can be reached has not come so far");
    planet.advance(1, 1001);
    heartbeat(&mut planet, 1, 0);
    assert_eq!(sweep(&mut planet, 0), 2);
    assert_eq!(execute(&mut planet, 0, "DBSIZE"), "0");
    assert_eq!(sweep(&mut planet, 0), 0, "it is not done twice");
    let engine = &mut planet.replica(0).store().engine;
    assert_eq!(engine.due(Extent::Data, engine.now(), 10), [], "nor looked at again");
    assert_eq!(engine.due(Extent::Whole, engine.now(), 10).len(), 2, "the deadlines are there");
    planet.advance(2, 1001);
    planet.replica(0).store().engine.set_away(&Arc::from("us"), false);
    planet.send(0, 2);
    heartbeat(&mut planet, 2, 0);
    assert_eq!(sweep(&mut planet, 0), 2, "the rest goes when it is back and has passed the deadline");
    planet.sync().expect("digests are equal");
    for region in 0..3 {
        assert_eq!(planet.replica(region).digest(), Digest::default());
    }
}

#[test]
fn an_increment_made_by_a_region_that_was_away_still_finds_its_deadline() {
    let mut planet = planet_without_us();
    assert_eq!(execute(&mut planet, 2, "INCR k"), "2", "within the key's life, and nobody hears of it");
    planet.advance(0, 1001);
    planet.advance(1, 1001);
    heartbeat(&mut planet, 1, 0);
    assert_eq!(sweep(&mut planet, 0), 2);
    planet.sync().expect("digests are equal");
    planet.advance(2, 1001);
    for region in 0..3 {
        assert_eq!(execute(&mut planet, region, "GET k"), "nil", "it has expired");
        assert_eq!(execute(&mut planet, region, "TTL k"), "-2");
    }
    assert_eq!(execute(&mut planet, 0, "DBSIZE"), "1", "and is there until it is swept");
    assert_eq!(sweep(&mut planet, 0), 1, "by the data again");
    assert_eq!(execute(&mut planet, 1, "INCR k"), "1", "a limit that is counted with it begins anew");
}

#[test]
fn a_region_whose_clock_is_ahead_reads_and_does_not_write() {
    const REFUSED: &str = "!CLOCK this region's clock is 730 ms ahead of the other regions'; \
                           set its clock (NTP) and writes go on";
    let mut planet = planet(&["us", "eu"]);
    execute(&mut planet, 0, "SET k 1");
    execute(&mut planet, 0, "MULTI");
    execute(&mut planet, 0, "INCR k");
    planet.replica(0).store().engine.set_clock_ahead(Some(730));
    assert_eq!(execute(&mut planet, 0, "EXEC"), REFUSED);
    for write in ["SET k 2", "DEL none", "EXPIRE k 100", "FLUSHALL", "FLUSHDB"] {
        assert_eq!(execute(&mut planet, 0, write), REFUSED, "{write}");
    }
    assert_eq!(execute(&mut planet, 0, "GET k"), "\"1\"");
    for line in ["MULTI", "GET k"] {
        execute(&mut planet, 0, line);
    }
    assert_eq!(execute(&mut planet, 0, "EXEC"), "[\"1\"]");
    assert_eq!(planet.frames(0).len(), 1);
    planet.replica(0).store().engine.set_clock_ahead(None);
    assert_eq!(execute(&mut planet, 0, "INCR k"), "2");
}

#[test]
fn ten_thousand_pushes_keep_positions_short_and_in_order() {
    let mut planet = planet(&["us"]);
    let elements: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    for _ in 0..50 {
        execute(&mut planet, 0, &format!("RPUSH l {}", elements.join(" ")));
        execute(&mut planet, 0, &format!("LPUSH l {}", elements.join(" ")));
    }
    assert_eq!(execute(&mut planet, 0, "LLEN l"), "10000");
    let backwards: Vec<String> = elements.iter().rev().cloned().collect();
    let expected = [vec![backwards; 50], vec![elements; 50]].concat().concat();
    let expected: Vec<String> = expected.iter().map(|element| format!("\"{element}\"")).collect();
    assert_eq!(execute(&mut planet, 0, "LRANGE l 0 -1"), format!("[{}]", expected.join(" ")));
    let mut actors = Actors::default();
    for frame in planet.frames(0) {
        let frame = Frame::parse(frame, &mut actors).expect("a frame of the builder");
        for op in frame.entries().flat_map(|entry| entry.ops().collect::<Vec<_>>()) {
            if let geode_crdt::Op::Put { kind: geode_crdt::Kind::List, element, .. } =
                op.expect("it was parsed")
            {
                assert!(element.len() <= 16, "{}", element.len());
            }
        }
    }
}

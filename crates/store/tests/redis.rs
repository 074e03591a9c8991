//! The rules of one region and random commands, side by side with a real Redis server.

mod redis_server;
mod reference_replica;

use geode_store::conformance::script::{self, Step};
use geode_store::conformance::{Planet, RULES, Value};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use redis_server::RedisServer;
use reference_replica::ReferenceReplica;

fn one_region(seed: u64) -> Planet<ReferenceReplica> {
    let regions = ["here".to_owned()];
    Planet::new(&regions, &mut |region, regions| ReferenceReplica::new(region, regions, seed))
}

/// Whether Redis's reply, in version 2 of the protocol, is the same. Sets and maps have no order there.
fn same(ours: &Value, theirs: &Value, ordered: bool) -> bool {
    let sorted = |values: &[Value]| {
        let mut texts: Vec<String> = values.iter().map(Value::to_string).collect();
        texts.sort();
        texts
    };
    match (ours, theirs) {
        (Value::Array(ours), Value::Array(theirs)) if ordered => {
            ours.len() == theirs.len()
                && ours.iter().zip(theirs).all(|(ours, theirs)| same(ours, theirs, ordered))
        }
        (Value::Array(ours) | Value::Set(ours), Value::Array(theirs)) => sorted(ours) == sorted(theirs),
        (Value::Map(ours), Value::Array(theirs)) => {
            let theirs = theirs.chunks(2).map(|pair| Value::Array(pair.to_vec()));
            let ours = ours.iter().map(|(key, value)| Value::Array(vec![key.clone(), value.clone()]));
            sorted(&ours.collect::<Vec<_>>()) == sorted(&theirs.collect::<Vec<_>>())
        }
        (ours, theirs) => ours == theirs,
    }
}

#[test]
fn redis_answers_the_rules_of_one_region_alike() {
    let Some(server) = RedisServer::start("rules") else { return };
    let mut differences = Vec::new();
    for (file, text) in RULES {
        for rule in script::parse(text).unwrap().iter().filter(|rule| rule.suits_redis()) {
            let (mut planet, mut redis) = (one_region(1), server.connect());
            for (line, step) in &rule.steps {
                let Step::Command { arguments, expected, .. } = step else { continue };
                let arguments: Vec<&[u8]> = arguments.iter().map(Vec::as_slice).collect();
                let (ours, theirs) = (planet.execute(0, &arguments), redis.execute(&arguments));
                if expected != "*" && !same(&ours, &theirs, !expected.starts_with('~')) {
                    differences
                        .push(format!("{file}.txt {line}, {}: ours {ours}, theirs {theirs}", rule.title));
                }
            }
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// `k` key, `d` key of numbers that a double holds exactly (Redis's are wider), `f` field or member, `v` any value, `n` integer, `x` float that a double holds exactly, `i` index, `c` count.
const TEMPLATES: &[&str] = &[
    "GET k",
    "SET k v",
    "SET k n",
    "SET k v GET",
    "SET k v NX",
    "SET k v XX",
    "SET k v EX 1000",
    "SET k v KEEPTTL",
    "SET k v NX GET",
    "SET k v PX 0",
    "SET k v XX KEEPTTL GET",
    "SETNX k v",
    "SETEX k 1000 v",
    "PSETEX k 1000000 v",
    "GETSET k v",
    "GETEX k",
    "GETEX k EX 1000",
    "GETEX k PERSIST",
    "GETDEL k",
    "MGET k k k",
    "MSET k v k v",
    "APPEND k v",
    "STRLEN k",
    "INCR k",
    "INCRBY k n",
    "DECR k",
    "DECRBY k n",
    "INCRBYFLOAT d x",
    "INCR d",
    "GET d",
    "SET d x",
    "DEL d",
    "INCRBYFLOAT d i",
    "DEL k",
    "DEL k k",
    "UNLINK k",
    "EXISTS k k",
    "TYPE k",
    "RENAME k k",
    "KEYS *",
    "KEYS k?",
    "KEYS [^a]1",
    "DBSIZE",
    "EXPIRE k 1000",
    "EXPIRE k 500 NX",
    "EXPIREAT k 4102444900 GT",
    "EXPIRE k 100 LT",
    "EXPIRE k 700 XX",
    "PEXPIRE k 900000",
    "EXPIRE k -1",
    "EXPIRE k v",
    "EXPIREAT k 4102444800",
    "PEXPIREAT k 1",
    "TTL k",
    "PTTL k",
    "PERSIST k",
    "SADD k f f",
    "SADD k f",
    "SREM k f f",
    "SISMEMBER k f",
    "SMISMEMBER k f f",
    "SMEMBERS k",
    "SCARD k",
    "SPOP k 9",
    "SRANDMEMBER k 9",
    "SRANDMEMBER k text",
    "HSET k f v",
    "HSET k f n f v",
    "HGET k f",
    "HMGET k f f",
    "HGETALL k",
    "HDEL k f f",
    "HEXISTS k f",
    "HLEN k",
    "HKEYS k",
    "HVALS k",
    "HINCRBY k f n",
    "LPUSH k v v",
    "LPUSH k v",
    "RPUSH k v v v",
    "RPUSH k v",
    "LPOP k",
    "RPOP k",
    "LPOP k c",
    "RPOP k c",
    "LRANGE k i i",
    "LRANGE k 0 -1",
    "LLEN k",
    "LINDEX k i",
    "LTRIM k i i",
    "MULTI",
    "EXEC",
    "EXEC",
    "DISCARD",
    "SELECT 1",
    "SELECT 0",
    "FLUSHDB",
    "PING v",
    "ECHO v",
    "NOPE k v",
    "GET",
    "SET k v BOGUS",
];

const VALUES: &[&str] =
    &["", "a", "b", "0", "1", "-7", "3.5", "text", "9223372036854775807", "-9223372036854775808", " 1"];

fn fill(placeholder: &str, pick: u32) -> String {
    let from = |words: &[&str]| words[pick as usize % words.len()].to_owned();
    match placeholder {
        "k" => from(&["k1", "k2", "k3"]),
        "d" => from(&["d1", "d2"]),
        "f" => from(&["f1", "f2", "f3", "f4"]),
        "v" => from(VALUES),
        "n" => from(&["1", "2", "-3", "1000", "9223372036854775807", "-9223372036854775808", "x"]),
        "x" => from(&["0.5", "-0.25", "3", "1.5e2", "-100"]),
        "i" => from(&["0", "1", "-1", "2", "-3", "5", "-9", "100"]),
        "c" => from(&["0", "1", "2", "5", "-1", "x"]),
        word => word.to_owned(),
    }
}

fn command() -> impl Strategy<Value = Vec<String>> {
    (proptest::sample::select(TEMPLATES), proptest::collection::vec(any::<u32>(), 8)).prop_map(
        |(template, picks)| template.split(' ').zip(picks).map(|(word, pick)| fill(word, pick)).collect(),
    )
}

/// Time passes there and not here.
fn without_time(value: Value) -> Value {
    match value {
        Value::Integer(left) if left > 0 => Value::Integer(1),
        other => other,
    }
}

/// Compares one reply; in a transaction's, each with the command it answers.
fn same_reply(command: &str, queued: &[String], ours: &Value, theirs: &Value) -> bool {
    match (command, ours, theirs) {
        ("EXEC", Value::Array(ours), Value::Array(theirs)) => {
            ours.len() == theirs.len()
                && queued
                    .iter()
                    .zip(ours.iter().zip(theirs))
                    .all(|(command, (ours, theirs))| same_reply(command, &[], ours, theirs))
        }
        ("TTL" | "PTTL", ours, theirs) => without_time(ours.clone()) == without_time(theirs.clone()),
        ("KEYS" | "HKEYS" | "HVALS" | "SRANDMEMBER", ours, theirs) => same(ours, theirs, false),
        (_, ours, theirs) => same(ours, theirs, true),
    }
}

#[test]
fn redis_answers_random_commands_alike() {
    let Some(server) = RedisServer::start("random") else { return };
    let config = ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() };
    let sequences = (proptest::collection::vec(command(), 1..60), any::<u64>());
    let outcome = TestRunner::new(config).run(&sequences, |(commands, seed)| {
        let (mut planet, mut redis) = (one_region(seed), server.connect());
        let mut queued = Vec::new();
        for words in &commands {
            let arguments: Vec<&[u8]> = words.iter().map(String::as_bytes).collect();
            let (ours, theirs) = (planet.execute(0, &arguments), redis.execute(&arguments));
            let line = words.join(" ");
            prop_assert!(
                same_reply(&words[0], &queued, &ours, &theirs),
                "{line}: ours {ours}, theirs {theirs}"
            );
            if ours == Value::Simple("QUEUED".into()) {
                queued.push(words[0].clone());
            } else if words[0] == "EXEC" || words[0] == "DISCARD" {
                queued.clear();
            }
        }
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}

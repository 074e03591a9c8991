//! The walking planet, end to end: real processes, real clients, and what must be true when regions die and links fail.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::support::{Planet, http, wait_for};
use redis::Commands;

const REGIONS: usize = 3;
const COUNTERS: u64 = 4;
const REGISTERS: u64 = 8;
/// Acknowledged writes of each living region in each phase.
const PHASE: u64 = 150;

/// What the clients know about their writes.
#[derive(Default)]
struct Record {
    members: Mutex<BTreeSet<String>>,
    fields: Mutex<BTreeMap<String, String>>,
    pushed: Mutex<BTreeSet<String>>,
    /// By counter: acknowledged increments, and those whose connection died before the answer.
    counters: [(AtomicU64, AtomicU64); COUNTERS as usize],
    /// By register: every value whose write was at least sent.
    registers: Mutex<BTreeMap<String, BTreeSet<String>>>,
    acknowledged: [AtomicU64; REGIONS],
}

/// Writes in one region until told to stop; reconnects whenever the region is there again.
fn write(planet: &Planet, region: usize, client: usize, record: &Record, stop: &AtomicBool) {
    let mut connection = None;
    for step in 0u64.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        if connection.is_none() {
            connection = planet.redis(region).ok();
        }
        let Some(open) = &mut connection else {
            std::thread::sleep(Duration::from_millis(20));
            continue;
        };
        let name = format!("{region}-{client}-{step}");
        if write_once(open, &name, step, record).is_ok() {
            record.acknowledged[region].fetch_add(1, Ordering::Relaxed);
        } else {
            connection = None;
        }
    }
}

fn write_once(
    open: &mut redis::Connection,
    name: &str,
    step: u64,
    record: &Record,
) -> redis::RedisResult<()> {
    let counter = (step % COUNTERS) as usize;
    match step % 5 {
        0 => {
            open.sadd::<_, _, ()>("members", name)?;
            record.members.lock().unwrap().insert(name.to_owned());
        }
        1 => {
            let (acknowledged, in_doubt) = &record.counters[counter];
            let answer: redis::RedisResult<i64> = open.incr(format!("counter:{counter}"), 1);
            if answer.is_ok() { acknowledged } else { in_doubt }.fetch_add(1, Ordering::Relaxed);
            answer?;
        }
        2 => {
            let register = format!("register:{}", step % REGISTERS);
            record.registers.lock().unwrap().entry(register.clone()).or_default().insert(name.to_owned());
            open.set::<_, _, ()>(&register, name)?;
        }
        3 => {
            open.hset::<_, _, _, ()>("fields", name, step)?;
            record.fields.lock().unwrap().insert(name.to_owned(), step.to_string());
        }
        _ => {
            open.lpush::<_, _, ()>("pushed", name)?;
            record.pushed.lock().unwrap().insert(name.to_owned());
        }
    }
    Ok(())
}

/// Asks the internet address until told to stop; every request is idempotent, so none may fail.
fn browse(door: &str, place: &str, failures: &Mutex<Vec<String>>, asked: &AtomicU64, stop: &AtomicBool) {
    let headers = [("Geode-From", place)];
    while !stop.load(Ordering::Relaxed) {
        let requests = [("GET", "/api/menu"), ("GET", "/api/orders"), ("DELETE", "/api/cart")];
        for (method, path) in requests {
            match http(door, method, path, &headers, "") {
                Ok(answer) if answer.status < 400 => {}
                other => failures.lock().unwrap().push(format!("{method} {path} from {place}: {other:?}")),
            }
            asked.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Waits until every region of `living` acknowledged a phase's worth of further writes, and browsers went on asking.
fn let_them_write(record: &Record, asked: &AtomicU64, living: &[usize]) {
    let before: Vec<u64> = record.acknowledged.iter().map(|count| count.load(Ordering::Relaxed)).collect();
    let asked_before = asked.load(Ordering::Relaxed);
    wait_for("a phase of writes", || {
        let wrote =
            living.iter().all(|at| record.acknowledged[*at].load(Ordering::Relaxed) >= before[*at] + PHASE);
        wrote && asked.load(Ordering::Relaxed) >= asked_before + 10
    });
}

#[test]
fn nothing_acknowledged_is_lost_through_a_kill_a_partition_a_heal_and_a_revive() {
    let directory = tempfile::tempdir().unwrap();
    let mut planet = Planet::start(directory.path(), &[]);
    let (record, stop) = (Record::default(), AtomicBool::new(false));
    let (failures, asked) = (Mutex::new(Vec::new()), AtomicU64::new(0));
    let door = planet.door();
    let [first, second, third] = [0, 1, 2].map(|index| planet.region(index, "name"));

    std::thread::scope(|scope| {
        for region in 0..REGIONS {
            for client in 0..2 {
                let (planet, record, stop) = (&planet, &record, &stop);
                scope.spawn(move || write(planet, region, client, record, stop));
            }
        }
        for place in ["virginia", "dublin", "sydney"] {
            let (door, failures, asked, stop) = (&door, &failures, &asked, &stop);
            scope.spawn(move || browse(door, place, failures, asked, stop));
        }
        let_them_write(&record, &asked, &[0, 1, 2]);
        planet.expect(&["chaos", "kill", &first]);
        let_them_write(&record, &asked, &[1, 2]);
        planet.expect(&["chaos", "partition", &second, &third]);
        let_them_write(&record, &asked, &[1, 2]);
        planet.expect(&["chaos", "heal"]);
        let_them_write(&record, &asked, &[1, 2]);
        planet.expect(&["chaos", "revive", &first]);
        let_them_write(&record, &asked, &[0, 1, 2]);
        stop.store(true, Ordering::Relaxed);
    });

    assert_eq!(*failures.lock().unwrap(), Vec::<String>::new(), "no idempotent request may fail");
    let verified = planet.expect(&["verify"]);
    for region in 0..REGIONS {
        check_region(&planet, region, &record, &verified);
    }
    planet.signal("INT");
    assert!(planet.wait().success(), "Ctrl-C is a good end");
    check_registers_against_the_logs(&planet, &record);
}

fn check_region(planet: &Planet, region: usize, record: &Record, verified: &str) {
    let at = planet.region(region, "name");
    let mut open = planet.redis(region).unwrap();
    let members: BTreeSet<String> = open.smembers("members").unwrap();
    let lost: Vec<_> = record.members.lock().unwrap().difference(&members).cloned().collect();
    assert!(lost.is_empty(), "{at} lost members {lost:?}\n{verified}");
    let pushed: Vec<String> = open.lrange("pushed", 0, -1).unwrap();
    let distinct: BTreeSet<String> = pushed.iter().cloned().collect();
    assert_eq!(distinct.len(), pushed.len(), "{at} shows a pushed element twice");
    let lost: Vec<_> = record.pushed.lock().unwrap().difference(&distinct).cloned().collect();
    assert!(lost.is_empty(), "{at} lost list elements {lost:?}");
    let fields: BTreeMap<String, String> = open.hgetall("fields").unwrap();
    for (field, value) in record.fields.lock().unwrap().iter() {
        assert_eq!(fields.get(field), Some(value), "{at} lost field {field}");
    }
    for (index, (acknowledged, in_doubt)) in record.counters.iter().enumerate() {
        let value: u64 = open.get(format!("counter:{index}")).unwrap();
        let least = acknowledged.load(Ordering::Relaxed);
        let most = least + in_doubt.load(Ordering::Relaxed);
        assert!(
            (least..=most).contains(&value),
            "{at} counter {index}: {value} is not within {least}..={most}"
        );
    }
    for (register, sent) in record.registers.lock().unwrap().iter() {
        let value: String = open.get(register).unwrap();
        assert!(sent.contains(&value), "{at} {register} holds {value}, which nobody wrote");
    }
}

#[test]
fn another_region_sees_a_write_after_the_one_way_delay_and_not_before_half_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let planet = Planet::start(directory.path(), &[]);
    let one_way = |from: usize, to: usize| {
        let place = |index| geode_planet::Place::find(&planet.region(index, "name")).unwrap().coordinates;
        Duration::from_secs_f64(geode_planet::one_way_ms(place(from), place(to)) / 1e3)
    };
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        let (mut here, mut there) = (planet.redis(from).unwrap(), planet.redis(to).unwrap());
        let key = format!("seen:{from}:{to}");
        let sent = Instant::now();
        here.set::<_, _, ()>(&key, "yes").unwrap();
        wait_for("the write in the other region", || there.get::<_, Option<String>>(&key).unwrap().is_some());
        let least = one_way(from, to) / 2;
        assert!(
            sent.elapsed() >= least,
            "seen after {:?}, light needs longer than {least:?}",
            sent.elapsed()
        );
    }
}

#[test]
fn a_region_that_will_not_return_is_evicted_and_may_come_back_as_new() {
    let directory = tempfile::tempdir().unwrap();
    let planet = Planet::start(directory.path(), &["--wan", "none"]);
    let first = planet.region(0, "name");
    planet.redis(0).unwrap().sadd::<_, _, ()>("drinks", "tea").unwrap();
    planet.expect(&["verify"]);
    let refused = planet.geode(&["region", "evict", &first]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("is in touch") && said.contains("--force"), "{said}");
    planet.expect(&["chaos", "kill", &first]);
    let evict = || planet.geode(&["region", "evict", &first, "--json"]).status.success();
    wait_for("the eviction, once it is seen to be out of touch", evict);
    planet.redis(1).unwrap().sadd::<_, _, ()>("drinks", "milk").unwrap();
    let again = planet.geode(&["region", "evict", &first]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("already"));
    planet.expect(&["region", "rejoin", &first]);
    std::fs::remove_dir_all(planet.data.join(&first)).unwrap();
    planet.expect(&["chaos", "revive", &first]);
    wait_for("a write in the region that came back", || {
        let open = planet.redis(0).ok();
        open.is_some_and(|mut open| open.sadd::<_, _, ()>("drinks", "juice").is_ok())
    });
    planet.expect(&["verify"]);
    for region in 0..REGIONS {
        let drinks: BTreeSet<String> = planet.redis(region).unwrap().smembers("drinks").unwrap();
        assert_eq!(drinks, ["juice", "milk", "tea"].map(str::to_owned).into(), "region {region}");
    }
}

/// Every register holds the write of greatest hybrid time, as the regions' own logs tell it.
fn check_registers_against_the_logs(planet: &Planet, record: &Record) {
    use geode_crdt::{Actors, Dot, Op};
    let mut actors = Actors::default();
    let mut latest = BTreeMap::new();
    for region in 0..REGIONS {
        let name = planet.region(region, "name");
        let planet_name = planet_name(planet);
        let owner = (planet_name.as_str(), name.as_str());
        geode_embedded::read_frames(&planet.data.join(&name), owner, &mut actors, |frame, actors| {
            for entry in frame.entries() {
                for op in entry.ops() {
                    let Ok(Op::Set { key, dot, value, .. }) = op else { continue };
                    let write = ((entry.time, dot), String::from_utf8_lossy(value).into_owned());
                    let held = latest
                        .entry(String::from_utf8_lossy(key.name).into_owned())
                        .or_insert_with(|| write.clone());
                    if Dot::compare(write.0, held.0, actors).is_gt() {
                        *held = write;
                    }
                }
            }
        })
        .unwrap();
    }
    // The planet is started again on the same data: every region must show what the logs say.
    let again = Planet::start(&planet.data, &[]);
    for region in 0..REGIONS {
        let mut open = again.redis(region).unwrap();
        for register in record.registers.lock().unwrap().keys() {
            let value: String = open.get(register).unwrap();
            assert_eq!(value, latest[register].1, "{register} in {}", again.region(region, "name"));
        }
    }
}

/// The planet's name, as the generated planet.toml gives it.
fn planet_name(planet: &Planet) -> String {
    let file = planet.data.join("planet.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    geode_planet::Planet::parse(&text, "planet.toml").unwrap().name
}

#[test]
fn a_region_begins_with_a_backup_and_no_deletion_is_undone() {
    let directory = tempfile::tempdir().unwrap();
    let planet = Planet::start(directory.path(), &["--wan", "none"]);
    let first = planet.region(0, "name");
    planet.redis(1).unwrap().sadd::<_, _, ()>("drinks", "tea").unwrap();
    planet.redis(1).unwrap().sadd::<_, _, ()>("drinks", "milk").unwrap();
    planet.expect(&["verify"]);
    let file = directory.path().join("drinks.backup");
    let file = file.to_str().unwrap();
    let report: serde_json::Value =
        serde_json::from_str(&planet.expect(&["backup", file, "--json"])).unwrap();
    assert_eq!(report["bytes"].as_u64(), Some(std::fs::metadata(file).unwrap().len()));
    let again = planet.geode(&["backup", file]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("is there already"));
    planet.redis(1).unwrap().srem::<_, _, ()>("drinks", "milk").unwrap();
    planet.expect(&["verify"]);
    // Asked of one region, done by another.
    planet.expect(&["repair", &first]);
    wait_for("its rows", || {
        let drinks = planet.redis(0).unwrap().smembers::<_, BTreeSet<String>>("drinks");
        drinks.is_ok_and(|drinks| drinks == ["tea".to_owned()].into())
    });
    planet.expect(&["verify"]);
    planet.expect(&["chaos", "kill", &first]);
    let config = planet.data.join("planet.toml");
    let restore = || {
        let mut restore = std::process::Command::new(crate::support::GEODE);
        restore.args(["restore", file, "--region", &first, "--config"]).arg(&config);
        restore.output().unwrap()
    };
    let refused = restore();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("is not empty"), "{refused:?}");
    std::fs::remove_dir_all(planet.data.join(&first)).unwrap();
    let restored = restore();
    assert!(restored.status.success(), "{restored:?}");
    planet.expect(&["chaos", "revive", &first]);
    wait_for("a write in the region that came back", || {
        let open = planet.redis(0).ok();
        open.is_some_and(|mut open| open.sadd::<_, _, ()>("drinks", "juice").is_ok())
    });
    planet.expect(&["verify"]);
    for region in 0..REGIONS {
        let drinks: BTreeSet<String> = planet.redis(region).unwrap().smembers("drinks").unwrap();
        assert_eq!(drinks, ["juice", "tea"].map(str::to_owned).into(), "region {region}");
    }
}

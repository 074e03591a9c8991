//! `bench store`: one geode and a real redis-server (appendonly) under the same `redis-benchmark`, with the log fsynced every
//! second and with each answer waiting for its fsync; then memory and restart with the same keys.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::fresh_directory;
use super::process::{Server, cpu_seconds, resident_mib, wait_until, wait_until_within};
use super::redis_client::Client;
use super::report::{Spread, machine, table};
use crate::Outcome;

/// The two servers, always in this order in tables.
const NAMES: [&str; 2] = ["redis", "geode"];
const PORTS: [u16; 2] = [17501, 17502];
/// Ports of the geode's other listeners.
const DOOR: u16 = 17503;
const ADMIN: u16 = 17504;
const LINK: u16 = 17505;
/// What is loaded for the figures of memory and restart, as the bars say.
const MANY_KEYS: usize = 1_000_000;
/// What only a hang can reach.
const RESTART_DEADLINE: Duration = Duration::from_secs(120);

/// When the log is fsynced; both servers use the same words.
const EVERY_SECOND: &str = "everysec";
const ALWAYS: &str = "always";

/// One kind of load.
struct Load {
    fsync: &'static str,
    name: &'static str,
    command: &'static str,
    pipeline: usize,
    client_threads: usize,
}

const LOADS: [Load; 8] = [
    Load::new(EVERY_SECOND, "SET", "set", 1, 1),
    Load::new(EVERY_SECOND, "GET", "get", 1, 1),
    Load::new(EVERY_SECOND, "SET, 2 client threads", "set", 1, 2),
    Load::new(EVERY_SECOND, "GET, 2 client threads", "get", 1, 2),
    Load::new(EVERY_SECOND, "SET -P 16", "set", 16, 1),
    Load::new(EVERY_SECOND, "GET -P 16", "get", 16, 1),
    Load::new(ALWAYS, "SET, fsync always", "set", 1, 1),
    Load::new(ALWAYS, "SET -P 16, fsync always", "set", 16, 1),
];

impl Load {
    const fn new(
        fsync: &'static str,
        name: &'static str,
        command: &'static str,
        pipeline: usize,
        client_threads: usize,
    ) -> Self {
        Self { fsync, name, command, pipeline, client_threads }
    }
}

/// What one run of redis-benchmark said, and the server's CPU during it.
struct Sample {
    requests_per_second: f64,
    p50_ms: f64,
    worst_ms: f64,
    cpu_us_per_request: f64,
}

/// Measures and prints.
pub(crate) fn run(binary: &Path, rounds: usize, requests: usize) -> Outcome {
    println!("{}; redis-benchmark, 50 connections, 100 000 keys, 100 B; {rounds} rounds\n", machine());
    let mut rows = Vec::new();
    for fsync in [EVERY_SECOND, ALWAYS] {
        let servers = start_both(binary, fsync)?;
        for load in LOADS.iter().filter(|load| load.fsync == fsync) {
            let mut samples: [Vec<Sample>; 2] = [Vec::new(), Vec::new()];
            for round in 0..rounds {
                for turn in 0..2 {
                    let index = (round + turn) % 2;
                    samples[index].push(measure(load, PORTS[index], servers[index].pid(), requests)?);
                }
            }
            rows.push(row(load, &samples));
        }
    }
    let head = [
        "load",
        "redis req/s",
        "geode req/s",
        "req/s ratio",
        "CPU ratio",
        "p50 ratio",
        "worst ratio",
        "worst ms redis / geode",
    ];
    table(&head, &rows);
    memory_and_restart(binary, rounds)
}

fn row(load: &Load, samples: &[Vec<Sample>; 2]) -> Vec<String> {
    let median = |index: usize, figure: fn(&Sample) -> f64| {
        Spread::of(&samples[index].iter().map(figure).collect::<Vec<_>>())
    };
    let ratio = |figure: fn(&Sample) -> f64| {
        let pairs = samples[1].iter().zip(&samples[0]);
        Spread::of(&pairs.map(|(geode, redis)| figure(geode) / figure(redis)).collect::<Vec<_>>())
    };
    vec![
        load.name.to_owned(),
        format!("{:.0}", median(0, |sample| sample.requests_per_second).median),
        format!("{:.0}", median(1, |sample| sample.requests_per_second).median),
        ratio(|sample| sample.requests_per_second).to_string(),
        ratio(|sample| sample.cpu_us_per_request).to_string(),
        ratio(|sample| sample.p50_ms).to_string(),
        ratio(|sample| sample.worst_ms).to_string(),
        format!("{:.1} / {:.1}", median(0, |s| s.worst_ms).maximum, median(1, |s| s.worst_ms).maximum),
    ]
}

fn measure(load: &Load, port: u16, pid: u32, requests: usize) -> Result<Sample, String> {
    let requests = match (load.pipeline > 1, load.fsync) {
        (true, EVERY_SECOND) => requests * 4,
        (false, ALWAYS) => requests / 4,
        _ => requests,
    };
    let before = cpu_seconds(pid);
    let mut command = Command::new("redis-benchmark");
    command.args([
        "-p",
        &port.to_string(),
        "-c",
        "50",
        "-n",
        &requests.to_string(),
        "-r",
        "100000",
        "-d",
        "100",
    ]);
    command.args(["-t", load.command, "-P", &load.pipeline.to_string(), "--csv"]);
    if load.client_threads > 1 {
        command.args(["--threads", &load.client_threads.to_string()]);
    }
    let output = command.output().map_err(|error| format!("cannot start redis-benchmark: {error}"))?;
    let cpu = cpu_seconds(pid) - before;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // "SET","rps","avg","min","p50","p95","p99","max"
    let line = text.lines().find(|line| line.to_lowercase().starts_with(&format!("\"{}\"", load.command)));
    let figures: Vec<f64> = line
        .unwrap_or_default()
        .split(',')
        .skip(1)
        .filter_map(|figure| figure.trim_matches('"').parse().ok())
        .collect();
    let [rps, _, _, p50_ms, _, _, worst_ms] = figures[..] else {
        return Err(format!("redis-benchmark said: {text}{}", String::from_utf8_lossy(&output.stderr)));
    };
    Ok(Sample { requests_per_second: rps, p50_ms, worst_ms, cpu_us_per_request: cpu * 1e6 / requests as f64 })
}

fn memory_and_restart(binary: &Path, rounds: usize) -> Outcome {
    let servers = start_both(binary, EVERY_SECOND)?;
    let mut resident = [0.0; 2];
    for index in 0..2 {
        Client::connect(&address(index))?.fill(MANY_KEYS)?;
        resident[index] = resident_mib(servers[index].pid());
    }
    println!(
        "\n1 M keys of 100 B: {} {:.0} MiB, {} {:.0} MiB, ratio {:.2}\n",
        NAMES[0],
        resident[0],
        NAMES[1],
        resident[1],
        resident[1] / resident[0]
    );
    restart(binary, servers, rounds)
}

/// How long it takes until a key is read after a stop, and after a kill.
fn restart(binary: &Path, servers: [Server; 2], rounds: usize) -> Outcome {
    let [mut redis, mut geode] = servers;
    let mut seconds: [Vec<f64>; 4] = Default::default();
    for rewritten in [false, true] {
        if rewritten {
            rewrite_log(&mut Client::connect(&address(0))?)?;
        }
        for _ in 0..rounds {
            redis.stop();
            redis = redis_again(EVERY_SECOND)?;
            seconds[usize::from(rewritten)].push(until_read(0)?);
            if rewritten {
                drop(geode);
            } else {
                geode.stop();
            }
            geode = geode_again(binary)?;
            seconds[2 + usize::from(rewritten)].push(until_read(1)?);
        }
    }
    let spreads = seconds.map(|seconds| Spread::of(&seconds));
    let better = spreads[0].median.min(spreads[1].median);
    let names =
        ["redis, log as written", "redis, log rewritten", "geode, stopped before", "geode, killed before"];
    let rows: Vec<_> = names
        .iter()
        .zip(&spreads)
        .map(|(name, spread)| {
            vec![(*name).to_owned(), spread.to_string(), format!("{:.2}", spread.median / better)]
        })
        .collect();
    table(&["restart with 1 M keys to the first key read", "s", "against the better redis"], &rows);
    Ok(())
}

/// Lets a redis write its log anew, and waits for it.
fn rewrite_log(client: &mut Client) -> Outcome {
    client.call(&[b"BGREWRITEAOF"])?;
    wait_until_within(RESTART_DEADLINE, "the rewrite of the log", || {
        let info = client.call(&[b"INFO", b"persistence"]).ok().flatten().unwrap_or_default();
        let info = String::from_utf8_lossy(&info);
        info.contains("aof_rewrite_in_progress:0") && info.contains("aof_rewrite_scheduled:0")
    })?;
    Ok(())
}

fn until_read(index: usize) -> Result<f64, String> {
    let last = format!("key:{:012}", MANY_KEYS - 1);
    let read = || {
        let mut client = Client::connect(&address(index)).ok()?;
        client.call(&[b"GET", last.as_bytes()]).ok().flatten()
    };
    let taken =
        wait_until_within(RESTART_DEADLINE, "the first key read after a restart", || read().is_some())?;
    Ok(taken.as_secs_f64())
}

fn address(index: usize) -> String {
    format!("127.0.0.1:{}", PORTS[index])
}

fn ping(port: u16) -> bool {
    let client = Client::connect(&format!("127.0.0.1:{port}"));
    client.and_then(|mut client| client.call(&[b"PING"])).is_ok()
}

/// Both servers with empty directories, answering.
fn start_both(binary: &Path, fsync: &str) -> Result<[Server; 2], String> {
    fresh_directory("redis")?;
    write_planet(&fresh_directory("geode")?, fsync)?;
    let servers = [redis_again(fsync)?, geode_again(binary)?];
    for port in PORTS {
        wait_until("the server's first answer", || ping(port))?;
    }
    Ok(servers)
}

fn redis_again(fsync: &str) -> Result<Server, String> {
    let directory = crate::root().join("target/bench/redis");
    let mut command = Command::new("redis-server");
    command.args(["--port", &PORTS[0].to_string(), "--bind", "127.0.0.1", "--save", ""]);
    command.args(["--appendonly", "yes", "--appendfsync", fsync, "--auto-aof-rewrite-percentage", "0"]);
    command.arg("--dir").arg(&directory);
    Server::start(&mut command, &directory.join("log"))
}

fn geode_again(binary: &Path) -> Result<Server, String> {
    let directory = crate::root().join("target/bench/geode");
    let mut command = Command::new(binary);
    command.args(["run", "--region", "us-east-1", "--config"]).arg(directory.join("planet.toml"));
    Server::start(&mut command, &directory.join("log"))
}

fn write_planet(directory: &Path, fsync: &str) -> Outcome {
    let planet = format!(
        "format = 1\n[planet]\nname = \"bench\"\ndomain = \"bench.example\"\n\
         [regions.us-east-1]\npublic = [\"127.0.0.1\"]\nlink = \"127.0.0.1:{LINK}\"\n\
         [service]\nupstream = \"http://127.0.0.1:9\"\n\
         [store]\ndata = \"{}\"\nfsync = \"{fsync}\"\n\
         [redis]\nlisten = \"127.0.0.1:{}\"\n[door]\nlisten = \"127.0.0.1:{DOOR}\"\n[admin]\nlisten = \"127.0.0.1:{ADMIN}\"\n",
        directory.join("data").display(),
        PORTS[1]
    );
    std::fs::write(directory.join("planet.toml"), planet).map_err(|error| error.to_string())
}

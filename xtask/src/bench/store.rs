//! `bench store`: one geode and a real redis-server (appendonly, everysec) under the same `redis-benchmark`.

use std::path::Path;
use std::process::Command;

use super::fresh_directory;
use super::process::{Server, cpu_seconds, resident_mib, wait_until};
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
/// What is loaded for the memory figure, as the bar says.
const MEMORY_KEYS: usize = 1_000_000;

/// One kind of load.
struct Load {
    name: &'static str,
    command: &'static str,
    pipeline: usize,
    client_threads: usize,
}

const LOADS: [Load; 6] = [
    Load { name: "SET", command: "set", pipeline: 1, client_threads: 1 },
    Load { name: "GET", command: "get", pipeline: 1, client_threads: 1 },
    Load { name: "SET, 2 client threads", command: "set", pipeline: 1, client_threads: 2 },
    Load { name: "GET, 2 client threads", command: "get", pipeline: 1, client_threads: 2 },
    Load { name: "SET -P 16", command: "set", pipeline: 16, client_threads: 1 },
    Load { name: "GET -P 16", command: "get", pipeline: 16, client_threads: 1 },
];

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
    let servers = [start_redis()?, start_geode(binary)?];
    for port in PORTS {
        wait_until("the server's first answer", || ping(port))?;
    }
    let mut rows = Vec::new();
    for load in &LOADS {
        let mut samples: [Vec<Sample>; 2] = [Vec::new(), Vec::new()];
        for round in 0..rounds {
            for turn in 0..2 {
                let index = (round + turn) % 2;
                samples[index].push(measure(load, PORTS[index], servers[index].pid(), requests)?);
            }
        }
        rows.push(row(load, &samples));
    }
    let head = [
        "load",
        "redis req/s",
        "geode req/s",
        "req/s ratio",
        "CPU ratio",
        "p50 ratio",
        "worst ms redis / geode",
    ];
    table(&head, &rows);
    drop(servers);
    memory(binary)
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
        format!("{:.1} / {:.1}", median(0, |s| s.worst_ms).maximum, median(1, |s| s.worst_ms).maximum),
    ]
}

fn measure(load: &Load, port: u16, pid: u32, requests: usize) -> Result<Sample, String> {
    let requests = if load.pipeline > 1 { requests * 4 } else { requests };
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

fn memory(binary: &Path) -> Outcome {
    let servers = [start_redis()?, start_geode(binary)?];
    let mut resident = [0.0; 2];
    for index in 0..2 {
        wait_until("the server's first answer", || ping(PORTS[index]))?;
        Client::connect(&format!("127.0.0.1:{}", PORTS[index]))?.fill(MEMORY_KEYS)?;
        resident[index] = resident_mib(servers[index].pid());
    }
    println!(
        "\n1 M keys of 100 B: {} {:.0} MiB, {} {:.0} MiB, ratio {:.2}",
        NAMES[0],
        resident[0],
        NAMES[1],
        resident[1],
        resident[1] / resident[0]
    );
    let [redis, geode] = servers;
    redis.stop();
    geode.stop();
    let geode = start_again(binary)?;
    let restart = wait_until("the geode's first answer after a restart", || ping(PORTS[1]))?;
    println!("restart with 1 M keys to the first answer: geode {:.2} s", restart.as_secs_f64());
    drop(geode);
    Ok(())
}

fn ping(port: u16) -> bool {
    let client = Client::connect(&format!("127.0.0.1:{port}"));
    client.and_then(|mut client| client.call(&[b"PING"])).is_ok()
}

fn start_redis() -> Result<Server, String> {
    let directory = fresh_directory("redis")?;
    let mut command = Command::new("redis-server");
    command.args(["--port", &PORTS[0].to_string(), "--bind", "127.0.0.1", "--save", ""]);
    command.args(["--appendonly", "yes", "--appendfsync", "everysec", "--auto-aof-rewrite-percentage", "0"]);
    command.arg("--dir").arg(&directory);
    Server::start(&mut command, &directory.join("log"))
}

fn start_geode(binary: &Path) -> Result<Server, String> {
    let directory = fresh_directory("geode")?;
    let planet = format!(
        "format = 1\n[planet]\nname = \"bench\"\ndomain = \"bench.example\"\n\
         [regions.us-east-1]\npublic = [\"127.0.0.1\"]\nlink = \"127.0.0.1:{LINK}\"\n\
         [service]\nupstream = \"http://127.0.0.1:9\"\n\
         [store]\ndata = \"{}\"\nfsync = \"everysec\"\n\
         [redis]\nlisten = \"127.0.0.1:{}\"\n[door]\nlisten = \"127.0.0.1:{DOOR}\"\n[admin]\nlisten = \"127.0.0.1:{ADMIN}\"\n",
        directory.join("data").display(),
        PORTS[1]
    );
    std::fs::write(directory.join("planet.toml"), planet).map_err(|error| error.to_string())?;
    start_again(binary)
}

fn start_again(binary: &Path) -> Result<Server, String> {
    let directory = crate::root().join("target/bench/geode");
    let mut command = Command::new(binary);
    command.args(["run", "--region", "us-east-1", "--config"]).arg(directory.join("planet.toml"));
    Server::start(&mut command, &directory.join("log"))
}

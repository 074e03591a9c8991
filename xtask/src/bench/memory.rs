//! `bench memory`: more data than memory. One geode with a limit and a real redis-server without one hold the same keys.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::fresh_directory;
use super::process::{Server, resident_mib, wait_until_within};
use super::redis_client::Client;
use super::report::{machine, table};
use crate::Outcome;

const NAMES: [&str; 2] = ["redis", "geode"];
const PORTS: [u16; 2] = [17541, 17542];
/// Ports of the geode's other listeners.
const DOOR: u16 = 17543;
const ADMIN: u16 = 17544;
const LINK: u16 = 17545;
/// As in the other benchmarks of the store.
const CONNECTIONS: u64 = 50;
const VALUE_BYTES: usize = 100;
/// Commands in one write while the keys are loaded.
const BATCH: u64 = 500;
/// The skew of YCSB's zipfian requests.
const SKEW: f64 = 0.99;
/// Far beyond what either takes to start.
const START: Duration = Duration::from_secs(300);

/// What is read at random.
#[derive(Clone, Copy)]
enum Picks {
    Uniform,
    Zipfian,
}

/// Measures and prints. `limit` is spelled as in planet.toml.
pub(crate) fn run(binary: &Path, keys: u64, limit: &str, reads: u64) -> Outcome {
    println!(
        "{}; {keys} keys of {VALUE_BYTES} B; geode with memory = {limit:?}, redis without a limit\n",
        machine()
    );
    let directories = [fresh_directory("memory-redis")?, fresh_directory("memory-geode")?];
    write_planet(&directories[1], limit)?;
    let mut columns = Vec::new();
    for (index, directory) in directories.iter().enumerate() {
        let start = || if index == 0 { start_redis(directory) } else { start_geode(binary, directory) };
        columns.push(measure(index, start, keys, reads)?);
        let _ = std::fs::remove_dir_all(directory);
    }
    let figures = [
        "load s",
        "resident MiB",
        "GET/s uniform",
        "GET/s zipfian",
        "resident MiB then",
        "restart s",
        "resident MiB after it",
    ];
    let rows = figures
        .iter()
        .enumerate()
        .map(|(row, name)| vec![(*name).to_owned(), columns[0][row].clone(), columns[1][row].clone()]);
    table(&["", NAMES[0], NAMES[1]], &rows.collect::<Vec<_>>());
    Ok(())
}

/// One server from its first key to its second start. It is killed between the two.
fn measure(
    index: usize,
    start: impl Fn() -> Result<Server, String>,
    keys: u64,
    reads: u64,
) -> Result<Vec<String>, String> {
    let address = format!("127.0.0.1:{}", PORTS[index]);
    let server = start()?;
    wait_until_within(START, "the server's first answer", || count(&address).is_ok())?;
    let begin = Instant::now();
    fill(&address, keys)?;
    let load = begin.elapsed();
    let loaded_mib = resident_mib(server.pid());
    let uniform = get(&address, keys, reads, Picks::Uniform)?;
    let zipfian = get(&address, keys, reads, Picks::Zipfian)?;
    let read_mib = resident_mib(server.pid());
    // Both logs are forced onto the disk once a second, and a killed process loses nothing of what it answered.
    drop(server);
    let server = start()?;
    let restart = wait_until_within(START, "the server's first answer after a kill", || {
        count(&address).is_ok_and(|count| count == keys)
    })?;
    let restarted_mib = resident_mib(server.pid());
    Ok(vec![
        format!("{:.1}", load.as_secs_f64()),
        format!("{loaded_mib:.0}"),
        format!("{uniform:.0}"),
        format!("{zipfian:.0}"),
        format!("{read_mib:.0}"),
        format!("{:.2}", restart.as_secs_f64()),
        format!("{restarted_mib:.0}"),
    ])
}

fn name(index: u64) -> String {
    format!("key:{index:012}")
}

/// A value that tells of which key it is.
fn value(index: u64) -> Vec<u8> {
    let mut value = name(index).into_bytes();
    value.resize(VALUE_BYTES, b'x');
    value
}

fn count(address: &str) -> Result<u64, String> {
    let answer = Client::connect(address)?.call(&[b"DBSIZE"])?.unwrap_or_default();
    String::from_utf8_lossy(&answer).parse().map_err(|_| "DBSIZE is no number".to_owned())
}

fn fill(address: &str, keys: u64) -> Outcome {
    let mut client = Client::connect(address)?;
    for first in (0..keys).step_by(BATCH as usize) {
        let batch: Vec<_> =
            (first..keys.min(first + BATCH)).map(|index| (name(index), value(index))).collect();
        let commands: Vec<Vec<&[u8]>> =
            batch.iter().map(|(name, value)| vec![&b"SET"[..], name.as_bytes(), value]).collect();
        client.send(&commands)?;
        for _ in &batch {
            client.receive()?;
        }
    }
    Ok(())
}

/// Random reads over all connections, each of which is checked. Returns how many a second.
fn get(address: &str, keys: u64, reads: u64, picks: Picks) -> Result<f64, String> {
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..CONNECTIONS)
            .map(|connection| {
                scope.spawn(move || read(address, keys, reads / CONNECTIONS, picks, connection))
            })
            .collect();
        readers
            .into_iter()
            .try_for_each(|reader| reader.join().unwrap_or_else(|_| Err("a reader has stopped".to_owned())))
    })?;
    Ok(reads as f64 / begin.elapsed().as_secs_f64())
}

fn read(address: &str, keys: u64, reads: u64, picks: Picks, seed: u64) -> Outcome {
    let mut client = Client::connect(address)?;
    let mut state = seed;
    for _ in 0..reads {
        let index = pick(&mut state, keys, picks);
        let got = client.call(&[b"GET", name(index).as_bytes()])?;
        if got != Some(value(index)) {
            return Err(format!("{} is not what was written", name(index)));
        }
    }
    Ok(())
}

fn pick(state: &mut u64, keys: u64, picks: Picks) -> u64 {
    let random = split_mix(state);
    match picks {
        Picks::Uniform => random % keys,
        Picks::Zipfian => {
            // The inverse of the continuous distribution; then scattered, so that what is hot does not lie together.
            let share = random as f64 / u64::MAX as f64;
            let rank = (((keys as f64).powf(1.0 - SKEW) - 1.0) * share + 1.0).powf(1.0 / (1.0 - SKEW));
            split_mix(&mut (rank as u64)) % keys
        }
    }
}

/// Steele et al., "Fast splittable pseudorandom number generators", 2014.
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn start_redis(directory: &Path) -> Result<Server, String> {
    let mut command = Command::new("redis-server");
    command.args(["--port", &PORTS[0].to_string(), "--bind", "127.0.0.1", "--save", ""]);
    command.args(["--appendonly", "yes", "--appendfsync", "everysec", "--auto-aof-rewrite-percentage", "0"]);
    command.arg("--dir").arg(directory);
    Server::start(&mut command, &directory.join("log"))
}

fn write_planet(directory: &Path, limit: &str) -> Outcome {
    let data: PathBuf = directory.join("data");
    let planet = format!(
        "format = 1\n[planet]\nname = \"bench\"\ndomain = \"bench.example\"\n\
         [regions.us-east-1]\npublic = [\"127.0.0.1\"]\nlink = \"127.0.0.1:{LINK}\"\n\
         [service]\nupstream = \"http://127.0.0.1:9\"\n\
         [store]\ndata = \"{}\"\nfsync = \"everysec\"\nmemory = \"{limit}\"\n\
         [redis]\nlisten = \"127.0.0.1:{}\"\n[door]\nlisten = \"127.0.0.1:{DOOR}\"\n[admin]\nlisten = \"127.0.0.1:{ADMIN}\"\n",
        data.display(),
        PORTS[1]
    );
    std::fs::write(directory.join("planet.toml"), planet).map_err(|error| error.to_string())
}

fn start_geode(binary: &Path, directory: &Path) -> Result<Server, String> {
    let mut command = Command::new(binary);
    command.args(["run", "--region", "us-east-1", "--config"]).arg(directory.join("planet.toml"));
    Server::start(&mut command, &directory.join("log"))
}

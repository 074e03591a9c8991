//! `bench planet`: three geodes on this machine, as `geode dev` starts them.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use geode_planet::Place;
use serde_json::Value;

use super::fresh_directory;
use super::process::{Server, cpu_seconds, resident_mib, wait_until};
use super::redis_client::Client;
use super::report::{machine, percentile, table};
use crate::Outcome;

/// The load of the bar: writes a second while the delay is measured.
const WRITES_PER_SECOND: u64 = 5_000;
const BASE_PORT: u16 = 18100;
const CLIENTS: usize = 8;

/// A running `geode dev`.
pub(crate) struct DevPlanet {
    server: Server,
    ready: Value,
    binary: PathBuf,
    data: PathBuf,
    /// From the start of the process to the ready file.
    pub(crate) started_in: Duration,
}

impl DevPlanet {
    /// Starts three default regions in a fresh data directory.
    pub(crate) fn start(binary: &Path) -> Result<Self, String> {
        let data = fresh_directory("planet")?;
        let file = data.join("ready.json");
        let mut command = Command::new(binary);
        command.arg("dev").arg("--data").arg(&data).arg("--ready-file").arg(&file);
        command.args(["--base-port", &BASE_PORT.to_string()]);
        let begin = Instant::now();
        let server = Server::start(&mut command, &data.join("log"))?;
        wait_until("a ready planet", || file.exists())?;
        let started_in = begin.elapsed();
        let text = std::fs::read_to_string(&file).map_err(|error| error.to_string())?;
        let ready = serde_json::from_str(&text).map_err(|error| format!("{}: {error}", file.display()))?;
        Ok(Self { server, ready, binary: binary.into(), data, started_in })
    }

    fn region(&self, index: usize, field: &str) -> String {
        let value = &self.ready["regions"][index][field];
        value.as_str().map_or_else(|| value.to_string(), str::to_owned)
    }

    fn pid(&self, index: usize) -> u32 {
        self.ready["regions"][index]["pid"].as_u64().unwrap_or_default() as u32
    }

    fn redis(&self, index: usize) -> Result<Client, String> {
        Client::connect(self.region(index, "redis").trim_start_matches("redis://"))
    }

    /// Half of the round trip that the planet's model gives for two regions, in milliseconds.
    fn one_way_ms(&self, from: usize, to: usize) -> Result<f64, String> {
        let place =
            |index: usize| Place::find(&self.region(index, "name")).map_err(|error| error.to_string());
        Ok(geode_planet::one_way_ms(place(from)?.coordinates, place(to)?.coordinates))
    }

    fn chaos(&self, arguments: &[&str]) -> Outcome {
        let control = self.ready["control"].as_str().unwrap_or_default();
        let mut command = Command::new(&self.binary);
        command.arg("chaos").args(arguments).args(["--admin", control]);
        let status = command.output().map_err(|error| error.to_string())?;
        if status.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&status.stderr).into_owned())
        }
    }
}

/// Measures and prints.
pub(crate) fn run(binary: &Path, seconds: u64) -> Outcome {
    println!("{}; three regions, modelled latencies\n", machine());
    let planet = DevPlanet::start(binary)?;
    println!("ready after {:.2} s", planet.started_in.as_secs_f64());
    // Idle memory and CPU: after the start has settled, over a span long enough for the 10 ms ticks of /proc.
    std::thread::sleep(Duration::from_secs(3));
    let before: Vec<f64> = (0..3).map(|index| cpu_seconds(planet.pid(index))).collect();
    std::thread::sleep(Duration::from_secs(5));
    for (index, before) in before.iter().enumerate() {
        let pid = planet.pid(index);
        let cpu = (cpu_seconds(pid) - before) / 5.0 * 100.0;
        println!("{}: {:.1} MiB idle, {cpu:.1} % of a core", planet.region(index, "name"), resident_mib(pid));
    }
    delay(&planet, seconds)?;
    death(&planet)?;
    println!("log of the planet: {}", planet.data.join("log").display());
    planet.server.stop();
    Ok(())
}

/// How long after a write a busy reader of another region sees it, beyond the modelled one-way latency.
fn delay(planet: &DevPlanet, seconds: u64) -> Outcome {
    println!(
        "\nreplication delay beyond the one-way latency, {WRITES_PER_SECOND} writes/s for {seconds} s\n"
    );
    let mut rows = Vec::new();
    for (from, to) in [(0, 1), (1, 0), (0, 2)] {
        let one_way_ms = planet.one_way_ms(from, to)?;
        let mut samples = measure_delay(planet, from, to, seconds)?;
        for sample in &mut samples {
            *sample -= one_way_ms;
        }
        let at = |samples: &mut [f64], share| format!("{:.2}", percentile(samples, share));
        rows.push(vec![
            format!("{} → {}", planet.region(from, "name"), planet.region(to, "name")),
            format!("{one_way_ms:.1}"),
            at(&mut samples, 0.5),
            at(&mut samples, 0.99),
            at(&mut samples, 1.0),
            samples.len().to_string(),
        ]);
    }
    table(&["path", "one way ms", "p50 ms", "p99 ms", "worst ms", "samples"], &rows);
    Ok(())
}

fn measure_delay(planet: &DevPlanet, from: usize, to: usize, seconds: u64) -> Result<Vec<f64>, String> {
    let epoch = Instant::now();
    let stop = Arc::new(AtomicBool::new(false));
    let mut writer = planet.redis(from)?;
    let writing = Arc::clone(&stop);
    let thread = std::thread::spawn(move || -> Outcome {
        // A burst each millisecond, as a busy service writes; the last of a burst carries the time at which it was sent.
        let burst = WRITES_PER_SECOND / 1000;
        for tick in 1u32.. {
            if writing.load(Ordering::Relaxed) {
                break;
            }
            let due = Duration::from_millis(u64::from(tick));
            std::thread::sleep(due.saturating_sub(epoch.elapsed()));
            let names: Vec<String> =
                (1..burst).map(|index| format!("filler:{}", u64::from(tick) * burst + index)).collect();
            let stamp = epoch.elapsed().as_nanos().to_string();
            let mut commands: Vec<Vec<&[u8]>> =
                names.iter().map(|name| vec![&b"SET"[..], name.as_bytes(), &[b'x'; 100]]).collect();
            commands.push(vec![b"SET", b"probe", stamp.as_bytes()]);
            writer.send(&commands)?;
            for _ in &commands {
                writer.receive()?;
            }
        }
        Ok(())
    });
    let mut reader = planet.redis(to)?;
    let (mut samples, mut last) = (Vec::new(), Vec::new());
    while epoch.elapsed() < Duration::from_secs(seconds) {
        let Some(value) = reader.call(&[b"GET", b"probe"])? else { continue };
        let seen = epoch.elapsed();
        let sent = std::str::from_utf8(&value).ok().and_then(|text| text.parse::<u64>().ok());
        let Some(sent) = sent.filter(|_| value != last) else { continue };
        last = value;
        // The first second warms up; a value of an earlier measurement is older than this one's epoch can explain.
        if let Some(delay) = seen.checked_sub(Duration::from_nanos(sent)).filter(|_| seen.as_secs() >= 1) {
            samples.push(delay.as_secs_f64() * 1e3);
        }
    }
    stop.store(true, Ordering::Relaxed);
    thread.join().map_err(|_| "the writer panicked".to_owned())??;
    Ok(samples)
}

/// What clients at the internet address see when the region that serves them is killed.
fn death(planet: &DevPlanet) -> Outcome {
    let door = planet.ready["door"].as_str().unwrap_or_default().trim_start_matches("http://").to_owned();
    let outcomes = Arc::new(Mutex::new(Vec::<(Duration, Option<String>)>::new()));
    let stop = Arc::new(AtomicBool::new(false));
    let epoch = Instant::now();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (door, outcomes, stop) = (door.clone(), Arc::clone(&outcomes), Arc::clone(&stop));
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let region = get(&door, "/api/menu", "virginia");
                    if let Ok(mut outcomes) = outcomes.lock() {
                        outcomes.push((epoch.elapsed(), region));
                    }
                }
            })
        })
        .collect();
    std::thread::sleep(Duration::from_secs(2));
    let victim = planet.region(0, "name");
    let killed = epoch.elapsed();
    planet.chaos(&["kill", &victim])?;
    std::thread::sleep(Duration::from_secs(3));
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().map_err(|_| "a client panicked".to_owned())?;
    }
    let outcomes = outcomes.lock().map_err(|_| "a client panicked".to_owned())?;
    let failed = outcomes.iter().filter(|(_, region)| region.is_none()).count();
    let elsewhere = outcomes
        .iter()
        .filter(|(at, region)| *at > killed && region.as_ref().is_some_and(|region| *region != victim))
        .map(|(at, _)| *at)
        .min();
    println!("\n{victim} killed under {CLIENTS} clients: {} requests, {failed} failed", outcomes.len());
    match elsewhere {
        Some(at) => println!("another region served {:.0} ms later", (at - killed).as_secs_f64() * 1e3),
        None => println!("no other region served within three seconds"),
    }
    Ok(())
}

/// One idempotent request from a place; the region that answered 200, or nothing.
fn get(address: &str, path: &str, place: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: {address}\r\ngeode-from: {place}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut response = String::new();
    stream.read_to_string(&mut response).ok()?;
    let head = response.split("\r\n\r\n").next()?;
    let (status, headers) = head.split_once("\r\n")?;
    let region = headers
        .lines()
        .find_map(|line| line.to_lowercase().strip_prefix("geode-region: ").map(str::to_owned));
    region.filter(|_| status.contains(" 200 "))
}

//! `bench link`: what a region that was away gets how fast over a long path that loses packets, and what live writes to the
//! others feel of it.

mod network;
mod tun;

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::fresh_directory;
use super::process::{Server, cpu_seconds, wait_until_within};
use super::redis_client::Client;
use super::report::{Spread, machine, percentile, table};
use crate::{Outcome, run as run_command};
use network::{Machine, machines};

const REGIONS: [&str; 3] = ["us-east-1", "eu-west-1", "ap-southeast-2"];
/// The path of the bar: 80 ms there and back, 0.1 % loss. 100 Mbit/s and a queue of 100 ms are a small machine's uplink.
const PATH: network::Path = network::Path {
    one_way: Duration::from_millis(40),
    bits_per_second: 100e6,
    queue: Duration::from_millis(100),
    loss: 0.001,
};
const VALUE_BYTES: usize = 100;
/// Live writes while the delay is measured.
const PROBES_PER_SECOND: u32 = 200;
/// How long the delay is measured before each round. A lost packet delays all writes of the next round trip, a hundredth of
/// all: so p99 needs many losses, idle and while a region catches up.
const IDLE: Duration = Duration::from_secs(12);

/// Measures and prints.
pub(crate) fn run(binary: &Path, missed: usize, rounds: usize) -> Outcome {
    println!(
        "{}; three machines, {} ms one way, {} Mbit/s and {} ms of queue for each uplink, {} % loss\n",
        machine(),
        PATH.one_way.as_millis(),
        PATH.bits_per_second / 1e6,
        PATH.queue.as_millis(),
        PATH.loss * 100.0
    );
    let planet = Planet::new(binary)?;
    let mut geodes: Vec<Server> = (0..3).map(|index| planet.start(index)).collect::<Result<_, _>>()?;
    for index in 0..3 {
        planet.until_ready(index)?;
    }
    // Both directions: so that all links are up before anything is measured.
    for (from, to) in [(0, 1), (1, 0), (0, 2)] {
        planet.until_seen(from, to, b"hello")?;
    }
    let (mut idle, mut caught_up) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        idle.extend(planet.idle()?);
        geodes.remove(1).stop();
        planet.fill(0, round, missed)?;
        planet.until_seen(0, 2, format!("filled {round}").as_bytes())?;
        let (geode, measured) = planet.catch_up(geodes[0].pid(), round, missed)?;
        geodes.insert(1, geode);
        planet.until_seen(1, 0, format!("caught up {round}").as_bytes())?;
        caught_up.push(measured);
    }
    print(caught_up, &mut idle, missed);
    geodes.into_iter().for_each(Server::stop);
    Ok(())
}

/// The machines, and what they run.
struct Planet<'b> {
    binary: &'b Path,
    directory: std::path::PathBuf,
    machines: Vec<Machine>,
    /// What times are counted from.
    epoch: Instant,
}

/// When a write was seen, and how long after it was sent.
struct Seen {
    at: Duration,
    delay_ms: f64,
}

/// What was measured while a region caught up.
struct CatchUp {
    seconds: f64,
    sent_bytes: u64,
    /// Bytes that left the sender in each full second.
    by_second: Vec<u64>,
    delays_ms: Vec<f64>,
    cpu_seconds: [f64; 2],
}

impl<'b> Planet<'b> {
    fn new(binary: &'b Path) -> Result<Self, String> {
        let machines = machines(3, PATH)?;
        let directory = fresh_directory("link")?;
        let mut init = Command::new(binary);
        init.args(["init", "--name", "bench", "--dir"]).arg(&directory);
        for (region, machine) in REGIONS.iter().zip(&machines) {
            init.arg("--region").arg(format!("{region}={}", machine.address));
        }
        run_command(init.stdout(std::process::Stdio::null()))?;
        let file = directory.join("planet.toml");
        let text = std::fs::read_to_string(&file).map_err(|error| error.to_string())?;
        for region in REGIONS {
            let own = directory.join(region);
            let copy = || {
                std::fs::create_dir_all(&own)?;
                // Nobody asks for the service here.
                let text = text.replace("data = \"/var/lib/geode\"", "data = \"data\"");
                std::fs::write(
                    own.join("planet.toml"),
                    text.replace("run = [\"geode\", \"demo\"]", "run = [\"cat\"]"),
                )?;
                let bundle = format!("{region}.bundle");
                std::fs::copy(directory.join(&bundle), own.join(bundle))
            };
            copy().map_err(|error: std::io::Error| format!("{}: {error}", own.display()))?;
        }
        Ok(Self { binary, directory, machines, epoch: Instant::now() })
    }

    fn start(&self, index: usize) -> Result<Server, String> {
        let own = self.directory.join(REGIONS[index]);
        let mut command = self.machines[index].command(self.binary);
        command.args(["run", "--region", REGIONS[index]]).current_dir(&own);
        Server::start(&mut command, &own.join("log"))
    }

    fn client(&self, index: usize) -> Result<Client, String> {
        self.machines[index].within(|| Client::connect("127.0.0.1:6379"))
    }

    fn until_ready(&self, index: usize) -> Outcome {
        let ping = || self.client(index).and_then(|mut client| client.call(&[b"PING"])).is_ok();
        wait_until_within(Duration::from_secs(120), "the geode's first answer", ping).map(drop)
    }

    /// Writes a key in one region, and waits until another one has it.
    fn until_seen(&self, from: usize, to: usize, value: &[u8]) -> Outcome {
        let (mut writer, mut reader) = (self.client(from)?, self.client(to)?);
        let key = format!("seen:{from}:{to}");
        let write = || writer.call(&[b"SET", key.as_bytes(), value]).is_ok();
        wait_until_within(Duration::from_secs(60), "a write", write)?;
        let read = || reader.call(&[b"GET", key.as_bytes()]).is_ok_and(|held| held.as_deref() == Some(value));
        wait_until_within(Duration::from_secs(300), "the arrival of a write", read).map(drop)
    }

    /// Writes that a region which is away will miss; their values cannot be compressed.
    fn fill(&self, index: usize, round: usize, keys: usize) -> Outcome {
        let mut client = self.client(index)?;
        let mut random = 0x2545_f491_4f6c_dd1d_u64 + round as u64;
        let mut value = || -> Vec<u8> {
            let words = std::iter::repeat_with(|| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random.to_le_bytes()
            });
            words.flatten().take(VALUE_BYTES).collect()
        };
        for first in (0..keys).step_by(500) {
            let writes: Vec<(String, Vec<u8>)> =
                (first..keys.min(first + 500)).map(|key| (missed_key(round, key), value())).collect();
            let commands: Vec<Vec<&[u8]>> =
                writes.iter().map(|(key, value)| vec![&b"SET"[..], key.as_bytes(), value]).collect();
            client.send(&commands)?;
            for _ in &commands {
                client.receive()?;
            }
        }
        Ok(())
    }

    /// The delay of live writes while there is nothing else.
    fn idle(&self) -> Result<Vec<f64>, String> {
        let still = AtomicBool::new(true);
        let seen = std::thread::scope(|scope| {
            let probes = scope.spawn(|| self.probe(0, 2, &still));
            std::thread::sleep(IDLE);
            still.store(false, Ordering::Relaxed);
            probes.join().map_err(|_| "the prober panicked".to_owned())?
        })?;
        Ok(seen.into_iter().map(|seen| seen.delay_ms).collect())
    }

    /// How long after a write a busy reader of another region sees it, until told to stop.
    fn probe(&self, from: usize, to: usize, goes_on: &AtomicBool) -> Result<Vec<Seen>, String> {
        let (mut writer, mut reader) = (self.client(from)?, self.client(to)?);
        let (epoch, began) = (self.epoch, self.epoch.elapsed());
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let writing = scope.spawn(|| -> Outcome {
                for tick in 1.. {
                    let due = began + Duration::from_secs(1) * tick / PROBES_PER_SECOND;
                    std::thread::sleep(due.saturating_sub(epoch.elapsed()));
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                    let stamp = epoch.elapsed().as_nanos().to_string();
                    writer.call(&[b"SET", b"probe", stamp.as_bytes()])?;
                }
                Ok(())
            });
            let (mut delays, mut last) = (Vec::new(), 0);
            while goes_on.load(Ordering::Relaxed) {
                let Some(value) = reader.call(&[b"GET", b"probe"])? else { continue };
                let seen = epoch.elapsed();
                let sent: u64 =
                    std::str::from_utf8(&value).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
                let sent_at = Duration::from_nanos(sent);
                if sent > last && sent_at > began {
                    delays.push(Seen { at: seen, delay_ms: (seen - sent_at).as_secs_f64() * 1e3 });
                }
                last = last.max(sent);
                // So that the reader does not take the processor from those that are measured.
                std::thread::sleep(Duration::from_micros(200));
            }
            done.store(true, Ordering::Relaxed);
            writing.join().map_err(|_| "the writer panicked".to_owned())??;
            Ok(delays)
        })
    }

    /// Starts the region that was away, and measures until it has the last of what it missed.
    fn catch_up(&self, source: u32, round: usize, missed: usize) -> Result<(Server, CatchUp), String> {
        let goes_on = AtomicBool::new(true);
        std::thread::scope(|scope| {
            let probes = scope.spawn(|| self.probe(0, 2, &goes_on));
            std::thread::sleep(Duration::from_secs(2));
            let cpu = cpu_seconds(source);
            let back = self.start(1)?;
            self.until_ready(1)?;
            let (began, began_at) = (Instant::now(), self.epoch.elapsed());
            let sent = self.machines[0].sent_bytes();
            let mut client = self.client(1)?;
            let last = missed_key(round, missed - 1);
            let mut by_second = vec![sent];
            while client.call(&[b"EXISTS", last.as_bytes()])?.as_deref() != Some(b"1") {
                if began.elapsed() > Duration::from_secs(600) {
                    return Err("the region did not catch up within ten minutes".to_owned());
                }
                std::thread::sleep(Duration::from_millis(10));
                if began.elapsed().as_secs() as usize >= by_second.len() {
                    by_second.push(self.machines[0].sent_bytes());
                }
            }
            let elapsed = began.elapsed();
            goes_on.store(false, Ordering::Relaxed);
            let seen = probes.join().map_err(|_| "the prober panicked".to_owned())??;
            let meanwhile = seen.into_iter().filter(|seen| seen.at > began_at);
            let cpu_seconds = [cpu_seconds(source) - cpu, cpu_seconds(back.pid())];
            let measured = CatchUp {
                seconds: elapsed.as_secs_f64(),
                sent_bytes: self.machines[0].sent_bytes() - sent,
                by_second: by_second.windows(2).map(|pair| pair[1] - pair[0]).collect(),
                delays_ms: meanwhile.map(|seen| seen.delay_ms).collect(),
                cpu_seconds,
            };
            Ok((back, measured))
        })
    }
}

fn missed_key(round: usize, key: usize) -> String {
    format!("missed:{round}:{key}")
}

impl CatchUp {
    fn share(&self) -> f64 {
        share_of_rate(self.sent_bytes, self.seconds)
    }
}

/// How many hundredths of the link's rate so many bytes in a time are.
fn share_of_rate(bytes: u64, seconds: f64) -> f64 {
    100.0 * bytes as f64 * 8.0 / seconds / PATH.bits_per_second
}

fn print(rounds: Vec<CatchUp>, idle: &mut [f64], missed: usize) {
    let spread = |figure: fn(&CatchUp) -> f64| Spread::of(&rounds.iter().map(figure).collect::<Vec<_>>());
    println!(
        "catch-up of {missed} missed SETs of {VALUE_BYTES} B that cannot be compressed, {} rounds:",
        rounds.len()
    );
    println!("seconds: {}", spread(|round| round.seconds));
    println!("% of the link's rate: {}", spread(CatchUp::share));
    println!("bytes of IP a write: {:.0}", spread(|round| round.sent_bytes as f64).median / missed as f64);
    println!("CPU seconds at the sender: {}", spread(|round| round.cpu_seconds[0]));
    println!("CPU seconds at the receiver: {}", spread(|round| round.cpu_seconds[1]));
    for round in &rounds {
        let shares: Vec<String> =
            round.by_second.iter().map(|bytes| format!("{:.0}", share_of_rate(*bytes, 1.0))).collect();
        println!("% of the rate in each second: {}", shares.join(" "));
    }
    let mut delays: Vec<f64> = rounds.into_iter().flat_map(|round| round.delays_ms).collect();
    let row = |name: &str, delays: &mut [f64]| {
        let mut cells = vec![name.to_owned()];
        cells.extend([0.5, 0.9, 0.99, 1.0].map(|share| format!("{:.1}", percentile(delays, share))));
        cells.push(delays.len().to_string());
        cells
    };
    println!();
    table(
        &["delay of live writes to the third region", "p50 ms", "p90 ms", "p99 ms", "worst ms", "samples"],
        &[row("idle", idle), row("while the other one catches up", &mut delays)],
    );
    println!("\np99 ratio: {:.2}", percentile(&mut delays, 0.99) / percentile(idle, 0.99));
}

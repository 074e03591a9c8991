//! More data than memory, as users meet it: one region with a limit beside one without, under all that happens to regions.

#![allow(clippy::unwrap_used)] // a test that unwraps fails, which is what it is for

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use geode_link::Authority;
use redis::Value;
use rustix::process::{Pid, Signal, kill_process};

const GEODE: &str = env!("CARGO_BIN_EXE_geode");
/// Beyond this a wait has failed; nothing that works comes near it, however busy the machine.
const DEADLINE: Duration = Duration::from_secs(120);
/// The least limit that there is, a little more than it, and more data than that.
const LIMIT: &str = "64MiB";
const MOST_BYTES: u64 = 70 << 20;
const KEYS: usize = 100_000;
const VALUE_BYTES: usize = 1000;

/// One region, running or not.
struct Geode {
    name: &'static str,
    directory: PathBuf,
    redis: SocketAddr,
    admin: SocketAddr,
    is_limited: bool,
    child: Option<Child>,
}

impl Drop for Geode {
    fn drop(&mut self) {
        self.end(Signal::KILL);
    }
}

/// A planet of these regions, of which one may have a limit. None is started.
fn planet<const N: usize>(directory: &Path, names: [&'static str; N], limited: Option<&str>) -> [Geode; N] {
    let held = [(); N].map(|()| [(); 4].map(|()| TcpListener::bind(("127.0.0.1", 0)).unwrap()));
    let all = held.map(|listeners| listeners.map(|listener| listener.local_addr().unwrap()));
    let authority = Authority::new("acme").unwrap();
    let mut regions = String::new();
    for (name, [link, ..]) in names.iter().zip(&all) {
        regions += &format!("[regions.{name}]\npublic = [\"127.0.0.1\"]\nlink = \"{link}\"\n");
    }
    let mut number = 0;
    names.map(|name| {
        let [_, door, redis, admin] = all[number];
        let is_limited = limited == Some(name);
        let limit = if is_limited { format!("memory = \"{LIMIT}\"\n") } else { String::new() };
        number += 1;
        let directory = directory.join(name);
        std::fs::create_dir(&directory).unwrap();
        let toml = format!(
            "format = 1\n[planet]\nname = \"acme\"\n{regions}[service]\nupstream = \"http://127.0.0.1:9\"\n\
             [store]\ndata = \"{}\"\n{limit}[door]\nlisten = [\"{door}\"]\n[redis]\nlisten = \"{redis}\"\n\
             [admin]\nlisten = \"{admin}\"\n",
            directory.join("data").display()
        );
        std::fs::write(directory.join("planet.toml"), toml).unwrap();
        let bundle = authority.issue(&name.parse().unwrap()).unwrap();
        std::fs::write(directory.join(format!("{name}.bundle")), bundle.text()).unwrap();
        Geode { name, directory, redis, admin, is_limited, child: None }
    })
}

impl Geode {
    fn start(&mut self) {
        let log = File::options().append(true).create(true).open(self.directory.join("log")).unwrap();
        let child = Command::new(GEODE)
            .args(["run", "--region", self.name, "--config"])
            .arg(self.directory.join("planet.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        let until = Instant::now() + DEADLINE;
        while self.try_connect().is_none() {
            assert!(Instant::now() < until, "{} is never there", self.name);
            assert_eq!(self.child.as_mut().unwrap().try_wait().unwrap(), None, "{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn end(&mut self, signal: Signal) {
        if let Some(mut child) = self.child.take() {
            let _ = kill_process(Pid::from_raw(child.id().cast_signed()).unwrap(), signal);
            child.wait().unwrap();
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap()
    }

    fn try_connect(&self) -> Option<redis::Connection> {
        let client = redis::Client::open(format!("redis://{}", self.redis)).unwrap();
        let mut connection = client.get_connection().ok()?;
        redis::cmd("DBSIZE").query::<u64>(&mut connection).ok().map(|_| connection)
    }

    fn connect(&self) -> redis::Connection {
        self.try_connect().unwrap()
    }

    /// A figure of INFO.
    fn info(&self, name: &str) -> u64 {
        let info: redis::InfoDict = redis::cmd("INFO").query(&mut self.connect()).unwrap();
        info.get(name).unwrap()
    }

    fn ask(&self, question: &str) -> (bool, String) {
        let admin = format!("http://{}", self.admin);
        let output = Command::new(GEODE).args([question, "--admin", &admin]).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Waits until all regions hold the same, by their digests.
    fn converges(&self, keys: u64) {
        let until = Instant::now() + DEADLINE;
        loop {
            let (is_good, said) = self.ask("verify");
            if is_good && said.starts_with("converged: ") && self.info_keys() == keys {
                return;
            }
            assert!(
                Instant::now() < until,
                "{}: {said}; {} keys\n{}",
                self.name,
                self.info_keys(),
                self.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn info_keys(&self) -> u64 {
        redis::cmd("DBSIZE").query(&mut self.connect()).unwrap()
    }
}

fn value(number: usize) -> String {
    format!("{number}:{}", "x".repeat(VALUE_BYTES))
}

fn load(geode: &Geode) {
    let mut connection = geode.connect();
    for first in (0..KEYS).step_by(500) {
        let mut pipe = redis::pipe();
        for number in first..first + 500 {
            pipe.cmd("SET").arg(format!("key:{number}")).arg(value(number)).ignore();
            if number % 10 == 0 {
                let name = |kind: &str| format!("{kind}:{number}");
                pipe.cmd("INCRBY").arg(name("count")).arg(number).ignore();
                pipe.cmd("HSET").arg(name("hash")).arg("field").arg(number).arg("other").arg("o").ignore();
                pipe.cmd("RPUSH").arg(name("list")).arg("a").arg("b").arg(number).ignore();
                pipe.cmd("SADD").arg(name("set")).arg("m").arg(number).ignore();
            }
        }
        let () = pipe.query(&mut connection).unwrap();
        // However slow the disk is, nothing is to be refused here.
        let until = Instant::now() + DEADLINE;
        while geode.is_limited && geode.info("used_memory") > MOST_BYTES {
            assert!(Instant::now() < until, "memory is never given back\n{}", geode.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Commands of every kind on keys that were not used since they were loaded; the same ones answer the same everywhere.
fn questions(round: usize) -> redis::Pipeline {
    let mut pipe = redis::pipe();
    for number in (0..KEYS).step_by(1000).map(|number| number + 10 * round) {
        let name = |kind: &str| format!("{kind}:{number}");
        pipe.cmd("APPEND").arg(name("key")).arg("more");
        pipe.cmd("STRLEN").arg(name("key"));
        pipe.cmd("INCR").arg(name("count"));
        pipe.cmd("HINCRBY").arg(name("hash")).arg("field").arg(1);
        pipe.cmd("HGETALL").arg(name("hash"));
        pipe.cmd("LPOP").arg(name("list"));
        pipe.cmd("LRANGE").arg(name("list")).arg(0).arg(-1);
        pipe.cmd("SREM").arg(name("set")).arg("m");
        pipe.cmd("SCARD").arg(name("set"));
        pipe.cmd("TYPE").arg(name("list"));
        pipe.cmd("TTL").arg(name("key"));
        pipe.cmd("RENAME").arg(name("set")).arg(name("renamed"));
        pipe.cmd("EXISTS").arg(name("set")).arg(name("renamed")).arg(format!("absent:{number}"));
        pipe.cmd("DEL").arg(format!("key:{}", number + 1));
        pipe.cmd("MGET").arg(format!("key:{}", number + 1)).arg(name("count"));
    }
    pipe
}

fn answers(geode: &Geode, pipe: &redis::Pipeline) -> Vec<Value> {
    pipe.query(&mut geode.connect()).unwrap()
}

/// What is there after `rounds` rounds of [`questions`].
fn keys_after(rounds: usize) -> u64 {
    (KEYS + 4 * KEYS / 10 - rounds * KEYS / 1000) as u64
}

#[test]
fn a_region_with_a_limit_answers_restarts_and_replicates_as_one_without() {
    let directory = tempfile::tempdir().unwrap();
    let [mut limited, mut free] = planet(directory.path(), ["eu-west-1", "us-east-1"], Some("eu-west-1"));
    limited.start();
    free.start();
    load(&limited);
    assert!(limited.info("geode_cold_keys") > KEYS as u64 / 4, "most of it is on disk alone");
    limited.converges(keys_after(0));
    let until = Instant::now() + DEADLINE;
    loop {
        // It is told once a beat.
        let (_, status) = limited.ask("status");
        let told = "of 140000 keys are on disk alone; rows take ";
        if status.lines().any(|line| line.starts_with("eu-west-1: ") && line.contains(told)) {
            break;
        }
        assert!(Instant::now() < until, "{status}");
    }

    // A twin that never heard of either answers as the region with the limit does.
    let [mut twin] = planet(directory.path(), ["tokyo"], None);
    twin.start();
    load(&twin);
    assert_eq!(answers(&limited, &questions(0)), answers(&twin, &questions(0)));
    drop(twin);
    free.converges(keys_after(1));

    // Killed, it comes back with all of it; what was written elsewhere meets keys that it has on disk.
    limited.end(Signal::KILL);
    answers(&free, &questions(1));
    limited.start();
    limited.converges(keys_after(2));

    // Stopped, it leaves nothing to replay.
    limited.end(Signal::TERM);
    answers(&free, &questions(2));
    limited.start();
    limited.converges(keys_after(3));
    assert!(limited.info("geode_cold_keys") > 0);
}

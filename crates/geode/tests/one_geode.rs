//! One geode as its operator meets it: the real binary, its configuration, its admin address, its commands, its end.

#![allow(clippy::unwrap_used)] // a test that unwraps fails, which is what it is for

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const GEODE: &str = env!("CARGO_BIN_EXE_geode");
/// Beyond this a wait has failed; nothing that works comes near it, however busy the machine.
const DEADLINE: Duration = Duration::from_secs(90);

/// Where a geode under test listens.
struct Addresses {
    door: SocketAddr,
    redis: SocketAddr,
    admin: SocketAddr,
}

impl Addresses {
    /// Three addresses that were free a moment ago.
    fn free() -> Self {
        let held = [(); 3].map(|()| TcpListener::bind(("127.0.0.1", 0)).unwrap());
        let [door, redis, admin] = held.map(|listener| listener.local_addr().unwrap());
        Self { door, redis, admin }
    }

    fn planet_toml(&self, data: &Path) -> String {
        format!(
            r#"
format = 1
[planet]
name = "acme"
[regions.us-east-1]
public = ["127.0.0.1"]
[service]
run = ["{GEODE}", "demo"]
[store]
data = "{}"
[door]
listen = ["{}"]
[redis]
listen = "{}"
[admin]
listen = "{}"
[steering.prefixes]
"203.0.113.0/24" = "sydney"
"#,
            data.display(),
            self.door,
            self.redis,
            self.admin
        )
    }
}

/// A running `geode run`; killed when dropped.
struct Geode {
    child: Child,
    addresses: Addresses,
}

impl Drop for Geode {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Geode {
    fn start(directory: &Path, log_format: &str) -> Self {
        // As a login shell starts it: 1024 open files and no more, unless it asks for them.
        Self::start_limited(directory, log_format, "-Sn 1024")
    }

    /// With a limit as the shell's `ulimit` takes it.
    fn start_limited(directory: &Path, log_format: &str, limit: &str) -> Self {
        let addresses = Addresses::free();
        let config = directory.join("planet.toml");
        std::fs::write(&config, addresses.planet_toml(&directory.join("data"))).unwrap();
        let child = Command::new("sh")
            .args(["-c", &format!("ulimit {limit}; exec \"$0\" \"$@\""), GEODE])
            .args(["run", "--region", "us-east-1", "--log-format", log_format, "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut geode = Self { child, addresses };
        let deadline = Instant::now() + DEADLINE;
        while geode.get("/readyz").is_none_or(|(status, _)| status != 200) {
            assert!(Instant::now() < deadline, "never ready: {:?}", geode.get("/readyz"));
            assert_eq!(geode.child.try_wait().unwrap(), None, "it ended");
            std::thread::sleep(Duration::from_millis(10));
        }
        geode
    }

    /// Asks the admin address.
    fn get(&self, path: &str) -> Option<(u16, String)> {
        get(self.addresses.admin, path)
    }

    /// Runs a command of the operator's against this geode.
    fn ask(&self, arguments: &[&str]) -> Output {
        let admin = format!("http://{}", self.addresses.admin);
        Command::new(GEODE).args(arguments).args(["--admin", &admin]).output().unwrap()
    }

    fn redis(&self) -> redis::Connection {
        let client = redis::Client::open(format!("redis://{}", self.addresses.redis)).unwrap();
        client.get_connection().unwrap()
    }

    /// Asks it to stop, and returns its exit code and what it logged.
    fn stop(mut self) -> (Option<i32>, Vec<String>) {
        let pid = Pid::from_raw(self.child.id().cast_signed()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        let log = BufReader::new(self.child.stderr.take().unwrap());
        let log = log.lines().map(Result::unwrap).collect();
        (self.child.wait().unwrap().code(), log)
    }
}

/// One HTTP request on a connection of its own: status and body.
fn get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(DEADLINE)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn a_geode_serves_answers_for_itself_and_keeps_its_data_over_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let geode = Geode::start(directory.path(), "text");
    let () = redis::cmd("SET").arg("cup").arg("full").query(&mut geode.redis()).unwrap();
    assert_eq!(get(geode.addresses.door, "/").unwrap().0, 200);

    assert_eq!(geode.get("/healthz").unwrap(), (200, "ok\n".to_owned()));
    let (_, metrics) = geode.get("/metrics").unwrap();
    for expected in [
        "geode_build{version=\"0.1.0\",region=\"us-east-1\",config=\"",
        "geode_ready 1.0\n",
        "geode_region_healthy{region=\"us-east-1\"} 1.0\n",
        "geode_door_requests_total{outcome=\"local\"} 1\n",
        "geode_service_instances{state=\"healthy\"} 1.0\n",
        "geode_store_keys ",
        "geode_redis_commands_total ",
        "# EOF\n",
    ] {
        assert!(metrics.contains(expected), "{expected:?} is not in\n{metrics}");
    }
    assert_eq!(geode.get("/v2").unwrap().0, 404);

    let status = geode.ask(&["status"]);
    assert_eq!(status.status.code(), Some(0), "{}", out(&status));
    assert!(out(&status).starts_with("planet acme, seen from us-east-1\n"), "{}", out(&status));
    assert!(out(&status).ends_with("all regions serve, and all copies are the same\n"), "{}", out(&status));
    let status: Value = serde_json::from_slice(&geode.ask(&["status", "--json"]).stdout).unwrap();
    assert_eq!((&status["good"], &status["regions"][0]["state"]["version"]), (&true.into(), &"0.1.0".into()));

    let verify = geode.ask(&["verify"]);
    assert_eq!(verify.status.code(), Some(0), "{}", err(&verify));
    assert!(out(&verify).starts_with("converged: all regions hold the same "), "{}", out(&verify));
    let conflicts = geode.ask(&["conflicts"]);
    assert_eq!(out(&conflicts), "us-east-1: no conflicts since it started\n");

    let (code, log) = geode.stop();
    assert_eq!(code, Some(0), "{log:#?}");
    assert!(log.iter().any(|line| line.ends_with("stopping")), "{log:#?}");

    let geode = Geode::start(directory.path(), "text");
    let cup: String = redis::cmd("GET").arg("cup").query(&mut geode.redis()).unwrap();
    assert_eq!(cup, "full");
}

#[test]
fn info_says_what_operators_and_clients_look_for() {
    let directory = tempfile::tempdir().unwrap();
    let geode = Geode::start(directory.path(), "text");
    let mut redis = geode.redis();
    let () = redis::cmd("SET").arg("cup").arg("full").query(&mut redis).unwrap();
    let info: redis::InfoDict = redis::cmd("INFO").query(&mut redis).unwrap();
    let number = |name: &str| info.get::<u64>(name);
    assert_eq!(number("process_id"), Some(geode.child.id().into()));
    assert_eq!(number("tcp_port"), Some(geode.addresses.redis.port().into()));
    assert_eq!(number("connected_clients"), Some(1));
    assert_eq!((number("loading"), number("aof_enabled")), (Some(0), Some(1)));
    assert!(number("uptime_in_seconds").is_some());
    assert!(number("used_memory").is_some_and(|bytes| bytes > 0));
    assert!(number("total_commands_processed").is_some_and(|commands| commands > 0));
    assert_eq!(info.get::<String>("maxmemory_policy").as_deref(), Some("noeviction"));
    let hello: Vec<redis::Value> = redis::cmd("HELLO").query(&mut redis).unwrap();
    let version: String = redis::from_redis_value_ref(&hello[3]).unwrap();
    assert_eq!(info.get("redis_version"), Some(version), "INFO and HELLO agree");
}

#[test]
fn a_log_without_room_refuses_writes_says_so_everywhere_and_goes_on_by_itself() {
    let directory = tempfile::tempdir().unwrap();
    // 4 MiB, in blocks of 512 bytes.
    let geode = Geode::start_limited(directory.path(), "text", "-Sf 8192");
    let mut redis = geode.redis();
    let mut set = |key: &str, bytes: usize| -> redis::RedisResult<String> {
        redis::cmd("SET").arg(key).arg("x".repeat(bytes)).query(&mut redis)
    };
    assert_eq!(set("cup", 4).unwrap(), "OK");
    let doubt = set("big", 8 << 20).unwrap_err().to_string();
    assert!(doubt.contains("DISK") && doubt.contains("it may or may not happen"), "{doubt}");
    let refusal = set("cup", 4).unwrap_err().to_string();
    assert!(refusal.contains("DISK") && refusal.contains("File too large"), "{refusal}");
    let cup: String = redis::cmd("GET").arg("cup").query(&mut geode.redis()).unwrap();
    assert_eq!(cup, "xxxx", "reads go on");
    assert_eq!(geode.get("/healthz").unwrap().0, 200, "to start it again would not help");
    assert_eq!(geode.get("/readyz").unwrap(), (503, "its store refuses writes\n".to_owned()));
    assert!(geode.get("/metrics").unwrap().1.contains("geode_store_refuses_writes 1.0\n"));
    let deadline = Instant::now() + DEADLINE;
    let status = |said: &str| {
        while !out(&geode.ask(&["status"])).contains(said) {
            assert!(Instant::now() < deadline, "{}", out(&geode.ask(&["status"])));
        }
    };
    status("us-east-1: there is no room for the log in ");
    assert_eq!(geode.ask(&["status"]).status.code(), Some(1));

    let pid = Pid::from_raw(geode.child.id().cast_signed()).unwrap();
    let unlimited = rustix::process::Rlimit { current: None, maximum: None };
    rustix::process::prlimit(Some(pid), rustix::process::Resource::Fsize, unlimited).unwrap();
    while geode.get("/readyz").unwrap().0 != 200 {
        assert!(Instant::now() < deadline, "{:?}", geode.get("/readyz"));
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(set("cup", 5).unwrap(), "OK");
    status("all regions serve, and all copies are the same\n");
    let (code, log) = geode.stop();
    assert_eq!(code, Some(0), "{log:#?}");

    let geode = Geode::start(directory.path(), "text");
    let length: usize = redis::cmd("STRLEN").arg("big").query(&mut geode.redis()).unwrap();
    assert_eq!(length, 8 << 20, "the write in doubt reached the log");
}

#[test]
fn a_reader_who_has_seen_enough_breaks_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let geode = Geode::start(directory.path(), "text");
    let admin = format!("http://{}", geode.addresses.admin);
    for question in
        [&["status"][..], &["status", "--json"], &["explain", "sydney"], &["verify"], &["conflicts"]]
    {
        let mut command = Command::new(GEODE);
        command.args(question).args(["--admin", &admin]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut asked = command.spawn().unwrap();
        drop(asked.stdout.take());
        let output = asked.wait_with_output().unwrap();
        assert_eq!((output.status.code(), err(&output).as_str()), (Some(0), ""), "{question:?}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn more_clients_fit_than_a_shell_lets_files_be_open() {
    let directory = tempfile::tempdir().unwrap();
    let geode = Geode::start(directory.path(), "text");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", geode.child.id())).unwrap();
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let soft_and_hard: Vec<u64> = files.split_whitespace().filter_map(|number| number.parse().ok()).collect();
    assert_eq!(soft_and_hard[0], soft_and_hard[1].min(65_536), "{files}");
}

#[test]
fn explain_says_who_serves_whom_and_why() {
    let directory = tempfile::tempdir().unwrap();
    let geode = Geode::start(directory.path(), "text");
    let explained = geode.ask(&["explain", "203.0.113.9"]);
    assert_eq!(
        (explained.status.code(), out(&explained).as_str()),
        (
            Some(0),
            "203.0.113.9 is in 203.0.113.0/24\n\
             client in sydney (-33.87, 151.21)\n\
             \x20 1  us-east-1   224.9 ms  model     closest\n"
        )
    );
    let json: Value = serde_json::from_slice(&geode.ask(&["explain", "Tokyo", "--json"]).stdout).unwrap();
    assert_eq!(json["decision"]["candidates"][0]["reason"]["kind"], "closest");
    let unknown = geode.ask(&["explain", "sidney"]);
    assert_eq!(
        (unknown.status.code(), err(&unknown).as_str()),
        (Some(2), "geode explain: \"sidney\" is not a known place; did you mean \"sydney\"?\n")
    );
}

#[test]
fn logs_are_json_when_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let (code, log) = Geode::start(directory.path(), "json").stop();
    assert_eq!(code, Some(0));
    let records: Vec<Value> = log.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let stopping = records.iter().find(|record| record["message"] == "stopping").unwrap();
    assert_eq!((&stopping["level"], &stopping["target"]), (&"INFO".into(), &"geode::life".into()));
}

/// Runs `geode run` with this configuration, which is expected to fail: exit code and what it said.
fn refused(config: &str, region: &str) -> (Option<i32>, String) {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("planet.toml"), config).unwrap();
    let output = Command::new(GEODE)
        .args(["run", "--region", region])
        .current_dir(directory.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    (output.status.code(), err(&output))
}

#[test]
fn every_mistake_is_told_at_once_before_anything_starts() {
    let (code, text) =
        refused("format = 1\n[planet]\nname = 7\n[store]\nfsync = \"sometimes\"\n", "us-east-1");
    assert_eq!(code, Some(2));
    assert_eq!(text.matches("planet.toml:").count(), text.lines().count(), "{text}");
    assert!(
        text.contains("planet.toml:3: planet.name: ") && text.contains("planet.toml:5: store.fsync: "),
        "{text}"
    );
}

#[test]
fn what_cannot_run_here_is_refused_in_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let addresses = Addresses::free();
    let config = addresses.planet_toml(&directory.path().join("data"));
    assert_eq!(
        refused(&config, "eu-west-1"),
        (
            Some(2),
            "geode run: --region: planet.toml has no region \"eu-west-1\"; it has us-east-1\n".to_owned()
        )
    );
    let two = config.replace(
        "public = [\"127.0.0.1\"]",
        "public = [\"127.0.0.1\"]\nlink = \"127.0.0.1:1\"\n[regions.eu-west-1]\nlink = \"127.0.0.1:2\"",
    );
    assert_eq!(
        refused(&two, "us-east-1"),
        (
            Some(2),
            "geode run: cannot read us-east-1.bundle, the bundle of us-east-1, without which no other region talks to it: \
             No such file or directory (os error 2); `geode init` makes one per region, and --bundle says where it is\n"
                .to_owned()
        )
    );
    let endless =
        Command::new(GEODE).args(["run", "--region", "x", "--config", "/dev/zero"]).output().unwrap();
    assert_eq!(endless.status.code(), Some(2));
    assert!(err(&endless).contains("/dev/zero:1: the file has "), "{}", err(&endless));
    let _taken = TcpListener::bind(addresses.redis).unwrap();
    let (code, text) = refused(&config, "us-east-1");
    assert_eq!(code, Some(2));
    assert_eq!(
        text,
        format!(
            "geode run: {} is in use (redis.listen would listen there): stop what uses it, or change redis.listen\n",
            addresses.redis
        )
    );
}

#[test]
fn a_data_directory_belongs_to_one_geode() {
    let directory = tempfile::tempdir().unwrap();
    let _geode = Geode::start(directory.path(), "text");
    let data = directory.path().join("data");
    let (code, text) = refused(&Addresses::free().planet_toml(&data), "us-east-1");
    assert_eq!(code, Some(2));
    let expected = format!(
        "geode run: {} is in use by another geode; stop it or choose another data directory",
        data.display()
    );
    assert_eq!(text.lines().last(), Some(expected.as_str()), "{text}");
}

#[test]
fn nobody_to_ask_is_no_answer() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(GEODE);
    command.arg("status").current_dir(directory.path()).env_remove("GEODE_ADMIN");
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).starts_with("geode status: no geode to ask: give --admin URL"), "{}", err(&output));
    let free = Addresses::free().admin;
    let output = command.args(["--admin", &free.to_string()]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(err(&output), format!("geode status: no geode answers at {free}: is the planet running?\n"));
}

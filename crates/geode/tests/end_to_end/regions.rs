//! A planet whose regions change while it runs: `geode run` processes with nothing but planet.toml and their bundles.

use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use redis::ConnectionLike as _;

use crate::support::{GEODE, wait_for};

/// Where one region listens, in the order of [`PORTS`].
struct Region {
    name: &'static str,
    ports: [u16; 4],
}

/// What a region binds.
const PORTS: [&str; 4] = ["link", "redis.listen", "admin.listen", "door.listen"];

impl Region {
    /// A region on ports that were free a moment ago.
    fn new(name: &'static str) -> Self {
        let held = PORTS.map(|_| TcpListener::bind(("127.0.0.1", 0)).unwrap());
        Self { name, ports: held.map(|listener| listener.local_addr().unwrap().port()) }
    }

    fn section(&self, directory: &Path) -> String {
        let binds = PORTS.iter().zip(self.ports).map(|(key, port)| format!("{key} = \"127.0.0.1:{port}\"\n"));
        let (name, data) = (self.name, self.data(directory));
        format!(
            "[regions.{name}]\npublic = [\"127.0.0.1\"]\ndata = \"{data}\"\n{}",
            binds.collect::<String>()
        )
    }

    fn data(&self, directory: &Path) -> String {
        directory.join("data").join(self.name).display().to_string()
    }

    fn log(&self, directory: &Path) -> String {
        std::fs::read_to_string(directory.join(self.name).with_extension("log")).unwrap_or_default()
    }

    /// Starts its geode and waits until it is ready.
    fn start(&self, directory: &Path, file: &str) -> Geode {
        let log =
            File::options().append(true).create(true).open(directory.join(self.name).with_extension("log"));
        let child = Command::new(GEODE)
            .args(["run", "--region", self.name, "--config"])
            .arg(directory.join(file))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.unwrap())
            .spawn()
            .unwrap();
        let geode = Geode(child);
        wait_for("a geode that is ready", || {
            self.ask(&["explain", "sydney"]).status.success() && self.redis().is_some()
        });
        geode
    }

    /// A command of the operator's, through this region.
    fn ask(&self, arguments: &[&str]) -> Output {
        let admin = format!("http://127.0.0.1:{}", self.ports[2]);
        Command::new(GEODE).args(arguments).args(["--admin", &admin]).output().unwrap()
    }

    /// A command that succeeds: what it says.
    fn told(&self, arguments: &[&str]) -> String {
        let output = self.ask(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// A command that is refused: why.
    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.ask(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn regions(&self) -> Vec<String> {
        let Ok(report) = serde_json::from_slice::<serde_json::Value>(&self.ask(&["status", "--json"]).stdout)
        else {
            return Vec::new();
        };
        let regions = report["regions"].as_array().cloned().unwrap_or_default();
        regions.iter().map(|view| view["region"].as_str().unwrap().to_owned()).collect()
    }

    fn redis(&self) -> Option<redis::Connection> {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.ports[1])).unwrap();
        client.get_connection().ok().filter(redis::Connection::is_open)
    }

    fn command<T: redis::FromRedisValue>(&self, words: &str) -> redis::RedisResult<T> {
        let mut words = words.split(' ');
        let mut command = redis::cmd(words.next().unwrap());
        for word in words {
            command.arg(word);
        }
        command.query(&mut self.redis().unwrap())
    }
}

/// A running geode; killed when dropped.
struct Geode(Child);

impl Drop for Geode {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn write_planet(directory: &Path, file: &str, regions: &[&Region]) {
    let sections: String = regions.iter().map(|region| region.section(directory)).collect();
    std::fs::write(directory.join(file), format!("format = 1\n[planet]\nname = \"acme\"\n{sections}"))
        .unwrap();
}

fn make_bundles(directory: &Path) {
    let made = Command::new(GEODE).args(["init", "--dir"]).arg(directory).output().unwrap();
    assert!(made.status.success(), "{made:?}");
}

#[test]
fn a_region_is_added_under_writes_and_stays_over_restarts() {
    let temporary = tempfile::tempdir().unwrap();
    let directory = temporary.path();
    let [us, eu, sa] = ["us-east-1", "eu-west-1", "sa-east-1"].map(Region::new);
    write_planet(directory, "planet.toml", &[&us, &eu]);
    make_bundles(directory);
    let running = [us.start(directory, "planet.toml"), eu.start(directory, "planet.toml")];
    let link = format!("127.0.0.1:{}", sa.ports[0]);
    let twin = format!("127.0.0.1:{}", us.ports[0]);

    let why =
        us.refused(&["region", "add", "depot", "--link", &twin, "--public", "127.0.0", "--capacity", "0"]);
    assert_eq!(why.lines().count(), 4, "all mistakes at once: {why}");
    for _ in 0..100 {
        let _: u64 = us.command("INCR sold").unwrap();
    }
    let told = eu.told(&["region", "add", "sa-east-1", "--link", &link, "--public", "127.0.0.1"]);
    assert!(told.starts_with("sa-east-1 belongs to planet acme now\n"), "{told}");
    assert!(
        told.contains(&format!("[regions.sa-east-1]\n  public = [\"127.0.0.1\"]\n  link = \"{link}\"")),
        "{told}"
    );
    assert!(
        eu.refused(&["region", "add", "sa-east-1", "--link", &link, "--public", "127.0.0.1"])
            .contains("already")
    );
    wait_for("the others to know it", || us.regions() == ["eu-west-1", "sa-east-1", "us-east-1"]);
    let status = String::from_utf8(us.ask(&["status"]).stdout).unwrap();
    assert!(
        status.contains("planet.toml of us-east-1 lacks sa-east-1: add\n  [regions.sa-east-1]"),
        "{status}"
    );

    // As its operator does it: the file that has all regions, its bundle, and a start.
    write_planet(directory, "planet.toml", &[&us, &eu, &sa]);
    make_bundles(directory);
    let newcomer = sa.start(directory, "planet.toml");
    for _ in 0..100 {
        let _: u64 = us.command("INCR sold").unwrap();
    }
    assert_eq!(us.command::<u64>("WAIT 2 60000").unwrap(), 2);
    wait_for("all writes", || sa.command::<Option<u64>>("GET sold").unwrap() == Some(200));
    wait_for("that it takes writes", || sa.command::<()>("SET opened yes").is_ok());
    wait_for("its own write", || us.command::<Option<String>>("GET opened").unwrap().is_some());
    us.told(&["verify", "--wait", "60"]);
    wait_for("clients to be sent to it", || {
        us.told(&["explain", "sao-paulo"]).lines().any(|line| line.starts_with("  1  sa-east-1"))
    });
    wait_for("a planet without a flaw", || us.ask(&["status"]).status.success());
    assert!(!us.told(&["status"]).contains("planet.toml of"));

    // The rows are remembered, whatever the file says.
    drop((running, newcomer));
    write_planet(directory, "four.toml", &[&us, &eu]);
    let _running = [us.start(directory, "four.toml"), eu.start(directory, "four.toml")];
    assert_eq!(us.regions(), ["eu-west-1", "sa-east-1", "us-east-1"]);
    let _newcomer = sa.start(directory, "planet.toml");
    us.told(&["verify", "--wait", "60"]);
}

#[test]
fn a_region_is_evicted_by_most_or_by_force_and_rejoins_as_new() {
    let temporary = tempfile::tempdir().unwrap();
    let directory = temporary.path();
    let [us, eu, ap] = ["us-east-1", "eu-west-1", "ap-southeast-2"].map(Region::new);
    write_planet(directory, "planet.toml", &[&us, &eu, &ap]);
    make_bundles(directory);
    let _us = us.start(directory, "planet.toml");
    let (running_eu, running_ap) = (eu.start(directory, "planet.toml"), ap.start(directory, "planet.toml"));
    let _: u64 = ap.command("INCRBY sold 5").unwrap();
    let _: () = us.command("SET menu coffee").unwrap();
    assert_eq!(us.command::<u64>("WAIT 2 60000").unwrap(), 2);
    us.told(&["verify", "--wait", "60"]);

    drop(running_ap);
    wait_for("the loss to be noticed", || us.ask(&["status"]).status.code() == Some(1));
    assert!(us.refused(&["region", "evict", "mars"]).contains("no region of this planet"));
    assert!(us.refused(&["region", "evict", "us-east-1"]).contains("ask another one"));
    assert!(us.refused(&["region", "rejoin", "ap-southeast-2"]).contains("was not evicted"));
    wait_for("the eviction, once it is seen to be out of touch", || {
        us.ask(&["region", "evict", "ap-southeast-2"]).status.success()
    });
    assert!(us.refused(&["region", "evict", "ap-southeast-2"]).contains("already"));
    wait_for("eu to know it", || eu.regions() == ["eu-west-1", "us-east-1"]);
    us.told(&["verify", "--wait", "60"]);
    let status = us.told(&["status"]);
    assert!(
        status.contains("still has ap-southeast-2, which was evicted: remove [regions.ap-southeast-2]"),
        "{status}"
    );

    // Of two regions one is no majority.
    drop(running_eu);
    let _: () = us.command("SET menu tea").unwrap();
    wait_for("eu's link to end", || {
        let why = us.ask(&["region", "evict", "eu-west-1"]);
        String::from_utf8(why.stderr)
            .unwrap()
            .contains("only 1 of 2 regions are in touch (us-east-1), which is no majority")
    });
    us.told(&["region", "evict", "eu-west-1", "--force"]);
    assert_eq!(us.regions(), ["us-east-1"]);

    // Whoever was evicted hears why, and gets nothing in; not even when it is let in again, until it comes as new.
    let returned = ap.start(directory, "planet.toml");
    let refusal = ap.command::<()>("SET menu milk").unwrap_err().to_string();
    assert!(refusal.contains("EXCLUDED") && refusal.contains("evicted"), "{refusal}");
    assert_eq!(ap.command::<String>("GET menu").unwrap(), "coffee", "reads go on");
    assert!(ap.log(directory).contains("writes are refused: EXCLUDED"), "its operator is told");
    let words = "ap-southeast-2 does not belong to this planet any more: evicted at 20";
    wait_for("the refusal in words", || ap.log(directory).contains(words));
    us.told(&["region", "rejoin", "ap-southeast-2"]);
    wait_for("the refusal of old data", || ap.log(directory).contains("move its data directory away"));
    assert_eq!(us.command::<String>("GET menu").unwrap(), "tea");
    drop(returned);
    std::fs::rename(ap.data(directory), directory.join("away")).unwrap();
    let _returned = ap.start(directory, "planet.toml");
    wait_for("all writes", || ap.command::<Option<String>>("GET menu").unwrap().as_deref() == Some("tea"));
    wait_for("that it takes writes", || ap.command::<()>("SET menu cocoa").is_ok());
    assert_eq!(ap.command::<u64>("INCR sold").unwrap(), 6);
    wait_for("what it writes as new", || us.command::<Option<u64>>("GET sold").unwrap() == Some(6));
    us.told(&["verify", "--wait", "60"]);
    assert_eq!(us.regions(), ["ap-southeast-2", "us-east-1"]);
    wait_for("a whole planet", || us.ask(&["status"]).status.success());
}

//! What a client carries between regions, the retry of what lost its answer, and what a partition leaves in the
//! conflict log: through the real binary and a stock client.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::Value;

use crate::support::{GEODE, Planet, wait_for};

fn run<T: redis::FromRedisValue>(connection: &mut redis::Connection, line: &str) -> T {
    let mut words = line.split(' ');
    let mut command = redis::cmd(words.next().unwrap());
    command.arg(words.collect::<Vec<_>>());
    command.query(connection).unwrap_or_else(|error| panic!("{line}: {error}"))
}

/// `geode conflicts --follow --json` that runs beside the test.
struct Follower {
    child: Child,
    lines: Receiver<Value>,
}

impl Follower {
    fn start(planet: &Planet) -> Self {
        let mut child = Command::new(GEODE)
            .args(["conflicts", "--follow", "--json", "--admin", &planet.region(1, "admin")])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let _ = sender.send(serde_json::from_str(&line).unwrap());
            }
        });
        Self { child, lines }
    }

    /// The rule and region of the next conflict of a key.
    fn next(&self, key: &str) -> (String, String) {
        loop {
            let line = self.lines.recv_timeout(Duration::from_secs(90)).expect("a conflict is shown");
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            if line["conflict"]["key"] == key {
                return (text(&line["conflict"]["rule"]), text(&line["region"]));
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The conflicts of a key that `geode conflicts` tells: region, rule, both values.
fn conflicts(planet: &Planet, options: &[&str]) -> Vec<(String, String, String, String)> {
    let report: Value =
        serde_json::from_str(&planet.expect(&[&["conflicts", "--json"], options].concat())).unwrap();
    let mut found = Vec::new();
    for (region, answer) in report["regions"].as_object().unwrap() {
        for conflict in answer["answer"]["recent"].as_array().unwrap() {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            let (winner, loser) = (&conflict["winner"]["value"], &conflict["loser"]["value"]);
            found.push((region.clone(), text(&conflict["rule"]), text(winner), text(loser)));
        }
    }
    found
}

#[test]
fn tokens_retries_and_conflicts_through_a_partition() {
    let directory = tempfile::tempdir().unwrap();
    let planet = Planet::start(directory.path(), &[]);
    let [mut us, mut eu, mut ap] = [0, 1, 2].map(|region| planet.redis(region).unwrap());
    let names = [0, 1, 2].map(|region| planet.region(region, "name"));

    // Read your writes, and a retry elsewhere once that region holds what the first one did.
    assert_eq!(run::<i64>(&mut us, "GEODE.ONCE order-1 INCR orders"), 1);
    let token: String = run(&mut us, "GEODE.VECTOR");
    assert_eq!(run::<i64>(&mut ap, &format!("GEODE.WAIT {token} 0")), 1);
    assert_eq!(run::<i64>(&mut ap, "GEODE.ONCE order-1 INCR orders"), 1);
    assert_eq!(run::<i64>(&mut ap, "GET orders"), 1);

    // Cut off, nobody can know: the token says so, and a retry there executes again.
    let follower = Follower::start(&planet);
    planet.expect(&["chaos", "partition", &names[2]]);
    assert_eq!(run::<i64>(&mut us, "GEODE.ONCE order-2 INCR orders"), 2);
    let token: String = run(&mut us, "GEODE.VECTOR");
    assert_eq!(run::<i64>(&mut eu, &format!("GEODE.WAIT {token} 0")), 1);
    assert_eq!(run::<i64>(&mut eu, "GEODE.ONCE order-2 INCR orders"), 2);
    assert_eq!(run::<i64>(&mut ap, &format!("GEODE.WAIT {token} 200")), 0);
    assert_eq!(run::<i64>(&mut ap, "GEODE.ONCE order-2 INCR orders"), 2);
    run::<()>(&mut us, "SET menu tea");
    run::<()>(&mut ap, "SET menu coffee");
    planet.expect(&["chaos", "heal"]);
    for connection in [&mut us, &mut eu, &mut ap] {
        wait_for("both increments", || run::<i64>(connection, "GET orders") == 3);
        wait_for("both menus", || run::<String>(connection, "GET menu") == "coffee");
    }
    let regions: Vec<String> = (0..2)
        .map(|_| follower.next("menu"))
        .map(|(rule, region)| {
            assert_eq!(rule, "later-write");
            region
        })
        .collect();
    assert_ne!(regions[0], regions[1], "each region tells of a conflict once");

    // Each region logged what it found, and knows it after it was killed.
    let menu = || conflicts(&planet, &["--key", "menu", "--since", "1h"]);
    let told = |value: &str| value.to_owned();
    let expected: Vec<_> = {
        let mut sorted = names.clone();
        sorted.sort();
        sorted.into_iter().map(|name| (name, told("later-write"), told("coffee"), told("tea"))).collect()
    };
    wait_for("all regions found it", || menu() == expected);
    let twice = || conflicts(&planet, &["--key", "order-2"]);
    wait_for("the retry is told", || {
        twice().iter().filter(|(_, rule, ..)| rule == "executed-twice").count() == 3
    });
    assert_eq!(conflicts(&planet, &["--key", "order-1"]), [], "that was executed once");
    assert_eq!(conflicts(&planet, &["--since", "2100-01-01T00:00:00Z"]), []);
    let before = menu();
    planet.expect(&["chaos", "kill", &names[0]]);
    planet.expect(&["chaos", "revive", &names[0]]);
    wait_for("the region is back and remembers", || {
        let output = planet.geode(&["conflicts", "--key", "menu", "--json"]);
        output.status.success() && menu() == before
    });
}

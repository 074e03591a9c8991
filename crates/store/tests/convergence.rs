//! Random histories of three replicas: equal digests and values after any delivery order, and at every moment the values
//! that the oracle computes from history.

mod reference_replica;

use std::collections::BTreeSet;
use std::sync::Arc;

use geode_crdt::{Actors, Frame, Kind, Op};
use geode_store::conformance::oracle::{self, Command, History, NEVER};
use geode_store::conformance::{Planet, Replica, Value};
use geode_store::{Engine, Extent};
use proptest::prelude::*;
use reference_replica::ReferenceReplica;

const REGIONS: [&str; 3] = ["ap", "eu", "us"];
const KEYS: [&str; 2] = ["x", "y"];
const LISTS: [&str; 7] =
    ["RPUSH l a b", "LPUSH l c d", "LPOP l", "RPOP l 2", "LTRIM l 1 -2", "DEL l", "RENAME l m"];

#[derive(Clone, Debug)]
enum Step {
    /// One command, or several in MULTI.
    Write(usize, Vec<Command>),
    /// List commands, which the oracle does not follow.
    List(usize, String),
    Send(usize, usize),
    /// Tens of milliseconds; lifetimes end between them.
    Advance(usize, u64),
    Sweep,
    /// While this region is away for long.
    SweepWithout(usize),
}

fn command() -> impl Strategy<Value = Command> {
    let key = || proptest::sample::select(&KEYS).prop_map(str::to_owned);
    let element = || proptest::sample::select(&["f", "g"]).prop_map(str::to_owned);
    let value = || proptest::sample::select(&["10", "100", "abc", "7"]).prop_map(str::to_owned);
    let delta = || proptest::sample::select(&[1i64, 2, 5, -3]);
    let lifetime_ms = || (1..5u64).prop_map(|tens| tens * 10 + 5);
    prop_oneof![
        2 => (key(), value()).prop_map(|(key, value)| Command::Set(key, value)),
        1 => (key(), value(), lifetime_ms()).prop_map(|(key, value, ms)| Command::SetFor(key, value, ms)),
        1 => (key(), value()).prop_map(|(key, value)| Command::SetKeeping(key, value)),
        1 => key().prop_map(|key| Command::Append(key, "5".into())),
        4 => (key(), delta()).prop_map(|(key, delta)| Command::Increment(key, delta)),
        3 => key().prop_map(Command::Delete),
        2 => (key(), element()).prop_map(|(key, member)| Command::AddMember(key, member)),
        2 => (key(), element()).prop_map(|(key, member)| Command::RemoveMember(key, member)),
        2 => (key(), element(), value()).prop_map(|(key, field, value)| Command::SetField(key, field, value)),
        2 => (key(), element()).prop_map(|(key, field)| Command::RemoveField(key, field)),
        2 => (key(), element(), delta()).prop_map(|(key, field, delta)| Command::IncrementField(key, field, delta)),
        2 => (key(), lifetime_ms()).prop_map(|(key, ms)| Command::Expire(key, ms)),
        1 => key().prop_map(Command::Persist),
        1 => (key(), key()).prop_map(|(from, to)| Command::Rename(from, to)),
    ]
}

/// Runs that are cancelled in part, extended, and cancelled again.
fn counting() -> impl Strategy<Value = Command> {
    prop_oneof![
        3 => proptest::sample::select(&[1i64, 5]).prop_map(|delta| Command::Increment("x".into(), delta)),
        1 => Just(Command::Delete("x".into())),
        1 => Just(Command::Set("x".into(), "100".into())),
    ]
}

fn step(command: BoxedStrategy<Command>) -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..3usize, command.clone()).prop_map(|(at, command)| Step::Write(at, vec![command])),
        2 => (0..3usize, proptest::collection::vec(command, 2..4)).prop_map(|(at, all)| Step::Write(at, all)),
        1 => (0..3usize, proptest::sample::select(&LISTS)).prop_map(|(at, list)| Step::List(at, list.into())),
        8 => (0..3usize, 0..3usize).prop_map(|(from, to)| Step::Send(from, to)),
        2 => (0..3usize, 0..3u64).prop_map(|(at, tens)| Step::Advance(at, tens * 10)),
        1 => Just(Step::Sweep),
        1 => (1..3usize).prop_map(Step::SweepWithout),
    ]
}

/// The planet and the oracle, side by side.
struct Pair {
    planet: Planet<ReferenceReplica>,
    history: History,
    /// How many frames of each region each region has.
    received: [[usize; 3]; 3],
}

impl Pair {
    fn new(seed: u64) -> Self {
        let regions = REGIONS.map(str::to_owned);
        let mut make = |region: &str, regions| ReferenceReplica::new(region, regions, seed);
        let mut planet = Planet::new(&regions, &mut make);
        planet.replica(0).store().engine.set_sweeper(true);
        Self { planet, history: History::new(3), received: [[0; 3]; 3] }
    }

    fn execute(&mut self, at: usize, line: &str) -> Value {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        self.planet.execute(at, &words)
    }

    fn now(&mut self, at: usize) -> u64 {
        // A command that reads sets the clock.
        self.execute(at, "PING");
        self.planet.replica(at).store().engine.now().0
    }

    fn write(&mut self, at: usize, commands: &[Command]) -> Result<(), TestCaseError> {
        let before = self.planet.frames(at).len();
        let now = self.now(at);
        if commands.len() > 1 {
            self.execute(at, "MULTI");
        }
        for command in commands {
            self.execute(at, &command.words().join(" "));
        }
        if commands.len() > 1 {
            self.execute(at, "EXEC");
        }
        let time = self.planet.frames(at).get(before).map(|frame| time_and_keys(frame).0);
        let wrote = self.history.write(at, time.unwrap_or(now), commands);
        prop_assert_eq!(wrote, time.is_some(), "whether {:?} writes in {}", commands, REGIONS[at]);
        Ok(())
    }

    fn send(&mut self, from: usize, to: usize) -> bool {
        let taken = self.planet.send_one(from, to);
        if taken {
            self.received[to][from] += 1;
            // Sequences count from 1, one frame each.
            self.history.deliver(from, to, self.received[to][from] as u64);
        }
        taken
    }

    /// Returns the region that it concerns.
    fn play(&mut self, step: &Step) -> Result<usize, TestCaseError> {
        match step {
            Step::Write(at, commands) => {
                self.write(*at, commands)?;
                Ok(*at)
            }
            Step::List(at, line) => {
                let before = self.planet.frames(*at).len();
                self.execute(*at, line);

                if let Some(frame) = self.planet.frames(*at).get(before) {
                    self.history.write_elsewhere(*at, time_and_keys(frame).0);
                }
                Ok(*at)
            }
            Step::Send(from, to) => {
                self.send(*from, *to);
                Ok(*to)
            }
            Step::Advance(at, milliseconds) => {
                self.planet.advance(*at, *milliseconds);
                Ok(*at)
            }
            Step::Sweep => {
                self.sweep(None);
                Ok(0)
            }
            Step::SweepWithout(away) => {
                let region = Arc::from(REGIONS[*away]);
                self.planet.replica(0).store().engine.set_away(&region, true);
                self.sweep(Some(*away));
                self.planet.replica(0).store().engine.set_away(&region, false);
                Ok(0)
            }
        }
    }

    /// The first region sweeps after it has heard all it can from the others but one that is away.
    fn sweep(&mut self, away: Option<usize>) {
        for (from, region) in REGIONS.iter().enumerate().skip(1).filter(|(from, _)| Some(*from) != away) {
            while self.send(from, 0) {}
            if self.received[0][from] == self.planet.frames(from).len() {
                self.now(from);
                let time = self.planet.replica(from).store().engine.heartbeat();
                self.planet.replica(0).store().engine.hear(&Arc::from(*region), time);
            }
        }
        // Rows that are not in memory take some turns.
        for _ in 0..100 {
            let before = self.planet.frames(0).len();
            self.planet.replica(0).store().sweep(10);
            self.planet.replica(0).store().engine.turn();
            self.planet.collect(0);
            for frame in &self.planet.frames(0)[before..] {
                let (time, keys) = time_and_keys(frame);
                self.history.sweep(0, time, extent(frame), &keys);
            }
        }
    }

    fn check(&mut self, at: usize) -> Result<(), TestCaseError> {
        let now = self.now(at);
        for key in KEYS {
            let expected = self.history.visible(at, key, now);
            let shown = oracle::read(key, |line| self.execute(at, line));
            let values = expected.as_ref().map(|(kind, cells, _)| (*kind, cells.clone()));
            prop_assert_eq!(&shown, &values, "{} in {}", key, REGIONS[at]);
            let left_ms = match expected {
                None => -2,
                Some((.., NEVER)) => -1,
                Some((.., deadline)) => (deadline - now).div_ceil(1000) as i64,
            };
            let Value::Integer(left) = self.execute(at, &format!("PTTL {key}")) else {
                return Err(TestCaseError::fail("PTTL is a number"));
            };
            // Fetches that were retried move the clock by microseconds.
            prop_assert!((left - left_ms).abs() <= 1, "PTTL {key} in {}: {left}, not {left_ms}", REGIONS[at]);
        }
        Ok(())
    }
}

/// The time of a frame's first entry, and the keys that it touches.
fn time_and_keys(frame: &[u8]) -> (u64, BTreeSet<String>) {
    let frame = Frame::parse(frame, &mut Actors::default()).expect("a frame of the builder");
    let entry = frame.entries().next().expect("a frame has an entry");
    let keys = entry.ops().map(|op| op.expect("it was parsed").key().name.to_vec());
    (entry.time.0, keys.map(|name| String::from_utf8_lossy(&name).into_owned()).collect())
}

/// Whether a sweep took deadlines, too.
fn extent(frame: &[u8]) -> Extent {
    let frame = Frame::parse(frame, &mut Actors::default()).expect("a frame of the builder");
    let mut ops = frame.entries().flat_map(|entry| entry.ops().collect::<Vec<_>>());
    let of_deadline = |op| matches!(op, Ok(Op::Remove { kind: Kind::Ttl, .. }));
    if ops.any(of_deadline) { Extent::Whole } else { Extent::Data }
}

/// Runs the steps, comparing each region with the oracle after each, then lets everything arrive.
fn play(steps: &[Step], seed: u64) -> Result<(), TestCaseError> {
    let mut pair = Pair::new(seed);
    for step in steps {
        let at = pair.play(step)?;
        pair.check(at)?;
    }
    while (0..9).any(|index| pair.send(index / 3, index % 3)) {}
    pair.planet.sync().map_err(TestCaseError::fail)?;
    let mut lists = BTreeSet::new();
    for at in 0..3 {
        pair.check(at)?;
        lists.insert(["l", "m"].map(|list| pair.execute(at, &format!("LRANGE {list} 0 -1")).to_string()));
    }
    prop_assert_eq!(lists.len(), 1, "lists differ: {:?}", lists);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_converges_to_what_the_oracle_says(
        steps in proptest::collection::vec(step(command().boxed()), 1..60),
        seed in any::<u64>(),
    ) {
        play(&steps, seed)?;
    }

    #[test]
    fn any_history_of_one_counter_converges_to_what_the_oracle_says(
        steps in proptest::collection::vec(step(counting().boxed()), 1..40),
        seed in any::<u64>(),
    ) {
        play(&steps, seed)?;
    }
}

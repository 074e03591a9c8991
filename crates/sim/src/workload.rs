//! What clients ask, and what they must be answered: the same for simulated planets and for real processes.

use geode_store::conformance::Value;
use geode_store::conformance::oracle::Command;

use crate::random::Random;
use crate::rules::Objection;

/// Keys that the oracle follows, in database 0.
pub const KEYS: [&str; 6] = ["a", "b", "c", "d", "n", "m"];
/// Counters that must never lose their TTL, in database 0 too.
pub const RATES: [&str; 2] = ["rate:1", "rate:2"];

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Commands that the oracle follows; several are one transaction.
    Oracle(Vec<Command>),
    /// A list command.
    List(String),
    /// An increment of a counter with a lifetime.
    Rate(&'static str),
    /// An increment of the client's own counter.
    Count,
    /// A write to the client's own register.
    Register,
    /// A read of both.
    ReadOwn,
    /// The next number into the first key of the client's pair, then, answered, into the second.
    PairFirst,
    /// See above.
    PairSecond,
    /// Both keys of somebody's pair, the second first.
    ReadPair(usize),
    /// One amount from one account to another, and one value into two keys.
    Transfer(u64),
    /// A write that was refused.
    Refused,
}

impl Ask {
    /// Whether it may write.
    pub const fn writes(&self) -> bool {
        !matches!(self, Self::ReadOwn | Self::ReadPair(_))
    }
}

/// What one client asks, one request after the other, and what it knows of its own.
#[derive(Debug)]
pub struct Script {
    number: usize,
    /// Speaks to the store as a plain client does, without a token; it promises itself nothing.
    pub is_plain: bool,
    /// Keys of its own are named by it: after an answer that did not come, the client begins anew.
    pub epoch: u64,
    counted: i64,
    register: u64,
    pair: [u64; 2],
    /// What it leaves to chance.
    pub random: Random,
}

/// A request as commands.
#[derive(Debug)]
pub struct Request {
    /// Which database all of them are for.
    pub database: u8,
    /// The words of each.
    pub commands: Vec<Vec<String>>,
    /// For the oracle.
    pub oracle: Vec<Command>,
}

impl Script {
    /// The client of this number, whose choices follow from the seed.
    pub fn new(number: usize, is_plain: bool, seed: u64) -> Self {
        let random = Random::new(seed, 100 + number as u64);
        Self { number, is_plain, epoch: 0, counted: 0, register: 0, pair: [0; 2], random }
    }

    /// The client does not know what became of its last request, or what it knew is lost: it begins anew.
    pub fn begin_anew(&mut self) {
        self.epoch += 1;
        (self.counted, self.register, self.pair) = (0, 0, [0; 2]);
    }

    /// What it asks next.
    pub fn choose(&mut self, clients: usize, keys: usize) -> Ask {
        if self.pair[0] > self.pair[1] && self.random.one_in(2) {
            return Ask::PairSecond;
        }
        let random = &mut self.random;
        // The last ones are about what a session may expect.
        match random.below(if self.is_plain { 15 } else { 20 }) {
            0..=6 => Ask::Oracle(vec![command(random, keys)]),
            7 | 8 => Ask::Oracle((0..random.between(2, 4)).map(|_| command(random, keys)).collect()),
            9 => {
                let lists = ["RPUSH l a b", "LPUSH l c", "LPOP l", "RPOP l", "LTRIM l 0 20", "RENAME l m"];
                Ask::List((*random.pick(&lists)).to_owned())
            }
            10..=12 => Ask::Rate(RATES[random.index(RATES.len())]),
            13 | 14 => Ask::Transfer(random.below(1_000_000)),
            15 => Ask::Count,
            16 => Ask::Register,
            17 => Ask::ReadOwn,
            18 if self.pair[0] == self.pair[1] => Ask::PairFirst,
            _ => Ask::ReadPair(random.index(clients)),
        }
    }

    /// The commands of a request. `other` is the client whose pair is read, with its epoch; `lives` says whether a counter
    /// with a lifetime is there.
    pub fn request(&self, ask: &Ask, other: (usize, u64), lives: bool) -> Request {
        let number = self.number;
        let line = |text: String| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let multi = |lines: Vec<Vec<String>>| {
            let mut all = vec![line("MULTI".into())];
            all.extend(lines);
            all.push(line("EXEC".into()));
            all
        };
        let own = |what: &str| format!("{what}:{number}.{}", self.epoch);
        let mut oracle = Vec::new();
        let mut database = 1;
        let commands = match ask {
            Ask::Oracle(commands) => {
                database = 0;
                oracle.clone_from(commands);
                let lines: Vec<_> = commands.iter().map(Command::words).collect();
                if lines.len() > 1 { multi(lines) } else { lines }
            }
            Ask::Rate(key) => {
                database = 0;
                let key = (*key).to_owned();
                oracle.push(Command::Increment(key.clone(), 1));
                if !lives {
                    oracle.push(Command::Expire(key, 400));
                }
                let lines: Vec<_> = oracle.iter().map(Command::words).collect();
                if lines.len() > 1 { multi(lines) } else { lines }
            }
            Ask::Refused => Vec::new(),
            Ask::List(text) => vec![line(text.clone())],
            Ask::Count => vec![line(format!("INCR {}", own("count")))],
            Ask::Register => vec![line(format!("SET {} {}", own("register"), self.register + 1))],
            Ask::ReadOwn => {
                vec![line(format!("GET {}", own("count"))), line(format!("GET {}", own("register")))]
            }
            Ask::PairFirst => vec![line(format!("SET {} {}", own("first"), self.pair[0] + 1))],
            Ask::PairSecond => vec![line(format!("SET {} {}", own("second"), self.pair[0]))],
            Ask::ReadPair(_) => {
                let (other, epoch) = other;
                multi(vec![
                    line(format!("GET second:{other}.{epoch}")),
                    line(format!("GET first:{other}.{epoch}")),
                ])
            }
            Ask::Transfer(value) => multi(vec![
                line(format!("SET both:1 {value}")),
                line(format!("INCRBY account:1 {}", value % 100)),
                line(format!("SET both:2 {value}")),
                line(format!("DECRBY account:2 {}", value % 100)),
            ]),
        };
        Request { database, commands, oracle }
    }

    /// What is wrong with an answer, given what the client knows. `None` if it is as it must be.
    pub fn objection(&self, ask: &Ask, replies: &[Value]) -> Option<Objection> {
        let number = |value: &Value| match value {
            Value::Null => Some(0),
            Value::Bulk(bytes) => std::str::from_utf8(bytes).ok()?.parse::<i64>().ok(),
            Value::Integer(integer) => Some(*integer),
            _ => None,
        };
        let sees = |what: &str, value: &Value, known: i64| {
            (number(value) != Some(known))
                .then(|| ("reads your writes", format!("its {what} is {known}, but it reads {value}")))
        };
        match (ask, replies) {
            (Ask::Count, [value]) => sees("counter", value, self.counted + 1),
            (Ask::ReadOwn, [count, register]) => sees("counter", count, self.counted)
                .or_else(|| sees("register", register, self.register as i64)),
            (Ask::ReadPair(_), [.., Value::Array(pair)]) => match pair.as_slice() {
                [second, first] if number(second) <= number(first) => None,
                pair => Some(("causal order", format!("second and first are {pair:?}"))),
            },
            (Ask::Transfer(_), [.., Value::Array(values)]) if values.len() == 4 => None,
            (Ask::Transfer(_) | Ask::ReadPair(_) | Ask::Count | Ask::ReadOwn, replies) => {
                Some(("replies", format!("{ask:?} is answered {replies:?}")))
            }
            _ => None,
        }
    }

    /// Takes note that a request was answered.
    pub fn answered(&mut self, ask: &Ask) {
        match ask {
            Ask::Count => self.counted += 1,
            Ask::Register => self.register += 1,
            Ask::PairFirst => self.pair[0] += 1,
            Ask::PairSecond => self.pair[1] = self.pair[0],
            _ => {}
        }
    }
}

fn command(random: &mut Random, keys: usize) -> Command {
    let key = |random: &mut Random| (*random.pick(&KEYS[..keys])).to_owned();
    let element = |random: &mut Random| (*random.pick(&["f", "g"])).to_owned();
    let value = |random: &mut Random| (*random.pick(&["10", "100", "abc", "7"])).to_owned();
    let delta = |random: &mut Random| *random.pick(&[1i64, 2, 5, -3]);
    let lifetime = |random: &mut Random| random.between(20, 600);
    let name = key(random);
    match random.below(28) {
        0..=2 => Command::Set(name, value(random)),
        3 => Command::SetFor(name, value(random), lifetime(random)),
        4 => Command::SetKeeping(name, value(random)),
        5 => Command::Append(name, "x".into()),
        6..=9 => Command::Increment(name, delta(random)),
        10..=12 => Command::Delete(name),
        13 | 14 => Command::AddMember(name, element(random)),
        15 | 16 => Command::RemoveMember(name, element(random)),
        17 | 18 => Command::SetField(name, element(random), value(random)),
        19 => Command::RemoveField(name, element(random)),
        20 | 21 => Command::IncrementField(name, element(random), delta(random)),
        22 | 23 => Command::Expire(name, lifetime(random)),
        24 => Command::Persist(name),
        25 if random.one_in(4) => Command::FlushAll,
        _ => Command::Rename(name, key(random)),
    }
}

//! Clients: sessions that write and read, move between regions with their token, and know what they must see.

use geode_replica::Vector;
use geode_store::conformance::Value;
use geode_store::conformance::oracle::Command;
pub(crate) use geode_store::conformance::oracle::Command as OracleCommand;

use crate::random::Random;

/// Keys that the oracle follows, in database 0.
pub(crate) const KEYS: [&str; 6] = ["a", "b", "c", "d", "n", "m"];
/// Counters that must never lose their TTL, in database 0 too.
pub(crate) const RATES: [&str; 2] = ["rate:1", "rate:2"];

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
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
    pub(crate) const fn writes(&self) -> bool {
        !matches!(self, Self::ReadOwn | Self::ReadPair(_))
    }
}

/// What a client did and knows.
#[derive(Debug)]
pub(crate) struct Client {
    /// Speaks to the store as a plain client does, without a token; it promises itself nothing.
    pub(crate) is_plain: bool,
    pub(crate) home: usize,
    pub(crate) at: usize,
    pub(crate) token: Vector,
    /// How often it asked for what its token covers in vain.
    pub(crate) waits: u32,
    /// Keys of its own are named by it: after an answer that did not come, the client begins anew.
    pub(crate) epoch: u64,
    pub(crate) counted: i64,
    pub(crate) register: u64,
    pub(crate) pair: [u64; 2],
    /// The number of the request that is under way.
    pub(crate) asked: Option<u64>,
    pub(crate) ask: Ask,
    pub(crate) since_us: u64,
    pub(crate) random: Random,
}

/// A request as commands.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) database: u8,
    pub(crate) commands: Vec<Vec<String>>,
    /// For the oracle.
    pub(crate) oracle: Vec<Command>,
}

impl Client {
    pub(crate) fn new(number: usize, regions: usize, seed: u64) -> Self {
        Self {
            // One of the two in each region.
            is_plain: number / regions % 2 == 1,
            home: number % regions,
            at: number % regions,
            token: Vector::default(),
            waits: 0,
            epoch: 0,
            counted: 0,
            register: 0,
            pair: [0; 2],
            asked: None,
            ask: Ask::Count,
            since_us: 0,
            random: Random::new(seed, 100 + number as u64),
        }
    }

    /// The client does not know what became of its last request, or what it knew is lost: it begins anew.
    pub(crate) fn begin_anew(&mut self) {
        self.epoch += 1;
        (self.counted, self.register, self.pair) = (0, 0, [0; 2]);
        self.asked = None;
        self.waits = 0;
    }

    /// What it asks next.
    pub(crate) fn choose(&mut self, clients: usize, keys: usize) -> Ask {
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
}

/// The commands of a request. `lives` says whether a counter with a lifetime is there.
pub(crate) fn request(
    ask: &Ask,
    number: usize,
    client: &Client,
    other: (usize, u64),
    lives: bool,
) -> Request {
    let line = |text: String| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let multi = |lines: Vec<Vec<String>>| {
        let mut all = vec![line("MULTI".into())];
        all.extend(lines);
        all.push(line("EXEC".into()));
        all
    };
    let own = |what: &str| format!("{what}:{number}.{}", client.epoch);
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
        Ask::Register => vec![line(format!("SET {} {}", own("register"), client.register + 1))],
        Ask::ReadOwn => {
            vec![line(format!("GET {}", own("count"))), line(format!("GET {}", own("register")))]
        }
        Ask::PairFirst => vec![line(format!("SET {} {}", own("first"), client.pair[0] + 1))],
        Ask::PairSecond => vec![line(format!("SET {} {}", own("second"), client.pair[0]))],
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

/// What a reply must be, given what the client knows. `None` if it is as it must be.
pub(crate) fn objection(client: &Client, ask: &Ask, replies: &[Value]) -> Option<(&'static str, String)> {
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
        (Ask::Count, [value]) => sees("counter", value, client.counted + 1),
        (Ask::ReadOwn, [count, register]) => sees("counter", count, client.counted)
            .or_else(|| sees("register", register, client.register as i64)),
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

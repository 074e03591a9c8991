//! Clients: a connection as a user's service has it, and a record of all that was asked and answered.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use geode_sim::rules::{self, Objection};
use geode_sim::workload::{Ask, Script};
use geode_store::conformance::Value;
use geode_store::conformance::oracle::Command;

/// How long an answer may take before a client goes away. A frozen process answers later, to nobody.
const PATIENCE: Duration = Duration::from_secs(4);
/// How long a client waits before it connects again.
const AGAIN: Duration = Duration::from_millis(30);
/// How long WAIT waits for another region, in milliseconds.
const WAIT_MS: u64 = 400;

/// A request that was sent, and what became of it.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// What it wrote beside the rest, so that its entry can be found in a log.
    pub(crate) mark: String,
    pub(crate) region: usize,
    /// What it asked of keys that the oracle follows.
    pub(crate) commands: Vec<Command>,
    /// The key that it read in the same transaction, and the answers by command.
    pub(crate) reads: Option<(String, Vec<(String, Value)>)>,
    pub(crate) outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was answered, so it stands.
    Acknowledged,
    /// And another region said that it has it on disk.
    Confirmed,
    /// It was refused, so it never was.
    Refused,
    /// Nobody knows.
    Unknown,
}

/// How long a client that moves waits for what it saw elsewhere, in milliseconds: as a door does.
const TOKEN_MS: u64 = 500;

/// The key that marks a client's requests.
const MARK: &str = "mark";

/// A connection that speaks RESP3.
pub(crate) struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    pub(crate) fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let mut connection = Self { stream: BufReader::new(stream) };
        connection.exchange(&[words("HELLO 3")])?;
        Ok(connection)
    }

    /// Sends commands at once and returns their replies.
    pub(crate) fn exchange(&mut self, commands: &[Vec<String>]) -> io::Result<Vec<Value>> {
        let mut bytes = Vec::new();
        for command in commands {
            write!(bytes, "*{}\r\n", command.len())?;
            for word in command {
                write!(bytes, "${}\r\n{word}\r\n", word.len())?;
            }
        }
        self.stream.get_mut().write_all(&bytes)?;
        commands.iter().map(|_| self.reply()).collect()
    }

    pub(crate) fn ask(&mut self, line: &str) -> io::Result<Value> {
        Ok(self.exchange(&[words(line)])?.remove(0))
    }

    fn reply(&mut self) -> io::Result<Value> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end();
        let invalid = || io::Error::new(io::ErrorKind::InvalidData, format!("a reply begins with {line:?}"));
        let (kind, rest) = line.split_at_checked(1).ok_or_else(invalid)?;
        let number = || rest.parse::<i64>().map_err(|_| invalid());
        Ok(match kind {
            "+" => Value::Simple(rest.to_owned()),
            "-" => Value::Error(rest.to_owned()),
            ":" => Value::Integer(number()?),
            "_" => Value::Null,
            "," => Value::Double(rest.parse().map_err(|_| invalid())?),
            "$" if rest == "-1" => Value::Null,
            "*" if rest == "-1" => Value::NullArray,
            "$" => {
                let mut bytes = vec![0; number()? as usize + 2];
                self.stream.read_exact(&mut bytes)?;
                bytes.truncate(bytes.len() - 2);
                Value::Bulk(bytes)
            }
            "*" => Value::Array(self.replies(number()?)?),
            "~" => Value::Set(self.replies(number()?)?),
            "%" => {
                let pairs = (0..number()?).map(|_| Ok((self.reply()?, self.reply()?)));
                Value::Map(pairs.collect::<io::Result<_>>()?)
            }
            _ => return Err(invalid()),
        })
    }

    fn replies(&mut self, count: i64) -> io::Result<Vec<Value>> {
        (0..count).map(|_| self.reply()).collect()
    }
}

pub(crate) fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

/// A client.
pub(crate) struct Client<'r> {
    pub(crate) number: usize,
    /// Where it is now.
    pub(crate) region: usize,
    pub(crate) addresses: Vec<SocketAddr>,
    /// Whether it goes from region to region with its token.
    pub(crate) moves: bool,
    /// Planted: it goes without waiting for what it saw.
    pub(crate) ignores_token: bool,
    /// What it has seen.
    pub(crate) token: Option<String>,
    pub(crate) keys: usize,
    pub(crate) think_ms: u64,
    pub(crate) script: Script,
    /// The epochs of all clients: how often each began anew.
    pub(crate) epochs: &'r [AtomicU64],
    pub(crate) is_over: &'r AtomicBool,
    pub(crate) asked: Vec<Asked>,
    pub(crate) objections: Vec<Objection>,
}

impl Client<'_> {
    /// Asks until it is over.
    pub(crate) fn run(&mut self) {
        let mut connection = None;
        while !self.is_over.load(Ordering::Relaxed) && self.objections.is_empty() {
            if self.moves && self.script.random.one_in(4) {
                self.region = self.script.random.index(self.addresses.len());
                connection = None;
            }
            let Some(open) = &mut connection else {
                connection = self.arrive().ok();
                if connection.is_none() {
                    std::thread::sleep(AGAIN);
                }
                continue;
            };
            if self.step(open).is_err() {
                // It may have been done or not.
                self.begin_anew();
                connection = None;
            }
            let think_ms = self.script.random.below(2 * self.think_ms);
            std::thread::sleep(Duration::from_millis(think_ms));
        }
    }

    /// Connects to where it is, and waits until all that it saw is there; if that does not come, it begins anew.
    fn arrive(&mut self) -> io::Result<Connection> {
        let mut connection = Connection::open(self.addresses[self.region])?;
        if let (Some(token), false) = (&self.token, self.ignores_token) {
            let covered = connection.ask(&format!("GEODE.WAIT {token} {TOKEN_MS}"));
            if !matches!(covered, Ok(Value::Integer(1))) {
                self.token = None;
                self.begin_anew();
                // An answer may still be under way.
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        Ok(connection)
    }

    fn begin_anew(&mut self) {
        self.script.begin_anew();
        self.epochs[self.number].store(self.script.epoch, Ordering::Relaxed);
    }

    fn step(&mut self, connection: &mut Connection) -> io::Result<()> {
        let ask = self.script.choose(self.epochs.len(), self.keys);
        let other = if let Ask::ReadPair(other) = ask { other } else { 0 };
        let request = self.script.request(&ask, (other, self.epochs[other].load(Ordering::Relaxed)), false);
        let mark = format!("{}.{}", self.number, self.asked.len());
        let key = self.key_of(&ask);
        let commands = marked(&request.commands, key.as_deref(), (self.number, &mark));
        let followed = if request.database == 0 { request.oracle } else { Vec::new() };
        self.asked.push(Asked {
            mark,
            region: self.region,
            commands: followed,
            reads: None,
            outcome: Outcome::Unknown,
        });
        connection.ask(&format!("SELECT {}", request.database))?;
        let mut replies = connection.exchange(&commands)?;
        // The last one is that of EXEC, which may be an error itself.
        if let Some(Value::Error(_)) = replies.last() {
            self.not_done(&replies);
            return Ok(());
        }
        let Some(Value::Array(mut done)) = replies.pop() else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        if let Some(Value::Error(_)) = done.last() {
            self.not_done(&done);
            return Ok(());
        }
        let reads = key.map(|key| {
            let lines = reads(&key);
            let answers = done.split_off(done.len() - 1 - lines.len());
            (key, lines.into_iter().zip(answers).collect())
        });
        if reads.is_none() {
            done.pop();
        }
        let confirmed = matches!(ask, Ask::Count | Ask::Transfer(_))
            && self.script.random.one_in(2)
            && matches!(connection.ask(&format!("WAIT 1 {WAIT_MS}"))?, Value::Integer(1..));
        if let Some(asked) = self.asked.last_mut() {
            asked.outcome = if confirmed { Outcome::Confirmed } else { Outcome::Acknowledged };
            asked.reads = reads;
        }
        let in_transaction = request.commands.first().is_some_and(|command| command[0] == "MULTI");
        let replies = if in_transaction { vec![Value::Array(done)] } else { done };
        let objection = self.script.objection(&ask, &replies);
        self.script.answered(&ask);
        self.object(objection);
        if matches!(ask, Ask::Transfer(_)) {
            self.look_at_transactions(connection)?;
        }
        if self.moves {
            self.token = match connection.ask("GEODE.VECTOR")? {
                Value::Bulk(token) => String::from_utf8(token).ok(),
                _ => None,
            };
            if self.token.is_none() {
                self.begin_anew();
            }
        }
        Ok(())
    }

    /// The key that a request about followed keys also reads.
    fn key_of(&mut self, ask: &Ask) -> Option<String> {
        match ask {
            Ask::Rate(key) => Some((*key).to_owned()),
            Ask::Oracle(commands) => commands.first().map(|command| match command {
                Command::FlushAll => "a".to_owned(),
                command => command.words()[1].clone(),
            }),
            _ => None,
        }
    }

    fn not_done(&mut self, replies: &[Value]) {
        // A command that was not even queued makes EXEC do nothing, and so does a region that takes no writes.
        let is_error = |reply: &Value| matches!(reply, Value::Error(_));
        // What was executed and then not taken by the log.
        let in_doubt =
            |reply: &Value| matches!(reply, Value::Error(error) if error.contains("may or may not"));
        let refused = replies.iter().any(is_error) && !replies.iter().any(in_doubt);
        if let (true, Some(asked)) = (refused, self.asked.last_mut()) {
            asked.outcome = Outcome::Refused;
        }
        self.begin_anew();
    }

    fn look_at_transactions(&mut self, connection: &mut Connection) -> io::Result<()> {
        let keys = ["both:1", "both:2", "account:1", "account:2"];
        let mut commands = vec![words("MULTI")];
        commands.extend(keys.map(|key| words(&format!("GET {key}"))));
        commands.push(words("EXEC"));
        let Some(Value::Array(values)) = connection.exchange(&commands)?.pop() else { return Ok(()) };
        let value =
            |key: &str| keys.iter().position(|known| *known == key).and_then(|at| values.get(at)).cloned();
        let objection = rules::transactions(|key| value(key).unwrap_or(Value::Null));
        self.object(objection);
        Ok(())
    }

    fn object(&mut self, objection: Option<Objection>) {
        self.objections.extend(objection.map(|(rule, message)| {
            let place = crate::geode::NAMES[self.region];
            (rule, format!("client {} in {place}, request {}: {message}", self.number, self.asked.len() - 1))
        }));
    }
}

/// The commands as one transaction that also reads a key and leaves a mark.
fn marked(commands: &[Vec<String>], key: Option<&str>, (number, mark): (usize, &str)) -> Vec<Vec<String>> {
    let inner = commands.iter().filter(|command| !matches!(command[0].as_str(), "MULTI" | "EXEC"));
    let reads = key.into_iter().flat_map(reads);
    let mut all = vec![words("MULTI")];
    all.extend(inner.cloned());
    all.extend(reads.map(|line| words(&line)));
    all.push(words(&format!("SET {MARK}:{number} {mark}")));
    all.push(words("EXEC"));
    all
}

/// The mark that a SET leaves, if it is one.
pub(crate) fn mark_of(key: &[u8], value: &[u8]) -> Option<String> {
    let key = std::str::from_utf8(key).ok()?;
    key.strip_prefix(MARK)?.strip_prefix(':')?;
    String::from_utf8(value.to_vec()).ok()
}

/// What reads all of a key, whatever it is.
pub(crate) fn reads(key: &str) -> Vec<String> {
    ["TYPE", "GET", "SMEMBERS", "HGETALL", "PTTL"].map(|command| format!("{command} {key}")).into()
}

/// Waits until something comes, and says what is missing if it does not.
pub(crate) fn wait_for(within: Duration, mut missing: impl FnMut() -> Option<String>) -> Result<(), String> {
    let start = Instant::now();
    while let Some(what) = missing() {
        if start.elapsed() > within {
            return Err(what);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

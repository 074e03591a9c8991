//! Commands about the connection itself: HELLO, AUTH, CLIENT, RESET, QUIT. Texts and shapes are those of Redis
//! 7.0.

use std::fmt::Write as _;
use std::os::fd::AsRawFd;
use std::time::Instant;

use geode_store::{REDIS_VERSION, Reply};

use crate::connection::{Connection, Connections, Phase, Replies};
use crate::write::{Protocol, Writer};

const SYNTAX: &str = "ERR syntax error";

/// A command about the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientCommand {
    Hello,
    Auth,
    Client,
    Reset,
    Quit,
    /// A browser that was talked into sending a request to this port. Its next line could be a command.
    Http,
}

impl ClientCommand {
    /// Recognises a command by its name. Most names are told apart by their length alone.
    pub(crate) fn named(name: &[u8]) -> Option<Self> {
        let is = |expected: &str| name.eq_ignore_ascii_case(expected.as_bytes());
        match name.len() {
            4 if is("QUIT") => Some(Self::Quit),
            4 if is("AUTH") => Some(Self::Auth),
            4 if is("POST") => Some(Self::Http),
            5 if is("HELLO") => Some(Self::Hello),
            5 if is("RESET") => Some(Self::Reset),
            5 if is("HOST:") => Some(Self::Http),
            6 if is("CLIENT") => Some(Self::Client),
            _ => None,
        }
    }

    /// Executes it and writes one reply, but for what CLIENT REPLY silences.
    pub(crate) fn execute(
        self,
        connection: &mut Connection,
        others: &mut Others<'_>,
        arguments: &[&[u8]],
        reply: &mut Writer<'_>,
    ) {
        let leaves_transaction = matches!(self, Self::Reset | Self::Quit | Self::Http);
        if connection.session.in_transaction() && !leaves_transaction {
            connection.session.spoil_transaction();
            return reply.error("ERR Command not allowed inside a transaction");
        }
        match self {
            Self::Quit => {
                reply.simple("OK");
                connection.phase = Phase::Draining;
            }
            Self::Http => {
                tracing::warn!(peer = %connection.peer, "an HTTP request came to the Redis port; connection closed");
                connection.phase = Phase::Dead;
            }
            Self::Reset if arguments.len() == 1 => {
                connection.reset();
                reply.set_protocol(connection.protocol);
                reply.simple("RESET");
            }
            Self::Reset => wrong_arity("reset", reply),
            Self::Auth => auth(&arguments[1..], reply),
            Self::Hello => hello(connection, &arguments[1..], reply),
            Self::Client => client(connection, others, &arguments[1..], reply),
        }
    }
}

/// What a command may see and do beyond its own connection.
pub(crate) struct Others<'a> {
    pub(crate) connections: &'a mut Connections,
    /// Slots of connections to look after at the end of the batch.
    pub(crate) touched: &'a mut Vec<usize>,
    pub(crate) now: Instant,
}

fn wrong_arity(name: &str, reply: &mut Writer<'_>) {
    reply.error(&format!("ERR wrong number of arguments for '{name}' command"));
}

/// There are no passwords (the port is on loopback or behind the operator's network), as in a Redis without any: its
/// user `default` takes every password.
fn auth(arguments: &[&[u8]], reply: &mut Writer<'_>) {
    match arguments {
        [] => wrong_arity("auth", reply),
        [_] => reply.error(
            "ERR AUTH <password> called without any password configured for the default user. Are you sure your \
             configuration is correct?",
        ),
        [b"default", _] => reply.simple("OK"),
        [_, _] => wrong_password(reply),
        _ => reply.error(SYNTAX),
    }
}

fn wrong_password(reply: &mut Writer<'_>) {
    reply.error("WRONGPASS invalid username-password pair or user is disabled.");
}

/// HELLO [version [AUTH user password] [SETNAME name]]. Nothing changes unless all of it is right.
fn hello(connection: &mut Connection, arguments: &[&[u8]], reply: &mut Writer<'_>) {
    let mut protocol = connection.protocol;
    let mut name = None;
    if let Some((version, mut options)) = arguments.split_first() {
        protocol = match integer(version) {
            Some(2) => Protocol::Version2,
            Some(3) => Protocol::Version3,
            Some(_) => return reply.error("NOPROTO unsupported protocol version"),
            None => return reply.error("ERR Protocol version is not an integer or out of range"),
        };
        while let Some((option, rest)) = options.split_first() {
            options = match rest {
                [user, _, rest @ ..] if option.eq_ignore_ascii_case(b"AUTH") => {
                    if *user != b"default" {
                        return wrong_password(reply);
                    }
                    rest
                }
                [chosen, rest @ ..] if option.eq_ignore_ascii_case(b"SETNAME") => {
                    if !is_plain(chosen) {
                        return reply.error(&not_plain("Client names"));
                    }
                    name = Some(*chosen);
                    rest
                }
                _ => {
                    let option = String::from_utf8_lossy(option);
                    return reply.error(&format!("ERR Syntax error in HELLO option '{option}'"));
                }
            };
        }
    }
    if let Some(name) = name {
        connection.identity.name = name.into();
    }
    connection.protocol = protocol;
    reply.set_protocol(protocol);
    describe_server(connection, reply);
}

fn describe_server(connection: &Connection, reply: &mut Writer<'_>) {
    reply.map(7);
    reply.bulk(b"server");
    reply.bulk(b"redis");
    reply.bulk(b"version");
    reply.bulk(REDIS_VERSION.as_bytes());
    reply.bulk(b"proto");
    reply.integer(connection.protocol.number());
    reply.bulk(b"id");
    reply.integer(connection.id.cast_signed());
    reply.bulk(b"mode");
    reply.bulk(b"standalone");
    reply.bulk(b"role");
    reply.bulk(b"master");
    reply.bulk(b"modules");
    reply.array(0);
}

fn client(connection: &mut Connection, others: &mut Others<'_>, arguments: &[&[u8]], reply: &mut Writer<'_>) {
    let Some((subcommand, rest)) = arguments.split_first() else { return wrong_arity("client", reply) };
    let name = subcommand.to_ascii_lowercase();
    match (name.as_slice(), rest) {
        (b"id", []) => reply.integer(connection.id.cast_signed()),
        (b"getname", []) if connection.identity.name.is_empty() => reply.null(),
        (b"getname", []) => reply.bulk(&connection.identity.name),
        (b"setname", [chosen]) if is_plain(chosen) => {
            connection.identity.name = (*chosen).into();
            reply.simple("OK");
        }
        (b"setname", [_]) => reply.error(&not_plain("Client names")),
        (b"setinfo", [attribute, value]) => set_info(connection, attribute, value, reply),
        (b"info", []) => reply.bulk(line(connection, others.now).as_bytes()),
        (b"list", []) => reply.bulk(list(connection, others).as_bytes()),
        (b"list", _) => reply.error(SYNTAX),
        (b"kill", [filter, id]) if filter.eq_ignore_ascii_case(b"ID") => kill(connection, others, id, reply),
        (b"kill", [_, ..]) => reply.error(SYNTAX),
        // Nothing is evicted, and reads do not age keys: both are true whatever is asked.
        (b"no-evict" | b"no-touch", [switch]) => match is_on(switch) {
            Some(_) => reply.simple("OK"),
            None => reply.error(SYNTAX),
        },
        (b"reply", [mode]) => set_replies(connection, mode, reply),
        (
            b"id" | b"getname" | b"setname" | b"setinfo" | b"info" | b"kill" | b"no-evict" | b"no-touch"
            | b"reply",
            _,
        ) => wrong_arity(&format!("client|{}", String::from_utf8_lossy(&name)), reply),
        _ => {
            let shown = String::from_utf8_lossy(&subcommand[..subcommand.len().min(128)]);
            reply.error(&format!("ERR unknown subcommand '{shown}'. Try CLIENT HELP."));
        }
    }
}

fn set_info(connection: &mut Connection, attribute: &[u8], value: &[u8], reply: &mut Writer<'_>) {
    let name = String::from_utf8_lossy(attribute).to_ascii_lowercase();
    let field = match name.as_str() {
        "lib-name" => &mut connection.identity.library,
        "lib-ver" => &mut connection.identity.library_version,
        _ => {
            let shown = String::from_utf8_lossy(&attribute[..attribute.len().min(128)]);
            return reply.error(&format!("ERR Unrecognized option '{shown}'"));
        }
    };
    if !is_plain(value) {
        return reply.error(&not_plain(&name));
    }
    *field = value.into();
    reply.simple("OK");
}

fn set_replies(connection: &mut Connection, mode: &[u8], reply: &mut Writer<'_>) {
    if mode.eq_ignore_ascii_case(b"ON") {
        connection.replies = Replies::All;
        reply.simple("OK");
    } else if mode.eq_ignore_ascii_case(b"OFF") {
        connection.replies = Replies::None;
    } else if mode.eq_ignore_ascii_case(b"SKIP") {
        if connection.replies != Replies::None {
            connection.replies = Replies::SkipNext;
        }
    } else {
        reply.error(SYNTAX);
    }
}

fn kill(connection: &mut Connection, others: &mut Others<'_>, id: &[u8], reply: &mut Writer<'_>) {
    let Some(id) = integer(id).and_then(|id| u64::try_from(id).ok()).filter(|id| *id > 0) else {
        return reply.error("ERR client-id should be greater than 0");
    };
    // CLIENT KILL with filters skips the connection it came from, unless told otherwise.
    let found = others.connections.iter_mut().find(|other| other.id == id && other.id != connection.id);
    let killed = found.is_some();
    if let Some(other) = found {
        other.phase = Phase::Dead;
        if !std::mem::replace(&mut other.is_touched, true) {
            others.touched.push(other.slot);
        }
    }
    reply.integer(i64::from(killed));
}

/// All connections in the order they came.
fn list(connection: &Connection, others: &Others<'_>) -> String {
    let mut all: Vec<&Connection> = others.connections.iter().chain([connection]).collect();
    all.sort_unstable_by_key(|connection| connection.id);
    all.into_iter().map(|connection| line(connection, others.now)).collect()
}

/// One line of CLIENT LIST. Fields that have no meaning here are zero: clients insist on finding them.
fn line(connection: &Connection, now: Instant) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let local = connection.socket.local_addr().map(|address| address.to_string()).unwrap_or_default();
    let flags = if matches!(connection.phase, Phase::Waiting(_)) { "b" } else { "N" };
    let mut line = format!(
        "id={} addr={} laddr={local} fd={} name={} age={} idle={} flags={flags} db={} sub=0 psub=0 ssub=0 multi={}",
        connection.id,
        connection.peer,
        connection.socket.as_raw_fd(),
        text(&connection.identity.name),
        now.duration_since(connection.created).as_secs(),
        now.duration_since(connection.active).as_secs(),
        connection.session.database(),
        if connection.session.in_transaction() { 0 } else { -1 },
    );
    let pending = connection.output.pending();
    // Writing to a string cannot fail.
    let _ = writeln!(
        line,
        " qbuf={} qbuf-free=0 argv-mem=0 multi-mem=0 rbs=0 rbp=0 obl={pending} oll=0 omem=0 tot-mem={} events=r cmd=NULL \
         user=default redir=-1 resp={} lib-name={} lib-ver={}",
        connection.input.len(),
        connection.accounted,
        connection.protocol.number(),
        text(&connection.identity.library),
        text(&connection.identity.library_version),
    );
    line
}

/// Names stand in lines of words, so they may hold neither spaces nor control characters.
fn is_plain(name: &[u8]) -> bool {
    name.iter().all(|byte| (b'!'..=b'~').contains(byte))
}

fn not_plain(what: &str) -> String {
    format!("ERR {what} cannot contain spaces, newlines or special characters.")
}

fn is_on(switch: &[u8]) -> Option<bool> {
    if switch.eq_ignore_ascii_case(b"ON") {
        Some(true)
    } else if switch.eq_ignore_ascii_case(b"OFF") {
        Some(false)
    } else {
        None
    }
}

fn integer(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

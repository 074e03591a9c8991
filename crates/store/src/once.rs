//! GEODE.ONCE: a write under an id, so that a client that lost the answer can send it again.
//!
//! The reply is recorded in the entry of the effect, as a string of the system database that expires after ten minutes. So
//! wherever the effect is, the record is too, and a repeat there answers the recorded reply and executes nothing. A region
//! that has not heard of the first attempt executes it again; both records then stand in one cell, the later one
//! answers, and the conflict log shows them.

use geode_crdt::{HybridTime, SYSTEM_DATABASE};
use xxhash_rust::xxh3::Xxh3Default;

use crate::commands::table::{self, Access, Action, Command, Function};
use crate::context::Context;
use crate::effect::Lifetime;
use crate::engine::Engine;
use crate::errors::{self, Outcome};
use crate::recorded::{self, Recorded};
use crate::reply::Reply;
use crate::session::Session;
use crate::store::Store;
use crate::view::View;

/// How the keys of records begin in the system database; the id follows.
pub const RECORD_PREFIX: &[u8] = b"once:";

/// How long an id is remembered: longer than any client retries one request.
const KEPT_US: u64 = 10 * 60 * 1_000_000;

/// A UUID in any spelling fits, and so does a name with one.
const MAX_ID_BYTES: usize = 128;

/// The format of a record: this byte, the hash of the command (u64, little-endian), the reply.
const VERSION: u8 = 1;

/// One attempt.
struct Attempt<'a> {
    function: Function,
    arguments: &'a [&'a [u8]],
    /// The record's key.
    key: Vec<u8>,
    /// What tells the command from another one.
    hash: u64,
}

impl<'a> Attempt<'a> {
    fn parse(database: u8, arguments: &'a [&'a [u8]]) -> Outcome<Self> {
        let (id, arguments) = (arguments[1], &arguments[2..]);
        if id.is_empty() || id.len() > MAX_ID_BYTES {
            return Err(errors::ONCE_ID.into());
        }
        let command = table::resolve(arguments)?;
        match command.action {
            Action::Run(function) if command.access == Access::Write => Ok(Self {
                function,
                arguments,
                key: [RECORD_PREFIX, id].concat(),
                hash: hash(database, command, arguments),
            }),
            _ => Err(errors::once_without_write(command.name).into()),
        }
    }

    /// Answers from the record, if there is one.
    fn answer<V: View, R: Reply>(&self, context: &mut Context<'_, V, R>) -> Outcome<bool> {
        let Some(record) = context.string(&self.key)? else { return Ok(false) };
        let record = record.to_bytes();
        let (hash, reply) = read(&record).ok_or(errors::ONCE_RECORD)?;
        if hash != self.hash {
            return Err(errors::ONCE_OTHER.into());
        }
        recorded::replay(reply, context.reply).map_err(|_| errors::ONCE_RECORD)?;
        Ok(true)
    }

    /// Executes the command and records its reply in the same entry. Errors are not recorded: they leave no effect, so a
    /// retry may as well succeed.
    fn execute<V: View>(&self, context: &mut Context<'_, V, Recorded>) -> Outcome {
        table::run(self.function, context, self.arguments)?;
        let reply = context.reply.bytes().ok_or(errors::ONCE_REPLY)?;
        let mut record = vec![VERSION];
        record.extend_from_slice(&self.hash.to_le_bytes());
        record.extend_from_slice(reply);
        context.database = SYSTEM_DATABASE;
        context.set_string(&self.key, &record, Lifetime::Until(HybridTime(context.now.0 + KEPT_US)))
    }
}

/// Hash and reply of a record; `None` if it is of a newer release.
fn read(record: &[u8]) -> Option<(u64, &[u8])> {
    let ([VERSION], rest) = record.split_first_chunk()? else { return None };
    let (hash, reply) = rest.split_first_chunk()?;
    Some((u64::from_le_bytes(*hash), reply))
}

impl<E: Engine> Store<E> {
    /// GEODE.ONCE id command [argument ...]
    pub(crate) fn once<R: Reply>(
        &mut self,
        session: &mut Session,
        arguments: &[&[u8]],
        reply: &mut R,
    ) -> Outcome {
        let attempt = Attempt::parse(session.database, arguments)?;
        // Memory may hold a record that the log does not take: to answer from it would be a promise.
        self.check_log()?;
        let (mark, now) = (reply.mark(), self.engine.now());
        let answered = attempt.answer(&mut self.context(now, SYSTEM_DATABASE, reply));
        if answered.is_err() {
            reply.rewind(mark);
        }
        if answered? {
            return Ok(());
        }
        self.check_writable()?;
        let now = self.begin();
        let mut recorded = Recorded::default();
        let outcome = self.step(now, session.database, &mut recorded, |context| attempt.execute(context));
        let written = self.engine.end();
        self.note_written(session, written);
        outcome?;
        let bytes = recorded.bytes().unwrap_or_default();
        recorded::replay(bytes, reply).map_err(|_| errors::ONCE_RECORD.into())
    }
}

/// Equal on every machine and in every release.
fn hash(database: u8, command: &Command, arguments: &[&[u8]]) -> u64 {
    let mut hasher = Xxh3Default::new();
    hasher.update(&[database]);
    for argument in std::iter::once(command.name.as_bytes()).chain(arguments[1..].iter().copied()) {
        hasher.update(&(argument.len() as u64).to_le_bytes());
        hasher.update(argument);
    }
    hasher.digest()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Version 1: INCR n in database 0, answered with 1.
    const GOLDEN: &[u8] = b"\x014\x06\x98\"\xa7\xfa%_:\x02";

    #[test]
    fn a_record_reads_as_it_always_did() {
        let arguments: [&[u8]; 4] = [b"GEODE.ONCE", b"id", b"Incr", b"n"];
        let attempt = Attempt::parse(0, &arguments).unwrap();
        assert_eq!(attempt.key, b"once:id");
        let mut record = vec![VERSION];
        record.extend_from_slice(&attempt.hash.to_le_bytes());
        record.extend_from_slice(b":\x02");
        assert_eq!(record, GOLDEN, "{}", record.escape_ascii());
        assert_eq!(read(GOLDEN), Some((attempt.hash, &b":\x02"[..])));
    }

    #[test]
    fn what_is_no_record_of_this_release_is_not_answered_from() {
        for bad in [&b""[..], b"\x01", b"\x01short", b"\x02a newer release"] {
            assert_eq!(read(bad), None);
        }
    }

    #[test]
    fn arguments_and_their_borders_tell_commands_apart() {
        let hash = |database, words: &[&[u8]]| hash(database, table::resolve(words).unwrap(), words);
        let append = hash(0, &[b"APPEND", b"ab", b"c"]);
        assert_eq!(append, hash(0, &[b"append", b"ab", b"c"]));
        for other in [
            hash(1, &[b"APPEND", b"ab", b"c"]),
            hash(0, &[b"APPEND", b"a", b"bc"]),
            hash(0, &[b"GETSET", b"ab", b"c"]),
        ] {
            assert_ne!(append, other);
        }
    }
}

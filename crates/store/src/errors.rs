//! Why a command stops early, and the error texts of Redis 7, which clients compare literally.

use std::borrow::Cow;

use crate::view::Need;

/// Why a command did not come to its end. What it wrote until then is taken back.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Rows have to be fetched; then it is run again.
    Need(Box<Need>),
    /// It is answered with this error.
    Refuse(Cow<'static, str>),
}

impl From<Box<Need>> for Stop {
    fn from(need: Box<Need>) -> Self {
        Self::Need(need)
    }
}

impl From<&'static str> for Stop {
    fn from(message: &'static str) -> Self {
        Self::Refuse(Cow::Borrowed(message))
    }
}

impl From<String> for Stop {
    fn from(message: String) -> Self {
        Self::Refuse(Cow::Owned(message))
    }
}

/// The outcome of a command whose reply is written.
pub(crate) type Outcome<T = ()> = Result<T, Stop>;

pub(crate) const WRONG_TYPE: &str = "WRONGTYPE Operation against a key holding the wrong kind of value";
pub(crate) const SYNTAX: &str = "ERR syntax error";
pub(crate) const NOT_AN_INTEGER: &str = "ERR value is not an integer or out of range";
pub(crate) const NOT_A_FLOAT: &str = "ERR value is not a valid float";
pub(crate) const NOT_POSITIVE: &str = "ERR value is out of range, must be positive";
pub(crate) const TOO_MANY_REPEATED: &str =
    "ERR value is out of range, value must between -16777216 and 9223372036854775807";
pub(crate) const OVERFLOW: &str = "ERR increment or decrement would overflow";
pub(crate) const DECREMENT_OVERFLOW: &str = "ERR decrement would overflow";
pub(crate) const NOT_FINITE: &str = "ERR increment would produce NaN or Infinity";
pub(crate) const HASH_NOT_AN_INTEGER: &str = "ERR hash value is not an integer";
pub(crate) const TOO_LONG: &str = "ERR string exceeds maximum allowed size (proto-max-bulk-len)";
pub(crate) const NO_SUCH_KEY: &str = "ERR no such key";
pub(crate) const INVALID_CURSOR: &str = "ERR invalid cursor";
pub(crate) const DATABASE_RANGE: &str = "ERR DB index is out of range";
pub(crate) const NESTED_MULTI: &str = "ERR MULTI calls can not be nested";
pub(crate) const EXEC_WITHOUT_MULTI: &str = "ERR EXEC without MULTI";
pub(crate) const DISCARD_WITHOUT_MULTI: &str = "ERR DISCARD without MULTI";
pub(crate) const WATCH_INSIDE_MULTI: &str = "ERR WATCH inside MULTI is not allowed";
pub(crate) const TRANSACTION_ABORTED: &str = "EXECABORT Transaction discarded because of previous errors.";
pub(crate) const TIMEOUT_NOT_AN_INTEGER: &str = "ERR timeout is not an integer or out of range";
pub(crate) const TIMEOUT_NEGATIVE: &str = "ERR timeout is negative";
pub(crate) const EXPIRE_OPTIONS: &str = "ERR NX and XX, GT or LT options at the same time are not compatible";
pub(crate) const EXPIRE_GT_LT: &str = "ERR GT and LT options at the same time are not compatible";

// What Redis has no text for.
pub(crate) const CONDITIONAL: &str = "ERR NX and XX are rejected because other regions write too and two of them may \
     both succeed; set conditional = \"local\" under [store] to accept that risk";
pub(crate) const WATCH: &str = "ERR WATCH is not supported: a transaction here cannot know what other regions write \
     meanwhile; use MULTI without WATCH, or INCR and other commands that merge";
pub(crate) const QUEUE_FULL: &str = "ERR transaction is larger than 64 MiB";
pub(crate) const FLUSH_TOO_LARGE: &str =
    "ERR a transaction cannot flush more than 1000000 keys; send FLUSHALL or FLUSHDB outside MULTI";
pub(crate) const TOO_LARGE_FOR_TRANSACTION: &str = "ERR more than 100000 keys are not in memory; a transaction cannot \
     look at all of them: send KEYS, SCAN, FLUSHALL and FLUSHDB outside MULTI";
pub(crate) const ENTRY_TOO_LARGE: &str = "ERR this would write more than 768 MiB in one entry; split it";
pub(crate) const EVICTED: &str =
    "ERR a row was evicted while a transaction ran; this is a defect of the engine";
pub(crate) const INVALID_TOKEN: &str =
    "ERR invalid token; send what GEODE.VECTOR answered, in any region of this planet, as it is";
pub(crate) const VECTOR_INSIDE_MULTI: &str =
    "ERR GEODE.VECTOR inside MULTI would miss what the transaction writes; send it after EXEC";
pub(crate) const COVER_INSIDE_MULTI: &str = "ERR GEODE.WAIT cannot wait inside MULTI; send it before";
pub(crate) const ONCE_INSIDE_MULTI: &str = "ERR GEODE.ONCE inside MULTI is not supported: the commands beside it would still be executed by every retry";
pub(crate) const ONCE_ID: &str = "ERR the id of GEODE.ONCE has 1 to 128 bytes";
pub(crate) const ONCE_OTHER: &str =
    "ERR another command had this id within the last 10 minutes; each command needs an id of its own";
pub(crate) const ONCE_REPLY: &str =
    "ERR the reply is longer than 64 KiB and cannot be kept for a retry; nothing was executed";
pub(crate) const ONCE_RECORD: &str = "ERR this id was used in a region of a newer release, whose record cannot be read here; nothing was executed";
pub(crate) const CONFIG_SET: &str =
    "ERR CONFIG SET is not supported: settings stand in planet.toml, the same in every region";

/// A write while this region's clock is ahead: the others would hold it back.
pub(crate) fn clock_ahead(ahead_ms: u64) -> String {
    format!(
        "CLOCK this region's clock is {ahead_ms} ms ahead of the other regions'; set its clock (NTP) and writes go on"
    )
}

/// A write while this region does not hold yet what the others held when it came.
pub(crate) const JOINING: &str = "LOADING this region has just come and is still fetching what the others hold; write in another region meanwhile";

/// Any command while rows from another region are taken in.
pub(crate) const NOT_WHOLE: &str =
    "LOADING this region is taking in what another one holds; ask another region meanwhile";

/// A command that GEODE.ONCE does not take.
pub(crate) fn once_without_write(name: &str) -> String {
    format!("ERR GEODE.ONCE takes a command that writes keys; send '{name}' without it")
}

/// A known command with the wrong number of arguments.
pub(crate) fn wrong_arity(name: &str) -> String {
    format!("ERR wrong number of arguments for '{name}' command")
}

/// A deadline that no clock reaches, or a lifetime that is not positive.
pub(crate) fn invalid_expire(name: &str) -> String {
    format!("ERR invalid expire time in '{name}' command")
}

/// A command that does not exist, in the words of Redis: its name and the start of its arguments, each cut at 128
/// bytes.
pub(crate) fn unknown_command(arguments: &[&[u8]]) -> String {
    let name = arguments.first().copied().unwrap_or_default();
    let mut shown = String::new();
    for argument in arguments.iter().skip(1) {
        if shown.len() >= 128 {
            break;
        }
        shown += &format!("'{}' ", one_line(argument, 128 - shown.len()));
    }
    format!("ERR unknown command '{}', with args beginning with: {shown}", one_line(name, 128))
}

/// A subcommand that does not exist.
pub(crate) fn unknown_subcommand(command: &str, subcommand: &[u8]) -> String {
    format!("ERR unknown subcommand '{}'. Try {command} HELP.", one_line(subcommand, 128))
}

/// At most `limit` bytes of what a user sent, safe inside a one-line error.
pub(crate) fn one_line(bytes: &[u8], limit: usize) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(limit)]);
    text.replace(['\r', '\n'], " ")
}

//! The command table: name, arity, access, keys and function of every command, and the lookup by name.

use crate::commands::{counter, expiry, hash, key, list, server, set, string};
use crate::context::Context;
use crate::errors::{self, Outcome};
use crate::reply::Reply;
use crate::view::View;

/// One command.
#[derive(Debug)]
pub(crate) struct Command {
    /// In lower case.
    pub(crate) name: &'static str,
    /// Number of arguments, the name included; a negative number is a minimum.
    pub(crate) arity: i8,
    /// What it does to data.
    pub(crate) access: Access,
    /// Which arguments are keys.
    pub(crate) keys: Keys,
    pub(crate) action: Action,
}

/// What a command does to data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Reads rows.
    Read,
    /// Writes an entry.
    Write,
    /// Is about the connection, the transaction or the whole store.
    Control,
}

/// Which arguments are keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keys {
    /// None.
    None,
    /// One, the first.
    First,
    /// The first two.
    Two,
    /// All.
    All,
    /// Every other one, the first included.
    Pairs,
    /// None, but the command looks at every key of the database.
    Database,
}

impl Keys {
    /// First, last and step as COMMAND INFO shows them.
    pub(crate) const fn range(self) -> (i64, i64, i64) {
        match self {
            Self::None | Self::Database => (0, 0, 0),
            Self::First => (1, 1, 1),
            Self::Two => (1, 2, 1),
            Self::All => (1, -1, 1),
            Self::Pairs => (1, -1, 2),
        }
    }

    /// The keys among a command's arguments.
    pub(crate) fn of<'a>(self, arguments: &[&'a [u8]]) -> impl Iterator<Item = &'a [u8]> {
        let (count, step) = match self {
            Self::None | Self::Database => (0, 1),
            Self::First => (1, 1),
            Self::Two => (2, 1),
            Self::All => (usize::MAX, 1),
            Self::Pairs => (usize::MAX, 2),
        };
        arguments.iter().skip(1).step_by(step).take(count).copied()
    }
}

impl Command {
    /// Whether it acts at once while a transaction is queued.
    pub(crate) const fn steers_transaction(&self) -> bool {
        matches!(
            self.action,
            Action::Control(Control::Multi | Control::Exec | Control::Discard | Control::Watch)
        )
    }

    /// Why it may not stand in a transaction, if so.
    pub(crate) const fn refused_in_transaction(&self) -> Option<&'static str> {
        match self.action {
            Action::Control(Control::Vector) => Some(errors::VECTOR_INSIDE_MULTI),
            Action::Control(Control::Cover) => Some(errors::COVER_INSIDE_MULTI),
            Action::Control(Control::Once) => Some(errors::ONCE_INSIDE_MULTI),
            _ => None,
        }
    }

    /// Whether it may write an entry.
    pub(crate) const fn writes(&self) -> bool {
        matches!(self.access, Access::Write)
            || matches!(self.action, Action::Control(Control::FlushAll | Control::FlushDatabase))
    }

    const fn accepts(&self, count: usize) -> bool {
        let arity = self.arity.unsigned_abs() as usize;
        if self.arity < 0 { count >= arity } else { count == arity }
    }
}

/// How a command is run.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Action {
    /// By a function of a context.
    Run(Function),
    /// By the store itself.
    Control(Control),
}

/// What the store does itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Control {
    Multi,
    Exec,
    Discard,
    Watch,
    Select,
    Wait,
    Vector,
    Cover,
    Once,
    FlushAll,
    FlushDatabase,
    Info,
    Config,
}

/// Names each function, lists it in the table, and calls it for any view and reply.
macro_rules! commands {
    (
        run { $($function:ident $name:literal $arity:literal $access:ident $keys:ident $module:ident::$path:ident;)* }
        control { $($control:ident $control_name:literal $control_arity:literal;)* }
    ) => {
        /// The function of a command, to be called by [`run`].
        #[derive(Clone, Copy, Debug)]
        pub(crate) enum Function { $($function,)* }

        /// Calls the function of a command.
        pub(crate) fn run<V: View, R: Reply>(
            function: Function,
            context: &mut Context<'_, V, R>,
            arguments: &[&[u8]],
        ) -> Outcome {
            match function { $(Function::$function => $module::$path(context, arguments),)* }
        }

        /// All commands.
        pub(crate) static COMMANDS: &[Command] = &[
            $(Command {
                name: $name,
                arity: $arity,
                access: Access::$access,
                keys: Keys::$keys,
                action: Action::Run(Function::$function),
            },)*
            $(Command {
                name: $control_name,
                arity: $control_arity,
                access: Access::Control,
                keys: Keys::None,
                action: Action::Control(Control::$control),
            },)*
        ];
    };
}

commands! {
    run {
        Get             "get"           2   Read    First       string::get;
        Set             "set"          -3   Write   First       string::set;
        SetNx           "setnx"         3   Write   First       string::set_nx;
        SetEx           "setex"         4   Write   First       string::set_ex;
        PSetEx          "psetex"        4   Write   First       string::p_set_ex;
        GetSet          "getset"        3   Write   First       string::get_set;
        GetEx           "getex"        -2   Write   First       string::get_ex;
        GetDel          "getdel"        2   Write   First       string::get_del;
        MGet            "mget"         -2   Read    All         string::m_get;
        MSet            "mset"         -3   Write   Pairs       string::m_set;
        Append          "append"        3   Write   First       string::append;
        StrLen          "strlen"        2   Read    First       string::str_len;

        Incr            "incr"          2   Write   First       counter::incr;
        IncrBy          "incrby"        3   Write   First       counter::incr_by;
        Decr            "decr"          2   Write   First       counter::decr;
        DecrBy          "decrby"        3   Write   First       counter::decr_by;
        IncrByFloat     "incrbyfloat"   3   Write   First       counter::incr_by_float;
        HIncrBy         "hincrby"       4   Write   First       counter::h_incr_by;

        Del             "del"          -2   Write   All         key::del;
        Unlink          "unlink"       -2   Write   All         key::del;
        Exists          "exists"       -2   Read    All         key::exists;
        Type            "type"          2   Read    First       key::type_of;
        Rename          "rename"        3   Write   Two         key::rename;
        Keys            "keys"          2   Read    Database    key::keys;
        Scan            "scan"         -2   Read    Database    key::scan;
        DbSize          "dbsize"        1   Read    Database    key::db_size;

        Expire          "expire"       -3   Write   First       expiry::expire;
        PExpire         "pexpire"      -3   Write   First       expiry::p_expire;
        ExpireAt        "expireat"     -3   Write   First       expiry::expire_at;
        PExpireAt       "pexpireat"    -3   Write   First       expiry::p_expire_at;
        Ttl             "ttl"           2   Read    First       expiry::ttl;
        PTtl            "pttl"          2   Read    First       expiry::p_ttl;
        Persist         "persist"       2   Write   First       expiry::persist;

        SAdd            "sadd"         -3   Write   First       set::add;
        SRem            "srem"         -3   Write   First       set::remove;
        SIsMember       "sismember"     3   Read    First       set::is_member;
        SMIsMember      "smismember"   -3   Read    First       set::are_members;
        SMembers        "smembers"      2   Read    First       set::members;
        SCard           "scard"         2   Read    First       set::cardinality;
        SPop            "spop"         -2   Write   First       set::pop;
        SRandMember     "srandmember"  -2   Read    First       set::random_member;

        HSet            "hset"         -4   Write   First       hash::set;
        HGet            "hget"          3   Read    First       hash::get;
        HMGet           "hmget"        -3   Read    First       hash::m_get;
        HGetAll         "hgetall"       2   Read    First       hash::get_all;
        HDel            "hdel"         -3   Write   First       hash::delete;
        HExists         "hexists"       3   Read    First       hash::exists;
        HLen            "hlen"          2   Read    First       hash::length;
        HKeys           "hkeys"         2   Read    First       hash::fields;
        HVals           "hvals"         2   Read    First       hash::values;

        LPush           "lpush"        -3   Write   First       list::push_left;
        RPush           "rpush"        -3   Write   First       list::push_right;
        LPop            "lpop"         -2   Write   First       list::pop_left;
        RPop            "rpop"         -2   Write   First       list::pop_right;
        LRange          "lrange"        4   Read    First       list::range;
        LLen            "llen"          2   Read    First       list::length;
        LIndex          "lindex"        3   Read    First       list::index;
        LTrim           "ltrim"         4   Write   First       list::trim;

        Ping            "ping"         -1   Read    None        server::ping;
        Echo            "echo"          2   Read    None        server::echo;
        Command         "command"      -1   Read    None        server::command;
    }
    control {
        Multi           "multi"         1;
        Exec            "exec"          1;
        Discard         "discard"       1;
        Watch           "watch"        -2;
        Select          "select"        2;
        Wait            "wait"          3;
        Vector          "geode.vector"  1;
        Cover           "geode.wait"    3;
        Once            "geode.once"   -3;
        FlushAll        "flushall"     -1;
        FlushDatabase   "flushdb"      -1;
        Info            "info"         -1;
        Config          "config"       -2;
    }
}

/// The command that `arguments` begin with, if their number is right; otherwise Redis's error.
pub(crate) fn resolve(arguments: &[&[u8]]) -> Result<&'static Command, String> {
    let Some(command) = arguments.first().and_then(|name| find(name)) else {
        return Err(errors::unknown_command(arguments));
    };
    if command.accepts(arguments.len()) { Ok(command) } else { Err(errors::wrong_arity(command.name)) }
}

/// A command by its name in any case. No allocation: the name is one 128-bit word, hashed into a table that was built
/// when the program was compiled.
pub(crate) fn find(name: &[u8]) -> Option<&'static Command> {
    let word = word(name)?;
    let mut slot = slot_of(word);
    while let Some(index) = SLOTS[slot] {
        if WORDS[index as usize] == word {
            return Some(&COMMANDS[index as usize]);
        }
        slot = (slot + 1) % SLOT_COUNT;
    }
    None
}

/// A power of two, sparse enough that lookups meet the right slot at once.
const SLOT_COUNT: usize = 512;

/// The name in lower case, padded with zeros; `None` if it is longer than any command's.
const fn word(name: &[u8]) -> Option<u128> {
    if name.len() > 16 {
        return None;
    }
    let (mut word, mut at) = (0, 0);
    while at < name.len() {
        word = word << 8 | name[at].to_ascii_lowercase() as u128;
        at += 1;
    }
    Some(word)
}

const fn slot_of(word: u128) -> usize {
    // Fibonacci hashing of both halves.
    let folded = (word as u64) ^ ((word >> 64) as u64).rotate_left(23);
    (folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - SLOT_COUNT.trailing_zeros())) as usize
}

static WORDS: [u128; COMMANDS.len()] = {
    let mut words = [0; COMMANDS.len()];
    let mut index = 0;
    while index < COMMANDS.len() {
        if let Some(word) = word(COMMANDS[index].name.as_bytes()) {
            words[index] = word;
        }
        index += 1;
    }
    words
};

static SLOTS: [Option<u8>; SLOT_COUNT] = {
    let mut slots = [None; SLOT_COUNT];
    let mut index = 0;
    while index < COMMANDS.len() {
        let mut slot = slot_of(WORDS[index]);
        while slots[slot].is_some() {
            slot = (slot + 1) % SLOT_COUNT;
        }
        slots[slot] = Some(index as u8);
        index += 1;
    }
    slots
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_found_by_its_name_in_any_case() {
        for command in COMMANDS {
            let upper = command.name.to_ascii_uppercase();
            for name in [command.name, &upper] {
                assert!(find(name.as_bytes()).is_some_and(|found| std::ptr::eq(found, command)), "{name}");
            }
        }
    }

    #[test]
    fn other_names_are_not_found() {
        for name in
            ["", "ge", "gett", "get ", "\x07et", "geode\x0ewait", "a name that is longer than any command"]
        {
            assert!(find(name.as_bytes()).is_none(), "{name:?}");
        }
    }
}

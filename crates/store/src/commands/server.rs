//! Commands about the server and the connection: PING, ECHO, SELECT, INFO, COMMAND, CONFIG GET.

use crate::arguments;
use crate::commands::table::{self, Access, COMMANDS, Command};
use crate::context::Context;
use crate::engine::Engine;
use crate::errors::{self, Outcome};
use crate::glob;
use crate::reply::Reply;
use crate::store::{DATABASES, Store};
use crate::view::View;

/// The version of Redis whose commands and error texts these are, and with which the tests compare them. INFO and HELLO
/// name it, and clients choose their behaviour by it.
pub const REDIS_VERSION: &str = "7.0.15";

pub(crate) fn ping<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    match &arguments[1..] {
        [] => c.reply.simple("PONG"),
        [message] => c.reply.bulk(message),
        _ => return Err(errors::wrong_arity("ping").into()),
    }
    Ok(())
}

pub(crate) fn echo<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    c.reply.bulk(arguments[1]);
    Ok(())
}

/// SELECT index
pub(crate) fn database(arguments: &[&[u8]]) -> Outcome<u8> {
    let index = arguments::integer(arguments[1])?;
    // Redis reads a 32-bit integer here.
    let index = i32::try_from(index).map_err(|_| errors::NOT_AN_INTEGER)?;
    let index = u8::try_from(index).ok().filter(|index| *index < DATABASES);
    index.ok_or_else(|| errors::DATABASE_RANGE.into())
}

/// FLUSHALL [ASYNC | SYNC]; both are the same here.
pub(crate) fn check_flush(arguments: &[&[u8]]) -> Outcome {
    match &arguments[1..] {
        [] => Ok(()),
        [option] if arguments::is(option, "async") || arguments::is(option, "sync") => Ok(()),
        _ => Err(errors::SYNTAX.into()),
    }
}

/// CONFIG GET pattern [pattern ...]
pub(crate) fn config<R: Reply>(
    parameters: &[(String, String)],
    arguments: &[&[u8]],
    reply: &mut R,
) -> Outcome {
    match arguments[1] {
        subcommand if arguments::is(subcommand, "get") && arguments.len() > 2 => {}
        subcommand if arguments::is(subcommand, "get") => {
            return Err(errors::wrong_arity("config|get").into());
        }
        subcommand if arguments::is(subcommand, "set") => return Err(errors::CONFIG_SET.into()),
        subcommand => return Err(errors::unknown_subcommand("CONFIG", subcommand).into()),
    }
    // What client libraries and redis-benchmark ask for when they start.
    let databases = DATABASES.to_string();
    let known = [
        ("appendonly", "yes"),
        ("save", ""),
        ("maxmemory", "0"),
        ("maxmemory-policy", "noeviction"),
        ("databases", &databases),
    ];
    let own = parameters.iter().map(|(name, value)| (&**name, &**value));
    let all =
        own.clone().chain(known.into_iter().filter(|(name, _)| own.clone().all(|(own, _)| own != *name)));
    let asked = |name: &str| {
        arguments[2..].iter().any(|pattern| glob::matches(&pattern.to_ascii_lowercase(), name.as_bytes()))
    };
    let found: Vec<(&str, &str)> = all.filter(|(name, _)| asked(name)).collect();
    reply.map(found.len());
    for (name, value) in found {
        reply.bulk(name.as_bytes());
        reply.bulk(value.as_bytes());
    }
    Ok(())
}

/// COMMAND [COUNT | LIST | INFO [name ...] | DOCS [name ...]]
pub(crate) fn command<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    let reply = &mut *c.reply;
    let Some(subcommand) = arguments.get(1) else {
        describe_all(reply);
        return Ok(());
    };
    let names = &arguments[2..];
    if arguments::is(subcommand, "count") {
        reply.integer(COMMANDS.len() as i64);
    } else if arguments::is(subcommand, "list") {
        reply.array(COMMANDS.len());
        COMMANDS.iter().for_each(|command| reply.bulk(command.name.as_bytes()));
    } else if arguments::is(subcommand, "info") && names.is_empty() {
        describe_all(reply);
    } else if arguments::is(subcommand, "info") {
        reply.array(names.len());
        for name in names {
            match table::find(name) {
                Some(command) => describe(command, reply),
                None => reply.null_array(),
            }
        }
    } else if arguments::is(subcommand, "docs") {
        let asked = |command: &&Command| {
            names.is_empty() || names.iter().any(|name| arguments::is(name, command.name))
        };
        let found: Vec<&Command> = COMMANDS.iter().filter(asked).collect();
        reply.map(found.len());
        for command in found {
            reply.bulk(command.name.as_bytes());
            reply.map(1);
            reply.bulk(b"since");
            reply.bulk(REDIS_VERSION.as_bytes());
        }
    } else {
        return Err(errors::unknown_subcommand("COMMAND", subcommand).into());
    }
    Ok(())
}

fn describe_all<R: Reply>(reply: &mut R) {
    reply.array(COMMANDS.len());
    COMMANDS.iter().for_each(|command| describe(command, reply));
}

/// One command as Redis 7 describes it; categories, tips, key specifications and subcommands are left empty.
fn describe<R: Reply>(command: &Command, reply: &mut R) {
    reply.array(10);
    reply.bulk(command.name.as_bytes());
    reply.integer(command.arity.into());
    let flag = match command.access {
        Access::Read => "readonly",
        Access::Write => "write",
        Access::Control => "loading",
    };
    reply.set(1);
    reply.simple(flag);
    let (first, last, step) = command.keys.range();
    reply.integer(first);
    reply.integer(last);
    reply.integer(step);
    reply.set(0);
    (0..3).for_each(|_| reply.array(0));
}

/// The sections of INFO that there are.
const SECTIONS: [&str; 7] =
    ["server", "clients", "memory", "persistence", "stats", "replication", "keyspace"];

impl<E: Engine> Store<E> {
    /// INFO [section ...]
    pub(crate) fn reply_info<R: Reply>(&self, arguments: &[&[u8]], reply: &mut R) -> Outcome {
        let all = ["default", "all", "everything"];
        let asked = |section: &str| {
            let named = |argument: &&[u8]| {
                arguments::is(argument, section) || all.iter().any(|all| arguments::is(argument, all))
            };
            arguments.len() == 1 || arguments[1..].iter().any(named)
        };
        let mut text = String::new();
        for section in SECTIONS.into_iter().filter(|section| asked(section)) {
            let separator = if text.is_empty() { "" } else { "\r\n" };
            let (initial, rest) = section.split_at(1);
            text += &format!("{separator}# {}{rest}\r\n", initial.to_ascii_uppercase());
            self.write_section(section, &mut text)?;
            if let Some(more) = &self.info_lines {
                more(section, &mut text);
            }
        }
        reply.bulk(text.as_bytes());
        Ok(())
    }

    fn write_section(&self, section: &str, text: &mut String) -> Outcome {
        match section {
            "server" => {
                *text += &format!("redis_version:{REDIS_VERSION}\r\nredis_mode:standalone\r\n");
                *text += &format!("geode_version:{}\r\n", env!("CARGO_PKG_VERSION"));
            }
            "memory" => {
                if let Some(bytes) = self.engine.memory_bytes() {
                    *text += &format!("used_memory:{bytes}\r\n");
                }
                let (limit, cold_keys) = self.engine.memory_limit().unwrap_or_default();
                *text += &format!("maxmemory:{limit}\r\nmaxmemory_policy:noeviction\r\n");
                *text += &format!("geode_cold_keys:{cold_keys}\r\n");
            }
            "replication" => {
                let others = self.engine.regions().saturating_sub(1);
                let sequence = self.engine.last_sequence();
                *text += &format!("role:master\r\nconnected_slaves:{others}\r\n");
                *text += &format!("geode_regions:{}\r\ngeode_last_sequence:{sequence}\r\n", others + 1);
            }
            "keyspace" => {
                for database in 0..DATABASES {
                    let keys = self.engine.view().key_count(database)?;
                    if keys > 0 {
                        *text += &format!("db{database}:keys={keys},expires=0,avg_ttl=0\r\n");
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}

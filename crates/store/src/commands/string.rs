//! Strings: GET, SET and their relatives.

use geode_crdt::{Folded, HybridTime, Kind};

use crate::arguments::{self, Distinct};
use crate::commands::expiry::{self, Unit};
use crate::context::{Context, ONLY};
use crate::effect::Lifetime;
use crate::errors::{self, Outcome};
use crate::reply::Reply;
use crate::view::{KeyView, View};

/// The longest string, as in Redis.
const LONGEST: usize = 512 << 20;

pub(crate) fn get<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    let value = c.string(arguments[1])?;
    c.reply_optional(value.as_ref());
    Ok(())
}

/// SET key value [NX | XX] [GET] [EX s | PX ms | EXAT s | PXAT ms | KEEPTTL]
pub(crate) fn set<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    let (name, value) = (arguments[1], arguments[2]);
    let options = SetOptions::parse(&arguments[3..], c.now)?;
    let old = if options.get { c.string(name)? } else { None };
    if let Some(condition) = options.condition {
        let exists = c.visible(name)?.is_some();
        if !c.conditions_allowed {
            return Err(errors::CONDITIONAL.into());
        }
        if exists != (condition == Condition::Exists) {
            c.reply_optional(old.as_ref());
            return Ok(());
        }
    }
    c.set_string(name, value, options.lifetime)?;
    if options.get {
        c.reply_optional(old.as_ref());
    } else {
        c.reply.simple("OK");
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Condition {
    Absent,
    Exists,
}

struct SetOptions {
    condition: Option<Condition>,
    get: bool,
    lifetime: Lifetime,
}

impl SetOptions {
    fn parse(mut arguments: &[&[u8]], now: HybridTime) -> Outcome<Self> {
        let mut options = Self { condition: None, get: false, lifetime: Lifetime::Never };
        while let Some((option, rest)) = arguments.split_first() {
            arguments = rest;
            if arguments::is(option, "get") {
                options.get = true;
            } else if arguments::is(option, "nx") && options.condition != Some(Condition::Exists) {
                options.condition = Some(Condition::Absent);
            } else if arguments::is(option, "xx") && options.condition != Some(Condition::Absent) {
                options.condition = Some(Condition::Exists);
            } else if arguments::is(option, "keepttl")
                && matches!(options.lifetime, Lifetime::Never | Lifetime::Keep)
            {
                options.lifetime = Lifetime::Keep;
            } else if let (Some(unit), Some((time, rest)), Lifetime::Never) =
                (Unit::parse(option), arguments.split_first(), options.lifetime)
            {
                options.lifetime = Lifetime::Until(expiry::new_deadline(time, unit, now, "set")?);
                arguments = rest;
            } else {
                return Err(errors::SYNTAX.into());
            }
        }
        Ok(options)
    }
}

pub(crate) fn set_nx<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    let exists = c.visible(arguments[1])?.is_some();
    if !c.conditions_allowed {
        return Err(errors::CONDITIONAL.into());
    }
    if !exists {
        c.set_string(arguments[1], arguments[2], Lifetime::Never)?;
    }
    c.reply.integer(i64::from(!exists));
    Ok(())
}

pub(crate) fn set_ex<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    set_for(c, arguments, Unit::Seconds, "setex")
}

pub(crate) fn p_set_ex<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    set_for(c, arguments, Unit::Milliseconds, "psetex")
}

fn set_for<V: View, R: Reply>(
    c: &mut Context<'_, V, R>,
    arguments: &[&[u8]],
    unit: Unit,
    command: &str,
) -> Outcome {
    let deadline = expiry::new_deadline(arguments[2], unit, c.now, command)?;
    c.set_string(arguments[1], arguments[3], Lifetime::Until(deadline))?;
    c.reply.simple("OK");
    Ok(())
}

pub(crate) fn get_set<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    let old = c.string(arguments[1])?;
    c.set_string(arguments[1], arguments[2], Lifetime::Never)?;
    c.reply_optional(old.as_ref());
    Ok(())
}

/// GETEX key [PERSIST | EX s | PX ms | EXAT s | PXAT ms]
pub(crate) fn get_ex<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    let name = arguments[1];
    let lifetime = match &arguments[2..] {
        [] => Lifetime::Keep,
        [option] if arguments::is(option, "persist") => Lifetime::Never,
        [option, time] => match Unit::parse(option) {
            Some(unit) => Lifetime::Until(expiry::new_deadline(time, unit, c.now, "getex")?),
            None => return Err(errors::SYNTAX.into()),
        },
        _ => return Err(errors::SYNTAX.into()),
    };
    let Some(key) = c.find(name, Kind::String)? else {
        c.reply.null();
        return Ok(());
    };
    let value = c.value(key, Kind::String, ONLY)?;
    match lifetime {
        Lifetime::Keep => {}
        Lifetime::Never => {
            c.persist(name, key);
        }
        Lifetime::Until(deadline) => c.expire_at(name, key, deadline)?,
    }
    c.reply_optional(value.as_ref());
    Ok(())
}

pub(crate) fn get_del<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    let value = c.string(arguments[1])?;
    if value.is_some() {
        c.delete(arguments[1])?;
    }
    c.reply_optional(value.as_ref());
    Ok(())
}

pub(crate) fn m_get<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    c.reply.array(arguments.len() - 1);
    for name in &arguments[1..] {
        let value = match c.visible(name)? {
            Some(key) if key.shown() == Some(Kind::String) => c.value(key, Kind::String, ONLY)?,
            _ => None,
        };
        c.reply_optional(value.as_ref());
    }
    Ok(())
}

pub(crate) fn m_set<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    let (pairs, rest) = arguments[1..].as_chunks::<2>();
    if !rest.is_empty() {
        return Err(errors::wrong_arity("mset").into());
    }
    let mut names = Distinct::new();
    // The last value of a key stands.
    for [name, value] in pairs.iter().rev() {
        if names.is_new(name) {
            c.set_string(name, value, Lifetime::Never)?;
        }
    }
    c.reply.simple("OK");
    Ok(())
}

/// The whole value is written anew, so of two concurrent appends the later one stands.
pub(crate) fn append<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    let (name, tail) = (arguments[1], arguments[2]);
    let cell = c.begin_cell_write(name, Kind::String, ONLY)?;
    let old = cell.and_then(|cell| c.fold(cell)).unwrap_or(Folded::Bytes(b""));
    let old = old.to_bytes();
    if old.len() + tail.len() > LONGEST {
        return Err(errors::TOO_LONG.into());
    }
    let value = [&*old, tail].concat();
    c.put_cell(name, Kind::String, ONLY, cell, &value);
    c.reply_count(value.len() as u64);
    Ok(())
}

pub(crate) fn str_len<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    let length = c.string(arguments[1])?.map_or(0, |value| value.to_bytes().len());
    c.reply_count(length as u64);
    Ok(())
}

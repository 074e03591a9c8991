//! Lifetimes: EXPIRE, TTL, PERSIST and their relatives.

use geode_crdt::{Deadline, HybridTime};

use crate::arguments;
use crate::context::{self, Context};
use crate::errors::{self, Outcome};
use crate::reply::Reply;
use crate::view::View;

/// How a command gives a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// From now on.
    Seconds,
    /// From now on.
    Milliseconds,
    /// Since the Unix epoch.
    SecondsAt,
    /// Since the Unix epoch.
    MillisecondsAt,
}

impl Unit {
    /// The options EX, PX, EXAT and PXAT.
    pub(crate) fn parse(option: &[u8]) -> Option<Self> {
        let units = [
            ("ex", Self::Seconds),
            ("px", Self::Milliseconds),
            ("exat", Self::SecondsAt),
            ("pxat", Self::MillisecondsAt),
        ];
        units.into_iter().find(|(name, _)| arguments::is(option, name)).map(|(_, unit)| unit)
    }

    /// The time in milliseconds since the epoch; `None` beyond the 64 bits that Redis has for it.
    fn deadline_ms(self, time: i64, now: HybridTime) -> Option<i64> {
        let time_ms = match self {
            Self::Seconds | Self::SecondsAt => time.checked_mul(1000)?,
            Self::Milliseconds | Self::MillisecondsAt => time,
        };
        match self {
            Self::Seconds | Self::Milliseconds => time_ms.checked_add(i64::try_from(now.as_millis()).ok()?),
            Self::SecondsAt | Self::MillisecondsAt => Some(time_ms),
        }
    }

    /// The deadline in microseconds. A relative one keeps those of `now`.
    fn deadline(self, time: i64, now: HybridTime) -> Option<HybridTime> {
        let deadline_ms = self.deadline_ms(time, now)?;
        let fraction = match self {
            Self::Seconds | Self::Milliseconds => now.0 % 1000,
            Self::SecondsAt | Self::MillisecondsAt => 0,
        };
        let whole = u64::try_from(deadline_ms).unwrap_or(0).saturating_mul(1000);
        // Below the value that stands for NEVER.
        Some(HybridTime(whole.saturating_add(fraction).min(u64::MAX - 1)))
    }
}

/// The deadline of a value that is being set: only positive times are valid.
pub(crate) fn new_deadline(time: &[u8], unit: Unit, now: HybridTime, command: &str) -> Outcome<HybridTime> {
    let time = arguments::integer(time)?;
    let deadline = (time > 0).then(|| unit.deadline(time, now)).flatten();
    deadline.ok_or_else(|| errors::invalid_expire(command).into())
}

pub(crate) fn expire<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    set_deadline(c, arguments, Unit::Seconds, "expire")
}

pub(crate) fn p_expire<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    set_deadline(c, arguments, Unit::Milliseconds, "pexpire")
}

pub(crate) fn expire_at<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    set_deadline(c, arguments, Unit::SecondsAt, "expireat")
}

pub(crate) fn p_expire_at<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    set_deadline(c, arguments, Unit::MillisecondsAt, "pexpireat")
}

fn set_deadline<V: View, R: Reply>(
    c: &mut Context<'_, V, R>,
    arguments: &[&[u8]],
    unit: Unit,
    command: &str,
) -> Outcome {
    let condition = Condition::parse(&arguments[3..])?;
    let time = arguments::integer(arguments[2])?;
    let deadline = unit.deadline(time, c.now).ok_or_else(|| errors::invalid_expire(command))?;
    let changed = match c.visible(arguments[1])? {
        Some(key) if condition.allows(context::expiry(key), deadline) => {
            c.expire_at(arguments[1], key, deadline)?;
            true
        }
        _ => false,
    };
    c.reply.integer(changed.into());
    Ok(())
}

/// When EXPIRE may replace a deadline.
#[derive(Clone, Copy, Debug, Default)]
struct Condition {
    nx: bool,
    xx: bool,
    gt: bool,
    lt: bool,
}

impl Condition {
    fn parse(options: &[&[u8]]) -> Outcome<Self> {
        let mut condition = Self::default();
        for option in options {
            let flags = [
                ("nx", &mut condition.nx),
                ("xx", &mut condition.xx),
                ("gt", &mut condition.gt),
                ("lt", &mut condition.lt),
            ];
            match flags.into_iter().find(|(name, _)| arguments::is(option, name)) {
                Some((_, flag)) => *flag = true,
                None => {
                    return Err(format!("ERR Unsupported option {}", errors::one_line(option, 128)).into());
                }
            }
        }
        if condition.nx && (condition.xx || condition.gt || condition.lt) {
            return Err(errors::EXPIRE_OPTIONS.into());
        }
        if condition.gt && condition.lt {
            return Err(errors::EXPIRE_GT_LT.into());
        }
        Ok(condition)
    }

    /// A key without a deadline counts as one that lives for ever.
    fn allows(self, current: Option<HybridTime>, new: HybridTime) -> bool {
        let blocked = (self.nx && current.is_some())
            || (self.xx && current.is_none())
            || (self.gt && current.is_none_or(|current| new <= current))
            || (self.lt && current.is_some_and(|current| new >= current));
        !blocked
    }
}

impl<'a, V: View, R: Reply> Context<'a, V, R> {
    /// EXPIRE of a visible key. A deadline that is not in the future is DEL.
    pub(crate) fn expire_at(&mut self, name: &[u8], key: V::Key<'a>, deadline: HybridTime) -> Outcome {
        if deadline <= self.now {
            self.delete_key(name, key)?;
        } else {
            self.put_deadline(name, Some(key), Deadline(deadline));
        }
        Ok(())
    }

    /// PERSIST of a visible key. Returns whether it had a deadline.
    pub(crate) fn persist(&mut self, name: &[u8], key: V::Key<'a>) -> bool {
        let had = context::expiry(key).is_some();
        if had {
            self.put_deadline(name, Some(key), Deadline::NEVER);
        }
        had
    }
}

pub(crate) fn persist<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    let had = match c.visible(arguments[1])? {
        Some(key) => c.persist(arguments[1], key),
        None => false,
    };
    c.reply.integer(had.into());
    Ok(())
}

pub(crate) fn ttl<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    // Redis rounds to the nearest second.
    reply_left(c, arguments[1], |left_ms| (left_ms + 500) / 1000)
}

pub(crate) fn p_ttl<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    reply_left(c, arguments[1], |left_ms| left_ms)
}

/// -2 without a key, -1 without a deadline.
fn reply_left<V: View, R: Reply>(
    c: &mut Context<'_, V, R>,
    name: &[u8],
    in_unit: impl Fn(u64) -> u64,
) -> Outcome {
    match c.visible(name)?.map(context::expiry) {
        None => c.reply.integer(-2),
        Some(None) => c.reply.integer(-1),
        Some(Some(deadline)) => {
            // Rounded up: a key that is told to live for 100 ms has 100 left at once, though hybrid time has moved.
            let left_ms = deadline.0.saturating_sub(c.now.0).div_ceil(1000);
            c.reply_count(in_unit(left_ms));
        }
    }
    Ok(())
}

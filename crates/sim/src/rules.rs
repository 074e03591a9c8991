//! The rules that can be judged from outside, by reading and by what was answered: the same for simulated planets and for
//! real processes.

use geode_store::conformance::Value;
use geode_store::conformance::oracle::{self, History, NEVER};

use crate::workload::RATES;

/// The rule that does not hold, and what was seen.
pub type Objection = (&'static str, String);

/// A key that the oracle follows reads, in a region at a time in microseconds, as history says. `read` runs a command.
pub fn key(
    history: &History,
    region: usize,
    key: &str,
    now: u64,
    mut read: impl FnMut(&str) -> Value,
) -> Option<Objection> {
    let expected = history.visible(region, key, now);
    let shown = oracle::read(key, &mut read);
    let left = read(&format!("PTTL {key}"));
    let left_ms = match &expected {
        None => -2,
        Some((.., NEVER)) => -1,
        Some((.., deadline)) => (deadline - now).div_ceil(1_000) as i64,
    };
    let expected = expected.map(|(kind, cells, _)| (kind, cells));
    (shown != expected || left != Value::Integer(left_ms))
        .then(|| ("oracle", format!("{key} reads {shown:?} with {left} ms, not {expected:?} with {left_ms}")))
}

/// What one transaction wrote is seen together. `get` reads a key's value.
pub fn transactions(mut get: impl FnMut(&str) -> Value) -> Option<Objection> {
    let both = (get("both:1"), get("both:2"));
    let accounts = (get("account:1"), get("account:2"));
    let number = |value: &Value| match value {
        Value::Bulk(bytes) => String::from_utf8_lossy(bytes).parse::<i64>().unwrap_or(i64::MIN),
        _ => 0,
    };
    let whole = both.0 == both.1 && number(&accounts.0).checked_add(number(&accounts.1)) == Some(0);
    (!whole).then(|| ("transactions", format!("they read {both:?} and {accounts:?}")))
}

/// No counter that always had a lifetime is without one. `left` answers PTTL.
pub fn lifetimes(mut left: impl FnMut(&str) -> Value) -> Option<Objection> {
    let endless = RATES.into_iter().find(|key| left(key) == Value::Integer(-1))?;
    Some(("lifetimes", format!("{endless} has lost its TTL")))
}

/// Nothing that was acknowledged is lost but what a crash may take. Returns how many writes that were.
///
/// # Errors
/// The first write that is lost and should not be.
pub fn durability<W: std::fmt::Display>(
    acknowledged: impl IntoIterator<Item = W>,
    is_held: impl Fn(&W) -> bool,
    was_on_other_disk: impl Fn(&W) -> bool,
    is_excused: impl Fn(&W) -> bool,
) -> Result<u64, Objection> {
    let mut lost = 0;
    for write in acknowledged.into_iter().filter(|write| !is_held(write)) {
        if was_on_other_disk(&write) {
            return Err(("durability", format!("{write} was on disk in two regions and is lost")));
        }
        if !is_excused(&write) {
            return Err(("durability", format!("{write} was acknowledged and is lost")));
        }
        lost += 1;
    }
    Ok(lost)
}

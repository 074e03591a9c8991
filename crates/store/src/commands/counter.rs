//! Counters: INCR and its relatives, in strings and in the fields of hashes.
//!
//! An increment writes this writer's own running total. Totals of different writers are added when the cell is read,
//! so every increment of every region counts once.

use geode_crdt::{Amount, CellRef, Folded, Kind, amount};

use crate::arguments;
use crate::context::{Context, ONLY};
use crate::errors::{self, Outcome};
use crate::reply::Reply;
use crate::view::View;

pub(crate) fn incr<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    add_integer(c, arguments[1], Kind::String, ONLY, 1)
}

pub(crate) fn decr<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    add_integer(c, arguments[1], Kind::String, ONLY, -1)
}

pub(crate) fn incr_by<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    let delta = arguments::integer(arguments[2])?;
    add_integer(c, arguments[1], Kind::String, ONLY, delta)
}

pub(crate) fn decr_by<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    let delta = arguments::integer(arguments[2])?.checked_neg().ok_or(errors::DECREMENT_OVERFLOW)?;
    add_integer(c, arguments[1], Kind::String, ONLY, delta)
}

pub(crate) fn h_incr_by<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    let delta = arguments::integer(arguments[3])?;
    add_integer(c, arguments[1], Kind::Hash, arguments[2], delta)
}

fn add_integer<V: View, R: Reply>(
    c: &mut Context<'_, V, R>,
    name: &[u8],
    kind: Kind,
    element: &[u8],
    delta: i64,
) -> Outcome {
    let cell = c.begin_cell_write(name, kind, element)?;
    let not_an_integer =
        if kind == Kind::Hash { errors::HASH_NOT_AN_INTEGER } else { errors::NOT_AN_INTEGER };
    let value = cell.and_then(|cell| c.fold(cell)).unwrap_or(Folded::Integer(0));
    let value = as_integer(&value).ok_or(not_an_integer)?;
    let sum = value.checked_add(delta).ok_or(errors::OVERFLOW)?;
    c.add_to_run(name, kind, element, cell, Amount::Integer(delta.into()));
    c.reply.integer(sum);
    Ok(())
}

/// Floats are 64-bit here; Redis's are as wide as its platform's `long double`.
pub(crate) fn incr_by_float<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    let (name, operand) = (arguments[1], arguments[2]);
    let cell = c.begin_cell_write(name, Kind::String, ONLY)?;
    let value = cell.and_then(|cell| c.fold(cell)).unwrap_or(Folded::Integer(0));
    let sum = finite_float(&value.to_bytes())? + finite_float(operand)?;
    if !sum.is_finite() {
        return Err(errors::NOT_FINITE.into());
    }
    // Whole numbers stay exact as long as they fit.
    let exact = as_integer(&value).zip(amount::parse_integer(operand));
    let exact = exact.and_then(|(value, delta)| Some((value.checked_add(delta)?, delta)));
    let (delta, sum) = match exact {
        Some((sum, delta)) => (Amount::Integer(delta.into()), Folded::Integer(sum)),
        None => (Amount::Float(finite_float(operand)?), Folded::Float(sum)),
    };
    c.add_to_run(name, Kind::String, ONLY, cell, delta);
    c.reply_value(&sum);
    Ok(())
}

/// What INCR takes for an integer. A float that is whole prints as one.
fn as_integer(value: &Folded<'_>) -> Option<i64> {
    match value {
        Folded::Integer(integer) => Some(*integer),
        Folded::Bytes(bytes) => amount::parse_integer(bytes),
        Folded::Float(_) => amount::parse_integer(&value.to_bytes()),
    }
}

fn finite_float(text: &[u8]) -> Outcome<f64> {
    if let Some(value) = amount::parse_float(text) {
        return Ok(value);
    }
    let infinite = std::str::from_utf8(text).ok().and_then(|text| text.parse::<f64>().ok());
    let infinite = infinite.is_some_and(f64::is_infinite);
    Err(if infinite { errors::NOT_FINITE } else { errors::NOT_A_FLOAT }.into())
}

impl<V: View, R: Reply> Context<'_, V, R> {
    /// *Increment*: extends this writer's run if anything of it is live, otherwise starts a new one, so that a cancel
    /// of the old run takes nothing from the new.
    fn add_to_run(
        &mut self,
        name: &[u8],
        kind: Kind,
        element: &[u8],
        observed: Option<CellRef<'_>>,
        delta: Amount,
    ) {
        let own = self.entry.writer();
        let run = observed.into_iter().flat_map(CellRef::live_runs).find(|(run, _)| run.actor == own);
        let (start, total) = match run {
            Some((run, _)) => (Some(run.start), run.total.plus(delta)),
            None => (None, delta),
        };
        if total.as_f64().is_finite() {
            self.entry.sum(self.name(name), kind, element, start, total);
        } else {
            self.put_sum(name, kind, element, observed, delta);
        }
    }

    /// An infinite total cannot be cancelled by subtraction, so the finite value it stands for is put instead.
    fn put_sum(
        &mut self,
        name: &[u8],
        kind: Kind,
        element: &[u8],
        observed: Option<CellRef<'_>>,
        delta: Amount,
    ) {
        let value = observed.and_then(|cell| cell.fold(self.view.actors()));
        let value = value.and_then(|value| amount::parse_float(&value.to_bytes())).unwrap_or(0.0);
        let sum = Folded::Float(value + delta.as_f64());
        self.put_cell(name, kind, element, observed, &sum.to_bytes());
    }
}

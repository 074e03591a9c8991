//! Sets. An add wins over a concurrent remove, because a remove takes only the rows it saw.

use std::collections::BTreeSet;

use geode_crdt::{CellRef, Kind};

use crate::arguments::{self, Distinct};
use crate::context::{Context, live_cell};
use crate::errors::{self, Outcome};
use crate::reply::Reply;
use crate::view::{KeyView, View};

/// The most members that SRANDMEMBER repeats: it can ask for more than the set holds, so for any amount of memory.
const MOST_REPEATED: u64 = 1 << 24;

/// A member that is there is written too, so that the add wins.
pub(crate) fn add<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    let key = c.begin_write(arguments[1], Kind::Set)?;
    let mut members = Distinct::new();
    let mut added = 0;
    for member in &arguments[2..] {
        if !members.is_new(member) {
            continue;
        }
        let cell = match key {
            Some(key) => live_cell(key, Kind::Set, member)?,
            None => None,
        };
        added += u64::from(cell.is_none());
        c.put_cell(arguments[1], Kind::Set, member, cell, b"");
    }
    c.reply_count(added);
    Ok(())
}

pub(crate) fn remove<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    let removed = c.remove_elements(arguments[1], Kind::Set, &arguments[2..])?;
    c.reply_count(removed);
    Ok(())
}

impl<V: View, R: Reply> Context<'_, V, R> {
    /// SREM and HDEL: clears the elements that are there and returns their number.
    pub(crate) fn remove_elements(&mut self, name: &[u8], kind: Kind, elements: &[&[u8]]) -> Outcome<u64> {
        let Some(key) = self.find(name, kind)? else { return Ok(0) };
        let mut distinct = Distinct::new();
        let mut removed = 0;
        for element in elements {
            if distinct.is_new(element)
                && let Some(cell) = live_cell(key, kind, element)?
            {
                self.clear_cell(name, kind, element, cell);
                removed += 1;
            }
        }
        self.end_removal(name, key, kind, removed)?;
        Ok(removed)
    }
}

pub(crate) fn is_member<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    let is_member = match c.find(arguments[1], Kind::Set)? {
        Some(key) => live_cell(key, Kind::Set, arguments[2])?.is_some(),
        None => false,
    };
    c.reply.integer(is_member.into());
    Ok(())
}

pub(crate) fn are_members<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    let key = c.find(arguments[1], Kind::Set)?;
    c.reply.array(arguments.len() - 2);
    for member in &arguments[2..] {
        let is_member = match key {
            Some(key) => live_cell(key, Kind::Set, member)?.is_some(),
            None => false,
        };
        c.reply.integer(is_member.into());
    }
    Ok(())
}

pub(crate) fn members<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    let Some(key) = c.find(arguments[1], Kind::Set)? else {
        c.reply.set(0);
        return Ok(());
    };
    c.reply.set(key.live_cells(Kind::Set) as usize);
    for (member, _) in key.cells(Kind::Set)? {
        c.reply.bulk(member);
    }
    Ok(())
}

pub(crate) fn cardinality<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    let count = c.find(arguments[1], Kind::Set)?.map_or(0, |key| key.live_cells(Kind::Set));
    c.reply_count(count);
    Ok(())
}

/// SPOP key [count]
pub(crate) fn pop<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    let count = match &arguments[2..] {
        [] => None,
        [count] => Some(arguments::count(count)?),
        _ => return Err(errors::SYNTAX.into()),
    };
    let key = c.find(arguments[1], Kind::Set)?;
    let picked = match key {
        Some(key) => pick(c, key, count.unwrap_or(1))?,
        None => Vec::new(),
    };
    match count {
        None if picked.is_empty() => c.reply.null(),
        None => {}
        Some(_) => c.reply.set(picked.len()),
    }
    for (member, cell) in &picked {
        c.clear_cell(arguments[1], Kind::Set, member, *cell);
        c.reply.bulk(member);
    }
    if let Some(key) = key {
        c.end_removal(arguments[1], key, Kind::Set, picked.len() as u64)?;
    }
    Ok(())
}

/// SRANDMEMBER key [count]; a negative count may repeat members.
pub(crate) fn random_member<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    let count = match &arguments[2..] {
        [] => None,
        [count] => Some(arguments::integer(count)?),
        _ => return Err(errors::SYNTAX.into()),
    };
    if count.is_some_and(|count| count < 0 && count.unsigned_abs() > MOST_REPEATED) {
        return Err(errors::TOO_MANY_REPEATED.into());
    }
    let Some(key) = c.find(arguments[1], Kind::Set)? else {
        match count {
            None => c.reply.null(),
            Some(_) => c.reply.array(0),
        }
        return Ok(());
    };
    let picked = match count {
        Some(count) if count < 0 => pick_repeatedly(c, key, count.unsigned_abs())?,
        count => pick(c, key, count.map_or(1, i64::unsigned_abs))?,
    };
    if count.is_some() {
        c.reply.array(picked.len());
    }
    for (member, _) in picked {
        c.reply.bulk(member);
    }
    Ok(())
}

type Picked<'a> = Vec<(&'a [u8], CellRef<'a>)>;

/// `count` different members at random, or all of them.
fn pick<'a, V: View, R: Reply>(
    c: &mut Context<'a, V, R>,
    key: V::Key<'a>,
    count: u64,
) -> Outcome<Picked<'a>> {
    let all = key.live_cells(Kind::Set);
    if count >= all {
        return Ok(key.cells(Kind::Set)?.collect());
    }
    // Floyd's sampling: `count` draws give `count` different numbers (Bentley, "Programming Pearls", CACM 9/1987).
    let mut drawn = BTreeSet::new();
    for last in all - count..all {
        let number = c.random.below(last + 1);
        if !drawn.insert(number) {
            drawn.insert(last);
        }
    }
    let mut picked = Vec::with_capacity(drawn.len());
    for number in drawn {
        picked.extend(key.nth_cell(Kind::Set, number)?);
    }
    Ok(picked)
}

fn pick_repeatedly<'a, V: View, R: Reply>(
    c: &mut Context<'a, V, R>,
    key: V::Key<'a>,
    count: u64,
) -> Outcome<Picked<'a>> {
    let all = key.live_cells(Kind::Set);
    let mut picked = Vec::with_capacity(count as usize);
    for _ in 0..count {
        picked.extend(key.nth_cell(Kind::Set, c.random.below(all))?);
    }
    Ok(picked)
}

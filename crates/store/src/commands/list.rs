//! Lists: every element is a cell whose name is its position ([`crate::position`]). A pop clears what it saw, so two
//! regions that pop at once may both get an element: at least once, stated in the contract.

use std::ops::Range;

use geode_crdt::Kind;

use crate::arguments;
use crate::context::Context;
use crate::errors::{self, Outcome};
use crate::position;
use crate::reply::Reply;
use crate::view::{KeyView, View};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Left,
    Right,
}

pub(crate) fn push_left<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    push(c, arguments, End::Left)
}

pub(crate) fn push_right<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    push(c, arguments, End::Right)
}

fn push<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]], end: End) -> Outcome {
    let (name, elements) = (arguments[1], &arguments[2..]);
    let key = c.begin_write(name, Kind::List)?;
    let prefix = match key {
        None => 0,
        Some(key) => {
            let mut cells = key.cells(Kind::List)?;
            let outermost = if end == End::Left { cells.next() } else { cells.next_back() };
            let prefix = outermost.map_or(0, |(position, _)| position::prefix(position));
            if end == End::Left { prefix.saturating_sub(1) } else { prefix.saturating_add(1) }
        }
    };
    // Ordinals follow the order of the list: LPUSH writes its last argument first.
    for index in 0..elements.len() {
        let element = elements[if end == End::Left { elements.len() - 1 - index } else { index }];
        let position = position::position(prefix, c.entry.next_dot(), c.view.actors());
        c.put_cell(name, Kind::List, &position, None, element);
    }
    c.reply_count(key.map_or(0, |key| key.live_cells(Kind::List)) + elements.len() as u64);
    Ok(())
}

pub(crate) fn pop_left<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    pop(c, arguments, End::Left)
}

pub(crate) fn pop_right<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    pop(c, arguments, End::Right)
}

/// LPOP key [count]
fn pop<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]], end: End) -> Outcome {
    let count = match &arguments[2..] {
        [] => None,
        [count] => Some(arguments::count(count)?),
        _ => {
            let name = if end == End::Left { "lpop" } else { "rpop" };
            return Err(errors::wrong_arity(name).into());
        }
    };
    let Some(key) = c.find(arguments[1], Kind::List)? else {
        match count {
            None => c.reply.null(),
            Some(_) => c.reply.null_array(),
        }
        return Ok(());
    };
    let popped = count.unwrap_or(1).min(key.live_cells(Kind::List));
    if count.is_some() {
        c.reply.array(popped as usize);
    }
    let mut cells = key.cells(Kind::List)?;
    for _ in 0..popped {
        let cell = if end == End::Left { cells.next() } else { cells.next_back() };
        let Some((position, cell)) = cell else { break };
        let value = c.fold(cell);
        c.reply_optional(value.as_ref());
        c.clear_cell(arguments[1], Kind::List, position, cell);
    }
    c.end_removal(arguments[1], key, Kind::List, popped)?;
    Ok(())
}

pub(crate) fn range<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    let (start, stop) = (arguments::integer(arguments[2])?, arguments::integer(arguments[3])?);
    let Some(key) = c.find(arguments[1], Kind::List)? else {
        c.reply.array(0);
        return Ok(());
    };
    let length = key.live_cells(Kind::List) as usize;
    let range = resolve(start, stop, length);
    c.reply.array(range.len());
    let mut cells = key.cells(Kind::List)?;
    // From the nearer end.
    if range.start <= length - range.end {
        for (_, cell) in cells.skip(range.start).take(range.len()) {
            let value = c.fold(cell);
            c.reply_optional(value.as_ref());
        }
    } else {
        let mut wanted = Vec::with_capacity(range.len());
        for _ in range.end..length {
            cells.next_back();
        }
        wanted.extend(cells.rev().take(range.len()));
        for (_, cell) in wanted.into_iter().rev() {
            let value = c.fold(cell);
            c.reply_optional(value.as_ref());
        }
    }
    Ok(())
}

pub(crate) fn length<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    let length = c.find(arguments[1], Kind::List)?.map_or(0, |key| key.live_cells(Kind::List));
    c.reply_count(length);
    Ok(())
}

pub(crate) fn index<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    let index = arguments::integer(arguments[2])?;
    let value = match c.find(arguments[1], Kind::List)? {
        Some(key) => {
            let mut cells = key.cells(Kind::List)?;
            let distance = usize::try_from(index.unsigned_abs()).unwrap_or(usize::MAX);
            let cell = if index < 0 { cells.nth_back(distance - 1) } else { cells.nth(distance) };
            cell.and_then(|(_, cell)| c.fold(cell))
        }
        None => None,
    };
    c.reply_optional(value.as_ref());
    Ok(())
}

/// Clears what lies outside the range.
pub(crate) fn trim<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    let (start, stop) = (arguments::integer(arguments[2])?, arguments::integer(arguments[3])?);
    if let Some(key) = c.find(arguments[1], Kind::List)? {
        let length = key.live_cells(Kind::List) as usize;
        let kept = resolve(start, stop, length);
        let mut cells = key.cells(Kind::List)?;
        for (position, cell) in cells.by_ref().take(kept.start) {
            c.clear_cell(arguments[1], Kind::List, position, cell);
        }
        for (position, cell) in cells.rev().take(length - kept.end) {
            c.clear_cell(arguments[1], Kind::List, position, cell);
        }
        c.end_removal(arguments[1], key, Kind::List, (length - kept.len()) as u64)?;
    }
    c.reply.simple("OK");
    Ok(())
}

/// The indexes from `start` to `stop`, both included, both counted from the tail if negative. An empty range is
/// `length..length`.
fn resolve(start: i64, stop: i64, length: usize) -> Range<usize> {
    let from_head = |index: i64| if index < 0 { index.saturating_add(length as i64) } else { index };
    let start = from_head(start).max(0) as usize;
    let end = from_head(stop).saturating_add(1).clamp(0, length as i64) as usize;
    if start < end { start..end } else { length..length }
}

//! Hashes: every field is a cell of its own, so concurrent writes of different fields do not meet.

use geode_crdt::Kind;

use crate::arguments::Distinct;
use crate::context::{Context, live_cell};
use crate::errors::{self, Outcome};
use crate::reply::Reply;
use crate::view::{KeyView, View};

pub(crate) fn set<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    let (pairs, rest) = arguments[2..].as_chunks::<2>();
    if !rest.is_empty() {
        return Err(errors::wrong_arity("hset").into());
    }
    let key = c.begin_write(arguments[1], Kind::Hash)?;
    let mut fields = Distinct::new();
    let mut added = 0;
    // The last value of a field stands.
    for [field, value] in pairs.iter().rev() {
        if !fields.is_new(field) {
            continue;
        }
        let cell = match key {
            Some(key) => live_cell(key, Kind::Hash, field)?,
            None => None,
        };
        added += u64::from(cell.is_none());
        c.put_cell(arguments[1], Kind::Hash, field, cell, value);
    }
    c.reply_count(added);
    Ok(())
}

pub(crate) fn get<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    let value = match c.find(arguments[1], Kind::Hash)? {
        Some(key) => c.value(key, Kind::Hash, arguments[2])?,
        None => None,
    };
    c.reply_optional(value.as_ref());
    Ok(())
}

pub(crate) fn m_get<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    let key = c.find(arguments[1], Kind::Hash)?;
    c.reply.array(arguments.len() - 2);
    for field in &arguments[2..] {
        let value = match key {
            Some(key) => c.value(key, Kind::Hash, field)?,
            None => None,
        };
        c.reply_optional(value.as_ref());
    }
    Ok(())
}

pub(crate) fn get_all<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    let Some(key) = c.find(arguments[1], Kind::Hash)? else {
        c.reply.map(0);
        return Ok(());
    };
    c.reply.map(key.live_cells(Kind::Hash) as usize);
    for (field, cell) in key.cells(Kind::Hash)? {
        c.reply.bulk(field);
        let value = c.fold(cell);
        c.reply_optional(value.as_ref());
    }
    Ok(())
}

pub(crate) fn delete<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    let removed = c.remove_elements(arguments[1], Kind::Hash, &arguments[2..])?;
    c.reply_count(removed);
    Ok(())
}

pub(crate) fn exists<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    let exists = match c.find(arguments[1], Kind::Hash)? {
        Some(key) => live_cell(key, Kind::Hash, arguments[2])?.is_some(),
        None => false,
    };
    c.reply.integer(exists.into());
    Ok(())
}

pub(crate) fn length<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    let count = c.find(arguments[1], Kind::Hash)?.map_or(0, |key| key.live_cells(Kind::Hash));
    c.reply_count(count);
    Ok(())
}

pub(crate) fn fields<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    let Some(key) = c.find(arguments[1], Kind::Hash)? else {
        c.reply.array(0);
        return Ok(());
    };
    c.reply.array(key.live_cells(Kind::Hash) as usize);
    for (field, _) in key.cells(Kind::Hash)? {
        c.reply.bulk(field);
    }
    Ok(())
}

pub(crate) fn values<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    let Some(key) = c.find(arguments[1], Kind::Hash)? else {
        c.reply.array(0);
        return Ok(());
    };
    c.reply.array(key.live_cells(Kind::Hash) as usize);
    for (_, cell) in key.cells(Kind::Hash)? {
        let value = c.fold(cell);
        c.reply_optional(value.as_ref());
    }
    Ok(())
}

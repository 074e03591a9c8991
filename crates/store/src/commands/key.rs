//! Keys of any type: DEL, EXISTS, TYPE, RENAME, and the ones that look at all keys.

use geode_crdt::{Deadline, Kind};

use crate::arguments::{self, Distinct};
use crate::context::{self, Context};
use crate::errors::{self, Outcome};
use crate::glob;
use crate::reply::Reply;
use crate::view::{KeyView, Loaded, View};

pub(crate) fn del<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    let mut names = Distinct::new();
    let mut deleted = 0;
    for name in &arguments[1..] {
        if names.is_new(name) {
            deleted += u64::from(c.delete(name)?);
        }
    }
    c.reply_count(deleted);
    Ok(())
}

pub(crate) fn exists<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    let mut count = 0;
    for name in &arguments[1..] {
        count += u64::from(c.visible(name)?.is_some());
    }
    c.reply_count(count);
    Ok(())
}

pub(crate) fn type_of<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    let kind = c.visible(arguments[1])?.and_then(KeyView::shown);
    c.reply.simple(kind.map_or("none", Kind::name));
    Ok(())
}

/// The source goes as by DEL; what users saw of it is written anew at the target. So an increment that another region
/// makes meanwhile stays at the source.
pub(crate) fn rename<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    let (source, target) = (arguments[1], arguments[2]);
    let key = c.visible(source)?;
    let Some((key, kind)) = key.and_then(|key| Some((key, key.shown()?))) else {
        return Err(errors::NO_SUCH_KEY.into());
    };
    if source != target {
        let replaced = c.view.key(c.name(target))?;
        if let Some(replaced) = replaced {
            c.clear_data(target, replaced, None)?;
        }
        c.delete_key(source, key)?;
        c.put_deadline(target, replaced, context::deadline(key).unwrap_or(Deadline::NEVER));
        for (element, cell) in key.cells(kind)? {
            if let Some(value) = c.fold(cell) {
                // Nothing is observed any more: the target was cleared.
                c.put_cell(target, kind, element, None, &value.to_bytes());
            }
        }
    }
    c.reply.simple("OK");
    Ok(())
}

/// Keys that one step of KEYS visits.
const STEP: usize = 4096;

pub(crate) fn keys<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    let mut found = Vec::new();
    let mut cursor = 0;
    loop {
        let visible = |name: &[u8], _: Kind| glob::matches(arguments[1], name);
        cursor = c.collect_keys(cursor, STEP, &mut found, visible)?;
        if cursor == 0 {
            break;
        }
    }
    // A table that grows between two steps may show a key twice.
    found.sort_unstable();
    found.dedup();
    c.reply_names(&found);
    Ok(())
}

/// One step of KEYS where not all names are in memory at once.
pub(crate) fn list<V: View, R: Reply>(
    c: &Context<'_, V, R>,
    arguments: &[&[u8]],
    cursor: u64,
    found: &mut Vec<Box<[u8]>>,
) -> Loaded<u64> {
    let mut names = Vec::new();
    let next = c.collect_keys(cursor, STEP, &mut names, |name, _| glob::matches(arguments[1], name))?;
    found.extend(names.into_iter().map(Box::from));
    Ok(next)
}

/// SCAN cursor [MATCH pattern] [COUNT count] [TYPE type]
pub(crate) fn scan<V: View, R: Reply>(c: &mut Context<'_, V, R>, arguments: &[&[u8]]) -> Outcome {
    let cursor = std::str::from_utf8(arguments[1]).ok().and_then(|text| text.parse().ok());
    let cursor = cursor.ok_or(errors::INVALID_CURSOR)?;
    let (mut pattern, mut count, mut kind) = (None, 10, None);
    let (options, rest) = arguments[2..].as_chunks::<2>();
    for [option, value] in options {
        if arguments::is(option, "match") {
            pattern = Some(*value);
        } else if arguments::is(option, "count") {
            count = usize::try_from(arguments::integer(value)?).unwrap_or(0);
        } else if arguments::is(option, "type") {
            kind = Some(*value);
        } else {
            return Err(errors::SYNTAX.into());
        }
    }
    if !rest.is_empty() || count == 0 {
        return Err(errors::SYNTAX.into());
    }
    let mut found = Vec::new();
    let wanted = |name: &[u8], shown: Kind| {
        kind.is_none_or(|kind| arguments::is(kind, shown.name()))
            && pattern.is_none_or(|pattern| glob::matches(pattern, name))
    };
    let next = c.collect_keys(cursor, count.min(STEP), &mut found, wanted)?;
    c.reply.array(2);
    c.reply.bulk(itoa::Buffer::new().format(next).as_bytes());
    c.reply_names(&found);
    Ok(())
}

pub(crate) fn db_size<V: View, R: Reply>(c: &mut Context<'_, V, R>, _: &[&[u8]]) -> Outcome {
    let count = c.view.key_count(c.database)?;
    c.reply_count(count);
    Ok(())
}

impl<'a, V: View, R: Reply> Context<'a, V, R> {
    /// One step over the keys that users see.
    fn collect_keys(
        &self,
        cursor: u64,
        count: usize,
        found: &mut Vec<&'a [u8]>,
        wanted: impl Fn(&[u8], Kind) -> bool,
    ) -> Loaded<u64> {
        self.view.scan(self.database, cursor, count, |name, key| {
            if key.shown().is_some_and(|kind| wanted(name, kind)) && !self.is_expired(key) {
                found.push(name);
            }
        })
    }

    fn reply_names(&mut self, names: &[&[u8]]) {
        self.reply.array(names.len());
        for name in names {
            self.reply.bulk(name);
        }
    }

    /// DEL of about `count` keys from `cursor` on. Returns the next cursor, 0 at the end.
    pub(crate) fn clear_keys(&mut self, cursor: u64, count: usize) -> Outcome<u64> {
        let (view, database) = (self.view, self.database);
        let mut outcome = Ok(());
        let next = view.scan(database, cursor, count, |name, key| {
            if outcome.is_ok() {
                outcome = self.delete_key(name, key).map(drop);
            }
        })?;
        outcome.map(|()| next)
    }
}

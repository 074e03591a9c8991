//! What a command function works with: the rows, the open entry, the reply, the time.

use geode_crdt::{CellRef, Deadline, Folded, FrameBuilder, HybridTime, KeyName, Kind};

use crate::errors::{self, Outcome};
use crate::random::Random;
use crate::reply::Reply;
use crate::view::{KeyView, Loaded, View};

/// Everything that a command function touches. A read leaves the entry alone (none is open then).
pub(crate) struct Context<'a, V, R> {
    /// The rows as they were before this command.
    pub(crate) view: &'a V,
    /// The open entry; operations added to it become visible after this command.
    pub(crate) entry: &'a mut FrameBuilder,
    /// Exactly one reply.
    pub(crate) reply: &'a mut R,
    /// The entry's time, or the time of the read.
    pub(crate) now: HybridTime,
    /// The selected database.
    pub(crate) database: u8,
    /// For random picks.
    pub(crate) random: &'a mut Random,
    /// Whether a condition on a key may decide a write.
    pub(crate) conditions_allowed: bool,
}

/// The element of the kinds that have only one cell.
pub(crate) const ONLY: &[u8] = b"";

impl<'a, V: View, R: Reply> Context<'a, V, R> {
    /// A key of the selected database.
    pub(crate) const fn name<'n>(&self, name: &'n [u8]) -> KeyName<'n> {
        KeyName { database: self.database, name }
    }

    /// The key if users see it: some data is live and its deadline has not passed.
    pub(crate) fn visible(&self, name: &[u8]) -> Outcome<Option<V::Key<'a>>> {
        let key = self.view.key(self.name(name))?;
        Ok(key.filter(|key| self.is_visible(*key)))
    }

    /// The key if users see it and it is of this type; an error if it is of another.
    pub(crate) fn find(&self, name: &[u8], kind: Kind) -> Outcome<Option<V::Key<'a>>> {
        let Some(key) = self.view.key(self.name(name))? else { return Ok(None) };
        let Some(shown) = key.shown() else { return Ok(None) };
        if self.is_expired(key) {
            return Ok(None);
        }
        if shown == kind { Ok(Some(key)) } else { Err(errors::WRONG_TYPE.into()) }
    }

    /// The string at a key, an error if it is of another type.
    pub(crate) fn string(&self, name: &[u8]) -> Outcome<Option<Folded<'a>>> {
        match self.find(name, Kind::String)? {
            Some(key) => Ok(self.value(key, Kind::String, ONLY)?),
            None => Ok(None),
        }
    }

    /// The value of a cell as users read it, `None` if nothing in it is live.
    pub(crate) fn value(&self, key: V::Key<'a>, kind: Kind, element: &[u8]) -> Loaded<Option<Folded<'a>>> {
        let cell = live_cell(key, kind, element)?;
        Ok(cell.and_then(|cell| self.fold(cell)))
    }

    /// [`CellRef::fold`] with the actors of this store.
    pub(crate) fn fold(&self, cell: CellRef<'a>) -> Option<Folded<'a>> {
        cell.fold(self.view.actors())
    }

    /// Whether some data is live and not expired.
    pub(crate) fn is_visible(&self, key: V::Key<'a>) -> bool {
        key.shown().is_some() && !self.is_expired(key)
    }

    /// Whether the deadline has passed at this command's time.
    pub(crate) fn is_expired(&self, key: V::Key<'a>) -> bool {
        deadline(key).is_some_and(|deadline| deadline.passed_at(self.now))
    }

    /// Replies a value as the bulk string that Redis would hold. Allocates for floats only.
    pub(crate) fn reply_value(&mut self, value: &Folded<'_>) {
        match value {
            Folded::Bytes(bytes) => self.reply.bulk(bytes),
            Folded::Integer(integer) => self.reply.bulk(itoa::Buffer::new().format(*integer).as_bytes()),
            Folded::Float(_) => self.reply.bulk(&value.to_bytes()),
        }
    }

    /// Replies a value, or null where there is none.
    pub(crate) fn reply_optional(&mut self, value: Option<&Folded<'_>>) {
        match value {
            Some(value) => self.reply_value(value),
            None => self.reply.null(),
        }
    }

    /// Replies a count.
    pub(crate) fn reply_count(&mut self, count: u64) {
        self.reply.integer(i64::try_from(count).unwrap_or(i64::MAX));
    }
}

/// A cell if something in it is live. Asks for nothing if the key has no cell of the kind.
pub(crate) fn live_cell<'v>(
    key: impl KeyView<'v>,
    kind: Kind,
    element: &[u8],
) -> Loaded<Option<CellRef<'v>>> {
    if key.live_cells(kind) == 0 {
        return Ok(None);
    }
    Ok(key.cell(kind, element)?.filter(|cell| cell.is_live()))
}

/// The fold of the TTL cell: the greatest deadline, NEVER above all. `None` if there is no TTL row.
pub(crate) fn deadline<'v>(key: impl KeyView<'v>) -> Option<Deadline> {
    key.deadlines().map(|(_, deadline)| deadline).max()
}

/// When the key will expire, `None` if it will not.
pub(crate) fn expiry<'v>(key: impl KeyView<'v>) -> Option<HybridTime> {
    deadline(key).filter(|deadline| *deadline != Deadline::NEVER).map(|deadline| deadline.0)
}

//! The rules by which commands write rows, each in one place: clear, put, begin, delete, deadlines.

use geode_crdt::{CellRef, Deadline, Dot, HybridTime, Kind};

use crate::context::{Context, ONLY, deadline, live_cell};
use crate::engine::Extent;
use crate::errors::{self, Outcome};
use crate::reply::Reply;
use crate::view::{KeyView, Loaded, View};

/// How long a string that is set shall live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lifetime {
    /// Until it is deleted: what a plain SET means.
    Never,
    /// Until this time.
    Until(HybridTime),
    /// As long as the key lives anyhow.
    Keep,
}

impl<'a, V: View, R: Reply> Context<'a, V, R> {
    /// *Clear*: removes the put rows and cancels the live amounts that are observed in a cell. What others write to
    /// it meanwhile stays.
    pub(crate) fn clear_cell(&mut self, name: &[u8], kind: Kind, element: &[u8], observed: CellRef<'_>) {
        let key = self.name(name);
        for put in observed.puts() {
            self.entry.remove(key, kind, element, put.dot);
        }
        self.cancel_amounts(name, kind, element, observed);
    }

    /// Clears a cell and puts a value in it.
    pub(crate) fn put_cell(
        &mut self,
        name: &[u8],
        kind: Kind,
        element: &[u8],
        observed: Option<CellRef<'_>>,
        value: &[u8],
    ) {
        if let Some(cell) = observed {
            self.cancel_amounts(name, kind, element, cell);
        }
        self.entry.put(self.name(name), kind, element, value, put_dots(observed));
    }

    /// A cancel row for each live amount observed: what the increments had reached.
    fn cancel_amounts(&mut self, name: &[u8], kind: Kind, element: &[u8], observed: CellRef<'_>) {
        let key = self.name(name);
        for (run, _) in observed.live_runs() {
            self.entry.cancel(key, kind, element, run.actor, run.last, run.total);
        }
    }

    /// Clears every data cell of a key but those of one kind.
    pub(crate) fn clear_data(&mut self, name: &[u8], key: V::Key<'a>, kept: Option<Kind>) -> Loaded<()> {
        for kind in Kind::DATA {
            if Some(kind) == kept || key.live_cells(kind) == 0 {
                continue;
            }
            for (element, cell) in key.cells(kind)? {
                self.clear_cell(name, kind, element, cell);
            }
        }
        Ok(())
    }

    /// Begins a write of one type: an error if users see another. Returns the key if it is there.
    ///
    /// Cells of hidden types are cleared, or they would reappear after this type's last element is gone. A key that is
    /// absent or expired is *created*: what is left of it is cleared, its TTL rows are replaced by NEVER (without which
    /// it would inherit a concurrent EXPIRE and vanish), and `None` is returned.
    pub(crate) fn begin_write(&mut self, name: &[u8], kind: Kind) -> Outcome<Option<V::Key<'a>>> {
        let observed = self.view.key(self.name(name))?;
        if let Some(key) = observed
            && let Some(shown) = key.shown()
            && !self.is_expired(key)
        {
            if shown != kind {
                return Err(errors::WRONG_TYPE.into());
            }
            self.clear_data(name, key, Some(kind))?;
            return Ok(Some(key));
        }
        if let Some(key) = observed {
            self.clear_data(name, key, None)?;
        }
        self.put_deadline(name, observed, Deadline::NEVER);
        Ok(None)
    }

    /// [`Self::begin_write`] for one element. Returns its cell if something in it is live.
    pub(crate) fn begin_cell_write(
        &mut self,
        name: &[u8],
        kind: Kind,
        element: &[u8],
    ) -> Outcome<Option<CellRef<'a>>> {
        match self.begin_write(name, kind)? {
            Some(key) => Ok(live_cell(key, kind, element)?),
            None => Ok(None),
        }
    }

    /// Ends a command that removed `removed` live cells of the shown type from a key.
    ///
    /// Hidden types go with it, as with every data write. If nothing stays, so do the NEVER rows: they say nothing about
    /// a key without data. Deadlines stay until the sweep, or a concurrent INCR would survive without its TTL.
    pub(crate) fn end_removal(
        &mut self,
        name: &[u8],
        key: V::Key<'a>,
        kind: Kind,
        removed: u64,
    ) -> Loaded<()> {
        if removed == 0 {
            return Ok(());
        }
        self.clear_data(name, key, Some(kind))?;
        if removed >= key.live_cells(kind) {
            self.remove_never_rows(name, key);
        }
        Ok(())
    }

    /// DEL of one key: clears all its data. Returns whether users saw it.
    pub(crate) fn delete(&mut self, name: &[u8]) -> Outcome<bool> {
        match self.view.key(self.name(name))? {
            Some(key) => self.delete_key(name, key),
            None => Ok(false),
        }
    }

    /// [`Self::delete`] for a key that is at hand.
    pub(crate) fn delete_key(&mut self, name: &[u8], key: V::Key<'a>) -> Outcome<bool> {
        self.clear_data(name, key, None)?;
        self.remove_never_rows(name, key);
        Ok(self.is_visible(key))
    }

    fn remove_never_rows(&mut self, name: &[u8], key: V::Key<'a>) {
        for (dot, deadline) in key.deadlines() {
            if deadline == Deadline::NEVER {
                self.entry.remove(self.name(name), Kind::Ttl, ONLY, dot);
            }
        }
    }

    /// Replaces the TTL rows that are observed.
    pub(crate) fn put_deadline(&mut self, name: &[u8], observed: Option<V::Key<'a>>, deadline: Deadline) {
        let replaced = observed.into_iter().flat_map(|key| key.deadlines()).map(|(dot, _)| dot);
        self.entry.put(self.name(name), Kind::Ttl, ONLY, &deadline.to_bytes(), replaced);
    }

    /// SET: clears the key whatever it was and puts a string.
    pub(crate) fn set_string(&mut self, name: &[u8], value: &[u8], lifetime: Lifetime) -> Outcome {
        let observed = self.view.key(self.name(name))?;
        let mut string = None;
        if let Some(key) = observed {
            self.clear_data(name, key, Some(Kind::String))?;
            string = live_cell(key, Kind::String, ONLY)?;
        }
        match lifetime {
            Lifetime::Keep if observed.is_some_and(|key| self.is_visible(key)) => {}
            Lifetime::Keep | Lifetime::Never => {
                self.set_plain(name, value, observed, string);
                return Ok(());
            }
            Lifetime::Until(time) => self.put_deadline(name, observed, Deadline(time)),
        }
        self.put_cell(name, Kind::String, ONLY, string, value);
        Ok(())
    }

    /// The string row and its NEVER row as one operation under one dot.
    fn set_plain(
        &mut self,
        name: &[u8],
        value: &[u8],
        observed: Option<V::Key<'a>>,
        string: Option<CellRef<'_>>,
    ) {
        if let Some(cell) = string {
            self.cancel_amounts(name, Kind::String, ONLY, cell);
        }
        let deadlines = observed.into_iter().flat_map(|key| key.deadlines()).map(|(dot, _)| dot);
        // A plain SET before this one gave the string row and the NEVER row the same dot.
        let others = deadlines.filter(|dot| put_dots(string).all(|put| put != *dot));
        self.entry.set(self.name(name), value, put_dots(string).chain(others));
    }

    /// The sweep of one key whose deadline has passed: data and, if that is so everywhere, TTL rows go.
    pub(crate) fn sweep_key(&mut self, name: &[u8], extent: Extent, passed: HybridTime) -> Outcome {
        let Some(key) = self.view.key(self.name(name))? else { return Ok(()) };
        if !deadline(key).is_some_and(|deadline| deadline.passed_at(passed)) {
            return Ok(());
        }
        self.clear_data(name, key, None)?;
        if extent == Extent::Whole {
            for (dot, _) in key.deadlines() {
                self.entry.remove(self.name(name), Kind::Ttl, ONLY, dot);
            }
        }
        Ok(())
    }
}

fn put_dots(cell: Option<CellRef<'_>>) -> impl Iterator<Item = Dot> {
    cell.into_iter().flat_map(CellRef::puts).map(|put| put.dot)
}

//! The definition of the data model, computed from history alone.
//!
//! An event is live at a replica if its entry was delivered there and no delivered clear of its cell has it in its causal
//! past. Values follow from live events. Nothing here knows rows, runs, cancels or merges: only who had seen what when
//! he wrote.

use std::collections::{BTreeMap, BTreeSet};

pub(crate) const NEVER: u64 = u64::MAX;

/// A cell: key, type, element.
type CellId = (String, Type, String);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Type {
    String,
    Hash,
    Set,
}

/// The name of an event: region, sequence, place in the entry.
type Name = (usize, u64, usize);

#[derive(Clone, Debug)]
enum Event {
    Put(CellId, String),
    Increment(CellId, i64),
    Clear(CellId),
    Deadline(String, u64),
    RemoveDeadline(Name),
}

#[derive(Debug)]
struct Entry {
    region: usize,
    sequence: u64,
    time: u64,
    /// How much of every region its writer had seen, itself included.
    seen: Vec<u64>,
    events: Vec<Event>,
}

/// A command that the oracle understands.
#[derive(Clone, Debug)]
pub(crate) enum Command {
    Set(String, String),
    SetFor(String, String, u64),
    SetKeeping(String, String),
    Append(String, String),
    Increment(String, i64),
    Delete(String),
    AddMember(String, String),
    RemoveMember(String, String),
    SetField(String, String, String),
    RemoveField(String, String),
    IncrementField(String, String, i64),
    Expire(String, u64),
    Persist(String),
    Rename(String, String),
}

/// What users see of a key: its type, its elements with values, and its deadline.
pub(crate) type Shown = (Type, BTreeMap<String, String>, u64);

/// All that was ever written, and what each replica has seen of it.
#[derive(Debug)]
pub(crate) struct History {
    entries: Vec<Entry>,
    seen: Vec<Vec<u64>>,
}

impl History {
    pub(crate) fn new(regions: usize) -> Self {
        Self { entries: Vec::new(), seen: vec![vec![0; regions]; regions] }
    }

    /// `to` has delivered what `from` wrote up to `sequence`.
    pub(crate) fn deliver(&mut self, from: usize, to: usize, sequence: u64) {
        self.seen[to][from] = sequence;
    }

    /// One entry of `region` at `time`. Returns whether the commands write anything at all.
    pub(crate) fn write(&mut self, region: usize, time: u64, commands: &[Command]) -> bool {
        self.open(region, time);
        for command in commands {
            self.run(region, time, command);
        }
        self.close(region)
    }

    /// One entry of `region` in which it sweeps these keys.
    pub(crate) fn sweep(&mut self, region: usize, time: u64, keys: &BTreeSet<String>) {
        self.open(region, time);
        for key in keys {
            self.clear_key(region, key);
            self.remove_deadlines(region, key, |_| true);
        }
        self.close(region);
    }

    fn open(&mut self, region: usize, time: u64) {
        let seen = self.seen[region].clone();
        let sequence = seen[region] + 1;
        self.entries.push(Entry { region, sequence, time, seen, events: Vec::new() });
        self.seen[region][region] = sequence;
    }

    fn close(&mut self, region: usize) -> bool {
        if self.entries.last().is_some_and(|entry| !entry.events.is_empty()) {
            return true;
        }
        self.entries.pop();
        self.seen[region][region] -= 1;
        false
    }

    fn log(&mut self, event: Event) {
        self.entries.last_mut().expect("an entry is open").events.push(event);
    }

    fn run(&mut self, at: usize, now: u64, command: &Command) {
        use Command as C;
        match command.clone() {
            C::Set(key, value) => self.set(at, key, value, NEVER),
            C::SetFor(key, value, ms) => self.set(at, key, value, now + ms * 1000),
            C::SetKeeping(key, value) if self.visible(at, &key, now).is_some() => {
                self.clear_key(at, &key);
                self.log(Event::Put(string(&key), value));
            }
            C::SetKeeping(key, value) => self.set(at, key, value, NEVER),
            C::Append(key, tail) => {
                if let Some(old) = self.begin(at, &key, Type::String, now) {
                    let old = old.get("").cloned().unwrap_or_default();
                    self.put(string(&key), old + &tail);
                }
            }
            C::Increment(key, delta) => self.increment(at, now, string(&key), delta),
            C::IncrementField(key, field, delta) => self.increment(at, now, (key, Type::Hash, field), delta),
            C::Delete(key) => {
                self.clear_key(at, &key);
                self.remove_deadlines(at, &key, |deadline| deadline == NEVER);
            }
            C::AddMember(key, member) => {
                if self.begin(at, &key, Type::Set, now).is_some() {
                    self.put((key, Type::Set, member), String::new());
                }
            }
            C::SetField(key, field, value) => {
                if self.begin(at, &key, Type::Hash, now).is_some() {
                    self.put((key, Type::Hash, field), value);
                }
            }
            C::RemoveMember(key, member) => self.remove(at, now, (key, Type::Set, member)),
            C::RemoveField(key, field) => self.remove(at, now, (key, Type::Hash, field)),
            C::Expire(key, ms) => {
                if self.visible(at, &key, now).is_some() {
                    self.remove_deadlines(at, &key, |_| true);
                    self.log(Event::Deadline(key, now + ms * 1000));
                }
            }
            C::Persist(key) => {
                if self.visible(at, &key, now).is_some_and(|(.., deadline)| deadline != NEVER) {
                    self.remove_deadlines(at, &key, |_| true);
                    self.log(Event::Deadline(key, NEVER));
                }
            }
            C::Rename(from, to) => self.rename(at, now, &from, &to),
        }
    }

    fn set(&mut self, at: usize, key: String, value: String, deadline: u64) {
        self.clear_key(at, &key);
        self.remove_deadlines(at, &key, |_| true);
        self.log(Event::Deadline(key.clone(), deadline));
        self.log(Event::Put(string(&key), value));
    }

    fn put(&mut self, cell: CellId, value: String) {
        self.log(Event::Clear(cell.clone()));
        self.log(Event::Put(cell, value));
    }

    fn increment(&mut self, at: usize, now: u64, cell: CellId, delta: i64) {
        let text = match self.visible(at, &cell.0, now) {
            Some((shown, cells, _)) if shown == cell.1 => {
                cells.get(&cell.2).is_some_and(|value| !is_integer(value))
            }
            Some(_) => true,
            None => false,
        };
        if !text && self.begin(at, &cell.0.clone(), cell.1, now).is_some() {
            self.log(Event::Increment(cell, delta));
        }
    }

    fn remove(&mut self, at: usize, now: u64, cell: CellId) {
        let Some((shown, cells, _)) = self.visible(at, &cell.0, now) else { return };
        if shown != cell.1 || !cells.contains_key(&cell.2) {
            return;
        }
        self.clear_other_types(at, &cell.0, shown);
        let (key, last) = (cell.0.clone(), cells.len() == 1);
        self.log(Event::Clear(cell));
        if last {
            self.remove_deadlines(at, &key, |deadline| deadline == NEVER);
        }
    }

    fn rename(&mut self, at: usize, now: u64, from: &str, to: &str) {
        let Some((shown, cells, deadline)) = self.visible(at, from, now) else { return };
        if from == to {
            return;
        }
        self.clear_key(at, to);
        self.remove_deadlines(at, to, |_| true);
        self.clear_key(at, from);
        self.remove_deadlines(at, from, |deadline| deadline == NEVER);
        self.log(Event::Deadline(to.to_owned(), deadline));
        for (element, value) in cells {
            self.log(Event::Put((to.to_owned(), shown, element), value));
        }
    }

    /// What is there to write on, empty for a key that is created; `None` if users see another type.
    fn begin(&mut self, at: usize, key: &str, kind: Type, now: u64) -> Option<BTreeMap<String, String>> {
        match self.visible(at, key, now) {
            Some((shown, ..)) if shown != kind => None,
            Some((shown, cells, _)) => {
                self.clear_other_types(at, key, shown);
                Some(cells)
            }
            None => {
                self.clear_key(at, key);
                self.remove_deadlines(at, key, |_| true);
                self.log(Event::Deadline(key.to_owned(), NEVER));
                Some(BTreeMap::new())
            }
        }
    }

    fn clear_key(&mut self, at: usize, key: &str) {
        self.clear_cells(at, key, |_| true);
    }

    fn clear_other_types(&mut self, at: usize, key: &str, shown: Type) {
        self.clear_cells(at, key, |kind| kind != shown);
    }

    fn clear_cells(&mut self, at: usize, key: &str, which: impl Fn(Type) -> bool) {
        let cells: BTreeSet<CellId> = self.live(at).map(|(.., cell, _)| cell.clone()).collect();
        for cell in cells.into_iter().filter(|cell| cell.0 == key && which(cell.1)) {
            self.log(Event::Clear(cell));
        }
    }

    fn remove_deadlines(&mut self, at: usize, key: &str, which: impl Fn(u64) -> bool) {
        let removed: Vec<Name> =
            self.deadlines(at, key).filter(|(_, deadline)| which(*deadline)).map(|(name, _)| name).collect();
        for name in removed {
            self.log(Event::RemoveDeadline(name));
        }
    }

    fn delivered(&self, at: usize) -> impl Iterator<Item = (Name, &Entry, &Event)> {
        let entries = self.entries.iter().filter(move |entry| entry.sequence <= self.seen[at][entry.region]);
        entries.flat_map(|entry| {
            let events = entry.events.iter().enumerate();
            events.map(move |(place, event)| ((entry.region, entry.sequence, place), entry, event))
        })
    }

    /// Live puts and increments.
    fn live(&self, at: usize) -> impl Iterator<Item = ((u64, Name), &CellId, &Event)> {
        let clears: Vec<(Name, &Entry, &CellId)> = self
            .delivered(at)
            .filter_map(|(name, entry, event)| match event {
                Event::Clear(cell) => Some((name, entry, cell)),
                _ => None,
            })
            .collect();
        self.delivered(at).filter_map(move |(name, entry, event)| {
            let (Event::Put(cell, _) | Event::Increment(cell, _)) = event else { return None };
            let cleared = clears.iter().any(|(clear, by, cleared)| {
                let same_entry = (clear.0, clear.1) == (name.0, name.1);
                let past = if same_entry { name.2 < clear.2 } else { name.1 <= by.seen[name.0] };
                *cleared == cell && past
            });
            (!cleared).then_some(((entry.time, name), cell, event))
        })
    }

    fn deadlines(&self, at: usize, key: &str) -> impl Iterator<Item = (Name, u64)> {
        let removed: BTreeSet<Name> = self
            .delivered(at)
            .filter_map(|(.., event)| match event {
                Event::RemoveDeadline(name) => Some(*name),
                _ => None,
            })
            .collect();
        let puts = self.delivered(at).filter_map(move |(name, _, event)| match event {
            Event::Deadline(of, deadline) if of == key => Some((name, *deadline)),
            _ => None,
        });
        puts.filter(move |(name, _)| !removed.contains(name)).collect::<Vec<_>>().into_iter()
    }

    /// The greatest deadline of a key, data or not.
    pub(crate) fn deadline(&self, at: usize, key: &str) -> Option<u64> {
        self.deadlines(at, key).map(|(_, deadline)| deadline).max()
    }

    /// What users see of a key in a region at a time.
    pub(crate) fn visible(&self, at: usize, key: &str, now: u64) -> Option<Shown> {
        let live: Vec<_> = self.live(at).filter(|(_, cell, _)| cell.0 == key).collect();
        let shown = live.iter().max_by_key(|(order, ..)| *order).map(|(_, cell, _)| cell.1)?;
        let deadline = self.deadline(at, key).unwrap_or(NEVER);
        if now > deadline {
            return None;
        }
        let elements: BTreeSet<&String> =
            live.iter().filter(|(_, cell, _)| cell.1 == shown).map(|(_, cell, _)| &cell.2).collect();
        let value = |element: &String| {
            let of_cell = live.iter().filter(|(_, cell, _)| cell.1 == shown && cell.2 == *element);
            fold(of_cell.map(|(order, _, event)| (*order, *event)))
        };
        Some((
            shown,
            elements.into_iter().map(|element| (element.clone(), value(element))).collect(),
            deadline,
        ))
    }
}

fn string(key: &str) -> CellId {
    (key.to_owned(), Type::String, String::new())
}

/// What INCR accepts: no leading zeros.
fn is_integer(value: &str) -> bool {
    value.parse::<i64>().is_ok_and(|integer| integer.to_string() == value)
}

/// The latest put and all increments; a text alone.
fn fold<'a>(events: impl Iterator<Item = ((u64, Name), &'a Event)>) -> String {
    let (mut base, mut sum, mut counted) = (None, 0, false);
    for (order, event) in events {
        match event {
            Event::Put(_, value) => base = base.max(Some((order, value))),
            Event::Increment(_, delta) => {
                sum += delta;
                counted = true;
            }
            _ => {}
        }
    }
    match base {
        Some((_, value)) if !counted => value.clone(),
        Some((_, value)) => {
            value.parse::<i64>().map_or_else(|_| value.clone(), |value| (value + sum).to_string())
        }
        None => sum.to_string(),
    }
}

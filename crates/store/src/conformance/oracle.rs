//! The definition of the data model, computed from history alone.
//!
//! An event is live at a replica if its entry was delivered there and no delivered clear of its cell covers it. A clear
//! covers the puts that were live where it was written, and of each actor's increments all up to the last live one. Values
//! follow from live events. Nothing here knows rows, runs, cancels or merges: only who had seen what when he wrote.
//!
//! What was not live any more where a clear was written, it does not cover: another clear does, and precedes it everywhere.
//! Only if that one is lost with every machine that had it, what it had cleared is back.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::value::Value;
use crate::engine::Extent;

/// The deadline of a key that has none.
pub const NEVER: u64 = u64::MAX;

/// A cell: key, type, element.
type CellId = (String, Type, String);

/// The types that the oracle follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Type {
    /// Strings and counters.
    String,
    /// Hashes.
    Hash,
    /// Sets.
    Set,
}

/// The name of an event: actor, sequence, place in the entry.
type Name = (usize, u64, usize);

/// How the planet orders events: time, the writer's region and incarnation, sequence, place.
type Order = (u64, (usize, u64), u64, usize);

#[derive(Clone, Debug)]
enum Event {
    Put(CellId, String),
    Increment(CellId, i64),
    Clear(CellId, Cover),
    Deadline(u64),
    RemoveDeadline(Name),
}

/// What a clear makes an end of.
#[derive(Clone, Debug, Default)]
struct Cover {
    puts: Vec<Name>,
    /// Of each actor, the last increment, by sequence and place.
    increments: BTreeMap<usize, (u64, usize)>,
}

/// An event of a key and the index of its entry.
#[derive(Debug)]
struct Placed {
    entry: usize,
    place: usize,
    event: Event,
}

#[derive(Debug)]
struct Entry {
    actor: usize,
    sequence: u64,
    time: u64,
}

/// A command that the oracle understands. Lifetimes are in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The fields stand in the order of the command's arguments.
pub enum Command {
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
    FlushAll,
}

impl Command {
    /// The command as a client sends it.
    pub fn words(&self) -> Vec<String> {
        let line = match self {
            Self::Set(key, value) => format!("SET {key} {value}"),
            Self::SetFor(key, value, ms) => format!("SET {key} {value} PX {ms}"),
            Self::SetKeeping(key, value) => format!("SET {key} {value} KEEPTTL"),
            Self::Append(key, tail) => format!("APPEND {key} {tail}"),
            Self::Increment(key, delta) => format!("INCRBY {key} {delta}"),
            Self::Delete(key) => format!("DEL {key}"),
            Self::AddMember(key, member) => format!("SADD {key} {member}"),
            Self::RemoveMember(key, member) => format!("SREM {key} {member}"),
            Self::SetField(key, field, value) => format!("HSET {key} {field} {value}"),
            Self::RemoveField(key, field) => format!("HDEL {key} {field}"),
            Self::IncrementField(key, field, delta) => format!("HINCRBY {key} {field} {delta}"),
            Self::Expire(key, ms) => format!("PEXPIRE {key} {ms}"),
            Self::Persist(key) => format!("PERSIST {key}"),
            Self::Rename(from, to) => format!("RENAME {from} {to}"),
            Self::FlushAll => "FLUSHDB".to_owned(),
        };
        line.split(' ').map(str::to_owned).collect()
    }
}

/// What users see of a key: its type, its elements with values, and its deadline.
pub type Shown = (Type, BTreeMap<String, String>, u64);

/// All that was ever written, and what each replica has seen of it.
#[derive(Debug)]
pub struct History {
    entries: Vec<Entry>,
    keys: BTreeMap<String, Vec<Placed>>,
    /// The region and incarnation of each actor.
    actors: Vec<(usize, u64)>,
    /// The actor under which each region writes now.
    own: Vec<usize>,
    seen: Vec<Vec<u64>>,
    /// Events of the open entry.
    events: usize,
}

impl History {
    /// So many regions, in the order of their names. The first actor of each has the region's number.
    pub fn new(regions: usize) -> Self {
        Self {
            entries: Vec::new(),
            keys: BTreeMap::new(),
            actors: (0..regions).map(|region| (region, 0)).collect(),
            own: (0..regions).collect(),
            seen: vec![Vec::new(); regions],
            events: 0,
        }
    }

    /// A region goes on as another actor, whose number is returned.
    pub fn begin_incarnation(&mut self, region: usize, incarnation: u64) -> usize {
        let actor = self.actors.len();
        self.actors.push((region, incarnation));
        self.own[region] = actor;
        actor
    }

    /// `to` has delivered what `actor` wrote up to `sequence`.
    pub fn deliver(&mut self, actor: usize, to: usize, sequence: u64) {
        set(&mut self.seen[to], actor, sequence);
    }

    /// A region came back with only this much of each actor: what it had of others, and of itself, may be less.
    pub fn restart(&mut self, region: usize, held: impl IntoIterator<Item = (usize, u64)>) {
        self.seen[region].clear();
        for (actor, sequence) in held {
            set(&mut self.seen[region], actor, sequence);
        }
    }

    /// What `actor` wrote after `sequence` never was.
    pub fn retract(&mut self, actor: usize, sequence: u64) {
        let entries = &self.entries;
        let stays = |placed: &Placed| {
            let entry = &entries[placed.entry];
            entry.actor != actor || entry.sequence <= sequence
        };
        self.keys.values_mut().for_each(|events| events.retain(stays));
    }

    /// One entry of `region` at `time`. Returns whether the commands write anything at all.
    pub fn write(&mut self, region: usize, time: u64, commands: &[Command]) -> bool {
        self.open(region, time);
        for command in commands {
            self.run(region, time, command);
        }
        self.close(region)
    }

    /// One entry of `region` about keys that the oracle does not follow.
    pub fn write_elsewhere(&mut self, region: usize, time: u64) {
        self.open(region, time);
    }

    /// One entry of `region` in which it sweeps these keys.
    pub fn sweep(&mut self, region: usize, time: u64, extent: Extent, keys: &BTreeSet<String>) {
        self.open(region, time);
        for key in keys {
            self.clear_key(region, key);
            if extent == Extent::Whole {
                self.remove_deadlines(region, key, |_| true);
            }
        }
    }

    fn open(&mut self, region: usize, time: u64) {
        let actor = self.own[region];
        let sequence = get(&self.seen[region], actor) + 1;
        set(&mut self.seen[region], actor, sequence);
        self.entries.push(Entry { actor, sequence, time });
        self.events = 0;
    }

    fn close(&mut self, region: usize) -> bool {
        if self.events > 0 {
            return true;
        }
        if let Some(entry) = self.entries.pop() {
            set(&mut self.seen[region], entry.actor, entry.sequence - 1);
        }
        false
    }

    fn log(&mut self, key: &str, event: Event) {
        let (entry, place) = (self.entries.len() - 1, self.events);
        self.events += 1;
        self.keys.entry(key.to_owned()).or_default().push(Placed { entry, place, event });
    }

    fn log_cell(&mut self, cell: CellId, event: impl FnOnce(CellId) -> Event) {
        let key = cell.0.clone();
        self.log(&key, event(cell));
    }

    fn run(&mut self, at: usize, now: u64, command: &Command) {
        use Command as C;
        match command.clone() {
            C::Set(key, value) => self.set(at, key, value, NEVER),
            C::SetFor(key, value, ms) => self.set(at, key, value, now + ms * 1000),
            C::SetKeeping(key, value) if self.visible(at, &key, now).is_some() => {
                self.clear_key(at, &key);
                self.log_cell(string(&key), |cell| Event::Put(cell, value));
            }
            C::SetKeeping(key, value) => self.set(at, key, value, NEVER),
            C::Append(key, tail) => {
                if let Some(old) = self.begin(at, &key, Type::String, now) {
                    let old = old.get("").cloned().unwrap_or_default();
                    self.put(at, string(&key), old + &tail);
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
                    self.put(at, (key, Type::Set, member), String::new());
                }
            }
            C::SetField(key, field, value) => {
                if self.begin(at, &key, Type::Hash, now).is_some() {
                    self.put(at, (key, Type::Hash, field), value);
                }
            }
            C::RemoveMember(key, member) => self.remove(at, now, (key, Type::Set, member)),
            C::RemoveField(key, field) => self.remove(at, now, (key, Type::Hash, field)),
            C::Expire(key, ms) => {
                if self.visible(at, &key, now).is_some() {
                    self.remove_deadlines(at, &key, |_| true);
                    self.log(&key, Event::Deadline(now + ms * 1000));
                }
            }
            C::Persist(key) => {
                if self.visible(at, &key, now).is_some_and(|(.., deadline)| deadline != NEVER) {
                    self.remove_deadlines(at, &key, |_| true);
                    self.log(&key, Event::Deadline(NEVER));
                }
            }
            C::Rename(from, to) => self.rename(at, now, &from, &to),
            C::FlushAll => {
                for key in self.keys.keys().cloned().collect::<Vec<_>>() {
                    self.clear_key(at, &key);
                    self.remove_deadlines(at, &key, |deadline| deadline == NEVER);
                }
            }
        }
    }

    fn set(&mut self, at: usize, key: String, value: String, deadline: u64) {
        self.clear_key(at, &key);
        self.remove_deadlines(at, &key, |_| true);
        self.log(&key, Event::Deadline(deadline));
        self.log_cell(string(&key), |cell| Event::Put(cell, value));
    }

    fn put(&mut self, at: usize, cell: CellId, value: String) {
        self.clear_cells(at, &cell.0, |other| *other == cell);
        self.log_cell(cell, |cell| Event::Put(cell, value));
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
            self.log_cell(cell, |cell| Event::Increment(cell, delta));
        }
    }

    fn remove(&mut self, at: usize, now: u64, cell: CellId) {
        let Some((shown, cells, _)) = self.visible(at, &cell.0, now) else { return };
        if shown != cell.1 || !cells.contains_key(&cell.2) {
            return;
        }
        self.clear_other_types(at, &cell.0, shown);
        let (key, last) = (cell.0.clone(), cells.len() == 1);
        self.clear_cells(at, &key, |other| *other == cell);
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
        self.log(to, Event::Deadline(deadline));
        for (element, value) in cells {
            self.log(to, Event::Put((to.to_owned(), shown, element), value));
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
                self.log(key, Event::Deadline(NEVER));
                Some(BTreeMap::new())
            }
        }
    }

    fn clear_key(&mut self, at: usize, key: &str) {
        self.clear_cells(at, key, |_| true);
    }

    fn clear_other_types(&mut self, at: usize, key: &str, shown: Type) {
        self.clear_cells(at, key, |cell| cell.1 != shown);
    }

    fn clear_cells(&mut self, at: usize, key: &str, which: impl Fn(&CellId) -> bool) {
        let mut covers: BTreeMap<CellId, Cover> = BTreeMap::new();
        for (name, _, cell, event) in self.live(at, key).into_iter().filter(|(_, _, cell, _)| which(cell)) {
            let cover = covers.entry(cell.clone()).or_default();
            if let Event::Increment(..) = event {
                let last = cover.increments.entry(name.0).or_default();
                *last = (*last).max((name.1, name.2));
            } else {
                cover.puts.push(name);
            }
        }
        for (cell, cover) in covers {
            self.log(key, Event::Clear(cell, cover));
        }
    }

    fn remove_deadlines(&mut self, at: usize, key: &str, which: impl Fn(u64) -> bool) {
        let deadlines = self.deadlines(at, key);
        for (name, _) in deadlines.into_iter().filter(|(_, deadline)| which(*deadline)) {
            self.log(key, Event::RemoveDeadline(name));
        }
    }

    fn delivered<'h>(&'h self, at: usize, key: &str) -> impl Iterator<Item = (Name, &'h Entry, &'h Event)> {
        let events = self.keys.get(key).into_iter().flatten();
        let events = events.map(|placed| (&self.entries[placed.entry], placed));
        let delivered = events.filter(move |(entry, _)| entry.sequence <= get(&self.seen[at], entry.actor));
        delivered.map(|(entry, placed)| ((entry.actor, entry.sequence, placed.place), entry, &placed.event))
    }

    /// Live puts and increments.
    fn live(&self, at: usize, key: &str) -> Vec<(Name, Order, &CellId, &Event)> {
        let (mut puts, mut increments) = (HashSet::<Name>::new(), HashMap::new());
        for (.., event) in self.delivered(at, key) {
            let Event::Clear(cell, cover) = event else { continue };
            puts.extend(&cover.puts);
            for (actor, last) in &cover.increments {
                let held = increments.entry((*actor, cell)).or_insert(last);
                *held = (*held).max(last);
            }
        }
        let live = self.delivered(at, key).filter_map(|(name, entry, event)| {
            let (cell, is_cleared) = match event {
                Event::Put(cell, _) => (cell, puts.contains(&name)),
                Event::Increment(cell, _) => {
                    (cell, increments.get(&(name.0, cell)).is_some_and(|last| (name.1, name.2) <= **last))
                }
                _ => return None,
            };
            (!is_cleared).then_some((name, (entry.time, self.actors[name.0], name.1, name.2), cell, event))
        });
        live.collect()
    }

    fn deadlines(&self, at: usize, key: &str) -> Vec<(Name, u64)> {
        let removed: BTreeSet<Name> = self
            .delivered(at, key)
            .filter_map(|(.., event)| match event {
                Event::RemoveDeadline(name) => Some(*name),
                _ => None,
            })
            .collect();
        let puts = self.delivered(at, key).filter_map(|(name, _, event)| match event {
            Event::Deadline(deadline) => Some((name, *deadline)),
            _ => None,
        });
        puts.filter(|(name, _)| !removed.contains(name)).collect()
    }

    /// The greatest deadline of a key, data or not.
    fn deadline(&self, at: usize, key: &str) -> Option<u64> {
        self.deadlines(at, key).into_iter().map(|(_, deadline)| deadline).max()
    }

    /// What users see of a key in a region at a time.
    pub fn visible(&self, at: usize, key: &str, now: u64) -> Option<Shown> {
        let live = self.live(at, key);
        let shown = live.iter().max_by_key(|(_, order, ..)| *order).map(|(_, _, cell, _)| cell.1)?;
        let deadline = self.deadline(at, key).unwrap_or(NEVER);
        if now > deadline {
            return None;
        }
        let elements: BTreeSet<&String> =
            live.iter().filter(|(_, _, cell, _)| cell.1 == shown).map(|(_, _, cell, _)| &cell.2).collect();
        let value = |element: &String| {
            let of_cell = live.iter().filter(|(_, _, cell, _)| cell.1 == shown && cell.2 == *element);
            fold(of_cell.map(|(_, order, _, event)| (*order, *event)))
        };
        Some((
            shown,
            elements.into_iter().map(|element| (element.clone(), value(element))).collect(),
            deadline,
        ))
    }
}

/// A key as a user reads it: type, elements, values. `execute` runs one command.
///
/// # Panics
/// If a reply has not the shape that the type calls for.
pub fn read(key: &str, mut execute: impl FnMut(&str) -> Value) -> Option<(Type, BTreeMap<String, String>)> {
    let text = |value: &Value| match value {
        Value::Bulk(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        other => panic!("{other} is no string"),
    };
    match execute(&format!("TYPE {key}")).to_string().as_str() {
        "none" => None,
        "string" => {
            let value = text(&execute(&format!("GET {key}")));
            Some((Type::String, BTreeMap::from([(String::new(), value)])))
        }
        "set" => match execute(&format!("SMEMBERS {key}")) {
            Value::Set(members) => {
                Some((Type::Set, members.iter().map(|member| (text(member), String::new())).collect()))
            }
            other => panic!("{other} is no set"),
        },
        "hash" => match execute(&format!("HGETALL {key}")) {
            Value::Map(pairs) => {
                let pairs = pairs.iter().map(|(field, value)| (text(field), text(value)));
                Some((Type::Hash, pairs.collect()))
            }
            other => panic!("{other} is no hash"),
        },
        other => panic!("the oracle knows no {other}"),
    }
}

fn get(vector: &[u64], actor: usize) -> u64 {
    vector.get(actor).copied().unwrap_or(0)
}

fn set(vector: &mut Vec<u64>, actor: usize, sequence: u64) {
    if vector.len() <= actor {
        vector.resize(actor + 1, 0);
    }
    vector[actor] = sequence;
}

fn string(key: &str) -> CellId {
    (key.to_owned(), Type::String, String::new())
}

/// What INCR accepts: no leading zeros.
fn is_integer(value: &str) -> bool {
    value.parse::<i64>().is_ok_and(|integer| integer.to_string() == value)
}

/// The latest put and all increments; a text alone.
fn fold<'a>(events: impl Iterator<Item = (Order, &'a Event)>) -> String {
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

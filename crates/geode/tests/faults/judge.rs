//! The rules, over what clients were answered and what the regions' logs hold in the end.
//!
//! Each request leaves a mark in the entry that it writes. So the logs say in which entry it stands, what its writer had
//! seen by then, and what others had: the oracle is led through the same history and says what every reply and every
//! final value must be.

use std::collections::{BTreeMap, BTreeSet};

use geode_crdt::ActorId;
use geode_sim::rules::{self, Objection};
use geode_store::conformance::Value;
use geode_store::conformance::oracle::History;

use crate::client::{Asked, Outcome};
use crate::geode::NAMES;
use crate::record::{Entry, Log, Name};

/// All that is known of a run when it is over.
#[derive(Clone, Debug, Default)]
pub(crate) struct Evidence {
    pub(crate) asked: Vec<Asked>,
    /// By region.
    pub(crate) logs: Vec<Log>,
    /// What the logs of machines that crashed held before; some of it may be nowhere any more.
    pub(crate) before: Log,
    /// The marks of acknowledged writes that a crash may have taken within the stated durability.
    pub(crate) excused: BTreeSet<String>,
    /// What each region read in the end.
    pub(crate) finally: Vec<Final>,
    /// When clients had stopped and all regions answered, in microseconds: before they were found equal. What is swept after
    /// that need not come to all before they stop.
    pub(crate) settled_us: u64,
}

/// What a region read of a key in the end, when nothing happened any more.
#[derive(Clone, Debug)]
pub(crate) struct Final {
    pub(crate) region: usize,
    pub(crate) key: String,
    /// By command.
    pub(crate) answers: Vec<(String, Value)>,
    pub(crate) now_us: u64,
}

/// What a run came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) entries: usize,
    /// Incarnations that wrote something.
    pub(crate) writers: usize,
    pub(crate) acknowledged: usize,
    pub(crate) refused: usize,
    pub(crate) unknown: usize,
    pub(crate) lost: u64,
    pub(crate) checked_reads: usize,
}

/// Judges a run.
///
/// # Errors
/// The first rule that does not hold.
pub(crate) fn judge(evidence: &Evidence) -> Result<Counts, Objection> {
    let entries = same_everywhere(&evidence.logs, evidence.settled_us)?;
    let asked: BTreeMap<&str, &Asked> =
        evidence.asked.iter().map(|asked| (asked.mark.as_str(), asked)).collect();
    let marks = once_each(&entries, &asked)?;
    let with = |outcome| evidence.asked.iter().filter(move |asked| asked.outcome == outcome);
    if let Some(asked) = with(Outcome::Refused).find(|asked| marks.contains_key(asked.mark.as_str())) {
        return Err(("refusals", format!("request {} was refused, but it is in the logs", asked.mark)));
    }
    let acknowledged = with(Outcome::Acknowledged).chain(with(Outcome::Confirmed));
    let confirmed: BTreeSet<&str> = with(Outcome::Confirmed).map(|asked| asked.mark.as_str()).collect();
    let lost = rules::durability(
        acknowledged.clone().map(|asked| format!("request {}", asked.mark)),
        |request| marks.contains_key(mark_in(request)),
        |request| confirmed.contains(mark_in(request)),
        |request| evidence.excused.contains(mark_in(request)),
    )?;
    let mut retold = Retold::new();
    let mut counts = Counts {
        entries: entries.len(),
        writers: entries.keys().map(|(actor, _)| actor).collect::<BTreeSet<_>>().len(),
        acknowledged: acknowledged.count(),
        refused: with(Outcome::Refused).count(),
        unknown: with(Outcome::Unknown).count(),
        lost,
        checked_reads: 0,
    };
    let told = with_what_was_lost(&entries, &evidence.before)?;
    once_each(&told, &asked)?;
    let mut in_order: Vec<(&Name, &Entry)> = told.into_iter().collect();
    in_order.sort_by_key(|(name, entry)| (entry.time, *name));
    for (name, entry) in in_order {
        let asked = entry.mark.as_deref().and_then(|mark| asked.get(mark)).copied();
        counts.checked_reads += usize::from(retold.tell(name, entry, asked)?);
    }
    retold.finally(&evidence.finally, &entries)?;
    Ok(counts)
}

fn mark_in(request: &str) -> &str {
    request.rsplit(' ').next().unwrap_or_default()
}

/// A name stands for one entry, and all regions hold all of them.
fn same_everywhere(logs: &[Log], settled_us: u64) -> Result<BTreeMap<&Name, &Entry>, Objection> {
    let mut all: BTreeMap<&Name, &Entry> = BTreeMap::new();
    for (region, log) in logs.iter().enumerate() {
        for (name, entry) in log {
            if all.insert(name, entry).is_some_and(|held| held != entry) {
                let (actor, sequence) = name;
                return Err(("names", format!("{} has another entry {sequence} of {actor}", NAMES[region])));
            }
        }
    }
    for (region, log) in logs.iter().enumerate() {
        let settled = all.iter().filter(|(_, entry)| entry.mark.is_some() || entry.time < settled_us);
        let missing = settled.map(|(name, _)| *name).find(|name| !log.contains_key(*name));
        if let Some((actor, sequence)) = missing {
            return Err(("convergence", format!("{} lacks entry {sequence} of {actor}", NAMES[region])));
        }
    }
    Ok(all)
}

/// The entries that there are, and those that crashes took: others may have been written by who had seen them. A name
/// stands for one entry for ever, also when that is lost.
fn with_what_was_lost<'e>(
    entries: &BTreeMap<&'e Name, &'e Entry>,
    before: &'e Log,
) -> Result<BTreeMap<&'e Name, &'e Entry>, Objection> {
    let mut all = entries.clone();
    for (name, entry) in before {
        if all.insert(name, entry).is_some_and(|held| held != entry) {
            let (actor, sequence) = name;
            return Err(("names", format!("entry {sequence} of {actor} was another one before a crash")));
        }
    }
    Ok(all)
}

/// Every request stands in one entry at most, and every entry is a request's, a sweep, or the regions' own.
fn once_each<'e>(
    entries: &BTreeMap<&'e Name, &'e Entry>,
    asked: &BTreeMap<&str, &Asked>,
) -> Result<BTreeMap<&'e str, &'e Name>, Objection> {
    let mut marks = BTreeMap::new();
    for ((actor, sequence), entry) in entries.iter().map(|(name, entry)| (*name, *entry)) {
        let Some(mark) = &entry.mark else {
            if entry.only_removes || entry.is_system {
                continue;
            }
            return Err(("names", format!("nobody asked for entry {sequence} of {actor}")));
        };
        if !asked.contains_key(mark.as_str()) {
            return Err(("names", format!("nobody asked for {mark}, entry {sequence} of {actor}")));
        }
        if let Some(other) = marks.insert(mark.as_str(), (actor, sequence)) {
            return Err(("once", format!("request {mark} is {other:?} and {:?}", (actor, sequence))));
        }
    }
    let name = |(mark, (actor, sequence)): (&'e str, (&ActorId, &u64))| {
        let name = entries.get_key_value(&(actor.clone(), *sequence)).map(|(name, _)| *name)?;
        Some((mark, name))
    };
    Ok(marks.into_iter().filter_map(name).collect())
}

/// The oracle, led through the logs.
struct Retold {
    history: History,
    numbers: BTreeMap<ActorId, usize>,
    current: BTreeMap<usize, ActorId>,
    /// What each actor had seen when it last wrote.
    seen: BTreeMap<ActorId, BTreeMap<ActorId, u64>>,
    times: BTreeMap<Name, u64>,
    upto: BTreeMap<ActorId, u64>,
}

impl Retold {
    fn new() -> Self {
        Self {
            history: History::new(NAMES.len()),
            numbers: BTreeMap::new(),
            current: BTreeMap::new(),
            seen: BTreeMap::new(),
            times: BTreeMap::new(),
            upto: BTreeMap::new(),
        }
    }

    /// The next entry by time. Returns whether what its writer read with it was compared.
    fn tell(&mut self, name: &Name, entry: &Entry, asked: Option<&Asked>) -> Result<bool, Objection> {
        let (actor, sequence) = name;
        let region = self.begin(actor)?;
        let seen = self.look(name, entry)?;
        let own = (actor.clone(), sequence - 1);
        let known = seen.into_iter().chain([own]).collect::<BTreeMap<_, _>>();
        let numbered = known.iter().filter_map(|(actor, upto)| Some((*self.numbers.get(actor)?, *upto)));
        let numbered: Vec<(usize, u64)> = numbered.collect();
        self.history.restart(region, numbered);
        match asked {
            Some(asked) if asked.region != region => {
                return Err((
                    "names",
                    format!("request {} stands in an entry of {}", asked.mark, NAMES[region]),
                ));
            }
            Some(asked) if !asked.commands.is_empty() => {
                if !self.history.write(region, entry.time, &asked.commands) {
                    // Its mark alone.
                    self.history.write_elsewhere(region, entry.time);
                }
            }
            _ if asked.is_some() || entry.is_system => self.history.write_elsewhere(region, entry.time),
            _ => self.history.sweep(region, entry.time, entry.extent, &entry.keys),
        }
        self.times.insert(name.clone(), entry.time);
        self.upto.insert(actor.clone(), *sequence);
        let Some((key, answers)) = asked.and_then(|asked| asked.reads.as_ref()) else { return Ok(false) };
        // What is read in a transaction is told by its entry's time, or by the next that the clock gives.
        let at = |time| rules::key(&self.history, region, key, time, |line| answer(answers, line));
        let objection = at(entry.time).and_then(|objection| at(entry.time + 1).and(Some(objection)));
        objection.map_or(Ok(true), |(rule, message)| {
            let mark = entry.mark.as_deref().unwrap_or_default();
            Err((rule, format!("request {mark} in {}: {message}", NAMES[region])))
        })
    }

    /// The region of an actor, which becomes the one under which it writes.
    fn begin(&mut self, actor: &ActorId) -> Result<usize, Objection> {
        let known = NAMES.iter().position(|name| *name == actor.region.as_ref());
        let region = known.ok_or_else(|| ("names", format!("{actor} is of no region")))?;
        if self.current.get(&region) != Some(actor) {
            if self.numbers.contains_key(actor) {
                return Err(("order of time", format!("{actor} writes again after its successor did")));
            }
            let number = self.history.begin_incarnation(region, actor.incarnation);
            self.numbers.insert(actor.clone(), number);
            self.current.insert(region, actor.clone());
        }
        Ok(region)
    }

    /// What the writer of an entry had seen, all of which must be there and earlier.
    fn look(&mut self, (actor, sequence): &Name, entry: &Entry) -> Result<BTreeMap<ActorId, u64>, Objection> {
        if self.upto.get(actor).copied().unwrap_or(0) + 1 != *sequence {
            return Err(("names", format!("entry {sequence} of {actor} does not follow the one before")));
        }
        let seen = self.seen.entry(actor.clone()).or_default();
        for (other, upto) in &entry.changed {
            let held = seen.entry(other.clone()).or_default();
            *held = (*upto).max(*held);
            let time = self.times.get(&(other.clone(), *upto));
            if time.is_none_or(|time| *time >= entry.time) {
                let message = format!(
                    "entry {sequence} of {actor} at {} depends on {upto} of {other} at {time:?}",
                    entry.time
                );
                return Err(("order of time", message));
            }
        }
        Ok(seen.clone())
    }

    /// What every region reads in the end, of the entries that there are.
    fn finally(&mut self, read: &[Final], entries: &BTreeMap<&Name, &Entry>) -> Result<(), Objection> {
        let mut ends: BTreeMap<usize, u64> = BTreeMap::new();
        for (actor, sequence) in entries.keys() {
            if let Some(number) = self.numbers.get(actor) {
                let end = ends.entry(*number).or_default();
                *end = (*sequence).max(*end);
            }
        }
        let all: Vec<(usize, u64)> = ends.into_iter().collect();
        for Final { region, key, answers, now_us } in read {
            self.history.restart(*region, all.iter().copied());
            let objection = rules::key(&self.history, *region, key, *now_us, |line| answer(answers, line));
            if let Some((rule, message)) = objection {
                return Err((rule, format!("in the end in {}: {message}", NAMES[*region])));
            }
        }
        Ok(())
    }
}

fn answer(answers: &[(String, Value)], line: &str) -> Value {
    answers.iter().find(|(asked, _)| asked == line).map_or(Value::Null, |(_, value)| value.clone())
}

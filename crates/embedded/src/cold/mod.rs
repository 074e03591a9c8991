//! Data larger than memory: which keys leave, which are fetched, and what that costs whom.
//!
//! Keys that were not used for long leave the memory once the checkpoint holds them ([`crate::table`] knows which). A
//! command that meets one is run again when a thread has read it. Entries of other regions wait for theirs before they are
//! delivered ([`arrivals`]). When changed keys fill the memory faster than the disk takes them, writers wait, a little each time.

mod arrivals;
mod reader;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use geode_crdt::{HybridTime, KeyName};
use geode_store::{Extent, Need, Part, Ticket};

use crate::checkpoint::Checkpoint;
use crate::inbox::{Inbox, Incoming};
use crate::table::{Disk, Fetched, SEGMENTS, Table, segment_of};
use arrivals::Arrivals;
use reader::{Answer, Read, Reader, Request, Wanted};

/// Entries of the table that one turn looks at for some that may leave: a tenth of a millisecond.
const EVICT_PATIENCE: usize = 8 << 10;
/// The longest that writers wait in one turn, when changed keys take a quarter more than the memory there is.
const LONGEST_WAIT: Duration = Duration::from_millis(50);
/// In one of so many turns the changed keys are counted.
const TURNS_PER_COUNT: u64 = 16;
/// Keys that one read for a sweep brings at most.
const DUE_KEYS: usize = 256;

/// Figures for reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ColdStats {
    /// Keys that were read because a command or a scan asked for them.
    pub(crate) fetched: u64,
    /// Keys that left the memory.
    pub(crate) evicted: u64,
}

/// The data thread's end.
#[derive(Debug)]
pub(crate) struct Cold {
    /// What rows may take.
    limit: u64,
    reader: Reader,
    /// What is to be read, for which there was no room yet.
    asked: Vec<Request>,
    last_ticket: u64,
    arrivals: Arrivals,
    completed: Vec<Ticket>,
    warming: Warming,
    /// Whether names of a segment are being read.
    is_naming: bool,
    sweep: [Sweep; 2],
    turns: u64,
    /// Why nothing is written now: changed keys fill the memory.
    refusal: Option<String>,
    /// Bytes of log when writers last waited.
    written: u64,
    stats: ColdStats,
}

/// Bringing keys into memory after a start, as long as there is room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Warming {
    /// The next segment.
    Next(usize),
    /// This one is being read.
    Reading(usize),
    Done,
}

/// Where a look for cold keys whose deadline has passed goes on: with data, and without.
#[derive(Debug, Default)]
struct Sweep {
    is_reading: bool,
    after: Option<Box<[u8]>>,
}

impl Cold {
    /// Lets the keys of `table` be cold, within `memory` bytes.
    pub(crate) fn start(
        memory: u64,
        table: &mut Table,
        on_disk: &Checkpoint,
        inbox: Arc<Inbox>,
    ) -> io::Result<Self> {
        table.attach(Arc::clone(on_disk.file()) as Arc<dyn Disk>);
        let reader = Reader::start(Arc::clone(on_disk.file()), Arc::clone(on_disk.progress()), inbox)?;
        Ok(Self {
            // The rest is the checkpoint's.
            limit: memory - memory / 8,
            reader,
            asked: Vec::new(),
            last_ticket: 0,
            arrivals: Arrivals::default(),
            completed: Vec::new(),
            warming: Warming::Next(0),
            is_naming: false,
            sweep: Default::default(),
            turns: 0,
            refusal: None,
            written: 0,
            stats: ColdStats::default(),
        })
    }

    pub(crate) fn stats(&self) -> ColdStats {
        self.stats
    }

    #[cfg(test)]
    pub(crate) fn stop_warming(&mut self) {
        self.warming = Warming::Done;
    }

    /// Asks for what a command needs.
    pub(crate) fn fetch(&mut self, need: &Need, table: &Table) -> Ticket {
        let wanted = match need.part {
            Part::Keys { from } => Wanted::Segment(segment_of(from)),
            Part::Summary | Part::Cell(..) | Part::Cells(_) => {
                let (database, name) = (need.database, need.name.clone());
                let hash = table.hash_of(KeyName { database, name: &name });
                Wanted::Key { hash, database, name }
            }
        };
        self.last_ticket += 1;
        let ticket = Ticket(self.last_ticket);
        self.asked.push(Request { ticket: Some(ticket), wanted });
        ticket
    }

    /// Gives back what can be delivered now; keeps a frame until its keys are in memory.
    pub(crate) fn receive(&mut self, incoming: Incoming, table: &mut Table) -> Option<Incoming> {
        let (incoming, wanted) = self.arrivals.keep(incoming, table);
        if let Some((number, keys)) = wanted {
            self.asked.push(Request { ticket: None, wanted: Wanted::Frame { number, keys } });
        }
        incoming
    }

    /// The frames that were kept.
    pub(crate) fn arrivals(&mut self) -> &mut Arrivals {
        &mut self.arrivals
    }

    pub(crate) fn completed(&mut self, tickets: &mut Vec<Ticket>) {
        tickets.append(&mut self.completed);
    }

    /// One bounded step: makes room if `may_evict`, takes in what was read, asks for more, lets writers wait.
    pub(crate) fn step(
        &mut self,
        table: &mut Table,
        on_disk: &mut Checkpoint,
        written: u64,
        may_evict: bool,
    ) {
        self.turns += 1;
        let tail = written.saturating_sub(on_disk.marked());
        if may_evict {
            let evicted = table.evict(on_disk.progress().committed(), self.limit, EVICT_PATIENCE);
            self.stats.evicted += evicted as u64;
        }
        if self.turns.is_multiple_of(TURNS_PER_COUNT) {
            let (keys, dirty) = table.resident_keys();
            let is_filling = table.memory_bytes() > self.limit / 2 && dirty > keys / 4;
            // Or a few keys are so large.
            let is_full = table.memory_bytes() > self.limit && tail > self.limit / 2;
            on_disk.press(is_filling || is_full);
        }
        self.guard(table, on_disk, tail);
        for answer in self.reader.answers() {
            self.take(answer, table);
        }
        self.warm(table);
        if !self.asked.is_empty() {
            self.asked = self.reader.offer(std::mem::take(&mut self.asked)).err().unwrap_or_default();
        }
        self.pace(table, written);
    }

    /// Why nothing may be written now.
    pub(crate) fn refusal(&self) -> Option<&str> {
        self.refusal.as_deref()
    }

    /// Whether more may be written: not while half as much again as the memory there is is taken, and log of the length of
    /// that memory stands for keys that no completed checkpoint holds. So keys that are only read, of whatever size, stop no writes while
    /// the checkpoint keeps up.
    fn guard(&mut self, table: &Table, on_disk: &Checkpoint, tail: u64) {
        let memory = table.memory_bytes();
        if self.refusal.is_some() {
            self.refusal.take_if(|_| memory <= self.limit + self.limit / 8 || tail <= self.limit / 2);
        } else if memory > self.limit + self.limit / 2 && tail > self.limit {
            let cause = on_disk.failing().map_or_else(
                || "the disk is too slow for what is written".to_owned(),
                |reason| format!("the checkpoint cannot be written ({reason})"),
            );
            self.refusal = Some(format!(
                "OOM changed keys take more than store.memory allows: {cause}. Writes go on as soon as they are on disk"
            ));
        }
    }

    /// Takes in what was read.
    fn take(&mut self, answer: Answer, table: &mut Table) {
        let Answer { request, read: Read { found, more, names }, as_of } = answer;
        let (mut is_stale, mut absent_in) = (false, None);
        for key in &found {
            match table.fetched(key, as_of) {
                Ok(Fetched::Loaded) => self.stats.fetched += 1,
                Ok(Fetched::Stale) => is_stale = true,
                // Its checksum is right, so this or a newer release wrote it.
                Err(error) => tracing::error!("the image of a key cannot be read: {error}"),
            }
            if key.image.is_none() {
                absent_in = Some(segment_of(key.hash));
            }
        }
        match &request.wanted {
            Wanted::Due { is_inert, .. } => {
                self.sweep[usize::from(*is_inert)] = Sweep { is_reading: false, after: more };
            }
            Wanted::Segment(segment) if !is_stale && self.warming == Warming::Reading(*segment) => {
                self.warming = Warming::Next(segment + 1);
            }
            Wanted::Names(segment) => {
                is_stale = !table.learn_names(*segment, &names, as_of);
                self.is_naming = is_stale;
            }
            Wanted::Frame { number, .. } if !is_stale => self.arrivals.read(*number),
            Wanted::Key { .. } | Wanted::Frame { .. } | Wanted::Segment(_) => {}
        }
        if let Some(segment) = absent_in.filter(|segment| !self.is_naming && table.wants_names(*segment)) {
            self.is_naming = true;
            self.asked.push(Request { ticket: None, wanted: Wanted::Names(segment) });
        }
        if is_stale && !matches!(request.wanted, Wanted::Due { .. }) {
            return self.asked.push(request);
        }
        self.completed.extend(request.ticket);
    }

    /// Asks for the next segment as long as what is on disk fits into the memory.
    fn warm(&mut self, table: &Table) {
        let Warming::Next(mut segment) = self.warming else { return };
        while segment < SEGMENTS && table.cold_keys_of(segment) == 0 {
            segment += 1;
        }
        let is_done = segment >= SEGMENTS || table.memory_bytes() > self.limit - self.limit / 8;
        self.warming = if is_done {
            Warming::Done
        } else {
            self.asked.push(Request { ticket: None, wanted: Wanted::Segment(segment) });
            Warming::Reading(segment)
        };
    }

    /// Lets writers wait if changed keys take more memory than there is: the longer, the more it is.
    fn pace(&mut self, table: &Table, written: u64) {
        let over = table.memory_bytes().saturating_sub(self.limit + self.limit / 16);
        if std::mem::replace(&mut self.written, written) == written || over == 0 {
            return;
        }
        let share = (over as f64 / (self.limit / 4).max(1) as f64).min(1.0);
        std::thread::sleep(LONGEST_WAIT.mul_f64(share));
    }

    /// Looks for keys on disk whose deadline is below `before`, so that the table knows of them soon.
    pub(crate) fn look_for_due(&mut self, table: &Table, extent: Extent, before: HybridTime) {
        if table.cold_keys() == 0 {
            return;
        }
        for is_inert in [false, true] {
            let sweep = &mut self.sweep[usize::from(is_inert)];
            if sweep.is_reading || is_inert && extent == Extent::Data {
                continue;
            }
            sweep.is_reading = true;
            let after = sweep.after.take();
            let wanted = Wanted::Due { is_inert, before, after, limit: DUE_KEYS };
            self.asked.push(Request { ticket: None, wanted });
        }
    }
}

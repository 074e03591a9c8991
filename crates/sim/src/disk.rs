//! A region's disk: what is in the kernel, what is on the platter, and what a start makes of it.
//!
//! A model of the files that `crates/embedded` keeps (log, `clock`, `identity.json`) and of the decisions that its
//! recovery takes about them: where a damaged log is cut, when a start is refused, whether the incarnation is kept. A
//! killed process loses what was not handed to the kernel; a machine that crashes loses what was not synced, wholly or
//! in part, and the part may be torn or full of other bytes.

use std::sync::Arc;

use geode_crdt::{ActorId, HybridTime};

use crate::engine::{Block, Joined, Snapshot};
use crate::plan::Tail;
use crate::plant::Plant;
use crate::random::Random;

/// Bytes of a record beside its frame.
const RECORD: u64 = 21;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A frame of an actor of this region.
    Own,
    /// A frame of another region's actor.
    Foreign,
    /// From here on the region writes as this incarnation.
    Incarnation(u64),
    /// Here a snapshot is joined into what is held.
    Joined,
}

/// One record of the log.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) kind: Kind,
    pub(crate) frame: Vec<u8>,
    /// Whose entries it holds and which.
    pub(crate) actor: ActorId,
    pub(crate) first: u64,
    pub(crate) last: u64,
    /// Up to where the writer knew the log to be on disk.
    pub(crate) synced: u64,
    pub(crate) end: u64,
    /// The snapshot, if one is joined here.
    pub(crate) joined: Option<Arc<Joined>>,
}

impl Record {
    pub(crate) fn length(&self) -> u64 {
        RECORD + self.frame.len() as u64
    }
}

/// How the log ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Whole,
    /// With a record that the end of the file cuts short.
    CutShort,
    /// With bytes that are no record; behind them may stand one that says how far the log was on disk.
    Damaged {
        said_later: u64,
    },
}

/// One slot of the floor of time: a time, and up to where the log was on disk.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    time: HybridTime,
    synced: u64,
}

#[derive(Clone, Debug)]
struct Identity {
    incarnation: u64,
    boot: u64,
    always: bool,
    failed: bool,
    clean_stop: Option<u64>,
}

/// What a start decided.
#[derive(Debug)]
pub(crate) struct Opened {
    /// The incarnation to go on with, or why there must be another one.
    pub(crate) verdict: Result<u64, &'static str>,
    /// Time goes on above this.
    pub(crate) floor: HybridTime,
}

#[derive(Debug)]
pub(crate) struct Disk {
    /// All that was ever written: what lies before `trimmed` is in no file any more, but a checkpoint holds what it said.
    pub(crate) records: Vec<Record>,
    trimmed: usize,
    /// The backup with which the region is to begin.
    pub(crate) backup: Option<Arc<Snapshot>>,
    /// The region began with nothing, or a backup, and has not caught up with all others since.
    pub(crate) is_behind: bool,
    /// What came of a snapshot.
    pub(crate) staging: Vec<Arc<Block>>,
    ending: Ending,
    /// Up to where the log is on disk.
    pub(crate) synced: u64,
    said: Slot,
    said_on_disk: Slot,
    reserved: Slot,
    identity: Option<Identity>,
    /// The incarnation of the last process, though the log may have lost it.
    previous: Option<u64>,
    boot: u64,
    /// Takes no more bytes.
    pub(crate) is_full: bool,
}

impl Disk {
    pub(crate) const fn new() -> Self {
        let nothing = Slot { time: HybridTime(0), synced: 0 };
        Self {
            records: Vec::new(),
            trimmed: 0,
            backup: None,
            is_behind: false,
            staging: Vec::new(),
            ending: Ending::Whole,
            synced: 0,
            said: nothing,
            said_on_disk: nothing,
            reserved: nothing,
            identity: None,
            previous: None,
            boot: 1,
            is_full: false,
        }
    }

    /// Empty, but for a backup.
    pub(crate) fn restored(backup: Arc<Snapshot>) -> Self {
        Self { backup: Some(backup), ..Self::new() }
    }

    /// Up to where the log is in the kernel.
    pub(crate) fn written(&self) -> u64 {
        self.records.last().map_or(0, |record| record.end)
    }

    /// The records that the log still holds, and the number of the first.
    pub(crate) fn visible(&self) -> (usize, &[Record]) {
        (self.trimmed, &self.records[self.trimmed..])
    }

    /// Removes what is older than the last `retention` bytes, as far as it is on disk.
    pub(crate) fn trim(&mut self, retention: u64) {
        let oldest = self.synced.min(self.written().saturating_sub(retention));
        let trimmed = self.records.partition_point(|record| record.end <= oldest);
        self.trimmed = self.trimmed.max(trimmed);
    }

    /// The end of a snapshot that is here, but not known to be.
    pub(crate) fn forget_staged_end(&mut self) {
        if self.staging.last().is_some_and(|block| block.is_end()) {
            self.staging.clear();
        }
    }

    /// Whether the log no longer holds an entry that it may have held, or that came with a snapshot.
    pub(crate) fn is_trimmed(&self, actor: &ActorId, sequence: u64) -> bool {
        let joined = self.records.iter().filter_map(|record| record.joined.as_ref());
        let passed_over =
            |joined: &Arc<Joined>| joined.gaps.iter().any(|(of, upto)| of == actor && sequence <= *upto);
        let first = self.visible().1.iter().find(|record| record.actor == *actor && record.last > 0);
        joined.into_iter().any(passed_over)
            || self.trimmed > 0 && first.is_none_or(|record| sequence < record.first)
    }

    /// Hands records to the kernel, all or (the write was short, and taken back) none.
    pub(crate) fn append(&mut self, records: &mut Vec<Record>) -> Result<(), &'static str> {
        if self.is_full && !records.is_empty() {
            return Err("no space left on device");
        }
        for mut record in records.drain(..) {
            record.end = self.written() + record.length();
            self.records.push(record);
        }
        Ok(())
    }

    /// The process is killed while it writes: so many records are whole, the next one is cut short.
    pub(crate) fn append_part(&mut self, records: &mut Vec<Record>, whole: usize) {
        records.truncate(whole);
        if self.append(records).is_ok() {
            self.ending = Ending::CutShort;
        }
    }

    /// The incarnation of the last process that started here.
    pub(crate) fn previous(&self) -> Option<u64> {
        self.previous.filter(|incarnation| *incarnation != 0)
    }

    pub(crate) fn reserved(&self) -> HybridTime {
        self.reserved.time
    }

    /// A time that is about to be promised, in the kernel.
    pub(crate) const fn say(&mut self, time: HybridTime) {
        self.said = Slot { time, synced: self.synced };
    }

    /// A time that is not passed before another one is reserved, on disk.
    pub(crate) const fn reserve(&mut self, time: HybridTime) {
        self.reserved = Slot { time, synced: self.synced };
        self.said_on_disk = self.said;
    }

    /// Takes the proof away that the log holds what was written, and keeps the time that may be written in what is lost.
    pub(crate) fn distrust(&mut self, clock: HybridTime) {
        self.say(clock.max(self.said.time));
        if let Some(identity) = &mut self.identity {
            identity.failed = true;
        }
    }

    pub(crate) const fn set_incarnation(&mut self, incarnation: u64) {
        if let Some(identity) = &mut self.identity {
            identity.incarnation = incarnation;
        }
    }

    /// Everything is on disk and marked so.
    pub(crate) fn stop_cleanly(&mut self, clock: HybridTime) {
        self.synced = self.written();
        self.reserve(clock);
        let end = self.written();
        if let Some(identity) = &mut self.identity {
            identity.clean_stop = Some(end);
        }
    }

    /// The machine starts again.
    pub(crate) const fn reboot(&mut self) {
        self.boot += 1;
    }

    /// The machine crashes. Returns what is lost.
    pub(crate) fn crash(&mut self, tail: Tail, random: &mut Random) -> Vec<Record> {
        self.reboot();
        if !self.staging.is_empty() {
            // Nothing of it was synced.
            self.staging.truncate(random.index(self.staging.len() + 1));
        }
        if random.one_in(2) {
            self.said = self.said_on_disk;
        }
        let unsynced = self.records.partition_point(|record| record.end <= self.synced);
        let count = self.records.len() - unsynced;
        let kept = match tail {
            Tail::Lost => 0,
            Tail::Kept => count,
            Tail::CutShort | Tail::Garbage | Tail::Hole => random.index(count + 1),
        };
        let lost = self.records.split_off(unsynced + kept);
        if !lost.is_empty() {
            self.ending = match tail {
                Tail::CutShort => Ending::CutShort,
                Tail::Garbage => Ending::Damaged { said_later: 0 },
                Tail::Hole => {
                    let said_later = lost[1..].iter().map(|record| record.synced).max().unwrap_or(0);
                    Ending::Damaged { said_later }
                }
                Tail::Lost | Tail::Kept => Ending::Whole,
            };
        }
        lost
    }

    /// An fsync failed, and the machine forgot some of what it had not written. Returns what is lost.
    pub(crate) fn forget_unsynced(&mut self, random: &mut Random) -> Vec<Record> {
        let unsynced = self.records.partition_point(|record| record.end <= self.synced);
        let kept = random.index(self.records.len() - unsynced + 1);
        self.records.split_off(unsynced + kept)
    }

    /// The volume is set back to an earlier state, with nothing on it that says so.
    pub(crate) fn roll_back(&mut self, records: usize) -> Vec<Record> {
        let length = self.records.len();
        // The region itself was there already.
        let first = self.records.iter().rposition(|record| matches!(record.kind, Kind::Incarnation(_)));
        let lost = self.records.split_off(length.saturating_sub(records).max(first.map_or(0, |at| at + 1)));
        self.trimmed = self.trimmed.min(self.records.len());
        self.synced = self.written();
        for slot in [&mut self.said, &mut self.said_on_disk, &mut self.reserved] {
            *slot = Slot::default();
        }
        lost
    }

    /// What a start does before the replay: judges the end of the log, cuts it, decides about the incarnation.
    ///
    /// An error is a refusal to start: what was on disk is damaged.
    pub(crate) fn open(&mut self, always: bool, plant: Option<Plant>) -> Result<Opened, String> {
        let position = self.written();
        let clean_stop = self.identity.as_ref().and_then(|identity| identity.clean_stop);
        let later = if let Ending::Damaged { said_later } = self.ending { said_later } else { 0 };
        let claims = self.records.iter().map(|record| record.synced);
        let claimed = claims.chain([self.said.synced, self.reserved.synced, clean_stop.unwrap_or(0), later]);
        let known_synced = claimed.max().unwrap_or(0);
        if position < known_synced {
            return Err(format!("the log ends at {position}, but was on disk up to {known_synced}"));
        }
        self.previous = self.identity.as_ref().map(|identity| identity.incarnation);
        let mut verdict = self.judge(position, clean_stop);
        if plant == Some(Plant::ReusedIncarnation)
            && let Some(previous) = self.last_incarnation()
        {
            verdict = Ok(previous);
        }
        let same_boot = self.identity.as_ref().is_some_and(|identity| identity.boot == self.boot);
        let floor = if same_boot { self.said.time } else { self.said.time.max(self.reserved.time) };
        let incarnation = verdict.unwrap_or(0);
        self.ending = Ending::Whole;
        self.synced = position;
        self.identity =
            Some(Identity { incarnation, boot: self.boot, always, failed: false, clean_stop: None });
        Ok(Opened { verdict, floor })
    }

    fn judge(&self, position: u64, clean_stop: Option<u64>) -> Result<u64, &'static str> {
        if matches!(self.ending, Ending::Damaged { .. }) {
            return Err("the end of its log was damaged");
        }
        let Some(incarnation) = self.last_incarnation() else { return Err("it is new") };
        let Some(identity) = &self.identity else { return Err("nothing proves that its log is whole") };
        if identity.incarnation != incarnation {
            Err("the log and its identity name different incarnations")
        } else if identity.failed {
            Err("a write failed in the last run")
        } else if clean_stop == Some(position) || identity.boot == self.boot || identity.always {
            Ok(incarnation)
        } else {
            Err("the machine stopped without a clean stop of this region")
        }
    }

    fn last_incarnation(&self) -> Option<u64> {
        self.records.iter().rev().find_map(|record| match record.kind {
            Kind::Incarnation(incarnation) => Some(incarnation),
            _ => None,
        })
    }
}

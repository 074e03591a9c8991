//! The life of a region: its process starts, works, dies in every way; its machine goes on or does not.

use std::collections::BTreeMap;

use geode_crdt::{ActorId, HybridTime};
use geode_store::{Engine, Options, Store, View};

use crate::disk::{Disk, Kind, Record};
use crate::engine::{Note, Out, Settings, SimEngine};
use crate::network::Item;
use crate::plan::{Fsync, KillPoint, Tail};
use crate::plant::Plant;
use crate::world::{FIRST_WRITE_US, Process, Region, World};

/// How many keys are swept at once, as in `crates/resp`.
const SWEEPS: usize = 64;
/// When a process that ended by itself is started again, in milliseconds.
const RESTART_MS: u64 = 300;

impl World<'_> {
    pub(crate) fn start(&mut self, region: usize) {
        let Some(disk) = self.regions[region].disk.take() else { return };
        self.regions[region].life += 1;
        self.regions[region].latest = HybridTime(0);
        let settings = Settings {
            names: self.names.clone(),
            region,
            fsync: self.regions[region].fsync,
            plant: self.plant,
            seed: self.plan.seed ^ (region as u64) << 32 ^ self.regions[region].life << 40,
        };
        let (mut engine, fresh) = match SimEngine::start(disk, &settings, self.now(region)) {
            Ok(started) => started,
            Err(refused) => {
                let (disk, reason) = *refused;
                self.regions[region].disk = Some(disk);
                return self
                    .violate("recovery", format!("{} refuses to start: {reason}", self.names[region]));
            }
        };
        if engine.failed {
            // Its disk is full: not even the new incarnation can be written.
            self.say(|world| format!("{} cannot start: its disk is full", world.names[region]));
            self.regions[region].disk = Some(engine.core.disk);
            return self.start_in(region, RESTART_MS);
        }
        self.say(|world| format!("{} starts as {}", world.names[region], engine.own()));
        let held = engine.replica.held().to_portable(engine.core.rows.actors());
        let notes = std::mem::take(&mut engine.core.notes);
        self.note(region, notes);
        let is_behind = engine.core.disk.is_behind;
        let waits = (held.is_empty() || is_behind) && self.plant != Some(Plant::WritesWhileJoining);
        let held: Vec<_> =
            held.iter().filter_map(|(actor, held)| Some((*self.actors.get(actor)?, *held))).collect();
        self.history.restart(region, held);
        let options = Options { seed: settings.seed, ..Options::default() };
        self.regions[region].is_up = true;
        self.regions[region].process = Some(Process {
            store: Store::new(engine, options),
            first_write_us: (!fresh || waits).then_some(self.now_us + FIRST_WRITE_US),
            is_syncing: false,
            pending: Vec::new(),
            heard_us: BTreeMap::new(),
        });
        self.begin_life(region);
        self.end_turn(region);
    }

    /// Takes the process away. Its clients hear nothing any more.
    pub(crate) fn end_process(&mut self, region: usize) -> Option<Disk> {
        let process = self.regions[region].process.take()?;
        self.regions[region].kill = None;
        for pending in &process.pending {
            self.unanswered(pending.client, pending.number);
        }
        let Store { engine, .. } = process.store;
        let links: Vec<u64> = self.names.iter().filter_map(|peer| engine.link(peer)).collect();
        for link in links {
            if self.regions[region].is_up {
                self.close(region, link);
            }
        }
        self.note(region, engine.core.notes);
        // What was never logged never was.
        for (actor, number) in &self.actors {
            if actor.region.as_ref() == self.names[region] {
                let logged = self.logged.get(actor).and_then(|entries| entries.last_key_value());
                self.history.retract(*number, logged.map_or(0, |(last, _)| *last));
            }
        }
        Some(engine.core.disk)
    }

    pub(crate) fn kill(&mut self, region: usize, down_ms: u64) {
        if let Some(disk) = self.end_process(region) {
            self.say(|world| format!("{} is killed", world.names[region]));
            self.regions[region].disk = Some(disk);
            self.start_in(region, down_ms);
        }
    }

    /// A process that was to be killed while it writes did not write.
    pub(crate) fn kill_idle(&mut self, region: usize, life: u64) {
        if self.regions[region].life == life
            && let Some((_, down_ms)) = self.regions[region].kill
        {
            self.kill(region, down_ms);
        }
    }

    /// The process is killed in the middle of a batch, if that was to be. Returns whether it was.
    pub(crate) fn kill_at(&mut self, region: usize, point: KillPoint) -> bool {
        let Some((planned, down_ms)) = self.regions[region].kill else { return false };
        if planned != point {
            return false;
        }
        if point == KillPoint::WhileWriting {
            let whole = self.random.index(2);
            if let Some(process) = &mut self.regions[region].process {
                process.store.engine.write_part(whole);
            }
        }
        self.say(|_| format!("killed {point:?}"));
        self.kill(region, down_ms);
        true
    }

    pub(crate) fn stop(&mut self, region: usize, down_ms: u64) {
        let Some(process) = &mut self.regions[region].process else { return };
        let engine = &mut process.store.engine;
        let clock = engine.core.clock.last();
        if engine.flush_log().is_ok() {
            engine.core.disk.stop_cleanly(clock);
        }
        if let Some(mut disk) = self.end_process(region) {
            self.say(|world| format!("{} stops, and its machine restarts", world.names[region]));
            disk.reboot();
            self.regions[region].disk = Some(disk);
            self.start_in(region, down_ms);
        }
    }

    pub(crate) fn crash(&mut self, region: usize, tail: Tail, down_ms: u64) {
        self.regions[region].is_up = false;
        let running = self.regions[region].process.is_some();
        let Some(mut disk) = self.end_process(region).or_else(|| self.regions[region].disk.take()) else {
            return;
        };
        let lost = disk.crash(tail, &mut self.random);
        self.say(|world| format!("{} crashes and loses {} records", world.names[region], lost.len()));
        self.excuse(region, &lost);
        self.regions[region].disk = Some(disk);
        if running {
            self.start_in(region, down_ms);
        }
    }

    pub(crate) fn fail_sync(&mut self, region: usize, down_ms: u64) {
        self.distrust(region);
        let Some(mut disk) = self.end_process(region) else { return };
        let lost = disk.forget_unsynced(&mut self.random);
        self.say(|world| {
            format!("an fsync of {} fails and {} records are lost", world.names[region], lost.len())
        });
        self.excuse(region, &lost);
        self.regions[region].disk = Some(disk);
        self.start_in(region, down_ms);
    }

    fn distrust(&mut self, region: usize) {
        let forgets = self.plant == Some(Plant::FloorOfLastHeartbeat);
        if let Some(process) = &mut self.regions[region].process {
            let core = &mut process.store.engine.core;
            core.disk.distrust(if forgets { HybridTime(0) } else { core.clock.last() });
        }
    }

    pub(crate) fn set_full(&mut self, region: usize, full: bool) {
        let Region { process, disk, .. } = &mut self.regions[region];
        let disk = process.as_mut().map(|process| &mut process.store.engine.core.disk).or(disk.as_mut());
        if let Some(disk) = disk {
            disk.is_full = full;
        }
    }

    /// A write failed: nothing can be answered, so the process ends. What is in the log cannot be trusted.
    pub(crate) fn fail_write(&mut self, region: usize) {
        self.distrust(region);
        if let Some(disk) = self.end_process(region) {
            self.say(|world| format!("{} cannot write its log and ends", world.names[region]));
            self.regions[region].disk = Some(disk);
            self.start_in(region, RESTART_MS);
        }
    }

    /// Only where every other region holds all that this one does, and can say so: otherwise nobody could notice.
    /// Returns whether it is so now.
    pub(crate) fn roll_back(&mut self, region: usize, records: usize, down_ms: u64) -> bool {
        let Some(process) = &self.regions[region].process else { return false };
        let held = self.vector(region);
        let linked = process.store.engine.replica.peers().all(|(_, is_up, _)| is_up);
        let held_by_all = (0..self.plan.regions).all(|other| self.vector(other).includes(&held));
        if !linked || !held_by_all {
            return false;
        }
        if let Some(mut disk) = self.end_process(region) {
            let lost = disk.roll_back(records);
            self.say(|world| format!("{} is set back by {} records", world.names[region], lost.len()));
            self.regions[region].disk = Some(disk);
            self.start_in(region, down_ms);
        }
        true
    }

    /// What a crash took within the stated durability.
    fn excuse(&mut self, region: usize, lost: &[Record]) {
        let always = self.regions[region].fsync == Fsync::Always;
        for record in lost.iter().filter(|record| record.kind == Kind::Own) {
            for sequence in record.first..=record.last {
                if !always {
                    self.excused.insert((record.actor.clone(), sequence));
                }
            }
            // With `always` nothing unsynced was shown to anybody: it never was, and its names are free.
            if always && Some(&record.actor) == self.current[region].as_ref() {
                if let Some(logged) = self.logged.get_mut(&record.actor) {
                    logged.retain(|sequence, _| *sequence < record.first);
                }
                if let Some(number) = self.actors.get(&record.actor) {
                    self.history.retract(*number, record.first - 1);
                }
                self.digests.retain(|vector, _| vector.get(&record.actor) < record.first);
            }
        }
    }

    pub(crate) fn sweep(&mut self, region: usize) {
        let Some(process) = &mut self.regions[region].process else { return };
        // Everybody is asked first what he holds of this writer.
        if process.first_write_us.is_some() || !process.store.engine.is_whole() {
            return;
        }
        let store = &mut process.store;
        loop {
            store.sweep(SWEEPS);
            if !store.engine.complete_fetches() {
                break;
            }
        }
        let wrote = std::mem::take(&mut store.engine.wrote);
        for entry in wrote {
            let in_zero = entry.keys.iter().filter(|(database, _)| *database == 0);
            let keys = in_zero.map(|(_, name)| String::from_utf8_lossy(name).into_owned()).collect();
            self.say(|world| format!("{} sweeps {keys:?}", world.names[region]));
            self.check_order(region, entry.time);
            self.history.sweep(region, entry.time.0, entry.extent, &keys);
        }
    }

    /// What follows every event in a region: the log, the links, the answers, the checks.
    pub(crate) fn end_turn(&mut self, region: usize) {
        let now = self.now(region);
        let Some(process) = &mut self.regions[region].process else { return };
        if let Some(until_us) = process.first_write_us
            && (process.store.engine.is_known() || self.now_us >= until_us)
            && (!process.store.engine.replica.is_joining() || self.plant == Some(Plant::WritesWhileJoining))
        {
            process.first_write_us = None;
        }
        let engine = &mut process.store.engine;
        engine.set_wall(now.wall);
        if engine.flush_log().is_err() {
            return self.fail_write(region);
        }
        engine.look_whether_behind();
        engine.heartbeat(now.monotonic_ms);
        engine.pump();
        let out = std::mem::take(&mut engine.out);
        self.send(region, out);
        self.take_notes(region);
        if self.regions[region].fsync == Fsync::Always {
            self.begin_sync(region);
        }
        self.answer(region);
        self.check_turn(region);
    }

    fn send(&mut self, region: usize, out: Vec<Out>) {
        for out in out {
            match out {
                Out::Bytes { link, bytes } => {
                    if let Some(pipe) = self.network.pipe_from(link, region) {
                        let at_us = self.network.put(link, pipe, Item::Bytes(bytes), self.now_us);
                        self.arrival(link, pipe, at_us);
                    }
                }
                Out::Block { link, attempt, block } => {
                    if let Some(pipe) = self.network.pipe_from(link, region) {
                        let at_us = self.network.put(link, pipe, Item::Block(attempt, block), self.now_us);
                        self.arrival(link, pipe, at_us);
                    }
                }
                Out::Close { link, reason } => {
                    self.say(|world| format!("{} closes a link: {reason}", world.names[region]));
                    self.close(region, link);
                }
            }
        }
    }

    /// Takes note of what happened in a region so far.
    pub(crate) fn take_notes(&mut self, region: usize) {
        if let Some(process) = &mut self.regions[region].process {
            let notes = std::mem::take(&mut process.store.engine.core.notes);
            self.note(region, notes);
        }
    }

    fn note(&mut self, region: usize, notes: Vec<Note>) {
        for note in notes {
            match note {
                Note::Delivered { actor, sequence, time, passed } => {
                    self.regions[region].has_news = true;
                    let number = self.number(&actor);
                    self.history.deliver(number, region, sequence);
                    self.check_time(region, time);
                    self.regions[region].latest = time.max(self.regions[region].latest);
                    let is_current = self.current.contains(&Some(actor.clone()));
                    if time <= passed && is_current {
                        let name = &self.names[region];
                        self.violate(
                            "promises",
                            format!(
                                "entry {sequence} of {actor} at {time} comes to {name} after {passed} passed"
                            ),
                        );
                    }
                }
                Note::Logged { actor, sequence, fingerprint } => {
                    self.regions[region].has_news = true;
                    let known =
                        self.logged.entry(actor.clone()).or_default().entry(sequence).or_insert(fingerprint);
                    if *known != fingerprint {
                        let name = &self.names[region];
                        self.violate("names", format!("{name} has another entry {sequence} of {actor}"));
                    }
                }
                Note::Joined(start) => {
                    self.say(|world| {
                        format!("{} has joined a snapshot at {:?}", world.names[region], start.0)
                    });
                    self.regions[region].has_news = true;
                    self.counts.joined += 1;
                    for (actor, upto) in start.0 {
                        let number = self.number(&actor);
                        self.history.deliver(number, region, upto);
                    }
                }
                Note::Incarnation { actor, reason } => {
                    self.say(|_| format!("{actor} begins: {reason}"));
                    let number = self.history.begin_incarnation(region, actor.incarnation);
                    self.actors.insert(actor.clone(), number);
                    self.current[region] = Some(actor);
                }
                Note::Report(line) => self.say(|world| format!("{} reports: {line}", world.names[region])),
            }
        }
    }

    fn number(&self, actor: &ActorId) -> usize {
        self.actors.get(actor).copied().unwrap_or(0)
    }

    /// Planted: an answer leaves before anything is written.
    pub(crate) fn answers_early(&self) -> bool {
        self.plant == Some(Plant::AnsweredBeforeLog)
    }
}

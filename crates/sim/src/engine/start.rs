//! A process starts: the log is judged and replayed, and the region goes on as before or as another actor.

use std::collections::BTreeMap;
use std::sync::Arc;

use geode_crdt::{ActorId, Frame, FrameBuilder, HybridTime, VersionVector};
use geode_replica::{Now, Replica};
use geode_store::{Extent, View};

use super::snapshot::{Incoming, Joined, Joining};
use super::{Core, Note, PLANET, RESERVE_US, SimEngine};
use crate::disk::{Disk, Kind, Opened};
use crate::plan::Fsync;
use crate::plant::Plant;

/// What an engine is told about itself.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) names: Vec<String>,
    pub(crate) region: usize,
    pub(crate) fsync: Fsync,
    pub(crate) plant: Option<Plant>,
    /// Where new incarnations come from.
    pub(crate) seed: u64,
}

impl SimEngine {
    /// A process starts on what is on the disk: judges the log, replays it, and goes on as before or as another actor.
    /// Also returns whether it is another one. An error is a refusal.
    pub(crate) fn start(
        mut disk: Disk,
        settings: &Settings,
        now: Now,
    ) -> Result<(Self, bool), Box<(Disk, String)>> {
        let Settings { names, region, fsync, plant, seed } = settings;
        let name = &names[*region];
        let Opened { verdict, floor } = match disk.open(*fsync == Fsync::Always, *plant) {
            Ok(opened) => opened,
            Err(reason) => return Err(Box::new((disk, reason))),
        };
        let mut core = Core::empty(disk, name, *plant);
        // An end that was not yet known to be whole is asked for again.
        core.disk.forget_staged_end();
        let (held, joined) = core.replay(name);
        if *plant == Some(Plant::ForgottenChanges) {
            core.changed.clear();
        }
        if *plant != Some(Plant::ForgottenFloor) {
            core.clock.observe(floor);
        }
        let reserve = core.clock.last().max(now.wall).0 + RESERVE_US;
        core.disk.reserve(HybridTime(reserve));
        let peers: Vec<String> = names.iter().filter(|peer| *peer != name).cloned().collect();
        let own = core.own;
        let mut replica = Replica::new(PLANET, name, own, &peers, held, now);
        for (region, time) in &core.times {
            replica.replayed(region, *time);
        }
        core.disk.is_behind |= replica.held().iter().next().is_none();
        if core.disk.is_behind {
            replica.begins_behind();
        }
        let incoming = Incoming::after(joined, &mut replica, &mut core);
        if let Some(previous) = core.disk.previous() {
            let previous = core.rows.actors_mut().intern(&ActorId::new(name, previous));
            if previous != own {
                replica.succeeded(previous);
            }
        }
        if *fsync == Fsync::Always {
            replica.claim_only_durable();
        }
        let next = replica.held().get(own) + 1;
        core.builder = FrameBuilder::new(own, next);
        let mut engine = Self {
            core,
            replica,
            region: name.as_str().into(),
            regions: names.len(),
            fsync: *fsync,
            wall: now.wall,
            time: HybridTime(0),
            entry_from: None,
            extent: Extent::Whole,
            wrote: Vec::new(),
            links: BTreeMap::new(),
            out: Vec::new(),
            needs: Vec::new(),
            tickets: 0,
            done: Vec::new(),
            failed: false,
            incarnations: *seed,
            process: *seed,
            incoming,
        };
        engine.learn();
        let silent = engine.cut_silently(&verdict);
        let fresh = verdict.is_err() && !silent;
        let backup = engine.core.disk.backup.take();
        if let (Err(reason), false) = (verdict, silent) {
            engine.begin_incarnation(reason);
            let written = engine.core.disk.written();
            engine.synced(written);
        }
        if let Some(backup) = backup {
            engine.begin_with_backup(backup);
        }
        Ok((engine, fresh))
    }

    /// Planted: damage of the tail is cut and nothing more is thought of it.
    fn cut_silently(&self, verdict: &Result<u64, &'static str>) -> bool {
        let damaged = *verdict == Err("the end of its log was damaged");
        damaged
            && self.core.is(Plant::SilentCut)
            && self.core.rows.actors().id(self.core.own).incarnation != 0
    }

    /// Goes on under a new actor, after everything that was written under the old one.
    pub(super) fn begin_incarnation(&mut self, reason: &str) {
        self.incarnations = self.incarnations.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        let incarnation = self.incarnations | 1;
        let id = ActorId::new(&self.region, incarnation);
        self.core.close_batch();
        self.core.push(Kind::Incarnation(incarnation), id.clone(), 1, 0, Vec::new());
        if self.flush_log().is_err() {
            return;
        }
        let own = self.core.rows.actors_mut().intern(&id);
        self.core.own = own;
        self.core.changed = self.replica.held().iter().map(|(actor, _)| actor).collect();
        self.replica.begin_incarnation(own);
        self.core.builder = FrameBuilder::new(own, 1);
        self.core.disk.set_incarnation(incarnation);
        self.core.notes.push(Note::Incarnation { actor: id, reason: reason.to_owned() });
    }
}

impl Core {
    /// Replays the log. Returns what is held, and the last snapshot that was joined.
    fn replay(&mut self, region: &str) -> (VersionVector, Option<Arc<Joined>>) {
        let (mut held, mut joined) = (VersionVector::default(), None);
        let records = std::mem::take(&mut self.disk.records);
        for record in &records {
            if let Kind::Incarnation(incarnation) = record.kind {
                self.own = self.rows.actors_mut().intern(&ActorId::new(region, incarnation));
                self.changed = held.iter().map(|(actor, _)| actor).collect();
                continue;
            }
            if let Some(again) = &record.joined {
                let mut joining = Joining::new(Arc::clone(&again.snapshot), held.clone());
                while !joining.step(self) {}
                let done = joining.finish(self);
                held.join(&done.start);
                joined = Some(Arc::clone(again));
                continue;
            }
            // The simulated disk gives back what was written.
            let Ok(frame) = Frame::parse(&record.frame, self.rows.actors_mut()) else { continue };
            self.merge(&frame, record.first, record.last);
            held.raise(frame.writer(), record.last);
        }
        self.finish_transaction();
        self.disk.records = records;
        self.notes.clear();
        (held, joined)
    }
}

//! The engine as the store sees it.

use geode_crdt::frame::Checkpoint;
use geode_crdt::{ActorIndex, FrameBuilder, HybridTime, VersionVector};
use geode_store::{Engine, Extent, FlushError, Need, Position, Ticket, View};

use super::{Embedded, FRAME_BYTES, TURN_BYTES, TURN_MESSAGES};
use crate::config::FsyncMode;
use crate::delivery::Core;
use crate::inbox::Incoming;
use crate::table::{Origin, Table};

impl Engine for Embedded {
    type View = Table;

    fn set_wall(&mut self, wall: HybridTime) {
        self.wall = wall;
    }

    fn now(&self) -> HybridTime {
        self.core.rows.clock.peek(self.wall)
    }

    fn begin(&mut self) -> HybridTime {
        self.before_write();
        if self.core.builder.len() >= FRAME_BYTES {
            self.core.close_batch();
        }
        let time = self.core.rows.clock.tick(self.wall);
        let held = self.replica.held();
        let changed = self.core.rows.changed.iter().map(|actor| (*actor, held.get(*actor)));
        self.core.builder.begin_entry(time, changed);
        time
    }

    fn parts(&mut self) -> (&Table, &mut FrameBuilder) {
        (&self.core.rows.table, &mut self.core.builder)
    }

    fn view(&self) -> &Table {
        &self.core.rows.table
    }

    fn apply(&mut self, from: Checkpoint) {
        let Core { rows, builder, .. } = &mut self.core;
        let origin =
            Origin { time: rows.clock.last(), writer: rows.own, sequence: builder.sequence(), own: rows.own };
        // Operations that the builder encoded decode.
        for op in builder.ops_since(from).flatten() {
            rows.table.apply(&op, origin);
        }
    }

    fn end(&mut self) -> Option<u64> {
        let sequence = self.core.builder.finish_entry()?;
        self.core.rows.changed.clear();
        self.replica.committed(sequence);
        Some(sequence)
    }

    /// Only needed if memory is limited.
    fn fetch(&mut self, need: &Need) -> Ticket {
        self.cold.as_mut().map_or(Ticket(0), |cold| cold.fetch(need, &self.core.rows.table))
    }

    fn load_all(&mut self, limit: u64) -> bool {
        self.core.rows.table.load_all(limit)
    }

    fn completed(&mut self, tickets: &mut Vec<Ticket>) {
        self.cold.iter_mut().for_each(|cold| cold.completed(tickets));
    }

    fn flush(&mut self) -> Result<Position, FlushError> {
        let last = (self.writer(), self.last_sequence());
        let is_news = std::mem::replace(&mut self.told, last) != last;
        let handed = self.hand_over();
        if handed.is_ok() {
            self.force_log();
        }
        if let Some(lost) = self.trouble.as_ref().filter(|trouble| trouble.is_final()) {
            return Err(FlushError::Final(lost.to_string()));
        }
        let unproven = self.unproven();
        let is_told = std::mem::replace(&mut self.told_unproven, unproven.is_some());
        match (handed, unproven) {
            (_, Some(doubt)) if !is_told => Err(FlushError::Unproven(doubt)),
            // It may take as long as the disk is broken. Whoever reads is not made to wait for that.
            (_, Some(_)) => Ok(Position(self.core.log.sync().synced())),
            (Err(trouble), None) if is_news => Err(FlushError::Doubtful(trouble.doubt())),
            _ => Ok(Position(self.core.log.written())),
        }
    }

    fn spill(&mut self) -> bool {
        self.hand_over().is_ok()
    }

    fn before_write(&mut self) {
        if self.first_write.is_some() {
            self.hold_first_write();
        }
    }

    fn write_refusal(&self) -> Option<String> {
        match (&self.trouble, &self.renewal) {
            (Some(trouble), _) => Some(trouble.to_string()),
            (None, Some(reason)) => {
                Some(format!("DISK this region cannot begin anew yet, which it must: {reason}"))
            }
            (None, None) => self.crowded().or(self.excluded.as_deref()).map(ToOwned::to_owned),
        }
    }

    fn durable(&self) -> Position {
        match self.config.fsync {
            FsyncMode::Always => Position(self.core.log.sync().synced()),
            FsyncMode::EverySecond | FsyncMode::Never => Position(u64::MAX),
        }
    }

    fn last_sequence(&self) -> u64 {
        self.replica.held().get(self.replica.own())
    }

    fn writer(&self) -> u64 {
        self.replica.own().0.into()
    }

    fn held(&self) -> &VersionVector {
        self.replica.held()
    }

    fn end_of(&self, actor: ActorIndex) -> Option<u64> {
        self.replica.end_of(actor)
    }

    fn acknowledged(&self, sequence: u64) -> usize {
        self.replica.acknowledged(sequence, self.core.rows.table.actors())
    }

    fn is_joining(&self) -> bool {
        self.replica.is_joining()
    }

    fn is_whole(&self) -> bool {
        self.replica.is_whole()
    }

    fn clock_ahead_ms(&self) -> Option<u64> {
        self.replica.clock_ahead_ms()
    }

    fn memory_bytes(&self) -> Option<u64> {
        Some(self.core.rows.table.memory_bytes())
    }

    fn memory_limit(&self) -> Option<(u64, u64)> {
        self.config.memory.map(|limit| (limit, self.core.rows.table.cold_keys()))
    }

    fn regions(&self) -> usize {
        self.replica.member_count()
    }

    fn is_sweeper(&self) -> bool {
        self.replica.is_sweeper()
    }

    fn swept_until(&self, extent: Extent) -> HybridTime {
        let passed = match extent {
            Extent::Whole => self.replica.passed(),
            Extent::Data => self.replica.passed_without_away(),
        };
        passed.min(self.now())
    }

    fn due(&mut self, extent: Extent, until: HybridTime, limit: usize) -> Vec<(u8, Box<[u8]>)> {
        self.cold.iter_mut().for_each(|cold| cold.look_for_due(&self.core.rows.table, extent, until));
        self.core.rows.table.due(extent, until, limit)
    }

    fn turn(&mut self) -> bool {
        self.tend();
        self.keep_time();
        let mut incoming = std::mem::take(&mut self.incoming);
        if self.takes_entries() && !self.held_frames.is_empty() {
            // They came before.
            self.held_frames.append(&mut incoming);
            incoming = std::mem::take(&mut self.held_frames);
        }
        let room = TURN_MESSAGES.saturating_sub(incoming.len());
        let mut more = self.shared.inbox().take(room, &mut incoming);
        let mut bytes = self.deliver_kept();
        while let Some(next) = incoming.pop_front() {
            if let Incoming::Frame { bytes: frame, .. } = &next {
                if !self.takes_entries() {
                    // As long as they are held, their link brings no more than a few.
                    self.held_frames.push_back(next);
                    continue;
                }
                bytes += frame.len();
            }
            if !self.stopped || matches!(next, Incoming::Question(_)) {
                self.receive(next);
            }
            if bytes >= TURN_BYTES {
                break;
            }
        }
        more |= !incoming.is_empty();
        self.incoming = incoming;
        // At least one frame, so that whoever is far behind gets on however busy the others are.
        while !self.stopped
            && self.takes_entries()
            && self.may_take_bulk()
            && let Some(next) = self.shared.inbox().take_bulk()
        {
            if let Incoming::Bulk { bytes: frame, .. } | Incoming::Block { bytes: frame, .. } = &next {
                bytes += frame.len();
            }
            self.receive(next);
            if bytes >= TURN_BYTES {
                break;
            }
        }
        // While nothing is taken it waits where it is, and its connection with it.
        more |= self.takes_entries() && self.may_take_bulk() && self.shared.inbox().has_bulk();
        more |= self.keep_snapshot();
        more |= self.keep_checkpoint();
        more |= self.keep_memory();
        if self.stopped || self.is_alone() {
            return more;
        }
        if self.core.log.has_batch() {
            // What arrived is shown and acknowledged without waiting for a client.
            let _ = self.hand_over();
        }
        while let Some((actor, sequence)) = self.core.log.next_synced() {
            self.replica.synced(actor, sequence);
        }
        self.acknowledge();
        self.look_whether_behind();
        if self.replica.heartbeat_due() {
            self.heartbeat();
        }
        more
    }
}

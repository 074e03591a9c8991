//! How what is written here comes into the log, and why at times nothing may be written.

use std::io;
use std::time::Instant;

use geode_crdt::{ActorId, FrameBuilder};
use geode_store::Engine;

use super::{Embedded, TIMER};
use crate::cold::Cold;
use crate::config::FsyncMode;
use crate::delivery::Core;
use crate::identity::IdentityFile;
use crate::log::Durability;
use crate::recovery;
use crate::rows::Rows;
use crate::trouble::Trouble;

impl Embedded {
    /// Whether entries may be written now without waiting for anything.
    pub(crate) fn may_write(&mut self) -> bool {
        if self.first_write.is_some_and(|until| self.is_known() || Instant::now() >= until) {
            self.first_write = None;
        }
        !self.replica.is_joining()
            && !self.stopped
            && self.trouble.is_none()
            && self.renewal.is_none()
            && self.first_write.is_none()
            && self.excluded.is_none()
            && self.replica.clock_ahead_ms().is_none()
    }

    /// Whether peers have said what they know of this region.
    pub(super) fn is_known(&self) -> bool {
        self.replica.all_answered() && !self.replica.awaits_verdict()
    }

    /// Waits for peers to say whether they hold more of this writer than it remembers.
    pub(super) fn hold_first_write(&mut self) {
        // Whoever is excluded writes nothing, and if it is taken in again has this still to do.
        while let Some(until) = self.first_write.filter(|_| self.excluded.is_none()) {
            self.turn();
            if self.is_known() || Instant::now() >= until {
                self.first_write = None;
            } else if self.first_write.is_some() {
                self.shared.inbox().wait(TIMER);
            }
        }
    }

    /// Goes on under a new actor, after everything that was written under the old one. If the log does not take it now,
    /// nothing is written until it does.
    pub(super) fn begin_incarnation(&mut self, reason: &str) {
        let taken = self.hand_over().map_err(|trouble| trouble.to_string()).and_then(|_| {
            let incarnation = recovery::random().map_err(|error| error.to_string())?;
            self.core.log.append_incarnation(incarnation);
            Ok(incarnation)
        });
        let incarnation = match taken {
            Ok(incarnation) => incarnation,
            Err(error) => {
                tracing::error!("no new incarnation can be taken yet: {error}");
                self.renewal = Some(reason.to_owned());
                return;
            }
        };
        self.renewal = None;
        tracing::warn!("this region goes on as incarnation {incarnation:016x}: {reason}");
        let rows: &mut Rows = &mut self.core.rows;
        let own = rows.table.actors_mut().intern(&ActorId::new(&self.config.region, incarnation));
        rows.begin_incarnation(own, self.replica.held());
        self.replica.begin_incarnation(own);
        self.core.builder = FrameBuilder::new(own, 1);
        self.first_write = None;
        let recorded = self.identity.record(true, |identity| {
            identity.incarnation = format!("{incarnation:016x}");
        });
        if let Err(error) = recorded {
            tracing::error!(%error, "the new incarnation cannot be recorded; the next start takes another");
        }
        // It stands before everything that is written under it, whenever the log takes it.
        let _ = self.hand_over();
    }

    /// Hands everything to the kernel and shows it to others, or shows why that cannot be done.
    pub(crate) fn hand_over(&mut self) -> Result<u64, Trouble> {
        let flushed = self.flush_log();
        if flushed.is_ok() {
            self.publish();
        }
        if self.trouble.as_ref() != self.core.log.trouble() {
            self.note_trouble();
        }
        flushed
    }

    /// With `fsync = always`: sees to it that what was handed over comes onto the disk.
    pub(super) fn force_log(&self) {
        let sync = self.core.log.sync();
        match sync.sync_soon() {
            Ok(false) => {}
            // Peers are told of what is on disk in the next turn.
            Ok(true) if self.is_alone() => {}
            Ok(true) => self.shared.inbox().wake(),
            Err(error) => {
                tracing::error!(%error, "the log cannot be forced onto the disk");
                self.distrust_log();
            }
        }
    }

    /// After a failed fsync: the next turn sees to it.
    pub(crate) fn distrust_log(&self) {
        distrust(&self.identity, self.core.log.sync());
        self.shared.inbox().wake();
    }

    pub(super) fn flush_log(&mut self) -> Result<u64, Trouble> {
        let Core { rows, log, builder, .. } = &mut self.core;
        if self.stopped && !builder.is_empty() {
            let error = io::Error::other("this geode has stopped");
            return Err(Trouble::of(&error, log.segments().directory()));
        }
        let clock = rows.clock.last();
        log.sync().floor().observe(clock);
        let writes = (log.has_batch() || !builder.is_empty()) && !log.is_waiting();
        if writes && clock > log.sync().floor().reserved() {
            // Only if the sync thread did not get to it for seconds.
            if let Err(error) = log.sync().floor().renew(log.sync().synced()) {
                let trouble = log.refuse(&error);
                self.core.close_batch();
                return Err(trouble);
            }
        }
        let position = self.core.flush()?;
        if self.core.log.take_rotated() {
            self.record_segments();
        }
        Ok(position)
    }

    /// With `fsync = always`: what those hear who wait for the disk, if new files could not take the old ones' place at once.
    pub(super) fn unproven(&self) -> Option<String> {
        let trouble = self.trouble.as_ref().filter(|_| self.config.fsync == FsyncMode::Always)?;
        self.core.log.sync().is_repair_delayed().then(|| trouble.doubt())
    }

    /// Until it is recorded that these are the log's files, a start would take them for others'.
    pub(super) fn record_segments(&mut self) {
        let durable = self.config.fsync == FsyncMode::Always;
        let recorded = recovery::segment_files(self.core.log.segments())
            .and_then(|segments| self.identity.record(durable, |identity| identity.segments = segments));
        self.unrecorded = recorded.is_err();
        if let Err(error) = recorded {
            tracing::warn!(%error, "a new segment of the log cannot be recorded yet");
        }
    }

    /// Shows others, and the operator, whether writes are taken.
    pub(super) fn note_trouble(&mut self) {
        let trouble = self.core.log.trouble().cloned();
        match &trouble {
            None => tracing::info!("the log takes writes again"),
            Some(trouble) => tracing::error!("{trouble}"),
        }
        if trouble.as_ref().is_some_and(Trouble::is_write_failure) {
            // What the system has done with what it was given is not known. Of a failed fsync the sync thread has said so.
            distrust(&self.identity, self.core.log.sync());
        }
        self.trouble = trouble;
        self.show_refusal();
    }

    /// Lets clients and operator know whether other regions take what is written here.
    pub(super) fn note_exclusion(&mut self) {
        self.excluded = self.replica.exclusion().map(ToOwned::to_owned);
        match &self.excluded {
            Some(reason) => tracing::error!("writes are refused: {reason}"),
            None => tracing::info!("other regions take what is written here again"),
        }
        self.show_refusal();
    }

    /// Lets replica and operator know whether writes and entries are taken.
    pub(super) fn show_refusal(&mut self) {
        let others = self.crowded().or(self.excluded.as_deref()).map(ToOwned::to_owned);
        self.shared.show_trouble(self.trouble.as_ref().map(ToString::to_string).or(others));
        self.replica.suspend(!self.takes_entries());
    }

    /// Why memory takes no more rows now.
    pub(super) fn crowded(&self) -> Option<&str> {
        self.cold.as_ref().and_then(Cold::refusal)
    }

    /// Whether log and memory take what comes from other regions.
    pub(super) fn takes_entries(&self) -> bool {
        self.trouble.is_none() && self.crowded().is_none()
    }

    /// Tries again what the disk refused.
    pub(super) fn tend(&mut self) {
        if self.trouble.is_some() || self.core.log.sync().has_failed() {
            let _ = self.hand_over();
        }
        if self.trouble.is_none() {
            if let Some(reason) = self.renewal.take() {
                self.begin_incarnation(&reason);
            }
            if self.unrecorded {
                self.record_segments();
            }
        }
    }
}

/// Records that what was written may be lost, and first the time that it may have had.
pub(crate) fn distrust(identity: &IdentityFile, sync: &Durability) {
    if let Err(error) = sync.floor().say_clock(sync.synced()) {
        // Then nothing may prove that the log is whole: the next start goes on above all time that was reserved.
        tracing::error!(%error, "the floor of time cannot be written");
        return identity.forget();
    }
    identity.distrust();
}

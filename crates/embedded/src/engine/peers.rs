//! What other regions say, and what they are told.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use geode_crdt::{ActorIndex, HybridTime};
use geode_replica::{Action, Message, Report, wire};
use geode_store::View;

use super::{Embedded, TURN_BYTES};
use crate::inbox::Incoming;
use crate::outbox::{Outbox, Range, Stream};

impl Embedded {
    /// Handles it, unless entries have to wait until the keys that they meet were read.
    pub(super) fn receive(&mut self, incoming: Incoming) {
        let now = match &mut self.cold {
            Some(cold) => cold.receive(incoming, &mut self.core.rows.table),
            None => Some(incoming),
        };
        now.into_iter().for_each(|incoming| self.handle(incoming));
    }

    /// Delivers entries that had to wait. Returns how many bytes.
    pub(super) fn deliver_kept(&mut self) -> usize {
        let mut delivered = 0;
        while delivered < TURN_BYTES
            && !self.stopped
            && self.takes_entries()
            && let Some(next) = self.cold.as_mut().and_then(|cold| cold.arrivals().next())
        {
            if let Incoming::Frame { bytes, .. } | Incoming::Bulk { bytes, .. } = &next {
                delivered += bytes.len();
            }
            self.handle(next);
        }
        delivered
    }

    pub(super) fn may_take_bulk(&mut self) -> bool {
        self.cold.as_mut().is_none_or(|cold| !cold.arrivals().is_full_of_bulk())
    }

    pub(super) fn handle(&mut self, incoming: Incoming) {
        match incoming {
            Incoming::Connected { peer, outbox } => {
                if let Some(old) = self.links.insert(Arc::clone(&peer), outbox) {
                    old.close();
                    self.drop_stale_frames();
                    self.replica.lost(&peer);
                }
                self.replica.connected(&peer, &mut self.core);
            }
            Incoming::Lost { peer, outbox } if self.is_current(&peer, &outbox) => self.unlink(&peer),
            Incoming::Message { peer, outbox, message, .. } if self.is_current(&peer, &outbox) => {
                match &message {
                    Message::Hello { held, .. } => self.shared.peer_holds(&peer, held.clone()),
                    Message::Heartbeat { held: news, .. } | Message::Durable { durable: news } => {
                        self.shared.peer_grew(&peer, news);
                    }
                    _ => {}
                }
                self.replica.message(&peer, message, &mut self.core);
            }
            Incoming::Frame { peer, outbox, bytes, .. } if self.is_current(&peer, &outbox) => {
                self.replica.frame(&peer, &bytes, &mut self.core);
            }
            // An entry is an entry, whichever connection brought it.
            Incoming::Bulk { peer, bytes, .. } => self.replica.frame(&peer, &bytes, &mut self.core),
            Incoming::Block { peer, bytes, permit } => self.snapshot_block(&peer, bytes, permit),
            Incoming::BulkEnded { peer } => self.replica.snapshot_interrupted(&peer),
            Incoming::BulkLost { peer, outbox } if self.is_current(&peer, &outbox) => {
                self.replica.stream_again(&peer, self.core.rows.table.actors());
            }
            Incoming::Question(answer) => answer(self),
            // What a link still had when another took its place, or the peer was sent away.
            Incoming::Lost { .. }
            | Incoming::Message { .. }
            | Incoming::Frame { .. }
            | Incoming::BulkLost { .. } => {}
        }
        self.act();
    }

    pub(super) fn is_current(&self, peer: &Arc<str>, outbox: &Arc<Outbox>) -> bool {
        self.links.get(peer).is_some_and(|current| Arc::ptr_eq(current, outbox))
    }

    /// Drops held frames of links that are gone: what they brought is sent again.
    pub(super) fn drop_stale_frames(&mut self) {
        let links = &self.links;
        self.held_frames.retain(|held| match held {
            Incoming::Frame { peer, outbox, .. } => {
                links.get(peer).is_some_and(|current| Arc::ptr_eq(current, outbox))
            }
            _ => true,
        });
    }

    pub(super) fn unlink(&mut self, peer: &Arc<str>) {
        if let Some(outbox) = self.links.remove(peer) {
            outbox.close();
        }
        self.drop_stale_frames();
        self.shared.peer_lost(peer);
        self.replica.lost(peer);
    }

    pub(crate) fn act(&mut self) {
        self.learn();
        while let Some(action) = self.replica.next_action() {
            match action {
                Action::Send { peer, message } => {
                    if let Some(outbox) = self.links.get(&peer) {
                        outbox.send(message);
                    }
                }
                Action::Stream { peer, held } => {
                    self.note_trimmed_own(&peer, &held);
                    let stream = self.stream(&peer, &held);
                    if let Some(outbox) = self.links.get(&peer) {
                        outbox.stream(stream);
                    }
                }
                Action::Serve { peer, actor, from, to } => {
                    let position = self.core.log.index().seek(actor, from);
                    self.note_trimmed(&peer, actor, from);
                    let actor = self.core.rows.table.actors().id(actor).clone();
                    if let (Some(outbox), Some(position)) = (self.links.get(&peer), position) {
                        outbox.serve(Range { position, actor, from, to });
                    }
                }
                Action::Fetch { peer } => self.fetch_snapshot(&peer),
                Action::SendSnapshot { peer, attempt, resume } => self.send_snapshot(&peer, attempt, resume),
                Action::Join => self.join_snapshot(),
                Action::DiscardSnapshot { reason } => self.discard_snapshot(&reason),
                Action::Disconnect { peer, reason } => {
                    tracing::warn!(%peer, "replication link closed: {reason}");
                    self.unlink(&peer);
                }
                Action::NewIncarnation { reason } => self.begin_incarnation(&reason),
                Action::Report(Report::Refused { peer, reason }) => {
                    tracing::error!("replication with {peer} was refused: {reason}");
                }
                Action::Report(Report::OutOfReach { source, actor, from }) => tracing::warn!(
                    "entry {from} of {actor} is in nobody's log any more: this region has been away for too long, or is new. All \
                     rows are fetched from {source}"
                ),
                Action::Report(Report::NoSnapshot { peer, reason }) => {
                    tracing::info!("{peer} sends no snapshot now: {reason}");
                }
                Action::Report(Report::OwnClock { ahead_ms: Some(ahead_ms) }) => tracing::error!(
                    "this region's clock is {ahead_ms} ms ahead of the other regions': writes are refused until it is \
                     right; set it (NTP)"
                ),
                Action::Report(Report::OwnClock { ahead_ms: None }) => {
                    tracing::info!(
                        "this region's clock is no longer ahead of the other regions': writes go on"
                    );
                }
                Action::Report(Report::BeyondEnd { actor, end, sequence }) => tracing::warn!(
                    "entry {sequence} of {actor} is discarded: the planet agreed that it ended at {end}"
                ),
                Action::Report(Report::Ahead { actor, sequence, ahead_ms }) => tracing::warn!(
                    "entry {sequence} of {actor} is {ahead_ms} ms ahead of this machine's clock and is held back until \
                     it is not; check the clocks of both"
                ),
            }
        }
        if self.excluded.as_deref() != self.replica.exclusion() {
            self.note_exclusion();
        }
    }

    /// The peers that still need what the log no longer holds.
    pub(super) fn out_of_reach(&self) -> BTreeSet<String> {
        let needs = |peer: &str, actor: ActorIndex| {
            let held = self.replica.peers().find(|(region, ..)| ***region == *peer);
            held.is_some_and(|(.., held)| {
                let next = held.get(actor) + 1;
                next <= self.replica.held().get(actor) && self.core.log.index().is_trimmed(actor, next)
            })
        };
        let peers = self.out_of_reach.iter().filter(|(peer, actor)| needs(peer, *actor));
        peers.map(|(peer, _)| peer.to_string()).collect()
    }

    /// Tells a peer, if it needs an entry that this log no longer holds. It asks others, or for a snapshot.
    pub(super) fn note_trimmed(&mut self, peer: &Arc<str>, actor: ActorIndex, from: u64) {
        if !self.core.log.index().is_trimmed(actor, from) {
            return;
        }
        let id = self.core.rows.table.actors().id(actor).clone();
        let knows_snapshots = self.replica.version_with(peer) >= wire::SNAPSHOTS_SINCE;
        if self.out_of_reach.insert((Arc::clone(peer), actor)) {
            tracing::warn!(
                "{peer} needs entry {from} of {id}, which the log of this region no longer holds (store.retention): {peer} \
                 has been away for too long, or is new{}",
                if knows_snapshots { "" } else { ", and its release knows no snapshots: upgrade it" }
            );
        }
        if let Some(outbox) = self.links.get(peer).filter(|_| knows_snapshots) {
            outbox.send(Message::Trimmed { actor: id, from });
        }
    }

    /// The same for what this region would stream to a peer that holds `held` of it.
    pub(super) fn note_trimmed_own(&mut self, peer: &Arc<str>, held: &[(ActorIndex, u64)]) {
        for (actor, sequence) in self.missing_own(held) {
            self.note_trimmed(peer, actor, sequence);
        }
    }

    /// The first entry of each of this region's actors that a peer lacks.
    pub(super) fn missing_own(&self, held: &[(ActorIndex, u64)]) -> Vec<(ActorIndex, u64)> {
        let actors = self.core.rows.table.actors();
        let own =
            self.replica.held().iter().filter(|(actor, _)| *actors.id(*actor).region == *self.config.region);
        let of_peer =
            |actor| held.iter().find(|(held, _)| *held == actor).map_or(0, |(_, sequence)| *sequence);
        let missing = own.filter(|(actor, sequence)| of_peer(*actor) < *sequence);
        missing.map(|(actor, _)| (actor, of_peer(actor) + 1)).collect()
    }

    /// Where the stream to a peer begins that holds `held` of this region's actors.
    pub(super) fn stream(&self, peer: &str, held: &[(ActorIndex, u64)]) -> Stream {
        let actors = self.core.rows.table.actors();
        let missing = self.missing_own(held).into_iter();
        let starts = missing.filter_map(|(actor, sequence)| self.core.log.index().seek(actor, sequence));
        Stream {
            position: starts.min().unwrap_or_else(|| self.core.log.written()),
            held: held.iter().map(|(actor, sequence)| (actors.id(*actor).incarnation, *sequence)).collect(),
            packs: self.replica.version_with(peer) >= wire::PACKED_SINCE,
        }
    }

    /// Says to peers where this region stands. Nothing is promised that a restart could break: while the log or the floor
    /// of time cannot be written, what was said before is said again.
    pub(super) fn heartbeat(&mut self) {
        if self.hand_over().is_err() || self.promise().is_err() {
            self.replica.repeat_heartbeat();
        }
        self.act();
    }

    pub(super) fn promise(&mut self) -> io::Result<()> {
        let sync = self.core.log.sync();
        let clock = &mut self.core.rows.clock;
        // A clock that is too far ahead must not take hybrid time along, or writes would wait long after it was set.
        let ahead_us = self.replica.clock_ahead_ms().unwrap_or(0) * 1000;
        let now = clock.peek(HybridTime((self.config.clock)().0.saturating_sub(ahead_us)));
        sync.floor().observe(now);
        let promise = now.min(sync.floor().reserved());
        sync.floor().say(promise, sync.synced())?;
        clock.observe(promise);
        self.replica.heartbeat(promise, self.core.rows.table.actors());
        Ok(())
    }

    /// Tells writers what of theirs came onto the disk.
    pub(super) fn acknowledge(&mut self) {
        let monotonic_ms = self.started.elapsed().as_millis() as u64;
        if let Some(wait_ms) = self.replica.acknowledge(monotonic_ms, self.core.rows.table.actors()) {
            self.shared.wake_in(wait_ms);
        }
        self.act();
    }

    /// Shows what is in the kernel to other threads.
    pub(super) fn publish(&mut self) {
        let actors = self.core.rows.table.actors();
        let mut grew = false;
        for (actor, sequence) in self.replica.held().iter() {
            if sequence > self.published.get(actor) {
                self.published.raise(actor, sequence);
                self.shared.publish(actor, sequence, actors);
                grew = true;
            }
        }
        if grew {
            self.shared.notify();
        }
    }
}

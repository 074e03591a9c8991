//! Wall clocks: entries that are too far ahead wait, and a region whose own clock is too far ahead stops writing.
//!
//! Each heartbeat carries its speaker's wall clock. Whoever hears it subtracts its own: that is how far the speaker is
//! ahead *less the time that the heartbeat took*, so no latency, queue or stall is ever mistaken for drift. The hearer
//! says the difference in its next heartbeat. An entry is held back by the very same difference, so a region refuses to
//! write exactly when its entries would wait elsewhere. Half of a measured round trip would come closer to the true drift,
//! and be wrong wherever the two ways differ.
//!
//! Who is right cannot be known; a region gives way if it is ahead of *more than half* of those it is in touch with, so
//! that one slow clock does not stop all the others. A region that is alone never gives way.

use geode_crdt::{ActorIndex, Actors, HybridTime};

use crate::peer::Peer;
use crate::replica::{Action, Replica, Report};

/// How far an entry, or this region's own clock, may be ahead, in microseconds: well above what NTP leaves between healthy
/// machines.
const DRIFT_US: u64 = 500_000;
/// The shortest time between two reports on this region's own clock, in case it hovers about the limit.
const REPORT_PAUSE_MS: u64 = 1_000;

/// What is known of this region's own clock.
#[derive(Debug, Default)]
pub(crate) struct OwnClock {
    /// How far it is ahead of more than half of the peers in touch, at least.
    ahead_us: u64,
    reported: bool,
    reported_at_ms: Option<u64>,
}

impl Replica {
    /// How far this region's wall clock is ahead of the other regions', in milliseconds, if that is so far that nothing
    /// may be written: `None` as soon as it is right again.
    pub fn clock_ahead_ms(&self) -> Option<u64> {
        (self.own_clock.ahead_us > DRIFT_US).then_some(self.own_clock.ahead_us / 1000)
    }

    /// A heartbeat said what a peer's clock reads, and what it thinks of ours.
    pub(crate) fn compare_clocks(&mut self, index: usize, wall: HybridTime, ours_ahead_us: u64) {
        let peer = &mut self.peers[index];
        peer.ahead_us = wall.0.saturating_sub(self.now.wall.0);
        peer.behind_us = ours_ahead_us;
        self.judge_own_clock();
    }

    /// The link to a peer is new, or gone: what was known of its clock is of another time.
    pub(crate) fn forget_clock(&mut self, index: usize) {
        let peer = &mut self.peers[index];
        (peer.ahead_us, peer.behind_us) = (0, 0);
        self.judge_own_clock();
    }

    fn judge_own_clock(&mut self) {
        let in_touch = self.peers.iter().filter(|peer: &&Peer| peer.is_up());
        let mut leads: Vec<u64> = in_touch.map(|peer| peer.behind_us).collect();
        leads.sort_unstable_by(|left, right| right.cmp(left));
        // So many and one more say at least this.
        self.own_clock.ahead_us = leads.get(leads.len() / 2).copied().unwrap_or(0);
    }

    /// Tells the operator when writes stop and when they go on.
    pub(crate) fn report_own_clock(&mut self) {
        let (ahead_ms, now_ms) = (self.clock_ahead_ms(), self.now.monotonic_ms);
        let clock = &mut self.own_clock;
        let is_early = clock.reported_at_ms.is_some_and(|at_ms| now_ms < at_ms + REPORT_PAUSE_MS);
        if clock.reported != ahead_ms.is_some() && !is_early {
            (clock.reported, clock.reported_at_ms) = (ahead_ms.is_some(), Some(now_ms));
            self.actions.push_back(Action::Report(Report::OwnClock { ahead_ms }));
        }
    }

    /// The latest time at which an entry may be delivered now.
    pub(crate) fn latest(&self) -> HybridTime {
        HybridTime(self.now.wall.0.saturating_add(DRIFT_US))
    }

    /// Tells the operator, once, that an entry is held back.
    pub(crate) fn report_ahead(
        &mut self,
        actors: &Actors,
        actor: ActorIndex,
        sequence: u64,
        time: HybridTime,
    ) {
        let reported = self.reported_ahead.entry(actor).or_insert(0);
        if *reported < sequence {
            *reported = sequence;
            let ahead_ms = (time.0 - self.now.wall.0) / 1000;
            let actor = actors.id(actor).clone();
            self.actions.push_back(Action::Report(Report::Ahead { actor, sequence, ahead_ms }));
        }
    }
}

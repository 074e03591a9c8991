//! Entries that do not come by themselves: whom to ask for them, and when.
//!
//! Normally a region streams its own entries and nobody asks for anything. Three things break that: the region is dead
//! or cut off while others hold more of it; the bound on undeliverable frames made this replica drop some; this
//! replica's own tail is lost here and known elsewhere. One peer is asked for one range of one actor at a time.

use std::collections::BTreeMap;
use std::sync::Arc;

use geode_crdt::{ActorIndex, Actors};

use crate::peer::Link;
use crate::pending::Blocked;
use crate::replica::Replica;
use crate::wire::Message;

/// How long a link may be down before others are asked for that region's entries: a reconnect is usually quicker, and
/// resumes without sending anything twice.
const GRACE_MS: u64 = 1_000;
/// How long entries that exist may fail to arrive before they are asked for: several of the longest round trips on
/// Earth, which take 0.4 s.
const PATIENCE_MS: u64 = 2_000;
/// How many entries are asked for at once, so that little comes twice if their region returns meanwhile.
const RANGE: u64 = 100_000;

/// What is missing and what was asked for.
#[derive(Debug, Default)]
pub(crate) struct CatchUp {
    lags: BTreeMap<ActorIndex, Lag>,
    /// The entries that this replica dropped for want of room, first and last: they do not come by themselves.
    dropped: BTreeMap<ActorIndex, (u64, u64)>,
}

/// An actor of which others hold more.
#[derive(Debug)]
struct Lag {
    /// How many entries of the actor's region were held when it was last looked at: while its other incarnations are
    /// still arriving, this one's turn is to come.
    progress: u64,
    /// Since when nothing more came.
    since_ms: u64,
    /// Who was asked, up to which entry.
    asked: Option<(usize, u64)>,
    /// Who was asked last and did not deliver.
    failed: Option<usize>,
}

impl CatchUp {
    /// Entries of `actor` were dropped on arrival.
    pub(crate) fn dropped(&mut self, actor: ActorIndex, first: u64, last: u64) {
        let range = self.dropped.entry(actor).or_insert((first, last));
        *range = (range.0.min(first), range.1.max(last));
    }

    /// A peer will not send the entries of `actor` that are lacking: its log does not hold them.
    pub(crate) fn trimmed(&mut self, actor: ActorIndex, peer: usize) {
        if let Some(lag) = self.lags.get_mut(&actor)
            && lag.asked.is_some_and(|(asked, _)| asked == peer)
        {
            lag.asked = None;
            lag.failed = Some(peer);
        }
    }

    /// Whoever was asked there will not answer.
    pub(crate) fn lost(&mut self, peer: usize) {
        for lag in self.lags.values_mut() {
            if lag.asked.is_some_and(|(asked, _)| asked == peer) {
                lag.asked = None;
                lag.failed = Some(peer);
            }
        }
    }
}

impl Replica {
    pub(crate) fn ask_for_missing(&mut self, actors: &Actors) {
        let missing = self.missing();
        self.catch_up.lags.retain(|actor, _| missing.contains_key(actor));
        let held = &self.held;
        self.catch_up.dropped.retain(|actor, (_, last)| held.get(*actor) < *last);
        for (actor, most) in missing {
            self.ask_for(actor, most, actors);
        }
    }

    /// What is known to exist and not held: by actor, the greatest sequence that a connected peer holds.
    fn missing(&self) -> BTreeMap<ActorIndex, u64> {
        let mut missing = BTreeMap::new();
        let mut note = |actor, sequence: u64| {
            let sequence = self.ends.clamp(actor, sequence);
            if sequence > self.held.get(actor) && !self.pending.has_next(actor, self.held.get(actor) + 1) {
                let most = missing.entry(actor).or_insert(sequence);
                *most = sequence.max(*most);
            }
        };
        for peer in self.peers.iter().filter(|peer| peer.is_up()) {
            peer.held.iter().for_each(|(actor, sequence)| note(actor, sequence));
        }
        for (_, blocked) in self.pending.blockers() {
            if let Blocked::Entry(actor, sequence) = blocked {
                note(actor, sequence);
            }
        }
        missing
    }

    fn ask_for(&mut self, actor: ActorIndex, most: u64, actors: &Actors) {
        let (now_ms, held) = (self.now.monotonic_ms, self.held.get(actor));
        let region = &actors.id(actor).region;
        let of_region = self.held.iter().filter(|(other, _)| actors.id(*other).region == *region);
        let progress = of_region.map(|(_, sequence)| sequence).sum();
        let fresh = Lag { progress, since_ms: now_ms, asked: None, failed: None };
        let lag = self.catch_up.lags.entry(actor).or_insert(fresh);
        if lag.progress < progress {
            (lag.progress, lag.since_ms) = (progress, now_ms);
        }
        let stalled = now_ms >= lag.since_ms + PATIENCE_MS;
        if let Some((peer, to)) = lag.asked {
            if held < to && !stalled {
                return;
            }
            lag.asked = None;
            if held < to {
                (lag.failed, lag.since_ms) = (Some(peer), now_ms);
            }
        }
        let failed = lag.failed;
        let was_dropped = self.catch_up.dropped.get(&actor).is_some_and(|(first, _)| *first <= held + 1);
        let is_gone = self.snapshots.is_gone_somewhere(actor, held);
        if !stalled && !was_dropped && !is_gone && !self.is_silent(region, now_ms) {
            return;
        }
        let Some(peer) = self.supplier(actor, held, region, failed) else { return };
        let to = most.min(held + RANGE);
        if let Some(lag) = self.catch_up.lags.get_mut(&actor) {
            (lag.asked, lag.since_ms) = (Some((peer, to)), now_ms);
        }
        self.send(peer, Message::Request { actor: actors.id(actor).clone(), from: held + 1, to });
    }

    /// Whether nothing will come from a region by itself: it is this one, or its link has been down for a while.
    fn is_silent(&self, region: &Arc<str>, now_ms: u64) -> bool {
        let peer = self.peers.iter().find(|peer| peer.region == *region);
        region == self.region()
            || peer.is_none_or(|peer| peer.link == Link::Down && peer.is_away(now_ms, GRACE_MS))
    }

    /// Who holds more and has not said that its log does not: the region itself first, whoever failed last.
    fn supplier(
        &self,
        actor: ActorIndex,
        held: u64,
        region: &Arc<str>,
        failed: Option<usize>,
    ) -> Option<usize> {
        let peers = self.peers.iter().enumerate();
        let able = peers.filter(|(index, peer)| {
            peer.is_up() && peer.held.get(actor) > held && !self.snapshots.is_gone(actor, held, *index)
        });
        let ranked = able.min_by_key(|(index, peer)| (failed == Some(*index), peer.region != *region));
        ranked.map(|(index, _)| index)
    }
}

//! Sums that are wholly cancelled, waiting for the moment at which they may be dropped.
//!
//! The owner of the sum drops the pair as soon as it has the cancel: it will never again extend that run. Others must
//! wait for an entry of the owner, delivered in order, that depends on the cancel: until then an increment that the
//! owner wrote before it saw the cancel may still arrive, and without the cancel all of it would count again. Hearing
//! by gossip that the owner has the cancel is not enough, for the same reason.

use std::collections::BTreeMap;

use geode_crdt::{ActorIndex, Kind, Mark, VersionVector};

/// A cell whose run of some owner is dead, and by which entry.
#[derive(Debug)]
pub(super) struct DeadRun {
    pub(super) database: u8,
    pub(super) name: Box<[u8]>,
    pub(super) kind: Kind,
    pub(super) element: Box<[u8]>,
    /// What the cancel reached. If a later cancel took its place, the owner need not have seen that one.
    pub(super) upto: Mark,
    pub(super) canceller: ActorIndex,
    pub(super) sequence: u64,
}

/// Dead runs by owner, and what each owner's delivered entries depend on.
#[derive(Debug, Default)]
pub(super) struct DeadRuns {
    waiting: BTreeMap<ActorIndex, Vec<DeadRun>>,
    seen_by: BTreeMap<ActorIndex, VersionVector>,
}

impl DeadRuns {
    pub(super) fn push(&mut self, owner: ActorIndex, run: DeadRun) {
        self.waiting.entry(owner).or_default().push(run);
    }

    /// Takes note of an entry of `owner`; returns the runs that may now be dropped.
    pub(super) fn delivered(
        &mut self,
        owner: ActorIndex,
        changed: impl Iterator<Item = (ActorIndex, u64)>,
    ) -> Vec<DeadRun> {
        let mut changed = changed.peekable();
        if changed.peek().is_none() {
            return Vec::new();
        }
        let seen = self.seen_by.entry(owner).or_default();
        changed.for_each(|(actor, sequence)| seen.raise(actor, sequence));
        let Some(waiting) = self.waiting.get_mut(&owner) else { return Vec::new() };
        let ready = waiting.extract_if(.., |run| run.sequence <= seen.get(run.canceller)).collect();
        if waiting.is_empty() {
            self.waiting.remove(&owner);
        }
        ready
    }
}

//! Sums that are wholly cancelled, waiting for the moment at which they may be dropped.
//!
//! The owner of the sum drops the pair as soon as it has the cancel: it will never again extend that run. Others must
//! wait for an entry of the owner, delivered in order, that depends on the cancel: until then an increment that the
//! owner wrote before it saw the cancel may still arrive, and without the cancel all of it would count again. Hearing
//! by gossip that the owner has the cancel is not enough, for the same reason.

use std::collections::{BTreeMap, BTreeSet};

use geode_crdt::{ActorIndex, Kind, Mark};

/// A cell whose run of some owner is dead.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct DeadRun {
    pub(super) database: u8,
    pub(super) name: Box<[u8]>,
    pub(super) kind: Kind,
    pub(super) element: Box<[u8]>,
    /// What the cancel reached. If a later cancel took its place, the owner need not have seen that one.
    pub(super) upto: Mark,
}

/// Dead runs by owner and canceller, and by the sequence of the cancel's entry. Causal delivery brings a cancel before
/// every entry of the owner that depends on it.
#[derive(Debug, Default)]
pub(super) struct DeadRuns {
    waiting: BTreeMap<(ActorIndex, ActorIndex), BTreeMap<u64, BTreeSet<DeadRun>>>,
    /// Of which entries of the second actor the delivered entries of the first depend: the greatest sequence.
    depends: BTreeMap<(ActorIndex, ActorIndex), u64>,
}

impl DeadRuns {
    /// Keeps a run of `owner` that an entry of `canceller` cancelled.
    pub(super) fn push(&mut self, owner: ActorIndex, (canceller, sequence): (ActorIndex, u64), run: DeadRun) {
        self.waiting.entry((owner, canceller)).or_default().entry(sequence).or_default().insert(run);
    }

    /// Whether a run of `owner` that an entry of `canceller` cancelled may be dropped already.
    pub(super) fn is_safe(&self, owner: ActorIndex, (canceller, sequence): (ActorIndex, u64)) -> bool {
        self.depends.get(&(owner, canceller)).is_some_and(|seen| *seen >= sequence)
    }

    /// What delivered entries depend on: owner, canceller, sequence. A row for each pair of actors at most.
    pub(super) fn depends(&self) -> impl Iterator<Item = (ActorIndex, ActorIndex, u64)> {
        self.depends.iter().map(|((owner, canceller), sequence)| (*owner, *canceller, *sequence))
    }

    /// Entries of `owner` that were delivered depend on `sequence` of `canceller`.
    pub(super) fn depend(&mut self, owner: ActorIndex, canceller: ActorIndex, sequence: u64) {
        let seen = self.depends.entry((owner, canceller)).or_default();
        *seen = sequence.max(*seen);
    }

    /// Takes out the runs that may be dropped, now that an entry of `owner` depends on `changed`. Logarithmic in those
    /// that wait.
    pub(super) fn delivered(
        &mut self,
        owner: ActorIndex,
        changed: impl Iterator<Item = (ActorIndex, u64)>,
    ) -> BTreeSet<DeadRun> {
        let mut ready = BTreeSet::new();
        for (canceller, sequence) in changed {
            self.depend(owner, canceller, sequence);
            let Some(waiting) = self.waiting.get_mut(&(owner, canceller)) else { continue };
            while let Some(first) = waiting.first_entry().filter(|first| *first.key() <= sequence) {
                ready.append(&mut first.remove());
            }
            if waiting.is_empty() {
                self.waiting.remove(&(owner, canceller));
            }
        }
        ready
    }
}

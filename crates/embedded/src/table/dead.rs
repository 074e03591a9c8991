//! Sums that are wholly cancelled, waiting for the moment at which they may be dropped.
//!
//! The owner of the sum drops the pair as soon as it has the cancel: it will never again extend that run. Others must
//! wait for an entry of the owner, delivered in order, that depends on the cancel: until then an increment that the
//! owner wrote before it saw the cancel may still arrive, and without the cancel all of it would count again. Hearing
//! by gossip that the owner has the cancel is not enough, for the same reason.

use std::collections::BTreeMap;

use geode_crdt::{ActorIndex, Kind, Mark};

/// A cell whose run of some owner is dead.
#[derive(Debug)]
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
    waiting: BTreeMap<(ActorIndex, ActorIndex), BTreeMap<u64, Vec<DeadRun>>>,
}

impl DeadRuns {
    /// Keeps a run of `owner` that an entry of `canceller` cancelled.
    pub(super) fn push(&mut self, owner: ActorIndex, (canceller, sequence): (ActorIndex, u64), run: DeadRun) {
        self.waiting.entry((owner, canceller)).or_default().entry(sequence).or_default().push(run);
    }

    /// Takes out the runs that may be dropped, now that an entry of `owner` depends on `changed`. Logarithmic in those
    /// that wait.
    pub(super) fn delivered(
        &mut self,
        owner: ActorIndex,
        changed: impl Iterator<Item = (ActorIndex, u64)>,
    ) -> Vec<DeadRun> {
        let mut ready = Vec::new();
        for (canceller, sequence) in changed {
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

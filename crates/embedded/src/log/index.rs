//! Where in the log an actor's entries are, coarsely.

use std::collections::BTreeMap;

use geode_crdt::ActorIndex;

/// At most one index entry per actor for this many bytes of log: 20 GiB of log take 5 MB, and a seek reads at most this
/// much in vain.
const STRIDE: u64 = 64 << 10;

/// For each actor, some of its frames: the first sequence and the record's position, both ascending.
#[derive(Debug, Default)]
pub(crate) struct Index {
    frames: BTreeMap<ActorIndex, Vec<(u64, u64)>>,
    /// Up to where an actor's entries are held without having been in this log, all of them or some.
    passed_over: BTreeMap<ActorIndex, u64>,
    /// Where the log begins; what stood before was removed.
    from: u64,
}

impl Index {
    /// Takes note of a frame.
    pub(crate) fn note(&mut self, actor: ActorIndex, first_sequence: u64, position: u64) {
        if first_sequence <= self.passed_over.get(&actor).copied().unwrap_or(0) {
            return;
        }
        let frames = self.frames.entry(actor).or_default();
        if frames.last().is_none_or(|(_, last)| position >= last + STRIDE) {
            frames.push((first_sequence, position));
        }
    }

    /// Entries of `actor` up to `upto` came with a snapshot: the log has at best some of them.
    pub(crate) fn pass_over(&mut self, actor: ActorIndex, upto: u64) {
        self.frames.remove(&actor);
        self.passed_over.insert(actor, upto);
    }

    /// What came with snapshots, for the mark of a checkpoint.
    pub(crate) fn passed_over(&self) -> impl Iterator<Item = (ActorIndex, u64)> {
        self.passed_over.iter().map(|(actor, upto)| (*actor, *upto))
    }

    /// The frames noted at `position` or behind it: actor, first sequence, position.
    pub(crate) fn since(&self, position: u64) -> Vec<(u32, u64, u64)> {
        let mut found = Vec::new();
        for (actor, frames) in &self.frames {
            let first = frames.partition_point(|(_, at)| *at < position);
            found.extend(frames[first..].iter().map(|(sequence, at)| (actor.0, *sequence, *at)));
        }
        found
    }

    /// The log begins at `from` from now on.
    pub(crate) fn trim(&mut self, from: u64) {
        self.from = from;
        for frames in self.frames.values_mut() {
            frames.drain(..frames.partition_point(|(_, at)| *at < from));
        }
    }

    /// Whether `sequence` of `actor`, which is held, is no longer in the log. Frames between two places that are noted
    /// count with the first, so a little of what is still there is called removed as well.
    pub(crate) fn is_trimmed(&self, actor: ActorIndex, sequence: u64) -> bool {
        let first = self.frames.get(&actor).and_then(|frames| frames.first());
        self.passed_over.get(&actor).is_some_and(|upto| sequence <= *upto)
            || self.from > 0 && first.is_none_or(|(first, _)| sequence < *first)
    }

    /// A position at or before the record that holds `sequence` of `actor`; `None` if the log holds nothing of it.
    pub(crate) fn seek(&self, actor: ActorIndex, sequence: u64) -> Option<u64> {
        if self.is_trimmed(actor, sequence) {
            return None;
        }
        let frames = self.frames.get(&actor)?;
        let index = frames.partition_point(|(first, _)| *first <= sequence).max(1) - 1;
        frames.get(index).map(|(_, position)| *position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_removed_is_not_what_never_was() {
        let (busy, quiet) = (ActorIndex(1), ActorIndex(2));
        let mut index = Index::default();
        for frame in 0..10 {
            index.note(busy, 1 + frame * 100, frame * STRIDE);
        }
        index.note(quiet, 1, 50);
        assert_eq!(index.seek(busy, 250), Some(2 * STRIDE));
        assert!(!index.is_trimmed(busy, 1) && !index.is_trimmed(quiet, 1));
        index.trim(5 * STRIDE);
        assert!(index.is_trimmed(busy, 500) && !index.is_trimmed(busy, 501));
        assert_eq!((index.seek(busy, 500), index.seek(busy, 501)), (None, Some(5 * STRIDE)));
        assert!(index.is_trimmed(quiet, 1), "all that it wrote was removed");
        index.note(quiet, 7, 20 * STRIDE);
        assert!(index.is_trimmed(quiet, 6));
        assert_eq!(index.seek(quiet, 7), Some(20 * STRIDE));
        assert_eq!(index.since(20 * STRIDE), [(2, 7, 20 * STRIDE)]);
    }
}

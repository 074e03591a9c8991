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
}

impl Index {
    /// Takes note of a frame.
    pub(crate) fn note(&mut self, actor: ActorIndex, first_sequence: u64, position: u64) {
        let frames = self.frames.entry(actor).or_default();
        if frames.last().is_none_or(|(_, last)| position >= last + STRIDE) {
            frames.push((first_sequence, position));
        }
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

    /// A position at or before the record that holds `sequence` of `actor`; `None` if the log holds nothing of it.
    pub(crate) fn seek(&self, actor: ActorIndex, sequence: u64) -> Option<u64> {
        let frames = self.frames.get(&actor)?;
        let index = frames.partition_point(|(first, _)| *first <= sequence).max(1) - 1;
        frames.get(index).map(|(_, position)| *position)
    }
}

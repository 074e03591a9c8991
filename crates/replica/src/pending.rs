//! Entries that arrived but cannot be delivered yet.

use std::collections::BTreeMap;

use geode_crdt::{ActorIndex, HybridTime, VersionVector};

/// What an entry waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blocked {
    /// Its predecessor.
    Gap,
    /// An entry of another actor on which it depends.
    Entry(ActorIndex, u64),
    /// A clock: the entry is too far in the future.
    Clock(HybridTime),
    /// A member that holds this entry of a closed actor.
    Holder,
}

/// A frame of which some entries are not delivered.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) bytes: Box<[u8]>,
    pub(crate) last: u64,
    /// Whose link brought it; it counts against that peer's bound.
    pub(crate) peer: usize,
    pub(crate) blocked: Blocked,
}

/// How much of an actor's stream may be held.
pub(crate) trait Limits {
    /// What nobody will ever hold more of; the greatest number if that is not known.
    fn ceiling(&self, actor: ActorIndex) -> u64;

    /// How far entries may be delivered now.
    fn allowed(&self, actor: ActorIndex) -> u64;
}

/// Frames by actor and first sequence.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    frames: BTreeMap<ActorIndex, BTreeMap<u64, Waiting>>,
    bytes: BTreeMap<usize, usize>,
}

impl Pending {
    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Keeps a frame. Of two frames with the same beginning the longer one stays.
    pub(crate) fn insert(&mut self, actor: ActorIndex, first: u64, frame: Waiting) {
        let frames = self.frames.entry(actor).or_default();
        if frames.get(&first).is_some_and(|held| held.last > frame.last) {
            return;
        }
        *self.bytes.entry(frame.peer).or_default() += frame.bytes.len();
        if let Some(replaced) = frames.insert(first, frame) {
            self.forget(&replaced);
        }
    }

    /// Takes out the next frame that is no longer blocked or no longer needed, with its actor.
    pub(crate) fn take_ready(
        &mut self,
        held: &VersionVector,
        latest: HybridTime,
        limits: &impl Limits,
    ) -> Option<(ActorIndex, Waiting)> {
        let is_ready = |actor: ActorIndex, first: u64, frame: &Waiting| {
            frame.last <= held.get(actor)
                || first > limits.ceiling(actor)
                || first <= held.get(actor) + 1
                    && match frame.blocked {
                        Blocked::Gap => true,
                        Blocked::Entry(other, sequence) => {
                            held.get(other) >= sequence.min(limits.ceiling(other))
                        }
                        Blocked::Clock(time) => time <= latest,
                        Blocked::Holder => limits.allowed(actor) > held.get(actor),
                    }
        };
        let first_of = |(actor, frames): (&ActorIndex, &BTreeMap<u64, Waiting>)| {
            let (first, frame) = frames.first_key_value()?;
            is_ready(*actor, *first, frame).then_some((*actor, *first))
        };
        let (actor, first) = self.frames.iter().find_map(first_of)?;
        let frames = self.frames.get_mut(&actor)?;
        let frame = frames.remove(&first)?;
        if frames.is_empty() {
            self.frames.remove(&actor);
        }
        self.forget(&frame);
        Some((actor, frame))
    }

    /// Whether the next entry of `actor` is here and waits for something else.
    pub(crate) fn has_next(&self, actor: ActorIndex, next: u64) -> bool {
        let first = self.frames.get(&actor).and_then(|frames| frames.first_key_value());
        first.is_some_and(|(first, frame)| *first <= next && next <= frame.last)
    }

    /// What the next entry of each actor waits for.
    pub(crate) fn blockers(&self) -> impl Iterator<Item = (ActorIndex, Blocked)> + '_ {
        self.frames.iter().filter_map(|(actor, frames)| Some((*actor, frames.first_key_value()?.1.blocked)))
    }

    /// Bytes kept on behalf of a peer.
    pub(crate) fn bytes_of(&self, peer: usize) -> usize {
        self.bytes.get(&peer).copied().unwrap_or(0)
    }

    fn forget(&mut self, frame: &Waiting) {
        if let Some(bytes) = self.bytes.get_mut(&frame.peer) {
            *bytes -= frame.bytes.len();
        }
    }
}

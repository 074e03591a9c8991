//! Dots: the unique name of one write.

use std::cmp::Ordering;

use crate::actor::{ActorIndex, Actors};
use crate::hybrid::HybridTime;

/// A place in one actor's stream: the entry's sequence (from 1, contiguous) and the row's ordinal in it (from 0).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark {
    /// Which entry of the actor.
    pub sequence: u64,
    /// Which row written by that entry. Without it, INCR, DEL, INCR in one MULTI would cancel the second INCR.
    pub ordinal: u32,
}

/// The unique name of one write on the planet, in this process's terms (see [`ActorIndex`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dot {
    /// Who wrote.
    pub actor: ActorIndex,
    /// Which of the actor's writes.
    pub mark: Mark,
}

impl Dot {
    /// The order in which the *later* of two writes is decided: hybrid time, then actor, then mark. Total, and equal
    /// on every replica.
    pub fn compare(
        (left_time, left): (HybridTime, Self),
        (right_time, right): (HybridTime, Self),
        actors: &Actors,
    ) -> Ordering {
        left_time
            .cmp(&right_time)
            .then_with(|| actors.compare(left.actor, right.actor))
            .then_with(|| left.mark.cmp(&right.mark))
    }
}

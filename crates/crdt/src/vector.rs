//! Version vectors: how much of every actor's stream somebody holds.

use std::collections::BTreeMap;

use crate::actor::{ActorId, ActorIndex, Actors};
use crate::dot::Dot;

/// For every actor the greatest sequence held; everything up to it is held too, because streams are delivered
/// contiguously. Indexed by the local [`ActorIndex`].
#[derive(Clone, Debug, Default)]
pub struct VersionVector {
    held: Vec<u64>,
}

impl VersionVector {
    /// The greatest sequence of `actor` that is held, 0 if none.
    pub fn get(&self, actor: ActorIndex) -> u64 {
        self.held.get(actor.0 as usize).copied().unwrap_or(0)
    }

    /// Raises `actor` to `sequence`; never lowers.
    pub fn raise(&mut self, actor: ActorIndex, sequence: u64) {
        let index = actor.0 as usize;
        if self.held.len() <= index {
            self.held.resize(index + 1, 0);
        }
        self.held[index] = self.held[index].max(sequence);
    }

    /// Raises every actor to what `other` holds of it.
    pub fn join(&mut self, other: &Self) {
        for (actor, sequence) in other.iter() {
            self.raise(actor, sequence);
        }
    }

    /// Whether the entry that wrote `dot` is held.
    pub fn covers(&self, dot: Dot) -> bool {
        dot.mark.sequence <= self.get(dot.actor)
    }

    /// Whether everything in `other` is held here too.
    pub fn includes(&self, other: &Self) -> bool {
        other.iter().all(|(actor, sequence)| sequence <= self.get(actor))
    }

    /// The actors of which something is held.
    pub fn iter(&self) -> impl Iterator<Item = (ActorIndex, u64)> + '_ {
        let held = self.held.iter().enumerate();
        held.filter(|(_, sequence)| **sequence > 0)
            .map(|(index, sequence)| (ActorIndex(index as u32), *sequence))
    }

    /// The same vector in planet-wide names, for other machines and for people.
    pub fn to_portable(&self, actors: &Actors) -> BTreeMap<ActorId, u64> {
        self.iter().map(|(actor, sequence)| (actors.id(actor).clone(), sequence)).collect()
    }

    /// A vector from another machine; actors not met before are interned.
    pub fn from_portable(portable: &BTreeMap<ActorId, u64>, actors: &mut Actors) -> Self {
        let mut vector = Self::default();
        for (id, sequence) in portable {
            vector.raise(actors.intern(id), *sequence);
        }
        vector
    }
}

impl PartialEq for VersionVector {
    fn eq(&self, other: &Self) -> bool {
        self.includes(other) && other.includes(self)
    }
}

impl Eq for VersionVector {}

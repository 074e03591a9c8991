//! Actors: who writes. An actor is one incarnation of one region's writer.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

/// The planet-wide name of one incarnation of a writer: its region and 64 random bits.
///
/// A writer that cannot prove that it still holds everything it ever wrote takes a new incarnation, so a dot is
/// never used twice. The order is only a tie-break; it is the same everywhere.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ActorId {
    /// The region's name, at most 255 bytes.
    pub region: Arc<str>,
    /// What tells two incarnations of one region apart.
    pub incarnation: u64,
}

impl ActorId {
    /// The actor of `region` with the given random incarnation.
    pub fn new(region: &str, incarnation: u64) -> Self {
        Self { region: region.into(), incarnation }
    }

    /// A 64-bit hash that is equal on every machine and in every release; used in digests and list positions.
    pub fn stable_hash(&self) -> u64 {
        let mut bytes = self.region.as_bytes().to_vec();
        bytes.extend_from_slice(&self.incarnation.to_le_bytes());
        xxh3_64(&bytes)
    }
}

impl fmt::Display for ActorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{:016x}", self.region, self.incarnation)
    }
}

impl std::str::FromStr for ActorId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (region, incarnation) = text.rsplit_once('#').ok_or(())?;
        let incarnation = u64::from_str_radix(incarnation, 16).map_err(|_| ())?;
        Ok(Self::new(region, incarnation))
    }
}

/// A process-local small number for an [`ActorId`], given by [`Actors`]. It means nothing on another machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ActorIndex(pub u32);

/// The table of actors that this process has met. It only grows: one row per region and unproven restart.
#[derive(Clone, Debug, Default)]
pub struct Actors {
    ids: Vec<ActorId>,
    hashes: Vec<u64>,
    by_id: HashMap<ActorId, ActorIndex>,
}

impl Actors {
    /// The most actors that other machines may name: regions times their unproven restarts, with much room. It bounds what
    /// a machine that invents names can take up here.
    pub const MAX: usize = 1 << 16;

    /// The index of `id`, made on first sight unless there are [`Self::MAX`] already.
    pub fn intern_foreign(&mut self, id: &ActorId) -> Option<ActorIndex> {
        if self.len() < Self::MAX { Some(self.intern(id)) } else { self.find(id) }
    }

    /// The index of `id`, made on first sight.
    pub fn intern(&mut self, id: &ActorId) -> ActorIndex {
        if let Some(index) = self.by_id.get(id) {
            return *index;
        }
        let index = ActorIndex(self.ids.len() as u32);
        self.ids.push(id.clone());
        self.hashes.push(id.stable_hash());
        self.by_id.insert(id.clone(), index);
        index
    }

    /// The index of `id` if it was met before.
    pub fn find(&self, id: &ActorId) -> Option<ActorIndex> {
        self.by_id.get(id).copied()
    }

    /// The planet-wide name of an index that this table gave.
    pub fn id(&self, index: ActorIndex) -> &ActorId {
        &self.ids[index.0 as usize]
    }

    /// [`ActorId::stable_hash`] without computing it again.
    pub fn stable_hash(&self, index: ActorIndex) -> u64 {
        self.hashes[index.0 as usize]
    }

    /// The planet-wide order of two local indexes.
    pub fn compare(&self, left: ActorIndex, right: ActorIndex) -> Ordering {
        if left == right { Ordering::Equal } else { self.id(left).cmp(self.id(right)) }
    }

    /// All actors in the order in which they were met.
    pub fn iter(&self) -> impl Iterator<Item = (ActorIndex, &ActorId)> {
        self.ids.iter().enumerate().map(|(index, id)| (ActorIndex(index as u32), id))
    }

    /// How many actors were met.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether no actor was met yet.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

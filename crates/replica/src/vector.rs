//! Version vectors in planet-wide names: what goes over the wire, into session tokens and onto screens.

use std::collections::BTreeMap;

use geode_crdt::codec::{self, Reader};
use geode_crdt::{ActorId, Actors, FrameError, VersionVector};

/// The most actors that a vector from elsewhere may name.
pub(crate) const MAX_ACTORS: u64 = Actors::MAX as u64;

/// How much of every actor's stream somebody holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vector(pub BTreeMap<ActorId, u64>);

impl Vector {
    /// The vector in planet-wide names.
    pub fn of(vector: &VersionVector, actors: &Actors) -> Self {
        Self(vector.to_portable(actors))
    }

    /// The vector in this process's names; actors not met before are interned.
    pub fn intern(&self, actors: &mut Actors) -> VersionVector {
        VersionVector::from_portable(&self.0, actors)
    }

    /// The greatest sequence of `actor` that is held, 0 if none.
    pub fn get(&self, actor: &ActorId) -> u64 {
        self.0.get(actor).copied().unwrap_or(0)
    }

    /// Whether everything in `other` is held here too.
    pub fn includes(&self, other: &Self) -> bool {
        other.0.iter().all(|(actor, sequence)| *sequence <= self.get(actor))
    }

    /// Appends `count, (region, incarnation, sequence)*`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        codec::put_varint(out, self.0.len() as u64);
        for (actor, sequence) in &self.0 {
            put_actor(out, actor);
            codec::put_varint(out, *sequence);
        }
    }

    /// The vector as bytes of its own, for tokens that carry it opaquely.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode(&mut out);
        out
    }

    /// Reads what [`Self::encode`] wrote, from untrusted bytes.
    ///
    /// # Errors
    /// The bytes are no vector.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, FrameError> {
        let count = reader.varint()?;
        if count > MAX_ACTORS {
            return Err(FrameError::TooLong(count));
        }
        let mut held = BTreeMap::new();
        for _ in 0..count {
            let actor = read_actor(reader)?;
            held.insert(actor, reader.varint()?);
        }
        Ok(Self(held))
    }

    /// Reads what [`Self::to_bytes`] wrote, from untrusted bytes.
    ///
    /// # Errors
    /// The bytes are no vector, or more than one.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FrameError> {
        let mut reader = Reader::new(bytes);
        let vector = Self::decode(&mut reader)?;
        if reader.is_empty() { Ok(vector) } else { Err(FrameError::Malformed("bytes after a vector")) }
    }
}

pub(crate) fn put_actor(out: &mut Vec<u8>, actor: &ActorId) {
    codec::put_bytes(out, actor.region.as_bytes());
    out.extend_from_slice(&actor.incarnation.to_le_bytes());
}

pub(crate) fn read_actor(reader: &mut Reader<'_>) -> Result<ActorId, FrameError> {
    let region = read_name(reader)?;
    Ok(ActorId::new(region, reader.u64()?))
}

/// A planet's or region's name: UTF-8, at most 255 bytes.
pub(crate) fn read_name<'a>(reader: &mut Reader<'a>) -> Result<&'a str, FrameError> {
    let bytes = reader.bytes()?;
    if bytes.len() > 255 {
        return Err(FrameError::TooLong(bytes.len() as u64));
    }
    std::str::from_utf8(bytes).map_err(|_| FrameError::Malformed("a name"))
}

//! One key's place in its segment: the hash, what is known of the key's record on disk, and the rows.

use std::cell::Cell as Flagged;

use geode_crdt::{Actors, KeyName};
use hashbrown::HashTable;

use super::key::KeyState;
use super::names::Names;
use super::{KeyRef, Rows, record};

/// The rows in memory are not those of the last record that was handed over for the disk.
const DIRTY: u64 = 1;
/// Of a dirty entry: a record of the key may be on disk, or on its way there.
const STORED: u64 = 2;
/// In the same place, of a clean one: it was read since the evicting hand came by. Clean is stored anyway.
const REFERENCED: u64 = 2;
/// The low bits of a hash, in whose place the flags stand: an entry takes no byte more for them.
const FLAGS: u64 = DIRTY | STORED;

/// A hash as this table uses it.
pub(super) const fn hash(bits: u64) -> u64 {
    bits & !FLAGS
}

/// Keys whose hashes begin alike, and what the checkpoint needs to know of them together.
#[derive(Debug, Default)]
pub(super) struct Segment {
    pub(super) entries: HashTable<Entry>,
    /// How many entries are dirty.
    pub(super) dirty: usize,
    /// How many keys are on disk and not among the entries. While this is 0, what is not here is nowhere.
    pub(super) cold: u64,
    /// Their names, and perhaps others.
    pub(super) names: Names,
    /// The last batch for the disk into which one of its keys went.
    pub(super) captured: u64,
    /// The last batch that was committed when one of its keys left the memory.
    pub(super) left: u64,
}

impl Segment {
    /// False only if no key of this hash is on disk alone.
    pub(super) fn may_hold_cold(&self, hash: u64) -> bool {
        self.cold > 0 && self.names.may_hold(hash)
    }
}

/// One key. The hash is kept so that growing and scanning touch no other memory.
#[derive(Debug)]
pub(super) struct Entry {
    /// The hash, and the flags in its low bits.
    tagged: Flagged<u64>,
    pub(super) slot: Slot,
}

const _: () = assert!(size_of::<Entry>() == 24, "memory is counted by the entry");

impl Entry {
    /// An entry whose rows are new, and that is not known on disk.
    pub(super) const fn dirty(hash: u64, slot: Slot) -> Self {
        Self { tagged: Flagged::new(hash | DIRTY), slot }
    }

    /// An entry whose rows are those on disk.
    pub(super) const fn clean(hash: u64, slot: Slot) -> Self {
        Self { tagged: Flagged::new(hash), slot }
    }

    pub(super) fn hash(&self) -> u64 {
        hash(self.tagged.get())
    }

    pub(super) fn is(&self, hash: u64, key: KeyName<'_>) -> bool {
        self.hash() == hash && self.slot.key() == key
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.tagged.get() & DIRTY != 0
    }

    pub(super) fn is_stored(&self) -> bool {
        self.tagged.get() & FLAGS != DIRTY
    }

    /// The rows changed. Returns whether they were not dirty before.
    pub(super) fn set_dirty(&self) -> bool {
        let clean = !self.is_dirty();
        if clean {
            self.tagged.set(self.hash() | DIRTY | STORED);
        }
        clean
    }

    /// The rows are those of the record on disk, or of the one on its way there.
    pub(super) fn set_clean(&self) {
        self.tagged.set(self.hash() | REFERENCED);
    }

    /// Somebody reads it.
    pub(super) fn touch(&self) {
        if self.tagged.get() & FLAGS == 0 {
            self.tagged.set(self.tagged.get() | REFERENCED);
        }
    }

    /// The evicting hand comes by: whether the entry is clean and was not read since it came the last time.
    pub(super) fn is_passed(&self) -> bool {
        let flags = self.tagged.get() & FLAGS;
        if flags == REFERENCED {
            self.tagged.set(self.hash());
        }
        flags == 0
    }
}

/// The rows of a key.
#[derive(Debug)]
pub(super) enum Slot {
    /// What a plain SET left.
    Packed(Box<[u8]>),
    /// Any rows. None at all: the key is gone, and the disk does not know it yet.
    Full(Box<KeyState>),
}

impl Slot {
    pub(super) fn key(&self) -> KeyName<'_> {
        match self {
            Self::Packed(bytes) => record::key(bytes),
            Self::Full(state) => state.key(),
        }
    }

    pub(super) fn as_ref<'v>(&'v self, actors: &'v Actors) -> KeyRef<'v> {
        match self {
            Self::Packed(bytes) => KeyRef(Rows::Packed(bytes)),
            Self::Full(state) => KeyRef(Rows::Full(state, actors)),
        }
    }

    pub(super) fn is_live(&self) -> bool {
        match self {
            Self::Packed(_) => true,
            Self::Full(state) => state.is_live(),
        }
    }

    /// Whether the key has no row.
    pub(super) fn is_absent(&self) -> bool {
        match self {
            Self::Packed(_) => false,
            Self::Full(state) => state.is_empty(),
        }
    }
}

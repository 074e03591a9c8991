//! The packed form of the most frequent key: a string put by a plain SET, that is one put row and the NEVER row of the
//! same name. One allocation holds head, name and value.
//!
//! ```text
//! time u64 | sequence u48 | actor u16 | ordinal u16 | database u4, name length u12 | name | value
//! ```
//! Little-endian, 20 bytes of head. What does not fit these fields is kept as a whole [`super::key::KeyState`].

use geode_crdt::{ActorIndex, Deadline, Dot, HybridTime, KeyName, Mark, PutRef};

const HEAD: usize = 20;
const NAME_LIMIT: usize = 1 << 12;
const DATABASE_LIMIT: u8 = 1 << 4;

/// What stands in the TTL cell of every packed key.
pub(super) static NEVER: [u8; 8] = Deadline::NEVER.to_bytes();

/// Whether a row and its key's name fit the packed form.
pub(super) fn fits(key: KeyName<'_>, dot: Dot) -> bool {
    key.database < DATABASE_LIMIT
        && key.name.len() < NAME_LIMIT
        && dot.mark.sequence < 1 << 48
        && dot.mark.ordinal <= u32::from(u16::MAX)
        && dot.actor.0 <= u32::from(u16::MAX)
}

/// Packs a key that [`fits`].
pub(super) fn pack(key: KeyName<'_>, row: PutRef<'_>) -> Box<[u8]> {
    let mut bytes = Vec::with_capacity(HEAD + key.name.len() + row.value.len());
    bytes.extend_from_slice(&head(key, row));
    bytes.extend_from_slice(key.name);
    bytes.extend_from_slice(row.value);
    bytes.into_boxed_slice()
}

/// Replaces the row in place. Returns false, changing nothing, if the value's length differs.
pub(super) fn overwrite(bytes: &mut [u8], key: KeyName<'_>, row: PutRef<'_>) -> bool {
    let fits = bytes.len() == HEAD + key.name.len() + row.value.len();
    if fits {
        bytes[..HEAD].copy_from_slice(&head(key, row));
        bytes[HEAD + key.name.len()..].copy_from_slice(row.value);
    }
    fits
}

/// The key of a packed record.
pub(super) fn key(bytes: &[u8]) -> KeyName<'_> {
    let packed = u16::from_le_bytes([bytes[18], bytes[19]]);
    KeyName { database: (packed >> 12) as u8, name: &bytes[HEAD..HEAD + usize::from(packed & 0xfff)] }
}

/// The put row of a packed record's string.
pub(super) fn row(bytes: &[u8]) -> PutRef<'_> {
    PutRef { dot: dot(bytes), time: time(bytes), value: &bytes[HEAD + key(bytes).name.len()..] }
}

/// The put row of a packed record's TTL cell.
pub(super) fn never_row(bytes: &[u8]) -> PutRef<'_> {
    PutRef { dot: dot(bytes), time: time(bytes), value: &NEVER }
}

fn head(key: KeyName<'_>, row: PutRef<'_>) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[..8].copy_from_slice(&row.time.0.to_le_bytes());
    head[8..14].copy_from_slice(&row.dot.mark.sequence.to_le_bytes()[..6]);
    head[14..16].copy_from_slice(&(row.dot.actor.0 as u16).to_le_bytes());
    head[16..18].copy_from_slice(&(row.dot.mark.ordinal as u16).to_le_bytes());
    let packed = u16::from(key.database) << 12 | key.name.len() as u16;
    head[18..].copy_from_slice(&packed.to_le_bytes());
    head
}

fn time(bytes: &[u8]) -> HybridTime {
    let mut time = [0; 8];
    time.copy_from_slice(&bytes[..8]);
    HybridTime(u64::from_le_bytes(time))
}

fn dot(bytes: &[u8]) -> Dot {
    let mut sequence = [0; 8];
    sequence[..6].copy_from_slice(&bytes[8..14]);
    let actor = ActorIndex(u16::from_le_bytes([bytes[14], bytes[15]]).into());
    let ordinal = u16::from_le_bytes([bytes[16], bytes[17]]).into();
    Dot { actor, mark: Mark { sequence: u64::from_le_bytes(sequence), ordinal } }
}

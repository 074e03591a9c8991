//! The bytes of one key in a checkpoint.
//!
//! ```text
//! name   = hash u64, big-endian | database u8 | the key's name
//! record = crc32 u32 of name and all that follows | digest u64 | live u8 | deadline u64, greatest if none | image
//! ```
//! Little-endian but for the hash, whose order is the table's: what is read together lies together.

use geode_crdt::image::Summary;
use geode_crdt::{Deadline, HybridTime, KeyName};

/// Bytes of a record before the image.
const HEAD: usize = 4 + 8 + 1 + 8;
/// Bytes of a name before the key's.
const PREFIX: usize = 9;

/// Replaces `out` by the name of a key.
pub(crate) fn put_name(out: &mut Vec<u8>, hash: u64, key: KeyName<'_>) {
    out.clear();
    out.extend_from_slice(&hash.to_be_bytes());
    out.push(key.database);
    out.extend_from_slice(key.name);
}

/// The hash and the key behind a name.
pub(crate) fn read_name(name: &[u8]) -> Option<(u64, KeyName<'_>)> {
    let (prefix, name_of_key) = name.split_at_checked(PREFIX)?;
    let hash = u64::from_be_bytes(prefix[..8].try_into().ok()?);
    Some((hash, KeyName { database: prefix[8], name: name_of_key }))
}

/// Replaces `out` by a record.
pub(crate) fn put_record(out: &mut Vec<u8>, name: &[u8], summary: &Summary, image: &[u8]) {
    out.clear();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&summary.digest.to_le_bytes());
    out.push(u8::from(summary.is_live));
    out.extend_from_slice(&summary.deadline.unwrap_or(Deadline::NEVER).to_bytes());
    out.extend_from_slice(image);
    let crc = checksum(name, &out[4..]);
    out[..4].copy_from_slice(&crc.to_le_bytes());
}

/// The parts of a record; `None` if it is not what was written.
pub(crate) fn read_record<'r>(name: &[u8], record: &'r [u8]) -> Option<(Summary, &'r [u8])> {
    let (head, image) = record.split_at_checked(HEAD)?;
    let stored = u32::from_le_bytes(head[..4].try_into().ok()?);
    let deadline = Deadline(HybridTime(u64::from_le_bytes(head[13..].try_into().ok()?)));
    let summary = Summary {
        digest: u64::from_le_bytes(head[4..12].try_into().ok()?),
        is_live: head[12] != 0,
        deadline: (deadline != Deadline::NEVER).then_some(deadline),
    };
    (stored == checksum(name, &record[4..])).then_some((summary, image))
}

fn checksum(name: &[u8], rest: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(name);
    hasher.update(rest);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_back_and_every_flipped_bit_is_seen() {
        let key = KeyName { database: 3, name: b"menu" };
        let (mut name, mut record) = (Vec::new(), Vec::new());
        put_name(&mut name, 0x0123_4567_89ab_cdef, key);
        assert_eq!(read_name(&name), Some((0x0123_4567_89ab_cdef, key)));
        for deadline in [None, Some(Deadline(HybridTime(5)))] {
            let summary = Summary { digest: 7, is_live: true, deadline };
            put_record(&mut record, &name, &summary, b"rows");
            assert_eq!(read_record(&name, &record), Some((summary, &b"rows"[..])));
            for bit in 0..record.len() * 8 {
                let mut record = record.clone();
                record[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(read_record(&name, &record), None, "bit {bit}");
            }
            let mut other = name.clone();
            other[10] ^= 1;
            assert_eq!(read_record(&other, &record), None, "a record counts only under its own name");
        }
    }
}

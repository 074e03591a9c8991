//! What the keys of a checkpoint amount to, without reading them.

use geode_crdt::digest;
use geode_crdt::image::Summary;

use crate::table::{SEGMENTS, segment_of};

const RANGES: usize = digest::RANGES;
const DATABASES: usize = 256;

/// Sums over all keys on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Totals {
    /// The digest's sum of each key range.
    pub(crate) digest: Box<[u64]>,
    /// Keys with live data in each database.
    pub(crate) live: Box<[u64]>,
    /// Keys in each of the table's segments.
    pub(crate) keys: Box<[u64]>,
    /// Bytes of their images.
    pub(crate) bytes: u64,
}

impl Default for Totals {
    fn default() -> Self {
        let zeros = |count: usize| vec![0; count].into_boxed_slice();
        Self { digest: zeros(RANGES), live: zeros(DATABASES), keys: zeros(SEGMENTS), bytes: 0 }
    }
}

/// A key as the totals count it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counted {
    /// The table's hash of it.
    pub(crate) hash: u64,
    pub(crate) database: u8,
    /// Its range of the digest.
    pub(crate) range: usize,
}

impl Totals {
    pub(crate) fn add(&mut self, key: Counted, summary: &Summary, bytes: usize) {
        let sum = &mut self.digest[key.range];
        *sum = sum.wrapping_add(summary.digest);
        self.live[usize::from(key.database)] += u64::from(summary.is_live);
        self.keys[segment_of(key.hash)] += 1;
        self.bytes += bytes as u64;
    }

    pub(crate) fn subtract(&mut self, key: Counted, summary: &Summary, bytes: usize) {
        let sum = &mut self.digest[key.range];
        *sum = sum.wrapping_sub(summary.digest);
        self.live[usize::from(key.database)] -= u64::from(summary.is_live);
        self.keys[segment_of(key.hash)] -= 1;
        self.bytes -= bytes as u64;
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let numbers = self.digest.iter().chain(&self.live).chain(&self.keys).chain([&self.bytes]);
        numbers.flat_map(|number| number.to_le_bytes()).collect()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let numbers: Vec<u64> = bytes
            .chunks_exact(8)
            .map(|chunk| chunk.try_into().map(u64::from_le_bytes).unwrap_or_default())
            .collect();
        if numbers.len() != RANGES + DATABASES + SEGMENTS + 1 || !bytes.len().is_multiple_of(8) {
            return None;
        }
        let (digest, rest) = numbers.split_at(RANGES);
        let (live, rest) = rest.split_at(DATABASES);
        let (keys, bytes) = rest.split_at(SEGMENTS);
        Some(Self { digest: digest.into(), live: live.into(), keys: keys.into(), bytes: bytes[0] })
    }
}

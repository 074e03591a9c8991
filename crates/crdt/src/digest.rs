//! Digests: small sums over all rows, equal on two replicas that hold the same rows.
//!
//! Keys are split into 256 ranges by a hash of their name; each range has a wrapping sum of its rows' hashes, so a row
//! is added or taken away in constant time and in any order. Dead sum and cancel pairs do not count: each replica
//! drops them in its own time.

use xxhash_rust::xxh3::xxh3_64;

use crate::actor::Actors;
use crate::amount::Amount;
use crate::dot::Dot;
use crate::op::{KeyName, Kind};

/// How many key ranges a digest tells apart; each names about 0.4 % of the keys.
pub const RANGES: usize = 256;

/// One sum per key range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    sums: Box<[u64; RANGES]>,
}

impl Default for Digest {
    fn default() -> Self {
        Self { sums: Box::new([0; RANGES]) }
    }
}

impl Digest {
    /// A digest whose sums are known.
    pub fn from_sums(sums: [u64; RANGES]) -> Self {
        Self { sums: Box::new(sums) }
    }

    /// Adds a row's hash to its key's range.
    pub fn add(&mut self, key_hash: u64, row_hash: u64) {
        let sum = &mut self.sums[range_of(key_hash)];
        *sum = sum.wrapping_add(row_hash);
    }

    /// Takes a row's hash away from its key's range.
    pub fn subtract(&mut self, key_hash: u64, row_hash: u64) {
        let sum = &mut self.sums[range_of(key_hash)];
        *sum = sum.wrapping_sub(row_hash);
    }

    /// The sums by range.
    pub fn sums(&self) -> &[u64; RANGES] {
        &self.sums
    }
}

/// The range of a key: the first byte of its hash.
pub const fn range_of(key_hash: u64) -> usize {
    (key_hash >> 56) as usize
}

/// The hash of a key's name, equal on every machine and in every release.
pub fn key_hash(key: KeyName<'_>) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(key.name, u64::from(key.database))
}

/// The hash of a put row. Constant time but for one pass over element and value.
pub fn put_hash(key_hash: u64, kind: Kind, element: &[u8], dot: Dot, value: &[u8], actors: &Actors) -> u64 {
    mix([
        key_hash,
        kind as u64,
        xxh3_64(element),
        actors.stable_hash(dot.actor),
        dot.mark.sequence,
        u64::from(dot.mark.ordinal),
        xxh3_64(value),
    ])
}

/// The hash of a live amount: cell, actor, last increment, amount.
pub fn amount_hash(
    key_hash: u64,
    kind: Kind,
    element: &[u8],
    last: Dot,
    amount: Amount,
    actors: &Actors,
) -> u64 {
    let bits = match amount {
        Amount::Integer(value) => xxh3_64(&value.to_le_bytes()),
        Amount::Float(value) => !value.to_bits(),
    };
    mix([
        key_hash,
        !(kind as u64),
        xxh3_64(element),
        actors.stable_hash(last.actor),
        last.mark.sequence,
        u64::from(last.mark.ordinal),
        bits,
    ])
}

fn mix(words: [u64; 7]) -> u64 {
    let mut bytes = [0; 56];
    for (chunk, word) in bytes.chunks_exact_mut(8).zip(words) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    xxh3_64(&bytes)
}

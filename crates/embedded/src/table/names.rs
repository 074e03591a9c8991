//! Which names may be among the cold keys of a segment: a write of a new key must not ask the disk whether it is there.
//!
//! A Bloom filter that grows by further filters, each as large as those before it together. What left it again is still
//! in it, so it is made anew from the names on disk when it says "perhaps" too often.
//!
//! Source: Almeida et al., "Scalable Bloom Filters", 2007; the blocks are those of Apache Parquet's split block filter.

use super::SEGMENT_BITS;

/// Bits that one name sets in a block: one in each word.
const SALTS: [u32; 8] =
    [0x47b6_137b, 0x4497_4d91, 0x8824_ad5b, 0xa2b7_289d, 0x7054_95c7, 0x2df1_424b, 0x9efc_4947, 0x5c6b_fb31];
/// 16 bits for a name: "perhaps" is wrong once in about a thousand times.
const NAMES_PER_BLOCK: usize = 16;
const BLOCK_BYTES: u64 = 32;
const LEAST_BLOCKS: usize = 4;

/// The names of cold keys of one segment, by their hashes.
#[derive(Debug)]
pub(super) enum Names {
    /// Nothing is known: the disk is to be asked.
    Unknown,
    /// All that were put in since it was empty.
    Known(Vec<Filter>),
}

#[derive(Debug)]
pub(super) struct Filter {
    blocks: Box<[[u32; 8]]>,
    /// How many names it may still take.
    room: usize,
}

impl Default for Names {
    fn default() -> Self {
        Self::Known(Vec::new())
    }
}

impl Names {
    /// Names with these hashes; `count` is about how many there are.
    pub(super) fn of(count: usize, hashes: impl Iterator<Item = u64>) -> Self {
        let mut names = Self::Known(vec![Filter::new(count.div_ceil(NAMES_PER_BLOCK))]);
        hashes.for_each(|hash| names.insert(hash));
        names
    }

    /// False only if no name with this hash was put in.
    pub(super) fn may_hold(&self, hash: u64) -> bool {
        match self {
            Self::Unknown => true,
            // The last is the largest.
            Self::Known(filters) => filters.iter().rev().any(|filter| filter.may_hold(hash)),
        }
    }

    /// Puts a name in, unless it seems to be there.
    pub(super) fn insert(&mut self, hash: u64) {
        let Self::Known(filters) = self else { return };
        if filters.iter().any(|filter| filter.may_hold(hash)) {
            return;
        }
        if filters.last().is_none_or(|filter| filter.room == 0) {
            filters.push(Filter::new(filters.iter().map(|filter| filter.blocks.len()).sum()));
        }
        if let Some(last) = filters.last_mut() {
            last.insert(hash);
        }
    }

    /// How many names were put in, without those that seemed to be there. `None` if nothing is known.
    pub(super) fn len(&self) -> Option<usize> {
        let Self::Known(filters) = self else { return None };
        Some(filters.iter().map(|filter| filter.blocks.len() * NAMES_PER_BLOCK - filter.room).sum())
    }

    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> u64 {
        let Self::Known(filters) = self else { return 0 };
        filters.iter().map(|filter| filter.blocks.len() as u64 * BLOCK_BYTES).sum()
    }
}

impl Filter {
    fn new(blocks: usize) -> Self {
        let blocks = vec![[0; 8]; blocks.max(LEAST_BLOCKS)].into_boxed_slice();
        Self { room: blocks.len() * NAMES_PER_BLOCK, blocks }
    }

    /// The block of a hash, whose first bits are the same for the whole segment.
    fn block(&self, hash: u64) -> usize {
        let spread = (hash << SEGMENT_BITS) >> 32;
        ((spread * self.blocks.len() as u64) >> 32) as usize
    }

    fn may_hold(&self, hash: u64) -> bool {
        let block = &self.blocks[self.block(hash)];
        block.iter().zip(bits(hash)).all(|(word, bit)| word & bit != 0)
    }

    fn insert(&mut self, hash: u64) {
        let block = self.block(hash);
        self.blocks[block].iter_mut().zip(bits(hash)).for_each(|(word, bit)| *word |= bit);
        self.room = self.room.saturating_sub(1);
    }
}

/// The bit of each word that stands for a hash.
fn bits(hash: u64) -> [u32; 8] {
    SALTS.map(|salt| 1 << ((hash as u32).wrapping_mul(salt) >> 27))
}

#[cfg(test)]
mod tests {
    use xxhash_rust::xxh3::xxh3_64;

    use super::*;
    use crate::table::entry;

    /// Hashes of one segment.
    fn hashes(from: u64, to: u64) -> impl Iterator<Item = u64> {
        (from..to).map(|number| entry::hash(xxh3_64(&number.to_le_bytes()) >> SEGMENT_BITS))
    }

    #[test]
    fn every_name_that_was_put_in_is_found_and_few_others_are() {
        let mut names = Names::default();
        assert!(!names.may_hold(1), "nothing is in it");
        hashes(0, 20_000).for_each(|hash| names.insert(hash));
        assert!(hashes(0, 20_000).all(|hash| names.may_hold(hash)));
        let wrong = hashes(20_000, 120_000).filter(|hash| names.may_hold(*hash)).count();
        assert!(wrong < 2_000, "{wrong} of 100 000 names that were not put in");
        assert!(names.bytes() <= 20_000 * 2 * 2, "{} bytes", names.bytes());
        let before = names.len();
        hashes(0, 20_000).for_each(|hash| names.insert(hash));
        assert_eq!(names.len(), before, "what comes again takes no room");
    }

    #[test]
    fn names_of_a_known_number_take_two_bytes_each() {
        let names = Names::of(20_000, hashes(0, 20_000));
        assert!(hashes(0, 20_000).all(|hash| names.may_hold(hash)));
        assert!(names.bytes() <= 40_032, "{} bytes", names.bytes());
    }

    #[test]
    fn of_what_is_unknown_every_name_may_be_there() {
        let mut names = Names::Unknown;
        names.insert(1);
        assert!(names.may_hold(2));
        assert_eq!((names.len(), names.bytes()), (None, 0));
    }
}

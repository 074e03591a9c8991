//! Arguments of a command: what they say, and copies of them for commands that have to wait.

use std::collections::HashSet;

use geode_crdt::amount;

use crate::errors::{self, Outcome};

/// A 64-bit integer by Redis's strict rule.
pub(crate) fn integer(argument: &[u8]) -> Outcome<i64> {
    amount::parse_integer(argument).ok_or_else(|| errors::NOT_AN_INTEGER.into())
}

/// How many elements a pop takes: not negative.
pub(crate) fn count(argument: &[u8]) -> Outcome<u64> {
    let count = integer(argument).map_err(|_| errors::NOT_POSITIVE)?;
    u64::try_from(count).map_err(|_| errors::NOT_POSITIVE.into())
}

/// Whether an argument is this option, in any case.
pub(crate) fn is(argument: &[u8], option: &str) -> bool {
    argument.eq_ignore_ascii_case(option.as_bytes())
}

/// Arguments that outlive the connection's read buffer.
#[derive(Clone, Debug)]
pub(crate) struct Owned(Box<[Box<[u8]>]>);

impl Owned {
    pub(crate) fn copy(arguments: &[&[u8]]) -> Self {
        Self(arguments.iter().map(|argument| Box::from(*argument)).collect())
    }

    pub(crate) fn borrow(&self) -> Vec<&[u8]> {
        self.0.iter().map(|argument| &**argument).collect()
    }
}

/// What [`Owned::copy`] takes in memory, about.
pub(crate) fn owned_size(arguments: &[&[u8]]) -> usize {
    // A fat pointer each, and what an allocator adds to a block.
    arguments.iter().map(|argument| argument.len() + 32).sum()
}

/// Tells a command which of its elements it has met before: a row is replaced once per entry, and counted once.
///
/// A few elements are compared with each other without allocating, more go through a hash set.
pub(crate) struct Distinct<'a> {
    few: smallvec::SmallVec<[&'a [u8]; 8]>,
    many: HashSet<&'a [u8]>,
}

impl<'a> Distinct<'a> {
    pub(crate) fn new() -> Self {
        Self { few: smallvec::SmallVec::new(), many: HashSet::new() }
    }

    /// Whether this element comes for the first time.
    pub(crate) fn is_new(&mut self, element: &'a [u8]) -> bool {
        if self.few.len() < self.few.inline_size() {
            let new = !self.few.contains(&element);
            if new {
                self.few.push(element);
            }
            return new;
        }
        !self.few.contains(&element) && self.many.insert(element)
    }
}

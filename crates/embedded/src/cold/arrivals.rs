//! Entries that came from other regions and wait until the keys that they meet are in memory, so that no command has to
//! wait for the disk because of them. What came on one connection stays in its order; what waits is bounded by what its
//! connection may have in the inbox.

use std::collections::VecDeque;
use std::fmt;

use geode_crdt::Frame;

use crate::inbox::Incoming;
use crate::table::{Place, Table};

/// Frames of bulk connections that wait at once: one is delivered while the keys of the next are read.
const BULK_FRAMES: usize = 2;

/// Frames in the order in which they came.
#[derive(Debug, Default)]
pub(crate) struct Arrivals {
    waiting: VecDeque<Arrival>,
    /// How many frames were ever told apart.
    last: u64,
}

struct Arrival {
    number: u64,
    frame: Incoming,
    /// Its keys are in memory, or were just now.
    is_ready: bool,
}

impl fmt::Debug for Arrival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, is_ready, frame: _ } = self;
        f.debug_struct("Arrival").field("number", number).field("is_ready", is_ready).finish_non_exhaustive()
    }
}

impl Arrivals {
    /// Keeps a frame that meets keys on disk, or follows such a frame on its connection; gives everything else back. Returns
    /// also what is to be read for a frame, and its number.
    pub(crate) fn keep(
        &mut self,
        incoming: Incoming,
        table: &mut Table,
    ) -> (Option<Incoming>, Option<(u64, Vec<Place>)>) {
        let (Incoming::Frame { bytes, .. } | Incoming::Bulk { bytes, .. }) = &incoming else {
            return (Some(incoming), None);
        };
        let places = if table.cold_keys() == 0 { Vec::new() } else { cold_places(bytes, table) };
        let follows = self.waiting.iter().any(|earlier| is_one_lane(&earlier.frame, &incoming));
        if places.is_empty() && !follows {
            return (Some(incoming), None);
        }
        self.last += 1;
        let is_ready = places.is_empty();
        self.waiting.push_back(Arrival { number: self.last, frame: incoming, is_ready });
        (None, (!is_ready).then_some((self.last, places)))
    }

    /// The keys of the frame of this number were read.
    pub(crate) fn read(&mut self, number: u64) {
        let read = self.waiting.iter_mut().find(|arrival| arrival.number == number);
        read.into_iter().for_each(|arrival| arrival.is_ready = true);
    }

    /// The next frame that can be delivered.
    pub(crate) fn next(&mut self) -> Option<Incoming> {
        let at = self.next_at()?;
        self.waiting.remove(at).map(|arrival| arrival.frame)
    }

    /// Whether there is such a frame.
    pub(crate) fn has_next(&self) -> bool {
        self.next_at().is_some()
    }

    fn next_at(&self) -> Option<usize> {
        let is_first = |at: usize| {
            let earlier = self.waiting.iter().take(at);
            earlier.into_iter().all(|earlier| !is_one_lane(&earlier.frame, &self.waiting[at].frame))
        };
        (0..self.waiting.len()).find(|at| self.waiting[*at].is_ready && is_first(*at))
    }

    /// Whether what came in bulk is to stay where it is: enough of it waits here.
    pub(crate) fn is_full_of_bulk(&self) -> bool {
        let bulk = self.waiting.iter().filter(|arrival| matches!(arrival.frame, Incoming::Bulk { .. }));
        bulk.count() >= BULK_FRAMES
    }
}

/// Whether two frames came on one connection.
fn is_one_lane(one: &Incoming, other: &Incoming) -> bool {
    match (one, other) {
        (Incoming::Frame { peer: one, .. }, Incoming::Frame { peer: other, .. })
        | (Incoming::Bulk { peer: one, .. }, Incoming::Bulk { peer: other, .. }) => one == other,
        _ => false,
    }
}

/// The keys on disk alone, perhaps, that the entries of a frame meet. None of what is no frame: whoever delivers it sees.
fn cold_places(bytes: &[u8], table: &mut Table) -> Vec<Place> {
    let frame = Frame::parse(bytes, table.actors_mut());
    frame.map_or_else(|_| Vec::new(), |frame| table.perhaps_cold_in(&frame))
}

//! The sweep: clears keys whose deadline has passed for everybody, as logged entries.

use crate::engine::{Engine, Extent};
use crate::errors::Stop;
use crate::reply::Reply;
use crate::store::Store;

impl<E: Engine> Store<E> {
    /// Sweeps at most `limit` keys, in one entry for each [`Extent`]; called between batches, never inside one. Returns
    /// how many went.
    ///
    /// Until then reads hide them. Only the lowest reachable region sweeps, and keys go whole only if their deadline
    /// lies below what every region was delivered up to: any write that is still to come sees the key as expired and
    /// creates it anew, so nothing that was written within the key's life loses its TTL. While a region is away for
    /// long, data goes without waiting for it, and deadlines stay.
    pub fn sweep(&mut self, limit: usize) -> usize {
        if !self.engine.is_sweeper() || self.is_writable().is_err() {
            return 0;
        }
        let swept = self.sweep_extent(Extent::Whole, limit);
        swept + self.sweep_extent(Extent::Data, limit - swept)
    }

    fn sweep_extent(&mut self, extent: Extent, limit: usize) -> usize {
        let passed = self.engine.swept_until(extent);
        if limit == 0 || extent == Extent::Data && passed <= self.engine.swept_until(Extent::Whole) {
            return 0;
        }
        let due = self.engine.due(extent, passed, limit);
        if due.is_empty() {
            return 0;
        }
        let mut swept = 0;
        let now = self.begin();
        for (database, name) in due {
            match self.step(now, database, &mut Silence, |context| context.sweep_key(&name, extent, passed)) {
                Ok(()) => swept += 1,
                // It stays due and is swept when it is in memory.
                Err(Stop::Need(need)) => drop(self.fetch(&[*need])),
                Err(Stop::Refuse(_)) => {}
            }
        }
        self.engine.end();
        swept
    }
}

/// Nobody asked, so nobody is answered.
struct Silence;

impl Reply for Silence {
    fn simple(&mut self, _: &str) {}
    fn error(&mut self, _: &str) {}
    fn integer(&mut self, _: i64) {}
    fn bulk(&mut self, _: &[u8]) {}
    fn null(&mut self) {}
    fn null_array(&mut self) {}
    fn array(&mut self, _: usize) {}
    fn map(&mut self, _: usize) {}
    fn set(&mut self, _: usize) {}
    fn double(&mut self, _: f64) {}
    fn mark(&self) -> usize {
        0
    }
    fn rewind(&mut self, _: usize) {}
}

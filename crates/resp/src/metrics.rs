//! Counts for whoever scrapes them. The event loop adds to them once per batch.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts since the start, readable from any thread.
#[derive(Debug, Default)]
pub struct RespMetrics {
    /// Commands executed, those that were refused included.
    pub commands: Count,
    /// Error replies.
    pub errors: Count,
    /// Requests that were not in the protocol; each ended its connection.
    pub protocol_errors: Count,
    /// Bytes read from connections.
    pub bytes_in: Count,
    /// Bytes written to connections.
    pub bytes_out: Count,
    /// Batches that executed at least one command.
    pub batches: Count,
    /// Connections accepted.
    pub connections_accepted: Count,
    /// Connections turned away because there were too many.
    pub connections_refused: Count,
    /// Connections closed because they held too much input or output.
    pub connections_over_limit: Count,
    /// Connections open now (not a sum).
    pub connections_open: Count,
    /// Bytes of input and output held for connections now (not a sum).
    pub bytes_held: Count,
}

/// One number, written by the event loop alone.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// The number as of the last batch.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, more: u64) {
        if more > 0 {
            self.set(self.get() + more);
        }
    }

    /// A plain store: with one writer nothing is lost, and no bus lock is taken.
    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }
}

/// What one batch adds.
#[derive(Debug, Default)]
pub(crate) struct BatchCounts {
    pub(crate) commands: u64,
    pub(crate) errors: u64,
    pub(crate) protocol_errors: u64,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) accepted: u64,
    pub(crate) refused: u64,
    pub(crate) over_limit: u64,
}

impl BatchCounts {
    /// Adds everything and begins again.
    pub(crate) fn publish(&mut self, metrics: &RespMetrics, open: usize, held: usize) {
        let counts = std::mem::take(self);
        metrics.commands.add(counts.commands);
        metrics.errors.add(counts.errors);
        metrics.protocol_errors.add(counts.protocol_errors);
        metrics.bytes_in.add(counts.bytes_in);
        metrics.bytes_out.add(counts.bytes_out);
        metrics.batches.add(u64::from(counts.commands > 0));
        metrics.connections_accepted.add(counts.accepted);
        metrics.connections_refused.add(counts.refused);
        metrics.connections_over_limit.add(counts.over_limit);
        metrics.connections_open.set(open as u64);
        metrics.bytes_held.set(held as u64);
    }
}

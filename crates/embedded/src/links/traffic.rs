//! Bytes on the links to one peer, as counters that only grow.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counted by senders and receivers, read by whoever asks.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    sent: AtomicU64,
    sent_plain: AtomicU64,
    received: AtomicU64,
}

/// Bytes to and from one other region since this process began, on all connections for replication; what the transport
/// adds (TLS, TCP) is not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerTraffic {
    /// Sent.
    pub sent: u64,
    /// What these would have been without compression.
    pub sent_plain: u64,
    /// Received.
    pub received: u64,
}

impl Traffic {
    /// So many bytes went out, which were so many before they were compressed.
    pub(crate) fn sent(&self, bytes: usize, plain: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
        self.sent_plain.fetch_add(plain as u64, Ordering::Relaxed);
    }

    pub(crate) fn received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn totals(&self) -> PeerTraffic {
        PeerTraffic {
            sent: self.sent.load(Ordering::Relaxed),
            sent_plain: self.sent_plain.load(Ordering::Relaxed),
            received: self.received.load(Ordering::Relaxed),
        }
    }
}

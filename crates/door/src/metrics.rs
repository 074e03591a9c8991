//! What the door counts. Plain atomics: the binary reads and exports them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A number that grows, or that goes up and down.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    pub(crate) fn subtract(&self, amount: u64) {
        self.0.fetch_sub(amount, Ordering::Relaxed);
    }
}

/// What happens between a [`Forwarder`](crate::Forwarder) and its upstreams.
#[derive(Debug, Default)]
pub struct ForwardMetrics {
    /// Requests sent again that an upstream may have seen.
    pub retries: Count,
    /// Requests that could have been sent again, had the retry budget allowed it.
    pub retries_denied: Count,
    /// Connections that could not be opened.
    pub connect_failures: Count,
    /// Kept connections that turned out to be closed.
    pub stale_connections: Count,
}

/// What happens on connections to this process.
#[derive(Debug, Default)]
pub struct ConnectionMetrics {
    /// Connections open now, tunnels included.
    pub open: Count,
    /// Connections turned away because there were too many.
    pub turned_away: Count,
    /// Bytes received.
    pub bytes_in: Count,
    /// Bytes sent.
    pub bytes_out: Count,
    /// Requests whose answer is not complete yet.
    pub in_flight: Count,
}

/// What a door counts. A request has exactly one of the outcomes `answered_locally`, `answered_by_peer`, `refused`,
/// `unavailable`, `failed` and `timed_out`.
#[derive(Debug, Default)]
pub struct DoorMetrics {
    /// Answered by a service instance of this geode.
    pub answered_locally: Count,
    /// Answered by another geode.
    pub answered_by_peer: Count,
    /// Answered 4xx by the door itself: malformed, too large, too slow.
    pub refused: Count,
    /// Answered 503: no service was reached.
    pub unavailable: Count,
    /// Answered 502: the service failed.
    pub failed: Count,
    /// Answered 504: the service did not answer in time.
    pub timed_out: Count,
    /// Requests that came from another geode's door.
    pub from_peers: Count,
    /// Answers that may lack what the session has seen.
    pub stale: Count,
    /// Connections, bytes, requests in flight.
    pub connections: Arc<ConnectionMetrics>,
    /// Retries and failures on the way to instances and peers.
    pub forward: Arc<ForwardMetrics>,
}

//! What peers may make this process hold.

use crate::parse::CommandLimits;

/// Bounds on connections and on the memory they take. All sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once; one more is told so and closed. Redis: `maxclients`, 10 000.
    pub connections: usize,
    /// Limits of one command.
    pub command: CommandLimits,
    /// Input of one connection that is not executed yet, mostly an unfinished command; beyond it the connection is
    /// closed. Redis: `client-query-buffer-limit`, 1 GiB. Less than 4 GiB.
    pub input_bytes: usize,
    /// Replies that one connection has not taken yet; beyond it no more of its commands are executed, and the kernel's
    /// flow control tells the peer to slow down.
    pub output_pause_bytes: usize,
    /// The same; beyond it (one reply may be that large) the connection is closed. Redis:
    /// `client-output-buffer-limit`.
    pub output_bytes: usize,
    /// Input and output of all connections together; beyond it the connection that holds most is closed. Redis:
    /// `maxmemory-clients`.
    pub total_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            command: CommandLimits::default(),
            input_bytes: 256 << 20,
            output_pause_bytes: 1 << 20,
            output_bytes: 256 << 20,
            total_bytes: 1 << 30,
        }
    }
}

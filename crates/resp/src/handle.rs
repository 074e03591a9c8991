//! How other threads reach the event loop.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mio::{Registry, Token};

/// Wakes or stops a running server, from any thread. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    waker: mio::Waker,
    /// A wake-up was sent and the loop has not begun a turn since: another one would tell it nothing new.
    awake: AtomicBool,
    stop: AtomicBool,
}

impl Handle {
    pub(crate) fn new(registry: &Registry, token: Token) -> io::Result<Self> {
        let waker = mio::Waker::new(registry, token)?;
        Ok(Self(Arc::new(Shared { waker, awake: AtomicBool::new(false), stop: AtomicBool::new(false) })))
    }

    /// Makes the loop give the engine a turn and look again at what is durable, soon. What the caller wrote before this
    /// call is visible to that turn. Costs one system call at most, none if a wake-up is under way.
    pub fn wake(&self) {
        if self.0.awake.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Err(error) = self.0.waker.wake() {
            // The loop looks by itself a few times a second, so nothing hangs.
            tracing::error!(%error, "cannot wake the event loop");
        }
    }

    /// Ends the loop after the batch it is in.
    pub fn stop(&self) {
        self.0.stop.store(true, Ordering::Release);
        self.wake();
    }

    /// Called by the loop before it looks at anything that others wrote.
    pub(crate) fn begin_turn(&self) {
        self.0.awake.swap(false, Ordering::AcqRel);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.0.stop.load(Ordering::Acquire)
    }
}

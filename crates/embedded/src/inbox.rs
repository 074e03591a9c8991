//! What other threads have for the data thread.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use geode_replica::Message;
use tokio::sync::OwnedSemaphorePermit;

use crate::engine::{Embedded, Wake};
use crate::outbox::Outbox;

/// One thing to do on the data thread.
pub(crate) enum Incoming {
    /// A link to a peer is up.
    Connected { peer: Arc<str>, outbox: Arc<Outbox> },
    /// A link is gone.
    Lost { peer: Arc<str>, outbox: Arc<Outbox> },
    /// A peer said something. The permit bounds what one peer may have here.
    Message { peer: Arc<str>, outbox: Arc<Outbox>, message: Message, _permit: Option<OwnedSemaphorePermit> },
    /// A peer sent entries.
    Frame { peer: Arc<str>, outbox: Arc<Outbox>, bytes: Vec<u8>, _permit: Option<OwnedSemaphorePermit> },
    /// A peer sent entries over its bulk connection.
    Bulk { peer: Arc<str>, bytes: Vec<u8>, _permit: Option<OwnedSemaphorePermit> },
    /// A peer sent a block of a snapshot over its bulk connection.
    Block { peer: Arc<str>, bytes: Vec<u8>, permit: Option<OwnedSemaphorePermit> },
    /// A bulk connection is gone.
    BulkEnded { peer: Arc<str> },
    /// The bulk connection is gone that carried a link's stream.
    BulkLost { peer: Arc<str>, outbox: Arc<Outbox> },
    /// Somebody asks.
    Question(Box<dyn FnOnce(&mut Embedded) + Send>),
}

/// The queue. What peers send is bounded by its permits, questions by who asks. What comes in bulk stands aside: it is taken
/// when nothing else is there, so that it delays nobody.
#[derive(Default)]
pub(crate) struct Inbox {
    state: Mutex<State>,
    arrived: Condvar,
    /// Whether the data thread was woken and has not looked since.
    woken: AtomicBool,
    wake: OnceLock<Wake>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Incoming>,
    bulk: VecDeque<Incoming>,
    closed: bool,
    /// The data thread waits for [`Inbox::arrived`].
    waiting: bool,
}

impl Inbox {
    pub(crate) fn set_wake(&self, wake: Wake) {
        // A second engine start would be a mistake of the caller; the first wake stays.
        let _ = self.wake.set(wake);
    }

    /// Queues something and wakes the data thread, once until it looks. Drops it if the engine is gone.
    pub(crate) fn push(&self, incoming: Incoming) {
        let mut state = self.lock();
        if state.closed {
            return;
        }
        match incoming {
            Incoming::Bulk { .. } | Incoming::Block { .. } => state.bulk.push_back(incoming),
            _ => state.queue.push_back(incoming),
        }
        let waiting = state.waiting;
        drop(state);
        if waiting {
            self.arrived.notify_one();
        }
        self.wake();
    }

    /// Makes the data thread look soon.
    pub(crate) fn wake(&self) {
        if !self.woken.swap(true, Ordering::AcqRel)
            && let Some(wake) = self.wake.get()
        {
            wake();
        }
    }

    /// Moves up to `limit` things to the end of `batch`, nothing of what came in bulk. Returns whether more such are left.
    pub(crate) fn take(&self, limit: usize, batch: &mut VecDeque<Incoming>) -> bool {
        self.woken.store(false, Ordering::Release);
        let mut state = self.lock();
        let count = limit.min(state.queue.len());
        batch.extend(state.queue.drain(..count));
        !state.queue.is_empty()
    }

    /// Whether there is something that came in bulk.
    pub(crate) fn has_bulk(&self) -> bool {
        !self.lock().bulk.is_empty()
    }

    /// The next that came in bulk.
    pub(crate) fn take_bulk(&self) -> Option<Incoming> {
        self.lock().bulk.pop_front()
    }

    /// Waits until something is there, at most for `patience`.
    pub(crate) fn wait(&self, patience: Duration) {
        let mut state = self.lock();
        state.waiting = true;
        let waited = self
            .arrived
            .wait_timeout_while(state, patience, |state| state.queue.is_empty() && state.bulk.is_empty());
        waited.unwrap_or_else(PoisonError::into_inner).0.waiting = false;
    }

    /// The engine is going: drops what is queued and whatever comes.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let queues = (std::mem::take(&mut state.queue), std::mem::take(&mut state.bulk));
        drop(state);
        drop(queues);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is locked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").finish_non_exhaustive()
    }
}

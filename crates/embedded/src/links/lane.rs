//! The bulk connection to one peer as its live link sees it: there or not, and what it is to carry.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

use super::feed::Feed;
use crate::inbox::{Inbox, Incoming};
use crate::outbox::Outbox;
use crate::snapshot::Source;

/// What may wait for one bulk connection. Each has at most one chunk of the log in memory. A range beyond it is dropped, and asked for again.
const MAX_FEEDS: usize = 64;

/// What the bulk connection is to carry, for the live link whose outbox stands beside it.
pub(crate) type Load = (Cargo, Arc<Outbox>);

/// What is read piece by piece.
#[derive(Debug)]
pub(crate) enum Cargo {
    Log(Feed),
    /// In answer to an attempt.
    Snapshot(Box<Source>, u64),
}

/// One peer's bulk connection; of several the latest.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    state: Mutex<State>,
    /// The number of the latest connection.
    latest: watch::Sender<u64>,
    offered: Notify,
    attached: Notify,
}

#[derive(Debug, Default)]
struct State {
    attached: bool,
    loads: VecDeque<Load>,
    /// The live link whose endless feed went over this connection: its peer may lack what was under way.
    carried: Option<Arc<Outbox>>,
}

/// A connection that carries what the lane is given, until it is dropped or another takes its place.
#[derive(Debug)]
pub(crate) struct Attached<'l> {
    lane: &'l Lane,
    inbox: &'l Inbox,
    peer: Arc<str>,
    number: u64,
}

impl Lane {
    /// Whether there is a connection.
    pub(crate) fn is_attached(&self) -> bool {
        self.lock().attached
    }

    /// Completes when a connection comes, or came since this was last asked.
    pub(crate) async fn attached(&self) {
        self.attached.notified().await;
    }

    /// Gives a feed to the connection. It comes back if there is none, or too much waits for it already.
    pub(crate) fn offer(&self, feed: Feed, outbox: &Arc<Outbox>) -> Option<Feed> {
        let mut state = self.lock();
        if !state.attached || state.loads.len() >= MAX_FEEDS {
            return Some(feed);
        }
        if feed.is_endless() {
            state.carried = Some(Arc::clone(outbox));
        }
        state.loads.push_back((Cargo::Log(feed), Arc::clone(outbox)));
        drop(state);
        self.offered.notify_one();
        None
    }

    /// Gives a snapshot to the connection, in the place of one that it has. False if there is no connection.
    pub(crate) fn offer_snapshot(&self, source: Source, attempt: u64, outbox: &Arc<Outbox>) -> bool {
        let mut state = self.lock();
        if !state.attached {
            return false;
        }
        state.loads.retain(|(cargo, _)| matches!(cargo, Cargo::Log(_)));
        state.loads.push_back((Cargo::Snapshot(Box::new(source), attempt), Arc::clone(outbox)));
        drop(state);
        self.offered.notify_one();
        true
    }

    /// A new connection: what an earlier one had to carry is lost with it.
    pub(crate) fn attach<'l>(&'l self, inbox: &'l Inbox, peer: Arc<str>) -> Attached<'l> {
        let mut number = 0;
        self.latest.send_modify(|latest| {
            *latest += 1;
            number = *latest;
        });
        let attached = Attached { lane: self, inbox, peer, number };
        attached.forget();
        self.lock().attached = true;
        self.attached.notify_one();
        attached
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is locked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Attached<'_> {
    /// The next to carry, in turns, if there is one whose live link is still there.
    pub(crate) fn next(&self) -> Option<Load> {
        let mut state = self.lane.lock();
        if *self.lane.latest.borrow() != self.number {
            return None;
        }
        state.loads.retain(|(_, outbox)| !outbox.is_closed());
        state.loads.pop_front()
    }

    /// Puts back what is not carried to its end.
    pub(crate) fn put_back(&self, load: Load) {
        let mut state = self.lane.lock();
        if *self.lane.latest.borrow() == self.number {
            state.loads.push_back(load);
        }
    }

    /// Completes when something was offered, or was since this was last asked.
    pub(crate) async fn offered(&self) {
        self.lane.offered.notified().await;
    }

    /// Completes when another connection took this one's place.
    pub(crate) async fn replaced(&self) {
        // The sender lives as long as the lane.
        let _ = self.lane.latest.subscribe().wait_for(|latest| *latest != self.number).await;
    }

    fn forget(&self) {
        let State { carried, loads, .. } = std::mem::take(&mut *self.lane.lock());
        drop(loads);
        if let Some(outbox) = carried {
            self.inbox.push(Incoming::BulkLost { peer: Arc::clone(&self.peer), outbox });
        }
    }
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        if *self.lane.latest.borrow() == self.number {
            self.forget();
        }
    }
}

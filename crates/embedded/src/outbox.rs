//! What the data thread has for one link's sender.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use geode_crdt::ActorId;
use geode_replica::Message;
use geode_replica::wire::Encoder;
use tokio::sync::Notify;

/// Ranges that one peer may have asked for and not yet got; it asks for one range of each actor at a time.
const MAX_RANGES: usize = 1024;

/// Where to begin streaming this region's own entries.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) position: u64,
    /// What the peer holds already: incarnation and sequence.
    pub(crate) held: Vec<(u64, u64)>,
}

/// Entries of one actor that a peer asked for.
#[derive(Debug)]
pub(crate) struct Range {
    /// At or before the record that holds the first of them.
    pub(crate) position: u64,
    pub(crate) actor: ActorId,
    pub(crate) from: u64,
    pub(crate) to: u64,
}

/// What the sender is to do next.
#[derive(Debug, Default)]
pub(crate) struct Work {
    /// Messages, encoded.
    pub(crate) bytes: Vec<u8>,
    pub(crate) stream: Option<Stream>,
    pub(crate) ranges: VecDeque<Range>,
    /// Close the link once the messages are sent.
    pub(crate) close: bool,
}

/// A link's box. Of heartbeats and of acknowledgements a slow link holds one: each supersedes the one before.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    encoder: Encoder,
    work: Work,
    heartbeat: Option<Message>,
    durable: Option<Message>,
}

impl Outbox {
    pub(crate) fn send(&self, mut message: Message) {
        let mut state = self.lock();
        let State { encoder, work, heartbeat, durable } = &mut *state;
        let superseded = match &message {
            Message::Heartbeat { .. } => Some(heartbeat),
            Message::Durable { .. } => Some(durable),
            Message::Hello { .. } | Message::Request { .. } | Message::Refuse { .. } => None,
        };
        match superseded {
            Some(held) => {
                if let Some(earlier) = held.take() {
                    message.supersede(earlier);
                }
                *held = Some(message);
            }
            None => encoder.encode(&message, &mut work.bytes),
        }
        drop(state);
        self.changed.notify_one();
    }

    pub(crate) fn stream(&self, stream: Stream) {
        self.lock().work.stream = Some(stream);
        self.changed.notify_one();
    }

    pub(crate) fn serve(&self, range: Range) {
        let mut state = self.lock();
        // A peer that asks without reading the answers asks again when its patience ends.
        if state.work.ranges.len() < MAX_RANGES {
            state.work.ranges.push_back(range);
        }
        drop(state);
        self.changed.notify_one();
    }

    pub(crate) fn close(&self) {
        self.lock().work.close = true;
        self.changed.notify_one();
    }

    /// Completes when something was put in since it was last taken.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Takes everything out.
    pub(crate) fn take(&self) -> Work {
        let mut state = self.lock();
        let State { encoder, work, heartbeat, durable } = &mut *state;
        let mut work = std::mem::take(work);
        for message in [heartbeat.take(), durable.take()].into_iter().flatten() {
            encoder.encode(&message, &mut work.bytes);
        }
        work
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is locked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

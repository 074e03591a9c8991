//! What the data thread has for one link's sender.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use geode_crdt::ActorId;
use geode_replica::Message;
use geode_replica::wire::Encoder;
use tokio::sync::Notify;

use crate::links::Feed;

/// Ranges that one peer may have asked for and not yet got; it asks for one range of each actor at a time.
const MAX_RANGES: usize = 1024;
/// Messages that wait for one peer, in bytes: the longest hello, and room to ask for every actor that there may be. A peer
/// that lets more gather does not read, and its link ends.
const MAX_BYTES: usize = 8 << 20;
/// A range of more entries than this is long: about what a link of 100 Mbit/s carries between two heartbeats.
const LONG_RANGE: u64 = 8_000;

/// Where to begin streaming this region's own entries.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) position: u64,
    /// What the peer holds already: incarnation and sequence.
    pub(crate) held: Vec<(u64, u64)>,
    /// Whether it understands packed messages.
    pub(crate) packs: bool,
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

impl Range {
    /// Whether it would keep a live link busy.
    pub(crate) fn is_long(&self) -> bool {
        self.to - self.from > LONG_RANGE
    }
}

/// What the sender is to do next.
#[derive(Debug, Default)]
pub(crate) struct Work {
    /// Messages, encoded.
    pub(crate) bytes: Vec<u8>,
    pub(crate) stream: Option<Stream>,
    /// The stream, from where the bulk connection brought it.
    pub(crate) returned: Option<Feed>,
    /// Close the link once the messages are sent.
    pub(crate) close: bool,
}

/// A link's box. Of heartbeats and of acknowledgements a slow link holds one: each supersedes the one before.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    changed: Notify,
    overflowed: Notify,
}

#[derive(Debug, Default)]
struct State {
    encoder: Encoder,
    work: Work,
    heartbeat: Option<Message>,
    durable: Option<Message>,
    ranges: VecDeque<Range>,
    /// Whether the link is to end, or has.
    closed: bool,
}

impl Outbox {
    pub(crate) fn send(&self, mut message: Message) {
        let mut state = self.lock();
        let State { encoder, work, heartbeat, durable, .. } = &mut *state;
        let superseded = match &message {
            Message::Heartbeat { .. } => Some(heartbeat),
            Message::Durable { .. } => Some(durable),
            Message::Hello { .. }
            | Message::Request { .. }
            | Message::Refuse { .. }
            | Message::Exclude { .. }
            | Message::Trimmed { .. }
            | Message::Ask { .. }
            | Message::Unable { .. } => None,
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
        let is_full = work.bytes.len() > MAX_BYTES;
        if is_full {
            work.bytes = Vec::new();
        }
        drop(state);
        self.changed.notify_one();
        if is_full {
            self.overflowed.notify_one();
        }
    }

    pub(crate) fn stream(&self, stream: Stream) {
        let mut state = self.lock();
        state.work.stream = Some(stream);
        // It went on from another place.
        state.work.returned = None;
        drop(state);
        self.changed.notify_one();
    }

    pub(crate) fn serve(&self, range: Range) {
        let mut state = self.lock();
        // A peer that asks without reading the answers asks again when its patience ends.
        if state.ranges.len() < MAX_RANGES {
            state.ranges.push_back(range);
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Hands the stream back to its live link.
    pub(crate) fn give_back(&self, feed: Feed) {
        self.lock().work.returned = Some(feed);
        self.changed.notify_one();
    }

    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.work.close = true;
        state.closed = true;
        drop(state);
        self.changed.notify_one();
    }

    /// Whether the link is to end, or has.
    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// The range that was asked for first.
    pub(crate) fn next_range(&self) -> Option<Range> {
        self.lock().ranges.pop_front()
    }

    pub(crate) fn has_range(&self) -> bool {
        !self.lock().ranges.is_empty()
    }

    /// Completes when more has gathered than a peer that reads would let gather.
    pub(crate) async fn overflowed(&self) {
        self.overflowed.notified().await;
    }

    /// Completes when something was put in since it was last taken.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Takes everything out.
    pub(crate) fn take(&self) -> Work {
        let mut state = self.lock();
        let State { encoder, work, heartbeat, durable, .. } = &mut *state;
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

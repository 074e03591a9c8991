//! What a replica knows of one other region.

use std::sync::Arc;

use geode_crdt::{ActorIndex, HybridTime, VersionVector};

/// The link to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    /// No connection since that time.
    Down { since_ms: u64 },
    /// Connected; its hello has not come yet.
    Greeting,
    /// Connected and agreed.
    Up,
}

#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) region: Arc<str>,
    pub(crate) link: Link,
    /// Whether it ever agreed with this process.
    pub(crate) answered: bool,
    /// The actor under which it writes now.
    pub(crate) actor: Option<ActorIndex>,
    pub(crate) held: VersionVector,
    pub(crate) durable: VersionVector,
    /// A heartbeat that counts once its actor's entries up to the sequence are delivered.
    pub(crate) promise: Option<(ActorIndex, u64, HybridTime)>,
}

impl Peer {
    pub(crate) fn new(region: &str, since_ms: u64) -> Self {
        Self {
            region: region.into(),
            link: Link::Down { since_ms },
            answered: false,
            actor: None,
            held: VersionVector::default(),
            durable: VersionVector::default(),
            promise: None,
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.link == Link::Up
    }
}

//! What a replica knows of one other region.

use std::sync::Arc;

use geode_crdt::{ActorIndex, HybridTime, VersionVector};

/// The link to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    /// No connection.
    Down,
    /// Connected; its hello has not come yet.
    Greeting,
    /// Connected and agreed.
    Up,
}

#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) region: Arc<str>,
    /// Whether it belongs to the planet no longer.
    pub(crate) evicted: bool,
    pub(crate) link: Link,
    /// Whether it went on after its hello, so that it does not refuse this region. Of meaning while it is up.
    pub(crate) accepts: bool,
    /// When it last stopped being up, or when this process began; of no meaning while it is up.
    pub(crate) away_since_ms: u64,
    /// The version of the exchange that was agreed when it was last up.
    pub(crate) version: u16,
    /// Whether it ever agreed with this process.
    pub(crate) answered: bool,
    /// The actor under which it writes now.
    pub(crate) actor: Option<ActorIndex>,
    pub(crate) held: VersionVector,
    pub(crate) durable: VersionVector,
    /// What this link was told to be held here.
    pub(crate) told_held: VersionVector,
    /// What this link was told to be on the disk here, of what it wrote.
    pub(crate) told_durable: VersionVector,
    /// When it may be told more.
    pub(crate) acknowledge_from_ms: u64,
    /// How far its wall clock is ahead of ours at least, in microseconds, by its last heartbeat.
    pub(crate) ahead_us: u64,
    /// How far ours is ahead of its own at least, by its word.
    pub(crate) behind_us: u64,
    /// What it held when it first answered a region that had nothing.
    pub(crate) first_held: Option<VersionVector>,
    /// A heartbeat that counts once its actor's entries up to the sequence are delivered.
    pub(crate) promise: Option<(ActorIndex, u64, HybridTime)>,
}

impl Peer {
    pub(crate) fn new(region: &str, since_ms: u64) -> Self {
        Self {
            region: region.into(),
            evicted: false,
            link: Link::Down,
            accepts: false,
            away_since_ms: since_ms,
            version: 0,
            answered: false,
            actor: None,
            held: VersionVector::default(),
            durable: VersionVector::default(),
            told_held: VersionVector::default(),
            told_durable: VersionVector::default(),
            acknowledge_from_ms: 0,
            ahead_us: 0,
            behind_us: 0,
            first_held: None,
            promise: None,
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.link == Link::Up
    }

    /// Whether nothing was agreed with it for at least `grace_ms`.
    pub(crate) fn is_away(&self, now_ms: u64, grace_ms: u64) -> bool {
        !self.is_up() && now_ms >= self.away_since_ms + grace_ms
    }
}

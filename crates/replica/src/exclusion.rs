//! When nobody takes what this region writes: it was evicted, or its data is from before it was evicted or replaced. It must
//! not answer writes then, for they would be lost.
//!
//! A region hears of its eviction as of any write, if it is in touch when it happens. One that was not is told by those that
//! it calls: they know, and it cannot. A peer's word counts as long as no other member is in touch, since that one would know
//! too, and only if this region does not regard that peer as evicted: two halves of a planet that evict each other both go on.

use crate::replica::Replica;

/// Why a peer is not spoken to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Objection {
    /// One line: what is wrong, and what to do.
    pub(crate) reason: String,
    /// Whether it lies in the peer's data, so that nobody takes what it writes.
    pub(crate) excludes: bool,
}

impl Objection {
    /// To how, or with whom, it talks.
    pub(crate) fn talk(reason: String) -> Self {
        Self { reason, excludes: false }
    }

    /// To what it holds.
    pub(crate) fn data(reason: String) -> Self {
        Self { reason, excludes: true }
    }
}

pub(crate) fn evicted_words(planet: &str) -> String {
    format!("it was evicted from planet \"{planet}\": let it rejoin as new")
}

/// What a client of a region gets that knows of its eviction.
const EVICTED: &str =
    "EXCLUDED this region was evicted, and no other takes what is written here: write in another region";

impl Replica {
    /// Why nothing may be written here, as one line for clients; `None` if others take it, as far as is known.
    pub fn exclusion(&self) -> Option<&str> {
        if !self.is_member() {
            return Some(EVICTED);
        }
        let told = self.excluded.as_deref()?;
        (!self.members().any(|peer| peer.is_up() && peer.accepts)).then_some(told)
    }

    /// Whether a member in touch has said its hello, and not yet anything else: it may still refuse this region.
    pub fn awaits_verdict(&self) -> bool {
        self.members().any(|peer| peer.is_up() && !peer.accepts)
    }

    /// A peer goes on after its hello.
    pub(crate) fn accepted(&mut self, index: usize) {
        let peer = &mut self.peers[index];
        if !std::mem::replace(&mut peer.accepts, true) {
            self.excluded = None;
        }
    }

    /// A peer says that nobody takes what is written here.
    pub(crate) fn excluded(&mut self, index: usize, reason: &str) {
        let peer = &self.peers[index];
        if !peer.evicted {
            self.excluded = Some(format!(
                "EXCLUDED no other region takes what is written here, says {}: {reason}",
                peer.region
            ));
        }
    }
}

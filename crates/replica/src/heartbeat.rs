//! What a replica says of itself by itself: where it stands, several times a second, and to each writer, as soon as it is
//! so, what of its entries is on the disk here.
//!
//! Each link is told only what is new on it. So a planet at rest says a few bytes, and a write costs its writer one
//! acknowledgement from each region, however many regions there are.

use std::collections::BTreeSet;

use geode_crdt::{ActorIndex, Actors, HybridTime, VersionVector};

use crate::peer::Peer;
use crate::replica::Replica;
use crate::vector::Vector;
use crate::wire::Message;

/// How often a replica says where it stands.
const HEARTBEAT_MS: u64 = 100;
/// The shortest time between two acknowledgements to one peer. The first one leaves at once; where every fsync would bring
/// another, they are said together, for less than the shortest round trip between two regions.
const ACKNOWLEDGE_MS: u64 = 2;

impl Replica {
    /// Whether it is time for a heartbeat.
    pub fn heartbeat_due(&self) -> bool {
        let due = self.now.monotonic_ms >= self.heartbeat_at_ms + HEARTBEAT_MS;
        due && self.peers.iter().any(Peer::is_up)
    }

    /// Says to every connected peer where this replica stands. `promise` is a time that all later own entries exceed.
    /// Entries up to now must be logged already.
    pub fn heartbeat(&mut self, promise: HybridTime, actors: &Actors) {
        // What is left of an actor that others do not know to be closed is not bound by anything.
        let promise = if self.owes_close(actors) { HybridTime(0) } else { promise };
        self.said = Some((actors.id(self.own).clone(), self.held.get(self.own), promise));
        self.beat(|replica, index| {
            let claimed = if replica.claims_only_durable { &replica.durable } else { &replica.held };
            news(claimed, &mut replica.peers[index].told_held, actors, |_| true)
        });
    }

    /// Says again what the last heartbeat promised, so that links stay up while nothing new can be promised: it is so for
    /// ever. Only the wall clock is read anew.
    pub fn repeat_heartbeat(&mut self) {
        self.beat(|_, _| Vector::default());
    }

    fn beat(&mut self, held: impl Fn(&mut Self, usize) -> Vector) {
        self.heartbeat_at_ms = self.now.monotonic_ms;
        let Some((actor, sequence, time)) = self.said.clone() else { return };
        for index in 0..self.peers.len() {
            if !self.peers[index].is_up() {
                continue;
            }
            let held = held(self, index);
            let message = Message::Heartbeat {
                actor: actor.clone(),
                sequence,
                time,
                wall: self.now.wall,
                ahead_us: self.peers[index].ahead_us,
                held,
            };
            self.send(index, message);
        }
    }

    /// Tells each connected peer what of its entries has come onto the disk here: nobody else counts on that. Whoever
    /// was told just before is told a little later; returns after how many milliseconds to call again for that.
    /// Linear in the actors, times the logarithm of the regions; nothing if the disk has no news.
    pub fn acknowledge(&mut self, monotonic_ms: u64, actors: &Actors) -> Option<u64> {
        if !std::mem::take(&mut self.durable_grew) {
            return None;
        }
        let mut again_ms: Option<u64> = None;
        for index in self.peers_with_news(actors) {
            let peer = &mut self.peers[index];
            if monotonic_ms < peer.acknowledge_from_ms {
                self.durable_grew = true;
                let wait_ms = peer.acknowledge_from_ms - monotonic_ms;
                again_ms = Some(again_ms.map_or(wait_ms, |known| known.min(wait_ms)));
                continue;
            }
            peer.acknowledge_from_ms = monotonic_ms + ACKNOWLEDGE_MS;
            let wrote_it = |actor| actors.id(actor).region == peer.region;
            let durable = news(&self.durable, &mut peer.told_durable, actors, wrote_it);
            self.send(index, Message::Durable { durable });
        }
        again_ms
    }

    /// The connected peers of whose entries more is on the disk than they were told.
    fn peers_with_news(&self, actors: &Actors) -> BTreeSet<usize> {
        let writer = |(actor, sequence)| {
            let index = self.index_of(&actors.id(actor).region)?;
            let peer = &self.peers[index];
            (peer.is_up() && sequence > peer.told_durable.get(actor)).then_some(index)
        };
        self.durable.iter().filter_map(writer).collect()
    }
}

/// What of `vector` counts and is more than was told; from now on it is told.
fn news(
    vector: &VersionVector,
    told: &mut VersionVector,
    actors: &Actors,
    counts: impl Fn(ActorIndex) -> bool,
) -> Vector {
    let mut news = Vector::default();
    for (actor, sequence) in vector.iter() {
        if sequence > told.get(actor) && counts(actor) {
            told.raise(actor, sequence);
            news.0.insert(actors.id(actor).clone(), sequence);
        }
    }
    news
}

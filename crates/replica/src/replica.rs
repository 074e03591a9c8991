//! The state machine.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use geode_crdt::{ActorId, ActorIndex, Actors, Frame, HybridTime, VersionVector};

use crate::catch_up::CatchUp;
use crate::drift::OwnClock;
use crate::ends::Ends;
use crate::exclusion::{Objection, evicted_words};
use crate::life::Allowance;
use crate::peer::{Link, Peer};
use crate::pending::{Blocked, Pending, Waiting};
use crate::snapshot::Snapshots;
use crate::vector::Vector;
use crate::wire::{self, Message, Versions, Witness};

/// How long a region is away before the data of expired keys no longer waits for it. It is a trade: until then expired
/// data takes up memory everywhere; afterwards a lifetime that was prolonged there meanwhile comes too late. A process or
/// a machine that starts again, and most broken routes, are back within a minute.
const AWAY_MS: u64 = 60_000;
/// Undeliverable frames that are kept for each peer. What is beyond is dropped and asked for again.
pub const PENDING_BYTES: usize = 16 << 20;

/// In the place of a peer's index: what stands in a snapshot.
pub(crate) const SNAPSHOT: usize = usize::MAX;

/// The time, as whoever drives the machine reads it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// A clock that never jumps, in milliseconds since some start.
    pub monotonic_ms: u64,
    /// The wall clock.
    pub wall: HybridTime,
}

/// The disk does not give back what is on it; it may do so later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable;

/// What holds the entries: the engine, or a simulator.
pub trait Host {
    /// The table of actors; what arrives is interned there.
    fn actors(&mut self) -> &mut Actors;

    /// Takes the entries `from..=to` of a frame. They come in causal order and each once.
    fn deliver(&mut self, frame: &Frame<'_>, from: u64, to: u64);

    /// The checksum of one held entry, cut out of its frame with [`Frame::slice`]; `None` if it is not held.
    ///
    /// # Errors
    /// It cannot be read now: nothing is known of it.
    fn fingerprint(&mut self, actor: ActorIndex, sequence: u64) -> Result<Option<u32>, Unreadable>;

    /// Whether a held entry was removed from the log because it was old: that it has no fingerprint says nothing.
    fn is_trimmed(&mut self, actor: ActorIndex, sequence: u64) -> bool {
        let _ = (actor, sequence);
        false
    }
}

/// What is to be done. Peers are named by region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send a message.
    Send {
        /// To whom.
        peer: Arc<str>,
        /// What.
        message: Message,
    },
    /// From now on, stream the entries of this region's own actors to the peer as they are logged, beginning after
    /// what it holds: every own actor not named here from its first.
    Stream {
        /// To whom.
        peer: Arc<str>,
        /// What the peer holds.
        held: Vec<(ActorIndex, u64)>,
    },
    /// Send some entries of one actor, beside the stream.
    Serve {
        /// To whom.
        peer: Arc<str>,
        /// Whose entries.
        actor: ActorIndex,
        /// The first.
        from: u64,
        /// The last.
        to: u64,
    },
    /// Ask a peer for a snapshot, or for the rest of the one that it was sending ([`Message::Ask`]).
    Fetch {
        /// Whom.
        peer: Arc<str>,
    },
    /// Send a snapshot, or the rest of one.
    SendSnapshot {
        /// To whom.
        peer: Arc<str>,
        /// What its blocks are to say.
        attempt: u64,
        /// What came with the last block that it has; empty if it has none.
        resume: Vec<u8>,
    },
    /// Join the snapshot that is here into the rows ([`Replica::begin_join`]).
    Join,
    /// Throw the snapshot that is here away.
    DiscardSnapshot {
        /// One line for the log.
        reason: String,
    },
    /// Close the link.
    Disconnect {
        /// Whose.
        peer: Arc<str>,
        /// One line for the log.
        reason: String,
    },
    /// A peer has seen more of this writer than this writer remembers: go on under a new actor
    /// ([`Replica::begin_incarnation`]) before anything else is written.
    NewIncarnation {
        /// One line for the log.
        reason: String,
    },
    /// Tell the operator.
    Report(Report),
}

/// What an operator should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// A peer refused this region, or was refused.
    Refused {
        /// Which peer.
        peer: Arc<str>,
        /// One line.
        reason: String,
    },
    /// An entry is held back because its time is too far ahead of the local clock.
    Ahead {
        /// Who wrote it.
        actor: ActorId,
        /// Which entry.
        sequence: u64,
        /// How far ahead, in milliseconds.
        ahead_ms: u64,
    },
    /// An entry came from beyond the end of its actor: whoever held it is no member any more. It is discarded.
    BeyondEnd {
        /// Whose.
        actor: ActorId,
        /// Where it ended.
        end: u64,
        /// The entry.
        sequence: u64,
    },
    /// Nobody in touch has the entries that this region lacks in its log any more: a snapshot is fetched.
    OutOfReach {
        /// From whom.
        source: Arc<str>,
        /// One of the actors whose entries are lacking.
        actor: ActorId,
        /// The first entry that is lacking.
        from: u64,
    },
    /// A peer cannot send the snapshot that it was asked for.
    NoSnapshot {
        /// Which peer.
        peer: Arc<str>,
        /// One line.
        reason: String,
    },
    /// This region's own clock is so far ahead that it may not write, or no longer is.
    OwnClock {
        /// How far ahead of the other regions', in milliseconds; `None` if writes go on.
        ahead_ms: Option<u64>,
    },
}

/// Causal delivery for one region.
#[derive(Debug)]
pub struct Replica {
    pub(crate) planet: String,
    region: Arc<str>,
    pub(crate) own: ActorIndex,
    pub(crate) held: VersionVector,
    pub(crate) durable: VersionVector,
    pub(crate) peers: Vec<Peer>,
    pub(crate) pending: Pending,
    pub(crate) catch_up: CatchUp,
    pub(crate) snapshots: Snapshots,
    pub(crate) ends: Ends,
    /// Earlier actors of this region of which nothing may be left.
    pub(crate) predecessors: BTreeSet<ActorIndex>,
    /// The ends beyond which entries were discarded, so that it is said once.
    pub(crate) reported_beyond: BTreeSet<ActorIndex>,
    /// By region: every entry of it below this time is delivered.
    passed: BTreeMap<Arc<str>, HybridTime>,
    pub(crate) now: Now,
    pub(crate) heartbeat_at_ms: u64,
    pub(crate) durable_grew: bool,
    pub(crate) reported_ahead: BTreeMap<ActorIndex, u64>,
    pub(crate) own_clock: OwnClock,
    renewing: bool,
    /// Whether it began with nothing.
    pub(crate) began_empty: bool,
    pub(crate) claims_only_durable: bool,
    /// Nothing is delivered and nothing asked for.
    suspended: bool,
    /// What the last heartbeat promised: of this actor, after this entry, no time below this one.
    pub(crate) said: Option<(ActorId, u64, HybridTime)>,
    /// Why nobody takes what is written here, by a peer's word: see [`crate::exclusion`].
    pub(crate) excluded: Option<String>,
    /// Whether the current actor began in this process, since a peer knew more of its predecessor.
    renewed: bool,
    pub(crate) actions: VecDeque<Action>,
}

impl Replica {
    /// The replica of `region`, which writes as `own` and at `now` holds `held`, all of it on disk.
    pub fn new(
        planet: &str,
        region: &str,
        own: ActorIndex,
        peers: &[String],
        held: VersionVector,
        now: Now,
    ) -> Self {
        let since_ms = now.monotonic_ms;
        let mut peers: Vec<Peer> = peers.iter().map(|peer| Peer::new(peer, since_ms)).collect();
        peers.sort_by(|left, right| left.region.cmp(&right.region));
        let regions = peers.iter().map(|peer| Arc::clone(&peer.region));
        let began_empty = held.iter().next().is_none();
        let ends = Ends::new(regions.chain([region.into()]));
        Self {
            planet: planet.to_owned(),
            region: region.into(),
            own,
            durable: held.clone(),
            held,
            peers,
            pending: Pending::default(),
            catch_up: CatchUp::default(),
            snapshots: Snapshots::default(),
            ends,
            predecessors: BTreeSet::new(),
            reported_beyond: BTreeSet::new(),
            passed: BTreeMap::new(),
            now,
            heartbeat_at_ms: since_ms,
            durable_grew: false,
            reported_ahead: BTreeMap::new(),
            own_clock: OwnClock::default(),
            renewing: false,
            began_empty,
            claims_only_durable: false,
            suspended: false,
            said: None,
            excluded: None,
            renewed: false,
            actions: VecDeque::new(),
        }
    }

    /// The next thing to do.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The actor under which this region writes.
    pub const fn own(&self) -> ActorIndex {
        self.own
    }

    /// What is delivered, own entries included.
    pub const fn held(&self) -> &VersionVector {
        &self.held
    }

    /// How many other regions have the current actor's entry on disk. With sequence 0, before its first: what this
    /// region wrote under earlier actors.
    pub fn acknowledged(&self, sequence: u64, actors: &Actors) -> usize {
        if sequence == 0 && !self.renewed {
            let of_region = |actor| actors.id(actor).region == self.region;
            let earlier = || self.held.iter().filter(|(actor, _)| *actor != self.own && of_region(*actor));
            let has_all =
                |peer: &Peer| peer.answered && earlier().all(|(actor, held)| peer.durable.get(actor) >= held);
            return self.members().filter(|peer| has_all(peer)).count();
        }
        // What peers say of an actor that lost its place may be about other entries than those written here. The first
        // entry of the new one depends on everything that was held.
        let sequence = sequence.max(1);
        self.members().filter(|peer| peer.durable.get(self.own) >= sequence).count()
    }

    /// What a peer said to hold, and whether its link is up; in the order of names.
    pub fn peers(&self) -> impl Iterator<Item = (&Arc<str>, bool, &VersionVector)> {
        self.peers.iter().map(|peer| (&peer.region, peer.is_up(), &peer.held))
    }

    /// The most that undeliverable frames of one peer take; never above [`PENDING_BYTES`] unless one frame alone is.
    pub fn pending_bytes(&self) -> usize {
        (0..self.peers.len()).map(|peer| self.pending.bytes_of(peer)).max().unwrap_or(0)
    }

    /// Whether every peer has said since the start what it holds of this writer.
    pub fn all_answered(&self) -> bool {
        self.members().all(|peer| peer.answered)
    }

    /// Whether this is the region that sweeps: the first by name of those that can be reached.
    pub fn is_sweeper(&self) -> bool {
        self.is_member() && self.members().all(|peer| !peer.is_up() || peer.region > self.region)
    }

    /// Up to when every other region's entries are delivered. Nothing with a lesser time can arrive any more.
    pub fn passed(&self) -> HybridTime {
        // What somebody may still hold of an earlier incarnation is not bound by what came later.
        if self.ends.has_open() { HybridTime(0) } else { self.passed_by(|_| true) }
    }

    /// The same without the regions that have been away for a minute: what they wrote may still arrive. Never less than
    /// [`Self::passed`], and no more than that where fewer than half of the planet's regions are in touch: a region that
    /// is cut off from most of the others cannot call them away. Otherwise it would, once it is back, take from them
    /// the keys that they kept alive meanwhile.
    pub fn passed_without_away(&self) -> HybridTime {
        let in_touch = 1 + self.members().filter(|peer| peer.is_up()).count();
        let is_most = 2 * in_touch > self.members().count();
        let now_ms = self.now.monotonic_ms;
        if !is_most {
            return self.passed();
        }
        self.passed_by(|peer| !peer.is_away(now_ms, AWAY_MS)).max(self.passed())
    }

    fn passed_by(&self, counts: impl Fn(&Peer) -> bool) -> HybridTime {
        let peers = || self.members().filter(|peer| counts(peer));
        let current = |actor| peers().any(|peer| peer.actor == Some(actor));
        // A lost tail of an earlier incarnation may still be fetched; its times are not bound by what came later. The
        // same goes for what others have of a region that does not count.
        let outstanding = peers().flat_map(|peer| peer.held.iter());
        if outstanding
            .into_iter()
            .any(|(actor, held)| !current(actor) && self.ends.clamp(actor, held) > self.held.get(actor))
        {
            return HybridTime(0);
        }
        let passed = |peer: &Peer| self.passed.get(&peer.region).copied().unwrap_or_default();
        peers().map(passed).min().unwrap_or(HybridTime(u64::MAX))
    }

    /// From now on others hear only of what is on disk here. For a region that keeps its incarnation through a crash which
    /// takes what is not: nobody may build on that.
    pub fn claim_only_durable(&mut self) {
        self.claims_only_durable = true;
    }

    /// What others are told to be held here.
    pub(crate) fn claimed(&self) -> &VersionVector {
        if self.claims_only_durable { &self.durable } else { &self.held }
    }

    /// An own entry is in the log.
    pub fn committed(&mut self, sequence: u64) {
        self.held.raise(self.own, sequence);
    }

    /// Entries were replayed from the log: no longer news, but they date their region.
    pub fn replayed(&mut self, region: &Arc<str>, time: HybridTime) {
        raise(&mut self.passed, region, time);
    }

    /// Entries up to these are on disk here. Their writer hears of it by [`Self::acknowledge`].
    pub fn synced(&mut self, actor: ActorIndex, sequence: u64) {
        if sequence > self.durable.get(actor) {
            self.durable.raise(actor, sequence);
            self.durable_grew = true;
        }
    }

    /// From now on this region writes as `own`, an actor that nobody has seen.
    pub fn begin_incarnation(&mut self, own: ActorIndex) {
        self.predecessors.insert(self.own);
        self.own = own;
        self.renewing = false;
        self.renewed = true;
    }

    /// While it is suspended nothing is delivered and nothing asked for: the log takes nothing. Frames are not to be
    /// handed in meanwhile; messages are.
    pub const fn suspend(&mut self, suspended: bool) {
        self.suspended = suspended;
    }

    /// A connection to `peer` is there; messages can be sent.
    pub fn connected(&mut self, peer: &str, host: &mut impl Host) {
        let Some(index) = self.index_of(peer) else { return };
        let claimed = self.claimed().clone();
        let claims = Vector::of(&claimed, host.actors());
        let peer_state = &mut self.peers[index];
        peer_state.link = Link::Greeting;
        peer_state.accepts = false;
        peer_state.told_held = claimed;
        let held = Vector::of(&self.held, host.actors());
        let of_peer = held.0.iter().filter(|(actor, _)| &*actor.region == peer);
        let mut witnesses = Vec::new();
        for (actor, sequence) in of_peer {
            let known = host.actors().intern(actor);
            match host.fingerprint(known, *sequence) {
                Ok(Some(fingerprint)) => {
                    witnesses.push(Witness { actor: actor.clone(), sequence: *sequence, fingerprint });
                }
                Ok(None) => {}
                Err(Unreadable) => return self.cannot_compare(index),
            }
        }
        let actor = host.actors().id(self.own).clone();
        let planet = self.planet.clone();
        self.send(index, Message::Hello { versions: wire::VERSIONS, planet, actor, held: claims, witnesses });
    }

    /// An entry that stands in a snapshot that was joined, in the order in which its source delivered them. Like
    /// [`Self::frame`], but for who brought it.
    pub fn supply(&mut self, frame: &Frame<'_>, host: &mut impl Host) {
        if self.offer(SNAPSHOT, frame, host) {
            self.drain(host);
        }
    }

    /// What was on its way to `peer` may be lost though its link is up: the stream is to begin again after what it has
    /// said to hold.
    pub fn stream_again(&mut self, peer: &str, actors: &Actors) {
        if let Some(index) = self.index_of(peer)
            && self.peers[index].is_up()
        {
            self.stream(index, actors);
        }
    }

    /// The version of the exchange that is spoken with `peer`, or was when it was last up; 0 if it never was.
    pub fn version_with(&self, peer: &str) -> u16 {
        self.index_of(peer).map_or(0, |index| self.peers[index].version)
    }

    /// The connection to `peer` is gone.
    pub fn lost(&mut self, peer: &str) {
        let Some(index) = self.index_of(peer) else { return };
        let peer = &mut self.peers[index];
        if peer.is_up() {
            peer.away_since_ms = self.now.monotonic_ms;
        }
        peer.link = Link::Down;
        self.forget_clock(index);
        self.catch_up.lost(index);
        self.snapshots.lost(index);
    }

    /// A message other than a frame arrived.
    pub fn message(&mut self, peer: &str, message: Message, host: &mut impl Host) {
        let Some(index) = self.index_of(peer) else { return };
        let known = host.actors();
        let strangers = message.actors().filter(|actor| known.find(actor).is_none()).count();
        if known.len() + strangers > Actors::MAX {
            return self.disconnect(index, "it names more writers than a planet can have".to_owned());
        }
        let refuses = matches!(message, Message::Refuse { .. } | Message::Exclude { .. });
        if self.peers[index].is_up() && !refuses {
            self.accepted(index);
        }
        match (self.peers[index].link, message) {
            (Link::Down, _) => {}
            (_, Message::Refuse { reason }) => self.refused(index, reason),
            (_, Message::Exclude { reason }) => {
                self.excluded(index, &reason);
                self.refused(index, reason);
            }
            (Link::Greeting, Message::Hello { versions, planet, actor, held, witnesses }) => {
                let objection = self.objection(index, versions, &planet, &actor, host.actors());
                let version = wire::VERSIONS.agreed(versions).unwrap_or_default();
                match objection.or_else(|| self.objection_to_held(&held, host.actors())) {
                    Some(objection) => self.refuse(index, objection, version),
                    None => {
                        self.peers[index].version = version;
                        self.greeted(index, &actor, &held, &witnesses, host);
                    }
                }
            }
            (Link::Up, Message::Heartbeat { actor, sequence, time, wall, ahead_us, held }) => {
                self.compare_clocks(index, wall, ahead_us);
                let actor = host.actors().intern(&actor);
                let held = held.intern(host.actors());
                let peer = &mut self.peers[index];
                peer.actor = Some(actor);
                peer.held.join(&held);
                // The oldest unmet promise stays: under constant load a newer one would never be met.
                peer.promise.get_or_insert((actor, sequence, time));
                self.keep_promises();
            }
            (Link::Up, Message::Durable { durable }) => {
                let durable = durable.intern(host.actors());
                let peer = &mut self.peers[index];
                peer.held.join(&durable);
                peer.durable.join(&durable);
            }
            (Link::Up, Message::Request { actor, from, to }) => {
                let actor = host.actors().intern(&actor);
                let to = to.min(self.held.get(actor));
                if from >= 1 && from <= to {
                    let peer = Arc::clone(&self.peers[index].region);
                    self.actions.push_back(Action::Serve { peer, actor, from, to });
                }
            }
            (Link::Up, Message::Trimmed { actor, from }) => {
                let actor = host.actors().intern(&actor);
                self.note_trimmed(index, actor, from);
            }
            (Link::Up, Message::Ask { attempt, resume }) => self.asked_for_snapshot(index, attempt, resume),
            (Link::Up, Message::Unable { reason }) => self.no_snapshot(index, reason),
            (_, message) => self.disconnect(index, format!("unexpected message: {}", name_of(&message))),
        }
    }

    /// A frame arrived. What can be delivered is delivered at once, and so is what waited for it.
    pub fn frame(&mut self, peer: &str, bytes: &[u8], host: &mut impl Host) {
        let Some(index) = self.index_of(peer) else { return };
        if !self.peers[index].is_up() {
            return;
        }
        match Frame::parse(bytes, host.actors()) {
            Ok(frame) if frame.bytes().len() == bytes.len() => {
                if self.offer(index, &frame, host) {
                    self.drain(host);
                }
            }
            Ok(_) => self.disconnect(index, "a frame with bytes after its end".to_owned()),
            Err(error) => self.disconnect(index, format!("its frame cannot be read: {error}")),
        }
    }

    /// Time passed. Entries that were ahead of the clock may be due; what does not arrive is asked for elsewhere.
    pub fn timer(&mut self, now: Now, host: &mut impl Host) {
        self.now = now;
        self.report_own_clock();
        if !self.suspended {
            self.drain(host);
            self.ask_for_missing(host.actors());
            self.look_after_snapshot(host.actors());
        }
    }

    pub(crate) fn index_of(&self, region: &str) -> Option<usize> {
        self.peers.iter().position(|peer| *peer.region == *region)
    }

    pub(crate) fn send(&mut self, index: usize, message: Message) {
        let peer = Arc::clone(&self.peers[index].region);
        self.actions.push_back(Action::Send { peer, message });
    }

    fn disconnect(&mut self, index: usize, reason: String) {
        let peer = Arc::clone(&self.peers[index].region);
        self.actions.push_back(Action::Disconnect { peer, reason });
    }

    fn refused(&mut self, index: usize, reason: String) {
        let peer = Arc::clone(&self.peers[index].region);
        let report = Report::Refused { peer: Arc::clone(&peer), reason: reason.clone() };
        self.actions.push_back(Action::Report(report));
        self.actions.push_back(Action::Disconnect { peer, reason: format!("it refused: {reason}") });
    }

    fn objection(
        &self,
        index: usize,
        versions: Versions,
        planet: &str,
        actor: &ActorId,
        actors: &Actors,
    ) -> Option<Objection> {
        let peer = &self.peers[index];
        let is_closed = |actor| actors.find(actor).is_some_and(|actor| self.ends.is_closed(actor));
        if wire::VERSIONS.agreed(versions).is_none() {
            let (theirs, ours) = (versions, wire::VERSIONS);
            Some(Objection::talk(format!(
                "it speaks versions {} to {} of replication, this region {} to {}: upgrade one release at a time",
                theirs.oldest, theirs.newest, ours.oldest, ours.newest
            )))
        } else if planet != self.planet {
            let ours = &self.planet;
            Some(Objection::talk(format!(
                "it belongs to planet \"{planet}\", this region to \"{ours}\": check planet.toml"
            )))
        } else if peer.evicted {
            Some(Objection::data(evicted_words(planet)))
        } else if actor.region != peer.region {
            Some(Objection::talk(format!(
                "it says it is region {}, not {}: check link addresses",
                actor.region, peer.region
            )))
        } else if is_closed(actor) {
            // What it wrote beyond its end, or is yet to write, nobody would take.
            Some(Objection::data(format!(
                "{} comes with data from before it was evicted or replaced ({actor} has ended): move its data directory \
                 away and start it again, so that it comes as new",
                actor.region
            )))
        } else {
            None
        }
    }

    /// Ends the link with a peer that speaks `version`, in words.
    pub(crate) fn refuse(&mut self, index: usize, objection: Objection, version: u16) {
        let peer = Arc::clone(&self.peers[index].region);
        let reason = objection.reason;
        let told = if objection.excludes && version >= wire::EXCLUDED_SINCE {
            Message::Exclude { reason: reason.clone() }
        } else {
            Message::Refuse { reason: reason.clone() }
        };
        self.send(index, told);
        self.actions.push_back(Action::Report(Report::Refused { peer, reason: reason.clone() }));
        self.disconnect(index, format!("refused: {reason}"));
    }

    fn greeted(
        &mut self,
        index: usize,
        actor: &ActorId,
        held: &Vector,
        witnesses: &[Witness],
        host: &mut impl Host,
    ) {
        if witnesses.iter().any(|witness| self.is_other(witness, host) == Err(Unreadable)) {
            return self.cannot_compare(index);
        }
        let held = held.intern(host.actors());
        let actor = host.actors().intern(actor);
        let peer = &mut self.peers[index];
        peer.link = Link::Up;
        peer.answered = true;
        peer.actor = Some(actor);
        // Not joined: a region that lost its disk holds less than it once said.
        peer.durable = VersionVector::default();
        peer.told_durable = VersionVector::default();
        self.durable_grew = true;
        if self.began_empty {
            // What it has lost since is not waited for: it may be nobody's, and where it ends needs this region's word.
            let mut least = VersionVector::default();
            let first = peer.first_held.take().unwrap_or_else(|| held.clone());
            first.iter().for_each(|(actor, upto)| least.raise(actor, upto.min(held.get(actor))));
            peer.first_held = Some(least);
        }
        let claimed = held.get(self.own);
        peer.held = held;
        peer.promise = None;
        self.forget_clock(index);
        for witness in witnesses {
            self.check_witness(index, witness, host);
        }
        if claimed > self.held.get(self.own) {
            // Of what it has from a snapshot it can bear no witness.
            let (peer, held) = (&self.peers[index].region, self.held.get(self.own));
            self.renew(format!("{peer} holds entry {claimed} of this region, which ends at {held}"));
        }
        self.stream(index, host.actors());
    }

    fn stream(&mut self, index: usize, actors: &Actors) {
        let peer = &self.peers[index];
        let own_region = |actor: ActorIndex| actors.id(actor).region == self.region;
        let held = peer.held.iter().filter(|(actor, _)| own_region(*actor)).collect();
        self.actions.push_back(Action::Stream { peer: Arc::clone(&peer.region), held });
    }

    /// A peer that holds more of the current actor than this region, or other content, proves a lost tail.
    fn check_witness(&mut self, index: usize, witness: &Witness, host: &mut impl Host) {
        if host.actors().find(&witness.actor) != Some(self.own) {
            return;
        }
        let (peer, held) = (Arc::clone(&self.peers[index].region), self.held.get(self.own));
        if witness.sequence > held {
            let reason =
                format!("{peer} holds entry {} of this region, which ends at {held}", witness.sequence);
            self.renew(reason);
        } else if self.is_other(witness, host) == Ok(true) {
            self.renew(format!("{peer} holds another entry {} of this region", witness.sequence));
        }
    }

    /// Whether a peer's entry of the current actor is not the one that this region has.
    fn is_other(&self, witness: &Witness, host: &mut impl Host) -> Result<bool, Unreadable> {
        if host.actors().find(&witness.actor) != Some(self.own) || witness.sequence > self.held.get(self.own)
        {
            return Ok(false);
        }
        let own = host.fingerprint(self.own, witness.sequence)?;
        Ok(own != Some(witness.fingerprint) && !host.is_trimmed(self.own, witness.sequence))
    }

    /// A log that cannot be read proves neither that peers hold the same as this region nor that they hold other, so nothing
    /// is concluded: the link is tried again.
    fn cannot_compare(&mut self, index: usize) {
        self.disconnect(
            index,
            "the log cannot be read, so it cannot be compared with what the peer holds; see to the disk"
                .to_owned(),
        );
    }

    pub(crate) fn renew(&mut self, reason: String) {
        if !self.renewing {
            self.renewing = true;
            self.actions.push_back(Action::NewIncarnation { reason });
        }
    }

    /// Delivers what can be delivered of a frame and keeps the rest. Returns whether anything was delivered.
    fn offer(&mut self, index: usize, frame: &Frame<'_>, host: &mut impl Host) -> bool {
        let writer = frame.writer();
        let next = self.held.get(writer) + 1;
        let last = frame.last_sequence();
        if last < next {
            return false;
        }
        if self.snapshots.holds_still() {
            self.keep(index, frame, Blocked::Gap);
            return false;
        }
        if writer == self.own {
            let sender = self.peers.get(index).map_or("a snapshot", |peer| &peer.region);
            self.renew(format!("{sender} sent entry {last} of this region"));
        }
        if next > self.ends.ceiling(writer).unwrap_or(u64::MAX) {
            self.report_beyond(writer, last, host.actors());
            return false;
        }
        if frame.first_sequence() > next {
            self.keep(index, frame, Blocked::Gap);
            return false;
        }
        let (upto, time, blocked) = self.deliverable(frame, next, host.actors());
        if let Some(time) = time {
            self.held.raise(writer, upto);
            raise(&mut self.passed, &host.actors().id(writer).region.clone(), time);
            host.deliver(frame, next, upto);
        }
        if let Some(blocked) = blocked {
            self.keep(index, frame, blocked);
        }
        time.is_some()
    }

    /// How far a frame can be delivered from `next` on: the last entry and its time, and what stops the one after.
    fn deliverable(
        &mut self,
        frame: &Frame<'_>,
        next: u64,
        actors: &Actors,
    ) -> (u64, Option<HybridTime>, Option<Blocked>) {
        let (latest, allowed) = (self.latest(), self.allowed(frame.writer()));
        let (mut upto, mut time) = (next - 1, None);
        for entry in frame.entries().skip_while(|entry| entry.sequence < next) {
            if entry.sequence > allowed {
                return (upto, time, Some(Blocked::Holder));
            }
            if entry.time > latest {
                self.report_ahead(actors, frame.writer(), entry.sequence, entry.time);
                return (upto, time, Some(Blocked::Clock(entry.time)));
            }
            let missing = |(actor, sequence): &(ActorIndex, u64)| {
                let held = self.held.get(*actor);
                *sequence > held && self.ends.clamp(*actor, *sequence) > held
            };
            if let Some((actor, sequence)) = entry.changed().find(missing) {
                if actor == self.own {
                    self.renew(format!("an entry depends on entry {sequence} of this region"));
                }
                return (upto, time, Some(Blocked::Entry(actor, sequence)));
            }
            (upto, time) = (entry.sequence, Some(entry.time));
        }
        (upto, time, None)
    }

    fn keep(&mut self, index: usize, frame: &Frame<'_>, blocked: Blocked) {
        let held_bytes = self.pending.bytes_of(index);
        if held_bytes > 0 && held_bytes + frame.bytes().len() > PENDING_BYTES {
            self.catch_up.dropped(frame.writer(), frame.first_sequence(), frame.last_sequence());
            return;
        }
        let waiting =
            Waiting { bytes: frame.bytes().into(), last: frame.last_sequence(), peer: index, blocked };
        self.pending.insert(frame.writer(), frame.first_sequence(), waiting);
    }

    /// Delivers everything kept that has become deliverable, until nothing more follows.
    pub(crate) fn drain(&mut self, host: &mut impl Host) {
        while !self.pending.is_empty() && !self.snapshots.holds_still() {
            let limits = Allowance { ends: &self.ends, peers: &self.peers };
            let ready = self.pending.take_ready(&self.held, self.latest(), &limits);
            let Some((_, waiting)) = ready else { break };
            // It was parsed when it came; the bytes are the same.
            if let Ok(frame) = Frame::parse(&waiting.bytes, host.actors()) {
                self.offer(waiting.peer, &frame, host);
            }
        }
        self.look_whether_whole();
        self.keep_promises();
    }

    fn keep_promises(&mut self) {
        for peer in &mut self.peers {
            if let Some((actor, sequence, time)) = peer.promise
                && self.held.get(actor) >= sequence
            {
                raise(&mut self.passed, &peer.region, time);
                peer.promise = None;
            }
        }
    }

    pub(crate) fn region(&self) -> &Arc<str> {
        &self.region
    }
}

fn raise(times: &mut BTreeMap<Arc<str>, HybridTime>, region: &Arc<str>, time: HybridTime) {
    match times.get_mut(region) {
        Some(held) => *held = time.max(*held),
        None => drop(times.insert(Arc::clone(region), time)),
    }
}

const fn name_of(message: &Message) -> &'static str {
    match message {
        Message::Hello { .. } => "a second hello",
        Message::Heartbeat { .. } => "a heartbeat before the hello",
        Message::Durable { .. } => "an acknowledgement before the hello",
        Message::Request { .. } => "a request before the hello",
        Message::Refuse { .. } | Message::Exclude { .. } => "a refusal",
        Message::Trimmed { .. } | Message::Ask { .. } | Message::Unable { .. } => {
            "talk of snapshots before the hello"
        }
    }
}

//! The life of regions and their actors: who belongs to the planet, who has ended, and what this region owes the others.

use std::sync::Arc;

use geode_crdt::{ActorId, ActorIndex, Actors, HybridTime, VersionVector};

use crate::ends::{Ends, Standing};
use crate::exclusion::{Objection, evicted_words};
use crate::facts::{Fact, ViewId};
use crate::peer::Peer;
use crate::pending::Limits;
use crate::replica::{Action, Host, Now, Replica, Report};
use crate::vector::Vector;

/// Whether what somebody has seen is held here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coverage {
    /// All of it.
    Covered,
    /// Not yet.
    Behind,
    /// A part of it is held by nobody and will never be.
    Lost,
}

/// How much of each actor's stream may be held, at one moment.
pub(crate) struct Allowance<'r> {
    pub(crate) ends: &'r Ends,
    pub(crate) peers: &'r [Peer],
}

impl Limits for Allowance<'_> {
    fn ceiling(&self, actor: ActorIndex) -> u64 {
        self.ends.ceiling(actor).unwrap_or(u64::MAX)
    }

    /// A closed actor's entries are taken only as far as somebody holds them whose own actor is not closed.
    fn allowed(&self, actor: ActorIndex) -> u64 {
        if !self.ends.is_closed(actor) {
            return u64::MAX;
        }
        let vouches = |peer: &&Peer| {
            peer.is_up() && !peer.evicted && peer.actor.is_some_and(|actor| !self.ends.is_closed(actor))
        };
        let most = self.peers.iter().filter(vouches).map(|peer| peer.held.get(actor)).max();
        self.ceiling(actor).min(most.unwrap_or(0))
    }
}

impl Replica {
    /// Facts were delivered, replayed, or written here; each with the time of its entry. What they allow is delivered.
    pub fn learned(&mut self, facts: &[(Fact, HybridTime)], host: &mut impl Host) {
        for (fact, said) in facts {
            if let Fact::Member { region, .. } = fact {
                self.add_peer(region, self.now, host.actors());
            }
            self.ends.learn(fact, *said, host.actors());
        }
        for index in 0..self.peers.len() {
            let evicted = self.ends.is_evicted(&self.peers[index].region);
            let is_news = evicted && !std::mem::replace(&mut self.peers[index].evicted, evicted);
            self.peers[index].evicted = evicted;
            if is_news && self.peers[index].is_up() {
                let (objection, version) = (evicted_words(&self.planet), self.peers[index].version);
                self.refuse(index, Objection::data(objection), version);
            }
        }
        if self.ends.is_closed(self.own()) && self.is_member() {
            self.renew("another process of this region has closed it".to_owned());
        }
        if !facts.is_empty() {
            self.drain(host);
        }
    }

    /// What this region has to tell the others: to be written as rows, in this order, and given to [`Self::learned`].
    /// Until then it is owed again and again. Linear in the actors if any of them is closed or of this region's past.
    pub fn owed(&self, actors: &Actors) -> Vec<Fact> {
        if !self.is_member() {
            return Vec::new();
        }
        let id = |actor| actors.id(actor).clone();
        let mut owed: Vec<Fact> =
            self.unclosed(actors).map(|actor| Fact::Closed { actor: id(actor) }).collect();
        if self.ends.has_open() && owed.is_empty() {
            let limits = self.limits();
            let reports = self.ends.owed_reports(self.region(), &self.held, |actor| limits.allowed(actor));
            owed.extend(reports.map(|(actor, view, upto)| {
                let region = Arc::clone(self.region());
                Fact::Report { actor: id(actor), region, view, upto }
            }));
            // One of them is enough; two say the same.
            let ends = self.ends.settled().filter(|_| self.is_sweeper());
            owed.extend(ends.map(|(actor, at)| Fact::End { actor: id(actor), at }));
        }
        owed
    }

    /// Whether a predecessor of this region's actor is not closed yet.
    pub(crate) fn owes_close(&self, actors: &Actors) -> bool {
        let of_region = |actor| actors.id(actor).region == *self.region();
        self.unclosed(actors).any(of_region)
    }

    /// Actors that will write no more and of which nobody has said so: those of this region's past; and of evicted
    /// regions, if this is the first of those in touch.
    fn unclosed<'r>(&'r self, actors: &'r Actors) -> impl Iterator<Item = ActorIndex> + 'r {
        let is_first = self.is_sweeper();
        let met = actors.iter().map(|(actor, _)| actor).filter(|actor| self.has_met(*actor));
        met.filter(move |actor| {
            let ActorId { region, incarnation } = actors.id(*actor);
            // An engine may name the time before its first incarnation so; nobody writes under it.
            *incarnation != 0
                && *actor != self.own()
                && !self.ends.is_closed(*actor)
                && (region == self.region() || is_first && self.ends.is_evicted(region))
        })
    }

    /// Whether anybody may hold entries of an actor, as far as is known here.
    fn has_met(&self, actor: ActorIndex) -> bool {
        self.held.get(actor) > 0
            || self.predecessors.contains(&actor)
            || self.peers.iter().any(|peer| peer.held.get(actor) > 0)
    }

    /// This region wrote as `actor` before, whether or not anything of that is left.
    pub fn succeeded(&mut self, actor: ActorIndex) {
        self.predecessors.insert(actor);
    }

    /// A region was added to the planet.
    pub fn add_peer(&mut self, region: &str, now: Now, actors: &Actors) {
        if self.index_of(region).is_none() && *region != **self.region() {
            self.peers.push(Peer::new(region, now.monotonic_ms));
            self.ends.add_region(region.into(), actors);
        }
    }

    /// Whether what is held is not whole: a snapshot is being joined, or this region began with nothing and does not hold yet what the members in touch held when they first answered.
    /// Until it does it is not to be read or written: it may have been a member before, whose return must be known to
    /// whoever writes there, so that its entries are later than all that was swept without it.
    pub fn is_joining(&self) -> bool {
        let lacks = |first: &VersionVector| self.lacks(first);
        self.snapshots.is_joining()
            || self.members().any(|peer| peer.is_up() && peer.first_held.as_ref().is_some_and(lacks))
    }

    /// Whether this region began with nothing and has not caught up with every member yet, in touch or not. If the process
    /// ends meanwhile, the next one is to be told: [`Self::begins_behind`].
    pub fn is_behind(&self) -> bool {
        let lacks = |first: &VersionVector| self.lacks(first);
        self.began_empty
            && (self.snapshots.is_joining()
                || self.members().any(|peer| peer.first_held.as_ref().is_none_or(lacks)))
    }

    fn lacks(&self, wanted: &VersionVector) -> bool {
        wanted.iter().any(|(actor, sequence)| self.ends.clamp(actor, sequence) > self.held.get(actor))
    }

    /// What was said of regions since the planet was first configured, by name: the last word on each.
    pub fn standings(&self) -> impl Iterator<Item = (&Arc<str>, &Standing)> {
        self.ends.standings()
    }

    /// How many regions belong to the planet, this one included.
    pub fn member_count(&self) -> usize {
        1 + self.members().count()
    }

    /// Whether this region belongs to the planet.
    pub fn is_member(&self) -> bool {
        !self.ends.is_evicted(self.region())
    }

    /// The other regions that belong to the planet.
    pub(crate) fn members(&self) -> impl Iterator<Item = &Peer> {
        self.peers.iter().filter(|peer| !peer.evicted)
    }

    /// Why a region cannot be added, whatever the operator says.
    pub fn obstacle_to_admit(&self, region: &str) -> Option<String> {
        if !self.is_member() {
            Some("this region was evicted itself: ask another one".to_owned())
        } else if self.ends.is_evicted(region) {
            Some(format!("{region} was evicted: let it rejoin"))
        } else if *region == **self.region() || self.index_of(region).is_some() {
            Some(format!("{region} is a region of this planet already"))
        } else {
            None
        }
    }

    /// Why a region cannot be evicted, whatever the operator says.
    pub fn obstacle_to_evict(&self, region: &str) -> Option<String> {
        if !self.is_member() {
            Some("this region was evicted itself: ask another one".to_owned())
        } else if self.index_of(region).is_none() {
            Some(format!("{region} is no other region of this planet: ask one of the regions that stay"))
        } else if self.ends.is_evicted(region) {
            Some(format!("{region} is evicted already"))
        } else {
            None
        }
    }

    /// Why a region should not be evicted but on the operator's word: it is in touch, or most of the planet is not.
    pub fn objection_to_evict(&self, region: &str) -> Option<String> {
        let others = || self.members().filter(|peer| *peer.region != *region);
        let touched = others().filter(|peer| peer.is_up()).map(|peer| &*peer.region);
        let touched: Vec<&str> = std::iter::once(&**self.region()).chain(touched).collect();
        let (in_touch, all) = (touched.len(), self.member_count());
        if self.members().any(|peer| *peer.region == *region && peer.is_up()) {
            Some(format!("{region} is in touch: stop it first, or what is written there meanwhile is lost"))
        } else if 2 * in_touch <= all {
            let touched = touched.join(", ");
            Some(format!(
                "only {in_touch} of {all} regions are in touch ({touched}), which is no majority: the others may live on \
                 without this one"
            ))
        } else {
            None
        }
    }

    /// What to write so that a region is evicted: with it, its actors are closed.
    pub fn eviction(&self, region: &str, details: &str, actors: &Actors) -> Vec<Fact> {
        let met = actors.iter().filter(|(actor, id)| *id.region == *region && self.has_met(*actor));
        let open = met.filter(|(actor, _)| !self.ends.is_closed(*actor));
        let closed = open.map(|(_, id)| Fact::Closed { actor: id.clone() });
        let member = Fact::Member { region: region.into(), evicted: true, details: details.into() };
        [member].into_iter().chain(closed).collect()
    }

    /// What to write so that a region that was evicted may come back, with nothing of what it held; `None` if it was not.
    pub fn readmission(&self, region: &str) -> Option<Fact> {
        let (_, standing) =
            self.standings().find(|(name, standing)| ***name == *region && standing.evicted)?;
        let details = Arc::clone(&standing.details);
        Some(Fact::Member { region: region.into(), evicted: false, details })
    }

    /// Why a region is not to be spoken to that says to hold so much.
    pub(crate) fn objection_to_held(&self, held: &Vector, actors: &Actors) -> Option<Objection> {
        let beyond = |actor: &ActorId, sequence: u64| {
            let end = self.ends.ceiling(actors.find(actor)?)?;
            (sequence > end).then_some(end)
        };
        held.0.iter().find_map(|(actor, sequence)| {
            let end = beyond(actor, *sequence)?;
            Some(Objection::data(format!(
                "it holds entry {sequence} of {actor}, which ended at {end}: stop it, remove its data directory, and let it \
                 rejoin as new"
            )))
        })
    }

    /// What nobody will ever hold more of an actor that writes no more, if that is known.
    pub fn end_of(&self, actor: ActorIndex) -> Option<u64> {
        self.ends.ceiling(actor)
    }

    /// Where an actor ended: every member holds it up to there, and it is agreed for good.
    pub fn agreed_end(&self, actor: ActorIndex) -> Option<u64> {
        self.ends.end(actor)
    }

    /// Whether an actor is closed.
    pub fn is_closed(&self, actor: ActorIndex) -> bool {
        self.ends.is_closed(actor)
    }

    /// Whether it is still to be agreed where some actor ends.
    pub fn has_open_ends(&self) -> bool {
        self.ends.has_open()
    }

    /// What this region's reports are made under.
    pub fn view(&self) -> ViewId {
        self.ends.view()
    }

    /// Whether what a session saw is held here. Actors that have ended count up to their end.
    pub fn covers(&self, seen: &Vector, actors: &Actors) -> Coverage {
        let mut coverage = Coverage::Covered;
        for (actor, sequence) in &seen.0 {
            let known = actors.find(actor);
            let held = known.map_or(0, |actor| self.held.get(actor));
            let end = known.and_then(|actor| self.ends.ceiling(actor));
            if end.is_some_and(|end| *sequence > end) {
                return Coverage::Lost;
            }
            if *sequence > held {
                coverage = Coverage::Behind;
            }
        }
        coverage
    }

    pub(crate) fn limits(&self) -> Allowance<'_> {
        Allowance { ends: &self.ends, peers: &self.peers }
    }

    pub(crate) fn allowed(&self, actor: ActorIndex) -> u64 {
        self.limits().allowed(actor)
    }

    /// Tells the operator, once for each actor, that entries beyond its end came.
    pub(crate) fn report_beyond(&mut self, actor: ActorIndex, sequence: u64, actors: &Actors) {
        let Some(end) = self.ends.ceiling(actor) else { return };
        if self.reported_beyond.insert(actor) {
            let actor = actors.id(actor).clone();
            self.actions.push_back(Action::Report(Report::BeyondEnd { actor, end, sequence }));
        }
    }
}

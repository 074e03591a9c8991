//! The ends of actors: how much of a stream that nobody continues the planet keeps.
//!
//! A machine that crashed may have lost entries that others hold, in part or wholly, and others' entries may depend on
//! some that nobody holds any more. So its region's next actor *closes* the old one, and all members agree on where that
//! one ends. Each reports how much of the stream it holds, under what it knows (its *view*: who is a member, which actors
//! are closed). When every member has reported under one view, nobody will ever hold more than the greatest of these
//! reports: dependencies beyond are clamped, entries beyond are discarded. When all reports under one view are equal, that
//! is the actor's end, for good.
//!
//! Why nobody can: a report is a promise. Whoever made it takes more of the stream only as far as a *member in touch whose
//! own actor is not closed* says that it holds it. The first one to pass the greatest report would need such a member that
//! had passed it before; a new incarnation begins with what its predecessor kept, a new region with nothing. A crash that
//! takes entries away closes an actor and so is another view, under which all report again. So a lost report, a lost tail
//! or several crashes at once only start the agreement over, and nobody needs to force a report onto its disk. But what a
//! region knows of members and closed actors has to be on its disk before it reports: otherwise the others may agree on
//! an end by its report, and it comes back from a crash without knowing of whom it takes nothing any more.
//!
//! A member that cannot be reached holds the agreement up until it is evicted, but not the others' progress: what a member
//! in touch holds can be taken from it at any time. Ended actors stay in vectors; one row each stays in the system
//! database, bounded by regions and crashes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use geode_crdt::{ActorId, ActorIndex, Actors, HybridTime, VersionVector};

use crate::facts::{Fact, ViewId};

/// What is known of who ended where.
#[derive(Debug)]
pub(crate) struct Ends {
    configured: BTreeSet<Arc<str>>,
    /// The last word on each region that was ever added or evicted.
    standing: BTreeMap<Arc<str>, Standing>,
    closed: BTreeMap<ActorIndex, Closed>,
    view: ViewId,
}

/// The last word on a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// When it was said.
    pub since: HybridTime,
    /// Whether the region belongs to the planet no longer.
    pub evicted: bool,
    /// What else was said of it ([`Fact::Member`]).
    pub details: Arc<str>,
}

/// An actor that will never write again.
#[derive(Debug, Default)]
struct Closed {
    reports: BTreeMap<Arc<str>, Report>,
    /// Nobody will ever hold more.
    ceiling: Option<u64>,
    end: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Report {
    said: HybridTime,
    view: ViewId,
    upto: u64,
}

impl Ends {
    pub(crate) fn new(configured: impl IntoIterator<Item = Arc<str>>) -> Self {
        let configured = configured.into_iter().collect();
        let mut ends =
            Self { configured, standing: BTreeMap::new(), closed: BTreeMap::new(), view: ViewId(0) };
        ends.view = ends.view_of(&Actors::default());
        ends
    }

    pub(crate) fn add_region(&mut self, region: Arc<str>, actors: &Actors) {
        self.configured.insert(region);
        self.look_again(actors);
    }

    pub(crate) fn is_evicted(&self, region: &str) -> bool {
        self.standing.get(region).is_some_and(|standing| standing.evicted)
    }

    /// The regions on which something was said, with the last word.
    pub(crate) fn standings(&self) -> impl Iterator<Item = (&Arc<str>, &Standing)> {
        self.standing.iter()
    }

    /// The regions whose reports count.
    pub(crate) fn members(&self) -> impl Iterator<Item = &Arc<str>> {
        self.configured.iter().filter(|region| !self.is_evicted(region))
    }

    pub(crate) fn is_closed(&self, actor: ActorIndex) -> bool {
        self.closed.contains_key(&actor)
    }

    /// What nobody will ever hold more of; `None` while that is not known, or the actor writes on.
    pub(crate) fn ceiling(&self, actor: ActorIndex) -> Option<u64> {
        self.closed.get(&actor)?.ceiling
    }

    /// Where the actor ends: every member holds it up to there.
    pub(crate) fn end(&self, actor: ActorIndex) -> Option<u64> {
        self.closed.get(&actor)?.end
    }

    /// How much of an actor has to be held for an entry that depends on it up to `sequence`.
    pub(crate) fn clamp(&self, actor: ActorIndex, sequence: u64) -> u64 {
        self.ceiling(actor).map_or(sequence, |ceiling| ceiling.min(sequence))
    }

    /// Takes note of a fact that was said at a time. The same again, or an older word, changes nothing.
    pub(crate) fn learn(&mut self, fact: &Fact, said: HybridTime, actors: &mut Actors) {
        match fact {
            Fact::Closed { actor } => {
                self.closed.entry(actors.intern(actor)).or_default();
            }
            Fact::Report { actor, region, view, upto } => {
                let report = Report { said, view: *view, upto: *upto };
                let reports = &mut self.closed.entry(actors.intern(actor)).or_default().reports;
                let held = reports.entry(Arc::clone(region)).or_insert(report);
                if held.said < said {
                    *held = report;
                }
            }
            Fact::End { actor, at } => {
                let closed = self.closed.entry(actors.intern(actor)).or_default();
                (closed.end, closed.ceiling) = (Some(*at), Some(*at));
                closed.reports.clear();
            }
            Fact::Member { region, evicted, details } => {
                let news = Standing { since: said, evicted: *evicted, details: Arc::clone(details) };
                let standing = self.standing.entry(Arc::clone(region)).or_insert_with(|| news.clone());
                if standing.since <= said {
                    *standing = news;
                }
            }
        }
        self.look_again(actors);
    }

    /// Draws the conclusions from all that is known. Linear in closed actors times members.
    fn look_again(&mut self, actors: &Actors) {
        self.view = self.view_of(actors);
        let members: Vec<Arc<str>> = self.members().cloned().collect();
        for closed in self.closed.values_mut().filter(|closed| closed.end.is_none()) {
            let upto = |region: &Arc<str>| {
                let report = closed.reports.get(region)?;
                (report.view == self.view).then_some(report.upto)
            };
            let reports: Option<Vec<u64>> = members.iter().map(upto).collect();
            if let Some(greatest) = reports.and_then(|reports| reports.into_iter().max()) {
                closed.ceiling = Some(closed.ceiling.map_or(greatest, |known| known.min(greatest)));
            }
        }
    }

    fn view_of(&self, actors: &Actors) -> ViewId {
        // No writer has this incarnation: a region's own name among the closed actors.
        let members = self.members().map(|region| ActorId::new(region, u64::MAX).stable_hash());
        let closed = self.closed.keys().map(|actor| actors.stable_hash(*actor));
        ViewId(members.chain(closed).fold(0, u64::wrapping_add))
    }

    pub(crate) const fn view(&self) -> ViewId {
        self.view
    }

    /// The closed actors on which `region`, a member that holds `held`, has something to say. `most` is how much of an
    /// actor is in reach.
    pub(crate) fn owed_reports<'e>(
        &'e self,
        region: &'e str,
        held: &'e VersionVector,
        most: impl Fn(ActorIndex) -> u64 + 'e,
    ) -> impl Iterator<Item = (ActorIndex, ViewId, u64)> + 'e {
        let open = self.closed.iter().filter(|(_, closed)| closed.end.is_none());
        open.filter_map(move |(actor, closed)| {
            let upto = held.get(*actor);
            let last = closed.reports.get(region).filter(|report| report.view == self.view);
            // At once under each view, and again when nothing more is in reach.
            let is_due = last.is_none_or(|last| last.upto < upto && upto >= most(*actor));
            is_due.then_some((*actor, self.view, upto))
        })
    }

    /// The closed actors of which every member has said to hold the same.
    pub(crate) fn settled(&self) -> impl Iterator<Item = (ActorIndex, u64)> + '_ {
        let open = self.closed.iter().filter(|(_, closed)| closed.end.is_none());
        open.filter_map(|(actor, closed)| {
            let mut reports = self.members().map(|region| {
                let report = closed.reports.get(region)?;
                (report.view == self.view).then_some(report.upto)
            });
            let first = reports.next()??;
            reports.all(|upto| upto == Some(first)).then_some((*actor, first))
        })
    }

    /// Whether something is to be agreed on.
    pub(crate) fn has_open(&self) -> bool {
        self.closed.values().any(|closed| closed.end.is_none())
    }
}

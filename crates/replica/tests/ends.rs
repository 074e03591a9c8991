//! Where an actor ends whose machine lost its tail: what members may take, what they agree on, and what is discarded.

#![allow(clippy::unwrap_used)] // a test that unwraps fails, which is what it is for

use geode_crdt::{
    ActorId, ActorIndex, Actors, Frame, FrameBuilder, HybridTime, KeyName, Kind, VersionVector,
};
use geode_replica::{Action, Coverage, Fact, Host, Message, Now, Replica, Report, Unreadable, Vector, wire};

const PLANET: &str = "tested";
const NOW: Now = Now { monotonic_ms: 0, wall: HybridTime(1_000_000) };

/// What a replica delivers to.
#[derive(Default)]
struct Log {
    actors: Actors,
    delivered: Vec<(ActorId, u64)>,
}

impl Host for Log {
    fn actors(&mut self) -> &mut Actors {
        &mut self.actors
    }

    fn deliver(&mut self, frame: &Frame<'_>, from: u64, to: u64) {
        let actor = self.actors.id(frame.writer()).clone();
        self.delivered.extend((from..=to).map(|sequence| (actor.clone(), sequence)));
    }

    fn fingerprint(&mut self, _actor: ActorIndex, _sequence: u64) -> Result<Option<u32>, Unreadable> {
        Ok(Some(1))
    }
}

/// One region as its peers see it.
struct Region {
    log: Log,
    replica: Replica,
    said: u64,
}

fn actor(region: &str) -> ActorId {
    ActorId::new(region, 1)
}

/// The actor that crashed.
fn lost() -> ActorId {
    ActorId::new("us", 7)
}

fn vector(held: &[(ActorId, u64)]) -> Vector {
    Vector(held.iter().cloned().collect())
}

/// Entries `first..=last` of an actor, of which the first depends on something.
fn entries(writer: &ActorId, first: u64, last: u64, depends: Option<(ActorId, u64)>) -> Vec<u8> {
    let mut actors = Actors::default();
    let index = actors.intern(writer);
    let depends = depends.map(|(actor, sequence)| (actors.intern(&actor), sequence));
    let mut builder = FrameBuilder::new(index, first);
    for sequence in first..=last {
        builder.begin_entry(HybridTime(sequence), depends.filter(|_| sequence == first));
        builder.put(KeyName { database: 0, name: b"k" }, Kind::Set, &sequence.to_le_bytes(), b"", []);
        builder.finish_entry();
    }
    let mut bytes = Vec::new();
    builder.finish_into(&mut bytes, &actors);
    bytes
}

impl Region {
    fn new(name: &str, peers: &[&str]) -> Self {
        let mut log = Log::default();
        let own = log.actors.intern(&actor(name));
        let peers: Vec<String> = peers.iter().map(|peer| (*peer).to_owned()).collect();
        let replica = Replica::new(PLANET, name, own, &peers, VersionVector::default(), NOW);
        Self { log, replica, said: 0 }
    }

    /// A link to a peer, which writes as `actor` and says what it holds.
    fn link(&mut self, actor: &ActorId, held: &[(ActorId, u64)]) {
        self.replica.connected(&actor.region, &mut self.log);
        let hello = Message::Hello {
            versions: wire::VERSIONS,
            planet: PLANET.to_owned(),
            actor: actor.clone(),
            held: vector(held),
            witnesses: Vec::new(),
        };
        self.replica.message(&actor.region, hello, &mut self.log);
    }

    fn learn(&mut self, fact: Fact) {
        self.said += 1;
        self.replica.learned(&[(fact, HybridTime(self.said))], &mut self.log);
    }

    fn close(&mut self, actor: ActorId) {
        self.learn(Fact::Closed { actor });
    }

    /// Another region reports under the view of this one.
    fn hears(&mut self, region: &str, upto: u64) {
        let view = self.replica.view();
        self.learn(Fact::Report { actor: lost(), region: region.into(), view, upto });
    }

    /// Writes what it owes, until it owes nothing.
    fn tell(&mut self) -> Vec<Fact> {
        let mut told = Vec::new();
        loop {
            let owed = self.replica.owed(&self.log.actors);
            if owed.is_empty() {
                return told;
            }
            assert!(told.len() < 20, "the same is owed again and again: {told:?}");
            owed.iter().for_each(|fact| self.learn(fact.clone()));
            told.extend(owed);
        }
    }

    fn gets(&mut self, from: &str, bytes: &[u8]) {
        self.replica.frame(from, bytes, &mut self.log);
    }

    fn held(&self, of: &ActorId) -> u64 {
        self.log
            .delivered
            .iter()
            .filter(|(actor, _)| actor == of)
            .map(|(_, sequence)| *sequence)
            .max()
            .unwrap_or(0)
    }

    fn end(&mut self) -> Option<u64> {
        let index = self.log.actors.intern(&lost());
        self.replica.end_of(index)
    }

    fn reports(&mut self) -> Vec<Report> {
        let actions = std::iter::from_fn(|| self.replica.next_action());
        actions
            .filter_map(|action| if let Action::Report(report) = action { Some(report) } else { None })
            .collect()
    }
}

/// `ap` holds two entries of the actor that crashed, and the third waits for an entry of `eu`.
fn with_an_entry_that_waits() -> Region {
    let mut ap = Region::new("ap", &["eu", "us"]);
    ap.link(&lost(), &[(lost(), 5)]);
    ap.gets("us", &entries(&lost(), 1, 2, None));
    ap.gets("us", &entries(&lost(), 3, 5, Some((actor("eu"), 1))));
    assert_eq!(ap.held(&lost()), 2);
    ap.replica.lost("us");
    ap
}

#[test]
fn what_was_reported_is_a_promise() {
    let mut ap = with_an_entry_that_waits();
    ap.close(lost());
    let Some(Fact::Report { upto: 2, .. }) = ap.tell().pop() else { panic!("it holds two") };
    ap.link(&actor("eu"), &[(actor("eu"), 1)]);
    ap.gets("eu", &entries(&actor("eu"), 1, 1, None));
    assert_eq!(ap.held(&lost()), 2, "what it waited for is there, but nobody in touch holds the third");
    ap.hears("eu", 0);
    assert_eq!(ap.end(), None, "us has not been heard");
    ap.hears("us", 1);
    assert_eq!((ap.end(), ap.held(&lost())), (Some(2), 2));
    ap.gets("eu", &entries(&lost(), 3, 5, None));
    let beyond = Report::BeyondEnd { actor: lost(), end: 2, sequence: 5 };
    assert_eq!((ap.held(&lost()), ap.reports()), (2, vec![beyond]));
}

#[test]
fn what_a_member_in_touch_holds_is_taken_and_said_again() {
    let mut ap = with_an_entry_that_waits();
    ap.close(lost());
    ap.tell();
    ap.link(&actor("eu"), &[(actor("eu"), 1), (lost(), 4)]);
    ap.gets("eu", &entries(&actor("eu"), 1, 1, None));
    assert_eq!(ap.held(&lost()), 4, "and not the fifth");
    let Some(Fact::Report { upto: 4, .. }) = ap.tell().pop() else { panic!("it holds four") };
    ap.hears("eu", 4);
    ap.hears("us", 1);
    assert_eq!((ap.end(), ap.held(&lost())), (Some(4), 4));
    assert_eq!(ap.tell(), [], "us does not hold it all yet");
    ap.hears("us", 4);
    assert_eq!(ap.tell(), [Fact::End { actor: lost(), at: 4 }]);
}

#[test]
fn a_peer_whose_own_actor_is_closed_vouches_for_nothing() {
    let mut ap = with_an_entry_that_waits();
    ap.link(&actor("eu"), &[(actor("eu"), 1), (lost(), 5)]);
    ap.close(lost());
    ap.close(actor("eu"));
    ap.gets("eu", &entries(&actor("eu"), 1, 1, None));
    assert_eq!(ap.held(&lost()), 2);
}

#[test]
fn another_crash_starts_the_agreement_over() {
    let mut ap = with_an_entry_that_waits();
    ap.close(lost());
    ap.tell();
    ap.hears("eu", 5);
    let before = ap.replica.view();
    ap.close(actor("eu"));
    assert_ne!(ap.replica.view(), before);
    ap.hears("us", 2);
    assert_eq!(ap.end(), None, "eu may have lost what it reported");
    let told = ap.tell();
    assert!(told.iter().all(|fact| matches!(fact, Fact::Report { .. })) && told.len() == 2, "{told:?}");
    ap.hears("eu", 2);
    assert_eq!(ap.end(), Some(2));
}

#[test]
fn a_member_that_cannot_be_reached_holds_the_end_up_until_it_is_evicted() {
    let mut ap = with_an_entry_that_waits();
    ap.link(&actor("eu"), &[]);
    ap.close(lost());
    ap.tell();
    ap.hears("eu", 0);
    assert_eq!((ap.end(), ap.replica.passed()), (None, HybridTime(0)), "us may hold more");
    assert_eq!(ap.replica.objection_to_evict("us"), None, "two of three are in touch");
    ap.learn(Fact::Member { region: "us".into(), evicted: true, details: "".into() });
    ap.tell();
    ap.hears("eu", 0);
    assert_eq!(ap.end(), Some(2));
    assert!(ap.replica.obstacle_to_evict("us").is_some(), "it was evicted");
    assert!(ap.replica.obstacle_to_evict("ap").is_some() && ap.replica.obstacle_to_evict("za").is_some());
    assert!(ap.replica.objection_to_evict("eu").unwrap().contains("in touch"));
    ap.replica.lost("eu");
    assert!(ap.replica.objection_to_evict("eu").unwrap().contains("majority"));
}

#[test]
fn dependencies_beyond_an_end_are_clamped_and_sessions_learn_what_is_lost() {
    let mut ap = with_an_entry_that_waits();
    ap.link(&actor("eu"), &[(actor("eu"), 2)]);
    ap.gets("eu", &entries(&actor("eu"), 1, 2, Some((lost(), 9))));
    assert_eq!(ap.held(&actor("eu")), 0);
    ap.close(lost());
    ap.tell();
    let covers =
        |region: &Region, sequence| region.replica.covers(&vector(&[(lost(), sequence)]), &region.log.actors);
    assert_eq!((covers(&ap, 2), covers(&ap, 3)), (Coverage::Covered, Coverage::Behind));
    ap.hears("eu", 1);
    ap.hears("us", 2);
    assert_eq!(ap.held(&actor("eu")), 2, "nobody holds the ninth");
    assert_eq!((covers(&ap, 2), covers(&ap, 3)), (Coverage::Covered, Coverage::Lost));
}

#[test]
fn an_evicted_region_is_refused_and_owes_nothing() {
    let mut ap = Region::new("ap", &["eu", "us"]);
    ap.learn(Fact::Member { region: "us".into(), evicted: true, details: "".into() });
    ap.link(&actor("us"), &[(actor("us"), 3)]);
    ap.gets("us", &entries(&actor("us"), 1, 3, None));
    assert_eq!(ap.held(&actor("us")), 0);
    assert!(matches!(&ap.reports()[..], [Report::Refused { reason, .. }] if reason.contains("evicted")));
    ap.learn(Fact::Member { region: "ap".into(), evicted: true, details: "".into() });
    ap.close(lost());
    assert_eq!((ap.tell(), ap.replica.is_member()), (Vec::new(), false));
}

#[test]
fn a_region_comes_back_as_new_and_never_with_what_it_wrote_before() {
    let mut ap = Region::new("ap", &["eu", "us"]);
    ap.learn(Fact::Member { region: "us".into(), evicted: true, details: "".into() });
    ap.close(lost());
    ap.learn(Fact::Member { region: "us".into(), evicted: false, details: "".into() });
    ap.link(&lost(), &[(lost(), 3)]);
    let reports = ap.reports();
    assert!(
        matches!(&reports[..], [Report::Refused { reason, .. }] if reason.contains("comes as new")),
        "{reports:?}"
    );
    ap.link(&actor("us"), &[(actor("us"), 1)]);
    ap.gets("us", &entries(&actor("us"), 1, 1, None));
    assert_eq!((ap.held(&actor("us")), ap.reports()), (1, Vec::new()));
}

#[test]
fn a_region_that_was_only_named_by_a_fact_is_a_peer_like_any_other() {
    let mut ap = Region::new("ap", &["eu"]);
    ap.learn(Fact::Member { region: "us".into(), evicted: false, details: "at home".into() });
    assert_eq!(ap.replica.member_count(), 3);
    ap.link(&actor("us"), &[(actor("us"), 1)]);
    ap.gets("us", &entries(&actor("us"), 1, 1, None));
    assert_eq!(ap.held(&actor("us")), 1);
    let standings: Vec<_> =
        ap.replica.standings().map(|(name, of)| (&**name, of.evicted, &*of.details)).collect();
    assert_eq!(standings, [("us", false, "at home")]);
}

#[test]
fn facts_survive_their_fields() {
    let (actor, region) = (lost(), "eu-west-1");
    let facts = [
        Fact::Closed { actor: actor.clone() },
        Fact::Report {
            actor: actor.clone(),
            region: region.into(),
            view: geode_replica::facts::ViewId(7),
            upto: 3,
        },
        Fact::End { actor, at: 0 },
        Fact::Member { region: region.into(), evicted: true, details: "".into() },
        Fact::Member { region: region.into(), evicted: false, details: "at home".into() },
    ];
    for fact in facts {
        let (field, value) = fact.to_field();
        assert_eq!(Fact::parse(fact.key(), &field, &value), Some(fact));
    }
    for (key, field, value) in
        [("actors", "closed us", ""), ("actors", "end us#7", "x"), ("regions", "us", "gone")]
    {
        assert_eq!(Fact::parse(key.as_bytes(), field.as_bytes(), value.as_bytes()), None);
    }
}

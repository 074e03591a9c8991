//! A log that cannot be read proves nothing: neither that a peer holds the same of this region, nor that it holds other.

use geode_crdt::{ActorId, ActorIndex, Actors, Frame, HybridTime, VersionVector};
use geode_replica::wire::Witness;
use geode_replica::{Action, Host, Message, Now, Replica, Unreadable, Vector, wire};

const PLANET: &str = "tested";
const HELD: u64 = 5;
/// What stands in the log.
const WRITTEN: u32 = 77;

/// A log whose disk may fail.
struct Log {
    actors: Actors,
    fails: bool,
}

impl Host for Log {
    fn actors(&mut self) -> &mut Actors {
        &mut self.actors
    }

    fn deliver(&mut self, _frame: &Frame<'_>, _from: u64, _to: u64) {}

    fn fingerprint(&mut self, _actor: ActorIndex, _sequence: u64) -> Result<Option<u32>, Unreadable> {
        if self.fails { Err(Unreadable) } else { Ok(Some(WRITTEN)) }
    }
}

/// What a region that holds a few entries of its own does when a peer greets it that has one of them.
fn greeted(fails: bool, fingerprint: u32) -> (Vec<Action>, bool) {
    let mut log = Log { actors: Actors::default(), fails };
    let own = ActorId::new("us", 1);
    let index = log.actors.intern(&own);
    let mut held = VersionVector::default();
    held.raise(index, HELD);
    let now = Now { monotonic_ms: 0, wall: HybridTime(1) };
    let mut replica = Replica::new(PLANET, "us", index, &["eu".to_owned()], held, now);
    replica.connected("eu", &mut log);
    let hello = Message::Hello {
        versions: wire::VERSIONS,
        planet: PLANET.to_owned(),
        actor: ActorId::new("eu", 2),
        held: Vector([(own.clone(), HELD)].into()),
        witnesses: vec![Witness { actor: own, sequence: HELD, fingerprint }],
    };
    replica.message("eu", hello, &mut log);
    let actions = std::iter::from_fn(|| replica.next_action()).collect();
    (actions, replica.all_answered())
}

#[test]
fn nothing_is_concluded_from_what_cannot_be_read() {
    let renews = |action: &Action| matches!(action, Action::NewIncarnation { .. });
    let closes = |action: &Action| matches!(action, Action::Disconnect { .. });
    let (same, answered) = greeted(false, WRITTEN);
    assert!(answered && !same.iter().any(|action| renews(action) || closes(action)), "{same:?}");
    let (other, answered) = greeted(false, WRITTEN + 1);
    assert!(answered && other.iter().any(renews), "{other:?}");
    for fingerprint in [WRITTEN, WRITTEN + 1] {
        let (unknown, answered) = greeted(true, fingerprint);
        assert!(unknown.iter().any(closes) && !unknown.iter().any(renews), "{unknown:?}");
        // So the first write goes on waiting for an answer.
        assert!(!answered);
    }
}

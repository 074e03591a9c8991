//! The published rules, on this engine: the suite's clocks and network instead of real ones.

use geode_crdt::{ActorId, Digest, HybridTime, frame};
use geode_replica::{Message, Now, Vector, wire};
use geode_store::conformance::Replica;
use geode_store::{Options, Store};
use tempfile::TempDir;

use crate::log::{Kind, Reader};
use crate::{Config, Embedded};

/// The name under which all frames arrive: the suite does not say who sends.
const PEER: &str = "peer-1";
const PLANET: &str = "conformance";

struct EmbeddedReplica {
    store: Store<Embedded>,
    shipped: Reader,
    /// Commands find nothing in memory.
    is_cold: bool,
    commands: usize,
    _data: TempDir,
}

impl EmbeddedReplica {
    fn new(region: &str, regions: usize) -> Self {
        Self::open(region, regions, None)
    }

    /// Nothing stays in memory for the next command.
    fn cold(region: &str, regions: usize) -> Self {
        Self::open(region, regions, Some(1 << 20))
    }

    fn open(region: &str, regions: usize, memory: Option<u64>) -> Self {
        let data = tempfile::tempdir().unwrap();
        let peers: Vec<String> = (1..regions).map(|number| format!("peer-{number}")).collect();
        let peers: Vec<&str> = peers.iter().map(String::as_str).collect();
        let mut config = Config { memory, ..Config::new(data.path(), PLANET, region, &peers) };
        if memory.is_some() {
            config.checkpoint_bytes = 0;
        }
        let (engine, _) = Embedded::open(config).unwrap();
        let shipped = Reader::new(engine.core.log.segments().clone(), 0);
        let store = Store::new(engine, Options::default());
        Self { store, shipped, is_cold: memory.is_some(), commands: 0, _data: data }
    }
}

impl Replica for EmbeddedReplica {
    type Engine = Embedded;

    fn store(&mut self) -> &mut Store<Embedded> {
        self.commands += 1;
        // A checkpoint for every few commands, so that some keys are dirty and some are not.
        if self.is_cold && self.commands.is_multiple_of(3) {
            self.store.engine.cool();
        }
        &mut self.store
    }

    fn take_frames(&mut self) -> Vec<Vec<u8>> {
        let end = self.store.engine.core.flush().unwrap();
        let records = self.shipped.read(end).unwrap();
        records.filter(|record| record.kind == Kind::Own).map(|record| record.body.to_vec()).collect()
    }

    fn deliver(&mut self, bytes: &[u8]) -> bool {
        let Embedded { replica, core, .. } = &mut self.store.engine;
        let hello = Message::Hello {
            versions: wire::VERSIONS,
            planet: PLANET.to_owned(),
            actor: ActorId::new(PEER, 1),
            held: Vector::default(),
            witnesses: Vec::new(),
        };
        replica.timer(Now { monotonic_ms: 0, wall: HybridTime(u64::MAX) }, core);
        replica.connected(PEER, core);
        replica.message(PEER, hello, core);
        replica.frame(PEER, bytes, core);
        replica.lost(PEER);
        while replica.next_action().is_some() {}
        let head = frame::peek(bytes).unwrap();
        let writer = core.rows.table.actors_mut().intern(&ActorId::new(head.region, head.incarnation));
        replica.held().get(writer) >= head.last_sequence
    }

    fn digest(&mut self) -> Digest {
        self.store.engine.core.rows.table.digest().clone()
    }
}

#[test]
fn every_rule_holds_on_the_embedded_engine() {
    geode_store::conformance::run(EmbeddedReplica::new);
}

#[test]
fn every_rule_holds_while_nothing_stays_in_memory() {
    // SCAN reads one part of the keys at a time from the disk, and may return it at once.
    geode_store::conformance::run_except("SCAN in one step", EmbeddedReplica::cold);
}

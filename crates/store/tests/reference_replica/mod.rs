//! The reference engine as the conformance suite wants it.

use geode_crdt::Digest;
use geode_store::conformance::Replica;
use geode_store::reference::{ReferenceEngine, Refused};
use geode_store::{Options, Store};

pub(crate) struct ReferenceReplica {
    store: Store<ReferenceEngine>,
}

impl ReferenceReplica {
    pub(crate) fn new(region: &str, regions: usize, seed: u64) -> Self {
        let engine = ReferenceEngine::new(region, regions, seed);
        Self { store: Store::new(engine, Options { seed, ..Options::default() }) }
    }
}

impl Replica for ReferenceReplica {
    type Engine = ReferenceEngine;

    fn store(&mut self) -> &mut Store<ReferenceEngine> {
        &mut self.store
    }

    fn take_frames(&mut self) -> Vec<Vec<u8>> {
        self.store.engine.take_frames()
    }

    fn deliver(&mut self, frame: &[u8]) -> bool {
        match self.store.engine.deliver(frame) {
            Ok(()) => true,
            Err(Refused::Early) => false,
            Err(Refused::Frame(error)) => panic!("{error}"),
        }
    }

    fn digest(&mut self) -> Digest {
        self.store.engine.digest()
    }
}

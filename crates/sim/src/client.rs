//! Clients of simulated regions: where they are, and the token they carry.

use geode_replica::Vector;

use crate::workload::{Ask, Script};

/// A client: what it asks, and where.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) script: Script,
    pub(crate) home: usize,
    pub(crate) at: usize,
    pub(crate) token: Vector,
    /// How often it asked for what its token covers in vain.
    pub(crate) waits: u32,
    /// The number of the request that is under way.
    pub(crate) asked: Option<u64>,
    pub(crate) ask: Ask,
    pub(crate) since_us: u64,
}

impl Client {
    pub(crate) fn new(number: usize, regions: usize, seed: u64) -> Self {
        Self {
            // One of the two in each region is plain.
            script: Script::new(number, number / regions % 2 == 1, seed),
            home: number % regions,
            at: number % regions,
            token: Vector::default(),
            waits: 0,
            asked: None,
            ask: Ask::Count,
            since_us: 0,
        }
    }

    pub(crate) fn begin_anew(&mut self) {
        self.script.begin_anew();
        self.asked = None;
        self.waits = 0;
    }
}

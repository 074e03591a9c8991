//! What goes wrong in a run, all of it from one seed.

use std::fmt;

use geode_sim::{Random, Tail};

use crate::control::Writes;

/// How long clients and faults go on, in milliseconds, before everything is healed and must settle.
const LENGTH_MS: u64 = 5_000;
/// A disk that fails to sync and then cannot be read back ends the process, as docs/durability.md says: of one region, they
/// are so far apart.
const APART_MS: u64 = 4_000;

/// Something that goes wrong. Regions stand as their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// SIGKILL.
    Kill { region: usize, down_ms: u64 },
    /// SIGTERM, and the machine restarts.
    Stop { region: usize, down_ms: u64 },
    /// SIGSTOP, and SIGCONT later.
    Freeze { region: usize, for_ms: u64 },
    /// The machine crashes.
    Crash { region: usize, tail: Tail, down_ms: u64 },
    /// All connections between two regions end.
    Break { a: usize, b: usize },
    /// Nothing gets through in one direction.
    OneWay { from: usize, to: usize, for_ms: u64 },
    /// Nothing gets through between a region and all others; their connections end, or stay silent.
    Partition { region: usize, silent: bool, for_ms: u64 },
    /// Writes to the disk fail, after so many bytes.
    Writes { region: usize, writes: Writes, room: u64, for_ms: u64 },
    /// The file system is full.
    Full { region: usize, for_ms: u64 },
    /// The region is killed, and its file system mounted read-only for that long.
    ReadOnly { region: usize, for_ms: u64 },
    /// Reads of the disk fail.
    Reads { region: usize, for_ms: u64 },
    /// Syncs fail.
    Syncs { region: usize, for_ms: u64 },
    /// Syncs say that all is well and write nothing, until all is healed. No seed has this: no product survives it.
    Lie { region: usize },
    /// A clock jumps, and is set right later.
    Clock { region: usize, by_ms: i64, for_ms: u64 },
}

/// A fault and when it happens, in milliseconds since the clients began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) at_ms: u64,
    pub(crate) kind: Kind,
}

/// A run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    /// The fsync mode of each region, as planet.toml spells it.
    pub(crate) fsync: Vec<&'static str>,
    /// One-way delays between regions.
    pub(crate) delay_ms: Vec<Vec<u64>>,
    pub(crate) clients: usize,
    /// Planted: clients that move do not wait for what they saw.
    pub(crate) ignores_tokens: bool,
    /// How long a client thinks between two requests, on average.
    pub(crate) think_ms: u64,
    /// How many keys they share, at most 6.
    pub(crate) keys: usize,
    pub(crate) length_ms: u64,
    pub(crate) faults: Vec<Fault>,
}

impl Plan {
    /// The run of a seed.
    pub(crate) fn of(seed: u64) -> Self {
        let mut random = Random::new(seed, 1);
        let regions = 3;
        let mixed = random.one_in(3);
        let modes = ["everysec", "always", "everysec", "never"];
        let one = *random.pick(&modes);
        let delays = [1, 5, 20, 60];
        let mut plan = Self {
            seed,
            fsync: (0..regions).map(|_| if mixed { *random.pick(&modes) } else { one }).collect(),
            delay_ms: (0..regions).map(|_| (0..regions).map(|_| *random.pick(&delays)).collect()).collect(),
            clients: 3 * regions,
            ignores_tokens: false,
            think_ms: 60,
            keys: *random.pick(&[2, 4, 6]),
            length_ms: LENGTH_MS,
            faults: Vec::new(),
        };
        let count = random.between(3, 6);
        for _ in 0..count {
            plan.add(&mut random);
        }
        plan.faults.sort_by_key(|fault| fault.at_ms);
        plan
    }

    /// Whether something is to happen to a region's file system as a whole.
    pub(crate) fn wants_volume(&self, region: usize) -> bool {
        self.faults.iter().any(|fault| match fault.kind {
            Kind::Full { region: hit, .. } | Kind::ReadOnly { region: hit, .. } => hit == region,
            _ => false,
        })
    }

    fn add(&mut self, random: &mut Random) {
        let at_ms = random.between(200, self.length_ms - 500);
        let kind = kind(self.fsync.len(), random);
        let fails = |kind: &Kind| match kind {
            Kind::Syncs { region, .. } | Kind::Reads { region, .. } => Some(*region),
            _ => None,
        };
        let near =
            |other: &Fault| fails(&other.kind) == fails(&kind) && other.at_ms.abs_diff(at_ms) < APART_MS;
        if fails(&kind).is_some() && self.faults.iter().any(near) {
            return;
        }
        self.faults.push(Fault { at_ms, kind });
        if let (Kind::Crash { region, .. }, true) = (kind, random.one_in(2)) {
            // Nobody else has what it wrote.
            let before_ms = at_ms.min(random.between(300, 1_200));
            let kind = Kind::Partition { region, silent: true, for_ms: before_ms + 100 };
            self.faults.push(Fault { at_ms: at_ms - before_ms, kind });
        }
        if let (Kind::Crash { region, tail, down_ms }, true) = (kind, random.one_in(2)) {
            // Two machines at once: what they told only each other, with everybody's tail, is nowhere.
            let region = (region + 1) % self.fsync.len();
            self.faults.push(Fault { at_ms, kind: Kind::Crash { region, tail, down_ms } });
        }
    }
}

fn kind(regions: usize, random: &mut Random) -> Kind {
    let region = random.index(regions);
    let other = (region + 1 + random.index(regions - 1)) % regions;
    let for_ms = *random.pick(&[100, 500, 1_500]) + random.below(300);
    let down_ms = *random.pick(&[10, 300, 1_000]) + random.below(200);
    match random.below(15) {
        0..=2 => Kind::Kill { region, down_ms },
        3 => Kind::Stop { region, down_ms },
        4 => Kind::Freeze { region, for_ms },
        5 | 6 => {
            let tails = [Tail::Lost, Tail::Lost, Tail::Kept, Tail::CutShort, Tail::Garbage, Tail::Hole];
            Kind::Crash { region, tail: *random.pick(&tails), down_ms }
        }
        7 => Kind::Break { a: region, b: other },
        8 => Kind::OneWay { from: region, to: other, for_ms },
        9 | 10 => Kind::Partition { region, silent: random.one_in(2), for_ms },
        11 if random.one_in(2) => Kind::Full { region, for_ms },
        11 => {
            let writes = *random.pick(&[Writes::NoSpace, Writes::NoSpace, Writes::Error, Writes::ReadOnly]);
            Kind::Writes { region, writes, room: random.below(20_000), for_ms }
        }
        12 => Kind::Syncs { region, for_ms },
        13 if random.one_in(2) => Kind::ReadOnly { region, for_ms },
        13 => Kind::Reads { region, for_ms },
        _ => Kind::Clock { region, by_ms: *random.pick(&[-2_000, -300, 300, 450, 2_000]), for_ms },
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {} ms: {:?}", self.at_ms, self.kind)
    }
}

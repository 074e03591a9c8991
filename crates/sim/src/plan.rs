//! What a run is: a planet, its clients, and everything that will go wrong, all from one seed.

use std::fmt;

use crate::random::Random;

/// When records are forced onto the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fsync {
    /// Before anything is answered or shipped.
    Always,
    /// Every second.
    EverySecond,
    /// Whenever the kernel likes.
    Never,
}

/// Where a process is when it is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KillPoint {
    /// Between batches.
    Idle,
    /// A batch was executed; nothing of it is in the kernel.
    BeforeLog,
    /// The kernel has a part of the batch.
    WhileWriting,
    /// The kernel has the batch; nobody was answered.
    BeforeAnswer,
}

/// What becomes of the unsynced end of a log when the machine crashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// All of it is gone.
    Lost,
    /// All of it was on disk already, though nobody knew.
    Kept,
    /// It ends in the middle of a record.
    CutShort,
    /// It ends in bytes that nobody wrote.
    Garbage,
    /// A record is missing while later ones are there.
    Hole,
}

/// Something that goes wrong. Regions stand as their numbers, times in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The fields are what their names say.
pub enum FaultKind {
    /// A link breaks; with `late`, one side notices only when it has heard nothing for long.
    Cut { a: usize, b: usize, late: bool, for_ms: u64 },
    /// Nothing gets through in one direction.
    OneWay { from: usize, to: usize, for_ms: u64 },
    /// Nothing gets through between the regions in the set of bits and the others.
    Partition { regions: u32, for_ms: u64 },
    /// A direction of a link takes longer.
    Slow { from: usize, to: usize, extra_ms: u64, for_ms: u64 },
    /// A process is killed.
    Kill { region: usize, point: KillPoint, down_ms: u64 },
    /// A process stops as it should, and the machine restarts.
    Stop { region: usize, down_ms: u64 },
    /// A machine crashes.
    Crash { region: usize, tail: Tail, down_ms: u64 },
    /// An fsync fails, the process ends, and the machine forgets some of what it had not written.
    FsyncFails { region: usize, down_ms: u64 },
    /// A disk takes no more bytes; the process ends at its first write and is started again and again.
    DiskFull { region: usize, for_ms: u64 },
    /// An fsync takes this long.
    SlowDisk { region: usize, sync_ms: u64, for_ms: u64 },
    /// A clock jumps, and is set right later.
    Clock { region: usize, by_ms: i64, for_ms: u64 },
    /// A region is lost with its disk, or cut off from its operators; the others evict it, and later it comes back as new.
    Evict { region: usize, is_alive: bool, after_ms: u64, back_ms: u64 },
    /// A backup is taken, and later the region's machine is lost with its disk and begins with that backup.
    Restore { region: usize, after_ms: u64, down_ms: u64 },
    /// A volume is set back behind a stopped process, at the first moment when others hold all that is on it.
    RollBack { region: usize, records: usize, down_ms: u64 },
}

/// A fault and when it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Milliseconds since the start of the run.
    pub at_ms: u64,
    /// What.
    pub kind: FaultKind,
}

/// A run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Everything that is left to chance while it runs.
    pub seed: u64,
    /// How many regions.
    pub regions: usize,
    /// The mode of each region.
    pub fsync: Vec<Fsync>,
    /// One-way delays between regions.
    pub delay_ms: Vec<Vec<u64>>,
    /// How far each clock is off.
    pub skew_us: Vec<i64>,
    /// How many clients, spread over the regions.
    pub clients: usize,
    /// How long a client thinks between two requests, on average.
    pub think_ms: u64,
    /// How many keys they share, at most 6: on few keys they meet more often.
    pub keys: usize,
    /// How long clients and faults go on, before everything is healed and must settle.
    pub length_ms: u64,
    /// How long before that clients stop.
    pub rest_ms: u64,
    /// How many bytes of log are kept, `None` if all are.
    pub retention: Option<u64>,
    /// What goes wrong, by time.
    pub faults: Vec<Fault>,
}

impl Plan {
    /// The run of a seed.
    pub fn of(seed: u64) -> Self {
        let mut random = Random::new(seed, 1);
        let regions = *random.pick(&[2, 3, 3, 3, 3, 3, 4, 4, 5]);
        let mut plan = Self::calm(seed, regions);
        plan.length_ms = random.between(3_000, 9_000);
        plan.think_ms = *random.pick(&[50, 150, 300]);
        plan.keys = *random.pick(&[1, 2, 4, 6]);
        plan.clients = regions * random.between(2, 3) as usize;
        let modes = [Fsync::EverySecond, Fsync::EverySecond, Fsync::Always, Fsync::Never];
        let one = *random.pick(&modes);
        let mixed = random.one_in(3);
        plan.fsync = (0..regions).map(|_| if mixed { *random.pick(&modes) } else { one }).collect();
        match random.below(24) {
            0 | 1 => plan.faults = rolled_back(&mut plan, &mut random),
            2 => plan.faults = away(&mut plan, &mut random),
            3 | 4 => plan.faults = evicted(&mut plan, &mut random),
            _ => plan.faults = faults(&plan, &mut random),
        }
        let is_set_back = plan.faults.iter().any(|fault| matches!(fault.kind, FaultKind::RollBack { .. }));
        let mut random = Random::new(seed, 5);
        if random.one_in(4) && !is_set_back {
            plan.retention = Some(*random.pick(&[500, 2_000, 8_000]));
        }
        let mut random = Random::new(seed, 6);
        let is_evicted = plan.faults.iter().any(|fault| matches!(fault.kind, FaultKind::Evict { .. }));
        if random.one_in(6) && !is_set_back && !is_evicted {
            let (region, after_ms) = (random.index(regions), random.between(1, 3_000));
            let kind = FaultKind::Restore { region, after_ms, down_ms: random.between(10, 1_500) };
            plan.faults.push(Fault { at_ms: random.between(500, plan.length_ms), kind });
            plan.faults.sort_by_key(|fault| fault.at_ms);
        }
        plan
    }

    /// A run without faults.
    pub fn calm(seed: u64, regions: usize) -> Self {
        let mut random = Random::new(seed, 2);
        let mut delay_ms = vec![vec![0; regions]; regions];
        for (a, b) in (0..regions).flat_map(|a| (a + 1..regions).map(move |b| (a, b))) {
            let delay = *random.pick(&[2, 10, 40, 80, 150]);
            (delay_ms[a][b], delay_ms[b][a]) = (delay, delay + random.below(10));
        }
        let skews = [0, 1_000, 50_000, 200_000];
        let mut skew = || {
            let most = *random.pick(&skews);
            random.between(0, 2 * most) as i64 - most as i64
        };
        Self {
            seed,
            regions,
            fsync: vec![Fsync::EverySecond; regions],
            delay_ms,
            skew_us: (0..regions).map(|_| skew()).collect(),
            clients: 2 * regions,
            think_ms: 150,
            keys: 6,
            length_ms: 5_000,
            rest_ms: 0,
            retention: None,
            faults: Vec::new(),
        }
    }

    /// The same run with only some of its faults.
    pub fn with_faults(&self, kept: &[usize]) -> Self {
        let faults = kept.iter().filter_map(|index| self.faults.get(*index).copied());
        Self { faults: faults.collect(), ..self.clone() }
    }
}

/// The names of so many regions, in order.
pub(crate) fn names(regions: usize) -> Vec<String> {
    let few = ["ap", "eu", "sa", "us", "za"];
    let name = |index: usize| {
        let few = (regions <= few.len()).then(|| few[index].to_owned());
        few.unwrap_or_else(|| format!("r{index:02}"))
    };
    (0..regions).map(name).collect()
}

/// A volume that is set back, on a planet where nothing else fails: a region that is rolled back notices by what others
/// hold of it, if they can be reached.
fn rolled_back(plan: &mut Plan, random: &mut Random) -> Vec<Fault> {
    plan.skew_us.fill(0);
    plan.think_ms = 80;
    for row in &mut plan.delay_ms {
        row.iter_mut().for_each(|delay_ms| *delay_ms = (*delay_ms).min(40));
    }
    let count = random.between(1, 2);
    let each_ms = plan.length_ms / count;
    let fault = |index| {
        let kind = FaultKind::RollBack {
            region: random.index(plan.regions),
            records: *random.pick(&[1, 1, 2, 5, 30]),
            down_ms: random.between(50, 1_000),
        };
        Fault { at_ms: index * each_ms + random.between(1_000, 1_500), kind }
    };
    (0..count).map(fault).collect()
}

/// A region that is evicted and comes back as new, whatever else goes wrong.
fn evicted(plan: &mut Plan, random: &mut Random) -> Vec<Fault> {
    let mut faults = faults(plan, random);
    let region = random.index(plan.regions);
    let (after_ms, back_ms) = (random.between(1, 2_000), random.between(1, 3_000));
    let kind = FaultKind::Evict { region, is_alive: random.one_in(2), after_ms, back_ms };
    faults.push(Fault { at_ms: random.between(500, plan.length_ms), kind });
    plan.length_ms += random.below(3_000);
    faults.sort_by_key(|fault| fault.at_ms);
    faults
}

/// A region that is away for more than the minute after which expired data no longer waits for it.
fn away(plan: &mut Plan, random: &mut Random) -> Vec<Fault> {
    let mut faults = faults(plan, random);
    plan.think_ms = 500;
    let region = random.index(plan.regions);
    let for_ms = random.between(58_000, 70_000);
    let kind = match random.below(3) {
        0 => FaultKind::Kill { region, point: KillPoint::Idle, down_ms: for_ms },
        1 => FaultKind::Crash { region, tail: tail(random), down_ms: for_ms },
        _ => FaultKind::Partition { regions: 1 << region, for_ms },
    };
    plan.length_ms += for_ms;
    faults.push(Fault { at_ms: random.between(500, 3_000), kind });
    faults.sort_by_key(|fault| fault.at_ms);
    faults
}

fn faults(plan: &Plan, random: &mut Random) -> Vec<Fault> {
    let count = random.between(0, 3 + plan.length_ms / 700);
    let mut faults: Vec<Fault> = Vec::new();
    // Some runs know only some kinds of faults: what hides behind another fault shows there.
    let allowed: Vec<u64> = (0..KINDS).filter(|_| !random.one_in(3)).collect();
    for _ in 0..count {
        let at_ms = random.between(300, plan.length_ms.max(301));
        let number = if allowed.is_empty() { random.below(KINDS) } else { *random.pick(&allowed) };
        let kind = kind(number, plan.regions, random);
        faults.push(Fault { at_ms, kind });
        if let FaultKind::Crash { region, down_ms, .. } = kind {
            // Two machines in the same second, or all of them.
            let others = *random.pick(&[0, 0, 1, plan.regions - 1]);
            for other in 1..=others {
                let kind =
                    FaultKind::Crash { region: (region + other) % plan.regions, tail: tail(random), down_ms };
                faults.push(Fault { at_ms: at_ms + random.below(100), kind });
            }
        }
    }
    faults.sort_by_key(|fault| fault.at_ms);
    faults
}

/// How many kinds of faults chance chooses from.
const KINDS: u64 = 13;

fn kind(number: u64, regions: usize, random: &mut Random) -> FaultKind {
    let region = random.index(regions);
    let other = (region + 1 + random.index(regions - 1)) % regions;
    let for_ms = *random.pick(&[50, 300, 1_000, 3_000]) + random.below(500);
    let down_ms = *random.pick(&[10, 200, 1_500]) + random.below(300);
    match number {
        0 => FaultKind::Cut { a: region, b: other, late: random.one_in(3), for_ms },
        1 => FaultKind::OneWay { from: region, to: other, for_ms },
        2 => FaultKind::Partition { regions: random.below(1 << regions) as u32, for_ms },
        3 => FaultKind::Slow { from: region, to: other, extra_ms: random.between(50, 1_500), for_ms },
        4 | 5 => {
            let points =
                [KillPoint::Idle, KillPoint::BeforeLog, KillPoint::WhileWriting, KillPoint::BeforeAnswer];
            FaultKind::Kill { region, point: *random.pick(&points), down_ms }
        }
        6 => FaultKind::Stop { region, down_ms },
        7 => FaultKind::Crash { region, tail: tail(random), down_ms },
        // Long dead.
        8 => FaultKind::Crash { region, tail: tail(random), down_ms: random.between(3_000, 8_000) },
        9 => FaultKind::FsyncFails { region, down_ms: random.below(50) },
        10 if random.one_in(2) => FaultKind::DiskFull { region, for_ms },
        10 => FaultKind::SlowDisk { region, sync_ms: random.between(100, 1_500), for_ms },
        _ => {
            let by_ms = *random.pick(&[-3_000, -300, 300, 450, 700, 3_000]);
            FaultKind::Clock { region, by_ms, for_ms }
        }
    }
}

fn tail(random: &mut Random) -> Tail {
    *random.pick(&[Tail::Lost, Tail::Kept, Tail::CutShort, Tail::Garbage, Tail::Hole])
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {} ms: {:?}", self.at_ms, self.kind)
    }
}

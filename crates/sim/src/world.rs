//! One run: the planet, virtual time, and the order in which things happen.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use geode_crdt::{ActorId, HybridTime};
use geode_replica::{Now, Vector};
use geode_store::conformance::oracle::History;
use geode_store::{Engine, Store};

use crate::client::Client;
use crate::disk::Disk;
use crate::engine::{SimEngine, Snapshot};
use crate::network::{Item, Network};
use crate::plan::{self, Fsync, KillPoint, Plan};
use crate::plant::Plant;
use crate::random::Random;
use crate::report::{Clock, Counts, Violation};
use crate::serve::Pending;

/// When runs begin, in microseconds: 2026-01-01.
const BEGINNING_US: u64 = 1_767_225_600_000_000;
/// How often a region looks at the time, sweeps, and its links.
pub(crate) const TICK_US: u64 = 10_000;
/// How often a region without a link to another dials it.
const DIAL_US: u64 = 150_000;
/// A link on which nothing was heard for so long is given up, as in `crates/embedded`.
const SILENCE_US: u64 = 5_000_000;
/// How often the log is forced onto the disk with `everysec`.
const SYNC_US: u64 = 1_000_000;
/// How long a sound disk takes for it, at most.
pub(crate) const SYNC_TAKES_US: u64 = 8_000;
/// How long the first write of a continued incarnation waits for peers, as in `crates/embedded`.
pub(crate) const FIRST_WRITE_US: u64 = 1_000_000;
/// After everything is healed, what must settle has so long.
const SETTLE_US: u64 = 60_000_000;

#[derive(Clone, Debug)]
pub(crate) enum Event {
    Tick(usize, u64),
    Sync(usize, u64),
    SyncDone(usize, u64, u64),
    Arrive(u64, usize),
    Dial(usize, usize),
    Start(usize),
    Client(usize),
    Fault(usize),
    Heal(usize),
    /// It is time to evict the region of a fault, and to let it come back.
    Evict(usize),
    Rejoin(usize),
    /// The region of a fault begins with its backup.
    Restore(usize),
    KillIdle(usize, u64),
}

/// A process.
pub(crate) struct Process {
    pub(crate) store: Store<SimEngine>,
    /// Until when its first write waits.
    pub(crate) first_write_us: Option<u64>,
    pub(crate) is_syncing: bool,
    pub(crate) pending: Vec<Pending>,
    /// When something was last heard on each link.
    pub(crate) heard_us: BTreeMap<usize, u64>,
}

/// A region: its machine, with or without a process.
pub(crate) struct Region {
    pub(crate) fsync: Fsync,
    pub(crate) disk: Option<Disk>,
    pub(crate) process: Option<Process>,
    /// Counts processes.
    pub(crate) life: u64,
    pub(crate) skew_us: i64,
    pub(crate) sync_us: u64,
    /// When its clock was last set back.
    pub(crate) set_back_us: Option<u64>,
    /// The greatest time that the process has delivered or given.
    pub(crate) latest: HybridTime,
    /// Whether it holds more since it was last checked.
    pub(crate) has_news: bool,
    /// Whether the machine answers at all.
    pub(crate) is_up: bool,
    pub(crate) kill: Option<(KillPoint, u64)>,
}

pub(crate) struct World<'t> {
    pub(crate) plan: Plan,
    pub(crate) names: Vec<String>,
    pub(crate) plant: Option<Plant>,
    pub(crate) now_us: u64,
    events: BTreeMap<(u64, u64), Event>,
    next_event: u64,
    pub(crate) regions: Vec<Region>,
    pub(crate) network: Network,
    pub(crate) clients: Vec<Client>,
    pub(crate) requests: u64,
    pub(crate) random: Random,
    pub(crate) history: History,
    /// The oracle's number of each actor, and the actor under which each region writes.
    pub(crate) actors: BTreeMap<ActorId, usize>,
    pub(crate) current: Vec<Option<ActorId>>,
    /// The fingerprint of every entry that was ever in a log.
    pub(crate) logged: BTreeMap<ActorId, BTreeMap<u64, u32>>,
    /// The digest at every vector that was seen.
    pub(crate) digests: BTreeMap<Vector, (u64, usize)>,
    /// Acknowledged writes: entry and time; and those that another region had on disk.
    pub(crate) acknowledged: BTreeMap<(ActorId, u64), HybridTime>,
    pub(crate) confirmed: BTreeSet<(ActorId, u64)>,
    pub(crate) excused: BTreeSet<(ActorId, u64)>,
    /// By fault.
    pub(crate) backups: BTreeMap<usize, Arc<Snapshot>>,
    pub(crate) is_quiet: bool,
    pub(crate) counts: Counts,
    pub(crate) violation: Option<Violation>,
    trace: Option<&'t mut dyn FnMut(&str)>,
}

/// Plays a run. `trace` gets one line for each event.
///
/// # Errors
/// The first rule that did not hold.
pub fn run(
    plan: &Plan,
    plant: Option<Plant>,
    trace: Option<&mut dyn FnMut(&str)>,
) -> Result<Counts, Violation> {
    let mut world = World::new(plan.clone(), plant, trace);
    world.play();
    world.counts.messages = world.network.messages;
    world.counts.bytes = world.network.bytes;
    match world.violation {
        Some(violation) => Err(violation),
        None => Ok(world.counts),
    }
}

impl<'t> World<'t> {
    pub(crate) fn new(plan: Plan, plant: Option<Plant>, trace: Option<&'t mut dyn FnMut(&str)>) -> Self {
        let region = |index: usize| Region {
            fsync: plan.fsync[index],
            disk: Some(Disk::new()),
            process: None,
            life: 0,
            skew_us: plan.skew_us[index],
            sync_us: SYNC_TAKES_US,
            set_back_us: None,
            latest: HybridTime(0),
            has_news: false,
            is_up: true,
            kill: None,
        };
        let clients = (0..plan.clients).map(|number| Client::new(number, plan.regions, plan.seed));
        let mut world = Self {
            names: plan::names(plan.regions),
            plant,
            now_us: 0,
            events: BTreeMap::new(),
            next_event: 0,
            regions: (0..plan.regions).map(region).collect(),
            network: Network::new(&plan.delay_ms, plan.seed),
            clients: clients.collect(),
            requests: 0,
            random: Random::new(plan.seed, 4),
            history: History::new(plan.regions),
            actors: BTreeMap::new(),
            current: vec![None; plan.regions],
            logged: BTreeMap::new(),
            digests: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            confirmed: BTreeSet::new(),
            excused: BTreeSet::new(),
            backups: BTreeMap::new(),
            is_quiet: false,
            counts: Counts::default(),
            violation: None,
            trace,
            plan,
        };
        world.schedule_all();
        world
    }

    fn schedule_all(&mut self) {
        for region in 0..self.plan.regions {
            self.at(0, Event::Start(region));
            for other in region + 1..self.plan.regions {
                let first_us = self.random.below(DIAL_US / 10);
                self.at(first_us, Event::Dial(region, other));
            }
        }
        for client in 0..self.clients.len() {
            let first_us = 200_000 + self.random.below(self.plan.think_ms * 1_000);
            self.at(first_us, Event::Client(client));
        }
        for fault in 0..self.plan.faults.len() {
            self.at(self.plan.faults[fault].at_ms * 1_000, Event::Fault(fault));
        }
    }

    pub(crate) fn at(&mut self, at_us: u64, event: Event) {
        self.next_event += 1;
        self.events.insert((at_us, self.next_event), event);
    }

    pub(crate) fn client_again(&mut self, client: usize, in_us: u64) {
        self.at(self.now_us + in_us, Event::Client(client));
    }

    pub(crate) fn arrival(&mut self, connection: u64, pipe: usize, at_us: Option<u64>) {
        if let Some(at_us) = at_us {
            self.at(at_us, Event::Arrive(connection, pipe));
        }
    }

    /// Starts to force the log onto the disk.
    pub(crate) fn begin_sync(&mut self, region: usize) {
        let Some(process) = &mut self.regions[region].process else { return };
        let engine = &process.store.engine;
        let written = engine.core.disk.written();
        if process.is_syncing || written <= engine.core.disk.synced {
            return;
        }
        process.is_syncing = true;
        let (sync_us, life) = (self.regions[region].sync_us, self.regions[region].life);
        let takes_us = 200 + self.random.below(sync_us);
        self.at(self.now_us + takes_us, Event::SyncDone(region, life, written));
    }

    /// A line for whoever follows the run.
    pub(crate) fn say(&mut self, line: impl FnOnce(&Self) -> String) {
        if self.trace.is_some() {
            let line = format!("{} {}", Clock(self.now_us), line(self));
            if let Some(trace) = &mut self.trace {
                trace(&line);
            }
        }
    }

    pub(crate) fn violate(&mut self, rule: &'static str, message: String) {
        self.say(|_| format!("VIOLATION {rule}: {message}"));
        self.violation.get_or_insert(Violation { rule, at_us: self.now_us, message });
    }

    pub(crate) fn wall(&self, region: usize) -> HybridTime {
        HybridTime((BEGINNING_US + self.now_us).saturating_add_signed(self.regions[region].skew_us))
    }

    pub(crate) fn now(&self, region: usize) -> Now {
        Now { monotonic_ms: self.now_us / 1_000, wall: self.wall(region) }
    }

    fn play(&mut self) {
        let end_us = self.plan.length_ms * 1_000;
        while self.violation.is_none() && self.now_us < end_us {
            self.step();
        }
        if self.violation.is_some() {
            return;
        }
        self.counts.load_messages = self.network.messages;
        self.counts.load_bytes = self.network.bytes;
        self.heal_all();
        let deadline_us = self.now_us + SETTLE_US;
        let mut look_us = self.now_us;
        while self.violation.is_none() {
            self.step();
            if self.now_us >= look_us {
                look_us = self.now_us + 100_000;
                match self.unsettled() {
                    None => break,
                    Some(_) if self.now_us < deadline_us => {}
                    Some(what) => return self.violate("convergence", what),
                }
            }
        }
        if self.violation.is_none() {
            self.check_at_end();
        }
    }

    fn step(&mut self) {
        let Some(((at_us, _), event)) = self.events.pop_first() else {
            return self.violate("convergence", "nothing happens any more".into());
        };
        self.now_us = at_us;
        self.counts.events += 1;
        match event {
            Event::Tick(region, life) => self.tick(region, life),
            Event::Sync(region, life) => self.sync(region, life),
            Event::SyncDone(region, life, position) => self.sync_done(region, life, position),
            Event::Arrive(connection, pipe) => self.arrive(connection, pipe),
            Event::Dial(from, to) => self.dial(from, to),
            Event::Start(region) => self.start(region),
            Event::Client(client) => self.client(client),
            Event::Fault(fault) => self.fault(fault),
            Event::Heal(fault) => self.heal(fault),
            Event::Evict(fault) => self.evict(fault),
            Event::Rejoin(fault) => self.rejoin(fault),
            Event::Restore(fault) => self.restore(fault),
            Event::KillIdle(region, life) => self.kill_idle(region, life),
        }
    }

    fn lives(&self, region: usize, life: u64) -> bool {
        self.regions[region].life == life && self.regions[region].process.is_some()
    }

    fn tick(&mut self, region: usize, life: u64) {
        if !self.lives(region, life) {
            return;
        }
        self.at(self.now_us + TICK_US, Event::Tick(region, life));
        let now = self.now(region);
        if let Some(process) = &mut self.regions[region].process {
            process.store.engine.set_wall(now.wall);
            process.store.engine.timer(now);
            if let Some(retention) = self.plan.retention {
                process.store.engine.core.disk.trim(retention);
            }
        }
        self.close_silent_links(region);
        self.tell(region);
        self.take_notes(region);
        if (self.now_us / TICK_US).is_multiple_of(10) {
            self.sweep(region);
        }
        self.end_turn(region);
    }

    fn close_silent_links(&mut self, region: usize) {
        let Some(process) = &mut self.regions[region].process else { return };
        let now_us = self.now_us;
        let silent = process.heard_us.extract_if(.., |_, heard_us| *heard_us + SILENCE_US < now_us);
        for (peer, _) in silent.collect::<Vec<_>>() {
            let name = self.names[peer].clone();
            self.say(|world| format!("{} gives up its silent link to {name}", world.names[region]));
            let Some(process) = &mut self.regions[region].process else { return };
            if let Some(link) = process.store.engine.link(&name) {
                process.store.engine.lost(&name, link);
                self.close(region, link);
            }
        }
    }

    /// Tells the other end that this one is closed.
    pub(crate) fn close(&mut self, region: usize, connection: u64) {
        if let Some(pipe) = self.network.pipe_from(connection, region) {
            let at_us = self.network.put(connection, pipe, Item::Closed, self.now_us);
            self.arrival(connection, pipe, at_us);
        }
    }

    fn sync(&mut self, region: usize, life: u64) {
        if self.lives(region, life) {
            self.at(self.now_us + SYNC_US, Event::Sync(region, life));
            let wall = self.wall(region);
            if let Some(process) = &mut self.regions[region].process {
                process.store.engine.set_wall(wall);
                process.store.engine.renew_floor();
            }
            if self.regions[region].fsync == Fsync::EverySecond {
                self.begin_sync(region);
            }
        }
    }

    fn sync_done(&mut self, region: usize, life: u64, position: u64) {
        if !self.lives(region, life) {
            return;
        }
        self.say(|world| format!("{} has its log on disk up to {position}", world.names[region]));
        if let Some(process) = &mut self.regions[region].process {
            process.is_syncing = false;
            process.store.engine.synced(position);
        }
        self.end_turn(region);
    }

    fn dial(&mut self, from: usize, to: usize) {
        let open = !self.network.is_blocked(from, to) && !self.network.is_blocked(to, from);
        let both = self.regions[from].process.is_some() && self.regions[to].process.is_some();
        let peer = &self.names[to];
        let process = self.regions[from].process.as_ref();
        let linked = process.is_some_and(|process| process.store.engine.link(peer).is_some());
        if open && both && !linked {
            let (id, times) = self.network.dial(from, to, self.now_us);
            self.say(|world| format!("{} dials {}", world.names[from], world.names[to]));
            self.arrival(id, 0, Some(times[0]));
            self.arrival(id, 1, Some(times[1]));
            // Not again before the answer can be there.
            self.at(times[1] + DIAL_US, Event::Dial(from, to));
        } else {
            self.at(self.now_us + DIAL_US, Event::Dial(from, to));
        }
    }

    fn arrive(&mut self, connection: u64, pipe: usize) {
        let Some((from, to)) = self.network.ends(connection, pipe) else { return };
        let Some(item) = self.network.take(connection, pipe, self.now_us) else { return };
        let peer = self.names[from].clone();
        let wall = self.wall(to);
        let Some(process) = &mut self.regions[to].process else {
            // A machine that is up says that it knows nothing of the connection; one that is down says nothing.
            if self.regions[to].is_up && !matches!(item, Item::Closed) {
                self.close(to, connection);
            }
            return;
        };
        let engine = &mut process.store.engine;
        engine.set_wall(wall);
        let line = match item {
            Item::Connected => {
                process.heard_us.insert(from, self.now_us);
                engine.connected(&peer, connection);
                "a connection".to_owned()
            }
            Item::Closed => {
                engine.lost(&peer, connection);
                "the end of a connection".to_owned()
            }
            Item::Bytes(_) | Item::Block(..) if engine.link(&peer) != Some(connection) => {
                self.close(to, connection);
                return;
            }
            Item::Bytes(bytes) => {
                process.heard_us.insert(from, self.now_us);
                match engine.receive(&peer, &bytes) {
                    Ok(line) => line,
                    Err(error) => return self.violate("messages", format!("from {peer}: {error}")),
                }
            }
            Item::Block(attempt, block) => {
                process.heard_us.insert(from, self.now_us);
                engine.receive_block(&peer, attempt, block)
            }
        };
        self.say(|world| format!("{} gets {line} from {peer}", world.names[to]));
        self.end_turn(to);
    }

    pub(crate) fn start_in(&mut self, region: usize, in_ms: u64) {
        self.at(self.now_us + in_ms * 1_000, Event::Start(region));
    }

    pub(crate) fn begin_life(&mut self, region: usize) {
        let life = self.regions[region].life;
        let tick_us = self.random.below(TICK_US);
        self.at(self.now_us + tick_us, Event::Tick(region, life));
        let first_us = self.random.below(SYNC_US);
        self.at(self.now_us + first_us, Event::Sync(region, life));
    }
}

//! The engine: what the data thread owns.

#[cfg(test)]
mod absence;
#[cfg(test)]
mod arrivals;
#[cfg(test)]
mod cold;
#[cfg(test)]
mod conformance;
#[cfg(test)]
mod histories;
mod peers;
mod seam;
mod writing;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use geode_crdt::{ActorId, ActorIndex, FrameBuilder, HybridTime, VersionVector};
use geode_replica::{Now, Replica};
use geode_store::View;
use tokio::runtime;

use crate::checkpoint::{self, Checkpoint as OnDisk, Owner, SharedFile};
use crate::cold::Cold;
use crate::config::{Config, FsyncMode};
use crate::conflict::{ConflictLog, ConflictWriter, Conflicts};
use crate::delivery::Core;
use crate::error::OpenError;
use crate::handle::{EmbeddedHandle, MemoryUse, PeerStats, Shared, Stats};
use crate::identity::{IdentityFile, Lock};
use crate::inbox::Incoming;
use crate::links::{Channel, Connection, Links};
use crate::log::{Event, SyncThread};
use crate::outbox::Outbox;
use crate::recovery;
use crate::snapshot::{self, Snapshots};

use crate::trouble::Trouble;
pub(crate) use writing::distrust;

/// Opens a connection for replication to the named region, for one of the two channels.
pub type Dial = Arc<
    dyn Fn(String, Channel) -> Pin<Box<dyn Future<Output = io::Result<Connection>> + Send>> + Send + Sync,
>;

/// Wakes the data thread so that it calls [`geode_store::Engine::turn`] soon.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// How long the first write of a continued incarnation waits for peers to say what they hold of it. A knock, the dial that
/// it brings and the hello take two and a half of the longest round trips on Earth, one second.
const FIRST_WRITE_PATIENCE: Duration = Duration::from_secs(2);
/// Messages and frames that one [`geode_store::Engine::turn`] handles, and the bytes of frames after which it ends early.
const TURN_MESSAGES: usize = 256;
const TURN_BYTES: usize = 256 << 10;
/// How often the replica looks at the clock.
const TIMER: Duration = Duration::from_millis(10);
/// How often the data thread is woken when there is nothing but heartbeats to send.
const TICK: Duration = Duration::from_millis(100);
/// How long a clean stop may take for its checkpoint: well below the ten seconds after which Docker kills what does not end.
const LAST_CHECKPOINT: Duration = Duration::from_secs(5);
/// An own frame is closed at this length, so that its receivers need not hold more at once.
const FRAME_BYTES: usize = 256 << 10;

/// The embedded engine. One thread owns it.
pub struct Embedded {
    pub(crate) config: Config,
    pub(crate) core: Core,
    pub(crate) replica: Replica,
    pub(crate) on_disk: OnDisk,
    /// If memory is limited.
    cold: Option<Cold>,
    pub(crate) snapshots: Snapshots,
    pub(crate) identity: Arc<IdentityFile>,
    pub(crate) shared: Arc<Shared>,
    links: BTreeMap<Arc<str>, Arc<Outbox>>,
    /// What begins links, once it is there, and the regions to which it has.
    linking: Option<Linking>,
    linked: BTreeSet<Arc<str>>,
    incoming: VecDeque<Incoming>,
    wall: HybridTime,
    started: Instant,
    timer_at: Instant,
    /// Until when the first write waits for peers' answers; `None` once it need not.
    first_write: Option<Instant>,
    /// What of the held vector others can see.
    published: VersionVector,
    /// Peers that need what the log no longer holds, as far as it was said.
    out_of_reach: BTreeSet<(Arc<str>, ActorIndex)>,
    /// The last own entry of which clients were told whether it is in the log: its writer and sequence.
    told: (u64, u64),
    /// Whether clients that wait for the disk were told that this may take long.
    told_unproven: bool,
    /// Why nothing is written now, as it was last shown to others.
    trouble: Option<Trouble>,
    /// Frames that came meanwhile.
    held_frames: VecDeque<Incoming>,
    /// A new incarnation is due, for this reason, as soon as the log takes it.
    renewal: Option<String>,
    /// Why no other region takes what is written here, as clients get it.
    excluded: Option<String>,
    /// It began with nothing, and has not caught up with all others since.
    pub(crate) behind: bool,
    /// The log's files are not the recorded ones.
    unrecorded: bool,
    stopped: bool,
    // Dropped in this order: the thread uses the files, the lock guards them.
    _sync_thread: SyncThread,
    _conflict_writer: ConflictWriter,
    _lock: Lock,
}

/// What begins links to other regions.
struct Linking {
    runtime: runtime::Handle,
    dial: Dial,
    links: Links,
}

impl Embedded {
    /// Opens the data directory and replays its log. Blocks for as long as that takes.
    ///
    /// # Errors
    /// [`OpenError`]
    pub fn open(config: Config) -> Result<(Self, EmbeddedHandle), OpenError> {
        let mut opened = recovery::open(&config)?;
        let own = opened.rows.own;
        let wall = (config.clock)();
        let beginning = Now { monotonic_ms: 0, wall };
        let mut replica =
            Replica::new(&config.planet, &config.region, own, &config.peers, opened.held, beginning);
        for (region, time) in &opened.rows.times {
            replica.replayed(region, *time);
        }
        if let Some(previous) = opened.previous {
            let previous = ActorId::new(&config.region, previous);
            replica.succeeded(opened.rows.table.actors_mut().intern(&previous));
        }
        if config.fsync == FsyncMode::Always {
            replica.claim_only_durable();
        }
        if opened.identity.is_behind() {
            replica.begins_behind();
        }
        let next = replica.held().get(own) + 1;
        let (conflict_log, conflict_writer) =
            ConflictLog::open(config.data.join("conflicts")).map_err(OpenError::io(&config.data))?;
        let conflicts = Conflicts::new(Arc::clone(&conflict_log));
        let shared = Arc::new(Shared::new(&config, conflict_log));
        let (inbox, identity) = (Arc::clone(shared.inbox()), Arc::clone(&opened.identity));
        let sync = Arc::clone(opened.log.sync());
        let segments = Arc::clone(opened.log.segments());
        let listen = move |event| {
            match event {
                Event::News => {}
                Event::Failed => distrust(&identity, &sync),
                Event::Rewritten => return identity.trust(recovery::segment_files(&segments)?),
            }
            inbox.wake();
            Ok(())
        };
        let (sync, segments) = (Arc::clone(opened.log.sync()), Arc::clone(opened.log.segments()));
        let sync_thread = SyncThread::start(sync, segments, listen).map_err(OpenError::io(&config.data))?;
        let surroundings = checkpoint::Surroundings {
            sync: Arc::clone(opened.log.sync()),
            identity: Arc::clone(&opened.identity),
            inbox: Arc::clone(shared.inbox()),
        };
        let owner = Owner::new(&config.planet, &config.region, opened.rows.table.seed());
        let on_disk = OnDisk::start(owner, opened.checkpoint, surroundings, &config)
            .map_err(OpenError::io(&config.data))?;
        let inbox = Arc::clone(shared.inbox());
        let cold = config.memory.map(|memory| Cold::start(memory, &mut opened.rows.table, &on_disk, inbox));
        let cold = cold.transpose().map_err(OpenError::io(&config.data))?;
        let builder = FrameBuilder::new(own, next);
        let mut core = Core { rows: opened.rows, log: opened.log, builder, conflicts };
        let snapshots = Snapshots::open(&config.data, opened.joined, &mut replica, &mut core)
            .map_err(OpenError::io(&config.data.join(snapshot::DIRECTORY)))?;
        let now = Instant::now();
        let mut engine = Self {
            core,
            replica,
            on_disk,
            cold,
            snapshots,
            identity: Arc::clone(&opened.identity),
            shared: Arc::clone(&shared),
            links: BTreeMap::new(),
            linking: None,
            linked: BTreeSet::new(),
            incoming: VecDeque::new(),
            wall,
            started: now,
            timer_at: now,
            // A new incarnation has written nothing that a peer could know better.
            first_write: (!opened.fresh).then(|| now + FIRST_WRITE_PATIENCE),
            published: VersionVector::default(),
            out_of_reach: BTreeSet::new(),
            told: (0, 0),
            told_unproven: false,
            trouble: None,
            held_frames: VecDeque::new(),
            renewal: None,
            excluded: None,
            behind: opened.identity.is_behind(),
            unrecorded: false,
            stopped: false,
            _sync_thread: sync_thread,
            _conflict_writer: conflict_writer,
            _lock: opened.lock,
            config,
        };
        engine.remember();
        if engine.is_alone() {
            engine.first_write = None;
        }
        engine.begin_with_backup().map_err(OpenError::io(&engine.config.data.join(snapshot::DIRECTORY)))?;
        engine.publish();
        engine.note_trouble();
        Ok((engine, EmbeddedHandle::new(shared)))
    }

    /// Begins to talk to the other regions: of each pair, the one whose name comes first dials, and the other knocks once;
    /// others' connections come in through [`EmbeddedHandle::accept`]. `wake` is called from other threads whenever there
    /// is work for [`geode_store::Engine::turn`]; a planet of one region needs it too, for `fsync = always` and for questions.
    pub fn start(&mut self, runtime: &runtime::Handle, dial: &Dial, wake: Wake) {
        self.shared.inbox().set_wake(wake);
        let links = Links {
            region: self.config.region.as_str().into(),
            inbox: Arc::clone(self.shared.inbox()),
            segments: Arc::clone(self.core.log.segments()),
            shippable: self.core.log.sync().shippable(),
            peerings: Arc::default(),
            closing: self.shared.closing(),
        };
        self.shared.started(runtime.clone(), links.clone());
        self.linking = Some(Linking { runtime: runtime.clone(), dial: Arc::clone(dial), links });
        self.first_write = self.first_write.map(|_| Instant::now() + FIRST_WRITE_PATIENCE);
        self.link();
    }

    /// Begins links to the regions that have none yet. An evicted one is called on, so that it hears of it.
    pub(crate) fn link(&mut self) {
        let Some(Linking { runtime, dial, links }) = &self.linking else { return };
        for (peer, ..) in self.replica.peers() {
            if self.linked.is_empty() {
                runtime.spawn(Arc::clone(&self.shared).tick(TICK));
            }
            if self.linked.insert(Arc::clone(peer)) {
                links.begin(peer, runtime, dial);
            }
        }
    }

    /// Whether the planet has no other region.
    fn is_alone(&self) -> bool {
        self.replica.peers().next().is_none()
    }

    /// Flushes, forces the log onto the disk and leaves the mark of a clean stop, like [`EmbeddedHandle::stop`].
    /// Nothing can be written afterwards.
    ///
    /// # Errors
    /// What the disk said; the mark is then missing.
    pub fn stop(&mut self) -> io::Result<()> {
        if self.stopped {
            return Ok(());
        }
        let end = self.hand_over().map_err(io::Error::other)?;
        self.finish_checkpoint();
        self.stopped = true;
        self.shared.close();
        let sync = Arc::clone(self.core.log.sync());
        sync.sync_now().inspect_err(|_| distrust(&self.identity, &sync))?;
        sync.floor().reserve(self.core.rows.clock.last(), end)?;
        let segments = recovery::segment_files(self.core.log.segments())?;
        self.identity.record(true, |identity| {
            identity.segments = segments;
            identity.clean_stop = Some(end);
        })
    }

    /// With a limit of memory, brings all that changed to the disk, if that does not take long: a start would have to read for
    /// each entry of the log's tail the key that it meets. Without one a start reads the tail quicker than this writes it.
    fn finish_checkpoint(&mut self) {
        let until = Instant::now() + LAST_CHECKPOINT;
        if self.cold.is_none() || self.tail_bytes() == 0 || self.on_disk.holds_mark() {
            return;
        }
        self.on_disk.demand();
        while self.tail_bytes() > 0 && Instant::now() < until {
            if self.on_disk.failing().is_some() || self.trouble.is_some() {
                return;
            }
            if !self.keep_checkpoint() {
                // For the thread that writes; nobody else has anything to do any more.
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Bytes of log that a start would replay.
    pub fn tail_bytes(&self) -> u64 {
        self.core.log.written().saturating_sub(self.on_disk.marked())
    }

    /// Checkpoints that could not be written since this process started; each is tried again.
    pub fn failed_checkpoints(&self) -> u64 {
        self.on_disk.failures()
    }

    /// Where keys are that are on disk alone, if there are any.
    pub(crate) fn disk_of_cold_keys(&self) -> Option<Arc<SharedFile>> {
        (self.core.rows.table.cold_keys() > 0).then(|| Arc::clone(self.on_disk.file()))
    }

    pub(crate) fn core(&self) -> &Core {
        &self.core
    }

    pub(crate) fn stats(&self) -> Stats {
        let held = self.replica.held();
        let missing = |of: &VersionVector, than: &VersionVector| {
            of.iter().map(|(actor, sequence)| sequence.saturating_sub(than.get(actor))).sum()
        };
        let peers = self.replica.peers().map(|(region, connected, theirs)| PeerStats {
            region: region.to_string(),
            connected,
            behind_entries: missing(held, theirs),
            ahead_entries: missing(theirs, held),
            traffic: self.shared.traffic(region),
        });
        let Core { rows, log, conflicts, .. } = &self.core;
        Stats {
            keys: rows.table.live_keys(),
            memory_bytes: rows.table.memory_bytes(),
            memory_limit: self.config.memory,
            cold_keys: rows.table.cold_keys(),
            fetched_keys: self.cold.as_ref().map_or(0, |cold| cold.stats().fetched),
            waited_keys: rows.table.waited_loads(),
            evicted_keys: self.cold.as_ref().map_or(0, |cold| cold.stats().evicted),
            log_bytes: log.bytes(),
            log_tail_bytes: self.tail_bytes(),
            joining: self.snapshots.progress(),
            out_of_reach: self.out_of_reach(),
            checkpoint_bytes: self.on_disk.file_bytes(),
            checkpoint_age: self.on_disk.completed().map(|at| at.elapsed()),
            actor: rows.table.actors().id(rows.own).to_string(),
            conflicts: conflicts
                .log()
                .totals()
                .into_iter()
                .map(|(rule, count)| (rule.name(), count))
                .collect(),
            peers: peers.collect(),
            closed: self.closed_actors(),
        }
    }

    pub(crate) fn outbox(&self, peer: &str) -> Option<Arc<Outbox>> {
        self.links.get(peer).cloned()
    }

    /// Whether the log takes nothing now.
    pub(crate) const fn is_in_trouble(&self) -> bool {
        self.trouble.is_some()
    }

    pub(crate) const fn is_stopped(&self) -> bool {
        self.stopped
    }

    pub(crate) fn planet(&self) -> &str {
        &self.config.planet
    }

    /// Looks at the clocks. To be done before messages are handled: by an old reading, after this thread was held up, their
    /// senders' clocks would seem to be ahead.
    fn keep_time(&mut self) {
        let now = Instant::now();
        if self.stopped || self.is_alone() || now < self.timer_at {
            return;
        }
        self.timer_at = now + TIMER;
        let monotonic_ms = now.duration_since(self.started).as_millis() as u64;
        self.replica.timer(Now { monotonic_ms, wall: (self.config.clock)() }, &mut self.core);
        self.shared.show_clock(self.replica.clock_ahead_ms());
        self.act();
        self.tell();
    }

    /// Brings the checkpoint a step on if one is due or under way. Returns whether it can go on at once.
    fn keep_checkpoint(&mut self) -> bool {
        if self.stopped || !self.on_disk.is_to_step(&mut self.core, Instant::now()) {
            return false;
        }
        // A checkpoint must not be ahead of the log.
        if self.hand_over().is_err() || self.trouble.is_some() {
            return false;
        }
        self.on_disk.step(&mut self.core, self.replica.held())
    }

    /// Keeps to the limit of memory, if there is one. Returns whether there is more to do at once.
    fn keep_memory(&mut self) -> bool {
        let Some(cold) = &mut self.cold else { return false };
        let (written, was_crowded) = (self.core.log.written(), cold.refusal().is_some());
        cold.step(&mut self.core.rows.table, &mut self.on_disk, written, self.first_write.is_none());
        let table = &self.core.rows.table;
        self.shared.show_memory(MemoryUse {
            limit_bytes: self.config.memory.unwrap_or_default(),
            taken_bytes: table.memory_bytes(),
            keys: table.live_keys(),
            cold_keys: table.cold_keys(),
            fetched_keys: cold.stats().fetched,
        });
        let has_next = cold.arrivals().has_next();
        let is_changed = was_crowded != cold.refusal().is_some();
        if is_changed {
            match self.crowded() {
                Some(reason) => tracing::error!("{reason}"),
                None => tracing::info!("there is memory for writes again"),
            }
            self.show_refusal();
        }
        !self.stopped && (is_changed || has_next && self.takes_entries())
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.shared.close();
        self.shared.inbox().close();
    }
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedded").field("config", &self.config).finish_non_exhaustive()
    }
}

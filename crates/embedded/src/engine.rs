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

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use geode_crdt::frame::Checkpoint;
use geode_crdt::{ActorId, ActorIndex, FrameBuilder, HybridTime, VersionVector};
use geode_replica::{Action, Message, Now, Replica, Report, wire};
use geode_store::{Engine, Extent, FlushError, Need, Position, Ticket, View};
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
use crate::log::{Durability, Event, SyncThread};
use crate::outbox::{Outbox, Range, Stream};
use crate::recovery;
use crate::rows::Rows;
use crate::snapshot::{self, Snapshots};
use crate::table::{Origin, Table};
use crate::trouble::Trouble;

/// Opens a connection for replication to the named region, for one of the two channels.
pub type Dial = Arc<
    dyn Fn(String, Channel) -> Pin<Box<dyn Future<Output = io::Result<Connection>> + Send>> + Send + Sync,
>;

/// Wakes the data thread so that it calls [`Engine::turn`] soon.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// How long the first write of a continued incarnation waits for peers to say what they hold of it. A knock, the dial that
/// it brings and the hello take two and a half of the longest round trips on Earth, one second.
const FIRST_WRITE_PATIENCE: Duration = Duration::from_secs(2);
/// Messages and frames that one [`Engine::turn`] handles, and the bytes of frames after which it ends early.
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
    identity: Arc<IdentityFile>,
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
            identity: opened.identity,
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
    /// is work for [`Engine::turn`]; a planet of one region needs it too, for `fsync = always` and for questions.
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

    /// Whether entries may be written now without waiting for anything.
    pub(crate) fn may_write(&mut self) -> bool {
        if self.first_write.is_some_and(|until| self.is_known() || Instant::now() >= until) {
            self.first_write = None;
        }
        !self.replica.is_joining()
            && !self.stopped
            && self.trouble.is_none()
            && self.renewal.is_none()
            && self.first_write.is_none()
            && self.excluded.is_none()
            && self.replica.clock_ahead_ms().is_none()
    }

    /// Whether peers have said what they know of this region.
    fn is_known(&self) -> bool {
        self.replica.all_answered() && !self.replica.awaits_verdict()
    }

    /// Waits for peers to say whether they hold more of this writer than it remembers.
    fn hold_first_write(&mut self) {
        // Whoever is excluded writes nothing, and if it is taken in again has this still to do.
        while let Some(until) = self.first_write.filter(|_| self.excluded.is_none()) {
            self.turn();
            if self.is_known() || Instant::now() >= until {
                self.first_write = None;
            } else if self.first_write.is_some() {
                self.shared.inbox().wait(TIMER);
            }
        }
    }

    /// Handles it, unless entries have to wait until the keys that they meet were read.
    fn receive(&mut self, incoming: Incoming) {
        let now = match &mut self.cold {
            Some(cold) => cold.receive(incoming, &mut self.core.rows.table),
            None => Some(incoming),
        };
        now.into_iter().for_each(|incoming| self.handle(incoming));
    }

    /// Delivers entries that had to wait. Returns how many bytes.
    fn deliver_kept(&mut self) -> usize {
        let mut delivered = 0;
        while delivered < TURN_BYTES
            && !self.stopped
            && self.takes_entries()
            && let Some(next) = self.cold.as_mut().and_then(|cold| cold.arrivals().next())
        {
            if let Incoming::Frame { bytes, .. } | Incoming::Bulk { bytes, .. } = &next {
                delivered += bytes.len();
            }
            self.handle(next);
        }
        delivered
    }

    fn may_take_bulk(&mut self) -> bool {
        self.cold.as_mut().is_none_or(|cold| !cold.arrivals().is_full_of_bulk())
    }

    fn handle(&mut self, incoming: Incoming) {
        match incoming {
            Incoming::Connected { peer, outbox } => {
                if let Some(old) = self.links.insert(Arc::clone(&peer), outbox) {
                    old.close();
                    self.drop_stale_frames();
                    self.replica.lost(&peer);
                }
                self.replica.connected(&peer, &mut self.core);
            }
            Incoming::Lost { peer, outbox } if self.is_current(&peer, &outbox) => self.unlink(&peer),
            Incoming::Message { peer, outbox, message, .. } if self.is_current(&peer, &outbox) => {
                match &message {
                    Message::Hello { held, .. } => self.shared.peer_holds(&peer, held.clone()),
                    Message::Heartbeat { held: news, .. } | Message::Durable { durable: news } => {
                        self.shared.peer_grew(&peer, news);
                    }
                    _ => {}
                }
                self.replica.message(&peer, message, &mut self.core);
            }
            Incoming::Frame { peer, outbox, bytes, .. } if self.is_current(&peer, &outbox) => {
                self.replica.frame(&peer, &bytes, &mut self.core);
            }
            // An entry is an entry, whichever connection brought it.
            Incoming::Bulk { peer, bytes, .. } => self.replica.frame(&peer, &bytes, &mut self.core),
            Incoming::Block { peer, bytes, permit } => self.snapshot_block(&peer, bytes, permit),
            Incoming::BulkEnded { peer } => self.replica.snapshot_interrupted(&peer),
            Incoming::BulkLost { peer, outbox } if self.is_current(&peer, &outbox) => {
                self.replica.stream_again(&peer, self.core.rows.table.actors());
            }
            Incoming::Question(answer) => answer(self),
            // What a link still had when another took its place, or the peer was sent away.
            Incoming::Lost { .. }
            | Incoming::Message { .. }
            | Incoming::Frame { .. }
            | Incoming::BulkLost { .. } => {}
        }
        self.act();
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

    fn is_current(&self, peer: &Arc<str>, outbox: &Arc<Outbox>) -> bool {
        self.links.get(peer).is_some_and(|current| Arc::ptr_eq(current, outbox))
    }

    /// Drops held frames of links that are gone: what they brought is sent again.
    fn drop_stale_frames(&mut self) {
        let links = &self.links;
        self.held_frames.retain(|held| match held {
            Incoming::Frame { peer, outbox, .. } => {
                links.get(peer).is_some_and(|current| Arc::ptr_eq(current, outbox))
            }
            _ => true,
        });
    }

    fn unlink(&mut self, peer: &Arc<str>) {
        if let Some(outbox) = self.links.remove(peer) {
            outbox.close();
        }
        self.drop_stale_frames();
        self.shared.peer_lost(peer);
        self.replica.lost(peer);
    }

    pub(crate) fn act(&mut self) {
        self.learn();
        while let Some(action) = self.replica.next_action() {
            match action {
                Action::Send { peer, message } => {
                    if let Some(outbox) = self.links.get(&peer) {
                        outbox.send(message);
                    }
                }
                Action::Stream { peer, held } => {
                    self.note_trimmed_own(&peer, &held);
                    let stream = self.stream(&peer, &held);
                    if let Some(outbox) = self.links.get(&peer) {
                        outbox.stream(stream);
                    }
                }
                Action::Serve { peer, actor, from, to } => {
                    let position = self.core.log.index().seek(actor, from);
                    self.note_trimmed(&peer, actor, from);
                    let actor = self.core.rows.table.actors().id(actor).clone();
                    if let (Some(outbox), Some(position)) = (self.links.get(&peer), position) {
                        outbox.serve(Range { position, actor, from, to });
                    }
                }
                Action::Fetch { peer } => self.fetch_snapshot(&peer),
                Action::SendSnapshot { peer, attempt, resume } => self.send_snapshot(&peer, attempt, resume),
                Action::Join => self.join_snapshot(),
                Action::DiscardSnapshot { reason } => self.discard_snapshot(&reason),
                Action::Disconnect { peer, reason } => {
                    tracing::warn!(%peer, "replication link closed: {reason}");
                    self.unlink(&peer);
                }
                Action::NewIncarnation { reason } => self.begin_incarnation(&reason),
                Action::Report(Report::Refused { peer, reason }) => {
                    tracing::error!("replication with {peer} was refused: {reason}");
                }
                Action::Report(Report::OutOfReach { source, actor, from }) => tracing::warn!(
                    "entry {from} of {actor} is in nobody's log any more: this region has been away for too long, or is new. All \
                     rows are fetched from {source}"
                ),
                Action::Report(Report::NoSnapshot { peer, reason }) => {
                    tracing::info!("{peer} sends no snapshot now: {reason}");
                }
                Action::Report(Report::OwnClock { ahead_ms: Some(ahead_ms) }) => tracing::error!(
                    "this region's clock is {ahead_ms} ms ahead of the other regions': writes are refused until it is \
                     right; set it (NTP)"
                ),
                Action::Report(Report::OwnClock { ahead_ms: None }) => {
                    tracing::info!(
                        "this region's clock is no longer ahead of the other regions': writes go on"
                    );
                }
                Action::Report(Report::BeyondEnd { actor, end, sequence }) => tracing::warn!(
                    "entry {sequence} of {actor} is discarded: the planet agreed that it ended at {end}"
                ),
                Action::Report(Report::Ahead { actor, sequence, ahead_ms }) => tracing::warn!(
                    "entry {sequence} of {actor} is {ahead_ms} ms ahead of this machine's clock and is held back until \
                     it is not; check the clocks of both"
                ),
            }
        }
        if self.excluded.as_deref() != self.replica.exclusion() {
            self.note_exclusion();
        }
    }

    /// Lets clients and operator know whether other regions take what is written here.
    fn note_exclusion(&mut self) {
        self.excluded = self.replica.exclusion().map(ToOwned::to_owned);
        match &self.excluded {
            Some(reason) => tracing::error!("writes are refused: {reason}"),
            None => tracing::info!("other regions take what is written here again"),
        }
        self.show_refusal();
    }

    /// The peers that still need what the log no longer holds.
    fn out_of_reach(&self) -> BTreeSet<String> {
        let needs = |peer: &str, actor: ActorIndex| {
            let held = self.replica.peers().find(|(region, ..)| ***region == *peer);
            held.is_some_and(|(.., held)| {
                let next = held.get(actor) + 1;
                next <= self.replica.held().get(actor) && self.core.log.index().is_trimmed(actor, next)
            })
        };
        let peers = self.out_of_reach.iter().filter(|(peer, actor)| needs(peer, *actor));
        peers.map(|(peer, _)| peer.to_string()).collect()
    }

    /// Tells a peer, if it needs an entry that this log no longer holds. It asks others, or for a snapshot.
    fn note_trimmed(&mut self, peer: &Arc<str>, actor: ActorIndex, from: u64) {
        if !self.core.log.index().is_trimmed(actor, from) {
            return;
        }
        let id = self.core.rows.table.actors().id(actor).clone();
        let knows_snapshots = self.replica.version_with(peer) >= wire::SNAPSHOTS_SINCE;
        if self.out_of_reach.insert((Arc::clone(peer), actor)) {
            tracing::warn!(
                "{peer} needs entry {from} of {id}, which the log of this region no longer holds (store.retention): {peer} \
                 has been away for too long, or is new{}",
                if knows_snapshots { "" } else { ", and its release knows no snapshots: upgrade it" }
            );
        }
        if let Some(outbox) = self.links.get(peer).filter(|_| knows_snapshots) {
            outbox.send(Message::Trimmed { actor: id, from });
        }
    }

    /// The same for what this region would stream to a peer that holds `held` of it.
    fn note_trimmed_own(&mut self, peer: &Arc<str>, held: &[(ActorIndex, u64)]) {
        for (actor, sequence) in self.missing_own(held) {
            self.note_trimmed(peer, actor, sequence);
        }
    }

    /// The first entry of each of this region's actors that a peer lacks.
    fn missing_own(&self, held: &[(ActorIndex, u64)]) -> Vec<(ActorIndex, u64)> {
        let actors = self.core.rows.table.actors();
        let own =
            self.replica.held().iter().filter(|(actor, _)| *actors.id(*actor).region == *self.config.region);
        let of_peer =
            |actor| held.iter().find(|(held, _)| *held == actor).map_or(0, |(_, sequence)| *sequence);
        let missing = own.filter(|(actor, sequence)| of_peer(*actor) < *sequence);
        missing.map(|(actor, _)| (actor, of_peer(actor) + 1)).collect()
    }

    /// Where the stream to a peer begins that holds `held` of this region's actors.
    fn stream(&self, peer: &str, held: &[(ActorIndex, u64)]) -> Stream {
        let actors = self.core.rows.table.actors();
        let missing = self.missing_own(held).into_iter();
        let starts = missing.filter_map(|(actor, sequence)| self.core.log.index().seek(actor, sequence));
        Stream {
            position: starts.min().unwrap_or_else(|| self.core.log.written()),
            held: held.iter().map(|(actor, sequence)| (actors.id(*actor).incarnation, *sequence)).collect(),
            packs: self.replica.version_with(peer) >= wire::PACKED_SINCE,
        }
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

    /// Goes on under a new actor, after everything that was written under the old one. If the log does not take it now,
    /// nothing is written until it does.
    fn begin_incarnation(&mut self, reason: &str) {
        let taken = self.hand_over().map_err(|trouble| trouble.to_string()).and_then(|_| {
            let incarnation = recovery::random().map_err(|error| error.to_string())?;
            self.core.log.append_incarnation(incarnation);
            Ok(incarnation)
        });
        let incarnation = match taken {
            Ok(incarnation) => incarnation,
            Err(error) => {
                tracing::error!("no new incarnation can be taken yet: {error}");
                self.renewal = Some(reason.to_owned());
                return;
            }
        };
        self.renewal = None;
        tracing::warn!("this region goes on as incarnation {incarnation:016x}: {reason}");
        let rows: &mut Rows = &mut self.core.rows;
        let own = rows.table.actors_mut().intern(&ActorId::new(&self.config.region, incarnation));
        rows.begin_incarnation(own, self.replica.held());
        self.replica.begin_incarnation(own);
        self.core.builder = FrameBuilder::new(own, 1);
        self.first_write = None;
        let recorded = self.identity.record(true, |identity| {
            identity.incarnation = format!("{incarnation:016x}");
        });
        if let Err(error) = recorded {
            tracing::error!(%error, "the new incarnation cannot be recorded; the next start takes another");
        }
        // It stands before everything that is written under it, whenever the log takes it.
        let _ = self.hand_over();
    }

    /// Says to peers where this region stands. Nothing is promised that a restart could break: while the log or the floor
    /// of time cannot be written, what was said before is said again.
    fn heartbeat(&mut self) {
        if self.hand_over().is_err() || self.promise().is_err() {
            self.replica.repeat_heartbeat();
        }
        self.act();
    }

    fn promise(&mut self) -> io::Result<()> {
        let sync = self.core.log.sync();
        let clock = &mut self.core.rows.clock;
        // A clock that is too far ahead must not take hybrid time along, or writes would wait long after it was set.
        let ahead_us = self.replica.clock_ahead_ms().unwrap_or(0) * 1000;
        let now = clock.peek(HybridTime((self.config.clock)().0.saturating_sub(ahead_us)));
        sync.floor().observe(now);
        let promise = now.min(sync.floor().reserved());
        sync.floor().say(promise, sync.synced())?;
        clock.observe(promise);
        self.replica.heartbeat(promise, self.core.rows.table.actors());
        Ok(())
    }

    /// Tells writers what of theirs came onto the disk.
    fn acknowledge(&mut self) {
        let monotonic_ms = self.started.elapsed().as_millis() as u64;
        if let Some(wait_ms) = self.replica.acknowledge(monotonic_ms, self.core.rows.table.actors()) {
            self.shared.wake_in(wait_ms);
        }
        self.act();
    }

    /// Shows what is in the kernel to other threads.
    fn publish(&mut self) {
        let actors = self.core.rows.table.actors();
        let mut grew = false;
        for (actor, sequence) in self.replica.held().iter() {
            if sequence > self.published.get(actor) {
                self.published.raise(actor, sequence);
                self.shared.publish(actor, sequence, actors);
                grew = true;
            }
        }
        if grew {
            self.shared.notify();
        }
    }

    /// Hands everything to the kernel and shows it to others, or shows why that cannot be done.
    pub(crate) fn hand_over(&mut self) -> Result<u64, Trouble> {
        let flushed = self.flush_log();
        if flushed.is_ok() {
            self.publish();
        }
        if self.trouble.as_ref() != self.core.log.trouble() {
            self.note_trouble();
        }
        flushed
    }

    /// With `fsync = always`: sees to it that what was handed over comes onto the disk.
    fn force_log(&self) {
        let sync = self.core.log.sync();
        match sync.sync_soon() {
            Ok(false) => {}
            // Peers are told of what is on disk in the next turn.
            Ok(true) if self.is_alone() => {}
            Ok(true) => self.shared.inbox().wake(),
            Err(error) => {
                tracing::error!(%error, "the log cannot be forced onto the disk");
                distrust(&self.identity, sync);
                self.shared.inbox().wake();
            }
        }
    }

    fn flush_log(&mut self) -> Result<u64, Trouble> {
        let Core { rows, log, builder, .. } = &mut self.core;
        if self.stopped && !builder.is_empty() {
            let error = io::Error::other("this geode has stopped");
            return Err(Trouble::of(&error, log.segments().directory()));
        }
        let clock = rows.clock.last();
        log.sync().floor().observe(clock);
        let writes = (log.has_batch() || !builder.is_empty()) && !log.is_waiting();
        if writes && clock > log.sync().floor().reserved() {
            // Only if the sync thread did not get to it for seconds.
            if let Err(error) = log.sync().floor().renew(log.sync().synced()) {
                let trouble = log.refuse(&error);
                self.core.close_batch();
                return Err(trouble);
            }
        }
        let position = self.core.flush()?;
        if self.core.log.take_rotated() {
            self.record_segments();
        }
        Ok(position)
    }

    /// With `fsync = always`: what those hear who wait for the disk, if new files could not take the old ones' place at once.
    fn unproven(&self) -> Option<String> {
        let trouble = self.trouble.as_ref().filter(|_| self.config.fsync == FsyncMode::Always)?;
        self.core.log.sync().is_repair_delayed().then(|| trouble.doubt())
    }

    /// Until it is recorded that these are the log's files, a start would take them for others'.
    fn record_segments(&mut self) {
        let durable = self.config.fsync == FsyncMode::Always;
        let recorded = recovery::segment_files(self.core.log.segments())
            .and_then(|segments| self.identity.record(durable, |identity| identity.segments = segments));
        self.unrecorded = recorded.is_err();
        if let Err(error) = recorded {
            tracing::warn!(%error, "a new segment of the log cannot be recorded yet");
        }
    }

    /// Shows others, and the operator, whether writes are taken.
    fn note_trouble(&mut self) {
        let trouble = self.core.log.trouble().cloned();
        match &trouble {
            None => tracing::info!("the log takes writes again"),
            Some(trouble) => tracing::error!("{trouble}"),
        }
        if trouble.as_ref().is_some_and(Trouble::is_write_failure) {
            // What the system has done with what it was given is not known. Of a failed fsync the sync thread has said so.
            distrust(&self.identity, self.core.log.sync());
        }
        self.trouble = trouble;
        self.show_refusal();
    }

    /// Lets replica and operator know whether writes and entries are taken.
    fn show_refusal(&mut self) {
        let others = self.crowded().or(self.excluded.as_deref()).map(ToOwned::to_owned);
        self.shared.show_trouble(self.trouble.as_ref().map(ToString::to_string).or(others));
        self.replica.suspend(!self.takes_entries());
    }

    /// Why memory takes no more rows now.
    fn crowded(&self) -> Option<&str> {
        self.cold.as_ref().and_then(Cold::refusal)
    }

    /// Whether log and memory take what comes from other regions.
    fn takes_entries(&self) -> bool {
        self.trouble.is_none() && self.crowded().is_none()
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

    /// Tries again what the disk refused.
    fn tend(&mut self) {
        if self.trouble.is_some() || self.core.log.sync().has_failed() {
            let _ = self.hand_over();
        }
        if self.trouble.is_none() {
            if let Some(reason) = self.renewal.take() {
                self.begin_incarnation(&reason);
            }
            if self.unrecorded {
                self.record_segments();
            }
        }
    }
}

/// Records that what was written may be lost, and first the time that it may have had.
pub(crate) fn distrust(identity: &IdentityFile, sync: &Durability) {
    if let Err(error) = sync.floor().say_clock(sync.synced()) {
        // Then nothing may prove that the log is whole: the next start goes on above all time that was reserved.
        tracing::error!(%error, "the floor of time cannot be written");
        return identity.forget();
    }
    identity.distrust();
}

impl Engine for Embedded {
    type View = Table;

    fn set_wall(&mut self, wall: HybridTime) {
        self.wall = wall;
    }

    fn now(&self) -> HybridTime {
        self.core.rows.clock.peek(self.wall)
    }

    fn begin(&mut self) -> HybridTime {
        self.before_write();
        if self.core.builder.len() >= FRAME_BYTES {
            self.core.close_batch();
        }
        let time = self.core.rows.clock.tick(self.wall);
        let held = self.replica.held();
        let changed = self.core.rows.changed.iter().map(|actor| (*actor, held.get(*actor)));
        self.core.builder.begin_entry(time, changed);
        time
    }

    fn parts(&mut self) -> (&Table, &mut FrameBuilder) {
        (&self.core.rows.table, &mut self.core.builder)
    }

    fn view(&self) -> &Table {
        &self.core.rows.table
    }

    fn apply(&mut self, from: Checkpoint) {
        let Core { rows, builder, .. } = &mut self.core;
        let origin =
            Origin { time: rows.clock.last(), writer: rows.own, sequence: builder.sequence(), own: rows.own };
        // Operations that the builder encoded decode.
        for op in builder.ops_since(from).flatten() {
            rows.table.apply(&op, origin);
        }
    }

    fn end(&mut self) -> Option<u64> {
        let sequence = self.core.builder.finish_entry()?;
        self.core.rows.changed.clear();
        self.replica.committed(sequence);
        Some(sequence)
    }

    /// Only needed if memory is limited.
    fn fetch(&mut self, need: &Need) -> Ticket {
        self.cold.as_mut().map_or(Ticket(0), |cold| cold.fetch(need, &self.core.rows.table))
    }

    fn load_all(&mut self, limit: u64) -> bool {
        self.core.rows.table.load_all(limit)
    }

    fn completed(&mut self, tickets: &mut Vec<Ticket>) {
        self.cold.iter_mut().for_each(|cold| cold.completed(tickets));
    }

    fn flush(&mut self) -> Result<Position, FlushError> {
        let last = (self.writer(), self.last_sequence());
        let is_news = std::mem::replace(&mut self.told, last) != last;
        let handed = self.hand_over();
        if handed.is_ok() {
            self.force_log();
        }
        if let Some(lost) = self.trouble.as_ref().filter(|trouble| trouble.is_final()) {
            return Err(FlushError::Final(lost.to_string()));
        }
        let unproven = self.unproven();
        let is_told = std::mem::replace(&mut self.told_unproven, unproven.is_some());
        match (handed, unproven) {
            (_, Some(doubt)) if !is_told => Err(FlushError::Unproven(doubt)),
            // It may take as long as the disk is broken. Whoever reads is not made to wait for that.
            (_, Some(_)) => Ok(Position(self.core.log.sync().synced())),
            (Err(trouble), None) if is_news => Err(FlushError::Doubtful(trouble.doubt())),
            _ => Ok(Position(self.core.log.written())),
        }
    }

    fn spill(&mut self) -> bool {
        self.hand_over().is_ok()
    }

    fn before_write(&mut self) {
        if self.first_write.is_some() {
            self.hold_first_write();
        }
    }

    fn write_refusal(&self) -> Option<String> {
        match (&self.trouble, &self.renewal) {
            (Some(trouble), _) => Some(trouble.to_string()),
            (None, Some(reason)) => {
                Some(format!("DISK this region cannot begin anew yet, which it must: {reason}"))
            }
            (None, None) => self.crowded().or(self.excluded.as_deref()).map(ToOwned::to_owned),
        }
    }

    fn durable(&self) -> Position {
        match self.config.fsync {
            FsyncMode::Always => Position(self.core.log.sync().synced()),
            FsyncMode::EverySecond | FsyncMode::Never => Position(u64::MAX),
        }
    }

    fn last_sequence(&self) -> u64 {
        self.replica.held().get(self.replica.own())
    }

    fn writer(&self) -> u64 {
        self.replica.own().0.into()
    }

    fn held(&self) -> &VersionVector {
        self.replica.held()
    }

    fn end_of(&self, actor: ActorIndex) -> Option<u64> {
        self.replica.end_of(actor)
    }

    fn acknowledged(&self, sequence: u64) -> usize {
        self.replica.acknowledged(sequence, self.core.rows.table.actors())
    }

    fn is_joining(&self) -> bool {
        self.replica.is_joining()
    }

    fn is_whole(&self) -> bool {
        self.replica.is_whole()
    }

    fn clock_ahead_ms(&self) -> Option<u64> {
        self.replica.clock_ahead_ms()
    }

    fn memory_bytes(&self) -> Option<u64> {
        Some(self.core.rows.table.memory_bytes())
    }

    fn memory_limit(&self) -> Option<(u64, u64)> {
        self.config.memory.map(|limit| (limit, self.core.rows.table.cold_keys()))
    }

    fn regions(&self) -> usize {
        self.replica.member_count()
    }

    fn is_sweeper(&self) -> bool {
        self.replica.is_sweeper()
    }

    fn swept_until(&self, extent: Extent) -> HybridTime {
        let passed = match extent {
            Extent::Whole => self.replica.passed(),
            Extent::Data => self.replica.passed_without_away(),
        };
        passed.min(self.now())
    }

    fn due(&mut self, extent: Extent, until: HybridTime, limit: usize) -> Vec<(u8, Box<[u8]>)> {
        self.cold.iter_mut().for_each(|cold| cold.look_for_due(&self.core.rows.table, extent, until));
        self.core.rows.table.due(extent, until, limit)
    }

    fn turn(&mut self) -> bool {
        self.tend();
        self.keep_time();
        let mut incoming = std::mem::take(&mut self.incoming);
        if self.takes_entries() && !self.held_frames.is_empty() {
            // They came before.
            self.held_frames.append(&mut incoming);
            incoming = std::mem::take(&mut self.held_frames);
        }
        let room = TURN_MESSAGES.saturating_sub(incoming.len());
        let mut more = self.shared.inbox().take(room, &mut incoming);
        let mut bytes = self.deliver_kept();
        while let Some(next) = incoming.pop_front() {
            if let Incoming::Frame { bytes: frame, .. } = &next {
                if !self.takes_entries() {
                    // As long as they are held, their link brings no more than a few.
                    self.held_frames.push_back(next);
                    continue;
                }
                bytes += frame.len();
            }
            if !self.stopped || matches!(next, Incoming::Question(_)) {
                self.receive(next);
            }
            if bytes >= TURN_BYTES {
                break;
            }
        }
        more |= !incoming.is_empty();
        self.incoming = incoming;
        // At least one frame, so that whoever is far behind gets on however busy the others are.
        while !self.stopped
            && self.takes_entries()
            && self.may_take_bulk()
            && let Some(next) = self.shared.inbox().take_bulk()
        {
            if let Incoming::Bulk { bytes: frame, .. } | Incoming::Block { bytes: frame, .. } = &next {
                bytes += frame.len();
            }
            self.receive(next);
            if bytes >= TURN_BYTES {
                break;
            }
        }
        // While nothing is taken it waits where it is, and its connection with it.
        more |= self.takes_entries() && self.may_take_bulk() && self.shared.inbox().has_bulk();
        more |= self.keep_snapshot();
        more |= self.keep_checkpoint();
        more |= self.keep_memory();
        if self.stopped || self.is_alone() {
            return more;
        }
        if self.core.log.has_batch() {
            // What arrived is shown and acknowledged without waiting for a client.
            let _ = self.hand_over();
        }
        while let Some((actor, sequence)) = self.core.log.next_synced() {
            self.replica.synced(actor, sequence);
        }
        self.acknowledge();
        if self.replica.heartbeat_due() {
            self.heartbeat();
        }
        more
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

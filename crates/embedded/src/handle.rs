//! What the rest of the process asks an engine, from any thread.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use geode_crdt::{ActorId, ActorIndex, Actors, HybridTime, KeyName};
use geode_replica::{Standing, Vector};
use geode_store::{Engine, View};
use tokio::runtime;
use tokio::sync::{Notify, oneshot, watch};

use crate::config::Config;
use crate::conflict::{ConflictLog, ConflictQuery, ConflictReport};
use crate::engine::Embedded;
use crate::inbox::{Inbox, Incoming};
use crate::links::{Channel, Connection, Links, PeerTraffic};
use crate::outbox::Outbox;
use crate::snapshot::backup::Backup;
use crate::snapshot::{JoinProgress, Source};

/// Questions to an engine. Cheap to clone; the answers come from the data thread, between two batches.
#[derive(Clone, Debug)]
pub struct EmbeddedHandle {
    shared: Arc<Shared>,
}

/// What a replica holds, for comparison with others at equal vectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldState {
    /// What it has delivered.
    pub vector: Vector,
    /// One sum for each of the 256 key ranges.
    pub digest: Vec<u64>,
}

/// What a region with a limit of memory keeps there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// The limit.
    pub limit_bytes: u64,
    /// Estimate of the bytes that rows take in memory.
    pub taken_bytes: u64,
    /// Keys with live data over all databases.
    pub keys: u64,
    /// Keys that are on disk alone.
    pub cold_keys: u64,
    /// Keys that were read from the disk because a command asked for them.
    pub fetched_keys: u64,
}

/// Sizes and distances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Keys with live data over all databases.
    pub keys: u64,
    /// Estimate of the bytes that rows take in memory.
    pub memory_bytes: u64,
    /// What rows may take in memory, if that is limited.
    pub memory_limit: Option<u64>,
    /// Keys that are on disk alone.
    pub cold_keys: u64,
    /// Keys that were read from the disk because a command asked for them.
    pub fetched_keys: u64,
    /// Keys that were read from the disk while everybody waited: for entries of other regions, and at the start.
    pub waited_keys: u64,
    /// Keys that left the memory.
    pub evicted_keys: u64,
    /// Bytes of log on disk.
    pub log_bytes: u64,
    /// Of these, the bytes that a start replays: what stands behind the last checkpoint.
    pub log_tail_bytes: u64,
    /// Peers that need what the log of this region no longer holds.
    pub out_of_reach: BTreeSet<String>,
    /// How far this region is if it gets a snapshot.
    pub joining: Option<JoinProgress>,
    /// Bytes of the checkpoint's file.
    pub checkpoint_bytes: u64,
    /// How long ago this process last completed a checkpoint.
    pub checkpoint_age: Option<Duration>,
    /// The incarnation under which this region writes.
    pub actor: String,
    /// Deliveries that left a conflict, by rule.
    pub conflicts: Vec<(&'static str, u64)>,
    /// The other regions.
    pub peers: Vec<PeerStats>,
    /// The actors that will write no more.
    pub closed: Vec<ClosedActor>,
}

/// An actor that will write no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClosedActor {
    /// Who.
    pub actor: ActorId,
    /// Its last entry, 0 if there is none; `None` while the regions have not agreed on it.
    pub end: Option<u64>,
}

/// How one other region stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStats {
    /// Its name.
    pub region: String,
    /// Whether a link to it is up and agreed.
    pub connected: bool,
    /// Entries held here that it has not yet said to hold.
    pub behind_entries: u64,
    /// Entries that it says to hold and that are not yet held here.
    pub ahead_entries: u64,
    /// Bytes to and from it.
    pub traffic: PeerTraffic,
}

/// What was said of regions while the planet ran, by name: the last word on each. It stands above what a region's own
/// configuration says.
pub type Regions = BTreeMap<Arc<str>, Standing>;

/// Why it was not changed which regions the planet has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// It cannot be.
    #[error("{0}")]
    Impossible(String),
    /// It can be, on the operator's word.
    #[error("{0}")]
    NeedsForce(String),
    /// This region cannot write.
    #[error("this region cannot write now; ask again soon, or another region")]
    NotWritten,
    /// This region has stopped.
    #[error("{0}")]
    Stopped(#[from] Stopped),
}

/// The data thread is gone or has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store has stopped")]
pub struct Stopped;

/// What the engine shows to other threads.
#[derive(Debug)]
pub(crate) struct Shared {
    inbox: Arc<Inbox>,
    peers: RwLock<BTreeSet<Arc<str>>>,
    regions: watch::Sender<Arc<Regions>>,
    /// The held vector, by actor index. Sequences only grow.
    held: RwLock<Vec<(ActorId, AtomicU64)>>,
    /// Where actors end that will write no more.
    ends: RwLock<BTreeMap<ActorId, u64>>,
    /// How many wait for the vector to grow, and what wakes them.
    waiting: AtomicUsize,
    grew: Notify,
    /// What connected peers said to hold.
    peers_hold: Mutex<BTreeMap<Arc<str>, Vector>>,
    /// How far this region's clock is ahead if writes are refused for it, else 0.
    clock_ahead_ms: AtomicU64,
    /// Whether rows from another region are being taken in.
    is_not_whole: AtomicBool,
    /// In how many milliseconds the data thread wants to be woken, and that it does.
    wake_in_ms: AtomicU64,
    soon: Notify,
    conflicts: Arc<ConflictLog>,
    /// Why writes are refused, if they are.
    trouble: Mutex<Option<String>>,
    /// If memory is limited.
    memory: Mutex<Option<MemoryUse>>,
    closing: watch::Sender<bool>,
    links: OnceLock<(runtime::Handle, Links)>,
}

impl Shared {
    pub(crate) fn new(config: &Config, conflicts: Arc<ConflictLog>) -> Self {
        Self {
            inbox: Arc::default(),
            peers: RwLock::new(config.peers.iter().map(|peer| peer.as_str().into()).collect()),
            regions: watch::Sender::default(),
            held: RwLock::default(),
            ends: RwLock::default(),
            waiting: AtomicUsize::new(0),
            grew: Notify::new(),
            peers_hold: Mutex::default(),
            clock_ahead_ms: AtomicU64::new(0),
            is_not_whole: AtomicBool::new(false),
            wake_in_ms: AtomicU64::new(0),
            soon: Notify::new(),
            conflicts,
            trouble: Mutex::default(),
            memory: Mutex::default(),
            closing: watch::Sender::new(false),
            links: OnceLock::new(),
        }
    }

    pub(crate) fn inbox(&self) -> &Arc<Inbox> {
        &self.inbox
    }

    pub(crate) fn closing(&self) -> watch::Receiver<bool> {
        self.closing.subscribe()
    }

    /// Connections that come in can be served from now on.
    pub(crate) fn started(&self, runtime: runtime::Handle, links: Links) {
        // A second start would be a mistake of the caller; the first stays.
        let _ = self.links.set((runtime, links));
    }

    /// Has the data thread woken after so many milliseconds, or a little later.
    pub(crate) fn wake_in(&self, milliseconds: u64) {
        self.wake_in_ms.store(milliseconds, Ordering::Relaxed);
        self.soon.notify_one();
    }

    /// Wakes the data thread each `interval` and whenever [`Self::wake_in`] was called.
    pub(crate) async fn tick(self: Arc<Self>, interval: Duration) {
        let mut closing = self.closing();
        let mut interval = tokio::time::interval(interval);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let soon = async || {
            self.soon.notified().await;
            tokio::time::sleep(Duration::from_millis(self.wake_in_ms.load(Ordering::Relaxed))).await;
        };
        loop {
            tokio::select! {
                _ = interval.tick() => {}
                () = soon() => {}
                _ = closing.wait_for(|closing| *closing) => return,
            }
            self.inbox.wake();
        }
    }

    /// Bytes to and from a peer; none before links are started.
    pub(crate) fn traffic(&self, peer: &str) -> PeerTraffic {
        let peering = self.links.get().and_then(|(_, links)| links.peering(peer));
        peering.map(|peering| peering.traffic()).unwrap_or_default()
    }

    /// Has a peer sent what `source` makes, over its bulk connection. False if there is none.
    pub(crate) fn send_snapshot(
        &self,
        peer: &str,
        outbox: &Arc<Outbox>,
        attempt: u64,
        source: impl FnOnce(runtime::Handle) -> Source,
    ) -> bool {
        let Some((runtime, links)) = self.links.get() else { return false };
        let peering = links.peering(peer);
        peering.is_some_and(|peering| peering.lane().offer_snapshot(source(runtime.clone()), attempt, outbox))
    }

    /// Ends all links.
    pub(crate) fn close(&self) {
        self.closing.send_replace(true);
    }

    pub(crate) fn publish(&self, actor: ActorIndex, sequence: u64, actors: &Actors) {
        let index = actor.0 as usize;
        if let Some((_, held)) = read(&self.held).get(index) {
            held.store(sequence, Ordering::Release);
            return;
        }
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        let known = held.len();
        held.extend(actors.iter().skip(known).map(|(_, id)| (id.clone(), AtomicU64::new(0))));
        held[index].1.store(sequence, Ordering::Release);
    }

    /// Wakes those who wait for what was published.
    pub(crate) fn notify(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.grew.notify_waiters();
        }
    }

    pub(crate) fn show_clock(&self, ahead_ms: Option<u64>) {
        self.clock_ahead_ms.store(ahead_ms.unwrap_or(0), Ordering::Relaxed);
    }

    pub(crate) fn show_trouble(&self, trouble: Option<String>) {
        *lock(&self.trouble) = trouble;
    }

    pub(crate) fn show_memory(&self, memory: MemoryUse) {
        *lock(&self.memory) = Some(memory);
    }

    pub(crate) fn show_whole(&self, is_whole: bool) {
        self.is_not_whole.store(!is_whole, Ordering::Relaxed);
    }

    pub(crate) fn peer_holds(&self, peer: &Arc<str>, held: Vector) {
        lock(&self.peers_hold).insert(Arc::clone(peer), held);
    }

    pub(crate) fn peer_grew(&self, peer: &Arc<str>, news: &Vector) {
        let mut peers_hold = lock(&self.peers_hold);
        let held = peers_hold.entry(Arc::clone(peer)).or_default();
        for (actor, sequence) in &news.0 {
            match held.0.get_mut(actor) {
                Some(known) => *known = sequence.max(known).to_owned(),
                None => drop(held.0.insert(actor.clone(), *sequence)),
            }
        }
    }

    pub(crate) fn peer_lost(&self, peer: &Arc<str>) {
        lock(&self.peers_hold).remove(peer);
    }

    /// Shows what was said of regions; whoever was named may call.
    pub(crate) fn show_regions(&self, regions: Regions) {
        let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        peers.extend(regions.keys().cloned());
        drop(peers);
        self.regions.send_replace(Arc::new(regions));
    }

    pub(crate) fn show_ends(&self, ends: BTreeMap<ActorId, u64>) {
        *self.ends.write().unwrap_or_else(PoisonError::into_inner) = ends;
        self.notify();
    }

    /// Whether a part of the vector is held by nobody and never will be.
    fn is_lost(&self, vector: &Vector) -> bool {
        let ends = read(&self.ends);
        vector.0.iter().any(|(actor, wanted)| ends.get(actor).is_some_and(|end| wanted > end))
    }

    fn covers(&self, vector: &Vector) -> bool {
        let held = read(&self.held);
        vector.0.iter().all(|(actor, wanted)| {
            let known = held.iter().find(|(id, _)| id == actor);
            *wanted == 0 || known.is_some_and(|(_, held)| held.load(Ordering::Acquire) >= *wanted)
        })
    }
}

// Nothing panics while these are locked.
fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts itself among those who wait.
struct Waiting<'s>(&'s Shared);

impl<'s> Waiting<'s> {
    fn new(shared: &'s Shared) -> Self {
        shared.waiting.fetch_add(1, Ordering::SeqCst);
        Self(shared)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

impl EmbeddedHandle {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Takes over a connection for replication that `from_region` made to this one. If this region is the one that dials,
    /// it is taken as a knock: it is dropped and that region dialled at once. It is dropped also if that is no peer or [`crate::Embedded::start`] was not called yet.
    pub fn accept(&self, from_region: &str, channel: Channel, stream: Connection) {
        if !read(&self.shared.peers).contains(from_region) {
            tracing::warn!("{from_region} wants to replicate but is no region of this planet");
            return;
        }
        if let Some((runtime, links)) = self.shared.links.get() {
            runtime.spawn(links.clone().accept(from_region.into(), channel, stream));
        }
    }

    /// What is delivered here and in the kernel. Reads a few atomics; never waits for the data thread.
    pub fn vector(&self) -> Vector {
        let held = read(&self.shared.held);
        let load = |(id, held): &(ActorId, AtomicU64)| (id.clone(), held.load(Ordering::Acquire));
        Vector(held.iter().map(load).filter(|(_, sequence)| *sequence > 0).collect())
    }

    /// How far this region's clock is ahead of the other regions', in milliseconds, while writes are refused for it. Reads
    /// an atomic.
    pub fn clock_ahead_ms(&self) -> Option<u64> {
        Some(self.shared.clock_ahead_ms.load(Ordering::Relaxed)).filter(|ahead_ms| *ahead_ms > 0)
    }

    /// Why writes are refused, while the disk does not take them: one line as clients get it. Never waits for the data
    /// thread.
    pub fn write_refusal(&self) -> Option<String> {
        lock(&self.shared.trouble).clone()
    }

    /// What is kept in memory, if that is limited, as of the data thread's last turn. Never waits for it.
    pub fn memory(&self) -> Option<MemoryUse> {
        *lock(&self.shared.memory)
    }

    /// Whether commands are refused because rows from another region are being taken in. Reads an atomic.
    pub fn is_taking_in(&self) -> bool {
        self.shared.is_not_whole.load(Ordering::Relaxed)
    }

    /// Waits until everything in `vector` is delivered here, at most for `patience`, and not for what is lost for good.
    /// Returns whether it is.
    pub async fn wait_for(&self, vector: &Vector, patience: Duration) -> bool {
        if self.shared.covers(vector) {
            return true;
        }
        let _waiting = Waiting::new(&self.shared);
        let covered = async {
            loop {
                // Registered before the look, so that nothing is published unseen in between.
                let grew = self.shared.grew.notified();
                tokio::pin!(grew);
                grew.as_mut().enable();
                if self.shared.covers(vector) {
                    return true;
                }
                if self.shared.is_lost(vector) {
                    return false;
                }
                grew.await;
            }
        };
        tokio::time::timeout(patience, covered).await.unwrap_or(false)
    }

    /// The connected regions that have said to hold everything in `vector`, by name.
    pub fn holders(&self, vector: &Vector) -> Vec<String> {
        let peers = lock(&self.shared.peers_hold);
        let holding = peers.iter().filter(|(_, held)| held.includes(vector));
        holding.map(|(peer, _)| peer.to_string()).collect()
    }

    /// The vector and the digest at it.
    ///
    /// # Errors
    /// [`Stopped`]
    pub async fn held_state(&self) -> Result<HeldState, Stopped> {
        self.ask(|engine| HeldState {
            vector: Vector::of(engine.held(), engine.core().rows.table.actors()),
            digest: engine.core().rows.table.digest().sums().to_vec(),
        })
        .await
    }

    /// Up to `limit` keys (database, name) of a key range of the digest, for people. Linear in all keys; those on disk are
    /// read beside the data thread.
    ///
    /// # Errors
    /// [`Stopped`]
    pub async fn example_keys(&self, range: u8, limit: usize) -> Result<Vec<(u8, Vec<u8>)>, Stopped> {
        let (mut keys, disk) = self
            .ask(move |engine| {
                (engine.core().rows.table.keys_of_range(range, limit), engine.disk_of_cold_keys())
            })
            .await?;
        let Some(disk) = disk.filter(|_| keys.len() < limit) else { return Ok(keys) };
        let room = limit - keys.len();
        let in_memory = keys.clone();
        let looked = tokio::task::spawn_blocking(move || disk.keys_of_range(range, room, &in_memory)).await;
        let found = looked.ok().and_then(Result::ok).unwrap_or_default();
        // Some may be gone since the disk was told of them.
        let held = self.ask(move |engine| {
            let table = &engine.core().rows.table;
            let is_gone = |(database, name): &(u8, Vec<u8>)| {
                matches!(table.key(KeyName { database: *database, name }), Ok(None))
            };
            found.into_iter().filter(|key| !is_gone(key)).collect::<Vec<_>>()
        });
        keys.extend(held.await?);
        Ok(keys)
    }

    /// The conflicts that are asked for, and the counts by rule. Never waits for the data thread; what is older than memory
    /// is read from files.
    ///
    /// # Errors
    /// A file could not be read.
    pub async fn conflicts(&self, query: ConflictQuery) -> io::Result<ConflictReport> {
        let log = Arc::clone(&self.shared.conflicts);
        let search = move || Ok(ConflictReport { recent: log.search(&query)?, totals: log.totals() });
        tokio::task::spawn_blocking(search).await?
    }

    /// Waits until a conflict was found after `time`, at most for `patience`. Returns whether there is one.
    pub async fn wait_for_conflict(&self, time: HybridTime, patience: Duration) -> bool {
        let mut newest = self.shared.conflicts.watch();
        let found = async { newest.wait_for(|newest| *newest > time).await.is_ok() };
        tokio::time::timeout(patience, found).await.unwrap_or(false)
    }

    /// What was said of regions; the receiver hears of changes, whoever made them.
    pub fn regions(&self) -> watch::Receiver<Arc<Regions>> {
        self.shared.regions.subscribe()
    }

    /// Sizes and distances.
    ///
    /// # Errors
    /// [`Stopped`]
    pub async fn stats(&self) -> Result<Stats, Stopped> {
        self.ask(|engine| engine.stats()).await
    }

    /// Begins a backup: the file's bytes are read from what is returned, on a thread that may block. To be called within a
    /// tokio runtime.
    ///
    /// # Errors
    /// [`Stopped`]
    pub async fn backup(&self) -> Result<Backup, Stopped> {
        let surroundings = self.ask(|engine| engine.snapshot_surroundings()).await?;
        Ok(Backup::new(surroundings, runtime::Handle::current()))
    }

    /// Gets all rows of this region anew from another one. Until they are joined it is not to be read or written.
    ///
    /// # Errors
    /// In words: why not now.
    pub async fn reseed(&self) -> Result<(), String> {
        self.ask(|engine| engine.replica.reseed()).await.map_err(|error| error.to_string())?
    }

    /// Adds a region to the planet, with what else is to be known of it.
    ///
    /// # Errors
    /// [`MembershipError`]
    pub async fn admit(&self, region: &str, details: &str) -> Result<(), MembershipError> {
        let (region, details) = (region.to_owned(), details.to_owned());
        self.ask(move |engine| engine.admit(&region, &details)).await?
    }

    /// Evicts a region that will not return: nobody waits for it any more, what it alone holds is lost, and it is refused
    /// until it comes back as new. Without `force` only if it is not in touch and most of the others are. `details` is what
    /// it takes to let it come back.
    ///
    /// # Errors
    /// [`MembershipError`]
    pub async fn evict(&self, region: &str, force: bool, details: &str) -> Result<(), MembershipError> {
        let (region, details) = (region.to_owned(), details.to_owned());
        self.ask(move |engine| engine.evict(&region, force, &details)).await?
    }

    /// Lets a region that was evicted come back. It must begin with an empty data directory; one that still holds what the
    /// planet went on without is refused.
    ///
    /// # Errors
    /// [`MembershipError`]
    pub async fn readmit(&self, region: &str) -> Result<(), MembershipError> {
        let region = region.to_owned();
        self.ask(move |engine| engine.readmit(&region)).await?
    }

    /// Flushes, forces the log onto the disk and leaves the mark of a clean stop. Nothing can be written afterwards.
    ///
    /// # Errors
    /// What the disk said, or that the engine is gone; the mark is then missing.
    pub async fn stop(&self) -> io::Result<()> {
        self.ask(Embedded::stop).await.map_err(io::Error::other)?
    }

    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Embedded) -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        let (answer, answered) = oneshot::channel();
        self.shared.inbox.push(Incoming::Question(Box::new(move |engine| {
            // Whoever asked may have gone.
            let _ = answer.send(question(engine));
        })));
        answered.await.map_err(|_| Stopped)
    }
}

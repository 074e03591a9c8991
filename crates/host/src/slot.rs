//! The places where instances run, and the choice between them.
//!
//! A request reads one 64-bit word and one counter per slot. The words are written by the slot's own task, by the
//! controller (which slots are in use) and by a lease that found its instance gone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

use crate::settings::{HostSettings, ServiceSource};
use crate::status::{HostStatus, InstanceState, InstanceStatus};

/// What the controller wants of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// No instance; one that runs finishes its requests first.
    Empty,
    /// A running instance.
    Run,
    /// The host stops: end the instance and the slot's task.
    Stop,
}

/// A slot's word: bits 0–15 the port, 16–17 which of the host's addresses, 18–21 flags, 32–63 the incarnation.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Word(u64);

/// The slot is in use.
const LIVE: u64 = 1 << 18;
/// The instance answered its last probes.
const HEALTHY: u64 = 1 << 19;
/// The instance failed its last probes, or refused a connection.
const UNHEALTHY: u64 = 1 << 20;
/// The instance is being scaled away, or the host stops.
const DRAINING: u64 = 1 << 21;
const ADDRESS_SHIFT: u32 = 16;
const INCARNATION_SHIFT: u32 = 32;

impl Word {
    fn has(self, flags: u64) -> bool {
        self.0 & flags == flags
    }

    fn takes_requests(self) -> bool {
        self.0 & (HEALTHY | DRAINING) == HEALTHY
    }

    /// Whether the slot counts as able to carry load, now or soon: also an instance that starts or is to be restarted.
    fn counts(self) -> bool {
        self.0 & (LIVE | UNHEALTHY | DRAINING) == LIVE
    }

    fn in_use(self) -> bool {
        self.0 & (LIVE | DRAINING) == LIVE
    }

    fn incarnation(self) -> u32 {
        (self.0 >> INCARNATION_SHIFT) as u32
    }

    fn port(self) -> u16 {
        self.0 as u16
    }

    fn address_index(self) -> usize {
        (self.0 >> ADDRESS_SHIFT & 0b11) as usize
    }
}

/// One place where an instance runs.
pub(crate) struct Slot {
    word: AtomicU64,
    in_flight: AtomicU32,
    /// Told when the last request of a draining instance ends.
    pub(crate) idle: Notify,
    /// Told when a lease found that the instance refuses connections.
    pub(crate) refused: Notify,
    pub(crate) wanted: watch::Sender<Wanted>,
    detail: Mutex<Detail>,
}

/// What only the status shows.
#[derive(Clone, Default)]
pub(crate) struct Detail {
    pub(crate) pid: Option<u32>,
    pub(crate) state: InstanceState,
    pub(crate) restarts: u64,
    pub(crate) last_exit: Option<String>,
}

impl Slot {
    fn new() -> Self {
        Self {
            word: AtomicU64::new(0),
            in_flight: AtomicU32::new(0),
            idle: Notify::new(),
            refused: Notify::new(),
            wanted: watch::Sender::new(Wanted::Empty),
            detail: Mutex::new(Detail::default()),
        }
    }

    fn word(&self) -> Word {
        Word(self.word.load(SeqCst))
    }

    fn update(&self, change: impl Fn(u64) -> u64) {
        // The closure always returns `Some`, so the update cannot fail.
        let _previous = self.word.fetch_update(SeqCst, SeqCst, |word| Some(change(word)));
    }

    fn detail(&self) -> MutexGuard<'_, Detail> {
        self.detail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn requests_in_flight(&self) -> u32 {
        self.in_flight.load(SeqCst)
    }

    pub(crate) fn in_use(&self) -> bool {
        self.word().in_use()
    }

    pub(crate) fn counts(&self) -> bool {
        self.word().counts()
    }

    /// Whether an instance that takes requests, or could at once, is here.
    pub(crate) fn is_warm(&self) -> bool {
        self.word().has(HEALTHY)
    }

    /// The order in which instances are scaled away: unhealthy ones first, then the least loaded.
    pub(crate) fn usefulness(&self) -> (bool, u32) {
        (self.word().takes_requests(), self.requests_in_flight())
    }
}

/// All slots of a host.
pub(crate) struct Slots {
    region: String,
    slots: Box<[Slot]>,
    addresses: Vec<IpAddr>,
    per_instance: u32,
    /// Where the next search begins, so that equally loaded instances take turns.
    next: AtomicUsize,
    /// Most requests in flight since the controller last looked.
    peak: AtomicU32,
    /// Told when instances carry more than they should.
    pub(crate) demand: Notify,
    digest: Mutex<Option<String>>,
    changes: watch::Sender<u64>,
}

impl Slots {
    pub(crate) fn new(settings: &HostSettings) -> Self {
        let (count, per_instance, addresses) = match &settings.service {
            ServiceSource::Upstream(address) => (1, u32::MAX, vec![address.ip()]),
            ServiceSource::Run(run) => {
                let mut addresses = vec![run.bind_ip];
                for loopback in [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)] {
                    if loopback != run.bind_ip {
                        addresses.push(loopback);
                    }
                }
                (run.instances.max, run.instances.in_flight, addresses)
            }
        };
        let slots = Self {
            region: settings.region.clone(),
            slots: (0..count).map(|_| Slot::new()).collect(),
            addresses,
            per_instance,
            next: AtomicUsize::new(0),
            peak: AtomicU32::new(0),
            demand: Notify::new(),
            digest: Mutex::new(None),
            changes: watch::Sender::new(0),
        };
        if let ServiceSource::Upstream(address) = &settings.service {
            slots.want(0, Wanted::Run);
            slots.begin(0, address.port());
        }
        slots
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter()
    }

    pub(crate) fn slot(&self, index: usize) -> &Slot {
        &self.slots[index]
    }

    pub(crate) fn uses_port(&self, port: u16) -> bool {
        self.slots.iter().any(|slot| slot.word().port() == port)
    }

    /// The addresses at which an instance may be listening, best first.
    pub(crate) fn candidates(&self, index: usize) -> impl Iterator<Item = SocketAddr> + '_ {
        let port = self.slots[index].word().port();
        self.addresses.iter().map(move |&ip| SocketAddr::new(ip, port))
    }

    /// See [`Host::acquire`](crate::Host::acquire).
    pub(crate) fn acquire(this: &Arc<Self>) -> Option<Lease> {
        loop {
            let load = this.survey();
            let (index, word) = load.best?;
            let slot = &this.slots[index];
            slot.in_flight.fetch_add(1, SeqCst);
            // The slot's task marks it before it looks at the counter; this counts before it looks at the mark. So one
            // of the two always sees the other, and no instance is stopped under a request.
            let now = slot.word();
            if now.takes_requests() && now.incarnation() == word.incarnation() {
                this.note(load.in_flight.saturating_add(1), load.counted, load.free);
                let address = SocketAddr::new(this.addresses[word.address_index()], word.port());
                return Some(Lease { slots: Arc::clone(this), index, word, address });
            }
            this.release(index);
        }
    }

    fn survey(&self) -> Survey {
        let mut survey = Survey { best: None, in_flight: 0, counted: 0, free: 0 };
        let mut least = u32::MAX;
        let count = self.slots.len();
        let first = self.next.fetch_add(1, Relaxed) % count;
        for index in (first..count).chain(0..first) {
            let slot = &self.slots[index];
            let word = slot.word();
            let in_flight = slot.in_flight.load(Relaxed);
            survey.in_flight = survey.in_flight.saturating_add(in_flight);
            survey.counted += u64::from(word.counts());
            survey.free += usize::from(!word.in_use());
            if word.takes_requests() && (in_flight < least || survey.best.is_none()) {
                least = in_flight;
                survey.best = Some((index, word));
            }
        }
        survey
    }

    fn note(&self, in_flight: u32, counted: u64, free: usize) {
        if self.peak.load(Relaxed) < in_flight {
            self.peak.fetch_max(in_flight, Relaxed);
        }
        if free > 0 && u64::from(in_flight) > counted * u64::from(self.per_instance) {
            self.demand.notify_one();
        }
    }

    fn release(&self, index: usize) {
        let slot = &self.slots[index];
        if slot.in_flight.fetch_sub(1, SeqCst) == 1 && slot.word().has(DRAINING) {
            slot.idle.notify_one();
        }
    }

    /// Requests in flight now, over all instances.
    pub(crate) fn in_flight(&self) -> u32 {
        self.slots.iter().map(Slot::requests_in_flight).fold(0, u32::saturating_add)
    }

    /// The most requests in flight since the last call.
    pub(crate) fn take_peak(&self) -> u32 {
        let now = self.in_flight();
        self.peak.swap(now, Relaxed).max(now)
    }

    /// Sets what is wanted of a slot, visible to requests at once. Nothing follows a stop.
    pub(crate) fn want(&self, index: usize, wanted: Wanted) {
        let slot = &self.slots[index];
        // The word changes under the channel's lock, so that it never disagrees with what the slot's task is told.
        slot.wanted.send_if_modified(|current| {
            if *current == wanted || *current == Wanted::Stop {
                return false;
            }
            *current = wanted;
            slot.update(|word| match wanted {
                Wanted::Run => (word | LIVE) & !DRAINING,
                Wanted::Empty | Wanted::Stop => word | DRAINING,
            });
            true
        });
        self.changed();
    }

    pub(crate) fn want_all(&self, wanted: Wanted) {
        for index in 0..self.slots.len() {
            self.want(index, wanted);
        }
    }

    /// A new incarnation of the slot's instance, at another port, not healthy yet.
    pub(crate) fn begin(&self, index: usize, port: u16) {
        let slot = &self.slots[index];
        slot.update(|word| {
            let incarnation = u64::from(Word(word).incarnation().wrapping_add(1));
            let flags = word & (LIVE | DRAINING);
            incarnation << INCARNATION_SHIFT | flags | u64::from(port)
        });
        self.detail(index, |detail| detail.state = InstanceState::Starting);
    }

    /// The slot's instance is gone.
    pub(crate) fn end(&self, index: usize) {
        self.slots[index].update(|word| word & !(HEALTHY | UNHEALTHY));
    }

    /// The slot has no instance and wants none.
    pub(crate) fn clear(&self, index: usize) {
        let slot = &self.slots[index];
        slot.update(|word| word & !(LIVE | HEALTHY | UNHEALTHY | DRAINING));
        // The controller may have asked for the slot again in between.
        if *slot.wanted.borrow() == Wanted::Run {
            slot.update(|word| word | LIVE);
        }
        self.detail(index, |detail| detail.state = InstanceState::Empty);
    }

    /// The instance answered at the candidate address of this index.
    pub(crate) fn set_healthy(&self, index: usize, address_index: usize) {
        self.slots[index].update(|word| {
            let address = (address_index as u64) << ADDRESS_SHIFT;
            word & !(UNHEALTHY | 0b11 << ADDRESS_SHIFT) | HEALTHY | address
        });
        self.detail(index, |detail| detail.state = InstanceState::Healthy);
    }

    pub(crate) fn set_unhealthy(&self, index: usize) {
        self.slots[index].update(|word| word & !HEALTHY | UNHEALTHY);
        self.detail(index, |detail| detail.state = InstanceState::Unhealthy);
    }

    /// Changes what the status shows, and tells those who wait for changes.
    pub(crate) fn detail(&self, index: usize, change: impl FnOnce(&mut Detail)) {
        change(&mut self.slots[index].detail());
        self.changed();
    }

    pub(crate) fn set_digest(&self, digest: String) {
        *self.digest.lock().unwrap_or_else(PoisonError::into_inner) = Some(digest);
        self.changed();
    }

    fn changed(&self) {
        self.changes.send_modify(|version| *version = version.wrapping_add(1));
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub(crate) fn status(&self) -> HostStatus {
        let instances = self.slots.iter().enumerate().filter_map(|(index, slot)| {
            let (detail, word) = (slot.detail().clone(), slot.word());
            let visible = detail.state != InstanceState::Empty || word.has(LIVE);
            let draining = word.has(DRAINING)
                && matches!(detail.state, InstanceState::Healthy | InstanceState::Unhealthy);
            visible.then(|| InstanceStatus {
                instance: index,
                pid: detail.pid,
                addr: (word.port() != 0)
                    .then(|| SocketAddr::new(self.addresses[word.address_index()], word.port())),
                state: if draining { InstanceState::Draining } else { detail.state },
                in_flight: slot.requests_in_flight(),
                restarts: detail.restarts,
                last_exit: detail.last_exit,
            })
        });
        HostStatus {
            region: self.region.clone(),
            service_digest: self.digest.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            in_flight: self.in_flight(),
            instances: instances.collect(),
        }
    }
}

/// What one look over the slots found.
struct Survey {
    best: Option<(usize, Word)>,
    in_flight: u32,
    counted: u64,
    free: usize,
}

/// One request's claim on an instance. Dropping it ends the claim.
pub struct Lease {
    slots: Arc<Slots>,
    index: usize,
    word: Word,
    address: SocketAddr,
}

impl Lease {
    /// Where the instance listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// Number of the instance, as in the status.
    #[must_use]
    pub fn instance(&self) -> usize {
        self.index
    }

    /// Reports that the instance refused the connection. It gets no further request until `up` probes in a row
    /// succeed. A report about an instance that has been replaced since is ignored.
    pub fn refused(&self) {
        let slot = self.slots.slot(self.index);
        let ejected = slot.word.fetch_update(SeqCst, SeqCst, |word| {
            let current = Word(word);
            let same = current.incarnation() == self.word.incarnation() && current.has(HEALTHY);
            same.then_some(word & !HEALTHY | UNHEALTHY)
        });
        if ejected.is_ok() {
            self.slots.detail(self.index, |detail| detail.state = InstanceState::Unhealthy);
            slot.refused.notify_one();
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.slots.release(self.index);
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Lease")
            .field("instance", &self.index)
            .field("addr", &self.address)
            .finish_non_exhaustive()
    }
}

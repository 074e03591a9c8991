//! The life of one geode: how its parts start, in which order, and how they end.
//!
//! Order of start: every address is bound, and only then does anything begin. Then the admin API answers, links and
//! gossip begin, the store reads its log and takes commands, the service is started, the door opens. `/readyz` says how
//! far it is.
//!
//! Order of a graceful stop: other geodes are told, so that they take the clients; the door finishes the requests it has
//! begun and closes; the service ends; and last the store, which leaves the mark of a clean stop.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use geode_door::{Door, DoorSettings, Seams, SessionKey};
use geode_embedded::{Channel, Regions};
use geode_host::Host;
use geode_link::{Call, Credentials, Dialer, Listener, Peers, Purpose};
use geode_planet::{Planet, Region, RegionName};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::doors::LocalService;
use crate::geode::Geode;
use crate::run::RunError;
use crate::service::{self, Surroundings};
use crate::store::{self, DataThread, StoreError};
use crate::{admin, bundle, questions, regions};

/// Time between two looks whether the last request is done.
const DRAIN_LOOK: Duration = Duration::from_millis(10);
/// How long the door pauses when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What one geode is to be.
pub(crate) struct Destiny {
    pub(crate) planet: Arc<Planet>,
    /// Where it was read.
    pub(crate) config_file: PathBuf,
    /// One of the planet's.
    pub(crate) region: RegionName,
    pub(crate) session_key: SessionKey,
    /// None if the planet has no other region.
    pub(crate) membership: Option<Membership>,
    pub(crate) surroundings: Surroundings,
}

/// What makes a geode a region of its planet in the eyes of the others.
pub(crate) struct Membership {
    pub(crate) credentials: Arc<Credentials>,
    /// The bundle that they came from.
    pub(crate) file: PathBuf,
    pub(crate) session_key: Vec<u8>,
}

/// Runs a geode until it is told to stop, or cannot go on.
///
/// # Errors
/// It could not start, or its store stopped by itself.
pub(crate) async fn live(destiny: Destiny) -> Result<(), RunError> {
    let born = Instant::now();
    let mut stop = Stop::listen()?;
    let _file_size = outlive_file_size_limit()?;
    let Destiny { planet, config_file, region, session_key, membership, surroundings } = destiny;
    let credentials = membership.as_ref().map(|membership| &membership.credentials);
    let Some(region) = planet.region(&region) else { return Ok(()) };
    let peers = Peers::new(regions::peers(&planet, &Regions::new(), &region.name));
    let bound = bind(&planet, region, credentials, &peers).await?;
    let dialer = dialer(region, credentials, peers);
    let geode = Geode::new(Arc::clone(&planet), config_file, region.name.clone(), dialer);
    let door = door(&geode, session_key)?;

    let mut background = JoinSet::new();
    background.spawn(admin::serve(bound.admin, Arc::clone(&geode)));
    if let Some(listener) = bound.link {
        background.spawn(take_calls(listener, Arc::clone(&geode), door.clone()));
    }
    if let Some(Membership { credentials, file, .. }) = membership {
        let _ = geode.credentials.set(Arc::clone(&credentials));
        background.spawn(bundle::keep(credentials, file, region.name.clone()));
    }
    gossip(&geode, &mut background);
    let mut data_thread = store::start(&planet, region, geode.dialer.clone(), bound.redis)?;
    let _ = geode.redis_metrics.set(Arc::clone(&data_thread.metrics));

    let served = tokio::select! {
        started = start_service(&geode, &mut data_thread, region, &surroundings) => started,
        () = stop.told() => Ok(()),
    };
    if served.is_ok() && geode.store.get().is_some() {
        let doors = open_doors(bound.doors, &door);
        background.spawn(regions::follow(Arc::clone(&geode)));
        geode.door_open.store(true, Ordering::Relaxed);
        background.spawn(tell_changes(Arc::clone(&geode), born));
        tokio::select! {
            () = stop.told() => tracing::info!("stopping"),
            _ = &mut data_thread.ended => tracing::error!("the store has stopped: this geode cannot go on"),
        }
        tokio::select! {
            () = wind_down(&geode, doors, surroundings.stop_grace) => {}
            () = stop.told() => tracing::warn!("told to stop again: leaving what is not finished"),
        }
    }
    let stopped = tokio::task::spawn_blocking(|| data_thread.stop()).await;
    served?;
    Ok(stopped.unwrap_or(Err(StoreError::Panicked))?)
}

/// Every address of this geode, bound.
struct Bound {
    redis: std::net::TcpListener,
    doors: Vec<TcpListener>,
    admin: TcpListener,
    /// None in a planet of one region.
    link: Option<Listener>,
}

async fn bind(
    planet: &Planet,
    region: &Region,
    credentials: Option<&Arc<Credentials>>,
    peers: &Peers,
) -> Result<Bound, RunError> {
    let failed = |address: SocketAddr, key: &'static str| {
        move |source: std::io::Error| match source.kind() {
            std::io::ErrorKind::AddrInUse => RunError::InUse { address, key },
            _ => RunError::Listen { address, key, source },
        }
    };
    let settings = &region.settings;
    let address = settings.redis_listen;
    let redis = geode_resp::listen(address).map_err(failed(address, "redis.listen"))?;
    let mut doors = Vec::new();
    for address in &settings.door_listen {
        doors.push(TcpListener::bind(address).await.map_err(failed(*address, "door.listen"))?);
    }
    let address = settings.admin_listen;
    let admin = TcpListener::bind(address).await.map_err(failed(address, "admin.listen"))?;
    let link = match settings.link_listen.filter(|_| planet.regions.len() > 1).zip(credentials) {
        Some((address, credentials)) => {
            let bound = Listener::bind(address, Arc::clone(credentials), peers.clone()).await;
            Some(bound.map_err(failed(address, "link_listen"))?)
        }
        None => None,
    };
    Ok(Bound { redis, doors, admin, link })
}

/// Calls the planet's other regions from this region's own address.
fn dialer(region: &Region, credentials: Option<&Arc<Credentials>>, peers: Peers) -> Dialer {
    let Some(credentials) = credentials else { return Dialer::alone() };
    let local = region.settings.link_listen.map(|address| address.ip()).filter(|ip| !ip.is_unspecified());
    Dialer::new(Arc::clone(credentials), local, peers)
}

fn door(geode: &Arc<Geode>, session_key: SessionKey) -> Result<Door<LocalService>, RunError> {
    let seams = Seams {
        service: LocalService(Arc::clone(geode)),
        router: Arc::clone(&geode.router) as _,
        peers: Arc::clone(geode) as _,
        sessions: Arc::clone(geode) as _,
    };
    let door = Door::new(DoorSettings::new(geode.region.clone(), session_key), seams)?;
    let _ = geode.door_metrics.set(Arc::clone(door.metrics()));
    Ok(door)
}

/// Beats, and speaks to every region that belongs to the planet.
fn gossip(geode: &Arc<Geode>, background: &mut JoinSet<()>) {
    background.spawn(speak(Arc::clone(geode)));
    let geode = Arc::clone(geode);
    background.spawn(async move { geode.gossip.beat(|| geode.state()).await });
}

async fn speak(geode: Arc<Geode>) {
    let mut standing = geode.standing.subscribe();
    let mut conversations = JoinSet::new();
    let mut speaking = BTreeSet::new();
    loop {
        standing.mark_unchanged();
        for peer in geode.other_regions() {
            if speaking.insert(peer.clone()) {
                let geode = Arc::clone(&geode);
                conversations.spawn(async move {
                    tokio::select! {
                        () = geode.gossip.speak(&geode.dialer, &peer) => {}
                        () = geode.gone(&peer) => {}
                    }
                    peer
                });
            }
        }
        tokio::select! {
            Some(ended) = conversations.join_next() => drop(ended.map(|peer| speaking.remove(&peer))),
            changed = standing.changed() => if changed.is_err() { return },
        }
    }
}

/// Hands every call of another geode to the part it is for, for as long as it is polled.
async fn take_calls(mut listener: Listener, geode: Arc<Geode>, door: Door<LocalService>) {
    let mut calls = JoinSet::new();
    loop {
        let Call { from, purpose, stream, .. } = tokio::select! {
            call = listener.accept() => call,
            Some(_) = calls.join_next() => continue,
        };
        let channel = match purpose {
            Purpose::Replication => Some(Channel::Live),
            Purpose::Bulk => Some(Channel::Bulk),
            Purpose::Gossip | Purpose::Question | Purpose::Hop => None,
        };
        if let Some(channel) = channel {
            // Whoever calls before the log is read calls again.
            if let Some(store) = geode.store.get() {
                store.accept(from.as_str(), channel, store::connection(stream));
            }
            continue;
        }
        let (geode, door) = (Arc::clone(&geode), door.clone());
        calls.spawn(async move {
            let answer = |question| async { geode.answer(question).await };
            let served = async {
                match purpose {
                    Purpose::Gossip => geode.gossip.hear(&from, stream).await,
                    Purpose::Question => questions::serve(stream, answer).await,
                    Purpose::Hop => door.serve_peer(stream, from.clone()).await,
                    Purpose::Replication | Purpose::Bulk => {}
                }
            };
            tokio::select! {
                () = served => {}
                () = geode.gone(&from) => {}
            }
        });
    }
}

/// Waits for the store, then starts the service, which may use it at once.
async fn start_service(
    geode: &Geode,
    data_thread: &mut DataThread,
    region: &Region,
    surroundings: &Surroundings,
) -> Result<(), RunError> {
    let opened = match data_thread.opened.take() {
        Some(opened) => opened.await.ok(),
        None => None,
    };
    // Why there is none, stopping the thread will tell.
    let Some(store) = opened else { return Ok(()) };
    let _ = geode.store.set(store);
    geode.follow_rows(&geode.rows());
    if let Some(service) = &geode.planet.service {
        let settings = service::settings(service, region, surroundings).await.map_err(RunError::Upstream)?;
        let _ = geode.host.set(Arc::new(Host::start(settings)?));
    }
    Ok(())
}

fn open_doors(listeners: Vec<TcpListener>, door: &Door<LocalService>) -> JoinSet<()> {
    listeners.into_iter().map(|listener| take_clients(listener, door.clone())).collect()
}

/// Takes clients' connections for as long as it is polled; dropping it ends those that are left.
async fn take_clients(listener: TcpListener, door: Door<LocalService>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => {
                    let door = door.clone();
                    connections.spawn(async move { door.serve_client(stream, address).await });
                }
                Err(error) => {
                    tracing::warn!(%error, "the door cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Tells the others at once whenever the service becomes healthy or ceases to be, and logs when it first did.
async fn tell_changes(geode: Arc<Geode>, born: Instant) {
    let mut healthy = false;
    let mut was_ready = false;
    loop {
        if let Some(host) = geode.host.get() {
            healthy = host.until(|status| (status.healthy() > 0) != healthy).await.healthy() > 0;
        }
        geode.gossip.tell(geode.state());
        if !std::mem::replace(&mut was_ready, true) {
            let after_ms = born.elapsed().as_millis() as u64;
            tracing::info!(region = %geode.region, after_ms, "ready");
        }
        if geode.host.get().is_none() {
            return;
        }
    }
}

/// A write beyond a limit on the size of files (`ulimit -f`, `LimitFSIZE=`) is then an error like any other, and not the
/// end of the process.
fn outlive_file_size_limit() -> Result<Signal, RunError> {
    let limit = SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw());
    signal(limit).map_err(|source| RunError::System { doing: "cannot listen for signals", source })
}

/// The signals that stop a geode gracefully.
struct Stop([Signal; 2]);

impl Stop {
    fn listen() -> Result<Self, RunError> {
        let listen = |kind| {
            signal(kind).map_err(|source| RunError::System { doing: "cannot listen for signals", source })
        };
        Ok(Self([listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?]))
    }

    async fn told(&mut self) {
        let [terminate, interrupt] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
}

async fn wind_down(geode: &Geode, doors: JoinSet<()>, grace: Duration) {
    geode.draining.store(true, Ordering::Relaxed);
    geode.gossip.tell(geode.state());
    let deadline = Instant::now() + grace;
    let in_flight = || geode.door_metrics.get().map_or(0, |metrics| metrics.connections.in_flight.get());
    while in_flight() > 0 && Instant::now() < deadline {
        tokio::time::sleep(DRAIN_LOOK).await;
    }
    drop(doors);
    if let Some(host) = geode.host.get() {
        host.stop().await;
    }
}

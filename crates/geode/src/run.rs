//! `geode run`: one geode, from its configuration to its end.
//!
//! Order of start: everything is read and checked, every address is bound, and only then does anything begin, so that a
//! mistake costs one line and no side effect. Then the admin API answers, the store reads its log and takes commands,
//! links and gossip begin, the service is started, the door opens. `/readyz` says how far it is.
//!
//! Order of a graceful stop: other geodes are told, the door stops accepting and finishes what it has begun, the service
//! ends, and last the store, which leaves the mark of a clean stop.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::ValueEnum;
use geode_door::{Door, DoorSettings, NoRandomness, Seams, SessionKey};
use geode_host::{Host, HostError};
use geode_link::{Call, Dialer, Identity, Listener, Purpose};
use geode_planet::{Planet, Region, RegionName};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::doors::LocalService;
use crate::geode::Geode;
use crate::service::{self, Surroundings};
use crate::store::{self, DataThread, StoreError};
use crate::{admin, dev, questions};

/// Threads that serve the door, links, gossip and admin. The store has a thread of its own.
const WORKER_THREADS: usize = 2;
/// How long requests may take to finish when the geode stops, and then its service.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// The same below `geode dev`, which waits five seconds in all.
const HELD_STOP_GRACE: Duration = Duration::from_millis(1500);
/// Time between two looks whether the last request is done.
const DRAIN_LOOK: Duration = Duration::from_millis(10);
/// The least a key must hold, in bytes: the length of the hash it is used with.
const KEY_BYTES: usize = 32;

/// Run one geode: this region's complete copy of the planet.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The same planet.toml serves every region; only --region differs. SIGTERM stops it gracefully.\n\n\
                        Examples:\n  geode run --config planet.toml --region eu-west-1\n  geode run --config \
                        planet.toml --region eu-west-1 --log-format json\n\nRUST_LOG=debug shows more."
)]
pub(crate) struct RunArgs {
    /// The planet's configuration.
    #[arg(long, value_name = "FILE", default_value = "planet.toml")]
    config: PathBuf,
    /// Which of its regions this is.
    #[arg(long, value_name = "NAME")]
    region: String,
    /// How log records are written to standard error.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// End when standard input ends or the parent process dies; for `geode dev`.
    #[arg(long, hide = true)]
    held: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// One line for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Why a geode did not start, or ended.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error("{}: {source}", .file.display())]
    ConfigFile { file: PathBuf, source: std::io::Error },
    /// One line for each mistake.
    #[error("{0}")]
    Config(String),
    #[error("{address} is in use ({key} would listen there): stop what uses it, or change {key}")]
    InUse { address: SocketAddr, key: &'static str },
    #[error("cannot listen on {address} ({key}): {source}")]
    Listen { address: SocketAddr, key: &'static str, source: std::io::Error },
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("{0}")]
    Service(#[from] HostError),
    #[error("the service's upstream cannot be resolved: {0}")]
    Upstream(std::io::Error),
    #[error("{0}")]
    Door(#[from] NoRandomness),
    #[error("{doing}: {source}")]
    System { doing: &'static str, source: std::io::Error },
}

impl RunError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Store(error) if !error.is_usage() => 1,
            Self::Door(_) | Self::System { .. } => 1,
            _ => 2,
        }
    }
}

/// Runs a geode until it is told to stop.
pub(crate) fn run(args: &RunArgs) -> ExitCode {
    if args.held {
        dev::die_with_parent();
    }
    start_log(args.log_format);
    match start(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("geode run: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn start_log(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.with_target(false).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}

fn start(args: &RunArgs) -> Result<(), RunError> {
    let planet = read_planet(args)?;
    let region: RegionName =
        planet.regions.get(args.region.as_str()).map(|region| region.name.clone()).ok_or_else(|| {
            let regions: Vec<&str> = planet.regions.keys().map(RegionName::as_str).collect();
            let (wanted, file) = (&args.region, args.config.display());
            RunError::Config(format!("{file} has no region {wanted:?}; it has {}", regions.join(", ")))
        })?;
    let session_key = session_key(&planet)?;
    let system = |doing| move |source| RunError::System { doing, source };
    let surroundings = Surroundings {
        program: std::env::current_exe().map_err(system("cannot find this program"))?,
        stop_grace: if args.held { HELD_STOP_GRACE } else { STOP_GRACE },
        log_output: args.log_format == LogFormat::Json,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .thread_name("geode")
        .enable_all()
        .build()
        .map_err(system("cannot start threads"))?;
    runtime.block_on(serve(Arc::new(planet), region, session_key, surroundings))
}

fn read_planet(args: &RunArgs) -> Result<Planet, RunError> {
    let text = std::fs::read_to_string(&args.config)
        .map_err(|source| RunError::ConfigFile { file: args.config.clone(), source })?;
    let planet = Planet::parse(&text, &args.config.display().to_string())
        .map_err(|errors| RunError::Config(errors.to_string()))?;
    let exposed = exposed(&planet);
    if exposed.is_empty() { Ok(planet) } else { Err(RunError::Config(exposed.join("\n"))) }
}

/// Links that would be reachable from other machines although nothing there authenticates a caller yet.
fn exposed(planet: &Planet) -> Vec<String> {
    let mut exposed = Vec::new();
    for (name, region) in &planet.regions {
        let settings = &region.settings;
        let dialled = region.link.as_ref().filter(|link| !link.ip().is_some_and(|ip| ip.is_loopback()));
        if let Some(link) = dialled {
            exposed.push(format!("regions.{name}.link = \"{link}\": {LINKS_STAY}"));
        } else if let Some(listen) = settings.link_listen.filter(|listen| !listen.ip().is_loopback()) {
            exposed.push(format!("regions.{name}.link_listen = \"{listen}\": {LINKS_STAY}"));
        }
    }
    exposed
}

const LINKS_STAY: &str =
    "links have no mutual TLS yet, so they stay on loopback; give an address like 127.0.0.11:7400";

/// The key that seals session tokens.
fn session_key(planet: &Planet) -> Result<SessionKey, RunError> {
    let Some(file) = &planet.key_file else {
        if planet.regions.len() > 1 {
            tracing::warn!("no planet.key_file: session tokens of other regions will not be understood");
        }
        let mut key = [0; KEY_BYTES];
        getrandom::fill(&mut key).map_err(|error| RunError::System {
            doing: "the operating system gave no random bytes",
            source: std::io::Error::other(error.to_string()),
        })?;
        return Ok(SessionKey::new(&key));
    };
    let key = std::fs::read(file).map_err(|source| RunError::ConfigFile { file: file.clone(), source })?;
    if key.len() < KEY_BYTES {
        let (file, length) = (file.display(), key.len());
        return Err(RunError::Config(format!(
            "planet.key_file: {file} holds {length} bytes; make one with `head -c {KEY_BYTES} /dev/urandom > {file}`"
        )));
    }
    Ok(SessionKey::new(&key))
}

/// Every address of this geode, bound.
struct Bound {
    redis: std::net::TcpListener,
    doors: Vec<TcpListener>,
    admin: TcpListener,
    link: Option<Listener>,
}

async fn bind(region: &Region, identity: Identity, peers: Vec<RegionName>) -> Result<Bound, RunError> {
    let failed = |address: SocketAddr, key: &'static str| {
        move |source: std::io::Error| match source.kind() {
            std::io::ErrorKind::AddrInUse => RunError::InUse { address, key },
            _ => RunError::Listen { address, key, source },
        }
    };
    let settings = &region.settings;
    let address = settings.redis_listen;
    let redis = std::net::TcpListener::bind(address).map_err(failed(address, "redis.listen"))?;
    let mut doors = Vec::new();
    for address in &settings.door_listen {
        doors.push(TcpListener::bind(address).await.map_err(failed(*address, "door.listen"))?);
    }
    let address = settings.admin_listen;
    let admin = TcpListener::bind(address).await.map_err(failed(address, "admin.listen"))?;
    let link = match settings.link_listen.filter(|_| !peers.is_empty()) {
        Some(address) => {
            Some(Listener::bind(address, identity, peers).await.map_err(failed(address, "link_listen"))?)
        }
        None => None,
    };
    Ok(Bound { redis, doors, admin, link })
}

async fn serve(
    planet: Arc<Planet>,
    name: RegionName,
    session_key: SessionKey,
    surroundings: Surroundings,
) -> Result<(), RunError> {
    let mut stop = Stop::listen()?;
    let Some(region) = planet.region(&name) else { return Ok(()) };
    let identity = Identity { planet: planet.name.clone(), region: name.clone() };
    let others = || planet.regions.values().filter(|other| other.name != name);
    let peers: Vec<RegionName> = others().map(|other| other.name.clone()).collect();
    let bound = bind(region, identity.clone(), peers).await?;
    let local = region.settings.link_listen.map(|address| address.ip()).filter(|ip| !ip.is_unspecified());
    let links = others().filter_map(|other| Some((other.name.clone(), other.link.clone()?)));
    let geode = Geode::new(Arc::clone(&planet), name.clone(), Dialer::new(identity, local, links.collect()));
    let door = Door::new(
        DoorSettings::new(name, session_key),
        Seams {
            service: LocalService(Arc::clone(&geode)),
            router: Arc::clone(&geode.router) as _,
            peers: Arc::clone(&geode) as _,
            sessions: Arc::clone(&geode) as _,
        },
    )?;
    // Set once, here.
    let _ = geode.door_metrics.set(Arc::clone(door.metrics()));

    let mut parts = JoinSet::new();
    parts.spawn(admin::serve(bound.admin, Arc::clone(&geode)));
    if let Some(listener) = bound.link {
        parts.spawn(take_calls(listener, Arc::clone(&geode), door.clone()));
    }
    gossip(&geode, &mut parts);
    let mut data_thread = store::start(&planet, region, geode.dialer.clone(), bound.redis)?;
    // Set once, here.
    let _ = geode.redis_metrics.set(Arc::clone(&data_thread.metrics));
    tokio::select! {
        started = start_service(&geode, &mut data_thread, region, &surroundings) => started?,
        () = stop.told() => {}
    }
    let mut doors = JoinSet::new();
    for listener in bound.doors {
        doors.spawn(open(listener, door.clone()));
    }
    geode.door_open.store(true, Ordering::Relaxed);
    let announced = Arc::clone(&geode);
    parts.spawn(async move { announce_readiness(&announced).await });

    tokio::select! {
        () = stop.told() => tracing::info!("stopping"),
        _ = &mut data_thread.ended => tracing::error!("the store has stopped: this geode cannot go on"),
    }
    tokio::select! {
        () = wind_down(&geode, doors, surroundings.stop_grace) => {}
        () = stop.told() => tracing::warn!("told to stop again: leaving what is not finished"),
    }
    let stopped = tokio::task::spawn_blocking(|| data_thread.stop()).await;
    Ok(stopped.unwrap_or(Err(StoreError::Panicked))?)
}

/// Waits for the store, then starts the service, which may use it at once.
async fn start_service(
    geode: &Geode,
    data_thread: &mut DataThread,
    region: &Region,
    surroundings: &Surroundings,
) -> Result<(), RunError> {
    if let Some(opened) = data_thread.opened.take()
        && let Ok(store) = opened.await
    {
        // Set once, here, and so is the host.
        let _ = geode.store.set(store);
    }
    if let Some(service) = geode.planet.service.as_ref().filter(|_| geode.store.get().is_some()) {
        let settings = service::settings(service, region, surroundings).await.map_err(RunError::Upstream)?;
        let _ = geode.host.set(Arc::new(Host::start(settings)?));
    }
    Ok(())
}

/// Beats, and speaks to every peer.
fn gossip(geode: &Arc<Geode>, parts: &mut JoinSet<()>) {
    for peer in geode.dialer.peers() {
        let (geode, peer) = (Arc::clone(geode), peer.clone());
        parts.spawn(async move { geode.gossip.speak(&geode.dialer, &peer).await });
    }
    let geode = Arc::clone(geode);
    parts.spawn(async move { geode.gossip.beat(|| geode.state()).await });
}

/// Hands every call of another geode to the part it is for.
async fn take_calls(mut listener: Listener, geode: Arc<Geode>, door: Door<LocalService>) {
    let mut calls = JoinSet::new();
    loop {
        let Call { from, purpose, stream, .. } = tokio::select! {
            call = listener.accept() => call,
            Some(_) = calls.join_next() => continue,
        };
        let geode = Arc::clone(&geode);
        match purpose {
            Purpose::Gossip => calls.spawn(async move { geode.gossip.hear(&from, stream).await }),
            Purpose::Question => calls
                .spawn(questions::serve(stream, move |question| async move { geode.answer(question).await })),
            Purpose::Hop => {
                let door = door.clone();
                calls.spawn(async move { door.serve_peer(stream, from).await })
            }
            Purpose::Replication => {
                if let Some(store) = geode.store.get() {
                    store.accept(from.as_str(), stream);
                }
                continue;
            }
        };
    }
}

/// Takes clients' connections for as long as it is polled; dropping it ends those that are left.
async fn open(listener: TcpListener, door: Door<LocalService>) {
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
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn announce_readiness(geode: &Geode) {
    let mut views = geode.gossip.views();
    let started = Instant::now();
    while !geode.waits_for().is_empty() {
        // Rings at every beat.
        if views.changed().await.is_err() {
            return;
        }
    }
    tracing::info!(region = %geode.region, after_ms = started.elapsed().as_millis() as u64, "ready");
}

/// The signals that stop a geode gracefully.
struct Stop([tokio::signal::unix::Signal; 2]);

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

async fn wind_down(geode: &Arc<Geode>, doors: JoinSet<()>, grace: Duration) {
    geode.draining.store(true, Ordering::Relaxed);
    geode.gossip.beat_once(geode.state());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_that_others_could_reach_are_refused_all_at_once() {
        let planet = Planet::parse(
            r#"
format = 1
[planet]
name = "acme"
[regions.us-east-1]
public = ["203.0.113.10"]
link = "10.0.1.5:7400"
[regions.eu-west-1]
public = ["198.51.100.10"]
link = "127.0.0.12:7400"
link_listen = "0.0.0.0:7400"
"#,
            "planet.toml",
        )
        .unwrap();
        insta::assert_snapshot!(exposed(&planet).join("\n"), @r#"
        regions.eu-west-1.link_listen = "0.0.0.0:7400": links have no mutual TLS yet, so they stay on loopback; give an address like 127.0.0.11:7400
        regions.us-east-1.link = "10.0.1.5:7400": links have no mutual TLS yet, so they stay on loopback; give an address like 127.0.0.11:7400
        "#);
    }
}

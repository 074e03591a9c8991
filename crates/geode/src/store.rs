//! The store's data thread: it opens the engine, answers Redis commands, and leaves the mark of a clean stop.

use std::net::TcpListener;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use geode_embedded::{
    Channel, Config, Connection, Dial, Embedded, EmbeddedHandle, FsyncMode, OpenError, PathState,
};
use geode_link::{Dialer, Purpose, Stream};
use geode_planet::{Conditional, Fsync, Planet, Region, RegionName};
use geode_resp::{Handle, Limits, RespMetrics, Server, ServerError};
use geode_store::{Options, Store};
use tokio::sync::oneshot;

use crate::info::Info;

/// A store that is being opened, or runs.
pub(crate) struct DataThread {
    thread: JoinHandle<Result<(), StoreError>>,
    loop_handle: Handle,
    pub(crate) metrics: Arc<RespMetrics>,
    /// Completes once the log is read and commands are answered; fails when the thread ends before.
    pub(crate) opened: Option<oneshot::Receiver<EmbeddedHandle>>,
    /// Completes when the thread has ended, for whatever reason.
    pub(crate) ended: oneshot::Receiver<()>,
}

/// Why the store did not open, or stopped by itself.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("{0}")]
    Open(#[from] OpenError),
    #[error("{0}")]
    Serve(#[from] ServerError),
    #[error("cannot start the store: {0}")]
    System(#[from] std::io::Error),
    #[error("the store's thread panicked; its log holds all that was answered")]
    Panicked,
}

impl StoreError {
    /// Whether the caller asked for something that cannot be.
    pub(crate) fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Open(
                OpenError::InUse(_)
                    | OpenError::OtherPlanet { .. }
                    | OpenError::OtherRegion { .. }
                    | OpenError::NewerFormat { .. }
            )
        )
    }
}

/// Starts the data thread. It reads the log, connects to the other regions by `dialer`, and answers commands that come to
/// `listener`.
///
/// # Errors
/// The system has no thread or no file descriptor left.
pub(crate) fn start(
    planet: &Planet,
    region: &Region,
    dialer: Dialer,
    listener: TcpListener,
) -> Result<DataThread, StoreError> {
    let (limits, tcp_port) = (Limits::default(), listener.local_addr()?.port());
    let max_clients = limits.connections;
    let server = Server::new(vec![listener], limits)?;
    let (loop_handle, metrics) = (server.handle(), server.metrics());
    let (opened, when_opened) = oneshot::channel();
    let (ending, ended) = oneshot::channel::<()>();
    let assembly = Assembly {
        config: config(planet, region, &dialer.peers()),
        options: options(planet)?,
        info: Info { started: Instant::now(), tcp_port, max_clients, metrics: Arc::clone(&metrics) },
        dial: dial(dialer),
        runtime: tokio::runtime::Handle::current(),
        server,
        opened,
    };
    let thread = std::thread::Builder::new().name("store".to_owned()).spawn(move || {
        let _ending = ending;
        assembly.run()
    })?;
    Ok(DataThread { thread, loop_handle, metrics, opened: Some(when_opened), ended })
}

impl DataThread {
    /// Ends the loop, forces the log onto the disk and leaves the mark of a clean stop; or tells why the thread has
    /// ended before. Blocks for as long as that takes.
    ///
    /// # Errors
    /// What the thread met.
    pub(crate) fn stop(self) -> Result<(), StoreError> {
        self.loop_handle.stop();
        self.thread.join().unwrap_or(Err(StoreError::Panicked))
    }
}

/// All that the data thread takes along.
struct Assembly {
    config: Config,
    options: Options,
    info: Info,
    dial: Dial,
    runtime: tokio::runtime::Handle,
    server: Server,
    opened: oneshot::Sender<EmbeddedHandle>,
}

impl Assembly {
    fn run(self) -> Result<(), StoreError> {
        let (mut engine, handle) = Embedded::open(self.config)?;
        let wake = self.server.handle();
        engine.start(&self.runtime, &self.dial, Arc::new(move || wake.wake()));
        let mut store = Store::new(engine, self.options);
        store.set_info_lines(self.info.lines());
        // Nobody waits any more when the process was told to stop in the meantime.
        let _ = self.opened.send(handle);
        let served = self.server.run(&mut store);
        let stopped = store.engine.stop();
        served?;
        Ok(stopped?)
    }
}

fn config(planet: &Planet, region: &Region, peers: &[RegionName]) -> Config {
    let peers: Vec<&str> = peers.iter().map(RegionName::as_str).collect();
    let fsync = match planet.store.fsync {
        Fsync::Always => FsyncMode::Always,
        Fsync::EverySec => FsyncMode::EverySecond,
        Fsync::Never => FsyncMode::Never,
    };
    let retention = region.settings.retention_bytes;
    Config {
        fsync,
        retention,
        memory: region.settings.memory_bytes,
        ..Config::new(&region.settings.data, &planet.name, region.name.as_str(), &peers)
    }
}

fn options(planet: &Planet) -> Result<Options, StoreError> {
    let conditional = match planet.store.conditional {
        Conditional::Reject => geode_store::Conditional::Reject,
        Conditional::Local => geode_store::Conditional::Local,
    };
    let seed = getrandom::u64().map_err(|error| std::io::Error::other(error.to_string()))?;
    let fsync = match planet.store.fsync {
        Fsync::Always => "always",
        Fsync::EverySec => "everysec",
        Fsync::Never => "no",
    };
    let parameters = vec![
        ("appendonly".to_owned(), "yes".to_owned()),
        ("appendfsync".to_owned(), fsync.to_owned()),
        ("save".to_owned(), String::new()),
    ];
    Ok(Options { conditional, seed, parameters })
}

fn dial(dialer: Dialer) -> Dial {
    let dialer = Arc::new(dialer);
    Arc::new(move |region: String, channel| {
        let dialer = Arc::clone(&dialer);
        let purpose = match channel {
            Channel::Live => Purpose::Replication,
            Channel::Bulk => Purpose::Bulk,
        };
        Box::pin(async move {
            let region: RegionName = region.parse().map_err(std::io::Error::other)?;
            let stream = dialer.dial(&region, purpose).await.map_err(std::io::Error::other)?;
            Ok(connection(stream))
        })
    })
}

/// What carries replication, with what tells of its path.
pub(crate) fn connection(stream: Stream) -> Connection {
    let gauge = stream.gauge();
    let connection = Connection::new(stream);
    match gauge {
        Err(_) => connection,
        Ok(gauge) => connection.with_gauge(move || {
            let state = gauge.read()?;
            Some(PathState {
                rtt: Duration::from_micros(state.rtt_us.into()),
                least_rtt: Duration::from_micros(state.least_rtt_us.into()),
                unsent: state.unsent.into(),
                delivered_per_second: state.delivered_per_second,
            })
        }),
    }
}

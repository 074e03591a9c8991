//! `geode dev`: the planet on this machine.
//!
//! Every region is a real geode in a process of its own, on the code path of `geode run`. Around them stand what the
//! world would be: a relay that puts the distances between them ([`relay`]), an address that stands for the internet
//! and brings each client to its closest region ([`internet`]), and the hand of fate ([`control`], `geode chaos`).
//!
//! The data directory holds `planet.toml`, `planet.key`, the bundles of the regions with the authority that made them, and one
//! directory per region; while the planet runs, also
//! `lock` and `dev.json`, the ready file by which other commands find it.
//!
//! Ports count from `--base-port`: +0 door, +1 Redis, +2 admin, +3 link (the relay), +4 the geode behind the relay, on
//! 127.0.0.11 for the first region, 127.0.0.12 for the second, and so on. 127.0.0.1 has the internet on +0 and the
//! control address of `geode chaos` on +2.

mod control;
mod directory;
mod error;
mod existing;
mod geodes;
mod held;
mod internet;
mod output;
mod plan;
mod processes;
mod ready;
mod relay;
mod sockets;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use geode_host::HostError;
use geode_planet::{Planet, Program, one_way_ms};
use indicatif::ProgressBar;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};

use control::Control;
use directory::{Announcement, Directory};
use error::DevError;
use geodes::{GeodeState, Geodes, Phase};
use internet::Internet;
use output::{Output, Stream};
use plan::{Addresses, Plan, PlannedRegion};
use ready::greeting;
use relay::{Endpoint, Relay};
use sockets::Sockets;

use crate::open_files;
use crate::terminal::complain;

#[cfg(test)]
pub(crate) use control::RegionChaos;
pub(crate) use control::{ChaosState, Regions};
pub(crate) use directory::RUNNING_FILE;
pub(crate) use held::die_with_parent;
pub(crate) use processes::guard;
pub(crate) use ready::Ready;

/// Where the planet's data is unless `--data` says otherwise.
pub(crate) const DEFAULT_DATA: &str = ".geode";
/// Orders of `geode chaos` that wait.
const MAX_ORDERS: usize = 16;
/// Redraws of the progress line.
const TICK: Duration = Duration::from_millis(100);

/// Run a whole planet on this machine: one geode per region, with the latencies of the world between them.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  geode dev\n  geode dev --regions tokyo,frankfurt,sao-paulo\n  geode dev -- node server.js\n\nThe service of every region gets PORT, GEODE_REGION and REDIS_URL."
)]
pub(crate) struct DevArguments {
    /// The regions: cloud regions (us-east-1) or cities (sydney).
    #[arg(
        long,
        value_name = "A,B,C",
        value_delimiter = ',',
        default_value = "us-east-1,eu-west-1,ap-southeast-2"
    )]
    regions: Vec<String>,
    /// First of the ports that every region uses on its own address: +0 door, +1 Redis, +2 admin.
    #[arg(long, value_name = "PORT", default_value_t = 7100, value_parser = base_port())]
    base_port: u16,
    /// Where the planet and its data are kept; a second start finds everything again.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DATA)]
    data: PathBuf,
    /// The latencies between regions, and between clients and regions.
    #[arg(long, value_enum, default_value_t = Wan::Real)]
    wan: Wan,
    /// What holds the store's rows.
    #[arg(long, value_enum, default_value_t = EngineChoice::Embedded)]
    engine: EngineChoice,
    /// Write addresses and process ids as JSON into this file as soon as everything is ready.
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// Print what the ready file would hold instead of the table, and everything else on standard error.
    #[arg(long)]
    json: bool,
    /// The service to run in every region, after `--`. Without it that of planet.toml, which is the demo at first.
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

fn base_port() -> clap::builder::RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(1..=i64::from(u16::MAX - plan::PORTS))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Wan {
    /// As long as light needs through the world's cables.
    Real,
    /// None, for tests that have no time.
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum EngineChoice {
    /// In this binary.
    Embedded,
}

/// Runs a planet until it is told to end. Mistakes are told in one line; the exit code is 2 if the caller has to change
/// something, 1 if the planet failed, 0 if it was ended.
pub(crate) fn run(arguments: DevArguments) -> ExitCode {
    match start(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("geode dev: {error}"));
            ExitCode::from(error.exit_code())
        }
    }
}

fn start(arguments: DevArguments) -> Result<(), DevError> {
    let EngineChoice::Embedded = arguments.engine;
    let plan = plan(&arguments)?;
    let directory = Directory::enter(&plan.directory)?;
    let draft = directory.draft(&plan)?;
    check_service(draft.planet())?;
    let sockets = Sockets::bind(&plan)?;
    let planet = directory.keep(&plan, draft)?;
    open_files::raise_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|source| DevError::System { doing: "cannot start threads", source })?;
    let run = Run {
        plan: Arc::new(plan),
        directory,
        wan: arguments.wan,
        ready_file: arguments.ready_file,
        json: arguments.json,
    };
    // On the main thread, to which the lives of the geodes are bound.
    runtime.block_on(run.until_told(planet, sockets))
}

/// A service that cannot be started is told once, here, and not by every geode, and before anything is written.
fn check_service(planet: &Planet) -> Result<(), HostError> {
    match planet.service.as_ref().map(|service| &service.program) {
        // This very program, which every geode finds (see `search_path` in `geodes`).
        Some(Program::Run(words)) if words.first().is_some_and(|program| program == "geode") => Ok(()),
        Some(Program::Run(words)) => geode_host::check_command(words, Path::new(".")),
        _ => Ok(()),
    }
}

fn plan(arguments: &DevArguments) -> Result<Plan, DevError> {
    let command = (!arguments.command.is_empty()).then(|| arguments.command.clone());
    let directory = std::path::absolute(&arguments.data).map_err(|source| DevError::File {
        doing: "cannot use",
        path: arguments.data.clone(),
        source,
    })?;
    Plan::new(&arguments.regions, arguments.base_port, command, directory, Addresses::of_this_machine())
}

/// One run of a planet.
struct Run {
    plan: Arc<Plan>,
    directory: Directory,
    wan: Wan,
    ready_file: Option<PathBuf>,
    json: bool,
}

impl Run {
    async fn until_told(self, planet: Planet, sockets: Sockets) -> Result<(), DevError> {
        let mut stop = Stop::listen()?;
        let plan = &self.plan;
        let relay = self.relay(sockets.links)?;
        let listener = |socket| {
            let listener = tokio::net::TcpListener::from_std(socket);
            listener.map_err(|source| DevError::System { doing: "cannot listen", source })
        };
        let (internet, control) = (listener(sockets.internet)?, listener(sockets.control)?);
        let bar = ProgressBar::new_spinner();
        let system = |doing| move |source| DevError::System { doing, source };
        let (output, written) =
            Output::start(&plan.regions, bar.clone(), self.json).map_err(system("cannot start a thread"))?;
        let (orders, inbox) = mpsc::channel(MAX_ORDERS);
        let (mut geodes, states) = Geodes::start(Arc::clone(plan), output.clone(), inbox)?;
        let control_routes = Control::new(Arc::clone(plan), relay, orders, states.clone()).router();
        tokio::spawn(axum::serve(control, control_routes).into_future());
        let world = Arc::new(Internet::new(plan, &planet, self.wan == Wan::Real));
        tokio::spawn(Arc::clone(&world).serve(internet));
        let progress =
            tokio::spawn(show_progress(Arc::clone(plan), states.clone(), bar.clone(), output.clone()));
        let result = tokio::select! {
            result = self.serve(&mut geodes, &states, &world, (&bar, &output)) => result,
            () = stop.told() => Ok(()),
        };
        progress.abort();
        bar.finish_and_clear();
        geodes.stop(stop.told()).await;
        drop((geodes, output));
        written.wait();
        result
    }

    /// Waits until all is ready, says so, and then watches over the planet.
    async fn serve(
        &self,
        geodes: &mut Geodes,
        states: &watch::Receiver<Vec<GeodeState>>,
        world: &Internet,
        (bar, output): (&ProgressBar, &Output),
    ) -> Result<(), DevError> {
        if let Some(file) = &self.ready_file {
            // One of an earlier run would be taken for this one's.
            let _ = std::fs::remove_file(file);
        }
        let ready = || {
            serde_json::to_string_pretty(&Ready::new(&self.plan, &states.borrow())).unwrap_or_default() + "\n"
        };
        let _starting = self.directory.announce(&ready())?;
        geodes.until_ready().await?;
        tokio::select! {
            () = world.until_all_up() => {}
            () = geodes.watch() => {}
        }
        bar.finish_and_clear();
        let text = ready();
        let program = std::env::args().next().filter(|program| program.contains('/'));
        let program = program.unwrap_or_else(|| "geode".to_owned());
        let _announced = self.directory.announce(&text)?;
        let _ready_file = self.ready_file.as_deref().map(|file| Announcement::at(file, &text)).transpose()?;
        if self.json {
            let ready = Ready::new(&self.plan, &states.borrow());
            output.text(&(serde_json::to_string(&ready).unwrap_or_default() + "\n"));
        } else {
            output.text(&greeting(&self.plan, self.wan == Wan::Real, &program));
        }
        geodes.watch().await;
        Ok(())
    }

    fn relay(&self, links: Vec<TcpListener>) -> Result<Relay, DevError> {
        let source =
            |region: &PlannedRegion| (self.plan.addresses == Addresses::PerRegion).then_some(region.address);
        let endpoints = self.plan.regions.iter().zip(links).map(|(region, link)| Endpoint {
            source: source(region),
            link,
            link_listen: region.link_listen(),
        });
        let one_way = |a: &PlannedRegion, b: &PlannedRegion| match self.wan {
            Wan::None => Duration::ZERO,
            Wan::Real if a.name == b.name => Duration::ZERO,
            Wan::Real => {
                Duration::from_secs_f64(one_way_ms(a.place.coordinates, b.place.coordinates) / 1000.0)
            }
        };
        let regions = &self.plan.regions;
        let matrix = regions.iter().map(|a| regions.iter().map(|b| one_way(a, b)).collect()).collect();
        Relay::start(endpoints.collect(), matrix)
            .map_err(|source| DevError::System { doing: "cannot start the relay between regions", source })
    }
}

/// The signals that end a planet: Ctrl-C, a supervisor's request, and a terminal that closes unless nohup(1) said to
/// ignore that.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
    hangup: Option<Signal>,
}

impl Stop {
    fn listen() -> Result<Self, DevError> {
        let listen = |kind| {
            signal(kind).map_err(|source| DevError::System { doing: "cannot listen for signals", source })
        };
        let hangup = (!hangup_is_ignored()).then(|| listen(SignalKind::hangup())).transpose()?;
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup,
        })
    }

    async fn told(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = hangup => {}
        }
    }
}

/// Whether this process was started with SIGHUP, signal 1, ignored (`SigIgn` in proc_pid_status(5)).
fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

/// Names the regions as they become ready: on a terminal in one line that changes, else one line each.
async fn show_progress(
    plan: Arc<Plan>,
    mut states: watch::Receiver<Vec<GeodeState>>,
    bar: ProgressBar,
    output: Output,
) {
    let start = std::time::Instant::now();
    let mut shown = vec![false; plan.regions.len()];
    bar.enable_steady_tick(TICK);
    loop {
        let phases: Vec<Phase> = states.borrow_and_update().iter().map(|state| state.phase).collect();
        let waiting = plan.regions.iter().zip(&phases).filter(|(_, phase)| **phase != Phase::Ready);
        let waiting: Vec<&str> = waiting.map(|(region, _)| region.name.as_str()).collect();
        bar.set_message(format!("starting {}", waiting.join(", ")));
        for (i, phase) in phases.iter().enumerate() {
            if *phase == Phase::Ready && !std::mem::replace(&mut shown[i], true) && bar.is_hidden() {
                output.line(i, Stream::Err, &format!("ready after {:.1} s", start.elapsed().as_secs_f64()));
            }
        }
        if waiting.is_empty() || states.changed().await.is_err() {
            return;
        }
    }
}

//! The geodes of the planet as processes: started, watched, killed, brought back.
//!
//! A geode that dies by itself is started again, as an orchestrator would; one that `geode chaos kill` killed stays
//! down until it is revived. Everything happens on the main thread, since the kernel's parent-death signal is bound to
//! the thread that starts a process.

use std::ffi::OsString;
use std::future::poll_fn;
use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::DevError;
use super::output::{Output, Stream};
use super::plan::Plan;
use super::processes::{self, Guard};
use crate::ask::ask;

/// Time between two looks whether a starting geode is ready.
const READY_INTERVAL: Duration = Duration::from_millis(20);
/// How long a geode may take to answer such a look.
const READY_PATIENCE: Duration = Duration::from_secs(2);
/// After this time a geode's reason for not being ready is shown.
const NOTICE_AFTER: Duration = Duration::from_secs(3);
/// The first pause before a geode that died is started again; it doubles each time.
const RESTART_PAUSE: Duration = Duration::from_millis(500);
/// The longest such pause.
const MAX_RESTART_PAUSE: Duration = Duration::from_secs(10);
/// A geode that ran so long has proven itself: the pause is short again.
const PROVEN_AFTER: Duration = Duration::from_secs(30);
/// How long geodes may take to end in good order. A service has a part of this to finish its requests.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// How long to wait for processes that were killed to be gone.
const DEATH_WAIT: Duration = Duration::from_secs(5);
/// Time between two looks for processes that lost their parents.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Where a geode stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Started, not ready.
    Starting,
    /// It has said that it is ready.
    Ready,
    /// Killed by `geode chaos`.
    Killed,
    /// Died by itself; it will be started again.
    Crashed,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Killed => "killed",
            Self::Crashed => "crashed",
        })
    }
}

/// What others know of a geode's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GeodeState {
    pub(super) phase: Phase,
    pub(super) pid: Option<u32>,
}

/// What others ask for.
pub(super) enum Order {
    /// SIGKILL; answered when the geode and its service are gone.
    Kill(usize, oneshot::Sender<Result<(), String>>),
    /// Start one that was killed; answered when it is started.
    Revive(usize, oneshot::Sender<Result<(), String>>),
}

/// All geodes of the planet.
pub(super) struct Geodes {
    plan: Arc<Plan>,
    executable: PathBuf,
    search_path: OsString,
    guard: Option<Guard>,
    output: Output,
    geodes: Vec<Geode>,
    states: watch::Sender<Vec<GeodeState>>,
    orders: mpsc::Receiver<Order>,
    /// Says which start of a geode has become ready.
    ready: mpsc::Sender<Start>,
    ready_inbox: mpsc::Receiver<Start>,
}

struct Geode {
    phase: Phase,
    process: Option<Process>,
    /// Starts so far.
    starts: u32,
    pause: Duration,
    restart_at: Option<Instant>,
    /// Whoever waits for this geode's death.
    killers: Vec<oneshot::Sender<Result<(), String>>>,
}

struct Process {
    child: Child,
    pid: Pid,
    started: Instant,
    /// Closing it ends the geode.
    _held: Option<ChildStdin>,
}

/// One start of a region's geode, counted from 1: an answer of an earlier process is none of this one's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Start {
    region: usize,
    number: u32,
}

/// What happened next.
enum Event {
    Ordered(Order),
    Ended(usize, ExitStatus),
    Ready(Start),
    Sweep,
    RestartDue,
}

impl Geodes {
    /// Starts every geode of the plan.
    ///
    /// # Errors
    /// When a process cannot be started.
    pub(super) fn start(
        plan: Arc<Plan>,
        output: Output,
        orders: mpsc::Receiver<Order>,
    ) -> Result<(Self, watch::Receiver<Vec<GeodeState>>), DevError> {
        let system = |doing, source| DevError::System { doing, source };
        let executable =
            std::env::current_exe().map_err(|source| system("cannot find this program", source))?;
        let guard = Guard::start(&executable).map_err(|source| system("cannot start the guard", source))?;
        processes::adopt();
        let geodes: Vec<Geode> = plan.regions.iter().map(|_| Geode::new()).collect();
        let (states, watched) = watch::channel(geodes.iter().map(Geode::state).collect());
        let (ready, ready_inbox) = mpsc::channel(plan.regions.len());
        let search_path = search_path(&executable);
        let mut all = Self {
            plan,
            executable,
            search_path,
            guard: Some(guard),
            output,
            geodes,
            states,
            orders,
            ready,
            ready_inbox,
        };
        for region in 0..all.geodes.len() {
            all.launch(region).map_err(|source| system("cannot start a geode", source))?;
        }
        Ok((all, watched))
    }

    /// Watches over the geodes until every one of them is ready.
    ///
    /// # Errors
    /// One ended before.
    pub(super) async fn until_ready(&mut self) -> Result<(), DevError> {
        while self.geodes.iter().any(|geode| geode.phase != Phase::Ready) {
            if let Some((region, status)) = self.step().await {
                let region = &self.plan.regions[region];
                let data = self.plan.directory.join(region.name.as_str());
                return Err(DevError::NeverReady { region: region.name.clone(), status, data });
            }
        }
        Ok(())
    }

    /// Watches over the geodes for as long as it is polled.
    pub(super) async fn watch(&mut self) {
        loop {
            self.step().await;
        }
    }

    /// Ends every process: asks first, and kills what has not ended within a bound, or once `impatient` completes.
    pub(super) async fn stop(&mut self, impatient: impl Future) {
        for process in self.geodes.iter().filter_map(|geode| geode.process.as_ref()) {
            // A stopped process acts on no signal but SIGKILL until it continues. Errors: it is gone already.
            let _ = kill_process(process.pid, Signal::TERM);
            let _ = kill_process(process.pid, Signal::CONT);
        }
        let orderly = async {
            while self.geodes.iter().any(|geode| geode.process.is_some()) {
                let (region, _) = next_end(&mut self.geodes).await;
                self.geodes[region].process = None;
            }
        };
        tokio::select! {
            () = orderly => {}
            () = tokio::time::sleep(STOP_GRACE) => {}
            _ = impatient => {}
        }
        for process in self.geodes.iter().filter_map(|geode| geode.process.as_ref()) {
            let _ = kill_process_group(process.pid, Signal::KILL);
        }
        let dead = async {
            while self.geodes.iter().any(|geode| geode.process.is_some()) {
                let (region, _) = next_end(&mut self.geodes).await;
                self.geodes[region].process = None;
            }
            processes::end(&[]).await;
            if let Some(guard) = self.guard.take() {
                guard.dismiss().await;
            }
        };
        // Past the bound nothing more can be done: a process in the kernel's hands dies when the kernel lets go.
        let _ = tokio::time::timeout(DEATH_WAIT, dead).await;
    }

    /// Takes the next event. Says which geode ended before it was ever ready, if that was it.
    async fn step(&mut self) -> Option<(usize, ExitStatus)> {
        match self.next_event().await {
            Event::Ordered(Order::Kill(region, done)) => self.kill(region, done),
            Event::Ordered(Order::Revive(region, done)) => self.revive(region, done),
            Event::Ended(region, status) => return self.ended(region, status).await,
            Event::Ready(start) => self.became_ready(start),
            Event::RestartDue => self.restart_due(),
            Event::Sweep => processes::sweep(&self.pids()),
        }
        None
    }

    async fn next_event(&mut self) -> Event {
        let restart_at = self.geodes.iter().filter_map(|geode| geode.restart_at).min();
        let restart = async {
            match restart_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            (region, status) = next_end(&mut self.geodes) => Event::Ended(region, status),
            Some(order) = self.orders.recv() => Event::Ordered(order),
            Some(start) = self.ready_inbox.recv() => Event::Ready(start),
            () = restart => Event::RestartDue,
            () = tokio::time::sleep(SWEEP_INTERVAL) => Event::Sweep,
        }
    }

    fn launch(&mut self, region: usize) -> std::io::Result<()> {
        let planned = &self.plan.regions[region];
        let mut child = Command::new(&self.executable)
            .arg("run")
            .arg("--config")
            .arg(self.plan.planet_file())
            .args(["--region", planned.name.as_str(), "--held"])
            .env("PATH", &self.search_path)
            .env(processes::MARK, std::process::id().to_string())
            .envs(log_environment())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        let pid = pid.ok_or_else(|| std::io::Error::other("the process ended at once"))?;
        if let Some(out) = child.stdout.take() {
            tokio::spawn(self.output.clone().follow(region, Stream::Out, out));
        }
        if let Some(err) = child.stderr.take() {
            tokio::spawn(self.output.clone().follow(region, Stream::Err, err));
        }
        let geode = &mut self.geodes[region];
        let held = child.stdin.take();
        geode.process = Some(Process { child, pid, started: Instant::now(), _held: held });
        geode.starts += 1;
        geode.restart_at = None;
        let start = Start { region, number: geode.starts };
        tokio::spawn(report_ready(planned.admin(), start, self.ready.clone(), self.output.clone()));
        self.set_phase(region, Phase::Starting);
        Ok(())
    }

    fn kill(&mut self, region: usize, done: oneshot::Sender<Result<(), String>>) {
        let geode = &mut self.geodes[region];
        geode.restart_at = None;
        match &geode.process {
            Some(process) => {
                let _ = kill_process_group(process.pid, Signal::KILL);
                geode.killers.push(done);
            }
            None => {
                let _ = done.send(Ok(()));
            }
        }
        self.set_phase(region, Phase::Killed);
    }

    fn revive(&mut self, region: usize, done: oneshot::Sender<Result<(), String>>) {
        let geode = &mut self.geodes[region];
        let result = if geode.process.is_some() {
            Ok(()) // it runs
        } else {
            geode.pause = RESTART_PAUSE;
            self.launch(region).map_err(|error| format!("cannot start it: {error}"))
        };
        // Whoever asked may have gone away.
        let _ = done.send(result);
    }

    async fn ended(&mut self, region: usize, status: ExitStatus) -> Option<(usize, ExitStatus)> {
        let geode = &mut self.geodes[region];
        let process = geode.process.take()?;
        let killers = std::mem::take(&mut geode.killers);
        let phase = geode.phase;
        let proven = process.started.elapsed() >= PROVEN_AFTER;
        // Without its process id from now on.
        self.set_phase(region, phase);
        let known = self.pids();
        let gone = tokio::time::timeout(DEATH_WAIT, processes::end(&known)).await.is_ok();
        for killer in killers {
            let result = if gone { Ok(()) } else { Err("its service has not died".to_owned()) };
            let _ = killer.send(result);
        }
        match phase {
            Phase::Killed => return None,
            Phase::Starting if self.geodes[region].starts == 1 => return Some((region, status)),
            _ => {}
        }
        let geode = &mut self.geodes[region];
        geode.pause = if proven { RESTART_PAUSE } else { geode.pause };
        let pause = geode.pause;
        geode.restart_at = Some(Instant::now() + pause);
        geode.pause = (2 * pause).min(MAX_RESTART_PAUSE);
        self.set_phase(region, Phase::Crashed);
        let message =
            format!("the geode ended by itself ({status}); it is started again in {} ms", pause.as_millis());
        self.output.line(region, Stream::Err, &message);
        None
    }

    fn became_ready(&mut self, Start { region, number }: Start) {
        if self.geodes[region].starts == number && self.geodes[region].phase == Phase::Starting {
            self.set_phase(region, Phase::Ready);
        }
    }

    fn restart_due(&mut self) {
        let now = Instant::now();
        for region in 0..self.geodes.len() {
            if self.geodes[region].restart_at.is_some_and(|at| at <= now)
                && let Err(error) = self.launch(region)
            {
                self.output.line(region, Stream::Err, &format!("the geode cannot be started: {error}"));
                self.geodes[region].restart_at = Some(now + MAX_RESTART_PAUSE);
            }
        }
    }

    fn set_phase(&mut self, region: usize, phase: Phase) {
        self.geodes[region].phase = phase;
        self.states.send_replace(self.geodes.iter().map(Geode::state).collect());
    }

    fn pids(&self) -> Vec<Pid> {
        self.geodes.iter().filter_map(|geode| Some(geode.process.as_ref()?.pid)).collect()
    }
}

impl Geode {
    fn new() -> Self {
        Self {
            phase: Phase::Starting,
            process: None,
            starts: 0,
            pause: RESTART_PAUSE,
            restart_at: None,
            killers: Vec::new(),
        }
    }

    fn state(&self) -> GeodeState {
        let pid = self.process.as_ref().map(|process| process.pid.as_raw_nonzero().get().unsigned_abs());
        GeodeState { phase: self.phase, pid }
    }
}

/// The next geode whose process ends. Cancelling it loses nothing: a process keeps its exit status.
async fn next_end(geodes: &mut [Geode]) -> (usize, ExitStatus) {
    poll_fn(|context| {
        for (region, geode) in geodes.iter_mut().enumerate() {
            let Some(process) = &mut geode.process else { continue };
            // An error would mean that this is no child of ours, which cannot be.
            if let Poll::Ready(Ok(status)) = pin!(process.child.wait()).poll(context) {
                return Poll::Ready((region, status));
            }
        }
        Poll::Pending
    })
    .await
}

/// Asks until the geode says that it is ready. An address that refuses belongs to a geode that does not listen yet, or
/// to a dead one, whose next start answers in its place; what is said of an earlier start is ignored.
async fn report_ready(admin: SocketAddr, start: Start, ready: mpsc::Sender<Start>, output: Output) {
    let started = Instant::now();
    let mut told = Bytes::new();
    loop {
        match ask(admin, Method::GET, "/readyz", None, READY_PATIENCE).await {
            Ok((StatusCode::OK, _)) => {
                // The receiver lives as long as the planet.
                let _ = ready.send(start).await;
                return;
            }
            Ok((_, reason)) if reason != told && started.elapsed() >= NOTICE_AFTER => {
                let text = String::from_utf8_lossy(&reason);
                output.line(
                    start.region,
                    Stream::Err,
                    &format!("not ready yet: {}", text.trim().replace('\n', "; ")),
                );
                told = reason;
            }
            _ => {}
        }
        if ready.is_closed() {
            return;
        }
        tokio::time::sleep(READY_INTERVAL).await;
    }
}

/// Quiet but for what needs attention, unless the user wants it otherwise; and no colours into a file.
fn log_environment() -> Vec<(&'static str, &'static str)> {
    let mut environment = Vec::new();
    if std::env::var_os("RUST_LOG").is_none() {
        environment.push(("RUST_LOG", "warn"));
    }
    if !std::io::stderr().is_terminal() {
        environment.push(("NO_COLOR", "1"));
    }
    environment
}

/// PATH with this program's own directory in front, so that `geode demo` in planet.toml is this very geode.
fn search_path(executable: &std::path::Path) -> OsString {
    let before = std::env::var_os("PATH").unwrap_or_default();
    let own = executable.parent().map(PathBuf::from);
    let paths = own.into_iter().chain(std::env::split_paths(&before));
    std::env::join_paths(paths).unwrap_or(before)
}

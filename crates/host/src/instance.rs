//! The life of one instance: started, watched, restarted when it dies, ended when it is not wanted.

use std::net::{Ipv4Addr, TcpListener};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use tokio::process::Command;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::backoff::Backoff;
use crate::digest::Digester;
use crate::health;
use crate::launch::{ServiceProcess, Spawner};
use crate::output::{Line, OutputStream, read_lines};
use crate::settings::{HealthSettings, RunSettings};
use crate::slot::{Slots, Wanted};
use crate::status::InstanceState;

/// What a dead instance's last lines may take to be read; longer only if a process it left behind holds its output.
const LAST_LINES: Duration = Duration::from_secs(1);
/// Attempts to find a port that no other instance of this host was given.
const PORT_ATTEMPTS: usize = 16;

/// What all instances of a host share.
pub(crate) struct Plan {
    pub(crate) region: String,
    pub(crate) health: HealthSettings,
    pub(crate) run: RunSettings,
    pub(crate) spawner: Spawner,
    pub(crate) lines: mpsc::Sender<Line>,
    pub(crate) digester: Digester,
}

/// How a run of an instance ended.
enum End {
    /// It was asked to.
    Asked(String),
    /// By itself, for this reason.
    Died(String),
}

/// Keeps the health of an address that somebody else serves.
pub(crate) async fn watch_upstream(slots: Arc<Slots>, health: HealthSettings) {
    match health::watch(&slots, 0, &health).await {}
}

/// Runs one slot for the life of the host.
pub(crate) async fn supervise(slots: Arc<Slots>, index: usize, plan: Arc<Plan>) {
    let mut wanted = slots.slot(index).wanted.subscribe();
    let mut backoff = Backoff::default();
    loop {
        let now = *wanted.borrow_and_update();
        match now {
            Wanted::Run => {}
            Wanted::Stop => return slots.clear(index),
            Wanted::Empty => {
                slots.clear(index);
                if wanted.changed().await.is_err() {
                    return;
                }
                continue;
            }
        }
        let started = Instant::now();
        let end = run(&slots, index, &plan, &mut wanted).await;
        slots.end(index);
        match end {
            End::Asked(exit) => slots.detail(index, |detail| {
                detail.pid = None;
                detail.last_exit = Some(exit);
            }),
            End::Died(reason) => {
                let delay = backoff.delay(&plan.run.restart, started.elapsed(), (plan.run.jitter)());
                tracing::warn!(instance = index, reason, ?delay, "a service instance died and is restarted");
                slots.detail(index, |detail| {
                    detail.pid = None;
                    detail.state = InstanceState::BackingOff;
                    detail.restarts += 1;
                    detail.last_exit = Some(reason);
                });
                tokio::select! {
                    () = sleep(delay) => {}
                    _ = wanted.wait_for(|wanted| *wanted != Wanted::Run) => {}
                }
            }
        }
    }
}

/// Starts an instance and stays with it to its end.
async fn run(
    slots: &Arc<Slots>,
    index: usize,
    plan: &Arc<Plan>,
    wanted: &mut watch::Receiver<Wanted>,
) -> End {
    let port = match free_port(slots) {
        Ok(port) => port,
        Err(error) => return End::Died(format!("no free port: {error}")),
    };
    slots.begin(index, port);
    let mut process = match plan.spawner.spawn(command(plan, port)).await {
        Ok(process) => process,
        Err(error) => return End::Died(format!("could not be started: {error}")),
    };
    slots.detail(index, |detail| detail.pid = process.id());
    renew_digest(slots, plan);
    let mut readers = JoinSet::new();
    if let Some(stdout) = process.child.stdout.take() {
        readers.spawn(read_lines(stdout, index, OutputStream::Out, plan.lines.clone()));
    }
    if let Some(stderr) = process.child.stderr.take() {
        readers.spawn(read_lines(stderr, index, OutputStream::Error, plan.lines.clone()));
    }
    let end = stay(slots, index, plan, wanted, &mut process).await;
    // Kills what is left of its group, so that nothing holds its output or its port.
    drop(process);
    let all_read = async { while readers.join_next().await.is_some() {} };
    if timeout(LAST_LINES, all_read).await.is_err() {
        tracing::debug!(instance = index, "something that a service instance started holds its output open");
    }
    end
}

/// Watches a running instance until it dies or is to end, then ends it.
async fn stay(
    slots: &Slots,
    index: usize,
    plan: &Plan,
    wanted: &mut watch::Receiver<Wanted>,
    process: &mut ServiceProcess,
) -> End {
    let mut health = std::pin::pin!(health::watch(slots, index, &plan.health));
    loop {
        let now = *wanted.borrow_and_update();
        let may_end = async {
            match now {
                Wanted::Run => std::future::pending().await,
                Wanted::Empty => _ = timeout(plan.run.stop_grace, idle(slots, index)).await,
                Wanted::Stop => {}
            }
        };
        tokio::select! {
            exit = process.child.wait() => {
                let reason = describe(exit);
                return if now == Wanted::Run { End::Died(reason) } else { End::Asked(reason) };
            }
            never = &mut health => match never {},
            _ = wanted.changed() => {}
            () = may_end => break,
        }
    }
    slots.detail(index, |detail| detail.state = InstanceState::Stopping);
    process.signal(Signal::TERM);
    if let Ok(exit) = timeout(plan.run.stop_grace, process.child.wait()).await {
        return End::Asked(describe(exit));
    }
    tracing::warn!(instance = index, grace = ?plan.run.stop_grace, "a service instance ignored SIGTERM and is killed");
    process.signal(Signal::KILL);
    End::Asked(describe(process.child.wait().await))
}

/// Waits until a draining slot has no request in flight.
async fn idle(slots: &Slots, index: usize) {
    let slot = slots.slot(index);
    while slot.requests_in_flight() > 0 {
        slot.idle.notified().await;
    }
}

fn command(plan: &Plan, port: u16) -> Command {
    let run = &plan.run;
    let parent = std::process::id().to_string();
    let launcher: Vec<&str> = match run.launcher.as_slice() {
        [] => Vec::new(),
        words => words.iter().map(String::as_str).chain([parent.as_str(), "--"]).collect(),
    };
    let mut words = launcher.into_iter().chain(run.command.iter().map(String::as_str));
    // The settings' check refuses an empty command; an empty program name fails to start.
    let mut command = Command::new(words.next().unwrap_or_default());
    command
        .args(words)
        .current_dir(&run.working_directory)
        .envs(run.environment.iter().map(|(name, value)| (name, value)))
        .env("GEODE_REGION", &plan.region)
        .env("PORT", port.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// A port that is free on every address of this machine, as services may listen on any. Another program can still take it
/// before the service does: then the service dies, and its next start gets another port.
fn free_port(slots: &Slots) -> std::io::Result<u16> {
    for _ in 0..PORT_ATTEMPTS {
        let port = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?.local_addr()?.port();
        if !slots.uses_port(port) {
            return Ok(port);
        }
    }
    Err(std::io::Error::other("the system offers only ports of other instances"))
}

fn renew_digest(slots: &Arc<Slots>, plan: &Arc<Plan>) {
    let (slots, plan) = (Arc::clone(slots), Arc::clone(plan));
    tokio::task::spawn_blocking(move || slots.set_digest(plan.digester.digest()));
}

fn describe(exit: std::io::Result<std::process::ExitStatus>) -> String {
    match exit {
        Ok(status) => status.to_string(),
        Err(error) => format!("could not be waited for: {error}"),
    }
}

//! The geode as a host: the instances of the user's service in one region.
//!
//! A geode keeps between `min` and `max` instances of the service running, by the requests in flight, and hands each
//! request to the healthy instance with the fewest of them. It restarts what dies, takes out what is unhealthy, reads
//! what instances print, and leaves no process behind. Where an orchestrator runs the service, the host only watches
//! the health of its address.
//!
//! This crate must not know what a request is (the door does), who should be served where (steering does), or how
//! `planet.toml` spells its settings (the binary translates them).

mod backoff;
mod controller;
mod digest;
mod health;
mod instance;
pub mod launch;
mod output;
mod settings;
mod slot;
mod status;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

pub use backoff::BackoffSettings;
pub use output::{OutputLine, OutputSink, OutputStream};
pub use settings::{
    HealthSettings, HostError, HostSettings, InstanceLimits, Jitter, RunSettings, ServiceSource,
    check_command,
};
pub use slot::Lease;
pub use status::{HostStatus, InstanceState, InstanceStatus};

use slot::{Slots, Wanted};

/// The service of one region: its instances, their health and their number.
///
/// Dropping a `Host` kills its instances at once; [`Host::stop`] asks them first.
pub struct Host {
    slots: Arc<Slots>,
    tasks: Mutex<Tasks>,
}

/// What runs for a host.
#[derive(Default)]
struct Tasks {
    /// One per slot; each ends when it is told to stop.
    instances: JoinSet<()>,
    /// Runs until aborted: the controller, or the watch over an upstream.
    overseer: JoinSet<()>,
    /// Completes when the last line of output has been handed over.
    output: Option<oneshot::Receiver<()>>,
}

/// How long [`Host::stop`] waits for the sink to take the last lines.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

impl Host {
    /// Starts `min` instances, or begins to watch the upstream address. Returns before any of them is ready: wait
    /// with [`Host::until`].
    ///
    /// Must be called inside a tokio runtime with time and I/O enabled.
    ///
    /// # Errors
    /// Settings that cannot work: an empty or unknown command, or limits that exclude each other.
    pub fn start(settings: HostSettings) -> Result<Self, HostError> {
        settings.check()?;
        let slots = Arc::new(Slots::new(&settings));
        let mut tasks = Tasks::default();
        match settings.service {
            ServiceSource::Upstream(_) => {
                tasks.overseer.spawn(instance::watch_upstream(Arc::clone(&slots), settings.health));
            }
            ServiceSource::Run(run) => {
                let writer = output::start_writer(settings.region.clone(), Arc::clone(&run.output))
                    .map_err(HostError::Thread)?;
                tasks.output = Some(writer.finished);
                let (limits, quiet) = (run.instances, run.quiet_before_scale_down);
                let plan = Arc::new(instance::Plan {
                    digester: digest::Digester::new(&run.command, &run.working_directory),
                    region: settings.region,
                    health: settings.health,
                    spawner: launch::Spawner::start().map_err(HostError::Thread)?,
                    lines: writer.lines,
                    run,
                });
                for index in 0..slots.len() {
                    tasks.instances.spawn(instance::supervise(Arc::clone(&slots), index, Arc::clone(&plan)));
                }
                tasks.overseer.spawn(controller::scale(Arc::clone(&slots), limits, quiet));
            }
        }
        Ok(Self { slots, tasks: Mutex::new(tasks) })
    }

    /// The healthy instance with the fewest requests in flight, or `None` if no instance is healthy.
    ///
    /// O(instances), without allocation or lock. The request counts as in flight until the lease is dropped. When
    /// instances carry more than their `in_flight`, this also asks for another one, and never waits for it.
    #[must_use]
    pub fn acquire(&self) -> Option<Lease> {
        Slots::acquire(&self.slots)
    }

    /// What every instance is doing now.
    #[must_use]
    pub fn status(&self) -> HostStatus {
        self.slots.status()
    }

    /// Waits until the status satisfies a condition, and returns that status.
    ///
    /// The condition is asked again whenever an instance changes its state (not when only requests in flight change).
    pub async fn until(&self, mut condition: impl FnMut(&HostStatus) -> bool) -> HostStatus {
        let mut changes: watch::Receiver<u64> = self.slots.changes();
        loop {
            changes.mark_unchanged();
            let status = self.slots.status();
            if condition(&status) {
                return status;
            }
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Stops every instance: SIGTERM to its process group, then SIGKILL after the grace. Returns when all are gone.
    /// No instance is acquired any more from the moment of the call.
    pub async fn stop(&self) {
        self.slots.want_all(Wanted::Stop);
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.overseer.shutdown().await;
        while tasks.instances.join_next().await.is_some() {}
        if let Some(output) = tasks.output {
            // Ends with an error when the writer's thread does, which is what is waited for.
            let _finished = timeout(LAST_OUTPUT, output).await;
        }
    }
}

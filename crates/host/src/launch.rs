//! Starting processes that do not outlive their geode.
//!
//! On Linux a child can ask to be killed when its parent dies (`PR_SET_PDEATHSIG`, prctl(2)), but it has to ask
//! itself, between fork and exec, where Rust allows no safe code. So the geode starts *itself* as a launcher, which asks
//! and then becomes the service: see [`become_service`].
//!
//! The request covers the instance's own process. What the service starts in turn is killed with its process group when the
//! host stops or restarts the instance; if the geode itself is killed, a service that starts processes of its own must end
//! them when it loses its parent (`npm start` and shell wrappers: prefer `node server.js` and `exec`).

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::sync::mpsc;

use rustix::process::{Pid, Signal, getppid, kill_process_group};
use tokio::process::{Child, Command};
use tokio::sync::oneshot;

/// Turns this process into the service: asks to be killed when `parent` dies, then executes the command in place, with
/// the same process id. Returns only if that fails.
///
/// # Errors
/// The parent is dead already, or the command cannot be executed: the error says which.
pub fn become_service(parent: u32, command: &[OsString]) -> LaunchError {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::KILL)) {
        return LaunchError::DeathSignal(error.into());
    }
    // The parent may have died before the request was made: then the signal would never come.
    if getppid().map(|pid| pid.as_raw_pid().unsigned_abs()) != Some(parent) {
        return LaunchError::Orphaned { parent };
    }
    let Some((program, arguments)) = command.split_first() else { return LaunchError::EmptyCommand };
    let error = std::process::Command::new(program).args(arguments).exec();
    LaunchError::Execute { program: program.clone(), error }
}

/// Why a process did not become the service.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The geode that started this process is gone.
    #[error("the geode with process id {parent} that started this service is gone")]
    Orphaned {
        /// Process id of the geode.
        parent: u32,
    },
    /// Nothing to execute.
    #[error("no command to execute")]
    EmptyCommand,
    /// The kernel refused the request to die with the parent.
    #[error("the kernel refused the parent-death signal: {0}")]
    DeathSignal(std::io::Error),
    /// The command cannot be executed.
    #[error("cannot execute {program:?}: {error}")]
    Execute {
        /// The program.
        program: OsString,
        /// The system's reason.
        error: std::io::Error,
    },
}

/// A thread that starts every process of a host.
///
/// The parent-death signal comes when the *thread* that forked ends (prctl(2)), and a runtime may end its threads at
/// any time; this one lives as long as somebody holds a `Spawner`, and whoever holds a [`ServiceProcess`] does.
#[derive(Clone)]
pub(crate) struct Spawner {
    requests: mpsc::Sender<(Command, oneshot::Sender<std::io::Result<Child>>)>,
}

impl Spawner {
    pub(crate) fn start() -> std::io::Result<Self> {
        let (requests, inbox) = mpsc::channel::<(Command, oneshot::Sender<std::io::Result<Child>>)>();
        let runtime = tokio::runtime::Handle::current();
        std::thread::Builder::new().name("service-parent".to_owned()).spawn(move || {
            let _entered = runtime.enter();
            for (mut command, answer) in inbox {
                // An unwanted child is dropped here, which kills it.
                let _unwanted = answer.send(command.spawn());
            }
        })?;
        Ok(Self { requests })
    }

    /// Starts a command as the leader of a new process group.
    pub(crate) async fn spawn(&self, mut command: Command) -> std::io::Result<ServiceProcess> {
        command.process_group(0).kill_on_drop(true);
        let (answer, started) = oneshot::channel();
        let gone = || std::io::Error::other("the thread that starts processes has ended");
        self.requests.send((command, answer)).map_err(|_| gone())?;
        let child = started.await.map_err(|_| gone())??;
        let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        Ok(ServiceProcess { child, group, _spawner: self.clone() })
    }
}

/// A running instance and its process group. Dropping it kills the whole group.
pub(crate) struct ServiceProcess {
    pub(crate) child: Child,
    group: Option<Pid>,
    _spawner: Spawner,
}

impl ServiceProcess {
    /// Process id of the instance, which is the id of its group too; `None` once it has been waited for.
    pub(crate) fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Sends a signal to the instance and whatever it started. A group that is gone is no error.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(group) = self.group
            && let Err(error) = kill_process_group(group, signal)
            && error != rustix::io::Errno::SRCH
        {
            tracing::warn!(%error, ?signal, group = group.as_raw_pid(), "a service's process group got no signal");
        }
    }
}

impl Drop for ServiceProcess {
    fn drop(&mut self) {
        // Also after the instance itself has ended: what it started may still hold its port.
        self.signal(Signal::KILL);
    }
}

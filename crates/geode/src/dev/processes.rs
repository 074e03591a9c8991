//! The planet's processes as the system shows them: the services of a geode, and those that outlived theirs.
//!
//! A killed geode's service dies with it (see the host's launcher), but what the service itself started does not. On Linux
//! `geode dev` asks the kernel for all of its orphaned descendants (a child subreaper, prctl(2)) and ends those that
//! carry its mark. If it is itself killed, its guard, a process of its own, does the same; other systems have no such means.

#[cfg(target_os = "linux")]
pub(crate) use linux::guard;
#[cfg(target_os = "linux")]
pub(super) use linux::{Guard, adopt, children_of, end, sweep};

/// The environment variable that every process of the planet inherits: the process id of its `geode dev`.
pub(super) const MARK: &str = "GEODE_DEV";

#[cfg(not(target_os = "linux"))]
pub(super) fn adopt() {}

#[cfg(not(target_os = "linux"))]
pub(super) fn children_of(_parent: u32) -> Vec<u32> {
    Vec::new()
}

#[cfg(not(target_os = "linux"))]
pub(super) fn sweep(_known: &[rustix::process::Pid]) {}

#[cfg(not(target_os = "linux"))]
pub(super) async fn end(_known: &[rustix::process::Pid]) {}

#[cfg(not(target_os = "linux"))]
pub(super) struct Guard;

#[cfg(not(target_os = "linux"))]
impl Guard {
    pub(super) fn start(_executable: &std::path::Path) -> std::io::Result<Self> {
        Ok(Self)
    }

    pub(super) async fn dismiss(self) {}
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn guard(_dev: u32) {}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs;
    use std::io::Read as _;
    use std::path::Path;
    use std::process::Stdio;
    use std::time::Duration;

    use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, set_child_subreaper, waitpid};

    use tokio::process::{Child, Command};

    use super::MARK;

    /// Time between two looks while waiting for deaths.
    const LOOK_INTERVAL: Duration = Duration::from_millis(5);

    /// From now on orphaned descendants become children of this process.
    pub(in super::super) fn adopt() {
        if let Err(error) = set_child_subreaper(Some(getpid())) {
            tracing::warn!(%error, "processes that a service starts may outlive it");
        }
    }

    /// Kills and buries every adopted process; true if there was none. Our own children, `known`, are left alone.
    fn sweep_once(known: &[Pid]) -> bool {
        let mut none = true;
        for pid in children_of(std::process::id()) {
            let Some(pid) = Pid::from_raw(pid.cast_signed()).filter(|pid| !known.contains(pid)) else {
                continue;
            };
            if has_mark(pid, std::process::id()) {
                none = false;
                // An error means that it is gone.
                let _ = kill_process(pid, Signal::KILL);
            }
            // A dead one has no environment any more; burying it harms nobody, whoever started it.
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        }
        none
    }

    /// Kills and buries every adopted process.
    pub(in super::super) fn sweep(known: &[Pid]) {
        sweep_once(known);
    }

    /// The same, until none is left.
    pub(in super::super) async fn end(known: &[Pid]) {
        while !sweep_once(known) {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// The process that outlives a `geode dev` that is killed, to end what that one cannot end any more.
    pub(in super::super) struct Guard(Child);

    impl Guard {
        /// Starts `geode guard` for this process. It waits for the end of its standard input, which is held open here.
        pub(in super::super) fn start(executable: &Path) -> std::io::Result<Self> {
            let guard = Command::new(executable)
                .args(["guard", &std::process::id().to_string()])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                // A terminal's signals are not for it.
                .process_group(0)
                .spawn()?;
            Ok(Self(guard))
        }

        /// Lets it end: nothing is left to guard.
        pub(in super::super) async fn dismiss(mut self) {
            drop(self.0.stdin.take());
            // An error means that it is gone.
            let _ = self.0.wait().await;
        }
    }

    /// What `geode guard` does: waits until the `geode dev` with this process id is gone, and kills every process that
    /// carries its mark.
    pub(crate) fn guard(dev: u32) {
        let mut nothing = [0; 1];
        let mut held = std::io::stdin().lock();
        while matches!(held.read(&mut nothing), Err(error) if error.kind() == std::io::ErrorKind::Interrupted)
        {
        }
        loop {
            let marked: Vec<Pid> = pids()
                .filter_map(|pid| Pid::from_raw(pid.cast_signed()))
                .filter(|pid| has_mark(*pid, dev))
                .collect();
            if marked.is_empty() {
                return;
            }
            for pid in marked {
                // An error means that it is gone.
                let _ = kill_process(pid, Signal::KILL);
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    /// Every process that there is.
    fn pids() -> impl Iterator<Item = u32> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
    }

    /// A process's children by /proc/PID/stat, whose fourth field is the parent (proc_pid_stat(5)).
    pub(in super::super) fn children_of(parent: u32) -> Vec<u32> {
        let is_child = |pid: &u32| {
            let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
            // The second field, the name, may hold anything, but ends with the last parenthesis.
            let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
            after_name.split_whitespace().nth(1).and_then(|field| field.parse().ok()) == Some(parent)
        };
        pids().filter(is_child).collect()
    }

    fn has_mark(pid: Pid, dev: u32) -> bool {
        let mark = format!("{MARK}={dev}");
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
    }
}

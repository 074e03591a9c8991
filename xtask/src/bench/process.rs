//! A measured child process: its CPU and memory from `/proc`, and its end.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A server under test; killed when dropped.
pub(crate) struct Server {
    child: Child,
}

impl Server {
    /// Starts a command whose output goes to `log`.
    pub(crate) fn start(command: &mut Command, log: &Path) -> Result<Self, String> {
        let file = std::fs::File::create(log).map_err(|error| format!("{}: {error}", log.display()))?;
        let errors = file.try_clone().map_err(|error| error.to_string())?;
        let child = command.stdin(Stdio::null()).stdout(file).stderr(errors).spawn();
        Ok(Self { child: child.map_err(|error| format!("cannot start {command:?}: {error}"))? })
    }

    /// The process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks the process to end and waits.
    pub(crate) fn stop(mut self) {
        let _ = Command::new("kill").arg("-TERM").arg(self.pid().to_string()).status();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// User and system time that a process has used so far, in seconds.
pub(crate) fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The fields after the command's name in brackets; utime and stime are the 14th and 15th of all.
    let fields =
        stat.rsplit_once(") ").map(|(_, rest)| rest.split(' ').collect::<Vec<_>>()).unwrap_or_default();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    // USER_HZ is 100 on every Linux that Rust runs on.
    (ticks(11) + ticks(12)) / 100.0
}

/// Resident memory in MiB.
pub(crate) fn resident_mib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0) / 1024.0
}

/// Polls until `ready` says so; fails after a minute, which only a hang can reach.
pub(crate) fn wait_until(what: &str, ready: impl FnMut() -> bool) -> Result<Duration, String> {
    wait_until_within(Duration::from_secs(60), what, ready)
}

/// Polls until `ready` says so, or a deadline passes.
pub(crate) fn wait_until_within(
    deadline: Duration,
    what: &str,
    mut ready: impl FnMut() -> bool,
) -> Result<Duration, String> {
    let start = Instant::now();
    while !ready() {
        if start.elapsed() > deadline {
            return Err(format!("{what} did not happen within {} s", deadline.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(start.elapsed())
}

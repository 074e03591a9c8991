//! What the host is told: the command or address of the service, and its limits.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::backoff::BackoffSettings;
use crate::digest::find_program;
use crate::output::OutputSink;

/// Everything a [`Host`](crate::Host) needs to know.
pub struct HostSettings {
    /// Name of this region; instances get it as `GEODE_REGION`.
    pub region: String,
    /// What runs the service.
    pub service: ServiceSource,
    /// How an instance's health is found out.
    pub health: HealthSettings,
}

/// Who runs the service.
#[expect(clippy::large_enum_variant, reason = "one per process, moved once")]
pub enum ServiceSource {
    /// This host does.
    Run(RunSettings),
    /// Somebody else does, and it is reached here. The host only watches its health.
    Upstream(SocketAddr),
}

/// How this host runs the service.
pub struct RunSettings {
    /// The user's command: the program, then its arguments. No shell is involved.
    pub command: Vec<String>,
    /// Put before the command as `LAUNCHER… PARENT_PID -- COMMAND…`: a program that calls
    /// [`become_service`](crate::launch::become_service), so that a killed geode leaves no service behind.
    /// Empty: the command is started directly.
    pub launcher: Vec<String>,
    /// Where the command runs.
    pub working_directory: PathBuf,
    /// Added to this process's own environment. `PORT` and `GEODE_REGION` are set by the host.
    pub environment: Vec<(String, String)>,
    /// The region's own address. An instance is looked for here first, then on 127.0.0.1 and `::1`, where many
    /// frameworks listen by default; its port is free on all of them.
    pub bind_ip: IpAddr,
    /// How many instances run.
    pub instances: InstanceLimits,
    /// How fast a dead instance comes back.
    pub restart: BackoffSettings,
    /// How long an instance may take to end after SIGTERM; also how long one that is scaled away may take to finish
    /// its requests before it gets SIGTERM.
    pub stop_grace: Duration,
    /// One instance is stopped when for this long fewer would have sufficed.
    pub quiet_before_scale_down: Duration,
    /// Where the lines go that instances print.
    pub output: OutputSink,
    /// Spreads restarts.
    pub jitter: Jitter,
}

impl RunSettings {
    /// A command with the defaults: 1 to 8 instances with 50 requests each, 10 s of grace, scaled down after a quiet
    /// minute.
    #[must_use]
    pub fn new(command: Vec<String>, bind_ip: IpAddr, output: OutputSink) -> Self {
        Self {
            command,
            launcher: Vec::new(),
            working_directory: PathBuf::from("."),
            environment: Vec::new(),
            bind_ip,
            instances: InstanceLimits::default(),
            restart: BackoffSettings::default(),
            stop_grace: Duration::from_secs(10),
            quiet_before_scale_down: Duration::from_secs(60),
            output,
            jitter: Arc::new(random_fraction),
        }
    }
}

/// A source of fractions in [0, 1).
pub type Jitter = Arc<dyn Fn() -> f64 + Send + Sync>;

/// A fraction from the system's random numbers, or the middle where the system has none.
fn random_fraction() -> f64 {
    getrandom::u32().map_or(0.5, |number| f64::from(number) / (f64::from(u32::MAX) + 1.0))
}

/// The number of instances, and the load that decides it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstanceLimits {
    /// At least so many.
    pub min: usize,
    /// At most so many.
    pub max: usize,
    /// Requests in flight per instance above which another one is started.
    pub in_flight: u32,
}

impl Default for InstanceLimits {
    fn default() -> Self {
        Self { min: 1, max: 8, in_flight: 50 }
    }
}

/// How an instance's health is found out: an HTTP GET that counts consecutive successes and failures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthSettings {
    /// The path to ask. With a path of the user's own, only a 2xx answer counts as healthy. `None` asks `/`, and any
    /// HTTP answer below 500 counts, so a service without a health page is healthy once it answers at all.
    pub path: Option<String>,
    /// Time between two probes. A new instance is probed every 50 ms until its first success.
    pub interval: Duration,
    /// How long one probe may take.
    pub timeout: Duration,
    /// Consecutive successes after which an unhealthy instance is healthy again (a new one needs a single success).
    pub up: u32,
    /// Consecutive failures after which a healthy instance is unhealthy.
    pub down: u32,
}

impl Default for HealthSettings {
    fn default() -> Self {
        Self { path: None, interval: Duration::from_secs(2), timeout: Duration::from_secs(2), up: 2, down: 3 }
    }
}

impl HostSettings {
    pub(crate) fn check(&self) -> Result<(), HostError> {
        if let Some(path) = &self.health.path
            && (!path.starts_with('/') || path.bytes().any(|byte| byte <= b' ' || byte == 0x7f))
        {
            return Err(HostError::HealthPath(path.clone()));
        }
        if self.health.up == 0 || self.health.down == 0 {
            return Err(HostError::HealthThreshold);
        }
        let ServiceSource::Run(run) = &self.service else { return Ok(()) };
        let InstanceLimits { min, max, in_flight } = run.instances;
        if min == 0 || max < min || in_flight == 0 {
            return Err(HostError::Limits { min, max, in_flight });
        }
        check_command(&run.command, &run.working_directory)
    }
}

/// Whether a command's program exists, as seen from the directory in which it would run.
///
/// # Errors
/// It does not, or the command is empty.
pub fn check_command(command: &[String], working_directory: &Path) -> Result<(), HostError> {
    let program = command.first().ok_or(HostError::EmptyCommand)?;
    let unknown = || HostError::UnknownProgram {
        program: program.clone(),
        working_directory: working_directory.to_owned(),
    };
    find_program(program, working_directory).map(|_| ()).ok_or_else(unknown)
}

/// Why a host cannot start.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// `run` holds nothing.
    #[error("the service's command is empty: give a program and its arguments, such as run = [\"./server\"]")]
    EmptyCommand,
    /// The program does not exist.
    #[error(
        "the service's program `{program}` does not exist (looked from {working_directory:?}{}): correct it, or install it",
        if program.contains('/') { "" } else { " in PATH" }
    )]
    UnknownProgram {
        /// As the user wrote it.
        program: String,
        /// Where the command would run.
        working_directory: PathBuf,
    },
    /// Limits that exclude each other.
    #[error(
        "instances = {{ min = {min}, max = {max}, in_flight = {in_flight} }} cannot work: \
         min must be at least 1, max at least min, and in_flight at least 1"
    )]
    Limits {
        /// Fewest instances.
        min: usize,
        /// Most instances.
        max: usize,
        /// Requests per instance.
        in_flight: u32,
    },
    /// Not a path.
    #[error("the health path `{0}` must begin with `/` and hold no spaces or control characters")]
    HealthPath(String),
    /// A threshold of zero would never, or always, be reached.
    #[error("health thresholds `up` and `down` must be at least 1")]
    HealthThreshold,
    /// The system gave no thread.
    #[error("the host could not start a thread: {0}; raise the limit of processes (ulimit -u)")]
    Thread(std::io::Error),
}

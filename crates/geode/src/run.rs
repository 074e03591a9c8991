//! `geode run`: reads and checks what one geode is to be, before anything of it begins, so that a mistake costs a line
//! and no side effect. What happens then is in [`life`](crate::life).

use std::fs::File;
use std::io::{IsTerminal as _, Read as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use geode_door::{NoRandomness, SessionKey};
use geode_host::HostError;
use geode_link::{Credentials, Identity};
use geode_planet::{Planet, Region, RegionName};

use crate::bundle::{self, BundleFileError};
use crate::dev;
use crate::life::{Destiny, Membership, live};
use crate::open_files;
use crate::service::{Output, Surroundings};
use crate::store::StoreError;
use crate::terminal::complain;

/// Threads that serve the door, links, gossip and admin. The store has a thread of its own.
const WORKER_THREADS: usize = 2;
/// How long requests may take to finish when the geode stops, and then its service.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// The same below `geode dev`, which waits five seconds in all.
const HELD_STOP_GRACE: Duration = Duration::from_millis(1500);
/// The least a key must hold, in bytes: the length of the hash it is used with.
const KEY_BYTES: usize = 32;
/// More of a configuration is not read, even to say how long it is. What may be in one is the planet's to say.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// Run one geode: this region's complete copy of the planet.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The same planet.toml serves every region; only --region differs. SIGTERM stops it gracefully.\n\n\
                        Examples:\n  geode run --config planet.toml --region eu-west-1\n  geode run --config \
                        planet.toml --region eu-west-1 --bundle /etc/geode/eu-west-1.bundle\n\nRUST_LOG=debug shows more."
)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// This region's bundle, which `geode init` makes. A planet of one region needs none. [default: NAME.bundle beside
    /// the configuration]
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,
    /// How log records are written to standard error.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// End when standard input ends or the parent process dies; for `geode dev`.
    #[arg(long, hide = true)]
    held: bool,
}

/// Which region of which planet.
#[derive(Debug, clap::Args)]
pub(crate) struct ConfigArgs {
    /// The planet's configuration.
    #[arg(long, value_name = "FILE", default_value = "planet.toml")]
    config: PathBuf,
    /// Which of its regions this is.
    #[arg(long, value_name = "NAME")]
    region: String,
}

impl ConfigArgs {
    /// Reads the configuration, all of whose mistakes are told at once.
    ///
    /// # Errors
    /// It cannot be read, is wrong, or has no such region.
    pub(crate) fn read(&self) -> Result<(Planet, Region), RunError> {
        let planet = read_planet(&self.config)?;
        let region = planet.regions.get(self.region.as_str()).cloned();
        let region = region.ok_or_else(|| {
            let regions: Vec<&str> = planet.regions.keys().map(RegionName::as_str).collect();
            let (wanted, file) = (&self.region, self.config.display());
            RunError::Config(format!(
                "--region: {file} has no region {wanted:?}; it has {}",
                regions.join(", ")
            ))
        })?;
        Ok((planet, region))
    }
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
pub(crate) enum RunError {
    #[error("cannot read {}, {key}: {source}", .file.display())]
    File { file: PathBuf, key: &'static str, source: std::io::Error },
    /// One line for each mistake.
    #[error("{0}")]
    Config(String),
    #[error("{0}")]
    Bundle(#[from] BundleFileError),
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
    open_files::raise_limit();
    match start(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("geode run: {error}"));
            ExitCode::from(error.exit_code())
        }
    }
}

fn start_log(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.with_target(false).with_ansi(colours()).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}

/// Colours are for terminals whose user did not decline them (no-color.org).
fn colours() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn start(args: &RunArgs) -> Result<(), RunError> {
    let (planet, region) = args.config.read()?;
    let region = region.name;
    let membership = membership(args, &planet, &region)?;
    let session_key = session_key(&planet, membership.as_ref())?;
    let system = |doing| move |source| RunError::System { doing, source };
    let surroundings = Surroundings {
        program: std::env::current_exe().map_err(system("cannot find this program"))?,
        stop_grace: if args.held { HELD_STOP_GRACE } else { STOP_GRACE },
        output: match args.log_format {
            LogFormat::Json => Output::Log,
            LogFormat::Text if args.held => Output::Plain,
            LogFormat::Text => Output::Named,
        },
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .thread_name("geode")
        .enable_all()
        .build()
        .map_err(system("cannot start threads"))?;
    runtime.block_on(live(Destiny {
        planet: Arc::new(planet),
        config_file: args.config.config.clone(),
        region,
        session_key,
        membership,
        surroundings,
    }))
}

fn read_planet(config: &Path) -> Result<Planet, RunError> {
    let mut text = String::new();
    let read = File::open(config).and_then(|file| file.take(MAX_CONFIG_BYTES).read_to_string(&mut text));
    read.map_err(|source| RunError::File {
        file: config.to_owned(),
        key: "the planet's configuration (--config)",
        source,
    })?;
    let planet = Planet::parse(&text, &config.display().to_string())
        .map_err(|errors| RunError::Config(errors.to_string()))?;
    Ok(planet)
}

/// The proof that this is its region, which a planet of more than one demands.
fn membership(args: &RunArgs, planet: &Planet, region: &RegionName) -> Result<Option<Membership>, RunError> {
    let file = args.bundle.clone().unwrap_or_else(|| bundle::default_file(&args.config.config, region));
    if planet.regions.len() == 1 && args.bundle.is_none() && !file.exists() {
        return Ok(None);
    }
    let read = bundle::read(&file, region)?;
    let identity = Identity { planet: planet.name.clone(), region: region.clone() };
    let credentials = Credentials::new(identity, &read)
        .map_err(|source| BundleFileError::Bundle { file: file.clone(), source })?;
    let session_key = read.session_key().to_vec();
    Ok(Some(Membership { credentials: Arc::new(credentials), file, session_key }))
}

/// The key that seals session tokens: that of planet.key_file, else the bundle's; alone a geode needs none but its own.
fn session_key(planet: &Planet, membership: Option<&Membership>) -> Result<SessionKey, RunError> {
    let Some(file) = &planet.key_file else {
        if let Some(membership) = membership {
            return Ok(SessionKey::new(&membership.session_key));
        }
        let mut key = [0; KEY_BYTES];
        getrandom::fill(&mut key).map_err(|error| RunError::System {
            doing: "the operating system gave no random bytes",
            source: std::io::Error::other(error.to_string()),
        })?;
        return Ok(SessionKey::new(&key));
    };
    let key = std::fs::read(file).map_err(|source| RunError::File {
        file: file.clone(),
        key: "the planet's key (planet.key_file)",
        source,
    })?;
    if key.len() < KEY_BYTES {
        let (file, length) = (file.display(), key.len());
        return Err(RunError::Config(format!(
            "planet.key_file: {file} holds {length} bytes; make one with `head -c {KEY_BYTES} /dev/urandom > {file}`"
        )));
    }
    Ok(SessionKey::new(&key))
}

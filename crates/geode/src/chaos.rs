//! `geode chaos`: the command line of what can befall a planet that `geode dev` runs.

use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use http::{Method, StatusCode};

use crate::ask::{AskError, ask};
use crate::dev::{ChaosState, DEFAULT_DATA, RUNNING_FILE, Ready, Regions};
use crate::terminal::{complain, say};

/// A revived geode reads its log again before the answer comes.
const PATIENCE: Duration = Duration::from_secs(150);

/// Let something befall the planet of `geode dev`, and undo it.
#[derive(Debug, Subcommand)]
pub(crate) enum ChaosCommand {
    /// Kill a region's geode and its service, as a power cut would (SIGKILL). It stays down until it is revived.
    Kill {
        /// The region.
        region: String,
    },
    /// Start a killed geode again, and wait until it is ready.
    Revive {
        /// The region.
        region: String,
    },
    /// Cut the network between two regions, or between one and all others. The internet still reaches both sides.
    Partition {
        /// The region that is cut off.
        region: String,
        /// From this one only.
        other: Option<String>,
    },
    /// Undo partitions: between two regions, of one with all others, or all of them.
    Heal {
        /// The region that is joined again; all without it.
        region: Option<String>,
        /// With this one only.
        other: Option<String>,
    },
    /// Show which geodes run and who is cut from whom.
    Status,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum ChaosError {
    #[error(
        "no planet of `geode dev` runs in {directory}; start one, or name its control address with --admin"
    )]
    NotRunning { directory: String },
    #[error(
        "{0:?} is no address of `geode dev`; give the `control` of its ready file, such as http://127.0.0.1:7102"
    )]
    Address(String),
    #[error("no planet of `geode dev` answers at {address}: {source}")]
    NoAnswer { address: SocketAddr, source: AskError },
    #[error("{address} is not the control address of `geode dev` (it answered {status})")]
    NotControl { address: SocketAddr, status: StatusCode },
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Failed(String),
}

impl ChaosError {
    /// 2 when the command has to change or there is nobody to ask, 1 when it failed.
    fn exit_code(&self) -> u8 {
        if matches!(self, Self::Failed(_)) { 1 } else { 2 }
    }
}

/// Runs the command against the planet at `admin`, else at the one that runs in the default data directory. Prints
/// the planet's state afterwards, with `json` as one line of JSON. Exit code 2: the command is wrong, or there is nobody
/// to ask; 1: it failed.
pub(crate) fn run(command: &ChaosCommand, admin: Option<&str>, json: bool) -> ExitCode {
    match execute(command, admin) {
        Ok(state) => {
            let text =
                if json { serde_json::to_string(&state).unwrap_or_default() } else { describe(&state) };
            match say(&format!("{}\n", text.trim_end())) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => failed(&ChaosError::Failed(format!("the answer cannot be written: {error}"))),
            }
        }
        Err(error) => {
            if json {
                // What cannot be written here stands on standard error all the same.
                let _ = say(&format!("{}\n", serde_json::json!({ "error": error.to_string() })));
            }
            failed(&error)
        }
    }
}

fn failed(error: &ChaosError) -> ExitCode {
    complain(&format!("geode chaos: {error}"));
    ExitCode::from(error.exit_code())
}

fn execute(command: &ChaosCommand, admin: Option<&str>) -> Result<ChaosState, ChaosError> {
    let address = admin.map_or_else(|| running_in(Path::new(DEFAULT_DATA)), parse_address)?;
    let named = |regions: &[&Option<String>]| regions.iter().filter_map(|region| (*region).clone()).collect();
    let (path, regions): (_, Vec<String>) = match command {
        ChaosCommand::Kill { region } => ("/kill", vec![region.clone()]),
        ChaosCommand::Revive { region } => ("/revive", vec![region.clone()]),
        ChaosCommand::Partition { region, other } => ("/partition", named(&[&Some(region.clone()), other])),
        ChaosCommand::Heal { region, other } => ("/heal", named(&[region, other])),
        ChaosCommand::Status => ("/state", Vec::new()),
    };
    let (method, body) = match command {
        ChaosCommand::Status => (Method::GET, None),
        _ => (Method::POST, serde_json::to_string(&Regions { regions }).ok()),
    };
    let failed = |error: std::io::Error| ChaosError::Failed(error.to_string());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let answer = runtime.block_on(ask(address, method, path, body, PATIENCE));
    let (status, body) = answer.map_err(|source| ChaosError::NoAnswer { address, source })?;
    if status == StatusCode::OK {
        return serde_json::from_slice(&body).map_err(|_| ChaosError::NotControl { address, status });
    }
    let answer: Option<serde_json::Value> = serde_json::from_slice(&body).ok();
    let text = answer.as_ref().and_then(|answer| answer.get("error")?.as_str());
    Err(match text {
        None => ChaosError::NotControl { address, status },
        Some(text) if status.is_client_error() => ChaosError::Usage(text.to_owned()),
        Some(text) => ChaosError::Failed(text.to_owned()),
    })
}

/// The control address of the planet that runs in a data directory.
fn running_in(directory: &Path) -> Result<SocketAddr, ChaosError> {
    let not_running = || ChaosError::NotRunning { directory: directory.display().to_string() };
    let text = std::fs::read_to_string(directory.join(RUNNING_FILE)).map_err(|_| not_running())?;
    let ready: Ready = serde_json::from_str(&text).map_err(|_| not_running())?;
    parse_address(&ready.control)
}

/// `http://127.0.0.1:7102`, also without the scheme.
fn parse_address(text: &str) -> Result<SocketAddr, ChaosError> {
    let address = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
    address.parse().map_err(|_| ChaosError::Address(text.to_owned()))
}

fn describe(state: &ChaosState) -> String {
    let width = state.regions.iter().map(|region| region.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for region in &state.regions {
        let process = region.pid.map(|pid| format!("process {pid}")).unwrap_or_default();
        let services: Vec<String> = region.service_pids.iter().map(ToString::to_string).collect();
        let services =
            if services.is_empty() { String::new() } else { format!(", service {}", services.join(" ")) };
        text.push_str(format!("{:width$}  {:8}  {process}{services}", region.name, region.phase).trim_end());
        text.push('\n');
    }
    if state.partitions.is_empty() {
        text.push_str("no partition\n");
    }
    for (a, b) in &state.partitions {
        text.push_str(&format!("{a} and {b} are cut from each other\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dev::RegionChaos;

    #[test]
    fn a_state_reads_like_this() {
        let region = |name: &str, phase: &str, pid, service_pids| RegionChaos {
            name: name.to_owned(),
            phase: phase.to_owned(),
            pid,
            service_pids,
        };
        let regions = vec![
            region("us-east-1", "ready", Some(71), vec![72, 73]),
            region("eu-west-1", "killed", None, vec![]),
        ];
        let quiet = ChaosState { regions, partitions: Vec::new() };
        assert_eq!(
            describe(&quiet),
            "us-east-1  ready     process 71, service 72 73\neu-west-1  killed\nno partition\n"
        );
        let cut = ChaosState { partitions: vec![("a".to_owned(), "b".to_owned())], ..quiet };
        assert!(describe(&cut).ends_with("a and b are cut from each other\n"));
    }

    #[test]
    fn addresses_are_taken_with_and_without_scheme() {
        let wanted: SocketAddr = "127.0.0.1:7102".parse().unwrap();
        for text in ["http://127.0.0.1:7102", "http://127.0.0.1:7102/", "127.0.0.1:7102"] {
            assert_eq!(parse_address(text).unwrap(), wanted);
        }
        let error = parse_address("https://example.org").unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert_eq!(
            error.to_string(),
            "\"https://example.org\" is no address of `geode dev`; give the `control` of its ready file, such as \
             http://127.0.0.1:7102"
        );
    }

    #[test]
    fn where_nothing_runs_the_message_says_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let error = running_in(directory.path()).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().ends_with("start one, or name its control address with --admin"));
    }
}

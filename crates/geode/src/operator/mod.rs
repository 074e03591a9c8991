//! The operator's side of the command line: asks any geode of a planet over its admin address, and says plainly
//! whether the answer is good.

mod admin;
mod backup;
mod conflicts;
mod explain;
mod moment;
mod region;
pub(crate) mod status;
pub(crate) mod verify;

pub(crate) use admin::{Admin, AdminArgs};
pub(crate) use backup::{BackupArgs, RestoreArgs, backup, restore};
pub(crate) use conflicts::{ConflictsArgs, conflicts};
pub(crate) use explain::{ExplainArgs, explain};
pub(crate) use region::{RegionArgs, RepairArgs, region, repair};
pub(crate) use status::{StatusArgs, status};
pub(crate) use verify::{VerifyArgs, verify};

use crate::terminal::say;

/// How a command ended: the exit code of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The answer is good.
    Good,
    /// There is an answer, and it is bad: drift, divergence, something unhealthy.
    Bad,
    /// There is no answer: wrong usage or configuration, or nobody to ask.
    Failed,
    /// `verify` only: the regions never held the same writes while it looked, so nothing could be compared.
    Undecided,
}

impl From<Outcome> for std::process::ExitCode {
    fn from(outcome: Outcome) -> Self {
        Self::from(match outcome {
            Outcome::Good => 0,
            Outcome::Bad => 1,
            Outcome::Failed => 2,
            Outcome::Undecided => 3,
        })
    }
}

/// Why there is no answer, in one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OperatorError {
    #[error(
        "no geode to ask: give --admin URL or set GEODE_ADMIN, or run this where `geode dev` keeps its .geode/ \
         (looked for {0})"
    )]
    NoAdmin(std::path::PathBuf),
    #[error("{file} does not name a running planet: {reason}")]
    Running { file: std::path::PathBuf, reason: String },
    #[error("\"{0}\" is no admin address: give one like http://127.0.0.1:7401")]
    Url(String),
    #[error("no geode answers at {0}: is the planet running?")]
    Silent(String),
    #[error("{0}")]
    Refused(String),
    #[error("the answer of {url} is not understood ({reason}): is it a geode of this release?")]
    Garbled { url: String, reason: String },
    #[error("the answer cannot be written: {0}")]
    Output(#[from] std::io::Error),
}

/// Prints a value as JSON, for `--json`.
///
/// # Errors
/// As [`say`].
fn say_json(value: &impl serde::Serialize) -> std::io::Result<()> {
    // Serialising these types cannot fail: their keys are strings.
    say(&(serde_json::to_string_pretty(value).unwrap_or_default() + "\n"))
}

//! `geode backup` and `geode restore`: a region's rows in a file, and a region that begins with them.

use std::fs::File;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use geode_embedded::{BackupSummary, RestoreError, check_backup};
use http_body_util::BodyExt as _;

use super::{AdminArgs, OperatorError, Outcome, say_json};
use crate::run::{ConfigArgs, RunError};
use crate::terminal::say;

/// How often a terminal is told how far it is.
const PROGRESS: Duration = Duration::from_millis(500);

/// Options of `geode backup`.
#[derive(Debug, clap::Args)]
pub(crate) struct BackupArgs {
    /// Where to; not there yet.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Options of `geode restore`.
#[derive(Debug, clap::Args)]
pub(crate) struct RestoreArgs {
    /// What `geode backup` wrote.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    config: ConfigArgs,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
}

/// Why there is no backup, or nothing was restored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BackupError {
    #[error("{0}")]
    Operator(#[from] OperatorError),
    #[error("{0}")]
    Config(#[from] RunError),
    #[error("{0}")]
    Restore(#[from] RestoreError),
    #[error("{} is there already: choose another name", .0.display())]
    Exists(PathBuf),
    #[error("{}: {source}", .file.display())]
    File { file: PathBuf, source: std::io::Error },
    #[error("the geode broke off the backup ({0}); its log says why. Nothing was kept")]
    BrokenOff(String),
}

#[derive(serde::Serialize)]
struct Report<'r> {
    file: &'r Path,
    planet: String,
    region: String,
    time_us: u64,
    keys: u64,
    bytes: u64,
}

impl<'r> Report<'r> {
    fn new(file: &'r Path, summary: BackupSummary) -> Self {
        let BackupSummary { planet, region, time_us, keys, bytes } = summary;
        Self { file, planet, region, time_us, keys, bytes }
    }
}

/// Takes a backup of the region that is asked, while it goes on.
///
/// # Errors
/// No geode answers, it breaks off, or the file cannot be written. No file is left then.
pub(crate) async fn backup(args: BackupArgs) -> Result<Outcome, BackupError> {
    let file = &args.file;
    if file.exists() {
        return Err(BackupError::Exists(file.clone()));
    }
    let mut draft = file.clone().into_os_string();
    draft.push(".part");
    let draft = PathBuf::from(draft);
    let taken = take(&args, &draft).await;
    if taken.is_err() {
        // What is not whole is of no use to anybody.
        let _ = std::fs::remove_file(&draft);
    }
    let summary = taken?;
    std::fs::rename(&draft, file).map_err(|source| BackupError::File { file: file.clone(), source })?;
    let report = Report::new(file, summary);
    if args.admin.json {
        say_json(&report).map_err(OperatorError::Output)?;
    } else {
        let Report { region, keys, bytes, .. } = &report;
        say(&format!("{keys} keys of {region}, {bytes} bytes, are in {}\n", file.display()))
            .map_err(OperatorError::Output)?;
    }
    Ok(Outcome::Good)
}

async fn take(args: &BackupArgs, draft: &Path) -> Result<BackupSummary, BackupError> {
    let failed = |source| BackupError::File { file: draft.to_owned(), source };
    let mut body = args.admin.find().await?.stream("/v1/backup").await?;
    let mut file = File::create(draft).map_err(failed)?;
    let shows = std::io::stderr().is_terminal() && !args.admin.json;
    let (mut bytes, mut shown) = (0, Instant::now());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| BackupError::BrokenOff(error.to_string()))?;
        let Some(data) = frame.data_ref() else { continue };
        file.write_all(data).map_err(failed)?;
        bytes += data.len();
        if shows && shown.elapsed() >= PROGRESS {
            shown = Instant::now();
            let _ = write!(std::io::stderr(), "\r{} MiB", bytes >> 20);
        }
    }
    if shows && bytes >> 20 > 0 {
        let _ = writeln!(std::io::stderr());
    }
    file.sync_all().map_err(failed)?;
    Ok(check_backup(draft)?)
}

/// Makes a region's empty data directory one that begins with a backup.
///
/// # Errors
/// The configuration, the file or the directory is not what it must be. Nothing is changed then.
pub(crate) async fn restore(args: RestoreArgs) -> Result<Outcome, BackupError> {
    let (planet, region) = args.config.read()?;
    let data = &region.settings.data;
    let summary = geode_embedded::restore(&args.file, data, &planet.name)?;
    let report = Report::new(&args.file, summary);
    if args.json {
        say_json(&report).map_err(OperatorError::Output)?;
    } else {
        let Report { region: source, keys, .. } = &report;
        say(&format!(
            "{} begins with {keys} keys of {source} when it is started: it gets what the others did since, or is the first \
             of an empty planet\n",
            region.name
        ))
        .map_err(OperatorError::Output)?;
    }
    Ok(Outcome::Good)
}

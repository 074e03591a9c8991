//! Backups: a snapshot in a file, taken while the region goes on; and a region that begins with one.
//!
//! A restored region is a new writer that has joined an old snapshot: what the planet did since, it fetches like any region
//! that was away, so no deletion is undone; and what its predecessors wrote is closed like after any crash, so no name is
//! used twice. A backup that holds what the planet agreed to go on without is refused by the others, in words.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tokio::runtime;

use super::check::Check;
use super::format::{self, Blocks};
use super::join::{self, Manner};
use super::source::Source;
use super::staging::{self, Staged};
use super::{DIRECTORY, remove};
use crate::engine::Embedded;

/// Names the snapshot with which a region is to begin.
const RESTORE: &str = "restore";

/// A backup that is being taken.
#[derive(Debug)]
pub struct Backup {
    source: Source,
    begun: bool,
}

impl Backup {
    pub(crate) fn new(surroundings: super::Surroundings, runtime: runtime::Handle) -> Self {
        Self { source: Source::new(surroundings, runtime, Vec::new()), begun: false }
    }

    /// The next bytes of the file, a few hundred KiB or one large key; `None` at its end. Blocks, on the data thread and on
    /// the disk.
    ///
    /// # Errors
    /// The region stopped, lost its log's beginning meanwhile, or is not whole itself.
    pub fn next_bytes(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut out = Vec::new();
        if !std::mem::replace(&mut self.begun, true) {
            out.extend_from_slice(&format::file_head());
        }
        while out.is_empty() && !self.source.is_done() {
            self.source.read(&mut out, |_, _| {})?;
        }
        Ok((!out.is_empty()).then_some(out))
    }
}

/// What a backup is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupSummary {
    /// The planet's name.
    pub planet: String,
    /// The region that was read.
    pub region: String,
    /// What it held is as of this time, in microseconds since 1970, or a little later.
    pub time_us: u64,
    /// Keys, those of the planet's own books included.
    pub keys: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

/// Why a backup cannot be restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// There is something already.
    #[error(
        "{} is not empty: a backup is restored into an empty data directory only; move it away, it may hold writes that no \
         backup has", .0.display()
    )]
    NotEmpty(PathBuf),
    /// The file is no backup, or not whole.
    #[error("{} cannot be restored: {reason}; nothing was changed", .file.display())]
    Unusable {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The system refused something.
    #[error("{}: {source}", .path.display())]
    Io {
        /// What was touched.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Reads and checks a whole backup. Linear in the file.
///
/// # Errors
/// [`RestoreError::Unusable`]
pub fn check_backup(file: &Path) -> Result<BackupSummary, RestoreError> {
    read(file).map(|(summary, _)| summary).map_err(|error| {
        let reason = match error.kind() {
            io::ErrorKind::NotFound => "there is no such file".to_owned(),
            _ => error.to_string(),
        };
        RestoreError::Unusable { file: file.to_owned(), reason }
    })
}

fn read(file: &Path) -> io::Result<(BackupSummary, u64)> {
    let mut blocks = Blocks::new(File::open(file)?)?;
    let mut check = Check::default();
    while let Some(block) = blocks.next()? {
        check.take(&block, None).map_err(format::invalid)?;
    }
    let (Some(begin), Some(_)) = (check.begin(), check.end()) else {
        return Err(format::invalid("it ends early or is damaged"));
    };
    let summary = BackupSummary {
        planet: begin.planet.clone(),
        region: begin.source.region.to_string(),
        time_us: begin.clock.0,
        keys: check.keys(),
        bytes: blocks.position,
    };
    Ok((summary, check.snapshot()))
}

/// Makes `data` the data directory of a region of `planet` that begins with a backup. The region starts as any other.
///
/// # Errors
/// [`RestoreError`]; then the directory is as it was.
pub fn restore(file: &Path, data: &Path, planet: &str) -> Result<BackupSummary, RestoreError> {
    let io_error = |path: &Path| {
        let path = path.to_owned();
        move |source| RestoreError::Io { path, source }
    };
    if data.exists() && fs::read_dir(data).map_err(io_error(data))?.next().is_some() {
        return Err(RestoreError::NotEmpty(data.to_owned()));
    }
    let summary = check_backup(file)?;
    if summary.planet != planet {
        let reason = format!("it is of planet \"{}\", not of \"{planet}\"", summary.planet);
        return Err(RestoreError::Unusable { file: file.to_owned(), reason });
    }
    let directory = data.join(DIRECTORY);
    place(file, &directory)
        .inspect_err(|_| {
            // What was made here is no data directory.
            let _ = fs::remove_dir_all(&directory);
        })
        .map_err(io_error(&directory))?;
    Ok(summary)
}

fn place(file: &Path, directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let (_, id) = read(file)?;
    let path = staging::path(directory, id);
    fs::copy(file, &path)?;
    File::open(&path)?.sync_all()?;
    // It counts from here on.
    let mut marker = File::create(directory.join(RESTORE))?;
    writeln!(marker, "{id:016x}")?;
    marker.sync_all()?;
    File::open(directory)?.sync_all()
}

/// The snapshot with which a region is to begin, if it is to begin with one.
pub(crate) fn marked(directory: &Path) -> io::Result<Option<u64>> {
    match fs::read_to_string(directory.join(RESTORE)) {
        Ok(text) => u64::from_str_radix(text.trim(), 16)
            .map(Some)
            .map_err(|_| format::invalid("the mark of a restored backup is damaged")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl Embedded {
    /// Begins with a backup if this is its first start after one was restored. What the planet did since comes over links.
    pub(crate) fn begin_with_backup(&mut self) -> io::Result<()> {
        let directory = self.config.data.join(DIRECTORY);
        let Some(id) = marked(&directory)? else { return Ok(()) };
        self.begins_behind()?;
        // If it was joined already, only the mark is left.
        if self.snapshots.joined != Some(id) && staging::path(&directory, id).exists() {
            let (begin, end) = join::read_ends(&staging::path(&directory, id))?;
            self.begin_join(&Staged { id, begin, end }, Manner::Join)?;
            while self.step_join() && self.is_applying() {}
            if self.replica.is_applying_snapshot() {
                return Err(format::invalid("the backup cannot be read"));
            }
        }
        self.core.flush().map_err(io::Error::other)?;
        self.core.log.sync().sync_now()?;
        remove(&directory.join(RESTORE));
        Ok(())
    }
}

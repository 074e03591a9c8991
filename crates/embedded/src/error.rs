//! Why a data directory cannot be opened. Each message is one line that says what to do.

use std::io;
use std::path::{Path, PathBuf};

/// Why an engine did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process holds the lock.
    #[error("{} is in use by another geode; stop it or choose another data directory", .0.display())]
    InUse(PathBuf),
    /// The directory belongs to another planet.
    #[error("{} holds data of planet \"{found}\", not of \"{expected}\"; choose another data directory", .path.display())]
    OtherPlanet {
        /// The data directory.
        path: PathBuf,
        /// Whose data it is.
        found: String,
        /// Who asked.
        expected: String,
    },
    /// The directory belongs to another region.
    #[error("{} holds data of region {found}, not of {expected}; choose another data directory", .path.display())]
    OtherRegion {
        /// The data directory.
        path: PathBuf,
        /// Whose data it is.
        found: String,
        /// Who asked.
        expected: String,
    },
    /// Written by a release that this one does not know.
    #[error("{} has format {found}, this release knows up to {known}; run a newer geode", .path.display())]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The newest format known here.
        known: u64,
    },
    /// A part of the log that is known to have been on disk is not what was written.
    #[error(
        "{} is damaged at byte {offset}, in a part that was safely on disk ({reason}); the disk may be failing. \
         Nothing was changed. To rebuild this region from its peers, move {} away and start again",
        .path.display(), .data.display()
    )]
    Damaged {
        /// The log segment.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong there.
        reason: String,
        /// The data directory.
        data: PathBuf,
    },
    /// The checkpoint is not what was written, and the log alone is not enough to do without it.
    #[error(
        "{} cannot be used ({reason}), and the log no longer reaches back to its beginning. Nothing was changed. To \
         rebuild this region from its peers, move {} away and start again",
        .path.display(), .data.display()
    )]
    CheckpointDamaged {
        /// The checkpoint's file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// The data directory.
        data: PathBuf,
    },
    /// A snapshot that the log says was joined cannot be read, and nothing else holds what it said.
    #[error(
        "{} cannot be used ({source}), and the log says that it was joined. Nothing was changed. To rebuild this region from \
         its peers, move {} away and start again",
        .path.display(), .data.display()
    )]
    SnapshotDamaged {
        /// The snapshot's file.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
        /// The data directory.
        data: PathBuf,
    },
    /// The system refused something.
    #[error(
        "{}: {source}. Nothing was changed; see to the disk, or to who may read and write there, and start again",
        .path.display()
    )]
    Io {
        /// What was touched.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl OpenError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        |source| Self::Io { path: path.to_owned(), source }
    }
}

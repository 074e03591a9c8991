//! Why the log takes nothing now, in the words in which clients and operators hear it.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// What keeps the log from taking more. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    kind: Kind,
    directory: Arc<str>,
    /// What the system said.
    error: Arc<str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// There is no room; other files are as they were.
    Full,
    /// The system refuses to write.
    Failing,
    /// It could not force onto the disk what it was given, and what was given is not in other files yet.
    Unsynced,
    /// What was written is lost: only a start from what is left can tell what that is.
    Lost,
}

impl Trouble {
    /// What an error of the log in `directory` means.
    pub(crate) fn of(error: &io::Error, directory: &Path) -> Self {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        let full = matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge);
        Self::new(if full { Kind::Full } else { Kind::Failing }, error, directory)
    }

    /// What a failed fsync means until what it should have written is on disk in new files.
    pub(crate) fn unsynced(error: &str, directory: &Path) -> Self {
        Self::new(Kind::Unsynced, &error, directory)
    }

    /// The log cannot go on in this process.
    pub(crate) fn lost(error: &str, directory: &Path) -> Self {
        Self::new(Kind::Lost, &error, directory)
    }

    fn new(kind: Kind, error: &dyn fmt::Display, directory: &Path) -> Self {
        Self { kind, directory: directory.display().to_string().into(), error: error.to_string().into() }
    }

    /// Whether only another start can help.
    pub(crate) fn is_final(&self) -> bool {
        self.kind == Kind::Lost
    }

    /// Whether the system failed to take what was written, for another reason than room.
    pub(crate) fn is_write_failure(&self) -> bool {
        self.kind == Kind::Failing
    }

    /// What those hear whose write was executed and did not get into the log.
    pub(crate) fn doubt(&self) -> String {
        let Self { directory, error, .. } = self;
        format!(
            "DISK the log in {directory} did not take this write ({error}): it may or may not happen; read before you \
             send it again"
        )
    }
}

impl std::error::Error for Trouble {}

/// What those hear whose write is refused.
impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, directory, error } = self;
        match kind {
            Kind::Full => write!(
                f,
                "DISK there is no room for the log in {directory} ({error}): writes are refused and reads go on; free some \
                 space there, and writes go on by themselves"
            ),
            Kind::Failing => write!(
                f,
                "DISK the log in {directory} cannot be written ({error}): writes are refused and reads go on; see to that \
                 disk, and writes go on by themselves once it works"
            ),
            Kind::Unsynced => write!(
                f,
                "DISK the log in {directory} could not be forced onto the disk ({error}): writes are refused and reads go \
                 on while it is written into new files; see to that disk, and writes go on by themselves once that is done"
            ),
            Kind::Lost => write!(
                f,
                "DISK the log in {directory} lost what was not yet on disk ({error}): this region has to start again, and \
                 fetches back from its peers what they have"
            ),
        }
    }
}

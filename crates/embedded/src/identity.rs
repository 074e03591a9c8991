//! Who wrote the data in a directory, and whether it can be proven that all of it is still there.
//!
//! `identity.json` stands beside the log and is replaced atomically. It records what a later start compares: the
//! incarnation, the boot of the machine, the files of the log by inode and birth, the fsync mode, and the mark of a
//! clean stop.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, FlockOperation, StatxFlags};
use serde::{Deserialize, Serialize};

use crate::config::{Config, FsyncMode};
use crate::error::OpenError;

/// The format that this release writes.
const FORMAT: u64 = 1;
const FILE: &str = "identity.json";

/// The content of `identity.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) format: u64,
    pub(crate) planet: String,
    pub(crate) region: String,
    /// 16 hexadecimal digits.
    pub(crate) incarnation: String,
    /// The boot of the machine in which the last run took place, if the system tells.
    pub(crate) boot: Option<String>,
    /// The mode of the last run.
    pub(crate) fsync: String,
    /// A write or an fsync failed in the last run, or a start found that its writer cannot be continued.
    pub(crate) failed: bool,
    /// The length of the log at a clean stop; consumed at the next start.
    pub(crate) clean_stop: Option<u64>,
    /// The region began with nothing, or a backup, and has not caught up with all others since. Releases that do not say so
    /// did not know.
    #[serde(default)]
    pub(crate) behind: bool,
    pub(crate) segments: Vec<SegmentFile>,
}

/// What tells a log file from its copies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SegmentFile {
    pub(crate) base: u64,
    pub(crate) device: String,
    pub(crate) inode: u64,
    /// Nanoseconds since the Unix epoch; zero where the file system does not tell.
    pub(crate) birth_ns: u64,
}

/// The file while its engine runs: the data thread and the sync thread write it.
#[derive(Debug)]
pub(crate) struct IdentityFile {
    data: PathBuf,
    identity: Mutex<Identity>,
}

/// Only the part of the file whose meaning never changes.
#[derive(Deserialize)]
struct AnyFormat {
    format: u64,
}

impl Identity {
    pub(crate) fn new(config: &Config, incarnation: u64) -> Self {
        Self {
            format: FORMAT,
            planet: config.planet.clone(),
            region: config.region.clone(),
            incarnation: format!("{incarnation:016x}"),
            boot: boot_id(),
            fsync: config.fsync.name().to_owned(),
            failed: false,
            clean_stop: None,
            behind: false,
            segments: Vec::new(),
        }
    }

    /// Reads the file of a data directory; `None` if there is none or it is not whole, which proves nothing.
    pub(crate) fn read(config: &Config) -> Result<Option<Self>, OpenError> {
        let path = config.data.join(FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(OpenError::Io { path, source }),
        };
        if let Ok(AnyFormat { format }) = serde_json::from_slice(&bytes)
            && format > FORMAT
        {
            return Err(OpenError::NewerFormat { path, found: format, known: FORMAT });
        }
        let Ok(identity) = serde_json::from_slice::<Self>(&bytes) else { return Ok(None) };
        if identity.planet != config.planet {
            let (found, expected) = (identity.planet, config.planet.clone());
            return Err(OpenError::OtherPlanet { path: config.data.clone(), found, expected });
        }
        if identity.region != config.region {
            let (found, expected) = (identity.region, config.region.clone());
            return Err(OpenError::OtherRegion { path: config.data.clone(), found, expected });
        }
        Ok(Some(identity))
    }

    /// Replaces the file atomically. With `durable` it is on disk afterwards; otherwise in the kernel, which is enough
    /// as long as the machine stays up.
    pub(crate) fn write(&self, data: &Path, durable: bool) -> io::Result<()> {
        let (path, draft) = (data.join(FILE), data.join("identity.json.new"));
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        let mut file = File::create(&draft)?;
        file.write_all(&bytes)?;
        if durable {
            file.sync_all()?;
        }
        fs::rename(&draft, &path)?;
        if durable {
            File::open(data)?.sync_all()?;
        }
        Ok(())
    }

    /// Whether the last run's writer may be continued, given a log that is whole (or was only cut short by the end of
    /// the file) and ends at `end`; otherwise why not.
    pub(crate) fn proves(
        &self,
        log_incarnation: u64,
        files: &[SegmentFile],
        end: u64,
    ) -> Result<(), &'static str> {
        if self.incarnation != format!("{log_incarnation:016x}") {
            return Err("the log and its identity name different incarnations");
        }
        // The oldest segments may have been removed after they were recorded, or be about to be; that the log is whole
        // from where it is needed, the replay has seen.
        let base = |files: &[SegmentFile]| files.first().map_or(0, |file| file.base);
        let from = base(files).max(base(&self.segments));
        let recorded = &self.segments[self.segments.partition_point(|file| file.base < from)..];
        let files = &files[files.partition_point(|file| file.base < from)..];
        // A segment may have been begun and not yet recorded when the process was killed.
        let unrecorded = files.len().checked_sub(recorded.len());
        if recorded.is_empty() || !files.starts_with(recorded) || unrecorded.is_none_or(|files| files > 1) {
            return Err("the log files are not the ones that were written");
        }
        if self.failed {
            return Err("a write failed in the last run, or a start did not come to its end");
        }
        let clean = self.clean_stop == Some(end);
        if clean || self.is_of_this_boot() || self.fsync == FsyncMode::Always.name() {
            Ok(())
        } else {
            Err("the machine stopped without a clean stop of this region")
        }
    }
}

impl IdentityFile {
    pub(crate) fn new(data: &Path, identity: Identity) -> Self {
        Self { data: data.to_owned(), identity: Mutex::new(identity) }
    }

    /// Records a change, like [`Identity::write`].
    pub(crate) fn record(&self, durable: bool, change: impl FnOnce(&mut Identity)) -> io::Result<()> {
        let mut identity = self.lock();
        change(&mut identity);
        identity.write(&self.data, durable)
    }

    pub(crate) fn is_behind(&self) -> bool {
        self.lock().behind
    }

    /// Records that nothing written since can be trusted; if even that cannot be written, takes the proof away.
    pub(crate) fn distrust(&self) {
        let mut identity = self.lock();
        if std::mem::replace(&mut identity.failed, true) {
            return;
        }
        if identity.write(&self.data, true).is_err() {
            // The disk is failing; a missing file proves nothing either, which is what is wanted.
            let _ = fs::remove_file(self.data.join(FILE));
        }
    }

    /// Records that all that was written is on disk after all, in these files.
    pub(crate) fn trust(&self, segments: Vec<SegmentFile>) -> io::Result<()> {
        let mut identity = self.lock();
        let trusted = Identity { failed: false, segments, ..identity.clone() };
        trusted.write(&self.data, true)?;
        *identity = trusted;
        Ok(())
    }

    /// Takes the proof away altogether.
    pub(crate) fn forget(&self) {
        self.lock().failed = true;
        let _ = fs::remove_file(self.data.join(FILE));
    }

    fn lock(&self) -> MutexGuard<'_, Identity> {
        // What a panic left behind is still an identity.
        self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Identity {
    /// Whether the machine stayed up since the last run.
    pub(crate) fn is_of_this_boot(&self) -> bool {
        self.boot.is_some() && self.boot == boot_id()
    }
}

impl SegmentFile {
    pub(crate) fn of(base: u64, path: &Path) -> io::Result<Self> {
        let mask = StatxFlags::INO | StatxFlags::BTIME;
        let stat = rustix::fs::statx(rustix::fs::CWD, path, AtFlags::empty(), mask)?;
        let birth = stat.stx_btime;
        let birth_ns = (birth.tv_sec.max(0) as u64).saturating_mul(1_000_000_000) + u64::from(birth.tv_nsec);
        let device = format!("{}:{}", stat.stx_dev_major, stat.stx_dev_minor);
        Ok(Self { base, device, inode: stat.stx_ino, birth_ns })
    }
}

/// The lock on a data directory; the kernel releases it when the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
}

impl Lock {
    pub(crate) fn take(data: &Path) -> Result<Self, OpenError> {
        let path: PathBuf = data.join("lock");
        let file = File::create(&path).map_err(OpenError::io(&path))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { file }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::InUse(data.to_owned())),
            Err(error) => Err(OpenError::Io { path, source: error.into() }),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // A child process that another thread has just forked shares the open file until it executes its program:
        // closing alone would leave the directory locked until then.
        let _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
    }
}

/// What names this boot of the machine, if the system tells.
fn boot_id() -> Option<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_is_dropped_is_free_although_a_child_process_shares_its_file() {
        let data = tempfile::tempdir().unwrap();
        let lock = Lock::take(data.path()).unwrap();
        let shared = lock.file.try_clone().unwrap();
        drop(lock);
        Lock::take(data.path()).unwrap();
        drop(shared);
    }

    #[test]
    fn what_is_recorded_after_a_failure_does_not_hide_it() {
        let data = tempfile::tempdir().unwrap();
        let config = Config::new(data.path(), "tested", "eu-west-1", &[]);
        let file = IdentityFile::new(data.path(), Identity::new(&config, 1));
        file.distrust();
        // A rotation, at the same time on another thread.
        file.record(false, |identity| identity.segments.clear()).unwrap();
        assert!(Identity::read(&config).unwrap().unwrap().failed);
    }
}

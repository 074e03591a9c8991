//! The files of a log, in order.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::format;

/// Where the segments are and where each begins. Shared by the writer and all who read.
#[derive(Debug)]
pub(crate) struct Segments {
    directory: PathBuf,
    header_length: u64,
    bases: RwLock<Vec<u64>>,
    /// How often a file was replaced by another one with the same content.
    replaced: AtomicU64,
}

/// Behind the name of a segment that is being written anew. Nobody reads a file of this name.
const DRAFT: &str = ".new";

impl Segments {
    /// The segments that stand in `directory` now, which is created if it is missing.
    pub(crate) fn list(directory: PathBuf, planet: &str, region: &str) -> io::Result<Self> {
        fs::create_dir_all(&directory)?;
        let mut bases = Vec::new();
        for entry in fs::read_dir(&directory)? {
            let name = entry?.file_name();
            if name.to_str().is_some_and(|name| name.ends_with(DRAFT)) {
                fs::remove_file(directory.join(name))?;
                continue;
            }
            let base = name.to_str().and_then(|name| name.strip_suffix(".log")?.parse().ok());
            bases.extend(base.filter(|base| name == *file_name(*base)));
        }
        bases.sort_unstable();
        let header_length = format::header(0, planet, region).len() as u64;
        Ok(Self { directory, header_length, bases: RwLock::new(bases), replaced: AtomicU64::new(0) })
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn header_length(&self) -> u64 {
        self.header_length
    }

    pub(crate) fn path(&self, base: u64) -> PathBuf {
        self.directory.join(file_name(base))
    }

    /// The positions at which segments begin.
    pub(crate) fn bases(&self) -> Vec<u64> {
        self.read().clone()
    }

    /// The segment that holds `position`, and where it ends if it is not the last.
    pub(crate) fn containing(&self, position: u64) -> Option<(u64, Option<u64>)> {
        let bases = self.read();
        let index = bases.partition_point(|base| *base <= position).checked_sub(1)?;
        Some((bases[index], bases.get(index + 1).copied()))
    }

    pub(crate) fn open(&self, base: u64) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).open(self.path(base))
    }

    /// Makes the file of the next segment, which begins with `header`. What an attempt before may have left in its place
    /// is no part of the log.
    pub(crate) fn create(&self, base: u64, header: &[u8]) -> io::Result<File> {
        let path = self.path(base);
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
        if let Err(error) = file.write_all(header) {
            // An empty file would be found by the next start, which can do with it.
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        self.bases.write().unwrap_or_else(std::sync::PoisonError::into_inner).push(base);
        Ok(file)
    }

    /// How often a file was replaced: whoever has one open opens it anew.
    pub(crate) fn replaced(&self) -> u64 {
        self.replaced.load(Ordering::Acquire)
    }

    /// The segments that reach beyond `position`, each with its end; the last one ends at `end`.
    pub(crate) fn beyond(&self, position: u64, end: u64) -> Vec<(u64, u64)> {
        let bases = self.read();
        let ends = bases.iter().skip(1).copied().chain([end]);
        bases.iter().copied().zip(ends).filter(|(_, end)| *end > position).collect()
    }

    /// Puts a new file with this content in the place of the segment at `base`. When this returns all of it is on disk but
    /// for its name; until then the old file stays.
    pub(crate) fn replace(&self, base: u64, content: &[u8]) -> io::Result<File> {
        let draft = self.directory.join(file_name(base) + DRAFT);
        // The next attempt is another file.
        let _ = fs::remove_file(&draft);
        let write = || {
            let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&draft)?;
            file.write_all(content)?;
            file.sync_all()?;
            fs::rename(&draft, self.path(base))?;
            Ok(file)
        };
        let written = write().inspect_err(|_| {
            // The room is needed.
            let _ = fs::remove_file(&draft);
        });
        self.replaced.fetch_add(1, Ordering::AcqRel);
        written
    }

    /// Takes the segments below `base` out of the list; their files are the caller's to remove.
    pub(crate) fn forget_below(&self, base: u64) -> Vec<PathBuf> {
        let mut bases = self.bases.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let kept = bases.partition_point(|held| *held < base);
        bases.drain(..kept).map(|base| self.path(base)).collect()
    }

    /// Removes the segments from `base` on.
    pub(crate) fn remove_from(&self, base: u64) -> io::Result<()> {
        let mut bases = self.bases.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        // The last first, so that an interruption leaves no gap.
        while let Some(last) = bases.pop_if(|last| *last >= base) {
            fs::remove_file(self.path(last))?;
        }
        Ok(())
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Vec<u64>> {
        // The list is always whole: nothing panics while it is locked.
        self.bases.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn file_name(base: u64) -> String {
    format!("{base:020}.log")
}

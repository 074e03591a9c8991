//! The open file, for the thread that writes it and for those that read cold keys.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use geode_crdt::{KeyName, digest};

use super::file::{CheckpointFile, FileError, Look, Owner};
use crate::table::{Disk, Place, SEGMENTS};

/// How long a thread that needs a key waits before it asks a failing disk again.
const PAUSE: Duration = Duration::from_secs(1);

/// The file of a data directory, open or not. After an error it is closed and opened again: the library takes nothing
/// more before.
#[derive(Debug)]
pub(crate) struct SharedFile {
    path: PathBuf,
    owner: Owner,
    cache: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Whether the file was there at some time: then it is never made anew.
    exists: bool,
    open: Option<Arc<CheckpointFile>>,
}

impl SharedFile {
    /// The file at `path`, of which `cache` bytes are kept in memory, opened or to be made.
    pub(crate) fn new(path: PathBuf, owner: Owner, cache: usize, open: Option<CheckpointFile>) -> Self {
        let state = State { exists: open.is_some(), open: open.map(Arc::new) };
        Self { path, owner, cache, state: Mutex::new(state) }
    }

    /// The file, made if there never was one.
    pub(crate) fn get(&self) -> Result<Arc<CheckpointFile>, FileError> {
        let mut state = self.lock();
        if let Some(open) = &state.open {
            return Ok(Arc::clone(open));
        }
        let file = if state.exists {
            CheckpointFile::reopen(&self.path, self.cache)?
        } else {
            CheckpointFile::create(&self.path, &self.owner, self.cache)?
        };
        state.exists = true;
        Ok(Arc::clone(state.open.insert(Arc::new(file))))
    }

    /// Closes the file once nobody uses it any more.
    pub(crate) fn close(&self) {
        self.lock().open = None;
    }

    /// Bytes of the file.
    pub(crate) fn bytes(&self) -> u64 {
        self.lock().open.as_ref().map_or(0, |file| file.bytes())
    }

    /// Looks at the keys as they are by the last commit; `Ok(None)` if there never was one.
    pub(crate) fn look<T>(
        &self,
        work: impl FnOnce(&Look) -> Result<T, FileError>,
    ) -> Result<Option<T>, FileError> {
        if !self.lock().exists {
            return Ok(None);
        }
        let result = self.get().and_then(|file| file.look(work).map(Some));
        if result.is_err() {
            self.close();
        }
        result
    }

    /// Up to `limit` keys (database, name) of a range of the digest that are not among `known`. Linear in all keys.
    pub(crate) fn keys_of_range(
        &self,
        range: u8,
        limit: usize,
        known: &[(u8, Vec<u8>)],
    ) -> Result<Vec<(u8, Vec<u8>)>, FileError> {
        let known: BTreeSet<(u8, &[u8])> =
            known.iter().map(|(database, name)| (*database, &name[..])).collect();
        let mut found = Vec::new();
        for segment in 0..SEGMENTS {
            self.look(|keys| {
                keys.segment(segment, |_, key, _| {
                    let is_wanted = digest::range_of(digest::key_hash(key)) == usize::from(range);
                    if found.len() < limit && is_wanted && !known.contains(&(key.database, key.name)) {
                        found.push((key.database, key.name.to_vec()));
                    }
                })
            })?;
            if found.len() >= limit {
                break;
            }
        }
        Ok(found)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // What may panic while it is locked leaves nothing half-done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SharedFile {
    /// Looks at the keys until the disk answers.
    fn look_until_read<T>(&self, mut work: impl FnMut(&Look) -> Result<T, FileError>) -> Option<T> {
        loop {
            match self.look(&mut work) {
                Ok(read) => return read,
                Err(error) => {
                    tracing::error!(
                        "a key cannot be read from {}: {error}; this region waits until it can",
                        self.path.display()
                    );
                    std::thread::sleep(PAUSE);
                }
            }
        }
    }
}

impl Disk for SharedFile {
    fn read(&self, hash: u64, key: KeyName<'_>, found: &mut dyn FnMut(Option<&[u8]>)) {
        found(self.look_until_read(|keys| keys.key(hash, key)).flatten().as_deref());
    }

    fn read_all(&self, places: &[Place], found: &mut dyn FnMut(u64, KeyName<'_>, &[u8])) {
        self.look_until_read(|keys| {
            for (hash, database, name) in places {
                let key = KeyName { database: *database, name };
                if let Some(image) = keys.key(*hash, key)? {
                    found(*hash, key, &image);
                }
            }
            Ok(())
        });
    }

    fn read_segment(&self, segment: usize, found: &mut dyn FnMut(u64, KeyName<'_>, &[u8])) {
        self.look_until_read(|keys| keys.segment(segment, &mut *found));
    }
}

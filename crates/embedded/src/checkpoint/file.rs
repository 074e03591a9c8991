//! The checkpoint's file: a B-tree of all keys, and beside it what is known of them together.

use std::fmt;
use std::fs;
use std::io;
use std::ops::Bound;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};

use geode_crdt::image::Summary;
use geode_crdt::{ActorId, ActorIndex, Actors, HybridTime, KeyName, digest};
use redb::{Database, ReadOnlyTable, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::mark::Mark;
use super::record;
use super::totals::{Counted, Totals};
use crate::table::{Changed, Chunk, SEGMENTS, first_hash};

/// The format that this release writes.
pub(crate) const FORMAT: u64 = 1;
const KEYS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("keys");
/// Deadlines of keys: whether it has no data, time (big-endian), the key's name in [`KEYS`]. Behind them, as [`DEAD`], keys
/// without data and deadline.
const DEADLINES: TableDefinition<'_, &[u8], ()> = TableDefinition::new("deadlines");
const DEAD: u8 = 2;
/// The dictionary: regions and incarnations by number.
const ACTORS: TableDefinition<'_, u32, (&str, u64)> = TableDefinition::new("actors");
/// Where in the log an actor's entries are: actor and sequence, position.
const INDEX: TableDefinition<'_, (u32, u64), u64> = TableDefinition::new("index");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

const OWNER: &str = "owner";
const MARK: &str = "mark";
const THROUGH: &str = "through";
const TOTALS: &str = "totals";

/// Why a checkpoint cannot be used.
#[derive(Debug)]
pub(crate) enum FileError {
    /// It is not what was written.
    Damaged(String),
    NewerFormat(u64),
    OtherPlanet(String),
    OtherRegion(String),
    Io(io::Error),
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damaged(reason) => f.write_str(reason),
            Self::NewerFormat(format) => write!(f, "it is of format {format}"),
            Self::OtherPlanet(owner) | Self::OtherRegion(owner) => write!(f, "it is of {owner}"),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl FileError {
    fn damaged(what: &str) -> Self {
        Self::Damaged(what.to_owned())
    }
}

impl<E: Into<redb::Error>> From<E> for FileError {
    fn from(error: E) -> Self {
        match error.into() {
            // The file ends early, or does not begin as one should.
            redb::Error::Io(error)
                if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData) =>
            {
                Self::Damaged(error.to_string())
            }
            redb::Error::Io(error) => Self::Io(error),
            error => Self::Damaged(error.to_string()),
        }
    }
}

/// Only the part whose meaning never changes.
#[derive(Deserialize)]
struct AnyFormat {
    format: u64,
}

/// Whose checkpoint it is, and how its hashes come about.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Owner {
    format: u64,
    planet: String,
    region: String,
    /// Seeds the table's hashes.
    pub(crate) seed: u64,
}

impl Owner {
    pub(crate) fn new(planet: &str, region: &str, seed: u64) -> Self {
        Self { format: FORMAT, planet: planet.to_owned(), region: region.to_owned(), seed }
    }
}

/// What a checkpoint holds besides its keys.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) seed: u64,
    /// The dictionary, by number.
    pub(crate) actors: Vec<ActorId>,
    /// From where the log is to be replayed; `None` if the first checkpoint was never completed.
    pub(crate) mark: Option<Mark>,
    /// The log must reach up to here: keys may show entries before it.
    pub(crate) through: u64,
    pub(crate) totals: Totals,
    /// Actor, sequence and position of some frames before the mark.
    pub(crate) index: Vec<(u32, u64, u64)>,
}

/// The open file.
#[derive(Debug)]
pub(crate) struct CheckpointFile {
    database: Database,
    path: PathBuf,
}

/// The library may panic on pages that are not what it wrote; here that is an error like others. What it was working on
/// is dropped with the file.
fn guarded<T>(work: impl FnOnce() -> Result<T, FileError>) -> Result<T, FileError> {
    panic::catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(FileError::damaged("its pages contradict each other")))
}

impl CheckpointFile {
    /// Makes a new file. Of it and of those that are opened, `cache` bytes are kept in memory.
    pub(crate) fn create(path: &Path, owner: &Owner, cache: usize) -> Result<Self, FileError> {
        let database = Database::builder().set_cache_size(cache).create(path)?;
        let file = Self { database, path: path.to_owned() };
        let transaction = file.begin()?;
        let owner = serde_json::to_vec(owner).map_err(|error| FileError::Damaged(error.to_string()))?;
        transaction.open_table(META)?.insert(OWNER, owner.as_slice())?;
        // So that readers find them.
        drop((transaction.open_table(KEYS)?, transaction.open_table(DEADLINES)?));
        drop((transaction.open_table(ACTORS)?, transaction.open_table(INDEX)?));
        transaction.commit()?;
        Ok(file)
    }

    /// Opens a file of this planet and region.
    pub(crate) fn open(
        path: &Path,
        planet: &str,
        region: &str,
        cache: usize,
    ) -> Result<(Self, Stored), FileError> {
        guarded(|| {
            let file = Self::reopen(path, cache)?;
            let stored = file.read_stored(planet, region)?;
            Ok((file, stored))
        })
    }

    /// Opens a file that this process made or opened before.
    pub(crate) fn reopen(path: &Path, cache: usize) -> Result<Self, FileError> {
        let database = Database::builder().set_cache_size(cache).open(path)?;
        Ok(Self { database, path: path.to_owned() })
    }

    fn read_stored(&self, planet: &str, region: &str) -> Result<Stored, FileError> {
        let transaction = self.database.begin_read()?;
        let meta = transaction.open_table(META)?;
        let read = |name: &str| -> Result<Option<Vec<u8>>, FileError> {
            Ok(meta.get(name)?.map(|value| value.value().to_vec()))
        };
        let owner = read(OWNER)?.ok_or_else(|| FileError::damaged("it does not say whose it is"))?;
        let unreadable = || FileError::damaged("what it says of itself cannot be read");
        let AnyFormat { format } = serde_json::from_slice(&owner).map_err(|_| unreadable())?;
        if format > FORMAT {
            return Err(FileError::NewerFormat(format));
        }
        let owner: Owner = serde_json::from_slice(&owner).map_err(|_| unreadable())?;
        if owner.planet != planet {
            return Err(FileError::OtherPlanet(owner.planet));
        }
        if owner.region != region {
            return Err(FileError::OtherRegion(owner.region));
        }
        let mark = read(MARK)?.map(|bytes| Mark::decode(&bytes).ok_or_else(unreadable)).transpose()?;
        let through = read(THROUGH)?.map(|bytes| bytes.try_into().map(u64::from_le_bytes));
        let totals = read(TOTALS)?.map(|bytes| Totals::decode(&bytes).ok_or_else(unreadable)).transpose()?;
        let mut actors = Vec::new();
        for row in transaction.open_table(ACTORS)?.iter()? {
            let (number, id) = row?;
            let (region, incarnation) = id.value();
            if number.value() as usize != actors.len() {
                return Err(FileError::damaged("its dictionary has a gap"));
            }
            actors.push(ActorId::new(region, incarnation));
        }
        let mut index = Vec::new();
        for row in transaction.open_table(INDEX)?.iter()? {
            let (key, position) = row?;
            let (actor, sequence) = key.value();
            index.push((actor, sequence, position.value()));
        }
        Ok(Stored {
            seed: owner.seed,
            actors,
            mark,
            through: through.transpose().map_err(|_| unreadable())?.unwrap_or(0),
            totals: totals.unwrap_or_default(),
            index,
        })
    }

    /// Visits all keys in the order of their hashes.
    pub(crate) fn each(
        &self,
        mut visit: impl FnMut(Changed<'_>) -> Result<(), FileError>,
    ) -> Result<(), FileError> {
        guarded(|| {
            let transaction = self.database.begin_read()?;
            for row in transaction.open_table(KEYS)?.iter()? {
                let (name, value) = row?;
                let (name, value) = (name.value(), value.value());
                let (hash, key) = record::read_name(name).ok_or_else(wrong_record)?;
                let (_, image) = record::read_record(name, value).ok_or_else(wrong_record)?;
                visit(Changed { hash, key, image: Some(image) })?;
            }
            Ok(())
        })
    }

    /// Looks at the keys as they are by the last commit.
    pub(crate) fn look<T>(&self, work: impl FnOnce(&Look) -> Result<T, FileError>) -> Result<T, FileError> {
        guarded(|| {
            let transaction = self.database.begin_read()?;
            let (keys, deadlines) = (transaction.open_table(KEYS)?, transaction.open_table(DEADLINES)?);
            work(&Look { keys, deadlines })
        })
    }

    pub(crate) fn begin(&self) -> Result<WriteTransaction, FileError> {
        let mut transaction = self.database.begin_write()?;
        // A start after a crash must not read the whole file.
        transaction.set_quick_repair(true);
        Ok(transaction)
    }

    /// Bytes of the file.
    pub(crate) fn bytes(&self) -> u64 {
        fs::metadata(&self.path).map_or(0, |metadata| metadata.len())
    }
}

/// The keys as they were by some commit.
pub(crate) struct Look {
    keys: ReadOnlyTable<&'static [u8], &'static [u8]>,
    deadlines: ReadOnlyTable<&'static [u8], ()>,
}

impl Look {
    /// One key.
    pub(crate) fn key(&self, hash: u64, key: KeyName<'_>) -> Result<Option<Box<[u8]>>, FileError> {
        let mut name = Vec::with_capacity(16 + key.name.len());
        record::put_name(&mut name, hash, key);
        self.image(&name)
    }

    fn image(&self, name: &[u8]) -> Result<Option<Box<[u8]>>, FileError> {
        let Some(record) = self.keys.get(name)? else { return Ok(None) };
        let (_, image) = record::read_record(name, record.value()).ok_or_else(wrong_record)?;
        Ok(Some(image.into()))
    }

    /// The keys of a segment of the table, in the order of their hashes.
    pub(crate) fn segment(
        &self,
        segment: usize,
        mut visit: impl FnMut(u64, KeyName<'_>, &[u8]),
    ) -> Result<(), FileError> {
        let from = first_hash(segment).to_be_bytes();
        let rows = if segment + 1 < SEGMENTS {
            self.keys.range(&from[..]..&first_hash(segment + 1).to_be_bytes()[..])?
        } else {
            self.keys.range(&from[..]..)?
        };
        for row in rows {
            let (name, record) = row?;
            let (name, record) = (name.value(), record.value());
            let (hash, key) = record::read_name(name).ok_or_else(wrong_record)?;
            let (_, image) = record::read_record(name, record).ok_or_else(wrong_record)?;
            visit(hash, key, image);
        }
        Ok(())
    }

    /// The keys without data and deadline, which wait for rows to be dropped.
    pub(crate) fn dead(&self, mut visit: impl FnMut(u64, KeyName<'_>, &[u8])) -> Result<(), FileError> {
        for row in self.deadlines.range::<&[u8]>(&[DEAD][..]..)? {
            let (place, _) = row?;
            let name = &place.value()[1 + 8..];
            let (hash, key) = record::read_name(name).ok_or_else(wrong_record)?;
            if let Some(image) = self.image(name)? {
                visit(hash, key, &image);
            }
        }
        Ok(())
    }

    /// Up to `limit` keys whose deadline is below `before`, without data or with, in the order of their deadlines. Returns
    /// behind which place there may be more.
    pub(crate) fn due(
        &self,
        is_inert: bool,
        before: HybridTime,
        after: Option<&[u8]>,
        limit: usize,
        mut visit: impl FnMut(u64, KeyName<'_>, &[u8]),
    ) -> Result<Option<Box<[u8]>>, FileError> {
        let (mut first, mut end) = (Vec::new(), Vec::new());
        put_deadline(&mut first, (u8::from(is_inert), 0), &[]);
        put_deadline(&mut end, (u8::from(is_inert), before.0), &[]);
        let from = after.map_or(Bound::Included(&first[..]), Bound::Excluded);
        if after.is_some_and(|after| *after >= end[..]) {
            return Ok(None);
        }
        let mut last = None;
        let rows = self.deadlines.range::<&[u8]>((from, Bound::Excluded(&end[..])))?;
        for row in rows.take(limit) {
            let (place, ()) = row.map(|(place, _)| (place, ()))?;
            let name = &place.value()[first.len()..];
            let (hash, key) = record::read_name(name).ok_or_else(wrong_record)?;
            if let Some(image) = self.image(name)? {
                visit(hash, key, &image);
            }
            last = Some((last.map_or(1, |(count, _)| count + 1), Box::from(place.value())));
        }
        Ok(last.filter(|(count, _)| *count == limit).map(|(_, place)| place))
    }
}

fn wrong_record() -> FileError {
    FileError::damaged("a key's record is not what was written")
}

/// Writes the keys of a chunk.
pub(crate) fn write_chunk(
    transaction: &WriteTransaction,
    totals: &mut Totals,
    actors: &Actors,
    chunk: &Chunk,
) -> Result<(), FileError> {
    let (mut keys, mut deadlines) = (transaction.open_table(KEYS)?, transaction.open_table(DEADLINES)?);
    let known = actors.len() as u32;
    let (mut name, mut record, mut deadline_name) = (Vec::new(), Vec::new(), Vec::new());
    for changed in chunk.iter() {
        record::put_name(&mut name, changed.hash, changed.key);
        let range = digest::range_of(digest::key_hash(changed.key));
        let counted = Counted { hash: changed.hash, database: changed.key.database, range };
        let read =
            |held: &[u8]| record::read_record(&name, held).map(|(summary, image)| (summary, image.len()));
        let summary = changed.image.map(|image| {
            let summary = Summary::of(changed.key, image, actors, |number| {
                (number < known).then_some(ActorIndex(number))
            });
            // The table's own images are sound.
            summary.map_err(|error| FileError::Damaged(error.to_string()))
        });
        let summary = summary.transpose()?;
        let before = match (changed.image, &summary) {
            (Some(image), Some(summary)) => {
                record::put_record(&mut record, &name, summary, image);
                totals.add(counted, summary, image.len());
                keys.insert(name.as_slice(), record.as_slice())?.map(|held| read(held.value()))
            }
            _ => keys.remove(name.as_slice())?.map(|held| read(held.value())),
        };
        let before = before.map(|before| before.ok_or_else(wrong_record)).transpose()?;
        if let Some((summary, bytes)) = &before {
            totals.subtract(counted, summary, *bytes);
        }
        let (before, after) =
            (before.as_ref().and_then(|(summary, _)| due(summary)), summary.as_ref().and_then(due));
        if before != after {
            if let Some(before) = before {
                put_deadline(&mut deadline_name, before, &name);
                deadlines.remove(deadline_name.as_slice())?;
            }
            if let Some(after) = after {
                put_deadline(&mut deadline_name, after, &name);
                deadlines.insert(deadline_name.as_slice(), ())?;
            }
        }
    }
    Ok(())
}

/// How a key stands in [`DEADLINES`]: 0 with data, 1 without, and its deadline; 2 without both.
fn due(summary: &Summary) -> Option<(u8, u64)> {
    match summary.deadline {
        Some(deadline) => Some((u8::from(!summary.is_live), deadline.0.0)),
        None => (!summary.is_live).then_some((DEAD, 0)),
    }
}

fn put_deadline(out: &mut Vec<u8>, (kind, time): (u8, u64), name: &[u8]) {
    out.clear();
    out.push(kind);
    out.extend_from_slice(&time.to_be_bytes());
    out.extend_from_slice(name);
}

/// Adds actors to the dictionary.
pub(crate) fn write_actors(
    transaction: &WriteTransaction,
    first: u32,
    ids: &[ActorId],
) -> Result<(), FileError> {
    let mut table = transaction.open_table(ACTORS)?;
    for (number, id) in (first..).zip(ids) {
        table.insert(number, (&*id.region, id.incarnation))?;
    }
    Ok(())
}

/// Adds places of frames in the log, and removes those before its beginning.
pub(crate) fn write_index(
    transaction: &WriteTransaction,
    from: u64,
    frames: &[(u32, u64, u64)],
) -> Result<(), FileError> {
    let mut table = transaction.open_table(INDEX)?;
    for (actor, sequence, position) in frames {
        table.insert((*actor, *sequence), position)?;
    }
    table.retain(|_, position| position >= from)?;
    Ok(())
}

/// Writes what is known of all keys together; `through` is how far the log must reach for them.
pub(crate) fn write_totals(
    transaction: &WriteTransaction,
    totals: &Totals,
    through: u64,
) -> Result<(), FileError> {
    let mut meta = transaction.open_table(META)?;
    meta.insert(TOTALS, totals.encode().as_slice())?;
    meta.insert(THROUGH, through.to_le_bytes().as_slice())?;
    Ok(())
}

pub(crate) fn write_mark(transaction: &WriteTransaction, mark: &Mark) -> Result<(), FileError> {
    transaction.open_table(META)?.insert(MARK, mark.encode().as_slice())?;
    Ok(())
}

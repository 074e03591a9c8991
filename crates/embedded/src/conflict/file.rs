//! The conflict log on disk: a ring of files that a thread of its own writes.
//!
//! ```text
//! file   = "GEODECFL" | version u16 | record*
//! record = length u32 of the body | crc32 u32 of the body | body
//! body   = time | database u8 | key | kind u8 | element | rule u8 | side of the winner | side of the loser
//! side   = value | dot | time
//! ```
//! Integers are little-endian, times LEB128, bytes have their length before them. A file's name is the time of its first
//! conflict. Nothing is forced onto the disk: a crash of the machine may take the last seconds, a killed process what the
//! thread had not written yet. A file is read up to its first record that is not whole, and is never written again
//! by another process, so a torn end hides nothing.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use geode_crdt::codec::{self, Reader};
use geode_crdt::{FrameError, HybridTime, Kind};

use super::{Conflict, ConflictQuery, Rule, Side};

/// The version that this release writes; golden bytes stand in `tests/golden`.
const VERSION: u16 = 1;
const MAGIC: &[u8; 8] = b"GEODECFL";
const HEADER: usize = 10;

/// How long a file grows, and how much all take together: some hundred thousand conflicts.
const FILE_BYTES: u64 = 4 << 20;
const RETENTION_BYTES: u64 = 64 << 20;
/// How many files there are at most: each start begins one.
const RETENTION_FILES: usize = 256;

/// Writes conflicts; makes its folder and files when there are some.
#[derive(Debug)]
pub(super) struct Files {
    folder: PathBuf,
    /// The open file and its length.
    current: Option<(File, u64)>,
}

impl Files {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder, current: None }
    }

    /// Appends records, of which the first is of `time`. After an error the next ones begin a new file.
    pub(super) fn append(&mut self, time: HybridTime, records: &[u8]) -> io::Result<()> {
        let (mut file, length) = match self.current.take() {
            Some((file, length)) if length < FILE_BYTES => (file, length),
            _ => (self.begin(time)?, HEADER as u64),
        };
        file.write_all(records)?;
        self.current = Some((file, length + records.len() as u64));
        Ok(())
    }

    fn begin(&self, time: HybridTime) -> io::Result<File> {
        fs::create_dir_all(&self.folder)?;
        self.make_room()?;
        let mut header = MAGIC.to_vec();
        header.extend_from_slice(&VERSION.to_le_bytes());
        let mut file = File::create_new(self.folder.join(format!("{:020}", time.0)))?;
        file.write_all(&header)?;
        Ok(file)
    }

    /// Removes the oldest files until one more has room.
    fn make_room(&self) -> io::Result<()> {
        let files = list(&self.folder)?;
        let mut bytes = FILE_BYTES;
        for (index, (_, path)) in files.iter().rev().enumerate() {
            bytes += fs::metadata(path)?.len();
            if bytes > RETENTION_BYTES || index + 1 >= RETENTION_FILES {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

/// The files of a folder by the time of their first conflict, the oldest first.
fn list(folder: &Path) -> io::Result<Vec<(HybridTime, PathBuf)>> {
    let mut files = Vec::new();
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(files),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let time = path.file_name().and_then(|name| name.to_str()?.parse().ok());
        files.extend(time.map(|time| (HybridTime(time), path)));
    }
    files.sort_unstable();
    Ok(files)
}

/// The conflicts that are asked for and are older than `before`, newest first. Reads as many files as that takes, whole.
pub(super) fn search(folder: &Path, query: &ConflictQuery, before: HybridTime) -> io::Result<Vec<Conflict>> {
    let mut found = Vec::new();
    for (first, path) in list(folder)?.into_iter().rev() {
        if found.len() >= query.limit {
            break;
        }
        if first < before {
            let bytes = match fs::read(&path) {
                // Another one took its room meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                bytes => bytes?,
            };
            let wanted =
                read(&bytes).into_iter().filter(|conflict| conflict.time < before && query.wants(conflict));
            let mut wanted: Vec<Conflict> = wanted.collect();
            wanted.reverse();
            found.append(&mut wanted);
        }
        if first <= query.after {
            break;
        }
    }
    found.truncate(query.limit);
    Ok(found)
}

/// The time of the newest conflict on disk, zero if there is none.
pub(super) fn newest(folder: &Path) -> io::Result<HybridTime> {
    let Some((first, path)) = list(folder)?.pop() else { return Ok(HybridTime(0)) };
    let last = read(&fs::read(path)?).pop().map(|conflict| conflict.time);
    Ok(last.unwrap_or(first))
}

/// The whole records of a file in order; none if it is of another format.
fn read(bytes: &[u8]) -> Vec<Conflict> {
    let mut conflicts = Vec::new();
    let Some((header, records)) = bytes.split_at_checked(HEADER) else { return conflicts };
    if header[..MAGIC.len()] != *MAGIC || header[MAGIC.len()..] != VERSION.to_le_bytes() {
        return conflicts;
    }
    let mut reader = Reader::new(records);
    while let Ok(conflict) = read_record(&mut reader) {
        conflicts.push(conflict);
    }
    conflicts
}

/// Appends the record of a conflict.
pub(super) fn put(out: &mut Vec<u8>, conflict: &Conflict) {
    let mut body = Vec::new();
    codec::put_varint(&mut body, conflict.time.0);
    body.push(conflict.database);
    codec::put_bytes(&mut body, &conflict.key);
    body.push(conflict.kind as u8);
    codec::put_bytes(&mut body, &conflict.element);
    body.push(code(conflict.rule));
    for side in [&conflict.winner, &conflict.loser] {
        codec::put_bytes(&mut body, &side.value);
        codec::put_bytes(&mut body, side.dot.as_bytes());
        codec::put_varint(&mut body, side.time.0);
    }
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    out.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
    out.extend_from_slice(&body);
}

fn read_record(reader: &mut Reader<'_>) -> Result<Conflict, FrameError> {
    let (length, checksum) = (reader.u32()?, reader.u32()?);
    let body = reader.take(length as usize)?;
    if crc32fast::hash(body) != checksum {
        return Err(FrameError::Malformed("a conflict"));
    }
    let mut body = Reader::new(body);
    Ok(Conflict {
        time: HybridTime(body.varint()?),
        database: body.byte()?,
        key: body.bytes()?.to_vec(),
        kind: read_kind(body.byte()?)?,
        element: body.bytes()?.to_vec(),
        rule: read_rule(body.byte()?)?,
        winner: read_side(&mut body)?,
        loser: read_side(&mut body)?,
    })
}

fn read_side(body: &mut Reader<'_>) -> Result<Side, FrameError> {
    let value = body.bytes()?.to_vec();
    let dot = String::from_utf8(body.bytes()?.to_vec()).map_err(|_| FrameError::Malformed("a dot"))?;
    Ok(Side { value, dot, time: HybridTime(body.varint()?) })
}

fn read_kind(code: u8) -> Result<Kind, FrameError> {
    let mut kinds = [Kind::Ttl].into_iter().chain(Kind::DATA);
    kinds.find(|kind| *kind as u8 == code).ok_or(FrameError::UnknownKind(code))
}

const fn code(rule: Rule) -> u8 {
    match rule {
        Rule::LaterWrite => 1,
        Rule::LongestDeadline => 2,
        Rule::ShownType => 3,
        Rule::HiddenAmount => 4,
        Rule::SurvivedClear => 5,
        Rule::ExecutedTwice => 6,
    }
}

fn read_rule(number: u8) -> Result<Rule, FrameError> {
    let mut rules = Rule::ALL.into_iter();
    rules.find(|rule| code(*rule) == number).ok_or(FrameError::Malformed("a rule"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &[u8] = include_bytes!("../../tests/golden/conflicts-1.bin");

    fn conflict(time: u64, key: &str) -> Conflict {
        let side = |value: &[u8], dot: &str, time| Side {
            value: value.to_vec(),
            dot: dot.to_owned(),
            time: HybridTime(time),
        };
        Conflict {
            time: HybridTime(time),
            database: 3,
            key: key.into(),
            kind: Kind::Hash,
            element: b"field".to_vec(),
            rule: Rule::LaterWrite,
            winner: side(b"2.40", "eu#000000000000002e/7.0", 1_700_000_000_100_000),
            loser: side(b"\xff", "us#000000000000001f/9.2", 1_700_000_000_090_000),
        }
    }

    fn append(files: &mut Files, conflicts: &[Conflict]) {
        let mut records = Vec::new();
        conflicts.iter().for_each(|conflict| put(&mut records, conflict));
        files.append(conflicts[0].time, &records).unwrap();
    }

    fn times(folder: &Path, query: &ConflictQuery) -> Vec<u64> {
        let found = search(folder, query, HybridTime(u64::MAX)).unwrap();
        found.into_iter().map(|conflict| conflict.time.0).collect()
    }

    #[test]
    fn a_file_reads_as_it_always_did() {
        let folder = tempfile::tempdir().unwrap();
        append(&mut Files::new(folder.path().to_owned()), &[conflict(1_700_000_000_123_456, "menu")]);
        let (_, path) = list(folder.path()).unwrap().remove(0);
        let written = fs::read(&path).unwrap();
        assert_eq!(written, GOLDEN, "{}", written.escape_ascii());
        assert_eq!(read(GOLDEN), [conflict(1_700_000_000_123_456, "menu")]);
        assert!(read(b"GEODECFL\x02\0 a newer release").is_empty());
    }

    #[test]
    fn a_torn_file_is_read_up_to_where_it_is_whole() {
        let mut bytes = GOLDEN.to_vec();
        put(&mut bytes, &conflict(2, "other"));
        for end in 0..bytes.len() {
            let whole = usize::from(end >= GOLDEN.len());
            assert_eq!(read(&bytes[..end]).len(), whole, "{end}");
        }
        bytes[GOLDEN.len() + 12] ^= 1;
        assert_eq!(read(&bytes).len(), 1);
    }

    #[test]
    fn old_conflicts_are_found_by_time_and_key_over_restarts() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(newest(folder.path()).unwrap(), HybridTime(0));
        for start in [10, 20, 30] {
            let mut files = Files::new(folder.path().join("conflicts"));
            append(&mut files, &[conflict(start, "a"), conflict(start + 1, "b")]);
            append(&mut files, &[conflict(start + 2, "a")]);
        }
        let folder = folder.path().join("conflicts");
        assert_eq!(list(&folder).unwrap().len(), 3);
        assert_eq!(newest(&folder).unwrap(), HybridTime(32));
        let latest = ConflictQuery::latest(5);
        assert_eq!(times(&folder, &latest), [32, 31, 30, 22, 21]);
        assert_eq!(
            times(&folder, &ConflictQuery { after: HybridTime(21), ..latest.clone() }),
            [32, 31, 30, 22]
        );
        assert_eq!(
            times(&folder, &ConflictQuery { key: Some(b"b".to_vec()), ..latest.clone() }),
            [31, 21, 11]
        );
        let found = search(&folder, &latest, HybridTime(21)).unwrap();
        assert_eq!(found.iter().map(|conflict| conflict.time.0).collect::<Vec<_>>(), [20, 12, 11, 10]);
    }

    #[test]
    fn the_oldest_files_make_room() {
        let folder = tempfile::tempdir().unwrap();
        let path = |time: u64| folder.path().join(format!("{time:020}"));
        for time in 1..=20 {
            File::create(path(time)).unwrap().set_len(FILE_BYTES).unwrap();
        }
        let mut files = Files::new(folder.path().to_owned());
        append(&mut files, &[conflict(21, "a")]);
        let left: Vec<u64> = list(folder.path()).unwrap().iter().map(|(time, _)| time.0).collect();
        assert_eq!(left, (6..=21).collect::<Vec<u64>>());
        // A full file is followed by the next one.
        files.current.as_mut().unwrap().1 = FILE_BYTES;
        append(&mut files, &[conflict(22, "a")]);
        assert!(path(22).exists() && !path(6).exists());
    }
}

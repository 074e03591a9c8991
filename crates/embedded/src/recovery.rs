//! From a data directory to a running state: replay, damage, incarnation.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use geode_crdt::{ActorId, Frame, FrameError, HybridClock, HybridTime, VersionVector};

use crate::config::{Config, FsyncMode};
use crate::error::OpenError;
use crate::floor::{Floor, Found};
use crate::identity::{Identity, IdentityFile, Lock, SegmentFile};
use crate::log::format::{self, HeaderError, RECORD};
use crate::log::{self, Durability, Index, Kind, Log, Place, Segments};
use crate::rows::Rows;
use crate::table::Table;

/// A data directory, opened.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) lock: Lock,
    pub(crate) identity: Arc<IdentityFile>,
    pub(crate) rows: Rows,
    pub(crate) log: Log,
    pub(crate) held: VersionVector,
    /// The incarnation of the last process, of which the log may hold nothing.
    pub(crate) previous: Option<u64>,
    /// The greatest time delivered of each region.
    pub(crate) times: Vec<(Arc<str>, HybridTime)>,
    /// Whether this start took a new incarnation.
    pub(crate) fresh: bool,
}

/// Opens the directory and replays its log. Nothing in it is changed if an error is returned, but what a clean start
/// writes anyway.
pub(crate) fn open(config: &Config) -> Result<Opened, OpenError> {
    create_directory(&config.data).map_err(OpenError::io(&config.data))?;
    let lock = Lock::take(&config.data)?;
    let identity = Identity::read(config)?;
    let floor_path = config.data.join("clock");
    let (floor, found) = Floor::open(&floor_path, config.clock).map_err(OpenError::io(&floor_path))?;
    let directory = config.data.join("log");
    let segments = Segments::list(directory.clone(), &config.planet, &config.region);
    let segments = Arc::new(segments.map_err(OpenError::io(&directory))?);
    let place = Place {
        segments,
        planet: config.planet.clone(),
        region: config.region.clone(),
        segment_bytes: config.segment_bytes,
        acknowledges: !config.peers.is_empty() && config.fsync != FsyncMode::Never,
    };
    let clean_stop = identity.as_ref().and_then(|identity| identity.clean_stop).unwrap_or(0);
    let known_synced = found.synced.max(clean_stop);
    let mut replay = Replay::new(config, &place)?;
    let ending = replay.run(known_synced)?;
    finish(config, place.clone(), lock, identity, (floor, found), replay, ending)
}

/// Makes a directory that a crash of the machine does not take away: its name is on disk, in the directory above.
fn create_directory(path: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = path.ancestors().take_while(|directory| !directory.exists()).collect();
    std::fs::create_dir_all(path)?;
    for directory in missing {
        let above = directory.parent().filter(|above| !above.as_os_str().is_empty());
        File::open(above.unwrap_or_else(|| Path::new(".")))?.sync_all()?;
    }
    Ok(())
}

/// How the log ends.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Ending {
    /// With a whole record.
    Whole,
    /// With a record that the end of the file cuts short.
    CutShort,
    /// With bytes that are no record.
    Damaged(String),
}

/// The replay of a log.
struct Replay<'c> {
    config: &'c Config,
    place: &'c Place,
    rows: Rows,
    held: VersionVector,
    index: Index,
    incarnation: Option<u64>,
    times: BTreeMap<Arc<str>, HybridTime>,
    /// The greatest position that any record says was on disk.
    synced: u64,
    /// Where the next record stands.
    position: u64,
}

impl<'c> Replay<'c> {
    fn new(config: &'c Config, place: &'c Place) -> Result<Self, OpenError> {
        let mut table = Table::new(random().map_err(OpenError::io(&config.data))?);
        // A name for the time before the first incarnation; it writes nothing and appears nowhere.
        let own = table.actors_mut().intern(&ActorId::new(&config.region, 0));
        let clock = HybridClock::default();
        let rows = Rows { table, clock, own, changed: BTreeSet::new(), facts: Vec::new() };
        Ok(Self {
            config,
            place,
            rows,
            held: VersionVector::default(),
            index: Index::default(),
            incarnation: None,
            times: BTreeMap::new(),
            synced: 0,
            position: place.segments.bases().first().copied().unwrap_or(0),
        })
    }

    /// Replays everything up to the end or the first damage. Damage in what is known to have been on disk is an error.
    fn run(&mut self, known_synced: u64) -> Result<Ending, OpenError> {
        self.synced = known_synced;
        let bases = self.place.segments.bases();
        for (index, base) in bases.iter().enumerate() {
            let ending = if *base == self.position {
                self.segment(*base)?
            } else {
                Ending::Damaged("the segment before this one is missing or too short".to_owned())
            };
            let is_last = index + 1 == bases.len();
            match ending {
                Ending::Whole => {}
                Ending::CutShort if is_last && self.position >= self.synced => return Ok(Ending::CutShort),
                Ending::CutShort => {
                    return self.damaged(*base, "it ends in the middle of a record".to_owned());
                }
                Ending::Damaged(reason) => return self.damaged(*base, reason),
            }
        }
        if self.position < self.synced {
            let base = bases.last().copied().unwrap_or(0);
            return self.damaged(base, "it ends too early".to_owned());
        }
        Ok(Ending::Whole)
    }

    /// Damage at the current position: fatal if anything says that it was on disk already.
    fn damaged(&mut self, base: u64, reason: String) -> Result<Ending, OpenError> {
        self.look_for_later_records(base)?;
        if self.position < self.synced {
            return Err(OpenError::Damaged {
                path: self.place.segments.path(base),
                offset: self.position.saturating_sub(base),
                reason,
                data: self.config.data.clone(),
            });
        }
        Ok(Ending::Damaged(reason))
    }

    /// Reads on after damage: later records may say that the damaged part was on disk.
    fn look_for_later_records(&mut self, base: u64) -> Result<(), OpenError> {
        for base in self.place.segments.bases().into_iter().filter(|later| *later >= base) {
            let bytes = self.read_segment(base)?;
            let mut at = self.position.saturating_sub(base) as usize;
            while let Some(offset) = bytes.get(at..).and_then(format::find_marker) {
                at += offset;
                if let Some(head) = format::read_record(&bytes[at..], base + at as u64) {
                    self.synced = self.synced.max(head.synced);
                }
                at += 1;
            }
        }
        Ok(())
    }

    fn read_segment(&self, base: u64) -> Result<Vec<u8>, OpenError> {
        let path = self.place.segments.path(base);
        std::fs::read(&path).map_err(OpenError::io(&path))
    }

    fn segment(&mut self, base: u64) -> Result<Ending, OpenError> {
        let path = self.place.segments.path(base);
        let file = File::open(&path).map_err(OpenError::io(&path))?;
        let mut source = Source::new(file);
        let header = source.peek(format::LONGEST_HEADER).map_err(OpenError::io(&path))?;
        if header.len() < self.place.segments.header_length() as usize
            && format::header(base, &self.place.planet, &self.place.region).starts_with(header)
        {
            return Ok(Ending::CutShort);
        }
        if let Some(ending) = self.check_header(&path, base, header)? {
            return Ok(ending);
        }
        let length = self.place.segments.header_length() as usize;
        source.consume(length);
        self.position += length as u64;
        loop {
            if let Some(ending) = self.record(&path, &mut source)? {
                return Ok(ending);
            }
        }
    }

    fn unreadable(&self, path: &Path, error: &FrameError) -> OpenError {
        let source =
            io::Error::new(io::ErrorKind::InvalidData, format!("at byte {}: {error}", self.position));
        OpenError::Io { path: path.to_owned(), source }
    }

    fn check_header(&self, path: &Path, base: u64, bytes: &[u8]) -> Result<Option<Ending>, OpenError> {
        let (planet, region) = (&self.config.planet, &self.config.region);
        let data: PathBuf = self.config.data.clone();
        match format::check_header(bytes, base, planet, region) {
            Ok(()) => Ok(None),
            Err(HeaderError::NewerVersion(found)) => Err(OpenError::NewerFormat {
                path: path.to_owned(),
                found: found.into(),
                known: format::VERSION.into(),
            }),
            Err(HeaderError::OtherPlanet(found)) => {
                Err(OpenError::OtherPlanet { path: data, found, expected: planet.clone() })
            }
            Err(HeaderError::OtherRegion(found)) => {
                Err(OpenError::OtherRegion { path: data, found, expected: region.clone() })
            }
            Err(HeaderError::NotALog | HeaderError::Damaged) => {
                Ok(Some(Ending::Damaged("its header is damaged".to_owned())))
            }
        }
    }

    /// Replays one record. `Some` is the end of the log.
    fn record(&mut self, path: &Path, source: &mut Source) -> Result<Option<Ending>, OpenError> {
        let bytes = source.peek(format::CHECKABLE).map_err(OpenError::io(path))?;
        if bytes.is_empty() {
            return Ok(Some(Ending::Whole));
        }
        let Some(head) = format::read_record(bytes, self.position) else {
            let cut = bytes.len() < format::CHECKABLE && format::may_begin_record(bytes);
            let damaged = || Ending::Damaged("this is not a record".to_owned());
            return Ok(Some(if cut { Ending::CutShort } else { damaged() }));
        };
        let length = RECORD + head.length;
        let bytes = source.peek(length).map_err(OpenError::io(path))?;
        if bytes.len() < length {
            return Ok(Some(Ending::CutShort));
        }
        use FrameError::{UnknownKind, UnknownOperation, Version};
        match self.replay(head.kind, &bytes[RECORD..]) {
            Ok(()) => {}
            // The bytes are what was written, by a later release.
            Err(error @ (Version(_) | UnknownOperation(_) | UnknownKind(_))) => {
                return Err(self.unreadable(path, &error));
            }
            Err(error) => return Ok(Some(Ending::Damaged(error.to_string()))),
        }
        self.synced = self.synced.max(head.synced);
        source.consume(length);
        self.position += length as u64;
        Ok(None)
    }

    fn replay(&mut self, kind: Kind, body: &[u8]) -> Result<(), FrameError> {
        if kind == Kind::Incarnation {
            let incarnation =
                format::read_incarnation(body).ok_or(FrameError::Malformed("an incarnation"))?;
            let id = ActorId::new(&self.config.region, incarnation);
            let own = self.rows.table.actors_mut().intern(&id);
            self.rows.begin_incarnation(own, &self.held);
            self.incarnation = Some(incarnation);
            return Ok(());
        }
        let frame = Frame::parse(body, self.rows.table.actors_mut())?;
        let (writer, first, last) = (frame.writer(), frame.first_sequence(), frame.last_sequence());
        if first != self.held.get(writer) + 1 || frame.bytes().len() != body.len() {
            return Err(FrameError::Malformed("entries out of order"));
        }
        self.rows.deliver(&frame, first, last, |_, _| {});
        self.held.raise(writer, last);
        self.index.note(writer, first, self.position);
        if kind == Kind::Foreign {
            let region = Arc::clone(&self.rows.table.actors_mut().id(writer).region);
            let time = frame.entries().last().map_or(HybridTime(0), |entry| entry.time);
            let passed = self.times.entry(region).or_default();
            *passed = time.max(*passed);
        }
        Ok(())
    }
}

/// Decides about the end of the log and the incarnation, and opens the log for writing.
fn finish(
    config: &Config,
    place: Place,
    lock: Lock,
    identity: Option<Identity>,
    (floor, found): (Floor, Found),
    replay: Replay<'_>,
    ending: Ending,
) -> Result<Opened, OpenError> {
    let Replay { mut rows, held, index, incarnation, times, position, synced, .. } = replay;
    let directory = place.segments.directory().to_owned();
    let io_error = || OpenError::io(&directory);
    // What the log's files are must be known before any of them is changed.
    let bases = place.segments.bases();
    let files = bases.iter().map(|base| SegmentFile::of(*base, &place.segments.path(*base)));
    let files: Vec<SegmentFile> = files.collect::<io::Result<_>>().map_err(io_error())?;
    let verdict = match (&identity, incarnation, &ending) {
        (_, None, Ending::Whole | Ending::CutShort) => Err("it is new"),
        (_, _, Ending::Damaged(_)) => Err("the end of its log was damaged"),
        (None, ..) => Err("nothing proves that its log is whole"),
        (Some(identity), Some(incarnation), _) => identity.proves(incarnation, &files, position),
    };
    let last = identity.as_ref().map(|identity| identity.incarnation.clone());
    let last = last.and_then(|last| u64::from_str_radix(&last, 16).ok());
    // What was lost on the way may have had later times than the last heartbeat. The kernel keeps what it was given, and
    // after a failure it was given the clock; otherwise only what was reserved is known to lie above.
    let same_boot = identity.as_ref().is_some_and(Identity::is_of_this_boot);
    let is_whole = same_boot && !matches!(ending, Ending::Damaged(_));
    let time = if is_whole { found.said.time } else { found.said.time.max(found.reserved.time) };
    if let Ending::Damaged(reason) = &ending {
        tracing::warn!(
            "the log was damaged at byte {position}, beyond what was safely on disk ({reason}); it was cut there"
        );
    }
    let previous = identity.map(|identity| IdentityFile::new(&config.data, identity));
    if let (Err(_), Some(previous)) = (verdict, &previous) {
        // The cut log will look whole. If this start dies after the cut, the next one must know better.
        previous.record(true, |identity| identity.failed = true).map_err(OpenError::io(&config.data))?;
        floor.say(time, synced).map_err(OpenError::io(&config.data.join("clock")))?;
    }
    let (base, file) = open_last(&place, position).map_err(io_error())?;
    let file = Arc::new(file);
    let written = position.max(base + place.segments.header_length());
    rows.raise_clock(time);
    floor.observe(rows.clock.last());
    // First the log, then the claim that it is on disk: the claim alone would make a later start refuse it.
    if let Err(error) = force(&place, &file, synced) {
        // The next start's fsync may succeed all the same.
        previous.iter().for_each(IdentityFile::distrust);
        return Err(io_error()(error));
    }
    floor.say_synced(position).map_err(io_error())?;
    floor.renew(position).map_err(io_error())?;
    let names = File::open(&directory).map_err(io_error())?;
    let durability = Durability::new(config.fsync, names, Arc::clone(&file), written, floor);
    let durability = Arc::new(durability);
    let mut log = Log::new(place, file, base, written, index, durability);
    let fresh = verdict.is_err();
    let incarnation = match (verdict, incarnation) {
        (Ok(()), Some(incarnation)) => incarnation,
        (verdict, previous) => {
            let incarnation = random().map_err(OpenError::io(&config.data))?;
            if let (Err(reason), Some(previous)) = (verdict, previous) {
                tracing::info!("{}#{previous:016x} goes on as {incarnation:016x}: {reason}", config.region);
            }
            log.append_incarnation(incarnation);
            log.flush().map_err(io_error())?;
            let own = rows.table.actors_mut().intern(&ActorId::new(&config.region, incarnation));
            rows.begin_incarnation(own, &held);
            incarnation
        }
    };
    let mut identity = Identity::new(config, incarnation);
    identity.segments = segment_files(&log).map_err(io_error())?;
    identity.write(&config.data, true).map_err(OpenError::io(&config.data))?;
    let identity = Arc::new(IdentityFile::new(&config.data, identity));
    let times = times.into_iter().collect();
    let previous = last.filter(|last| *last != incarnation);
    Ok(Opened { lock, identity, rows, log, held, previous, times, fresh })
}

/// Cuts the log at `position` and opens its last segment for appending; makes the first one if there is none.
fn open_last(place: &Place, position: u64) -> io::Result<(u64, File)> {
    // A segment without a whole header is begun anew.
    let header = place.segments.header_length();
    let whole = |base: &u64| *base < position && position - base >= header;
    let Some(base) = place.segments.bases().into_iter().rfind(whole) else {
        place.segments.remove_from(position)?;
        return Ok((position, log::create_segment(place, position)?));
    };
    place.segments.remove_from(base + 1)?;
    let mut file = place.segments.open(base)?;
    file.set_len(position - base)?;
    file.seek(SeekFrom::End(0))?;
    Ok((base, file))
}

/// Forces onto the disk what of the log is not known to be there, and the names of its files.
fn force(place: &Place, last: &File, synced: u64) -> io::Result<()> {
    for (base, end) in place.segments.bases().windows(2).map(|pair| (pair[0], pair[1])) {
        if end > synced {
            place.segments.open(base)?.sync_all()?;
        }
    }
    last.sync_all()?;
    File::open(place.segments.directory())?.sync_all()
}

/// What the files of a log are now.
pub(crate) fn segment_files(log: &Log) -> io::Result<Vec<SegmentFile>> {
    let bases = log.segments().bases();
    bases.into_iter().map(|base| SegmentFile::of(base, &log.segments().path(base))).collect()
}

/// A new incarnation, or a seed.
pub(crate) fn random() -> io::Result<u64> {
    getrandom::u64().map_err(|error| io::Error::other(error.to_string()))
}

/// A file read in large pieces, from which any number of bytes can be looked at.
struct Source {
    file: File,
    buffer: Vec<u8>,
    /// What of the buffer is not consumed.
    start: usize,
    end: usize,
}

/// Bytes read at once.
const PIECE: usize = 1 << 20;

impl Source {
    fn new(file: File) -> Self {
        Self { file, buffer: vec![0; PIECE], start: 0, end: 0 }
    }

    /// The next `length` bytes, fewer only at the end of the file.
    fn peek(&mut self, length: usize) -> io::Result<&[u8]> {
        if self.end - self.start < length {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            while self.end < length {
                // The length is a claim until the bytes are there: grow with them.
                if self.buffer.len() == self.end {
                    self.buffer.resize(self.end + PIECE, 0);
                }
                match self.file.read(&mut self.buffer[self.end..])? {
                    0 => break,
                    read => self.end += read,
                }
            }
        }
        Ok(&self.buffer[self.start..self.end.min(self.start + length)])
    }

    fn consume(&mut self, length: usize) {
        self.start += length;
    }
}

//! From a data directory to a running state: replay, damage, incarnation.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use geode_crdt::{ActorId, ActorIndex, Digest, Frame, FrameError, HybridTime, VersionVector};
use geode_store::View;

use crate::checkpoint::{
    self, CheckpointFile, FileError, Found as FoundCheckpoint, Mark, Owner, SharedFile, Stored,
};
use crate::config::{Config, FsyncMode};
use crate::error::OpenError;
use crate::floor::{Floor, Found};
use crate::identity::{Identity, IdentityFile, Lock, SegmentFile};
use crate::log::format::{self, HeaderError, RECORD};
use crate::log::{self, Durability, Index, Kind, Log, Place, Segments};
use crate::rows::Rows;
use crate::snapshot::join::{Joining, Manner};
use crate::snapshot::{self, staging};
use crate::table::{Disk, Table};

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
    pub(crate) checkpoint: Option<FoundCheckpoint>,
    /// A snapshot that may still be needed.
    pub(crate) joined: Option<u64>,
    /// Whether this start took a new incarnation.
    pub(crate) fresh: bool,
}

/// Opens the directory and replays its log. Nothing in it is changed if an error is returned, but what a clean start
/// writes anyway.
pub(crate) fn open(config: &Config) -> Result<Opened, OpenError> {
    create_directory(&config.data).map_err(OpenError::io(&config.data))?;
    let lock = Lock::take(&config.data)?;
    let identity = Identity::read(config)?;
    let (floor, found) = Floor::open(&config.data.join("clock"), config.clock)?;
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
    let mut known_synced = found.synced.max(clean_stop);
    let mut replay = Replay::new(config, &place)?;
    let checkpoint = open_checkpoint(config, &place)?.map(|(file, stored, mark, mut table)| {
        // Keys may show entries up to there, so the log was forced onto the disk up to there before.
        known_synced = known_synced.max(stored.through);
        let owner = Owner::new(&config.planet, &config.region, stored.seed);
        let path = config.data.join(checkpoint::FILE);
        let file = Arc::new(SharedFile::new(path, owner, config.disk_cache(), Some(file)));
        if config.memory.is_some() {
            table.attach(Arc::clone(&file) as Arc<dyn Disk>);
        }
        let found = FoundCheckpoint {
            file,
            totals: stored.totals,
            actors: table.actors().clone(),
            position: mark.position,
        };
        replay.begin_at(&mark, &stored.index, table);
        found
    });
    let ending = replay.run(known_synced)?;
    let mut opened = finish(config, place.clone(), lock, identity, (floor, found), replay, ending)?;
    opened.checkpoint = checkpoint;
    Ok(opened)
}

/// Opens the checkpoint and loads its keys. One that cannot be used is set aside if the log says all of it too.
fn open_checkpoint(
    config: &Config,
    place: &Place,
) -> Result<Option<(CheckpointFile, Stored, Mark, Table)>, OpenError> {
    let path = config.data.join(checkpoint::FILE);
    let reaches_back = place.segments.bases().first().is_none_or(|base| *base == 0);
    let (planet, region) = (&config.planet, &config.region);
    let data = config.data.clone();
    let lost =
        |reason: String| OpenError::CheckpointDamaged { path: path.clone(), reason, data: data.clone() };
    if !path.try_exists().map_err(OpenError::io(&path))? {
        return if reaches_back { Ok(None) } else { Err(lost("it is missing".to_owned())) };
    }
    let read =
        CheckpointFile::open(&path, planet, region, config.disk_cache()).and_then(|(file, mut stored)| {
            let Some(mark) = stored.mark.take() else { return Ok(None) };
            let table = load(&file, &stored, &mark, config.memory.is_some())?;
            Ok(Some((file, stored, mark, table)))
        });
    match read {
        Ok(Some(found)) => Ok(Some(found)),
        // It was begun and never completed.
        Ok(None) if reaches_back => std::fs::remove_file(&path).map(|()| None).map_err(OpenError::io(&path)),
        Ok(None) => Err(lost("it was never completed".to_owned())),
        Err(FileError::Damaged(reason)) if reaches_back => {
            let aside = config.data.join("checkpoint.damaged");
            tracing::warn!(
                "{} is damaged ({reason}); it was moved to {} and the whole log is replayed. The disk may be failing",
                path.display(),
                aside.display()
            );
            std::fs::rename(&path, &aside).map_err(OpenError::io(&path))?;
            Ok(None)
        }
        Err(FileError::Damaged(reason)) => Err(lost(reason)),
        Err(FileError::NewerFormat(found)) => {
            Err(OpenError::NewerFormat { path, found, known: checkpoint::FORMAT })
        }
        Err(FileError::OtherPlanet(found)) => {
            Err(OpenError::OtherPlanet { path: data, found, expected: planet.clone() })
        }
        Err(FileError::OtherRegion(found)) => {
            Err(OpenError::OtherRegion { path: data, found, expected: region.clone() })
        }
        Err(FileError::Io(source)) => Err(OpenError::Io { path, source }),
    }
}

/// The table of a checkpoint's keys: all of them, or, if they may be more than fit in memory, only what must be there.
fn load(file: &CheckpointFile, stored: &Stored, mark: &Mark, stays_cold: bool) -> Result<Table, FileError> {
    let sums = |sums: &[u64]| sums.try_into().map_err(|_| FileError::Damaged("its totals".to_owned()));
    let digest = Digest::from_sums(sums(&stored.totals.digest)?);
    let mut table = Table::restored(stored.seed, &stored.actors, digest, sums(&stored.totals.live)?);
    let named = mark.actors().chain(stored.index.iter().map(|(actor, ..)| *actor));
    if named.max() >= Some(table.actors().len() as u32) {
        return Err(FileError::Damaged("it names a writer that it does not know".to_owned()));
    }
    for (owner, canceller, sequence) in &mark.depends {
        table.depend(ActorIndex(*owner), ActorIndex(*canceller), *sequence);
    }
    if stays_cold {
        table.begin_cold(&stored.totals.keys);
        file.look(|keys| keys.dead(|hash, key, image| table.take_in_unless_there(hash, key, image)))?;
        return Ok(table);
    }
    file.each(|changed| {
        let image = changed.image.unwrap_or_default();
        let loaded = table.load(changed.hash, changed.key, image);
        loaded.map_err(|error| FileError::Damaged(error.to_string()))
    })?;
    Ok(table)
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
    joined: Option<u64>,
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
        Ok(Self {
            config,
            place,
            rows: Rows::new(table, own),
            held: VersionVector::default(),
            index: Index::default(),
            incarnation: None,
            joined: None,
            synced: 0,
            position: place.segments.bases().first().copied().unwrap_or(0),
        })
    }

    /// Begins at the mark of a checkpoint whose keys are in `table`.
    fn begin_at(&mut self, mark: &Mark, index: &[(u32, u64, u64)], table: Table) {
        let own = ActorIndex(mark.own);
        self.incarnation = Some(table.actors().id(own).incarnation);
        self.rows = Rows::new(table, own);
        self.rows.raise_clock(HybridTime(mark.clock));
        self.rows.changed = mark.changed.iter().map(|actor| ActorIndex(*actor)).collect();
        let time = |(region, time): &(String, u64)| (Arc::from(region.as_str()), HybridTime(*time));
        self.rows.times = mark.times.iter().map(time).collect();
        for (actor, sequence) in &mark.held {
            self.held.raise(ActorIndex(*actor), *sequence);
        }
        for (actor, upto) in &mark.passed_over {
            self.index.pass_over(ActorIndex(*actor), *upto);
        }
        self.rows.unfinished = mark.unfinished;
        self.joined = mark.unfinished;
        for (actor, sequence, position) in index {
            self.index.note(ActorIndex(*actor), *sequence, *position);
        }
        self.index.trim(self.place.segments.bases().first().copied().unwrap_or(0));
        self.position = mark.position;
    }

    /// Replays everything up to the end or the first damage. Damage in what is known to have been on disk is an error.
    fn run(&mut self, known_synced: u64) -> Result<Ending, OpenError> {
        self.synced = known_synced;
        let mut bases = self.place.segments.bases();
        let begins_before = bases.partition_point(|base| *base <= self.position);
        bases.drain(..begins_before.saturating_sub(1));
        for (index, base) in bases.iter().enumerate() {
            let follows = *base == self.position || index == 0 && *base < self.position;
            let ending = if follows {
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
        let begin = std::mem::replace(&mut self.position, base);
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
        let begin = begin.max(self.position);
        if !source.skip(begin - self.position).map_err(OpenError::io(&path))? {
            return Ok(Ending::Damaged("it ends before the checkpoint does".to_owned()));
        }
        self.position = begin;
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
        if head.kind == Kind::Joined {
            let Some((id, manner)) = format::read_joined(&bytes[RECORD..]) else {
                return Err(self.unreadable(path, &FrameError::Malformed("how a snapshot is joined")));
            };
            self.join(id, manner).map_err(|source| self.snapshot_damaged(id, source))?;
            self.synced = self.synced.max(head.synced);
            source.consume(length);
            self.position += length as u64;
            return Ok(None);
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

    /// Joins a snapshot again, over the very rows over which it was joined before.
    fn join(&mut self, id: u64, manner: u8) -> io::Result<()> {
        let path = staging::path(&self.config.data.join(snapshot::DIRECTORY), id);
        let manner =
            Manner::from_code(manner).ok_or_else(|| io::Error::other("it is joined in an unknown way"))?;
        let mut joining = Joining::new(&path, &self.rows, &self.held, manner)?;
        let done = loop {
            if let Some(done) = joining.step(&mut self.rows)? {
                break done;
            }
        };
        for (actor, upto) in done.start.iter().filter(|(actor, upto)| *upto > self.held.get(*actor)) {
            self.index.pass_over(actor, upto);
        }
        self.held.join(&done.start);
        self.rows.unfinished = Some(id);
        self.joined = Some(id);
        Ok(())
    }

    fn snapshot_damaged(&self, id: u64, source: io::Error) -> OpenError {
        let data = self.config.data.clone();
        OpenError::SnapshotDamaged { path: staging::path(&data.join(snapshot::DIRECTORY), id), source, data }
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
        // At once, in the order of the disk.
        let places = self.rows.table.perhaps_cold_in(&frame);
        self.rows.table.load_places(&places);
        self.rows.deliver(&frame, first, last, |_, _| {});
        self.held.raise(writer, last);
        self.index.note(writer, first, self.position);
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
    let Replay { mut rows, held, index, incarnation, position, synced, joined, .. } = replay;
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
    let is_doubted = incarnation.is_some() && identity.as_ref().is_none_or(|identity| identity.failed);
    let began_empty = held.iter().next().is_none() && !config.peers.is_empty();
    let behind = began_empty || identity.as_ref().is_some_and(|identity| identity.behind);
    let previous = identity.map(|identity| IdentityFile::new(&config.data, identity));
    if let (Err(_), Some(previous)) = (verdict, &previous) {
        // The cut log will look whole. If this start dies after the cut, the next one must know better.
        previous.record(true, |identity| identity.failed = true).map_err(OpenError::io(&config.data))?;
        floor.say(time, synced).map_err(OpenError::io(&config.data.join("clock")))?;
    }
    let (base, file) = open_last(&place, position).map_err(io_error())?;
    let written = position.max(base + place.segments.header_length());
    rows.raise_clock(time);
    floor.observe(rows.clock.last());
    // First the log, then the claim that it is on disk: the claim alone would make a later start refuse it.
    let forced = if is_doubted {
        // An fsync of these files may have failed.
        log::rewrite(&place.segments, synced, written)
    } else {
        force(&place, &file, synced).map(|()| file)
    };
    let file = match forced {
        Ok(file) => Arc::new(file),
        Err(error) => {
            // The next start's fsync may succeed all the same.
            previous.iter().for_each(IdentityFile::distrust);
            return Err(io_error()(error));
        }
    };
    floor.say_synced(position).map_err(io_error())?;
    floor.renew(position).map_err(io_error())?;
    let names = File::open(&directory).map_err(io_error())?;
    let durability = Durability::new(config.fsync, names, Arc::clone(&file), written, floor);
    let durability = Arc::new(durability);
    let mut log = Log::new(place, file, base, written, index, durability);
    log.make_room();
    let fresh = verdict.is_err();
    let incarnation = match (verdict, incarnation) {
        (Ok(()), Some(incarnation)) => incarnation,
        (verdict, previous) => {
            let incarnation = random().map_err(OpenError::io(&config.data))?;
            if let (Err(reason), Some(previous)) = (verdict, previous) {
                tracing::info!("{}#{previous:016x} goes on as {incarnation:016x}: {reason}", config.region);
            }
            log.append_incarnation(incarnation);
            log.flush().map_err(io::Error::other).map_err(io_error())?;
            let own = rows.table.actors_mut().intern(&ActorId::new(&config.region, incarnation));
            rows.begin_incarnation(own, &held);
            incarnation
        }
    };
    let mut identity = Identity::new(config, incarnation);
    identity.segments = segment_files(log.segments()).map_err(io_error())?;
    identity.behind = behind;
    identity.write(&config.data, true).map_err(OpenError::io(&config.data))?;
    let identity = Arc::new(IdentityFile::new(&config.data, identity));
    let previous = last.filter(|last| *last != incarnation);
    Ok(Opened { lock, identity, rows, log, held, checkpoint: None, joined, previous, fresh })
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
pub(crate) fn segment_files(segments: &Segments) -> io::Result<Vec<SegmentFile>> {
    segments.bases().into_iter().map(|base| SegmentFile::of(base, &segments.path(base))).collect()
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

    /// Passes over bytes from the place where it stands; nothing was looked at behind it but what is in the buffer. False
    /// if the file ends before.
    fn skip(&mut self, length: u64) -> io::Result<bool> {
        let buffered = (self.end - self.start) as u64;
        if length <= buffered {
            self.start += length as usize;
            return Ok(true);
        }
        let position = self.file.stream_position()? + (length - buffered);
        (self.start, self.end) = (0, 0);
        Ok(self.file.seek(SeekFrom::Start(position))? <= self.file.metadata()?.len())
    }

    fn consume(&mut self, length: usize) {
        self.start += length;
    }
}

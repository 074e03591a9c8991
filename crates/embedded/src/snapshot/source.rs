//! The source of a snapshot: reads rows and log while the region goes on serving and writing.
//!
//! The data thread is asked for one bounded part of its keys at a time, in the order of their hashes; the log is read
//! beside it from its files, so what is written meanwhile is not kept for it. Nothing is remembered here of who was sent
//! what: each block carries where to go on, and that is valid as long as the table orders its keys as before, the region
//! writes under the same actor and the log still reaches back.

use std::io;
use std::sync::Arc;

use geode_crdt::codec::{self, Reader as Decoder};
use geode_replica::Vector;
use geode_store::{Engine, View};
use tokio::runtime;
use tokio::sync::{oneshot, watch};

use super::format::{self, Begin, End, Kind, Numbers, invalid, put_block};
use crate::engine::Embedded;
use crate::inbox::{Inbox, Incoming};
use crate::log::{self, Reader, Segments};

/// Bytes of images that the data thread makes at once: a third of a millisecond.
const IMAGES: usize = 256 << 10;
/// The place of a walk that is over.
const DONE: u64 = u64::MAX;

/// What a source needs of its region.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) segments: Arc<Segments>,
    /// Up to where the log may be sent: what shows more waits.
    pub(crate) shippable: watch::Receiver<u64>,
}

/// Where a snapshot goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    snapshot: u64,
    /// Orders the table's keys.
    seed: u64,
    incarnation: u64,
    /// Where the log is read next.
    tail: u64,
    /// The least hash not visited, or [`DONE`].
    hash: u64,
    keys: u64,
}

/// Makes a snapshot, block by block. Its calls block; it is for threads where that is no harm.
#[derive(Debug)]
pub(crate) struct Source {
    surroundings: Surroundings,
    runtime: runtime::Handle,
    place: Place,
    crc: u32,
    tail: Option<Reader>,
    /// The end, once all keys were visited, and where the log was then.
    end: Option<(u64, End)>,
    /// Where to go on, as whoever asked says.
    resume: Vec<u8>,
    /// Whether it did go on there: then whoever asked takes a new beginning.
    goes_on: bool,
    is_done: bool,
}

/// What the data thread says when a snapshot begins or goes on.
struct Beginning {
    position: u64,
    place: Place,
    /// `None` if it goes on.
    begin: Option<Begin>,
    crc: u32,
}

/// A part of the keys.
struct Part {
    content: Vec<u8>,
    keys: u64,
    next: u64,
    /// What it shows is in the log before this.
    position: u64,
}

impl Source {
    /// A new snapshot, or the rest of one if `resume` is not empty and still valid.
    pub(crate) fn new(surroundings: Surroundings, runtime: runtime::Handle, resume: Vec<u8>) -> Self {
        let place = Place { snapshot: 0, seed: 0, incarnation: 0, tail: 0, hash: 0, keys: 0 };
        Self {
            surroundings,
            runtime,
            place,
            crc: 0,
            tail: None,
            end: None,
            resume,
            goes_on: false,
            is_done: false,
        }
    }

    pub(crate) const fn is_done(&self) -> bool {
        self.is_done
    }

    /// Appends the next blocks; `block` is told how long each is going to be before it is appended, and may append a head.
    ///
    /// # Errors
    /// In words for whoever asked.
    pub(crate) fn read(
        &mut self,
        out: &mut Vec<u8>,
        mut head: impl FnMut(&mut Vec<u8>, usize),
    ) -> io::Result<()> {
        let mut add = |out: &mut Vec<u8>, block: &[u8]| {
            head(out, block.len());
            out.extend_from_slice(block);
        };
        let mut block = Vec::new();
        if self.tail.is_none() {
            if self.begin(&mut block)? {
                add(out, &block);
            }
            return Ok(());
        }
        if self.place.hash != DONE {
            self.images(&mut block)?;
            add(out, &block);
        }
        if self.place.hash == DONE && self.end.is_none() {
            let (position, end) = self.ask(|engine| engine.snapshot_end())?;
            self.end = Some((position, End { keys: self.place.keys, ..end }));
        }
        block.clear();
        if self.tail(&mut block)? {
            add(out, &block);
            block.clear();
        }
        if let Some((position, end)) = self.end.take_if(|(position, _)| *position <= self.place.tail) {
            self.wait_until_shippable(position)?;
            self.put(&mut block, Kind::End, |out| end.put(out));
            add(out, &block);
            self.is_done = true;
        }
        Ok(())
    }

    /// Returns whether there is a block.
    fn begin(&mut self, block: &mut Vec<u8>) -> io::Result<bool> {
        let resume = std::mem::take(&mut self.resume);
        let beginning = self.ask(move |engine| engine.snapshot_begin(&resume))?;
        (self.place, self.crc) = (beginning.place, beginning.crc);
        self.tail = Some(Reader::new(Arc::clone(&self.surroundings.segments), self.place.tail));
        self.goes_on = beginning.begin.is_none();
        let Some(begin) = beginning.begin else { return Ok(false) };
        self.wait_until_shippable(beginning.position)?;
        self.put(block, Kind::Begin, |out| begin.put(out));
        Ok(true)
    }

    fn images(&mut self, block: &mut Vec<u8>) -> io::Result<()> {
        let (hash, incarnation) = (self.place.hash, self.place.incarnation);
        let part = self.ask(move |engine| engine.snapshot_part(hash, incarnation))?;
        self.wait_until_shippable(part.position)?;
        self.place.hash = part.next;
        self.place.keys += part.keys;
        self.put(block, Kind::Images, |out| out.extend_from_slice(&part.content));
        Ok(())
    }

    /// The next entries of the log. Returns whether there are any.
    fn tail(&mut self, block: &mut Vec<u8>) -> io::Result<bool> {
        let limit = self.end.as_ref().map(|(position, _)| *position);
        if let Some(position) = limit {
            self.wait_until_shippable(position)?;
        }
        let limit = limit.unwrap_or_else(|| *self.surroundings.shippable.borrow());
        let Some(reader) = &mut self.tail else { return Ok(false) };
        if self.place.tail >= limit {
            return Ok(false);
        }
        let gone = |_| invalid("its log no longer reaches back to where the snapshot began");
        let mut content = Vec::new();
        for record in reader.read(limit).map_err(gone)? {
            match record.kind {
                log::Kind::Own | log::Kind::Foreign => codec::put_bytes(&mut content, record.body),
                // What was read before is no part of what is held now. Whoever asked to go on from there would ask so for
                // ever.
                log::Kind::Incarnation | log::Kind::Joined if self.goes_on => {
                    (self.tail, self.end) = (None, None);
                    return Ok(false);
                }
                log::Kind::Incarnation => return Err(invalid("it goes on as another writer")),
                log::Kind::Joined => return Err(invalid("it has joined a snapshot itself")),
            }
        }
        // At the end of a segment the next one begins with a header.
        self.place.tail = reader.position();
        if content.is_empty() {
            return Ok(false);
        }
        self.put(block, Kind::Tail, |out| out.extend_from_slice(&content));
        Ok(true)
    }

    fn put(&mut self, out: &mut Vec<u8>, kind: Kind, content: impl FnOnce(&mut Vec<u8>)) {
        let resume = self.place.encode();
        self.crc = put_block(out, kind, (self.place.snapshot, self.crc), &resume, content);
    }

    /// What is shown must not be lost here by a crash that the other region survives.
    fn wait_until_shippable(&mut self, position: u64) -> io::Result<()> {
        let shippable = &mut self.surroundings.shippable;
        if *shippable.borrow() >= position {
            return Ok(());
        }
        let waited = self.runtime.block_on(shippable.wait_for(|shippable| *shippable >= position));
        waited.map(drop).map_err(|_| stopped())
    }

    fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Embedded) -> Result<T, String> + Send + 'static,
    ) -> io::Result<T> {
        let (answer, answered) = oneshot::channel();
        self.surroundings.inbox.push(Incoming::Question(Box::new(move |engine| {
            // Whoever asked may have gone.
            let _ = answer.send(question(engine));
        })));
        answered.blocking_recv().map_err(|_| stopped())?.map_err(invalid)
    }
}

fn stopped() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "it has stopped")
}

impl Place {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for word in [self.snapshot, self.seed, self.incarnation, self.hash] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        codec::put_varint(&mut out, self.tail);
        codec::put_varint(&mut out, self.keys);
        out
    }

    /// The place, and the checksum of the block with which it came.
    fn decode(bytes: &[u8]) -> Option<(Self, u32)> {
        let mut reader = Decoder::new(bytes);
        let mut word = || reader.u64().ok();
        let (snapshot, seed, incarnation, hash) = (word()?, word()?, word()?, word()?);
        let (tail, keys) = (reader.varint().ok()?, reader.varint().ok()?);
        let crc = reader.u32().ok()?;
        reader.is_empty().then_some((Self { snapshot, seed, incarnation, tail, hash, keys }, crc))
    }
}

impl Embedded {
    fn snapshot_begin(&mut self, resume: &[u8]) -> Result<Beginning, String> {
        let position = self.whole()?;
        let core = self.core();
        let (rows, actors) = (&core.rows, core.rows.table.actors());
        let (seed, incarnation) = (rows.table.seed(), actors.id(rows.own).incarnation);
        if let Some((place, crc)) = Place::decode(resume) {
            let first = core.log.segments().bases().first().copied().unwrap_or(0);
            let reaches = (first..=position).contains(&place.tail);
            if (place.seed, place.incarnation) == (seed, incarnation) && reaches {
                return Ok(Beginning { position, place, begin: None, crc });
            }
        }
        let snapshot = crate::recovery::random().map_err(|error| error.to_string())?;
        let mut times = rows.times.clone();
        times.insert(Arc::clone(&actors.id(rows.own).region), rows.clock.last());
        let id = |actor| actors.id(actor).clone();
        let depends = rows.table.depends().map(|(owner, by, sequence)| (id(owner), id(by), sequence));
        let begin = Begin {
            planet: self.planet().to_owned(),
            source: id(rows.own),
            clock: rows.clock.last(),
            keys: rows.table.live_keys(),
            start: Vector::of(self.held(), actors).0,
            times,
            depends: depends.collect(),
        };
        let place = Place { snapshot, seed, incarnation, tail: position, hash: 0, keys: 0 };
        Ok(Beginning { position, place, begin: Some(begin), crc: 0 })
    }

    /// The keys from a hash on.
    fn snapshot_part(&mut self, from: u64, incarnation: u64) -> Result<Part, String> {
        let position = self.whole()?;
        let rows = &self.core().rows;
        if rows.table.actors().id(rows.own).incarnation != incarnation {
            return Err("it goes on as another writer".to_owned());
        }
        let (mut numbers, mut images, mut keys) = (Numbers::default(), Vec::new(), 0);
        let next = rows.table.images(
            from,
            IMAGES,
            |actor| numbers.number(actor),
            |key, image| {
                keys += 1;
                format::put_image(&mut images, key, image);
            },
        );
        let mut content = Vec::new();
        numbers.put(&mut content, rows.table.actors());
        content.append(&mut images);
        Ok(Part { content, keys, next: next.unwrap_or(DONE), position })
    }

    fn snapshot_end(&mut self) -> Result<(u64, End), String> {
        let position = self.whole()?;
        let rows = &self.core().rows;
        let end = Vector::of(self.held(), rows.table.actors()).0;
        Ok((position, End { clock: rows.clock.last(), keys: 0, end }))
    }

    /// Everything that is shown is in the log before the returned position, and it is causally whole.
    fn whole(&mut self) -> Result<u64, String> {
        if !self.is_whole() {
            return Err("it is joining itself".to_owned());
        }
        self.flush().map(|position| position.0).map_err(|error| error.to_string())
    }
}

//! The bytes of a snapshot, the same on the wire, aside while it comes, and in a backup.
//!
//! ```text
//! file   = "GEODESNP" | version u16 | block*
//! block  = kind u8 | length u32 of the body | body | crc32 u32 of all before
//! body   = snapshot u64 | before u32: the crc of the block before, 0 for the first | resume | content
//! begin  = planet | actors | source number | clock u64 | keys | count, (number, sequence)*: the start vector
//!          | count, (region, time u64)*: below which every entry of it is held
//!          | count, (owner number, by number, sequence)*: what the entries of the first depend on
//! images = actors | (database u8, name, image)*
//! tail   = frame*: entries in the order in which the source delivered them, with their lengths
//! end    = clock u64 | keys | actors | count, (number, sequence)*: the end vector
//! actors = count, (region, incarnation u64)*: their numbers count from 0
//! ```
//! The first block is the beginning, the last the end; between them images and entries come as they may. So every block names
//! the one before, a snapshot has no block too few, too many, or of another one. `resume` tells its source where it goes on
//! behind this block, and is nobody else's business. Integers are little-endian or LEB128; names, images and frames stand with
//! their lengths. Golden bytes stand in `tests/golden`.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read};
use std::sync::Arc;

use geode_crdt::codec::{self, Reader};
use geode_crdt::frame::{MAX_FRAME, PREFIX};
use geode_crdt::{ActorId, ActorIndex, Actors, Frame, FrameError, HybridTime, KeyName, VersionVector};

/// What a file begins with; the version that this release writes.
pub(crate) const MAGIC: &[u8; 8] = b"GEODESNP";
pub(crate) const VERSION: u16 = 1;
/// Bytes of a file before its first block.
pub(crate) const FILE_HEAD: usize = 10;
/// Bytes of a block before its body, and behind it.
const HEAD: usize = 5;
const CRC: usize = 4;
/// The longest block, as long as a frame may be: one key may be that large.
const MAX_BLOCK: usize = MAX_FRAME + PREFIX;

/// What a block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Begin,
    Images,
    Tail,
    End,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Begin, Self::Images, Self::Tail, Self::End];

    const fn code(self) -> u8 {
        match self {
            Self::Begin => 1,
            Self::Images => 2,
            Self::Tail => 3,
            Self::End => 4,
        }
    }
}

/// A block whose checksum was right.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block<'b> {
    pub(crate) kind: Kind,
    pub(crate) snapshot: u64,
    /// The checksum of the block before.
    pub(crate) before: u32,
    pub(crate) resume: &'b [u8],
    pub(crate) content: &'b [u8],
    /// Its own checksum.
    pub(crate) crc: u32,
}

/// What a snapshot says at its beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Begin {
    pub(crate) planet: String,
    /// The actor under which the source writes.
    pub(crate) source: ActorId,
    /// The source's clock.
    pub(crate) clock: HybridTime,
    /// About how many keys there are.
    pub(crate) keys: u64,
    pub(crate) start: BTreeMap<ActorId, u64>,
    pub(crate) times: BTreeMap<Arc<str>, HybridTime>,
    pub(crate) depends: Vec<(ActorId, ActorId, u64)>,
}

/// What it says at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct End {
    /// No row is later.
    pub(crate) clock: HybridTime,
    /// How many images came.
    pub(crate) keys: u64,
    pub(crate) end: BTreeMap<ActorId, u64>,
}

/// The bytes with which a file begins.
pub(crate) fn file_head() -> [u8; FILE_HEAD] {
    let mut head = [0; FILE_HEAD];
    head[..8].copy_from_slice(MAGIC);
    head[8..].copy_from_slice(&VERSION.to_le_bytes());
    head
}

/// Appends a block with what `content` appends to it. Returns its checksum.
pub(crate) fn put_block(
    out: &mut Vec<u8>,
    kind: Kind,
    (snapshot, before): (u64, u32),
    resume: &[u8],
    content: impl FnOnce(&mut Vec<u8>),
) -> u32 {
    let start = out.len();
    out.extend_from_slice(&[kind.code(), 0, 0, 0, 0]);
    out.extend_from_slice(&snapshot.to_le_bytes());
    out.extend_from_slice(&before.to_le_bytes());
    codec::put_bytes(out, resume);
    content(out);
    let length = (out.len() - start - HEAD) as u32;
    out[start + 1..start + HEAD].copy_from_slice(&length.to_le_bytes());
    let crc = crc32fast::hash(&out[start..]);
    out.extend_from_slice(&crc.to_le_bytes());
    crc
}

/// Reads a whole block.
///
/// # Errors
/// The bytes are none.
pub(crate) fn read_block(bytes: &[u8]) -> Result<Block<'_>, FrameError> {
    let (checked, crc) = bytes.split_at(bytes.len().checked_sub(CRC).ok_or(FrameError::Short)?);
    let crc = Reader::new(crc).u32()?;
    if crc != crc32fast::hash(checked) {
        return Err(FrameError::Checksum);
    }
    let mut reader = Reader::new(checked);
    let code = reader.byte()?;
    let kind = Kind::ALL.into_iter().find(|kind| kind.code() == code);
    let kind = kind.ok_or(FrameError::Malformed("a block of no known kind"))?;
    if reader.u32()? as usize != reader.rest().len() {
        return Err(FrameError::Malformed("a block of another length"));
    }
    let (snapshot, before, resume) = (reader.u64()?, reader.u32()?, reader.bytes()?);
    Ok(Block { kind, snapshot, before, resume, content: reader.rest(), crc })
}

/// Numbers for the actors of one block, in order of first mention.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    numbers: BTreeMap<ActorIndex, u32>,
    order: Vec<ActorIndex>,
}

impl Numbers {
    pub(crate) fn number(&mut self, actor: ActorIndex) -> u32 {
        let next = self.order.len() as u32;
        *self.numbers.entry(actor).or_insert_with(|| {
            self.order.push(actor);
            next
        })
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>, actors: &Actors) {
        put_actors(out, self.order.iter().map(|actor| actors.id(*actor)));
    }
}

fn put_actors<'a>(out: &mut Vec<u8>, actors: impl ExactSizeIterator<Item = &'a ActorId>) {
    codec::put_varint(out, actors.len() as u64);
    for actor in actors {
        codec::put_bytes(out, actor.region.as_bytes());
        out.extend_from_slice(&actor.incarnation.to_le_bytes());
    }
}

/// The actors that a block names, by number.
pub(crate) fn read_actors(reader: &mut Reader<'_>) -> Result<Vec<ActorId>, FrameError> {
    let count = reader.varint()?;
    if count > Actors::MAX as u64 {
        return Err(FrameError::TooLong(count));
    }
    let mut actors = Vec::new();
    for _ in 0..count {
        let region = read_name(reader)?.to_owned();
        actors.push(ActorId::new(&region, reader.u64()?));
    }
    Ok(actors)
}

fn read_name<'a>(reader: &mut Reader<'a>) -> Result<&'a str, FrameError> {
    let name = reader.bytes()?;
    if name.len() > 255 {
        return Err(FrameError::TooLong(name.len() as u64));
    }
    std::str::from_utf8(name).map_err(|_| FrameError::Malformed("a name"))
}

/// Planet-wide names and the numbers that stand for them.
struct Names<'n>(BTreeMap<&'n ActorId, u64>);

impl<'n> Names<'n> {
    fn new(actors: impl Iterator<Item = &'n ActorId>) -> Self {
        let mut numbers: BTreeMap<&ActorId, u64> = actors.map(|actor| (actor, 0)).collect();
        numbers.values_mut().enumerate().for_each(|(index, number)| *number = index as u64);
        Self(numbers)
    }

    fn put(&self, out: &mut Vec<u8>) {
        codec::put_varint(out, self.0.len() as u64);
        for actor in self.0.keys() {
            codec::put_bytes(out, actor.region.as_bytes());
            out.extend_from_slice(&actor.incarnation.to_le_bytes());
        }
    }

    fn put_actor(&self, out: &mut Vec<u8>, actor: &ActorId) {
        codec::put_varint(out, self.0.get(actor).copied().unwrap_or(0));
    }

    fn put_vector(&self, out: &mut Vec<u8>, vector: &BTreeMap<ActorId, u64>) {
        codec::put_varint(out, vector.len() as u64);
        for (actor, sequence) in vector {
            self.put_actor(out, actor);
            codec::put_varint(out, *sequence);
        }
    }
}

fn read_actor<'a>(reader: &mut Reader<'_>, actors: &'a [ActorId]) -> Result<&'a ActorId, FrameError> {
    let number = usize::try_from(reader.varint()?).ok();
    number.and_then(|number| actors.get(number)).ok_or(FrameError::Malformed("a number that names no writer"))
}

fn read_vector(reader: &mut Reader<'_>, actors: &[ActorId]) -> Result<BTreeMap<ActorId, u64>, FrameError> {
    let mut vector = BTreeMap::new();
    for _ in 0..reader.varint()? {
        let actor = read_actor(reader, actors)?.clone();
        vector.insert(actor, reader.varint()?);
    }
    Ok(vector)
}

impl Begin {
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let depends = self.depends.iter().flat_map(|(owner, by, _)| [owner, by]);
        let names = Names::new(self.start.keys().chain([&self.source]).chain(depends));
        codec::put_bytes(out, self.planet.as_bytes());
        names.put(out);
        names.put_actor(out, &self.source);
        out.extend_from_slice(&self.clock.0.to_le_bytes());
        codec::put_varint(out, self.keys);
        names.put_vector(out, &self.start);
        codec::put_varint(out, self.times.len() as u64);
        for (region, time) in &self.times {
            codec::put_bytes(out, region.as_bytes());
            out.extend_from_slice(&time.0.to_le_bytes());
        }
        codec::put_varint(out, self.depends.len() as u64);
        for (owner, by, sequence) in &self.depends {
            names.put_actor(out, owner);
            names.put_actor(out, by);
            codec::put_varint(out, *sequence);
        }
    }

    pub(crate) fn read(content: &[u8]) -> Result<Self, FrameError> {
        let mut reader = Reader::new(content);
        let planet = read_name(&mut reader)?.to_owned();
        let actors = read_actors(&mut reader)?;
        let source = read_actor(&mut reader, &actors)?.clone();
        let (clock, keys) = (HybridTime(reader.u64()?), reader.varint()?);
        let start = read_vector(&mut reader, &actors)?;
        let (mut times, mut depends) = (BTreeMap::new(), Vec::new());
        for _ in 0..reader.varint()? {
            let region = read_name(&mut reader)?.into();
            times.insert(region, HybridTime(reader.u64()?));
        }
        for _ in 0..reader.varint()? {
            let owner = read_actor(&mut reader, &actors)?.clone();
            let by = read_actor(&mut reader, &actors)?.clone();
            depends.push((owner, by, reader.varint()?));
        }
        ends(&reader).map(|()| Self { planet, source, clock, keys, start, times, depends })
    }
}

impl End {
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let names = Names::new(self.end.keys());
        out.extend_from_slice(&self.clock.0.to_le_bytes());
        codec::put_varint(out, self.keys);
        names.put(out);
        names.put_vector(out, &self.end);
    }

    pub(crate) fn read(content: &[u8]) -> Result<Self, FrameError> {
        let mut reader = Reader::new(content);
        let (clock, keys) = (HybridTime(reader.u64()?), reader.varint()?);
        let actors = read_actors(&mut reader)?;
        let end = read_vector(&mut reader, &actors)?;
        ends(&reader).map(|()| Self { clock, keys, end })
    }
}

fn ends(reader: &Reader<'_>) -> Result<(), FrameError> {
    if reader.is_empty() { Ok(()) } else { Err(FrameError::Malformed("bytes after a block's content")) }
}

/// A vector with planet-wide names in this process's.
pub(crate) fn intern(vector: &BTreeMap<ActorId, u64>, actors: &mut Actors) -> VersionVector {
    VersionVector::from_portable(vector, actors)
}

/// A block of images: the actors by the numbers that stand for them, and the keys.
pub(crate) fn read_images(content: &[u8]) -> Result<(Vec<ActorId>, Images<'_>), FrameError> {
    let mut reader = Reader::new(content);
    Ok((read_actors(&mut reader)?, Images(reader)))
}

/// Keys with their images.
pub(crate) struct Images<'a>(Reader<'a>);

impl<'a> Images<'a> {
    fn read(&mut self) -> Result<(KeyName<'a>, &'a [u8]), FrameError> {
        let (database, name) = (self.0.byte()?, self.0.bytes()?);
        Ok((KeyName { database, name }, self.0.bytes()?))
    }
}

impl<'a> Iterator for Images<'a> {
    type Item = Result<(KeyName<'a>, &'a [u8]), FrameError>;

    fn next(&mut self) -> Option<Self::Item> {
        (!self.0.is_empty()).then(|| self.read().inspect_err(|_| self.0 = Reader::new(&[])))
    }
}

/// Appends a key with its image.
pub(crate) fn put_image(out: &mut Vec<u8>, key: KeyName<'_>, image: &[u8]) {
    out.push(key.database);
    codec::put_bytes(out, key.name);
    codec::put_bytes(out, image);
}

/// Visits the frames of a block of entries.
pub(crate) fn each_frame(
    content: &[u8],
    actors: &mut Actors,
    mut visit: impl FnMut(&Frame<'_>, &mut Actors) -> Result<(), FrameError>,
) -> Result<(), FrameError> {
    let mut reader = Reader::new(content);
    while !reader.is_empty() {
        let bytes = reader.bytes()?;
        let frame = Frame::parse(bytes, actors)?;
        if frame.bytes().len() != bytes.len() {
            return Err(FrameError::Malformed("a frame with bytes after its end"));
        }
        visit(&frame, actors)?;
    }
    Ok(())
}

/// The bytes of blocks, one after the other, from a file.
#[derive(Debug)]
pub(crate) struct Blocks<R> {
    source: BufReader<R>,
    bytes: Vec<u8>,
    /// Bytes up to the end of the last whole block.
    pub(crate) position: u64,
}

impl<R: Read> Blocks<R> {
    /// Reads a file from its beginning.
    ///
    /// # Errors
    /// It cannot be read, or is no snapshot of a release that this one knows.
    pub(crate) fn new(source: R) -> io::Result<Self> {
        let mut blocks = Self { source: BufReader::new(source), bytes: Vec::new(), position: 0 };
        let mut head = [0; FILE_HEAD];
        let whole = read_up_to(&mut blocks.source, &mut head)? == FILE_HEAD;
        if !whole || &head[..8] != MAGIC {
            return Err(invalid("it is no snapshot"));
        }
        let version = u16::from_le_bytes([head[8], head[9]]);
        if version != VERSION {
            let reason = format!("it has format {version}, this release knows {VERSION}; use a newer geode");
            return Err(io::Error::new(io::ErrorKind::Unsupported, reason));
        }
        blocks.position = FILE_HEAD as u64;
        Ok(blocks)
    }

    /// The next block, `None` where the file ends or a block is cut short or damaged there.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn next(&mut self) -> io::Result<Option<Block<'_>>> {
        self.bytes.resize(HEAD, 0);
        if read_up_to(&mut self.source, &mut self.bytes)? < HEAD {
            return Ok(None);
        }
        let length =
            u32::from_le_bytes([self.bytes[1], self.bytes[2], self.bytes[3], self.bytes[4]]) as usize;
        if length > MAX_BLOCK {
            return Ok(None);
        }
        let whole = HEAD + length + CRC;
        // The length is a claim until the bytes are there.
        let rest = (whole - HEAD) as u64;
        if (&mut self.source).take(rest).read_to_end(&mut self.bytes)? as u64 != rest {
            return Ok(None);
        }
        let Ok(block) = read_block(&self.bytes) else { return Ok(None) };
        self.position += whole as u64;
        Ok(Some(block))
    }
}

fn read_up_to(source: &mut impl Read, out: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < out.len() {
        match source.read(&mut out[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

pub(crate) fn invalid(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

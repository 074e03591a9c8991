//! Frames: a run of one actor's consecutive entries as bytes, the unit of the log and of the wire.
//!
//! The bytes that the writer appended to its log are the bytes that its peers receive, check and append to theirs.
//! A frame names the actors it speaks of in its own dictionary, so it means the same on every machine, and each entry
//! stands alone relative to the frame's head, so a frame can be cut between any two entries ([`Frame::slice`]).
//!
//! ```text
//! frame   = version u8 | length u32 of all that follows the crc | crc32 u32 of the same | head | entry*
//! head    = first sequence u64 | entries u32 | base time u64 | actors u16 | actor*     (actor 0 is the writer)
//! actor   = region length u8 | region | incarnation u64
//! entry   = length u32 of the rest | time above base, varint | changed, varint | (actor, sequence)* | operation*
//! ```
//! All integers are little-endian. `changed` is the part of the writer's version vector that differs from the one of
//! its previous entry: what this entry depends on beyond what its predecessor did.

use smallvec::SmallVec;

use crate::actor::{ActorId, ActorIndex, Actors};
use crate::amount::Amount;
use crate::codec::{self, Reader};
use crate::dot::{Dot, Mark};
use crate::hybrid::HybridTime;
use crate::op::{self, KeyName, Kind, Ops};

/// The version that this release writes; golden bytes of each version stand in `tests/golden`.
pub const VERSION: u8 = 1;

/// Bytes before the checksummed part: version, length, crc.
pub const PREFIX: usize = 9;

/// The longest frame that is accepted: a transaction of the largest values must fit, a corrupt length must not
/// allocate without bound.
pub const MAX_FRAME: usize = 1 << 30;

/// Why bytes are not a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The bytes end too early.
    #[error("the frame ends early")]
    Short,
    /// The length field is impossible.
    #[error("a frame of {0} bytes is beyond the limit")]
    TooLong(u64),
    /// The checksum does not match.
    #[error("the frame's checksum does not match its content")]
    Checksum,
    /// Written by a release that this one does not know.
    #[error("frame version {0} is not known; run a release that knows it")]
    Version(u8),
    /// An operation of a later release.
    #[error("operation {0} is not known; run a release that knows it")]
    UnknownOperation(u8),
    /// A type of a later release.
    #[error("data type {0} is not known; run a release that knows it")]
    UnknownKind(u8),
    /// The content contradicts itself although the checksum is right.
    #[error("the frame holds {0} that cannot be")]
    Malformed(&'static str),
}

/// A parsed frame over borrowed bytes. Everything in it was checked, so iterating cannot fail half-way.
#[derive(Clone, Debug)]
pub struct Frame<'a> {
    bytes: &'a [u8],
    entries: &'a [u8],
    dictionary: SmallVec<[ActorIndex; 8]>,
    first_sequence: u64,
    count: u32,
    base: HybridTime,
}

/// One entry (transaction) of a frame.
#[derive(Clone, Debug)]
pub struct EntryRef<'a> {
    /// Its place in the writer's stream.
    pub sequence: u64,
    /// When it was written.
    pub time: HybridTime,
    writer: ActorIndex,
    dictionary: &'a [ActorIndex],
    changed: Reader<'a>,
    changed_count: u64,
    ops: &'a [u8],
}

/// The total length of the frame that begins at `bytes`, as its prefix claims; `None` if the prefix is not whole.
fn claimed_length(bytes: &[u8]) -> Result<Option<usize>, FrameError> {
    let Some(prefix) = bytes.get(..PREFIX) else { return Ok(None) };
    if prefix[0] != VERSION {
        return Err(FrameError::Version(prefix[0]));
    }
    let length = u64::from(Reader::new(&prefix[1..]).u32()?);
    if length > MAX_FRAME as u64 {
        return Err(FrameError::TooLong(length));
    }
    Ok(Some(PREFIX + length as usize))
}

/// Whose entries a frame holds and which: all that somebody needs who only passes frames on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head<'a> {
    /// The writer's region.
    pub region: &'a str,
    /// The writer's incarnation.
    pub incarnation: u64,
    /// The sequence of the first entry.
    pub first_sequence: u64,
    /// The sequence of the last entry.
    pub last_sequence: u64,
}

/// Reads the head of the frame at the start of `bytes`, which may end anywhere after it. The checksum is not looked at.
pub fn peek(bytes: &[u8]) -> Result<Head<'_>, FrameError> {
    let mut reader = Reader::new(bytes.get(PREFIX..).ok_or(FrameError::Short)?);
    let (first_sequence, count) = (reader.u64()?, reader.u32()?);
    // Base time, and the count of actors, of whom the first is the writer.
    reader.take(8 + 2)?;
    let (region, incarnation) = read_actor_id(&mut reader)?;
    let last_sequence = first_sequence.saturating_add(u64::from(count)).saturating_sub(1);
    Ok(Head { region, incarnation, first_sequence, last_sequence })
}

/// Whether `bytes` are one frame, no more and no less, whose checksum is right. What it says is not looked at.
pub fn is_sound(bytes: &[u8]) -> bool {
    let is_whole = matches!(claimed_length(bytes), Ok(Some(length)) if length == bytes.len());
    is_whole && Reader::new(&bytes[5..]).u32() == Ok(crc32fast::hash(&bytes[PREFIX..]))
}

impl<'a> Frame<'a> {
    /// Checks and opens a frame that stands at the start of `bytes` (more may follow it). Actors in it are interned.
    /// Linear in the frame.
    pub fn parse(bytes: &'a [u8], actors: &mut Actors) -> Result<Self, FrameError> {
        let length = claimed_length(bytes)?.ok_or(FrameError::Short)?;
        let bytes = bytes.get(..length).ok_or(FrameError::Short)?;
        let content = &bytes[PREFIX..];
        if Reader::new(&bytes[5..]).u32()? != crc32fast::hash(content) {
            return Err(FrameError::Checksum);
        }
        let mut reader = Reader::new(content);
        let (first_sequence, count) = (reader.u64()?, reader.u32()?);
        let base = HybridTime(reader.u64()?);
        if first_sequence == 0 || first_sequence.checked_add(u64::from(count)).is_none() || count == 0 {
            return Err(FrameError::Malformed("a range of sequences"));
        }
        let dictionary = read_dictionary(&mut reader, actors)?;
        let frame = Self { bytes, entries: reader.rest(), dictionary, first_sequence, count, base };
        frame.check()?;
        Ok(frame)
    }

    /// Who wrote it.
    pub fn writer(&self) -> ActorIndex {
        self.dictionary[0]
    }

    /// The sequence of its first entry.
    pub const fn first_sequence(&self) -> u64 {
        self.first_sequence
    }

    /// The sequence of its last entry.
    pub const fn last_sequence(&self) -> u64 {
        self.first_sequence + self.count as u64 - 1
    }

    /// The bytes of the whole frame.
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The checksum that stands in the frame, a fingerprint of its content.
    pub fn checksum(&self) -> u32 {
        Reader::new(&self.bytes[5..]).u32().unwrap_or(0)
    }

    /// The entries in order.
    pub fn entries(&self) -> impl Iterator<Item = EntryRef<'_>> {
        let mut reader = Reader::new(self.entries);
        // `check` read every entry once, so `ok` never cuts the iteration short.
        (0..u64::from(self.count)).map_while(move |index| self.read_entry(&mut reader, index).ok())
    }

    /// The frame that holds only the entries `from..=to` of this one, as new bytes.
    pub fn slice(&self, from: u64, to: u64, actors: &Actors) -> Vec<u8> {
        let mut reader = Reader::new(self.entries);
        let (mut start, mut end) = (0, self.entries.len());
        for sequence in self.first_sequence..=self.last_sequence() {
            let at = self.entries.len() - reader.rest().len();
            if sequence == from {
                start = at;
            }
            // Cannot fail: `check` walked the same lengths.
            let Ok(length) = reader.u32() else { break };
            let Ok(_) = reader.take(length as usize) else { break };
            if sequence == to {
                end = self.entries.len() - reader.rest().len();
            }
        }
        let from = from.max(self.first_sequence);
        let count = (to.min(self.last_sequence()) + 1 - from) as u32;
        let mut out = Vec::new();
        write_frame(&mut out, from, count, self.base, &self.dictionary, actors, &self.entries[start..end]);
        out
    }

    fn read_entry<'f>(&'f self, reader: &mut Reader<'f>, index: u64) -> Result<EntryRef<'f>, FrameError> {
        let length = reader.u32()? as usize;
        let mut body = Reader::new(reader.take(length)?);
        let above = body.varint()?;
        let time = self.base.0.checked_add(above).ok_or(FrameError::Malformed("a time above 64 bits"))?;
        let changed_count = body.varint()?;
        let changed = body;
        for _ in 0..changed_count {
            op::read_actor(&mut body, &self.dictionary)?;
            body.varint()?;
        }
        Ok(EntryRef {
            sequence: self.first_sequence + index,
            time: HybridTime(time),
            writer: self.writer(),
            dictionary: &self.dictionary,
            changed,
            changed_count,
            ops: body.rest(),
        })
    }

    fn check(&self) -> Result<(), FrameError> {
        let mut reader = Reader::new(self.entries);
        let mut last = HybridTime(0);
        for index in 0..u64::from(self.count) {
            let entry = self.read_entry(&mut reader, index)?;
            if entry.time <= last {
                return Err(FrameError::Malformed("a time that does not grow"));
            }
            last = entry.time;
            for op in entry.ops() {
                op?;
            }
        }
        if reader.is_empty() { Ok(()) } else { Err(FrameError::Malformed("bytes after the last entry")) }
    }
}

impl<'a> EntryRef<'a> {
    /// Who wrote it.
    pub const fn writer(&self) -> ActorIndex {
        self.writer
    }

    /// What it depends on beyond what the writer's previous entry depended on.
    pub fn changed(&self) -> impl Iterator<Item = (ActorIndex, u64)> + use<'a> {
        let (mut reader, dictionary) = (self.changed, self.dictionary);
        // Checked when the frame was parsed.
        (0..self.changed_count)
            .map_while(move |_| Some((op::read_actor(&mut reader, dictionary).ok()?, reader.varint().ok()?)))
    }

    /// Its operations in order.
    pub fn ops(&self) -> Ops<'a> {
        let mark = Mark { sequence: self.sequence, ordinal: 0 };
        Ops::new(self.ops, self.dictionary, Dot { actor: self.writer, mark })
    }
}

fn read_dictionary(
    reader: &mut Reader<'_>,
    actors: &mut Actors,
) -> Result<SmallVec<[ActorIndex; 8]>, FrameError> {
    let count = u16::from_le_bytes(reader.take(2)?.try_into().map_err(|_| FrameError::Short)?);
    let mut dictionary = SmallVec::new();
    for _ in 0..count {
        let (region, incarnation) = read_actor_id(reader)?;
        let actor = actors.intern_foreign(&ActorId::new(region, incarnation));
        dictionary.push(actor.ok_or(FrameError::Malformed("more writers than a planet can have,"))?);
    }
    if dictionary.is_empty() { Err(FrameError::Malformed("no writer")) } else { Ok(dictionary) }
}

/// An actor's region and incarnation.
fn read_actor_id<'a>(reader: &mut Reader<'a>) -> Result<(&'a str, u64), FrameError> {
    let length = usize::from(reader.byte()?);
    let region = std::str::from_utf8(reader.take(length)?);
    let region = region.map_err(|_| FrameError::Malformed("a region's name"))?;
    Ok((region, reader.u64()?))
}

fn write_frame(
    out: &mut Vec<u8>,
    first_sequence: u64,
    count: u32,
    base: HybridTime,
    dictionary: &[ActorIndex],
    actors: &Actors,
    entries: &[u8],
) {
    let start = out.len();
    out.push(VERSION);
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&first_sequence.to_le_bytes());
    out.extend_from_slice(&count.to_le_bytes());
    out.extend_from_slice(&base.0.to_le_bytes());
    out.extend_from_slice(&(dictionary.len() as u16).to_le_bytes());
    for actor in dictionary {
        let id = actors.id(*actor);
        out.push(id.region.len() as u8);
        out.extend_from_slice(id.region.as_bytes());
        out.extend_from_slice(&id.incarnation.to_le_bytes());
    }
    out.extend_from_slice(entries);
    let content = start + PREFIX;
    let length = (out.len() - content) as u32;
    let crc = crc32fast::hash(&out[content..]);
    out[start + 1..start + 5].copy_from_slice(&length.to_le_bytes());
    out[start + 5..content].copy_from_slice(&crc.to_le_bytes());
}

/// Builds the frame of a writer's next entries. Buffers are reused from frame to frame: no allocation per entry.
#[derive(Debug)]
pub struct FrameBuilder {
    dictionary: Vec<ActorIndex>,
    entries: Vec<u8>,
    first_sequence: u64,
    count: u32,
    base: HybridTime,
    open: Option<OpenEntry>,
}

#[derive(Clone, Copy, Debug)]
struct OpenEntry {
    start: usize,
    ops: usize,
    next: Dot,
    dictionary: usize,
}

/// A place in the open entry to which [`FrameBuilder::rewind`] can return.
#[derive(Clone, Copy, Debug)]
pub struct Checkpoint {
    length: usize,
    ordinal: u32,
    dictionary: usize,
}

impl FrameBuilder {
    /// For the writer whose next entry has the sequence `next_sequence`.
    pub fn new(writer: ActorIndex, next_sequence: u64) -> Self {
        Self {
            dictionary: vec![writer],
            entries: Vec::new(),
            first_sequence: next_sequence,
            count: 0,
            base: HybridTime(0),
            open: None,
        }
    }

    /// The actor whose entries these are.
    pub fn writer(&self) -> ActorIndex {
        self.dictionary[0]
    }

    /// The sequence of the open entry, or of the one that would be opened next.
    pub const fn sequence(&self) -> u64 {
        self.first_sequence + self.count as u64
    }

    /// Bytes collected so far, the head not counted.
    pub const fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no entry was finished since the last [`Self::finish_into`].
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Opens the next entry. `time` must be above that of the entry before; `changed` is the part of the writer's
    /// vector that grew since its previous entry, itself excluded.
    pub fn begin_entry(&mut self, time: HybridTime, changed: impl IntoIterator<Item = (ActorIndex, u64)>) {
        debug_assert!(self.open.is_none(), "entries do not nest");
        if self.count == 0 {
            self.base = time;
        }
        let (start, dictionary) = (self.entries.len(), self.dictionary.len());
        self.entries.extend_from_slice(&[0; 4]);
        codec::put_varint(&mut self.entries, time.0 - self.base.0);
        let changed: SmallVec<[(ActorIndex, u64); 8]> = changed.into_iter().collect();
        codec::put_varint(&mut self.entries, changed.len() as u64);
        for (actor, sequence) in changed {
            self.put_actor(actor);
            codec::put_varint(&mut self.entries, sequence);
        }
        let next = Dot { actor: self.writer(), mark: Mark { sequence: self.sequence(), ordinal: 0 } };
        self.open = Some(OpenEntry { start, ops: self.entries.len(), next, dictionary });
    }

    /// Closes the open entry and returns its sequence. An entry without operations is taken back: `None`.
    pub fn finish_entry(&mut self) -> Option<u64> {
        let open = self.open.take()?;
        if self.entries.len() == open.ops {
            self.entries.truncate(open.start);
            self.dictionary.truncate(open.dictionary);
            return None;
        }
        let length = (self.entries.len() - open.start - 4) as u32;
        self.entries[open.start..open.start + 4].copy_from_slice(&length.to_le_bytes());
        self.count += 1;
        Some(self.sequence() - 1)
    }

    /// Appends the frame of all finished entries to `out` and starts the next one. Writes nothing if there is none.
    pub fn finish_into(&mut self, out: &mut Vec<u8>, actors: &Actors) {
        debug_assert!(self.open.is_none(), "finish the entry first");
        if self.count > 0 {
            write_frame(
                out,
                self.first_sequence,
                self.count,
                self.base,
                &self.dictionary,
                actors,
                &self.entries,
            );
        }
        self.first_sequence = self.sequence();
        self.count = 0;
        self.entries.clear();
        self.dictionary.truncate(1);
    }

    /// Where the open entry stands now.
    pub fn checkpoint(&self) -> Checkpoint {
        let ordinal = self.open.map_or(0, |open| open.next.mark.ordinal);
        Checkpoint { length: self.entries.len(), ordinal, dictionary: self.dictionary.len() }
    }

    /// Takes back what was added to the open entry since the checkpoint: a command that cannot go on yet leaves no trace.
    pub fn rewind(&mut self, to: Checkpoint) {
        self.entries.truncate(to.length);
        self.dictionary.truncate(to.dictionary);
        if let Some(open) = &mut self.open {
            open.next.mark.ordinal = to.ordinal;
        }
    }

    /// The operations added to the open entry since the checkpoint, to be applied to the local state the way a
    /// replica applies them.
    pub fn ops_since(&self, from: Checkpoint) -> Ops<'_> {
        let mark = Mark { sequence: self.sequence(), ordinal: from.ordinal };
        Ops::new(&self.entries[from.length..], &self.dictionary, Dot { actor: self.writer(), mark })
    }

    /// The name that the next row written will have.
    pub fn next_dot(&self) -> Dot {
        let mark =
            Mark { sequence: self.sequence(), ordinal: self.open.map_or(0, |open| open.next.mark.ordinal) };
        Dot { actor: self.writer(), mark }
    }

    /// [`crate::Op::Set`]. Returns the name of the new rows.
    pub fn set(&mut self, key: KeyName<'_>, value: &[u8], replaces: impl IntoIterator<Item = Dot>) -> Dot {
        op::put_key(&mut self.entries, op::SET, key);
        codec::put_bytes(&mut self.entries, value);
        self.put_dots(replaces);
        self.take_dot()
    }

    /// [`crate::Op::Put`]. Returns the name of the new row.
    pub fn put(
        &mut self,
        key: KeyName<'_>,
        kind: Kind,
        element: &[u8],
        value: &[u8],
        replaces: impl IntoIterator<Item = Dot>,
    ) -> Dot {
        op::put_cell(&mut self.entries, op::PUT, key, kind, element);
        codec::put_bytes(&mut self.entries, value);
        self.put_dots(replaces);
        self.take_dot()
    }

    /// [`crate::Op::Remove`].
    pub fn remove(&mut self, key: KeyName<'_>, kind: Kind, element: &[u8], dot: Dot) {
        op::put_cell(&mut self.entries, op::REMOVE, key, kind, element);
        self.put_dot(dot);
    }

    /// [`crate::Op::Sum`]: `start` is `None` for the first increment of a run. Returns the increment's name.
    pub fn sum(
        &mut self,
        key: KeyName<'_>,
        kind: Kind,
        element: &[u8],
        start: Option<Mark>,
        total: Amount,
    ) -> Dot {
        op::put_cell(&mut self.entries, op::SUM, key, kind, element);
        self.entries.push(u8::from(start.is_some()));
        if let Some(start) = start {
            op::put_mark(&mut self.entries, start);
        }
        op::put_amount(&mut self.entries, total);
        self.take_dot()
    }

    /// [`crate::Op::Cancel`].
    pub fn cancel(
        &mut self,
        key: KeyName<'_>,
        kind: Kind,
        element: &[u8],
        target: ActorIndex,
        upto: Mark,
        amount: Amount,
    ) {
        op::put_cell(&mut self.entries, op::CANCEL, key, kind, element);
        self.put_actor(target);
        op::put_mark(&mut self.entries, upto);
        op::put_amount(&mut self.entries, amount);
    }

    fn take_dot(&mut self) -> Dot {
        let dot = self.next_dot();
        debug_assert!(self.open.is_some(), "rows are written inside an entry");
        if let Some(open) = &mut self.open {
            open.next.mark.ordinal += 1;
        }
        dot
    }

    fn put_actor(&mut self, actor: ActorIndex) {
        // Linear, but a frame speaks of as many actors as there are regions.
        let known = self.dictionary.iter().position(|held| *held == actor);
        let index = known.unwrap_or_else(|| {
            self.dictionary.push(actor);
            self.dictionary.len() - 1
        });
        codec::put_varint(&mut self.entries, index as u64);
    }

    fn put_dot(&mut self, dot: Dot) {
        self.put_actor(dot.actor);
        op::put_mark(&mut self.entries, dot.mark);
    }

    fn put_dots(&mut self, dots: impl IntoIterator<Item = Dot>) {
        let dots: SmallVec<[Dot; 4]> = dots.into_iter().collect();
        codec::put_varint(&mut self.entries, dots.len() as u64);
        for dot in dots {
            self.put_dot(dot);
        }
    }
}

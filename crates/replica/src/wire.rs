//! What two replicas say to each other, as bytes.
//!
//! ```text
//! message = type u8 | length u32 of the body | body
//! hello   = newest version u16 | oldest version u16 | planet | actor | held | witness*
//! block   = attempt u64 | block of a snapshot
//! packed  = length u32 of what is compressed | messages that carry frames or blocks, as one frame of Zstandard (RFC 8878)
//! ```
//! A frame's body is the frame as it stands in the log, a block's the block as it stands in a snapshot; both carry their own
//! checksums. Every other body but a packed one ends with the crc32 of what comes before it. Integers are little-endian or LEB128; golden bytes stand in `tests/golden`. Later
//! versions only append to a hello, and a reader ignores what follows the fields it knows, so that any two releases
//! understand each other's at least so far as to agree on a version or to refuse in words.

use geode_crdt::codec::{self, Reader};
use geode_crdt::frame::{MAX_FRAME, PREFIX};
use geode_crdt::{ActorId, FrameError, HybridTime};

use crate::names::{Given, Told};
use crate::vector::{Vector, read_name};

/// The versions of this exchange that this release speaks. Version 1, never released, could not be mixed with others.
pub const VERSIONS: Versions = Versions { oldest: 2, newest: 5 };

/// The version since which frames may come in [`Kind::Packed`] messages.
pub const PACKED_SINCE: u16 = 3;

/// The version since which snapshots are asked for and sent.
pub const SNAPSHOTS_SINCE: u16 = 4;

/// The version since which a region is told that nobody takes what it writes.
pub const EXCLUDED_SINCE: u16 = 5;

/// The most bytes of messages in one [`Kind::Packed`]: several chunks of a log, and little to hold.
pub const MAX_PACKED: usize = 1 << 20;
/// Bytes of a packed body before what is compressed.
pub const PACKED_PREFIX: usize = 4;

/// Bytes before a body.
pub const HEAD: usize = 5;

/// The longest body that is no frame: vectors of as many actors as any planet will have.
const MAX_CONTROL: usize = 4 << 20;
/// The longest refusal; it is one line.
const MAX_REASON: usize = 512;
/// Bytes before a block.
const ATTEMPT: usize = 8;
/// The longest place in a snapshot; it is a few numbers.
const MAX_RESUME: usize = 256;

/// The type of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Who I am and what I hold; the first message of each side.
    Hello,
    /// Entries.
    Frame,
    /// Where I stand; several times a second.
    Heartbeat,
    /// Send me entries that I lack.
    Request,
    /// I will not talk to you.
    Refuse,
    /// So much of what you wrote is on my disk.
    Durable,
    /// Frames, compressed; since [`PACKED_SINCE`].
    Packed,
    /// What you need is no longer in my log; since [`SNAPSHOTS_SINCE`], like all that follow.
    Trimmed,
    /// Send me a snapshot.
    Ask,
    /// I cannot send you a snapshot.
    Unable,
    /// A block of a snapshot; only in bulk.
    Block,
    /// I will not talk to you, and nobody takes what you write; since [`EXCLUDED_SINCE`].
    Exclude,
}

impl Kind {
    const ALL: [Self; 12] = [
        Self::Hello,
        Self::Frame,
        Self::Heartbeat,
        Self::Request,
        Self::Refuse,
        Self::Durable,
        Self::Packed,
        Self::Trimmed,
        Self::Ask,
        Self::Unable,
        Self::Block,
        Self::Exclude,
    ];

    const fn code(self) -> u8 {
        match self {
            Self::Hello => 1,
            Self::Frame => 2,
            Self::Heartbeat => 3,
            Self::Request => 4,
            Self::Refuse => 5,
            Self::Durable => 6,
            Self::Packed => 7,
            Self::Trimmed => 8,
            Self::Ask => 9,
            Self::Unable => 10,
            Self::Block => 11,
            Self::Exclude => 12,
        }
    }
}

/// Which versions of the exchange somebody speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// The oldest.
    pub oldest: u16,
    /// The newest.
    pub newest: u16,
}

impl Versions {
    /// The version that two sides speak with each other: the newest that both know, if there is one.
    pub fn agreed(self, other: Self) -> Option<u16> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest.max(other.oldest)).then_some(newest)
    }
}

/// What one side knows of the other's own stream, so that a side that lost its tail notices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Witness {
    /// An actor of the region that is spoken to.
    pub actor: ActorId,
    /// The last sequence of it that the speaker holds.
    pub sequence: u64,
    /// The checksum of that one entry, cut out of its frame (`Frame::slice`); every holder computes the same.
    pub fingerprint: u32,
}

/// Everything but frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// [`Kind::Hello`]
    Hello {
        /// [`VERSIONS`] of the speaker. They stand first, for ever.
        versions: Versions,
        /// The speaker's planet.
        planet: String,
        /// The actor under which the speaker's region writes now; it names the region too.
        actor: ActorId,
        /// What the speaker holds.
        held: Vector,
        /// What the speaker knows of the hearer's own streams.
        witnesses: Vec<Witness>,
    },
    /// [`Kind::Heartbeat`]
    Heartbeat {
        /// The actor under which the speaker's region writes now.
        actor: ActorId,
        /// Its last entry so far.
        sequence: u64,
        /// Every later entry of the speaker's region has a greater time.
        time: HybridTime,
        /// The speaker's wall clock, as it reads.
        wall: HybridTime,
        /// How far the hearer's wall clock was ahead of the speaker's when its last heartbeat arrived, in microseconds;
        /// 0 if it was not, or none came yet.
        ahead_us: u64,
        /// What the speaker holds, as far as it has grown since it was last said on this link.
        held: Vector,
    },
    /// [`Kind::Durable`]
    Durable {
        /// What the hearer's region wrote and is on the speaker's disk, as far as it has grown since it was last said on
        /// this link.
        durable: Vector,
    },
    /// [`Kind::Request`]
    Request {
        /// Whose entries.
        actor: ActorId,
        /// The first one wanted.
        from: u64,
        /// The last one wanted.
        to: u64,
    },
    /// [`Kind::Refuse`]
    Refuse {
        /// One line that says what is wrong.
        reason: String,
    },
    /// [`Kind::Exclude`]
    Exclude {
        /// One line that says why, and what to do.
        reason: String,
    },
    /// [`Kind::Trimmed`]
    Trimmed {
        /// Whose entry the hearer needs next and the speaker's log no longer holds.
        actor: ActorId,
        /// Which entry.
        from: u64,
    },
    /// [`Kind::Ask`]
    Ask {
        /// Tells the blocks that follow from those that an earlier question brought.
        attempt: u64,
        /// Where to go on, as the speaker was told with the last block that it has; empty if it has nothing.
        resume: Vec<u8>,
    },
    /// [`Kind::Unable`]
    Unable {
        /// One line that says why no snapshot comes.
        reason: String,
    },
}

/// Reads the head of a message: its type and the length of its body.
///
/// # Errors
/// No such type, or a length that cannot be.
pub fn read_head(head: [u8; HEAD]) -> Result<(Kind, usize), FrameError> {
    let kind = Kind::ALL.into_iter().find(|kind| kind.code() == head[0]);
    let kind = kind.ok_or(FrameError::Malformed("a message of no known type"))?;
    let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
    let limit = match kind {
        Kind::Frame => MAX_FRAME + PREFIX,
        Kind::Block => ATTEMPT + MAX_FRAME + PREFIX,
        Kind::Packed => PACKED_PREFIX + MAX_PACKED,
        _ => MAX_CONTROL,
    };
    if length > limit { Err(FrameError::TooLong(length as u64)) } else { Ok((kind, length)) }
}

/// Appends the head of a message that carries a frame of `length` bytes; the frame itself follows.
pub fn put_frame_head(out: &mut Vec<u8>, length: usize) {
    out.push(Kind::Frame.code());
    out.extend_from_slice(&(length as u32).to_le_bytes());
}

/// Appends the head of a message that carries a block of `length` bytes, which follows, in answer to an attempt.
pub fn put_block_head(out: &mut Vec<u8>, attempt: u64, length: usize) {
    out.push(Kind::Block.code());
    out.extend_from_slice(&((ATTEMPT + length) as u32).to_le_bytes());
    out.extend_from_slice(&attempt.to_le_bytes());
}

/// The attempt that the body of a block message answers, and the block.
pub fn split_block(body: &[u8]) -> Option<(u64, &[u8])> {
    let (attempt, block) = body.split_first_chunk::<ATTEMPT>()?;
    Some((u64::from_le_bytes(*attempt), block))
}

/// Appends the head of a message that carries `length` bytes of messages in `packed` bytes, which follow.
pub fn put_packed_head(out: &mut Vec<u8>, length: usize, packed: usize) {
    out.push(Kind::Packed.code());
    out.extend_from_slice(&((PACKED_PREFIX + packed) as u32).to_le_bytes());
    out.extend_from_slice(&(length as u32).to_le_bytes());
}

/// Reads the body of a packed message: how many bytes of messages it claims to hold, and what is compressed.
///
/// # Errors
/// It ends early, or claims more than [`MAX_PACKED`].
pub fn read_packed(body: &[u8]) -> Result<(usize, &[u8]), FrameError> {
    let mut reader = Reader::new(body);
    let length = reader.u32()? as usize;
    if length > MAX_PACKED { Err(FrameError::TooLong(length as u64)) } else { Ok((length, reader.rest())) }
}

impl Message {
    /// Takes the place of an earlier message of the same kind that was never sent: what that one said of a vector is
    /// said by this one too.
    pub fn supersede(&mut self, earlier: Self) {
        match (self, earlier) {
            (Self::Heartbeat { held: vector, .. }, Self::Heartbeat { held: earlier, .. })
            | (Self::Durable { durable: vector }, Self::Durable { durable: earlier }) => {
                for (actor, sequence) in earlier.0 {
                    let said = vector.0.entry(actor).or_insert(sequence);
                    *said = sequence.max(*said);
                }
            }
            _ => {}
        }
    }

    /// The writers that it names, some more than once.
    pub(crate) fn actors(&self) -> impl Iterator<Item = &ActorId> {
        let (actor, vector) = match self {
            Self::Hello { actor, held, .. } | Self::Heartbeat { actor, held, .. } => {
                (Some(actor), Some(held))
            }
            Self::Durable { durable } => (None, Some(durable)),
            Self::Request { actor, .. } | Self::Trimmed { actor, .. } => (Some(actor), None),
            Self::Refuse { .. } | Self::Exclude { .. } | Self::Ask { .. } | Self::Unable { .. } => {
                (None, None)
            }
        };
        actor.into_iter().chain(vector.into_iter().flat_map(|vector| vector.0.keys()))
    }

    const fn kind(&self) -> Kind {
        match self {
            Self::Hello { .. } => Kind::Hello,
            Self::Heartbeat { .. } => Kind::Heartbeat,
            Self::Request { .. } => Kind::Request,
            Self::Refuse { .. } => Kind::Refuse,
            Self::Exclude { .. } => Kind::Exclude,
            Self::Durable { .. } => Kind::Durable,
            Self::Trimmed { .. } => Kind::Trimmed,
            Self::Ask { .. } => Kind::Ask,
            Self::Unable { .. } => Kind::Unable,
        }
    }
}

/// Encodes what is said on one direction of a link. Everything it encodes must be sent, in that order.
#[derive(Debug, Default)]
pub struct Encoder {
    given: Given,
}

impl Encoder {
    /// Appends head and body.
    pub fn encode(&mut self, message: &Message, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[message.kind().code(), 0, 0, 0, 0]);
        self.put_body(message, out);
        let body = start + HEAD;
        let crc = crc32fast::hash(&out[body..]);
        out.extend_from_slice(&crc.to_le_bytes());
        let length = (out.len() - body) as u32;
        out[start + 1..body].copy_from_slice(&length.to_le_bytes());
    }

    fn put_body(&mut self, message: &Message, out: &mut Vec<u8>) {
        let given = &mut self.given;
        match message {
            Message::Hello { versions, planet, actor, held, witnesses } => {
                out.extend_from_slice(&versions.newest.to_le_bytes());
                out.extend_from_slice(&versions.oldest.to_le_bytes());
                codec::put_bytes(out, planet.as_bytes());
                given.put(out, actor);
                given.put_vector(out, held);
                codec::put_varint(out, witnesses.len() as u64);
                for witness in witnesses {
                    given.put(out, &witness.actor);
                    codec::put_varint(out, witness.sequence);
                    out.extend_from_slice(&witness.fingerprint.to_le_bytes());
                }
            }
            Message::Heartbeat { actor, sequence, time, wall, ahead_us, held } => {
                given.put(out, actor);
                codec::put_varint(out, *sequence);
                out.extend_from_slice(&time.0.to_le_bytes());
                // The two are seldom far apart.
                codec::put_signed(out, i128::from(wall.0) - i128::from(time.0));
                codec::put_varint(out, *ahead_us);
                given.put_vector(out, held);
            }
            Message::Request { actor, from, to } => {
                given.put(out, actor);
                codec::put_varint(out, *from);
                codec::put_varint(out, *to);
            }
            Message::Refuse { reason } | Message::Exclude { reason } | Message::Unable { reason } => {
                codec::put_bytes(out, reason.as_bytes());
            }
            Message::Trimmed { actor, from } => {
                given.put(out, actor);
                codec::put_varint(out, *from);
            }
            Message::Ask { attempt, resume } => {
                codec::put_varint(out, *attempt);
                codec::put_bytes(out, resume);
            }
            Message::Durable { durable } => given.put_vector(out, durable),
        }
    }
}

/// Reads what an [`Encoder`] wrote, from untrusted bytes.
#[derive(Debug, Default)]
pub struct Decoder {
    told: Told,
}

impl Decoder {
    /// Reads the body of any message but a frame. After an error nothing more can be read.
    ///
    /// # Errors
    /// The bytes are not what [`Encoder::encode`] writes.
    pub fn decode(&mut self, kind: Kind, body: &[u8]) -> Result<Message, FrameError> {
        let content = body.len().checked_sub(4).ok_or(FrameError::Short)?;
        let (content, crc) = body.split_at(content);
        if Reader::new(crc).u32()? != crc32fast::hash(content) {
            return Err(FrameError::Checksum);
        }
        let mut reader = Reader::new(content);
        let message = self.read_body(kind, &mut reader)?;
        if reader.is_empty() { Ok(message) } else { Err(FrameError::Malformed("bytes after a message")) }
    }

    fn read_body(&mut self, kind: Kind, reader: &mut Reader<'_>) -> Result<Message, FrameError> {
        let told = &mut self.told;
        Ok(match kind {
            Kind::Hello => self.read_hello(reader)?,
            Kind::Heartbeat => {
                let (actor, sequence) = (told.read(reader)?, reader.varint()?);
                let time = HybridTime(reader.u64()?);
                let wall = u64::try_from(i128::from(time.0).saturating_add(reader.signed()?));
                let wall = HybridTime(wall.map_err(|_| FrameError::Malformed("a time above 64 bits"))?);
                let (ahead_us, held) = (reader.varint()?, told.read_vector(reader)?);
                Message::Heartbeat { actor, sequence, time, wall, ahead_us, held }
            }
            Kind::Request => {
                let actor = told.read(reader)?;
                Message::Request { actor, from: reader.varint()?, to: reader.varint()? }
            }
            Kind::Refuse => Message::Refuse { reason: read_reason(reader)? },
            Kind::Exclude => Message::Exclude { reason: read_reason(reader)? },
            Kind::Durable => Message::Durable { durable: told.read_vector(reader)? },
            Kind::Trimmed => Message::Trimmed { actor: told.read(reader)?, from: reader.varint()? },
            Kind::Ask => {
                let (attempt, resume) = (reader.varint()?, reader.bytes()?.to_vec());
                if resume.len() > MAX_RESUME {
                    return Err(FrameError::TooLong(resume.len() as u64));
                }
                Message::Ask { attempt, resume }
            }
            Kind::Unable => Message::Unable { reason: read_reason(reader)? },
            Kind::Frame | Kind::Packed | Kind::Block => {
                return Err(FrameError::Malformed("frames or blocks where a message was expected"));
            }
        })
    }

    fn read_hello(&mut self, reader: &mut Reader<'_>) -> Result<Message, FrameError> {
        let newest = read_version(reader)?;
        // Version 1 said no oldest one, and nothing after its version is known.
        let oldest = if newest == 1 { 1 } else { read_version(reader)? };
        let versions = Versions { oldest, newest };
        if VERSIONS.agreed(versions).is_none() {
            reader.take(reader.rest().len())?;
            return Ok(Message::hello_of(versions));
        }
        let planet = read_name(reader)?.to_owned();
        let (actor, held) = (self.told.read(reader)?, self.told.read_vector(reader)?);
        let mut witnesses = Vec::new();
        for _ in 0..reader.varint()? {
            let (actor, sequence) = (self.told.read(reader)?, reader.varint()?);
            witnesses.push(Witness { actor, sequence, fingerprint: reader.u32()? });
        }
        if newest > VERSIONS.newest {
            reader.take(reader.rest().len())?;
        }
        Ok(Message::Hello { versions, planet, actor, held, witnesses })
    }
}

impl Message {
    /// A hello of which no more is known than its versions: it is refused by them alone.
    fn hello_of(versions: Versions) -> Self {
        let (planet, actor) = (String::new(), ActorId::new("", 0));
        Self::Hello { versions, planet, actor, held: Vector::default(), witnesses: Vec::new() }
    }
}

fn read_reason(reader: &mut Reader<'_>) -> Result<String, FrameError> {
    let bytes = reader.bytes()?;
    let reason = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_REASON)]);
    Ok(reason.replace(char::is_control, " "))
}

fn read_version(reader: &mut Reader<'_>) -> Result<u16, FrameError> {
    Ok(u16::from_le_bytes([reader.byte()?, reader.byte()?]))
}

//! What two replicas say to each other, as bytes.
//!
//! ```text
//! message = type u8 | length u32 of the body | body
//! ```
//! A frame's body is the frame as it stands in the log; it carries its own checksum. Every other body ends with the
//! crc32 of what comes before it. Integers are little-endian or LEB128; golden bytes stand in `tests/golden`.

use geode_crdt::codec::{self, Reader};
use geode_crdt::frame::{MAX_FRAME, PREFIX};
use geode_crdt::{ActorId, FrameError, HybridTime};

use crate::vector::{Vector, put_actor, read_actor, read_name};

/// The version of this exchange; both sides must speak the same.
pub const VERSION: u16 = 1;

/// Bytes before a body.
pub const HEAD: usize = 5;

/// The longest body that is no frame: vectors of as many actors as any planet will have.
const MAX_CONTROL: usize = 4 << 20;
/// The longest refusal; it is one line.
const MAX_REASON: usize = 512;

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
}

impl Kind {
    const ALL: [Self; 5] = [Self::Hello, Self::Frame, Self::Heartbeat, Self::Request, Self::Refuse];

    const fn code(self) -> u8 {
        match self {
            Self::Hello => 1,
            Self::Frame => 2,
            Self::Heartbeat => 3,
            Self::Request => 4,
            Self::Refuse => 5,
        }
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
        /// [`VERSION`] of the speaker. Stands first, for ever.
        version: u16,
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
        /// What the speaker holds.
        held: Vector,
        /// What of it is on the speaker's disk.
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
}

/// Reads the head of a message: its type and the length of its body.
///
/// # Errors
/// No such type, or a length that cannot be.
pub fn read_head(head: [u8; HEAD]) -> Result<(Kind, usize), FrameError> {
    let kind = Kind::ALL.into_iter().find(|kind| kind.code() == head[0]);
    let kind = kind.ok_or(FrameError::Malformed("a message of no known type"))?;
    let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
    let limit = if kind == Kind::Frame { MAX_FRAME + PREFIX } else { MAX_CONTROL };
    if length > limit { Err(FrameError::TooLong(length as u64)) } else { Ok((kind, length)) }
}

/// Appends the head of a message that carries a frame of `length` bytes; the frame itself follows.
pub fn put_frame_head(out: &mut Vec<u8>, length: usize) {
    out.push(Kind::Frame.code());
    out.extend_from_slice(&(length as u32).to_le_bytes());
}

impl Message {
    /// Appends head and body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[self.kind().code(), 0, 0, 0, 0]);
        self.put_body(out);
        let body = start + HEAD;
        let crc = crc32fast::hash(&out[body..]);
        out.extend_from_slice(&crc.to_le_bytes());
        let length = (out.len() - body) as u32;
        out[start + 1..body].copy_from_slice(&length.to_le_bytes());
    }

    /// Reads the body of any message but a frame.
    ///
    /// # Errors
    /// The bytes are not what [`Self::encode`] writes.
    pub fn decode(kind: Kind, body: &[u8]) -> Result<Self, FrameError> {
        let content = body.len().checked_sub(4).ok_or(FrameError::Short)?;
        let (content, crc) = body.split_at(content);
        if Reader::new(crc).u32()? != crc32fast::hash(content) {
            return Err(FrameError::Checksum);
        }
        let mut reader = Reader::new(content);
        let message = Self::read_body(kind, &mut reader)?;
        if reader.is_empty() { Ok(message) } else { Err(FrameError::Malformed("bytes after a message")) }
    }

    const fn kind(&self) -> Kind {
        match self {
            Self::Hello { .. } => Kind::Hello,
            Self::Heartbeat { .. } => Kind::Heartbeat,
            Self::Request { .. } => Kind::Request,
            Self::Refuse { .. } => Kind::Refuse,
        }
    }

    fn put_body(&self, out: &mut Vec<u8>) {
        match self {
            Self::Hello { version, planet, actor, held, witnesses } => {
                out.extend_from_slice(&version.to_le_bytes());
                codec::put_bytes(out, planet.as_bytes());
                put_actor(out, actor);
                held.encode(out);
                codec::put_varint(out, witnesses.len() as u64);
                for witness in witnesses {
                    put_actor(out, &witness.actor);
                    codec::put_varint(out, witness.sequence);
                    out.extend_from_slice(&witness.fingerprint.to_le_bytes());
                }
            }
            Self::Heartbeat { actor, sequence, time, wall, ahead_us, held, durable } => {
                put_actor(out, actor);
                codec::put_varint(out, *sequence);
                out.extend_from_slice(&time.0.to_le_bytes());
                out.extend_from_slice(&wall.0.to_le_bytes());
                codec::put_varint(out, *ahead_us);
                held.encode(out);
                durable.encode(out);
            }
            Self::Request { actor, from, to } => {
                put_actor(out, actor);
                codec::put_varint(out, *from);
                codec::put_varint(out, *to);
            }
            Self::Refuse { reason } => codec::put_bytes(out, reason.as_bytes()),
        }
    }

    fn read_body(kind: Kind, reader: &mut Reader<'_>) -> Result<Self, FrameError> {
        Ok(match kind {
            Kind::Hello => {
                let version = u16::from_le_bytes([reader.byte()?, reader.byte()?]);
                if version != VERSION {
                    // Nothing after the version is known; the hearer refuses by it alone.
                    let rest = reader.rest().len();
                    reader.take(rest)?;
                    return Ok(Self::other_version(version));
                }
                let planet = read_name(reader)?.to_owned();
                let (actor, held) = (read_actor(reader)?, Vector::decode(reader)?);
                let witnesses =
                    (0..reader.varint()?).map(|_| read_witness(reader)).collect::<Result<_, _>>()?;
                Self::Hello { version, planet, actor, held, witnesses }
            }
            Kind::Heartbeat => Self::Heartbeat {
                actor: read_actor(reader)?,
                sequence: reader.varint()?,
                time: HybridTime(reader.u64()?),
                wall: HybridTime(reader.u64()?),
                ahead_us: reader.varint()?,
                held: Vector::decode(reader)?,
                durable: Vector::decode(reader)?,
            },
            Kind::Request => {
                let actor = read_actor(reader)?;
                Self::Request { actor, from: reader.varint()?, to: reader.varint()? }
            }
            Kind::Refuse => {
                let bytes = reader.bytes()?;
                let reason = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_REASON)]);
                Self::Refuse { reason: reason.replace(char::is_control, " ") }
            }
            Kind::Frame => return Err(FrameError::Malformed("a frame where a message was expected")),
        })
    }

    fn other_version(version: u16) -> Self {
        let (planet, actor) = (String::new(), ActorId::new("", 0));
        Self::Hello { version, planet, actor, held: Vector::default(), witnesses: Vec::new() }
    }
}

fn read_witness(reader: &mut Reader<'_>) -> Result<Witness, FrameError> {
    let (actor, sequence) = (read_actor(reader)?, reader.varint()?);
    Ok(Witness { actor, sequence, fingerprint: reader.u32()? })
}

//! Operations: what one entry does to rows, as bytes and back.
//!
//! An operation either writes a row (and so takes the entry's next ordinal) or removes or cancels rows by name.
//! Actors stand as indexes into the dictionary of the frame around it ([`crate::frame`]).

use crate::actor::ActorIndex;
use crate::amount::Amount;
use crate::codec::{self, Reader};
use crate::dot::{Dot, Mark};
use crate::frame::FrameError;

/// A key: its name and the number of its database (SELECT), which is part of the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyName<'a> {
    /// The database, 0 by default.
    pub database: u8,
    /// The name as the user gave it.
    pub name: &'a [u8],
}

/// The database of what geode itself keeps among the rows: replicated, digested and swept like all others, and out of the
/// reach of SELECT and of every command that looks at keys.
pub const SYSTEM_DATABASE: u8 = 255;

/// What a cell belongs to. The numbers are part of the byte format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// The key's deadline; its one element is empty.
    Ttl = 0,
    /// A string or counter; its one element is empty.
    String = 1,
    /// A hash; an element is a field.
    Hash = 2,
    /// A set; an element is a member.
    Set = 3,
    /// A list; an element is a position.
    List = 4,
}

impl Kind {
    /// The kinds that hold data, in the order of their numbers.
    pub const DATA: [Self; 4] = [Self::String, Self::Hash, Self::Set, Self::List];

    /// The name that TYPE answers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ttl => "ttl",
            Self::String => "string",
            Self::Hash => "hash",
            Self::Set => "set",
            Self::List => "list",
        }
    }

    pub(crate) fn from_byte(byte: u8) -> Result<Self, FrameError> {
        match byte {
            0 => Ok(Self::Ttl),
            1 => Ok(Self::String),
            2 => Ok(Self::Hash),
            3 => Ok(Self::Set),
            4 => Ok(Self::List),
            other => Err(FrameError::UnknownKind(other)),
        }
    }
}

/// One operation of an entry.
#[derive(Clone, Debug)]
pub enum Op<'a> {
    /// A plain SET, by far the most frequent write, as one operation: puts the string row *and* a NEVER row in the
    /// TTL cell, both named `dot`; removes each replaced dot from both cells.
    Set {
        /// Which key.
        key: KeyName<'a>,
        /// The name of both new rows.
        dot: Dot,
        /// The new value.
        value: &'a [u8],
        /// Rows that the writer saw and replaces.
        replaces: Dots<'a>,
    },
    /// Puts a row in a cell and removes the replaced ones from it.
    Put {
        /// Which key.
        key: KeyName<'a>,
        /// Which kind of cell.
        kind: Kind,
        /// Which cell of the kind.
        element: &'a [u8],
        /// The name of the new row.
        dot: Dot,
        /// What it holds.
        value: &'a [u8],
        /// Rows of the same cell that the writer saw and replaces.
        replaces: Dots<'a>,
    },
    /// Removes a put row by name.
    Remove {
        /// Which key.
        key: KeyName<'a>,
        /// Which kind of cell.
        kind: Kind,
        /// Which cell of the kind.
        element: &'a [u8],
        /// The row's name.
        dot: Dot,
    },
    /// The writer's own sum row after one more increment.
    Sum {
        /// Which key.
        key: KeyName<'a>,
        /// Which kind of cell.
        kind: Kind,
        /// Which cell of the kind.
        element: &'a [u8],
        /// The first increment of the run.
        start: Mark,
        /// The name of this increment.
        dot: Dot,
        /// The sum of the run.
        total: Amount,
    },
    /// Clears what an actor's sum row had reached when the writer saw it.
    Cancel {
        /// Which key.
        key: KeyName<'a>,
        /// Which kind of cell.
        kind: Kind,
        /// Which cell of the kind.
        element: &'a [u8],
        /// Whose sum.
        target: ActorIndex,
        /// The last increment that the writer saw.
        upto: Mark,
        /// The total there.
        amount: Amount,
    },
}

impl<'a> Op<'a> {
    /// The key that the operation touches; every operation touches exactly one.
    pub const fn key(&self) -> KeyName<'a> {
        match self {
            Self::Set { key, .. }
            | Self::Put { key, .. }
            | Self::Remove { key, .. }
            | Self::Sum { key, .. }
            | Self::Cancel { key, .. } => *key,
        }
    }
}

/// A list of dots inside an operation, decoded while iterating. Checked when the frame was parsed.
#[derive(Clone, Copy, Debug)]
pub struct Dots<'a> {
    reader: Reader<'a>,
    left: u64,
    dictionary: &'a [ActorIndex],
}

impl Dots<'_> {
    /// Whether no dot is left.
    pub const fn is_empty(&self) -> bool {
        self.left == 0
    }
}

impl Iterator for Dots<'_> {
    type Item = Dot;

    fn next(&mut self) -> Option<Dot> {
        self.left = self.left.checked_sub(1)?;
        // Cannot fail: `read_dots` walked the same bytes before.
        read_dot(&mut self.reader, self.dictionary).ok()
    }
}

/// The operations of one entry, decoded one by one from bytes that may be anybody's.
#[derive(Clone, Debug)]
pub struct Ops<'a> {
    reader: Reader<'a>,
    dictionary: &'a [ActorIndex],
    /// The name of the next row that is written.
    next: Dot,
}

impl<'a> Ops<'a> {
    pub(crate) const fn new(bytes: &'a [u8], dictionary: &'a [ActorIndex], next: Dot) -> Self {
        Self { reader: Reader::new(bytes), dictionary, next }
    }

    fn take_dot(&mut self) -> Result<Dot, FrameError> {
        let dot = self.next;
        let ordinal = dot.mark.ordinal.checked_add(1);
        self.next.mark.ordinal = ordinal.ok_or(FrameError::Malformed("more rows than an entry can name"))?;
        Ok(dot)
    }

    fn read(&mut self) -> Result<Op<'a>, FrameError> {
        let code = self.reader.byte()?;
        let key = KeyName { database: self.reader.byte()?, name: self.reader.bytes()? };
        if code == SET {
            let (dot, value) = (self.take_dot()?, self.reader.bytes()?);
            return Ok(Op::Set { key, dot, value, replaces: read_dots(&mut self.reader, self.dictionary)? });
        }
        let kind = Kind::from_byte(self.reader.byte()?)?;
        let element = self.reader.bytes()?;
        match code {
            PUT => {
                let (dot, value) = (self.take_dot()?, self.reader.bytes()?);
                let replaces = read_dots(&mut self.reader, self.dictionary)?;
                Ok(Op::Put { key, kind, element, dot, value, replaces })
            }
            REMOVE => {
                let dot = read_dot(&mut self.reader, self.dictionary)?;
                Ok(Op::Remove { key, kind, element, dot })
            }
            SUM => {
                let dot = self.take_dot()?;
                let start = match self.reader.byte()? {
                    0 => dot.mark,
                    1 => read_mark(&mut self.reader)?,
                    _ => return Err(FrameError::Malformed("a sum's start")),
                };
                Ok(Op::Sum { key, kind, element, start, dot, total: read_amount(&mut self.reader)? })
            }
            CANCEL => {
                let target = read_actor(&mut self.reader, self.dictionary)?;
                let upto = read_mark(&mut self.reader)?;
                Ok(Op::Cancel { key, kind, element, target, upto, amount: read_amount(&mut self.reader)? })
            }
            other => Err(FrameError::UnknownOperation(other)),
        }
    }
}

impl<'a> Iterator for Ops<'a> {
    type Item = Result<Op<'a>, FrameError>;

    fn next(&mut self) -> Option<Self::Item> {
        (!self.reader.is_empty()).then(|| self.read())
    }
}

// The codes of the byte format, version 1.
pub(crate) const SET: u8 = 1;
pub(crate) const PUT: u8 = 2;
pub(crate) const REMOVE: u8 = 3;
pub(crate) const SUM: u8 = 4;
pub(crate) const CANCEL: u8 = 5;

const INTEGER: u8 = 0;
const FLOAT: u8 = 1;

pub(crate) fn put_key(out: &mut Vec<u8>, code: u8, key: KeyName<'_>) {
    out.extend_from_slice(&[code, key.database]);
    codec::put_bytes(out, key.name);
}

pub(crate) fn put_cell(out: &mut Vec<u8>, code: u8, key: KeyName<'_>, kind: Kind, element: &[u8]) {
    put_key(out, code, key);
    out.push(kind as u8);
    codec::put_bytes(out, element);
}

pub(crate) fn put_mark(out: &mut Vec<u8>, mark: Mark) {
    codec::put_varint(out, mark.sequence);
    codec::put_varint(out, u64::from(mark.ordinal));
}

pub(crate) fn put_amount(out: &mut Vec<u8>, amount: Amount) {
    match amount {
        Amount::Integer(value) => {
            out.push(INTEGER);
            codec::put_signed(out, value);
        }
        Amount::Float(value) => {
            out.push(FLOAT);
            out.extend_from_slice(&value.to_le_bytes());
        }
    }
}

pub(crate) fn read_amount(reader: &mut Reader<'_>) -> Result<Amount, FrameError> {
    match reader.byte()? {
        INTEGER => Ok(Amount::Integer(reader.signed()?)),
        FLOAT => {
            let value = f64::from_bits(reader.u64()?);
            if value.is_finite() {
                Ok(Amount::Float(value))
            } else {
                Err(FrameError::Malformed("an infinite sum"))
            }
        }
        _ => Err(FrameError::Malformed("an amount")),
    }
}

pub(crate) fn read_mark(reader: &mut Reader<'_>) -> Result<Mark, FrameError> {
    let sequence = reader.varint()?;
    let ordinal =
        u32::try_from(reader.varint()?).map_err(|_| FrameError::Malformed("an ordinal above 32 bits"))?;
    Ok(Mark { sequence, ordinal })
}

pub(crate) fn read_actor(
    reader: &mut Reader<'_>,
    dictionary: &[ActorIndex],
) -> Result<ActorIndex, FrameError> {
    let index = usize::try_from(reader.varint()?).map_err(|_| FrameError::Short)?;
    dictionary.get(index).copied().ok_or(FrameError::Malformed("an actor that the frame does not declare"))
}

fn read_dot(reader: &mut Reader<'_>, dictionary: &[ActorIndex]) -> Result<Dot, FrameError> {
    Ok(Dot { actor: read_actor(reader, dictionary)?, mark: read_mark(reader)? })
}

fn read_dots<'a>(reader: &mut Reader<'a>, dictionary: &'a [ActorIndex]) -> Result<Dots<'a>, FrameError> {
    let left = reader.varint()?;
    let dots = Dots { reader: *reader, left, dictionary };
    for _ in 0..left {
        read_dot(reader, dictionary)?;
    }
    Ok(dots)
}

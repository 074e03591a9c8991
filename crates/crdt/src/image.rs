//! Images: all rows of one key as bytes, at rest in a checkpoint or on the way in a snapshot.
//!
//! An image names actors by numbers that its surroundings define: a checkpoint has one dictionary for all its images, a
//! snapshot one for each of its parts. The key's name stands outside. Dead runs are in it too, with what is needed to
//! know when they may be dropped. Rows stand in any order.
//!
//! ```text
//! image  = version u8 | row*
//! row    = 1 | put                          a plain SET: the string row, and the NEVER row of the same name
//!        | 2 | kind u8 | element | put
//!        | 3 | kind u8 | element | run
//! put    = actor | mark | time varint | value
//! run    = actor | start mark | last mark | total | time varint | 0
//!        | actor | start mark | last mark | total | time varint | 1 | upto mark | amount | actor | sequence varint
//! actor  = number varint
//! ```
//! Marks, amounts, and elements and values with their lengths, are those of [`crate::frame`].

use std::collections::BTreeMap;

use crate::actor::{ActorIndex, Actors};
use crate::cell::{Cancel, Cell, CellRef, Deadline, Put, PutRef, Run};
use crate::codec::{self, Reader};
use crate::digest;
use crate::dot::Dot;
use crate::frame::FrameError;
use crate::hybrid::HybridTime;
use crate::op::{self, KeyName, Kind};

/// The version that this release writes; golden bytes of each version stand in `tests/golden`.
pub const VERSION: u8 = 1;

const PLAIN: u8 = 1;
const PUT: u8 = 2;
const RUN: u8 = 3;

static NEVER: [u8; 8] = Deadline::NEVER.to_bytes();

/// One row of an image.
#[derive(Clone, Copy, Debug)]
pub enum Row<'a> {
    /// What a plain SET wrote: this row in the string cell, and NEVER under the same name in the TTL cell.
    Plain(PutRef<'a>),
    /// A put row.
    Put(Kind, &'a [u8], PutRef<'a>),
    /// A run with its cancel.
    Run(Kind, &'a [u8], Run),
}

/// Appends an image to bytes, row by row.
#[derive(Debug)]
pub struct ImageBuilder<'o, N> {
    out: &'o mut Vec<u8>,
    number: N,
}

impl<'o, N: FnMut(ActorIndex) -> u32> ImageBuilder<'o, N> {
    /// Begins an image at the end of `out`, in which actors stand as the numbers that `number` gives.
    pub fn new(out: &'o mut Vec<u8>, number: N) -> Self {
        out.push(VERSION);
        Self { out, number }
    }

    /// Adds a string row and the NEVER row of the same name.
    pub fn plain(&mut self, row: PutRef<'_>) {
        self.out.push(PLAIN);
        self.put(row);
    }

    /// Adds all rows of a cell.
    pub fn cell(&mut self, kind: Kind, element: &[u8], cell: CellRef<'_>) {
        for row in cell.puts() {
            self.place(PUT, kind, element);
            self.put(row);
        }
        for run in cell.runs() {
            self.place(RUN, kind, element);
            self.run(run);
        }
    }

    fn place(&mut self, code: u8, kind: Kind, element: &[u8]) {
        self.out.extend_from_slice(&[code, kind as u8]);
        codec::put_bytes(self.out, element);
    }

    fn put(&mut self, row: PutRef<'_>) {
        self.actor(row.dot.actor);
        op::put_mark(self.out, row.dot.mark);
        codec::put_varint(self.out, row.time.0);
        codec::put_bytes(self.out, row.value);
    }

    fn run(&mut self, run: &Run) {
        self.actor(run.actor);
        op::put_mark(self.out, run.start);
        op::put_mark(self.out, run.last);
        op::put_amount(self.out, run.total);
        codec::put_varint(self.out, run.time.0);
        self.out.push(u8::from(run.cancelled.is_some()));
        if let Some(cancel) = run.cancelled {
            op::put_mark(self.out, cancel.upto);
            op::put_amount(self.out, cancel.amount);
            self.actor(cancel.by.0);
            codec::put_varint(self.out, cancel.by.1);
        }
    }

    fn actor(&mut self, actor: ActorIndex) {
        codec::put_varint(self.out, u64::from((self.number)(actor)));
    }
}

/// The rows of an image, decoded one by one from bytes that may be anybody's. Ends after the first error.
#[derive(Clone, Debug)]
pub struct Rows<'a, A> {
    reader: Reader<'a>,
    actor: A,
}

impl<'a, A: Fn(u32) -> Option<ActorIndex>> Rows<'a, A> {
    /// The rows of the image that `bytes` are; `actor` tells who stands behind a number.
    ///
    /// # Errors
    /// Written by a release that this one does not know, or no image.
    pub fn new(bytes: &'a [u8], actor: A) -> Result<Self, FrameError> {
        let mut reader = Reader::new(bytes);
        match reader.byte()? {
            VERSION => Ok(Self { reader, actor }),
            other => Err(FrameError::Version(other)),
        }
    }

    /// Whether no row is left.
    pub const fn is_done(&self) -> bool {
        self.reader.is_empty()
    }

    fn read(&mut self) -> Result<Row<'a>, FrameError> {
        let code = self.reader.byte()?;
        if code == PLAIN {
            return Ok(Row::Plain(self.put()?));
        }
        if code != PUT && code != RUN {
            return Err(FrameError::UnknownOperation(code));
        }
        let (kind, element) = (Kind::from_byte(self.reader.byte()?)?, self.reader.bytes()?);
        Ok(if code == PUT {
            Row::Put(kind, element, self.put()?)
        } else {
            Row::Run(kind, element, self.run()?)
        })
    }

    fn put(&mut self) -> Result<PutRef<'a>, FrameError> {
        let dot = Dot { actor: self.actor()?, mark: op::read_mark(&mut self.reader)? };
        let time = HybridTime(self.reader.varint()?);
        Ok(PutRef { dot, time, value: self.reader.bytes()? })
    }

    fn run(&mut self) -> Result<Run, FrameError> {
        let actor = self.actor()?;
        let (start, last) = (op::read_mark(&mut self.reader)?, op::read_mark(&mut self.reader)?);
        let total = op::read_amount(&mut self.reader)?;
        let time = HybridTime(self.reader.varint()?);
        let cancelled = match self.reader.byte()? {
            0 => None,
            1 => Some(self.cancel()?),
            _ => return Err(FrameError::Malformed("a run's cancel")),
        };
        if start > last {
            return Err(FrameError::Malformed("a run that ends before it starts"));
        }
        Ok(Run { actor, start, last, total, time, cancelled })
    }

    fn cancel(&mut self) -> Result<Cancel, FrameError> {
        let (upto, amount) = (op::read_mark(&mut self.reader)?, op::read_amount(&mut self.reader)?);
        Ok(Cancel { upto, amount, by: (self.actor()?, self.reader.varint()?) })
    }

    fn actor(&mut self) -> Result<ActorIndex, FrameError> {
        let number = u32::try_from(self.reader.varint()?).ok();
        number.and_then(&self.actor).ok_or(FrameError::Malformed("an actor that nobody declared"))
    }
}

impl<'a, A: Fn(u32) -> Option<ActorIndex>> Iterator for Rows<'a, A> {
    type Item = Result<Row<'a>, FrameError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.reader.is_empty() {
            return None;
        }
        let row = self.read();
        if row.is_err() {
            self.reader = Reader::new(&[]);
        }
        Some(row)
    }
}

/// The cells of one key, by kind and element.
pub type Cells = BTreeMap<(Kind, Box<[u8]>), Cell>;

/// All cells of an image.
///
/// # Errors
/// The bytes are no image.
pub fn cells(bytes: &[u8], actor: impl Fn(u32) -> Option<ActorIndex>) -> Result<Cells, FrameError> {
    let mut cells = Cells::new();
    for row in Rows::new(bytes, actor)? {
        let (kind, element, put) = match row? {
            Row::Run(kind, element, run) => {
                cells.entry((kind, element.into())).or_default().sum(run);
                continue;
            }
            Row::Put(kind, element, put) => (kind, element, put),
            Row::Plain(put) => {
                let never = Put { dot: put.dot, time: put.time, value: NEVER.into() };
                cells.entry((Kind::Ttl, [].into())).or_default().put(never);
                (Kind::String, &[][..], put)
            }
        };
        let put = Put { dot: put.dot, time: put.time, value: put.value.into() };
        cells.entry((kind, element.into())).or_default().put(put);
    }
    Ok(cells)
}

/// What the rows of an image amount to, without holding them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// What they add to the sum of their key's range ([`crate::Digest`]).
    pub digest: u64,
    /// Whether the key has live data.
    pub is_live: bool,
    /// The greatest deadline, `None` if there is none or it is NEVER.
    pub deadline: Option<Deadline>,
}

impl Summary {
    /// Summarises the image of `key`. Linear in the image.
    ///
    /// # Errors
    /// The bytes are no image.
    pub fn of(
        key: KeyName<'_>,
        bytes: &[u8],
        actors: &Actors,
        actor: impl Fn(u32) -> Option<ActorIndex>,
    ) -> Result<Self, FrameError> {
        let hash = digest::key_hash(key);
        let mut summary = Self::default();
        for row in Rows::new(bytes, actor)? {
            match row? {
                Row::Plain(row) => {
                    summary.add_put(hash, (Kind::String, &[]), row, actors);
                    summary.add_put(hash, (Kind::Ttl, &[]), PutRef { value: &NEVER, ..row }, actors);
                }
                Row::Put(kind, element, row) => summary.add_put(hash, (kind, element), row, actors),
                Row::Run(kind, element, run) => summary.add_run(hash, (kind, element), &run, actors),
            }
        }
        summary.deadline = summary.deadline.filter(|deadline| *deadline != Deadline::NEVER);
        Ok(summary)
    }

    fn add_put(&mut self, hash: u64, (kind, element): (Kind, &[u8]), row: PutRef<'_>, actors: &Actors) {
        let row_hash = digest::put_hash(hash, kind, element, row.dot, row.value, actors);
        self.digest = self.digest.wrapping_add(row_hash);
        if kind == Kind::Ttl && element.is_empty() {
            self.deadline = self.deadline.max(Some(Deadline::from_bytes(row.value)));
        }
        self.is_live |= is_data(kind, element);
    }

    fn add_run(&mut self, hash: u64, (kind, element): (Kind, &[u8]), run: &Run, actors: &Actors) {
        let Some(amount) = run.live_amount() else { return };
        let row_hash = digest::amount_hash(hash, kind, element, run.dot(), amount, actors);
        self.digest = self.digest.wrapping_add(row_hash);
        self.is_live |= is_data(kind, element);
    }
}

/// Whether rows of the cell are data that users see. No release writes a string with an element.
fn is_data(kind: Kind, element: &[u8]) -> bool {
    match kind {
        Kind::Ttl => false,
        Kind::String => element.is_empty(),
        Kind::Hash | Kind::Set | Kind::List => true,
    }
}

//! Reads records that are known to be whole, from any position: for those who ship the log.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::format::{self, Kind, RECORD};
use super::segments::Segments;

/// Bytes read at once; also what a sender hands to its socket at once.
pub(crate) const CHUNK: usize = 256 << 10;

/// A place in the log and what was read there. The page cache is the buffer that all readers share.
#[derive(Debug)]
pub(crate) struct Reader {
    segments: Arc<Segments>,
    position: u64,
    /// The open segment, and how often files had been replaced when it was opened.
    file: Option<(u64, u64, File)>,
    buffer: Vec<u8>,
}

/// A record with its body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record<'a> {
    pub(crate) kind: Kind,
    pub(crate) body: &'a [u8],
}

/// The whole records in a chunk.
#[derive(Debug)]
pub(crate) struct Records<'a> {
    position: u64,
    bytes: &'a [u8],
}

impl Reader {
    /// A reader at a record's position, or at a segment's beginning.
    pub(crate) fn new(segments: Arc<Segments>, position: u64) -> Self {
        Self { segments, position, file: None, buffer: Vec::new() }
    }

    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Reads the next records below `limit`, about [`CHUNK`] bytes of them but at least one, and moves on. Nothing is
    /// returned at the limit.
    ///
    /// # Errors
    /// What the disk said, or that the log is not what was written.
    pub(crate) fn read(&mut self, limit: u64) -> io::Result<Records<'_>> {
        let Some((base, end)) = self.segments.containing(self.position) else {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the log does not reach back so far"));
        };
        self.position = self.position.max(base + self.segments.header_length());
        let end = end.unwrap_or(limit).min(limit);
        let replaced = self.segments.replaced();
        if self.file.as_ref().is_none_or(|(open, at, _)| (*open, *at) != (base, replaced)) {
            self.file = Some((base, replaced, File::open(self.segments.path(base))?));
        }
        let Some((_, _, file)) = &self.file else { return Err(io::ErrorKind::NotFound.into()) };
        let wanted = end.saturating_sub(self.position);
        let mut length = wanted.min(CHUNK as u64) as usize;
        loop {
            self.buffer.resize(length, 0);
            file.read_exact_at(&mut self.buffer, self.position - base)?;
            let whole = whole_records(&self.buffer, self.position)?;
            if whole > 0 || length == 0 {
                let position = self.position;
                self.position += whole as u64;
                return Ok(Records { position, bytes: &self.buffer[..whole] });
            }
            // The first record is longer than a chunk.
            let head = format::read_record(&self.buffer, self.position).ok_or_else(damaged)?;
            length = RECORD + head.length;
            if length as u64 > wanted {
                return Err(damaged());
            }
        }
    }
}

/// How many bytes of `buffer` are whole records.
fn whole_records(buffer: &[u8], position: u64) -> io::Result<usize> {
    let mut whole = 0;
    while buffer.len() - whole >= format::CHECKABLE {
        let head = format::read_record(&buffer[whole..], position + whole as u64).ok_or_else(damaged)?;
        if buffer.len() - whole < RECORD + head.length {
            break;
        }
        whole += RECORD + head.length;
    }
    // An incarnation at the very end is shorter than what is checkable of others.
    if let Some(head) = format::read_record(&buffer[whole..], position + whole as u64)
        && buffer.len() - whole == RECORD + head.length
    {
        whole = buffer.len();
    }
    Ok(whole)
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the log is not what was written to it")
}

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        let head = format::read_record(self.bytes, self.position)?;
        let (record, rest) = self.bytes.split_at_checked(RECORD + head.length)?;
        self.position += record.len() as u64;
        self.bytes = rest;
        Some(Record { kind: head.kind, body: &record[RECORD..] })
    }
}

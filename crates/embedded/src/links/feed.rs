//! What of the log goes to one peer, from where on: read from the files chunk by chunk.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use geode_crdt::{Actors, Frame, frame};
use geode_replica::wire;

use super::invalid;
use crate::log::{Kind, Reader, Segments};
use crate::outbox::{Range, Stream};

/// A place in the log and what of it the peer wants from there on.
#[derive(Debug)]
pub(crate) struct Feed {
    reader: Reader,
    wanted: Wanted,
    /// For cutting frames; nearly never used.
    actors: Actors,
}

#[derive(Debug)]
enum Wanted {
    /// This region's own entries, without end. What the peer held when it began, by incarnation.
    Own(BTreeMap<u64, u64>),
    /// Some entries of one actor, and the kind of its records; `true` once the last was read.
    Range(Range, Kind, bool),
}

impl Feed {
    /// This region's own entries from where a peer stands.
    pub(crate) fn own(segments: &Arc<Segments>, Stream { position, held, .. }: Stream) -> Self {
        Self::new(segments, position, Wanted::Own(held.into_iter().collect()))
    }

    /// Entries that a peer asked for, by the log of `region`.
    pub(crate) fn range(segments: &Arc<Segments>, region: &Arc<str>, range: Range) -> Self {
        let kind = if range.actor.region == *region { Kind::Own } else { Kind::Foreign };
        Self::new(segments, range.position, Wanted::Range(range, kind, false))
    }

    fn new(segments: &Arc<Segments>, position: u64, wanted: Wanted) -> Self {
        Self { reader: Reader::new(Arc::clone(segments), position), wanted, actors: Actors::default() }
    }

    /// Whether it goes on for ever.
    pub(crate) fn is_endless(&self) -> bool {
        matches!(self.wanted, Wanted::Own(_))
    }

    /// How much of the log below `limit` is not read yet, in bytes.
    pub(crate) fn left(&self, limit: u64) -> u64 {
        match self.wanted {
            Wanted::Range(.., true) => 0,
            Wanted::Range(..) | Wanted::Own(_) => limit.saturating_sub(self.reader.position()),
        }
    }

    /// Reads the next chunk below `limit` and appends what of it is wanted as messages.
    ///
    /// # Errors
    /// What the disk said, or that the log is not what was written.
    pub(crate) fn read(&mut self, limit: u64, out: &mut Vec<u8>) -> io::Result<()> {
        let actors = &mut self.actors;
        match &mut self.wanted {
            Wanted::Own(held) => {
                for record in self.reader.read(limit)?.filter(|record| record.kind == Kind::Own) {
                    let head = frame::peek(record.body).map_err(invalid)?;
                    let held = held.get(&head.incarnation).copied().unwrap_or(0);
                    put_entries(out, record.body, held + 1, u64::MAX, actors)?;
                }
            }
            Wanted::Range(range, kind, done) => {
                for record in self.reader.read(limit)?.filter(|record| record.kind == *kind) {
                    let head = frame::peek(record.body).map_err(invalid)?;
                    if head.incarnation == range.actor.incarnation && head.region == &*range.actor.region {
                        put_entries(out, record.body, range.from, range.to, actors)?;
                        *done |= head.last_sequence >= range.to;
                    }
                }
            }
        }
        Ok(())
    }

    /// The same on a thread where the disk may take its time.
    pub(crate) async fn read_aside(mut self, limit: u64, mut out: Vec<u8>) -> io::Result<(Self, Vec<u8>)> {
        let read = move || self.read(limit, &mut out).map(|()| (self, out));
        tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
    }
}

/// Appends a frame as a message, cut to the entries `from..=to`; nothing if it holds none of them.
fn put_entries(out: &mut Vec<u8>, bytes: &[u8], from: u64, to: u64, actors: &mut Actors) -> io::Result<()> {
    let head = frame::peek(bytes).map_err(invalid)?;
    if head.last_sequence < from || head.first_sequence > to {
        return Ok(());
    }
    if head.first_sequence >= from && head.last_sequence <= to {
        wire::put_frame_head(out, bytes.len());
        out.extend_from_slice(bytes);
        return Ok(());
    }
    let cut = Frame::parse(bytes, actors).map_err(invalid)?.slice(from, to, actors);
    wire::put_frame_head(out, cut.len());
    out.extend_from_slice(&cut);
    Ok(())
}

//! The log: write-ahead log and replication stream at once.
//!
//! Every frame that is delivered here, own or not, stands in the log in the order of delivery, byte for byte as it came
//! or will go out. The data thread appends with `write()`, so a record is in the kernel before its answer; another
//! thread forces it onto the disk; senders read it back from the page cache. Nothing is buffered for peers.

pub(crate) mod format;
mod index;
mod reader;
mod segments;
mod sync;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use geode_crdt::{ActorIndex, Actors, Frame, FrameBuilder, frame};

pub(crate) use format::Kind;
pub(crate) use index::Index;
pub(crate) use reader::{CHUNK, Reader};
pub(crate) use segments::Segments;
pub(crate) use sync::{Durability, SyncThread};

/// Bytes handed to the kernel at once: a longer write would keep the data thread in the kernel while it waits for
/// writeback, and other connections with it.
const WRITE_CHUNK: usize = 256 << 10;

/// Where a log is and whose it is.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) segments: Arc<Segments>,
    pub(crate) planet: String,
    pub(crate) region: String,
    /// A segment is closed at about this many bytes.
    pub(crate) segment_bytes: u64,
    /// Whether anybody asks what became durable: there are peers, and the log is forced onto the disk.
    pub(crate) acknowledges: bool,
}

/// The data thread's end of the log.
#[derive(Debug)]
pub(crate) struct Log {
    place: Place,
    file: Arc<File>,
    base: u64,
    /// Everything before it is in the kernel.
    written: u64,
    /// Records that are not.
    batch: Vec<u8>,
    /// What is in the batch: position after the record, actor, last sequence.
    batch_marks: Vec<(u64, ActorIndex, u64)>,
    /// What is in the kernel and not yet known to be on disk.
    unsynced: VecDeque<(u64, ActorIndex, u64)>,
    index: Index,
    sync: Arc<Durability>,
    failed: bool,
    /// A segment was begun since this was last asked.
    rotated: bool,
}

/// Makes the file of a segment with its header.
pub(crate) fn create_segment(place: &Place, base: u64) -> io::Result<File> {
    let mut file = place.segments.create(base)?;
    file.write_all(&format::header(base, &place.planet, &place.region))?;
    Ok(file)
}

impl Log {
    /// Goes on at the end of `file`, the segment that begins at `base` and is written and synced up to `written`.
    pub(crate) fn new(
        place: Place,
        file: Arc<File>,
        base: u64,
        written: u64,
        index: Index,
        sync: Arc<Durability>,
    ) -> Self {
        Self {
            place,
            file,
            base,
            written,
            batch: Vec::new(),
            batch_marks: Vec::new(),
            unsynced: VecDeque::new(),
            index,
            sync,
            failed: false,
            rotated: false,
        }
    }

    pub(crate) fn segments(&self) -> &Arc<Segments> {
        &self.place.segments
    }

    pub(crate) fn sync(&self) -> &Arc<Durability> {
        &self.sync
    }

    pub(crate) fn index(&self) -> &Index {
        &self.index
    }

    /// Everything before it is in the kernel.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// Whether something was appended and is not in the kernel yet.
    pub(crate) fn has_batch(&self) -> bool {
        !self.batch.is_empty()
    }

    /// Bytes of the log files.
    pub(crate) fn bytes(&self) -> u64 {
        self.written - self.place.segments.bases().first().copied().unwrap_or(0)
    }

    /// From where on the log would be kept if nothing before `needed` is and whole segments are removed until at most
    /// `retention` bytes are left; `None` if nothing can be removed.
    pub(crate) fn trimmed_to(&self, needed: u64, retention: u64) -> Option<u64> {
        let bases = self.place.segments.bases();
        let removable =
            bases.windows(2).take_while(|pair| pair[1] <= needed && self.written - pair[0] > retention);
        removable.last().map(|pair| pair[1])
    }

    /// Removes what stands before the segment at `base` from the log. Returns the files that are to be removed.
    pub(crate) fn trim(&mut self, base: u64) -> Vec<PathBuf> {
        self.index.trim(base);
        self.place.segments.forget_below(base)
    }

    /// Appends the finished entries of `builder` as one frame to the batch.
    pub(crate) fn append_own(&mut self, builder: &mut FrameBuilder, actors: &Actors) {
        if builder.is_empty() {
            return;
        }
        let (actor, last) = (builder.writer(), builder.sequence() - 1);
        let start = self.begin_record();
        builder.finish_into(&mut self.batch, actors);
        let body = &self.batch[start + format::RECORD..];
        let first = frame::peek(body).map_or(last, |head| head.first_sequence);
        self.end_record(start, Kind::Own, actor, first, last);
    }

    /// Appends the entries `from..=to` of a frame that was delivered.
    pub(crate) fn append_delivered(
        &mut self,
        kind: Kind,
        frame: &Frame<'_>,
        from: u64,
        to: u64,
        actors: &Actors,
    ) {
        let start = self.begin_record();
        if from <= frame.first_sequence() && to >= frame.last_sequence() {
            self.batch.extend_from_slice(frame.bytes());
        } else {
            self.batch.extend_from_slice(&frame.slice(from, to, actors));
        }
        self.end_record(start, kind, frame.writer(), from.max(frame.first_sequence()), to);
    }

    /// Appends the beginning of an incarnation.
    pub(crate) fn append_incarnation(&mut self, incarnation: u64) {
        let start = self.begin_record();
        self.batch.extend_from_slice(&format::incarnation_body(incarnation));
        let position = self.written + start as u64;
        format::finish_record(&mut self.batch, start, position, Kind::Incarnation, self.sync.synced());
    }

    /// Hands the batch to the kernel and returns up to where it reaches. After an error the log takes nothing more:
    /// what is in memory and what is in the log may differ.
    pub(crate) fn flush(&mut self) -> io::Result<u64> {
        if self.failed || self.sync.has_failed() {
            return Err(io::Error::other("the log failed before; restart this geode when its disk is well"));
        }
        if self.batch.is_empty() {
            return Ok(self.written);
        }
        if let Err(error) = self.write_batch() {
            self.failed = true;
            // What was written of the batch must not stand before the next append; nobody was answered.
            let _ = self.file.set_len(self.written - self.base);
            return Err(error);
        }
        self.written += self.batch.len() as u64;
        self.batch.clear();
        // A large batch must not keep its memory for ever.
        self.batch.shrink_to(4 * WRITE_CHUNK);
        if self.place.acknowledges {
            self.unsynced.extend(self.batch_marks.drain(..));
        }
        self.batch_marks.clear();
        self.sync.written(self.written);
        if self.written - self.base >= self.place.segment_bytes {
            self.rotate()?;
        }
        Ok(self.written)
    }

    /// Whether a segment was begun since the last call: its file is to be recorded as this log's.
    pub(crate) fn take_rotated(&mut self) -> bool {
        std::mem::take(&mut self.rotated)
    }

    /// The next of what has become durable since it was last asked: actor and sequence.
    pub(crate) fn next_synced(&mut self) -> Option<(ActorIndex, u64)> {
        let synced = self.sync.synced();
        let (_, actor, sequence) = self.unsynced.pop_front_if(|(position, _, _)| *position <= synced)?;
        Some((actor, sequence))
    }

    fn begin_record(&mut self) -> usize {
        let start = self.batch.len();
        self.batch.resize(start + format::RECORD, 0);
        start
    }

    fn end_record(&mut self, start: usize, kind: Kind, actor: ActorIndex, first: u64, last: u64) {
        let position = self.written + start as u64;
        format::finish_record(&mut self.batch, start, position, kind, self.sync.synced());
        self.index.note(actor, first, position);
        self.batch_marks.push((self.written + self.batch.len() as u64, actor, last));
    }

    fn write_batch(&self) -> io::Result<()> {
        let mut file = &*self.file;
        self.batch.chunks(WRITE_CHUNK).try_for_each(|chunk| file.write_all(chunk))
    }

    fn rotate(&mut self) -> io::Result<()> {
        let base = self.written;
        let file = create_segment(&self.place, base).inspect_err(|_| self.failed = true)?;
        self.file = Arc::new(file);
        self.base = base;
        self.written = base + self.place.segments.header_length();
        self.sync.rotated(Arc::clone(&self.file));
        self.sync.written(self.written);
        self.rotated = true;
        Ok(())
    }
}

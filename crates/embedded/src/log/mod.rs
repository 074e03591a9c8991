//! The log: write-ahead log and replication stream at once.
//!
//! Every frame that is delivered here, own or not, stands in the log in the order of delivery, byte for byte as it came
//! or will go out. The data thread appends with `write()`, so a record is in the kernel before its answer; another
//! thread forces it onto the disk; senders read it back from the page cache. Nothing is buffered for peers.

pub(crate) mod format;
mod index;
mod reader;
mod rewrite;
mod room;
mod segments;
mod sync;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use geode_crdt::{ActorIndex, Actors, Frame, FrameBuilder, frame};

use crate::trouble::Trouble;
pub(crate) use format::Kind;
pub(crate) use index::Index;
pub(crate) use reader::{CHUNK, Reader};
pub(crate) use rewrite::rewrite;
use room::Room;
pub(crate) use segments::Segments;
pub(crate) use sync::{Durability, Event, Repair, SyncThread};

/// Bytes handed to the kernel at once: a longer write would keep the data thread in the kernel while it waits for
/// writeback, and other connections with it.
const WRITE_CHUNK: usize = 256 << 10;

/// How long the log waits before it asks a disk again that refused.
const RETRY: Duration = Duration::from_secs(1);

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
    /// Room behind what is written.
    room: Room,
    /// Why the log takes nothing more, and when it tries again.
    trouble: Option<(Trouble, Instant)>,
    /// A segment was begun since this was last asked.
    rotated: bool,
}

/// Makes the file of a segment with its header.
pub(crate) fn create_segment(place: &Place, base: u64) -> io::Result<File> {
    place.segments.create(base, &format::header(base, &place.planet, &place.region))
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
            room: Room::new(),
            trouble: None,
            rotated: false,
        }
    }

    /// Makes room for the first batch.
    pub(crate) fn make_room(&mut self) {
        if let Err(error) = self.prepare() {
            self.refuse(&error);
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

    /// Says that a snapshot is joined here, as the first thing in a new segment. Of the actors in `gaps` the log will never
    /// hold what is not in it now, up to the given entry; once this record is on the disk, so is all of that.
    ///
    /// # Errors
    /// The segment cannot be made.
    pub(crate) fn append_joined(
        &mut self,
        snapshot: u64,
        manner: u8,
        gaps: &[(ActorIndex, u64)],
    ) -> io::Result<()> {
        self.rotate()?;
        let start = self.begin_record();
        self.batch.extend_from_slice(&format::joined_body(snapshot, manner));
        format::finish_record(
            &mut self.batch,
            start,
            self.written + start as u64,
            Kind::Joined,
            self.sync.synced(),
        );
        for (actor, upto) in gaps {
            self.index.pass_over(*actor, *upto);
            self.batch_marks.push((self.written + self.batch.len() as u64, *actor, *upto));
        }
        Ok(())
    }

    /// Hands the batch to the kernel, sees to it that there is room for the next one, and returns up to where the log
    /// reaches.
    ///
    /// # Errors
    /// The batch is not in the log. It is kept, and a later call that comes when the log tries again
    /// ([`Self::is_waiting`]) writes it. Until then nothing more may be appended ([`Self::trouble`]).
    pub(crate) fn flush(&mut self) -> Result<u64, Trouble> {
        if self.sync.has_failed() {
            self.follow_repair();
        }
        if self.batch.is_empty() && (self.trouble.is_none() || self.is_waiting()) {
            return Ok(self.written);
        }
        if let Some((trouble, _)) = self.trouble.as_ref().filter(|_| self.is_waiting()) {
            return Err(trouble.clone());
        }
        if let Err(error) = self.write_batch() {
            // What was written of the batch must not stand before the next append.
            self.room.give_back(&self.file, self.written - self.base);
            return Err(self.refuse(&error));
        }
        // What is written is written; this is about the next batch.
        match self.prepare() {
            Ok(()) => self.trouble = None,
            Err(error) => drop(self.refuse(&error)),
        }
        Ok(self.written)
    }

    /// After a failed fsync nothing is written until the log can go on in a new file.
    fn follow_repair(&mut self) {
        let directory = self.segments().directory();
        let trouble = match self.sync.repair() {
            Repair::Done(file) => {
                (self.file, self.room, self.trouble) = (file, Room::new(), None);
                return self.make_room();
            }
            Repair::Unseen | Repair::Begun => Trouble::unsynced("an fsync failed", directory),
            Repair::Delayed(error) => Trouble::unsynced(&error, directory),
            Repair::Lost(error) => Trouble::lost(&error, directory),
        };
        self.fail(trouble);
    }

    /// Why nothing may be appended now.
    pub(crate) fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref().map(|(trouble, _)| trouble)
    }

    /// Whether the log is in trouble and it is not yet time to try again.
    pub(crate) fn is_waiting(&self) -> bool {
        self.trouble.as_ref().is_some_and(|(trouble, retry)| trouble.is_final() || Instant::now() < *retry)
    }

    /// Takes nothing more for a while because of `error`.
    pub(crate) fn refuse(&mut self, error: &io::Error) -> Trouble {
        self.fail(Trouble::of(error, self.segments().directory()))
    }

    fn fail(&mut self, trouble: Trouble) -> Trouble {
        self.trouble = Some((trouble.clone(), Instant::now() + RETRY));
        trouble
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

    /// Writes the batch where it belongs, also if a part of it stands there from before.
    fn write_batch(&mut self) -> io::Result<()> {
        let end = self.written - self.base;
        self.room.ensure(&self.file, end, self.batch.len() as u64)?;
        let mut at = end;
        for chunk in self.batch.chunks(WRITE_CHUNK) {
            self.file.write_all_at(chunk, at)?;
            at += chunk.len() as u64;
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
        Ok(())
    }

    /// Makes room for the next batch, in the next segment if this one is long enough.
    fn prepare(&mut self) -> io::Result<()> {
        if self.written - self.base >= self.place.segment_bytes {
            self.rotate()?;
        }
        self.room.ensure(&self.file, self.written - self.base, room::AHEAD)
    }

    fn rotate(&mut self) -> io::Result<()> {
        let base = self.written;
        let file = create_segment(&self.place, base)?;
        self.room.give_back(&self.file, base - self.base);
        self.room = Room::new();
        self.file = Arc::new(file);
        self.base = base;
        self.written = base + self.place.segments.header_length();
        self.sync.rotated(Arc::clone(&self.file));
        self.sync.written(self.written);
        self.rotated = true;
        Ok(())
    }
}

//! What delivers entries: rows, log, conflicts. The replica's view of the engine.

use std::io;

use geode_crdt::frame::Head;
use geode_crdt::{ActorIndex, Actors, Frame, FrameBuilder, frame};
use geode_replica::{Host, Unreadable};
use geode_store::View;

use crate::config::system_time;
use crate::conflict::Conflicts;
use crate::log::{Kind, Log, Reader};
use crate::rows::Rows;
use crate::trouble::Trouble;

/// How much of the log is searched for one entry at most; the index points nearer than this.
const SEARCH: u64 = 64 << 20;

/// The parts of the engine that an entry passes through.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) rows: Rows,
    pub(crate) log: Log,
    /// The open batch of own entries.
    pub(crate) builder: FrameBuilder,
    pub(crate) conflicts: Conflicts,
}

impl Core {
    /// Closes the open batch: what is appended next comes after it.
    pub(crate) fn close_batch(&mut self) {
        self.log.append_own(&mut self.builder, self.rows.table.actors());
    }

    /// Closes the open batch and hands everything to the kernel.
    pub(crate) fn flush(&mut self) -> Result<u64, Trouble> {
        self.close_batch();
        self.log.flush()
    }

    /// Whether everything that was applied is in the kernel.
    pub(crate) fn is_flushed(&self) -> bool {
        self.builder.is_empty() && !self.log.has_batch()
    }

    fn read_fingerprint(&mut self, actor: ActorIndex, sequence: u64) -> io::Result<Option<u32>> {
        // No peer knows anything of what the log does not take.
        let end = self.flush().unwrap_or_else(|_| self.log.written());
        let Some(position) = self.log.index().seek(actor, sequence) else { return Ok(None) };
        let mut reader = Reader::new(self.log.segments().clone(), position);
        while reader.position() < end.min(position + SEARCH) {
            let id = self.rows.table.actors().id(actor).clone();
            for record in reader.read(end)?.filter(|record| matches!(record.kind, Kind::Own | Kind::Foreign))
            {
                let Ok(Head { region, incarnation, first_sequence, last_sequence }) =
                    frame::peek(record.body)
                else {
                    continue;
                };
                let same = region == &*id.region && incarnation == id.incarnation;
                if same && (first_sequence..=last_sequence).contains(&sequence) {
                    let actors = self.rows.table.actors_mut();
                    let Ok(frame) = Frame::parse(record.body, actors) else { return Ok(None) };
                    let cut = frame.slice(sequence, sequence, actors);
                    return Ok(Frame::parse(&cut, actors).ok().map(|frame| frame.checksum()));
                }
            }
        }
        Ok(None)
    }
}

impl Host for Core {
    fn actors(&mut self) -> &mut Actors {
        self.rows.table.actors_mut()
    }

    fn deliver(&mut self, frame: &Frame<'_>, from: u64, to: u64) {
        // Own entries committed before stand before it in the log, as they do in time.
        self.close_batch();
        let actors = self.rows.table.actors();
        let own_region = actors.id(frame.writer()).region == actors.id(self.rows.own).region;
        let kind = if own_region { Kind::Own } else { Kind::Foreign };
        self.log.append_delivered(kind, frame, from, to, actors);
        let (conflicts, now) = (&mut self.conflicts, system_time());
        self.rows.deliver(frame, from, to, |table, entry| conflicts.examine(table, entry, now));
    }

    fn fingerprint(&mut self, actor: ActorIndex, sequence: u64) -> Result<Option<u32>, Unreadable> {
        self.read_fingerprint(actor, sequence).or_else(|error| match error.kind() {
            // It was read, and is not what was written: as good as not there.
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::NotFound => Ok(None),
            _ => Err(Unreadable),
        })
    }

    fn is_trimmed(&mut self, actor: ActorIndex, sequence: u64) -> bool {
        self.log.index().is_trimmed(actor, sequence)
    }
}

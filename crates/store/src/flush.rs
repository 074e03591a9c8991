//! FLUSHALL and FLUSHDB: DEL of every key, in steps, so that nobody waits for a large store to be emptied.

use std::ops::Range;

use geode_crdt::HybridTime;

use crate::commands::server;
use crate::engine::Engine;
use crate::errors::{Outcome, Stop};
use crate::reply::Reply;
use crate::session::{Flow, Parked, Session, Tickets};
use crate::store::Store;

/// Keys that one entry clears: a bound on entry size.
const CHUNK: usize = 1024;
/// Entries after which others have their turn: about five milliseconds.
const STEP: usize = 4;

/// A flush that is under way.
#[derive(Debug)]
pub(crate) struct Flush {
    /// The databases that are left; the first may be begun.
    databases: Range<u8>,
    cursor: u64,
    /// Rows that are being fetched.
    tickets: Tickets,
}

impl<E: Engine> Store<E> {
    /// Begins to clear the keys of `databases`. Keys that are written before it is done may stay or go.
    pub(crate) fn begin_flush<R: Reply>(
        &mut self,
        session: &mut Session,
        databases: Range<u8>,
        arguments: &[&[u8]],
        reply: &mut R,
    ) -> Outcome<Flow> {
        server::check_flush(arguments)?;
        self.check_writable()?;
        let flush = Flush { databases, cursor: 0, tickets: Tickets::new() };
        Ok(self.flush(session, flush, reply))
    }

    /// Goes on with a flush for one step.
    pub(crate) fn flush<R: Reply>(&mut self, session: &mut Session, mut flush: Flush, reply: &mut R) -> Flow {
        if self.is_fetching(&flush.tickets) {
            session.parked = Some(Parked::Flush(flush));
            return Flow::Wait { until: None };
        }
        if let Err(Stop::Refuse(message)) = self.check_writable() {
            reply.error(&format!("{message}; it was begun, and some keys are gone already"));
            return Flow::Done;
        }
        let mut entries = 0;
        while entries < STEP {
            let (cursor, now) = (flush.cursor, self.begin());
            let cleared =
                self.step(now, flush.databases.start, reply, |context| context.clear_keys(cursor, CHUNK));
            let written = self.engine.end();
            self.note_written(session, written);
            // Databases without keys cost nothing.
            entries += usize::from(written.is_some() || !matches!(cleared, Ok(0)));
            match cleared {
                Ok(0) => (flush.databases.start, flush.cursor) = (flush.databases.start + 1, 0),
                Ok(next) => flush.cursor = next,
                Err(Stop::Need(need)) => {
                    flush.tickets = self.fetch(&[*need]);
                    session.parked = Some(Parked::Flush(flush));
                    return Flow::Wait { until: None };
                }
                Err(Stop::Refuse(message)) => {
                    reply.error(&message);
                    return Flow::Done;
                }
            }
            // The log takes it in pieces. If it does not, the flush after this command says so to whoever is answered here.
            let is_over = flush.databases.is_empty() || written.is_some() && !self.engine.spill();
            if is_over {
                reply.simple("OK");
                return Flow::Done;
            }
        }
        session.parked = Some(Parked::Flush(flush));
        // At once, after the others.
        Flow::Wait { until: Some(HybridTime(0)) }
    }
}

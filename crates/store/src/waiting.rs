//! What a connection may wait for beyond its own region: WAIT, until others hold its writes; GEODE.WAIT, until this
//! region holds what was seen in another, as GEODE.VECTOR told it there.

use geode_crdt::{ActorId, HybridTime, token};

use crate::arguments;
use crate::engine::Engine;
use crate::errors::{self, Outcome};
use crate::reply::Reply;
use crate::session::{Flow, Parked, Session};
use crate::store::Store;
use crate::view::View;

/// What WAIT waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Acknowledgement {
    /// Of which writer.
    writer: u64,
    sequence: u64,
    regions: i64,
    until: Option<HybridTime>,
}

/// What GEODE.WAIT waits for: what of a token was missing here when this was last looked at.
#[derive(Debug)]
pub(crate) struct Coverage {
    missing: Vec<(ActorId, u64)>,
    until: Option<HybridTime>,
}

/// How a region stands to an actor's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Yes,
    NotYet,
    /// Its actor ended before: it exists nowhere.
    Never,
}

/// WAIT regions timeout: how many regions, and the timeout in milliseconds.
fn wait_arguments(arguments: &[&[u8]]) -> Outcome<(i64, u64)> {
    Ok((arguments::integer(arguments[1])?, timeout_ms(arguments[2])?))
}

/// 0 is no limit.
fn timeout_ms(argument: &[u8]) -> Outcome<u64> {
    let timeout_ms = arguments::integer(argument).map_err(|_| errors::TIMEOUT_NOT_AN_INTEGER)?;
    u64::try_from(timeout_ms).map_err(|_| errors::TIMEOUT_NEGATIVE.into())
}

impl<E: Engine> Store<E> {
    /// WAIT regions timeout
    pub(crate) fn begin_wait<R: Reply>(
        &self,
        session: &mut Session,
        arguments: &[&[u8]],
        reply: &mut R,
    ) -> Outcome<Flow> {
        let (regions, timeout_ms) = wait_arguments(arguments)?;
        // What was written under a name that this region has given up may have arrived nowhere.
        let writer = session.writer.unwrap_or_else(|| self.engine.writer());
        let (sequence, until) = (self.engine.last_sequence(), self.deadline(timeout_ms));
        Ok(self.wait(session, Acknowledgement { writer, sequence, regions, until }, reply))
    }

    /// Answers when enough other regions have the entry on disk, or when the time is over.
    pub(crate) fn wait<R: Reply>(
        &self,
        session: &mut Session,
        wanted: Acknowledgement,
        reply: &mut R,
    ) -> Flow {
        let Acknowledgement { writer, sequence, regions, until } = wanted;
        if writer != self.engine.writer() {
            // The region lost its place in its own stream: nobody can tell any more where the write arrived.
            session.writer = None;
            reply.integer(0);
            return Flow::Done;
        }
        let acknowledged = self.engine.acknowledged(sequence) as i64;
        if acknowledged >= regions || self.is_over(until) {
            reply.integer(acknowledged);
            return Flow::Done;
        }
        session.parked = Some(Parked::Acknowledgement(wanted));
        Flow::Wait { until }
    }

    /// WAIT inside a transaction: it cannot wait for what is not written yet.
    pub(crate) fn wait_inside<R: Reply>(&self, arguments: &[&[u8]], reply: &mut R) -> Outcome {
        wait_arguments(arguments)?;
        reply.integer(self.engine.acknowledged(self.engine.last_sequence()) as i64);
        Ok(())
    }

    /// GEODE.VECTOR: all that is delivered here, so also all that this connection wrote and read. It leaves the process
    /// after the engine was flushed, like every reply, so it names nothing that a killed process could lose.
    pub(crate) fn reply_vector<R: Reply>(&self, reply: &mut R) {
        reply.bulk(token::write(self.engine.held(), self.engine.view().actors()).as_bytes());
    }

    /// GEODE.WAIT token timeout: 1 once all that the token names is delivered here, 0 if it is not after so many
    /// milliseconds (0: no limit), -1 as soon as it is known that some of it exists nowhere any more.
    pub(crate) fn begin_cover<R: Reply>(
        &self,
        session: &mut Session,
        arguments: &[&[u8]],
        reply: &mut R,
    ) -> Outcome<Flow> {
        let missing = token::read(arguments[1]).map_err(|_| errors::INVALID_TOKEN)?;
        let timeout_ms = timeout_ms(arguments[2])?;
        let until = self.deadline(timeout_ms);
        Ok(self.cover(session, Coverage { missing, until }, reply))
    }

    /// Linear in what was missing when this was last looked at.
    pub(crate) fn cover<R: Reply>(&self, session: &mut Session, mut wanted: Coverage, reply: &mut R) -> Flow {
        let mut is_lost = false;
        wanted.missing.retain(|(actor, sequence)| {
            let held = self.held(actor, *sequence);
            is_lost |= held == Held::Never;
            held != Held::Yes
        });
        let answer = match wanted.missing.is_empty() {
            true => 1,
            false if is_lost => -1,
            false if self.is_over(wanted.until) => 0,
            false => {
                let until = wanted.until;
                session.parked = Some(Parked::Coverage(wanted));
                return Flow::Wait { until };
            }
        };
        reply.integer(answer);
        Flow::Done
    }

    fn held(&self, actor: &ActorId, sequence: u64) -> Held {
        let actor = self.engine.view().actors().find(actor);
        if sequence <= actor.map_or(0, |actor| self.engine.held().get(actor)) {
            return Held::Yes;
        }
        let end = actor.and_then(|actor| self.engine.end_of(actor));
        if end.is_some_and(|end| end < sequence) { Held::Never } else { Held::NotYet }
    }

    fn deadline(&self, timeout_ms: u64) -> Option<HybridTime> {
        let until = || HybridTime(self.engine.now().0.saturating_add(timeout_ms.saturating_mul(1000)));
        (timeout_ms > 0).then(until)
    }

    fn is_over(&self, until: Option<HybridTime>) -> bool {
        until.is_some_and(|until| self.engine.now() >= until)
    }
}

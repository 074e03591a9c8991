//! Where faults are planted: in the shell, which sees every operation and message.

use geode_crdt::{ActorIndex, Frame, HybridTime, Kind as CellKind, Mark, Op};
use geode_replica::Message;
use geode_store::{KeyView, Need, Part, View};

use super::{Core, SimEngine};
use crate::plant::Plant;

impl Core {
    /// Planted: the second half of a transaction comes later.
    pub(crate) fn finish_transaction(&mut self) {
        let Some((bytes, sequence)) = self.rest.take() else { return };
        let Ok(frame) = Frame::parse(&bytes, self.rows.actors_mut()) else { return };
        let writer = frame.writer();
        for entry in frame.entries().filter(|entry| entry.sequence == sequence) {
            let ops: Vec<Op<'_>> = entry.ops().map_while(Result::ok).collect();
            self.apply(&ops[ops.len() / 2..], entry.time, (writer, sequence));
        }
    }

    pub(super) fn apply_planted(
        &mut self,
        plant: Plant,
        op: &Op<'_>,
        ops: &[Op<'_>],
        time: HybridTime,
        by: (ActorIndex, u64),
    ) {
        let mut op = op.clone();
        match (plant, &mut op) {
            (Plant::OneNamePerEntry, Op::Sum { start, dot, .. }) => {
                (start.ordinal, dot.mark.ordinal) = (0, 0);
            }
            (Plant::OneNamePerEntry, Op::Cancel { upto, .. }) => upto.ordinal = 0,
            (Plant::RunsWithoutStart, Op::Sum { start, .. }) => *start = Mark { sequence: 0, ordinal: 0 },
            (Plant::SetWithoutNever, Op::Set { key, dot, value, replaces }) => {
                let (key, dot, value, replaces) = (*key, *dot, *value, *replaces);
                for dot in replaces {
                    let gone = Op::Remove { key, kind: CellKind::Ttl, element: b"", dot };
                    self.rows.apply(&gone, time, by);
                }
                op = Op::Put { key, kind: CellKind::String, element: b"", dot, value, replaces };
            }
            (Plant::HiddenTypesStay, Op::Remove { key, kind, .. } | Op::Cancel { key, kind, .. }) => {
                let (key, kind) = (*key, *kind);
                let is_of_other_type = ops.iter().any(|other| match other {
                    Op::Put { key: of, kind: put, .. } | Op::Sum { key: of, kind: put, .. } => {
                        *of == key && *put != kind && *put != CellKind::Ttl && kind != CellKind::Ttl
                    }
                    _ => false,
                });
                if is_of_other_type {
                    return;
                }
            }
            (Plant::ArrivalOrder, Op::Put { key, kind, element, .. }) => {
                self.remove_all(*key, *kind, element, time, by);
            }
            (Plant::ArrivalOrder, Op::Set { key, .. }) => {
                self.remove_all(*key, CellKind::String, b"", time, by);
            }
            _ => {}
        }
        self.rows.apply(&op, time, by);
    }

    fn remove_all(
        &mut self,
        key: geode_crdt::KeyName<'_>,
        kind: CellKind,
        element: &[u8],
        time: HybridTime,
        by: (ActorIndex, u64),
    ) {
        let (database, name) = (key.database, Box::from(key.name));
        self.rows.load(&Need { database, name, part: Part::Summary });
        let name = Box::from(key.name);
        self.rows.load(&Need { database, name, part: Part::Cell(kind, element.into()) });
        let held = self.rows.key(key).ok().flatten().and_then(|key| key.cell(kind, element).ok().flatten());
        let dots: Vec<_> = held.into_iter().flat_map(|cell| cell.puts().map(|put| put.dot)).collect();
        for dot in dots {
            self.rows.apply(&Op::Remove { key, kind, element, dot }, time, by);
        }
    }
}

impl SimEngine {
    /// Planted faults that touch messages, and a line about each.
    pub(super) fn before_message(&mut self, mut message: Message) -> (Message, String) {
        let shown = match &mut message {
            Message::Hello { witnesses, held, .. } => {
                if self.core.is(Plant::IgnoredWitness) {
                    witnesses.clear();
                    held.0.retain(|actor, _| actor.region != self.region);
                }
                format!("a hello that holds {} actors", held.0.len())
            }
            Message::Heartbeat { actor, sequence, held, .. } => {
                if self.core.is(Plant::PromiseBeforeEntries) {
                    *sequence = 0;
                }
                if self.core.is(Plant::DeadByGossip) {
                    let actors = self.core.rows.actors_mut();
                    let (owner, mut seen) = (actors.intern(actor), held.intern(actors));
                    let said = self.replica.peers().find(|(peer, ..)| **peer == actor.region);
                    said.into_iter().for_each(|(.., said)| seen.join(said));
                    self.core.rows.drop_dead(owner, &seen);
                }
                format!("a heartbeat at {sequence}")
            }
            Message::Request { actor, from, to } => {
                format!("a request for {from}..={to} of {}", actor.region)
            }
            Message::Refuse { reason } | Message::Exclude { reason } => format!("a refusal: {reason}"),
            Message::Trimmed { actor, from } => format!("entry {from} of {actor} is in no log"),
            Message::Ask { resume, .. } => format!("a question for a snapshot from {}", resume.len()),
            Message::Unable { reason } => format!("no snapshot: {reason}"),
            Message::Durable { durable } => format!("an acknowledgement of {:?}", durable.0.values()),
        };
        (message, shown)
    }

    /// Planted: what comes again is applied again.
    pub(super) fn apply_twice(&mut self, body: &[u8]) {
        if !self.core.is(Plant::AppliedTwice) {
            return;
        }
        let Ok(frame) = Frame::parse(body, self.core.rows.actors_mut()) else { return };
        let held = self.replica.held().get(frame.writer());
        for entry in frame.entries().filter(|entry| entry.sequence <= held) {
            let ops: Vec<Op<'_>> = entry.ops().map_while(Result::ok).collect();
            self.core.apply(&ops, entry.time, (frame.writer(), entry.sequence));
        }
    }
}

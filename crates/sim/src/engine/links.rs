//! Links: what comes in, and what is sent from the log.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use geode_crdt::{ActorId, Actors, Frame, frame};
use geode_replica::wire;

use super::SimEngine;
use super::snapshot::{Block, Sending};
use crate::disk::{Kind, Record};
use crate::plan::Fsync;

/// What goes out on a link.
#[derive(Debug)]
pub(crate) enum Out {
    Bytes {
        link: u64,
        bytes: Vec<u8>,
    },
    /// A block of a snapshot, for an attempt.
    Block {
        link: u64,
        attempt: u64,
        block: Arc<Block>,
    },
    Close {
        link: u64,
        reason: String,
    },
}

/// The sending half of a link.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) id: u64,
    pub(super) encoder: wire::Encoder,
    decoder: wire::Decoder,
    /// The next record of the log that the stream looks at.
    pub(super) tail: Option<usize>,
    /// What the peer held when the stream began, by incarnation.
    pub(super) held: BTreeMap<u64, u64>,
    pub(super) ranges: VecDeque<(ActorId, u64, u64)>,
    pub(super) sending: Option<Sending>,
}

impl SimEngine {
    /// A link to a peer is up.
    pub(crate) fn connected(&mut self, peer: &str, id: u64) {
        let link = Link {
            id,
            encoder: wire::Encoder::default(),
            decoder: wire::Decoder::default(),
            tail: None,
            held: BTreeMap::new(),
            ranges: VecDeque::new(),
            sending: None,
        };
        if let Some(old) = self.links.insert(peer.into(), link) {
            self.out.push(Out::Close { link: old.id, reason: "another took its place".into() });
            self.replica.lost(peer);
        }
        self.passing(|engine| engine.replica.connected(peer, &mut engine.core));
    }

    /// A link is gone; nothing if another took its place.
    pub(crate) fn lost(&mut self, peer: &str, id: u64) {
        if self.link(peer) == Some(id) {
            self.links.remove(peer);
            self.replica.lost(peer);
            self.join_what_came(peer);
            self.act();
        }
    }

    pub(crate) fn link(&self, peer: &str) -> Option<u64> {
        self.links.get(peer).map(|link| link.id)
    }

    /// One message arrived.
    pub(crate) fn receive(&mut self, peer: &str, bytes: &[u8]) -> Result<String, String> {
        let (head, body) = bytes.split_at(wire::HEAD);
        let head = head.try_into().map_err(|_| "a short head")?;
        let (kind, _) = wire::read_head(head).map_err(|error| error.to_string())?;
        if kind == wire::Kind::Frame {
            let head = frame::peek(body).map_err(|error| error.to_string())?;
            let shown = format!(
                "entries {}..={} of {}#{:04x}",
                head.first_sequence,
                head.last_sequence,
                head.region,
                head.incarnation & 0xffff
            );
            self.apply_twice(body);
            self.passing(|engine| engine.replica.frame(peer, body, &mut engine.core));
            return Ok(shown);
        }
        let link = self.links.get_mut(peer).ok_or("a message on no link")?;
        let message = link.decoder.decode(kind, body).map_err(|error| error.to_string())?;
        let (message, shown) = self.before_message(message);
        self.passing(|engine| engine.replica.message(peer, message, &mut engine.core));
        Ok(shown)
    }

    /// Sends what links may be sent.
    pub(crate) fn pump(&mut self) {
        let limit = self.shippable();
        let (trimmed, _) = self.core.disk.visible();
        let records = &self.core.disk.records;
        let end = records.partition_point(|record| record.end <= limit);
        for link in self.links.values_mut() {
            if let Some(tail) = &mut link.tail {
                for record in records.get((*tail).max(trimmed)..end).unwrap_or_default() {
                    if record.kind == Kind::Own {
                        let held = link.held.get(&record.actor.incarnation).copied().unwrap_or(0);
                        put_entries(&mut self.out, link.id, record, held + 1, u64::MAX);
                    }
                }
                *tail = end.max(*tail);
            }
            for (actor, from, to) in link.ranges.drain(..) {
                for record in records[trimmed.min(end)..end].iter().filter(|record| record.actor == actor) {
                    put_entries(&mut self.out, link.id, record, from, to);
                }
            }
            if let Some(Sending { attempt, queue, .. }) = &mut link.sending {
                while let Some((_, block)) = queue.pop_front_if(|(position, _)| *position <= limit) {
                    self.out.push(Out::Block { link: link.id, attempt: *attempt, block });
                }
            }
        }
    }

    /// Up to where the log may be shown to others.
    pub(super) const fn shippable(&self) -> u64 {
        match self.fsync {
            Fsync::Always => self.core.disk.synced,
            Fsync::EverySecond | Fsync::Never => u64::MAX,
        }
    }
}

/// Sends a record's frame, cut to the entries `from..=to`; nothing if it holds none of them.
fn put_entries(out: &mut Vec<Out>, link: u64, record: &Record, from: u64, to: u64) {
    if record.last < from || record.first > to || record.frame.is_empty() {
        return;
    }
    let mut bytes = Vec::new();
    if record.first >= from && record.last <= to {
        wire::put_frame_head(&mut bytes, record.frame.len());
        bytes.extend_from_slice(&record.frame);
    } else {
        let mut actors = Actors::default();
        let Ok(frame) = Frame::parse(&record.frame, &mut actors) else { return };
        let cut = frame.slice(from, to.min(record.last), &actors);
        wire::put_frame_head(&mut bytes, cut.len());
        bytes.extend_from_slice(&cut);
    }
    out.push(Out::Bytes { link, bytes });
}

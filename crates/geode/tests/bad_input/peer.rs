//! A peer that the test plays, over mutual TLS.

use std::collections::BTreeMap;
use std::sync::Arc;

use geode_crdt::{ActorId, Actors, FrameBuilder, HybridTime, KeyName, Kind as CellKind};
use geode_link::{Authority, Credentials, Dialer, Identity, LinkError, Purpose, Stream};
use geode_planet::{HostPort, RegionName};
use geode_replica::Vector;
use geode_replica::wire::{self, Decoder, Encoder, Kind, Message, Versions, Witness};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::geode::{Geode, PLANET};

/// One end of a replication link.
pub(crate) struct Peer {
    name: &'static str,
    stream: Stream,
    encoder: Encoder,
    decoder: Decoder,
}

impl Peer {
    /// Calls a geode with a bundle of this authority.
    pub(crate) async fn call(
        name: &'static str,
        authority: &Authority,
        geode: &Geode,
    ) -> Result<Self, LinkError> {
        let region: RegionName = name.parse().unwrap();
        let bundle = authority.issue(&region).unwrap();
        let identity = Identity { planet: PLANET.to_owned(), region };
        let credentials = Arc::new(Credentials::new(identity, &bundle).unwrap());
        let to: RegionName = geode.name.parse().unwrap();
        let address = HostPort { host: "127.0.0.1".to_owned(), port: geode.ports.link };
        let dialer = Dialer::new(credentials, None, BTreeMap::from([(to.clone(), address)]));
        let stream = dialer.dial(&to, Purpose::Replication).await?;
        Ok(Self { name, stream, encoder: Encoder::default(), decoder: Decoder::default() })
    }

    pub(crate) async fn say(&mut self, message: &Message) {
        let mut bytes = Vec::new();
        self.encoder.encode(message, &mut bytes);
        self.send(&bytes).await;
    }

    /// Bytes as they are. Whether the other side still takes them is for what it answers to show.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
        let _ = self.stream.flush().await;
    }

    pub(crate) async fn frame(&mut self, bytes: &[u8]) {
        let mut message = Vec::new();
        wire::put_frame_head(&mut message, bytes.len());
        message.extend_from_slice(bytes);
        self.send(&message).await;
    }

    /// A greeting that says what a good one does, but for what is given.
    pub(crate) async fn greet(&mut self, planet: &str, versions: Versions, actor: ActorId) {
        let planet = planet.to_owned();
        let (held, witnesses) = (Vector::default(), Vec::new());
        self.say(&Message::Hello { versions, planet, actor, held, witnesses }).await;
    }

    /// A good one.
    pub(crate) async fn greet_well(&mut self) {
        let actor = actor(self.name);
        self.greet(PLANET, wire::VERSIONS, actor).await;
    }

    /// One that bears witness of an entry of the other side, which is not the one that it wrote.
    pub(crate) async fn greet_with_another_entry_of(&mut self, theirs: &ActorId, sequence: u64) {
        let witnesses = vec![Witness { actor: theirs.clone(), sequence, fingerprint: 0 }];
        let held = Vector([(theirs.clone(), sequence)].into());
        let (versions, planet, actor) = (wire::VERSIONS, PLANET.to_owned(), actor(self.name));
        self.say(&Message::Hello { versions, planet, actor, held, witnesses }).await;
    }

    /// As whom the other side writes.
    pub(crate) async fn hears_who_it_is(&mut self) -> ActorId {
        loop {
            match self.hear().await {
                Some(Message::Hello { actor, .. }) => return actor,
                Some(_) => {}
                None => panic!("the link ended before a greeting"),
            }
        }
    }

    /// Hears until the other side writes as somebody else.
    pub(crate) async fn hears_that_another_writes(&mut self, than: &ActorId) {
        loop {
            match self.hear().await {
                Some(Message::Heartbeat { actor, .. }) if actor != *than => return,
                Some(_) => {}
                None => panic!("the link ended"),
            }
        }
    }

    /// The next message of the kinds that are no frames; `None` at the end of the link.
    pub(crate) async fn hear(&mut self) -> Option<Message> {
        loop {
            let mut head = [0; wire::HEAD];
            self.stream.read_exact(&mut head).await.ok()?;
            let (kind, length) = wire::read_head(head).unwrap();
            let mut body = vec![0; length];
            self.stream.read_exact(&mut body).await.ok()?;
            if !matches!(kind, Kind::Frame | Kind::Packed) {
                return Some(self.decoder.decode(kind, &body).unwrap());
            }
        }
    }

    /// Hears until the link ends; what it was refused with, if it was.
    pub(crate) async fn hear_the_end(mut self) -> Option<String> {
        let mut refusal = None;
        while let Some(message) = self.hear().await {
            if let Message::Refuse { reason } = message {
                refusal = Some(reason);
            }
        }
        refusal
    }

    /// Hears until the geode says that it holds an actor up to an entry.
    pub(crate) async fn hears_that_it_holds(&mut self, actor: &ActorId, sequence: u64) {
        while let Some(message) = self.hear().await {
            let (Message::Heartbeat { held, .. } | Message::Hello { held, .. }) = message else { continue };
            if held.0.get(actor) == Some(&sequence) {
                return;
            }
        }
        panic!("the link ended before {actor} was held up to {sequence}");
    }
}

/// The writer of a region that the test plays.
pub(crate) fn actor(region: &str) -> ActorId {
    ActorId::new(region, 7)
}

/// One entry of a writer that sets a member of the set `s` to its number.
pub(crate) fn entry(writer: &ActorId, sequence: u64) -> Vec<u8> {
    let mut actors = Actors::default();
    let mut builder = FrameBuilder::new(actors.intern(writer), sequence);
    builder.begin_entry(HybridTime(sequence), None);
    let member = sequence.to_string();
    builder.put(KeyName { database: 0, name: b"s" }, CellKind::Set, member.as_bytes(), b"", []);
    builder.finish_entry();
    let mut bytes = Vec::new();
    builder.finish_into(&mut bytes, &actors);
    bytes
}

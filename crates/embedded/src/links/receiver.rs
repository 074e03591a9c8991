//! The receiving half of a connection: bytes from a peer, bounded before they are believed.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use geode_replica::wire::{self, Kind};
use tokio::io::{AsyncRead, AsyncReadExt, BufReader};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::traffic::Traffic;
use super::{invalid, pack};
use crate::inbox::{Inbox, Incoming};
use crate::outbox::Outbox;

/// A link on which nothing arrives for so long is dead: fifty heartbeats are missing.
const SILENCE: Duration = Duration::from_secs(5);
/// What one connection's messages may take up here before it has to wait, in units of [`PERMIT`].
const INBOX_BYTES: usize = 4 << 20;
const PERMIT: usize = 1 << 10;
/// How much more than its bytes a message that is no frame takes up at most: a number of three bytes and its sequence
/// become a row of a map.
const DECODED: usize = 16;
/// Bytes read from a socket at once.
const READ_CHUNK: usize = 64 << 10;

/// Reads one connection.
pub(crate) struct Receiver<'l, S> {
    stream: BufReader<S>,
    inbox: &'l Inbox,
    traffic: &'l Traffic,
    peer: Arc<str>,
    permits: Arc<Semaphore>,
}

impl<'l, S: AsyncRead + Unpin> Receiver<'l, S> {
    pub(crate) fn new(stream: S, inbox: &'l Inbox, traffic: &'l Traffic, peer: &Arc<str>) -> Self {
        Self {
            stream: BufReader::with_capacity(READ_CHUNK, stream),
            inbox,
            traffic,
            peer: Arc::clone(peer),
            permits: Arc::new(Semaphore::new(INBOX_BYTES / PERMIT)),
        }
    }

    /// A live link: messages and frames, never silent.
    pub(crate) async fn live(mut self, outbox: &Arc<Outbox>) -> io::Result<()> {
        let mut decoder = wire::Decoder::default();
        loop {
            let (kind, bytes) = within_silence(self.head()).await?.body().await?;
            if matches!(kind, Kind::Frame | Kind::Packed) {
                self.frames(kind, bytes, Some(outbox)).await?;
                continue;
            }
            let permit = self.permit(bytes.len() * DECODED).await;
            let (peer, outbox) = (Arc::clone(&self.peer), Arc::clone(outbox));
            let message = decoder.decode(kind, &bytes).map_err(invalid)?;
            self.inbox.push(Incoming::Message { peer, outbox, message, _permit: permit });
        }
    }

    /// A bulk connection: frames, blocks of a snapshot, and silence when there is nothing to catch up with.
    pub(crate) async fn bulk(mut self) -> io::Result<()> {
        loop {
            let (kind, bytes) = self.head().await?.body().await?;
            self.frames(kind, bytes, None).await?;
        }
    }

    async fn head(&mut self) -> io::Result<Body<'_, S>> {
        let mut head = [0; wire::HEAD];
        self.stream.read_exact(&mut head).await?;
        let (kind, length) = wire::read_head(head).map_err(invalid)?;
        self.traffic.received(wire::HEAD + length);
        Ok(Body { stream: &mut self.stream, kind, length })
    }

    /// Queues the frames of a message; `outbox` is that of the live link on which they came.
    async fn frames(&mut self, kind: Kind, bytes: Vec<u8>, outbox: Option<&Arc<Outbox>>) -> io::Result<()> {
        match kind {
            Kind::Frame => self.frame(bytes, outbox).await,
            Kind::Packed => {
                let plain = pack::unpack(&bytes)?;
                let mut rest = plain.as_slice();
                while let Some((head, after)) = rest.split_first_chunk() {
                    let (kind, length) = wire::read_head(*head).map_err(invalid)?;
                    let (frame, after) = after.split_at_checked(length).ok_or(io::ErrorKind::InvalidData)?;
                    match kind {
                        Kind::Frame => self.frame(frame.to_vec(), outbox).await?,
                        Kind::Block if outbox.is_none() => self.block(frame.to_vec()).await,
                        _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "it is never packed")),
                    }
                    rest = after;
                }
                if rest.is_empty() { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
            }
            Kind::Block if outbox.is_none() => {
                self.block(bytes).await;
                Ok(())
            }
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "it never comes in bulk")),
        }
    }

    async fn block(&mut self, bytes: Vec<u8>) {
        let (permit, peer) = (self.permit(bytes.len()).await, Arc::clone(&self.peer));
        self.inbox.push(Incoming::Block { peer, bytes, permit });
    }

    async fn frame(&mut self, bytes: Vec<u8>, outbox: Option<&Arc<Outbox>>) -> io::Result<()> {
        let permit = self.permit(bytes.len()).await;
        let peer = Arc::clone(&self.peer);
        self.inbox.push(match outbox {
            Some(outbox) => Incoming::Frame { peer, outbox: Arc::clone(outbox), bytes, _permit: permit },
            None => Incoming::Bulk { peer, bytes, _permit: permit },
        });
        Ok(())
    }

    /// Waits until the data thread has room for so many bytes more.
    async fn permit(&mut self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let wanted = (bytes / PERMIT + 1).min(INBOX_BYTES / PERMIT) as u32;
        // The semaphore is never closed.
        Arc::clone(&self.permits).acquire_many_owned(wanted).await.ok()
    }
}

/// A message whose head was read.
struct Body<'s, S> {
    stream: &'s mut BufReader<S>,
    kind: Kind,
    length: usize,
}

impl<S: AsyncRead + Unpin> Body<'_, S> {
    /// Reads it piece by piece: its length is a claim until the bytes are there.
    async fn body(self) -> io::Result<(Kind, Vec<u8>)> {
        let mut body = Vec::new();
        while body.len() < self.length {
            let start = body.len();
            body.resize(self.length.min(start + READ_CHUNK), 0);
            within_silence(self.stream.read_exact(&mut body[start..])).await?;
        }
        Ok((self.kind, body))
    }
}

async fn within_silence<T>(read: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match tokio::time::timeout(SILENCE, read).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "it fell silent")),
    }
}

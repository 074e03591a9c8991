//! Links to the other regions: bytes in, bytes out. What they mean is decided on the data thread.
//!
//! Of each pair of regions the one whose name comes first dials, so there is one connection between two. The other one
//! only knocks when it starts: a connection with nothing on it, on which the first dials at once. A link's sender reads
//! this region's own entries straight from the log file, from where the peer stands; a peer that is slow or away costs
//! no memory and resumes where it was.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use geode_crdt::{Actors, Frame, frame};
use geode_replica::wire;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::Instant;

use crate::engine::{Connection, Dial};
use crate::inbox::{Inbox, Incoming};
use crate::log::{Kind, Reader, Segments};
use crate::outbox::{Outbox, Range, Stream};

/// A link on which nothing arrives for so long is dead: fifty heartbeats are missing.
const SILENCE: Duration = Duration::from_secs(5);
/// Pauses between attempts to dial, doubling.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// What a peer's messages may take up here before it has to wait, in units of [`PERMIT`].
const INBOX_BYTES: usize = 4 << 20;
const PERMIT: usize = 1 << 10;
/// Bytes read from a socket at once.
const READ_CHUNK: usize = 64 << 10;

/// What every link needs.
#[derive(Clone, Debug)]
pub(crate) struct Links {
    pub(crate) region: Arc<str>,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) segments: Arc<Segments>,
    /// Up to where the log may be sent.
    pub(crate) shippable: watch::Receiver<u64>,
    /// The peers that this region dials, and what tells that one of them knocked.
    pub(crate) knocks: Arc<BTreeMap<Arc<str>, Notify>>,
    /// Closed when the engine goes.
    pub(crate) closing: watch::Receiver<bool>,
}

impl Links {
    /// Serves a connection that came from `peer`, or notices that it knocked.
    pub(crate) async fn accept(self, peer: Arc<str>, stream: Connection) {
        match self.knocks.get(&peer) {
            Some(knock) => knock.notify_one(),
            None => self.run(peer, stream, std::future::pending()).await,
        }
    }

    /// Tells a peer that dials this region that it is there. By itself it could be seconds late: it pauses between
    /// attempts, waits for one that a dead machine never answers, or has not noticed that its old link is dead.
    pub(crate) async fn knock(mut self, peer: Arc<str>, dial: Dial) {
        let knocked = tokio::select! {
            knocked = dial(peer.to_string()) => knocked,
            _ = self.closing.wait_for(|closing| *closing) => return,
        };
        if let Err(error) = knocked {
            tracing::debug!(%peer, %error, "cannot be told that this region is there");
        }
    }

    /// Keeps a link to `peer`: dials, and dials again whenever it breaks or the peer knocks.
    pub(crate) async fn keep_dialling(mut self, peer: Arc<str>, dial: Dial) {
        let knocks = Arc::clone(&self.knocks);
        let Some(knock) = knocks.get(&peer) else { return };
        // Leaves the knock for the pause that follows.
        let replaced = || async {
            knock.notified().await;
            knock.notify_one();
        };
        let mut pause = FIRST_PAUSE;
        loop {
            let dialled = tokio::select! {
                dialled = dial(peer.to_string()) => dialled,
                () = knock.notified() => continue,
                _ = self.closing.wait_for(|closing| *closing) => return,
            };
            match dialled {
                Ok(stream) => {
                    let since = Instant::now();
                    self.clone().run(Arc::clone(&peer), stream, replaced()).await;
                    if since.elapsed() > LONGEST_PAUSE {
                        pause = FIRST_PAUSE;
                    }
                }
                Err(error) => tracing::debug!(%peer, %error, "cannot be reached for replication"),
            }
            tokio::select! {
                () = tokio::time::sleep(jittered(pause)) => pause = (pause * 2).min(LONGEST_PAUSE),
                () = knock.notified() => pause = FIRST_PAUSE,
                _ = self.closing.wait_for(|closing| *closing) => return,
            }
        }
    }

    /// Serves one connection until it ends or is `replaced`.
    async fn run(mut self, peer: Arc<str>, stream: Connection, replaced: impl Future<Output = ()>) {
        let outbox = Arc::new(Outbox::default());
        let (read, write) = tokio::io::split(stream);
        self.inbox.push(Incoming::Connected { peer: Arc::clone(&peer), outbox: Arc::clone(&outbox) });
        let receiver = receive(read, &self.inbox, &peer, &outbox);
        let sender = Sender::new(&self, Arc::clone(&outbox)).run(write);
        let ended = tokio::select! {
            ended = receiver => ended,
            ended = sender => ended,
            () = replaced => Ok(()),
            _ = self.closing.wait_for(|closing| *closing) => Ok(()),
        };
        if let Err(error) = ended {
            tracing::info!(%peer, "replication link ended: {error}");
        }
        self.inbox.push(Incoming::Lost { peer, outbox });
    }
}

/// Half to all of a pause, so that regions that lost each other do not dial in step.
fn jittered(pause: Duration) -> Duration {
    let random = getrandom::u32().unwrap_or(0);
    pause / 2 + (pause / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
}

async fn receive(
    stream: impl AsyncRead + Unpin,
    inbox: &Inbox,
    peer: &Arc<str>,
    outbox: &Arc<Outbox>,
) -> io::Result<()> {
    let mut stream = BufReader::with_capacity(READ_CHUNK, stream);
    let permits = Arc::new(Semaphore::new(INBOX_BYTES / PERMIT));
    let mut decoder = wire::Decoder::default();
    loop {
        let mut head = [0; wire::HEAD];
        within_silence(stream.read_exact(&mut head)).await?;
        let (kind, length) = wire::read_head(head).map_err(invalid)?;
        let bytes = read_body(&mut stream, length).await?;
        let (peer, outbox) = (Arc::clone(peer), Arc::clone(outbox));
        if kind == wire::Kind::Frame {
            let wanted = (length / PERMIT + 1).min(INBOX_BYTES / PERMIT) as u32;
            // The semaphore is never closed.
            let Ok(permit) = Arc::clone(&permits).acquire_many_owned(wanted).await else { return Ok(()) };
            inbox.push(Incoming::Frame { peer, outbox, bytes, _permit: permit });
        } else {
            let message = decoder.decode(kind, &bytes).map_err(invalid)?;
            inbox.push(Incoming::Message { peer, outbox, message });
        }
    }
}

/// Reads a body piece by piece: its length is a claim until the bytes are there.
async fn read_body(stream: &mut (impl AsyncRead + Unpin), length: usize) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    while body.len() < length {
        let start = body.len();
        body.resize(length.min(start + READ_CHUNK), 0);
        within_silence(stream.read_exact(&mut body[start..])).await?;
    }
    Ok(body)
}

async fn within_silence<T>(read: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match tokio::time::timeout(SILENCE, read).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "it fell silent")),
    }
}

fn invalid(error: geode_crdt::FrameError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// The sending half of a link.
struct Sender {
    region: Arc<str>,
    outbox: Arc<Outbox>,
    segments: Arc<Segments>,
    shippable: watch::Receiver<u64>,
    /// This region's own entries from where the peer stands.
    tail: Option<Reader>,
    /// What the peer held when the stream began, by incarnation.
    held: BTreeMap<u64, u64>,
    ranges: VecDeque<(Reader, Range)>,
    /// For cutting frames; nearly never used.
    actors: Actors,
}

impl Sender {
    fn new(links: &Links, outbox: Arc<Outbox>) -> Self {
        Self {
            region: Arc::clone(&links.region),
            outbox,
            segments: Arc::clone(&links.segments),
            shippable: links.shippable.clone(),
            tail: None,
            held: BTreeMap::new(),
            ranges: VecDeque::new(),
            actors: Actors::default(),
        }
    }

    async fn run(mut self, mut stream: impl AsyncWrite + Unpin) -> io::Result<()> {
        let mut out = Vec::new();
        loop {
            out.clear();
            let mut work = self.outbox.take();
            out.append(&mut work.bytes);
            if work.close {
                stream.write_all(&out).await?;
                return stream.shutdown().await;
            }
            if let Some(Stream { position, held }) = work.stream {
                self.tail = Some(Reader::new(Arc::clone(&self.segments), position));
                self.held = held.into_iter().collect();
            }
            let reader = |range: Range| (Reader::new(Arc::clone(&self.segments), range.position), range);
            self.ranges.extend(work.ranges.into_iter().map(reader));
            let limit = *self.shippable.borrow_and_update();
            self.read_tail(limit, &mut out)?;
            self.read_range(limit, &mut out)?;
            if !out.is_empty() {
                stream.write_all(&out).await?;
                stream.flush().await?;
            }
            let behind = self.tail.as_ref().is_some_and(|tail| tail.position() < limit);
            if behind || !self.ranges.is_empty() {
                // Others on this runtime get their turn even if the peer reads as fast as the disk.
                tokio::task::yield_now().await;
                continue;
            }
            tokio::select! {
                () = self.outbox.changed() => {}
                changed = self.shippable.changed() => changed.map_err(|_| io::ErrorKind::ConnectionAborted)?,
            }
        }
    }

    /// Appends the next own entries that the peer does not hold.
    fn read_tail(&mut self, limit: u64, out: &mut Vec<u8>) -> io::Result<()> {
        let Some(tail) = &mut self.tail else { return Ok(()) };
        for record in tail.read(limit)?.filter(|record| record.kind == Kind::Own) {
            let head = frame::peek(record.body).map_err(invalid)?;
            let held = self.held.get(&head.incarnation).copied().unwrap_or(0);
            put_entries(out, record.body, held + 1, u64::MAX, &mut self.actors)?;
        }
        Ok(())
    }

    /// Appends the next entries of the range that was asked for first.
    fn read_range(&mut self, limit: u64, out: &mut Vec<u8>) -> io::Result<()> {
        let Some((reader, range)) = self.ranges.front_mut() else { return Ok(()) };
        let kind = if range.actor.region == self.region { Kind::Own } else { Kind::Foreign };
        let mut done = false;
        for record in reader.read(limit)?.filter(|record| record.kind == kind) {
            let head = frame::peek(record.body).map_err(invalid)?;
            if head.incarnation == range.actor.incarnation && head.region == &*range.actor.region {
                put_entries(out, record.body, range.from, range.to, &mut self.actors)?;
                done |= head.last_sequence >= range.to;
            }
        }
        if done || reader.position() >= limit {
            self.ranges.pop_front();
        }
        Ok(())
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

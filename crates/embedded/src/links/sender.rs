//! The sending halves: the live link of a peer, and its bulk connection.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use geode_replica::{Message, wire};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::Instant;

use super::connection::PathGauge;
use super::feed::Feed;
use super::lane::{Attached, Cargo, Lane, Load};
use super::pace::Pace;
use super::traffic::Traffic;
use super::{Links, Peering, pack};
use crate::log::{CHUNK, Segments};
use crate::outbox::Outbox;

/// A peer that lacks more of the log than this is fed over the bulk connection: what a link of 100 Mbit/s carries between
/// two heartbeats, so that the live link is never busy for longer.
const FAR: u64 = 1 << 20;
/// At this distance the live link takes over again.
const NEAR: u64 = CHUNK as u64;
/// How long a live link waits for a bulk connection before it feeds a peer that is far behind itself: a few of the longest
/// round trips. The peer may be of a release that knows of none.
const BULK_PATIENCE: Duration = Duration::from_secs(1);
/// A live batch is compressed from this length on: 13 us, and half of what random text takes. Of shorter batches the same
/// CPU saves less, and they are not what fills a link.
const LIVE_PACK: usize = 4 << 10;

/// The sending half of a live link.
pub(crate) struct Sender<'l> {
    region: Arc<str>,
    outbox: Arc<Outbox>,
    segments: Arc<Segments>,
    shippable: watch::Receiver<u64>,
    lane: &'l Lane,
    traffic: &'l Traffic,
    /// This region's own entries from where the peer stands; the bulk connection may have it.
    tail: Option<Feed>,
    range: Option<Feed>,
    /// Whether the peer understands packed messages.
    packs: bool,
    /// Until when it may wait for a bulk connection.
    patience: Instant,
}

impl<'l> Sender<'l> {
    pub(crate) fn new(links: &Links, peering: &'l Peering, outbox: Arc<Outbox>) -> Self {
        Self {
            region: Arc::clone(&links.region),
            outbox,
            segments: Arc::clone(&links.segments),
            shippable: links.shippable.clone(),
            lane: &peering.lane,
            traffic: &peering.traffic,
            tail: None,
            range: None,
            packs: false,
            patience: Instant::now(),
        }
    }

    pub(crate) async fn run(mut self, mut stream: impl AsyncWrite + Unpin) -> io::Result<()> {
        let mut out = Vec::new();
        loop {
            out.clear();
            let mut work = self.outbox.take();
            out.append(&mut work.bytes);
            if work.close {
                stream.write_all(&out).await?;
                return stream.shutdown().await;
            }
            if let Some(stream) = work.stream {
                self.packs = stream.packs;
                self.patience = Instant::now() + BULK_PATIENCE;
                self.tail = Some(Feed::own(&self.segments, stream));
            }
            self.tail = work.returned.or(self.tail);
            let limit = *self.shippable.borrow_and_update();
            self.give_to_bulk(limit);
            out = self.read(limit, out).await?;
            if !out.is_empty() {
                stream.write_all(&out).await?;
                stream.flush().await?;
            }
            let waits = self.waits_for_bulk(limit);
            let behind = self.tail.as_ref().is_some_and(|tail| tail.left(limit) > 0) && !waits;
            if behind || self.range.is_some() || self.outbox.has_range() {
                // Others on this runtime get their turn even if the peer reads as fast as the disk.
                tokio::task::yield_now().await;
                continue;
            }
            tokio::select! {
                () = self.outbox.changed() => {}
                changed = self.shippable.changed() => changed.map_err(|_| io::ErrorKind::ConnectionAborted)?,
                () = self.lane.attached(), if waits => {}
                () = tokio::time::sleep_until(self.patience), if waits => {}
            }
        }
    }

    /// What is long goes over the bulk connection, if there is one.
    fn give_to_bulk(&mut self, limit: u64) {
        if let Some(tail) = self.tail.take_if(|tail| tail.left(limit) > FAR) {
            self.tail = self.lane.offer(tail, &self.outbox);
        }
        if self.range.is_none()
            && let Some(range) = self.outbox.next_range()
        {
            let is_long = range.is_long();
            let range = Feed::range(&self.segments, &self.region, range);
            let refused = if is_long { self.lane.offer(range, &self.outbox) } else { Some(range) };
            // Beside a bulk connection that has enough to do nothing long is sent; it is asked for again.
            self.range = refused.filter(|_| !is_long || !self.lane.is_attached());
        }
    }

    /// Whether the peer is far behind and a bulk connection may still come.
    fn waits_for_bulk(&self, limit: u64) -> bool {
        self.tail.as_ref().is_some_and(|tail| tail.left(limit) > FAR) && Instant::now() < self.patience
    }

    /// Appends the next entries of the stream and of the range that was asked for first.
    async fn read(&mut self, limit: u64, mut out: Vec<u8>) -> io::Result<Vec<u8>> {
        let start = out.len();
        if !self.waits_for_bulk(limit) {
            (self.tail, out) = read(self.tail.take(), limit, out).await?;
        }
        (self.range, out) = read(self.range.take(), limit, out).await?;
        self.range.take_if(|range| range.left(limit) == 0);
        let plain = out.len();
        if self.packs && plain - start >= LIVE_PACK {
            pack::pack(&mut out, start)?;
        }
        self.traffic.sent(out.len(), plain);
        Ok(out)
    }
}

/// Reads on. What was written lately is in memory; what is further back may not be, and its reader goes aside.
async fn read(feed: Option<Feed>, limit: u64, mut out: Vec<u8>) -> io::Result<(Option<Feed>, Vec<u8>)> {
    match feed {
        Some(feed) if feed.left(limit) > FAR => {
            let (feed, out) = feed.read_aside(limit, out).await?;
            Ok((Some(feed), out))
        }
        Some(mut feed) if feed.left(limit) > 0 => {
            feed.read(limit, &mut out)?;
            Ok((Some(feed), out))
        }
        feed => Ok((feed, out)),
    }
}

/// Carries what the lane is given, chunk by chunk in turns: one is read and compressed while the one before is sent, at
/// the pace of the path.
pub(crate) async fn send_bulk(
    attached: &Attached<'_>,
    traffic: &Traffic,
    shippable: &watch::Receiver<u64>,
    mut stream: impl AsyncWrite + Unpin,
    gauge: Option<PathGauge>,
) -> io::Result<()> {
    let (mut pace, began) = (Pace::new(), Instant::now());
    let (mut ready, mut spare) = (Vec::new(), Vec::new());
    // Goes back to its live link once what was read of it is sent.
    let mut returning: Option<(Feed, Arc<Outbox>)> = None;
    loop {
        let next = attached.next();
        if next.is_none() && ready.is_empty() && returning.is_none() {
            attached.offered().await;
            continue;
        }
        let limit = *shippable.borrow();
        let sending = async {
            let mut rest = ready.as_slice();
            while !rest.is_empty() {
                let path = gauge.as_ref().and_then(|gauge| gauge());
                let length = if path.is_some() { pace.slice().min(rest.len()) } else { rest.len() };
                let slice;
                (slice, rest) = rest.split_at(length);
                if let Some(path) = path {
                    pace.sends(length, path, began.elapsed());
                }
                stream.write_all(slice).await?;
                stream.flush().await?;
                if path.is_some() {
                    tokio::time::sleep(pace.sent(length, began.elapsed())).await;
                }
            }
            io::Result::Ok(())
        };
        let (sent, read) = tokio::join!(sending, read_packed(next, limit, spare));
        sent?;
        if let Some((feed, outbox)) = returning.take() {
            outbox.give_back(feed);
        }
        let (load, plain, read) = read?;
        spare = std::mem::replace(&mut ready, read);
        spare.clear();
        traffic.sent(ready.len(), plain);
        match load {
            Some((Cargo::Log(feed), outbox)) => match feed.left(limit) {
                left if feed.is_endless() && left <= NEAR => returning = Some((feed, outbox)),
                0 => {}
                _ => attached.put_back((Cargo::Log(feed), outbox)),
            },
            Some((Cargo::Snapshot(source, _), _)) if source.is_done() => {}
            Some(load) => attached.put_back(load),
            None => {}
        }
    }
}

/// The next chunk of a load, compressed: what is left of the load, how long the chunk was, and the chunk.
async fn read_packed(
    load: Option<Load>,
    limit: u64,
    mut out: Vec<u8>,
) -> io::Result<(Option<Load>, usize, Vec<u8>)> {
    let Some((mut cargo, outbox)) = load else { return Ok((None, 0, out)) };
    let read = move || {
        let read = match &mut cargo {
            Cargo::Log(feed) => feed.read(limit, &mut out),
            Cargo::Snapshot(source, attempt) => {
                match source.read(&mut out, |out, length| wire::put_block_head(out, *attempt, length)) {
                    Ok(()) => Ok(()),
                    Err(error) => {
                        // Whoever gets it is told; the connection has other things to carry.
                        outbox.send(Message::Unable { reason: error.to_string() });
                        return Ok((None, 0, Vec::new()));
                    }
                }
            }
        };
        read?;
        let plain = out.len();
        if plain > 0 {
            pack::pack(&mut out, 0)?;
        }
        Ok((Some((cargo, outbox)), plain, out))
    };
    tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
}

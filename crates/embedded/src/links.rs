//! Links to the other regions: bytes in, bytes out. What they mean is decided on the data thread.
//!
//! Between two regions there are two connections: the *live* link with messages and the tail of the log, and beside it,
//! for as long as it is up, the *bulk* connection for whoever is far behind, so that catching up delays nothing. Of each
//! pair of regions the one whose name comes first dials both. The other one only knocks when it starts: a connection with
//! nothing on it, on which the first dials at once. Senders read the log from its files, from where the peer stands; a
//! peer that is slow or away costs no memory and resumes where it was. A peer of a release that knows no bulk connection
//! is fed over the live link.
//!
//! What one peer may take up here, whatever it does:
//!
//! | buffer | bound |
//! |---|---|
//! | connections | one live and one bulk: another takes the place of the one before |
//! | what it sent and the data thread has not seen | 4 MiB for each of the two, then it is not read; beyond that one message, of which nothing is believed before it is there: a frame of at most 1 GiB, else 4 MiB, unpacked at most 1 MiB |
//! | entries that cannot be delivered yet | 16 MiB, in `geode_replica` |
//! | names of writers | 65 536 for each direction of a link |
//! | messages that it does not read | 8 MiB, then the link ends; of heartbeats and acknowledgements the last |
//! | ranges that it asked for | 1 024 waiting, 64 on the bulk connection, further ones are dropped |
//! | the log on its way | a chunk of 256 KiB, or one frame, for the live stream, a range, and each feed of the bulk connection that has begun |
//! | a snapshot on its way | one at a time; some 256 KiB, or one key, of rows, and a chunk of the log |

mod connection;
mod feed;
mod lane;
mod pace;
mod pack;
mod receiver;
mod sender;
mod traffic;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

pub use self::connection::Connection;
pub(crate) use self::feed::Feed;
pub(crate) use self::lane::Lane;
pub use self::pace::PathState;
use self::receiver::Receiver;
use self::sender::Sender;
pub use self::traffic::PeerTraffic;
use self::traffic::Traffic;
use crate::engine::Dial;
use crate::inbox::{Inbox, Incoming};
use crate::log::Segments;
use crate::outbox::Outbox;

/// Pauses between attempts to dial, doubling.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// The same for the bulk connection, which a peer of an older release refuses each time.
const LONGEST_BULK_PAUSE: Duration = Duration::from_secs(30);

/// What a connection between two regions carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// Messages, and entries as they are written.
    Live,
    /// Entries for whoever is far behind.
    Bulk,
}

/// What every link needs.
#[derive(Clone, Debug)]
pub(crate) struct Links {
    pub(crate) region: Arc<str>,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) segments: Arc<Segments>,
    /// Up to where the log may be sent.
    pub(crate) shippable: watch::Receiver<u64>,
    /// By the peers with which this region has begun to talk.
    pub(crate) peerings: Arc<RwLock<BTreeMap<Arc<str>, Arc<Peering>>>>,
    /// Closed when the engine goes.
    pub(crate) closing: watch::Receiver<bool>,
}

/// What all connections with one peer share.
#[derive(Debug, Default)]
pub(crate) struct Peering {
    /// Whether this region is the one that dials.
    is_dialled: bool,
    /// Tells that the peer knocked.
    knock: Notify,
    /// The number of the latest live link.
    latest: watch::Sender<u64>,
    lane: Lane,
    traffic: Traffic,
}

impl Peering {
    /// The bulk connection.
    pub(crate) fn lane(&self) -> &Lane {
        &self.lane
    }

    pub(crate) fn traffic(&self) -> PeerTraffic {
        self.traffic.totals()
    }

    /// Completes when the peer knocked, and leaves that for the pause that follows.
    async fn knocked(&self) {
        self.knock.notified().await;
        self.knock.notify_one();
    }

    /// Completes when another live link than `number` was made.
    async fn replaced(&self, number: u64) {
        // The sender lives as long as the peering.
        let _ = self.latest.subscribe().wait_for(|latest| *latest != number).await;
    }
}

impl Links {
    /// Begins to talk to `peer`, for as long as the engine is there: of each pair, the one whose name comes first dials.
    pub(crate) fn begin(&self, peer: &Arc<str>, runtime: &tokio::runtime::Handle, dial: &Dial) {
        let peering = Arc::new(Peering { is_dialled: **peer > *self.region, ..Peering::default() });
        let mut peerings = self.peerings.write().unwrap_or_else(PoisonError::into_inner);
        peerings.insert(Arc::clone(peer), Arc::clone(&peering));
        let (links, peer, dial) = (self.clone(), Arc::clone(peer), Arc::clone(dial));
        if peering.is_dialled {
            runtime.spawn(links.keep_dialling(peer, peering, dial));
        } else {
            runtime.spawn(links.knock(peer, dial));
        }
    }

    /// What the connections with a peer share, if it is one.
    pub(crate) fn peering(&self, peer: &str) -> Option<Arc<Peering>> {
        self.peerings.read().unwrap_or_else(PoisonError::into_inner).get(peer).cloned()
    }

    /// Serves a connection that came from `peer`, or notices that it knocked.
    pub(crate) async fn accept(self, peer: Arc<str>, channel: Channel, stream: Connection) {
        let Some(peering) = self.peering(&peer) else { return };
        match channel {
            Channel::Live if peering.is_dialled => peering.knock.notify_one(),
            Channel::Live => self.run(&peer, &peering, stream, std::future::pending()).await,
            Channel::Bulk if peering.is_dialled => {}
            Channel::Bulk => self.run_bulk(&peer, &peering, stream).await,
        }
    }

    /// Tells a peer that dials this region that it is there. By itself it could be seconds late: it pauses between
    /// attempts, waits for one that a dead machine never answers, or has not noticed that its old link is dead.
    async fn knock(mut self, peer: Arc<str>, dial: Dial) {
        let knocked = tokio::select! {
            knocked = dial(peer.to_string(), Channel::Live) => knocked,
            _ = self.closing.wait_for(|closing| *closing) => return,
        };
        if let Err(error) = knocked {
            tracing::debug!(%peer, %error, "cannot be told that this region is there");
        }
    }

    /// Keeps a link to `peer`: dials, and dials again whenever it breaks or the peer knocks.
    async fn keep_dialling(mut self, peer: Arc<str>, peering: Arc<Peering>, dial: Dial) {
        let peering = &*peering;
        let mut pause = FIRST_PAUSE;
        loop {
            let dialled = tokio::select! {
                dialled = dial(peer.to_string(), Channel::Live) => dialled,
                () = peering.knock.notified() => continue,
                _ = self.closing.wait_for(|closing| *closing) => return,
            };
            match dialled {
                Ok(stream) => {
                    let since = Instant::now();
                    let beside = async {
                        tokio::select! {
                            () = peering.knocked() => {}
                            () = self.keep_bulk(&peer, peering, &dial) => {}
                        }
                    };
                    self.clone().run(&peer, peering, stream, beside).await;
                    if since.elapsed() > LONGEST_PAUSE {
                        pause = FIRST_PAUSE;
                    }
                }
                Err(error) => tracing::debug!(%peer, %error, "cannot be reached for replication"),
            }
            tokio::select! {
                () = tokio::time::sleep(jittered(pause)) => pause = (pause * 2).min(LONGEST_PAUSE),
                () = peering.knock.notified() => pause = FIRST_PAUSE,
                _ = self.closing.wait_for(|closing| *closing) => return,
            }
        }
    }

    /// Keeps the bulk connection beside a live link, for as long as it is polled.
    async fn keep_bulk(&self, peer: &Arc<str>, peering: &Peering, dial: &Dial) {
        let mut pause = FIRST_PAUSE;
        loop {
            match dial(peer.to_string(), Channel::Bulk).await {
                Ok(stream) => {
                    pause = FIRST_PAUSE;
                    self.clone().run_bulk(peer, peering, stream).await;
                }
                Err(error) => tracing::debug!(%peer, %error, "takes no bulk connection"),
            }
            tokio::time::sleep(jittered(pause)).await;
            pause = (pause * 2).min(LONGEST_BULK_PAUSE);
        }
    }

    /// Serves a live link until it ends, another takes its place, or what runs `beside` it completes.
    async fn run(
        mut self,
        peer: &Arc<str>,
        peering: &Peering,
        stream: Connection,
        beside: impl Future<Output = ()>,
    ) {
        let mut number = 0;
        peering.latest.send_modify(|latest| {
            *latest += 1;
            number = *latest;
        });
        let outbox = Arc::new(Outbox::default());
        let (read, write) = tokio::io::split(stream.stream);
        self.inbox.push(Incoming::Connected { peer: Arc::clone(peer), outbox: Arc::clone(&outbox) });
        let receiver = Receiver::new(read, &self.inbox, &peering.traffic, peer).live(&outbox);
        let sender = Sender::new(&self, peering, Arc::clone(&outbox)).run(write);
        let ended = tokio::select! {
            ended = receiver => ended,
            ended = sender => ended,
            () = outbox.overflowed() => Err(io::Error::other("it does not read what it is told")),
            () = peering.replaced(number) => Ok(()),
            () = beside => Ok(()),
            _ = self.closing.wait_for(|closing| *closing) => Ok(()),
        };
        if let Err(error) = ended {
            tracing::info!(%peer, "replication link ended: {error}");
        }
        self.inbox.push(Incoming::Lost { peer: Arc::clone(peer), outbox });
    }

    /// Serves a bulk connection until it ends or another takes its place.
    async fn run_bulk(mut self, peer: &Arc<str>, peering: &Peering, stream: Connection) {
        let attached = peering.lane.attach(&self.inbox, Arc::clone(peer));
        let (read, write) = tokio::io::split(stream.stream);
        let receiver = Receiver::new(read, &self.inbox, &peering.traffic, peer).bulk();
        let sender = sender::send_bulk(&attached, &peering.traffic, &self.shippable, write, stream.gauge);
        let ended = tokio::select! {
            ended = receiver => ended,
            ended = sender => ended,
            () = attached.replaced() => Ok(()),
            _ = self.closing.wait_for(|closing| *closing) => Ok(()),
        };
        if let Err(error) = ended {
            tracing::debug!(%peer, "bulk connection ended: {error}");
        }
        self.inbox.push(Incoming::BulkEnded { peer: Arc::clone(peer) });
    }
}

/// Half to all of a pause, so that regions that lost each other do not dial in step.
fn jittered(pause: Duration) -> Duration {
    let random = getrandom::u32().unwrap_or(0);
    pause / 2 + (pause / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
}

fn invalid(error: geode_crdt::FrameError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

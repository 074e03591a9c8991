//! What a door needs to know of its geode, as small traits that the binary implements.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::time::Duration;

use geode_planet::RegionName;
use tokio::io::{AsyncRead, AsyncWrite};

/// A future behind a trait object. One per connection to a peer, or per request with a session token; never per chunk.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// This geode's copy of the service.
pub trait Service: Send + Sync + 'static {
    /// A claim on one instance, held until the answer's last byte has been passed on.
    type Lease: Lease;

    /// The instance that should serve the next request, usually the one with the fewest in flight. None when no healthy
    /// instance has room, or when this geode is drained: the door then forwards.
    fn acquire(&self) -> Option<Self::Lease>;
}

/// One request's claim on an instance. Dropping it ends the claim.
pub trait Lease: Send + Sync + Unpin + 'static {
    /// Where the instance listens.
    fn addr(&self) -> SocketAddr;

    /// The instance refused the connection: it should get no more requests until it proves healthy.
    fn refused(&self);
}

/// Which regions serve a client.
pub trait Router: Send + Sync + 'static {
    /// All regions that may serve the client, best first. Asked when this geode cannot serve by itself, or when the
    /// client wants to know why.
    fn route(&self, client: &ClientHints) -> Vec<RouteEntry>;
}

/// What is known of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientHints {
    /// Where the connection comes from.
    pub address: IpAddr,
}

/// One region of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteEntry {
    /// The region.
    pub region: RegionName,
    /// Why it stands at this place, in words for `Geode-Reason`.
    pub reason: String,
}

/// A connection to the door of another geode, whatever carries it.
pub type PeerStream = Box<dyn Duplex>;

/// What a [`PeerStream`] is made of.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// The doors of the other geodes.
pub trait Peers: Send + Sync + 'static {
    /// A new connection to the door of another geode, which knows that it comes from a geode of its planet. It
    /// delays no small writes.
    fn connect<'a>(&'a self, region: &'a RegionName) -> Boxed<'a, io::Result<PeerStream>>;
}

/// What this geode's store has seen, as opaque vectors.
pub trait Sessions: Send + Sync + 'static {
    /// The vector of this geode now, joined with what the client has seen elsewhere, if it presented that.
    fn current(&self, presented: Option<&[u8]>) -> Vec<u8>;

    /// Whether this geode has all that the vector names, now.
    fn covers(&self, vector: &[u8]) -> bool;

    /// Waits until it has, for at most that long.
    fn wait<'a>(&'a self, vector: &'a [u8], at_most: Duration) -> Boxed<'a, Coverage>;
}

/// How far a geode's store covers what a client has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Coverage {
    /// All of it is here. `waited`: not from the start.
    Covered,
    /// Not all of it arrived in time.
    Behind {
        /// The regions that are known to have all of it.
        who_has: Vec<RegionName>,
    },
    /// Some of it can never arrive, as with a vector from before a data loss or of a region that was evicted.
    Lost,
}

/// Where a connection comes from.
#[derive(Clone, PartialEq, Eq)]
pub enum Origin {
    /// From a client.
    Client(SocketAddr),
    /// From the door of another geode, through the authenticated port for peers.
    Peer(RegionName),
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(address) => write!(f, "client {address}"),
            Self::Peer(region) => write!(f, "peer {region}"),
        }
    }
}

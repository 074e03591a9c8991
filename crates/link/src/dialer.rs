//! The calling side.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use geode_planet::{HostPort, RegionName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::preface::{self, ANSWER_LEN, Answer, Identity, Purpose};
use crate::stream::Stream;

/// How long a TCP connect may take: the longest round trip on Earth is about 0.4 s, and a lost SYN costs 1 s.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the acceptor may take to answer a preface.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// Calls other geodes of the planet.
#[derive(Clone, Debug)]
pub struct Dialer {
    identity: Identity,
    local: Option<IpAddr>,
    peers: BTreeMap<RegionName, HostPort>,
}

/// Why a call did not come about.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The region is not among the peers this geode was given.
    #[error("{0} is no peer of this geode")]
    NoPeer(RegionName),
    /// The connection was refused, cut or not possible.
    #[error("{region} at {address} cannot be reached: {source}")]
    Io {
        /// The region called.
        region: RegionName,
        /// Its link address.
        address: HostPort,
        /// What the system said.
        source: std::io::Error,
    },
    /// Nobody answered in time.
    #[error("{region} at {address} did not answer within {seconds} s")]
    Timeout {
        /// The region called.
        region: RegionName,
        /// Its link address.
        address: HostPort,
        /// The bound that passed, in seconds.
        seconds: u64,
    },
    /// The geode there does not want this call.
    #[error("{region} at {address} refused the call: {reason}")]
    Refused {
        /// The region called.
        region: RegionName,
        /// Its link address.
        address: HostPort,
        /// The acceptor's own words.
        reason: String,
    },
    /// Something else listens there.
    #[error("{address}, the link address of {region}, is not a geode's: check `link` in planet.toml")]
    NotGeode {
        /// The region called.
        region: RegionName,
        /// Its link address.
        address: HostPort,
    },
}

impl Dialer {
    /// A dialer for the geode `identity` that reaches each peer at the given address. Calls leave from `local` when
    /// given: the address by which others (and the relay of a planet on a laptop) know this region.
    pub fn new(identity: Identity, local: Option<IpAddr>, peers: BTreeMap<RegionName, HostPort>) -> Self {
        Self { identity, local, peers }
    }

    /// The regions that can be called.
    pub fn peers(&self) -> impl Iterator<Item = &RegionName> {
        self.peers.keys()
    }

    /// Opens a connection to `region` for one purpose. The stream has TCP_NODELAY and keepalive, and is ready for the
    /// purpose's own bytes.
    ///
    /// # Errors
    /// [`LinkError`], within six seconds.
    pub async fn dial(&self, region: &RegionName, purpose: Purpose) -> Result<Stream, LinkError> {
        let address = self.peers.get(region).ok_or_else(|| LinkError::NoPeer(region.clone()))?;
        let io = |source| LinkError::Io { region: region.clone(), address: address.clone(), source };
        let late = |bound: Duration| LinkError::Timeout {
            region: region.clone(),
            address: address.clone(),
            seconds: bound.as_secs(),
        };
        let mut stream = tokio::time::timeout(CONNECT_TIMEOUT, self.connect(address))
            .await
            .map_err(|_| late(CONNECT_TIMEOUT))?
            .map_err(io)?;
        crate::listener::prepare(&stream).map_err(io)?;
        let preface = preface::encode(&self.identity, region, purpose);
        let opened = tokio::time::timeout(ANSWER_TIMEOUT, open(&mut stream, &preface))
            .await
            .map_err(|_| late(ANSWER_TIMEOUT))?
            .map_err(io)?;
        let (region, address) = (region.clone(), address.clone());
        match opened {
            Opened::Accepted => Ok(Stream::new(stream)),
            Opened::Refused(reason) => Err(LinkError::Refused { region, address, reason }),
            Opened::NotGeode => Err(LinkError::NotGeode { region, address }),
        }
    }

    /// Connects to the first of the peer's addresses that answers.
    async fn connect(&self, peer: &HostPort) -> std::io::Result<TcpStream> {
        let mut failure = None;
        for address in tokio::net::lookup_host((peer.host.as_str(), peer.port)).await? {
            match self.connect_to(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or_else(|| std::io::ErrorKind::NotFound.into()))
    }

    async fn connect_to(&self, address: SocketAddr) -> std::io::Result<TcpStream> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(local) = self.local.filter(|local| local.is_ipv4() == address.is_ipv4()) {
            socket.bind(SocketAddr::new(local, 0))?;
        }
        socket.connect(address).await
    }
}

enum Opened {
    Accepted,
    Refused(String),
    NotGeode,
}

async fn open(stream: &mut TcpStream, preface: &[u8]) -> std::io::Result<Opened> {
    stream.write_all(preface).await?;
    let mut fixed = [0; ANSWER_LEN];
    stream.read_exact(&mut fixed).await?;
    Ok(match preface::read_answer(&fixed) {
        Some(Answer::Accepted(_)) => Opened::Accepted,
        Some(Answer::Refused(length)) => {
            let mut reason = vec![0; length];
            stream.read_exact(&mut reason).await?;
            Opened::Refused(preface::reason_text(&reason))
        }
        None => Opened::NotGeode,
    })
}

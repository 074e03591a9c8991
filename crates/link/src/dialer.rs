//! The calling side.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use geode_planet::{HostPort, RegionName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

use crate::credentials::Credentials;
use crate::failure::{self, Failure, Side};
use crate::peers::{Peer, Peers};
use crate::preface::{self, ANSWER_LEN, Answer, Purpose};
use crate::stream::Stream;

/// How long a TCP connect may take: the longest round trip on Earth is about 0.4 s, and a lost SYN costs 1 s.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the handshake and the answer to the preface may take: two round trips.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// Calls other geodes of the planet.
#[derive(Clone, Debug)]
pub struct Dialer {
    /// None of a planet of one region, which has nobody to call.
    credentials: Option<Arc<Credentials>>,
    local: Option<IpAddr>,
    peers: Peers,
}

/// Why a call did not come about.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The region does not belong to the planet, as far as this geode knows, or has no address.
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
    /// One of the two does not believe the other's certificate.
    #[error("{region} at {address} {problem}")]
    Distrust {
        /// The region called.
        region: RegionName,
        /// Its link address.
        address: HostPort,
        /// What is wrong and what to do.
        problem: String,
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
    /// A dialer that reaches the peers at the addresses known at the time. Calls leave from `local` when given: the address
    /// by which others (and the relay of a planet on a laptop) know this region.
    pub fn new(credentials: Arc<Credentials>, local: Option<IpAddr>, peers: impl Into<Peers>) -> Self {
        Self { credentials: Some(credentials), local, peers: peers.into() }
    }

    /// The dialer of a planet of one region: there is nobody to call.
    pub fn alone() -> Self {
        Self { credentials: None, local: None, peers: Peers::default() }
    }

    /// The other regions of the planet, as they are known now.
    pub fn peers(&self) -> Vec<RegionName> {
        self.peers.members()
    }

    /// From now on the other regions are these, for every clone of this dialer and whoever else shares its [`Peers`].
    pub fn set_peers(&self, peers: BTreeMap<RegionName, Peer>) {
        self.peers.set(peers);
    }

    /// Opens a connection to `region` for one purpose. The stream has TCP_NODELAY and keepalive, and is ready for the
    /// purpose's own bytes.
    ///
    /// # Errors
    /// [`LinkError`], within six seconds.
    pub async fn dial(&self, region: &RegionName, purpose: Purpose) -> Result<Stream, LinkError> {
        let (Some(address), Some(credentials)) = (&self.address(region, purpose), &self.credentials) else {
            return Err(LinkError::NoPeer(region.clone()));
        };
        let io = |source| LinkError::Io { region: region.clone(), address: address.clone(), source };
        let late = |bound: Duration| LinkError::Timeout {
            region: region.clone(),
            address: address.clone(),
            seconds: bound.as_secs(),
        };
        let tcp = tokio::time::timeout(CONNECT_TIMEOUT, self.connect(address))
            .await
            .map_err(|_| late(CONNECT_TIMEOUT))?
            .map_err(io)?;
        crate::listener::prepare(&tcp).map_err(io)?;
        let opened = tokio::time::timeout(ANSWER_TIMEOUT, open(tcp, credentials, region, purpose))
            .await
            .map_err(|_| late(ANSWER_TIMEOUT))?;
        let (region, address) = (region.clone(), address.clone());
        match opened {
            Ok((stream, Opened::Accepted)) => Ok(stream),
            Ok((_, Opened::Refused(reason))) => Err(LinkError::Refused { region, address, reason }),
            Ok((_, Opened::NotGeode)) => Err(LinkError::NotGeode { region, address }),
            Err(source) => Err(match failure::explain(&source, Side::Caller) {
                Failure::NotTls => LinkError::NotGeode { region, address },
                Failure::Io => LinkError::Io { region, address, source },
                Failure::Distrust(problem) => LinkError::Distrust { region, address, problem },
            }),
        }
    }

    /// Where a region is called for a purpose; evicted ones only to tell them that they are.
    fn address(&self, region: &RegionName, purpose: Purpose) -> Option<HostPort> {
        let peers = self.peers.now();
        let peer = peers.get(region)?;
        let wanted = peer.evicted.is_none() || purpose == Purpose::Replication;
        peer.address.clone().filter(|_| wanted)
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

/// Proves who this is, hears who that is, and says what is wanted. The acceptor judges this side's certificate only when
/// the handshake is over here, so its refusal may come in place of its answer.
async fn open(
    tcp: TcpStream,
    credentials: &Credentials,
    region: &RegionName,
    purpose: Purpose,
) -> std::io::Result<(Stream, Opened)> {
    let subject = credentials.subject(region).ok_or(std::io::ErrorKind::InvalidInput)?;
    let stream = TlsConnector::from(credentials.client()).connect(subject, tcp).await?;
    let mut stream = Stream::new(stream);
    stream.write_all(&preface::encode(credentials.identity(), region, purpose)).await?;
    stream.flush().await?;
    let mut fixed = [0; ANSWER_LEN];
    stream.read_exact(&mut fixed).await?;
    let opened = match preface::read_answer(&fixed) {
        Some(Answer::Accepted(_)) => Opened::Accepted,
        Some(Answer::Refused(length)) => {
            let mut reason = vec![0; length];
            stream.read_exact(&mut reason).await?;
            Opened::Refused(preface::reason_text(&reason))
        }
        None => Opened::NotGeode,
    };
    Ok((stream, opened))
}

//! The accepting side.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use geode_planet::RegionName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::preface::{self, HEAD_LEN, Identity, Opening, Purpose, Refusal};
use crate::stream::Stream;

/// How long a caller may take over its preface.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that may be between accept and the end of their preface; others wait in the kernel's queue. A planet has
/// a few dozen peers with a few connections each.
const MAX_HALF_OPEN: usize = 64;
/// How long and how far a refused caller's bytes are read on, so that closing does not destroy the refusal on its way.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
const LINGER_BYTES: u64 = 64 * 1024;
/// How long accepting pauses when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Idle time after which the kernel asks whether the other side still lives, and between such questions.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// A call that another geode of this planet made.
#[derive(Debug)]
pub struct Call {
    /// The calling region.
    pub from: RegionName,
    /// What the connection is for.
    pub purpose: Purpose,
    /// The protocol version both sides speak.
    pub version: u16,
    /// The connection, after the preface.
    pub stream: Stream,
}

/// The geode's link port.
#[derive(Debug)]
pub struct Listener {
    tcp: TcpListener,
    known: Arc<Known>,
    half_open: JoinSet<Option<Call>>,
}

#[derive(Debug)]
struct Known {
    identity: Identity,
    peers: Vec<RegionName>,
}

impl Listener {
    /// Binds the link port of the geode `identity`, whose planet has the given other regions.
    ///
    /// # Errors
    /// What the system says, usually that the address is in use.
    pub async fn bind(
        address: SocketAddr,
        identity: Identity,
        peers: Vec<RegionName>,
    ) -> std::io::Result<Self> {
        let tcp = TcpListener::bind(address).await?;
        Ok(Self { tcp, known: Arc::new(Known { identity, peers }), half_open: JoinSet::new() })
    }

    /// The address that was bound.
    ///
    /// # Errors
    /// What the system says.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// The next call whose preface was good. Refused callers are answered and logged here. Cancelling loses nothing.
    pub async fn accept(&mut self) -> Call {
        loop {
            tokio::select! {
                Some(done) = self.half_open.join_next() => {
                    if let Ok(Some(call)) = done {
                        return call;
                    }
                }
                accepted = self.tcp.accept(), if self.half_open.len() < MAX_HALF_OPEN => match accepted {
                    Ok((stream, peer)) => {
                        let known = Arc::clone(&self.known);
                        self.half_open.spawn(async move { open(stream, peer, &known).await });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "link: cannot accept a connection");
                        self.half_open.spawn(async { tokio::time::sleep(ACCEPT_PAUSE).await; None });
                        if let Some(Ok(Some(call))) = self.half_open.join_next().await {
                            return call;
                        }
                    }
                },
            }
        }
    }
}

async fn open(mut stream: TcpStream, peer: SocketAddr, known: &Known) -> Option<Call> {
    let read = tokio::time::timeout(PREFACE_TIMEOUT, read_preface(&mut stream, known));
    let answer = match read.await.unwrap_or(Err(Refusal::Incomplete)) {
        Ok(opening) => prepare(&stream).map(|()| opening).map_err(|_| Refusal::Incomplete),
        Err(refusal) => Err(refusal),
    };
    match answer {
        Ok(Opening { from, purpose, version }) => {
            stream.write_all(&preface::encode_answer(Ok(version))).await.ok()?;
            Some(Call { from, purpose, version, stream: Stream::new(stream) })
        }
        Err(refusal) => {
            tracing::warn!("link: refused a call from {peer}: {refusal}");
            let _ = tokio::time::timeout(LINGER_TIMEOUT, send_away(stream, &refusal)).await;
            None
        }
    }
}

async fn read_preface(stream: &mut TcpStream, known: &Known) -> Result<Opening, Refusal> {
    let mut head = [0; HEAD_LEN];
    stream.read_exact(&mut head).await.map_err(|_| Refusal::Incomplete)?;
    let (version, length) = preface::read_head(&head)?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.map_err(|_| Refusal::Incomplete)?;
    preface::read_body(&body, version, &known.identity, &known.peers)
}

/// Answers a refused caller. Closing a socket with unread bytes resets it, and the reset overtakes the answer; so what
/// the caller still sends is read, up to a bound.
async fn send_away(mut stream: TcpStream, refusal: &Refusal) -> std::io::Result<()> {
    stream.write_all(&preface::encode_answer(Err(refusal))).await?;
    stream.shutdown().await?;
    tokio::io::copy(&mut stream.take(LINGER_BYTES), &mut tokio::io::sink()).await?;
    Ok(())
}

/// What every link connection has: no delay for small writes, and an end when the other machine vanishes.
pub(crate) fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
    socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

//! The accepting side.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use geode_planet::RegionName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::credentials::Credentials;
use crate::failure::{self, Failure, Side};
use crate::peers::Peers;
use crate::preface::{self, HEAD_LEN, Opening, Purpose, Refusal};
use crate::stream::Stream;

/// How long a caller may take over its handshake and its preface.
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
    credentials: Arc<Credentials>,
    peers: Peers,
}

impl Listener {
    /// Binds the link port of a geode whose planet has the other regions that `peers` names at the time of each call.
    ///
    /// # Errors
    /// What the system says, usually that the address is in use.
    pub async fn bind(
        address: SocketAddr,
        credentials: Arc<Credentials>,
        peers: impl Into<Peers>,
    ) -> std::io::Result<Self> {
        let tcp = TcpListener::bind(address).await?;
        let known = Known { credentials, peers: peers.into() };
        Ok(Self { tcp, known: Arc::new(known), half_open: JoinSet::new() })
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

/// The type of the record that opens a TLS handshake (RFC 8446, section 5.1).
const HANDSHAKE_RECORD: u8 = 22;

async fn open(tcp: TcpStream, peer: SocketAddr, known: &Known) -> Option<Call> {
    let secured = tokio::time::timeout(PREFACE_TIMEOUT, secure(tcp, known));
    let mut stream = match secured.await {
        Err(_late) => {
            tracing::warn!("link: refused a call from {peer}: {}", Refusal::Incomplete);
            return None;
        }
        Ok(Err((refusal, tcp))) => {
            if refusal == Refusal::Gone {
                tracing::debug!("link: {peer}: {refusal}");
                return None;
            }
            tracing::warn!("link: refused a call from {peer}: {refusal}");
            // To somebody who speaks no TLS; whoever does has got an alert.
            let answer =
                if refusal == Refusal::Garbage { preface::encode_answer(Err(&refusal)) } else { vec![] };
            let _ = tokio::time::timeout(LINGER_TIMEOUT, send_away(tcp, &answer)).await;
            return None;
        }
        Ok(Ok(stream)) => stream,
    };
    let read = tokio::time::timeout(PREFACE_TIMEOUT, read_preface(&mut stream, known));
    match read.await.unwrap_or(Err(Refusal::Incomplete)) {
        Ok(Opening { from, purpose, version }) => {
            stream.write_all(&preface::encode_answer(Ok(version))).await.ok()?;
            stream.flush().await.ok()?;
            Some(Call { from, purpose, version, stream: Stream::new(stream) })
        }
        Err(Refusal::Gone) => {
            tracing::debug!("link: {peer}: {}", Refusal::Gone);
            None
        }
        Err(refusal) => {
            tracing::warn!("link: refused a call from {peer}: {refusal}");
            let answer = preface::encode_answer(Err(&refusal));
            let _ = tokio::time::timeout(LINGER_TIMEOUT, send_away(stream, &answer)).await;
            None
        }
    }
}

/// Shakes hands with a caller, if it speaks TLS at all.
async fn secure(tcp: TcpStream, known: &Known) -> Result<TlsStream<TcpStream>, (Refusal, TcpStream)> {
    let mut first = [0];
    match tcp.peek(&mut first).await {
        Ok(1) if first[0] == HANDSHAKE_RECORD => {}
        Ok(1) => return Err((Refusal::Garbage, tcp)),
        _ => return Err((Refusal::Gone, tcp)),
    }
    if prepare(&tcp).is_err() {
        return Err((Refusal::Gone, tcp));
    }
    let acceptor = TlsAcceptor::from(known.credentials.server());
    acceptor.accept(tcp).into_fallible().await.map_err(|(error, tcp)| {
        let refusal = match failure::explain(&error, Side::Acceptor) {
            Failure::NotTls => Refusal::Garbage,
            Failure::Io => Refusal::Gone,
            Failure::Distrust(problem) => Refusal::Distrust(problem),
        };
        (refusal, tcp)
    })
}

/// Hears what a caller wants, and whether its certificate is that of the region it says it is.
async fn read_preface(stream: &mut TlsStream<TcpStream>, known: &Known) -> Result<Opening, Refusal> {
    let mut head = [0; HEAD_LEN];
    stream.read_exact(&mut head).await.map_err(|_| Refusal::Gone)?;
    let (version, length) = preface::read_head(&head)?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.map_err(|_| Refusal::Gone)?;
    let opening = preface::read_body(&body, version, known.credentials.identity(), &known.peers.now())?;
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    match known.credentials.is_of(certificates, &opening.from) {
        Ok(()) => Ok(opening),
        Err(found) => Err(Refusal::Impostor { claimed: opening.from, found }),
    }
}

/// Answers a refused caller. Closing a socket with unread bytes resets it, and the reset overtakes the answer; so what
/// the caller still sends is read, up to a bound.
async fn send_away(mut stream: impl AsyncRead + AsyncWrite + Unpin, answer: &[u8]) -> std::io::Result<()> {
    stream.write_all(answer).await?;
    stream.shutdown().await?;
    tokio::io::copy(&mut stream.take(LINGER_BYTES), &mut tokio::io::sink()).await?;
    Ok(())
}

/// What every link connection has: no delay for small writes, an end when the other machine vanishes, and a congestion
/// control that does not take one lost packet for a full path.
pub(crate) fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
    let socket = socket2::SockRef::from(stream);
    #[cfg(target_os = "linux")]
    if !stream.peer_addr()?.ip().is_loopback() {
        // Over 80 ms with 0.1 % loss BBR carries twenty times what CUBIC does. A kernel without it, or that does not
        // let this process choose, keeps what it has.
        let _ = socket.set_tcp_congestion(b"bbr");
    }
    socket.set_tcp_keepalive(&keepalive)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Authority, Dialer, Identity, LinkError};
    use geode_planet::HostPort;

    #[tokio::test]
    async fn a_caller_is_the_region_that_its_certificate_names_whatever_it_claims() {
        let authority = Authority::new("acme").unwrap();
        let region = |name: &str| name.parse::<RegionName>().unwrap();
        let identity = |name: &str| Identity { planet: "acme".into(), region: region(name) };
        let issued =
            |name: &str| Credentials::new(identity(name), &authority.issue(&region(name)).unwrap()).unwrap();
        let peers = vec![region("eu-west-1"), region("ap-southeast-2")];
        let us = Arc::new(issued("us-east-1"));
        let mut listener = Listener::bind(([127, 0, 0, 1], 0).into(), us, peers).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { listener.accept().await });
        let impostor = Arc::new(issued("ap-southeast-2").claiming(identity("eu-west-1")));
        let peer = HostPort { host: address.ip().to_string(), port: address.port() };
        let dialer = Dialer::new(
            impostor,
            None,
            vec![(region("us-east-1"), peer)].into_iter().collect::<std::collections::BTreeMap<_, _>>(),
        );
        let error = dialer.dial(&region("us-east-1"), Purpose::Replication).await.unwrap_err();
        let LinkError::Refused { reason, .. } = error else { panic!("{error}") };
        assert_eq!(
            reason,
            "the caller says it is eu-west-1, but its certificate is that of ap-southeast-2.acme.geode: give each region \
             its own bundle"
        );
    }
}

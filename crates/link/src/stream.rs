//! The connection itself: mutual TLS over TCP.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use crate::Gauge;

/// A connection between two geodes, ready for its purpose's own bytes.
///
/// What is written may wait in a buffer until it is flushed: flush before you wait for an answer.
#[derive(Debug)]
pub struct Stream(TlsStream<TcpStream>);

impl Stream {
    pub(crate) fn new(tls: impl Into<TlsStream<TcpStream>>) -> Self {
        Self(tls.into())
    }

    /// The address from which, or to which, the other side is connected.
    ///
    /// # Errors
    /// What the system says, usually that the connection is gone.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.tcp().peer_addr()
    }
}

impl Stream {
    /// What tells the state of the path below it, also while others read and write.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn gauge(&self) -> io::Result<Gauge> {
        Ok(Gauge::new(self.as_fd().try_clone_to_owned()?))
    }

    fn tcp(&self) -> &TcpStream {
        self.0.get_ref().0
    }
}

/// The socket, for what is set on sockets. Its bytes are not the stream's.
impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tcp().as_fd()
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, out)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

//! What carries replication.

use tokio::io::{AsyncRead, AsyncWrite};

use super::pace::PathState;

/// A connection for replication, whatever carries it.
pub struct Connection {
    /// Boxed: it is called once per batch of bytes, not per write.
    pub(super) stream: Box<dyn Duplex>,
    pub(super) gauge: Option<PathGauge>,
}

/// Tells the state of a connection's path, if it can.
pub(super) type PathGauge = Box<dyn Fn() -> Option<PathState> + Send + Sync>;

/// What a [`Connection`] is made of.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

impl Connection {
    /// Over a stream of bytes of whose path nothing is known.
    pub fn new(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        Self { stream: Box::new(stream), gauge: None }
    }

    /// With what tells the state of its path: what is sent in bulk is paced by it.
    #[must_use]
    pub fn with_gauge(self, gauge: impl Fn() -> Option<PathState> + Send + Sync + 'static) -> Self {
        Self { gauge: Some(Box::new(gauge)), ..self }
    }
}

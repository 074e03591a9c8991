//! One small HTTP question to a process on this machine.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Beyond the longest honest answer, which is the conflicts of a whole planet: a geode keeps at most 10 000 of them, each
/// with values cut at 256 bytes.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("{0}")]
    Connect(std::io::Error),
    #[error("no answer within {0:?}")]
    Late(Duration),
    #[error("{0}")]
    Http(Box<dyn std::error::Error + Send + Sync>),
}

/// Asks `address` for `path` and returns the answer as soon as it begins. The connection lives as long as the answer is read.
pub(crate) async fn open(
    address: SocketAddr,
    path: &str,
) -> Result<http::Response<hyper::body::Incoming>, AskError> {
    let stream = TcpStream::connect(address).await.map_err(AskError::Connect)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(other)?;
    tokio::spawn(connection);
    let request = Request::builder()
        .uri(path)
        .header(header::HOST, address.to_string())
        .body(Full::<Bytes>::default())
        .map_err(other)?;
    sender.send_request(request).await.map_err(other)
}

/// Asks `address` for `path`, with a JSON body if there is one, and reads the whole answer within `patience`.
pub(crate) async fn ask(
    address: SocketAddr,
    method: Method,
    path: &str,
    body: Option<String>,
    patience: Duration,
) -> Result<(StatusCode, Bytes), AskError> {
    let asked = async {
        let stream = TcpStream::connect(address).await.map_err(AskError::Connect)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(other)?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, address.to_string())
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::<Bytes>::from(body.unwrap_or_default()))
            .map_err(other)?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(other)?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES)
                .collect()
                .await
                .map_err(AskError::Http)?;
            Ok((status, body.to_bytes()))
        };
        tokio::pin!(answer);
        tokio::select! {
            answer = &mut answer => answer,
            // The connection may end first, with the answer already read.
            _ = connection => answer.await,
        }
    };
    tokio::time::timeout(patience, asked).await.map_err(|_| AskError::Late(patience))?
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> AskError {
    AskError::Http(Box::new(error))
}

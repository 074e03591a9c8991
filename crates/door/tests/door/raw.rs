//! One end of a TCP connection, spoken by hand.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// Nothing here takes long; this only keeps a broken test from hanging.
const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

pub(crate) struct Raw {
    pub(crate) stream: TcpStream,
    unread: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
    /// Whether the body came to its proper end.
    pub(crate) whole: bool,
}

impl Reply {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        field(&self.head, name)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }
}

/// The value of a field of a head; several are joined.
pub(crate) fn fields<'h>(head: &'h str, name: &str) -> Vec<&'h str> {
    let named = |line: &'h str| line.split_once(':').filter(|(found, _)| found.eq_ignore_ascii_case(name));
    head.lines().skip(1).filter_map(named).map(|(_, value)| value.trim()).collect()
}

pub(crate) fn field<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    fields(head, name).first().copied()
}

impl Raw {
    pub(crate) fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Self { stream, unread: Vec::new() }
    }

    pub(crate) async fn connect(addr: SocketAddr) -> Self {
        Self::new(TcpStream::connect(addr).await.unwrap())
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        soon("a write", self.stream.write_all(bytes.as_ref())).await.unwrap();
    }

    /// Reads more; false at the end of the connection, however it comes.
    async fn more(&mut self) -> bool {
        let mut buffer = vec![0; 64 * 1024];
        match soon("bytes", self.stream.read(&mut buffer)).await {
            Ok(read) => {
                self.unread.extend_from_slice(&buffer[..read]);
                read > 0
            }
            Err(_) => false,
        }
    }

    /// Everything up to and with a pattern; None if the connection ends before.
    pub(crate) async fn until(&mut self, pattern: &str) -> Option<String> {
        loop {
            if let Some(at) =
                self.unread.windows(pattern.len()).position(|window| window == pattern.as_bytes())
            {
                let taken = self.unread.drain(..at + pattern.len()).collect();
                return Some(String::from_utf8(taken).unwrap());
            }
            if !self.more().await {
                return None;
            }
        }
    }

    pub(crate) async fn head(&mut self) -> Option<String> {
        self.until("\r\n\r\n").await
    }

    /// That many bytes, or fewer at the end of the connection.
    pub(crate) async fn bytes(&mut self, count: usize) -> Vec<u8> {
        while self.unread.len() < count && self.more().await {}
        let count = count.min(self.unread.len());
        self.unread.drain(..count).collect()
    }

    /// All until the end of the connection.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        while self.more().await {}
        std::mem::take(&mut self.unread)
    }

    /// A whole request with its body.
    pub(crate) async fn request(&mut self) -> Option<(String, Vec<u8>)> {
        let head = self.head().await?;
        let (body, _) = self.body(&head, false).await;
        Some((head, body))
    }

    /// A whole answer. `to` is the method that asked.
    pub(crate) async fn reply_to(&mut self, to: &str) -> Reply {
        let head = self.head().await.expect("an answer");
        let status = head[9..12].parse().unwrap();
        let bodiless = to == "HEAD" || status == 204 || status == 304 || status == 101;
        let (body, whole) = if bodiless { (Vec::new(), true) } else { self.body(&head, true).await };
        Reply { status, head, body, whole }
    }

    pub(crate) async fn reply(&mut self) -> Reply {
        self.reply_to("GET").await
    }

    pub(crate) async fn exchange(&mut self, request: impl AsRef<[u8]>) -> Reply {
        self.send(request).await;
        self.reply().await
    }

    async fn body(&mut self, head: &str, ends_by_closing: bool) -> (Vec<u8>, bool) {
        if let Some(length) = field(head, "content-length") {
            let length: usize = length.parse().unwrap();
            let body = self.bytes(length).await;
            let whole = body.len() == length;
            (body, whole)
        } else if field(head, "transfer-encoding").is_some() {
            self.chunks().await
        } else if ends_by_closing {
            (self.rest().await, true)
        } else {
            (Vec::new(), true)
        }
    }

    async fn chunks(&mut self) -> (Vec<u8>, bool) {
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk().await {
            if chunk.is_empty() {
                return (body, true);
            }
            body.extend_from_slice(&chunk);
        }
        (body, false)
    }

    /// One chunk; the last is empty, its trailers are dropped.
    pub(crate) async fn chunk(&mut self) -> Option<Vec<u8>> {
        let size = self.until("\r\n").await?;
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        if size == 0 {
            while self.until("\r\n").await? != "\r\n" {}
            return Some(Vec::new());
        }
        let chunk = self.bytes(size).await;
        (self.until("\r\n").await? == "\r\n").then_some(chunk)
    }
}

/// A server whose every connection, numbered from 0, is played by the same script.
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    accepted: Arc<AtomicUsize>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start<P, F>(play: P) -> Self
    where
        P: Fn(usize, Raw) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&accepted);
        let accepting = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(play(counter.fetch_add(1, Ordering::SeqCst), Raw::new(stream)));
            }
        });
        Self { addr, accepted, accepting }
    }

    /// Answers every request with its own head and body.
    pub(crate) async fn echo() -> Self {
        Self::start(|_, mut raw| async move {
            while let Some((head, body)) = raw.request().await {
                let length = head.len() + body.len();
                raw.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{head}")).await;
                raw.send(body).await;
            }
        })
        .await
    }

    /// Answers every request with the same bytes.
    pub(crate) async fn fixed(answer: &'static str) -> Self {
        Self::start(move |_, mut raw| async move {
            while raw.request().await.is_some() {
                raw.send(answer).await;
            }
        })
        .await
    }

    pub(crate) fn connections(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// An address where nothing listens, as long as this is held: another test could be given a free port.
pub(crate) struct Nobody {
    pub(crate) addr: SocketAddr,
    _bound: TcpSocket,
}

impl Nobody {
    pub(crate) fn anywhere() -> Self {
        Self::at("127.0.0.1:0".parse().unwrap()).unwrap()
    }

    /// Takes the place of a server that has gone.
    pub(crate) fn at(addr: SocketAddr) -> std::io::Result<Self> {
        let bound = TcpSocket::new_v4()?;
        bound.set_reuseaddr(addr.port() != 0)?;
        bound.bind(addr)?;
        Ok(Self { addr: bound.local_addr()?, _bound: bound })
    }
}

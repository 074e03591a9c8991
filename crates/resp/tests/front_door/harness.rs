//! A server on a thread of its own, and clients that speak bytes.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use geode_resp::{Handle, Limits, RespMetrics, Server, ServerError};
use geode_store::{Options, Store};

use crate::engine::{Controls, TestEngine};

/// Long enough for the slowest machine; reached only when something hangs.
const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) handle: Handle,
    pub(crate) metrics: Arc<RespMetrics>,
    pub(crate) controls: Arc<Controls>,
    thread: Option<JoinHandle<Result<(), ServerError>>>,
}

impl Running {
    pub(crate) fn start() -> Self {
        Self::with_limits(Limits::default())
    }

    pub(crate) fn with_limits(limits: Limits) -> Self {
        let listener = geode_resp::listen(([127, 0, 0, 1], 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::new(vec![listener], limits).unwrap();
        let (handle, metrics) = (server.handle(), server.metrics());
        let controls = Arc::<Controls>::default();
        let engine = TestEngine::new(Arc::clone(&controls));
        let thread = std::thread::spawn(move || server.run(&mut Store::new(engine, Options::default())));
        Self { address, handle, metrics, controls, thread: Some(thread) }
    }

    pub(crate) fn connect(&self) -> Client {
        Client::new(TcpStream::connect(self.address).unwrap())
    }

    /// Waits for the loop to end by itself.
    pub(crate) fn join(mut self) -> Result<(), ServerError> {
        self.thread.take().unwrap().join().unwrap()
    }

    /// Waits until the loop has been through two whole batches since the call.
    pub(crate) fn pass_two_batches(&self) {
        let before = self.controls.turns.load(SeqCst);
        wait_until("two batches", || {
            self.handle.wake();
            self.controls.turns.load(SeqCst) >= before + 3
        });
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.handle.stop();
        if let Some(thread) = self.thread.take() {
            let outcome = thread.join();
            if !std::thread::panicking() {
                outcome.unwrap().unwrap();
            }
        }
    }
}

pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "waited in vain for {what}");
        std::thread::yield_now();
    }
}

pub(crate) struct Client(pub(crate) TcpStream);

impl Client {
    fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        Self(stream)
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).unwrap();
    }

    /// The next bytes have to be these.
    #[track_caller]
    pub(crate) fn expect(&mut self, bytes: impl AsRef<[u8]>) {
        let expected = bytes.as_ref();
        let mut found = vec![0; expected.len()];
        let mut filled = 0;
        while filled < found.len() {
            match self.0.read(&mut found[filled..]) {
                Ok(0) => break,
                Ok(length) => filled += length,
                Err(error) => panic!("{error} after {:?}", found[..filled].escape_ascii().to_string()),
            }
            if !expected.starts_with(&found[..filled]) {
                break;
            }
        }
        assert_eq!(found[..filled].escape_ascii().to_string(), expected.escape_ascii().to_string());
    }

    /// Sends one command in inline form and expects a reply.
    #[track_caller]
    pub(crate) fn ask(&mut self, command: &str, reply: &str) {
        self.send(format!("{command}\r\n"));
        self.expect(reply);
    }

    /// The next bytes up to and with these.
    pub(crate) fn take_until(&mut self, end: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        while !bytes.ends_with(end) {
            let mut byte = [0];
            self.0.read_exact(&mut byte).unwrap();
            bytes.push(byte[0]);
        }
        bytes
    }

    /// Everything up to the end of the stream.
    pub(crate) fn rest(&mut self) -> String {
        let mut bytes = Vec::new();
        match self.0.read_to_end(&mut bytes) {
            // The server closed while bytes of ours were on the way.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            outcome => drop(outcome.unwrap()),
        }
        bytes.escape_ascii().to_string()
    }

    #[track_caller]
    pub(crate) fn expect_closed(&mut self) {
        assert_eq!(self.rest(), "");
    }

    /// Nothing is there to be read now.
    #[track_caller]
    pub(crate) fn expect_nothing(&mut self) {
        self.0.set_nonblocking(true).unwrap();
        let error = self.0.read(&mut [0; 64]).expect_err("a reply came too early");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        self.0.set_nonblocking(false).unwrap();
    }
}

/// A command in multi-bulk form.
pub(crate) fn command(arguments: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", arguments.len()).into_bytes();
    for argument in arguments {
        bytes.extend_from_slice(&bulk(argument));
    }
    bytes
}

/// A bulk string.
pub(crate) fn bulk(bytes: &[u8]) -> Vec<u8> {
    [format!("${}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

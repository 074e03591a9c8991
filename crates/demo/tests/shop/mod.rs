//! A shop in any language, its Redis server, and a client small enough to see every byte.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use geode_demo::DemoSettings;
use serde_json::Value;
use tempfile::TempDir;

pub(crate) const REGION: &str = "test-region";
/// Only a broken program comes near it.
const DEADLINE: Duration = Duration::from_secs(60);

/// In which language a shop is written.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Language {
    Rust,
    Node,
    Python,
}

/// A running shop.
pub(crate) struct Shop {
    address: SocketAddr,
    running: Runs,
}

/// Where a shop runs.
enum Runs {
    Here { stop: tokio::sync::oneshot::Sender<()>, thread: std::thread::JoinHandle<()> },
    Apart(Process),
}

impl Shop {
    /// Starts a shop, or says loudly what is missing for it.
    pub(crate) fn start(language: Language, redis: &RedisServer) -> Option<Self> {
        let clients = root().join("target/test-clients");
        let (program, client, variable, script) = match language {
            Language::Rust => return Some(Self::start_here(redis.url())),
            Language::Node => ("node", "node_modules", "NODE_PATH", "examples/node/server.js"),
            Language::Python => ("python3", "python", "PYTHONPATH", "examples/python/server.py"),
        };
        let client = clients.join(client);
        if find(program).is_none() || !client.join("redis").is_dir() {
            missing(&format!(
                "{program}, or its Redis client in {}: run `cargo xtask test`",
                client.display()
            ));
            return None;
        }
        let mut command = Command::new(program);
        command.arg(root().join(script)).env(variable, client).env("PORT", "0");
        command.env("GEODE_REGION", REGION).env("REDIS_URL", redis.url());
        let mut process = Process::start(&mut command);
        let line = process.wait_for("listening on http://");
        let address = line.rsplit('/').next().unwrap().parse().unwrap();
        Some(Self { address, running: Runs::Apart(process) })
    }

    fn start_here(redis_url: String) -> Self {
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let (send_address, address) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
                let listener = tokio::net::TcpListener::bind(listen).await.unwrap();
                send_address.send(listener.local_addr().unwrap()).unwrap();
                let settings = DemoSettings { listen, redis_url, region: REGION.to_owned() };
                let stop = async { drop(stopped.await) };
                geode_demo::serve(listener, settings, stop).await.unwrap();
            });
        });
        Self { address: address.recv().unwrap(), running: Runs::Here { stop, thread } }
    }

    /// Asks the shop to end as a geode does, and waits until it has.
    pub(crate) fn stop(self) {
        match self.running {
            Runs::Here { stop, thread } => {
                stop.send(()).unwrap();
                thread.join().unwrap();
            }
            Runs::Apart(mut process) => {
                let terminate = ["-TERM", &process.child.id().to_string()].map(str::to_owned);
                assert!(Command::new("kill").args(terminate).status().unwrap().success());
                let status = process.child.wait().unwrap();
                assert!(status.success(), "SIGTERM must end it in order: {status}");
            }
        }
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.request("GET", path, "", &Value::Null)
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.request("POST", path, "", body)
    }

    /// One request on its own connection; `Null` is no body.
    pub(crate) fn request(&self, method: &str, path: &str, cookies: &str, body: &Value) -> Answer {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\nCookie: {cookies}\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        Answer::parse(&answer)
    }
}

/// An HTTP answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Answer {
    fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let header = |line: &str| {
            let (name, value) = line.split_once(':').unwrap();
            (name.to_ascii_lowercase(), value.trim().to_owned())
        };
        Self { status, headers: lines.map(header).collect(), body: body.to_owned() }
    }

    /// A header's value, or nothing.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", self.body))
    }
}

/// A Redis server that keeps nothing.
pub(crate) struct RedisServer {
    port: u16,
    directory: TempDir,
    process: Option<Process>,
}

impl RedisServer {
    /// Starts one, or says loudly that the program is missing.
    pub(crate) fn start() -> Option<Self> {
        if find("redis-server").is_none() {
            missing("redis-server: apt-get install -y redis-server");
            return None;
        }
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let mut server = Self { port, directory: tempfile::tempdir().unwrap(), process: None };
        server.restart();
        Some(server)
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it on the same port, empty.
    pub(crate) fn restart(&mut self) {
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        command.arg("--port").arg(self.port.to_string()).arg("--dir").arg(self.directory.path());
        let mut process = Process::start(&mut command);
        process.wait_for("Ready to accept connections");
        self.process = Some(process);
    }
}

/// A child that is killed when it is dropped.
struct Process {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Process {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output }
    }

    /// Reads its output up to a line with this text.
    fn wait_for(&mut self, text: &str) -> String {
        let lines = self.output.by_ref().lines().map(Result::unwrap);
        let mut seen = Vec::new();
        for line in lines {
            if line.contains(text) {
                return line;
            }
            seen.push(line);
        }
        panic!("it ended without `{text}`: {seen:#?}")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Asks until the answer is yes.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < DEADLINE, "never: {what}");
        std::thread::yield_now();
    }
}

fn missing(what: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "missing: {what}");
    eprintln!("SKIPPED, because this is missing: {what}");
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|file| file.is_file())
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

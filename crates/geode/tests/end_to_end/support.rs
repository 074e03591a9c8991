//! A real planet under test: the binary as a user runs it, and clients as a user has them.

use std::io::{BufRead, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The binary under test.
pub(crate) const GEODE: &str = env!("CARGO_BIN_EXE_geode");

/// Beyond this a wait has failed; nothing that works comes near it, however busy the machine.
const DEADLINE: Duration = Duration::from_secs(90);

/// A running `geode dev`. Dropping it kills the parent, and with it everything.
pub(crate) struct Planet {
    child: Child,
    pub(crate) data: PathBuf,
    pub(crate) ready: Value,
}

impl Planet {
    /// Starts `geode dev` on `data` and waits until all is ready.
    pub(crate) fn start(data: &Path, arguments: &[&str]) -> Self {
        let ready_file = data.join("ready-file.json");
        let _ = std::fs::remove_file(&ready_file);
        let base_port = free_base_port().to_string();
        let mut command = Command::new(GEODE);
        command
            .args(["dev", "--base-port", &base_port, "--data"])
            .arg(data)
            .arg("--ready-file")
            .arg(&ready_file);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        let mut child = command.spawn().unwrap();
        let mut ready = None;
        wait_for("the ready file", || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("geode dev ended before it was ready: {status}");
            }
            ready =
                std::fs::read_to_string(&ready_file).ok().and_then(|text| serde_json::from_str(&text).ok());
            ready.is_some()
        });
        Self { child, data: data.into(), ready: ready.unwrap() }
    }

    pub(crate) fn parent(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn door(&self) -> String {
        self.ready["door"].as_str().unwrap().trim_start_matches("http://").to_owned()
    }

    pub(crate) fn region(&self, index: usize, field: &str) -> String {
        self.ready["regions"][index][field].as_str().unwrap().to_owned()
    }

    pub(crate) fn pid(&self, index: usize) -> u32 {
        self.ready["regions"][index]["pid"].as_u64().unwrap() as u32
    }

    pub(crate) fn redis(&self, index: usize) -> redis::RedisResult<redis::Connection> {
        let client = redis::Client::open(self.region(index, "redis"))?;
        let connection = client.get_connection_with_timeout(Duration::from_secs(5))?;
        connection.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(connection)
    }

    /// `geode …` against this planet.
    pub(crate) fn geode(&self, arguments: &[&str]) -> Output {
        let chaos = arguments.first() == Some(&"chaos");
        let admin =
            if chaos { self.ready["control"].as_str().unwrap().to_owned() } else { self.region(1, "admin") };
        Command::new(GEODE).args(arguments).args(["--admin", &admin]).output().unwrap()
    }

    /// `geode …` that must succeed; its standard output.
    pub(crate) fn expect(&self, arguments: &[&str]) -> String {
        let output = self.geode(arguments);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "geode {arguments:?} ended with {}:\n{out}{err}", output.status);
        out.into_owned()
    }

    pub(crate) fn signal(&self, name: &str) {
        signal(self.parent(), name);
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        wait_for("the end of geode dev", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Planet {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal by name, as `kill -NAME pid` does.
pub(crate) fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status().unwrap().success());
}

/// Whether a process is there and not a zombie.
pub(crate) fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// A process and all that descend from it.
pub(crate) fn family(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut next = 0;
    while let Some(pid) = all.get(next).copied() {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        for task in tasks {
            let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            all.extend(children.split_whitespace().map(|pid| pid.parse::<u32>().unwrap()));
        }
        next += 1;
    }
    all
}

/// Polls for an event that must come.
pub(crate) fn wait_for(what: &str, mut come: impl FnMut() -> bool) {
    let start = Instant::now();
    while !come() {
        assert!(start.elapsed() < DEADLINE, "{what} did not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A base port whose neighbourhood is free on the addresses that `geode dev` uses.
fn free_base_port() -> u16 {
    // Each test process looks from another place on, so that two of them do not race for the same ports.
    let start = 20_000 + (std::process::id() as u16 % 1000) * 10;
    let mut candidates = (0..2000u16).map(|step| 20_000 + (start - 20_000 + step * 20) % 12_000);
    static TAKEN: std::sync::Mutex<Vec<u16>> = std::sync::Mutex::new(Vec::new());
    let mut taken = TAKEN.lock().unwrap();
    let free = candidates.find(|base| {
        let all_free = (0..20).all(|offset| {
            ["127.0.0.1", "127.0.0.11"]
                .iter()
                .all(|address| TcpListener::bind((*address, base + offset)).is_ok())
        });
        all_free && taken.iter().all(|other| other.abs_diff(*base) >= 20)
    });
    taken.push(free.unwrap());
    free.unwrap()
}

/// An HTTP answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(held, _)| held.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// One request on a connection of its own, as `curl` makes it.
pub(crate) fn http(
    address: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() || method == "POST" {
        request += &format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
    }
    stream.write_all(format!("{request}\r\n{body}").as_bytes())?;
    read_answer(BufReader::new(stream))
}

fn read_answer(mut reader: impl BufRead) -> std::io::Result<Answer> {
    let invalid = || std::io::Error::from(std::io::ErrorKind::InvalidData);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(invalid)?;
    let mut headers = Vec::new();
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.push((name.to_ascii_lowercase(), value.to_owned()));
    }
    let mut answer = Answer { status, headers, body: String::new() };
    let mut body = Vec::new();
    if answer.header("transfer-encoding").is_some() {
        loop {
            line.clear();
            reader.read_line(&mut line)?;
            let length = usize::from_str_radix(line.trim_end(), 16).map_err(|_| invalid())?;
            let mut chunk = vec![0; length + 2];
            reader.read_exact(&mut chunk)?;
            body.extend_from_slice(&chunk[..length]);
            if length == 0 {
                break;
            }
        }
    } else if let Some(length) = answer.header("content-length").and_then(|length| length.parse().ok()) {
        body.resize(length, 0);
        reader.read_exact(&mut body)?;
    } else {
        reader.read_to_end(&mut body)?;
    }
    answer.body = String::from_utf8_lossy(&body).into_owned();
    Ok(answer)
}

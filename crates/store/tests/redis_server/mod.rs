//! A real Redis server on a Unix socket of its own, for comparison.

#![expect(clippy::unwrap_used, reason = "a test without its server has nothing to go on with")]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use geode_store::conformance::Value;

pub(crate) struct RedisServer {
    process: Child,
    directory: PathBuf,
}

impl RedisServer {
    /// `None`, and a loud word, where Redis is not installed; with CI=true that is a failure.
    pub(crate) fn start(name: &str) -> Option<Self> {
        let directory = std::env::temp_dir().join(format!("geode-store-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let socket = directory.join("socket");
        let process = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--daemonize", "no"])
            .arg("--unixsocket")
            .arg(&socket)
            .arg("--dir")
            .arg(&directory)
            .stdout(Stdio::piped())
            .spawn();
        let mut process = match process {
            Ok(process) => process,
            Err(error) => {
                let line = "apt-get install -y redis-server";
                assert!(std::env::var("CI").as_deref() != Ok("true"), "redis-server: {error}; {line}");
                eprintln!(
                    "SKIPPED: redis-server does not start ({error}), nothing is compared with it: {line}"
                );
                return None;
            }
        };
        let output = BufReader::new(process.stdout.take().unwrap());
        let server = Self { process, directory };
        // The server says so itself; a server that dies ends its output.
        let mut lines = output.lines();
        let ready = lines.any(|line| line.unwrap().contains("ready to accept connections"));
        assert!(ready, "redis-server ended before it was ready");
        // Nobody may block it by not reading on.
        std::thread::spawn(move || lines.for_each(drop));
        Some(server)
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("socket")
    }

    /// A new connection to an empty server.
    pub(crate) fn connect(&self) -> Connection {
        let stream = UnixStream::connect(self.socket()).unwrap();
        let mut connection = Connection { reader: BufReader::new(stream) };
        assert_eq!(connection.execute(&[b"FLUSHALL"]), Value::Simple("OK".into()));
        connection
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        std::fs::remove_dir_all(&self.directory).unwrap();
    }
}

pub(crate) struct Connection {
    reader: BufReader<UnixStream>,
}

impl Connection {
    pub(crate) fn execute(&mut self, arguments: &[&[u8]]) -> Value {
        let mut request = format!("*{}\r\n", arguments.len()).into_bytes();
        for argument in arguments {
            request.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
            request.extend_from_slice(argument);
            request.extend_from_slice(b"\r\n");
        }
        self.reader.get_mut().write_all(&request).unwrap();
        self.read()
    }

    fn read(&mut self) -> Value {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        let line = line.strip_suffix("\r\n").unwrap();
        let (head, rest) = line.split_at(1);
        let length = || usize::try_from(rest.parse::<i64>().unwrap()).ok();
        match head {
            "+" => Value::Simple(rest.into()),
            "-" => Value::Error(rest.into()),
            ":" => Value::Integer(rest.parse().unwrap()),
            "$" => length().map_or(Value::Null, |length| {
                let mut bytes = vec![0; length + 2];
                self.reader.read_exact(&mut bytes).unwrap();
                bytes.truncate(length);
                Value::Bulk(bytes)
            }),
            "*" => length()
                .map_or(Value::NullArray, |length| Value::Array((0..length).map(|_| self.read()).collect())),
            other => panic!("an unknown reply {other:?}"),
        }
    }
}

//! The same bytes to a real Redis and to this front end: the same bytes back.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::harness::{Running, wait_until};

struct Redis {
    process: Child,
    directory: tempfile::TempDir,
}

impl Redis {
    /// `None` where it is not installed, which is said aloud, and a failure where CI=true.
    fn start() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let spawned = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket", "redis.sock"])
            .current_dir(directory.path())
            .stdout(Stdio::null())
            .spawn();
        let process = match spawned {
            Ok(process) => process,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let hint = "redis-server is not installed: apt-get install -y redis-server";
                assert!(std::env::var("CI").as_deref() != Ok("true"), "{hint}");
                eprintln!("SKIPPED: not compared with Redis; {hint}");
                return None;
            }
            Err(error) => panic!("redis-server: {error}"),
        };
        let redis = Self { process, directory };
        wait_until("redis-server", || UnixStream::connect(redis.socket()).is_ok());
        Some(redis)
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("redis.sock")
    }

    /// Everything that it answers to these bytes and an end of stream.
    fn answer(&self, request: &[u8]) -> String {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        // It may close before it has read everything.
        let _ = stream.write_all(request);
        let _ = stream.shutdown(Shutdown::Write);
        let mut bytes = Vec::new();
        match stream.read_to_end(&mut bytes) {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            outcome => drop(outcome.unwrap()),
        }
        bytes.escape_ascii().to_string()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn our_answer(running: &Running, request: &[u8]) -> String {
    let mut client = running.connect();
    let _ = client.0.write_all(request);
    let _ = client.0.shutdown(Shutdown::Write);
    client.rest()
}

#[test]
fn errors_are_those_of_redis() {
    let Some(redis) = Redis::start() else { return };
    let running = Running::start();
    let malformed = [
        "*x\r\n",
        "*\r\n",
        "*+1\r\n",
        "*01\r\n",
        "*-0\r\n",
        "*2147483648\r\n",
        "*99999999999999999999\r\n",
        "* 1\r\n",
        "*1 \r\n",
        "*1\r\n$-1\r\n",
        "*1\r\n$\r\n",
        "*1\r\n$a\r\n",
        "*1\r\n$04\r\n",
        "*1\r\n$536870913\r\n",
        "*1\r\nPING\r\n",
        "*1\r\n\r\n\r\n",
        "*2\r\n$4\r\nPING*\r\n$1\r\na\r\n",
        "*1\r\n$4\r\nPINGxxPING\r\n",
        "*1\rx$4\rxPING\r\n",
        "*0\r\n",
        "*-7\r\nPING\r\n",
        "\r\n\r\n",
        "PING \"a\r\n",
        "PING 'a\r\n",
        "PING \"a\"b\r\n",
        "ECHO \"\\x41\\n\\q\"\r\n",
        "ECHO 'it\\'s'\r\n",
        "ECHO \"\"\r\n",
        "PING\n",
        "  PING  \r\n",
        "ECHO a\rb\r\n",
    ];
    let commands = [
        "AUTH",
        "AUTH secret",
        "AUTH default x",
        "AUTH someone x",
        "AUTH a b c",
        "HELLO 1",
        "HELLO x",
        "HELLO 2 SETNAME",
        "HELLO 2 FLY a b",
        "HELLO 2 AUTH someone x",
        "CLIENT",
        "CLIENT FLY",
        "CLIENT SETNAME",
        "CLIENT SETNAME \"a b\"",
        "CLIENT SETNAME a",
        "CLIENT GETNAME",
        "CLIENT GETNAME x",
        "CLIENT ID x",
        "CLIENT REPLY maybe",
        "CLIENT REPLY ON",
        "CLIENT REPLY OFF",
        "CLIENT REPLY",
        "CLIENT KILL ID 0",
        "CLIENT KILL ID 123456",
        "CLIENT KILL ID x",
        "CLIENT NO-EVICT x",
        "CLIENT NO-EVICT on",
        "RESET",
        "RESET x",
        "QUIT",
        "QUIT x",
        "POST /",
        "Host: x",
    ];
    let commands = commands.iter().map(|command| format!("{command}\r\n"));
    let requests = malformed.iter().map(ToString::to_string).chain(commands).map(String::into_bytes);
    // What follows a line decides whether Redis finds it too long, so nothing does.
    let long = ["*", "*1\r\n$", "PING "].map(|start| [start.as_bytes(), &[b'1'; 70_000]].concat());
    let requests = requests.map(|request| [request.as_slice(), b"PING\r\n"].concat());
    for request in requests.chain(long) {
        let request = [b"PING\r\n", request.as_slice()].concat();
        let shown = request[..request.len().min(60)].escape_ascii().to_string();
        assert_eq!(our_answer(&running, &request), redis.answer(&request), "to {shown}");
    }
}

#[test]
fn nearly_requests_are_answered_as_redis_does() {
    let Some(redis) = Redis::start() else { return };
    let running = Running::start();
    let piece = prop_oneof![
        Just("*1\r\n$4\r\nPING\r\n".to_owned()),
        Just("*2\r\n$4\r\necho\r\n$1\r\nx\r\n".to_owned()),
        Just("*2\r\n$4\r\nECHO\r\n".to_owned()),
        Just("*0\r\n".to_owned()),
        Just("ECHO \"a b\"\r\n".to_owned()),
        Just("$1\r\ny\r\n".to_owned()),
        "[*$][-0-9]{0,3}\r\n",
        "[*$\"'\\\\x0-9a-c \r\n-]{0,10}",
    ];
    let requests = prop::collection::vec(piece, 1..8).prop_map(|pieces| pieces.concat());
    TestRunner::deterministic()
        .run(&requests, |request| {
            prop_assert_eq!(our_answer(&running, request.as_bytes()), redis.answer(request.as_bytes()));
            Ok(())
        })
        .unwrap();
}

//! A blocking Redis client of a few lines: what the measurements need, with nothing hidden in it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// One connection.
pub(crate) struct Client {
    reader: BufReader<TcpStream>,
}

impl Client {
    /// Connects to `host:port`.
    pub(crate) fn connect(address: &str) -> Result<Self, String> {
        let connect = || {
            let stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(Duration::from_secs(30)))?;
            Ok::<_, std::io::Error>(stream)
        };
        let stream = connect().map_err(|error| format!("{address}: {error}"))?;
        Ok(Self { reader: BufReader::with_capacity(1 << 16, stream) })
    }

    /// Sends commands in one write without waiting for the answers.
    pub(crate) fn send(&mut self, commands: &[Vec<&[u8]>]) -> Result<(), String> {
        let mut out = Vec::new();
        for command in commands {
            let _ = write!(out, "*{}\r\n", command.len());
            for argument in command {
                let _ = write!(out, "${}\r\n", argument.len());
                out.extend_from_slice(argument);
                out.extend_from_slice(b"\r\n");
            }
        }
        self.reader.get_mut().write_all(&out).map_err(|error| error.to_string())
    }

    /// The next answer: a bulk or simple string, an integer as text, or nothing. Errors of the server are errors.
    pub(crate) fn receive(&mut self) -> Result<Option<Vec<u8>>, String> {
        let mut line = String::new();
        self.reader.read_line(&mut line).map_err(|error| error.to_string())?;
        let line = line.trim_end();
        match line.as_bytes().first() {
            Some(b'+' | b':') => Ok(Some(line.as_bytes()[1..].to_vec())),
            Some(b'$') if line == "$-1" => Ok(None),
            Some(b'$') => {
                let length: usize = line[1..].parse().map_err(|_| format!("unexpected answer {line}"))?;
                let mut bytes = vec![0; length + 2];
                self.reader.read_exact(&mut bytes).map_err(|error| error.to_string())?;
                bytes.truncate(length);
                Ok(Some(bytes))
            }
            _ => Err(format!("unexpected answer {line:?}")),
        }
    }

    /// One command, one answer.
    pub(crate) fn call(&mut self, command: &[&[u8]]) -> Result<Option<Vec<u8>>, String> {
        self.send(&[command.to_vec()])?;
        self.receive()
    }

    /// Writes `keys` string keys of 100 B, pipelined, the way a bulk load does.
    pub(crate) fn fill(&mut self, keys: usize) -> Result<(), String> {
        let value = [b'x'; 100];
        let names: Vec<String> = (0..keys).map(|index| format!("key:{index:012}")).collect();
        for chunk in names.chunks(500) {
            let commands: Vec<Vec<&[u8]>> =
                chunk.iter().map(|name| vec![&b"SET"[..], name.as_bytes(), &value]).collect();
            self.send(&commands)?;
            for _ in chunk {
                self.receive()?;
            }
        }
        Ok(())
    }
}

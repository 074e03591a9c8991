//! What instances print, line by line, in bounded memory.

use std::fmt;
use std::sync::Arc;

use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::sync::{mpsc, oneshot};

/// Receives every line, one at a time, on a thread of its own. It may block: a service that prints faster is slowed.
pub type OutputSink = Arc<dyn Fn(OutputLine<'_>) + Send + Sync>;

/// A longer line is handed on in pieces of this many bytes.
const LONGEST_LINE: usize = 8 * 1024;
/// Lines waiting for the sink; with the longest lines, half a mebibyte per host.
const LINES_WAITING: usize = 64;

/// One line that an instance printed. Displays as `region/instance | text`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputLine<'a> {
    /// The region.
    pub region: &'a str,
    /// Number of the instance.
    pub instance: usize,
    /// Where it was printed.
    pub stream: OutputStream,
    /// The text, without its line end; bytes that are not UTF-8 are replaced.
    pub text: &'a str,
}

impl fmt::Display for OutputLine<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{} | {}", self.region, self.instance, self.text)
    }
}

/// A standard stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputStream {
    /// Standard output.
    Out,
    /// Standard error.
    Error,
}

/// A line on its way to the sink.
pub(crate) struct Line {
    instance: usize,
    stream: OutputStream,
    bytes: Vec<u8>,
}

/// The way to a sink. The writer's thread ends when all senders are gone.
pub(crate) struct Writer {
    pub(crate) lines: mpsc::Sender<Line>,
    /// Completes (with an error) once the last line has been handed over.
    pub(crate) finished: oneshot::Receiver<()>,
}

/// Starts the thread that calls the sink.
pub(crate) fn start_writer(region: String, sink: OutputSink) -> std::io::Result<Writer> {
    let (lines, mut inbox) = mpsc::channel::<Line>(LINES_WAITING);
    let (alive, finished) = oneshot::channel::<()>();
    std::thread::Builder::new().name("service-output".to_owned()).spawn(move || {
        let _alive = alive;
        while let Some(line) = inbox.blocking_recv() {
            let text = String::from_utf8_lossy(&line.bytes);
            sink(OutputLine { region: &region, instance: line.instance, stream: line.stream, text: &text });
        }
    })?;
    Ok(Writer { lines, finished })
}

/// Reads a stream to its end and sends its lines, waiting while the sink is behind.
pub(crate) async fn read_lines(
    source: impl AsyncRead + Unpin,
    instance: usize,
    stream: OutputStream,
    lines: mpsc::Sender<Line>,
) {
    let mut source = BufReader::with_capacity(LONGEST_LINE, source);
    let mut bytes = Vec::new();
    loop {
        let chunk = match source.fill_buf().await {
            Ok(chunk) if !chunk.is_empty() => chunk,
            _ => break,
        };
        let room = &chunk[..chunk.len().min(LONGEST_LINE - bytes.len())];
        let end = room.iter().position(|&byte| byte == b'\n');
        bytes.extend_from_slice(&room[..end.unwrap_or(room.len())]);
        let used = end.map_or(room.len(), |end| end + 1);
        source.consume(used);
        if end.is_some() || bytes.len() == LONGEST_LINE {
            if end.is_some() && bytes.last() == Some(&b'\r') {
                bytes.pop();
            }
            let line = Line { instance, stream, bytes: std::mem::take(&mut bytes) };
            if lines.send(line).await.is_err() {
                return;
            }
        }
    }
    if !bytes.is_empty() {
        // The host is going away if nobody listens: nothing to tell anybody.
        let _unheard = lines.send(Line { instance, stream, bytes }).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines_of(text: &[u8]) -> Vec<String> {
        let (sender, mut inbox) = mpsc::channel(1);
        let reader = read_lines(text, 0, OutputStream::Out, sender);
        let collect = async {
            let mut lines = Vec::new();
            while let Some(line) = inbox.recv().await {
                lines.push(String::from_utf8_lossy(&line.bytes).into_owned());
            }
            lines
        };
        tokio::join!(reader, collect).1
    }

    #[tokio::test]
    async fn lines_end_at_line_feeds_with_or_without_carriage_return_and_at_the_end() {
        assert_eq!(lines_of(b"one\r\ntwo\n\nlast").await, ["one", "two", "", "last"]);
        assert_eq!(lines_of(b"").await, Vec::<String>::new());
    }

    #[tokio::test]
    async fn an_endless_line_comes_in_pieces() {
        let text = "x".repeat(LONGEST_LINE * 2 + 5);
        let lengths: Vec<usize> = lines_of(text.as_bytes()).await.iter().map(String::len).collect();
        assert_eq!(lengths, [LONGEST_LINE, LONGEST_LINE, 5]);
    }

    #[tokio::test]
    async fn a_line_of_just_the_longest_length_is_followed_by_an_empty_rest() {
        let text = format!("{}\nnext\n", "x".repeat(LONGEST_LINE));
        let lines = lines_of(text.as_bytes()).await;
        assert_eq!(lines.len(), 3);
        assert_eq!((lines[1].as_str(), lines[2].as_str()), ("", "next"));
    }
}

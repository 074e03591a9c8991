//! What the planet says on the terminal: lines of geodes and services, each with its region before it.
//!
//! One thread writes, so that lines stay whole. A terminal that stands still holds up nobody: lines beyond a bounded
//! queue are dropped and counted.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use indicatif::ProgressBar;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};

use super::plan::PlannedRegion;

/// Lines that wait for the terminal.
const QUEUE_LINES: usize = 4096;
/// A longer line is shown in parts.
const MAX_LINE_BYTES: usize = 16 << 10;
/// How long the end of `geode dev` waits for a terminal that stands still.
const FLUSH_WAIT: Duration = Duration::from_secs(1);
/// Colours of regions in turn (ANSI): cyan, yellow, green, magenta, blue. Red is for errors.
const COLOURS: [u8; 5] = [36, 33, 32, 35, 34];

/// Where text goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Out,
    Err,
}

/// The way to the terminal. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Output {
    queue: SyncSender<(Stream, String)>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    names: Vec<String>,
    /// The width of the longest name with an instance's number.
    width: usize,
    /// Lines of standard output go to standard error.
    text_only: bool,
    /// Whether standard output and standard error show colours.
    coloured: [bool; 2],
    dropped: AtomicU64,
}

impl Output {
    /// Starts the writer for these regions. Lines appear above `bar` while it is drawn; with `text_only` none appears on
    /// standard output, which then belongs to [`Output::text`]. The receiver hears when all is written, once every clone
    /// is gone.
    pub(super) fn start(
        regions: &[PlannedRegion],
        bar: ProgressBar,
        text_only: bool,
    ) -> std::io::Result<(Self, Written)> {
        let (queue, lines) = sync_channel(QUEUE_LINES);
        let (finished, written) = sync_channel(1);
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let coloured = [std::io::stdout().is_terminal(), std::io::stderr().is_terminal()];
        let names: Vec<String> = regions.iter().map(|region| region.name.to_string()).collect();
        let width = 2 + names.iter().map(String::len).max().unwrap_or(0);
        let coloured = coloured.map(|terminal| terminal && !plain);
        let shared = Arc::new(Shared { names, width, text_only, coloured, dropped: AtomicU64::new(0) });
        let of_writer = Arc::clone(&shared);
        std::thread::Builder::new().name("output".to_owned()).spawn(move || {
            write_lines(&lines, &of_writer.dropped, &bar);
            // Nobody may be waiting any more.
            let _ = finished.send(());
        })?;
        Ok((Self { queue, shared }, Written(written)))
    }

    /// Writes a line of a region.
    pub(super) fn line(&self, region: usize, stream: Stream, text: &str) {
        let stream = if self.shared.text_only { Stream::Err } else { stream };
        let coloured = self.shared.coloured[usize::from(stream == Stream::Err)];
        let colour = coloured.then(|| COLOURS[region % COLOURS.len()]);
        let name = self.shared.names.get(region).map_or("", String::as_str);
        self.push(stream, labelled(name, self.shared.width, colour, text));
    }

    /// Writes text as it is on standard output.
    pub(super) fn text(&self, text: &str) {
        self.push(Stream::Out, text.to_owned());
    }

    fn push(&self, stream: Stream, text: String) {
        if self.queue.try_send((stream, text)).is_err() {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Passes on every line of a child's output until it closes it.
    pub(super) async fn follow(self, region: usize, stream: Stream, source: impl AsyncRead + Unpin) {
        let mut source = BufReader::with_capacity(MAX_LINE_BYTES, source);
        let mut line = Vec::new();
        loop {
            let (count, whole) = match source.fill_buf().await {
                Ok([]) | Err(_) => break,
                Ok(bytes) => {
                    let room = &bytes[..bytes.len().min(MAX_LINE_BYTES - line.len())];
                    let end = room.iter().position(|byte| *byte == b'\n');
                    line.extend_from_slice(&room[..end.unwrap_or(room.len())]);
                    (end.map_or(room.len(), |end| end + 1), end.is_some() || line.len() == MAX_LINE_BYTES)
                }
            };
            source.consume(count);
            if whole {
                self.line(region, stream, &String::from_utf8_lossy(&line));
                line.clear();
            }
        }
        if !line.is_empty() {
            self.line(region, stream, &String::from_utf8_lossy(&line));
        }
    }
}

/// Hears when everything has been written.
#[derive(Debug)]
pub(super) struct Written(Receiver<()>);

impl Written {
    /// Waits until all is written, but not long for a terminal that stands still. Every [`Output`] must be gone.
    pub(super) fn wait(self) {
        let _ = self.0.recv_timeout(FLUSH_WAIT);
    }
}

fn write_lines(lines: &Receiver<(Stream, String)>, dropped: &AtomicU64, bar: &ProgressBar) {
    while let Ok((stream, text)) = lines.recv() {
        bar.suspend(|| write(stream, &text));
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            bar.suspend(|| write(Stream::Err, &format!("({lost} lines are not shown)\n")));
        }
    }
}

fn write(stream: Stream, text: &str) {
    // A terminal that is gone is no reason to stop the planet.
    let _ = match stream {
        Stream::Out => {
            let mut out = std::io::stdout().lock();
            out.write_all(text.as_bytes()).and_then(|()| out.flush())
        }
        Stream::Err => std::io::stderr().lock().write_all(text.as_bytes()),
    };
}

/// A line with its region before it, or with the instance of the service, `REGION/NUMBER`, where the geode has said which
/// one it is from.
fn labelled(name: &str, width: usize, colour: Option<u8>, text: &str) -> String {
    let of_instance = text.split_once(" | ").filter(|(label, _)| {
        let number = label.strip_prefix(name).and_then(|rest| rest.strip_prefix('/'));
        number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
    });
    let (label, text) = of_instance.unwrap_or((name, text));
    match colour {
        Some(colour) => format!("\x1b[{colour}m{label:width$} |\x1b[0m {text}\n"),
        None => format!("{label:width$} | {text}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quiet() -> Shared {
        let names = vec!["a".to_owned()];
        Shared { names, width: 1, text_only: false, coloured: [false; 2], dropped: AtomicU64::new(0) }
    }

    #[test]
    fn a_line_says_where_it_comes_from_once() {
        let line = |text| labelled("us-east-1", 12, None, text);
        assert_eq!(line("ready after 0.2 s"), "us-east-1    | ready after 0.2 s\n");
        assert_eq!(line("us-east-1/0 | a | b"), "us-east-1/0  | a | b\n");
        assert_eq!(line("us-east-1/x | a"), "us-east-1    | us-east-1/x | a\n");
        assert_eq!(line("eu-west-1/0 | a"), "us-east-1    | eu-west-1/0 | a\n");
        assert_eq!(labelled("a", 3, Some(36), "a/1 | x"), "\x1b[36ma/1 |\x1b[0m x\n");
    }

    #[tokio::test]
    async fn lines_are_cut_where_they_end_or_grow_too_long() {
        let (queue, lines) = sync_channel(16);
        let shared = quiet();
        let output = Output { queue, shared: Arc::new(shared) };
        let long = "x".repeat(MAX_LINE_BYTES);
        let source = format!("one\n\n{long}yz\nlast");
        output.follow(0, Stream::Out, source.as_bytes()).await;
        let written: Vec<String> = lines.iter().map(|(_, text)| text).collect();
        assert_eq!(written, ["a | one\n", "a | \n", &format!("a | {long}\n"), "a | yz\n", "a | last\n"]);
    }

    #[test]
    fn a_terminal_that_stands_still_holds_up_nobody() {
        let (queue, _never_read) = sync_channel(1);
        let shared = quiet();
        let output = Output { queue, shared: Arc::new(shared) };
        for _ in 0..3 {
            output.line(0, Stream::Out, "x");
        }
        assert_eq!(output.shared.dropped.load(Ordering::Relaxed), 2);
    }
}

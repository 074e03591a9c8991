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
    /// What stands before a region's lines, for standard output and standard error.
    prefixes: [Vec<String>; 2],
    dropped: AtomicU64,
}

impl Output {
    /// Starts the writer for these regions. Lines appear above `bar` while it is drawn. The receiver hears when all is
    /// written, once every clone is gone.
    pub(super) fn start(regions: &[PlannedRegion], bar: ProgressBar) -> std::io::Result<(Self, Written)> {
        let (queue, lines) = sync_channel(QUEUE_LINES);
        let (finished, written) = sync_channel(1);
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let prefixes = [std::io::stdout().is_terminal(), std::io::stderr().is_terminal()]
            .map(|terminal| prefixes(regions, terminal && !plain));
        let shared = Arc::new(Shared { prefixes, dropped: AtomicU64::new(0) });
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
        let prefixes = &self.shared.prefixes[usize::from(stream == Stream::Err)];
        let prefix = prefixes.get(region).map_or("", String::as_str);
        self.push(stream, format!("{prefix}{text}\n"));
    }

    /// Writes text as it is.
    pub(super) fn text(&self, stream: Stream, text: &str) {
        self.push(stream, text.to_owned());
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

fn prefixes(regions: &[PlannedRegion], coloured: bool) -> Vec<String> {
    let width = regions.iter().map(|region| region.name.as_str().len()).max().unwrap_or(0);
    let colours = COLOURS.iter().cycle();
    let prefix = |(region, colour): (&PlannedRegion, &u8)| {
        let name = format!("{:width$} |", region.name);
        if coloured { format!("\x1b[{colour}m{name}\x1b[0m ") } else { format!("{name} ") }
    };
    regions.iter().zip(colours).map(prefix).collect()
}

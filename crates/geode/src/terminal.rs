//! What commands say to whoever started them.

use std::io::{ErrorKind, Write as _};

/// Writes an answer on standard output. A reader who has seen enough (`geode status | head -1`) is no fault.
///
/// # Errors
/// The answer cannot be written: a full disk, for instance.
pub(crate) fn say(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// Writes a line on standard error. The exit code says the same where nobody reads it.
pub(crate) fn complain(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

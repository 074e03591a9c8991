//! New files for a log of which an fsync failed.
//!
//! After a failed fsync the kernel may count pages as written that are not, so the next fsync of the same file proves
//! nothing (Rebello et al., "Can Applications Recover from fsync Failures?", USENIX ATC 2020). What is still to be read of
//! such a file is proven by its checksums, and by the fsync of another file that it was written to.

use std::fs::File;
use std::io::{self, Read};

use super::format;
use super::segments::Segments;

/// Puts new files in the place of the segments of which anything beyond `synced` is not known to be on disk, and always of
/// the last one, which ends at `end`. All of it is on disk when this returns, names included. Returns the last one's file.
///
/// Holds one segment in memory.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] if what was written cannot be read back. After any other error another attempt may do.
pub(crate) fn rewrite(segments: &Segments, synced: u64, end: u64) -> io::Result<File> {
    let mut last = None;
    for (base, segment_end) in segments.beyond(synced.min(end.saturating_sub(1)), end) {
        let content = read(segments, base, segment_end)?;
        last = Some(segments.replace(base, &content)?);
    }
    File::open(segments.directory())?.sync_all()?;
    last.ok_or_else(|| io::Error::other("the log has no file"))
}

/// The segment as it was written.
fn read(segments: &Segments, base: u64, end: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(segments.path(base))?.take(end - base).read_to_end(&mut content)?;
    let is_there = content.len() as u64 == end - base;
    if is_there && format::is_whole(&content, base, segments.header_length() as usize) {
        return Ok(content);
    }
    let reason = format!("{} is not what was written to it", segments.path(base).display());
    Err(io::Error::new(io::ErrorKind::InvalidData, reason))
}

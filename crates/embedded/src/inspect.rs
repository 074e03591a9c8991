//! A stopped region's log, read from outside: what was written, by whom, in which order.

use std::io;
use std::path::Path;
use std::sync::Arc;

use geode_crdt::{Actors, Frame};

use crate::log::{Kind, Reader, Segments};

/// Visits every frame in the log below a region's data directory, own and others', in the order of delivery.
///
/// # Errors
/// What the disk said; a log of another region or planet, or one that is damaged, is `InvalidData`. Nothing is repaired:
/// that is what starting the region does.
pub fn read_frames(
    data: &Path,
    (planet, region): (&str, &str),
    actors: &mut Actors,
    mut visit: impl FnMut(&Frame<'_>, &Actors),
) -> io::Result<()> {
    let segments = Arc::new(Segments::list(data.join("log"), planet, region)?);
    let bases = segments.bases();
    let (Some(first), Some(last)) = (bases.first(), bases.last()) else { return Ok(()) };
    let end = last + segments.open(*last)?.metadata()?.len();
    let mut reader = Reader::new(segments, *first);
    loop {
        let records = reader.read(end)?;
        let mut any = false;
        for record in records {
            any = true;
            if matches!(record.kind, Kind::Own | Kind::Foreign) {
                let frame = Frame::parse(record.body, actors)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                visit(&frame, actors);
            }
        }
        if !any {
            return Ok(());
        }
    }
}

//! The bytes of a log segment.
//!
//! ```text
//! segment = header | record*
//! header  = "GEODELOG" | version u16 | base u64 | planet length u8, planet | region length u8, region | crc32 u32
//! record  = marker u32 | kind u8 | length u32 of the body | synced u64 | crc32 u32 | body
//! ```
//! Integers are little-endian. Positions count bytes from the beginning of the first segment over all segments, their
//! headers included; `base` is the position of a segment's first byte, and also its file name. A record's crc covers
//! its position, kind, length, the position up to which the log was known to be on disk, and the beginning of the
//! body. The body of a frame is the frame, whose own checksum covers the rest; so nothing is summed twice. The body of
//! an incarnation is its number: from there on the region writes as that actor.

use geode_crdt::frame::{self, MAX_FRAME};

/// The version that this release writes; golden bytes stand in `tests/golden`.
pub(crate) const VERSION: u16 = 1;
/// Bytes of a record before its body.
pub(crate) const RECORD: usize = 21;

/// The longest header of a segment: all its fields with the longest names.
pub(crate) const LONGEST_HEADER: usize = 8 + 2 + 8 + 2 * 256 + 4;

const MAGIC: &[u8; 8] = b"GEODELOG";
const MARKER: [u8; 4] = *b"rec\xd7";
/// Bytes of a body that a record's crc covers: a frame's prefix, or an incarnation's number.
const COVERED: usize = frame::PREFIX;
/// Bytes needed to tell whether a record's head is whole.
pub(crate) const CHECKABLE: usize = RECORD + COVERED;

/// What a record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A frame of an actor of this region, whatever its incarnation: it is streamed to every peer.
    Own,
    /// A frame of another region's actor.
    Foreign,
    /// A new incarnation of this region.
    Incarnation,
}

impl Kind {
    const fn code(self) -> u8 {
        match self {
            Self::Own => 1,
            Self::Foreign => 2,
            Self::Incarnation => 3,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [Self::Own, Self::Foreign, Self::Incarnation].into_iter().find(|kind| kind.code() == code)
    }
}

/// The head of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) kind: Kind,
    pub(crate) length: usize,
    /// Up to where the log was known to be on disk when this was written.
    pub(crate) synced: u64,
}

/// The bytes of a segment's header.
pub(crate) fn header(base: u64, planet: &str, region: &str) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&base.to_le_bytes());
    for name in [planet, region] {
        // Names are at most 255 bytes: `planet.toml` is checked when it is read.
        let name = &name.as_bytes()[..name.len().min(255)];
        out.push(name.len() as u8);
        out.extend_from_slice(name);
    }
    let crc = crc32fast::hash(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

/// What a segment's header says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum HeaderError {
    NotALog,
    NewerVersion(u16),
    Damaged,
    OtherPlanet(String),
    OtherRegion(String),
}

/// Checks that the segment that begins with `bytes` is the one at `base` of this region's log.
pub(crate) fn check_header(bytes: &[u8], base: u64, planet: &str, region: &str) -> Result<(), HeaderError> {
    if !bytes.starts_with(MAGIC) {
        return Err(HeaderError::NotALog);
    }
    let version = u16::from_le_bytes([bytes[8], bytes[9]]);
    if version > VERSION {
        return Err(HeaderError::NewerVersion(version));
    }
    let (found_planet, found_region) = names(bytes).ok_or(HeaderError::Damaged)?;
    if found_planet != planet {
        return Err(HeaderError::OtherPlanet(found_planet.to_owned()));
    }
    if found_region != region {
        return Err(HeaderError::OtherRegion(found_region.to_owned()));
    }
    if bytes.starts_with(&header(base, planet, region)) { Ok(()) } else { Err(HeaderError::Damaged) }
}

fn names(bytes: &[u8]) -> Option<(&str, &str)> {
    let take = |at: usize| {
        let length = usize::from(*bytes.get(at)?);
        let name = bytes.get(at + 1..at + 1 + length)?;
        Some((std::str::from_utf8(name).ok()?, at + 1 + length))
    };
    let (planet, at) = take(MAGIC.len() + 10)?;
    let (region, at) = take(at)?;
    let crc = u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?);
    (crc == crc32fast::hash(&bytes[..at])).then_some((planet, region))
}

/// Fills in the head of the record whose body was appended to `out` after [`RECORD`] free bytes at `start`.
pub(crate) fn finish_record(out: &mut [u8], start: usize, position: u64, kind: Kind, synced: u64) {
    let length = (out.len() - start - RECORD) as u32;
    let record = &mut out[start..];
    record[..4].copy_from_slice(&MARKER);
    record[4] = kind.code();
    record[5..9].copy_from_slice(&length.to_le_bytes());
    record[9..17].copy_from_slice(&synced.to_le_bytes());
    let crc = crc(record, position, length as usize);
    record[17..21].copy_from_slice(&crc.to_le_bytes());
}

/// The head of the record at `position`, if `bytes` begin with one that is whole.
pub(crate) fn read_record(bytes: &[u8], position: u64) -> Option<Head> {
    let head = bytes.get(..RECORD)?;
    let length = u32::from_le_bytes(head[5..9].try_into().ok()?) as usize;
    let stored = u32::from_le_bytes(head[17..21].try_into().ok()?);
    let sound = head[..4] == MARKER
        && length <= MAX_FRAME + frame::PREFIX
        && bytes.len() >= RECORD + length.min(COVERED)
        && stored == crc(bytes, position, length);
    let synced = u64::from_le_bytes(head[9..17].try_into().ok()?);
    sound.then_some(Head { kind: Kind::from_code(head[4])?, length, synced })
}

/// Whether fewer bytes than make a record's head checkable look like the beginning of one.
pub(crate) fn may_begin_record(bytes: &[u8]) -> bool {
    let marker = bytes.len().min(MARKER.len());
    bytes[..marker] == MARKER[..marker]
}

/// Where in `bytes` the next record might begin.
pub(crate) fn find_marker(bytes: &[u8]) -> Option<usize> {
    bytes.windows(MARKER.len()).position(|window| window == MARKER)
}

/// The body of a record that begins a new incarnation.
pub(crate) const fn incarnation_body(incarnation: u64) -> [u8; 8] {
    incarnation.to_le_bytes()
}

/// The incarnation that a record's body names.
pub(crate) fn read_incarnation(body: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(body.try_into().ok()?))
}

fn crc(record: &[u8], position: u64, length: usize) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&position.to_le_bytes());
    hasher.update(&record[4..17]);
    hasher.update(&record[RECORD..RECORD + length.min(COVERED)]);
    hasher.finalize()
}

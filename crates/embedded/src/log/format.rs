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
//! an incarnation is its number: from there on the region writes as that actor. The body of a join is the number of the
//! snapshot that was joined there (its file stands in the data directory) and a byte that says how; it stands in segments
//! of version 2 only.

use geode_crdt::frame::{self, MAX_FRAME};

/// The version that this release writes; golden bytes stand in `tests/golden`.
pub(crate) const VERSION: u16 = 2;
/// The oldest version whose segments are read, and written on where they end.
const OLDEST: u16 = 1;
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
    /// A snapshot is joined.
    Joined,
}

impl Kind {
    const fn code(self) -> u8 {
        match self {
            Self::Own => 1,
            Self::Foreign => 2,
            Self::Incarnation => 3,
            Self::Joined => 4,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [Self::Own, Self::Foreign, Self::Incarnation, Self::Joined]
            .into_iter()
            .find(|kind| kind.code() == code)
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
    header_of(VERSION, base, planet, region)
}

fn header_of(version: u16, base: u64, planet: &str, region: &str) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&version.to_le_bytes());
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
    let Some([low, high]) = bytes.get(MAGIC.len()..MAGIC.len() + 2) else { return Err(HeaderError::Damaged) };
    let version = u16::from_le_bytes([*low, *high]);
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
    let is_header = version >= OLDEST && bytes.starts_with(&header_of(version, base, planet, region));
    if is_header { Ok(()) } else { Err(HeaderError::Damaged) }
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

/// Whether `segment`, which begins at position `base` with a header of `header_length` bytes, is whole records from end to
/// end. Linear in its length.
pub(crate) fn is_whole(segment: &[u8], base: u64, header_length: usize) -> bool {
    let mut at = header_length;
    while at < segment.len() {
        let Some(head) = read_record(&segment[at..], base + at as u64) else { return false };
        let Some(body) = segment.get(at + RECORD..at + RECORD + head.length) else { return false };
        // What is short is covered by the record's own checksum.
        if head.kind != Kind::Incarnation && !frame::is_sound(body) {
            return false;
        }
        at += RECORD + head.length;
    }
    at == segment.len()
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

/// The body of a record that says that a snapshot is joined, and how.
pub(crate) fn joined_body(snapshot: u64, manner: u8) -> [u8; 9] {
    let mut body = [manner; 9];
    body[..8].copy_from_slice(&snapshot.to_le_bytes());
    body
}

/// The snapshot that a record's body names, and how it is joined.
pub(crate) fn read_joined(body: &[u8]) -> Option<(u64, u8)> {
    let (snapshot, manner) = body.split_first_chunk()?;
    Some((u64::from_le_bytes(*snapshot), *manner.first()?)).filter(|_| manner.len() == 1)
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

#[cfg(test)]
mod tests {
    use geode_crdt::{ActorId, Actors, FrameBuilder, HybridTime, KeyName};

    use super::*;

    /// A segment as a version writes it: header, an incarnation, a frame, and since version 2 a snapshot that is joined.
    fn example_of(version: u16) -> Vec<u8> {
        let base = 1 << 26;
        let mut out = header_of(version, base, "acme", "eu-west-1");
        let mut record = |kind: Kind, synced: u64, body: &[u8]| {
            let start = out.len();
            out.resize(start + RECORD, 0);
            out.extend_from_slice(body);
            finish_record(&mut out, start, base + start as u64, kind, synced);
        };
        record(Kind::Incarnation, base, &incarnation_body(0x0123_4567_89ab_cdef));
        let mut actors = Actors::default();
        let own = actors.intern(&ActorId::new("eu-west-1", 0x0123_4567_89ab_cdef));
        let mut builder = FrameBuilder::new(own, 1);
        builder.begin_entry(HybridTime(1_767_225_600_000_000), []);
        builder.set(KeyName { database: 0, name: b"k" }, b"v", []);
        builder.finish_entry();
        let mut frame = Vec::new();
        builder.finish_into(&mut frame, &actors);
        record(Kind::Own, base + 70, &frame);
        if version > 1 {
            record(Kind::Joined, base + 70, &joined_body(0xfeed_f00d, 1));
        }
        out
    }

    fn example() -> Vec<u8> {
        example_of(1)
    }

    #[test]
    fn segments_are_the_golden_bytes_of_their_versions() {
        let golden =
            [include_str!("../../tests/golden/log-1.txt"), include_str!("../../tests/golden/log-2.txt")];
        for (version, golden) in (1..).zip(golden) {
            let lines: Vec<String> = example_of(version)
                .chunks(32)
                .map(|chunk| chunk.iter().map(|byte| format!("{byte:02x}")).collect())
                .collect();
            assert_eq!(
                golden.lines().collect::<Vec<_>>(),
                lines,
                "a change here is a new version of the log"
            );
            assert_eq!(check_header(&example_of(version), 1 << 26, "acme", "eu-west-1"), Ok(()));
        }
        assert_eq!(read_joined(&joined_body(0xfeed_f00d, 2)), Some((0xfeed_f00d, 2)));
        assert_eq!((read_joined(&[0; 8]), read_joined(&[0; 10])), (None, None));
    }

    #[test]
    fn a_segment_is_read_back_and_every_flipped_bit_of_its_heads_is_seen() {
        let base = 1 << 26;
        let bytes = example();
        let start = header(base, "acme", "eu-west-1").len();
        assert_eq!(check_header(&bytes, base, "acme", "eu-west-1"), Ok(()));
        let first = read_record(&bytes[start..], base + start as u64).unwrap();
        assert_eq!(first, Head { kind: Kind::Incarnation, length: 8, synced: base });
        let second = start + RECORD + 8;
        let head = read_record(&bytes[second..], base + second as u64).unwrap();
        assert_eq!((head.kind, head.synced), (Kind::Own, base + 70));
        assert_eq!(second + RECORD + head.length, bytes.len());
        assert_eq!(read_record(&bytes[second..], base), None, "a record counts only where it was written");
        for bit in 0..(second + CHECKABLE) * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let at = bit / 8;
            if at < start {
                assert!(check_header(&bytes, base, "acme", "eu-west-1").is_err(), "bit {bit}");
            } else {
                let record = if at < second { start } else { second };
                assert_eq!(read_record(&bytes[record..], base + record as u64), None, "bit {bit}");
            }
        }
    }

    #[test]
    fn headers_say_whose_log_it_is() {
        let bytes = header(0, "acme", "eu-west-1");
        let check = |base: u64, planet: &str, region: &str| check_header(&bytes, base, planet, region);
        assert_eq!(check(0, "mars", "eu-west-1"), Err(HeaderError::OtherPlanet("acme".to_owned())));
        assert_eq!(check(0, "acme", "us-east-1"), Err(HeaderError::OtherRegion("eu-west-1".to_owned())));
        assert_eq!(check(5, "acme", "eu-west-1"), Err(HeaderError::Damaged));
        assert_eq!(check_header(b"something else", 0, "acme", "eu-west-1"), Err(HeaderError::NotALog));
        let mut newer = bytes.clone();
        newer[8] = 3;
        assert_eq!(check_header(&newer, 0, "acme", "eu-west-1"), Err(HeaderError::NewerVersion(3)));
        assert_eq!(check_header(b"GEODELOG", 0, "acme", "eu-west-1"), Err(HeaderError::Damaged));
    }
}

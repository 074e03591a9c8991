//! The bytes that open a connection. Pure: it reads and writes slices, the sockets are elsewhere.
//!
//! ```text
//! preface   magic "GEODELNK" · oldest u16 · newest u16 · length u16 · body
//! body      planet, from, to (each: length u8 · UTF-8) · purpose u8
//! answer    magic "GEODELNK" · verdict u8 (0 accepted, 1 refused) · version u16 · length u16 · reason UTF-8
//! ```
//! Numbers are big-endian. The fourteen bytes before the body, and the answer, never change their shape, so that any
//! two releases can at least refuse each other in words. A body is readable by every version its caller offers:
//! later versions only append to it, and a reader ignores what follows the fields it knows.

use std::collections::BTreeMap;

use geode_planet::RegionName;

use crate::peers::Peer;

/// The protocol version this release speaks at best.
const VERSION: u16 = 1;
/// The oldest protocol version this release still speaks: one release back, so that neighbours mix during an upgrade.
const OLDEST_VERSION: u16 = 1;

const MAGIC: &[u8; 8] = b"GEODELNK";
/// Bytes of a preface before its body.
pub(crate) const HEAD_LEN: usize = 14;
/// A body is three names of at most 255 bytes and a purpose; the rest is room for later versions.
const BODY_LIMIT: usize = 2048;
/// Bytes of an answer before its reason.
pub(crate) const ANSWER_LEN: usize = 13;
/// A reason is one line.
const REASON_LIMIT: usize = 512;

/// Who a geode is on its links.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The planet's name; geodes of different planets refuse each other.
    pub planet: String,
    /// The region this geode is.
    pub region: RegionName,
}

/// What a connection is for. Each purpose has connections of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Purpose {
    /// What stores tell each other, and log entries as they are written.
    Replication,
    /// HTTP requests that one door forwards to another.
    Hop,
    /// The state of each geode, several times a second.
    Gossip,
    /// One question about one geode, asked by an operator through another.
    Question,
    /// Log entries for a store that is far behind.
    Bulk,
}

impl Purpose {
    /// Every purpose, in the order of their codes.
    pub const ALL: [Self; 5] = [Self::Replication, Self::Hop, Self::Gossip, Self::Question, Self::Bulk];

    const fn code(self) -> u8 {
        match self {
            Self::Replication => 1,
            Self::Hop => 2,
            Self::Gossip => 3,
            Self::Question => 4,
            Self::Bulk => 5,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|purpose| purpose.code() == code)
    }
}

/// Why an acceptor sends a caller away. The text goes to the caller and into the acceptor's log.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// The first bytes are not those of a geode.
    #[error("the caller does not speak geode's link protocol: point it at another port")]
    Garbage,
    /// The caller stopped or fell silent before its preface was whole.
    #[error("the preface was not complete in time")]
    Incomplete,
    /// The caller closed the connection: its machine may be gone, or it was no more than a look whether somebody listens.
    #[error("the caller hung up before it said what it wants")]
    Gone,
    /// No version in common.
    #[error(
        "no protocol version in common: the caller speaks {oldest} to {newest}, this geode \
         {OLDEST_VERSION} to {VERSION}; upgrade one release at a time"
    )]
    Version {
        /// The oldest version the caller offers.
        oldest: u16,
        /// The newest version the caller offers.
        newest: u16,
    },
    /// A geode of another planet.
    #[error(
        "the caller belongs to planet \"{theirs}\", this geode to planet \"{ours}\": check both planet.toml"
    )]
    Planet {
        /// The planet the caller named.
        theirs: String,
        /// The acceptor's planet.
        ours: String,
    },
    /// The caller looked for another region at this address.
    #[error("the caller wants region {wanted}, but this is {ours}: check `link` in planet.toml")]
    Region {
        /// The region the caller named.
        wanted: String,
        /// The acceptor's region.
        ours: RegionName,
    },
    /// The caller says it is the acceptor's own region.
    #[error("the caller says it is {0} as well: two geodes run as one region")]
    Own(RegionName),
    /// The caller's region is not one of the planet's.
    #[error("the caller says it is {0}, which is no region of this planet: check planet.toml here")]
    Stranger(String),
    /// The caller's certificate is another region's.
    #[error(
        "the caller says it is {claimed}, but its certificate is that of {found}: give each region its own bundle"
    )]
    Impostor {
        /// The region the caller named.
        claimed: RegionName,
        /// The names in its certificate.
        found: String,
    },
    /// One of the two does not believe the other's certificate.
    #[error("the caller {0}")]
    Distrust(String),
    /// The caller's region was evicted.
    #[error("{from} does not belong to this planet any more: {why}")]
    Evicted {
        /// The calling region.
        from: RegionName,
        /// When it was evicted, and what to do.
        why: String,
    },
    /// A purpose this release does not know.
    #[error("unknown purpose {0}: this geode may be older than the caller")]
    Purpose(u8),
}

/// What a whole and acceptable preface says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Opening {
    pub(crate) from: RegionName,
    pub(crate) purpose: Purpose,
    pub(crate) version: u16,
}

/// The preface that `caller` sends to `to`. Names are cut at 255 bytes, which no valid name reaches.
pub(crate) fn encode(caller: &Identity, to: &RegionName, purpose: Purpose) -> Vec<u8> {
    let mut body = Vec::with_capacity(64);
    for name in [caller.planet.as_str(), caller.region.as_str(), to.as_str()] {
        let name = &name.as_bytes()[..name.len().min(255)];
        body.push(name.len() as u8);
        body.extend_from_slice(name);
    }
    body.push(purpose.code());
    let mut preface = Vec::with_capacity(HEAD_LEN + body.len());
    preface.extend_from_slice(MAGIC);
    preface.extend_from_slice(&OLDEST_VERSION.to_be_bytes());
    preface.extend_from_slice(&VERSION.to_be_bytes());
    preface.extend_from_slice(&(body.len() as u16).to_be_bytes());
    preface.extend_from_slice(&body);
    preface
}

/// The head of a preface, checked: the version to speak and the length of the body.
///
/// # Errors
/// [`Refusal::Garbage`] or [`Refusal::Version`].
pub(crate) fn read_head(head: &[u8; HEAD_LEN]) -> Result<(u16, usize), Refusal> {
    let [magic @ .., o0, o1, n0, n1, l0, l1] = head;
    let (oldest, newest) = (u16::from_be_bytes([*o0, *o1]), u16::from_be_bytes([*n0, *n1]));
    let length = usize::from(u16::from_be_bytes([*l0, *l1]));
    if magic != MAGIC || oldest > newest || length > BODY_LIMIT {
        return Err(Refusal::Garbage);
    }
    let version = newest.min(VERSION);
    if version < oldest.max(OLDEST_VERSION) {
        return Err(Refusal::Version { oldest, newest });
    }
    Ok((version, length))
}

/// The body of a preface, checked against who the acceptor is and whom it knows.
///
/// # Errors
/// The first [`Refusal`] that applies.
pub(crate) fn read_body(
    mut body: &[u8],
    version: u16,
    acceptor: &Identity,
    peers: &BTreeMap<RegionName, Peer>,
) -> Result<Opening, Refusal> {
    let planet = take_name(&mut body)?;
    let from = take_name(&mut body)?;
    let to = take_name(&mut body)?;
    let &code = body.first().ok_or(Refusal::Garbage)?;
    if planet != acceptor.planet {
        return Err(Refusal::Planet { theirs: planet.to_owned(), ours: acceptor.planet.clone() });
    }
    if to != acceptor.region.as_str() {
        return Err(Refusal::Region { wanted: to.to_owned(), ours: acceptor.region.clone() });
    }
    if from == acceptor.region.as_str() {
        return Err(Refusal::Own(acceptor.region.clone()));
    }
    let (from, peer) = peers.get_key_value(from).ok_or_else(|| Refusal::Stranger(from.to_owned()))?;
    let (from, purpose) = (from.clone(), Purpose::from_code(code).ok_or(Refusal::Purpose(code))?);
    if let Some(why) = peer.evicted.clone().filter(|_| purpose != Purpose::Replication) {
        return Err(Refusal::Evicted { from, why });
    }
    Ok(Opening { from, purpose, version })
}

fn take_name<'a>(body: &mut &'a [u8]) -> Result<&'a str, Refusal> {
    let (&length, rest) = body.split_first().ok_or(Refusal::Garbage)?;
    let (name, rest) = rest.split_at_checked(usize::from(length)).ok_or(Refusal::Garbage)?;
    *body = rest;
    let name = std::str::from_utf8(name).map_err(|_| Refusal::Garbage)?;
    // Names end up in logs and in error texts: a control character has no business there.
    if name.is_empty() || name.chars().any(char::is_control) { Err(Refusal::Garbage) } else { Ok(name) }
}

/// The acceptor's answer: the version both speak, or the refusal.
pub(crate) fn encode_answer(answer: Result<u16, &Refusal>) -> Vec<u8> {
    let (verdict, version, reason) = match answer {
        Ok(version) => (0, version, String::new()),
        Err(refusal) => (1, 0, refusal.to_string()),
    };
    let reason = &reason.as_bytes()[..reason.len().min(REASON_LIMIT)];
    let mut bytes = Vec::with_capacity(ANSWER_LEN + reason.len());
    bytes.extend_from_slice(MAGIC);
    bytes.push(verdict);
    bytes.extend_from_slice(&u16::to_be_bytes(version));
    bytes.extend_from_slice(&(reason.len() as u16).to_be_bytes());
    bytes.extend_from_slice(reason);
    bytes
}

/// What the fixed part of an answer says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Accepted: both sides speak this version.
    Accepted(u16),
    /// Refused: a reason of this many bytes follows.
    Refused(usize),
}

/// Reads the fixed part of an answer; `None` if no geode answered, or one that chose a version nobody offered.
pub(crate) fn read_answer(bytes: &[u8; ANSWER_LEN]) -> Option<Answer> {
    let [magic @ .., verdict, v0, v1, l0, l1] = bytes;
    let version = u16::from_be_bytes([*v0, *v1]);
    let length = usize::from(u16::from_be_bytes([*l0, *l1]));
    match verdict {
        _ if magic != MAGIC || length > REASON_LIMIT => None,
        0 if (OLDEST_VERSION..=VERSION).contains(&version) => Some(Answer::Accepted(version)),
        1 => Some(Answer::Refused(length)),
        _ => None,
    }
}

/// A refusal's reason as one printable line, whatever the other side sent.
pub(crate) fn reason_text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn region(name: &str) -> RegionName {
        name.parse().unwrap()
    }

    fn identity(planet: &str, name: &str) -> Identity {
        Identity { planet: planet.to_owned(), region: region(name) }
    }

    fn read(bytes: &[u8], acceptor: &Identity) -> Result<Opening, Refusal> {
        let (head, body) = bytes.split_first_chunk().ok_or(Refusal::Incomplete)?;
        let (version, length) = read_head(head)?;
        let body = body.get(..length).ok_or(Refusal::Incomplete)?;
        let evicted = Some("evicted at noon".to_owned());
        let peers = [("eu-west-1", None), ("us-east-1", None), ("me-south-1", evicted)];
        let peer = |evicted| Peer { address: None, evicted };
        let peers = peers.into_iter().map(|(name, evicted)| (region(name), peer(evicted)));
        read_body(body, version, acceptor, &peers.collect())
    }

    #[test]
    fn version_1_is_these_bytes() {
        let preface = encode(&identity("acme", "eu-west-1"), &region("us-east-1"), Purpose::Gossip);
        let golden: &[u8] = b"GEODELNK\x00\x01\x00\x01\x00\x1a\x04acme\x09eu-west-1\x09us-east-1\x03";
        assert_eq!(preface, golden);
        assert_eq!(encode_answer(Ok(1)), b"GEODELNK\x00\x00\x01\x00\x00");
        let refused = encode_answer(Err(&Refusal::Incomplete));
        assert_eq!(refused, b"GEODELNK\x01\x00\x00\x00\x24the preface was not complete in time".as_slice());
    }

    #[test]
    fn every_purpose_is_read_back() {
        for purpose in Purpose::ALL {
            let preface = encode(&identity("acme", "eu-west-1"), &region("us-east-1"), purpose);
            let opening = read(&preface, &identity("acme", "us-east-1")).unwrap();
            assert_eq!(opening, Opening { from: region("eu-west-1"), purpose, version: 1 });
        }
    }

    #[test]
    fn a_newer_caller_that_still_speaks_version_1_is_understood() {
        let mut preface = encode(&identity("acme", "eu-west-1"), &region("us-east-1"), Purpose::Hop);
        preface[11] = 9; // newest
        preface[13] += 3; // a longer body
        preface.extend_from_slice(b"new");
        assert_eq!(read(&preface, &identity("acme", "us-east-1")).unwrap().version, VERSION);
        preface[9] = 2; // oldest: version 1 is gone
        assert_eq!(
            read(&preface, &identity("acme", "us-east-1")),
            Err(Refusal::Version { oldest: 2, newest: 9 })
        );
    }

    #[test]
    fn wrong_callers_are_told_why() {
        let us = identity("acme", "us-east-1");
        let from_eu = |to: &str| encode(&identity("acme", "eu-west-1"), &region(to), Purpose::Hop);
        let refusals = [
            read(&encode(&identity("other", "eu-west-1"), &region("us-east-1"), Purpose::Hop), &us),
            read(&from_eu("ap-southeast-2"), &us),
            read(&encode(&us, &region("us-east-1"), Purpose::Hop), &us),
            read(&encode(&identity("acme", "sa-east-1"), &region("us-east-1"), Purpose::Hop), &us),
            read(&[from_eu("us-east-1").split_last().unwrap().1, &[77]].concat(), &us),
            read(&encode(&identity("acme", "me-south-1"), &region("us-east-1"), Purpose::Gossip), &us),
            read(b"GET / HTTP/1.1\r\n\r\n", &us),
        ];
        let lines: Vec<String> = refusals.into_iter().map(|r| r.unwrap_err().to_string()).collect();
        assert_eq!(
            lines.join("\n"),
            "the caller belongs to planet \"other\", this geode to planet \"acme\": check both planet.toml\n\
             the caller wants region ap-southeast-2, but this is us-east-1: check `link` in planet.toml\n\
             the caller says it is us-east-1 as well: two geodes run as one region\n\
             the caller says it is sa-east-1, which is no region of this planet: check planet.toml here\n\
             unknown purpose 77: this geode may be older than the caller\n\
             me-south-1 does not belong to this planet any more: evicted at noon\n\
             the caller does not speak geode's link protocol: point it at another port"
        );
        let to_be_told = encode(&identity("acme", "me-south-1"), &region("us-east-1"), Purpose::Replication);
        assert_eq!(read(&to_be_told, &us).unwrap().from, region("me-south-1"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_read_without_panic(body in proptest::collection::vec(any::<u8>(), 0..80)) {
            let acceptor = identity("acme", "us-east-1");
            let peers = [(region("eu-west-1"), Peer { address: None, evicted: None })].into();
            if let Ok(opening) = read_body(&body, 1, &acceptor, &peers) {
                prop_assert_eq!(opening.from, region("eu-west-1"));
            }
        }

        #[test]
        fn a_cut_or_bent_preface_never_passes_as_another_region(at in 14usize..40, byte in any::<u8>()) {
            let mut preface = encode(&identity("acme", "eu-west-1"), &region("us-east-1"), Purpose::Hop);
            preface[at] = byte;
            if let Ok(opening) = read(&preface, &identity("acme", "us-east-1")) {
                prop_assert_eq!(opening.from, region("eu-west-1"));
            }
        }
    }
}

//! What the regions of a planet agree on about their own life, as rows of the reserved system database.
//!
//! Facts travel as ordinary rows, so the log, snapshots, digests and comparisons carry them for nothing, and every region
//! comes to know all of them. They stand as fields of two hashes, in text that people can read too; a field is written
//! under the rules of any hash, so the latest word on it stands.
//!
//! ```text
//! hash       field                    value
//! actors     closed ACTOR             (empty)
//! actors     report ACTOR REGION      VIEW SEQUENCE
//! actors     end ACTOR                SEQUENCE
//! regions    REGION                   member | evicted, and what else is said of it
//! ```

use std::str::FromStr;
use std::sync::Arc;

use geode_crdt::ActorId;

const ACTORS: &[u8] = b"actors";
const REGIONS: &[u8] = b"regions";

/// The names of the keys that hold facts.
pub const KEYS: [&[u8]; 2] = [ACTORS, REGIONS];

/// Who counted as what when somebody made a report: the members and the closed actors, as a sum of stable hashes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ViewId(pub u64);

/// One thing that all regions come to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// The actor will never write again.
    Closed {
        /// Who.
        actor: ActorId,
    },
    /// So much of a closed actor's stream a region held, and goes beyond it only as far as another member does.
    Report {
        /// Whose stream.
        actor: ActorId,
        /// Who says it.
        region: Arc<str>,
        /// What the region knew then.
        view: ViewId,
        /// The last entry that it held, 0 if none.
        upto: u64,
    },
    /// Every member holds the closed actor's stream up to here, and nobody will ever hold more.
    End {
        /// Whose stream.
        actor: ActorId,
        /// Its last entry, 0 if there is none.
        at: u64,
    },
    /// Whether a region belongs to the planet.
    Member {
        /// Which region.
        region: Arc<str>,
        /// Whether it was evicted.
        evicted: bool,
        /// What whoever assembles geodes says of it: where it is and how it is reached. Of no meaning here.
        details: Arc<str>,
    },
}

impl Fact {
    /// The name of the key that holds it.
    pub const fn key(&self) -> &'static [u8] {
        match self {
            Self::Closed { .. } | Self::Report { .. } | Self::End { .. } => ACTORS,
            Self::Member { .. } => REGIONS,
        }
    }

    /// Field and value.
    pub fn to_field(&self) -> (Vec<u8>, Vec<u8>) {
        let (field, value) = match self {
            Self::Closed { actor } => (format!("closed {actor}"), String::new()),
            Self::Report { actor, region, view, upto } => {
                (format!("report {actor} {region}"), format!("{:016x} {upto}", view.0))
            }
            Self::End { actor, at } => (format!("end {actor}"), at.to_string()),
            Self::Member { region, evicted, details } => {
                let standing = if *evicted { "evicted" } else { "member" };
                let space = if details.is_empty() { "" } else { " " };
                (region.to_string(), format!("{standing}{space}{details}"))
            }
        };
        (field.into_bytes(), value.into_bytes())
    }

    /// What a field of a key of the system database says; `None` if it is nothing that this release knows.
    pub fn parse(key: &[u8], field: &[u8], value: &[u8]) -> Option<Self> {
        let (field, value) = (std::str::from_utf8(field).ok()?, std::str::from_utf8(value).ok()?);
        if key == REGIONS {
            let (standing, details) = value.split_once(' ').unwrap_or((value, ""));
            let evicted = match standing {
                "evicted" => true,
                "member" => false,
                _ => return None,
            };
            return Some(Self::Member { region: field.into(), evicted, details: details.into() });
        }
        let mut words = field.split(' ');
        let (what, actor) = (words.next()?, ActorId::from_str(words.next()?).ok()?);
        let fact = match (key, what, words.next()) {
            (ACTORS, "closed", None) => Self::Closed { actor },
            (ACTORS, "end", None) => Self::End { actor, at: value.parse().ok()? },
            (ACTORS, "report", Some(region)) => {
                let (view, upto) = value.split_once(' ')?;
                let view = ViewId(u64::from_str_radix(view, 16).ok()?);
                Self::Report { actor, region: region.into(), view, upto: upto.parse().ok()? }
            }
            _ => return None,
        };
        words.next().is_none().then_some(fact)
    }
}

//! What an operator changes of the planet's regions through any geode: add, evict, let in again.

use std::net::IpAddr;

use geode_crdt::HybridTime;
use geode_embedded::{EmbeddedHandle, MembershipError};
use geode_planet::{Coordinates, HostPort, Place, Planet, RegionName};
use serde::{Deserialize, Serialize};

use super::record::is_capacity;
use super::{Record, is_evicted};
use crate::geode::Geode;

/// As in planet.toml: every region links to every other, and the mesh has a practical end.
const MAX_REGIONS: usize = 64;

/// A region to be added, as an operator names it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Addition {
    pub(crate) region: String,
    pub(crate) link: String,
    pub(crate) public: Vec<String>,
    /// A known place or `LATITUDE,LONGITUDE`; without one, the name is the place.
    #[serde(default)]
    pub(crate) place: Option<String>,
    #[serde(default)]
    pub(crate) capacity: Option<f64>,
}

/// What was done, and what the operator is to do next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Change {
    pub(crate) region: String,
    pub(crate) done: String,
    /// What stands for the region in planet.toml, if it belongs there.
    pub(crate) section: Option<String>,
    pub(crate) next: Vec<String>,
}

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChangeError {
    /// One line for each mistake.
    #[error("{0}")]
    Wrong(String),
    #[error("{0}")]
    Store(String),
}

impl From<MembershipError> for ChangeError {
    fn from(error: MembershipError) -> Self {
        match error {
            MembershipError::Impossible(why) => Self::Wrong(why),
            MembershipError::NeedsForce(why) => Self::Wrong(format!(
                "{why}. If it must be, say so with --force: what only those hold that are evicted is lost then, and two \
                 halves of a planet that evict each other never come together again"
            )),
            MembershipError::NotWritten | MembershipError::Stopped(_) => Self::Store(error.to_string()),
        }
    }
}

/// Adds a region to the planet.
pub(crate) async fn add(geode: &Geode, addition: &Addition) -> Result<Change, ChangeError> {
    let store = writable(geode)?;
    let standing = geode.standing.borrow().clone();
    let (name, record) = check(addition, &standing, |name| {
        let rows = geode.rows();
        let standing = rows.get(name.as_str()).filter(|standing| standing.evicted)?;
        Some(format!("{name} was {}", evicted_words(name, standing.since)))
    })
    .map_err(|mistakes| ChangeError::Wrong(mistakes.join("\n")))?;
    store.admit(name.as_str(), &record.to_text()).await?;
    let planet = &geode.planet.name;
    Ok(Change {
        region: name.to_string(),
        done: format!("{name} belongs to planet {planet} now"),
        section: Some(record.section(&name)),
        next: vec![
            "write this section into planet.toml of every region, for whoever reads it and for new geodes; no restart \
             is needed"
                .into(),
            "where planet.toml, ca.pem and ca.key are, make its bundle: geode init".into(),
            format!("copy that planet.toml and {name}.bundle to its machine"),
            format!("start it there: geode run --config planet.toml --region {name}"),
        ],
    })
}

/// Evicts a region: it is not in touch and most of the others are, or the operator forces it.
pub(crate) async fn evict(geode: &Geode, name: &str, force: bool) -> Result<Change, ChangeError> {
    let store = writable(geode)?;
    let region = {
        let standing = geode.standing.borrow();
        let region = standing.regions.get(name).filter(|region| region.name != geode.region);
        region.cloned().ok_or_else(|| ChangeError::Wrong(not_evictable(geode, name, &standing)))?
    };
    let details = Record::of(&region).map(|record| record.to_text()).unwrap_or_default();
    store.evict(name, force, &details).await?;
    Ok(Change {
        region: name.to_owned(),
        done: format!("{name} does not belong to planet {} any more", geode.planet.name),
        section: None,
        next: vec![
            "stop its geode if it still runs: what it takes before it hears of this is lost, then it refuses writes".into(),
            format!("remove [regions.{name}] from planet.toml of every region; no restart is needed"),
            format!("to let it in again later: geode region rejoin {name}"),
        ],
    })
}

/// Lets an evicted region in again, as new.
pub(crate) async fn rejoin(geode: &Geode, name: &str) -> Result<Change, ChangeError> {
    let store = writable(geode)?;
    let rows = geode.rows();
    let standing = rows.get(name).filter(|standing| standing.evicted).ok_or_else(|| {
        let what =
            if geode.standing.borrow().regions.contains_key(name) { "was not evicted" } else { "is unknown" };
        ChangeError::Wrong(format!("{name} {what}; `geode status` shows the regions of this planet"))
    })?;
    let (Ok(region), Some(record)) = (name.parse::<RegionName>(), Record::parse(&standing.details)) else {
        return Err(ChangeError::Wrong(format!(
            "nobody knows the link of {name} any more: add it under another name"
        )));
    };
    store.readmit(name).await?;
    Ok(Change {
        region: name.to_owned(),
        done: format!("{name} belongs to planet {} again", geode.planet.name),
        section: Some(record.section(&region)),
        next: vec![
            format!(
                "on the machine of {name}, move its data directory away: it comes as new, and the others refuse what it held"
            ),
            format!("start it there: geode run --config planet.toml --region {name}"),
            "write this section into planet.toml where it is missing; no restart is needed".into(),
        ],
    })
}

/// What a region is told that was evicted, and whoever asks for it.
pub(crate) fn evicted_words(name: &RegionName, since: HybridTime) -> String {
    format!("evicted at {}; `geode region rejoin {name}` lets it in again as new", utc(since))
}

/// The store of a geode that may change the planet.
fn writable(geode: &Geode) -> Result<&EmbeddedHandle, ChangeError> {
    let wrong = |why: String| ChangeError::Wrong(why);
    if geode.planet.regions.len() == 1 {
        return Err(wrong(format!(
            "{} runs alone, without links: write both regions into planet.toml and restart it",
            geode.region
        )));
    }
    if is_evicted(&geode.rows(), &geode.region) {
        return Err(wrong(format!(
            "{} was evicted itself: ask a region that belongs to the planet",
            geode.region
        )));
    }
    geode.store.get().ok_or_else(|| ChangeError::Store("its store is reading its log: ask again".into()))
}

fn not_evictable(geode: &Geode, name: &str, planet: &Planet) -> String {
    if geode.region.as_str() == name {
        return format!("{name} is the region that was asked: ask another one with --admin");
    }
    if let Some(standing) = geode.rows().get(name).filter(|standing| standing.evicted) {
        return format!("{name} was evicted at {} already", utc(standing.since));
    }
    let regions: Vec<&str> = planet.regions.keys().map(RegionName::as_str).collect();
    format!("{name} is no region of this planet; it has {}", regions.join(", "))
}

/// The region that is meant, or every mistake, a line each.
fn check(
    addition: &Addition,
    planet: &Planet,
    evicted: impl Fn(&RegionName) -> Option<String>,
) -> Result<(RegionName, Record), Vec<String>> {
    let mut mistakes = Vec::new();
    let mut keep = |mistake: String| mistakes.push(mistake);
    let name = addition.region.parse::<RegionName>().map_err(|error| keep(error.to_string())).ok();
    if let Some(name) = name.as_ref() {
        if planet.regions.contains_key(name) {
            keep(format!("{name} is a region of this planet already"));
        } else if let Some(why) = evicted(name) {
            keep(why);
        } else if planet.regions.len() >= MAX_REGIONS {
            keep(format!("the planet has {MAX_REGIONS} regions, which is all it may have"));
        }
    }
    let link = match addition.link.parse::<HostPort>() {
        Ok(link) => {
            let twin = planet.regions.values().find(|region| region.link.as_ref() == Some(&link));
            if let Some(twin) = twin {
                keep(format!(
                    "--link: {} has the same link; give each region an address of its own",
                    twin.name
                ));
            }
            Some(link)
        }
        Err(error) => {
            keep(format!("--link: {:?} is {error}", addition.link));
            None
        }
    };
    let mut public = Vec::new();
    for text in &addition.public {
        match text.trim().parse::<IpAddr>() {
            Ok(address) => public.push(address),
            Err(_) => keep(format!("--public: {text:?} is no IP address; write 203.0.113.10")),
        }
    }
    let place = match place(addition.place.as_deref(), &addition.region) {
        Ok(place) => Some(place),
        Err(mistake) => {
            keep(mistake);
            None
        }
    };
    let capacity = addition.capacity.unwrap_or(1.0);
    if !is_capacity(capacity) {
        keep(format!("--capacity: {capacity} is no capacity; write a number above 0"));
    }
    match (name, link, place) {
        (Some(name), Some(link), Some(place)) if mistakes.is_empty() => {
            Ok((name, Record { link, public, place, capacity }))
        }
        _ => Err(mistakes),
    }
}

fn place(place: Option<&str>, name: &str) -> Result<Place, String> {
    let Some(text) = place else {
        return Place::find(name).map_err(|_| {
            format!("--place: {name:?} is not a known place; write --place sydney or --place=-33.45,-70.67")
        });
    };
    let Some((latitude, longitude)) = text.split_once(',') else {
        return Place::find(text).map_err(|unknown| format!("--place: {unknown}"));
    };
    let number = |text: &str| text.trim().parse::<f64>().ok();
    let coordinates = number(latitude).zip(number(longitude));
    let coordinates = coordinates.and_then(|(latitude, longitude)| Coordinates::new(latitude, longitude));
    let coordinates = coordinates.ok_or_else(|| {
        format!("--place: {text:?} is no point; write LATITUDE,LONGITUDE in degrees, like -33.45,-70.67")
    })?;
    Ok(Place { name: name.to_owned(), coordinates })
}

/// A time as RFC 3339 in UTC, to the second. The calendar is Howard Hinnant's `civil_from_days`.
fn utc(time: HybridTime) -> String {
    let seconds = time.0 / 1_000_000;
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::regions::tests::FILE;

    fn addition() -> Addition {
        Addition {
            region: "sa-east-1".into(),
            link: "10.0.3.5:7400".into(),
            public: vec!["192.0.2.10".into()],
            place: None,
            capacity: None,
        }
    }

    fn checked(addition: &Addition) -> Result<(RegionName, Record), Vec<String>> {
        let planet = Planet::parse(FILE, "planet.toml").unwrap();
        check(addition, &planet, |name| (name.as_str() == "me-south-1").then(|| "it was evicted".to_owned()))
    }

    #[test]
    fn what_is_not_said_has_a_default() {
        let (name, record) = checked(&addition()).unwrap();
        assert_eq!(name.as_str(), "sa-east-1");
        assert_eq!((record.place, record.capacity), (Place::find("sa-east-1").unwrap(), 1.0));
        let at = Addition { place: Some("-33.45, -70.67".into()), ..addition() };
        assert_eq!(checked(&at).unwrap().1.place.coordinates, Coordinates::new(-33.45, -70.67).unwrap());
    }

    #[test]
    fn all_mistakes_are_named_at_once() {
        let wrong = Addition {
            region: "eu-west-1".into(),
            link: "10.0.1.5:7400".into(),
            public: vec!["192.0.2.10".into(), "192.0.2".into()],
            place: Some("sidney".into()),
            capacity: Some(0.0),
        };
        insta::assert_snapshot!(checked(&wrong).unwrap_err().join("\n"), @r#"
        eu-west-1 is a region of this planet already
        --link: us-east-1 has the same link; give each region an address of its own
        --public: "192.0.2" is no IP address; write 203.0.113.10
        --place: "sidney" is not a known place; did you mean "sydney"?
        --capacity: 0 is no capacity; write a number above 0
        "#);
        let wrong = Addition { region: "Depot".into(), link: "nowhere".into(), ..addition() };
        insta::assert_snapshot!(checked(&wrong).unwrap_err().join("\n"), @r#"
        "Depot" is not a region name; use 1 to 32 characters of a-z, 0-9 and "-", like "eu-west-1"
        --link: "nowhere" is not HOST:PORT; write it like "10.0.2.5:7400"
        --place: "Depot" is not a known place; write --place sydney or --place=-33.45,-70.67
        "#);
        let evicted = Addition { region: "me-south-1".into(), place: Some("91,0".into()), ..addition() };
        insta::assert_snapshot!(checked(&evicted).unwrap_err().join("\n"), @r#"
        it was evicted
        --place: "91,0" is no point; write LATITUDE,LONGITUDE in degrees, like -33.45,-70.67
        "#);
    }

    #[test]
    fn times_are_read_by_people() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_764_000_000, "2025-11-24T16:00:00Z"),
            (4_102_444_799, "2099-12-31T23:59:59Z"),
        ] {
            assert_eq!(utc(HybridTime(seconds * 1_000_000)), text);
        }
    }
}

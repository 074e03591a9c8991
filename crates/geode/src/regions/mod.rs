//! Which regions the planet has: what `planet.toml` says, overlaid by what operators said while the planet ran.
//!
//! `geode region add | evict | rejoin` write a row for the region into the store's system database. So every geode comes to
//! know it as it comes to know any write, and it survives restarts; a row wins over the section in `planet.toml`, which is
//! where a new geode begins and what people read. Here rows become the [`Planet`] that router, gossip and links go by.

pub(crate) mod change;
mod drift;
mod record;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, PoisonError};

use geode_embedded::Regions;
use geode_link::Peer;
use geode_planet::{Planet, RegionName, Settings};

use crate::geode::Geode;
use drift::drift;
pub(crate) use record::Record;

/// The planet as it stands, for the geode of region `own`: the file's regions overlaid by `rows`. A region that was evicted
/// is alone as far as it knows.
pub(crate) fn standing(file: &Planet, rows: &Regions, own: &RegionName) -> Planet {
    let mut regions = file.regions.clone();
    for (name, standing) in rows {
        let Ok(name) = name.parse::<RegionName>() else { continue };
        if standing.evicted {
            regions.remove(&name);
        } else if let Some(record) = Record::parse(&standing.details) {
            regions.insert(name.clone(), record.region(name, elsewhere()));
        }
    }
    if is_evicted(rows, own) {
        regions.retain(|name, _| name == own);
    }
    if let (false, Some(region)) = (regions.contains_key(own), file.region(own)) {
        regions.insert(own.clone(), region.clone());
    }
    Planet { regions, ..file.clone() }
}

/// The other regions as links know them: evicted ones too, so that they can be told.
pub(crate) fn peers(file: &Planet, rows: &Regions, own: &RegionName) -> BTreeMap<RegionName, Peer> {
    let of_file = file.regions.values().map(|region| (region.name.clone(), region.link.clone(), None));
    let of_rows = rows.iter().filter_map(|(name, standing)| {
        let name = name.parse::<RegionName>().ok()?;
        let link = Record::parse(&standing.details).map(|record| record.link);
        let why = standing.evicted.then(|| change::evicted_words(&name, standing.since));
        Some((name, link, why))
    });
    let all = of_file.chain(of_rows).filter(|(name, ..)| name != own);
    all.map(|(name, address, evicted)| (name, Peer { address, evicted })).collect()
}

/// Whether a region belongs to the planet no longer.
pub(crate) fn is_evicted(rows: &Regions, region: &RegionName) -> bool {
    rows.get(region.as_str()).is_some_and(|standing| standing.evicted)
}

/// What a region binds and where its data is: only its own file tells, and nobody else needs it.
fn elsewhere() -> Settings {
    let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    Settings {
        link_listen: None,
        redis_listen: nowhere,
        door_listen: Vec::new(),
        admin_listen: nowhere,
        data: std::path::PathBuf::new(),
        retention_bytes: 0,
        memory_bytes: None,
    }
}

impl Geode {
    /// What operators said of regions; nothing until the log is read.
    pub(crate) fn rows(&self) -> Arc<Regions> {
        self.store.get().map(|store| Arc::clone(&store.regions().borrow())).unwrap_or_default()
    }

    /// Goes by the planet as it stands now: links, gossip and router.
    pub(crate) fn follow_rows(&self, rows: &Regions) {
        self.dialer.set_peers(peers(&self.planet, rows, &self.region));
        let standing = standing(&self.planet, rows, &self.region);
        self.gossip.set_peers(standing.regions.keys().filter(|peer| **peer != self.region).cloned());
        *self.config_digest.write().unwrap_or_else(PoisonError::into_inner) = standing.digest();
        self.standing.send_replace(Arc::new(standing));
        self.gossip.tell(self.state());
    }

    /// Where planet.toml, as it is on disk now, is behind the planet.
    pub(crate) fn file_drift(&self) -> Vec<String> {
        let name = self.config_file.display().to_string();
        let text = std::fs::read_to_string(&self.config_file);
        match text.map(|text| Planet::parse(&text, &name)) {
            Ok(Ok(file)) => drift(&file, &self.rows(), &self.region),
            Ok(Err(errors)) => vec![format!("planet.toml of {} has mistakes by now:\n{errors}", self.region)],
            Err(error) => vec![format!("planet.toml of {} cannot be read any more: {error}", self.region)],
        }
    }

    /// The planet's other regions as they stand now.
    pub(crate) fn other_regions(&self) -> Vec<RegionName> {
        let standing = self.standing.borrow();
        standing.regions.keys().filter(|peer| **peer != self.region).cloned().collect()
    }

    /// Completes when `region` does not belong to the planet, or does not any more.
    pub(crate) async fn gone(&self, region: &RegionName) {
        // The sender lives as long as the geode.
        let _ = self.standing.subscribe().wait_for(|planet| !planet.regions.contains_key(region)).await;
    }
}

/// Goes by every change of the regions for as long as it is polled.
pub(crate) async fn follow(geode: Arc<Geode>) {
    let Some(store) = geode.store.get() else { return };
    let mut rows = store.regions();
    loop {
        let now = Arc::clone(&rows.borrow_and_update());
        geode.follow_rows(&now);
        if rows.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use geode_crdt::HybridTime;
    use geode_embedded::Standing;

    pub(crate) const FILE: &str = r#"
format = 1
[planet]
name = "acme"
[regions.us-east-1]
public = ["203.0.113.10"]
link = "10.0.1.5:7400"
[regions.eu-west-1]
public = ["198.51.100.10"]
link = "10.0.2.5:7400"
"#;

    fn row(name: &str, evicted: bool, details: &str) -> (Arc<str>, Standing) {
        (name.into(), Standing { since: HybridTime(1_764_000_000_000_000), evicted, details: details.into() })
    }

    const DEPOT: &str = r#"{"format":1,"link":"10.0.3.5:7400","public":["192.0.2.10"],
        "place":{"name":"depot","latitude_deg":-33.45,"longitude_deg":-70.67},"capacity":0.5}"#;

    fn names(planet: &Planet) -> Vec<&str> {
        planet.regions.keys().map(RegionName::as_str).collect()
    }

    #[test]
    fn rows_win_over_the_file() {
        let file = Planet::parse(FILE, "planet.toml").unwrap();
        let us: RegionName = "us-east-1".parse().unwrap();
        let rows: Regions = [row("depot", false, DEPOT), row("eu-west-1", true, "")].into();
        let planet = standing(&file, &rows, &us);
        assert_eq!(names(&planet), ["depot", "us-east-1"]);
        let depot = &planet.regions["depot"];
        assert_eq!((depot.capacity, depot.place.name.as_str()), (0.5, "depot"));
        assert_eq!(depot.link.as_ref().unwrap().to_string(), "10.0.3.5:7400");
        let peers = peers(&file, &rows, &us);
        assert_eq!(peers["depot"].evicted, None);
        let why = peers["eu-west-1"].evicted.clone().unwrap();
        assert!(why.starts_with("evicted at 2025-11-24T16:00:00Z; `geode region rejoin eu-west-1`"), "{why}");
    }

    #[test]
    fn the_evicted_region_is_alone_and_a_file_with_the_same_regions_means_the_same() {
        let file = Planet::parse(FILE, "planet.toml").unwrap();
        let eu: RegionName = "eu-west-1".parse().unwrap();
        let rows: Regions = [row("eu-west-1", true, "")].into();
        assert_eq!(names(&standing(&file, &rows, &eu)), ["eu-west-1"]);
        let with_depot = format!(
            "{FILE}[regions.depot]\nplace = {{ lat = -33.45, lon = -70.67 }}\npublic = [\"192.0.2.10\"]\n\
             link = \"10.0.3.5:7400\"\ncapacity = 0.5\ndata = \"/srv\"\n"
        );
        let with_depot = Planet::parse(&with_depot, "planet.toml").unwrap();
        let rows: Regions = [row("depot", false, DEPOT)].into();
        let digest = |file: &Planet, own: &str| standing(file, &rows, &own.parse().unwrap()).digest();
        assert_eq!(digest(&file, "us-east-1"), digest(&with_depot, "depot"));
    }
}

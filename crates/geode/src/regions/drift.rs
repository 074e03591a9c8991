//! Where a geode's `planet.toml` no longer says what the planet knows, and what to write.

use geode_embedded::Regions;
use geode_planet::{Planet, RegionName};

use super::{Record, is_evicted};

/// What to change in the file of region `own`, a line or a section each. The rows win until then, so nothing is broken.
pub(crate) fn drift(file: &Planet, rows: &Regions, own: &RegionName) -> Vec<String> {
    if is_evicted(rows, own) {
        return Vec::new();
    }
    let known = rows.iter().filter_map(|(name, standing)| Some((name.parse::<RegionName>().ok()?, standing)));
    let lines = known.filter_map(|(name, standing)| {
        let record = Record::parse(&standing.details);
        match (file.region(&name), standing.evicted, record) {
            (Some(_), true, _) => Some(format!(
                "planet.toml of {own} still has {name}, which was evicted: remove [regions.{name}]"
            )),
            (None, false, Some(record)) => {
                let section = record.section(&name).replace('\n', "\n  ");
                Some(format!("planet.toml of {own} lacks {name}: add\n  {}", section.trim_end()))
            }
            (Some(region), false, Some(record)) if !same(Record::of(region).as_ref(), &record) => {
                let section = record.section(&name).replace('\n', "\n  ");
                Some(format!(
                    "planet.toml of {own} has {name} otherwise than the planet: write\n  {}",
                    section.trim_end()
                ))
            }
            _ => None,
        }
    });
    lines.collect()
}

/// Whether a section says what the record does; a place may be called by the region's name.
fn same(section: Option<&Record>, record: &Record) -> bool {
    section.is_some_and(|section| {
        let place = section.place.clone();
        section.place.coordinates == record.place.coordinates
            && *section == Record { place, ..record.clone() }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::regions::tests::FILE;
    use geode_crdt::HybridTime;
    use geode_embedded::Standing;

    #[test]
    fn every_difference_comes_with_what_to_write() {
        let file = Planet::parse(FILE, "planet.toml").unwrap();
        let own: RegionName = "us-east-1".parse().unwrap();
        let of = |name: &str| Record::of(&file.regions[name]).unwrap();
        let row = |name: &str, evicted, record: Record| {
            (name.into(), Standing { since: HybridTime(1), evicted, details: record.to_text().into() })
        };
        let moved = Record { link: "10.0.9.9:7400".parse().unwrap(), ..of("us-east-1") };
        let rows: Regions = [
            row("eu-west-1", true, of("eu-west-1")),
            row("sa-east-1", false, Record { capacity: 0.5, ..of("eu-west-1") }),
            row("us-east-1", false, moved),
        ]
        .into();
        insta::assert_snapshot!(drift(&file, &rows, &own).join("\n"), @r#"
        planet.toml of us-east-1 still has eu-west-1, which was evicted: remove [regions.eu-west-1]
        planet.toml of us-east-1 lacks sa-east-1: add
          [regions.sa-east-1]
          place = "eu-west-1"
          public = ["198.51.100.10"]
          link = "10.0.2.5:7400"
          capacity = 0.5
        planet.toml of us-east-1 has us-east-1 otherwise than the planet: write
          [regions.us-east-1]
          public = ["203.0.113.10"]
          link = "10.0.9.9:7400"
        "#);
        let same: Regions = [row("us-east-1", false, of("us-east-1"))].into();
        assert_eq!(drift(&file, &same, &own), [""; 0]);
    }
}

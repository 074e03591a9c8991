//! What is said of a region that was added while the planet ran: the part of its section that others need.

use std::net::IpAddr;

use geode_planet::{Coordinates, HostPort, Place, Region, RegionName, Settings};
use serde::{Deserialize, Serialize};

/// The version of the record. A geode that finds a later one leaves the region as its file has it.
const FORMAT: u32 = 1;

/// A region as the others know it. Stands as JSON in its row.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Record {
    pub(crate) link: HostPort,
    pub(crate) public: Vec<IpAddr>,
    pub(crate) place: Place,
    pub(crate) capacity: f64,
}

#[derive(Serialize, Deserialize)]
struct Written {
    format: u32,
    link: String,
    public: Vec<IpAddr>,
    place: WrittenPlace,
    capacity: f64,
}

#[derive(Serialize, Deserialize)]
struct WrittenPlace {
    name: String,
    #[serde(flatten)]
    coordinates: Coordinates,
}

impl Record {
    /// What is known of one of the planet's regions; none if it has no link.
    pub(crate) fn of(region: &Region) -> Option<Self> {
        let (public, place) = (region.public.clone(), region.place.clone());
        Some(Self { link: region.link.clone()?, public, place, capacity: region.capacity })
    }

    pub(crate) fn to_text(&self) -> String {
        let place = WrittenPlace { name: self.place.name.clone(), coordinates: self.place.coordinates };
        let (link, public, capacity) = (self.link.to_string(), self.public.clone(), self.capacity);
        let written = Written { format: FORMAT, link, public, place, capacity };
        // Serialising these types cannot fail: their keys are strings and their numbers finite.
        serde_json::to_string(&written).unwrap_or_default()
    }

    /// Reads what [`Self::to_text`] wrote; none for anything else.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let written: Written = serde_json::from_str(text).ok()?;
        let Coordinates { latitude_deg, longitude_deg } = written.place.coordinates;
        let coordinates = Coordinates::new(latitude_deg, longitude_deg)?;
        let place = Place { name: written.place.name, coordinates };
        let record = Self {
            link: written.link.parse().ok()?,
            public: written.public,
            place,
            capacity: written.capacity,
        };
        (written.format == FORMAT && is_capacity(record.capacity)).then_some(record)
    }

    pub(crate) fn region(self, name: RegionName, settings: Settings) -> Region {
        let Self { link, public, place, capacity } = self;
        Region { name, place, public, link: Some(link), capacity, settings }
    }

    /// The region's section of `planet.toml`.
    pub(crate) fn section(&self, name: &RegionName) -> String {
        let public: Vec<String> = self.public.iter().map(|ip| format!("\"{ip}\"")).collect();
        let mut section = format!("[regions.{name}]\n");
        if Place::find(name.as_str()).ok().as_ref() != Some(&self.place) {
            let Coordinates { latitude_deg, longitude_deg } = self.place.coordinates;
            section += &match Place::find(&self.place.name) {
                Ok(place) if place == self.place => format!("place = \"{}\"\n", place.name),
                _ => format!("place = {{ lat = {latitude_deg:?}, lon = {longitude_deg:?} }}\n"),
            };
        }
        section += &format!("public = [{}]\nlink = \"{}\"\n", public.join(", "), self.link);
        if self.capacity != 1.0 {
            section += &format!("capacity = {:?}\n", self.capacity);
        }
        section
    }
}

/// Whether a region can have this capacity.
pub(crate) fn is_capacity(capacity: f64) -> bool {
    capacity.is_finite() && capacity > 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(place: Place) -> Record {
        let public = vec!["192.0.2.10".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        Record { link: "10.0.3.5:7400".parse().unwrap(), public, place, capacity: 0.5 }
    }

    #[test]
    fn version_1_is_this_text() {
        let record = record(Place::find("sydney").unwrap());
        let golden = r#"{"format":1,"link":"10.0.3.5:7400","public":["192.0.2.10","2001:db8::1"],"place":{"name":"sydney","latitude_deg":-33.87,"longitude_deg":151.21},"capacity":0.5}"#;
        assert_eq!(record.to_text(), golden);
        assert_eq!(Record::parse(golden), Some(record));
        for wrong in
            ["", "{}", &golden.replace("\"format\":1", "\"format\":2"), &golden.replace("0.5", "-1.0")]
        {
            assert_eq!(Record::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn its_section_says_the_same_as_the_record() {
        let depot = Place { name: "depot".into(), coordinates: Coordinates::new(-33.45, -70.67).unwrap() };
        for place in [Place::find("sydney").unwrap(), Place::find("sa-east-1").unwrap(), depot] {
            for name in ["sa-east-1", "depot"] {
                let (name, record): (RegionName, _) = (name.parse().unwrap(), record(place.clone()));
                let mut place = record.place.clone();
                let text = format!("format = 1\n[planet]\nname = \"acme\"\n{}", record.section(&name));
                let planet = geode_planet::Planet::parse(&text, "planet.toml").unwrap();
                if Place::find(&place.name).is_err() {
                    place.name = name.to_string();
                }
                assert_eq!(Record::of(&planet.regions[&name]), Some(Record { place, ..record }), "{text}");
            }
        }
    }
}

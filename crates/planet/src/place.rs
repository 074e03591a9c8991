//! Places by name: cloud regions and cities.

mod known;

use std::collections::HashMap;
use std::fmt;
use std::sync::LazyLock;

use serde::Serialize;

use crate::Coordinates;
use crate::spelling::nearest;
use known::Row;

/// How far from a city people still call a place by its name: data centres stand at the edge of a metropolitan area.
const CITY_REACH_KM: f64 = 100.0;

/// Words inside the names of cities that stay small.
const PARTICLES: [&str; 2] = ["de", "es"];

/// A named point on the globe.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Place {
    /// The name of a known place, or whatever the one who described it calls it.
    pub name: String,
    /// Where it is.
    #[serde(flatten)]
    pub coordinates: Coordinates,
}

/// Nobody has told us where this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownPlace {
    /// The name that was asked for.
    pub name: String,
    /// The known place spelt most like it, if any is near.
    pub nearest: Option<&'static str>,
}

impl Place {
    /// Finds a cloud region of AWS, Azure or Google Cloud (`us-east-1`, `australiaeast`, `europe-west1`) or a city
    /// (`Hong Kong`, `sao-paulo`). Case does not matter; spaces, underscores and hyphens are the same.
    pub fn find(name: &str) -> Result<Self, UnknownPlace> {
        let wanted = normalise(name);
        match KNOWN.get_key_value(wanted.as_str()) {
            Some((known, coordinates)) => Ok(Self { name: (*known).into(), coordinates: *coordinates }),
            None => Err(UnknownPlace { name: name.into(), nearest: nearest(&wanted, KNOWN.keys().copied()) }),
        }
    }

    /// The known city nearest to a point, as people write it (`Hong Kong`, `Rio de Janeiro`); `None` if none is within
    /// 100 km. Cloud regions do not count. Linear in the table: for people, not for requests.
    pub fn nearest_city(coordinates: Coordinates) -> Option<String> {
        let cities = known::COUNTRIES.iter().flat_map(|(_, _, _, cities)| *cities);
        let distances = cities.map(|row| (coordinates.great_circle_km(row_coordinates(row)), row.0));
        let (distance_km, name) = distances.min_by(|(a, _), (b, _)| a.total_cmp(b))?;
        (distance_km <= CITY_REACH_KM).then(|| capitalised(name))
    }
}

/// Name and coordinates, as `geode explain` shows a place.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.coordinates)
    }
}

impl fmt::Display for UnknownPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a known place; ", self.name)?;
        match self.nearest {
            Some(nearest) => write!(f, "did you mean {nearest:?}?"),
            None => write!(f, "use a cloud region (\"us-east-1\") or a large city (\"sydney\")"),
        }
    }
}

impl std::error::Error for UnknownPlace {}

static KNOWN: LazyLock<HashMap<&'static str, Coordinates>> =
    LazyLock::new(|| rows().map(|row| (row.0, row_coordinates(row))).collect());

fn rows() -> impl Iterator<Item = &'static Row> {
    known::COUNTRIES.iter().flat_map(|(_, _, regions, cities)| regions.iter().chain(*cities))
}

const fn row_coordinates(&(_, latitude_deg, longitude_deg): &Row) -> Coordinates {
    Coordinates { latitude_deg, longitude_deg }
}

/// `ho-chi-minh-city` as `Ho Chi Minh City`.
fn capitalised(name: &str) -> String {
    let word = |word: &str| match word.split_at_checked(1) {
        Some((initial, rest)) if !PARTICLES.contains(&word) => initial.to_uppercase() + rest,
        _ => word.to_owned(),
    };
    name.split('-').map(word).collect::<Vec<_>>().join(" ")
}

fn normalise(name: &str) -> String {
    // Longer than any known name: no need to work on it.
    let name: String = name.trim().chars().take(64).collect();
    name.to_lowercase().replace([' ', '_'], "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_regions_and_cities_however_they_are_written() {
        for (written, found) in [
            ("us-east-1", "us-east-1"),
            ("AustraliaEast", "australiaeast"),
            ("europe-west1", "europe-west1"),
            ("Sydney", "sydney"),
            (" Sao_Paulo ", "sao-paulo"),
            ("Hong Kong", "hong-kong"),
            ("virginia", "virginia"),
        ] {
            assert_eq!(Place::find(written).map(|place| place.name).as_deref(), Ok(found));
        }
    }

    #[test]
    fn a_place_is_called_by_the_city_it_is_in_or_near() {
        let city = |name: &str| Place::nearest_city(Place::find(name).unwrap().coordinates);
        for (place, called) in [
            ("us-east-1", "Ashburn"),
            ("washington", "Washington"),
            ("eu-west-1", "Dublin"),
            ("australiaeast", "Sydney"),
            ("asia-east2", "Hong Kong"),
            ("brazilsoutheast", "Rio de Janeiro"),
            ("dar-es-salaam", "Dar es Salaam"),
            ("southafricanorth", "Johannesburg"), // 52 km away
        ] {
            assert_eq!(city(place).as_deref(), Some(called), "{place}");
        }
        assert_eq!(city("cn-northwest-1"), None, "Zhongwei is far from any city of the table");
    }

    #[test]
    fn a_city_reaches_100_km() {
        // One degree of latitude is 111.2 km; Perth has no neighbour in the table.
        let north_of_perth = |km: f64| Place::nearest_city(Coordinates::new(-31.95 + km / 111.2, 115.86)?);
        assert_eq!(north_of_perth(99.0).as_deref(), Some("Perth"));
        assert_eq!(north_of_perth(101.0), None);
    }

    #[test]
    fn every_city_is_called_by_its_own_name() {
        for row in known::COUNTRIES.iter().flat_map(|(_, _, _, cities)| *cities) {
            assert_eq!(Place::nearest_city(row_coordinates(row)), Some(capitalised(row.0)));
            assert!(!row.0.contains(|c: char| c.is_ascii_digit()), "{} is a cloud region", row.0);
        }
    }

    #[test]
    fn an_unknown_place_comes_with_the_nearest_spelling() {
        let message = |name: &str| Place::find(name).unwrap_err().to_string();
        assert_eq!(message("sidney"), "\"sidney\" is not a known place; did you mean \"sydney\"?");
        assert_eq!(message("us-est-1"), "\"us-est-1\" is not a known place; did you mean \"us-east-1\"?");
        assert_eq!(message("São Paulo"), "\"São Paulo\" is not a known place; did you mean \"sao-paulo\"?");
        assert!(
            message("xyzzyxyzzy")
                .ends_with("use a cloud region (\"us-east-1\") or a large city (\"sydney\")")
        );
        assert!(Place::find(&"ß".repeat(100_000)).is_err());
    }

    #[test]
    fn names_are_unique_normal_and_on_the_globe() {
        let rows: Vec<_> = rows().collect();
        assert_eq!(rows.len(), KNOWN.len(), "a name stands twice");
        assert!(rows.len() > 280);
        for &&(name, latitude_deg, longitude_deg) in &rows {
            assert!(normalise(name) == name && name.is_ascii(), "{name}");
            assert!(Coordinates::new(latitude_deg, longitude_deg).is_some(), "{name}");
        }
    }

    /// A slip of the keyboard in the table (a lost minus sign, swapped numbers) leaves the country's box.
    #[test]
    fn every_place_lies_in_its_country() {
        for (country, [south, north, west, east], regions, cities) in known::COUNTRIES {
            assert!(south < north && west < east && (north - south) * (east - west) < 4000.0, "{country}");
            for (name, latitude, longitude) in regions.iter().chain(*cities) {
                let inside = (south..=north).contains(&latitude) && (west..=east).contains(&longitude);
                assert!(inside, "{name} is not in {country}");
            }
        }
    }
}

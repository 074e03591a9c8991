//! Places by name: cloud regions and cities.

mod known;

use std::collections::HashMap;
use std::fmt;
use std::sync::LazyLock;

use serde::Serialize;

use crate::Coordinates;
use crate::spelling::nearest;

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

    /// The names of all known places, in order.
    pub fn known() -> Vec<&'static str> {
        let mut names: Vec<_> = KNOWN.keys().copied().collect();
        names.sort_unstable();
        names
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

static KNOWN: LazyLock<HashMap<&'static str, Coordinates>> = LazyLock::new(|| {
    let rows = known::COUNTRIES.iter().flat_map(|(_, _, places)| *places);
    rows.map(|&(name, latitude_deg, longitude_deg)| (name, Coordinates { latitude_deg, longitude_deg }))
        .collect()
});

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
        let rows: Vec<_> = known::COUNTRIES.iter().flat_map(|(_, _, places)| *places).collect();
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
        for (country, [south, north, west, east], places) in known::COUNTRIES {
            assert!(south < north && west < east && (north - south) * (east - west) < 4000.0, "{country}");
            for (name, latitude, longitude) in *places {
                let inside = (south..=north).contains(&latitude) && (west..=east).contains(&longitude);
                assert!(inside, "{name} is not in {country}");
            }
        }
    }
}

//! Points on the globe and the distance between them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Mean radius of the Earth in km (IUGG R1).
const EARTH_RADIUS_KM: f64 = 6371.0088;

/// A point on the globe, in degrees. North and east are positive.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Coordinates {
    /// −90 (south pole) to 90.
    pub latitude_deg: f64,
    /// −180 to 180.
    pub longitude_deg: f64,
}

impl Coordinates {
    /// A point, if both numbers are finite and in range.
    pub fn new(latitude_deg: f64, longitude_deg: f64) -> Option<Self> {
        let valid = (-90.0..=90.0).contains(&latitude_deg) && (-180.0..=180.0).contains(&longitude_deg);
        valid.then_some(Self { latitude_deg, longitude_deg })
    }

    /// Great-circle distance in km on a spherical Earth, within 0.6 % of the ellipsoid.
    pub fn great_circle_km(self, other: Self) -> f64 {
        self.on_sphere().arc_km(other.on_sphere())
    }

    pub(crate) fn on_sphere(self) -> SpherePoint {
        let (sin_latitude, cos_latitude) = self.latitude_deg.to_radians().sin_cos();
        let (sin_longitude, cos_longitude) = self.longitude_deg.to_radians().sin_cos();
        SpherePoint([cos_latitude * cos_longitude, cos_latitude * sin_longitude, sin_latitude])
    }
}

impl fmt::Display for Coordinates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2}, {:.2}", self.latitude_deg, self.longitude_deg)
    }
}

/// A point as a unit vector: comparing many distances from one point then costs no trigonometry.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SpherePoint([f64; 3]);

impl SpherePoint {
    /// Squared length of the straight line through the Earth, in squared radii: orders points as the distance does.
    pub(crate) fn chord_squared(self, other: Self) -> f64 {
        self.0.iter().zip(other.0).map(|(a, b)| (a - b) * (a - b)).sum()
    }

    /// Distance along the surface. The half-chord form keeps small distances exact, unlike the arc cosine.
    pub(crate) fn arc_km(self, other: Self) -> f64 {
        let half_chord = (self.chord_squared(other).sqrt() / 2.0).min(1.0);
        2.0 * EARTH_RADIUS_KM * half_chord.asin()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(latitude_deg: f64, longitude_deg: f64) -> Coordinates {
        Coordinates::new(latitude_deg, longitude_deg).unwrap()
    }

    #[test]
    fn known_distances() {
        let quarter_km = std::f64::consts::FRAC_PI_2 * EARTH_RADIUS_KM;
        for (a, b, km, within_km) in [
            (at(90.0, 0.0), at(0.0, 123.0), quarter_km, 1e-6),
            (at(90.0, 0.0), at(-90.0, 0.0), 2.0 * quarter_km, 1e-3),
            (at(0.0, 179.5), at(0.0, -179.5), 111.2, 0.1), // across the antimeridian
            (at(51.5, -0.1), at(40.7, -74.0), 5570.0, 15.0), // London, New York
            (at(-33.9, 151.2), at(35.7, 139.7), 7820.0, 30.0), // Sydney, Tokyo
        ] {
            assert!((a.great_circle_km(b) - km).abs() <= within_km, "{a} {b}: {}", a.great_circle_km(b));
        }
    }

    #[test]
    fn rejects_what_is_not_on_the_globe() {
        for (latitude_deg, longitude_deg) in
            [(90.1, 0.0), (0.0, 180.5), (f64::NAN, 0.0), (0.0, f64::INFINITY)]
        {
            assert_eq!(Coordinates::new(latitude_deg, longitude_deg), None);
        }
    }

    proptest! {
        #[test]
        fn distance_is_a_metric(a in any_point(), b in any_point(), c in any_point()) {
            let ab = a.great_circle_km(b);
            prop_assert!(a.great_circle_km(a) == 0.0 && (ab - b.great_circle_km(a)).abs() < 1e-9);
            prop_assert!((0.0..=20_016.0).contains(&ab));
            prop_assert!(ab <= a.great_circle_km(c) + c.great_circle_km(b) + 1e-3);
        }
    }

    fn any_point() -> impl Strategy<Value = Coordinates> {
        (-90.0..=90.0f64, -180.0..=180.0f64).prop_map(|(latitude, longitude)| at(latitude, longitude))
    }
}

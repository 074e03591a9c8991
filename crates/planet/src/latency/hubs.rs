//! The cable graph: where submarine cables land and backbones meet, and what joins them.
//!
//! Hubs bear the code of the nearest large airport; coordinates are those of the metropolitan area. Edges are cable
//! systems and terrestrial backbones in service. Their length is taken as the great circle between the hubs; the
//! slack of real routes is in the model's slope.

/// Code, latitude and longitude in degrees.
#[rustfmt::skip] // a table
pub(super) const HUBS: [(&str, f64, f64); 47] = [
    ("SEA", 47.6, -122.3), ("SJC", 37.4, -121.9), ("LAX", 34.05, -118.2), ("DEN", 39.7, -105.0),
    ("DFW", 32.8, -96.8), ("ORD", 41.9, -87.6), ("ATL", 33.7, -84.4), ("MIA", 25.8, -80.2),
    ("IAD", 39.0, -77.5), ("NYC", 40.7, -74.0), ("YYZ", 43.7, -79.4), ("QRO", 20.6, -100.4),
    ("FOR", -3.7, -38.5), ("GRU", -23.5, -46.6), ("LHR", 51.5, -0.1), ("DUB", 53.35, -6.26),
    ("CDG", 48.9, 2.35), ("AMS", 52.4, 4.9), ("FRA", 50.1, 8.7), ("ARN", 59.3, 18.1),
    ("WAW", 52.2, 21.0), ("MAD", 40.4, -3.7), ("LIS", 38.7, -9.1), ("MRS", 43.3, 5.4),
    ("MXP", 45.5, 9.2), ("TLV", 32.1, 34.8), ("SUZ", 29.9, 32.5), ("JED", 21.5, 39.2),
    ("DJI", 11.6, 43.1), ("FJR", 25.1, 56.3), ("BOM", 19.1, 72.9), ("MAA", 13.1, 80.3),
    ("SIN", 1.35, 103.8), ("CGK", -6.2, 106.8), ("HKG", 22.3, 114.2), ("TPE", 25.0, 121.5),
    ("NRT", 35.7, 139.7), ("ICN", 37.5, 127.0), ("PER", -31.95, 115.9), ("SYD", -33.9, 151.2),
    ("AKL", -36.85, 174.8), ("GUM", 13.4, 144.8), ("HNL", 21.3, -157.9), ("JNB", -26.2, 28.05),
    ("CPT", -33.9, 18.4), ("LOS", 6.5, 3.4), ("MBA", -4.0, 39.7),
];

/// Pairs of hubs that are joined, both directions alike.
#[rustfmt::skip] // a table
pub(super) const CABLES: [(&str, &str); 87] = [
    ("SEA", "SJC"), ("SJC", "LAX"), ("SEA", "DEN"), ("SEA", "ORD"), ("SJC", "DEN"), ("LAX", "DFW"),
    ("DEN", "DFW"), ("DEN", "ORD"), ("DFW", "ORD"), ("DFW", "ATL"), ("DFW", "QRO"), ("LAX", "QRO"),
    ("ATL", "MIA"), ("ATL", "IAD"), ("ORD", "NYC"), ("ORD", "YYZ"), ("NYC", "YYZ"), ("NYC", "IAD"),
    ("IAD", "ORD"), ("MIA", "FOR"), ("MIA", "GRU"), ("NYC", "GRU"), ("FOR", "GRU"), ("NYC", "LHR"),
    ("NYC", "DUB"), ("IAD", "LHR"), ("IAD", "CDG"), ("IAD", "MAD"), ("DUB", "LHR"), ("LHR", "CDG"),
    ("LHR", "AMS"), ("CDG", "AMS"), ("AMS", "FRA"), ("CDG", "FRA"), ("FRA", "WAW"), ("AMS", "ARN"),
    ("FRA", "ARN"), ("FRA", "MXP"), ("CDG", "MRS"), ("MXP", "MRS"), ("CDG", "MAD"), ("MAD", "LIS"),
    ("MAD", "MRS"), ("LIS", "LHR"), ("MRS", "SUZ"), ("MRS", "TLV"), ("MXP", "TLV"), ("SUZ", "TLV"),
    ("SUZ", "JED"), ("JED", "DJI"), ("DJI", "FJR"), ("DJI", "BOM"), ("DJI", "MBA"), ("FJR", "BOM"),
    ("BOM", "MAA"), ("MAA", "SIN"), ("BOM", "SIN"), ("SIN", "CGK"), ("SIN", "HKG"), ("HKG", "TPE"),
    ("TPE", "NRT"), ("HKG", "NRT"), ("NRT", "ICN"), ("ICN", "TPE"), ("SIN", "NRT"), ("SIN", "PER"),
    ("CGK", "PER"), ("PER", "SYD"), ("SYD", "AKL"), ("SYD", "GUM"), ("GUM", "NRT"), ("GUM", "HKG"),
    ("SYD", "HNL"), ("AKL", "HNL"), ("HNL", "LAX"), ("HNL", "SJC"), ("NRT", "SEA"), ("NRT", "SJC"),
    ("NRT", "LAX"), ("TPE", "SJC"), ("HKG", "LAX"), ("GUM", "HNL"), ("LIS", "LOS"), ("LOS", "CPT"),
    ("CPT", "JNB"), ("JNB", "MBA"), ("LHR", "LOS"),
];

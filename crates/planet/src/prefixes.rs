//! From an IP address to a place, by longest prefix.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

use crate::Place;

/// Networks and where their users are.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Prefixes {
    places: BTreeMap<IpNet, Place>,
    /// The lengths that occur, longest first: a lookup asks for these only.
    #[serde(skip)]
    lengths: Vec<u8>,
}

impl Prefixes {
    /// The place of the longest network that holds this address. An IPv4 address in IPv6 clothes (`::ffff:a.b.c.d`)
    /// is the IPv4 address. Costs one search for each distinct prefix length.
    pub fn locate(&self, address: IpAddr) -> Option<(IpNet, &Place)> {
        let address = address.to_canonical();
        let network = |length: &u8| IpNet::new(address, *length).ok().map(|network| network.trunc());
        let found =
            self.lengths.iter().filter_map(network).find_map(|network| self.places.get_key_value(&network));
        found.map(|(network, place)| (*network, place))
    }
}

impl FromIterator<(IpNet, Place)> for Prefixes {
    fn from_iter<I: IntoIterator<Item = (IpNet, Place)>>(entries: I) -> Self {
        let places: BTreeMap<_, _> =
            entries.into_iter().map(|(network, place)| (network.trunc(), place)).collect();
        let mut lengths: Vec<u8> = places.keys().map(IpNet::prefix_len).collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        lengths.dedup();
        Self { places, lengths }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefixes(entries: &[(&str, &str)]) -> Prefixes {
        entries
            .iter()
            .map(|(network, place)| (network.parse().unwrap(), Place::find(place).unwrap()))
            .collect()
    }

    #[test]
    fn the_longest_prefix_wins_and_families_stay_apart() {
        let prefixes = prefixes(&[
            ("198.51.0.0/16", "frankfurt"),
            ("198.51.100.0/24", "sydney"),
            ("2001:db8::/32", "tokyo"),
            ("2001:db8:7::/48", "lima"),
        ]);
        let place =
            |address: &str| prefixes.locate(address.parse().unwrap()).map(|(_, place)| place.name.as_str());
        assert_eq!(place("198.51.100.9"), Some("sydney"));
        assert_eq!(place("::ffff:198.51.100.9"), Some("sydney"));
        assert_eq!(place("198.51.1.9"), Some("frankfurt"));
        assert_eq!(place("198.52.1.9"), None);
        assert_eq!(place("2001:db8:7::1"), Some("lima"));
        assert_eq!(place("2001:db8:8::1"), Some("tokyo"));
    }

    proptest! {
        #[test]
        fn agrees_with_a_scan(networks in prop::collection::vec((any::<u32>(), 0..=32u8), 0..20), address: u32) {
            let networks: Vec<IpNet> =
                networks.iter().map(|&(bits, length)| IpNet::new(IpAddr::from(bits.to_be_bytes()), length).unwrap()).collect();
            let address = IpAddr::from(address.to_be_bytes());
            let prefixes: Prefixes =
                networks.iter().map(|network| (*network, Place::find("sydney").unwrap())).collect();
            let scan = networks.iter().filter(|network| network.contains(&address)).map(|network| network.trunc())
                .max_by_key(IpNet::prefix_len);
            prop_assert_eq!(prefixes.locate(address).map(|(network, _)| network), scan);
        }
    }
}

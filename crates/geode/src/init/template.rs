//! The planet.toml that `geode init` writes: what a planet needs, each line with its reason, and placeholders where only
//! the user knows.

use std::fmt::Write as _;
use std::net::IpAddr;

use geode_planet::{HostPort, Place, RegionName};

/// Where regions reach each other, unless it is said.
pub(super) const LINK_PORT: u16 = 7400;
/// In RFC 5737's first network for documentation, which is nobody's, each region has an address until it has its own.
const PLACEHOLDER_NETWORK: &str = "192.0.2";

/// A region as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NewRegion {
    pub(super) name: RegionName,
    /// Where others reach it; none if that is not known yet.
    pub(super) address: Option<HostPort>,
}

/// The file's text.
pub(super) fn planet_toml(name: &str, domain: Option<&str>, regions: &[NewRegion]) -> String {
    let mut text = format!(
        "# The planet: the same file on every machine. `geode run --config planet.toml --region NAME` runs one region of it.\n\
         format = 1\n\n[planet]\nname = \"{name}\"\n"
    );
    match domain {
        Some(domain) => commented(&mut text, &format!("domain = \"{domain}\""), "the name that users call"),
        None => {
            commented(&mut text, &format!("# domain = \"api.{name}.example\""), "the name that users call")
        }
    }
    for (region, number) in regions.iter().zip(1..) {
        put_region(&mut text, region, number);
    }
    text.push_str(REST);
    text
}

fn put_region(text: &mut String, region: &NewRegion, number: usize) {
    let placeholder = format!("{PLACEHOLDER_NETWORK}.{number}");
    let name = &region.name;
    text.push('\n');
    let known = Place::find(name.as_str()).ok();
    let city = known.as_ref().and_then(|place| Place::nearest_city(place.coordinates));
    match city {
        Some(city) => commented(text, &format!("[regions.{name}]"), &city),
        None => _ = writeln!(text, "[regions.{name}]"),
    }
    if known.is_none() {
        commented(text, "place = { lat = 0.0, lon = 0.0 }", "PLACEHOLDER: where it is");
    }
    let public = region.address.as_ref().and_then(|address| address.host.parse::<IpAddr>().ok());
    match public {
        Some(ip) => commented(text, &format!("public = [\"{ip}\"]"), "the addresses that users are sent to"),
        None => {
            commented(text, &format!("public = [\"{placeholder}\"]"), "PLACEHOLDER: where users are sent to")
        }
    }
    match &region.address {
        Some(address) => commented(text, &format!("link = \"{address}\""), "other regions reach it here"),
        None => commented(
            text,
            &format!("link = \"{placeholder}:{LINK_PORT}\""),
            "PLACEHOLDER: where other regions reach it",
        ),
    }
}

/// A line with its comment in the column where the other comments stand.
fn commented(text: &mut String, line: &str, comment: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{line:<38} # {comment}");
}

const REST: &str = "
[service]
run = [\"geode\", \"demo\"]              # your program; it gets PORT, GEODE_REGION and REDIS_URL
# instances = { min = 1, max = 8, in_flight = 50 }
# health = { path = \"/healthz\", interval = \"2s\", up = 2, down = 3 }

[store]
data = \"/var/lib/geode\"
fsync = \"everysec\"                     # or \"always\", \"never\"
conditional = \"reject\"                 # SETNX and the like; \"local\" lets two regions both succeed

[redis]
listen = \"127.0.0.1:6379\"              # for the service on the same machine
[door]
listen = [\":80\"]
[admin]
listen = \"127.0.0.1:7401\"              # for `geode status` and the others
";

#[cfg(test)]
mod tests {
    use geode_planet::Planet;

    use super::*;

    fn region(name: &str, address: Option<&str>) -> NewRegion {
        NewRegion { name: name.parse().unwrap(), address: address.map(|text| text.parse().unwrap()) }
    }

    #[test]
    fn what_is_written_is_a_planet_that_says_what_to_change() {
        let regions = [
            region("us-east-1", Some("203.0.113.10:7400")),
            region("eu-west-1", Some("eu.acme.example:7500")),
            region("depot", None),
        ];
        let text = planet_toml("acme", Some("api.acme.example"), &regions);
        let planet = Planet::parse(&text, "planet.toml").unwrap();
        assert_eq!((planet.name.as_str(), planet.regions.len()), ("acme", 3));
        let upto = text.find("\n[service]").unwrap();
        insta::assert_snapshot!(&text[..upto], @r#"
        # The planet: the same file on every machine. `geode run --config planet.toml --region NAME` runs one region of it.
        format = 1

        [planet]
        name = "acme"
        domain = "api.acme.example"            # the name that users call

        [regions.us-east-1]                    # Ashburn
        public = ["203.0.113.10"]              # the addresses that users are sent to
        link = "203.0.113.10:7400"             # other regions reach it here

        [regions.eu-west-1]                    # Dublin
        public = ["192.0.2.2"]                 # PLACEHOLDER: where users are sent to
        link = "eu.acme.example:7500"          # other regions reach it here

        [regions.depot]
        place = { lat = 0.0, lon = 0.0 }       # PLACEHOLDER: where it is
        public = ["192.0.2.3"]                 # PLACEHOLDER: where users are sent to
        link = "192.0.2.3:7400"                # PLACEHOLDER: where other regions reach it
        "#);
    }
}

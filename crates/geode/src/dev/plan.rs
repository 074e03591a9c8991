//! What `geode dev` will run: which regions, at which addresses, and the planet.toml that says so.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use geode_planet::{Place, RegionName};

use super::DevError;

/// Ports of a region, counted from `--base-port`. 127.0.0.1 has the internet address and the control address on the
/// ports of a door and of an admin address.
mod port {
    pub(super) const DOOR: u16 = 0;
    pub(super) const REDIS: u16 = 1;
    pub(super) const ADMIN: u16 = 2;
    /// The relay, which other geodes dial.
    pub(super) const LINK: u16 = 3;
    /// The geode itself, behind the relay.
    pub(super) const LINK_LISTEN: u16 = 4;
    /// From one region to the next where all share one address.
    pub(super) const STRIDE: u16 = 10;
}

/// More regions than this do not help anybody on one machine.
pub(super) const MAX_REGIONS: usize = 16;
/// How far the ports of a planet reach above `--base-port`.
pub(super) const PORTS: u16 = port::STRIDE * (MAX_REGIONS as u16 + 1);
/// The last byte of the first region's address.
const FIRST_HOST: u8 = 11;

/// Cities in documentation prefixes, 16 to each IPv4 network: what ECS, `explain` and `Geode-From` understand. The
/// n-th of all has the n-th /28 and 2001:db8:n::/48, n in decimal digits from 1.
const CITIES: [(&str, &str, [&str; 16]); 3] = [
    (
        "192.0.2",
        "the Americas",
        [
            "new-york",
            "washington",
            "miami",
            "chicago",
            "dallas",
            "denver",
            "los-angeles",
            "seattle",
            "toronto",
            "montreal",
            "mexico-city",
            "bogota",
            "lima",
            "santiago",
            "buenos-aires",
            "sao-paulo",
        ],
    ),
    (
        "198.51.100",
        "Europe, Africa, the Middle East",
        [
            "london",
            "dublin",
            "paris",
            "madrid",
            "amsterdam",
            "frankfurt",
            "zurich",
            "milan",
            "stockholm",
            "warsaw",
            "istanbul",
            "cairo",
            "lagos",
            "nairobi",
            "johannesburg",
            "dubai",
        ],
    ),
    (
        "203.0.113",
        "Asia, the Pacific",
        [
            "mumbai",
            "delhi",
            "bangalore",
            "bangkok",
            "singapore",
            "jakarta",
            "manila",
            "hong-kong",
            "taipei",
            "shanghai",
            "seoul",
            "tokyo",
            "perth",
            "sydney",
            "melbourne",
            "auckland",
        ],
    ),
];

/// Where regions listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Addresses {
    /// Region i has 127.0.0.(11+i), and all use the same ports.
    PerRegion,
    /// Region i has its own ports on 127.0.0.1: for systems without the addresses above, such as macOS.
    Shared,
}

impl Addresses {
    /// What this machine has.
    pub(super) fn of_this_machine() -> Self {
        match TcpListener::bind((Ipv4Addr::new(127, 0, 0, FIRST_HOST), 0)) {
            Ok(_) => Self::PerRegion,
            Err(_) => Self::Shared,
        }
    }
}

/// One region of the plan.
#[derive(Clone, Debug)]
pub(super) struct PlannedRegion {
    pub(super) name: RegionName,
    pub(super) place: Place,
    pub(super) address: IpAddr,
    first_port: u16,
}

impl PlannedRegion {
    /// What people call its place: the city, or where it is if no known city is near.
    pub(super) fn place_name(&self) -> String {
        let coordinates = self.place.coordinates;
        Place::nearest_city(coordinates).unwrap_or_else(|| coordinates.to_string())
    }

    fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address, self.first_port + port)
    }

    pub(super) fn door(&self) -> SocketAddr {
        self.at(port::DOOR)
    }

    pub(super) fn redis(&self) -> SocketAddr {
        self.at(port::REDIS)
    }

    pub(super) fn admin(&self) -> SocketAddr {
        self.at(port::ADMIN)
    }

    /// Where other geodes dial: the relay.
    pub(super) fn link(&self) -> SocketAddr {
        self.at(port::LINK)
    }

    /// Where the geode listens for what the relay brings.
    pub(super) fn link_listen(&self) -> SocketAddr {
        self.at(port::LINK_LISTEN)
    }

    /// Every address that the region's geode binds itself.
    pub(super) fn bound_by_geode(&self) -> [SocketAddr; 4] {
        [self.door(), self.redis(), self.admin(), self.link_listen()]
    }
}

/// The whole plan.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) addresses: Addresses,
    pub(super) regions: Vec<PlannedRegion>,
    /// The address that stands for the internet.
    pub(super) internet: SocketAddr,
    /// The address of `geode chaos`.
    pub(super) control: SocketAddr,
    /// The service of every region: what was asked for, else the demo where there is no planet yet.
    pub(super) command: Vec<String>,
    /// Whether the command was asked for.
    pub(super) command_given: bool,
    /// The absolute data directory.
    pub(super) directory: PathBuf,
}

impl Plan {
    /// Lays out regions of the given names.
    ///
    /// # Errors
    /// A name that is no known place, stands twice, or is one too many; a command that no planet.toml can hold.
    pub(super) fn new(
        names: &[String],
        base_port: u16,
        command: Option<Vec<String>>,
        directory: PathBuf,
        addresses: Addresses,
    ) -> Result<Self, DevError> {
        let command_given = command.is_some();
        let command = command.unwrap_or_else(|| ["geode", "demo"].map(str::to_owned).into());
        let mut regions: Vec<PlannedRegion> = Vec::new();
        if names.is_empty() || names.len() > MAX_REGIONS {
            return Err(DevError::RegionCount(names.len()));
        }
        if let Some(word) = command.iter().find(|word| word.is_empty() || word.chars().any(char::is_control))
        {
            return Err(DevError::Command(word.clone()));
        }
        for (i, name) in (0..).zip(names) {
            let place = Place::find(name).map_err(DevError::UnknownRegion)?;
            let name =
                RegionName::new(&place.name).map_err(|error| DevError::RegionName(error.to_string()))?;
            if regions.iter().any(|region| region.name == name) {
                return Err(DevError::RegionTwice(name));
            }
            let (host, first_port) = match addresses {
                Addresses::PerRegion => (FIRST_HOST + i, base_port),
                Addresses::Shared => (1, base_port + port::STRIDE * (u16::from(i) + 1)),
            };
            regions.push(PlannedRegion {
                name,
                place,
                address: Ipv4Addr::new(127, 0, 0, host).into(),
                first_port,
            });
        }
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, base_port + port));
        let (internet, control) = (local(port::DOOR), local(port::ADMIN));
        Ok(Self { addresses, regions, internet, control, command, command_given, directory })
    }

    /// Where the planet's file stands.
    pub(super) fn planet_file(&self) -> PathBuf {
        self.directory.join("planet.toml")
    }

    /// Where the key of session tokens stands.
    pub(super) fn key_file(&self) -> PathBuf {
        self.directory.join("planet.key")
    }

    /// The command as planet.toml holds it.
    pub(super) fn run_value(&self) -> String {
        let words: Vec<String> = self.command.iter().map(|word| quoted(word)).collect();
        format!("[{}]", words.join(", "))
    }

    /// The planet as a file that a person reads, keeps and changes.
    pub(super) fn planet_toml(&self) -> String {
        let mut text = String::from(HEADER);
        commented(
            &mut text,
            &format!("key_file = {}", path(&self.key_file())),
            "authenticates session tokens",
        );
        for region in &self.regions {
            let name = &region.name;
            text.push('\n');
            commented(&mut text, &format!("[regions.{name}]"), &region.place_name());
            commented(&mut text, &format!("public = [\"{}\"]", region.address), "what DNS would answer");
            commented(
                &mut text,
                &format!("link = \"{}\"", region.link()),
                "the relay that adds the distance",
            );
            let geode = "the geode itself, behind the relay";
            commented(&mut text, &format!("link_listen = \"{}\"", region.link_listen()), geode);
            // Writing to a String cannot fail.
            let _ = write!(
                text,
                "door.listen = [\"{}\"]\nredis.listen = \"{}\"\nadmin.listen = \"{}\"\ndata = {}\n",
                region.door(),
                region.redis(),
                region.admin(),
                path(&self.directory.join(name.as_str())),
            );
        }
        let _ = write!(text, "\n[service]\nrun = {}\n", self.run_value());
        text.push_str(STORE);
        write_cities(&mut text);
        text
    }
}

/// A line with its comment in the column where the other comments stand.
fn commented(text: &mut String, line: &str, comment: &str) {
    let _ = writeln!(text, "{line:<38} # {comment}");
}

const HEADER: &str = "\
# The planet that `geode dev` runs on this machine. It is yours to read and to change: `geode dev` writes it once and
# then changes nothing but addresses, when --base-port does, and the service, when another is named after `--`. The regions
# have to be those of its options.
format = 1

[planet]
name = \"dev\"
domain = \"dev.example\"                 # the name that geo-DNS would steer
";

const STORE: &str = "\
# instances = { min = 1, max = 8, in_flight = 50 }
# health = { path = \"/healthz\", interval = \"2s\", up = 2, down = 3 }

[store]
engine = \"embedded\"
fsync = \"everysec\"                     # or \"always\", \"never\"
conditional = \"reject\"                 # SETNX and the like; \"local\" lets two regions both succeed

[steering]
on_all_down = \"open\"
band = \"15ms\"                          # regions this near to the closest count as equally close

# Where the users of an address are. On one machine all come from 127.0.0.1, so the networks that are reserved for
# documentation stand for the world: `geode explain 203.0.113.210`, `curl -H 'Geode-From: 203.0.113.210'`.
[steering.prefixes]
";

fn write_cities(text: &mut String) {
    let mut number = 0;
    for (network, continent, cities) in CITIES {
        let _ = writeln!(text, "# {network}.0/24: {continent}");
        for (slice, city) in cities.iter().enumerate() {
            number += 1;
            let v4 = format!("\"{network}.{}/28\"", 16 * slice);
            let v6 = format!("\"2001:db8:{number}::/48\"");
            let _ = writeln!(text, "{v4:<19} = \"{city}\"\n{v6:<19} = \"{city}\"");
        }
    }
}

fn path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

/// A TOML basic string.
fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use geode_planet::Planet;

    use super::*;

    fn plan(names: &[&str], addresses: Addresses) -> Result<Plan, DevError> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        Plan::new(&names, 7100, None, PathBuf::from("/srv/planet"), addresses)
    }

    #[test]
    fn the_generated_planet_is_this_file() {
        let plan = plan(&["us-east-1", "eu-west-1", "ap-southeast-2"], Addresses::PerRegion).unwrap();
        assert_eq!(plan.planet_toml(), include_str!("golden/planet.toml"));
    }

    #[test]
    fn a_region_far_from_any_known_city_is_shown_by_its_coordinates() {
        let plan = plan(&["us-east-1", "cn-northwest-1"], Addresses::PerRegion).unwrap();
        assert_eq!(plan.regions[0].place_name(), "Ashburn");
        assert_eq!(plan.regions[1].place_name(), "37.51, 105.20");
    }

    #[test]
    fn the_generated_planet_is_read_back_as_planned() {
        for addresses in [Addresses::PerRegion, Addresses::Shared] {
            let plan = plan(&["Tokyo", "sao-paulo"], addresses).unwrap();
            let planet = Planet::parse(&plan.planet_toml(), "planet.toml").unwrap();
            for planned in &plan.regions {
                let region = planet.region(&planned.name).unwrap();
                assert_eq!(region.place.coordinates, planned.place.coordinates);
                let [door, redis, admin, link_listen] = planned.bound_by_geode();
                let settings = &region.settings;
                assert_eq!(settings.door_listen, [door]);
                assert_eq!((settings.redis_listen, settings.admin_listen), (redis, admin));
                assert_eq!(settings.link_listen, Some(link_listen));
                assert_eq!(region.link.as_ref().unwrap().to_string(), planned.link().to_string());
                assert_eq!(settings.data, plan.directory.join(planned.name.as_str()));
            }
        }
    }

    #[test]
    fn every_slice_of_the_documentation_networks_is_some_city() {
        let plan = plan(&["us-east-1"], Addresses::PerRegion).unwrap();
        let planet = Planet::parse(&plan.planet_toml(), "planet.toml").unwrap();
        let city =
            |address: &str| planet.locate(address.parse().unwrap()).map(|found| found.place.name.clone());
        assert_eq!(city("192.0.2.7").as_deref(), Some("new-york"));
        assert_eq!(city("203.0.113.210").as_deref(), Some("sydney"));
        assert_eq!(city("2001:db8:46::1").as_deref(), Some("sydney"));
        for network in ["192.0.2", "198.51.100", "203.0.113"] {
            for host in 0..=255 {
                assert!(city(&format!("{network}.{host}")).is_some(), "{network}.{host}");
            }
        }
        assert_eq!(city("192.0.3.7"), None);
    }

    #[test]
    fn no_two_listeners_share_an_address() {
        let names = ["us-east-1", "eu-west-1", "ap-southeast-2", "tokyo", "lagos"];
        for addresses in [Addresses::PerRegion, Addresses::Shared] {
            let plan = plan(&names, addresses).unwrap();
            let of_regions = plan
                .regions
                .iter()
                .flat_map(|region| [&region.bound_by_geode()[..], &[region.link()]].concat());
            let mut all: Vec<SocketAddr> = of_regions.chain([plan.internet, plan.control]).collect();
            let count = all.len();
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), count);
        }
    }

    #[test]
    fn mistakes_in_the_regions_are_told_in_one_line() {
        let message = |names: &[&str]| {
            let error = plan(names, Addresses::PerRegion).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            error.to_string()
        };
        assert_eq!(
            message(&["us-est-1"]),
            "--regions: \"us-est-1\" is not a known place; did you mean \"us-east-1\"?"
        );
        assert_eq!(message(&["tokyo", "Tokyo"]), "--regions: tokyo stands twice; name each region once");
        assert_eq!(message(&[]), "--regions: 0 regions are asked for; give 1 to 16, separated by commas");
        assert!(message(&[""]).starts_with("--regions: \"\" is not a known place"));
    }

    #[test]
    fn a_command_survives_quoting() {
        let words = ["sh", "-c", "echo \"a\\b\" 'é'"].map(str::to_owned);
        let names = ["tokyo".to_owned()];
        let command = Some(words.clone().into());
        let plan = Plan::new(&names, 7100, command, PathBuf::from("/a \"b\""), Addresses::PerRegion).unwrap();
        let planet = Planet::parse(&plan.planet_toml(), "planet.toml").unwrap();
        assert_eq!(planet.service.unwrap().program, geode_planet::Program::Run(words.into()));
    }
}

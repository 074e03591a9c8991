//! The sections of `planet.toml`, and the rules between them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use toml::de::{DeTable, DeValue};

use super::section::{Entry, Findings, Section};
use super::value::{self, Found, MISSING, Wrong, quote};
use super::{ConfigError, ConfigErrors};
use crate::address::parse_listen;
use crate::planet::{
    Conditional, Engine, Fsync, HealthCheck, Instances, OnAllDown, Planet, Program, Region, Service,
    Settings, Steering, Store,
};
use crate::{HostPort, Place, Prefixes, RegionName, UnknownPlace};

/// Larger files are refused unread.
const MAX_FILE_BYTES: usize = 1 << 20;
/// Every region links to every other: the mesh has a practical end.
const MAX_REGIONS: usize = 64;

const DEFAULT_REDIS_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 6379);
const DEFAULT_ADMIN_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7401);
const DEFAULT_DATA: &str = "/var/lib/geode";
/// At a thousand writes of 100 bytes a second, a day and a half.
const DEFAULT_RETENTION: u64 = 20 << 30;
/// Whole segments of 64 MiB are removed: with fewer than four the log would often be much shorter than it may be.
const LEAST_RETENTION: u64 = 256 << 20;
/// Room for the index of the keys on disk, the batch that is being written, and some thousand keys: with less, most commands
/// would wait for the disk.
const LEAST_MEMORY: u64 = 64 << 20;
/// gdnsd waits ten checks; these are for checks that cost a service nothing and a planet that heals in seconds.
const DEFAULT_CHECKS: (Duration, u32, u32) = (Duration::from_secs(2), 2, 3);
const DEFAULT_IN_FLIGHT: u32 = 50;
const DEFAULT_BAND: Duration = Duration::from_millis(15);

impl Planet {
    /// Understands the text of a `planet.toml`; `file` is its name, for messages. On failure every mistake is named
    /// with its line, its key and the expected form. Never panics, whatever the text.
    pub fn parse(text: &str, file: &str) -> Result<Self, ConfigErrors> {
        let findings = Findings::new(file, text);
        if text.len() > MAX_FILE_BYTES {
            let problem = format!("the file has {} bytes", text.len());
            findings.report(0, "", Wrong { problem, expected: format!("at most {MAX_FILE_BYTES} are read") });
            return Err(ConfigErrors(findings.into_errors()));
        }
        let (document, syntax) = DeTable::parse_recoverable(text);
        for error in &syntax {
            let offset = error.span().map_or(0, |span| span.start);
            let expected = "see https://toml.io for the syntax".into();
            findings.report(offset, "", Wrong { problem: error.message().into(), expected });
        }
        let planet = read_planet(Section::root(document.get_ref(), &findings));
        let errors = findings.into_errors();
        match planet {
            Some(planet) if errors.is_empty() => Ok(planet),
            _ => Err(ConfigErrors(without_echoes(errors, !syntax.is_empty()))),
        }
    }
}

/// Without the mistakes that only follow from a syntax error: in the lines that have one, and keys that such lines were
/// to set.
fn without_echoes(mut errors: Vec<ConfigError>, has_syntax_errors: bool) -> Vec<ConfigError> {
    if has_syntax_errors {
        let is_syntax = |error: &ConfigError| error.key.is_empty();
        let broken: Vec<usize> =
            errors.iter().filter(|error| is_syntax(error)).map(|error| error.line).collect();
        errors
            .retain(|error| is_syntax(error) || !(error.problem == MISSING || broken.contains(&error.line)));
    }
    errors
}

/// None only if a mistake was noted.
fn read_planet(mut root: Section<'_>) -> Option<Planet> {
    root.require("format", "1", value::format_version);
    let mut identity = root.section("planet");
    let name = identity.require("name", "\"acme\"", value::planet_name);
    let domain = identity.take("domain", value::domain);
    let key_file = identity.take("key_file", value::path);
    identity.finish();
    let mut bindings = Bindings::read(&mut root);
    let store = read_store(root.section("store"), &mut bindings);
    let regions = read_regions(root.section("regions"), &bindings);
    let service = root.has("service").then(|| root.section("service")).and_then(read_service);
    let steering = read_steering(root.section("steering"), &regions);
    root.finish();
    Some(Planet { name: name?, domain, key_file, regions, service, store, steering })
}

/// What a region binds and where its data is, as far as it is said: once for all, or by a region for itself.
#[derive(Default)]
struct Bindings {
    redis_listen: Option<SocketAddr>,
    door_listen: Option<Vec<SocketAddr>>,
    admin_listen: Option<SocketAddr>,
    data: Option<PathBuf>,
    retention_bytes: Option<u64>,
    memory_bytes: Option<u64>,
}

impl Bindings {
    /// Reads `redis`, `door` and `admin` below the root or below a region: the form is the same.
    fn read(parent: &mut Section<'_>) -> Self {
        let mut redis = parent.section("redis");
        let redis_listen = redis.take("listen", value::listen);
        redis.finish();
        let mut door = parent.section("door");
        let door_listen = door.one_or_more("listen", value::listen);
        if door_listen.as_ref().is_some_and(Vec::is_empty) {
            door.report("listen", Wrong { problem: "is empty".into(), expected: "write [\":80\"]".into() });
        }
        door.not_built("tls", "TLS at the door");
        door.finish();
        let mut admin = parent.section("admin");
        let admin_listen = admin.take("listen", value::loopback_listen);
        admin.finish();
        parent.not_built("dns", "geo-DNS");
        Self { redis_listen, door_listen, admin_listen, ..Self::default() }
    }
}

fn read_store(mut section: Section<'_>, bindings: &mut Bindings) -> Store {
    let engine = section.take("engine", |engine| match engine.as_str() {
        Some("cassandra") => Err(Wrong::not_built("the Cassandra engine", "use \"embedded\"")),
        _ => value::choice(engine, &[("embedded", Engine::Embedded)]),
    });
    let fsyncs = [("always", Fsync::Always), ("everysec", Fsync::EverySec), ("never", Fsync::Never)];
    let fsync = section.take("fsync", |fsync| value::choice(fsync, &fsyncs));
    let conditionals = [("reject", Conditional::Reject), ("local", Conditional::Local)];
    let conditional = section.take("conditional", |conditional| value::choice(conditional, &conditionals));
    bindings.data = section.take("data", value::path);
    bindings.memory_bytes = section.take("memory", read_memory);
    bindings.retention_bytes = section.take("retention", read_retention);
    section.not_built("home", "a home for everything");
    section.not_built("homes", "a home for a prefix");
    section.not_built("cassandra", "the Cassandra engine");
    section.finish();
    Store {
        engine: engine.unwrap_or(Engine::Embedded),
        fsync: fsync.unwrap_or(Fsync::EverySec),
        conditional: conditional.unwrap_or(Conditional::Reject),
    }
}

fn read_regions(section: Section<'_>, shared: &Bindings) -> BTreeMap<RegionName, Region> {
    let declared: Vec<Entry<'_>> = section.entries().collect();
    if declared.is_empty() {
        section.report_table(Wrong::missing("name at least one region, like [regions.us-east-1]"));
    }
    if declared.len() > MAX_REGIONS {
        let problem = format!("{} regions are declared", declared.len());
        section.report_table(Wrong { problem, expected: format!("at most {MAX_REGIONS} are supported") });
        return BTreeMap::new();
    }
    let mut regions = BTreeMap::new();
    let mut links = BTreeMap::new();
    for entry in &declared {
        let name = section.read_name(*entry, |name| {
            let expected = "use 1 to 32 characters of a-z, 0-9 and \"-\", like \"eu-west-1\"".into();
            RegionName::new(name).map_err(|_| Wrong { problem: "not a name for a region".into(), expected })
        });
        let mut below = section.below(*entry);
        let region = read_region(&mut below, name, entry.name, shared);
        if declared.len() > 1 && !below.has("link") {
            below.report(
                "link",
                Wrong::missing("say where other regions reach this one: link = \"10.0.1.5:7400\""),
            );
        }
        if let Some(link) = region.as_ref().and_then(|region| region.link.clone())
            && let Some(twin) = links.insert(link, entry.name)
        {
            let problem = format!("{} has the same link", quote(twin));
            below
                .report("link", Wrong { problem, expected: "give each region an address of its own".into() });
        }
        regions.extend(region.map(|region| (region.name.clone(), region)));
        below.finish();
    }
    regions
}

/// One region, whose name stands in the file as `written`.
fn read_region(
    section: &mut Section<'_>,
    name: Option<RegionName>,
    written: &str,
    shared: &Bindings,
) -> Option<Region> {
    let place = read_region_place(section, written);
    let public = section.list("public", "[\"203.0.113.10\"]", value::ip).unwrap_or_default();
    let link = section.take("link", value::host_port);
    let link_listen = section.take("link_listen", value::listen);
    if section.has("link_listen") && !section.has("link") {
        let expected = "add link = \"HOST:PORT\", which others dial, or remove it".into();
        section.report("link_listen", Wrong { problem: "there is no link to listen for".into(), expected });
    }
    let capacity = section.take("capacity", value::capacity).unwrap_or(1.0);
    let data = section.take("data", value::path);
    let retention = section.take("retention", read_retention);
    let memory = section.take("memory", read_memory);
    let own = Bindings::read(section);
    let settings = Settings {
        link_listen: link_listen.or_else(|| link.as_ref().map(HostPort::listen)),
        redis_listen: own.redis_listen.or(shared.redis_listen).unwrap_or(DEFAULT_REDIS_LISTEN),
        door_listen: own
            .door_listen
            .or_else(|| shared.door_listen.clone())
            .unwrap_or_else(default_door_listen),
        admin_listen: own.admin_listen.or(shared.admin_listen).unwrap_or(DEFAULT_ADMIN_LISTEN),
        data: data.or_else(|| shared.data.clone()).unwrap_or_else(|| DEFAULT_DATA.into()),
        retention_bytes: retention.or(shared.retention_bytes).unwrap_or(DEFAULT_RETENTION),
        memory_bytes: memory.or(shared.memory_bytes),
    };
    check_bindings(section, &settings);
    Some(Region { name: name?, place: place?, public, link, capacity, settings })
}

fn read_retention(value: &DeValue<'_>) -> Found<u64> {
    value::bytes(value, LEAST_RETENTION)
}

fn read_memory(value: &DeValue<'_>) -> Found<u64> {
    value::bytes(value, LEAST_MEMORY)
}

fn default_door_listen() -> Vec<SocketAddr> {
    parse_listen(":80").into_iter().collect()
}

fn read_region_place(section: &mut Section<'_>, name: &str) -> Option<Place> {
    if section.has("place") {
        return section.take("place", |place| read_place(place, name, Place::find));
    }
    match Place::find(name) {
        Ok(place) => Some(place),
        Err(unknown) => {
            let meant =
                unknown.nearest.map_or_else(String::new, |nearest| format!(" (did you mean {nearest:?}?)"));
            let problem = format!("is missing, and {} is not a known place{meant}", quote(name));
            let expected = "write place = \"sydney\" or place = { lat = -33.45, lon = -70.67 }".into();
            section.report("place", Wrong { problem, expected });
            None
        }
    }
}

/// A place's name, or its coordinates: then it is called `name`.
fn read_place(
    value: &DeValue<'_>,
    name: &str,
    find: impl Fn(&str) -> Result<Place, UnknownPlace>,
) -> Found<Place> {
    if let Some(coordinates) = value::coordinates(value) {
        return Ok(Place { name: name.into(), coordinates: coordinates? });
    }
    find(value::place_name(value)?).map_err(|unknown| Wrong {
        problem: format!("{} is not a known place", quote(&unknown.name)),
        expected: match unknown.nearest {
            Some(nearest) => format!("did you mean {nearest:?}?"),
            None => {
                "write a cloud region or a large city, like \"sydney\", or { lat = -33.45, lon = -70.67 }"
                    .into()
            }
        },
    })
}

/// No two of a region's addresses may be in each other's way.
fn check_bindings(section: &Section<'_>, settings: &Settings) {
    let mut binds: Vec<(&str, SocketAddr)> =
        vec![("redis.listen", settings.redis_listen), ("admin.listen", settings.admin_listen)];
    binds.extend(settings.door_listen.iter().map(|address| ("door.listen", *address)));
    binds.extend(settings.link_listen.map(|address| ("link_listen", address)));
    for (index, (key, address)) in binds.iter().enumerate() {
        if let Some((other, _)) = binds[..index].iter().find(|(_, earlier)| collide(*earlier, *address)) {
            let problem = format!("{other} and {key} would both bind {address}");
            section.report_table(Wrong { problem, expected: "give each a port of its own".into() });
        }
    }
}

/// Whether two addresses cannot be bound at once.
fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port() && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

fn read_service(mut section: Section<'_>) -> Option<Service> {
    let run = section.list("run", "[\"./server\", \"--quiet\"]", value::argument);
    let upstream = section.take("upstream", value::upstream);
    let is_upstream = section.has("upstream");
    if section.has("run") == is_upstream {
        let problem = if is_upstream { "has both run and upstream" } else { "has neither run nor upstream" };
        let expected = "write run = [\"./server\"], or upstream = \"http://127.0.0.1:3000\"".into();
        section.report_table(Wrong { problem: problem.into(), expected });
    }
    if run.as_ref().is_some_and(Vec::is_empty) {
        section.report("run", Wrong { problem: "is empty".into(), expected: "write [\"./server\"]".into() });
    }
    let instances = read_instances(section.section("instances"), is_upstream);
    let health = read_health_check(section.section("health"));
    section.finish();
    let program = upstream.map(Program::Upstream).or_else(|| run.map(Program::Run))?;
    Some(Service { program, instances, health })
}

fn read_instances(mut section: Section<'_>, is_upstream: bool) -> Instances {
    let min = section.take("min", |min| value::count(min, 1..=1000)).unwrap_or(1);
    let max = section.take("max", |max| value::count(max, 1..=1000)).unwrap_or(min);
    let in_flight = section.take("in_flight", |in_flight| value::count(in_flight, 1..=100_000));
    if min > max {
        let expected = format!("write max = {min} or more");
        section.report("max", Wrong { problem: format!("max {max} is below min {min}"), expected });
    }
    for key in ["min", "max"].into_iter().filter(|key| is_upstream && section.has(key)) {
        let problem = "geode does not start the instances of an upstream".into();
        section.report(key, Wrong { problem, expected: "remove it, or use run".into() });
    }
    section.finish();
    Instances { min, max, in_flight: in_flight.unwrap_or(DEFAULT_IN_FLIGHT) }
}

fn read_health_check(mut section: Section<'_>) -> HealthCheck {
    let (default_interval, default_up, default_down) = DEFAULT_CHECKS;
    let bounds = Duration::from_millis(100)..=Duration::from_secs(3600);
    let path = section.take("path", value::url_path);
    let interval = section.take("interval", |interval| value::duration(interval, bounds));
    let up = section.take("up", |up| value::count(up, 1..=100));
    let down = section.take("down", |down| value::count(down, 1..=100));
    section.finish();
    HealthCheck {
        path,
        interval: interval.unwrap_or(default_interval),
        up: up.unwrap_or(default_up),
        down: down.unwrap_or(default_down),
    }
}

fn read_steering(mut section: Section<'_>, regions: &BTreeMap<RegionName, Region>) -> Steering {
    let policies = [("open", OnAllDown::Open), ("empty", OnAllDown::Empty)];
    let on_all_down = section.take("on_all_down", |policy| value::choice(policy, &policies));
    let band = section.take("band", |band| value::duration(band, Duration::ZERO..=Duration::from_secs(1)));
    let prefixes = read_prefixes(&section.section("prefixes"), regions);
    section.finish();
    Steering {
        on_all_down: on_all_down.unwrap_or(OnAllDown::Open),
        band: band.unwrap_or(DEFAULT_BAND),
        prefixes,
    }
}

fn read_prefixes(section: &Section<'_>, regions: &BTreeMap<RegionName, Region>) -> Prefixes {
    let find =
        |name: &str| regions.get(name).map_or_else(|| Place::find(name), |region| Ok(region.place.clone()));
    let mut places: BTreeMap<IpNet, Place> = BTreeMap::new();
    for entry in section.entries() {
        let network = section.read_name(entry, value::network);
        let place = section.read(entry, |place| read_place(place, entry.name, find));
        if let Some((network, place)) = network.zip(place)
            && places.insert(network, place).is_some()
        {
            let problem = format!("{network} stands twice");
            section.report(entry.name, Wrong { problem, expected: "keep one of them".into() });
        }
    }
    places.into_iter().collect()
}

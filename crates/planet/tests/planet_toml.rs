//! `planet.toml` through the front door: what it may say, and what a user reads when it says something else.

use std::net::IpAddr;
use std::time::Duration;

use geode_planet::{
    Conditional, Engine, Fsync, HealthCheck, Instances, OnAllDown, Planet, Program, RegionName, Settings,
};
use proptest::prelude::*;

const FULL: &str = r#"
format = 1
[planet]
name = "acme"
domain = "API.acme.example"
key_file = "/etc/geode/key"

[regions.us-east-1]
public = ["203.0.113.10", "2001:db8::10"]
link = "10.0.1.5:7400"
[regions.eu-west-1]
public = ["198.51.100.10"]
link = "eu.acme.example:7400"
data = "/srv/geode"
retention = "512MiB"
memory = "64MiB"
redis.listen = "127.0.0.12:6379"
door = { listen = [":8080", "127.0.0.12:8081"] }
admin.listen = "127.0.0.12:7401"
[regions.depot]
place = { lat = -33.45, lon = -70.67 }
link = "10.0.3.5:7400"
link_listen = ":7500"
capacity = 0.5

[service]
run = ["./server", "--quiet"]
instances = { min = 1, max = 8, in_flight = 40 }
health = { path = "/healthz", interval = "500ms", up = 1, down = 4 }

[store]
engine = "embedded"
data = "/data"
retention = "2GiB"
memory = "1GiB"
fsync = "always"
conditional = "local"

[redis]
listen = "127.0.0.1:6380"
[door]
listen = ":80"
[steering]
on_all_down = "empty"
band = "20ms"
prefixes = { "192.0.2.0/24" = "sydney", "2001:db8:7::/48" = "depot", "198.51.100.0/24" = { lat = 1, lon = 2.5 } }
[admin]
listen = "127.0.0.1:7402"
"#;

fn region(name: &str) -> RegionName {
    name.parse().expect("tests use valid names")
}

fn errors(text: &str) -> String {
    Planet::parse(text, "planet.toml").expect_err("tests of mistakes have some").to_string()
}

/// A file that is right but for these lines.
fn errors_with(lines: &str) -> String {
    errors(&format!("format = 1\nplanet.name = \"acme\"\nregions.us-east-1 = {{}}\n{lines}"))
}

#[test]
fn everything_that_can_be_said_is_understood() {
    let planet = Planet::parse(FULL, "planet.toml").unwrap();
    assert_eq!((planet.name.as_str(), planet.domain.as_deref()), ("acme", Some("api.acme.example")));
    assert_eq!(planet.key_file.as_deref(), Some("/etc/geode/key".as_ref()));

    let names: Vec<&str> = planet.regions.keys().map(RegionName::as_str).collect();
    assert_eq!(names, ["depot", "eu-west-1", "us-east-1"]);
    let depot = planet.region(&region("depot")).unwrap();
    assert_eq!((depot.place.to_string().as_str(), depot.capacity), ("depot (-33.45, -70.67)", 0.5));
    assert_eq!(planet.region(&region("us-east-1")).unwrap().public.len(), 2);
    assert_eq!(planet.region(&region("mars")), None);

    let service = planet.service.as_ref().unwrap();
    assert_eq!(service.program, Program::Run(vec!["./server".into(), "--quiet".into()]));
    assert_eq!(service.instances, Instances { min: 1, max: 8, in_flight: 40 });
    let interval = Duration::from_millis(500);
    assert_eq!(service.health, HealthCheck { path: Some("/healthz".into()), interval, up: 1, down: 4 });
    let store = planet.store;
    assert_eq!(
        (store.engine, store.fsync, store.conditional),
        (Engine::Embedded, Fsync::Always, Conditional::Local)
    );
    assert_eq!(planet.steering.on_all_down, OnAllDown::Empty);
    assert_eq!(planet.steering.band, Duration::from_millis(20));
}

#[test]
fn a_region_binds_what_it_says_else_what_the_planet_says_else_the_default() {
    let planet = Planet::parse(FULL, "planet.toml").unwrap();
    let address = |text: &str| text.parse().unwrap();
    let settings = |name: &str| planet.region(&region(name)).unwrap().settings.clone();
    assert_eq!(
        settings("eu-west-1"),
        Settings {
            link_listen: Some(address("[::]:7400")),
            redis_listen: address("127.0.0.12:6379"),
            door_listen: vec![address("[::]:8080"), address("127.0.0.12:8081")],
            admin_listen: address("127.0.0.12:7401"),
            data: "/srv/geode".into(),
            retention_bytes: 512 << 20,
            memory_bytes: Some(64 << 20),
        }
    );
    assert_eq!(
        settings("depot"),
        Settings {
            link_listen: Some(address("[::]:7500")),
            redis_listen: address("127.0.0.1:6380"),
            door_listen: vec![address("[::]:80")],
            admin_listen: address("127.0.0.1:7402"),
            data: "/data".into(),
            retention_bytes: 2 << 30,
            memory_bytes: Some(1 << 30),
        }
    );
    assert_eq!(settings("us-east-1").link_listen, Some(address("10.0.1.5:7400")));
    let least =
        Planet::parse("format = 1\nplanet.name = \"acme\"\n[regions.us-east-1]", "planet.toml").unwrap();
    assert_eq!(
        least.region(&region("us-east-1")).unwrap().settings,
        Settings {
            link_listen: None,
            redis_listen: address("127.0.0.1:6379"),
            door_listen: vec![address("[::]:80")],
            admin_listen: address("127.0.0.1:7401"),
            data: "/var/lib/geode".into(),
            retention_bytes: 20 << 30,
            memory_bytes: None,
        }
    );
    assert_eq!(least.service, None);
}

#[test]
fn clients_are_placed_by_prefix_and_by_name() {
    let planet = Planet::parse(FULL, "planet.toml").unwrap();
    let place = |address: &str| {
        let location = planet.locate(address.parse::<IpAddr>().unwrap())?;
        Some((location.prefix.to_string(), location.place.to_string()))
    };
    assert_eq!(place("192.0.2.7"), Some(("192.0.2.0/24".into(), "sydney (-33.87, 151.21)".into())));
    assert_eq!(place("2001:db8:7::1"), Some(("2001:db8:7::/48".into(), "depot (-33.45, -70.67)".into())));
    assert_eq!(
        place("198.51.100.1"),
        Some(("198.51.100.0/24".into(), "198.51.100.0/24 (1.00, 2.50)".into()))
    );
    assert_eq!(place("203.0.113.1"), None);
    assert_eq!(planet.place("depot").unwrap().coordinates.latitude_deg, -33.45);
    assert_eq!(planet.place("Hong Kong").unwrap().name, "hong-kong");
    assert_eq!(planet.place("sidney").unwrap_err().nearest, Some("sydney"));
}

#[test]
fn all_mistakes_are_named_at_once() {
    let text = r#"format = 2
[planet]
nme = "acme"
[regions.us-east-1]
link = "10.0.1.5"
capacity = "big"
[regions.Paris]
link = "10.0.1.5:7400"
[regions.paris-depot]
redis = { lisen = "127.0.0.1:6379" }
[service]
run = "node server.js"
instances = { min = 9, max = 3 }
health = { interval = "2", down = 0 }
[store]
engine = "cassandra"
fsync = "sometimes"
memory = "2MiB"
retention = "5MB"
[steering]
on_all_down = "opne"
band = "1h"
prefixes = { "192.0.2.7/24" = "sydney", "192.0.2" = "sydney", "198.51.100.0/24" = "sidney" }
[door]
tls = { acme = "ops@acme.example" }
[dns]
listen = ":53"
[admin]
listen = "0.0.0.0:7401"
"#;
    let expected = r#"
planet.toml:1: format: this geode does not know format 2; use a newer geode, or format = 1
planet.toml:2: planet.name: is missing; write name = "acme"
planet.toml:3: planet.nme: unknown key; did you mean "name"?
planet.toml:5: regions.us-east-1.link: "10.0.1.5" is not HOST:PORT; write it like "10.0.2.5:7400"
planet.toml:6: regions.us-east-1.capacity: "big" is not a number from 0.001 to 1000; write it like 0.5
planet.toml:7: regions.Paris: not a name for a region; use 1 to 32 characters of a-z, 0-9 and "-", like "eu-west-1"
planet.toml:9: regions.paris-depot.place: is missing, and "paris-depot" is not a known place; write place = "sydney" or place = { lat = -33.45, lon = -70.67 }
planet.toml:9: regions.paris-depot.link: is missing; say where other regions reach this one: link = "10.0.1.5:7400"
planet.toml:10: regions.paris-depot.redis.lisen: unknown key; did you mean "listen"?
planet.toml:12: service.run: "node server.js" is not a list; write it like ["./server", "--quiet"]
planet.toml:13: service.instances.max: max 3 is below min 9; write max = 9 or more
planet.toml:14: service.health.interval: "2" is not a time from 100ms to 60m; write it like "500ms" or "2s"
planet.toml:14: service.health.down: 0 is not a whole number from 1 to 100; write it like 1
planet.toml:16: store.engine: the Cassandra engine is not built yet; use "embedded"
planet.toml:17: store.fsync: "sometimes" is none of "always", "everysec", "never"; write "always" or "everysec" or "never"
planet.toml:18: store.memory: "2MiB" is not a size of at least 64MiB; write it like "512MiB" or "20GiB"
planet.toml:19: store.retention: "5MB" is not a size of at least 256MiB; write it like "512MiB" or "20GiB"
planet.toml:21: steering.on_all_down: "opne" is none of "open", "empty"; did you mean "open"?
planet.toml:22: steering.band: "1h" is not a time from 0ms to 1s; write it like "500ms" or "2s"
planet.toml:23: steering.prefixes."192.0.2": not a network; write it like "192.0.2.0/24" or "2001:db8::/32"
planet.toml:23: steering.prefixes."192.0.2.7/24": has bits beyond the prefix; write "192.0.2.0/24"
planet.toml:23: steering.prefixes."198.51.100.0/24": "sidney" is not a known place; did you mean "sydney"?
planet.toml:25: door.tls: TLS at the door is not built yet; remove it for now
planet.toml:26: dns: geo-DNS is not built yet; remove it for now
planet.toml:29: admin.listen: authentication of admin is not built yet; listen on loopback, like "127.0.0.1:7401"
"#;
    let found = errors(text);
    assert_eq!(format!("\n{found}\n"), expected, "\n{found}\n");
}

#[test]
fn rules_between_keys() {
    let twins = "format = 1\nplanet.name = \"acme\"\n[regions.us-east-1]\nlink = \"10.0.1.5:7400\"\n\
                 [regions.eu-west-1]\nlink = \"10.0.1.5:7400\"\nlink_listen = \"127.0.0.1:6379\"";
    assert_eq!(
        errors(twins),
        "planet.toml:4: regions.us-east-1.link: \"eu-west-1\" has the same link; give each region an address of its \
         own\n\
         planet.toml:5: regions.eu-west-1: redis.listen and link_listen would both bind 127.0.0.1:6379; give each a \
         port of its own"
    );
    for (lines, expected) in [
        ("[service]", "4: service: has neither run nor upstream; "),
        ("service = { run = [\"a\"], upstream = \"http://a:1\" }", "4: service: has both run and upstream; "),
        ("service.run = []", "4: service.run: is empty; "),
        ("service.upstream = \"https://a:1\"", "\"https://a:1\" is not http://HOST:PORT; "),
        (
            "service = { upstream = \"http://a:1\", instances.max = 2 }",
            "service.instances.max: geode does not start",
        ),
        ("door.listen = []", "4: door.listen: is empty; "),
        (
            "regions.eu-west-1.link_listen = \":7400\"",
            "regions.eu-west-1.link_listen: there is no link to listen for",
        ),
        ("planet.name = \"x\"", "4: "),
        ("regions.sidney = {}", "(did you mean \"sydney\"?)"),
        (
            "regions.x.place = { lat = 91, lon = 0 }",
            "regions.x.place: these are not coordinates in degrees; ",
        ),
        ("regions.x.place = { lat = 1, lon = 0, alt = 3 }", "these are not coordinates in degrees; "),
        (
            "regions.us-west-2.public = [\"a\", \"b\"]",
            "regions.us-west-2.public[1]: \"b\" is not an IP address; ",
        ),
        ("store = 3", "4: store: 3 is not a table; write [store] on a line of its own, its keys below"),
        ("storage.data = \"/\"", "4: storage: unknown key; did you mean \"store\"?"),
        ("\"a b\\nc\" = 1", "\"a b\\nc\": unknown key; known here: "),
        ("admin.listen = \"127.0.0.1:0\"", "\"127.0.0.1:0\" is not IP:PORT; "),
        ("store.homes = []", "4: store.homes: a home for a prefix is not built yet; "),
    ] {
        let found = errors_with(lines);
        assert!(found.contains(expected), "{lines}\n{found}");
    }
    assert_eq!(
        errors("format = 1\nplanet.name = \"acme\""),
        "planet.toml:1: regions: is missing; name at least one region, like [regions.us-east-1]"
    );
}

#[test]
fn a_syntax_error_is_named_once_and_does_not_hide_other_mistakes() {
    let found = errors("format = 1\nplanet.name = \n[regions.us-east-1]\ncapacity = -1\n");
    let lines: Vec<&str> = found.lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with("planet.toml:2: "), "{found}");
    assert!(lines[1].starts_with("planet.toml:4: regions.us-east-1.capacity: -1 is not"), "{found}");
}

#[test]
fn absurd_files_are_refused() {
    assert!(errors(&"#".repeat(2 << 20)).contains("at most 1048576 are read"));
    assert!(errors(&"[".repeat(100_000)).lines().count() < 1000);
    let many: String = (0..65).map(|i| format!("regions.r{i} = {{}}\n")).collect();
    assert_eq!(
        errors(&format!("format = 1\nplanet.name = \"a\"\n{many}")),
        "planet.toml:3: regions: 65 regions are declared; at most 64 are supported"
    );
}

#[test]
fn the_digest_follows_the_meaning_and_not_the_text() {
    let digest = |text: &str| Planet::parse(text, "planet.toml").unwrap().digest();
    let other_words = FULL
        .replace("\"500ms\"", "'500ms'")
        .replace("fsync = \"always\"", "fsync = \"always\" # dear")
        .replace("link = \"10.0.1.5:7400\"", "link = \"10.0.1.5:7400\"\ncapacity = 1.0")
        .replace("listen = \":80\"", "listen = [\":80\"]")
        .replace("\"API.acme.example\"", "\"api.acme.example\"");
    assert_ne!(FULL, other_words);
    assert_eq!(digest(FULL), digest(&other_words));
    assert_eq!(digest(FULL).len(), 16);
    for (from, to) in [
        ("10.0.1.5", "10.0.1.6"),
        ("max = 8", "max = 9"),
        ("capacity = 0.5", "capacity = 0.6"),
        ("\"sydney\"", "\"perth\""),
        ("\"--quiet\"", "\"--loud\""),
        ("\"always\"", "\"never\""),
        ("/srv/geode", "/srv/other"),
    ] {
        assert_ne!(digest(FULL), digest(&FULL.replace(from, to)), "{from} -> {to}");
    }
    let least = "format = 1\nplanet.name = \"acme\"\n[regions.us-east-1]";
    assert_eq!(
        digest(least),
        digest("planet = { name = \"acme\" }\nregions = { us-east-1 = {} }\nformat = 1 # one")
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Any damage to a good file gives a planet or mistakes, each on a line of the file, and never a panic.
    #[test]
    fn mutated_text_never_panics(edits in prop::collection::vec((any::<prop::sample::Index>(), edit()), 1..6)) {
        let mut text: Vec<char> = FULL.chars().collect();
        for (at, (removed, inserted)) in edits {
            let at = at.index(text.len() + 1);
            let end = (at + removed).min(text.len());
            text.splice(at..end, inserted.chars());
        }
        let text: String = text.into_iter().collect();
        if let Err(errors) = Planet::parse(&text, "planet.toml") {
            prop_assert!(!errors.0.is_empty());
            let lines = text.split('\n').count();
            for error in errors.0 {
                prop_assert!((1..=lines).contains(&error.line), "{} of {}", error, lines);
            }
        }
    }

    #[test]
    fn arbitrary_text_never_panics(text in "[ \n\"'=\\[\\]{}.,#a-z0-9\u{e9}-]{0,200}") {
        prop_assert!(Planet::parse(&text, "planet.toml").is_err());
    }
}

fn edit() -> impl Strategy<Value = (usize, String)> {
    let pieces = prop::sample::select(vec![
        "",
        "\"",
        "[",
        "]",
        "{",
        "}",
        "=",
        "\n",
        ".",
        "-",
        "0",
        "9999999999999999999999",
        "nan",
        "inf",
        "true",
        "é",
        "[store]",
        "x = 1",
        "\\u0000",
        "1979-05-27",
        "[[regions]]",
        "'",
        "'''",
    ]);
    (0..12usize, prop_oneof![pieces.prop_map(String::from), any::<char>().prop_map(String::from)])
}

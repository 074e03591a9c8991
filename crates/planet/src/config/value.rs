//! Single values of `planet.toml`: what each kind accepts, and how a mistake in it is put.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use toml::de::DeValue;

use crate::address::{is_host_name, parse_listen};
use crate::spelling::nearest;
use crate::{Coordinates, HostPort, NotHostPort};

/// A value, or what is wrong with it.
pub(super) type Found<T> = Result<T, Wrong>;

/// What is wrong, and what is expected instead.
pub(super) struct Wrong {
    pub(super) problem: String,
    pub(super) expected: String,
}

/// The problem of a key that should stand there.
pub(super) const MISSING: &str = "is missing";

impl Wrong {
    pub(super) fn missing(expected: &str) -> Self {
        Self { problem: MISSING.into(), expected: expected.into() }
    }

    pub(super) fn not_built(part: &str, expected: &str) -> Self {
        Self { problem: format!("{part} is not built yet"), expected: expected.into() }
    }

    /// `"10.0.2.5" is not HOST:PORT; write it like "10.0.2.5:7400"`.
    fn kind(value: &DeValue<'_>, kind: impl fmt::Display, example: &str) -> Self {
        Self {
            problem: format!("{} is not {kind}", describe(value)),
            expected: format!("write it like {example}"),
        }
    }
}

/// The longest text that any value may have, in bytes. Linux takes no longer path.
const MAX_TEXT_LEN: usize = 4096;

/// A plain text without control characters.
fn text<'v>(value: &'v DeValue<'_>, kind: &str, example: &str) -> Found<&'v str> {
    let plain =
        |text: &&str| !text.is_empty() && text.len() <= MAX_TEXT_LEN && !text.chars().any(char::is_control);
    value.as_str().filter(plain).ok_or_else(|| Wrong::kind(value, kind, example))
}

pub(super) fn format_version(value: &DeValue<'_>) -> Found<()> {
    match integer(value) {
        Some(1) => Ok(()),
        Some(newer) if newer > 1 => Err(Wrong {
            problem: format!("this geode does not know format {newer}"),
            expected: "use a newer geode, or format = 1".into(),
        }),
        _ => Err(Wrong::kind(value, "a format", "format = 1")),
    }
}

pub(super) fn planet_name(value: &DeValue<'_>) -> Found<String> {
    let plain = |name: &&str| {
        (1..=64).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    };
    let kind = "1 to 64 letters, digits, \"-\", \"_\" or \".\"";
    value.as_str().filter(plain).map(Into::into).ok_or_else(|| Wrong::kind(value, kind, "\"acme\""))
}

pub(super) fn domain(value: &DeValue<'_>) -> Found<String> {
    let name = value.as_str().filter(|name| is_host_name(name));
    name.map(str::to_ascii_lowercase).ok_or_else(|| Wrong::kind(value, "a host name", "\"api.acme.example\""))
}

pub(super) fn path(value: &DeValue<'_>) -> Found<PathBuf> {
    text(value, "a path", "\"/var/lib/geode\"").map(Into::into)
}

pub(super) fn ip(value: &DeValue<'_>) -> Found<IpAddr> {
    let address = value.as_str().and_then(|text| text.parse().ok());
    address.ok_or_else(|| Wrong::kind(value, "an IP address", "\"203.0.113.10\" or \"2001:db8::10\""))
}

pub(super) fn host_port(value: &DeValue<'_>) -> Found<HostPort> {
    let address = value.as_str().ok_or(NotHostPort).and_then(str::parse);
    address.map_err(|NotHostPort| Wrong::kind(value, "HOST:PORT", "\"10.0.2.5:7400\""))
}

pub(super) fn listen(value: &DeValue<'_>) -> Found<SocketAddr> {
    let example = "\"127.0.0.1:7400\", or \":7400\" for every address";
    value.as_str().and_then(parse_listen).ok_or_else(|| Wrong::kind(value, "IP:PORT", example))
}

/// Admin asks nobody who they are yet, so only this machine may reach it.
pub(super) fn loopback_listen(value: &DeValue<'_>) -> Found<SocketAddr> {
    let address = listen(value)?;
    if address.ip().is_loopback() {
        return Ok(address);
    }
    Err(Wrong::not_built("authentication of admin", "listen on loopback, like \"127.0.0.1:7401\""))
}

pub(super) fn upstream(value: &DeValue<'_>) -> Found<HostPort> {
    let wrong = || Wrong::kind(value, "http://HOST:PORT", "\"http://127.0.0.1:3000\"");
    let authority = value.as_str().and_then(|url| url.strip_prefix("http://")).ok_or_else(wrong)?;
    authority.strip_suffix('/').unwrap_or(authority).parse().map_err(|NotHostPort| wrong())
}

pub(super) fn argument(value: &DeValue<'_>) -> Found<String> {
    text(value, "a program or an argument", "[\"./server\", \"--quiet\"]").map(Into::into)
}

pub(super) fn url_path(value: &DeValue<'_>) -> Found<String> {
    let visible = |path: &&str| {
        path.starts_with('/')
            && path.len() <= MAX_TEXT_LEN
            && path.bytes().all(|b| b.is_ascii_graphic() && b != b'#')
    };
    value.as_str().filter(visible).map(Into::into).ok_or_else(|| Wrong::kind(value, "a path", "\"/healthz\""))
}

/// A whole number within bounds.
pub(super) fn count(value: &DeValue<'_>, bounds: RangeInclusive<u32>) -> Found<u32> {
    let (least, most) = (*bounds.start(), *bounds.end());
    let number =
        integer(value).and_then(|number| number.try_into().ok()).filter(|number| bounds.contains(number));
    number.ok_or_else(|| {
        Wrong::kind(value, format!("a whole number from {least} to {most}"), &least.to_string())
    })
}

pub(super) fn capacity(value: &DeValue<'_>) -> Found<f64> {
    let sensible = |capacity: &f64| (0.001..=1000.0).contains(capacity);
    number(value).filter(sensible).ok_or_else(|| Wrong::kind(value, "a number from 0.001 to 1000", "0.5"))
}

/// A time like `"500ms"`, `"2s"` or `"1m"`, within bounds.
pub(super) fn duration(value: &DeValue<'_>, bounds: RangeInclusive<Duration>) -> Found<Duration> {
    let kind = format!("a time from {} to {}", show_duration(*bounds.start()), show_duration(*bounds.end()));
    let time = value.as_str().and_then(parse_duration).filter(|time| bounds.contains(time));
    time.ok_or_else(|| Wrong::kind(value, kind, "\"500ms\" or \"2s\""))
}

fn parse_duration(text: &str) -> Option<Duration> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(unit_at);
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit_ms).map(Duration::from_millis)
}

fn show_duration(time: Duration) -> String {
    match time.as_millis() {
        ms if ms > 0 && ms % 60_000 == 0 => format!("{}m", ms / 60_000),
        ms if ms > 0 && ms % 1000 == 0 => format!("{}s", ms / 1000),
        ms => format!("{ms}ms"),
    }
}

/// A number of bytes like `"512MiB"` or `"20GiB"`, not less than `least`.
pub(super) fn bytes(value: &DeValue<'_>, least: u64) -> Found<u64> {
    let kind = format!("a size of at least {}", show_bytes(least));
    let bytes = value.as_str().and_then(parse_bytes).filter(|bytes| *bytes >= least);
    bytes.ok_or_else(|| Wrong::kind(value, kind, "\"512MiB\" or \"20GiB\""))
}

fn parse_bytes(text: &str) -> Option<u64> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(unit_at);
    let (_, shift) = UNITS.into_iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn show_bytes(bytes: u64) -> String {
    let unit = UNITS.into_iter().rfind(|(_, shift)| bytes.is_multiple_of(1 << shift));
    unit.map_or_else(|| format!("{bytes} bytes"), |(name, shift)| format!("{}{name}", bytes >> shift))
}

/// Units of bytes, and how many bits each stands for.
const UNITS: [(&str, u32); 4] = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)];

/// One of a few words.
pub(super) fn choice<T: Copy>(value: &DeValue<'_>, choices: &[(&str, T)]) -> Found<T> {
    let wanted = value.as_str().unwrap_or_default();
    if let Some((_, choice)) = choices.iter().find(|(word, _)| *word == wanted) {
        return Ok(*choice);
    }
    let words: Vec<String> = choices.iter().map(|(word, _)| quote(word)).collect();
    let expected = match nearest(wanted, choices.iter().map(|(word, _)| *word)) {
        Some(word) => format!("did you mean {word:?}?"),
        None => format!("write {}", words.join(" or ")),
    };
    Err(Wrong { problem: format!("{} is none of {}", describe(value), words.join(", ")), expected })
}

pub(super) fn place_name<'v>(value: &'v DeValue<'_>) -> Found<&'v str> {
    text(value, "a place", "\"sydney\" or { lat = -33.45, lon = -70.67 }")
}

/// A network like `192.0.2.0/24`; here the key is the value.
pub(super) fn network(text: &str) -> Found<IpNet> {
    let Ok(network) = text.parse::<IpNet>() else {
        return Err(Wrong {
            problem: "not a network".into(),
            expected: "write it like \"192.0.2.0/24\" or \"2001:db8::/32\"".into(),
        });
    };
    if network.addr() == network.network() {
        return Ok(network);
    }
    let expected = format!("write \"{}\"", network.trunc());
    Err(Wrong { problem: "has bits beyond the prefix".into(), expected })
}

/// `{ lat = -33.45, lon = -70.67 }`, if the value is a table at all.
pub(super) fn coordinates(value: &DeValue<'_>) -> Option<Found<Coordinates>> {
    let table = value.as_table()?;
    let degrees = |key: &str| table.get(key).and_then(|value| number(value.get_ref()));
    let point = degrees("lat").zip(degrees("lon")).filter(|_| table.len() == 2);
    Some(
        point
            .and_then(|(latitude_deg, longitude_deg)| Coordinates::new(latitude_deg, longitude_deg))
            .ok_or_else(|| Wrong {
                problem: "these are not coordinates in degrees".into(),
                expected: "write { lat = -33.45, lon = -70.67 }; lat is from -90 to 90, lon from -180 to 180"
                    .into(),
            }),
    )
}

fn integer(value: &DeValue<'_>) -> Option<i64> {
    let number = value.as_integer()?;
    i64::from_str_radix(number.as_str(), number.radix()).ok()
}

fn number(value: &DeValue<'_>) -> Option<f64> {
    let float = value.as_float().and_then(|float| float.as_str().parse().ok());
    float.or_else(|| integer(value).map(|number| number as f64)).filter(|number: &f64| number.is_finite())
}

/// A value as a message shows it: short.
pub(super) fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => quote(text),
        DeValue::Integer(number) => shorten(&number.to_string()),
        DeValue::Float(number) => shorten(number.as_str()),
        DeValue::Boolean(yes) => yes.to_string(),
        DeValue::Datetime(datetime) => datetime.to_string(),
        DeValue::Array(_) => "a list".into(),
        DeValue::Table(_) => "a table".into(),
    }
}

pub(super) fn quote(text: &str) -> String {
    format!("{:?}", shorten(text))
}

fn shorten(text: &str) -> String {
    const SHOWN: usize = 60;
    let mut shown: String = text.chars().take(SHOWN).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

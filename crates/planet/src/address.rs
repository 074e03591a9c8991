//! Network addresses as `planet.toml` writes them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// An address to dial: an IP address or a host name, and a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    /// An IP address (without brackets) or a host name.
    pub host: String,
    /// 1 to 65535.
    pub port: u16,
}

impl HostPort {
    /// The address if the host is an IP address, or `localhost`, which is 127.0.0.1 here; none if it is a name that
    /// has to be resolved.
    pub fn ip(&self) -> Option<IpAddr> {
        if self.host == "localhost" { Some(Ipv4Addr::LOCALHOST.into()) } else { self.host.parse().ok() }
    }

    /// Where to bind so that others who dial this address arrive: the same address, or all of them if it is a name.
    pub(crate) fn listen(&self) -> SocketAddr {
        SocketAddr::new(self.ip().unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED)), self.port)
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl Serialize for HostPort {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The text is no `HOST:PORT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not HOST:PORT; write it like \"10.0.2.5:7400\"")]
pub struct NotHostPort;

impl FromStr for HostPort {
    type Err = NotHostPort;

    fn from_str(text: &str) -> Result<Self, NotHostPort> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return if address.port() == 0 {
                Err(NotHostPort)
            } else {
                Ok(Self { host: address.ip().to_string(), port: address.port() })
            };
        }
        let (host, port) = text.rsplit_once(':').ok_or(NotHostPort)?;
        let port = parse_port(port).ok_or(NotHostPort)?;
        if is_host_name(host) { Ok(Self { host: host.to_ascii_lowercase(), port }) } else { Err(NotHostPort) }
    }
}

/// An address to bind: `IP:PORT`, or `:PORT` for every address of the machine (`[::]`, which takes IPv4 as well).
pub(crate) fn parse_listen(text: &str) -> Option<SocketAddr> {
    if let Some(port) = text.strip_prefix(':') {
        return Some(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), parse_port(port)?));
    }
    text.parse().ok().filter(|address: &SocketAddr| address.port() != 0)
}

/// A DNS name of letters, digits and hyphens (RFC 1123 2.1), whose last label is no number, so that a mistyped IP
/// address is not taken for a name.
pub(crate) fn is_host_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let numeric_end = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    name.len() <= 253 && name.split('.').all(label) && !numeric_end
}

fn parse_port(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|&port| port != 0 && digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_and_port() {
        for text in ["10.0.2.5:7400", "[2001:db8::1]:7400", "localhost:1", "eu.acme.example:65535"] {
            assert_eq!(text.parse::<HostPort>().map(|address| address.to_string()).as_deref(), Ok(text));
        }
        for text in [
            "",
            ":",
            "10.0.2.5",
            ":7400",
            "10.0.2.5:0",
            "10.0.2.5:65536",
            "10.0.2:7400",
            "a b:1",
            "a:+1",
            "::1:80",
        ] {
            assert_eq!(text.parse::<HostPort>(), Err(NotHostPort), "{text:?}");
        }
    }

    #[test]
    fn listen() {
        assert_eq!(parse_listen(":80"), Some("[::]:80".parse().unwrap()));
        assert_eq!(parse_listen("127.0.0.1:6379"), Some("127.0.0.1:6379".parse().unwrap()));
        for text in ["", "80", "localhost:80", "127.0.0.1:0", ":99999", "127.0.0.1"] {
            assert_eq!(parse_listen(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_link_by_name_listens_everywhere_and_localhost_does_not() {
        let listen = |text: &str| text.parse::<HostPort>().unwrap().listen().to_string();
        assert_eq!(listen("eu.acme.example:7400"), "[::]:7400");
        assert_eq!(listen("localhost:7400"), "127.0.0.1:7400");
        assert_eq!(listen("10.0.2.5:7400"), "10.0.2.5:7400");
    }
}

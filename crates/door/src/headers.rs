//! Which header fields go on, and which end here.

use http::header::{
    CONNECTION, COOKIE, EXPECT, Entry, HOST, HeaderName, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
    TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::{HeaderMap, HeaderValue};

pub(crate) const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
pub(crate) const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
pub(crate) const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(crate) const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(crate) const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// The region whose service answered; on every response.
pub const REGION: HeaderName = HeaderName::from_static("geode-region");
/// Why that region; on the response to a request with [`EXPLAIN`].
pub const REASON: HeaderName = HeaderName::from_static("geode-reason");
/// `1` asks for [`REASON`].
pub const EXPLAIN: HeaderName = HeaderName::from_static("geode-explain");
/// The session token; the cookie bears the same name.
pub const SESSION: HeaderName = HeaderName::from_static("geode-session");
/// `1`: the answer may not contain all that the session has seen.
pub const STALE: HeaderName = HeaderName::from_static("geode-stale");
/// From door to door: the region that forwards. Means something on the peer listener only.
pub(crate) const HOP_FROM: HeaderName = HeaderName::from_static("geode-hop-from");
/// From door to door: the client's session token.
pub(crate) const HOP_SESSION: HeaderName = HeaderName::from_static("geode-hop-session");
/// From door to door, on a response: no service has seen the request.
pub(crate) const HOP_REFUSED: HeaderName = HeaderName::from_static("geode-hop-refused");

/// Whether a comma-separated field holds a token, in whatever case.
pub(crate) fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    tokens(headers, name).any(|found| found.eq_ignore_ascii_case(token))
}

fn tokens<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h str> {
    headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(str::trim).filter(|token| !token.is_empty()))
}

/// Removes what concerns one connection only (RFC 9110, section 7.6.1), also what `Connection` lists. `TE: trailers`
/// stays, as gRPC demands it and trailers do pass.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let trailers = headers.contains_key(TE) && has_token(headers, &TE, "trailers");
    if headers.contains_key(CONNECTION) {
        let listed: Vec<HeaderName> = tokens(headers, &CONNECTION)
            .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
            // These two are the message's own; a client must not make us lose them.
            .filter(|name| *name != HOST && *name != http::header::CONTENT_LENGTH)
            .collect();
        for name in listed {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    for name in [
        &KEEP_ALIVE,
        &PROXY_CONNECTION,
        &PROXY_AUTHENTICATE,
        &PROXY_AUTHORIZATION,
        &TE,
        &TRANSFER_ENCODING,
        &UPGRADE,
    ] {
        headers.remove(name);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Removes `Expect: 100-continue`: the door itself answers 100 when an upstream is there to take the body.
pub(crate) fn strip_expectation(headers: &mut HeaderMap) {
    if has_token(headers, &EXPECT, "100-continue") {
        headers.remove(EXPECT);
    }
}

/// Removes every field of geode's own.
pub(crate) fn strip_geode(headers: &mut HeaderMap) {
    remove_with_prefix(headers, "geode-");
}

/// Removes what doors say to each other.
pub(crate) fn strip_hop(headers: &mut HeaderMap) {
    remove_with_prefix(headers, "geode-hop-");
}

fn remove_with_prefix(headers: &mut HeaderMap, prefix: &str) {
    let unwanted: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with(prefix)).cloned().collect();
    for name in unwanted {
        headers.remove(name);
    }
}

/// Appends to a comma-separated field, as one line.
pub(crate) fn append_token(headers: &mut HeaderMap, name: HeaderName, token: HeaderValue) {
    match headers.entry(name) {
        Entry::Vacant(vacant) => {
            vacant.insert(token);
        }
        Entry::Occupied(mut occupied) => {
            let mut joined = Vec::new();
            for value in occupied.iter() {
                joined.extend_from_slice(value.as_bytes());
                joined.extend_from_slice(b", ");
            }
            joined.extend_from_slice(token.as_bytes());
            // The parts were header values, and so is what joins them.
            if let Ok(joined) = HeaderValue::from_bytes(&joined) {
                occupied.insert(joined);
            }
        }
    }
}

/// Says that the message passed through this door (RFC 9110, section 7.6.3).
pub(crate) fn append_via(headers: &mut HeaderMap, via: &HeaderValue) {
    append_token(headers, VIA, via.clone());
}

/// Takes a cookie out of the request: its first value. The other cookies stay as they were.
pub(crate) fn take_cookie(headers: &mut HeaderMap, name: &str) -> Option<Vec<u8>> {
    if !headers
        .get_all(COOKIE)
        .iter()
        .any(|line| crumbs(line).any(|crumb| crumb_named(crumb, name).is_some()))
    {
        return None;
    }
    let lines: Vec<HeaderValue> = headers.get_all(COOKIE).iter().cloned().collect();
    headers.remove(COOKIE);
    let mut taken = None;
    for line in &lines {
        let mut rest: Vec<u8> = Vec::new();
        for crumb in crumbs(line) {
            match crumb_named(crumb, name) {
                Some(value) => _ = taken.get_or_insert_with(|| value.to_vec()),
                None => {
                    if !rest.is_empty() {
                        rest.extend_from_slice(b"; ");
                    }
                    rest.extend_from_slice(crumb);
                }
            }
        }
        if let (false, Ok(rest)) = (rest.is_empty(), HeaderValue::from_bytes(&rest)) {
            headers.append(COOKIE, rest);
        }
    }
    taken
}

fn crumbs(line: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    line.as_bytes().split(|byte| *byte == b';').map(<[u8]>::trim_ascii).filter(|crumb| !crumb.is_empty())
}

fn crumb_named<'c>(crumb: &'c [u8], name: &str) -> Option<&'c [u8]> {
    crumb.strip_prefix(name.as_bytes())?.strip_prefix(b"=")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> HeaderMap {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        lines
            .map(|line| line.split_once(": ").unwrap())
            .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap()))
            .collect()
    }

    fn lines(headers: &HeaderMap) -> String {
        let mut lines: Vec<String> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        lines.sort();
        lines.join("\n")
    }

    #[test]
    fn fields_of_one_connection_end_here() {
        let mut headers = fields(
            "Connection: close, X-Private, Host, content-length
             Host: example.org
             Content-Length: 3
             X-Private: 1
             Keep-Alive: timeout=5
             Proxy-Connection: keep-alive
             Proxy-Authorization: Basic x
             TE: gzip, trailers
             Transfer-Encoding: chunked
             Upgrade: websocket
             Trailer: Checksum
             Accept: */*",
        );
        strip_hop_by_hop(&mut headers);
        assert_eq!(
            lines(&headers),
            "accept: */*\ncontent-length: 3\nhost: example.org\nte: trailers\ntrailer: Checksum"
        );
    }

    #[test]
    fn a_cookie_is_taken_out_and_the_others_stay() {
        for (before, taken, after) in [
            ("Cookie: a=1; Geode-Session=tok; b=2", Some("tok"), "cookie: a=1; b=2"),
            ("Cookie: Geode-Session=tok", Some("tok"), ""),
            ("Cookie: a=1; xGeode-Session=tok", None, "cookie: a=1; xGeode-Session=tok"),
            ("Cookie: a=\"1;  2\";b", None, "cookie: a=\"1;  2\";b"),
            ("Cookie: Geode-Session=one; Geode-Session=two; a=1", Some("one"), "cookie: a=1"),
            ("Cookie: a=1\nCookie: Geode-Session=tok;c=3", Some("tok"), "cookie: a=1\ncookie: c=3"),
        ] {
            let mut headers = fields(before);
            let value =
                take_cookie(&mut headers, "Geode-Session").map(|value| String::from_utf8(value).unwrap());
            assert_eq!(value.as_deref(), taken, "{before}");
            assert_eq!(lines(&headers), after, "{before}");
        }
    }

    #[test]
    fn tokens_are_appended_on_one_line() {
        let mut headers = fields("X-Forwarded-For: 198.51.100.1\nX-Forwarded-For: 198.51.100.2, junk");
        append_token(&mut headers, FORWARDED_FOR, HeaderValue::from_static("192.0.2.1"));
        assert_eq!(lines(&headers), "x-forwarded-for: 198.51.100.1, 198.51.100.2, junk, 192.0.2.1");
    }
}

//! The `traceparent` header (W3C Trace Context): passed on when valid, made when not there.

use std::sync::atomic::{AtomicU64, Ordering};

use http::header::HeaderName;
use http::{HeaderMap, HeaderValue};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Makes identifiers that do not repeat: SplitMix64 (Steele, Lea and Flood, 2014) from a random start. They need be
/// unique, not secret.
#[derive(Debug)]
pub(crate) struct TraceIds {
    state: AtomicU64,
    salt: u64,
}

impl TraceIds {
    /// Starts anywhere, by the operating system's randomness.
    pub(crate) fn new() -> Result<Self, getrandom::Error> {
        Ok(Self { state: AtomicU64::new(getrandom::u64()?), salt: getrandom::u64()? })
    }

    /// Gives the request a `traceparent` if it has no valid one. A new one is not marked as sampled: nobody recorded it.
    pub(crate) fn ensure(&self, headers: &mut HeaderMap) {
        let mut present = headers.get_all(TRACEPARENT).iter();
        if matches!((present.next(), present.next()), (Some(value), None) if is_valid(value.as_bytes())) {
            return;
        }
        let trace = (u128::from(self.next()) << 64 | u128::from(self.next() ^ self.salt)).max(1);
        let parent = self.next().max(1);
        if let Ok(value) = HeaderValue::from_str(&format!("00-{trace:032x}-{parent:016x}-00")) {
            headers.insert(TRACEPARENT, value);
        }
    }

    fn next(&self) -> u64 {
        let mut mixed = self.state.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }
}

/// `version-traceid-parentid-flags` in lower-case hexadecimal; later versions may append to it.
fn is_valid(value: &[u8]) -> bool {
    let mut parts = value.split(|byte| *byte == b'-');
    let mut hex = |length: usize| {
        let part = parts.next()?;
        let good = part.len() == length && part.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        good.then_some(part)
    };
    let (Some(version), Some(trace), Some(parent), Some(_flags)) = (hex(2), hex(32), hex(16), hex(2)) else {
        return false;
    };
    let zero = |part: &[u8]| part.iter().all(|digit| *digit == b'0');
    version != b"ff" && !zero(trace) && !zero(parent) && (version != b"00" || parts.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_valid_ones_are_kept() {
        let ids = TraceIds::new().unwrap();
        for (value, kept) in [
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", true),
            ("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more", true),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more", false),
            ("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", false),
            ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", false),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", false),
            ("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", false),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(TRACEPARENT, HeaderValue::from_static(value));
            ids.ensure(&mut headers);
            let now = headers.get(TRACEPARENT).unwrap();
            assert_eq!(now == value, kept, "{value}");
            assert!(is_valid(now.as_bytes()), "{now:?}");
        }
    }
}

//! Session tokens: what a client has seen, sealed so that only the planet's doors can write it.
//!
//! A token is `base64url(version ‖ vector ‖ HMAC-SHA256(key, version ‖ vector))`, unpadded, at most 1 KiB. The vector is
//! opaque here. A token that does not check out is treated as none: it can only cost freshness.

use http::HeaderValue;
use ring::hmac;

/// The name of the session's cookie.
pub(crate) const COOKIE_NAME: &str = "Geode-Session";

/// The longest token, in bytes; browsers drop cookies above 4 KiB, and every request carries this one.
pub const MAX_TOKEN_BYTES: usize = 1024;

const VERSION: u8 = 1;
const TAG_BYTES: usize = 32;

/// Tokens have a key of their own, so that what the planet's key is used for elsewhere never is a token.
const PURPOSE: &[u8] = b"geode session token";

/// Seals and opens tokens with the planet's key.
#[derive(Debug, Clone)]
pub struct SessionKey(hmac::Key);

impl SessionKey {
    /// A key from the planet's secret bytes: 32 or more random ones.
    pub fn new(secret: &[u8]) -> Self {
        let planet_key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        Self(hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&planet_key, PURPOSE).as_ref()))
    }

    /// The token for a vector; None if it would be too long.
    pub fn seal(&self, vector: &[u8]) -> Option<HeaderValue> {
        let mut token = Vec::with_capacity(1 + vector.len() + TAG_BYTES);
        token.push(VERSION);
        token.extend_from_slice(vector);
        let tag = hmac::sign(&self.0, &token);
        token.extend_from_slice(tag.as_ref());
        let text = encode(&token);
        (text.len() <= MAX_TOKEN_BYTES).then(|| HeaderValue::from_str(&text).ok()).flatten()
    }

    /// The vector in a token that was sealed with this key.
    pub fn open(&self, token: &[u8]) -> Option<Vec<u8>> {
        if token.len() > MAX_TOKEN_BYTES {
            return None;
        }
        let mut sealed = decode(token)?;
        let (content, tag) = sealed.split_at_checked(sealed.len().checked_sub(TAG_BYTES)?)?;
        if hmac::verify(&self.0, content, tag).is_err() || content.first() != Some(&VERSION) {
            return None;
        }
        sealed.truncate(sealed.len() - TAG_BYTES);
        sealed.remove(0);
        Some(sealed)
    }
}

/// The `Set-Cookie` for a token: out of reach of scripts, and sent along when a link leads here.
pub(crate) fn set_cookie(token: &HeaderValue) -> Option<HeaderValue> {
    let token = token.to_str().ok()?;
    HeaderValue::from_str(&format!("{COOKIE_NAME}={token}; Path=/; HttpOnly; SameSite=Lax")).ok()
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// base64url without padding (RFC 4648, section 5).
fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let word =
            group.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for place in 0..=group.len() {
            text.push(char::from(ALPHABET[(word >> (18 - 6 * place)) as usize & 63]));
        }
    }
    text
}

/// The inverse; None for anything that [`encode`] does not write.
fn decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for group in text.chunks(4) {
        let mut word = 0_u32;
        for letter in group {
            word = word << 6 | sextet(*letter)?;
        }
        word <<= 6 * (4 - group.len());
        let count = group.len().checked_sub(1).filter(|count| *count > 0)?;
        let [_, octets @ ..] = word.to_be_bytes();
        if octets[count..].iter().any(|unused| *unused != 0) {
            return None;
        }
        bytes.extend_from_slice(&octets[..count]);
    }
    Some(bytes)
}

fn sextet(letter: u8) -> Option<u32> {
    Some(u32::from(match letter {
        b'A'..=b'Z' => letter - b'A',
        b'a'..=b'z' => letter - b'a' + 26,
        b'0'..=b'9' => letter - b'0' + 52,
        b'-' => 62,
        b'_' => 63,
        _ => return None,
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn base64url_is_that_of_rfc_4648() {
        for (bytes, text) in [
            (&b""[..], ""),
            (b"f", "Zg"),
            (b"fo", "Zm8"),
            (b"foo", "Zm9v"),
            (b"foob", "Zm9vYg"),
            (&[0xfb, 0xff, 0xbf], "-_-_"),
        ] {
            assert_eq!(encode(bytes), text);
            assert_eq!(decode(text.as_bytes()).as_deref(), Some(bytes));
        }
        for bad in ["A", "Zh", "Zm9", "Zg==", "Zm9v!", "+/+/"] {
            assert_eq!(decode(bad.as_bytes()), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens_with_the_same_key_only(vector in prop::collection::vec(any::<u8>(), 0..735)) {
            let key = SessionKey::new(&[7; 32]);
            let token = key.seal(&vector).unwrap();
            prop_assert!(token.len() <= MAX_TOKEN_BYTES);
            prop_assert_eq!(key.open(token.as_bytes()), Some(vector));
            prop_assert_eq!(SessionKey::new(&[8; 32]).open(token.as_bytes()), None);
        }

        #[test]
        fn a_changed_token_does_not_open(vector in prop::collection::vec(any::<u8>(), 0..99), at: prop::sample::Index, change in 1_u8..) {
            let key = SessionKey::new(&[7; 32]);
            let mut token = key.seal(&vector).unwrap().as_bytes().to_vec();
            let at = at.index(token.len());
            token[at] ^= change;
            prop_assert_eq!(key.open(&token), None);
        }

        #[test]
        fn no_text_makes_open_fail_otherwise(token in prop::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert_eq!(SessionKey::new(&[7; 32]).open(&token), None);
        }
    }

    #[test]
    fn a_vector_that_would_not_fit_is_not_sealed() {
        let key = SessionKey::new(&[7; 32]);
        assert!(key.seal(&[0; 735]).is_some_and(|token| token.len() <= MAX_TOKEN_BYTES));
        assert!(key.seal(&[0; 736]).is_none());
    }
}

//! The name of a region.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The name of a region: 1 to 32 characters of `a-z`, `0-9` and `-`, so that it can stand in a host name, a metric
/// label, a file name and a header without escaping. Cloning is one atomic increment.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RegionName(Arc<str>);

/// The text is no region name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a region name; use 1 to 32 characters of a-z, 0-9 and \"-\", like \"eu-west-1\"")]
pub struct InvalidRegionName(pub String);

impl RegionName {
    /// The longest name, in bytes.
    pub const MAX_LEN: usize = 32;

    /// Checks and wraps a name.
    pub fn new(name: &str) -> Result<Self, InvalidRegionName> {
        let plain = name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        if plain && (1..=Self::MAX_LEN).contains(&name.len()) {
            Ok(Self(name.into()))
        } else {
            // A longer text would drown the message.
            Err(InvalidRegionName(name.chars().take(2 * Self::MAX_LEN).collect()))
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RegionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for RegionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// Allows a map keyed by `RegionName` to be searched with a `&str`.
impl std::borrow::Borrow<str> for RegionName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl FromStr for RegionName {
    type Err = InvalidRegionName;

    fn from_str(name: &str) -> Result<Self, InvalidRegionName> {
        Self::new(name)
    }
}

impl TryFrom<String> for RegionName {
    type Error = InvalidRegionName;

    fn try_from(name: String) -> Result<Self, InvalidRegionName> {
        Self::new(&name)
    }
}

impl From<RegionName> for String {
    fn from(name: RegionName) -> Self {
        name.as_str().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_what_fits_a_host_name_label_and_nothing_else() {
        for good in ["a", "us-east-1", "0", "depot", &"x".repeat(32)] {
            assert_eq!(RegionName::new(good).unwrap().to_string(), good);
        }
        for bad in ["", "US-EAST-1", "eu west", "eu_west", "é", "a/b", "a.b", &"x".repeat(33)] {
            assert!(RegionName::new(bad).is_err(), "{bad:?}");
        }
        assert!(RegionName::new(&"é".repeat(1000)).unwrap_err().to_string().len() < 300);
    }
}

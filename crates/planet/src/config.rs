//! Reading `planet.toml`: text to [`Planet`](crate::Planet), or all mistakes at once.
//!
//! What is said once for all regions may be said again by a region for itself, in the same form below its own table, and
//! then wins there:
//!
//! ```toml
//! [store]
//! data = "/var/lib/geode"
//! [door]
//! listen = [":80"]
//!
//! [regions.eu-west-1]
//! data = "/srv/geode"
//! door.listen = "198.51.100.10:80" # or door = { listen = .. }; likewise redis.listen and admin.listen
//! ```

mod grammar;
mod section;
mod value;

use std::fmt;

/// One mistake in `planet.toml`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {}{problem}; {expected}", if key.is_empty() { String::new() } else { format!("{key}: ") })]
pub struct ConfigError {
    /// The file's name, as given to [`Planet::parse`](crate::Planet::parse).
    pub file: String,
    /// Counted from 1.
    pub line: usize,
    /// The full key, like `regions.eu-west-1.link`; empty if the text is not TOML.
    pub key: String,
    /// What is wrong.
    pub problem: String,
    /// What is expected instead.
    pub expected: String,
}

/// All mistakes in a `planet.toml`, in the order of its lines. Displays one a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

/// How many mistakes are printed: more do not fit a screen, and a file that has more is not a planet.toml.
const SHOWN: usize = 50;

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().take(SHOWN).enumerate() {
            write!(f, "{}{error}", if index == 0 { "" } else { "\n" })?;
        }
        match self.0.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, "\nand {more} more"),
        }
    }
}

impl std::error::Error for ConfigErrors {}

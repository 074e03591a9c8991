//! Amounts: what an actor's increments of one cell add up to, and what counts as a number.

/// The running total of one actor's increments. 128 bits, so that a total never wraps however long a counter lives;
/// the first float increment turns the run into a float.
#[derive(Clone, Copy, Debug)]
pub enum Amount {
    /// Sum of integer increments.
    Integer(i128),
    /// Sum that includes at least one float increment; always finite.
    Float(f64),
}

impl Amount {
    /// Zero, the total of a run before its first increment.
    pub const ZERO: Self = Self::Integer(0);

    /// The sum of both; a float wherever one is a float.
    pub fn plus(self, other: Self) -> Self {
        match (self, other) {
            (Self::Integer(left), Self::Integer(right)) => Self::Integer(left.saturating_add(right)),
            (left, right) => Self::Float(left.as_f64() + right.as_f64()),
        }
    }

    /// What is left of this total after an earlier total of the same run was cancelled.
    pub fn minus(self, cancelled: Self) -> Self {
        match (self, cancelled) {
            (Self::Integer(left), Self::Integer(right)) => Self::Integer(left.saturating_sub(right)),
            (left, right) => Self::Float(left.as_f64() - right.as_f64()),
        }
    }

    /// As a float, rounded to nearest.
    pub fn as_f64(self) -> f64 {
        match self {
            Self::Integer(value) => value as f64,
            Self::Float(value) => value,
        }
    }
}

/// Equal in bits, so that totals can be compared in digests and tests.
impl PartialEq for Amount {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Integer(left), Self::Integer(right)) => left == right,
            (Self::Float(left), Self::Float(right)) => left.to_bits() == right.to_bits(),
            _ => false,
        }
    }
}

impl Eq for Amount {}

/// The integer a string stands for by the strict rule of Redis's `string2ll`: optional minus, no leading zeros, no
/// plus, no spaces, 64 bits.
pub fn parse_integer(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let canonical = match digits {
        [b'0'] => text.len() == 1,
        [b'1'..=b'9', ..] => digits.len() <= 19 && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    if !canonical {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// The finite float a string stands for, as INCRBYFLOAT accepts it (no spaces, no NaN, no infinity).
pub fn parse_float(text: &[u8]) -> Option<f64> {
    // strtold's longest useful input; also keeps the parse of a huge value from costing anything.
    if text.is_empty() || text.len() > 400 {
        return None;
    }
    let value: f64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    value.is_finite().then_some(value)
}

/// A float as Redis prints it to users: shortest digits, no exponent, no trailing zeros.
pub(crate) fn format_float(value: f64) -> String {
    // `-0` is shown as Redis shows it.
    if value == 0.0 && value.is_sign_negative() { "-0".to_owned() } else { format!("{value}") }
}

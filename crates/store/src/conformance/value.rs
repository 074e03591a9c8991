//! Replies as values that tests compare and scripts spell.

use std::fmt;

use crate::reply::Reply;

/// One whole reply.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A status.
    Simple(String),
    /// An error with its code.
    Error(String),
    /// An integer.
    Integer(i64),
    /// A bulk string.
    Bulk(Vec<u8>),
    /// A missing value.
    Null,
    /// A missing array.
    NullArray,
    /// Replies in order.
    Array(Vec<Self>),
    /// Pairs in no order.
    Map(Vec<(Self, Self)>),
    /// Replies in no order.
    Set(Vec<Self>),
    /// A float.
    Double(f64),
}

impl Value {
    /// An array whose order means nothing, as a set.
    pub fn unordered(self) -> Self {
        match self {
            Self::Array(values) => Self::Set(values),
            other => other,
        }
    }
}

/// As scripts spell it: `OK`, `!ERR text`, `1`, `"bulk"`, `nil`, `nil-array`, `[1 2]`, `{1 2}`, `{"f": "v"}`. What has no
/// order is sorted.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let joined = |values: &[Self]| values.iter().map(Self::to_string).collect::<Vec<_>>().join(" ");
        match self {
            Self::Simple(text) => f.write_str(text),
            Self::Error(message) => write!(f, "!{message}"),
            Self::Integer(value) => write!(f, "{value}"),
            Self::Bulk(bytes) => write!(f, "\"{}\"", bytes.escape_ascii()),
            Self::Null => f.write_str("nil"),
            Self::NullArray => f.write_str("nil-array"),
            Self::Array(values) => write!(f, "[{}]", joined(values)),
            Self::Set(values) => {
                let mut texts: Vec<String> = values.iter().map(Self::to_string).collect();
                texts.sort();
                write!(f, "{{{}}}", texts.join(" "))
            }
            Self::Map(pairs) => {
                let mut texts: Vec<String> =
                    pairs.iter().map(|(key, value)| format!("{key}: {value}")).collect();
                texts.sort();
                write!(f, "{{{}}}", texts.join(" "))
            }
            Self::Double(value) => write!(f, "{value}"),
        }
    }
}

/// Collects one reply.
#[derive(Debug, Default)]
pub struct Recorder {
    parts: Vec<Part>,
}

#[derive(Clone, Debug)]
enum Part {
    Value(Value),
    Array(usize),
    Map(usize),
    Set(usize),
}

impl Recorder {
    /// Whether nothing was replied.
    pub const fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// The reply; an error if it was not exactly one.
    pub fn finish(self) -> Result<Value, String> {
        let mut parts = self.parts.into_iter();
        let value = read(&mut parts).ok_or("the reply ends early")?;
        match parts.next() {
            None => Ok(value),
            Some(more) => Err(format!("after the reply {value} comes {more:?}")),
        }
    }
}

fn read(parts: &mut std::vec::IntoIter<Part>) -> Option<Value> {
    let part = parts.next()?;
    let mut many = |length| (0..length).map(|_| read(parts)).collect::<Option<Vec<Value>>>();
    Some(match part {
        Part::Value(value) => value,
        Part::Array(length) => Value::Array(many(length)?),
        Part::Set(length) => Value::Set(many(length)?),
        Part::Map(length) => {
            let flat = many(length * 2)?;
            Value::Map(flat.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect())
        }
    })
}

impl Reply for Recorder {
    fn simple(&mut self, text: &str) {
        self.parts.push(Part::Value(Value::Simple(text.into())));
    }

    fn error(&mut self, message: &str) {
        self.parts.push(Part::Value(Value::Error(message.into())));
    }

    fn integer(&mut self, value: i64) {
        self.parts.push(Part::Value(Value::Integer(value)));
    }

    fn bulk(&mut self, bytes: &[u8]) {
        self.parts.push(Part::Value(Value::Bulk(bytes.into())));
    }

    fn null(&mut self) {
        self.parts.push(Part::Value(Value::Null));
    }

    fn null_array(&mut self) {
        self.parts.push(Part::Value(Value::NullArray));
    }

    fn array(&mut self, length: usize) {
        self.parts.push(Part::Array(length));
    }

    fn map(&mut self, length: usize) {
        self.parts.push(Part::Map(length));
    }

    fn set(&mut self, length: usize) {
        self.parts.push(Part::Set(length));
    }

    fn double(&mut self, value: f64) {
        self.parts.push(Part::Value(Value::Double(value)));
    }

    fn mark(&self) -> usize {
        self.parts.len()
    }

    fn rewind(&mut self, mark: usize) {
        self.parts.truncate(mark);
    }
}

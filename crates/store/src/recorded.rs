//! A reply as bytes, to be given again later, in whatever protocol is then spoken.
//!
//! A tag for each call of [`Reply`], as Redis writes it, and what the call was given: a length and bytes, a zigzag LEB128
//! integer, or the eight bytes of a float.

use geode_crdt::FrameError;
use geode_crdt::codec::{self, Reader};

use crate::reply::Reply;

/// The longest reply that is kept: any counter, status or small value; not a whole document.
const LIMIT: usize = 64 << 10;

/// Takes one reply.
#[derive(Debug, Default)]
pub(crate) struct Recorded {
    bytes: Vec<u8>,
    is_too_long: bool,
}

impl Recorded {
    /// The reply, unless it was longer than what is kept.
    pub(crate) fn bytes(&self) -> Option<&[u8]> {
        (!self.is_too_long).then_some(&self.bytes)
    }

    fn put_bytes(&mut self, tag: u8, bytes: &[u8]) {
        self.is_too_long |= self.bytes.len() + bytes.len() > LIMIT;
        if !self.is_too_long {
            self.bytes.push(tag);
            codec::put_bytes(&mut self.bytes, bytes);
        }
    }

    fn put_integer(&mut self, tag: u8, value: impl Into<i128>) {
        self.is_too_long |= self.bytes.len() > LIMIT;
        if !self.is_too_long {
            self.bytes.push(tag);
            codec::put_signed(&mut self.bytes, value.into());
        }
    }
}

/// Gives a reply again.
///
/// # Errors
/// The bytes are none; `reply` then has got a part of it.
pub(crate) fn replay<R: Reply>(bytes: &[u8], reply: &mut R) -> Result<(), FrameError> {
    let mut reader = Reader::new(bytes);
    while !reader.is_empty() {
        match reader.byte()? {
            b'+' => reply.simple(text(reader.bytes()?)?),
            b'-' => reply.error(text(reader.bytes()?)?),
            b'$' => reply.bulk(reader.bytes()?),
            b':' => reply.integer(number(reader.signed()?)?),
            b'*' => reply.array(number(reader.signed()?)?),
            b'%' => reply.map(number(reader.signed()?)?),
            b'~' => reply.set(number(reader.signed()?)?),
            b'_' => reply.null(),
            b'0' => reply.null_array(),
            b',' => reply.double(f64::from_bits(reader.u64()?)),
            _ => return Err(FrameError::Malformed("a tag of a reply")),
        }
    }
    Ok(())
}

fn text(bytes: &[u8]) -> Result<&str, FrameError> {
    std::str::from_utf8(bytes).map_err(|_| FrameError::Malformed("a status"))
}

fn number<T: TryFrom<i128>>(value: i128) -> Result<T, FrameError> {
    T::try_from(value).map_err(|_| FrameError::Malformed("a number of a reply"))
}

impl Reply for Recorded {
    fn simple(&mut self, text: &str) {
        self.put_bytes(b'+', text.as_bytes());
    }
    fn error(&mut self, message: &str) {
        self.put_bytes(b'-', message.as_bytes());
    }
    fn integer(&mut self, value: i64) {
        self.put_integer(b':', value);
    }
    fn bulk(&mut self, bytes: &[u8]) {
        self.put_bytes(b'$', bytes);
    }
    fn null(&mut self) {
        self.bytes.push(b'_');
    }
    fn null_array(&mut self) {
        self.bytes.push(b'0');
    }
    fn array(&mut self, length: usize) {
        self.put_integer(b'*', length as u64);
    }
    fn map(&mut self, length: usize) {
        self.put_integer(b'%', length as u64);
    }
    fn set(&mut self, length: usize) {
        self.put_integer(b'~', length as u64);
    }
    fn double(&mut self, value: f64) {
        self.bytes.push(b',');
        self.bytes.extend_from_slice(&value.to_bits().to_le_bytes());
    }
    fn mark(&self) -> usize {
        self.bytes.len()
    }
    fn rewind(&mut self, mark: usize) {
        self.bytes.truncate(mark);
        self.is_too_long = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_shape(reply: &mut impl Reply) {
        reply.array(8);
        reply.simple("OK");
        reply.error("ERR no");
        reply.integer(-7);
        reply.bulk(b"a\0b");
        reply.null();
        reply.null_array();
        reply.map(1);
        reply.double(0.5);
        reply.set(1);
        reply.integer(i64::MAX);
    }

    /// Version 1 of what stands in the records of GEODE.ONCE.
    const GOLDEN: &[u8] = b"*\x10+\x02OK-\x06ERR no:\x0d$\x03a\0b_0%\x02,\0\0\0\0\0\0\xe0?~\x02:\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01";

    #[test]
    fn a_reply_is_given_again_as_it_was() {
        let mut recorded = Recorded::default();
        every_shape(&mut recorded);
        assert_eq!(recorded.bytes(), Some(GOLDEN), "{}", recorded.bytes.escape_ascii());
        let mut again = Recorded::default();
        replay(GOLDEN, &mut again).unwrap();
        assert_eq!(again.bytes(), Some(GOLDEN));
    }

    #[test]
    fn what_is_too_long_is_not_kept_and_takes_no_memory() {
        let mut recorded = Recorded::default();
        recorded.bulk(&vec![b'x'; LIMIT]);
        assert!(recorded.bytes().is_some());
        recorded.bulk(b"x");
        assert!(recorded.bytes().is_none());
        recorded.bulk(&vec![b'x'; 1 << 20]);
        assert!(recorded.bytes.capacity() < 2 * LIMIT);
    }

    #[test]
    fn bytes_that_are_no_reply_are_refused() {
        for end in 1..GOLDEN.len() {
            // Whole parts are what they are; none panics.
            let _ = replay(&GOLDEN[..end], &mut Recorded::default());
        }
        for bad in [&b"?"[..], b"+\x05OK", b"+\x01\xff", b"*\x01", b",\0"] {
            assert!(replay(bad, &mut Recorded::default()).is_err(), "{}", bad.escape_ascii());
        }
    }
}

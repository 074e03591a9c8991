//! The primitive encodings of the byte format: variable-length integers and bounded slices.

use crate::frame::FrameError;

/// Appends an unsigned integer, seven bits a byte, least significant first (LEB128).
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a signed 128-bit integer, zigzag then LEB128.
pub fn put_signed(out: &mut Vec<u8>, value: i128) {
    let mut zigzag = ((value << 1) ^ (value >> 127)) as u128;
    while zigzag >= 0x80 {
        out.push(zigzag as u8 | 0x80);
        zigzag >>= 7;
    }
    out.push(zigzag as u8);
}

/// Appends a length and the bytes.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Reads what the functions above wrote, from untrusted bytes: every read is checked.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A reader over `bytes`.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// What is left.
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Whether nothing is left.
    pub const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next `length` bytes.
    pub fn take(&mut self, length: usize) -> Result<&'a [u8], FrameError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(FrameError::Short)?;
        self.rest = rest;
        Ok(taken)
    }

    /// One byte.
    pub fn byte(&mut self) -> Result<u8, FrameError> {
        let (first, rest) = self.rest.split_first().ok_or(FrameError::Short)?;
        self.rest = rest;
        Ok(*first)
    }

    /// Four bytes, little-endian.
    pub fn u32(&mut self) -> Result<u32, FrameError> {
        let bytes = self.take(4)?.try_into().map_err(|_| FrameError::Short)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Eight bytes, little-endian.
    pub fn u64(&mut self) -> Result<u64, FrameError> {
        let bytes = self.take(8)?.try_into().map_err(|_| FrameError::Short)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// An unsigned LEB128 integer.
    pub fn varint(&mut self) -> Result<u64, FrameError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(FrameError::Malformed("an integer above 64 bits"));
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(FrameError::Malformed("an integer above 64 bits"))
    }

    /// A zigzag LEB128 integer.
    pub fn signed(&mut self) -> Result<i128, FrameError> {
        let mut zigzag = 0u128;
        for shift in (0..128).step_by(7) {
            let byte = self.byte()?;
            let bits = u128::from(byte & 0x7f);
            if shift == 126 && bits > 3 {
                return Err(FrameError::Malformed("an integer above 128 bits"));
            }
            zigzag |= bits << shift;
            if byte < 0x80 {
                return Ok((zigzag >> 1) as i128 ^ -((zigzag & 1) as i128));
            }
        }
        Err(FrameError::Malformed("an integer above 128 bits"))
    }

    /// A length and that many bytes.
    pub fn bytes(&mut self) -> Result<&'a [u8], FrameError> {
        let length = self.varint()?;
        self.take(usize::try_from(length).map_err(|_| FrameError::Short)?)
    }
}

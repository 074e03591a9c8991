//! What arrived on one connection and is not executed yet.
//!
//! Most reads end exactly where a command ends, so nothing is kept and an idle connection owns no buffer: bytes are
//! read into one buffer that all connections share, and only an incomplete tail moves here. A tail that has outgrown
//! the shared buffer is read into directly; it grows by what arrived, never by what was announced.

/// Up to this size a tail goes back into the shared buffer for the next read.
const SMALL_BYTES: usize = 16 * 1024;

/// The first size of a buffer that is read into directly.
const LARGE_BYTES: usize = 128 * 1024;

/// At most so much is read at once, so that a connection that sends large values leaves time for others.
const READ_BYTES: usize = 256 * 1024;

/// The unexecuted bytes of a connection.
#[derive(Debug, Default)]
pub(crate) struct Input {
    /// Initialised to its whole length; the unexecuted bytes are `start..end`.
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Input {
    pub(crate) const fn len(&self) -> usize {
        self.end - self.start
    }

    pub(crate) const fn heap_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    pub(crate) fn unexecuted(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.end]
    }

    /// Forgets the first `length` bytes, and the buffer with the last one.
    pub(crate) fn consume(&mut self, length: usize) {
        self.start += length;
        if self.start == self.end {
            *self = Self::default();
        }
    }

    /// Keeps a copy of what was not executed in the shared buffer.
    pub(crate) fn keep(&mut self, rest: &[u8]) {
        *self = Self { bytes: rest.to_vec(), start: 0, end: rest.len() };
    }

    /// Moves a small tail to the front of the shared buffer and returns its length; `None` if it is not small.
    pub(crate) fn move_into(&mut self, shared: &mut [u8]) -> Option<usize> {
        let length = self.len();
        if length > SMALL_BYTES {
            return None;
        }
        shared[..length].copy_from_slice(self.unexecuted());
        *self = Self::default();
        Some(length)
    }

    /// Room for the next read behind what is here, not more than `limit` bytes in all. Empty at the limit.
    pub(crate) fn room(&mut self, limit: usize) -> &mut [u8] {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.bytes.len() {
            let doubled = (self.bytes.len() * 2).max(LARGE_BYTES).min(limit.max(self.end));
            self.bytes.reserve_exact(doubled - self.end);
            self.bytes.resize(doubled, 0);
        }
        let end = self.bytes.len().min(self.end + READ_BYTES);
        &mut self.bytes[self.end..end]
    }

    /// So many bytes of the room were filled.
    pub(crate) fn filled(&mut self, length: usize) {
        self.end += length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_tail_travels_through_the_shared_buffer() {
        let mut shared = vec![0; 64 * 1024];
        let mut input = Input::default();
        assert_eq!(input.move_into(&mut shared), Some(0));
        input.keep(b"*1\r\n$4");
        assert_eq!(input.move_into(&mut shared), Some(6));
        assert_eq!(&shared[..6], b"*1\r\n$4");
        assert_eq!((input.len(), input.heap_bytes()), (0, 0));
    }

    #[test]
    fn a_large_tail_grows_with_what_arrives_up_to_the_limit() {
        let mut input = Input::default();
        input.keep(&vec![1; SMALL_BYTES + 1]);
        assert_eq!(input.move_into(&mut [0; 64]), None);
        let limit = 300 * 1024;
        loop {
            let room = input.room(limit);
            if room.is_empty() {
                break;
            }
            room.fill(2);
            let length = room.len();
            input.filled(length);
            assert!(input.heap_bytes() <= (input.len() * 2).max(LARGE_BYTES));
        }
        assert_eq!(input.len(), limit);
        input.consume(SMALL_BYTES);
        assert_eq!(input.unexecuted()[..2], [1, 2]);
        input.consume(input.len());
        assert_eq!(input.heap_bytes(), 0);
    }
}

//! The replies of one connection, from when they are written until the peer has them.
//!
//! A reply leaves only when the log up to where the engine stood after its batch is safe. In most modes that is at the
//! end of the batch; with `fsync = always` it may be many batches later, and the replies wait in order.

use geode_store::Position;

use crate::write;

/// Buffers of more than this many bytes are not kept for reuse.
const REUSED_BYTES: usize = 64 * 1024;

/// The first size of a buffer.
const FIRST_BYTES: usize = 1024;

/// So many empty buffers are kept.
const REUSED_BUFFERS: usize = 64;

/// Replies in order: sent, releasable, held.
#[derive(Debug, Default)]
pub(crate) struct Output {
    bytes: Vec<u8>,
    /// The peer's kernel has everything before this.
    sent: usize,
    /// Everything before this may be sent.
    released: usize,
    /// Everything before this place waits for that position.
    awaited: Option<(usize, Position)>,
    /// What was sealed after `awaited`. Batches that end while one fsync runs share the next one, so they need no
    /// place each.
    later: Option<(usize, Position)>,
}

impl Output {
    /// Lends the buffer to append replies to it; [`Self::put_buffer`] gives it back.
    pub(crate) fn take_buffer(&mut self, spares: &mut Spares) -> Vec<u8> {
        let bytes = std::mem::take(&mut self.bytes);
        if bytes.capacity() > 0 {
            return bytes;
        }
        spares.0.pop().unwrap_or_else(|| Vec::with_capacity(FIRST_BYTES))
    }

    /// Takes the buffer back, with what was appended.
    pub(crate) fn put_buffer(&mut self, bytes: Vec<u8>, spares: &mut Spares) {
        self.bytes = bytes;
        if self.bytes.is_empty() {
            self.sent(0, spares);
        }
    }

    /// Bytes that the peer does not have yet.
    pub(crate) const fn pending(&self) -> usize {
        self.bytes.len() - self.sent
    }

    pub(crate) const fn heap_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    /// How long the buffer may grow if the peer is to owe at most `bytes`.
    pub(crate) const fn end_of(&self, bytes: usize) -> usize {
        self.sent.saturating_add(bytes)
    }

    /// Everything appended so far may leave once the log is safe up to `position`.
    pub(crate) fn seal(&mut self, position: Position) {
        let end = self.bytes.len();
        match self.awaited {
            None if end > self.released => self.awaited = Some((end, position)),
            Some((sealed, _)) if end > sealed => self.later = Some((end, position)),
            _ => {}
        }
    }

    /// Answers every reply that is not sealed with an error instead. Returns how many there were.
    pub(crate) fn fail_unsealed(&mut self, error: &str) -> usize {
        let sealed = self.later.or(self.awaited).map_or(self.released, |(end, _)| end);
        self.fail_from(sealed, error)
    }

    /// Answers every reply that waits, and what came after, with an error instead. Returns how many there were.
    pub(crate) fn fail_held(&mut self, error: &str) -> usize {
        (self.awaited, self.later) = (None, None);
        self.fail_from(self.released, error)
    }

    fn fail_from(&mut self, start: usize, error: &str) -> usize {
        let replies = write::count_replies(&self.bytes[start..]);
        self.bytes.truncate(start);
        for _ in 0..replies {
            write::put_error(&mut self.bytes, error);
        }
        replies
    }

    /// Releases what is safe now that the log is up to `safe`. Returns whether something still waits.
    pub(crate) fn release(&mut self, safe: Position) -> bool {
        while let Some((end, _)) = self.awaited.filter(|(_, position)| *position <= safe) {
            self.released = end;
            self.awaited = self.later.take();
        }
        self.awaited.is_some()
    }

    /// What may be sent now.
    pub(crate) fn sendable(&self) -> &[u8] {
        &self.bytes[self.sent..self.released]
    }

    /// The first `length` sendable bytes were taken by the kernel. An empty buffer is left to others.
    pub(crate) fn sent(&mut self, length: usize, spares: &mut Spares) {
        self.sent += length;
        if self.sent == self.bytes.len() {
            let mut bytes = std::mem::take(self).bytes;
            if bytes.capacity() <= REUSED_BYTES && spares.0.len() < REUSED_BUFFERS {
                bytes.clear();
                spares.0.push(bytes);
            }
        } else if self.sent > REUSED_BYTES && self.sent > self.bytes.len() / 2 {
            self.forget_sent();
        }
    }

    /// Moves what is left to the front. Done when at least half is gone, so each byte moves once on average.
    fn forget_sent(&mut self) {
        let sent = std::mem::take(&mut self.sent);
        self.bytes.drain(..sent);
        self.released -= sent;
        for (end, _) in self.awaited.iter_mut().chain(&mut self.later) {
            *end -= sent;
        }
    }
}

/// Empty output buffers, so that idle connections need none and busy ones allocate nothing.
#[derive(Debug, Default)]
pub(crate) struct Spares(Vec<Vec<u8>>);

#[cfg(test)]
mod tests {
    use super::*;

    fn append(output: &mut Output, bytes: &[u8]) {
        let mut spares = Spares::default();
        let mut buffer = output.take_buffer(&mut spares);
        buffer.extend_from_slice(bytes);
        output.put_buffer(buffer, &mut spares);
    }

    #[test]
    fn replies_leave_in_order_once_safe() {
        let mut output = Output::default();
        append(&mut output, b"one ");
        output.seal(Position(10));
        assert!(output.release(Position(9)));
        assert_eq!(output.sendable(), b"");
        append(&mut output, b"two ");
        output.seal(Position(20));
        append(&mut output, b"three");
        output.seal(Position(30));
        assert!(output.release(Position(10)));
        assert_eq!(output.sendable(), b"one ");
        output.sent(2, &mut Spares::default());
        assert!(output.release(Position(29)), "batches behind the first wait for the last of them");
        assert_eq!(output.sendable(), b"e ");
        assert!(!output.release(Position(30)));
        assert_eq!(output.sendable(), b"e two three");
    }

    #[test]
    fn unsealed_replies_are_answered_with_an_error_and_sealed_ones_stay() {
        let mut output = Output::default();
        append(&mut output, b"+OK\r\n");
        output.seal(Position(10));
        append(&mut output, b":1\r\n*2\r\n$2\r\na\r\r\n*-1\r\n%1\r\n+k\r\n*1\r\n_\r\n$-1\r\n");
        assert_eq!(output.fail_unsealed("DISK gone"), 4);
        output.seal(Position(0));
        assert!(output.release(Position(9)), "in order");
        assert!(!output.release(Position(10)));
        let errors = "-DISK gone\r\n".repeat(4);
        assert_eq!(output.sendable(), format!("+OK\r\n{errors}").as_bytes());
    }

    #[test]
    fn sealing_nothing_new_holds_nothing() {
        let mut output = Output::default();
        append(&mut output, b"one");
        output.seal(Position(1));
        assert!(!output.release(Position(1)));
        output.seal(Position(2));
        assert!(!output.release(Position(1)));
        assert_eq!(output.sendable(), b"one");
    }

    #[test]
    fn an_empty_buffer_goes_back() {
        let mut spares = Spares::default();
        let mut output = Output::default();
        append(&mut output, b"x");
        output.seal(Position(0));
        output.release(Position(0));
        output.sent(1, &mut spares);
        assert_eq!((output.heap_bytes(), output.pending(), spares.0.len()), (0, 0, 1));
    }

    #[test]
    fn a_slow_reader_does_not_keep_what_it_has() {
        let mut spares = Spares::default();
        let mut output = Output::default();
        append(&mut output, &vec![b'x'; 150_000]);
        output.seal(Position(0));
        output.release(Position(0));
        append(&mut output, b"held");
        output.seal(Position(5));
        output.sent(110_000, &mut spares);
        assert_eq!(output.pending(), 40_004);
        assert_eq!(output.sendable().len(), 40_000);
        output.sent(40_000, &mut spares);
        assert!(!output.release(Position(5)));
        assert_eq!(output.sendable(), b"held");
    }
}

//! One direction of one relayed connection, without sockets or clock: bytes go in with a time and may leave one
//! one-way latency later, in order. A cut line holds what it has, as a network that loses every packet makes TCP do.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Bytes one line holds before the relay stops reading: with 300 ms of latency still 100 MB/s per connection.
pub(super) const CAPACITY: usize = 32 << 20;
/// Arrivals a line tells apart. A longer queue of tiny writes joins the last one, so memory stays bounded by
/// [`CAPACITY`] plus 1 MiB; at full rate this is an arrival every 5 µs for 300 ms.
const MAX_ARRIVALS: usize = 1 << 16;
/// An empty line gives a larger buffer back.
const KEPT_BUFFER: usize = 256 << 10;

/// How a sender ended its direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It closed (FIN): the other direction lives on.
    Closed,
    /// It is gone (RST, or the process died): nothing more passes either way.
    Reset,
}

/// Bytes on their way. See the module.
#[derive(Debug)]
pub(super) struct Line {
    delay: Duration,
    /// No byte leaves before the connection stands; `None` while it does not.
    opens: Option<Instant>,
    cut: bool,
    bytes: VecDeque<u8>,
    /// When each run of `bytes` may leave, ascending: due time and length.
    arrivals: VecDeque<(Instant, usize)>,
    end: Option<(Instant, End)>,
    /// The sender ended its direction, or the receiver is gone: no more bytes are taken.
    closing: bool,
}

impl Line {
    /// A line of the given one-way latency on which nothing leaves until [`Line::open`].
    pub(super) fn new(delay: Duration) -> Self {
        Self {
            delay,
            opens: None,
            cut: false,
            bytes: VecDeque::new(),
            arrivals: VecDeque::new(),
            end: None,
            closing: false,
        }
    }

    /// The connection stands from `at` on.
    pub(super) fn open(&mut self, at: Instant) {
        self.opens = Some(at);
    }

    /// Bytes the line takes now; 0 means: do not read.
    pub(super) fn room(&self) -> usize {
        if self.closing { 0 } else { CAPACITY - self.bytes.len() }
    }

    /// Whether the sender ended its direction, or the receiver is gone.
    pub(super) fn is_closing(&self) -> bool {
        self.closing
    }

    /// Takes bytes that the sender wrote at `now`; at most [`Line::room`] of them. `now` never runs backwards.
    pub(super) fn push(&mut self, now: Instant, bytes: &[u8]) {
        debug_assert!(bytes.len() <= self.room());
        self.bytes.extend(bytes);
        let due = now + self.delay;
        let join = self.cut || self.arrivals.len() >= MAX_ARRIVALS;
        match self.arrivals.back_mut() {
            Some((last, length)) if join || *last == due => {
                (*last, *length) = (due, *length + bytes.len());
            }
            _ => self.arrivals.push_back((due, bytes.len())),
        }
    }

    /// The sender ended its direction at `now`. A reset may follow a close.
    pub(super) fn finish(&mut self, now: Instant, end: End) {
        if !self.closing || end == End::Reset {
            self.closing = true;
            self.end = Some((now + self.delay, end));
        }
    }

    /// The receiver is gone: what is on its way is for nobody, and no more is taken.
    pub(super) fn discard(&mut self) {
        self.closing = true;
        self.bytes = VecDeque::new();
        self.arrivals.clear();
        self.end = None;
    }

    /// From now on nothing leaves.
    pub(super) fn cut(&mut self) {
        self.cut = true;
    }

    /// At `now` the network is whole again: what was held is sent again and arrives one latency later.
    pub(super) fn heal(&mut self, now: Instant) {
        if !std::mem::take(&mut self.cut) {
            return;
        }
        let again = now + self.delay;
        let held = self.arrivals.iter().take_while(|(due, _)| *due < again).count();
        let length: usize = self.arrivals.drain(..held).map(|(_, length)| length).sum();
        if length > 0 {
            self.arrivals.push_front((again, length));
        }
        if let Some((due, _)) = &mut self.end {
            *due = (*due).max(again);
        }
    }

    /// When something may leave next; `None` if only an event can change that.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let due = match self.arrivals.front() {
            Some((due, _)) => *due,
            None => self.end?.0,
        };
        let opens = self.opens?;
        (!self.cut).then(|| due.max(opens))
    }

    /// The first bytes that may leave at `now`; empty if none. [`Line::sent`] says how many did.
    pub(super) fn due_bytes(&self, now: Instant) -> &[u8] {
        if self.next_due().is_none_or(|due| due > now) {
            return &[];
        }
        let length = self.arrivals.iter().take_while(|(due, _)| *due <= now).map(|(_, length)| length).sum();
        let (front, _) = self.bytes.as_slices();
        &front[..front.len().min(length)]
    }

    /// The first `count` bytes have left.
    pub(super) fn sent(&mut self, mut count: usize) {
        self.bytes.drain(..count);
        while count > 0 {
            let Some((_, length)) = self.arrivals.front_mut() else { break };
            let part = count.min(*length);
            (*length, count) = (*length - part, count - part);
            if *length == 0 {
                self.arrivals.pop_front();
            }
        }
        if self.bytes.is_empty() && self.bytes.capacity() > KEPT_BUFFER {
            self.bytes = VecDeque::new();
        }
    }

    /// The end, once, when it has arrived by `now`: every byte has left before it.
    pub(super) fn take_end(&mut self, now: Instant) -> Option<End> {
        let arrived = self.arrivals.is_empty() && self.next_due().is_some_and(|due| due <= now);
        if arrived { self.end.take().map(|(_, end)| end) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELAY: Duration = Duration::from_millis(40);

    /// Virtual time: milliseconds since a start that means nothing.
    struct Clock(Instant);

    impl Clock {
        fn at(&self, ms: u64) -> Instant {
            self.0 + Duration::from_millis(ms)
        }
    }

    fn open_line() -> (Clock, Line) {
        let clock = Clock(Instant::now());
        let mut line = Line::new(DELAY);
        line.open(clock.at(0));
        (clock, line)
    }

    /// Everything that leaves by `now`, as text.
    fn receive(line: &mut Line, now: Instant) -> String {
        let mut received = Vec::new();
        loop {
            let due = line.due_bytes(now).to_vec();
            if due.is_empty() {
                return String::from_utf8(received).unwrap();
            }
            line.sent(due.len());
            received.extend(due);
        }
    }

    #[test]
    fn bytes_leave_one_latency_later_in_order() {
        let (clock, mut line) = open_line();
        line.push(clock.at(0), b"one ");
        line.push(clock.at(10), b"two ");
        line.push(clock.at(10), b"three");
        assert_eq!(line.next_due(), Some(clock.at(40)));
        assert_eq!(receive(&mut line, clock.at(39)), "");
        assert_eq!(receive(&mut line, clock.at(40)), "one ");
        assert_eq!(line.next_due(), Some(clock.at(50)));
        assert_eq!(receive(&mut line, clock.at(60)), "two three");
        assert_eq!(line.next_due(), None);
    }

    #[test]
    fn nothing_leaves_before_the_connection_stands() {
        let clock = Clock(Instant::now());
        let mut line = Line::new(DELAY);
        line.push(clock.at(0), b"hello");
        assert_eq!(line.next_due(), None);
        line.open(clock.at(120));
        assert_eq!(line.next_due(), Some(clock.at(120)));
        assert_eq!(receive(&mut line, clock.at(119)), "");
        assert_eq!(receive(&mut line, clock.at(120)), "hello");
    }

    #[test]
    fn a_partial_write_leaves_the_rest_due() {
        let (clock, mut line) = open_line();
        line.push(clock.at(0), b"abc");
        line.push(clock.at(1), b"def");
        line.sent(line.due_bytes(clock.at(50)).len().min(4));
        assert_eq!(receive(&mut line, clock.at(50)), "ef");
    }

    #[test]
    fn a_full_line_takes_no_more_until_bytes_have_left() {
        let (clock, mut line) = open_line();
        line.push(clock.at(0), &vec![7; CAPACITY - 1]);
        assert_eq!(line.room(), 1);
        line.push(clock.at(1), &[7]);
        assert_eq!(line.room(), 0);
        let mut left = 0;
        while left < CAPACITY {
            let due = line.due_bytes(clock.at(41)).len();
            assert_ne!(due, 0);
            line.sent(due);
            left += due;
            assert_eq!(line.room(), left);
        }
        assert!(line.bytes.capacity() <= KEPT_BUFFER, "an idle line keeps no large buffer");
    }

    #[test]
    fn tiny_writes_do_not_grow_the_queue_without_bound() {
        let (clock, mut line) = open_line();
        for i in 0..2 * MAX_ARRIVALS as u64 {
            line.push(clock.0 + Duration::from_nanos(i), b"x");
        }
        assert!(line.arrivals.len() <= MAX_ARRIVALS);
        assert_eq!(receive(&mut line, clock.at(41)).len(), 2 * MAX_ARRIVALS);
    }

    #[test]
    fn a_cut_line_holds_everything_and_sends_it_again_when_healed() {
        let (clock, mut line) = open_line();
        line.push(clock.at(0), b"before ");
        line.cut();
        line.push(clock.at(5), b"during ");
        line.push(clock.at(6), b"the cut ");
        assert_eq!(line.next_due(), None);
        assert_eq!(receive(&mut line, clock.at(1_000)), "");
        line.heal(clock.at(1_000));
        line.push(clock.at(1_010), b"after");
        assert_eq!(receive(&mut line, clock.at(1_039)), "");
        assert_eq!(receive(&mut line, clock.at(1_040)), "before during the cut ");
        assert_eq!(receive(&mut line, clock.at(1_050)), "after");
    }

    #[test]
    fn a_cut_line_still_exerts_back_pressure() {
        let (clock, mut line) = open_line();
        line.cut();
        line.push(clock.at(0), &vec![1; CAPACITY]);
        assert_eq!(line.room(), 0);
        line.heal(clock.at(10));
        assert_eq!(line.room(), 0);
        assert!(!line.due_bytes(clock.at(50)).is_empty());
    }

    #[test]
    fn the_end_arrives_once_after_the_last_byte() {
        let (clock, mut line) = open_line();
        line.push(clock.at(0), b"bye");
        line.finish(clock.at(0), End::Closed);
        assert_eq!(line.room(), 0);
        assert_eq!(line.take_end(clock.at(40)), None, "the bytes go first");
        assert_eq!(receive(&mut line, clock.at(40)), "bye");
        assert_eq!(line.take_end(clock.at(39)), None);
        assert_eq!(line.take_end(clock.at(40)), Some(End::Closed));
        assert_eq!(line.take_end(clock.at(41)), None);
        assert_eq!(line.next_due(), None);
    }

    #[test]
    fn a_reset_may_follow_a_close_but_not_the_reverse() {
        let (clock, mut line) = open_line();
        line.finish(clock.at(0), End::Closed);
        assert_eq!(line.take_end(clock.at(40)), Some(End::Closed));
        line.finish(clock.at(50), End::Reset);
        line.finish(clock.at(51), End::Closed);
        assert_eq!(line.take_end(clock.at(89)), None);
        assert_eq!(line.take_end(clock.at(90)), Some(End::Reset));
    }

    #[test]
    fn the_end_is_cut_and_healed_like_bytes() {
        let (clock, mut line) = open_line();
        line.finish(clock.at(0), End::Reset);
        line.cut();
        assert_eq!(line.take_end(clock.at(500)), None);
        line.heal(clock.at(500));
        assert_eq!(line.take_end(clock.at(539)), None);
        assert_eq!(line.take_end(clock.at(540)), Some(End::Reset));
    }

    #[test]
    fn bytes_for_a_receiver_that_is_gone_are_dropped() {
        let (clock, mut line) = open_line();
        line.push(clock.at(0), b"lost");
        line.discard();
        assert_eq!(line.room(), 0);
        assert_eq!(line.next_due(), None);
        assert_eq!(receive(&mut line, clock.at(100)), "");
    }
}

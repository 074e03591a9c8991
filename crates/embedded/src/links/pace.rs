//! How fast a bulk connection sends: as fast as the path carries, without filling the queue before its narrowest part, for
//! in that queue the live writes to everybody behind the same uplink wait too.
//!
//! The transport's own congestion control fills that queue: one that counts losses until it overflows, BBR while it
//! searches for the path's rate. So the sender searches itself, by the delay that it causes, as TCP Vegas and LEDBAT
//! (RFC 6817) do, and leaves what is lost to the transport. Pure: it is told the time.

use std::time::Duration;

/// The state of a path, as the transport measured it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathState {
    /// Round trip, smoothed.
    pub rtt: Duration,
    /// The least round trip: the path without queues.
    pub least_rtt: Duration,
    /// What waits here to be sent for the first time, in bytes.
    pub unsent: u64,
    /// What the peer has lately received, in bytes per second.
    pub delivered_per_second: u64,
}

/// How much is given to the transport at once: a burst is a queue too. Timers are exact to a millisecond.
const SLICE_SECONDS: f64 = 0.004;
const LEAST_SLICE: usize = 64 << 10;
/// What was missed because a timer was late is made up for, up to this.
const LATE: Duration = Duration::from_millis(4);
/// The rate before anything is known, in bytes per second: what a path of 32 Mbit/s carries. And the least that is ever chosen:
/// on a slower path the transport holds back.
const FIRST: f64 = 4e6;
const LEAST: f64 = 1e6;
/// What the queue may add to a round trip before the sender slows down, beside what was sent last: this share of the path's
/// own, but no less than schedulers and delayed acknowledgements add by themselves.
const TOLERATED_SHARE: u32 = 8;
const LEAST_TOLERATED: Duration = Duration::from_millis(10);
/// How often the rate is reconsidered, at most; otherwise once in a round trip.
const LEAST_PERIOD: Duration = Duration::from_millis(10);
/// What the rate is multiplied by each time while it searches, and afterwards while there is no queue to speak of. An answer
/// of the path is a round trip old, so that the search overshoots by its square.
const SEARCH: f64 = 1.1;
const GROW: f64 = 1.02;
/// A queue is drained within so many round trips: its state is known one late. Then it goes on a little below what the path
/// carried.
const DRAIN: u32 = 2;
const CRUISE: f64 = 0.95;
/// Where somebody else fills the queue, slowing down does not empty it: the sender keeps this share of the most that it got.
const LEAST_SHARE: f64 = 0.5;

/// The pace of one connection.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Bytes per second.
    rate: f64,
    phase: Phase,
    /// The most that was delivered, in bytes per second.
    best: f64,
    /// When the rate is reconsidered next.
    due: Duration,
    /// Whether the rate, and not what there was to send, was what limited since it was last reconsidered.
    limited: bool,
    /// When what was sent is paid for.
    free_at: Duration,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// No queue was seen yet.
    Search,
    Cruise,
    /// Slower, until the queue is gone, than the rate at which the path carried.
    Drain {
        carried: f64,
    },
}

impl Pace {
    pub(crate) fn new() -> Self {
        Self {
            rate: FIRST,
            phase: Phase::Search,
            best: 0.0,
            due: Duration::ZERO,
            limited: false,
            free_at: Duration::ZERO,
        }
    }

    /// The path, right before so many bytes are sent at a time that only grows.
    pub(crate) fn sends(&mut self, bytes: usize, path: PathState, now: Duration) {
        if now >= self.due {
            let period = path.least_rtt.max(LEAST_PERIOD);
            let periods = self.reconsider(bytes, path, period);
            (self.due, self.limited) = (now + period * periods, false);
        }
    }

    /// How many bytes are to be sent at once.
    pub(crate) fn slice(&self) -> usize {
        ((self.rate * SLICE_SECONDS) as usize).max(LEAST_SLICE)
    }

    /// They were sent: how long to wait before the next.
    pub(crate) fn sent(&mut self, bytes: usize, now: Duration) -> Duration {
        // What was not sent while there was nothing to send is not made up for.
        self.free_at =
            self.free_at.max(now.saturating_sub(LATE)) + Duration::from_secs_f64(bytes as f64 / self.rate);
        let wait = self.free_at.saturating_sub(now);
        self.limited |= !wait.is_zero();
        wait
    }

    /// Chooses the rate, and for how many periods.
    fn reconsider(&mut self, bytes: usize, path: PathState, period: Duration) -> u32 {
        let own = Duration::from_secs_f64(bytes as f64 / self.rate);
        let mut queue = path.rtt.saturating_sub(path.least_rtt + own);
        // What the transport holds back comes all at once when it is let go, as after a loss. While the transport begins itself,
        // that says nothing of the path, but it asks for no more.
        let held_back = Duration::from_secs_f64(path.unsent as f64 / self.rate);
        if !matches!(self.phase, Phase::Search) {
            queue += held_back;
        }
        let tolerated = (path.least_rtt / TOLERATED_SHARE).max(LEAST_TOLERATED);
        let delivered = path.delivered_per_second as f64;
        self.best = self.best.max(delivered);
        if let Phase::Drain { carried } = self.phase {
            (self.rate, self.phase) = (carried * CRUISE, Phase::Cruise);
        } else if queue > tolerated {
            // While there is a queue, what is delivered is what the path carries.
            let carried = self.rate.min(delivered).max(self.best * LEAST_SHARE).max(LEAST);
            let excess = queue.as_secs_f64() / (period * DRAIN).as_secs_f64();
            self.rate = carried * (1.0 - excess).max(LEAST_SHARE);
            self.phase = Phase::Drain { carried };
            return DRAIN;
        } else if self.limited && queue.max(held_back) <= tolerated / 2 {
            self.rate *= if matches!(self.phase, Phase::Search) { SEARCH } else { GROW };
        }
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CHUNK: usize = 256 << 10;

    /// A path with a queue before its narrowest part, sent over for a while: bytes per second in the second half, and the
    /// worst queue before and in it.
    fn send(capacity: f64, least_rtt: Duration, others_queue: Duration) -> (f64, Duration, Duration) {
        let (mut pace, mut now) = (Pace::new(), Duration::ZERO);
        let mut queued_until = Duration::ZERO;
        let mut smoothed = least_rtt + others_queue;
        let length = least_rtt * 40 + Duration::from_secs(10);
        let (mut sent, mut worst) = ([0; 2], [Duration::ZERO; 2]);
        let mut wait = Duration::from_secs(1);
        while now < length {
            let half = usize::from(now > length / 2);
            let bytes = pace.slice().min(CHUNK);
            queued_until = queued_until.max(now) + Duration::from_secs_f64(bytes as f64 / capacity);
            let queue = queued_until - now;
            worst[half] = worst[half].max(queue);
            sent[half] += bytes;
            smoothed = (smoothed * 7 + (least_rtt + queue + others_queue)) / 8;
            let delivered_per_second = (bytes as f64 / wait.as_secs_f64()).min(capacity) as u64;
            let path = PathState { rtt: smoothed, least_rtt, unsent: 0, delivered_per_second };
            pace.sends(bytes, path, now);
            wait = pace.sent(bytes, now).max(Duration::from_micros(20));
            now += wait;
        }
        (sent[1] as f64 / (length / 2).as_secs_f64(), worst[0], worst[1])
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_path_is_used_and_its_queue_stays_short(mbit in 20_u32..2_000, rtt_ms in 1_u64..300) {
            let (capacity, least_rtt) = (f64::from(mbit) * 125_000.0, Duration::from_millis(rtt_ms));
            let (rate, _, worst) = send(capacity, least_rtt, Duration::ZERO);
            let slice = Duration::from_secs_f64(SLICE_SECONDS.max(LEAST_SLICE as f64 / capacity));
            let tolerated = (least_rtt / TOLERATED_SHARE).max(LEAST_TOLERATED);
            prop_assert!(rate > 0.8 * capacity, "{:.0} % of the path", 100.0 * rate / capacity);
            prop_assert!(worst < 3 * tolerated + 2 * slice, "{worst:?} of queue");
        }
    }

    #[test]
    fn a_queue_that_others_fill_leaves_a_share() {
        let (rate, ..) = send(12.5e6, Duration::from_millis(80), Duration::ZERO);
        let mut pace = Pace { best: rate, rate, ..Pace::new() };
        let ms = Duration::from_millis;
        for tenth in 1..1_000 {
            // What is sent is all delivered, however long the queue of the others.
            let delivered_per_second = pace.rate as u64;
            let path = PathState { rtt: ms(200), least_rtt: ms(80), unsent: 0, delivered_per_second };
            pace.sends(CHUNK, path, ms(100) * tenth);
            pace.sent(CHUNK, ms(100) * tenth);
            assert!(pace.rate >= rate * LEAST_SHARE * LEAST_SHARE, "{} of {rate}", pace.rate);
        }
    }

    #[test]
    fn what_has_little_to_send_does_not_wait_for_long() {
        let mut pace = Pace::new();
        let ms = Duration::from_millis;
        let path = PathState { rtt: ms(80), least_rtt: ms(80), unsent: 0, delivered_per_second: 0 };
        for second in 1..1_000 {
            // A chunk a second is far below every rate: nothing is learnt from it, nothing is saved up.
            pace.sends(1_000, path, Duration::from_secs(second));
            let wait = pace.sent(1_000, Duration::from_secs(second));
            assert!(wait <= ms(1), "{wait:?}");
        }
    }
}

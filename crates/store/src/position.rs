//! List positions: names of list cells that sort as the list does, on every replica.
//!
//! A position is a *prefix*, an integer that pushes count up at the tail and down at the head, and a *suffix*, the dot
//! of the push. Two regions that push at once take the same prefix and are told apart by the suffix; the elements of one
//! command share prefix and entry, so they stay together, ordered by ordinal. Each part is self-delimiting, so no
//! position is the beginning of another and there is always room between two of them. Counting keeps positions short;
//! halving the space that is left would grow them by a bit with every push.

use geode_crdt::{Actors, Dot};
use smallvec::SmallVec;

/// The bytes of a position; inline up to what a long-lived list needs.
pub(crate) type Position = SmallVec<[u8; 32]>;

/// The position of an element that `dot` puts behind the integer `prefix`.
pub(crate) fn position(prefix: i64, dot: Dot, actors: &Actors) -> Position {
    let mut bytes = Position::new();
    put_signed(&mut bytes, prefix);
    bytes.extend_from_slice(&actors.stable_hash(dot.actor).to_be_bytes());
    put_unsigned(&mut bytes, dot.mark.sequence);
    put_unsigned(&mut bytes, dot.mark.ordinal.into());
    bytes
}

/// The integer that a position begins with; 0 for bytes that are no position.
pub(crate) fn prefix(position: &[u8]) -> i64 {
    let Some((&head, rest)) = position.split_first() else { return 0 };
    let (negative, length) = match head {
        POSITIVE.. => (false, usize::from(head - POSITIVE)),
        _ => (true, usize::from(POSITIVE - 1 - head)),
    };
    let Some(digits) = rest.get(..length) else { return 0 };
    if length > 8 {
        return 0;
    }
    let fill = if negative { 0xff } else { 0 };
    let mut bytes = [fill; 8];
    bytes[8 - length..].copy_from_slice(digits);
    i64::from_be_bytes(bytes)
}

/// The first byte of integers from 0 on, to which their length is added; below it stand the negative ones.
const POSITIVE: u8 = 0x80;

/// Length first, then the significant bytes, so that longer integers sort further out.
fn put_signed(out: &mut Position, value: i64) {
    let magnitude = if value < 0 { !value } else { value } as u64;
    let length = significant_bytes(magnitude);
    out.push(if value < 0 { POSITIVE - 1 - length } else { POSITIVE + length });
    out.extend_from_slice(&value.to_be_bytes()[8 - usize::from(length)..]);
}

fn put_unsigned(out: &mut Position, value: u64) {
    let length = significant_bytes(value);
    out.push(length);
    out.extend_from_slice(&value.to_be_bytes()[8 - usize::from(length)..]);
}

const fn significant_bytes(value: u64) -> u8 {
    8 - (value.leading_zeros() / 8) as u8
}

#[cfg(test)]
mod tests {
    use geode_crdt::{ActorId, Mark};
    use proptest::prelude::*;

    use super::*;

    fn actors() -> Actors {
        let mut actors = Actors::default();
        actors.intern(&ActorId::new("us-east-1", 1));
        actors.intern(&ActorId::new("eu-west-1", 2));
        actors
    }

    fn dot(actor: u32, sequence: u64, ordinal: u32) -> Dot {
        Dot { actor: geode_crdt::ActorIndex(actor), mark: Mark { sequence, ordinal } }
    }

    fn prefixes() -> impl Strategy<Value = i64> {
        prop_oneof![-300..300i64, any::<i64>(), Just(i64::MIN), Just(i64::MAX)]
    }

    proptest! {
        #[test]
        fn positions_sort_by_prefix_then_writer_then_push(
            left in (prefixes(), 0..2u32, any::<u64>(), any::<u32>()),
            right in (prefixes(), 0..2u32, any::<u64>(), any::<u32>()),
        ) {
            let actors = actors();
            let key = |(prefix, actor, sequence, ordinal): (i64, u32, u64, u32)| {
                (prefix, actors.stable_hash(geode_crdt::ActorIndex(actor)), sequence, ordinal)
            };
            let bytes = |(at, actor, sequence, ordinal)| position(at, dot(actor, sequence, ordinal), &actors);
            prop_assert_eq!(bytes(left).cmp(&bytes(right)), key(left).cmp(&key(right)));
            prop_assert_eq!(prefix(&bytes(left)), left.0);
            prop_assert!(left == right || !bytes(left).starts_with(&bytes(right)));
        }

        #[test]
        fn any_bytes_have_a_prefix(bytes in proptest::collection::vec(any::<u8>(), 0..12)) {
            prefix(&bytes);
        }
    }

    #[test]
    fn ten_thousand_pushes_stay_short() {
        let actors = actors();
        let longest = (0..10_000).map(|n| position(n, dot(0, n as u64, 0), &actors).len()).max();
        assert!(longest <= Some(16), "{longest:?}");
    }
}

//! Session tokens: a version vector as text that clients carry from one region to another.
//!
//! `1~eu-west-1.2e.57~us-east-1.a1.9`: the version of the format, and for each actor its region, its incarnation in
//! hexadecimal and the greatest sequence held. All of it may stand in URLs, headers and JSON as it is.

use crate::actor::{ActorId, Actors};
use crate::vector::VersionVector;

/// The longest token that is read: well over a thousand actors, and a planet has one for each region and unproven
/// restart.
pub const MAX_TOKEN_BYTES: usize = 64 << 10;

const VERSION: &str = "1";

/// Text that is no token of this format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a token of GEODE.VECTOR")]
pub struct InvalidToken;

/// The token for a vector. Region names are those of planets: letters, digits and `-`.
pub fn write(vector: &VersionVector, actors: &Actors) -> String {
    let mut held: Vec<_> = vector.iter().map(|(actor, sequence)| (actors.id(actor), sequence)).collect();
    // One spelling for one vector.
    held.sort_unstable();
    let mut token = VERSION.to_owned();
    for (ActorId { region, incarnation }, sequence) in held {
        token += &format!("~{region}.{incarnation:x}.{sequence}");
    }
    token
}

/// What a token names, from untrusted bytes.
///
/// # Errors
/// [`InvalidToken`]
pub fn read(token: &[u8]) -> Result<Vec<(ActorId, u64)>, InvalidToken> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(InvalidToken);
    }
    let mut fields = std::str::from_utf8(token).map_err(|_| InvalidToken)?.split('~');
    if fields.next() != Some(VERSION) {
        return Err(InvalidToken);
    }
    fields.map(|field| read_actor(field).ok_or(InvalidToken)).collect()
}

fn read_actor(field: &str) -> Option<(ActorId, u64)> {
    let (actor, sequence) = field.rsplit_once('.')?;
    let (region, incarnation) = actor.rsplit_once('.')?;
    let incarnation = u64::from_str_radix(incarnation, 16).ok()?;
    (!region.is_empty()).then_some(())?;
    Some((ActorId::new(region, incarnation), sequence.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_token_reads_as_it_always_did() {
        let mut actors = Actors::default();
        let mut vector = VersionVector::default();
        for (region, incarnation, sequence) in
            [("us-east-1", 0xa1, 9), ("eu-west-1", 0x2e, 57), ("idle", 1, 0)]
        {
            vector.raise(actors.intern(&ActorId::new(region, incarnation)), sequence);
        }
        assert_eq!(write(&vector, &actors), "1~eu-west-1.2e.57~us-east-1.a1.9");
        assert_eq!(write(&VersionVector::default(), &actors), "1");
        assert_eq!(read(b"1"), Ok(Vec::new()));
    }

    #[test]
    fn what_is_no_token_is_refused() {
        for bad in ["", "2", "1~", "1~eu", "1~eu.1", "1~.1.1", "1~eu.g.1", "1~eu.1.-1", "1~eu.1.1~", "1 "] {
            assert_eq!(read(bad.as_bytes()), Err(InvalidToken), "{bad:?}");
        }
        assert_eq!(read(&[b'1', 0xff]), Err(InvalidToken));
        let long = format!("1{}", "~eu.1.1".repeat(MAX_TOKEN_BYTES / 6));
        assert_eq!(read(long.as_bytes()), Err(InvalidToken));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(held in prop::collection::btree_map(("[a-z0-9-]{1,32}", any::<u64>()), 1..u64::MAX, 0..20)) {
            let (mut actors, mut vector) = (Actors::default(), VersionVector::default());
            for ((region, incarnation), sequence) in &held {
                vector.raise(actors.intern(&ActorId::new(region, *incarnation)), *sequence);
            }
            let read: Vec<_> = read(write(&vector, &actors).as_bytes()).unwrap();
            let held: Vec<_> = held.into_iter().map(|((region, incarnation), sequence)| (ActorId::new(&region, incarnation), sequence)).collect();
            prop_assert_eq!(read, held);
        }
    }
}

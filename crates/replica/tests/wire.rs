//! The replica's messages as bytes: golden bytes of version 1, and bytes that are nobody's.

#![allow(clippy::unwrap_used)] // a test that unwraps fails, which is what it is for

use std::collections::BTreeMap;

use geode_crdt::{ActorId, HybridTime};
use geode_replica::Vector;
use geode_replica::wire::{self, Kind, Message, Witness};
use proptest::prelude::*;

fn vector(entries: &[(&str, u64, u64)]) -> Vector {
    let entries =
        entries.iter().map(|(region, incarnation, held)| (ActorId::new(region, *incarnation), *held));
    Vector(entries.collect::<BTreeMap<_, _>>())
}

fn examples() -> Vec<(&'static str, Message)> {
    let actor = ActorId::new("eu-west-1", 0x0123_4567_89ab_cdef);
    let held = vector(&[("eu-west-1", 0x0123_4567_89ab_cdef, 300), ("us-east-1", 7, 1)]);
    let witness = Witness { actor: ActorId::new("us-east-1", 7), sequence: 1, fingerprint: 0xdead_beef };
    vec![
        (
            "hello",
            Message::Hello {
                version: wire::VERSION,
                planet: "acme".to_owned(),
                actor: actor.clone(),
                held: held.clone(),
                witnesses: vec![witness],
            },
        ),
        (
            "heartbeat",
            Message::Heartbeat {
                actor: actor.clone(),
                sequence: 300,
                time: HybridTime(1_767_225_600_000_000),
                wall: HybridTime(1_767_225_599_999_000),
                ahead_us: 700_000,
                held,
                durable: vector(&[("us-east-1", 7, 1)]),
            },
        ),
        ("request", Message::Request { actor, from: 128, to: 300 }),
        ("refuse", Message::Refuse { reason: "it belongs to another planet".to_owned() }),
    ]
}

fn encode(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    bytes
}

fn decode(bytes: &[u8]) -> Result<Message, String> {
    let (head, body) = bytes.split_at_checked(wire::HEAD).ok_or("short")?;
    let (kind, length) = wire::read_head(head.try_into().unwrap()).map_err(|error| error.to_string())?;
    if length != body.len() || kind == Kind::Frame {
        return Err("not a whole message".to_owned());
    }
    Message::decode(kind, body).map_err(|error| error.to_string())
}

#[test]
fn messages_are_the_golden_bytes_of_version_1() {
    let golden = include_str!("golden/wire-1.txt");
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let lines: Vec<String> =
        examples().iter().map(|(name, message)| format!("{name} {}", hex(&encode(message)))).collect();
    assert_eq!(golden.lines().collect::<Vec<_>>(), lines, "a change here is a new version of the exchange");
    for (_, message) in examples() {
        assert_eq!(decode(&encode(&message)).unwrap(), message);
    }
}

#[test]
fn a_hello_of_another_version_tells_its_version_and_nothing_else() {
    let mut bytes = encode(&examples()[0].1);
    bytes[wire::HEAD] = 9;
    let body = bytes.len() - 4;
    let crc = crc32fast::hash(&bytes[wire::HEAD..body]);
    bytes[body..].copy_from_slice(&crc.to_le_bytes());
    let Ok(Message::Hello { version, .. }) = decode(&bytes) else { panic!("it can be refused in words") };
    assert_eq!(version, 9);
}

#[test]
fn lengths_beyond_reason_are_refused_before_anything_is_read() {
    assert!(wire::read_head([3, 0xff, 0xff, 0xff, 0x7f]).is_err());
    assert!(wire::read_head([2, 0xff, 0xff, 0xff, 0xff]).is_err());
    assert!(wire::read_head([99, 0, 0, 0, 0]).is_err());
}

#[test]
fn a_vector_survives_its_token() {
    let held = vector(&[("eu", 1, 5), ("eu", 2, u64::MAX), ("us", 9, 1)]);
    assert_eq!(Vector::from_bytes(&held.to_bytes()).unwrap(), held);
    assert!(Vector::from_bytes(&[held.to_bytes(), vec![0]].concat()).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
        let _ = Vector::from_bytes(&bytes);
        for kind in [Kind::Hello, Kind::Heartbeat, Kind::Request, Kind::Refuse] {
            let mut sealed = bytes.clone();
            sealed.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
            let _ = Message::decode(kind, &sealed);
            prop_assert!(Message::decode(kind, &bytes).is_err() || bytes.len() >= 4);
        }
    }

    #[test]
    fn a_flipped_bit_is_seen(which in 0usize..4, position: prop::sample::Index, bit in 0u8..8) {
        let message = &examples()[which].1;
        let mut bytes = encode(message);
        let at = wire::HEAD + position.index(bytes.len() - wire::HEAD);
        bytes[at] ^= 1 << bit;
        prop_assert!(decode(&bytes).is_err());
    }
}

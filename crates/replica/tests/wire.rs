//! The replica's messages as bytes: golden bytes of version 2, and bytes that are nobody's.

#![allow(clippy::unwrap_used)] // a test that unwraps fails, which is what it is for

use std::collections::BTreeMap;

use geode_crdt::{ActorId, HybridTime};
use geode_replica::Vector;
use geode_replica::wire::{self, Decoder, Encoder, Kind, Message, Versions, Witness};
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
                versions: Versions { oldest: 2, newest: 2 },
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
                held: vector(&[("us-east-1", 7, 2), ("ap-southeast-2", 9, 1)]),
            },
        ),
        ("durable", Message::Durable { durable: vector(&[("us-east-1", 7, 2)]) }),
        ("request", Message::Request { actor, from: 128, to: 300 }),
        ("refuse", Message::Refuse { reason: "it belongs to another planet".to_owned() }),
    ]
}

/// The examples as one link carries them.
fn encoded() -> Vec<(&'static str, Vec<u8>)> {
    let mut encoder = Encoder::default();
    let encode = |(name, message): (&'static str, Message)| {
        let mut bytes = Vec::new();
        encoder.encode(&message, &mut bytes);
        (name, bytes)
    };
    examples().into_iter().map(encode).collect()
}

fn decode(decoder: &mut Decoder, bytes: &[u8]) -> Result<Message, String> {
    let (head, body) = bytes.split_at_checked(wire::HEAD).ok_or("short")?;
    let (kind, length) = wire::read_head(head.try_into().unwrap()).map_err(|error| error.to_string())?;
    if length != body.len() || kind == Kind::Frame {
        return Err("not a whole message".to_owned());
    }
    decoder.decode(kind, body).map_err(|error| error.to_string())
}

#[test]
fn messages_are_the_golden_bytes_of_version_2() {
    let golden = include_str!("golden/wire-2.txt");
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let lines: Vec<String> = encoded().iter().map(|(name, bytes)| format!("{name} {}", hex(bytes))).collect();
    assert_eq!(golden.lines().collect::<Vec<_>>(), lines, "a change here is a new version of the exchange");
    let mut decoder = Decoder::default();
    for ((_, message), (_, bytes)) in examples().into_iter().zip(encoded()) {
        assert_eq!(decode(&mut decoder, &bytes).unwrap(), message);
    }
}

#[test]
fn packed_messages_are_the_golden_bytes_of_version_3() {
    let mut bytes = Vec::new();
    wire::put_packed_head(&mut bytes, 1_000, 2);
    bytes.extend_from_slice(&[0xaa, 0xbb]);
    assert_eq!(bytes, [7, 6, 0, 0, 0, 0xe8, 3, 0, 0, 0xaa, 0xbb], "a change here is a new version");
    let (head, body) = bytes.split_at(wire::HEAD);
    assert_eq!(wire::read_head(head.try_into().unwrap()).unwrap(), (Kind::Packed, 6));
    assert_eq!(wire::read_packed(body).unwrap(), (1_000, &[0xaa, 0xbb][..]));
    assert!(wire::read_packed(&[0, 0, 0x11, 0]).is_err(), "more than may be");
}

fn resealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let body = bytes.len() - 4;
    let crc = crc32fast::hash(&bytes[wire::HEAD..body]);
    bytes[body..].copy_from_slice(&crc.to_le_bytes());
    let length = (bytes.len() - wire::HEAD) as u32;
    bytes[1..wire::HEAD].copy_from_slice(&length.to_le_bytes());
    bytes
}

#[test]
fn a_hello_of_unknown_versions_tells_them_and_nothing_else() {
    let hello = encoded().swap_remove(0).1;
    for (newest, oldest, heard) in
        [(9, 8, Versions { oldest: 8, newest: 9 }), (1, 0, Versions { oldest: 1, newest: 1 })]
    {
        let mut bytes = hello.clone();
        bytes[wire::HEAD..wire::HEAD + 4].copy_from_slice(&[newest, 0, oldest, 0]);
        let message = decode(&mut Decoder::default(), &resealed(bytes));
        let Ok(Message::Hello { versions, .. }) = message else { panic!("it can be refused in words") };
        assert_eq!(versions, heard);
    }
}

#[test]
fn a_newer_neighbour_that_still_speaks_this_version_is_understood() {
    let mut bytes = encoded().swap_remove(0).1;
    bytes[wire::HEAD] = 9;
    let end = bytes.len() - 4;
    bytes.splice(end..end, *b"more");
    let message = decode(&mut Decoder::default(), &resealed(bytes)).unwrap();
    let Message::Hello { versions, held, witnesses, .. } = message else { panic!("a hello") };
    assert_eq!(wire::VERSIONS.agreed(versions), Some(wire::VERSIONS.newest));
    assert_eq!((held.0.len(), witnesses.len()), (2, 1));
}

#[test]
fn versions_agree_on_the_newest_that_both_know() {
    let speaks = |oldest, newest| Versions { oldest, newest };
    assert_eq!(speaks(2, 4).agreed(speaks(3, 5)), Some(4));
    assert_eq!(speaks(3, 5).agreed(speaks(2, 4)), Some(4));
    assert_eq!(speaks(2, 3).agreed(speaks(4, 5)), None);
    assert_eq!(speaks(4, 5).agreed(speaks(2, 3)), None);
}

#[test]
fn what_a_superseded_heartbeat_said_is_said_by_the_next() {
    let heartbeat = |sequence, held| Message::Heartbeat {
        actor: ActorId::new("eu", 1),
        sequence,
        time: HybridTime(sequence),
        wall: HybridTime(0),
        ahead_us: 0,
        held,
    };
    let mut next = heartbeat(2, vector(&[("eu", 1, 2), ("ap", 1, 7)]));
    next.supersede(heartbeat(1, vector(&[("eu", 1, 1), ("us", 1, 5)])));
    assert_eq!(next, heartbeat(2, vector(&[("eu", 1, 2), ("ap", 1, 7), ("us", 1, 5)])));
}

#[test]
fn a_heartbeat_without_news_takes_forty_bytes() {
    let mut encoder = Encoder::default();
    let mut bytes = Vec::new();
    let (_, hello) = examples().swap_remove(0);
    encoder.encode(&hello, &mut bytes);
    bytes.clear();
    let heartbeat = Message::Heartbeat {
        actor: ActorId::new("eu-west-1", 0x0123_4567_89ab_cdef),
        sequence: 1_000_000,
        time: HybridTime(1_767_225_600_000_000),
        wall: HybridTime(1_767_225_599_999_000),
        ahead_us: 0,
        held: Vector::default(),
    };
    encoder.encode(&heartbeat, &mut bytes);
    assert!(bytes.len() <= 40, "{}", bytes.len());
}

#[test]
fn a_number_that_names_nobody_is_refused() {
    let bytes = encoded().swap_remove(1).1;
    assert!(decode(&mut Decoder::default(), &bytes).is_err(), "its names stood in the hello");
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
        for kind in [Kind::Hello, Kind::Heartbeat, Kind::Request, Kind::Refuse, Kind::Durable] {
            let mut sealed = bytes.clone();
            sealed.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
            let mut decoder = Decoder::default();
            let _ = decoder.decode(kind, &sealed);
            prop_assert!(decoder.decode(kind, &bytes).is_err() || bytes.len() >= 4);
        }
    }

    #[test]
    fn a_flipped_bit_is_seen(which in 0usize..5, position: prop::sample::Index, bit in 0u8..8) {
        let mut decoder = Decoder::default();
        for (index, (_, mut bytes)) in encoded().into_iter().enumerate() {
            if index < which {
                decode(&mut decoder, &bytes).unwrap();
            } else if index == which {
                let at = wire::HEAD + position.index(bytes.len() - wire::HEAD);
                bytes[at] ^= 1 << bit;
                prop_assert!(decode(&mut decoder, &bytes).is_err());
            }
        }
    }
}

#[test]
fn talk_of_snapshots_is_the_golden_bytes_of_version_4() {
    let mut encoder = Encoder::default();
    let mut decoder = Decoder::default();
    let mut lines = String::new();
    for (name, message) in [
        ("trimmed", Message::Trimmed { actor: ActorId::new("us-east-1", 7), from: 300 }),
        ("ask", Message::Ask { attempt: 1, resume: Vec::new() }),
        ("ask", Message::Ask { attempt: 2, resume: vec![1, 2, 3] }),
        ("unable", Message::Unable { reason: "it is joining itself".to_owned() }),
    ] {
        let mut bytes = Vec::new();
        encoder.encode(&message, &mut bytes);
        let hex = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        lines.push_str(&format!("{name} {hex}\n"));
        assert_eq!(decode(&mut decoder, &bytes).unwrap(), message);
    }
    assert_eq!(include_str!("golden/wire-4.txt"), lines, "a change here is a new version of the exchange");
    let mut bytes = Vec::new();
    wire::put_block_head(&mut bytes, 2, 3);
    assert_eq!(bytes, [11, 11, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0], "a change here is a new version");
    bytes.extend_from_slice(b"abc");
    let (head, body) = bytes.split_at(wire::HEAD);
    assert_eq!(wire::read_head(head.try_into().unwrap()).unwrap(), (Kind::Block, 11));
    assert_eq!(wire::split_block(body), Some((2, &b"abc"[..])));
    assert_eq!(wire::split_block(&[0; 7]), None);
    let long = Message::Ask { attempt: 1, resume: vec![0; 257] };
    bytes.clear();
    encoder.encode(&long, &mut bytes);
    assert!(decode(&mut decoder, &bytes).is_err(), "no source says as much");
}

#[test]
fn an_exclusion_is_the_golden_bytes_of_version_5() {
    let message = Message::Exclude { reason: "it was evicted".to_owned() };
    let mut bytes = Vec::new();
    Encoder::default().encode(&message, &mut bytes);
    let hex = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(
        include_str!("golden/wire-5.txt"),
        format!("exclude {hex}\n"),
        "a change here is a new version of the exchange"
    );
    assert_eq!(decode(&mut Decoder::default(), &bytes).unwrap(), message);
}

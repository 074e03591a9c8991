//! The byte format: round trips, cutting, golden bytes, and bytes that are nobody's.

#![allow(clippy::unwrap_used)] // a test that unwraps fails, which is what it is for

use geode_crdt::{
    ActorId, Actors, Amount, Frame, FrameBuilder, FrameError, HybridTime, KeyName, Kind, Mark, Op,
};
use proptest::prelude::*;

fn key(name: &[u8]) -> KeyName<'_> {
    KeyName { database: 0, name }
}

/// A frame that holds every operation once, with fixed content.
fn specimen(actors: &mut Actors) -> Vec<u8> {
    let writer = actors.intern(&ActorId::new("us-east-1", 0x0123_4567_89ab_cdef));
    let other = actors.intern(&ActorId::new("eu-west-1", 7));
    let mut builder = FrameBuilder::new(writer, 41);
    builder.begin_entry(HybridTime(1_700_000_000_000_000), [(other, 12)]);
    let first = builder.set(key(b"menu"), b"espresso", []);
    builder.put(key(b"cart"), Kind::Hash, b"latte", b"2", [first]);
    assert_eq!(builder.finish_entry(), Some(41));
    builder.begin_entry(HybridTime(1_700_000_000_000_007), []);
    builder.remove(KeyName { database: 3, name: b"cart" }, Kind::Set, b"mocha", first);
    builder.sum(key(b"sold"), Kind::String, b"", None, Amount::Integer(-5));
    builder.sum(key(b"sold"), Kind::String, b"", Some(Mark { sequence: 9, ordinal: 1 }), Amount::Float(2.5));
    builder.cancel(
        key(b"sold"),
        Kind::String,
        b"",
        other,
        Mark { sequence: 8, ordinal: 0 },
        Amount::Integer(i128::MAX),
    );
    assert_eq!(builder.finish_entry(), Some(42));
    let mut bytes = Vec::new();
    builder.finish_into(&mut bytes, actors);
    bytes
}

fn hex(bytes: &[u8]) -> String {
    let lines: Vec<String> = bytes
        .chunks(32)
        .map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" "))
        .collect();
    lines.join("\n") + "\n"
}

/// Every operation as text, names of actors resolved: what a frame means, whoever reads it.
fn describe(bytes: &[u8]) -> Result<Vec<String>, FrameError> {
    let mut actors = Actors::default();
    // A reader that met other actors before gives other local indexes; the meaning must not change.
    actors.intern(&ActorId::new("somebody-else", 1));
    let frame = Frame::parse(bytes, &mut actors)?;
    let name = |actor| actors.id(actor).to_string();
    let mut lines = Vec::new();
    for entry in frame.entries() {
        let changed: Vec<String> =
            entry.changed().map(|(actor, seen)| format!("{}={seen}", name(actor))).collect();
        lines.push(format!(
            "{} {} at {} [{}]",
            name(entry.writer()),
            entry.sequence,
            entry.time,
            changed.join(" ")
        ));
        for op in entry.ops() {
            lines.push(match op? {
                Op::Set { key, dot, value, replaces } => {
                    format!(
                        "set {key:?} {:?} {value:?} {:?}",
                        dot.mark,
                        replaces.map(|dot| (name(dot.actor), dot.mark)).collect::<Vec<_>>()
                    )
                }
                Op::Put { key, kind, element, dot, value, replaces } => format!(
                    "put {key:?} {kind:?} {element:?} {:?} {value:?} {:?}",
                    dot.mark,
                    replaces.map(|dot| (name(dot.actor), dot.mark)).collect::<Vec<_>>()
                ),
                Op::Remove { key, kind, element, dot } => {
                    format!("remove {key:?} {kind:?} {element:?} {} {:?}", name(dot.actor), dot.mark)
                }
                Op::Sum { key, kind, element, start, dot, total } => {
                    format!("sum {key:?} {kind:?} {element:?} {start:?} {:?} {total:?}", dot.mark)
                }
                Op::Cancel { key, kind, element, target, upto, amount } => {
                    format!("cancel {key:?} {kind:?} {element:?} {} {upto:?} {amount:?}", name(target))
                }
            });
        }
    }
    Ok(lines)
}

#[test]
fn version_1_is_what_it_always_was() {
    let bytes = specimen(&mut Actors::default());
    assert_eq!(hex(&bytes), include_str!("golden/frame-1.hex"), "the bytes of version 1 must never change");
    assert_eq!(describe(&bytes).unwrap().join("\n") + "\n", include_str!("golden/frame-1.txt"));
}

#[test]
fn a_slice_means_what_its_entries_meant() {
    let mut actors = Actors::default();
    let bytes = specimen(&mut actors);
    let frame = Frame::parse(&bytes, &mut actors).unwrap();
    let (first, second) = (frame.slice(41, 41, &actors), frame.slice(42, 99, &actors));
    let parts = [describe(&first).unwrap(), describe(&second).unwrap()].concat();
    assert_eq!(parts, describe(&bytes).unwrap());
    assert_eq!(frame.slice(0, 99, &actors), bytes);
}

#[test]
fn an_entry_without_operations_never_was() {
    let mut actors = Actors::default();
    let writer = actors.intern(&ActorId::new("us", 1));
    let other = actors.intern(&ActorId::new("eu", 1));
    let mut builder = FrameBuilder::new(writer, 1);
    builder.begin_entry(HybridTime(5), [(other, 3)]);
    let checkpoint = builder.checkpoint();
    builder.set(key(b"k"), b"v", []);
    builder.rewind(checkpoint);
    assert_eq!(builder.finish_entry(), None);
    let mut bytes = Vec::new();
    builder.finish_into(&mut bytes, &actors);
    assert!(bytes.is_empty());
    assert_eq!(builder.sequence(), 1);
}

#[test]
fn a_later_version_is_named_not_guessed() {
    let mut bytes = specimen(&mut Actors::default());
    bytes[0] = 2;
    assert_eq!(describe(&bytes), Err(FrameError::Version(2)));
}

proptest! {
    #[test]
    fn any_damage_is_seen(at in 0usize..400, bit in 0u8..8) {
        let mut bytes = specimen(&mut Actors::default());
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        prop_assert!(describe(&bytes).is_err());
    }

    #[test]
    fn bytes_with_a_right_checksum_never_panic(content in proptest::collection::vec(any::<u8>(), 0..200), splice in 0usize..200) {
        // The content of a real frame, overwritten from `splice` on, under a checksum that fits: what a faulty or
        // hostile peer could send.
        let real = specimen(&mut Actors::default());
        let mut bytes = real.clone();
        let from = (geode_crdt::frame::PREFIX + splice).min(bytes.len());
        for (held, new) in bytes[from..].iter_mut().zip(&content) {
            *held = *new;
        }
        let crc = crc32fast::hash(&bytes[geode_crdt::frame::PREFIX..]);
        bytes[5..9].copy_from_slice(&crc.to_le_bytes());
        let _ = describe(&bytes);
    }

    #[test]
    fn integers_round_trip(unsigned in any::<u64>(), signed in any::<i128>()) {
        let mut bytes = Vec::new();
        geode_crdt::codec::put_varint(&mut bytes, unsigned);
        geode_crdt::codec::put_signed(&mut bytes, signed);
        let mut reader = geode_crdt::codec::Reader::new(&bytes);
        prop_assert_eq!(reader.varint(), Ok(unsigned));
        prop_assert_eq!(reader.signed(), Ok(signed));
        prop_assert!(reader.is_empty());
    }
}

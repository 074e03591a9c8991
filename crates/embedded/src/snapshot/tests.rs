//! The bytes of a snapshot, and what is taken for one.

use std::collections::BTreeMap;
use std::sync::Arc;

use geode_crdt::image::ImageBuilder;
use geode_crdt::{ActorId, Actors, Dot, FrameBuilder, HybridTime, KeyName, Mark, PutRef};

use super::check::Check;
use super::format::{Begin, Blocks, End, Kind, Numbers, file_head, put_block, put_image, read_block};

const PLANET: &str = "acme";
const TIME: HybridTime = HybridTime(1_767_225_600_000_000);

/// The blocks of a small snapshot: a key, and an entry that was written meanwhile.
fn blocks() -> Vec<Vec<u8>> {
    let (eu, us) = (ActorId::new("eu-west-1", 0x0123_4567_89ab_cdef), ActorId::new("us-east-1", 7));
    let begin = Begin {
        planet: PLANET.to_owned(),
        source: eu.clone(),
        clock: TIME,
        keys: 1,
        start: BTreeMap::from([(eu.clone(), 3), (us.clone(), 9)]),
        times: BTreeMap::from([
            (Arc::clone(&eu.region), TIME),
            (Arc::clone(&us.region), HybridTime(TIME.0 - 1)),
        ]),
        depends: vec![(eu.clone(), us, 8)],
    };
    let mut actors = Actors::default();
    let writer = actors.intern(&eu);
    let (mut numbers, mut image) = (Numbers::default(), Vec::new());
    let dot = Dot { actor: writer, mark: Mark { sequence: 2, ordinal: 0 } };
    ImageBuilder::new(&mut image, |actor| numbers.number(actor)).plain(PutRef {
        dot,
        time: TIME,
        value: b"v",
    });
    let mut builder = FrameBuilder::new(writer, 4);
    builder.begin_entry(HybridTime(TIME.0 + 1), []);
    builder.set(KeyName { database: 0, name: b"late" }, b"w", []);
    builder.finish_entry();
    let mut frame = Vec::new();
    builder.finish_into(&mut frame, &actors);
    let end = End {
        clock: HybridTime(TIME.0 + 1),
        keys: 1,
        end: BTreeMap::from([(eu, 4), (ActorId::new("us-east-1", 7), 9)]),
    };
    let mut before = 0;
    let mut block = |kind, content: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        before = put_block(&mut out, kind, (0xfeed_f00d, before), b"resume", |out| content(out));
        out
    };
    vec![
        block(Kind::Begin, &|out| begin.put(out)),
        block(Kind::Images, &|out| {
            numbers.put(out, &actors);
            put_image(out, KeyName { database: 0, name: b"k" }, &image);
        }),
        block(Kind::Tail, &|out| geode_crdt::codec::put_bytes(out, &frame)),
        block(Kind::End, &|out| end.put(out)),
    ]
}

fn take(blocks: &[Vec<u8>]) -> Result<Check, String> {
    let mut check = Check::default();
    for bytes in blocks {
        let block = read_block(bytes).map_err(|error| error.to_string())?;
        check.take(&block, Some(PLANET))?;
    }
    Ok(check)
}

#[test]
fn a_snapshot_is_the_golden_bytes_of_version_1() {
    let bytes = [file_head().to_vec(), blocks().concat()].concat();
    let lines: Vec<String> =
        bytes.chunks(32).map(|chunk| chunk.iter().map(|byte| format!("{byte:02x}")).collect()).collect();
    let golden = include_str!("../../tests/golden/snapshot-1.txt");
    assert_eq!(golden.lines().collect::<Vec<_>>(), lines, "a change here is a new version of snapshots");
    let mut read = Blocks::new(&bytes[..]).unwrap();
    let mut check = Check::default();
    while let Some(block) = read.next().unwrap() {
        check.take(&block, Some(PLANET)).unwrap();
    }
    assert_eq!((read.position, check.keys()), (bytes.len() as u64, 1));
    assert_eq!(check.end().unwrap().end.values().collect::<Vec<_>>(), [&4, &9]);
}

#[test]
fn a_snapshot_of_a_newer_release_is_named_as_such() {
    let mut head = file_head();
    head[8] = 2;
    let error = Blocks::new(&head[..]).unwrap_err().to_string();
    assert_eq!(error, "it has format 2, this release knows 1; use a newer geode");
    assert!(Blocks::new(&b"GEODELOG"[..]).is_err());
}

#[test]
fn no_block_is_lost_swapped_repeated_or_changed_unseen() {
    let whole = blocks();
    assert!(take(&whole).unwrap().end().is_some());
    for length in 0..whole.len() {
        // Whatever is not there at the end: it is not whole.
        assert!(take(&whole[..length]).unwrap().end().is_none());
    }
    for index in 1..whole.len() - 1 {
        let (mut without, mut twice, mut swapped) = (whole.clone(), whole.clone(), whole.clone());
        without.remove(index);
        twice.insert(index, whole[index].clone());
        swapped.swap(index, index + 1);
        for wrong in [without, twice, swapped] {
            assert!(take(&wrong).is_err());
        }
    }
    for (index, block) in whole.iter().enumerate() {
        for bit in 0..block.len() * 8 {
            let mut wrong = whole.clone();
            wrong[index][bit / 8] ^= 1 << (bit % 8);
            assert!(take(&wrong).is_err(), "bit {bit} of block {index}");
        }
    }
}

#[test]
fn a_snapshot_that_says_more_than_it_holds_is_refused() {
    let whole = blocks();
    // Its source forgot the entry, and closed the gap.
    let before = read_block(&whole[1]).unwrap().crc;
    let end = End::read(read_block(&whole[3]).unwrap().content).unwrap();
    let sealed = |end: &End| {
        let mut out = Vec::new();
        put_block(&mut out, Kind::End, (0xfeed_f00d, before), b"", |out| end.put(out));
        out
    };
    let refused = |end: &End| take(&[whole[0].clone(), whole[1].clone(), sealed(end)]).unwrap_err();
    assert_eq!(refused(&end), "its entries do not reach as far as it says");
    let one_more = End { keys: 2, ..end };
    assert_eq!(refused(&one_more), "it does not hold as many keys as it says");
    assert!(
        Check::default()
            .take(&read_block(&whole[0]).unwrap(), Some("mars"))
            .unwrap_err()
            .contains("it is of planet \"acme\", not of \"mars\"")
    );
}

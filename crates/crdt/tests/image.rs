//! Images of keys: round trips between different numberings of actors, golden bytes, and bytes that are nobody's.

#![allow(clippy::unwrap_used)] // a test that unwraps fails, which is what it is for

use geode_crdt::digest::{self, Digest};
use geode_crdt::image::{self, Cells, ImageBuilder, Row, Rows, Summary};
use geode_crdt::{
    ActorId, ActorIndex, Actors, Amount, Cancel, Cell, CellRef, Deadline, Dot, FrameError, HybridTime,
    KeyName, Kind, Mark, Put, PutRef, Run,
};
use proptest::prelude::*;

const KEY: KeyName<'static> = KeyName { database: 3, name: b"cart" };
const ELEMENTS: [(Kind, &[u8]); 6] = [
    (Kind::Ttl, b""),
    (Kind::String, b""),
    (Kind::Hash, b"latte"),
    (Kind::Hash, b"mocha"),
    (Kind::Set, b"m"),
    (Kind::List, b"\x80\x01"),
];

/// Three actors, as every test here numbers them in memory.
fn actors() -> Actors {
    let mut actors = Actors::default();
    for region in ["ap", "eu", "us"] {
        actors.intern(&ActorId::new(region, 1));
    }
    actors
}

/// In the image an actor is another number than in memory.
fn number(actor: ActorIndex) -> u32 {
    2 - actor.0
}

fn actor(number: u32) -> Option<ActorIndex> {
    Some(number).filter(|number| *number < 3).map(|number| ActorIndex(2 - number))
}

fn encode(cells: &Cells) -> Vec<u8> {
    let mut out = Vec::new();
    let mut builder = ImageBuilder::new(&mut out, number);
    for ((kind, element), cell) in cells {
        builder.cell(*kind, element, CellRef::Cell(cell));
    }
    out
}

/// The rows of cells, comparable: cells keep theirs in no order.
fn rows(cells: &Cells) -> Vec<String> {
    let mut rows = Vec::new();
    for ((kind, element), cell) in cells {
        rows.extend(cell.puts().iter().map(|put| format!("{kind:?} {element:?} {put:?}")));
        rows.extend(cell.runs().iter().map(|run| format!("{kind:?} {element:?} {run:?}")));
    }
    rows.sort();
    rows
}

fn mark() -> impl Strategy<Value = Mark> {
    (1..u64::MAX, any::<u32>()).prop_map(|(sequence, ordinal)| Mark { sequence, ordinal })
}

fn amount() -> impl Strategy<Value = Amount> {
    prop_oneof![
        any::<i128>().prop_map(Amount::Integer),
        proptest::num::f64::NORMAL.prop_map(Amount::Float),
        Just(Amount::Float(-0.0)),
    ]
}

fn put() -> impl Strategy<Value = Put> {
    let value = proptest::collection::vec(any::<u8>(), 0..12);
    (0..3u32, mark(), any::<u64>(), value).prop_map(|(actor, mark, time, value)| Put {
        dot: Dot { actor: ActorIndex(actor), mark },
        time: HybridTime(time),
        value: value.into(),
    })
}

fn run() -> impl Strategy<Value = Run> {
    let cancel = (mark(), amount(), 0..3u32, any::<u64>());
    (0..3u32, mark(), mark(), amount(), any::<u64>(), proptest::option::of(cancel)).prop_map(
        |(actor, left, right, total, time, cancelled)| Run {
            actor: ActorIndex(actor),
            start: left.min(right),
            last: left.max(right),
            total,
            time: HybridTime(time),
            cancelled: cancelled.map(|(upto, amount, by, sequence)| Cancel {
                upto,
                amount,
                by: (ActorIndex(by), sequence),
            }),
        },
    )
}

fn cells() -> impl Strategy<Value = Cells> {
    let cell =
        (0..ELEMENTS.len(), proptest::collection::vec(put(), 0..3), proptest::collection::vec(run(), 0..3));
    proptest::collection::vec(cell, 0..6).prop_map(|written| {
        let mut cells = Cells::new();
        for (element, puts, runs) in written {
            let (kind, element) = ELEMENTS[element];
            let cell: &mut Cell = cells.entry((kind, element.into())).or_default();
            for row in puts {
                cell.put(row);
            }
            for row in runs {
                cell.sum(row);
            }
        }
        cells.retain(|_, cell| !cell.is_empty());
        cells
    })
}

/// What the cells amount to, computed the long way.
fn summary(cells: &Cells) -> Summary {
    let (actors, hash) = (actors(), digest::key_hash(KEY));
    let (mut sums, mut is_live, mut greatest) = (Digest::default(), false, None);
    for ((kind, element), cell) in cells {
        let rows = CellRef::Cell(cell);
        for put in rows.puts() {
            sums.add(hash, digest::put_hash(hash, *kind, element, put.dot, put.value, &actors));
            if *kind == Kind::Ttl {
                greatest = greatest.max(Some(Deadline::from_bytes(put.value)));
            }
        }
        for (run, amount) in rows.live_runs() {
            sums.add(hash, digest::amount_hash(hash, *kind, element, run.dot(), amount, &actors));
        }
        is_live |= *kind != Kind::Ttl && rows.is_live();
    }
    let deadline = greatest.filter(|deadline| *deadline != Deadline::NEVER);
    Summary { digest: sums.sums()[digest::range_of(hash)], is_live, deadline }
}

/// An image that holds every kind of row once, with fixed content.
fn specimen() -> Vec<u8> {
    let mut out = Vec::new();
    let mut builder = ImageBuilder::new(&mut out, number);
    let dot = Dot { actor: ActorIndex(1), mark: Mark { sequence: 41, ordinal: 2 } };
    let time = HybridTime(1_700_000_000_000_000);
    builder.plain(PutRef { dot, time, value: b"espresso" });
    let mut cell = Cell::default();
    cell.put(Put { dot: Dot { actor: ActorIndex(2), ..dot }, time, value: b"2"[..].into() });
    let run = Run {
        actor: ActorIndex(0),
        start: Mark { sequence: 7, ordinal: 0 },
        last: Mark { sequence: 300, ordinal: 1 },
        total: Amount::Integer(-5),
        time,
        cancelled: None,
    };
    let cancel = Cancel {
        upto: Mark { sequence: 300, ordinal: 1 },
        amount: Amount::Float(2.5),
        by: (ActorIndex(2), 12),
    };
    cell.sum(run);
    cell.sum(Run { actor: ActorIndex(1), cancelled: Some(cancel), ..run });
    builder.cell(Kind::Hash, b"latte", CellRef::Cell(&cell));
    out
}

fn hex(bytes: &[u8]) -> String {
    let line = |line: &[u8]| line.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
    bytes.chunks(32).map(line).collect::<Vec<_>>().join("\n") + "\n"
}

fn describe(bytes: &[u8]) -> Result<String, FrameError> {
    let mut lines = String::new();
    for row in Rows::new(bytes, actor)? {
        lines += &match row? {
            Row::Plain(put) => format!("plain {put:?}\n"),
            Row::Put(kind, element, put) => format!("put {kind:?} {element:?} {put:?}\n"),
            Row::Run(kind, element, run) => format!("run {kind:?} {element:?} {run:?}\n"),
        };
    }
    Ok(lines)
}

#[test]
fn version_1_is_what_it_always_was() {
    let bytes = specimen();
    assert_eq!(hex(&bytes), include_str!("golden/image-1.hex"), "the bytes of version 1 must never change");
    assert_eq!(describe(&bytes).unwrap(), include_str!("golden/image-1.txt"));
}

#[test]
fn a_plain_row_is_a_string_and_its_never() {
    let row = PutRef {
        dot: Dot { actor: ActorIndex(0), mark: Mark { sequence: 1, ordinal: 0 } },
        time: HybridTime(9),
        value: b"v",
    };
    let mut bytes = Vec::new();
    ImageBuilder::new(&mut bytes, number).plain(row);
    let cells = image::cells(&bytes, actor).unwrap();
    let names: Vec<_> = cells.keys().map(|(kind, element)| (*kind, element.len())).collect();
    assert_eq!(names, [(Kind::Ttl, 0), (Kind::String, 0)]);
    let found = Summary::of(KEY, &bytes, &actors(), actor).unwrap();
    assert_eq!(found, summary(&cells));
    assert_eq!((found.is_live, found.deadline), (true, None));
}

#[test]
fn what_is_not_known_is_named_not_guessed() {
    assert_eq!(describe(&[2]), Err(FrameError::Version(2)));
    assert_eq!(describe(&[1, 9]), Err(FrameError::UnknownOperation(9)));
    assert_eq!(describe(&[1, 2, 9, 0]), Err(FrameError::UnknownKind(9)));
    assert!(describe(&[1, 1, 3, 1, 0, 0, 0]).is_err(), "nobody declared actor 3");
    assert_eq!(describe(&[]), Err(FrameError::Short));
}

proptest! {
    #[test]
    fn cells_round_trip(cells in cells()) {
        let bytes = encode(&cells);
        let read = image::cells(&bytes, actor).unwrap();
        prop_assert_eq!(rows(&cells), rows(&read));
        // Equality of cancels looks over who made them; the image must not.
        let cancellers = |cells: &Cells| {
            let runs = cells.values().flat_map(Cell::runs);
            runs.filter_map(|run| Some(run.cancelled?.by)).collect::<Vec<_>>()
        };
        prop_assert_eq!(cancellers(&cells), cancellers(&read));
        prop_assert_eq!(Summary::of(KEY, &bytes, &actors(), actor).unwrap(), summary(&cells));
    }

    #[test]
    fn an_image_cut_short_is_an_error_or_fewer_rows(cells in cells(), cut in 0usize..500) {
        let bytes = encode(&cells);
        let cut = &bytes[..cut.min(bytes.len())];
        if let Ok(read) = image::cells(cut, actor) {
            let (all, read) = (rows(&cells), rows(&read));
            prop_assert!(read.iter().all(|row| all.contains(row)));
        }
    }

    #[test]
    fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..100) {
        let _ = image::cells(&bytes, actor);
        let mut real = specimen();
        let from = at.min(real.len());
        for (held, new) in real[from..].iter_mut().zip(&bytes) {
            *held = *new;
        }
        let _ = describe(&real);
        let _ = Summary::of(KEY, &real, &actors(), actor);
    }
}

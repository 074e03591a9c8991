//! What stands in a checkpoint, byte for byte: a change of these bytes is a change of [`super::FORMAT`].

use std::fmt::Write as _;

use geode_crdt::image::Summary;
use geode_crdt::{Deadline, HybridTime, KeyName};

use super::mark::Mark;
use super::record;
use super::totals::{Counted, Totals};

const GOLDEN: &str = include_str!("../../tests/golden/checkpoint-1.txt");

fn mark() -> Mark {
    Mark {
        position: 4096,
        own: 1,
        clock: 1_767_225_600_000_000,
        held: vec![(0, 7), (1, 9)],
        changed: vec![0],
        times: vec![("us".to_owned(), 1_767_225_599_000_000)],
        depends: vec![(0, 1, 5)],
        passed_over: vec![(0, 2)],
        unfinished: Some(3),
    }
}

fn summary() -> Summary {
    Summary { digest: 0x0102_0304_0506_0708, is_live: true, deadline: Some(Deadline(HybridTime(5_000_000))) }
}

fn totals() -> Totals {
    let mut totals = Totals::default();
    let key = Counted { hash: u64::MAX, database: 3, range: 10 };
    totals.add(key, &summary(), 500);
    totals
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The numbers that are not zero, by their place.
fn sparse(bytes: &[u8]) -> String {
    let numbers = bytes.chunks(8).map(|chunk| u64::from_le_bytes(chunk.try_into().unwrap())).enumerate();
    let told = numbers.filter(|(_, number)| *number != 0);
    told.fold(format!("{} bytes", bytes.len()), |text, (place, number)| format!("{text}, {place}={number:x}"))
}

#[test]
fn the_bytes_of_a_checkpoint_are_those_of_its_format() {
    let (mut name, mut stored) = (Vec::new(), Vec::new());
    record::put_name(&mut name, 0x0123_4567_89ab_cdef, KeyName { database: 3, name: b"menu" });
    record::put_record(&mut stored, &name, &summary(), b"rows");
    let written = format!(
        "format {}\nname {}\nrecord {}\ntotals {}\nmark {}\n",
        super::FORMAT,
        hex(&name),
        hex(&stored),
        sparse(&totals().encode()),
        String::from_utf8(mark().encode()).unwrap()
    );
    assert_eq!(written, GOLDEN);
    assert_eq!(Totals::decode(&totals().encode()), Some(totals()));
}

/// A mark of the first releases lacks what was added since.
#[test]
fn a_mark_is_read_back_with_what_it_may_lack() {
    let golden = GOLDEN.lines().find_map(|line| line.strip_prefix("mark ")).unwrap();
    assert_eq!(Mark::decode(golden.as_bytes()), Some(mark()));
    let old = golden.replace(r#","passed_over":[[0,2]],"unfinished":3"#, "");
    assert_ne!(old, golden);
    let lacking = Mark { passed_over: Vec::new(), unfinished: None, ..mark() };
    assert_eq!(Mark::decode(old.as_bytes()), Some(lacking));
    assert_eq!(Mark::decode(&golden.as_bytes()[..golden.len() - 1]), None);
}

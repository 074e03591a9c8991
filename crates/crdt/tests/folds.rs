//! What a cell is worth: the fold rules, and the traps that a simpler algebra falls into.

#![allow(clippy::unwrap_used)] // a test that unwraps fails, which is what it is for

use geode_crdt::{
    ActorId, ActorIndex, Actors, Amount, Cancel, Cell, CellRef, Deadline, Dot, HybridClock, HybridTime, Mark,
    Put, Run,
};

fn actors() -> (Actors, ActorIndex, ActorIndex) {
    let mut actors = Actors::default();
    let us = actors.intern(&ActorId::new("us", 1));
    let eu = actors.intern(&ActorId::new("eu", 1));
    (actors, us, eu)
}

const fn cancel(upto: Mark, amount: Amount) -> Cancel {
    Cancel { upto, amount, by: (ActorIndex(0), 0) }
}

fn mark(sequence: u64, ordinal: u32) -> Mark {
    Mark { sequence, ordinal }
}

fn put(actor: ActorIndex, at: Mark, time: u64, value: &str) -> Put {
    Put { dot: Dot { actor, mark: at }, time: HybridTime(time), value: value.as_bytes().into() }
}

const fn run(actor: ActorIndex, start: Mark, last: Mark, total: Amount) -> Run {
    Run { actor, start, last, total, time: HybridTime(last.sequence), cancelled: None }
}

fn value(cell: &Cell, actors: &Actors) -> Option<String> {
    CellRef::Cell(cell).fold(actors).map(|value| String::from_utf8(value.to_bytes().into()).unwrap())
}

#[test]
fn the_later_put_wins_and_a_tie_is_decided_alike_everywhere() {
    let (table, us, eu) = actors();
    let mut cell = Cell::default();
    cell.put(put(us, mark(1, 0), 10, "us"));
    cell.put(put(eu, mark(1, 0), 9, "eu"));
    assert_eq!(value(&cell, &table).as_deref(), Some("us"));
    // Equal times: the actor's planet-wide name decides, not the order in which this process met the actors.
    let mut other_table = Actors::default();
    let other_eu = other_table.intern(&ActorId::new("eu", 1));
    let other_us = other_table.intern(&ActorId::new("us", 1));
    let (mut here, mut there) = (Cell::default(), Cell::default());
    for (cell, us, eu) in [(&mut here, us, eu), (&mut there, other_us, other_eu)] {
        cell.put(put(us, mark(1, 0), 10, "us"));
        cell.put(put(eu, mark(1, 0), 10, "eu"));
    }
    assert_eq!(value(&here, &table), value(&there, &other_table));
}

#[test]
fn amounts_add_to_a_numeric_base_and_hide_behind_any_other() {
    let (table, us, eu) = actors();
    let mut cell = Cell::default();
    cell.sum(run(us, mark(1, 0), mark(3, 0), Amount::Integer(5)));
    assert_eq!(value(&cell, &table).as_deref(), Some("5"));
    cell.put(put(eu, mark(1, 0), 2, "100"));
    assert_eq!(value(&cell, &table).as_deref(), Some("105"));
    cell.put(put(eu, mark(2, 0), 3, "abc"));
    assert_eq!(value(&cell, &table).as_deref(), Some("abc"));
    assert!(CellRef::Cell(&cell).hides_amounts(&table));
}

#[test]
fn the_sum_saturates_at_64_bits_and_the_total_does_not() {
    let (table, us, eu) = actors();
    let mut cell = Cell::default();
    cell.sum(run(us, mark(1, 0), mark(1, 0), Amount::Integer(i64::MAX.into())));
    cell.sum(run(eu, mark(1, 0), mark(1, 0), Amount::Integer(10)));
    assert_eq!(value(&cell, &table), Some(i64::MAX.to_string()));
    cell.cancel(us, cancel(mark(1, 0), Amount::Integer(i64::MAX.into())));
    assert_eq!(value(&cell, &table).as_deref(), Some("10"));
}

/// Trap: "folding floats in arrival order": replicas would differ in the last digit.
#[test]
fn floats_are_summed_in_actor_order_whatever_the_order_of_arrival() {
    let mut table = Actors::default();
    let three: Vec<ActorIndex> = ["a", "b", "c"].map(|name| table.intern(&ActorId::new(name, 0))).into();
    let amounts = [0.1, 0.2, 0.3];
    let fold = |order: [usize; 3]| {
        let mut cell = Cell::default();
        for index in order {
            cell.sum(run(three[index], mark(1, 0), mark(1, 0), Amount::Float(amounts[index])));
        }
        value(&cell, &table)
    };
    assert_eq!(fold([0, 1, 2]), fold([2, 1, 0]));
    assert_eq!(fold([0, 1, 2]), fold([1, 2, 0]));
}

/// Trap: "Infinity as a sum": NaN for ever after.
#[test]
fn a_sum_of_floats_never_becomes_infinite() {
    let (table, us, eu) = actors();
    let mut cell = Cell::default();
    cell.sum(run(us, mark(1, 0), mark(1, 0), Amount::Float(f64::MAX)));
    cell.sum(run(eu, mark(1, 0), mark(1, 0), Amount::Float(f64::MAX)));
    let folded: f64 = value(&cell, &table).unwrap().parse().unwrap();
    assert!(folded.is_finite());
}

/// Trap: "a dot is (actor, sequence)": in MULTI INCR, DEL, INCR the cancel would kill the second INCR.
#[test]
fn a_cancel_inside_an_entry_spares_the_later_increment_of_the_same_entry() {
    let (table, us, _) = actors();
    let mut cell = Cell::default();
    cell.sum(run(us, mark(7, 0), mark(7, 0), Amount::Integer(1)));
    cell.cancel(us, cancel(mark(7, 0), Amount::Integer(1)));
    cell.sum(run(us, mark(7, 1), mark(7, 1), Amount::Integer(1)));
    assert_eq!(value(&cell, &table).as_deref(), Some("1"));
}

/// Trap: "counters without run starts": the next run would start at minus the cancelled amount.
#[test]
fn a_run_that_begins_after_a_cancel_owes_it_nothing() {
    let (table, us, _) = actors();
    let mut cell = Cell::default();
    cell.sum(run(us, mark(1, 0), mark(2, 0), Amount::Integer(50)));
    cell.cancel(us, cancel(mark(2, 0), Amount::Integer(50)));
    assert_eq!(value(&cell, &table), None);
    cell.sum(run(us, mark(4, 0), mark(4, 0), Amount::Integer(3)));
    assert_eq!(value(&cell, &table).as_deref(), Some("3"));
}

/// Trap: "subtracting a cancel beyond a surviving row": after a lost tail the cancel knows of more than is left.
#[test]
fn a_cancel_beyond_the_surviving_row_leaves_nothing_not_a_negative_rest() {
    let (table, us, _) = actors();
    let mut cell = Cell::default();
    cell.sum(run(us, mark(1, 0), mark(2, 0), Amount::Integer(2)));
    cell.cancel(us, cancel(mark(5, 0), Amount::Integer(9)));
    assert_eq!(value(&cell, &table), None);
    assert!(!CellRef::Cell(&cell).is_live());
}

#[test]
fn a_live_amount_of_zero_exists() {
    let (table, us, _) = actors();
    let mut cell = Cell::default();
    cell.sum(run(us, mark(1, 0), mark(2, 0), Amount::ZERO));
    assert!(CellRef::Cell(&cell).is_live());
    assert_eq!(value(&cell, &table).as_deref(), Some("0"));
}

#[test]
fn merging_a_row_twice_changes_nothing() {
    let (table, us, eu) = actors();
    let mut cell = Cell::default();
    assert!(cell.put(put(us, mark(1, 0), 1, "5")));
    assert!(!cell.put(put(us, mark(1, 0), 1, "5")));
    assert!(cell.sum(run(eu, mark(1, 0), mark(2, 0), Amount::Integer(2))));
    assert!(
        !cell.sum(run(eu, mark(1, 0), mark(1, 0), Amount::Integer(1))),
        "an older total does not come back"
    );
    assert!(cell.cancel(eu, cancel(mark(2, 0), Amount::Integer(2))));
    assert!(!cell.cancel(eu, cancel(mark(1, 0), Amount::Integer(1))), "an older cancel does not come back");
    assert!(
        !cell.cancel(us, cancel(mark(1, 0), Amount::Integer(1))),
        "a cancel whose sum was dropped is ignored"
    );
    assert_eq!(value(&cell, &table).as_deref(), Some("5"));
    assert!(cell.drop_dead(eu));
    assert!(cell.runs().is_empty());
}

#[test]
fn a_deadline_passes_after_its_time_not_at_it() {
    let deadline = Deadline(HybridTime(100));
    assert!(!deadline.passed_at(HybridTime(100)));
    assert!(deadline.passed_at(HybridTime(101)));
    assert!(!Deadline::NEVER.passed_at(HybridTime(u64::MAX)));
    assert!(Deadline::NEVER > deadline);
    assert_eq!(Deadline::from_bytes(&deadline.to_bytes()), deadline);
    assert_eq!(Deadline::from_bytes(b"short"), Deadline::NEVER);
}

#[test]
fn a_clock_never_repeats_and_passes_what_it_saw() {
    let mut clock = HybridClock::default();
    let first = clock.tick(HybridTime(100));
    assert_eq!(first, HybridTime(100));
    assert_eq!(clock.tick(HybridTime(50)), HybridTime(101), "a wall clock that jumps back does not matter");
    clock.observe(HybridTime(500));
    assert_eq!(clock.peek(HybridTime(200)), HybridTime(501));
    assert_eq!(clock.tick(HybridTime(200)), HybridTime(501));
}

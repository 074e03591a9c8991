//! Joining: the rows of one key from a snapshot, merged into the rows that a replica holds.
//!
//! A snapshot never replaces what is held: that would lose what its source had not seen. A row that only one side has was
//! either removed on the other or never came there, and the other's vector tells which. For a snapshot that was read while
//! its source went on writing, that is the vector at its *beginning*: what it holds beyond is told again by the entries that
//! follow it, and until all of these are delivered the replica is not to be read.
//!
//! Joining again changes nothing, as long as nothing was delivered in between.

use crate::cell::{Cell, Put, Run};
use crate::image::Cells;
use crate::vector::VersionVector;

/// The vectors on both sides of a join.
#[derive(Clone, Copy, Debug)]
pub struct Join<'v> {
    /// What the replica has delivered.
    pub held: &'v VersionVector,
    /// What the source had delivered when the first key was read.
    pub start: &'v VersionVector,
}

impl Join<'_> {
    /// Joins all cells of a key. Cells without rows are left out. Linear in the rows of both, and in the square of those of
    /// one cell.
    pub fn key(self, mut held: Cells, mut snapshot: Cells) -> Cells {
        let mut joined = Cells::new();
        while let Some((name, ours)) = held.pop_first() {
            let theirs = snapshot.remove(&name).unwrap_or_default();
            joined.insert(name, self.cell(&ours, &theirs));
        }
        for (name, theirs) in snapshot {
            joined.insert(name, self.cell(&Cell::default(), &theirs));
        }
        joined.retain(|_, cell| !cell.is_empty());
        joined
    }

    /// Joins the rows of one cell.
    pub fn cell(self, held: &Cell, snapshot: &Cell) -> Cell {
        let mut joined = Cell::default();
        for (put, is_ours) in sides(held.puts(), snapshot.puts()) {
            let (others, vector) =
                if is_ours { (snapshot.puts(), self.start) } else { (held.puts(), self.held) };
            // A row that both have is put twice, which is once.
            if others.iter().any(|other| other.dot == put.dot) || !vector.covers(put.dot) {
                joined.put(Put::clone(put));
            }
        }
        for (run, is_ours) in sides(held.runs(), snapshot.runs()) {
            let (others, vector) =
                if is_ours { (snapshot.runs(), self.start) } else { (held.runs(), self.held) };
            // A run that the other side saw and does not have was dropped there, dead.
            if others.iter().any(|other| other.actor == run.actor) || !vector.covers(run.dot()) {
                add(&mut joined, run);
            }
        }
        joined
    }
}

/// The rows of both sides, and whether they are ours.
fn sides<'r, R>(ours: &'r [R], theirs: &'r [R]) -> impl Iterator<Item = (&'r R, bool)> {
    ours.iter().map(|row| (row, true)).chain(theirs.iter().map(|row| (row, false)))
}

/// Merges a run and its cancel, each by the greater.
fn add(cell: &mut Cell, run: &Run) {
    cell.sum(*run);
    if let Some(cancel) = run.cancelled {
        cell.cancel(run.actor, cancel);
    }
}

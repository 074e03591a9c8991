//! What a run leaves behind: the regions' logs, as they can be read when all have stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use geode_crdt::{ActorId, Actors, Frame, Kind, Op, SYSTEM_DATABASE};
use geode_store::Extent;

use crate::client::mark_of;
use crate::geode::{NAMES, PLANET};

/// The name of an entry.
pub(crate) type Name = (ActorId, u64);

/// An entry, as a region's log has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Microseconds.
    pub(crate) time: u64,
    /// What its writer had seen that it had not when it wrote the entry before.
    pub(crate) changed: Vec<Name>,
    /// The checksum of its bytes.
    pub(crate) checksum: u32,
    /// The request that wrote it.
    pub(crate) mark: Option<String>,
    /// The keys it touches in database 0, and whether it only takes rows away.
    pub(crate) keys: BTreeSet<String>,
    pub(crate) only_removes: bool,
    /// Whether it is about what the regions tell each other alone.
    pub(crate) is_system: bool,
    /// What it sweeps, if it is a sweep.
    pub(crate) extent: Extent,
}

/// One region's log.
pub(crate) type Log = BTreeMap<Name, Entry>;

/// Reads a stopped region's log; what is not whole at its end is left out.
///
/// # Errors
/// What the disk said, or that the log is not what was written.
pub(crate) fn read_log(data: &Path, region: usize) -> (Log, io::Result<()>) {
    let (mut log, mut actors) = (Log::new(), Actors::default());
    let owner = (PLANET, NAMES[region]);
    let outcome = geode_embedded::read_frames(data, owner, &mut actors, |frame, actors| {
        log.extend(entries(frame, actors));
    });
    (log, outcome)
}

fn entries(frame: &Frame<'_>, actors: &Actors) -> Vec<(Name, Entry)> {
    let writer = actors.id(frame.writer());
    let mut all = Vec::new();
    for entry in frame.entries() {
        let ops: Vec<Op<'_>> = entry.ops().map_while(Result::ok).collect();
        let mark = ops.iter().rev().find_map(|op| match op {
            Op::Set { key, value, .. } => mark_of(key.name, value),
            _ => None,
        });
        let removes = |op: &Op<'_>| matches!(op, Op::Remove { .. } | Op::Cancel { .. });
        let takes_deadline = |op: &Op<'_>| matches!(op, Op::Remove { kind: Kind::Ttl, .. });
        let in_zero = ops.iter().map(Op::key).filter(|key| key.database == 0);
        let cut = frame.slice(entry.sequence, entry.sequence, actors);
        let checksum = Frame::parse(&cut, &mut Actors::default()).map_or(0, |frame| frame.checksum());
        let held = Entry {
            time: entry.time.0,
            changed: entry.changed().map(|(actor, upto)| (actors.id(actor).clone(), upto)).collect(),
            checksum,
            mark,
            keys: in_zero.map(|key| String::from_utf8_lossy(key.name).into_owned()).collect(),
            is_system: ops.iter().all(|op| op.key().database == SYSTEM_DATABASE),
            only_removes: ops.iter().all(removes),
            extent: if ops.iter().any(takes_deadline) { Extent::Whole } else { Extent::Data },
        };
        all.push(((writer.clone(), entry.sequence), held));
    }
    all
}

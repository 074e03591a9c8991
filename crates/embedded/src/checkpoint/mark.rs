//! Marks: from where the log is to be replayed over the keys of a checkpoint, and what that needs.

use serde::{Deserialize, Serialize};

/// All that a replay from a position of the log needs to know of what stands before it. Actors stand as numbers of the
/// checkpoint's dictionary.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    /// Where the replay begins.
    pub(crate) position: u64,
    /// The incarnation under which the region writes there.
    pub(crate) own: u32,
    /// The clock there, in microseconds.
    pub(crate) clock: u64,
    /// What is held there: the greatest sequence of each actor.
    pub(crate) held: Vec<(u32, u64)>,
    /// Actors of which something was delivered since the last own entry.
    pub(crate) changed: Vec<u32>,
    /// The greatest time delivered of each other region, in microseconds.
    pub(crate) times: Vec<(String, u64)>,
    /// Owner, canceller, sequence: of which entry of the second the delivered entries of the first depend.
    pub(crate) depends: Vec<(u32, u32, u64)>,
    /// Actors of which the log never held all up to the given entry.
    #[serde(default)]
    pub(crate) passed_over: Vec<(u32, u64)>,
    /// The snapshot that was joined and whose entries are not all delivered.
    #[serde(default)]
    pub(crate) unfinished: Option<u64>,
}

impl Mark {
    /// The actors that it names.
    pub(crate) fn actors(&self) -> impl Iterator<Item = u32> {
        let held = self.held.iter().map(|(actor, _)| *actor);
        let depends = self.depends.iter().flat_map(|(owner, by, _)| [*owner, *by]);
        [self.own].into_iter().chain(held).chain(self.changed.iter().copied()).chain(depends)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        // Numbers, strings and lists of them: nothing that JSON cannot hold.
        serde_json::to_vec(self).unwrap_or_default()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }
}

//! Faults planted on purpose: mistakes that an implementation of the data model could make, so that it can be seen that
//! the checkers find them.
//!
//! They live in the simulator's shell around the cores, which sees every operation, message, reply and start; the cores
//! themselves know nothing of them.

use std::fmt;

macro_rules! plants {
    ($($name:ident, $text:literal, $mistake:literal;)*) => {
        /// One planted fault.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Plant {
            $(#[doc = $mistake] $name,)*
        }

        impl Plant {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Its name on the command line and in docs/simulator.md.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }

            /// What is done wrong.
            pub const fn mistake(self) -> &'static str {
                match self { $(Self::$name => $mistake),* }
            }
        }
    };
}

plants! {
    OneNamePerEntry, "one-name-per-entry", "trap: all increments of an entry have one name";
    RunsWithoutStart, "runs-without-start", "trap: an increment after a cancel goes on with the same run";
    DeadByGossip, "dead-by-gossip", "trap: a cancelled sum is dropped when gossip says that its owner has the cancel";
    ExpiryTakesTtl, "expiry-takes-ttl", "trap: whoever sees a key expired removes its data and the deadlines it knows";
    SweepTooEarly, "sweep-too-early", "the sweeper goes by its own clock";
    SetWithoutNever, "set-without-never", "trap: a plain SET leaves no TTL row";
    HiddenTypesStay, "hidden-types-stay", "trap: a write leaves the cells of other types";
    SkippedDependencies, "skipped-dependencies", "entries do not wait for what they depend on";
    ForgottenChanges, "forgotten-changes", "after a restart the first entry does not say what it depends on";
    ReusedIncarnation, "reused-incarnation", "a lost tail does not end the incarnation";
    IgnoredWitness, "ignored-witness", "nobody tells a region what it holds of it when a link comes up";
    AnsweredBeforeLog, "answered-before-log", "an answer leaves before its record is in the kernel";
    AnsweredBeforeSync, "answered-before-sync", "with fsync = always an answer leaves before the record is on disk";
    SyncedOnArrival, "synced-on-arrival", "a region says that an entry is on its disk when it is in the kernel";
    AppliedTwice, "applied-twice", "an entry that comes twice is applied twice";
    CutTransaction, "cut-transaction", "another region sees the first half of a transaction before the second";
    AdoptedClock, "adopted-clock", "an entry far ahead of the clock is delivered";
    UnboundClock, "unbound-clock", "hybrid time does not pass what was delivered";
    ForgottenFloor, "forgotten-floor", "after a crash time does not go on above what was promised";
    FloorOfLastHeartbeat, "floor-of-last-heartbeat", "after a failed fsync time goes on from the last heartbeat, though later entries are lost";
    PromiseBeforeEntries, "promise-before-entries", "a heartbeat counts before the entries that precede it are delivered";
    LostTailStaysLost, "lost-tail-stays-lost", "nothing is asked for elsewhere";
    ArrivalOrder, "arrival-order", "a value that arrives later replaces what it did not know";
    SilentCut, "silent-cut", "a log damaged in its unsynced tail is cut and the incarnation goes on";
    EndWithoutMember, "end-without-member", "where an actor ends is agreed without a member that was not heard";
    WritesWhileJoining, "writes-while-joining", "a region that comes back as new writes before it knows what happened without it";
    SnapshotReplaces, "snapshot-replaces", "a snapshot takes the place of what is held";
    JoinedThoughCut, "joined-though-cut", "a snapshot that broke off is joined as if it were whole";
    ServedBeforeTail, "served-before-tail", "a region serves between the rows of a snapshot and the entries that came with it";
    IgnoredToken, "ignored-token", "a region serves a session without having what the session saw";
}

impl fmt::Display for Plant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Plant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = || Self::ALL.iter().map(|plant| plant.name()).collect::<Vec<_>>().join(", ");
        let found = Self::ALL.iter().copied().find(|plant| plant.name() == text);
        found.ok_or_else(|| format!("no fault is called {text:?}; there are: {}", known()))
    }
}

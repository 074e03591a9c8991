//! What the store remembers of one connection: database, transaction, and what it waits for.

use geode_crdt::HybridTime;
use smallvec::SmallVec;

use crate::arguments::Owned;
use crate::commands::table::Command;
use crate::engine::Ticket;
use crate::flush::Flush;
use crate::listing::Listing;
use crate::waiting::{Acknowledgement, Coverage};

/// Whether a command was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Its whole reply was written.
    Done,
    /// Nothing was replied. Call [`crate::Store::resume`] after each engine turn that changed something, or at the
    /// deadline, and execute nothing else for this session until it says [`Flow::Done`].
    Wait {
        /// By the wall clock that [`crate::Engine::set_wall`] is told; `None` waits for rows or acknowledgements alone.
        until: Option<HybridTime>,
    },
}

/// The store's part of one connection.
#[derive(Debug, Default)]
pub struct Session {
    pub(crate) database: u8,
    pub(crate) transaction: Option<Transaction>,
    pub(crate) parked: Option<Parked>,
    /// Under which writer it wrote first since the last WAIT that met another one.
    pub(crate) writer: Option<u64>,
}

impl Session {
    /// Whether MULTI was sent and EXEC or DISCARD was not yet.
    pub const fn in_transaction(&self) -> bool {
        self.transaction.is_some()
    }

    /// Whether a command waits to be resumed.
    pub const fn is_waiting(&self) -> bool {
        self.parked.is_some()
    }

    /// The number of the database that was selected.
    pub const fn database(&self) -> u8 {
        self.database
    }

    /// RESET: forgets database and transaction.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// A command of the front end itself was refused while a transaction is being queued: EXEC will abort.
    pub const fn spoil_transaction(&mut self) {
        if let Some(transaction) = &mut self.transaction {
            transaction.spoiled = true;
        }
    }
}

/// The queue between MULTI and EXEC.
#[derive(Debug, Default)]
pub(crate) struct Transaction {
    pub(crate) queue: Vec<(&'static Command, Owned)>,
    /// Memory that the queue takes, about.
    pub(crate) size: usize,
    /// A command was refused: EXEC will abort.
    pub(crate) spoiled: bool,
}

/// Rows that were asked for.
pub(crate) type Tickets = SmallVec<[Ticket; 2]>;

/// What runs when the wait is over.
#[derive(Debug)]
pub(crate) enum Parked {
    /// A command whose rows are being fetched.
    Command(Owned, Tickets),
    /// A transaction whose rows are being fetched.
    Transaction(Transaction, Tickets),
    /// WAIT.
    Acknowledgement(Acknowledgement),
    /// GEODE.WAIT.
    Coverage(Coverage),
    /// FLUSHALL or FLUSHDB between two steps.
    Flush(Flush),
    /// KEYS between two steps.
    Listing(Listing),
}

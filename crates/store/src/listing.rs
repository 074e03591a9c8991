//! KEYS over more keys than are in memory: name by name in steps, so that they need not all be there at once.
//!
//! A key that is there during the whole listing is in the reply; of those that come or go meanwhile, some are.

use geode_crdt::HybridTime;

use crate::arguments::Owned;
use crate::commands::key;
use crate::commands::table::{Action, Command, Function};
use crate::engine::Engine;
use crate::reply::Reply;
use crate::session::{Flow, Parked, Session, Tickets};
use crate::store::Store;

/// Parts of the scan after which others have their turn: some milliseconds.
const STEP: usize = 4;

/// A listing that is under way.
#[derive(Debug)]
pub(crate) struct Listing {
    arguments: Owned,
    cursor: u64,
    names: Vec<Box<[u8]>>,
    /// Rows that are being fetched.
    tickets: Tickets,
}

/// Whether a command lists names.
pub(crate) const fn is_listing(command: &Command) -> bool {
    matches!(command.action, Action::Run(Function::Keys))
}

impl Listing {
    pub(crate) fn new(arguments: &[&[u8]]) -> Self {
        Self { arguments: Owned::copy(arguments), cursor: 0, names: Vec::new(), tickets: Tickets::new() }
    }
}

impl<E: Engine> Store<E> {
    /// Goes on with a listing for one step.
    pub(crate) fn list<R: Reply>(
        &mut self,
        session: &mut Session,
        mut listing: Listing,
        reply: &mut R,
    ) -> Flow {
        if self.is_fetching(&listing.tickets) {
            session.parked = Some(Parked::Listing(listing));
            return Flow::Wait { until: None };
        }
        for _ in 0..STEP {
            let now = self.engine.now();
            let context = self.context(now, session.database, reply);
            let (arguments, names) = (listing.arguments.borrow(), &mut listing.names);
            match key::list(&context, &arguments, listing.cursor, names) {
                Ok(0) => {
                    // A table that grows between two steps may show a key twice.
                    listing.names.sort_unstable();
                    listing.names.dedup();
                    reply.array(listing.names.len());
                    listing.names.iter().for_each(|name| reply.bulk(name));
                    return Flow::Done;
                }
                Ok(next) => listing.cursor = next,
                Err(need) => {
                    listing.tickets = self.fetch(&[*need]);
                    session.parked = Some(Parked::Listing(listing));
                    return Flow::Wait { until: None };
                }
            }
        }
        session.parked = Some(Parked::Listing(listing));
        // At once, after the others.
        Flow::Wait { until: Some(HybridTime(0)) }
    }
}

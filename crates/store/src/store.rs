//! The driver: runs commands against an engine and answers them, or parks what has to wait.

use std::collections::BTreeSet;

use geode_crdt::{HybridTime, KeyName};

use crate::arguments::Owned;
use crate::commands::server;
use crate::commands::table::{self, Access, Action, Command, Control, Function};
use crate::context::Context;
use crate::engine::{Engine, Ticket};
use crate::errors::{self, Outcome, Stop};
use crate::listing::{self, Listing};
use crate::random::Random;
use crate::reply::Reply;
use crate::session::{Flow, Parked, Session, Tickets};
use crate::view::{Need, Part, View};

/// How many databases SELECT knows, as in Redis by default.
pub const DATABASES: u8 = 16;

/// What one entry may hold: above the longest string with its key, and below [`geode_crdt::frame::MAX_FRAME`], beyond
/// which no peer would accept it.
const ENTRY_LIMIT: usize = 768 << 20;

/// Rows that are asked for at once; more are asked for when these are there.
pub(crate) const FETCH_LIMIT: usize = 1024;

/// What to do with writes that depend on a condition (SET NX, SET XX, SETNX) where several regions write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Conditional {
    /// Reject them: two regions may both find the condition true.
    #[default]
    Reject,
    /// Decide them by what this region knows; the operator accepts that two regions may both succeed.
    Local,
}

/// How a store behaves.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Conditional writes in a planet of more than one region. In a planet of one they are exact.
    pub conditional: Conditional,
    /// Seeds the random picks of SPOP and SRANDMEMBER.
    pub seed: u64,
    /// What CONFIG GET answers beyond what the store knows itself, e.g. `("appendfsync", "everysec")`.
    pub parameters: Vec<(String, String)>,
}

/// Adds lines to a section of INFO: the section's name in lower case, and the text so far.
pub type InfoLines = Box<dyn Fn(&str, &mut String) + Send>;

/// Commands over an engine. One thread owns it.
pub struct Store<E: Engine> {
    /// What holds the rows.
    pub engine: E,
    pub(crate) options: Options,
    pub(crate) info_lines: Option<InfoLines>,
    random: Random,
    /// Where the open entry begins in the frame that is being built.
    entry_start: usize,
    /// Fetches that are not complete. Sessions that went away need not be told.
    fetching: BTreeSet<Ticket>,
    completed: Vec<Ticket>,
}

impl<E: Engine> Store<E> {
    /// A store over `engine`.
    pub fn new(engine: E, options: Options) -> Self {
        let random = Random::new(options.seed);
        Self {
            engine,
            options,
            info_lines: None,
            random,
            entry_start: 0,
            fetching: BTreeSet::new(),
            completed: Vec::new(),
        }
    }

    /// Lets whoever runs the process say in INFO what the store does not know: connections, ports, uptime.
    pub fn set_info_lines(&mut self, lines: InfoLines) {
        self.info_lines = Some(lines);
    }

    /// Runs one command. `arguments` begin with the command's name and are copied only if it has to wait.
    ///
    /// Before the reply leaves the process, the engine is flushed.
    pub fn execute<R: Reply>(&mut self, session: &mut Session, arguments: &[&[u8]], reply: &mut R) -> Flow {
        debug_assert!(session.parked.is_none(), "a session does one thing at a time");
        let command = match table::resolve(arguments) {
            Ok(command) => command,
            Err(message) => {
                session.spoil_transaction();
                reply.error(&message);
                return Flow::Done;
            }
        };
        if session.in_transaction() && !command.steers_transaction() {
            return Self::enqueue(session, command, arguments, reply);
        }
        self.run(session, command, arguments, reply)
    }

    /// Goes on with what the session waits for. Returns as [`Self::execute`] does.
    pub fn resume<R: Reply>(&mut self, session: &mut Session, reply: &mut R) -> Flow {
        self.note_completed();
        match session.parked.take() {
            None => Flow::Done,
            Some(Parked::Command(arguments, tickets)) if self.is_fetching(&tickets) => {
                session.parked = Some(Parked::Command(arguments, tickets));
                Flow::Wait { until: None }
            }
            Some(Parked::Command(arguments, _)) => self.execute(session, &arguments.borrow(), reply),
            Some(Parked::Transaction(transaction, tickets)) if self.is_fetching(&tickets) => {
                session.parked = Some(Parked::Transaction(transaction, tickets));
                Flow::Wait { until: None }
            }
            Some(Parked::Transaction(transaction, _)) => self.commit(session, transaction, reply),
            Some(Parked::Acknowledgement(wanted)) => self.wait(session, wanted, reply),
            Some(Parked::Coverage(wanted)) => self.cover(session, wanted, reply),
            Some(Parked::Flush(flush)) => self.flush(session, flush, reply),
            Some(Parked::Listing(listing)) => self.list(session, listing, reply),
        }
    }

    fn run<R: Reply>(
        &mut self,
        session: &mut Session,
        command: &'static Command,
        arguments: &[&[u8]],
        reply: &mut R,
    ) -> Flow {
        let outcome = match command.action {
            Action::Run(function) if command.access == Access::Read => {
                self.read(session.database, function, arguments, reply).map(|()| Flow::Done)
            }
            Action::Run(function) => self.write(session, function, arguments, reply).map(|()| Flow::Done),
            Action::Control(control) => self.control(session, control, arguments, reply),
        };
        match outcome {
            Ok(flow) => flow,
            Err(Stop::Refuse(message)) => {
                reply.error(&message);
                Flow::Done
            }
            Err(Stop::Need(need)) => {
                if listing::is_listing(command) && matches!(need.part, Part::Keys { .. }) {
                    return self.list(session, Listing::new(arguments), reply);
                }
                let tickets = self.fetch(&self.needs_of(session.database, command, arguments, *need));
                session.parked = Some(Parked::Command(Owned::copy(arguments), tickets));
                Flow::Wait { until: None }
            }
        }
    }

    /// Reads open no entry.
    pub(crate) fn read<R: Reply>(
        &mut self,
        database: u8,
        function: Function,
        arguments: &[&[u8]],
        reply: &mut R,
    ) -> Outcome {
        self.check_readable()?;
        let mark = reply.mark();
        let now = self.engine.now();
        let outcome = table::run(function, &mut self.context(now, database, reply), arguments);
        if outcome.is_err() {
            reply.rewind(mark);
        }
        outcome
    }

    /// An entry of its own for one command; a command that wrote nothing leaves none.
    fn write<R: Reply>(
        &mut self,
        session: &mut Session,
        function: Function,
        arguments: &[&[u8]],
        reply: &mut R,
    ) -> Outcome {
        self.check_writable()?;
        let now = self.begin();
        let database = session.database;
        let outcome = self.step(now, database, reply, |context| table::run(function, context, arguments));
        let written = self.engine.end();
        self.note_written(session, written);
        outcome
    }

    /// Remembers under which writer a session wrote, for WAIT.
    pub(crate) fn note_written(&self, session: &mut Session, entry: Option<u64>) {
        if entry.is_some() {
            session.writer.get_or_insert_with(|| self.engine.writer());
        }
    }

    /// One step inside the open entry: its operations become visible to the next step, or, if it stops, it leaves no
    /// trace in entry and reply.
    pub(crate) fn step<R: Reply, T>(
        &mut self,
        now: HybridTime,
        database: u8,
        reply: &mut R,
        prepare: impl FnOnce(&mut Context<'_, E::View, R>) -> Outcome<T>,
    ) -> Outcome<T> {
        let from = self.engine.parts().1.checkpoint();
        let mark = reply.mark();
        let mut outcome = prepare(&mut self.context(now, database, reply));
        let start = self.entry_start;
        let entry = self.engine.parts().1;
        if entry.len() - start > ENTRY_LIMIT {
            outcome = Err(errors::ENTRY_TOO_LARGE.into());
        }
        if outcome.is_ok() {
            self.engine.apply(from);
        } else {
            entry.rewind(from);
            reply.rewind(mark);
        }
        outcome
    }

    /// An error if what is held shows no state that there was.
    pub(crate) fn check_readable(&self) -> Outcome {
        if self.engine.is_whole() { Ok(()) } else { Err(errors::NOT_WHOLE.into()) }
    }

    /// An error if the engine takes no writes, other regions would hold back what is written here, or this one does not know
    /// yet what was there before.
    pub(crate) fn check_writable(&mut self) -> Outcome {
        self.engine.before_write();
        self.is_writable()
    }

    /// The same, for what the store writes by itself: it waits for nobody.
    pub(crate) fn is_writable(&self) -> Outcome {
        self.check_log()?;
        match self.engine.clock_ahead_ms() {
            None if self.engine.is_joining() => Err(errors::JOINING.into()),
            None => Ok(()),
            Some(ahead_ms) => Err(errors::clock_ahead(ahead_ms).into()),
        }
    }

    /// An error if the engine takes no writes.
    pub(crate) fn check_log(&self) -> Outcome {
        self.engine.write_refusal().map_or(Ok(()), |refusal| Err(refusal.into()))
    }

    /// Opens an entry and returns its time.
    pub(crate) fn begin(&mut self) -> HybridTime {
        let now = self.engine.begin();
        self.entry_start = self.engine.parts().1.len();
        now
    }

    pub(crate) fn context<'a, R: Reply>(
        &'a mut self,
        now: HybridTime,
        database: u8,
        reply: &'a mut R,
    ) -> Context<'a, E::View, R> {
        let conditions_allowed = self.options.conditional == Conditional::Local || self.engine.regions() == 1;
        let (view, entry) = self.engine.parts();
        Context { view, entry, reply, now, database, random: &mut self.random, conditions_allowed }
    }

    /// Commands that are about the connection or the whole store.
    pub(crate) fn control<R: Reply>(
        &mut self,
        session: &mut Session,
        control: Control,
        arguments: &[&[u8]],
        reply: &mut R,
    ) -> Outcome<Flow> {
        match control {
            Control::Multi => Self::open_transaction(session, reply)?,
            Control::Exec => return self.exec(session, reply),
            Control::Discard => Self::discard(session, reply)?,
            Control::Watch if session.in_transaction() => return Err(errors::WATCH_INSIDE_MULTI.into()),
            Control::Watch => return Err(errors::WATCH.into()),
            Control::Select => {
                session.database = server::database(arguments)?;
                reply.simple("OK");
            }
            Control::Wait => return self.begin_wait(session, arguments, reply),
            Control::Vector => self.reply_vector(reply),
            Control::Cover => return self.begin_cover(session, arguments, reply),
            Control::Once => self.once(session, arguments, reply)?,
            Control::FlushAll => return self.begin_flush(session, 0..DATABASES, arguments, reply),
            Control::FlushDatabase => {
                let database = session.database;
                return self.begin_flush(session, database..database + 1, arguments, reply);
            }
            Control::Info => self.reply_info(arguments, reply)?,
            Control::Config => server::config(&self.options.parameters, arguments, reply)?,
        }
        Ok(Flow::Done)
    }

    /// What a command needs first, and with it its other keys that are not there, so that it waits once for all.
    fn needs_of(&self, database: u8, command: &Command, arguments: &[&[u8]], first: Need) -> Vec<Need> {
        let view = self.engine.view();
        let others = command.keys.of(arguments).skip(1).take(FETCH_LIMIT);
        let others = others.filter_map(|name| view.key(KeyName { database, name }).err().map(|need| *need));
        let mut needs: Vec<Need> = others.filter(|need| *need != first).collect();
        needs.push(first);
        needs
    }

    /// Asks the engine for rows.
    pub(crate) fn fetch(&mut self, needs: &[Need]) -> Tickets {
        let tickets: Tickets = needs.iter().map(|need| self.engine.fetch(need)).collect();
        self.fetching.extend(tickets.iter().copied());
        tickets
    }

    fn note_completed(&mut self) {
        self.engine.completed(&mut self.completed);
        for ticket in self.completed.drain(..) {
            self.fetching.remove(&ticket);
        }
    }

    pub(crate) fn is_fetching(&self, tickets: &Tickets) -> bool {
        tickets.iter().any(|ticket| self.fetching.contains(ticket))
    }
}

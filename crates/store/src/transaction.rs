//! MULTI, EXEC, DISCARD: a queue of commands that run without interruption as one entry.

use geode_crdt::{KeyName, Kind};

use crate::arguments::{self, Owned};
use crate::commands::server;
use crate::commands::table::{Access, Action, Command, Control, Function, Keys};
use crate::engine::Engine;
use crate::errors::{self, Outcome, Stop};
use crate::reply::Reply;
use crate::session::{Flow, Parked, Session, Transaction};
use crate::store::{DATABASES, FETCH_LIMIT, Store};
use crate::view::{KeyView, Loaded, Need, View};

/// What a transaction may take in memory before EXEC.
const QUEUE_LIMIT: usize = 64 << 20;

/// Keys that FLUSHALL may clear inside one entry.
const FLUSH_LIMIT: u64 = 1_000_000;

/// Keys that are brought into memory for a transaction that looks at all of them: half a second, in which nobody is
/// served.
const LOAD_LIMIT: u64 = 100_000;

/// Keys that are visited before the engine is asked for the next ones.
const SCAN_STEP: usize = 1024;

impl<E: Engine> Store<E> {
    pub(crate) fn open_transaction<R: Reply>(session: &mut Session, reply: &mut R) -> Outcome {
        if session.in_transaction() {
            return Err(errors::NESTED_MULTI.into());
        }
        session.transaction = Some(Transaction::default());
        reply.simple("OK");
        Ok(())
    }

    pub(crate) fn discard<R: Reply>(session: &mut Session, reply: &mut R) -> Outcome {
        session.transaction.take().ok_or(errors::DISCARD_WITHOUT_MULTI)?;
        reply.simple("OK");
        Ok(())
    }

    pub(crate) fn enqueue<R: Reply>(
        session: &mut Session,
        command: &'static Command,
        arguments: &[&[u8]],
        reply: &mut R,
    ) -> Flow {
        if let Some(message) = command.refused_in_transaction() {
            session.spoil_transaction();
            reply.error(message);
        } else if let Some(transaction) = &mut session.transaction {
            transaction.size += arguments::owned_size(arguments);
            if transaction.size > QUEUE_LIMIT {
                transaction.spoiled = true;
                transaction.queue = Vec::new();
                reply.error(errors::QUEUE_FULL);
            } else {
                // One that will abort anyway takes no more memory.
                if !transaction.spoiled {
                    transaction.queue.push((command, Owned::copy(arguments)));
                }
                reply.simple("QUEUED");
            }
        }
        Flow::Done
    }

    pub(crate) fn exec<R: Reply>(&mut self, session: &mut Session, reply: &mut R) -> Outcome<Flow> {
        let transaction = session.transaction.take().ok_or(errors::EXEC_WITHOUT_MULTI)?;
        if transaction.spoiled {
            return Err(errors::TRANSACTION_ABORTED.into());
        }
        self.check_readable()?;
        if transaction.queue.iter().any(|(command, _)| command.writes()) {
            self.check_writable()?;
        }
        Ok(self.commit(session, transaction, reply))
    }

    /// Runs the queue if all its rows are in memory: no command can be interrupted half-way through a transaction.
    pub(crate) fn commit<R: Reply>(
        &mut self,
        session: &mut Session,
        transaction: Transaction,
        reply: &mut R,
    ) -> Flow {
        let scans = transaction.queue.iter().any(|(command, _)| visits_all_keys(command));
        if scans && !self.engine.load_all(LOAD_LIMIT) {
            reply.error(errors::TOO_LARGE_FOR_TRANSACTION);
            return Flow::Done;
        }
        let missing = self.missing_rows(session.database, &transaction);
        if !missing.is_empty() {
            let tickets = self.fetch(&missing);
            session.parked = Some(Parked::Transaction(transaction, tickets));
            return Flow::Wait { until: None };
        }
        let now = self.begin();
        reply.array(transaction.queue.len());
        for (command, arguments) in &transaction.queue {
            let arguments = &arguments.borrow()[..];
            let outcome = match command.action {
                Action::Run(function) if command.access == Access::Read => {
                    self.read(session.database, function, arguments, reply)
                }
                Action::Run(function) => self.step(now, session.database, reply, |context| {
                    crate::commands::table::run(function, context, arguments)
                }),
                Action::Control(control) => self.control_inside(session, control, arguments, reply),
            };
            match outcome {
                Ok(()) => {}
                Err(Stop::Refuse(message)) => reply.error(&message),
                Err(Stop::Need(_)) => {
                    debug_assert!(false, "{} lacked a row inside a transaction", command.name);
                    reply.error(errors::EVICTED);
                }
            }
        }
        let written = self.engine.end();
        self.note_written(session, written);
        Flow::Done
    }

    /// The few commands that mean something else, or wait, outside a transaction.
    fn control_inside<R: Reply>(
        &mut self,
        session: &mut Session,
        control: Control,
        arguments: &[&[u8]],
        reply: &mut R,
    ) -> Outcome {
        match control {
            Control::Wait => {
                self.wait_inside(arguments, reply)?;
            }
            Control::FlushAll | Control::FlushDatabase => {
                server::check_flush(arguments)?;
                let databases = flushed(control, session.database);
                self.flush_inside(databases, reply)?;
            }
            other => {
                self.control(session, other, arguments, reply)?;
            }
        }
        Ok(())
    }

    /// FLUSHALL as a part of a transaction's one entry.
    fn flush_inside<R: Reply>(&mut self, databases: std::ops::Range<u8>, reply: &mut R) -> Outcome {
        let mut keys = 0;
        for database in databases.clone() {
            keys += self.engine.view().key_count(database)?;
        }
        if keys > FLUSH_LIMIT {
            return Err(errors::FLUSH_TOO_LARGE.into());
        }
        let now = self.engine.now();
        for database in databases {
            self.step(now, database, reply, |context| {
                let mut cursor = context.clear_keys(0, SCAN_STEP)?;
                while cursor != 0 {
                    cursor = context.clear_keys(cursor, SCAN_STEP)?;
                }
                Ok(())
            })?;
        }
        reply.simple("OK");
        Ok(())
    }

    /// Some of the rows that the queue will touch and that are not in memory.
    fn missing_rows(&self, selected: u8, transaction: &Transaction) -> Vec<Need> {
        let (view, mut database) = (self.engine.view(), selected);
        let mut missing = Vec::new();
        for (command, arguments) in &transaction.queue {
            let arguments = &arguments.borrow()[..];
            let databases = match command.action {
                Action::Control(Control::Select) => {
                    database = server::database(arguments).unwrap_or(database);
                    continue;
                }
                Action::Control(control @ (Control::FlushAll | Control::FlushDatabase)) => {
                    flushed(control, database)
                }
                Action::Control(Control::Info) => 0..DATABASES,
                _ if command.keys == Keys::Database => database..database + 1,
                _ => 0..0,
            };
            let clears =
                matches!(command.action, Action::Control(Control::FlushAll | Control::FlushDatabase));
            let visits = visits_all_keys(command);
            missing.extend(
                databases.filter_map(|database| check_database(view, database, visits, clears).err()),
            );
            let names = command.keys.of(arguments).map(|name| KeyName { database, name });
            missing.extend(names.filter_map(|name| check_key(view, name).err()));
            if missing.len() >= FETCH_LIMIT {
                break;
            }
        }
        missing.into_iter().map(|need| *need).collect()
    }
}

fn flushed(control: Control, selected: u8) -> std::ops::Range<u8> {
    if control == Control::FlushAll { 0..DATABASES } else { selected..selected + 1 }
}

/// Whether the whole key is in memory.
fn check_key<V: View>(view: &V, name: KeyName<'_>) -> Loaded<()> {
    view.key(name)?.map_or(Ok(()), check_cells)
}

fn check_cells<'v>(key: impl KeyView<'v>) -> Loaded<()> {
    for kind in Kind::DATA {
        if key.live_cells(kind) > 0 {
            drop(key.cells(kind)?);
        }
    }
    Ok(())
}

/// Whether a command visits all keys of a database, and does not only count them.
const fn visits_all_keys(command: &Command) -> bool {
    matches!(
        command.action,
        Action::Control(Control::FlushAll | Control::FlushDatabase)
            | Action::Run(Function::Keys | Function::Scan)
    )
}

/// Whether the number of keys of a database, if they are to be visited their names, and if they are to be cleared all of
/// them, are in memory.
fn check_database<V: View>(view: &V, database: u8, visits: bool, clears: bool) -> Loaded<()> {
    let mut missing = Ok(());
    let mut cursor = 0;
    view.key_count(database)?;
    if !visits {
        return missing;
    }
    loop {
        cursor = view.scan(database, cursor, SCAN_STEP, |_, key| {
            if clears && missing.is_ok() {
                missing = check_cells(key);
            }
        })?;
        if cursor == 0 || missing.is_err() {
            return missing;
        }
    }
}

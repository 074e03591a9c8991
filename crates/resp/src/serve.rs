//! One connection's share of a batch: read once, execute what is complete, in place.

use geode_store::{Engine, Flow, Reply, Store};

use crate::client::{ClientCommand, Others};
use crate::connection::{Connection, Phase, Replies};
use crate::server::Server;
use crate::write::Writer;

/// Commands of one connection in one batch, so that an endless pipeline does not keep others waiting.
const SHARE_COMMANDS: u64 = 1024;

impl Server {
    /// Executes what the connection has, reads once, and executes what came.
    pub(crate) fn serve<E: Engine>(&mut self, connection: &mut Connection, store: &mut Store<E>) {
        if matches!(connection.phase, Phase::Waiting(_)) && connection.hung_up {
            connection.phase = Phase::Dead;
        }
        if !connection.wants_service(self.limits.output_pause_bytes) {
            return;
        }
        connection.active = self.now;
        let mut input = std::mem::take(&mut connection.input);
        if connection.phase == Phase::Backlogged {
            let consumed = self.execute_all(connection, input.unexecuted(), store);
            input.consume(consumed);
        }
        // Only when it is known that everything before is executed, so at most one command is ever unfinished.
        let may_read = connection.phase == Phase::Reading && connection.readable;
        connection.input = input;
        if may_read {
            self.read_and_execute(connection, store);
        }
    }

    fn read_and_execute<E: Engine>(&mut self, connection: &mut Connection, store: &mut Store<E>) {
        let mut shared = std::mem::take(&mut self.shared);
        if let Some(tail) = connection.input.move_into(&mut shared) {
            let length = connection.read(&mut shared[tail..]);
            self.counts.bytes_in += length as u64;
            let bytes = &mut shared[..tail + length];
            let consumed = if length > 0 { self.execute_all(connection, bytes, store) } else { 0 };
            if consumed < bytes.len() {
                connection.input.keep(&bytes[consumed..]);
            }
        } else {
            let mut input = std::mem::take(&mut connection.input);
            let length = connection.read(input.room(self.limits.input_bytes));
            self.counts.bytes_in += length as u64;
            input.filled(length);
            if length > 0 {
                let consumed = self.execute_all(connection, input.unexecuted(), store);
                input.consume(consumed);
            }
            connection.input = input;
        }
        self.shared = shared;
        if connection.phase == Phase::Reading && connection.input.len() >= self.limits.input_bytes {
            tracing::warn!(peer = %connection.peer, "a command exceeds the limit of input; connection closed");
            self.counts.over_limit += 1;
            connection.phase = Phase::Dead;
        }
    }

    /// Executes the complete commands in `input` until something stops that; the connection's phase says what. Returns
    /// how many bytes are done with.
    fn execute_all<E: Engine>(
        &mut self,
        connection: &mut Connection,
        input: &mut [u8],
        store: &mut Store<E>,
    ) -> usize {
        let pause = connection.output.end_of(self.limits.output_pause_bytes);
        let limit = connection.output.end_of(self.limits.output_bytes);
        let mut buffer = connection.output.take_buffer(&mut self.spares);
        let mut reply = Writer::new(&mut buffer, connection.protocol, limit);
        let mut consumed = 0;
        let mut commands = 0;
        connection.phase = Phase::Reading;
        while connection.phase == Phase::Reading {
            if commands == SHARE_COMMANDS || reply.mark() >= pause {
                connection.phase = Phase::Backlogged;
                break;
            }
            let rest = &mut input[consumed..];
            match connection.parser.parse(rest, &self.limits.command) {
                Ok(None) => break,
                Ok(Some(length)) => {
                    let arguments = connection.parser.arguments(rest);
                    consumed += length;
                    commands += 1;
                    if !arguments.is_empty() {
                        self.execute(connection, &arguments, &mut reply, store);
                    }
                }
                Err(error) => {
                    tracing::debug!(peer = %connection.peer, %error, "not a request; connection closed");
                    self.counts.protocol_errors += 1;
                    reply.error(&format!("ERR {error}"));
                    consumed = input.len();
                    connection.phase = Phase::Draining;
                }
            }
        }
        self.counts.commands += commands;
        self.finish_replies(connection, &reply);
        connection.output.put_buffer(buffer, &mut self.spares);
        consumed
    }

    /// Executes one command.
    fn execute<E: Engine>(
        &mut self,
        connection: &mut Connection,
        arguments: &[&[u8]],
        reply: &mut Writer<'_>,
        store: &mut Store<E>,
    ) {
        let mark = reply.mark();
        if connection.replies == Replies::SkipNext {
            connection.replies = Replies::Skip;
        }
        if let Some(command) = ClientCommand::named(arguments[0]) {
            let mut others =
                Others { connections: &mut self.connections, touched: &mut self.touched, now: self.now };
            command.execute(connection, &mut others, arguments, reply);
        } else if let Flow::Wait { until } = store.execute(&mut connection.session, arguments, reply) {
            connection.phase = Phase::Waiting(until);
            self.waiting.push(connection.slot);
            return;
        }
        silence(connection, reply, mark);
    }

    /// Goes on with a command that waits.
    pub(crate) fn resume<E: Engine>(&mut self, connection: &mut Connection, store: &mut Store<E>) {
        let limit = connection.output.end_of(self.limits.output_bytes);
        let mut buffer = connection.output.take_buffer(&mut self.spares);
        let mut reply = Writer::new(&mut buffer, connection.protocol, limit);
        let mark = reply.mark();
        connection.phase = match store.resume(&mut connection.session, &mut reply) {
            Flow::Done => {
                silence(connection, &mut reply, mark);
                Phase::Backlogged
            }
            Flow::Wait { until } => Phase::Waiting(until),
        };
        self.finish_replies(connection, &reply);
        connection.output.put_buffer(buffer, &mut self.spares);
    }

    /// Counts, and gives up on a connection that would hold more than it may.
    fn finish_replies(&mut self, connection: &mut Connection, reply: &Writer<'_>) {
        self.counts.errors += reply.errors();
        if reply.overflowed() {
            tracing::warn!(peer = %connection.peer, "replies exceed the limit of output; connection closed");
            self.counts.over_limit += 1;
            connection.phase = Phase::Dead;
        }
    }
}

/// Takes the reply to a finished command back if the client does not want it.
fn silence(connection: &mut Connection, reply: &mut Writer<'_>, mark: usize) {
    if matches!(connection.replies, Replies::None | Replies::Skip) {
        reply.rewind(mark);
    }
    if connection.replies == Replies::Skip {
        connection.replies = Replies::All;
    }
}

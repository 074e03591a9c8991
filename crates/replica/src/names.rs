//! Numbers for writers on one direction of a link.
//!
//! A writer's name takes some twenty bytes and is said in every heartbeat for as long as it writes. So whoever speaks
//! says it in full once; from then on its number, in order of first mention, stands for it. Messages are therefore read in
//! the order in which they were encoded.
//!
//! ```text
//! actor = varint: its number from 1 | or 0, region, incarnation u64: the name, which takes the next number
//! ```

use std::collections::HashMap;

use geode_crdt::codec::{self, Reader};
use geode_crdt::{ActorId, FrameError};

use crate::vector::{MAX_ACTORS, Vector, put_actor, read_actor};

/// The numbers that a speaker gave.
#[derive(Debug, Default)]
pub(crate) struct Given {
    numbers: HashMap<ActorId, u64>,
}

/// The names that a hearer was told, in order.
#[derive(Debug, Default)]
pub(crate) struct Told {
    names: Vec<ActorId>,
}

impl Given {
    pub(crate) fn put(&mut self, out: &mut Vec<u8>, actor: &ActorId) {
        if let Some(number) = self.numbers.get(actor) {
            return codec::put_varint(out, *number);
        }
        codec::put_varint(out, 0);
        put_actor(out, actor);
        let number = self.numbers.len() as u64 + 1;
        // Beyond that a name is said in full each time, so that the hearer's memory is bounded.
        if number <= MAX_ACTORS {
            self.numbers.insert(actor.clone(), number);
        }
    }

    pub(crate) fn put_vector(&mut self, out: &mut Vec<u8>, vector: &Vector) {
        codec::put_varint(out, vector.0.len() as u64);
        for (actor, sequence) in &vector.0 {
            self.put(out, actor);
            codec::put_varint(out, *sequence);
        }
    }
}

impl Told {
    pub(crate) fn read(&mut self, reader: &mut Reader<'_>) -> Result<ActorId, FrameError> {
        let number = reader.varint()?;
        let Some(index) = number.checked_sub(1) else {
            let actor = read_actor(reader)?;
            if (self.names.len() as u64) < MAX_ACTORS {
                self.names.push(actor.clone());
            }
            return Ok(actor);
        };
        let known = usize::try_from(index).ok().and_then(|index| self.names.get(index));
        known.cloned().ok_or(FrameError::Malformed("a number that names no writer"))
    }

    pub(crate) fn read_vector(&mut self, reader: &mut Reader<'_>) -> Result<Vector, FrameError> {
        let count = reader.varint()?;
        if count > MAX_ACTORS {
            return Err(FrameError::TooLong(count));
        }
        let mut vector = Vector::default();
        for _ in 0..count {
            let actor = self.read(reader)?;
            vector.0.insert(actor, reader.varint()?);
        }
        Ok(vector)
    }
}

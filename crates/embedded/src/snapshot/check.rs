//! Whether blocks are, one after the other, a snapshot: everything that is to be known before anything of it is joined.

use std::collections::BTreeMap;

use geode_crdt::image::Rows;
use geode_crdt::{ActorId, ActorIndex, Actors, FrameError};

use super::format::{self, Begin, Block, End, Kind};

/// Reads blocks in their order.
#[derive(Debug, Default)]
pub(crate) struct Check {
    snapshot: u64,
    /// The checksum of the last block.
    crc: u32,
    resume: Vec<u8>,
    begin: Option<Begin>,
    end: Option<End>,
    keys: u64,
    /// The names in it, for their number is bounded.
    actors: Actors,
    /// What stands in it of each actor: the start, and the entries that follow it.
    held: BTreeMap<ActorId, u64>,
}

impl Check {
    pub(crate) fn begin(&self) -> Option<&Begin> {
        self.begin.as_ref()
    }

    /// What it says at its end, once it is whole.
    pub(crate) fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    pub(crate) const fn snapshot(&self) -> u64 {
        self.snapshot
    }

    /// Images so far.
    pub(crate) const fn keys(&self) -> u64 {
        self.keys
    }

    /// What its source is to be told to go on behind the last block; empty if there is none.
    pub(crate) fn resume(&self) -> Vec<u8> {
        if self.begin.is_none() {
            return Vec::new();
        }
        [&self.resume[..], &self.crc.to_le_bytes()].concat()
    }

    /// Takes the next block, of a snapshot of `planet` if that matters.
    ///
    /// # Errors
    /// In words: it does not follow, or is none that any source sends.
    pub(crate) fn take(&mut self, block: &Block<'_>, planet: Option<&str>) -> Result<(), String> {
        if block.kind == Kind::Begin {
            *self = Self::default();
            let begin = Begin::read(block.content).map_err(text)?;
            if let Some(planet) = planet.filter(|planet| *planet != begin.planet) {
                return Err(format!("it is of planet \"{}\", not of \"{planet}\"", begin.planet));
            }
            self.snapshot = block.snapshot;
            let depends = begin.depends.iter().flat_map(|(owner, by, _)| [owner, by]);
            meet(&mut self.actors, begin.start.keys().chain([&begin.source]).chain(depends)).map_err(text)?;
            self.held = begin.start.clone();
            self.begin = Some(begin);
        } else if self.begin.is_none()
            || self.end.is_some()
            || (block.snapshot, block.before) != (self.snapshot, self.crc)
        {
            return Err("a block of it is missing, or of another snapshot".to_owned());
        }
        match block.kind {
            Kind::Begin => {}
            Kind::Images => self.images(block.content)?,
            Kind::Tail => self.tail(block.content)?,
            Kind::End => self.ends(block.content)?,
        }
        self.crc = block.crc;
        self.resume = block.resume.to_vec();
        Ok(())
    }

    fn images(&mut self, content: &[u8]) -> Result<(), String> {
        let (actors, images) = format::read_images(content).map_err(text)?;
        meet(&mut self.actors, actors.iter()).map_err(text)?;
        let known = actors.len() as u32;
        for image in images {
            let (_, image) = image.map_err(text)?;
            let rows = Rows::new(image, |number| (number < known).then_some(ActorIndex(number)));
            let mut rows = rows.map_err(text)?;
            rows.try_for_each(|row| row.map(drop)).map_err(text)?;
            self.keys += 1;
        }
        Ok(())
    }

    fn tail(&mut self, content: &[u8]) -> Result<(), String> {
        let held = &mut self.held;
        let read = format::each_frame(content, &mut self.actors, |frame, actors| {
            let held = held.entry(actors.id(frame.writer()).clone()).or_default();
            if frame.first_sequence() != *held + 1 {
                return Err(FrameError::Malformed("entries out of order"));
            }
            *held = frame.last_sequence();
            if actors.len() > Actors::MAX { Err(FrameError::TooLong(actors.len() as u64)) } else { Ok(()) }
        });
        read.map_err(text)
    }

    fn ends(&mut self, content: &[u8]) -> Result<(), String> {
        let end = End::read(content).map_err(text)?;
        if end.keys != self.keys {
            return Err("it does not hold as many keys as it says".to_owned());
        }
        if end.end != self.held {
            return Err("its entries do not reach as far as it says".to_owned());
        }
        self.end = Some(end);
        Ok(())
    }
}

fn meet<'a>(actors: &mut Actors, named: impl Iterator<Item = &'a ActorId>) -> Result<(), FrameError> {
    for actor in named {
        actors.intern_foreign(actor).ok_or(FrameError::TooLong(Actors::MAX as u64))?;
    }
    Ok(())
}

fn text(error: FrameError) -> String {
    error.to_string()
}

//! A whole snapshot joined into the rows, in bounded steps; and the entries that came with it, delivered behind it.

use std::fs::File;
use std::io;
use std::path::Path;

use geode_crdt::{ActorIndex, Join, KeyName, VersionVector};
use geode_store::View;

use super::format::{self, Begin, Blocks, End, Kind, invalid};
use crate::rows::Rows;
use crate::table::{segment_count, segment_of};

/// How a snapshot meets what is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// What only one side has is judged by the other's vector.
    Join,
    /// The rows are the snapshot's but for what it had not seen: what is held may be wrong, and the snapshot has seen all that
    /// was delivered here.
    Reseed,
}

impl Manner {
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Join => 1,
            Self::Reseed => 2,
        }
    }

    pub(crate) fn from_code(code: u8) -> Option<Self> {
        [Self::Join, Self::Reseed].into_iter().find(|manner| manner.code() == code)
    }
}

/// A snapshot on its way into the rows. Between two steps nothing is delivered and nothing written.
#[derive(Debug)]
pub(crate) struct Joining {
    blocks: Blocks<File>,
    manner: Manner,
    /// What was held when it began, as the join is to see it.
    held: VersionVector,
    begin: Option<(Begin, VersionVector)>,
    end: Option<End>,
    /// The hashes of the snapshot's keys by segment, if there are others.
    seen: Option<Vec<Vec<u64>>>,
    /// The next segment whose keys that the snapshot lacks are to be judged.
    segment: usize,
    keys: u64,
}

/// What was joined.
#[derive(Clone, Debug)]
pub(crate) struct Joined {
    pub(crate) begin: Begin,
    pub(crate) start: VersionVector,
    pub(crate) end: VersionVector,
}

impl Joining {
    /// Begins to join the snapshot in the file at `path` into `rows`, with which `held` is held.
    pub(crate) fn new(path: &Path, rows: &Rows, held: &VersionVector, manner: Manner) -> io::Result<Self> {
        let seen = (!rows.table.is_empty()).then(|| vec![Vec::new(); segment_count()]);
        Ok(Self {
            blocks: Blocks::new(File::open(path)?)?,
            manner,
            held: if manner == Manner::Join { held.clone() } else { VersionVector::default() },
            begin: None,
            end: None,
            seen,
            segment: 0,
            keys: 0,
        })
    }

    /// Images joined so far, and how many there are.
    pub(crate) fn keys(&self) -> (u64, u64) {
        (self.keys, self.begin.as_ref().map_or(0, |(begin, _)| begin.keys))
    }

    /// Joins one block, or one segment. Returns what was joined when it is done.
    ///
    /// # Errors
    /// The file is not what was written to it. What was joined so far stays.
    pub(crate) fn step(&mut self, rows: &mut Rows) -> io::Result<Option<Joined>> {
        if self.end.is_none() {
            return self.block(rows).map(|()| None);
        }
        while self.segment < segment_count() {
            let segment = self.segment;
            self.segment += 1;
            if self.judge_others(segment, rows)? {
                return Ok(None);
            }
        }
        let (Some((begin, start)), Some(end)) = (self.begin.take(), &self.end) else {
            return Err(invalid("it was joined before"));
        };
        rows.clock.observe(end.clock);
        let end = format::intern(&end.end, rows.table.actors_mut());
        for (actor, sequence) in start.iter() {
            if sequence > self.held.get(actor) && actor != rows.own {
                rows.changed.insert(actor);
            }
        }
        let own_region = rows.table.actors().id(rows.own).region.clone();
        for (region, time) in begin.times.iter().filter(|(region, _)| **region != own_region) {
            let known = rows.times.entry(region.clone()).or_default();
            *known = (*time).max(*known);
        }
        Ok(Some(Joined { begin, start, end }))
    }

    fn block(&mut self, rows: &mut Rows) -> io::Result<()> {
        let Some(block) = self.blocks.next()? else { return Err(damaged("it ends early")) };
        match block.kind {
            Kind::Begin => {
                let begin = Begin::read(block.content).map_err(damaged)?;
                let start = format::intern(&begin.start, rows.table.actors_mut());
                for (owner, by, sequence) in &begin.depends {
                    let actors = rows.table.actors_mut();
                    let (owner, by) = (actors.intern(owner), actors.intern(by));
                    rows.table.depend(owner, by, *sequence);
                }
                self.begin = Some((begin, start));
            }
            Kind::Images => {
                let Some((_, start)) = &self.begin else { return Err(damaged("it has no beginning")) };
                let vectors = Join { held: &self.held, start };
                let (actors, images) = format::read_images(block.content).map_err(damaged)?;
                let names: Vec<ActorIndex> =
                    actors.iter().map(|id| rows.table.actors_mut().intern(id)).collect();
                for image in images {
                    let (key, image) = image.map_err(damaged)?;
                    let actor = |number: u32| names.get(number as usize).copied();
                    let hash =
                        rows.table.join(key, Some(image), actor, vectors, self.manner).map_err(damaged)?;
                    if let Some(seen) = &mut self.seen {
                        seen[segment_of(hash)].push(hash);
                    }
                    self.keys += 1;
                }
            }
            Kind::Tail => {}
            Kind::End => self.end = Some(End::read(block.content).map_err(damaged)?),
        }
        Ok(())
    }

    /// Joins the keys of a segment of which the snapshot has no row. Returns whether there were keys.
    fn judge_others(&mut self, segment: usize, rows: &mut Rows) -> io::Result<bool> {
        let (Some(seen), Some((_, start))) = (&mut self.seen, &self.begin) else { return Ok(false) };
        let mut seen = std::mem::take(&mut seen[segment]);
        seen.sort_unstable();
        let others = rows.table.keys_of_segment(segment);
        let others = others.filter(|(hash, _)| seen.binary_search(hash).is_err());
        let others: Vec<(u8, Vec<u8>)> = others.map(|(_, key)| (key.database, key.name.to_vec())).collect();
        let vectors = Join { held: &self.held, start };
        for (database, name) in &others {
            let key = KeyName { database: *database, name };
            rows.table.join(key, None, |_| None, vectors, self.manner).map_err(damaged)?;
        }
        Ok(!others.is_empty())
    }
}

fn damaged(error: impl ToString) -> io::Error {
    invalid(error.to_string())
}

/// The entries that came with a snapshot, in their order.
#[derive(Debug)]
pub(crate) struct Tail {
    blocks: Blocks<File>,
}

impl Tail {
    pub(crate) fn new(path: &Path) -> io::Result<Self> {
        Ok(Self { blocks: Blocks::new(File::open(path)?)? })
    }

    /// The next block of entries; `None` behind the last.
    pub(crate) fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            match self.blocks.next()? {
                Some(block) if block.kind == Kind::Tail => return Ok(Some(block.content.to_vec())),
                Some(block) if block.kind == Kind::End => return Ok(None),
                Some(_) => {}
                None => return Err(damaged("it ends early")),
            }
        }
    }
}

/// What a whole snapshot says at its beginning and end, without what is between.
pub(crate) fn read_ends(path: &Path) -> io::Result<(Begin, End)> {
    let mut blocks = Blocks::new(File::open(path)?)?;
    let mut begin = None;
    loop {
        match blocks.next()? {
            Some(block) if block.kind == Kind::Begin => {
                begin = Some(Begin::read(block.content).map_err(damaged)?);
            }
            Some(block) if block.kind == Kind::End => {
                let end = End::read(block.content).map_err(damaged)?;
                return begin.map(|begin| (begin, end)).ok_or_else(|| damaged("it has no beginning"));
            }
            Some(_) => {}
            None => return Err(damaged("it ends early")),
        }
    }
}

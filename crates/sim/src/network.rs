//! Links: two queues of bytes in order, as TCP is, with delays, and ends that may not know that the other is gone.

use std::collections::{BTreeMap, VecDeque};

use std::sync::Arc;

use crate::engine::Block;
use crate::random::Random;

/// What arrives at an end.
#[derive(Clone, Debug)]
pub(crate) enum Item {
    /// The connection is there.
    Connected,
    Bytes(Vec<u8>),
    /// A block of a snapshot, for an attempt.
    Block(u64, Arc<Block>),
    /// The other end closed it, or knows nothing of it.
    Closed,
}

#[derive(Debug)]
struct Pipe {
    from: usize,
    to: usize,
    queue: VecDeque<(u64, Item)>,
    last_us: u64,
}

/// A connection. Its pipes are numbered: 0 leads from the dialler.
#[derive(Debug)]
pub(crate) struct Connection {
    pipes: [Pipe; 2],
}

/// All connections.
#[derive(Debug)]
pub(crate) struct Network {
    connections: BTreeMap<u64, Connection>,
    next: u64,
    delay_us: Vec<Vec<u64>>,
    /// How many faults block a direction.
    blocked: BTreeMap<(usize, usize), u32>,
    random: Random,
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

impl Network {
    pub(crate) fn new(delay_ms: &[Vec<u64>], seed: u64) -> Self {
        Self {
            connections: BTreeMap::new(),
            next: 1,
            delay_us: in_us(delay_ms),
            blocked: BTreeMap::new(),
            random: Random::new(seed, 3),
            messages: 0,
            bytes: 0,
        }
    }

    pub(crate) fn is_blocked(&self, from: usize, to: usize) -> bool {
        self.blocked.get(&(from, to)).is_some_and(|count| *count > 0)
    }

    pub(crate) fn block(&mut self, from: usize, to: usize) {
        *self.blocked.entry((from, to)).or_default() += 1;
    }

    pub(crate) fn unblock(&mut self, from: usize, to: usize) {
        if let Some(count) = self.blocked.get_mut(&(from, to)) {
            *count = count.saturating_sub(1);
        }
    }

    /// Nothing is blocked and everything takes its usual time.
    pub(crate) fn reset(&mut self, delay_ms: &[Vec<u64>]) {
        self.blocked.clear();
        self.delay_us = in_us(delay_ms);
    }

    pub(crate) fn delay(&mut self, from: usize, to: usize, by_us: i64) {
        let delay = &mut self.delay_us[from][to];
        *delay = delay.saturating_add_signed(by_us);
    }

    /// A region dials another. Returns the connection, and when its ends are told of it.
    pub(crate) fn dial(&mut self, from: usize, to: usize, now_us: u64) -> (u64, [u64; 2]) {
        let id = self.next;
        self.next += 1;
        let pipe = |from, to| Pipe { from, to, queue: VecDeque::new(), last_us: 0 };
        self.connections.insert(id, Connection { pipes: [pipe(from, to), pipe(to, from)] });
        let there = self.put(id, 0, Item::Connected, now_us);
        let back = self.put(id, 1, Item::Connected, there.unwrap_or(now_us));
        (id, [there.unwrap_or(now_us), back.unwrap_or(now_us)])
    }

    /// The region at which a pipe ends, and the one from which it comes.
    pub(crate) fn ends(&self, id: u64, pipe: usize) -> Option<(usize, usize)> {
        let pipe = &self.connections.get(&id)?.pipes[pipe];
        Some((pipe.from, pipe.to))
    }

    /// Which pipe of a connection leads away from a region.
    pub(crate) fn pipe_from(&self, id: u64, region: usize) -> Option<usize> {
        self.connections.get(&id)?.pipes.iter().position(|pipe| pipe.from == region)
    }

    /// Sends something. Returns when it arrives, if the connection is there.
    pub(crate) fn put(&mut self, id: u64, pipe: usize, item: Item, now_us: u64) -> Option<u64> {
        let pipe = &mut self.connections.get_mut(&id)?.pipes[pipe];
        if let Item::Bytes(bytes) = &item {
            self.messages += 1;
            self.bytes += bytes.len() as u64;
        }
        let delay_us = self.delay_us[pipe.from][pipe.to] + self.random.below(1_000);
        let at_us = (now_us + delay_us).max(pipe.last_us + 1);
        pipe.last_us = at_us;
        pipe.queue.push_back((at_us, item));
        Some(at_us)
    }

    /// Takes what arrives next on a pipe, if it is time and nothing blocks it.
    pub(crate) fn take(&mut self, id: u64, pipe: usize, now_us: u64) -> Option<Item> {
        let pipe = &mut self.connections.get_mut(&id)?.pipes[pipe];
        if self.blocked.get(&(pipe.from, pipe.to)).is_some_and(|count| *count > 0) {
            return None;
        }
        pipe.queue.pop_front_if(|(at_us, _)| *at_us <= now_us).map(|(_, item)| item)
    }

    /// Pipes in which something waits in a direction, and how much: for when it is no longer blocked.
    pub(crate) fn waiting(&self, from: usize, to: usize) -> Vec<(u64, usize, usize)> {
        let mut waiting = Vec::new();
        for (id, connection) in &self.connections {
            for (index, pipe) in connection.pipes.iter().enumerate() {
                if (pipe.from, pipe.to) == (from, to) && !pipe.queue.is_empty() {
                    waiting.push((*id, index, pipe.queue.len()));
                }
            }
        }
        waiting
    }

    /// Forgets a connection of which no end knows any more.
    pub(crate) fn forget(&mut self, id: u64) {
        self.connections.remove(&id);
    }
}

fn in_us(delay_ms: &[Vec<u64>]) -> Vec<Vec<u64>> {
    delay_ms.iter().map(|row| row.iter().map(|delay| delay * 1_000).collect()).collect()
}

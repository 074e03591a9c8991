//! A planet of replicas in one thread: clocks, links and disks as a seed wants them.
//!
//! Links are queues of bytes in order, as TCP is; cutting one loses what is under way. Disks keep logs; a node can be
//! killed, come back, come back with a lost tail, or stay dead. Every delivery is checked: contiguous, once, and after
//! all it depends on.

#![allow(clippy::unwrap_used)] // a test that unwraps fails, which is what it is for

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use geode_crdt::{
    ActorId, ActorIndex, Actors, Amount, Cancel, Cell, Digest, Frame, FrameBuilder, HybridClock, HybridTime,
    KeyName, Kind, Op, Put, Run, VersionVector, digest,
};
use geode_replica::{Action, Host, Now, Replica, Report, Unreadable, wire};

pub(crate) const PLANET: &str = "simulated";
/// When simulations begin, in microseconds.
const BEGINNING: u64 = 1_700_000_000_000_000;

/// A small generator of well mixed numbers (splitmix64, Steele et al. 2014).
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound.max(1) as u64) as usize
    }

    pub(crate) fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }
}

/// A frame in a node's log.
#[derive(Clone, Debug)]
struct Logged {
    actor: ActorId,
    first: u64,
    last: u64,
    bytes: Vec<u8>,
}

/// What a node's replica delivers to.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) actors: Actors,
    log: Vec<Logged>,
    held: VersionVector,
    changed: BTreeSet<ActorIndex>,
    clock: HybridClock,
    rows: BTreeMap<u8, Cell>,
    /// Times of entries delivered since this was last emptied.
    delivered: Vec<HybridTime>,
}

#[derive(Debug)]
struct Stream {
    next: usize,
    held: BTreeMap<ActorId, u64>,
}

pub(crate) struct Node {
    pub(crate) name: Arc<str>,
    pub(crate) disk: Disk,
    pub(crate) replica: Replica,
    builder: FrameBuilder,
    pub(crate) alive: bool,
    /// After a lost tail nothing is written until peers were heard.
    cautious: bool,
    skew_us: i64,
    streams: BTreeMap<Arc<str>, Stream>,
    pub(crate) reports: Vec<Report>,
    pub(crate) incarnations: u64,
}

/// One direction of a link.
#[derive(Debug, Default)]
struct Pipe {
    encoder: wire::Encoder,
    decoder: wire::Decoder,
    queue: VecDeque<Vec<u8>>,
    /// Bytes of frames that were carried, whether or not they arrived.
    entries: u64,
}

pub(crate) struct Simulation {
    pub(crate) nodes: Vec<Node>,
    up: BTreeSet<(usize, usize)>,
    pipes: BTreeMap<(usize, usize), Pipe>,
    now_ms: u64,
    pub(crate) random: Random,
    /// The length of the values written.
    pub(crate) value_bytes: usize,
    /// Whether nothing may arrive below what a replica said had passed: not so once a tail was lost.
    pub(crate) promises_hold: bool,
}

impl Host for Disk {
    fn actors(&mut self) -> &mut Actors {
        &mut self.actors
    }

    fn deliver(&mut self, frame: &Frame<'_>, from: u64, to: u64) {
        let writer = frame.writer();
        assert_eq!(from, self.held.get(writer) + 1, "entries are delivered in order and once");
        assert!(frame.first_sequence() <= from && from <= to && to <= frame.last_sequence());
        let bytes = frame.slice(from, to, &self.actors);
        for entry in frame.entries().filter(|entry| (from..=to).contains(&entry.sequence)) {
            for (actor, sequence) in entry.changed() {
                assert!(self.held.get(actor) >= sequence, "an entry was delivered before what it depends on");
            }
            self.held.raise(writer, entry.sequence);
            self.clock.observe(entry.time);
            self.delivered.push(entry.time);
            for op in entry.ops() {
                apply(&mut self.rows, &op.unwrap(), entry.time);
            }
        }
        self.changed.insert(writer);
        let actor = self.actors.id(writer).clone();
        self.log.push(Logged { actor, first: from, last: to, bytes });
    }

    fn fingerprint(&mut self, actor: ActorIndex, sequence: u64) -> Result<Option<u32>, Unreadable> {
        let id = self.actors.id(actor).clone();
        let holds = |logged: &&Logged| logged.actor == id && (logged.first..=logged.last).contains(&sequence);
        let Some(bytes) = self.log.iter().find(holds).map(|logged| logged.bytes.clone()) else {
            return Ok(None);
        };
        let cut = Frame::parse(&bytes, &mut self.actors).unwrap().slice(sequence, sequence, &self.actors);
        Ok(Some(Frame::parse(&cut, &mut self.actors).unwrap().checksum()))
    }
}

fn apply(rows: &mut BTreeMap<u8, Cell>, op: &Op<'_>, time: HybridTime) {
    let cell = rows.entry(op.key().name[0]).or_default();
    match op {
        Op::Put { dot, value, replaces, .. } => {
            replaces.for_each(|dot| drop(cell.remove(dot)));
            cell.put(Put { dot: *dot, time, value: (*value).into() });
        }
        Op::Sum { start, dot, total, .. } => {
            let run =
                Run { actor: dot.actor, start: *start, last: dot.mark, total: *total, time, cancelled: None };
            cell.sum(run);
        }
        Op::Cancel { target, upto, amount, .. } => {
            cell.cancel(*target, Cancel { upto: *upto, amount: *amount, by: (*target, 0) });
        }
        Op::Remove { dot, .. } => drop(cell.remove(*dot)),
        Op::Set { .. } => unreachable!("not written here"),
    }
}

impl Disk {
    fn empty() -> Self {
        Self {
            actors: Actors::default(),
            log: Vec::new(),
            held: VersionVector::default(),
            changed: BTreeSet::new(),
            clock: HybridClock::default(),
            rows: BTreeMap::new(),
            delivered: Vec::new(),
        }
    }

    /// What a start finds after the log was cut to `records`.
    fn replayed(log: &[Logged], own: &ActorId) -> Self {
        let mut disk = Self::empty();
        for logged in log {
            let frame = Frame::parse(&logged.bytes, &mut disk.actors).unwrap();
            disk.deliver(&frame, logged.first, logged.last);
            if logged.actor == *own {
                disk.changed.clear();
            }
        }
        disk.delivered.clear();
        disk
    }

    pub(crate) fn digest(&self) -> Digest {
        let mut sums = Digest::default();
        for (name, cell) in &self.rows {
            let name = [*name];
            let key = digest::key_hash(KeyName { database: 0, name: &name });
            for put in cell.puts() {
                sums.add(key, digest::put_hash(key, Kind::String, b"", put.dot, &put.value, &self.actors));
            }
            for run in cell.runs() {
                if let Some(amount) = run.live_amount() {
                    sums.add(
                        key,
                        digest::amount_hash(key, Kind::String, b"", run.dot(), amount, &self.actors),
                    );
                }
            }
        }
        sums
    }

    pub(crate) fn vector(&self) -> BTreeMap<ActorId, u64> {
        self.held.to_portable(&self.actors)
    }
}

impl Node {
    fn new(index: usize, names: &[&str], skew_us: i64) -> Self {
        let mut disk = Disk::empty();
        let own = disk.actors.intern(&ActorId::new(names[index], 1));
        let now = Now { monotonic_ms: 0, wall: HybridTime(BEGINNING) };
        let peers: Vec<String> =
            names.iter().filter(|name| **name != names[index]).map(|name| (*name).to_owned()).collect();
        Self {
            name: names[index].into(),
            replica: Replica::new(PLANET, names[index], own, &peers, VersionVector::default(), now),
            builder: FrameBuilder::new(own, 1),
            disk,
            alive: true,
            cautious: false,
            skew_us,
            streams: BTreeMap::new(),
            reports: Vec::new(),
            incarnations: 1,
        }
    }

    fn own(&self) -> ActorId {
        self.disk.actors.id(self.replica.own()).clone()
    }

    /// Entries that are committed and not yet in the log.
    fn flush(&mut self) {
        if self.builder.is_empty() {
            return;
        }
        let (actor, last) = (self.own(), self.builder.sequence() - 1);
        let mut bytes = Vec::new();
        self.builder.finish_into(&mut bytes, &self.disk.actors);
        let first = Frame::parse(&bytes, &mut self.disk.actors).unwrap().first_sequence();
        self.disk.log.push(Logged { actor, first, last, bytes });
    }

    fn begin_incarnation(&mut self) {
        self.flush();
        self.incarnations += 1;
        let own = self.disk.actors.intern(&ActorId::new(&self.name, self.incarnations));
        self.disk.changed = self.disk.held.iter().map(|(actor, _)| actor).collect();
        self.replica.begin_incarnation(own);
        self.builder = FrameBuilder::new(own, 1);
        self.cautious = false;
    }
}

impl Simulation {
    pub(crate) fn new(names: &[&str], seed: u64) -> Self {
        let mut random = Random(seed);
        let skew = |random: &mut Random| random.below(200_000) as i64 - 100_000;
        let nodes = (0..names.len()).map(|index| Node::new(index, names, skew(&mut random))).collect();
        let pairs = (0..names.len()).flat_map(|from| (0..names.len()).map(move |to| (from, to)));
        let pipes = pairs.filter(|(from, to)| from != to).map(|pair| (pair, Pipe::default())).collect();
        Self { nodes, up: BTreeSet::new(), pipes, now_ms: 0, random, value_bytes: 8, promises_hold: true }
    }

    fn wall(&self, node: usize) -> HybridTime {
        HybridTime((BEGINNING + self.now_ms * 1000).saturating_add_signed(self.nodes[node].skew_us))
    }

    pub(crate) fn set_skew(&mut self, node: usize, skew_us: i64) {
        self.nodes[node].skew_us = skew_us;
    }

    /// Makes a node believe that it belongs to another planet.
    pub(crate) fn set_planet(&mut self, node: usize, planet: &str) {
        let names: Vec<String> = self.nodes.iter().map(|node| node.name.to_string()).collect();
        let state = &mut self.nodes[node];
        let (own, held) = (state.replica.own(), state.disk.held.clone());
        state.replica = Replica::new(planet, &state.name, own, &names, held, Now::default());
    }

    pub(crate) fn connect_all(&mut self) {
        for left in 0..self.nodes.len() {
            for right in left + 1..self.nodes.len() {
                self.connect(left, right);
            }
        }
    }

    pub(crate) fn connect(&mut self, left: usize, right: usize) {
        let pair = (left.min(right), left.max(right));
        if left == right || !self.nodes[left].alive || !self.nodes[right].alive || !self.up.insert(pair) {
            return;
        }
        for (node, peer) in [(left, right), (right, left)] {
            let peer = self.nodes[peer].name.clone();
            let Node { replica, disk, .. } = &mut self.nodes[node];
            replica.connected(&peer, disk);
            self.act(node);
        }
    }

    pub(crate) fn cut(&mut self, left: usize, right: usize) {
        if !self.up.remove(&(left.min(right), left.max(right))) {
            return;
        }
        for (node, peer) in [(left, right), (right, left)] {
            let pipe = self.pipes.get_mut(&(node, peer)).unwrap();
            *pipe = Pipe { entries: pipe.entries, ..Pipe::default() };
            let peer = self.nodes[peer].name.clone();
            self.nodes[node].streams.remove(&peer);
            self.nodes[node].replica.lost(&peer);
            self.act(node);
        }
    }

    pub(crate) fn is_cut(&self, left: usize, right: usize) -> bool {
        !self.up.contains(&(left.min(right), left.max(right)))
    }

    pub(crate) fn kill(&mut self, node: usize) {
        for peer in 0..self.nodes.len() {
            self.cut(node, peer);
        }
        self.nodes[node].alive = false;
    }

    /// Brings a node back with its log but the last `lost` records. With `proven` it keeps its incarnation: then a lost
    /// tail is a volume that was rolled back.
    pub(crate) fn revive(&mut self, node: usize, lost: usize, proven: bool) {
        let names: Vec<String> = self.nodes.iter().map(|node| node.name.to_string()).collect();
        let wall = self.wall(node);
        let state = &mut self.nodes[node];
        assert!(!state.alive);
        let now = Now { monotonic_ms: self.now_ms, wall };
        let own = state.own();
        state.disk.log.truncate(state.disk.log.len().saturating_sub(lost));
        let clock = state.disk.clock.clone();
        let mut disk = Disk::replayed(&state.disk.log, &own);
        // The floor of time survives.
        disk.clock = clock;
        let own = disk.actors.intern(&own);
        let peers: Vec<String> = names.into_iter().filter(|name| **name != *state.name).collect();
        state.replica = Replica::new(PLANET, &state.name, own, &peers, disk.held.clone(), now);
        state.builder = FrameBuilder::new(own, disk.held.get(own) + 1);
        state.disk = disk;
        state.alive = true;
        state.cautious = lost > 0;
        self.promises_hold &= lost == 0;
        if !proven {
            self.nodes[node].begin_incarnation();
        }
    }

    /// Writes one entry to a random key, in a random way. Returns whether it did.
    pub(crate) fn write(&mut self, node: usize) -> bool {
        let (key, how) = ([self.random.below(3) as u8], self.random.below(4));
        let wall = self.wall(node);
        let state = &mut self.nodes[node];
        if !state.alive || state.cautious && !state.replica.all_answered() {
            return false;
        }
        let Node { disk, builder, replica, .. } = state;
        let time = disk.clock.tick(wall);
        let changed: Vec<_> = disk
            .changed
            .iter()
            .map(|actor| (*actor, disk.held.get(*actor)))
            .filter(|(_, held)| *held > 0)
            .collect();
        let mut value = time.0.to_le_bytes().to_vec();
        value.resize(self.value_bytes, 0);
        builder.begin_entry(time, changed);
        let from = builder.checkpoint();
        let name = KeyName { database: 0, name: &key };
        let cell = disk.rows.entry(key[0]).or_default();
        let own = cell.runs().iter().find(|run| run.actor == replica.own() && run.live_amount().is_some());
        let own = own
            .map_or((None, Amount::Integer(1)), |run| (Some(run.start), run.total.plus(Amount::Integer(1))));
        if how != 0 {
            for run in cell.runs().iter().filter(|run| how < 3 && run.live_amount().is_some()) {
                builder.cancel(name, Kind::String, b"", run.actor, run.last, run.total);
            }
        }
        match how {
            1 => drop(builder.put(name, Kind::String, b"", &value, cell.puts().iter().map(|put| put.dot))),
            2 => cell.puts().iter().for_each(|put| builder.remove(name, Kind::String, b"", put.dot)),
            _ => drop(builder.sum(name, Kind::String, b"", own.0, own.1)),
        }
        let ops: Vec<Op<'_>> = builder.ops_since(from).map(Result::unwrap).collect();
        ops.iter().for_each(|op| apply(&mut disk.rows, op, time));
        drop(ops);
        let Some(sequence) = builder.finish_entry() else { return false };
        disk.held.raise(replica.own(), sequence);
        disk.changed.clear();
        replica.committed(sequence);
        true
    }

    /// Writes one entry at a node that can write.
    pub(crate) fn write_surely(&mut self, node: usize) {
        // A removal of nothing writes nothing.
        while !self.write(node) {
            assert!(self.nodes[node].alive && !self.nodes[node].cautious, "it cannot write");
        }
    }

    pub(crate) fn flush(&mut self, node: usize) {
        self.nodes[node].flush();
    }

    /// Lets time pass everywhere, with timers and heartbeats.
    pub(crate) fn advance(&mut self, milliseconds: u64) {
        self.now_ms += milliseconds;
        for node in 0..self.nodes.len() {
            if self.nodes[node].alive {
                self.tick(node);
            }
        }
    }

    fn tick(&mut self, node: usize) {
        let now = Now { monotonic_ms: self.now_ms, wall: self.wall(node) };
        self.with_passed_checked(node, |state| state.replica.timer(now, &mut state.disk));
        let state = &mut self.nodes[node];
        state.flush();
        for (actor, sequence) in state.disk.held.iter().collect::<Vec<_>>() {
            state.replica.synced(actor, sequence);
        }
        if state.replica.heartbeat_due() {
            let promise = state.disk.clock.tick(now.wall);
            state.replica.heartbeat(promise, &state.disk.actors);
        }
        state.replica.acknowledge(now.monotonic_ms, &state.disk.actors);
        self.act(node);
    }

    fn with_passed_checked(&mut self, node: usize, event: impl FnOnce(&mut Node)) {
        let state = &mut self.nodes[node];
        let passed = state.replica.passed();
        // An own batch is in the log before what arrives after it.
        state.flush();
        event(state);
        assert_eq!(state.replica.held(), &state.disk.held);
        for time in state.disk.delivered.drain(..) {
            assert!(!self.promises_hold || time > passed, "an entry arrived that was said to be impossible");
        }
        self.act(node);
    }

    fn act(&mut self, node: usize) {
        while let Some(action) = self.nodes[node].replica.next_action() {
            match action {
                Action::Send { peer, message } => {
                    let pipe = (node, self.index_of(&peer));
                    let mut bytes = Vec::new();
                    self.pipes.get_mut(&pipe).unwrap().encoder.encode(&message, &mut bytes);
                    self.put(node, &peer, bytes);
                }
                Action::Stream { peer, held } => {
                    let state = &mut self.nodes[node];
                    let held =
                        held.into_iter().map(|(actor, held)| (state.disk.actors.id(actor).clone(), held));
                    state.streams.insert(peer, Stream { next: 0, held: held.collect() });
                }
                Action::Serve { peer, actor, from, to } => {
                    self.nodes[node].flush();
                    let id = self.nodes[node].disk.actors.id(actor).clone();
                    let matching =
                        |logged: &Logged| logged.actor == id && logged.last >= from && logged.first <= to;
                    let frames: Vec<Logged> =
                        self.nodes[node].disk.log.iter().filter(|logged| matching(logged)).cloned().collect();
                    for logged in frames {
                        self.put_frame(node, &peer, &logged, from, to);
                    }
                }
                Action::Disconnect { peer, .. } => {
                    let other = self.index_of(&peer);
                    self.cut(node, other);
                }
                Action::Fetch { .. }
                | Action::SendSnapshot { .. }
                | Action::Join
                | Action::DiscardSnapshot { .. } => unreachable!("these logs are never cut"),
                Action::NewIncarnation { .. } => self.nodes[node].begin_incarnation(),
                Action::Report(report) => self.nodes[node].reports.push(report),
            }
        }
    }

    fn index_of(&self, name: &str) -> usize {
        self.nodes.iter().position(|node| &*node.name == name).unwrap()
    }

    fn put(&mut self, from: usize, to: &str, bytes: Vec<u8>) {
        let to = self.index_of(to);
        if self.up.contains(&(from.min(to), from.max(to))) {
            self.pipes.get_mut(&(from, to)).unwrap().queue.push_back(bytes);
        }
    }

    fn put_frame(&mut self, node: usize, peer: &str, logged: &Logged, from: u64, to: u64) {
        let actors = &mut self.nodes[node].disk.actors;
        let cut = Frame::parse(&logged.bytes, actors).unwrap().slice(from, to, actors);
        let mut bytes = Vec::new();
        wire::put_frame_head(&mut bytes, cut.len());
        bytes.extend_from_slice(&cut);
        let pipe = (node, self.index_of(peer));
        self.pipes.get_mut(&pipe).unwrap().entries += to.min(logged.last) + 1 - from.max(logged.first);
        self.put(node, peer, bytes);
    }

    /// Lets one stream send its next frame. Returns whether there was one.
    pub(crate) fn pump(&mut self, node: usize, peer: usize) -> bool {
        let name = self.nodes[peer].name.clone();
        let state = &mut self.nodes[node];
        let Some(stream) = state.streams.get_mut(&name) else { return false };
        while let Some(logged) = state.disk.log.get(stream.next).cloned() {
            stream.next += 1;
            let held = stream.held.get(&logged.actor).copied().unwrap_or(0);
            if logged.actor.region == state.name && logged.last > held {
                self.put_frame(node, &name, &logged, held + 1, u64::MAX - 1);
                return true;
            }
        }
        false
    }

    /// Lets one message arrive. Returns whether there was one.
    pub(crate) fn arrive(&mut self, from: usize, to: usize) -> bool {
        let Some(bytes) = self.pipes.get_mut(&(from, to)).unwrap().queue.pop_front() else { return false };
        self.receive(from, to, &bytes);
        true
    }

    /// Lets the next message arrive and stay in the queue, so that it arrives again.
    pub(crate) fn duplicate_frame(&mut self, from: usize, to: usize) {
        let bytes = self.pipes[&(from, to)].queue.front().cloned();
        if let Some(bytes) = bytes.filter(|bytes| bytes[0] == 2) {
            self.receive(from, to, &bytes);
        }
    }

    /// Lets a frame arrive that the simulation did not make.
    pub(crate) fn inject(&mut self, from: usize, to: usize, frame: &[u8]) {
        let mut bytes = Vec::new();
        wire::put_frame_head(&mut bytes, frame.len());
        bytes.extend_from_slice(frame);
        self.receive(from, to, &bytes);
    }

    fn receive(&mut self, from: usize, to: usize, bytes: &[u8]) {
        let peer = self.nodes[from].name.clone();
        let (head, body) = bytes.split_at(wire::HEAD);
        let (kind, length) = wire::read_head(head.try_into().unwrap()).unwrap();
        assert_eq!(length, body.len());
        let decoder = &mut self.pipes.get_mut(&(from, to)).unwrap().decoder;
        let message = (kind != wire::Kind::Frame).then(|| decoder.decode(kind, body).unwrap());
        self.with_passed_checked(to, |state| match message {
            None => state.replica.frame(&peer, body, &mut state.disk),
            Some(message) => state.replica.message(&peer, message, &mut state.disk),
        });
    }

    /// Runs without failures until all who are alive hold the same, at most for a minute.
    pub(crate) fn settle(&mut self) {
        for _ in 0..600 {
            self.advance(100);
            self.exchange();
            if self.converged() {
                return;
            }
        }
    }

    /// Moves everything that can move.
    pub(crate) fn exchange(&mut self) {
        let pairs: Vec<(usize, usize)> = self.pipes.keys().copied().collect();
        loop {
            let mut moved = false;
            for (from, to) in &pairs {
                moved |= self.pump(*from, *to);
                moved |= self.arrive(*from, *to);
            }
            if !moved {
                return;
            }
        }
    }

    pub(crate) fn converged(&self) -> bool {
        let mut alive = self.nodes.iter().filter(|node| node.alive);
        let Some(first) = alive.next() else { return true };
        let (vector, digest) = (first.disk.vector(), first.disk.digest());
        alive.all(|node| node.disk.vector() == vector && node.disk.digest() == digest)
    }

    /// Entries that one direction of a link carried.
    pub(crate) fn carried(&self, from: usize, to: usize) -> u64 {
        self.pipes[&(from, to)].entries
    }
}

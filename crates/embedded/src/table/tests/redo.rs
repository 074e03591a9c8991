//! Redo is idempotent: a log replayed from any mark over keys that were captured at the mark or at any time after it
//! gives the rows that were there.

use geode_crdt::Actors;
use geode_crdt::image::Summary;

use super::*;
use crate::table::{Captured, Chunk, Removed};

/// Keys on disk, by hash: name and image.
type Disk = BTreeMap<u64, (Vec<u8>, Vec<u8>)>;

/// What a mark says.
#[derive(Clone)]
struct Mark {
    /// How many frames stand before it.
    frames: usize,
    held: VersionVector,
    depends: Vec<(ActorIndex, ActorIndex, u64)>,
}

/// A replica that is checkpointed all the time, key by key.
struct Stored {
    replica: Replica,
    log: Vec<Vec<u8>>,
    disk: Disk,
    mark: Mark,
    walk: (Mark, Captured),
    removed: Vec<Removed>,
}

impl Stored {
    fn new(replica: Replica) -> Self {
        let mark = Mark { frames: 0, held: VersionVector::default(), depends: Vec::new() };
        Self {
            replica,
            log: Vec::new(),
            disk: Disk::new(),
            mark: mark.clone(),
            walk: (mark, Captured::default()),
            removed: Vec::new(),
        }
    }

    fn write(&mut self, step: &Step) {
        let before = self.replica.frames.len();
        self.replica.write(step);
        self.log.extend_from_slice(&self.replica.frames[before..]);
    }

    fn deliver(&mut self, frame: &[u8]) -> bool {
        let delivered = self.replica.deliver(frame);
        if delivered {
            self.log.push(frame.to_vec());
        }
        delivered
    }

    /// Hands one key over to the disk, and ends the checkpoint if it was the last.
    fn capture(&mut self) {
        let (table, mut chunk) = (&mut self.replica.rows.table, Chunk::default());
        let removed = &mut self.removed;
        table.capture(&mut self.walk.1, &mut chunk, 1, usize::MAX, |key| removed.push(key));
        for changed in chunk.iter() {
            match changed.image {
                Some(image) => {
                    drop(self.disk.insert(changed.hash, (changed.key.name.to_vec(), image.to_vec())))
                }
                None => drop(self.disk.remove(&changed.hash)),
            }
        }
        if self.walk.1.is_done() {
            self.removed.drain(..).for_each(|key| table.forget(key));
            let next = Mark {
                frames: self.log.len(),
                held: self.replica.held.clone(),
                depends: table.depends().collect(),
            };
            self.mark = std::mem::replace(&mut self.walk, (next, Captured::default())).0;
        }
    }

    /// What a start makes of disk and log.
    fn restart(&mut self) {
        let old = &self.replica.rows;
        let known: Vec<ActorId> = old.table.actors().iter().map(|(_, id)| id.clone()).collect();
        let actors: &Actors = old.table.actors();
        let (mut sums, mut live) = (Digest::default(), [0; 256]);
        for (name, image) in self.disk.values() {
            let key = KeyName { database: 0, name };
            let summary = Summary::of(key, image, actors, |number| Some(ActorIndex(number))).unwrap();
            sums.add(digest::key_hash(key), summary.digest);
            live[0] += u64::from(summary.is_live);
        }
        let mut table = Table::restored(old.table.seed(), &known, sums, live);
        for (owner, canceller, sequence) in &self.mark.depends {
            table.depend(*owner, *canceller, *sequence);
        }
        for (hash, (name, image)) in &self.disk {
            table.load(*hash, KeyName { database: 0, name }, image).unwrap();
        }
        let (own, clock) = (old.own, old.clock.clone());
        let changed = old.changed.clone();
        self.replica.rows = Rows::new(table, own);
        let mut held = self.mark.held.clone();
        for bytes in &self.log[self.mark.frames..] {
            let rows = &mut self.replica.rows;
            let frame = Frame::parse(bytes, rows.table.actors_mut()).unwrap();
            assert_eq!(frame.first_sequence(), held.get(frame.writer()) + 1);
            rows.deliver(&frame, frame.first_sequence(), frame.last_sequence(), |_, _| {});
            held.raise(frame.writer(), frame.last_sequence());
        }
        assert_eq!(held, self.replica.held);
        self.replica.rows.clock = clock;
        self.replica.rows.changed = changed;
        // The walk that was under way is lost; what it handed over is on disk.
        self.walk = (self.mark.clone(), Captured::default());
        self.removed.clear();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_log_replayed_over_newer_keys_gives_the_same_rows(
        steps in steps(),
        captures in proptest::collection::vec(0..3usize, 120),
        restarts in proptest::collection::btree_set(0..120usize, 1..4),
    ) {
        let [first, second, third] = [0, 1, 2].map(Replica::new);
        let mut stored = Stored::new(first);
        let mut others = [second, third];
        for (index, step) in steps.iter().enumerate() {
            match *step {
                Step::Deliver(0, from) => {
                    let frames = if from == 0 { Vec::new() } else { others[from - 1].frames.clone() };
                    let _ = frames.iter().find(|frame| stored.deliver(frame));
                }
                Step::Deliver(to, from) => {
                    let frames =
                        if from == 0 { stored.replica.frames.clone() } else { others[from - 1].frames.clone() };
                    let _ = frames.iter().find(|frame| others[to - 1].deliver(frame));
                }
                Step::Set(at, ..) | Step::Put(at, ..) | Step::Increment(at, ..) | Step::Clear(at, ..) => {
                    if at == 0 { stored.write(step) } else { others[at - 1].write(step) }
                }
            }
            for _ in 0..captures[index] {
                stored.capture();
            }
            stored.replica.check();
            if restarts.contains(&index) {
                stored.restart();
                stored.replica.check();
            }
        }
        stored.restart();
        stored.replica.check();
        // And once more, over what the replay itself made dirty.
        (0..4).for_each(|_| stored.capture());
        stored.restart();
        stored.replica.check();
        let [second, third] = others;
        let mut replicas = [stored.replica, second, third];
        exchange(&mut replicas);
        replicas.iter().for_each(Replica::check);
    }
}

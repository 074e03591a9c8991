//! Redo is idempotent: a log replayed from any mark over keys that were captured at the mark or at any time after it
//! gives the rows that were there; and it is all the same which of them are in memory.

use std::sync::{Arc, Mutex};

use geode_crdt::Actors;
use geode_crdt::image::Summary;

use super::*;
use crate::table::{Captured, Chunk, Disk, Fetched, Found, Removed, SEGMENTS, segment_of};

/// Keys on disk, by hash: name and image.
type Keys = BTreeMap<u64, (Vec<u8>, Vec<u8>)>;

#[derive(Debug, Default)]
struct Shelf(Mutex<Keys>);

impl Disk for Shelf {
    fn read(&self, hash: u64, _: KeyName<'_>, found: &mut dyn FnMut(Option<&[u8]>)) {
        found(self.0.lock().unwrap().get(&hash).map(|(_, image)| &image[..]));
    }

    fn read_all(&self, places: &[crate::table::Place], found: &mut dyn FnMut(u64, KeyName<'_>, &[u8])) {
        for (hash, database, name) in places {
            let key = KeyName { database: *database, name };
            self.read(*hash, key, &mut |image| image.into_iter().for_each(|image| found(*hash, key, image)));
        }
    }

    fn read_segment(&self, segment: usize, found: &mut dyn FnMut(u64, KeyName<'_>, &[u8])) {
        for (hash, (name, image)) in &*self.0.lock().unwrap() {
            if segment_of(*hash) == segment {
                found(*hash, KeyName { database: 0, name }, image);
            }
        }
    }
}

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
    disk: Arc<Shelf>,
    /// Batches that were handed over; each is committed at once.
    batch: u64,
    mark: Mark,
    walk: (Mark, Captured),
    removed: Vec<Removed>,
}

impl Stored {
    fn new(mut replica: Replica) -> Self {
        let disk = Arc::<Shelf>::default();
        replica.rows.table.attach(Arc::clone(&disk) as Arc<dyn Disk>);
        let mark = Mark { frames: 0, held: VersionVector::default(), depends: Vec::new() };
        Self {
            replica,
            log: Vec::new(),
            disk,
            batch: 0,
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
        let (removed, mut disk) = (&mut self.removed, self.disk.0.lock().unwrap());
        self.batch += 1;
        table.capture(&mut self.walk.1, (&mut chunk, self.batch), 1, usize::MAX, |key| removed.push(key));
        for changed in chunk.iter() {
            match changed.image {
                Some(image) => drop(disk.insert(changed.hash, (changed.key.name.to_vec(), image.to_vec()))),
                None => drop(disk.remove(&changed.hash)),
            }
        }
        if self.walk.1.is_done() {
            self.removed.drain(..).for_each(|key| table.forget(key, self.batch));
            let next = Mark {
                frames: self.log.len(),
                held: self.replica.held.clone(),
                depends: table.depends().collect(),
            };
            self.mark = std::mem::replace(&mut self.walk, (next, Captured::default())).0;
        }
    }

    /// Takes out of memory what may leave.
    fn evict(&mut self) {
        let table = &mut self.replica.rows.table;
        // Twice, so that what was read lately goes, too.
        for _ in 0..2 {
            table.evict(self.batch, 0, usize::MAX);
        }
        let (resident, _) = table.resident_keys();
        assert!(table.cold_keys() <= self.disk.0.lock().unwrap().len() as u64);
        assert!(table.cold_keys() + resident >= table.live_keys());
    }

    /// Reads the names on disk of all segments.
    fn learn_names(&mut self) {
        let hashes: Vec<u64> = self.disk.0.lock().unwrap().keys().copied().collect();
        for hash in &hashes {
            let segment = segment_of(*hash);
            let names: Vec<u64> =
                hashes.iter().copied().filter(|hash| segment_of(*hash) == segment).collect();
            assert!(self.replica.rows.table.learn_names(segment, &names, self.batch));
        }
    }

    /// What the table shows, once it is asked for everything.
    fn check(&mut self) {
        let sums = self.replica.rows.table.digest().clone();
        KEYS.iter().for_each(|name| self.replica.rows.table.require(KeyName { database: 0, name }));
        assert_eq!(self.replica.rows.table.cold_keys(), 0);
        assert_eq!(self.replica.rows.table.digest(), &sums, "loading changes no sum");
        self.replica.check();
    }

    /// What a start makes of disk and log; with keys that stay on disk, or all in memory.
    fn restart(&mut self, stays_cold: bool) {
        let old = &self.replica.rows;
        let known: Vec<ActorId> = old.table.actors().iter().map(|(_, id)| id.clone()).collect();
        let actors: &Actors = old.table.actors();
        let (mut sums, mut live) = (Digest::default(), [0; 256]);
        let disk = self.disk.0.lock().unwrap();
        for (name, image) in disk.values() {
            let key = KeyName { database: 0, name };
            let summary = Summary::of(key, image, actors, |number| Some(ActorIndex(number))).unwrap();
            sums.add(digest::key_hash(key), summary.digest);
            live[0] += u64::from(summary.is_live);
        }
        let mut table = Table::restored(old.table.seed(), &known, sums, live);
        for (owner, canceller, sequence) in &self.mark.depends {
            table.depend(*owner, *canceller, *sequence);
        }
        let mut cold = vec![0; SEGMENTS];
        for (hash, (name, image)) in &*disk {
            if stays_cold {
                cold[segment_of(*hash)] += 1;
            } else {
                table.load(*hash, KeyName { database: 0, name }, image).unwrap();
            }
        }
        drop(disk);
        table.begin_cold(&cold);
        table.attach(Arc::clone(&self.disk) as Arc<dyn Disk>);
        self.batch = 0;
        let (own, clock) = (old.own, old.clock.clone());
        let changed = old.changed.clone();
        self.replica.rows = Rows::new(table, own);
        let mut held = self.mark.held.clone();
        for bytes in &self.log[self.mark.frames..] {
            let rows = &mut self.replica.rows;
            let frame = Frame::parse(bytes, rows.table.actors_mut()).unwrap();
            assert_eq!(frame.first_sequence(), held.get(frame.writer()) + 1);
            let places = rows.table.perhaps_cold_in(&frame);
            rows.table.load_places(&places);
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
        evictions in proptest::collection::vec(any::<bool>(), 120),
        restarts in proptest::collection::btree_map(0..120usize, any::<bool>(), 1..4),
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
            if let Some(stays_cold) = restarts.get(&index) {
                stored.restart(*stays_cold);
            }
            if captures[index] == 2 {
                stored.learn_names();
            }
            if evictions[index] {
                stored.evict();
            } else {
                stored.check();
            }
        }
        stored.restart(true);
        stored.check();
        // And once more, over what the replay itself made dirty.
        (0..4).for_each(|_| stored.capture());
        stored.restart(evictions[0]);
        stored.check();
        let memory = stored.replica.rows.table.memory_bytes();
        (0..4).for_each(|_| stored.capture());
        stored.evict();
        stored.check();
        // Known absence takes some, too.
        prop_assert!(stored.replica.rows.table.memory_bytes() <= memory + 3 * 161);
        let [second, third] = others;
        let mut replicas = [stored.replica, second, third];
        exchange(&mut replicas);
        replicas.iter().for_each(Replica::check);
    }
}

/// A key that came, changed and left again while it was being read is read again.
#[test]
fn what_was_read_before_a_newer_state_left_the_memory_is_not_taken() {
    let mut stored = Stored::new(Replica::new(0));
    let name = KeyName { database: 0, name: KEYS[0] };
    let hash = stored.replica.rows.table.hash_of(name);
    let read = |stored: &Stored| {
        let image = stored.disk.0.lock().unwrap().get(&hash).map(|(_, image)| image[..].into());
        Found { hash, database: 0, name: KEYS[0].into(), image }
    };
    stored.write(&Step::Increment(0, 0, 1));
    stored.capture();
    stored.evict();
    let (old, as_of) = (read(&stored), stored.batch);
    stored.write(&Step::Clear(0, 0, 1));
    stored.capture();
    stored.evict();
    // Another key of the segment keeps the question open.
    assert_eq!(stored.replica.rows.table.cold_keys(), 0, "what is deleted is nowhere");
    stored.write(&Step::Increment(0, 0, 1));
    stored.write(&Step::Increment(0, 0, 1));
    stored.capture();
    stored.evict();
    assert_eq!(stored.replica.rows.table.cold_keys(), 1);
    assert_eq!(stored.replica.rows.table.fetched(&old, as_of), Ok(Fetched::Stale));
    let new = read(&stored);
    assert_eq!(stored.replica.rows.table.fetched(&new, stored.batch), Ok(Fetched::Loaded));
    stored.check();
}

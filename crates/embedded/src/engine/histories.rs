//! Random histories of two regions on real files: kills, crashes that take what is not on disk, links that break half-way,
//! checkpoints and retention. Every start must show what the log says, and in the end both must hold the same.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use geode_crdt::{Digest, HybridTime};
use geode_replica::wire::{self, Decoder, Kind};
use geode_store::conformance::Recorder;
use geode_store::{Engine, Options, Session, Store, View};
use proptest::prelude::*;
use tempfile::TempDir;

use super::TIMER;
use crate::inbox::Incoming;
use crate::links::Feed;
use crate::outbox::Outbox;
use crate::{Config, Embedded, Vector};

const NAMES: [&str; 2] = ["eu", "us"];
const DEADLINE: Duration = Duration::from_secs(60);
/// How long a machine takes to start again: until the time is over that it may have used.
const BOOT_US: u64 = 11_000_000;

/// Time that passed besides the test's own.
static PASSED_US: AtomicU64 = AtomicU64::new(0);

fn clock() -> HybridTime {
    HybridTime(crate::config::system_time().0 + PASSED_US.load(Ordering::Relaxed))
}

/// Something that happens; the number says in which region.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// A command that is not flushed yet.
    Write(usize, u8),
    Flush(usize),
    Turn(usize),
    /// Turns until a checkpoint is complete.
    Checkpoint(usize),
    Sync(usize),
    /// A link comes up, in place of the one before.
    Connect,
    /// Each side gets what the other has for it, but of each side's messages only so many.
    Exchange(u8),
    Cut,
    /// The process ends.
    Kill(usize),
    /// The machine does: what is not on disk is lost.
    Crash(usize),
}

fn event() -> impl Strategy<Value = Event> {
    let region = 0..NAMES.len();
    prop_oneof![
        6 => (region.clone(), any::<u8>()).prop_map(|(region, what)| Event::Write(region, what)),
        2 => region.clone().prop_map(Event::Flush),
        4 => region.clone().prop_map(Event::Turn),
        3 => region.clone().prop_map(Event::Checkpoint),
        1 => region.clone().prop_map(Event::Sync),
        2 => Just(Event::Connect),
        4 => prop_oneof![Just(u8::MAX), 0..6_u8].prop_map(Event::Exchange),
        1 => Just(Event::Cut),
        2 => region.clone().prop_map(Event::Kill),
        1 => region.prop_map(Event::Crash),
    ]
}

/// One side of a link.
#[derive(Default)]
struct End {
    outbox: Arc<Outbox>,
    decoder: Decoder,
    tail: Option<Feed>,
}

struct Region {
    number: usize,
    data: TempDir,
    retention: u64,
    /// Whether a checkpoint takes everything out of memory.
    is_limited: bool,
    store: Option<Store<Embedded>>,
    link: Option<End>,
    /// What must survive a kill, and what a crash.
    flushed: Vector,
    synced: Vector,
}

impl Region {
    fn new(number: usize, retention: u64, is_limited: bool) -> Self {
        let mut region = Self {
            number,
            data: tempfile::tempdir().unwrap(),
            retention,
            is_limited,
            store: None,
            link: None,
            flushed: Vector::default(),
            synced: Vector::default(),
        };
        region.open();
        region
    }

    fn config(&self, data: &Path) -> Config {
        Config {
            segment_bytes: 400,
            checkpoint_bytes: 0,
            retention: self.retention,
            memory: self.is_limited.then_some(1 << 20),
            clock,
            ..Config::new(data, "histories", NAMES[self.number], &[NAMES[1 - self.number]])
        }
    }

    fn open(&mut self) {
        let mut engine = Embedded::open(self.config(self.data.path())).unwrap().0;
        // As if nobody answered in time.
        engine.first_write = None;
        self.store = Some(Store::new(engine, Options::default()));
    }

    fn engine(&mut self) -> &mut Embedded {
        &mut self.store.as_mut().unwrap().engine
    }

    fn peer(&self) -> Arc<str> {
        NAMES[1 - self.number].into()
    }

    fn state(&mut self) -> (Vector, Digest) {
        let engine = self.engine();
        let table = &engine.core.rows.table;
        (Vector::of(engine.replica.held(), table.actors()), table.digest().clone())
    }

    fn write(&mut self, what: u8) {
        let key = what % 5;
        let command = match what / 5 % 6 {
            0 => format!("SET key:{key} {what}"),
            1 => format!("INCR count:{key}"),
            2 => format!("SADD set:{key} {what}"),
            3 => format!("DEL key:{key} count:{key}"),
            4 => format!("SREM set:{key} {}", what.wrapping_sub(5)),
            _ => format!("EXPIRE key:{key} 1000"),
        };
        let words: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
        let store = self.store.as_mut().unwrap();
        store.engine.set_wall(clock());
        store.execute(&mut Session::default(), &words, &mut Recorder::default());
    }

    fn flush(&mut self) {
        self.engine().flush().unwrap();
        self.flushed = self.state().0;
    }

    fn turn(&mut self) {
        self.engine().turn();
    }

    fn checkpoint(&mut self) {
        let until = Instant::now() + DEADLINE;
        let before = self.engine().on_disk.completed();
        while self.engine().on_disk.completed() == before && self.engine().tail_bytes() > 0 {
            assert!(Instant::now() < until, "the checkpoint is never completed");
            self.turn();
            std::thread::yield_now();
        }
        if self.is_limited {
            let committed = self.engine().on_disk.progress().committed();
            // Twice, so that what was read lately goes, too.
            for _ in 0..2 {
                self.engine().core.rows.table.evict(committed, 0, usize::MAX);
            }
        }
    }

    fn sync(&mut self) {
        self.flush();
        self.engine().core.log.sync().sync_now().unwrap();
        self.synced = self.state().0;
    }

    fn connect(&mut self) {
        let (peer, end) = (self.peer(), End::default());
        let outbox = Arc::clone(&end.outbox);
        self.link = Some(end);
        self.engine().handle(Incoming::Connected { peer, outbox });
    }

    fn cut(&mut self) {
        let peer = self.peer();
        if let Some(End { outbox, .. }) = self.link.take() {
            self.engine().handle(Incoming::Lost { peer, outbox });
        }
    }

    /// What this side's sender would send now, as whole messages, and whether it then gives the link up.
    fn sends(&mut self) -> (Vec<(Kind, Vec<u8>)>, bool) {
        let (segments, limit) = {
            let log = &self.engine().core.log;
            (Arc::clone(log.segments()), *log.sync().shippable().borrow())
        };
        let Some(link) = &mut self.link else { return (Vec::new(), false) };
        let mut work = link.outbox.take();
        let mut out = std::mem::take(&mut work.bytes);
        if let Some(stream) = work.stream {
            link.tail = Some(Feed::own(&segments, stream));
        }
        let range = link.outbox.next_range();
        let mut range = range.map(|range| Feed::range(&segments, &NAMES[self.number].into(), range));
        let read = link.tail.iter_mut().chain(&mut range).try_for_each(|feed| {
            while feed.left(limit) > 0 {
                feed.read(limit, &mut out)?;
            }
            io::Result::Ok(())
        });
        let mut messages = Vec::new();
        let mut rest = out.as_slice();
        while let Some((head, after)) = rest.split_first_chunk() {
            let (kind, length) = wire::read_head(*head).unwrap();
            let (body, after) = after.split_at(length);
            messages.push((kind, body.to_vec()));
            rest = after;
        }
        // The log may have been cut before what was to be read next.
        (messages, read.is_err())
    }

    fn receives(&mut self, kind: Kind, bytes: Vec<u8>) {
        let peer = self.peer();
        let Some(link) = &mut self.link else { return };
        let outbox = Arc::clone(&link.outbox);
        let incoming = match kind {
            Kind::Frame => Incoming::Frame { peer, outbox, bytes, _permit: None },
            _ => {
                let message = link.decoder.decode(kind, &bytes).unwrap();
                Incoming::Message { peer, outbox, message, _permit: None }
            }
        };
        self.engine().receive(incoming);
    }

    /// The process ends; `crash` takes what is not on disk with it. What the start shows must be what the log says.
    fn end(&mut self, crash: bool) {
        self.link = None;
        let (sync, written) = {
            let log = &self.engine().core.log;
            (Arc::clone(log.sync()), log.written())
        };
        // Other threads may still force the log onto the disk.
        self.store = None;
        if crash {
            lose(self.data.path(), sync.synced(), written);
            PASSED_US.fetch_add(BOOT_US, Ordering::Relaxed);
        }
        let copy = self.copy_without_checkpoint();
        self.open();
        let (held, digest) = self.state();
        let covers =
            |lesser: &Vector| lesser.0.iter().all(|(actor, sequence)| held.0.get(actor) >= Some(sequence));
        assert!(covers(&self.synced), "{:?} was on disk, {held:?} is there", self.synced);
        assert!(crash || covers(&self.flushed), "{:?} was in the kernel, {held:?} is there", self.flushed);
        if let Some(copy) = copy {
            let replayed = Embedded::open(self.config(copy.path())).unwrap().0;
            let table = &replayed.core.rows.table;
            let of_log = Vector::of(replayed.replica.held(), table.actors());
            assert_eq!((of_log, table.digest()), (held.clone(), &digest), "the whole log says otherwise");
        }
        self.flushed.clone_from(&held);
        self.synced = held;
    }

    /// The data directory without the checkpoint, if the log says all of it.
    fn copy_without_checkpoint(&self) -> Option<TempDir> {
        let copy = tempfile::tempdir().unwrap();
        let from = self.data.path();
        from.join("log/00000000000000000000.log").exists().then_some(())?;
        fs::create_dir(copy.path().join("log")).unwrap();
        for entry in fs::read_dir(from.join("log")).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), copy.path().join("log").join(entry.file_name())).unwrap();
        }
        for file in ["identity.json", "clock"] {
            fs::copy(from.join(file), copy.path().join(file)).unwrap();
        }
        Some(copy)
    }
}

/// A crash of the machine: another boot finds the log up to `synced`.
fn lose(data: &Path, synced: u64, written: u64) {
    let identity = data.join("identity.json");
    let mut text: serde_json::Value = serde_json::from_slice(&fs::read(&identity).unwrap()).unwrap();
    text["boot"] = "another".into();
    fs::write(identity, text.to_string()).unwrap();
    for entry in fs::read_dir(data.join("log")).unwrap() {
        let path = entry.unwrap().path();
        let base: u64 = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        if base >= synced && synced < written {
            fs::remove_file(path).unwrap();
        } else if base + file.metadata().unwrap().len() > synced {
            file.set_len(synced - base).unwrap();
        }
    }
}

/// Each side gets what the other has for it, but of each only `limit` messages: then the link breaks.
fn exchange(regions: &mut [Region; 2], limit: u8) {
    for number in 0..NAMES.len() {
        let (messages, fails) = regions[number].sends();
        let limit = if limit < u8::MAX { usize::from(limit) } else { messages.len() };
        let breaks = fails || limit < messages.len();
        for (kind, bytes) in messages.into_iter().take(limit) {
            regions[1 - number].receives(kind, bytes);
        }
        if breaks {
            regions.iter_mut().for_each(Region::cut);
        }
    }
}

fn happen(regions: &mut [Region; 2], event: Event) {
    match event {
        Event::Write(region, what) => regions[region].write(what),
        Event::Flush(region) => regions[region].flush(),
        Event::Turn(region) => regions[region].turn(),
        Event::Checkpoint(region) => regions[region].checkpoint(),
        Event::Sync(region) => regions[region].sync(),
        Event::Connect => {
            regions.iter_mut().for_each(Region::cut);
            regions.iter_mut().for_each(Region::connect);
        }
        Event::Exchange(limit) => exchange(regions, limit),
        Event::Cut => regions.iter_mut().for_each(Region::cut),
        Event::Kill(region) | Event::Crash(region) => {
            regions[1 - region].cut();
            regions[region].end(matches!(event, Event::Crash(_)));
        }
    }
}

/// The regions talk until they hold the same.
fn converge(regions: &mut [Region; 2]) {
    let until = Instant::now() + DEADLINE;
    happen(regions, Event::Connect);
    loop {
        for region in regions.iter_mut() {
            region.turn();
            region.flush();
        }
        exchange(regions, u8::MAX);
        let [eu, us] = regions;
        let (left, right) = (eu.state(), us.state());
        if left.0 == right.0 {
            return assert_eq!(left.1, right.1, "they hold the same entries and differ");
        }
        let is_out_of_reach = |region: &mut Region| !region.engine().out_of_reach.is_empty();
        if is_out_of_reach(eu) || is_out_of_reach(us) {
            return;
        }
        assert!(Instant::now() < until, "they never hold the same: {left:?} {right:?}");
        if eu.link.is_none() {
            happen(regions, Event::Connect);
        }
        // Some of what they do takes its time.
        regions[0].engine().shared.inbox().wait(TIMER);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_start_shows_what_the_log_says(
        events in proptest::collection::vec(event(), 1..60),
        is_trimmed: bool,
        is_limited: bool,
    ) {
        let retention = if is_trimmed { 1_000 } else { Config::RETENTION };
        let mut regions = [Region::new(0, retention, false), Region::new(1, retention, is_limited)];
        happen(&mut regions, Event::Connect);
        for event in events {
            happen(&mut regions, event);
        }
        converge(&mut regions);
        regions.iter_mut().for_each(|region| region.end(false));
    }
}

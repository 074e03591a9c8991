//! Regions that are away for long, on this engine: the sweep of expired data, with the test's clock instead of real ones.

use geode_crdt::{ActorId, Digest, Frame, HybridTime};
use geode_replica::{Message, Now, Vector, wire};
use geode_store::conformance::Recorder;
use geode_store::{Engine, Extent, Flow, Options, Session, Store};
use tempfile::TempDir;

use crate::log::{Kind, Reader};
use crate::{Config, Embedded};

const PLANET: &str = "absence";
/// When the test begins, in microseconds.
const BEGINNING: u64 = 1_767_225_600_000_000;

struct Region {
    store: Store<Embedded>,
    shipped: Reader,
    now_ms: u64,
    _data: TempDir,
}

impl Region {
    fn new(name: &str, peers: &[&str]) -> Self {
        let data = tempfile::tempdir().unwrap();
        let (engine, _) = Embedded::open(Config::new(data.path(), PLANET, name, peers)).unwrap();
        let shipped = Reader::new(engine.core.log.segments().clone(), 0);
        let mut region =
            Self { store: Store::new(engine, Options::default()), shipped, now_ms: 0, _data: data };
        region.advance(0);
        region
    }

    fn wall(&self) -> HybridTime {
        HybridTime(BEGINNING + self.now_ms * 1000)
    }

    fn advance(&mut self, milliseconds: u64) {
        self.now_ms += milliseconds;
        let now = Now { monotonic_ms: self.now_ms, wall: self.wall() };
        let Embedded { replica, core, .. } = &mut self.store.engine;
        replica.timer(now, core);
        self.store.engine.set_wall(now.wall);
    }

    fn run(&mut self, command: &str) -> String {
        let (mut session, mut reply) = (Session::default(), Recorder::default());
        let words: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
        assert_eq!(self.store.execute(&mut session, &words, &mut reply), Flow::Done);
        reply.finish().unwrap().to_string()
    }

    fn frames(&mut self) -> Vec<Vec<u8>> {
        let end = self.store.engine.core.flush().unwrap();
        let records = self.shipped.read(end).unwrap();
        records.filter(|record| record.kind == Kind::Own).map(|record| record.body.to_vec()).collect()
    }

    fn connect(&mut self, peer: &str) {
        let Embedded { replica, core, .. } = &mut self.store.engine;
        replica.connected(peer, core);
        let hello = Message::Hello {
            versions: wire::VERSIONS,
            planet: PLANET.to_owned(),
            actor: ActorId::new(peer, 1),
            held: Vector::default(),
            witnesses: Vec::new(),
        };
        replica.message(peer, hello, core);
    }

    /// The peer has come to this region's time and wrote nothing.
    fn heartbeat(&mut self, peer: &str) {
        let time = self.wall();
        let Embedded { replica, core, .. } = &mut self.store.engine;
        let heartbeat = Message::Heartbeat {
            actor: ActorId::new(peer, 1),
            sequence: 0,
            time,
            wall: time,
            ahead_us: 0,
            held: Vector::default(),
        };
        replica.message(peer, heartbeat, core);
    }

    fn deliver(&mut self, carrier: &str, frame: &[u8]) {
        let Embedded { replica, core, .. } = &mut self.store.engine;
        let writer = Frame::parse(frame, core.rows.table.actors_mut()).unwrap().writer();
        let held = replica.held().get(writer);
        replica.frame(carrier, frame, core);
        assert!(replica.held().get(writer) > held);
    }

    fn due(&mut self, extent: Extent) -> usize {
        let now = self.store.engine.now();
        self.store.engine.due(extent, now, 10).len()
    }
}

#[test]
fn data_goes_without_a_region_that_is_away_and_its_late_increment_finds_the_deadline() {
    let (mut ap, mut us) = (Region::new("ap", &["eu", "us"]), Region::new("us", &["ap", "eu"]));
    ap.connect("eu");
    assert_eq!(ap.run("INCR k"), "1");
    assert_eq!(ap.run("PEXPIRE k 1000"), "1");
    us.connect("ap");
    for frame in ap.frames() {
        us.deliver("ap", &frame);
    }
    us.advance(500);
    assert_eq!(us.run("INCR k"), "2");
    let late = us.frames();
    ap.advance(59_000);
    ap.heartbeat("eu");
    assert_eq!(ap.store.sweep(10), 0, "a region that is away is waited for");
    ap.advance(1_000);
    assert_eq!(ap.store.sweep(10), 1);
    assert_eq!((ap.run("DBSIZE").as_str(), ap.due(Extent::Data), ap.due(Extent::Whole)), ("0", 0, 1));
    assert_eq!(ap.store.sweep(10), 0, "nothing is done twice");
    for frame in late {
        ap.deliver("eu", &frame);
    }
    assert_eq!((ap.run("DBSIZE").as_str(), ap.run("GET k").as_str()), ("1", "nil"));
    assert_eq!((ap.due(Extent::Data), ap.store.sweep(10), ap.due(Extent::Data)), (1, 1, 0));
    ap.connect("us");
    ap.heartbeat("us");
    assert_eq!(
        (ap.store.sweep(10), ap.due(Extent::Whole)),
        (1, 0),
        "the deadline goes when all have passed it"
    );
    assert_eq!(ap.store.engine.core.rows.table.digest(), &Digest::default(), "nothing is left");
}

#[test]
fn a_region_that_is_cut_off_from_most_of_the_others_keeps_what_they_may_keep_alive() {
    let mut ap = Region::new("ap", &["eu", "us"]);
    ap.run("SET k v PX 1000");
    ap.advance(3_600_000);
    assert_eq!(ap.store.sweep(10), 0);
    ap.connect("us");
    ap.heartbeat("us");
    assert_eq!(ap.store.sweep(10), 1);
    let mut of_two = Region::new("ap", &["us"]);
    of_two.run("SET k v PX 1000");
    of_two.advance(3_600_000);
    assert_eq!(of_two.store.sweep(10), 1);
}

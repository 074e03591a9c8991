//! Regions of a planet in one process: each with its data thread, loopback links between them that a test can cut.

#![allow(clippy::unwrap_used)] // a test that unwraps fails, which is what it is for
#![allow(dead_code)] // each test file uses its part

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use geode_crdt::HybridTime;
use geode_embedded::{Channel, Config, Connection, Dial, Embedded, EmbeddedHandle, OpenError, Stats, Vector};
use geode_store::conformance::Recorder;
use geode_store::{Engine, Flow, FlushError, Options, Session, Store};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

pub(crate) const PLANET: &str = "tested";
/// Far beyond what anything here takes; a test that reaches it has failed.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Something for a data thread.
enum Order {
    Run(Vec<Vec<u8>>, Sender<String>),
    Wake,
    Stop(Sender<io::Result<()>>),
    /// Drops the engine without the mark of a clean stop, as a kill would.
    Vanish,
}

/// A region that runs.
pub(crate) struct Node {
    pub(crate) handle: EmbeddedHandle,
    orders: Sender<Order>,
    thread: Option<JoinHandle<()>>,
}

/// The links between regions.
#[derive(Default)]
pub(crate) struct Network {
    state: Mutex<NetworkState>,
    carried: Arc<Carried>,
}

#[derive(Default)]
struct NetworkState {
    nodes: Vec<(String, EmbeddedHandle)>,
    blocked: BTreeSet<(String, String)>,
    links: Vec<(String, String, Relay)>,
    /// What becomes of bulk connections.
    bulk: Bulk,
    /// If calls to a region that is not there stay unanswered instead of being refused: how many have.
    unanswered: Option<usize>,
}

/// What carries a connection's bytes.
struct Relay {
    task: AbortHandle,
    /// A task is not gone at once: what it reads from now on goes nowhere.
    is_cut: Arc<AtomicBool>,
}

impl Relay {
    fn cut(&self) {
        self.is_cut.store(true, Ordering::SeqCst);
        self.task.abort();
    }
}

/// What becomes of bulk connections.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Bulk {
    #[default]
    Carried,
    /// Each breaks after so many bytes in one direction.
    BreaksAfter(u64),
    /// None is taken, as by a release that knows of none.
    Refused,
}

/// Bytes that the links carried.
#[derive(Default)]
pub(crate) struct Carried {
    live: AtomicU64,
    bulk: AtomicU64,
}

pub(crate) fn wall() -> HybridTime {
    HybridTime(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64)
}

impl Network {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    fn register(&self, region: &str, handle: EmbeddedHandle) {
        let mut state = self.state.lock().unwrap();
        state.nodes.retain(|(name, _)| name != region);
        state.nodes.push((region.to_owned(), handle));
    }

    /// Cuts the links between two regions and lets none come up.
    pub(crate) fn cut(&self, left: &str, right: &str) {
        let mut state = self.state.lock().unwrap();
        state.blocked.insert(pair(left, right));
        state.links.retain(|(a, b, link)| {
            let cut = pair(a, b) == pair(left, right);
            if cut {
                link.cut();
            }
            !cut
        });
    }

    pub(crate) fn heal(&self, left: &str, right: &str) {
        self.state.lock().unwrap().blocked.remove(&pair(left, right));
    }

    /// From now on a region that is not there does not refuse calls: like a machine that is dead.
    pub(crate) fn leave_calls_unanswered(&self) {
        self.state.lock().unwrap().unanswered = Some(0);
    }

    /// How many calls nobody answered.
    pub(crate) fn unanswered(&self) -> usize {
        self.state.lock().unwrap().unanswered.unwrap_or(0)
    }

    pub(crate) fn set_bulk(&self, bulk: Bulk) {
        self.state.lock().unwrap().bulk = bulk;
    }

    /// Bytes that live links and bulk connections carried so far.
    pub(crate) fn carried(&self) -> (u64, u64) {
        (self.carried.live.load(Ordering::Relaxed), self.carried.bulk.load(Ordering::Relaxed))
    }

    fn leave(&self, region: &str) {
        let mut state = self.state.lock().unwrap();
        state.nodes.retain(|(name, _)| name != region);
        for (_, _, link) in state.links.extract_if(.., |(from, to, _)| from == region || to == region) {
            link.cut();
        }
    }

    fn dial(self: &Arc<Self>, from: &str) -> Dial {
        let (network, from) = (Arc::clone(self), from.to_owned());
        Arc::new(move |to, channel| {
            let (network, from) = (Arc::clone(&network), from.clone());
            Box::pin(async move { network.connect(&from, &to, channel).await })
        })
    }

    fn target(&self, from: &str, to: &str) -> Option<EmbeddedHandle> {
        let state = self.state.lock().unwrap();
        let reachable = !state.blocked.contains(&pair(from, to));
        state.nodes.iter().find(|(name, _)| reachable && name == to).map(|(_, handle)| handle.clone())
    }

    fn call_unanswered(&self) -> bool {
        let unanswered = &mut self.state.lock().unwrap().unanswered;
        unanswered.iter_mut().for_each(|count| *count += 1);
        unanswered.is_some()
    }

    /// A connection through a relay that can be cut.
    async fn connect(&self, from: &str, to: &str, channel: Channel) -> io::Result<Connection> {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let target = match self.target(from, to) {
            Some(target) => target,
            None if self.call_unanswered() => std::future::pending().await,
            None => return Err(refused()),
        };
        let bulk = self.state.lock().unwrap().bulk;
        if channel == Channel::Bulk && bulk == Bulk::Refused {
            return Err(refused());
        }
        let limit = match bulk {
            Bulk::BreaksAfter(limit) if channel == Channel::Bulk => limit,
            _ => u64::MAX,
        };
        let (near, near_relay) = connected_pair().await?;
        let (far, far_relay) = connected_pair().await?;
        let (carried, is_cut) = (Arc::clone(&self.carried), Arc::<AtomicBool>::default());
        let cut = Arc::clone(&is_cut);
        let relay = tokio::spawn(async move {
            let count = if channel == Channel::Bulk { &carried.bulk } else { &carried.live };
            let (near, far) = (near_relay.into_split(), far_relay.into_split());
            // Ends with either side; a cut aborts it and so closes both.
            tokio::select! {
                () = carry(near.0, far.1, count, limit, &cut) => {}
                () = carry(far.0, near.1, count, limit, &cut) => {}
            }
        });
        let mut state = self.state.lock().unwrap();
        if state.blocked.contains(&pair(from, to)) {
            relay.abort();
            return Err(refused());
        }
        state.links.push((from.to_owned(), to.to_owned(), Relay { task: relay.abort_handle(), is_cut }));
        target.accept(from, channel, Connection::new(far));
        Ok(Connection::new(near))
    }
}

fn pair(left: &str, right: &str) -> (String, String) {
    let (first, second) = if left < right { (left, right) } else { (right, left) };
    (first.to_owned(), second.to_owned())
}

/// Carries bytes in one direction until it ends, is cut, or `limit` is reached.
async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    count: &AtomicU64,
    mut limit: u64,
    is_cut: &AtomicBool,
) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length) = from.read(&mut buffer).await
        && length > 0
        && limit > 0
        && !is_cut.load(Ordering::SeqCst)
        && to.write_all(&buffer[..length]).await.is_ok()
    {
        count.fetch_add(length as u64, Ordering::Relaxed);
        limit = limit.saturating_sub(length as u64);
    }
}

async fn connected_pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr()?), listener.accept());
    let (near, (far, _)) = (near?, far?);
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    Ok((near, far))
}

impl Node {
    /// A region without links.
    pub(crate) fn alone(config: Config) -> Self {
        let clock = config.clock;
        let (engine, handle) = Embedded::open(config).unwrap();
        Self::serve(engine, handle, clock, |engine, wake| {
            let dial: Dial = Arc::new(|_, _| unreachable!("there is no peer"));
            engine.start(&tokio::runtime::Handle::current(), &dial, wake);
        })
    }

    /// A region of a planet with the given others.
    pub(crate) fn start(network: &Arc<Network>, data: &Path, region: &str, peers: &[&str]) -> Self {
        Self::start_with(network, Config::new(data, PLANET, region, peers))
    }

    pub(crate) fn start_with(network: &Arc<Network>, config: Config) -> Self {
        let (region, clock) = (config.region.clone(), config.clock);
        let (engine, handle) = Embedded::open(config).unwrap();
        let dial = network.dial(&region);
        // First, as a process listens before it calls others.
        network.register(&region, handle.clone());
        Self::serve(engine, handle, clock, |engine, wake| {
            engine.start(&tokio::runtime::Handle::current(), &dial, wake);
        })
    }

    fn serve(
        mut engine: Embedded,
        handle: EmbeddedHandle,
        clock: fn() -> HybridTime,
        start: impl FnOnce(&mut Embedded, geode_embedded::Wake),
    ) -> Self {
        let (orders, received) = channel();
        let wake = orders.clone();
        start(&mut engine, Arc::new(move || drop(wake.send(Order::Wake))));
        let thread = std::thread::spawn(move || run(engine, clock, &received));
        Self { handle, orders, thread: Some(thread) }
    }

    /// Runs one command, with words at spaces, to its end.
    pub(crate) fn run(&self, command: &str) -> String {
        let words: Vec<Vec<u8>> = command.split(' ').map(|word| word.as_bytes().to_vec()).collect();
        self.run_words(words)
    }

    pub(crate) fn run_words(&self, words: Vec<Vec<u8>>) -> String {
        let (answer, answered) = channel();
        self.orders.send(Order::Run(words, answer)).unwrap();
        answered.recv_timeout(DEADLINE).unwrap()
    }

    /// Leaves the mark of a clean stop.
    pub(crate) fn stop(mut self) {
        let (answer, answered) = channel();
        self.orders.send(Order::Stop(answer)).unwrap();
        answered.recv_timeout(DEADLINE).unwrap().unwrap();
        self.thread.take().unwrap().join().unwrap();
    }

    /// Ends without it, and leaves the network.
    pub(crate) fn vanish(mut self, network: &Network, region: &str) {
        network.leave(region);
        self.orders.send(Order::Vanish).unwrap();
        self.thread.take().unwrap().join().unwrap();
    }

    pub(crate) fn vector(&self) -> Vector {
        self.handle.vector()
    }

    pub(crate) async fn stats(&self) -> Stats {
        self.handle.stats().await.unwrap()
    }

    /// Waits until this region has delivered everything in `vector`.
    pub(crate) async fn reaches(&self, vector: &Vector) {
        assert!(self.handle.wait_for(vector, DEADLINE).await, "{:?} never reaches {vector:?}", self.vector());
    }
}

/// Waits until all are in touch. Of new regions, one that meets others later fetches what they wrote before it may write.
pub(crate) async fn meet(nodes: &[&Node]) {
    for node in nodes {
        eventually("all are in touch", async || {
            let peers = node.stats().await.peers;
            peers.iter().filter(|peer| peer.connected).count() + 1 >= nodes.len()
        })
        .await;
    }
}

/// Waits until all hold the same, and compares their digests. Regions also write by themselves, where an actor ended for
/// example, so their vectors may move between two questions.
pub(crate) async fn assert_equal(nodes: &[&Node]) {
    let until = Instant::now() + DEADLINE;
    loop {
        for node in nodes {
            for other in nodes {
                other.reaches(&node.vector()).await;
            }
        }
        let mut states = Vec::new();
        for node in nodes {
            states.push(node.handle.held_state().await.unwrap());
        }
        if states.iter().all(|state| state.vector == states[0].vector) {
            states.iter().for_each(|state| assert_eq!(state.digest, states[0].digest));
            return;
        }
        assert!(Instant::now() < until, "they never hold the same: {states:?}");
    }
}

/// An engine on the test's own thread, without links.
pub(crate) struct Local {
    pub(crate) store: Store<Embedded>,
    pub(crate) handle: EmbeddedHandle,
}

impl Local {
    pub(crate) fn open(config: Config) -> Result<Self, OpenError> {
        let (engine, handle) = Embedded::open(config)?;
        Ok(Self { store: Store::new(engine, Options::default()), handle })
    }

    /// Runs one command, and flushes as every front end does before it answers.
    pub(crate) fn run(&mut self, command: &str) -> String {
        self.try_run(command).unwrap()
    }

    /// The same; or what is said if the log does not take what was executed.
    pub(crate) fn try_run(&mut self, command: &str) -> Result<String, FlushError> {
        let answer = self.execute(command);
        let position = self.store.engine.flush()?;
        while self.store.engine.durable() < position {
            std::thread::yield_now();
        }
        Ok(answer)
    }

    /// Runs one command and does not flush: nobody may see the answer.
    pub(crate) fn execute(&mut self, command: &str) -> String {
        let (mut session, mut reply) = (Session::default(), Recorder::default());
        let words: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
        self.store.engine.set_wall(wall());
        assert_eq!(self.store.execute(&mut session, &words, &mut reply), Flow::Done);
        reply.finish().unwrap().to_string()
    }

    /// The incarnations of this region that the log knows, with their last sequences.
    pub(crate) fn incarnations(&self) -> Vec<u64> {
        self.handle.vector().0.into_values().collect()
    }
}

/// Looks at something until it is so.
pub(crate) async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !is_so().await {
        assert!(Instant::now() < until, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A data thread, as the front end runs one: a batch of what is there, one flush, then the answers.
fn run(engine: Embedded, clock: fn() -> HybridTime, orders: &Receiver<Order>) {
    let mut store = Store::new(engine, Options::default());
    let mut waiting: Vec<(Session, Recorder, Sender<String>)> = Vec::new();
    loop {
        let first = match orders.recv_timeout(Duration::from_millis(50)) {
            Ok(order) => Some(order),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        store.engine.set_wall(clock());
        let mut answers: Vec<(Recorder, Sender<String>)> = Vec::new();
        for (mut session, mut reply, answer) in std::mem::take(&mut waiting) {
            match store.resume(&mut session, &mut reply) {
                Flow::Done => answers.push((reply, answer)),
                Flow::Wait { .. } => waiting.push((session, reply, answer)),
            }
        }
        for order in first.into_iter().chain(orders.try_iter().take(64)) {
            match order {
                Order::Wake => {}
                Order::Vanish => return,
                Order::Stop(answer) => {
                    let _ = answer.send(store.engine.stop());
                    return;
                }
                Order::Run(words, answer) => {
                    let (mut session, mut reply) = (Session::default(), Recorder::default());
                    let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
                    match store.execute(&mut session, &words, &mut reply) {
                        Flow::Done => answers.push((reply, answer)),
                        Flow::Wait { .. } => waiting.push((session, reply, answer)),
                    }
                }
            }
        }
        while store.engine.turn() {}
        store.sweep(16);
        let position = match store.engine.flush() {
            Ok(position) => position,
            Err(error) => {
                answers.drain(..).for_each(|(_, answer)| drop(answer.send(error.to_string())));
                continue;
            }
        };
        while store.engine.durable() < position {
            std::thread::yield_now();
        }
        for (reply, answer) in answers {
            let _ = answer.send(reply.finish().unwrap().to_string());
        }
    }
}

//! A planet of doors on loopback ports, with everything behind their seams made up.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use geode_door::{
    Boxed, ClientHints, Coverage, Door, DoorSettings, Lease, PeerStream, Peers, RouteEntry, Router, Seams,
    Service, SessionKey, Sessions,
};
use geode_planet::RegionName;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

pub(crate) fn region(name: &str) -> RegionName {
    RegionName::new(name).unwrap()
}

pub(crate) const KEY: &[u8] = &[42; 32];

/// Instances by address, in the order given; one that refuses is out.
#[derive(Default)]
pub(crate) struct Instances {
    addrs: Mutex<Vec<SocketAddr>>,
    pub(crate) in_flight: AtomicUsize,
    turn: AtomicUsize,
}

#[derive(Clone, Default)]
pub(crate) struct FakeService(pub Arc<Instances>);

pub(crate) struct FakeLease {
    addr: SocketAddr,
    instances: Arc<Instances>,
}

impl Service for FakeService {
    type Lease = FakeLease;

    fn acquire(&self) -> Option<FakeLease> {
        let addrs = self.0.addrs.lock().unwrap();
        let turn = self.0.turn.fetch_add(1, Ordering::SeqCst);
        let addr = *addrs.get(turn % addrs.len().max(1))?;
        self.0.in_flight.fetch_add(1, Ordering::SeqCst);
        Some(FakeLease { addr, instances: Arc::clone(&self.0) })
    }
}

impl Lease for FakeLease {
    fn addr(&self) -> SocketAddr {
        self.addr
    }

    fn refused(&self) {
        self.instances.addrs.lock().unwrap().retain(|addr| *addr != self.addr);
    }
}

impl Drop for FakeLease {
    fn drop(&mut self) {
        self.instances.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Where the peer listeners are, and the order in which everybody is routed.
#[derive(Default)]
pub(crate) struct Map {
    peer_ports: Mutex<HashMap<RegionName, SocketAddr>>,
    order: Mutex<Vec<RegionName>>,
}

impl Map {
    /// Whoever calls that region from now on reaches this address.
    pub(crate) fn move_peer(&self, name: &str, addr: SocketAddr) {
        self.peer_ports.lock().unwrap().insert(region(name), addr);
    }
}

impl Router for Map {
    fn route(&self, client: &ClientHints) -> Vec<RouteEntry> {
        let order = self.order.lock().unwrap();
        let reason = |place| format!("number {place} for {}", client.address);
        order
            .iter()
            .zip(1..)
            .map(|(region, place)| RouteEntry { region: region.clone(), reason: reason(place) })
            .collect()
    }
}

impl Peers for Map {
    fn connect<'a>(&'a self, region: &'a RegionName) -> Boxed<'a, io::Result<PeerStream>> {
        let addr = self.peer_ports.lock().unwrap().get(region).copied();
        Box::pin(async move {
            let stream = TcpStream::connect(addr.ok_or(io::ErrorKind::NotFound)?).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as PeerStream)
        })
    }
}

/// A store whose vector is one number. A vector below `lost_below` can never be covered.
pub(crate) struct FakeSessions {
    current: watch::Sender<u8>,
    pub(crate) who_has: Mutex<Vec<RegionName>>,
    pub(crate) lost: Mutex<bool>,
}

impl FakeSessions {
    pub(crate) fn reach(&self, vector: u8) {
        self.current.send_replace(vector);
    }
}

impl Sessions for FakeSessions {
    fn current(&self, presented: Option<&[u8]>) -> Vec<u8> {
        vec![presented.map_or(0, |presented| presented[0]).max(*self.current.borrow())]
    }

    fn covers(&self, vector: &[u8]) -> bool {
        *self.current.borrow() >= vector[0]
    }

    fn wait<'a>(&'a self, vector: &'a [u8], at_most: Duration) -> Boxed<'a, Coverage> {
        Box::pin(async move {
            if *self.lost.lock().unwrap() {
                return Coverage::Lost;
            }
            let mut current = self.current.subscribe();
            let reached = current.wait_for(|current| *current >= vector[0]);
            match tokio::time::timeout(at_most, reached).await {
                Ok(_) => Coverage::Covered,
                Err(_) => Coverage::Behind { who_has: self.who_has.lock().unwrap().clone() },
            }
        })
    }
}

/// One geode: a door with its two listeners, and what is behind it.
pub(crate) struct Geode {
    pub(crate) door: Door<FakeService>,
    /// Where clients connect.
    pub(crate) addr: SocketAddr,
    /// Where peers connect; whoever does is taken for `us`.
    pub(crate) peer_addr: SocketAddr,
    pub(crate) instances: Arc<Instances>,
    pub(crate) sessions: Arc<FakeSessions>,
    pub(crate) map: Arc<Map>,
}

impl Geode {
    pub(crate) fn in_flight(&self) -> usize {
        self.instances.in_flight.load(Ordering::SeqCst)
    }

    pub(crate) async fn raw(&self) -> super::raw::Raw {
        super::raw::Raw::connect(self.addr).await
    }

    /// One request on a connection of its own.
    pub(crate) async fn ask(&self, request: impl AsRef<[u8]>) -> super::raw::Reply {
        self.raw().await.exchange(request).await
    }
}

/// The regions in the order of every route. Each has its instances' addresses.
pub(crate) async fn planet(
    regions: &[(&str, &[SocketAddr])],
    adjust: impl Fn(&mut DoorSettings),
) -> Vec<Geode> {
    let map = Arc::new(Map::default());
    let mut geodes = Vec::new();
    for (name, addrs) in regions {
        map.order.lock().unwrap().push(region(name));
        geodes.push(geode(name, addrs, &map, &adjust).await);
    }
    geodes
}

/// A planet of one region, `us`.
pub(crate) async fn alone(addrs: &[SocketAddr]) -> Geode {
    planet(&[("us", addrs)], |_| {}).await.remove(0)
}

async fn geode(
    name: &str,
    addrs: &[SocketAddr],
    map: &Arc<Map>,
    adjust: &impl Fn(&mut DoorSettings),
) -> Geode {
    let mut settings = DoorSettings::new(region(name), SessionKey::new(KEY));
    adjust(&mut settings);
    let instances = Arc::new(Instances { addrs: Mutex::new(addrs.to_vec()), ..Instances::default() });
    let sessions = Arc::new(FakeSessions {
        current: watch::Sender::new(0),
        who_has: Mutex::default(),
        lost: Mutex::default(),
    });
    let seams = Seams {
        service: FakeService(Arc::clone(&instances)),
        router: Arc::clone(map) as Arc<dyn Router>,
        peers: Arc::clone(map) as Arc<dyn Peers>,
        sessions: Arc::clone(&sessions) as Arc<dyn Sessions>,
    };
    let door = Door::new(settings, seams).unwrap();
    let clients = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peers = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (addr, peer_addr) = (clients.local_addr().unwrap(), peers.local_addr().unwrap());
    map.move_peer(name, peer_addr);
    let (for_clients, for_peers) = (door.clone(), door.clone());
    tokio::spawn(async move {
        while let Ok((stream, address)) = clients.accept().await {
            let door = for_clients.clone();
            tokio::spawn(async move { door.serve_client(stream, address).await });
        }
    });
    tokio::spawn(async move {
        while let Ok((stream, _)) = peers.accept().await {
            let door = for_peers.clone();
            tokio::spawn(async move { door.serve_peer(stream, region("us")).await });
        }
    });
    Geode { door, addr, peer_addr, instances, sessions, map: Arc::clone(map) }
}

/// The door counts an end of something a moment after the client sees it.
pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    super::raw::soon(what, async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

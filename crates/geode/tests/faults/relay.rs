//! The network between geodes: each link's bytes pass through here, late, or not at all.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often a pipe looks whether the run is over or its direction is open again.
const LOOK: Duration = Duration::from_millis(5);
/// Chunks under way in one direction; beyond that the sender waits, as it would for a full window.
const UNDER_WAY: usize = 256;
const CHUNK: usize = 16 << 10;

/// One direction between two regions.
#[derive(Debug, Default)]
struct Direction {
    delay_us: AtomicU64,
    /// How many faults stop it.
    stopped: AtomicU64,
}

/// The network of one run. Dropping it ends all connections.
#[derive(Debug)]
pub(crate) struct Relay {
    regions: usize,
    directions: Arc<Vec<Direction>>,
    /// Live connections, with the regions they join.
    connections: Arc<Mutex<Vec<(usize, usize, TcpStream)>>>,
    is_over: Arc<AtomicBool>,
}

impl Relay {
    pub(crate) fn new(regions: usize, delay_ms: impl Fn(usize, usize) -> u64) -> Self {
        let direction = |index: usize| Direction {
            delay_us: AtomicU64::new(1_000 * delay_ms(index / regions, index % regions)),
            stopped: AtomicU64::new(0),
        };
        Self {
            regions,
            directions: Arc::new((0..regions * regions).map(direction).collect()),
            connections: Arc::default(),
            is_over: Arc::default(),
        }
    }

    /// What region `from` sends to `listen` comes to `to`, which listens at `target`.
    pub(crate) fn join(&self, from: usize, to: usize, listen: SocketAddr, target: SocketAddr) {
        let listener = TcpListener::bind(listen).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (directions, connections) = (Arc::clone(&self.directions), Arc::clone(&self.connections));
        let (is_over, regions) = (Arc::clone(&self.is_over), self.regions);
        std::thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                let Ok((near, _)) = listener.accept() else {
                    std::thread::sleep(LOOK);
                    continue;
                };
                let there = directions[from * regions + to].stopped.load(Ordering::Relaxed);
                let back = directions[to * regions + from].stopped.load(Ordering::Relaxed);
                // Where nothing gets through nobody answers; that the caller hears of it at once is the one kindness.
                let Ok(far) = (if there + back > 0 {
                    Err(ErrorKind::HostUnreachable.into())
                } else {
                    TcpStream::connect(target)
                }) else {
                    continue;
                };
                near.set_nonblocking(false).unwrap();
                {
                    let mut live = connections.lock().unwrap_or_else(PoisonError::into_inner);
                    live.extend([&near, &far].map(|end| (from, to, end.try_clone().unwrap())));
                }
                for (here, there, way) in [(&near, &far, (from, to)), (&far, &near, (to, from))] {
                    let (reading, writing) = (here.try_clone().unwrap(), there.try_clone().unwrap());
                    let pipe = Pipe {
                        directions: Arc::clone(&directions),
                        index: way.0 * regions + way.1,
                        is_over: Arc::clone(&is_over),
                    };
                    pipe.run(reading, writing);
                }
            }
        });
    }

    /// Nothing gets through in one direction any more, until as many calls of [`Self::open`]. What was sent waits.
    pub(crate) fn stop(&self, from: usize, to: usize) {
        self.direction(from, to).stopped.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn open(&self, from: usize, to: usize) {
        self.direction(from, to).stopped.fetch_sub(1, Ordering::Relaxed);
    }

    /// Everything gets through.
    pub(crate) fn open_all(&self) {
        self.directions.iter().for_each(|direction| direction.stopped.store(0, Ordering::Relaxed));
    }

    /// Ends the connections between two regions, in the middle of whatever is said.
    pub(crate) fn break_links(&self, a: usize, b: usize) {
        let mut live = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        live.retain(|(from, to, end)| {
            let joins = (*from, *to) == (a, b) || (*from, *to) == (b, a);
            if joins {
                let _ = end.shutdown(Shutdown::Both);
            }
            !joins
        });
    }

    fn direction(&self, from: usize, to: usize) -> &Direction {
        &self.directions[from * self.regions + to]
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let live = std::mem::take(&mut *self.connections.lock().unwrap_or_else(PoisonError::into_inner));
        live.iter().for_each(|(.., end)| drop(end.shutdown(Shutdown::Both)));
    }
}

/// One direction of one connection: a thread that reads, and one that writes when it is time.
struct Pipe {
    directions: Arc<Vec<Direction>>,
    index: usize,
    is_over: Arc<AtomicBool>,
}

type Due = (Instant, Vec<u8>);

impl Pipe {
    fn run(self, mut reading: TcpStream, writing: TcpStream) {
        let (put, take) = sync_channel::<Due>(UNDER_WAY);
        let delay_us = self.directions[self.index].delay_us.load(Ordering::Relaxed);
        std::thread::spawn(move || {
            Self::read(&mut reading, &put, Duration::from_micros(delay_us));
        });
        std::thread::spawn(move || self.write(writing, &take));
    }

    fn read(reading: &mut TcpStream, put: &SyncSender<Due>, delay: Duration) {
        let mut chunk = vec![0; CHUNK];
        while let Ok(length @ 1..) = reading.read(&mut chunk) {
            if put.send((Instant::now() + delay, chunk[..length].to_vec())).is_err() {
                return;
            }
        }
    }

    fn write(&self, mut writing: TcpStream, take: &Receiver<Due>) {
        while let Ok((due, bytes)) = take.recv() {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            while self.directions[self.index].stopped.load(Ordering::Relaxed) > 0 {
                if self.is_over.load(Ordering::Relaxed) {
                    return;
                }
                std::thread::sleep(LOOK);
            }
            if writing.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = writing.shutdown(Shutdown::Both);
    }
}

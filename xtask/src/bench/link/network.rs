//! Machines far from each other: a network namespace each, whose packets pass through this process, which delays, limits
//! and loses them. Nothing of the kernel but namespaces and TUN is needed, and the host's own network is not touched.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::tun;

/// What a path does to packets.
#[derive(Clone, Copy)]
pub(super) struct Path {
    /// From one machine to another.
    pub(super) one_way: Duration,
    /// Of what one machine sends, to all others together.
    pub(super) bits_per_second: f64,
    /// How long a packet may wait for the rate before it is dropped instead.
    pub(super) queue: Duration,
    /// The share of packets that is lost.
    pub(super) loss: f64,
}

/// One machine.
pub(super) struct Machine {
    pub(super) address: String,
    namespace: String,
    sent_bytes: Arc<AtomicU64>,
}

/// Packets under way to one machine, in the order in which they arrive.
#[derive(Default)]
struct Way {
    packets: Mutex<VecDeque<(Instant, Vec<u8>)>>,
    arrived: Condvar,
}

/// Machines 1 to `count`, and the threads that carry their packets until the process ends.
pub(super) fn machines(count: u8, path: Path) -> Result<Vec<Machine>, String> {
    let machines: Vec<Machine> = (1..=count).map(Machine::new).collect::<Result<_, _>>()?;
    let ways: Arc<Vec<Way>> = Arc::new((0..count).map(|_| Way::default()).collect());
    for (number, machine) in (1..=count).zip(&machines) {
        let interface =
            machine.within(|| tun::open("wan")).map_err(|error| format!("/dev/net/tun: {error}"))?;
        let namespace = machine.namespace.as_str();
        ip(&["-n", namespace, "addr", "add", &format!("{}/24", machine.address), "dev", "wan"])?;
        ip(&["-n", namespace, "link", "set", "wan", "mtu", "1500", "txqueuelen", "10000", "up"])?;
        let (read, write) = (interface.try_clone().map_err(|error| error.to_string())?, interface);
        let (ways_out, ways_in) = (Arc::clone(&ways), Arc::clone(&ways));
        let sent_bytes = Arc::clone(&machine.sent_bytes);
        std::thread::spawn(move || take(read, number, path, &ways_out, &sent_bytes));
        std::thread::spawn(move || deliver(write, &ways_in[usize::from(number) - 1]));
    }
    Ok(machines)
}

/// Takes what a machine sends, and puts it on its way.
fn take(mut interface: File, number: u8, path: Path, ways: &[Way], sent_bytes: &AtomicU64) {
    // Marsaglia's xorshift64: the same losses in every run.
    let mut random = 0x9e37_79b9_7f4a_7c15 ^ u64::from(number);
    let mut free_at = Instant::now();
    let mut buffer = vec![0; 65_536];
    while let Ok(length) = interface.read(&mut buffer) {
        let packet = &buffer[..length];
        // IPv4 only; the last byte of the destination is the machine's number.
        let to = if length >= 20 && packet[0] >> 4 == 4 { usize::from(packet[19]) } else { 0 };
        let Some(way) = to.checked_sub(1).and_then(|to| ways.get(to)) else { continue };
        let now = Instant::now();
        let start = free_at.max(now);
        if start - now > path.queue {
            continue;
        }
        free_at = start + Duration::from_secs_f64(length as f64 * 8.0 / path.bits_per_second);
        sent_bytes.fetch_add(length as u64, Ordering::Relaxed);
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        if (random >> 11) as f64 / (1u64 << 53) as f64 >= path.loss {
            let mut packets = way.packets.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            packets.push_back((free_at + path.one_way, packet.to_vec()));
            way.arrived.notify_one();
        }
    }
}

/// Gives a machine what has arrived.
fn deliver(mut interface: File, way: &Way) {
    loop {
        let mut packets = way.packets.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // Packets from different machines are a little out of order between each other; within one flow they are not.
        let Some((due, packet)) = packets.pop_front() else {
            drop(way.arrived.wait(packets));
            continue;
        };
        drop(packets);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        // A machine that is gone receives nothing.
        let _ = interface.write_all(&packet);
    }
}

impl Machine {
    fn new(number: u8) -> Result<Self, String> {
        let namespace = format!("geode-bench-{}-{number}", std::process::id());
        ip(&["netns", "add", &namespace])?;
        let machine =
            Self { address: format!("10.78.0.{number}"), namespace, sent_bytes: Arc::new(AtomicU64::new(0)) };
        ip(&["-n", &machine.namespace, "link", "set", "lo", "up"])?;
        Ok(machine)
    }

    /// A command that runs on this machine.
    pub(super) fn command(&self, program: &std::path::Path) -> Command {
        let mut command = Command::new("ip");
        // `ip netns exec` becomes the program.
        command.args(["netns", "exec", &self.namespace]).arg(program);
        command
    }

    /// Does something on this machine's network; a connection that is made there stays there.
    pub(super) fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = format!("/run/netns/{}", self.namespace);
        // On a thread of its own: a thread has one network.
        std::thread::scope(|scope| {
            let on_it = scope.spawn(|| {
                let file = File::open(&namespace).expect("the namespace was made by this process");
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("who made a namespace may enter it");
                work()
            });
            on_it.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Bytes of IP packets that this machine has sent so far and its path has taken.
    pub(super) fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = ip(&["netns", "del", &self.namespace]);
    }
}

/// Runs `ip` of iproute2.
fn ip(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(arguments).output().map_err(|error| format!("ip: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("ip {}: {}; this measurement needs root on Linux", arguments.join(" "), said.trim()))
}

//! Real geodes: one process for each region, started, killed, stopped and started again.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use geode_link::Authority;
use rustix::process::{Pid, Signal, kill_process};

use crate::disk::Disk;
use crate::plan::Plan;
use crate::relay::Relay;

const GEODE: &str = env!("CARGO_BIN_EXE_geode");
pub(crate) const PLANET: &str = "faults";
/// The regions, in the order of their names.
pub(crate) const NAMES: [&str; 3] = ["ap-southeast-2", "eu-west-1", "us-east-1"];

/// One region's process, or its machine without one.
#[derive(Debug)]
pub(crate) struct Geode {
    name: &'static str,
    directory: PathBuf,
    pub(crate) addresses: Addresses,
    pub(crate) disk: Disk,
    child: Option<Child>,
    /// Where in the log the last process began.
    began_at: u64,
}

/// Where a region listens. Every run has addresses of its own, so that ports need not be sought.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    address: Ipv4Addr,
}

impl Addresses {
    /// Of a region in the run of this number in this process.
    fn of(run: u32, region: usize) -> Self {
        let process = std::process::id();
        let [high, low] = [(process >> 8) & 63, process & 255];
        Self { address: Ipv4Addr::new(127, 64 + high as u8, low as u8, (8 * run + region as u32) as u8) }
    }

    fn at(self, port: u16) -> SocketAddr {
        (self.address, port).into()
    }

    fn link(self) -> SocketAddr {
        self.at(7400)
    }

    /// Where the relay waits for what this region sends to another.
    fn to(self, other: usize) -> SocketAddr {
        self.at(7500 + other as u16)
    }

    pub(crate) fn redis(self) -> SocketAddr {
        self.at(6379)
    }

    pub(crate) fn admin(self) -> SocketAddr {
        self.at(7401)
    }
}

/// The regions of one run, none of them started.
pub(crate) fn geodes(directory: &Path, plan: &Plan, relay: &Relay) -> Vec<Geode> {
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let run = 1 + RUNS.fetch_add(1, Ordering::Relaxed) % 30;
    let all: Vec<Addresses> = (0..NAMES.len()).map(|region| Addresses::of(run, region)).collect();
    let authority = Authority::new(PLANET).unwrap();
    let one = |region: usize| {
        let directory = directory.join(NAMES[region]);
        let disk = Disk::new(&directory, plan.wants_volume(region)).unwrap();
        std::fs::write(directory.join("planet.toml"), planet_toml(region, plan.fsync[region], &all, &disk))
            .unwrap();
        let bundle = authority.issue(&NAMES[region].parse().unwrap()).unwrap();
        std::fs::write(directory.join(format!("{}.bundle", NAMES[region])), bundle.text()).unwrap();
        for other in (0..all.len()).filter(|other| *other != region) {
            relay.join(region, other, all[region].to(other), all[other].link());
        }
        Geode { name: NAMES[region], directory, addresses: all[region], disk, child: None, began_at: 0 }
    };
    (0..NAMES.len()).map(one).collect()
}

/// The planet as one region is told it is: whoever it dials, it reaches the relay.
fn planet_toml(region: usize, fsync: &str, all: &[Addresses], disk: &Disk) -> String {
    let own = all[region];
    let mut text = format!("format = 1\n[planet]\nname = \"{PLANET}\"\n");
    for (other, name) in NAMES.iter().enumerate() {
        let link = if other == region { own.link() } else { own.to(other) };
        text += &format!("[regions.{name}]\npublic = [\"127.0.0.1\"]\nlink = \"{link}\"\n");
    }
    let (data, door, redis, admin) = (disk.data.display(), own.at(7480), own.redis(), own.admin());
    // There is no service, so that a geode is ready as soon as its store is.
    text + &format!(
        "[store]\ndata = \"{data}\"\nfsync = \"{fsync}\"\n\
         [door]\nlisten = [\"{door}\"]\n[redis]\nlisten = \"{redis}\"\n[admin]\nlisten = \"{admin}\"\n"
    )
}

impl Geode {
    pub(crate) fn start(&mut self) {
        let log = File::options().append(true).create(true).open(self.log()).unwrap();
        self.began_at = log.metadata().unwrap().len();
        let mut command = self.disk.command(GEODE);
        command.args(["run", "--region", self.name, "--config"]).arg(self.directory.join("planet.toml"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    /// What the region's processes said.
    pub(crate) fn log(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// What the last process said.
    fn said(&self) -> String {
        let said = std::fs::read(self.log()).unwrap();
        String::from_utf8_lossy(&said[self.began_at as usize..]).into_owned()
    }

    /// Whether the last process came as far as to serve.
    pub(crate) fn was_ready(&self) -> bool {
        self.said().contains(" ready")
    }

    /// Whether the last process gave, in one line, the disk as the reason for not starting.
    pub(crate) fn blamed_the_disk(&self) -> bool {
        let (said, data) = (self.said(), self.disk.data.display().to_string());
        let last = said.lines().last().unwrap_or_default();
        last.starts_with("geode run: ") && last.contains(&data)
    }

    pub(crate) fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// How the process ended, if it did so since this was last asked.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.try_wait().unwrap()?;
        self.child = None;
        Some(status)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(pid) = self.child.as_ref().and_then(|child| Pid::from_raw(child.id().cast_signed())) {
            kill_process(pid, signal).unwrap();
        }
    }

    /// SIGKILL. Returns whether there was a process.
    pub(crate) fn kill(&mut self) -> bool {
        let Some(mut child) = self.child.take() else { return false };
        child.kill().unwrap();
        child.wait().unwrap();
        true
    }

    /// SIGTERM, and waits until the process has ended.
    pub(crate) fn stop(&mut self) -> Option<ExitStatus> {
        self.signal(Signal::TERM);
        self.child.take().map(|mut child| child.wait().unwrap())
    }
}

impl Drop for Geode {
    fn drop(&mut self) {
        self.kill();
    }
}

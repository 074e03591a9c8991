//! Three machines on one network: a network namespace each, joined by a bridge in a fourth. The host's own network is not
//! touched.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

pub(crate) const GEODE: &str = env!("CARGO_BIN_EXE_geode");
/// Beyond this a wait has failed; nothing that works comes near it, however busy the machine.
const DEADLINE: Duration = Duration::from_secs(90);

/// Runs `ip` of iproute2.
fn ip(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(arguments).output().map_err(|error| format!("ip: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}

/// A network that machines are plugged into; gone when dropped.
pub(crate) struct Network {
    switch: String,
}

impl Network {
    /// # Errors
    /// This system lets nobody make network namespaces, or not us.
    pub(crate) fn new() -> Result<Self, String> {
        let network = Self { switch: format!("geode-test-{}", std::process::id()) };
        ip(&["netns", "add", &network.switch])?;
        ip(&["-n", &network.switch, "link", "add", "switch", "type", "bridge"])?;
        ip(&["-n", &network.switch, "link", "set", "switch", "up"])?;
        Ok(network)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = ip(&["netns", "del", &self.switch]);
    }
}

/// One machine: its own network, its own directory, and perhaps a geode.
pub(crate) struct Machine {
    pub(crate) region: &'static str,
    pub(crate) address: String,
    pub(crate) directory: PathBuf,
    namespace: String,
    geode: Option<Child>,
}

impl Machine {
    pub(crate) fn new(network: &Network, number: u8, region: &'static str, directory: &Path) -> Self {
        let (switch, address) = (&network.switch, format!("10.77.0.{number}"));
        let namespace = format!("{switch}-{number}");
        let plug = format!("port{number}");
        ip(&["netns", "add", &namespace]).unwrap();
        let directory = directory.join(region);
        std::fs::create_dir_all(&directory).unwrap();
        let machine = Self { region, address, directory, namespace, geode: None };
        let namespace = &machine.namespace;
        ip(&["-n", namespace, "link", "set", "lo", "up"]).unwrap();
        ip(&["-n", switch, "link", "add", &plug, "type", "veth", "peer", "name", "eth0", "netns", namespace])
            .unwrap();
        ip(&["-n", switch, "link", "set", &plug, "master", "switch", "up"]).unwrap();
        ip(&["-n", namespace, "addr", "add", &format!("{}/24", machine.address), "dev", "eth0"]).unwrap();
        ip(&["-n", namespace, "link", "set", "eth0", "up"]).unwrap();
        machine
    }

    /// Does something on this machine's network.
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/run/netns/{}", self.namespace)).unwrap();
        // On a thread of its own: a thread has one network.
        thread::scope(|scope| {
            let on_it = scope.spawn(|| {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                work()
            });
            on_it.join().unwrap()
        })
    }

    /// Starts `geode run` with what lies in the directory, as a service manager would.
    pub(crate) fn start(&mut self) {
        let log = File::options().append(true).create(true).open(self.directory.join("log")).unwrap();
        let mut command = Command::new("ip");
        // `ip netns exec` becomes the program.
        command.args(["netns", "exec", &self.namespace, GEODE, "run", "--region", self.region]);
        command.current_dir(&self.directory).env("GEODE", GEODE);
        self.geode = Some(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap());
    }

    /// Waits until the geode is ready.
    pub(crate) fn until_ready(&self) {
        let ready = || Some(self.get("127.0.0.1:7401", "/readyz")?.starts_with("HTTP/1.1 200"));
        self.until("it is ready", || ready() == Some(true));
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut geode) = self.geode.take() {
            let _ = geode.kill();
            let _ = geode.wait();
        }
    }

    /// Kills the instances of the service; their geode starts them again.
    pub(crate) fn kill_service(&self) {
        let geode = self.geode.as_ref().unwrap().id();
        // Listed by the thread that started them.
        let threads = std::fs::read_dir(format!("/proc/{geode}/task")).unwrap().map(Result::unwrap);
        let children: String = threads
            .filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok())
            .collect();
        for child in children.split_whitespace().filter_map(|pid| pid.parse().ok()).filter_map(Pid::from_raw)
        {
            let _ = kill_process(child, Signal::KILL);
        }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// Waits until something is so, on this machine.
    pub(crate) fn until(&self, what: &str, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !condition() {
            assert!(Instant::now() < deadline, "{}: never: {what}\n{}", self.region, self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// One HTTP request on this machine, and the whole answer.
    pub(crate) fn get(&self, address: &str, path: &str) -> Option<String> {
        use std::io::{Read as _, Write as _};
        self.within(|| {
            let mut stream = std::net::TcpStream::connect(address).ok()?;
            stream.set_read_timeout(Some(DEADLINE)).ok()?;
            write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            Some(answer)
        })
    }

    /// Which region's service answers at this machine's door, if any does.
    pub(crate) fn served_by(&self) -> Option<String> {
        let answer = self.get(&format!("{}:80", self.address), "/")?;
        let head = answer.split("\r\n\r\n").next()?.to_ascii_lowercase();
        head.starts_with("http/1.1 200").then_some(())?;
        head.lines().find_map(|line| line.strip_prefix("geode-region: ")).map(str::to_owned)
    }

    /// The connections to and from its link port, as `ss` shows them with their congestion control.
    pub(crate) fn links(&self) -> String {
        let list = || Command::new("ss").args(["-tin", "sport = :7400 or dport = :7400"]).output().unwrap();
        String::from_utf8(self.within(list).stdout).unwrap()
    }

    /// One Redis command on this machine.
    pub(crate) fn redis(&self, words: &[&str]) -> Option<String> {
        self.within(|| {
            let client = redis::Client::open("redis://127.0.0.1:6379").unwrap();
            let mut command = redis::Cmd::new();
            words.iter().for_each(|word| _ = command.arg(word));
            command.query(&mut client.get_connection().ok()?).ok()?
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
        let _ = ip(&["netns", "del", &self.namespace]);
    }
}

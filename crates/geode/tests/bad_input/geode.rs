//! A real geode on ports that were free a moment ago.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use geode_link::Authority;
use redis::ConnectionLike as _;

const GEODE: &str = env!("CARGO_BIN_EXE_geode");
pub(crate) const PLANET: &str = "acme";
/// Beyond this what must come has not; nothing that works comes near it.
const DEADLINE: Duration = Duration::from_secs(90);

/// Where a geode listens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ports {
    pub(crate) link: u16,
    pub(crate) redis: u16,
    pub(crate) admin: u16,
    door: u16,
}

impl Ports {
    pub(crate) fn free() -> Self {
        let held: Vec<TcpListener> = (0..4).map(|_| TcpListener::bind(("127.0.0.1", 0)).unwrap()).collect();
        let port = |index: usize| held[index].local_addr().unwrap().port();
        Self { link: port(0), redis: port(1), admin: port(2), door: port(3) }
    }
}

/// A region and its process.
pub(crate) struct Geode {
    pub(crate) name: &'static str,
    pub(crate) ports: Ports,
    pub(crate) directory: PathBuf,
    child: Option<Child>,
}

impl Geode {
    /// A geode below a directory that is to be on a planet of these regions, each with where its link listens.
    pub(crate) fn new(directory: &Path, name: &'static str, ports: Ports, regions: &[(&str, u16)]) -> Self {
        std::fs::create_dir_all(directory).unwrap();
        let mut text = format!("format = 1\n[planet]\nname = \"{PLANET}\"\n");
        for (region, link) in regions {
            text += &format!("[regions.{region}]\npublic = [\"127.0.0.1\"]\nlink = \"127.0.0.1:{link}\"\n");
        }
        let Ports { redis, admin, door, .. } = ports;
        let data = directory.join("data");
        text += &format!(
            "[store]\ndata = \"{}\"\n[door]\nlisten = [\"127.0.0.1:{door}\"]\n\
             [redis]\nlisten = \"127.0.0.1:{redis}\"\n[admin]\nlisten = \"127.0.0.1:{admin}\"\n",
            data.display()
        );
        std::fs::write(directory.join("planet.toml"), text).unwrap();
        Self { name, ports, directory: directory.to_owned(), child: None }
    }

    /// With its bundle, and started.
    pub(crate) fn start(mut self, authority: &Authority) -> Self {
        let bundle = authority.issue(&self.name.parse().unwrap()).unwrap();
        let path = self.directory.join(format!("{}.bundle", self.name));
        std::fs::write(path, bundle.text()).unwrap();
        self.start_again();
        wait_for("a geode that is ready", || self.log().contains(" ready").then_some(()));
        self
    }

    /// Its process, and nothing more.
    pub(crate) fn start_again(&mut self) {
        let log = File::options().append(true).create(true).open(self.directory.join("log")).unwrap();
        let mut command = Command::new(GEODE);
        command.args(["run", "--region", self.name, "--config"]).arg(self.directory.join("planet.toml"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// The exit code of a process that ends by itself.
    pub(crate) fn ends(&mut self) -> Option<i32> {
        self.child.take().unwrap().wait().unwrap().code()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// Waits until its log has a line with all of these words, and returns it.
    pub(crate) fn says(&self, words: &[&str]) -> String {
        wait_for(&format!("{words:?}"), || {
            let log = self.log();
            let line = log.lines().find(|line| words.iter().all(|word| line.contains(word)));
            line.map(str::to_owned)
        })
    }

    pub(crate) fn redis(&self) -> Option<redis::Connection> {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.ports.redis)).unwrap();
        client.get_connection().ok().filter(redis::Connection::is_open)
    }

    pub(crate) fn command<T: redis::FromRedisValue>(&self, line: &str) -> redis::RedisResult<T> {
        let mut command = redis::Cmd::new();
        line.split(' ').for_each(|word| {
            command.arg(word);
        });
        command.query(&mut self.redis().unwrap())
    }
}

impl Drop for Geode {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits for something, for long.
pub(crate) fn wait_for<T>(what: &str, mut come: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(come) = come() {
            return come;
        }
        assert!(start.elapsed() < DEADLINE, "{what} did not come");
        std::thread::sleep(Duration::from_millis(10));
    }
}

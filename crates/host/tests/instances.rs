//! The host through its front door, with real processes.

#![expect(clippy::unwrap_used, reason = "a test says by panicking what went wrong")]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use geode_host::{
    BackoffSettings, HealthSettings, Host, HostError, HostSettings, HostStatus, InstanceLimits,
    InstanceState, InstanceStatus, Lease, OutputSink, RunSettings, ServiceSource,
};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tempfile::TempDir;

const SERVICE: &str = env!("CARGO_BIN_EXE_geode-host-test-service");
/// Only a broken host comes near it.
const DEADLINE: Duration = Duration::from_secs(120);

/// A host's settings, with quick probes and restarts.
struct Setup {
    run: RunSettings,
    health: HealthSettings,
    _directory: TempDir,
}

impl Setup {
    fn new(options: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let command = [SERVICE, "serve"].iter().chain(options).map(|word| (*word).to_owned()).collect();
        let mut run = RunSettings::new(command, Ipv4Addr::LOCALHOST.into(), Arc::new(|_| {}));
        run.working_directory = directory.path().to_owned();
        run.jitter = Arc::new(|| 1.0);
        run.restart = BackoffSettings { base: Duration::from_millis(20), ..BackoffSettings::default() };
        let health = HealthSettings { interval: Duration::from_millis(20), ..HealthSettings::default() };
        Self { run, health, _directory: directory }
    }

    fn instances(mut self, min: usize, max: usize, in_flight: u32) -> Self {
        self.run.instances = InstanceLimits { min, max, in_flight };
        self
    }

    fn start(self) -> Running {
        let settings = HostSettings {
            region: "test-region".to_owned(),
            service: ServiceSource::Run(self.run),
            health: self.health,
        };
        Running { host: Host::start(settings).unwrap(), directory: Some(self._directory) }
    }
}

/// A host, and the directory in which its instances run.
struct Running {
    host: Host,
    directory: Option<TempDir>,
}

impl Running {
    async fn until(&self, condition: impl FnMut(&HostStatus) -> bool) -> HostStatus {
        match tokio::time::timeout(DEADLINE, self.host.until(condition)).await {
            Ok(status) => status,
            Err(_) => panic!("the host never got there: {:#?}", self.host.status()),
        }
    }

    async fn healthy(&self, count: usize) -> HostStatus {
        self.until(|status| status.healthy() == count).await
    }

    fn leases(&self, count: usize) -> Vec<Lease> {
        (0..count).map(|_| self.host.acquire().expect("a healthy instance")).collect()
    }

    /// Makes the health page of the instance at this address fail, until the guard is removed.
    fn make_sick(&self, address: SocketAddr) -> std::path::PathBuf {
        let path = self.directory.as_ref().unwrap().path().join(format!("sick.{}", address.port()));
        std::fs::write(&path, "").unwrap();
        path
    }
}

fn per_instance(leases: &[Lease]) -> BTreeMap<usize, usize> {
    leases.iter().fold(BTreeMap::new(), |mut counts, lease| {
        *counts.entry(lease.instance()).or_default() += 1;
        counts
    })
}

fn instance(status: &HostStatus, number: usize) -> &InstanceStatus {
    status.instances.iter().find(|instance| instance.instance == number).unwrap()
}

fn pid(instance: &InstanceStatus) -> Pid {
    Pid::from_raw(instance.pid.unwrap().try_into().unwrap()).unwrap()
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// A connection that ends only with the process that serves it.
fn hold(address: SocketAddr) -> BufReader<TcpStream> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(b"GET /hold HTTP/1.0\r\n\r\n").unwrap();
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert_eq!(line, "holding\n");
    reader
}

/// Waits for the death of the process at the other end.
fn assert_ends(mut held: BufReader<TcpStream>) {
    match held.read(&mut [0]) {
        Ok(length) => assert_eq!(length, 0),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}"),
    }
}

#[tokio::test]
async fn an_instance_knows_its_port_region_environment_and_directory() {
    let mut setup = Setup::new(&[]);
    setup.run.environment = vec![("REDIS_URL".to_owned(), "redis://127.0.0.1:1/".to_owned())];
    let running = setup.start();
    let status = running.healthy(1).await;
    let address = running.host.acquire().unwrap().addr();
    assert_eq!(instance(&status, 0).addr, Some(address));
    assert_eq!(get(address, "/env/PORT"), address.port().to_string());
    assert_eq!(get(address, "/env/GEODE_REGION"), "test-region");
    assert_eq!(get(address, "/env/REDIS_URL"), "redis://127.0.0.1:1/");
    let directory = running.directory.as_ref().unwrap().path().canonicalize().unwrap();
    assert_eq!(get(address, "/directory"), directory.display().to_string());
    running.until(|status| status.service_digest.as_ref().is_some_and(|digest| digest.len() == 64)).await;
}

#[tokio::test]
async fn a_service_on_127_0_0_1_is_found_whatever_the_regions_own_address() {
    let mut setup = Setup::new(&[]);
    setup.run.bind_ip = IpAddr::from([127, 0, 0, 77]);
    let running = setup.start();
    running.healthy(1).await;
    assert_eq!(running.host.acquire().unwrap().addr().ip(), IpAddr::from(Ipv4Addr::LOCALHOST));
}

#[tokio::test]
async fn requests_in_flight_start_instances_up_to_the_maximum() {
    let running = Setup::new(&[]).instances(1, 3, 2).start();
    running.healthy(1).await;
    let mut leases = running.leases(3);
    let status = running.healthy(2).await;
    assert_eq!(status.instances.len(), 2, "three requests need two instances of two");
    leases.extend(running.leases(2));
    running.healthy(3).await;
    leases.extend(running.leases(20));
    let status = running.host.status();
    assert_eq!((status.instances.len(), status.in_flight), (3, 25));
}

#[tokio::test]
async fn a_request_goes_to_the_instance_with_the_fewest() {
    let running = Setup::new(&[]).instances(3, 3, 50).start();
    running.healthy(3).await;
    let mut leases = running.leases(6);
    assert_eq!(per_instance(&leases), BTreeMap::from([(0, 2), (1, 2), (2, 2)]));
    leases.retain(|lease| lease.instance() != 1);
    assert_eq!(per_instance(&running.leases(2)), BTreeMap::from([(1, 2)]));
    assert_eq!(running.host.status().in_flight, 4, "dropped leases are released");
}

#[tokio::test]
async fn requests_of_many_threads_are_all_released() {
    let running = Setup::new(&[]).instances(2, 2, 50).start();
    running.healthy(2).await;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..2_000 {
                    let leases = running.leases(3);
                    assert!(running.host.status().in_flight >= 3);
                    drop(leases);
                }
            });
        }
    });
    assert_eq!(running.host.status().in_flight, 0);
}

#[tokio::test]
async fn a_killed_instance_is_restarted() {
    let running = Setup::new(&[]).start();
    let before = running.healthy(1).await;
    let first = pid(instance(&before, 0));
    kill_process(first, Signal::KILL).unwrap();
    let after = running.until(|status| status.healthy() == 1 && status.instances[0].restarts == 1).await;
    assert_ne!(pid(instance(&after, 0)), first);
    assert!(instance(&after, 0).last_exit.as_ref().unwrap().contains("SIGKILL"));
    assert_eq!(get(running.host.acquire().unwrap().addr(), "/env/GEODE_REGION"), "test-region");
}

#[tokio::test]
async fn an_instance_that_keeps_dying_comes_back_ever_later() {
    let mut setup = Setup::new(&["--no-such-option"]);
    let draws = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&draws);
    setup.run.jitter = Arc::new(move || {
        counter.fetch_add(1, Ordering::SeqCst);
        1.0
    });
    let started = Instant::now();
    let running = setup.start();
    let status = running.until(|status| status.instances.iter().any(|one| one.restarts >= 4)).await;
    // The fourth death follows delays of 20, 40 and 80 ms.
    assert!(started.elapsed() >= Duration::from_millis(140));
    assert!(draws.load(Ordering::SeqCst) >= 4);
    assert!(instance(&status, 0).last_exit.as_ref().unwrap().contains("exit status: 1"));
    assert!(running.host.acquire().is_none());
}

#[tokio::test]
async fn an_unhealthy_instance_gets_no_request_until_it_recovers() {
    let running = Setup::new(&[]).instances(2, 2, 50).start();
    let status = running.healthy(2).await;
    let sick = running.make_sick(instance(&status, 0).addr.unwrap());
    running.until(|status| instance(status, 0).state == InstanceState::Unhealthy).await;
    assert_eq!(per_instance(&running.leases(10)), BTreeMap::from([(1, 10)]));
    std::fs::remove_file(sick).unwrap();
    let status = running.healthy(2).await;
    assert_eq!(instance(&status, 0).restarts, 0, "an unhealthy instance is left alone");
    assert_eq!(per_instance(&running.leases(10)), BTreeMap::from([(0, 5), (1, 5)]));
}

#[tokio::test]
async fn an_instance_that_refuses_a_connection_is_taken_out_at_once() {
    let running = Setup::new(&[]).instances(2, 2, 50).start();
    let status = running.healthy(2).await;
    running.make_sick(instance(&status, 0).addr.unwrap());
    let leases = running.leases(2);
    for lease in leases.iter().filter(|lease| lease.instance() == 0) {
        lease.refused();
    }
    assert_eq!(per_instance(&running.leases(4)), BTreeMap::from([(1, 4)]));
}

#[tokio::test]
async fn an_ejected_instance_returns_when_its_probes_succeed() {
    let running = Setup::new(&[]).start();
    running.healthy(1).await;
    running.host.acquire().unwrap().refused();
    running.healthy(1).await;
    assert!(running.host.acquire().is_some());
}

#[tokio::test]
async fn after_quiet_periods_only_the_minimum_is_left() {
    let mut setup = Setup::new(&[]).instances(1, 3, 1);
    setup.run.quiet_before_scale_down = Duration::from_millis(50);
    let running = setup.start();
    running.healthy(1).await;
    let mut leases = running.leases(3);
    running.healthy(3).await;
    leases.clear();
    let status = running.until(|status| status.instances.len() == 1).await;
    assert_eq!(status.healthy(), 1);
}

#[tokio::test]
async fn an_instance_that_is_scaled_away_finishes_its_requests_or_is_kept_when_they_return() {
    let mut setup = Setup::new(&[]).instances(1, 2, 10);
    setup.run.quiet_before_scale_down = Duration::from_millis(50);
    setup.run.stop_grace = DEADLINE;
    let running = setup.start();
    running.healthy(1).await;
    let mut leases = running.leases(11);
    let status = running.healthy(2).await;
    leases.push(running.host.acquire().unwrap());
    assert_eq!(leases.last().unwrap().instance(), 1);
    leases.drain(..10);

    let draining =
        |status: &HostStatus| status.instances.iter().any(|one| one.state == InstanceState::Draining);
    running.until(draining).await;
    let kept = running.leases(11);
    assert_eq!(per_instance(&kept).len(), 1, "a draining instance gets no new request");
    let revived = running.healthy(2).await;
    assert_eq!(instance(&revived, 1).pid, instance(&status, 1).pid, "demand keeps the warm instance");

    drop(kept);
    running.until(draining).await;
    leases.clear();
    running.until(|status| status.instances.len() == 1).await;
}

#[tokio::test]
async fn a_service_that_ignores_sigterm_is_killed() {
    let mut setup = Setup::new(&["--ignore-term"]);
    setup.run.stop_grace = Duration::from_millis(50);
    let running = setup.start();
    let status = running.healthy(1).await;
    let process = pid(instance(&status, 0));
    tokio::time::timeout(DEADLINE, running.host.stop()).await.unwrap();
    assert_eq!(test_kill_process(process), Err(rustix::io::Errno::SRCH));
    assert!(running.host.acquire().is_none());
}

#[tokio::test]
async fn a_service_that_heeds_sigterm_is_not_killed() {
    let mut setup = Setup::new(&[]);
    setup.run.stop_grace = DEADLINE * 2;
    let running = setup.start();
    let status = running.healthy(1).await;
    let process = pid(instance(&status, 0));
    tokio::time::timeout(DEADLINE, running.host.stop()).await.unwrap();
    assert_eq!(test_kill_process(process), Err(rustix::io::Errno::SRCH));
}

/// Remembers every line, and can be made to wait.
#[derive(Default)]
struct Lines {
    seen: Mutex<Vec<String>>,
    arrived: Condvar,
    gate: Mutex<()>,
}

impl Lines {
    fn sink(self: &Arc<Self>) -> OutputSink {
        let lines = Arc::clone(self);
        Arc::new(move |line| {
            drop(lines.gate.lock().unwrap());
            lines.seen.lock().unwrap().push(line.to_string());
            lines.arrived.notify_all();
        })
    }

    /// Waits for the first line that a function makes something of.
    fn find<T>(&self, mut look: impl FnMut(&[String]) -> Option<T>) -> T {
        let mut seen = self.seen.lock().unwrap();
        loop {
            if let Some(found) = look(&seen) {
                return found;
            }
            let (next, waited) = self.arrived.wait_timeout(seen, DEADLINE).unwrap();
            assert!(!waited.timed_out(), "the line never came");
            seen = next;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_output_is_slowed_to_what_its_reader_takes() {
    let lines = Arc::new(Lines::default());
    let mut setup = Setup::new(&["--flood"]);
    setup.run.output = lines.sink();
    let (running, address) = {
        let _closed = lines.gate.lock().unwrap();
        let running = setup.start();
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(running.healthy(1));
        });
        let address = running.host.acquire().unwrap().addr();
        // A pipe holds 64 KiB (pipe(7)), the reader and the lines that wait less than 16 KiB, the service's own buffer 8 KiB.
        let written = |_: usize| get(address, "/written").parse::<usize>().unwrap();
        assert!((0..500).map(written).max().unwrap() < 128 * 1024);
        (running, address)
    };
    lines.find(|seen| (seen.len() > 100_000).then_some(()));
    let flood: Vec<String> =
        lines.seen.lock().unwrap().iter().filter(|line| line.contains("flood")).cloned().collect();
    for (number, line) in flood.iter().enumerate() {
        assert_eq!(*line, format!("test-region/0 | flood {number}"));
    }
    assert!(get(address, "/written").parse::<usize>().unwrap() > 100_000);
    running.host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_instance_started_is_killed_with_it() {
    let lines = Arc::new(Lines::default());
    let mut setup = Setup::new(&["--child"]);
    setup.run.output = lines.sink();
    let running = setup.start();
    let status = running.healthy(1).await;
    let own = instance(&status, 0).addr.unwrap();
    let child: SocketAddr = lines.find(|seen| {
        let addresses = seen.iter().filter_map(|line| line.split_once("listening on ")?.1.parse().ok());
        addresses.into_iter().find(|address| *address != own)
    });
    let held = hold(child);
    kill_process(pid(instance(&status, 0)), Signal::KILL).unwrap();
    assert_ends(held);
    running.host.stop().await;
}

#[cfg(target_os = "linux")]
#[test]
fn a_killed_geode_leaves_no_service_behind() {
    let directory = tempfile::tempdir().unwrap();
    let mut geode = Command::new(SERVICE)
        .arg("host")
        .arg(directory.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(geode.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let held = hold(line.trim().parse().unwrap());
    geode.kill().unwrap();
    geode.wait().unwrap();
    assert_ends(held);
}

#[test]
fn a_launcher_whose_geode_is_gone_starts_nothing() {
    // The parent of this command is the test, which no process has as its id 1.
    let output = Command::new(SERVICE).args(["supervise", "1", "--", SERVICE, "serve"]).output().unwrap();
    assert!(!output.status.success());
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("Orphaned { parent: 1 }"), "{error}");
}

#[tokio::test]
async fn an_upstream_is_watched_but_not_run() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let health = HealthSettings { interval: Duration::from_millis(20), ..HealthSettings::default() };
    let settings =
        HostSettings { region: "test".to_owned(), service: ServiceSource::Upstream(address), health };
    let running = Running { host: Host::start(settings).unwrap(), directory: None };
    assert!(running.host.acquire().is_none(), "not healthy before the first answer");
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        // Without a path of the user's own, any answer below 500 counts.
        stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").unwrap();
    });
    running.healthy(1).await;
    let lease = running.host.acquire().unwrap();
    assert_eq!(lease.addr(), address);
    server.join().unwrap();
    running.until(|status| status.instances[0].state == InstanceState::Unhealthy).await;
    assert!(running.host.acquire().is_none());
    tokio::time::timeout(DEADLINE, running.host.stop()).await.unwrap();
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused_with_what_to_do() {
    let refuse = |change: &dyn Fn(&mut Setup)| {
        let mut setup = Setup::new(&[]);
        change(&mut setup);
        let settings = HostSettings {
            region: "test".to_owned(),
            service: ServiceSource::Run(setup.run),
            health: setup.health,
        };
        Host::start(settings).err().unwrap()
    };
    assert!(matches!(refuse(&|setup| setup.run.command.clear()), HostError::EmptyCommand));
    let error = refuse(&|setup| setup.run.command = vec!["no-such-program".to_owned()]).to_string();
    assert!(error.contains("`no-such-program` does not exist") && error.contains("in PATH"), "{error}");
    let limits = InstanceLimits { min: 3, max: 2, in_flight: 50 };
    let error = refuse(&|setup| setup.run.instances = limits).to_string();
    assert!(error.contains("min = 3, max = 2"), "{error}");
    let path = refuse(&|setup| setup.health.path = Some("healthz\r\nX: y".to_owned()));
    assert!(matches!(path, HostError::HealthPath(_)));
    assert!(matches!(refuse(&|setup| setup.health.down = 0), HostError::HealthThreshold));
}

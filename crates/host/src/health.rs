//! An instance's health: probes over HTTP, counted with hysteresis.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::settings::HealthSettings;
use crate::slot::Slots;

/// A new instance is asked this often until it answers: its start is waited for by requests.
const FIRST_SUCCESS_INTERVAL: Duration = Duration::from_millis(50);
/// After this long without an answer a new instance is mentioned in the log.
const SLOW_START: Duration = Duration::from_secs(10);
/// A health page longer than this is cut off; the status line has been read by then.
const MOST_READ: usize = 64 * 1024;
/// How long the rest of an answer is listened to.
const LAST_WORDS: Duration = Duration::from_millis(250);

/// Probes a slot's instance for as long as it is polled, and keeps the slot's health. Never returns.
pub(crate) async fn watch(slots: &Slots, index: usize, settings: &HealthSettings) -> Infallible {
    let mut thresholds = Thresholds::new(settings.up, settings.down);
    let mut address: Option<(usize, SocketAddr)> = None;
    let mut slow_start = Some(Instant::now() + SLOW_START);
    loop {
        let answer = match address {
            Some((_, known)) => probe(known, settings).await,
            None => {
                let found = search(slots, index, settings).await;
                address = found.as_ref().ok().copied();
                found.map(|_| ())
            }
        };
        match (thresholds.observe(answer.is_ok()), address) {
            (Some(Verdict::Healthy), Some((address_index, _))) => {
                slow_start = None;
                slots.set_healthy(index, address_index);
            }
            (Some(Verdict::Unhealthy), _) => {
                if let Err(Ailment { reason, .. }) = &answer {
                    tracing::warn!(instance = index, %reason, "a service instance is unhealthy");
                }
                slots.set_unhealthy(index);
            }
            _ => {}
        }
        if slow_start.is_some_and(|moment| Instant::now() >= moment) {
            slow_start = None;
            let reason = answer.err().unwrap_or_default().reason;
            tracing::warn!(
                instance = index,
                %reason,
                "a service instance has not become healthy yet: it must listen on the port in its PORT variable"
            );
        }
        let pause = if thresholds.is_new() { FIRST_SUCCESS_INTERVAL } else { settings.interval };
        tokio::select! {
            () = sleep(pause) => {}
            () = slots.slot(index).refused.notified() => thresholds.eject(),
        }
    }
}

/// Asks at each address at which the instance may be listening. What a listener answered explains a failure better than
/// that nobody listens elsewhere.
async fn search(
    slots: &Slots,
    index: usize,
    settings: &HealthSettings,
) -> Result<(usize, SocketAddr), Ailment> {
    let mut ailment: Option<Ailment> = None;
    for (address_index, address) in slots.candidates(index).enumerate() {
        match probe(address, settings).await {
            Ok(()) => return Ok((address_index, address)),
            Err(new) if ailment.as_ref().is_none_or(|old| new.listens && !old.listens) => ailment = Some(new),
            Err(_) => {}
        }
    }
    Err(ailment.unwrap_or_default())
}

/// Why an instance is not healthy.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ailment {
    reason: String,
    /// Whether something took the connection.
    listens: bool,
}

/// One HTTP/1.0 request. Healthy, or why not.
async fn probe(address: SocketAddr, settings: &HealthSettings) -> Result<(), Ailment> {
    let deadline = Instant::now() + settings.timeout;
    let late = |_| format!("no answer from {address} within {:?}", settings.timeout);
    let failed = |error| format!("{address}: {error}");
    let connected = timeout_at(deadline, TcpStream::connect(address)).await;
    let stream = connected.map_err(late).and_then(|connected| connected.map_err(failed));
    let stream = stream.map_err(|reason| Ailment { reason, listens: false })?;
    let asked = timeout_at(deadline, ask(stream, address, settings.path.as_deref().unwrap_or("/"))).await;
    let status = asked.map_err(late).and_then(|status| status.map_err(failed));
    let status = status.map_err(|reason| Ailment { reason, listens: true })?;
    let healthy = if settings.path.is_some() { (200..300).contains(&status) } else { status < 500 };
    let reason = || format!("{address} answered with status {status}");
    healthy.then_some(()).ok_or_else(|| Ailment { reason: reason(), listens: true })
}

async fn ask(mut stream: TcpStream, address: SocketAddr, path: &str) -> std::io::Result<u16> {
    let request = format!(
        "GET {path} HTTP/1.0\r\nHost: {address}\r\nUser-Agent: geode-health\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    // "HTTP/1.1 200": 12 bytes hold the status (RFC 9112, section 4).
    let mut head = [0; 12];
    stream.read_exact(&mut head).await?;
    let status = parse_status(&head).ok_or_else(|| std::io::Error::other("not an HTTP answer"))?;
    // The answer is known; a service that keeps the connection open all the same is no less healthy for it.
    let _ = timeout(LAST_WORDS, read_to_end(&mut stream)).await;
    Ok(status)
}

/// Reads what is left, so that the service sees an ordinary client and not a broken connection.
async fn read_to_end(stream: &mut TcpStream) {
    let mut chunk = [0; 1024];
    let mut read = 0;
    while read < MOST_READ {
        match stream.read(&mut chunk).await {
            Ok(0) | Err(_) => break,
            Ok(length) => read += length,
        }
    }
}

fn parse_status(head: &[u8; 12]) -> Option<u16> {
    let digits = head.strip_prefix(b"HTTP/1.")?.get(1..)?.strip_prefix(b" ")?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Counts consecutive answers, as gdnsd and HAProxy do.
struct Thresholds {
    state: State,
    /// Consecutive answers that speak against the present state.
    against: u32,
    up: u32,
    down: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    New,
    Healthy,
    Unhealthy,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Healthy,
    Unhealthy,
}

impl Thresholds {
    fn new(up: u32, down: u32) -> Self {
        Self { state: State::New, against: 0, up, down }
    }

    fn is_new(&self) -> bool {
        self.state == State::New
    }

    /// Takes one answer; a verdict if the state changes.
    fn observe(&mut self, healthy: bool) -> Option<Verdict> {
        let (needed, next, verdict) = match (self.state, healthy) {
            (State::New, true) => (1, State::Healthy, Verdict::Healthy),
            (State::Unhealthy, true) => (self.up, State::Healthy, Verdict::Healthy),
            (State::Healthy, false) => (self.down, State::Unhealthy, Verdict::Unhealthy),
            (State::New | State::Unhealthy, false) | (State::Healthy, true) => {
                self.against = 0;
                return None;
            }
        };
        self.against += 1;
        if self.against < needed {
            return None;
        }
        self.against = 0;
        self.state = next;
        Some(verdict)
    }

    /// A request found the instance gone.
    fn eject(&mut self) {
        if self.state == State::Healthy {
            self.state = State::Unhealthy;
            self.against = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdicts(thresholds: &mut Thresholds, answers: &str) -> String {
        let letter = |verdict| match verdict {
            None => '.',
            Some(Verdict::Healthy) => 'H',
            Some(Verdict::Unhealthy) => 'U',
        };
        answers.chars().map(|answer| letter(thresholds.observe(answer == '+'))).collect()
    }

    #[test]
    fn a_new_instance_is_healthy_at_its_first_success_and_never_unhealthy_before() {
        assert_eq!(verdicts(&mut Thresholds::new(2, 3), "-----+"), ".....H");
    }

    #[test]
    fn only_consecutive_answers_change_the_state() {
        let mut thresholds = Thresholds::new(2, 3);
        assert_eq!(verdicts(&mut thresholds, "+--+--+---"), "H........U");
        assert_eq!(verdicts(&mut thresholds, "+-+-++-"), ".....H.");
    }

    #[test]
    fn an_ejected_instance_needs_as_many_successes_as_any_unhealthy_one() {
        let mut thresholds = Thresholds::new(2, 3);
        thresholds.observe(true);
        thresholds.eject();
        assert_eq!(verdicts(&mut thresholds, "++"), ".H");
    }

    #[test]
    fn only_http_1_answers_have_a_status() {
        assert_eq!(parse_status(b"HTTP/1.1 204"), Some(204));
        assert_eq!(parse_status(b"HTTP/1.0 503"), Some(503));
        assert_eq!(parse_status(b"HTTP/2.0 200"), None);
        assert_eq!(parse_status(b"HTTP/1.1  20"), None);
        assert_eq!(parse_status(b"SSH-2.0-Open"), None);
    }

    async fn probe_answered_with(answer: &'static [u8], path: Option<&str>) -> Result<(), Ailment> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let settings = HealthSettings { path: path.map(str::to_owned), ..HealthSettings::default() };
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 256];
            let length = stream.read(&mut request).await.unwrap();
            let line = format!("GET {} HTTP/1.0\r\n", path.unwrap_or("/"));
            assert!(request[..length].starts_with(line.as_bytes()));
            stream.write_all(answer).await.unwrap();
        };
        tokio::join!(probe(address, &settings), server).0
    }

    #[tokio::test]
    async fn without_a_path_of_the_users_any_answer_below_500_is_healthy() {
        assert_eq!(probe_answered_with(b"HTTP/1.1 404 Not Found\r\n\r\n", None).await, Ok(()));
        let refused = probe_answered_with(b"HTTP/1.1 500 Oh\r\n\r\n", None).await.unwrap_err();
        assert!(refused.reason.contains("status 500"), "{}", refused.reason);
    }

    #[tokio::test]
    async fn a_service_that_never_closes_is_judged_by_its_answer() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            stream
        };
        let settings = HealthSettings::default();
        let (healthy, _never_closed) = tokio::join!(probe(address, &settings), server);
        assert_eq!(healthy, Ok(()));
    }

    #[tokio::test]
    async fn with_a_path_of_the_users_only_2xx_is_healthy() {
        assert_eq!(probe_answered_with(b"HTTP/1.1 204 None\r\n\r\n", Some("/up")).await, Ok(()));
        assert!(probe_answered_with(b"HTTP/1.1 404 Not Found\r\n\r\n", Some("/up")).await.is_err());
        assert!(probe_answered_with(b"HTTP/1.1 302 Found\r\n\r\n", Some("/up")).await.is_err());
    }

    #[tokio::test]
    async fn what_is_not_http_is_unhealthy() {
        assert!(probe_answered_with(b"-ERR unknown command\r\n", None).await.is_err());
        assert!(probe_answered_with(b"HTTP", None).await.is_err());
    }
}

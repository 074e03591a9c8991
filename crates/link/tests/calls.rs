//! Two geodes that call each other over loopback.

#![allow(clippy::unwrap_used)] // a test that unwraps fails, which is what it is for

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use geode_link::{Authority, Bundle, Credentials, Dialer, Identity, LinkError, Listener, Purpose, utc_day};
use geode_planet::{HostPort, RegionName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn region(name: &str) -> RegionName {
    name.parse().unwrap()
}

fn identity(name: &str) -> Identity {
    Identity { planet: "acme".to_owned(), region: region(name) }
}

fn credentials(name: &str, bundle: &Bundle) -> Arc<Credentials> {
    Arc::new(Credentials::new(identity(name), bundle).unwrap())
}

fn issued(authority: &Authority, name: &str) -> Arc<Credentials> {
    credentials(name, &authority.issue(&region(name)).unwrap())
}

fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

async fn listener(credentials: Arc<Credentials>) -> (Listener, SocketAddr) {
    let peers = vec![region("eu-west-1"), region("ap-southeast-2")];
    let listener = Listener::bind(loopback(), credentials, peers).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn us_east(authority: &Authority) -> (Listener, SocketAddr) {
    listener(issued(authority, "us-east-1")).await
}

fn dialer(caller: Arc<Credentials>, to: &str, address: SocketAddr) -> Dialer {
    let local = Some(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 12)));
    let peer = HostPort { host: address.ip().to_string(), port: address.port() };
    Dialer::new(caller, local, BTreeMap::from([(region(to), peer)]))
}

/// What is logged on this thread while it lives.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn listen(&self) -> tracing::subscriber::DefaultGuard {
        let log = self.clone();
        let writer = move || log.clone();
        let subscriber =
            tracing_subscriber::fmt().with_writer(writer).with_ansi(false).without_time().finish();
        tracing::subscriber::set_default(subscriber)
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_call_carries_its_purpose_and_then_any_bytes() {
    let authority = Authority::new("acme").unwrap();
    let (mut listener, address) = us_east(&authority).await;
    let dialer = dialer(issued(&authority, "eu-west-1"), "us-east-1", address);
    for purpose in Purpose::ALL {
        let caller = async {
            let mut stream = dialer.dial(&region("us-east-1"), purpose).await.unwrap();
            stream.write_all(b"ping").await.unwrap();
            stream.flush().await.unwrap();
            let mut reply = [0; 4];
            stream.read_exact(&mut reply).await.unwrap();
            assert_eq!(&reply, b"pong");
        };
        let acceptor = async {
            let mut call = listener.accept().await;
            assert_eq!((call.from, call.purpose, call.version), (region("eu-west-1"), purpose, 1));
            assert_eq!(call.stream.peer_addr().unwrap().ip(), IpAddr::V4(Ipv4Addr::new(127, 0, 0, 12)));
            let mut heard = [0; 4];
            call.stream.read_exact(&mut heard).await.unwrap();
            assert_eq!(&heard, b"ping");
            call.stream.write_all(b"pong").await.unwrap();
            call.stream.flush().await.unwrap();
        };
        tokio::join!(caller, acceptor);
    }
}

#[tokio::test]
async fn a_refusal_reaches_the_caller_in_words() {
    let authority = Authority::new("acme").unwrap();
    let (mut listener, address) = us_east(&authority).await;
    tokio::spawn(async move { listener.accept().await });
    let cases = [("us-east-1", "two geodes run as one region"), ("sa-east-1", "no region of this planet")];
    for (caller, words) in cases {
        let dialer = dialer(issued(&authority, caller), "us-east-1", address);
        let error = dialer.dial(&region("us-east-1"), Purpose::Hop).await.unwrap_err();
        assert!(matches!(error, LinkError::Refused { .. }), "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
}

/// Lets `caller` call `to` at the address of `acceptor`, which refuses; what each of the two says.
async fn quarrel(caller: Arc<Credentials>, to: &str, acceptor: Arc<Credentials>) -> (String, String) {
    let log = Log::default();
    let _listening = log.listen();
    let (mut listener, address) = listener(acceptor).await;
    let dialer = dialer(caller, to, address);
    let to = region(to);
    let dialling = dialer.dial(&to, Purpose::Gossip);
    let error = tokio::select! {
        call = listener.accept() => panic!("{call:?} was accepted"),
        dialled = dialling => dialled.unwrap_err(),
    };
    // The caller may know before the acceptor does.
    while !log.text().contains("refused a call") {
        tokio::select! {
            biased;
            call = listener.accept() => panic!("{call:?} was accepted"),
            () = tokio::task::yield_now() => {}
        }
    }
    let said = error.to_string().replace(&address.to_string(), "ADDRESS");
    let logged = log.text();
    let logged = logged.lines().find_map(|line| line.split_once("refused a call from ")).unwrap().1;
    let logged = logged.split_once(": ").unwrap().1.to_owned();
    (said, logged)
}

#[tokio::test]
async fn whoever_is_not_believed_is_refused_in_one_line_on_both_sides() {
    let authority = Authority::new("acme").unwrap();
    let another = Authority::new("acme").unwrap();
    let good = |name: &str| issued(&authority, name);
    let valid = |name: &str, from: SystemTime, to: SystemTime| {
        credentials(name, &authority.issue_for(&region(name), from, to).unwrap())
    };
    let now = SystemTime::now();
    let (ended, begins) = (now - DAY, now + 3 * DAY);
    let one_authority = "all bundles of a planet come from one `geode init` and its ca.key";

    let (caller, acceptor) = quarrel(issued(&another, "eu-west-1"), "us-east-1", good("us-east-1")).await;
    assert_eq!(
        caller,
        format!(
            "us-east-1 at ADDRESS shows a certificate that is not of this planet's authority: {one_authority}"
        )
    );
    assert_eq!(
        acceptor,
        format!("the caller does not know the authority of this geode's certificate: {one_authority}")
    );

    // One that believes this planet's authority beside its own.
    let two = another.issue(&region("eu-west-1")).unwrap().text() + &authority.certificate_pem();
    let two = credentials("eu-west-1", &Bundle::read(&two).unwrap());
    let (caller, acceptor) = quarrel(two, "us-east-1", good("us-east-1")).await;
    assert_eq!(
        caller,
        format!(
            "us-east-1 at ADDRESS does not know the authority of this geode's certificate: {one_authority}"
        )
    );
    assert_eq!(
        acceptor,
        format!("the caller shows a certificate that is not of this planet's authority: {one_authority}")
    );

    let ended_text = format!(
        "shows a certificate that ended on {}: renew its bundle with `geode init --renew`; if it is still valid, this \
         machine's clock is ahead",
        utc_day(ended)
    );
    let told_text = "says that this geode's certificate has ended or not begun: renew its bundle with `geode init \
                     --renew`, or set the clocks of both machines (NTP)";
    let expired = |name: &str| valid(name, now - 9 * DAY, ended);
    let (caller, acceptor) = quarrel(expired("eu-west-1"), "us-east-1", good("us-east-1")).await;
    assert_eq!(caller, format!("us-east-1 at ADDRESS {told_text}"));
    assert_eq!(acceptor, format!("the caller {ended_text}"));
    let (caller, acceptor) = quarrel(good("eu-west-1"), "us-east-1", expired("us-east-1")).await;
    assert_eq!(caller, format!("us-east-1 at ADDRESS {ended_text}"));
    assert_eq!(acceptor, format!("the caller {told_text}"));

    let early = valid("eu-west-1", begins, begins + DAY);
    let (caller, acceptor) = quarrel(early, "us-east-1", good("us-east-1")).await;
    assert_eq!(caller, format!("us-east-1 at ADDRESS {told_text}"));
    assert_eq!(
        acceptor,
        format!(
            "the caller shows a certificate that begins on {}: set the clocks of both machines (NTP)",
            utc_day(begins)
        )
    );

    let (caller, acceptor) = quarrel(good("eu-west-1"), "sa-east-1", good("us-east-1")).await;
    assert_eq!(
        caller,
        "sa-east-1 at ADDRESS shows the certificate of us-east-1.acme.geode: check `link` in planet.toml"
    );
    assert_eq!(acceptor, "the caller looked for another region here: check `link` in its planet.toml");
}

#[tokio::test]
async fn renewed_credentials_are_shown_on_new_connections_and_old_ones_stay() {
    let authority = Authority::new("acme").unwrap();
    let (mut listener, address) = us_east(&authority).await;
    let now = SystemTime::now();
    let eu = region("eu-west-1");
    let short = credentials("eu-west-1", &authority.issue_for(&eu, now - 2 * DAY, now - DAY).unwrap());
    let dialer = dialer(Arc::clone(&short), "us-east-1", address);
    tokio::spawn(async move {
        loop {
            let mut call = listener.accept().await;
            tokio::spawn(async move {
                let mut byte = [0];
                while call.stream.read_exact(&mut byte).await.is_ok() {
                    call.stream.write_all(&byte).await.unwrap();
                    call.stream.flush().await.unwrap();
                }
            });
        }
    });
    let us = region("us-east-1");
    assert!(matches!(dialer.dial(&us, Purpose::Gossip).await, Err(LinkError::Distrust { .. })));
    let renewed = authority.issue(&eu).unwrap();
    short.renew(&renewed).unwrap();
    assert_eq!(short.valid_until(), renewed.valid_until());
    let mut stream = dialer.dial(&us, Purpose::Gossip).await.unwrap();
    let foreign = Authority::new("acme").unwrap().issue(&us).unwrap();
    assert!(short.renew(&foreign).unwrap_err().to_string().contains("the bundle of us-east-1.acme.geode"));
    short.renew(&authority.issue(&eu).unwrap()).unwrap();
    stream.write_all(b"x").await.unwrap();
    stream.flush().await.unwrap();
    let mut echo = [0];
    stream.read_exact(&mut echo).await.unwrap();
    dialer.dial(&us, Purpose::Gossip).await.unwrap();
}

#[tokio::test]
async fn garbage_is_answered_and_does_not_hinder_others() {
    let authority = Authority::new("acme").unwrap();
    let (mut listener, address) = us_east(&authority).await;
    let accepted = tokio::spawn(async move { listener.accept().await.from });
    // Callers who fall silent, before or in the handshake, stay half open; a web browser is sent away in words.
    let _silent = tokio::net::TcpStream::connect(address).await.unwrap();
    let mut begun = tokio::net::TcpStream::connect(address).await.unwrap();
    begun.write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap();
    let mut browser = tokio::net::TcpStream::connect(address).await.unwrap();
    browser.write_all(b"GET / HTTP/1.1\r\nHost: us-east-1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    browser.read_to_end(&mut answer).await.unwrap();
    assert!(String::from_utf8_lossy(&answer).contains("does not speak geode's link protocol"));
    let dialer = dialer(issued(&authority, "eu-west-1"), "us-east-1", address);
    dialer.dial(&region("us-east-1"), Purpose::Gossip).await.unwrap();
    assert_eq!(accepted.await.unwrap(), region("eu-west-1"));
}

#[tokio::test]
async fn what_is_not_a_geode_is_named_as_such() {
    let authority = Authority::new("acme").unwrap();
    let web = tokio::net::TcpListener::bind(loopback()).await.unwrap();
    let address = web.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = web.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    });
    let dialer = dialer(issued(&authority, "eu-west-1"), "us-east-1", address);
    let error = dialer.dial(&region("us-east-1"), Purpose::Hop).await.unwrap_err();
    assert!(matches!(error, LinkError::NotGeode { .. }), "{error}");
    let error = dialer.dial(&region("ap-southeast-2"), Purpose::Hop).await.unwrap_err();
    assert_eq!(error.to_string(), "ap-southeast-2 is no peer of this geode");
}

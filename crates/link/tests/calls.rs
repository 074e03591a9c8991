//! Two geodes that call each other over loopback.

#![allow(clippy::unwrap_used)] // a test that unwraps fails, which is what it is for

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use geode_link::{Dialer, Identity, LinkError, Listener, Purpose};
use geode_planet::{HostPort, RegionName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn region(name: &str) -> RegionName {
    name.parse().unwrap()
}

fn identity(planet: &str, name: &str) -> Identity {
    Identity { planet: planet.to_owned(), region: region(name) }
}

fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

async fn us_east() -> (Listener, SocketAddr) {
    let peers = vec![region("eu-west-1"), region("ap-southeast-2")];
    let listener = Listener::bind(loopback(), identity("acme", "us-east-1"), peers).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn dialer(caller: Identity, to: &str, address: SocketAddr) -> Dialer {
    let local = Some(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 12)));
    let peer = HostPort { host: address.ip().to_string(), port: address.port() };
    Dialer::new(caller, local, BTreeMap::from([(region(to), peer)]))
}

#[tokio::test]
async fn a_call_carries_its_purpose_and_then_any_bytes() {
    let (mut listener, address) = us_east().await;
    let dialer = dialer(identity("acme", "eu-west-1"), "us-east-1", address);
    for purpose in Purpose::ALL {
        let caller = async {
            let mut stream = dialer.dial(&region("us-east-1"), purpose).await.unwrap();
            stream.write_all(b"ping").await.unwrap();
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
        };
        tokio::join!(caller, acceptor);
    }
}

#[tokio::test]
async fn a_refusal_reaches_the_caller_in_words() {
    let (mut listener, address) = us_east().await;
    tokio::spawn(async move { listener.accept().await });
    let cases = [
        (identity("other", "eu-west-1"), "us-east-1", "belongs to planet \"other\""),
        (identity("acme", "eu-west-1"), "sa-east-1", "wants region sa-east-1, but this is us-east-1"),
        (identity("acme", "us-east-1"), "us-east-1", "two geodes run as one region"),
        (identity("acme", "sa-east-1"), "us-east-1", "no region of this planet"),
    ];
    for (caller, to, words) in cases {
        let error = dialer(caller, to, address).dial(&region(to), Purpose::Hop).await.unwrap_err();
        assert!(matches!(error, LinkError::Refused { .. }), "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[tokio::test]
async fn garbage_is_answered_and_does_not_hinder_others() {
    let (mut listener, address) = us_east().await;
    let accepted = tokio::spawn(async move { listener.accept().await.from });
    // A silent caller stays half open; a web browser is sent away in words.
    let _silent = tokio::net::TcpStream::connect(address).await.unwrap();
    let mut browser = tokio::net::TcpStream::connect(address).await.unwrap();
    browser.write_all(b"GET / HTTP/1.1\r\nHost: us-east-1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    browser.read_to_end(&mut answer).await.unwrap();
    assert!(String::from_utf8_lossy(&answer).contains("does not speak geode's link protocol"));
    let dialer = dialer(identity("acme", "eu-west-1"), "us-east-1", address);
    dialer.dial(&region("us-east-1"), Purpose::Gossip).await.unwrap();
    assert_eq!(accepted.await.unwrap(), region("eu-west-1"));
}

#[tokio::test]
async fn what_is_not_a_geode_is_named_as_such() {
    let web = tokio::net::TcpListener::bind(loopback()).await.unwrap();
    let address = web.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = web.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    });
    let dialer = dialer(identity("acme", "eu-west-1"), "us-east-1", address);
    let error = dialer.dial(&region("us-east-1"), Purpose::Hop).await.unwrap_err();
    assert!(matches!(error, LinkError::NotGeode { .. }), "{error}");
    let error = dialer.dial(&region("ap-southeast-2"), Purpose::Hop).await.unwrap_err();
    assert_eq!(error.to_string(), "ap-southeast-2 is no peer of this geode");
}

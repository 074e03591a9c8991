//! The internet address before stand-in doors, over loopback sockets.

use std::path::PathBuf;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::super::plan::Addresses;
use super::*;

/// What a stand-in door does with a request for the service.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Conduct {
    /// Answers with its name and the request's head.
    Answers,
    /// Reads the request and breaks off, as a killed process does.
    Dies,
    /// Switches to a protocol that sends everything back.
    Switches,
}

/// A door that is well on `/readyz` and does the given thing with everything else.
async fn stand_in(name: &'static str, conduct: Conduct) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(attend(stream, name, conduct));
        }
    });
    address
}

async fn attend(mut stream: TcpStream, name: &str, conduct: Conduct) -> io::Result<()> {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        if conduct == Conduct::Dies && !head.starts_with("GET /readyz") {
            return Ok(());
        }
        if conduct == Conduct::Switches && !head.starts_with("GET /readyz") {
            assert!(head.to_lowercase().contains("upgrade: echo"), "{head}");
            let switch = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
            stream.write_all(switch).await?;
            let (mut from, mut to) = stream.split();
            tokio::io::copy(&mut from, &mut to).await?;
            return Ok(());
        }
        let length = name.len() + head.len() + 1;
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{name}\n{head}");
        stream.write_all(answer.as_bytes()).await?;
    }
}

/// An address where nobody listens.
async fn nobody() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

/// The internet before doors in these places.
async fn internet(doors: &[(&str, SocketAddr)], wan: bool) -> SocketAddr {
    let names: Vec<String> = doors.iter().map(|(name, _)| (*name).to_owned()).collect();
    let plan = Plan::new(&names, 7100, None, PathBuf::from("/x"), Addresses::PerRegion).unwrap();
    let planet = Planet::parse(&plan.planet_toml(), "planet.toml").unwrap();
    let door = |(region, (_, address)): (&super::super::plan::PlannedRegion, &(&str, SocketAddr))| Door {
        name: region.name.clone(),
        place: region.place.clone(),
        capacity: 1.0,
        address: *address,
        admin: *address,
        health: Mutex::new(Health::new(THRESHOLDS, 0)),
        born: Instant::now(),
    };
    let doors: Arc<[Door]> = plan.regions.iter().zip(doors).map(door).collect();
    for door in doors.iter() {
        // As it is when the planet is ready; what is wrong is found out from there.
        door.observe(true, 1);
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(Arc::new(Internet::around(doors, planet, wan)).serve(listener));
    address
}

/// Sends a request without a body; the status line and headers in lower case, and the body.
async fn send(address: SocketAddr, method: &str, headers: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{method} /menu HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_lowercase(), body.to_owned())
}

#[tokio::test]
async fn a_client_comes_to_the_closest_region_and_its_place_stays_outside() {
    let doors = [
        ("us-east-1", stand_in("us", Conduct::Answers).await),
        ("eu-west-1", stand_in("eu", Conduct::Answers).await),
        ("ap-southeast-2", stand_in("ap", Conduct::Answers).await),
    ];
    let internet = internet(&doors, false).await;
    for (from, served_by) in [
        ("Geode-From: Sydney\r\n", "ap"),
        ("Geode-From: 198.51.100.7\r\n", "eu"),
        ("Geode-From: 2001:db8:46::9\r\n", "ap"),
        ("Geode-From: eu-west-1\r\n", "eu"),
        ("", "us"),
    ] {
        let (head, body) = send(internet, "GET", &format!("{from}Geode-Session: s\r\nCookie: c\r\n")).await;
        assert!(head.starts_with("http/1.1 200"), "{head}");
        assert!(!head.contains("geode-client-place"), "only when asked");
        let (name, seen) = body.split_once('\n').unwrap();
        assert_eq!(name, served_by, "{from}");
        let seen = seen.to_lowercase();
        assert!(seen.starts_with("get /menu http/1.1") && seen.contains("geode-session: s"), "{seen}");
        assert!(!seen.contains("geode-from"), "{seen}");
    }
    let (head, _) = send(internet, "GET", "Geode-From: sydney\r\nGeode-Explain: 1\r\n").await;
    assert!(head.contains("geode-client-place: sydney; 2.0 ms from ap-southeast-2, closest"), "{head}");
}

#[tokio::test]
async fn a_door_that_does_not_answer_is_passed_over_and_nothing_unsafe_is_sent_twice() {
    let doors = [
        ("us-east-1", stand_in("us", Conduct::Answers).await),
        ("eu-west-1", stand_in("eu", Conduct::Dies).await),
        ("ap-southeast-2", nobody().await),
    ];
    let internet = internet(&doors, false).await;
    let (_, refused) = send(internet, "POST", "Geode-From: sydney\r\nContent-Length: 0\r\n").await;
    assert!(refused.starts_with("us\n"), "a refused connection proves that nothing was sent: {refused}");
    let (_, repeated) = send(internet, "GET", "Geode-From: london\r\n").await;
    assert!(repeated.starts_with("us\n"), "{repeated}");
    let (head, body) = send(internet, "POST", "Geode-From: london\r\nContent-Length: 0\r\n").await;
    assert!(head.starts_with("http/1.1 502"), "{head}");
    assert!(body.contains("may or may not have processed the request"), "{body}");
}

#[tokio::test]
async fn the_way_to_the_region_and_back_takes_its_time() {
    let internet = internet(&[("eu-west-1", stand_in("eu", Conduct::Answers).await)], true).await;
    let start = Instant::now();
    send(internet, "GET", "Geode-From: tokyo\r\n").await;
    let tokyo = Place::find("tokyo").unwrap().coordinates;
    let dublin = Place::find("eu-west-1").unwrap().coordinates;
    let round_trip = Duration::from_secs_f64(2.0 * one_way_ms(tokyo, dublin) / 1000.0);
    assert!(round_trip > Duration::from_millis(100));
    assert!(start.elapsed() >= round_trip);
}

#[tokio::test]
async fn a_client_that_is_nowhere_is_told_so() {
    let internet = internet(&[("eu-west-1", stand_in("eu", Conduct::Answers).await)], false).await;
    let (head, body) = send(internet, "GET", "Geode-From: sidney\r\n").await;
    assert!(head.starts_with("http/1.1 400"), "{head}");
    assert_eq!(body, "Geode-From: \"sidney\" is not a known place; did you mean \"sydney\"?\n");
    let (_, body) = send(internet, "GET", "Geode-From: 10.1.2.3\r\n").await;
    assert_eq!(
        body,
        "Geode-From: no network of [steering.prefixes] in planet.toml holds 10.1.2.3; use a city, or an address such \
         as 192.0.2.7\n"
    );
    let (head, _) = send(internet, "GET", "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n").await;
    assert!(head.starts_with("http/1.1 400"), "a smuggling shape: {head}");
}

#[tokio::test]
async fn a_client_of_http_1_0_need_not_name_a_host() {
    let internet = internet(&[("eu-west-1", stand_in("eu", Conduct::Answers).await)], false).await;
    let mut stream = TcpStream::connect(internet).await.unwrap();
    stream.write_all(b"GET /menu HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.0 200") && answer.contains("\r\nhost: localhost\r\n"), "{answer}");
}

#[tokio::test]
async fn a_connection_that_switches_protocols_passes_bytes_both_ways() {
    let internet = internet(&[("eu-west-1", stand_in("eu", Conduct::Switches).await)], false).await;
    let mut stream = TcpStream::connect(internet).await.unwrap();
    stream
        .write_all(b"GET /chat HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
        .await
        .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    for word in [b"hello", b"again"] {
        stream.write_all(word).await.unwrap();
        let mut echo = [0; 5];
        stream.read_exact(&mut echo).await.unwrap();
        assert_eq!(&echo, word);
    }
}

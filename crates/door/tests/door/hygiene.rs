//! Which fields reach the service, and which the client.

use crate::raw::{Server, field, fields};
use crate::world::alone;

/// What the service sees of a request with these fields.
async fn seen(request_fields: &str) -> String {
    let service = Server::echo().await;
    let geode = alone(&[service.addr]).await;
    let reply = geode.ask(format!("GET / HTTP/1.1\r\nHost: a\r\n{request_fields}\r\n")).await;
    assert_eq!(reply.status, 200, "{request_fields}");
    reply.text()
}

#[tokio::test]
async fn fields_of_the_connection_and_of_geode_do_not_pass() {
    let seen = seen(
        "Connection: keep-alive, X-Secret, x-forwarded-for\r\nX-Secret: 1\r\nKeep-Alive: 5\r\n\
         Proxy-Connection: x\r\nGeode-Explain: 1\r\nGeode-Session: forged\r\nGEODE-ADMIN: yes\r\nX-Open: 1\r\n",
    )
    .await;
    let names: Vec<String> = seen
        .lines()
        .skip(1)
        .filter_map(|line| line.split_once(':'))
        .map(|(name, _)| name.to_lowercase())
        .collect();
    let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        ["host", "traceparent", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-open"]
    );
}

#[tokio::test]
async fn the_service_is_told_who_asks() {
    for (sent, forwarded_for) in [
        ("", "127.0.0.1"),
        ("X-Forwarded-For: 192.0.2.7\r\n", "192.0.2.7, 127.0.0.1"),
        ("X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-For: x, y\r\n", "192.0.2.7, x, y, 127.0.0.1"),
        ("X-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\n", "127.0.0.1"),
    ] {
        let seen = seen(sent).await;
        assert_eq!(fields(&seen, "x-forwarded-for"), [forwarded_for], "{sent}");
        assert_eq!(fields(&seen, "x-forwarded-proto"), ["http"], "{sent}");
        assert_eq!(fields(&seen, "x-forwarded-host"), ["a"], "{sent}");
        assert_eq!(fields(&seen, "via"), ["1.1 geode-us"], "{sent}");
    }
}

#[tokio::test]
async fn a_trace_goes_on_or_begins() {
    let given = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    assert_eq!(
        field(&seen(&format!("traceparent: {given}\r\ntracestate: a=b\r\n")).await, "traceparent"),
        Some(given)
    );
    let (one, two) = (seen("").await, seen("traceparent: nonsense\r\n").await);
    let (one, two) = (field(&one, "traceparent").unwrap(), field(&two, "traceparent").unwrap());
    assert_eq!((one.len(), two.len()), (55, 55));
    assert_ne!(one, two);
}

#[tokio::test]
async fn fields_of_an_answer_pass_but_for_those_of_the_connection_and_of_geode() {
    let service = Server::fixed(
        "HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Secret\r\nX-Secret: 1\r\nKeep-Alive: timeout=5\r\n\
         Geode-Region: mars\r\nGeode-Stale: 1\r\nGeode-Reason: because\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\
         Content-Length: 0\r\n\r\n",
    )
    .await;
    let geode = alone(&[service.addr]).await;
    let reply = geode.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(fields(&reply.head, "set-cookie"), ["a=1", "b=2"]);
    assert_eq!(fields(&reply.head, "geode-region"), ["us"]);
    for gone in ["x-secret", "keep-alive", "connection", "geode-stale", "geode-reason"] {
        assert_eq!(reply.field(gone), None, "{gone}");
    }
}

#[tokio::test]
async fn the_reason_is_told_when_asked_for() {
    let service = Server::echo().await;
    let geode = alone(&[service.addr]).await;
    for (explain, reason) in [("1", Some("us: number 1 for 127.0.0.1")), ("0", None)] {
        let reply = geode.ask(format!("GET / HTTP/1.1\r\nHost: a\r\nGeode-Explain: {explain}\r\n\r\n")).await;
        assert_eq!(reply.field("geode-reason"), reason, "{explain}");
    }
}

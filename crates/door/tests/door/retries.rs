//! What is sent again, what is not, and what the client is told.

use std::time::Duration;

use geode_door::BudgetSettings;

use crate::raw::{Nobody, Raw, Server, soon};
use crate::world::{alone, planet};

/// An instance that takes connections and closes each after that many bytes of the request's head and body.
async fn dying(after: &'static str) -> Server {
    Server::start(move |_, mut raw| async move {
        raw.until(after).await;
    })
    .await
}

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nlatte";
const POST_WITH_KEY: &str =
    "POST / HTTP/1.1\r\nHost: a\r\nIdempotency-Key: \"k1\"\r\nContent-Length: 5\r\n\r\nlatte";
const PUT: &str = "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nlatte";
const PUT_CHUNKED: &str =
    "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nlat\r\n2\r\nte\r\n0\r\n\r\n";

#[tokio::test]
async fn only_what_may_be_repeated_is_repeated_after_an_instance_died() {
    for (request, end, status, body_end) in [
        (GET, "\r\n\r\n", 200, "\r\n\r\n"),
        (PUT, "latte", 200, "\r\n\r\nlatte"),
        (PUT_CHUNKED, "0\r\n\r\n", 200, "\r\n\r\nlatte"),
        (POST_WITH_KEY, "latte", 200, "\r\n\r\nlatte"),
        (POST, "latte", 502, "\"}"),
        (POST, "\r\n\r\n", 502, "\"}"),
    ] {
        let (dying, healthy) = (dying(end).await, Server::echo().await);
        let geode = alone(&[dying.addr, healthy.addr]).await;
        let reply = geode.ask(request).await;
        assert_eq!(reply.status, status, "{request}");
        assert!(reply.text().ends_with(body_end), "{request}: {}", reply.text());
        assert_eq!(dying.connections(), 1, "{request}");
        let metrics = geode.door.metrics();
        assert_eq!(metrics.forward.retries.get(), u64::from(status == 200), "{request}");
        assert_eq!(metrics.failed.get(), u64::from(status == 502), "{request}");
        assert_eq!(healthy.connections(), usize::from(status == 200), "{request}");
    }
}

#[tokio::test]
async fn an_uncertain_failure_says_what_to_do() {
    let dying = dying("latte").await;
    let geode = alone(&[dying.addr]).await;
    let reply = geode.ask(POST).await;
    assert_eq!(reply.field("content-type"), Some("application/json"));
    assert_eq!(reply.field("geode-region"), Some("us"));
    assert_eq!(
        reply.text(),
        "{\"error\":\"the service failed before it answered, and may or may not have processed the request\",\
         \"what_to_do\":\"check whether it took effect before you repeat it; with an Idempotency-Key header it may be \
         repeated safely and is then retried elsewhere\"}"
    );
}

#[tokio::test]
async fn what_was_provably_not_sent_goes_elsewhere_whatever_the_method() {
    let healthy = Server::echo().await;
    for request in [GET, POST, PUT_CHUNKED] {
        let nobody = Nobody::anywhere();
        let geode = alone(&[nobody.addr, healthy.addr]).await;
        assert_eq!(geode.ask(request).await.status, 200, "{request}");
        let metrics = &geode.door.metrics().forward;
        assert_eq!((metrics.connect_failures.get(), metrics.retries.get()), (1, 0), "{request}");
    }
}

#[tokio::test]
async fn without_any_instance_the_answer_is_503_and_says_so() {
    let nobody = Nobody::anywhere();
    for addrs in [vec![], vec![nobody.addr]] {
        let geode = alone(&addrs).await;
        let reply = geode.ask(POST).await;
        assert_eq!((reply.status, reply.field("retry-after")), (503, Some("1")));
        assert_eq!(
            reply.text(),
            "{\"error\":\"no copy of the service could be reached\",\"what_to_do\":\"try again in a moment\"}"
        );
        assert_eq!(geode.door.metrics().unavailable.get(), 1);
    }
}

#[tokio::test]
async fn a_body_beyond_the_replay_limit_is_sent_once_only() {
    const LIMIT: usize = 64 * 1024;
    for (length, framing, status) in [
        (LIMIT, "Content-Length", 200),
        (LIMIT + 1, "Content-Length", 502),
        (LIMIT, "chunked", 200),
        (LIMIT + 1, "chunked", 502),
    ] {
        let dying = Server::start(move |_, mut raw| async move {
            let head = raw.head().await.unwrap();
            let overhead = if head.contains("chunked") { 4 } else { 0 };
            raw.bytes(length + overhead).await;
        })
        .await;
        let healthy = Server::echo().await;
        let geode = alone(&[dying.addr, healthy.addr]).await;
        let body = "x".repeat(length);
        let request = match framing {
            "chunked" => {
                let head = "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
                format!("{head}{length:x}\r\n{body}\r\n0\r\n\r\n")
            }
            _ => format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{body}"),
        };
        let reply = geode.ask(request).await;
        assert_eq!(reply.status, status, "{length} {framing}");
        if status == 200 {
            assert!(reply.text().ends_with(&body), "{length} {framing}");
        }
    }
}

/// Answers the first request of each connection and closes when the next begins, as a server does whose idle timeout
/// ends just then.
async fn closes_kept_connections() -> Server {
    Server::start(|_, mut raw| async move {
        raw.request().await;
        raw.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        raw.bytes(1).await;
    })
    .await
}

#[tokio::test]
async fn a_kept_connection_that_closes_costs_no_request_and_no_budget() {
    let service = closes_kept_connections().await;
    let none = BudgetSettings { percent_of_requests: 0, per_second: 0, burst: 0 };
    let geode = planet(&[("us", &[service.addr])], |settings| settings.forward.budget = none).await.remove(0);
    let mut client = geode.raw().await;
    for request in [GET, GET, POST, GET, POST, PUT, POST_WITH_KEY, POST, PUT_CHUNKED] {
        let reply = client.exchange(request).await;
        assert_eq!((reply.status, reply.text().as_str()), (200, "ok"), "{request}");
    }
    let metrics = geode.door.metrics();
    assert_eq!((metrics.answered_locally.get(), metrics.forward.retries.get()), (9, 0));
    assert_ne!(metrics.forward.stale_connections.get(), 0);
}

#[tokio::test]
async fn an_instance_that_dies_with_its_kept_connections_may_have_processed_the_request() {
    for (others, status) in [(0, 502), (1, 200)] {
        let (first, second) = (closes_kept_connections().await, Server::echo().await);
        let addrs = [first.addr, second.addr];
        let geode = alone(&addrs[..=others]).await;
        let mut client = geode.raw().await;
        assert_eq!(client.exchange(GET).await.text(), "ok");
        if others == 1 {
            assert!(client.exchange(GET).await.text().starts_with("GET "));
        }
        drop(first);
        let nobody = soon("the server's end", async {
            loop {
                match Nobody::at(addrs[0]) {
                    Ok(nobody) => return nobody,
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        })
        .await;
        assert_eq!(client.exchange(PUT).await.status, status);
        drop(nobody);
    }
}

#[tokio::test]
async fn retries_end_with_the_budget() {
    let dying = dying("\r\n\r\n").await;
    let four = BudgetSettings { percent_of_requests: 0, per_second: 0, burst: 4 };
    let geode = planet(&[("us", &[dying.addr])], |settings| settings.forward.budget = four).await.remove(0);
    for _ in 0..10 {
        assert_eq!(geode.ask(GET).await.status, 502);
    }
    let metrics = &geode.door.metrics().forward;
    assert_eq!(metrics.retries.get(), 4);
    assert_eq!(dying.connections(), 10 + 4);
    assert_ne!(metrics.retries_denied.get(), 0);
}

#[tokio::test]
async fn nothing_is_repeated_after_the_first_byte_of_an_answer() {
    for (answer, whole) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", "half"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", "half"),
    ] {
        let dying = Server::start(move |_, mut raw| async move {
            raw.request().await;
            raw.send(answer).await;
        })
        .await;
        let healthy = Server::echo().await;
        let geode = alone(&[dying.addr, healthy.addr]).await;
        let reply = geode.ask(GET).await;
        assert_eq!((reply.status, reply.whole, healthy.connections()), (200, false, 0), "{answer}");
        assert!(whole.starts_with(&reply.text()), "{answer}");
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_before_its_body_is_fetched_elsewhere() {
    let dying = Server::start(move |_, mut raw| async move {
        raw.request().await;
        raw.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n").await;
    })
    .await;
    let healthy = Server::echo().await;
    let geode = alone(&[dying.addr, healthy.addr]).await;
    // All tasks share one thread here, so the end has arrived when the door reads the head.
    let reply = geode.ask(GET).await;
    assert_eq!((reply.status, reply.whole), (200, true));
    assert!(reply.text().starts_with("GET / "), "{reply:?}");
    assert_eq!(geode.ask(POST).await.status, 502);
}

#[tokio::test]
async fn a_broken_answer_is_no_whole_one_for_http_1_0_either() {
    let dying = Server::start(|_, mut raw| async move {
        raw.request().await;
        raw.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n").await;
    })
    .await;
    let geode = alone(&[dying.addr]).await;
    let mut client = geode.raw().await;
    client.send("GET / HTTP/1.0\r\n\r\n").await;
    let mut all = Vec::new();
    let end = tokio::io::AsyncReadExt::read_to_end(&mut client.stream, &mut all).await;
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_service_that_answers_nonsense_is_a_bad_gateway() {
    for nonsense in ["hello\r\n\r\n", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"] {
        let service = Server::fixed(nonsense).await;
        let geode = alone(&[service.addr]).await;
        assert_eq!(geode.ask(POST).await.status, 502, "{nonsense}");
    }
}

#[tokio::test]
async fn a_service_that_does_not_answer_in_time_is_given_up_and_not_asked_again() {
    let (stuck, healthy) = (
        Server::start(|_, mut raw| async move {
            raw.rest().await;
        })
        .await,
        Server::echo().await,
    );
    let geode = planet(&[("us", &[stuck.addr, healthy.addr])], |settings| {
        settings.forward.answer_timeout = Duration::from_millis(50);
    })
    .await
    .remove(0);
    assert_eq!(geode.ask(GET).await.status, 504);
    assert_eq!((geode.door.metrics().timed_out.get(), healthy.connections()), (1, 0));
}

#[tokio::test]
async fn a_client_that_breaks_its_body_off_is_not_answered_by_another_instance() {
    let (first, second) = (dying("never").await, dying("never").await);
    let geode = alone(&[first.addr, second.addr]).await;
    let mut client: Raw = geode.raw().await;
    client
        .send("PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nnonsense\r\n")
        .await;
    let reply = client.reply().await;
    assert_eq!(reply.status, 400);
    assert!(reply.text().contains("the request's body ended early or is malformed"));
    assert_eq!(client.rest().await, b"");
    assert_eq!(first.connections() + second.connections(), 1);
}

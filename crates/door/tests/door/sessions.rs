//! Session tokens: when they are given, what they do, and that nobody can make one.

use std::time::Duration;

use geode_door::SessionKey;

use crate::raw::{Reply, Server, fields};
use crate::world::{Geode, KEY, alone, planet, region};

fn token(vector: u8) -> String {
    SessionKey::new(KEY).seal(&[vector]).unwrap().to_str().unwrap().to_owned()
}

/// The vector that an answer leaves the client with, by field and by cookie alike.
fn given(reply: &Reply) -> Option<u8> {
    let in_field = reply.field("geode-session").map(str::to_owned);
    let cookies = fields(&reply.head, "set-cookie");
    let in_cookie = cookies.iter().find_map(|cookie| {
        let token = cookie.strip_prefix("Geode-Session=")?.strip_suffix("; Path=/; HttpOnly; SameSite=Lax");
        Some(token.unwrap_or_else(|| panic!("{cookie}")).to_owned())
    });
    assert_eq!(in_field, in_cookie);
    in_field.map(|token| SessionKey::new(KEY).open(token.as_bytes()).unwrap()[0])
}

async fn with_token(geode: &Geode, method: &str, vector: u8) -> Reply {
    geode
        .ask(format!(
            "{method} / HTTP/1.1\r\nHost: a\r\nGeode-Explain: 1\r\nGeode-Session: {}\r\nContent-Length: 0\r\n\r\n",
            token(vector)
        ))
        .await
}

fn impatient(settings: &mut geode_door::DoorSettings) {
    settings.session_wait = Duration::from_millis(20);
}

#[tokio::test]
async fn a_token_is_given_after_a_write_only_and_never_with_a_public_answer() {
    for (method, answer_fields, vector) in [
        ("GET", "", None),
        ("HEAD", "", None),
        ("OPTIONS", "", None),
        ("POST", "", Some(5)),
        ("PUT", "", Some(5)),
        ("DELETE", "", Some(5)),
        ("PATCH", "Cache-Control: private, max-age=60\r\n", Some(5)),
        ("POST", "Cache-Control: max-age=60, Public\r\n", None),
    ] {
        let answer: &'static str =
            format!("HTTP/1.1 200 OK\r\n{answer_fields}Content-Length: 0\r\n\r\n").leak();
        let service = Server::fixed(answer).await;
        let geode = alone(&[service.addr]).await;
        geode.sessions.reach(5);
        let reply = geode.ask(format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")).await;
        assert_eq!(given(&reply), vector, "{method} {answer_fields}");
        assert_eq!(reply.field("geode-stale"), None);
    }
}

#[tokio::test]
async fn the_cookie_works_like_the_field_and_does_not_reach_the_service() {
    let service = Server::echo().await;
    let geode = planet(&[("us", &[service.addr])], impatient).await.remove(0);
    let cookie =
        |token: &str| format!("GET / HTTP/1.1\r\nHost: a\r\nCookie: a=1; Geode-Session={token}; b=2\r\n\r\n");
    let reply = geode.ask(cookie(&token(3))).await;
    assert_eq!(reply.field("geode-stale"), Some("1"));
    assert_eq!(fields(&reply.text(), "cookie"), ["a=1; b=2"]);
    geode.sessions.reach(3);
    assert_eq!(geode.ask(cookie(&token(3))).await.field("geode-stale"), None);
    let forged = SessionKey::new(b"another planet").seal(&[99]).unwrap().to_str().unwrap().to_owned();
    for nonsense in [forged.as_str(), "", "AAAA", &"A".repeat(1100)] {
        let reply = geode.ask(cookie(nonsense)).await;
        assert_eq!(
            (reply.status, reply.field("geode-stale"), given(&reply)),
            (200, None, None),
            "{nonsense}"
        );
    }
}

#[tokio::test]
async fn a_covered_token_changes_nothing() {
    let service = Server::echo().await;
    let geode = alone(&[service.addr]).await;
    geode.sessions.reach(7);
    let reply = with_token(&geode, "GET", 7).await;
    assert_eq!((given(&reply), reply.field("geode-stale")), (None, None));
    assert_eq!(given(&with_token(&geode, "POST", 7).await), Some(7));
}

#[tokio::test]
async fn the_door_waits_for_what_is_on_its_way() {
    let service = Server::echo().await;
    let geode =
        planet(&[("us", &[service.addr])], |settings| settings.session_wait = Duration::from_secs(60))
            .await
            .remove(0);
    let mut client = geode.raw().await;
    client.send(format!("GET / HTTP/1.1\r\nHost: a\r\nGeode-Session: {}\r\n\r\n", token(4))).await;
    crate::world::eventually("the request to wait", || geode.in_flight() == 1).await;
    assert_eq!(service.connections(), 0);
    geode.sessions.reach(6);
    let reply = client.reply().await;
    assert_eq!((reply.status, given(&reply), reply.field("geode-stale")), (200, Some(6), None));
}

#[tokio::test]
async fn what_does_not_come_is_served_by_a_region_that_has_it() {
    let service = Server::echo().await;
    let regions = [("us", &[service.addr][..]), ("eu", &[service.addr]), ("ap", &[service.addr])];
    let geodes = planet(&regions, impatient).await;
    *geodes[0].sessions.who_has.lock().unwrap() = vec![region("ap"), region("us")];
    geodes[2].sessions.reach(4);
    let reply = with_token(&geodes[0], "GET", 4).await;
    assert_eq!((reply.field("geode-region"), reply.field("geode-stale")), (Some("ap"), None));
    assert_eq!(
        reply.field("geode-reason"),
        Some("ap: number 3 for 127.0.0.1; us lacks what this session has seen")
    );
    // After a write there, the client has seen what that region has.
    geodes[2].sessions.reach(9);
    assert_eq!(given(&with_token(&geodes[0], "POST", 4).await), Some(9));
}

#[tokio::test]
async fn what_nobody_has_is_served_stale_and_the_session_keeps_it() {
    let service = Server::echo().await;
    let geodes = planet(&[("us", &[service.addr]), ("eu", &[])], impatient).await;
    geodes[0].sessions.reach(2);
    // The region said to have it cannot serve.
    *geodes[0].sessions.who_has.lock().unwrap() = vec![region("eu")];
    let reply = with_token(&geodes[0], "POST", 4).await;
    assert_eq!((reply.field("geode-region"), reply.field("geode-stale")), (Some("us"), Some("1")));
    assert_eq!(given(&reply), Some(4), "what the client saw elsewhere is not forgotten");
    assert_eq!(geodes[0].door.metrics().stale.get(), 1);
}

#[tokio::test]
async fn a_lost_token_is_replaced_without_a_wait() {
    let service = Server::echo().await;
    let geode =
        planet(&[("us", &[service.addr])], |settings| settings.session_wait = Duration::from_secs(3600))
            .await
            .remove(0);
    geode.sessions.reach(2);
    *geode.sessions.lost.lock().unwrap() = true;
    let reply = with_token(&geode, "GET", 200).await;
    assert_eq!((reply.field("geode-stale"), given(&reply)), (Some("1"), Some(2)));
}

#[tokio::test]
async fn the_region_that_answers_a_hop_looks_at_the_session() {
    let service = Server::echo().await;
    let geodes = planet(&[("us", &[]), ("eu", &[service.addr])], impatient).await;
    assert_eq!(with_token(&geodes[0], "GET", 4).await.field("geode-stale"), Some("1"));
    geodes[1].sessions.reach(4);
    let reply = with_token(&geodes[0], "POST", 4).await;
    assert_eq!(
        (reply.field("geode-region"), reply.field("geode-stale"), given(&reply)),
        (Some("eu"), None, Some(4))
    );
}

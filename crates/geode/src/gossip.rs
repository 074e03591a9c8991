//! Gossip: every geode tells every other what it is and what it sees, four times a second.
//!
//! Each geode opens one connection to each peer and only speaks on it; it hears on those that its peers open. What it
//! heard is judged by [`Membership`]; the sockets, the clock and the tasks are here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use geode_link::{Dialer, Purpose};
use geode_planet::RegionName;
use geode_steering::RegionHealth;
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};
use tokio::sync::watch;

use crate::membership::{BEAT, Membership, RegionView};
use crate::state::{GeodeState, Message};

/// The longest line: a planet of a hundred regions stays below it.
const MAX_LINE_BYTES: u64 = 256 * 1024;
/// Pause between two attempts to call a peer, doubled from the first to the second bound.
const REDIAL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// A connection on which nothing moves for so long is given up and opened anew, so that what piled up on a broken path
/// does not pour out when it heals.
const STUCK: Duration = Duration::from_secs(5);

/// What this geode knows of the planet, shared by its parts.
pub(crate) struct Gossip {
    started: Instant,
    shared: Mutex<Shared>,
    views: watch::Sender<Arc<Vec<RegionView>>>,
    /// Rings whenever there is something to say; those who speak to peers wait for it.
    news: watch::Sender<u64>,
}

struct Shared {
    membership: Membership,
    /// Connections on which each peer speaks now.
    heard_on: BTreeMap<RegionName, u32>,
}

impl Gossip {
    /// Nothing has been heard yet.
    pub(crate) fn new(own: GeodeState, peers: impl IntoIterator<Item = RegionName>) -> Arc<Self> {
        let membership = Membership::new(own, peers, 0);
        let views = watch::Sender::new(Arc::new(membership.regions(0)));
        let shared = Mutex::new(Shared { membership, heard_on: BTreeMap::new() });
        Arc::new(Self { started: Instant::now(), shared, views, news: watch::Sender::new(0) })
    }

    /// From now on these are the planet's other regions.
    pub(crate) fn set_peers(&self, peers: impl IntoIterator<Item = RegionName>) {
        let now_ms = self.now_ms();
        let mut shared = self.lock();
        shared.membership.set_peers(peers, now_ms);
        self.publish(&shared, now_ms);
    }

    /// Every region as it is known now, in the order of names; the receiver hears of changes.
    pub(crate) fn views(&self) -> watch::Receiver<Arc<Vec<RegionView>>> {
        self.views.subscribe()
    }

    /// Whether a region is healthy by all that is known here.
    pub(crate) fn says_healthy(&self, region: &RegionName) -> bool {
        self.views.borrow().iter().any(|view| view.region == *region && view.health == RegionHealth::Healthy)
    }

    /// Whether a peer is proven to be out of reach from here.
    pub(crate) fn is_cut_off(&self, region: &RegionName) -> bool {
        self.lock().membership.is_cut_off(region)
    }

    /// Beats for as long as it is polled, with `own` saying what this geode is at that moment.
    pub(crate) async fn beat(&self, own: impl Fn() -> GeodeState) {
        let mut ticks = tokio::time::interval(BEAT);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let now_ms = self.now_ms();
            self.lock().membership.beat(now_ms);
            self.tell(own());
        }
    }

    /// Says at once what this geode is: for news that should not wait for the beat.
    pub(crate) fn tell(&self, own: GeodeState) {
        let now_ms = self.now_ms();
        let mut shared = self.lock();
        shared.membership.tell(own);
        self.publish(&shared, now_ms);
        drop(shared);
        self.news.send_modify(|count| *count += 1);
    }

    /// Speaks to one peer for as long as it is polled: dials, says something at each beat and when there is news, dials again when cut off.
    pub(crate) async fn speak(&self, dialer: &Dialer, to: &RegionName) {
        let mut pause = REDIAL.0;
        let mut complaint = None;
        loop {
            match dialer.dial(to, Purpose::Gossip).await {
                Ok(stream) => {
                    complaint = None;
                    pause = REDIAL.0;
                    self.speak_on(stream, to).await;
                }
                Err(error) => {
                    let text = error.to_string();
                    if complaint.as_ref() != Some(&text) {
                        tracing::info!("gossip: {text}");
                        complaint = Some(text);
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(REDIAL.1);
        }
    }

    async fn speak_on(&self, mut stream: impl AsyncWrite + Unpin, to: &RegionName) {
        let opened = Instant::now();
        let mut news = self.news.subscribe();
        loop {
            let now_ms = self.now_ms();
            let (message, silent_ms) = {
                let shared = self.lock();
                (shared.membership.message_to(to, now_ms), shared.membership.silent_ms(to, now_ms))
            };
            let stuck_ms = STUCK.as_millis() as u64;
            if opened.elapsed() > STUCK && silent_ms.is_none_or(|silent| silent > stuck_ms) {
                return;
            }
            // Serialising these types cannot fail: their keys are strings.
            let Some(mut line) = message.and_then(|message| serde_json::to_vec(&message).ok()) else {
                return;
            };
            line.push(b'\n');
            let send = async {
                stream.write_all(&line).await?;
                stream.flush().await
            };
            let sent = tokio::time::timeout(STUCK, send).await;
            if !matches!(sent, Ok(Ok(()))) || news.changed().await.is_err() {
                return;
            }
        }
    }

    /// Hears what `from` says on a connection that it opened, until it ends.
    pub(crate) async fn hear(&self, from: &RegionName, stream: impl AsyncRead + Unpin) {
        *self.lock().heard_on.entry(from.clone()).or_default() += 1;
        let mut lines = BufReader::new(stream);
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = (&mut lines).take(MAX_LINE_BYTES).read_until(b'\n', &mut line).await;
            if read.is_err() || line.last() != Some(&b'\n') {
                break;
            }
            match serde_json::from_slice::<Message>(&line) {
                Ok(message) => {
                    let now_ms = self.now_ms();
                    let mut shared = self.lock();
                    shared.membership.hear(from, message, now_ms);
                    self.publish(&shared, now_ms);
                }
                Err(error) => {
                    tracing::warn!("gossip: {from} says what this release does not understand: {error}");
                    break;
                }
            }
        }
        self.heard_out(from);
    }

    /// A connection of `from` ended; if it was the last one, the peer may be gone.
    fn heard_out(&self, from: &RegionName) {
        let now_ms = self.now_ms();
        let mut shared = self.lock();
        let left = shared.heard_on.get_mut(from).map_or(0, |count| {
            *count = count.saturating_sub(1);
            *count
        });
        if left == 0 {
            shared.membership.hang_up(from, now_ms);
            self.publish(&shared, now_ms);
        }
    }

    fn publish(&self, shared: &Shared, now_ms: u64) {
        self.views.send_replace(Arc::new(shared.membership.regions(now_ms)));
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // Every change under this lock is whole: a panic elsewhere leaves nothing half done.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    use geode_link::{Authority, Credentials, Identity, Listener};
    use geode_planet::HostPort;
    use tokio::task::JoinSet;

    /// Beyond this a wait has failed; nothing that works comes near it.
    const DEADLINE: Duration = Duration::from_secs(60);

    fn region(name: &str) -> RegionName {
        name.parse().unwrap()
    }

    fn state(name: &str) -> GeodeState {
        GeodeState::new(region(name), 1, "c".into())
    }

    fn credentials(authority: &Authority, name: &str) -> Arc<Credentials> {
        let identity = Identity { planet: "acme".into(), region: region(name) };
        Arc::new(Credentials::new(identity, &authority.issue(&region(name)).unwrap()).unwrap())
    }

    async fn listener(own: &Arc<Credentials>, peer: &str, port: u16) -> (Listener, HostPort) {
        let address = (Ipv4Addr::LOCALHOST, port).into();
        let bound = Listener::bind(address, Arc::clone(own), vec![region(peer)]).await.unwrap();
        let address = bound.local_addr().unwrap();
        (bound, HostPort { host: address.ip().to_string(), port: address.port() })
    }

    /// A geode that does nothing but gossip, until its tasks are dropped.
    fn geode(
        name: &str,
        own: &Arc<Credentials>,
        peer: &str,
        mut listener: Listener,
        peer_at: HostPort,
    ) -> (Arc<Gossip>, JoinSet<()>) {
        let gossip = Gossip::new(state(name), [region(peer)]);
        let dialer = Dialer::new(Arc::clone(own), None, BTreeMap::from([(region(peer), peer_at)]));
        let mut tasks = JoinSet::new();
        let (beating, speaking, hearing) = (Arc::clone(&gossip), Arc::clone(&gossip), Arc::clone(&gossip));
        let (name, peer) = (name.to_owned(), region(peer));
        tasks.spawn(async move { beating.beat(|| state(&name)).await });
        tasks.spawn(async move { speaking.speak(&dialer, &peer).await });
        tasks.spawn(async move {
            let mut calls = JoinSet::new();
            loop {
                let call = listener.accept().await;
                let hearing = Arc::clone(&hearing);
                calls.spawn(async move { hearing.hear(&call.from, call.stream).await });
            }
        });
        (gossip, tasks)
    }

    async fn until(gossip: &Gossip, name: &str, condition: impl Fn(&RegionView) -> bool) {
        let mut views = gossip.views();
        let seen =
            views.wait_for(|views| views.iter().any(|view| view.region.as_str() == name && condition(view)));
        tokio::time::timeout(DEADLINE, seen).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn geodes_find_lose_and_find_each_other_over_links() {
        let authority = Authority::new("acme").unwrap();
        let (us_own, eu_own) = (credentials(&authority, "us-east-1"), credentials(&authority, "eu-west-1"));
        let (us_listener, us_at) = listener(&us_own, "eu-west-1", 0).await;
        let (eu_listener, eu_at) = listener(&eu_own, "us-east-1", 0).await;
        let (us, _us_tasks) = geode("us-east-1", &us_own, "eu-west-1", us_listener, eu_at.clone());
        let (eu, eu_tasks) = geode("eu-west-1", &eu_own, "us-east-1", eu_listener, us_at.clone());
        let healthy = |view: &RegionView| view.health == RegionHealth::Healthy && view.rtt_ms.is_some();
        until(&us, "eu-west-1", healthy).await;
        until(&eu, "us-east-1", healthy).await;

        drop(eu_tasks);
        until(&us, "eu-west-1", |view| matches!(view.health, RegionHealth::Unreachable { .. })).await;
        assert!(us.is_cut_off(&region("eu-west-1")));

        let (eu_listener, _) = listener(&eu_own, "us-east-1", eu_at.port).await;
        let (_eu, _eu_tasks) = geode("eu-west-1", &eu_own, "us-east-1", eu_listener, us_at);
        until(&us, "eu-west-1", healthy).await;
    }

    #[tokio::test]
    async fn news_is_told_before_the_next_beat_is_due() {
        let gossip = Gossip::new(state("us-east-1"), []);
        let mut views = gossip.views();
        gossip.tell(GeodeState { draining: true, ..state("us-east-1") });
        assert_eq!(views.borrow_and_update()[0].health, RegionHealth::Draining);
        assert!(!gossip.says_healthy(&region("us-east-1")));
    }
}

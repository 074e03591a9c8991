//! Which regions are there, as this geode knows it: a state machine fed with messages, hang-ups and the beat of time.
//!
//! Every geode speaks to every other at each beat. Silence over [`MISSED_BEATS`] beats makes a peer unreachable from
//! here; whether its region is *down* is a question to all vantage points ([`geode_steering::region_health`]), since each
//! message also says what its sender sees. Pure: time comes in as milliseconds of a clock that only goes forward.

use std::collections::BTreeMap;
use std::time::Duration;

use geode_planet::RegionName;
use geode_steering::{Health, RegionHealth, Report, Sighting, Thresholds, region_health};
use serde::{Deserialize, Serialize};

use crate::state::{Echo, GeodeState, Message, Seen};

/// The time between two messages to a peer: with [`MISSED_BEATS`] it bounds how long a region that is cut off without
/// a sign stays in use, about a second.
pub(crate) const BEAT: Duration = Duration::from_millis(250);
/// Beats without a message after which a peer is unreachable from here.
const MISSED_BEATS: u32 = 4;
/// Beats with a message after which it is reachable again.
const PROVEN_BEATS: u32 = 2;
/// A closed connection is worth so many missed beats: a process that ends is missed at the next beat, while one that
/// only lost its connection has until then to call again.
const HANG_UP_BEATS: u32 = 3;
/// What others see counts for so long: the silence after which a peer is unreachable, and half of the longest round
/// trip on Earth.
const FRESH_MS: u64 = 1_300;
/// Weight of a new round-trip sample: TCP's smoothing (RFC 6298).
const RTT_WEIGHT: f64 = 1.0 / 8.0;
/// A greater sample measures a broken path that healed, not a distance.
const MAX_RTT_SAMPLE_MS: u64 = 3_000;

/// What this geode knows of the planet.
#[derive(Debug)]
pub(crate) struct Membership {
    own: GeodeState,
    peers: BTreeMap<RegionName, Peer>,
}

/// What this geode knows of one other region.
#[derive(Debug)]
struct Peer {
    /// The last state known, its own word or forwarded, and when it was said.
    last: Option<(GeodeState, u64)>,
    /// Whether it reaches us, from its messages.
    health: Health,
    heard_in_this_beat: bool,
    rtt_ms: Option<f64>,
    /// Its last message: its clock, and ours when it came in.
    echo: Option<(u64, u64)>,
    /// What it sees of the others.
    sightings: BTreeMap<RegionName, Sighting>,
}

/// One region as `geode status` shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RegionView {
    pub(crate) region: RegionName,
    /// Its health by its own word and all vantage points.
    pub(crate) health: RegionHealth,
    /// Whether the geode that was asked reaches it.
    pub(crate) reachable: bool,
    /// Measured round trip from the geode that was asked; none to itself.
    pub(crate) rtt_ms: Option<f64>,
    /// How old `state` is.
    pub(crate) age_ms: u64,
    /// What it last said.
    pub(crate) state: Option<GeodeState>,
}

impl Membership {
    /// Nothing has been heard yet. `peers` are the planet's other regions.
    pub(crate) fn new(own: GeodeState, peers: impl IntoIterator<Item = RegionName>, now_ms: u64) -> Self {
        Self { own, peers: peers.into_iter().map(|region| (region, Peer::new(now_ms))).collect() }
    }

    /// From now on these are the planet's other regions: what is known of the others is forgotten.
    pub(crate) fn set_peers(&mut self, peers: impl IntoIterator<Item = RegionName>, now_ms: u64) {
        let mut known = std::mem::take(&mut self.peers);
        let keep = |region| {
            let peer = known.remove(&region).unwrap_or_else(|| Peer::new(now_ms));
            (region, peer)
        };
        self.peers = peers.into_iter().map(keep).collect();
        for peer in self.peers.values_mut() {
            peer.sightings.retain(|region, _| !known.contains_key(region));
        }
    }

    /// Takes what this geode says of itself from now on.
    pub(crate) fn tell(&mut self, own: GeodeState) {
        self.own = GeodeState { beat: self.own.beat + 1, ..own };
    }

    /// A beat: judges the silence since the last one.
    pub(crate) fn beat(&mut self, now_ms: u64) {
        for peer in self.peers.values_mut() {
            peer.health.observe(std::mem::take(&mut peer.heard_in_this_beat), now_ms);
        }
    }

    /// A message came in over a connection that `from` opened. Words about other regions than the planet's are ignored.
    pub(crate) fn hear(&mut self, from: &RegionName, message: Message, now_ms: u64) {
        let Some(peer) = self.peers.get_mut(from).filter(|_| message.state.region == *from) else { return };
        peer.heard_in_this_beat = true;
        if !peer.health.is_up() {
            // A peer that is back need not wait for the beat.
            peer.health.observe(true, now_ms);
        }
        peer.echo = Some((message.sent_ms, now_ms));
        if let Some(echo) = message.echo {
            let sample_ms = now_ms.saturating_sub(echo.sent_ms).saturating_sub(echo.held_ms);
            if sample_ms <= MAX_RTT_SAMPLE_MS {
                let sample = sample_ms as f64;
                peer.rtt_ms = Some(peer.rtt_ms.map_or(sample, |rtt| rtt + (sample - rtt) * RTT_WEIGHT));
            }
        }
        // Its own word stands whatever its clock said before; hearsay only fills in for it.
        peer.last = Some((message.state, now_ms));
        for seen in message.sees {
            let since_ms = now_ms.saturating_sub(seen.for_ms);
            let sighting = Sighting { reachable: seen.reachable, since_ms, heard_ms: now_ms };
            if !self.peers.contains_key(&seen.region) || seen.region == *from {
                continue;
            }
            if let Some(peer) = self.peers.get_mut(from) {
                peer.sightings.insert(seen.region.clone(), sighting);
            }
            if let (Some(third), Some((state, age_ms))) = (self.peers.get_mut(&seen.region), seen.last)
                && state.region == seen.region
                && !third.reachable()
                && third.last.as_ref().is_none_or(|(known, _)| state.is_newer_than(known))
            {
                third.last = Some((state, now_ms.saturating_sub(age_ms)));
            }
        }
    }

    /// The connection over which `from` spoke has ended.
    pub(crate) fn hang_up(&mut self, from: &RegionName, now_ms: u64) {
        if let Some(peer) = self.peers.get_mut(from) {
            for _ in 0..HANG_UP_BEATS {
                peer.health.observe(false, now_ms);
            }
            peer.heard_in_this_beat = false;
        }
    }

    /// What is said to `to` now; `None` for a region that is no peer.
    pub(crate) fn message_to(&self, to: &RegionName, now_ms: u64) -> Option<Message> {
        let receiver = self.peers.get(to)?;
        let sees = self.peers.iter().filter(|(region, _)| *region != to).map(|(region, peer)| {
            let blind = receiver.sightings.get(region).is_some_and(|sighting| !sighting.reachable);
            Seen {
                region: region.clone(),
                reachable: peer.reachable(),
                for_ms: now_ms.saturating_sub(peer.health.since_ms()),
                last: peer
                    .last
                    .clone()
                    .filter(|_| blind)
                    .map(|(state, at)| (state, now_ms.saturating_sub(at))),
            }
        });
        Some(Message {
            state: self.own.clone(),
            sees: sees.collect(),
            sent_ms: now_ms,
            echo: receiver
                .echo
                .map(|(sent_ms, came_ms)| Echo { sent_ms, held_ms: now_ms.saturating_sub(came_ms) }),
        })
    }

    /// Every region, this one included, in the order of their names.
    pub(crate) fn regions(&self, now_ms: u64) -> Vec<RegionView> {
        let mut views = vec![RegionView {
            region: self.own.region.clone(),
            health: region_health(Some(&report(&self.own)), &[], FRESH_MS, now_ms),
            reachable: true,
            rtt_ms: None,
            age_ms: 0,
            state: Some(self.own.clone()),
        }];
        views.extend(self.peers.iter().map(|(region, peer)| RegionView {
            region: region.clone(),
            health: self.health(region, peer, now_ms),
            reachable: peer.reachable() && peer.last.is_some(),
            rtt_ms: peer.rtt_ms,
            age_ms: peer.last.as_ref().map_or(0, |(_, at)| now_ms.saturating_sub(*at)),
            state: peer.last.as_ref().map(|(state, _)| state.clone()),
        }));
        views.sort_by(|a, b| a.region.cmp(&b.region));
        views
    }

    /// Whether `region` is proven to be out of reach from here.
    pub(crate) fn is_cut_off(&self, region: &RegionName) -> bool {
        self.peers.get(region).is_some_and(|peer| !peer.reachable())
    }

    /// For how long a region has said nothing here; `None` if it never spoke.
    pub(crate) fn silent_ms(&self, region: &RegionName, now_ms: u64) -> Option<u64> {
        self.peers.get(region)?.echo.map(|(_, came_ms)| now_ms.saturating_sub(came_ms))
    }

    fn health(&self, region: &RegionName, peer: &Peer, now_ms: u64) -> RegionHealth {
        let ours =
            Sighting { reachable: peer.reachable(), since_ms: peer.health.since_ms(), heard_ms: now_ms };
        // What somebody saw who cannot be heard any more grows stale by itself.
        let theirs = self.peers.values().filter_map(|other| other.sightings.get(region).copied());
        let sightings: Vec<Sighting> = std::iter::once(ours).chain(theirs).collect();
        let report = peer.last.as_ref().map(|(state, _)| report(state));
        region_health(report.as_ref(), &sightings, FRESH_MS, now_ms)
    }
}

impl Peer {
    /// Nothing has been heard of it.
    fn new(now_ms: u64) -> Self {
        let thresholds = Thresholds { up: PROVEN_BEATS, down: MISSED_BEATS };
        Self {
            last: None,
            health: Health::new(thresholds, now_ms),
            heard_in_this_beat: false,
            rtt_ms: None,
            echo: None,
            sightings: BTreeMap::new(),
        }
    }

    /// Not proven unreachable: a geode that has just started accuses nobody.
    fn reachable(&self) -> bool {
        !self.health.is_down()
    }
}

fn report(state: &GeodeState) -> Report {
    Report { trouble: state.trouble.clone(), draining: state.draining }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const REGIONS: [&str; 3] = ["ap", "eu", "us"];
    /// Later than a beat and far less than the patience for silence.
    const DELAY_MS: u64 = 110;

    fn region(name: &str) -> RegionName {
        name.parse().unwrap()
    }

    fn state(name: &str, incarnation: u64) -> GeodeState {
        GeodeState::new(region(name), incarnation, "c".into())
    }

    /// Three geodes with a delay between each two, beating out of step.
    struct Planet {
        now_ms: u64,
        geodes: BTreeMap<&'static str, Membership>,
        on_the_way: BTreeMap<(u64, u64), (&'static str, &'static str, Message)>,
        sent: u64,
        cut: BTreeSet<(&'static str, &'static str)>,
        incarnation: u64,
    }

    impl Planet {
        fn new() -> Self {
            let mut planet = Self {
                now_ms: 1_000_000,
                geodes: BTreeMap::new(),
                on_the_way: BTreeMap::new(),
                sent: 0,
                cut: BTreeSet::new(),
                incarnation: 100,
            };
            REGIONS.into_iter().for_each(|name| planet.start(name));
            planet
        }

        fn start(&mut self, name: &'static str) {
            self.incarnation -= 1; // the wall clock was set back: nothing may rest on it
            let peers = REGIONS.into_iter().filter(|peer| *peer != name).map(region);
            self.geodes.insert(name, Membership::new(state(name, self.incarnation), peers, self.now_ms));
        }

        fn kill(&mut self, name: &'static str) {
            self.geodes.remove(name);
            for geode in self.geodes.values_mut() {
                geode.hang_up(&region(name), self.now_ms);
            }
        }

        fn cut(&mut self, a: &'static str, b: &'static str) {
            self.cut.extend([(a, b), (b, a)]);
        }

        /// Runs until `done`, at most `limit_ms`; answers after how many milliseconds that was.
        fn until(&mut self, limit_ms: u64, mut done: impl FnMut(&Self) -> bool) -> u64 {
            let start_ms = self.now_ms;
            while !done(self) {
                assert!(self.now_ms - start_ms < limit_ms, "not within {limit_ms} ms");
                self.step();
            }
            self.now_ms - start_ms
        }

        fn run(&mut self, duration_ms: u64, mut always: impl FnMut(&Self) -> bool) {
            let end_ms = self.now_ms + duration_ms;
            while self.now_ms < end_ms {
                self.step();
                assert!(always(self), "not true at {} ms", self.now_ms);
            }
        }

        fn step(&mut self) {
            self.now_ms += 1;
            while let Some(entry) = self.on_the_way.first_entry().filter(|entry| entry.key().0 <= self.now_ms)
            {
                let (from, to, message) = entry.remove();
                if let Some(geode) = self.geodes.get_mut(to) {
                    geode.hear(&region(from), message, self.now_ms);
                }
            }
            for (offset, from) in REGIONS.into_iter().enumerate() {
                if self.now_ms % 250 != 70 * offset as u64 {
                    continue;
                }
                let Some(geode) = self.geodes.get_mut(from) else { continue };
                geode.tell(geode.own.clone());
                geode.beat(self.now_ms);
                for to in REGIONS.into_iter().filter(|to| *to != from && !self.cut.contains(&(from, *to))) {
                    let message = geode.message_to(&region(to), self.now_ms).unwrap();
                    let line = serde_json::to_string(&message).unwrap();
                    let message = serde_json::from_str(&line).unwrap();
                    self.sent += 1;
                    self.on_the_way.insert((self.now_ms + DELAY_MS, self.sent), (from, to, message));
                }
            }
        }

        fn view(&self, at: &str, of: &str) -> RegionView {
            let views = self.geodes[at].regions(self.now_ms);
            assert_eq!(views.len(), 3);
            views.into_iter().find(|view| view.region.as_str() == of).unwrap()
        }

        fn healthy(&self, at: &str, of: &str) -> bool {
            self.view(at, of).health == RegionHealth::Healthy
        }

        fn all_healthy(&self) -> bool {
            self.geodes.keys().all(|at| REGIONS.iter().all(|of| self.healthy(at, of)))
        }

        fn down(&self, at: &str, of: &str) -> bool {
            matches!(self.view(at, of).health, RegionHealth::Unreachable { .. })
        }
    }

    #[test]
    fn geodes_that_hear_each_other_are_healthy_and_know_the_round_trip() {
        let mut planet = Planet::new();
        assert!(!planet.healthy("eu", "us"), "nothing was heard yet");
        assert!(!planet.down("eu", "us"), "and nobody is accused");
        planet.until(400, Planet::all_healthy);
        planet.run(10_000, Planet::all_healthy);
        assert_eq!(planet.view("eu", "us").rtt_ms, Some(2.0 * DELAY_MS as f64));
    }

    #[test]
    fn a_killed_region_is_down_everywhere_within_a_second_and_comes_back() {
        let mut planet = Planet::new();
        planet.until(400, Planet::all_healthy);
        planet.kill("ap");
        planet.until(1_000, |planet| planet.down("eu", "ap") && planet.down("us", "ap"));
        planet.run(5_000, |planet| planet.healthy("eu", "us") && !planet.healthy("eu", "ap"));
        planet.start("ap");
        planet.until(1_000, Planet::all_healthy);
    }

    #[test]
    fn silence_without_a_sign_makes_a_region_unreachable() {
        let mut planet = Planet::new();
        planet.until(400, Planet::all_healthy);
        planet.cut("ap", "eu");
        planet.cut("ap", "us");
        planet.until(2_000, |planet| planet.down("eu", "ap") && planet.down("us", "ap"));
        planet.until(2_000, |planet| planet.down("ap", "eu") && planet.down("ap", "us"));
        assert!(planet.healthy("ap", "ap"), "who is cut off serves on");
        planet.cut.clear();
        planet.until(1_000, Planet::all_healthy);
    }

    #[test]
    fn one_broken_path_takes_no_region_away_and_its_word_comes_around() {
        let mut planet = Planet::new();
        planet.until(400, Planet::all_healthy);
        planet.cut("ap", "us");
        planet
            .until(2_000, |planet| !planet.view("us", "ap").reachable && !planet.view("ap", "us").reachable);
        planet.until(2_000, |planet| planet.view("us", "ap").age_ms < 1_000);
        planet.run(5_000, |planet| {
            let view = planet.view("us", "ap");
            !view.reachable && view.health == RegionHealth::Healthy && view.age_ms < 1_000
        });
        planet.geodes.get_mut("ap").unwrap().own.draining = true;
        planet.until(1_000, |planet| planet.view("us", "ap").health == RegionHealth::Draining);
    }

    #[test]
    fn a_connection_that_is_reopened_at_once_costs_nothing() {
        let mut planet = Planet::new();
        planet.until(400, Planet::all_healthy);
        for _ in 0..5 {
            let now_ms = planet.now_ms;
            planet.geodes.get_mut("us").unwrap().hang_up(&region("ap"), now_ms);
            planet.run(2_000, Planet::all_healthy);
        }
    }

    #[test]
    fn regions_come_and_go_and_what_was_known_of_the_others_stays() {
        let mut planet = Planet::new();
        planet.until(400, Planet::all_healthy);
        let now_ms = planet.now_ms;
        let us = planet.geodes.get_mut("us").unwrap();
        us.set_peers([region("eu"), region("sa")], now_ms);
        let views = us.regions(now_ms);
        let names: Vec<&str> = views.iter().map(|view| view.region.as_str()).collect();
        assert_eq!(names, ["eu", "sa", "us"]);
        assert_eq!(views[0].health, RegionHealth::Healthy);
        assert_eq!(views[1].health, RegionHealth::Unhealthy { reason: "not heard from yet".into() });
        us.hear(
            &region("ap"),
            Message { state: state("ap", 1), sees: vec![], sent_ms: 0, echo: None },
            now_ms,
        );
        assert_eq!(us.regions(now_ms).len(), 3, "it does not belong to the planet");
        assert!(us.message_to(&region("ap"), now_ms).is_none());
        assert!(us.message_to(&region("sa"), now_ms).is_some());
    }

    #[test]
    fn words_in_another_name_are_ignored() {
        let mut planet = Planet::new();
        let forged = Message {
            state: state("ap", 1),
            sees: vec![Seen {
                region: region("nowhere"),
                reachable: true,
                for_ms: 0,
                last: Some((state("us", 1), 0)),
            }],
            sent_ms: 0,
            echo: None,
        };
        let now_ms = planet.now_ms;
        let eu = planet.geodes.get_mut("eu").unwrap();
        eu.hear(&region("us"), forged.clone(), now_ms);
        eu.hear(&region("nowhere"), forged.clone(), now_ms);
        eu.hear(&region("ap"), forged, now_ms);
        assert_eq!(planet.view("eu", "us").state, None);
        assert_eq!(planet.view("eu", "ap").state, Some(state("ap", 1)));
    }
}

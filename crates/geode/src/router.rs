//! Steering at work in one geode: the pure decision, fed with what gossip knows.

use std::net::IpAddr;
use std::sync::Arc;

use geode_door::{ClientHints, RouteEntry};
use geode_planet::{Planet, RegionName, UnknownPlace};
use geode_steering::{Candidate, Client, Decision, Policy, RegionState, decide};
use serde::Serialize;
use tokio::sync::watch;

use crate::membership::RegionView;

/// Decides for the door and for `geode explain`.
pub(crate) struct Router {
    planet: watch::Receiver<Arc<Planet>>,
    own: RegionName,
    views: watch::Receiver<Arc<Vec<RegionView>>>,
}

/// Why a client goes where it goes.
#[derive(Debug, Serialize)]
pub(crate) struct Explanation {
    /// The geode that was asked; every other decides alike as far as it sees alike.
    pub(crate) asked: RegionName,
    /// The client, as it was asked for.
    pub(crate) who: String,
    /// The network of `steering.prefixes` that told where the client is.
    pub(crate) prefix: Option<String>,
    pub(crate) decision: Decision,
}

impl Router {
    /// A router for the geode of region `own`.
    pub(crate) fn new(
        planet: watch::Receiver<Arc<Planet>>,
        own: RegionName,
        views: watch::Receiver<Arc<Vec<RegionView>>>,
    ) -> Self {
        Self { planet, own, views }
    }

    /// Explains what happens to a client, named by its address or its place.
    ///
    /// # Errors
    /// The name is neither an address nor a known place.
    pub(crate) fn explain(&self, who: &str) -> Result<Explanation, UnknownPlace> {
        let planet = self.planet();
        let (client, prefix) = match who.parse::<IpAddr>() {
            Ok(address) => client_at(&planet, address),
            Err(_) => (Client::new(Some(planet.place(who)?), who.as_bytes()), None),
        };
        let decision = self.decide(&planet, &client);
        Ok(Explanation { asked: self.own.clone(), who: who.to_owned(), prefix, decision })
    }

    /// The planet as it stands at this moment.
    fn planet(&self) -> Arc<Planet> {
        Arc::clone(&self.planet.borrow())
    }

    fn decide(&self, planet: &Planet, client: &Client) -> Decision {
        let views = Arc::clone(&self.views.borrow());
        let states: Vec<RegionState> = views.iter().filter_map(|view| state(planet, view)).collect();
        decide(client, &Policy::from(&planet.steering), &states)
    }
}

fn state(planet: &Planet, view: &RegionView) -> Option<RegionState> {
    let region = planet.region(&view.region)?;
    let service = view.state.as_ref().and_then(|state| state.service);
    Some(RegionState {
        name: view.region.clone(),
        coordinates: region.place.coordinates,
        capacity: region.capacity,
        health: view.health.clone(),
        load: service.map_or(0.0, |service| service.load),
        // Between clients and regions nobody measures yet.
        measured_rtt_ms: None,
    })
}

/// The client at an address, and the network that told its place.
fn client_at(planet: &Planet, address: IpAddr) -> (Client, Option<String>) {
    match planet.locate(address) {
        Some(location) => {
            let network = location.prefix.to_string();
            (Client::new(Some(location.place.clone()), network.as_bytes()), Some(network))
        }
        None => (Client::new(None, address.to_string().as_bytes()), None),
    }
}

impl geode_door::Router for Router {
    fn route(&self, hints: &ClientHints) -> Vec<RouteEntry> {
        let planet = self.planet();
        let (mut client, _) = client_at(&planet, hints.address);
        if client.place.is_none() {
            // Whoever came to this door was brought here as one of its neighbours.
            client.place = planet.region(&self.own).map(|region| region.place.clone());
        }
        self.decide(&planet, &client).order().map(entry).collect()
    }
}

fn entry(candidate: &Candidate) -> RouteEntry {
    let rtt =
        candidate.rtt_ms.map_or_else(String::new, |rtt| format!(", {rtt:.1} ms by {}", candidate.source));
    RouteEntry { region: candidate.region.clone(), reason: format!("{}{rtt}", candidate.reason) }
}

impl Explanation {
    /// For people.
    pub(crate) fn text(&self) -> String {
        let prefix =
            self.prefix.as_ref().map_or_else(String::new, |prefix| format!("{} is in {prefix}\n", self.who));
        format!("{prefix}{}", self.decision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use geode_door::Router as _;
    use geode_steering::RegionHealth;

    const PLANET: &str = r#"
format = 1
[planet]
name = "acme"
[regions.us-east-1]
public = ["127.0.0.11"]
link = "127.0.0.11:7400"
[regions.eu-west-1]
public = ["127.0.0.12"]
link = "127.0.0.12:7400"
[steering.prefixes]
"203.0.113.0/24" = "sydney"
"#;

    fn router(eu: RegionHealth) -> (Router, watch::Sender<Arc<Vec<RegionView>>>) {
        let planet = Planet::parse(PLANET, "planet.toml").unwrap();
        let view = |region: &str, health| RegionView {
            region: region.parse().unwrap(),
            health,
            reachable: true,
            rtt_ms: None,
            age_ms: 0,
            state: None,
        };
        let views = vec![view("eu-west-1", eu), view("us-east-1", RegionHealth::Healthy)];
        let (sender, receiver) = watch::channel(Arc::new(views));
        let (_, planet) = watch::channel(Arc::new(planet));
        (Router::new(planet, "us-east-1".parse().unwrap(), receiver), sender)
    }

    fn order(router: &Router, address: [u8; 4]) -> Vec<String> {
        let entries = router.route(&ClientHints { address: address.into() });
        entries.into_iter().map(|entry| entry.region.to_string()).collect()
    }

    #[test]
    fn a_client_without_a_known_place_counts_as_a_neighbour_of_its_door() {
        let (router, _views) = router(RegionHealth::Healthy);
        assert_eq!(order(&router, [127, 0, 0, 1]), ["us-east-1", "eu-west-1"]);
        let first = &router.route(&ClientHints { address: [127, 0, 0, 1].into() })[0];
        assert_eq!(first.reason, "closest, 2.0 ms by model");
    }

    #[test]
    fn news_changes_the_next_decision() {
        let (router, views) = router(RegionHealth::Healthy);
        assert_eq!(order(&router, [203, 0, 113, 9]), ["us-east-1", "eu-west-1"]);
        let down: Vec<RegionView> = views.borrow().iter().cloned().collect();
        let down = down.into_iter().map(|view| RegionView {
            health: if view.region.as_str() == "us-east-1" {
                RegionHealth::Unreachable { for_ms: 900 }
            } else {
                view.health
            },
            ..view
        });
        views.send_replace(Arc::new(down.collect()));
        assert_eq!(order(&router, [203, 0, 113, 9]), ["eu-west-1"]);
    }

    #[test]
    fn explanations_name_place_network_and_reasons() {
        let (router, _views) = router(RegionHealth::Draining);
        insta::assert_snapshot!(router.explain("203.0.113.9").unwrap().text(), @r#"
        203.0.113.9 is in 203.0.113.0/24
        client in sydney (-33.87, 151.21)
          1  us-east-1   224.9 ms  model     closest
          -  eu-west-1   293.8 ms  model     passed over: draining
        "#);
        insta::assert_snapshot!(router.explain("eu-west-1").unwrap().text(), @r#"
        client in eu-west-1 (53.35, -6.26)
          1  us-east-1    82.3 ms  model     closest left, 80.3 ms farther than the closest
          -  eu-west-1     2.0 ms  model     passed over: draining
        "#);
        insta::assert_snapshot!(router.explain("198.51.100.1").unwrap().text(), @r#"
        client of unknown place
          1  us-east-1       ? ms  unknown   distance unknown, drawn by weight
          -  eu-west-1       ? ms  unknown   passed over: draining
        "#);
        assert!(router.explain("atlantis").is_err());
    }
}

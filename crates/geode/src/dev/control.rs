//! What `geode chaos` talks to: kill, revive, partition and heal, on 127.0.0.1 of this machine.
//!
//! Every request names its regions in a JSON body, which a web page of another origin cannot send unasked.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, mpsc, oneshot, watch};

use super::geodes::{GeodeState, Order, Phase};
use super::plan::Plan;
use super::processes;
use super::relay::{Cuts, Relay};

/// How long a revived geode may take until it is ready: it reads its log again.
const REVIVE_WAIT: Duration = Duration::from_secs(120);

/// What the handlers share.
pub(super) struct Control {
    plan: Arc<Plan>,
    relay: Relay,
    cuts: Mutex<Cuts>,
    orders: mpsc::Sender<Order>,
    states: watch::Receiver<Vec<GeodeState>>,
}

/// The regions a request is about.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Regions {
    pub(crate) regions: Vec<String>,
}

/// The state of the planet's network and processes.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ChaosState {
    pub(crate) regions: Vec<RegionChaos>,
    /// Pairs of regions that are cut from each other.
    pub(crate) partitions: Vec<(String, String)>,
}

/// One region of [`ChaosState`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RegionChaos {
    pub(crate) name: String,
    /// `starting`, `ready`, `killed` or `crashed`.
    pub(crate) phase: String,
    pub(crate) pid: Option<u32>,
    pub(crate) service_pids: Vec<u32>,
}

/// Why a request failed, with the status that says whose fault it is.
#[derive(Debug)]
struct Refusal(StatusCode, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, Json(serde_json::json!({ "error": self.1 }))).into_response()
    }
}

type Answer = Result<Json<ChaosState>, Refusal>;

impl Control {
    pub(super) fn new(
        plan: Arc<Plan>,
        relay: Relay,
        orders: mpsc::Sender<Order>,
        states: watch::Receiver<Vec<GeodeState>>,
    ) -> Self {
        Self { plan, relay, cuts: Mutex::default(), orders, states }
    }

    /// The routes.
    pub(super) fn router(self) -> Router {
        Router::new()
            .route("/state", get(async |State(control): State<Arc<Self>>| control.answer().await))
            .route("/kill", post(kill))
            .route("/revive", post(revive))
            .route("/partition", post(partition))
            .route("/heal", post(heal))
            .with_state(Arc::new(self))
    }

    async fn answer(&self) -> Answer {
        let states = self.states.borrow().clone();
        let regions = self.plan.regions.iter().zip(states).map(|(region, state)| RegionChaos {
            name: region.name.to_string(),
            phase: state.phase.to_string(),
            pid: state.pid,
            service_pids: state.pid.map(processes::children_of).unwrap_or_default(),
        });
        let name = |region: usize| self.plan.regions[region].name.to_string();
        let cuts = self.cuts.lock().await;
        let partitions = cuts.pairs().map(|(a, b)| (name(a), name(b))).collect();
        Ok(Json(ChaosState { regions: regions.collect(), partitions }))
    }

    /// The regions that a request names, at least one, each once.
    fn find(&self, named: &Regions, most: usize) -> Result<Vec<usize>, Refusal> {
        let bad = |text: String| Refusal(StatusCode::BAD_REQUEST, text);
        let found: Result<Vec<usize>, Refusal> =
            named.regions.iter().map(|name| self.find_one(name)).collect();
        let found = found?;
        match found[..] {
            [a, b] if a == b => Err(bad(format!("{} and itself: name two regions", named.regions[0]))),
            _ if found.len() > most => {
                Err(bad(format!("{} regions are named, at most {most} make sense", found.len())))
            }
            _ => Ok(found),
        }
    }

    fn find_one(&self, name: &str) -> Result<usize, Refusal> {
        let regions = &self.plan.regions;
        regions.iter().position(|region| region.name.as_str() == name).ok_or_else(|| {
            let names: Vec<&str> = regions.iter().map(|region| region.name.as_str()).collect();
            Refusal(StatusCode::NOT_FOUND, format!("no region {name:?} here; there are {}", names.join(", ")))
        })
    }

    fn find_single(&self, named: &Regions) -> Result<usize, Refusal> {
        let found = self.find(named, 1)?;
        found.first().copied().ok_or_else(|| Refusal(StatusCode::BAD_REQUEST, "name a region".to_owned()))
    }

    async fn order(
        &self,
        order: impl FnOnce(oneshot::Sender<Result<(), String>>) -> Order,
    ) -> Result<(), Refusal> {
        let ending = || Refusal(StatusCode::SERVICE_UNAVAILABLE, "the planet is ending".to_owned());
        let (done, answer) = oneshot::channel();
        self.orders.send(order(done)).await.map_err(|_| ending())?;
        let answer = answer.await.map_err(|_| ending())?;
        answer.map_err(|text| Refusal(StatusCode::INTERNAL_SERVER_ERROR, text))
    }

    /// All pairs meant by one region (with every other) or by two.
    fn pairs(&self, found: &[usize]) -> Vec<(usize, usize)> {
        match *found {
            [a] => (0..self.plan.regions.len()).filter(|b| *b != a).map(|b| (a, b)).collect(),
            [a, b] => vec![(a, b)],
            _ => Vec::new(),
        }
    }
}

async fn kill(State(control): State<Arc<Control>>, Json(named): Json<Regions>) -> Answer {
    let region = control.find_single(&named)?;
    control.order(|done| Order::Kill(region, done)).await?;
    control.answer().await
}

async fn revive(State(control): State<Arc<Control>>, Json(named): Json<Regions>) -> Answer {
    let region = control.find_single(&named)?;
    control.order(|done| Order::Revive(region, done)).await?;
    let mut states = control.states.clone();
    let ready = states.wait_for(|states| states[region].phase == Phase::Ready);
    if tokio::time::timeout(REVIVE_WAIT, ready).await.is_err() {
        let text = format!("started, but not ready after {} s", REVIVE_WAIT.as_secs());
        return Err(Refusal(StatusCode::GATEWAY_TIMEOUT, text));
    }
    control.answer().await
}

async fn partition(State(control): State<Arc<Control>>, Json(named): Json<Regions>) -> Answer {
    let found = control.find(&named, 2)?;
    if found.is_empty() {
        return Err(Refusal(StatusCode::BAD_REQUEST, "name one region, or two".to_owned()));
    }
    let mut cuts = control.cuts.lock().await;
    for (a, b) in control.pairs(&found) {
        cuts.cut(a, b);
    }
    control.relay.set_cuts(cuts.clone()).await;
    drop(cuts);
    control.answer().await
}

async fn heal(State(control): State<Arc<Control>>, Json(named): Json<Regions>) -> Answer {
    let found = control.find(&named, 2)?;
    let mut cuts = control.cuts.lock().await;
    for (a, b) in control.pairs(&found) {
        cuts.heal(a, b);
    }
    if found.is_empty() {
        *cuts = Cuts::default();
    }
    control.relay.set_cuts(cuts.clone()).await;
    drop(cuts);
    control.answer().await
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::path::PathBuf;

    use axum::http::Method;

    use super::*;
    use crate::ask::ask;
    use crate::dev::plan::Addresses;

    /// Three regions whose geodes are only said to be killed and revived.
    async fn control() -> SocketAddr {
        let names = ["tokyo", "lagos", "lima"].map(str::to_owned);
        let plan = Plan::new(&names, 7100, None, PathBuf::from("/x"), Addresses::PerRegion).unwrap();
        let relay = Relay::start(Vec::new(), Vec::new()).unwrap();
        let (orders, mut inbox) = mpsc::channel(1);
        let (states, watched) = watch::channel(vec![GeodeState { phase: Phase::Ready, pid: None }; 3]);
        tokio::spawn(async move {
            while let Some(order) = inbox.recv().await {
                let (region, phase, done) = match order {
                    Order::Kill(region, done) => (region, Phase::Killed, done),
                    Order::Revive(region, done) => (region, Phase::Ready, done),
                };
                states.send_modify(|states| states[region].phase = phase);
                done.send(Ok(())).unwrap();
            }
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Control::new(Arc::new(plan), relay, orders, watched).router();
        tokio::spawn(axum::serve(listener, router).into_future());
        address
    }

    /// Asks for something that befalls these regions. The phases and the partitions after it, or status and error.
    async fn befall(control: SocketAddr, path: &str, regions: &[&str]) -> Result<(String, String), String> {
        let body = serde_json::json!({ "regions": regions }).to_string();
        let answer = ask(control, Method::POST, path, Some(body), Duration::from_secs(30)).await;
        let (status, body) = answer.unwrap();
        if status != StatusCode::OK {
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            return Err(format!("{} {}", status.as_u16(), body["error"].as_str().unwrap()));
        }
        let state: ChaosState = serde_json::from_slice(&body).unwrap();
        let phases: Vec<String> = state.regions.into_iter().map(|region| region.phase).collect();
        let pairs: Vec<String> = state.partitions.into_iter().map(|(a, b)| format!("{a}-{b}")).collect();
        Ok((phases.join(" "), pairs.join(" ")))
    }

    #[tokio::test]
    async fn what_befalls_a_planet_can_be_seen_and_undone() {
        let control = control().await;
        let mut seen = Vec::new();
        for (path, regions) in [
            ("/kill", &["lagos"][..]),
            ("/revive", &["lagos"]),
            ("/partition", &["lima"]),
            ("/partition", &["tokyo", "lagos"]),
            ("/heal", &["tokyo", "lima"]),
            ("/heal", &["lagos"]),
            ("/partition", &["lima", "tokyo"]),
            ("/heal", &[]),
        ] {
            let (phases, pairs) = befall(control, path, regions).await.unwrap();
            seen.push(format!("{path}: {phases} [{pairs}]"));
        }
        assert_eq!(
            seen.join("\n"),
            "/kill: ready killed ready []\n\
             /revive: ready ready ready []\n\
             /partition: ready ready ready [tokyo-lima lagos-lima]\n\
             /partition: ready ready ready [tokyo-lagos tokyo-lima lagos-lima]\n\
             /heal: ready ready ready [tokyo-lagos lagos-lima]\n\
             /heal: ready ready ready []\n\
             /partition: ready ready ready [tokyo-lima]\n\
             /heal: ready ready ready []"
        );
    }

    #[tokio::test]
    async fn a_request_that_makes_no_sense_is_refused_in_words() {
        let control = control().await;
        let mut seen = Vec::new();
        for (path, regions) in [
            ("/kill", &["tokio"][..]),
            ("/kill", &[]),
            ("/kill", &["lima", "tokyo"]),
            ("/partition", &[]),
            ("/partition", &["lima", "lima"]),
            ("/heal", &["lima", "tokyo", "lagos"]),
        ] {
            seen.push(befall(control, path, regions).await.unwrap_err());
        }
        assert_eq!(
            seen.join("\n"),
            "404 no region \"tokio\" here; there are tokyo, lagos, lima\n\
             400 name a region\n\
             400 2 regions are named, at most 1 make sense\n\
             400 name one region, or two\n\
             400 lima and itself: name two regions\n\
             400 3 regions are named, at most 2 make sense"
        );
    }

    #[tokio::test]
    async fn a_form_that_a_web_page_may_post_anywhere_changes_nothing() {
        let control = control().await;
        let mut stream = tokio::net::TcpStream::connect(control).await.unwrap();
        let form = "POST /kill HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: text/plain\r\n\
                    Content-Length: 21\r\n\r\n{\"regions\":[\"tokyo\"]}";
        tokio::io::AsyncWriteExt::write_all(&mut stream, form.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 415"), "{answer}");
        let (phases, _) = befall(control, "/heal", &[]).await.unwrap();
        assert_eq!(phases, "ready ready ready");
    }
}

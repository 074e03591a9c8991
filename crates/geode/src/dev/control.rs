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

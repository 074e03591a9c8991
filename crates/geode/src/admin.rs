//! The admin API: what operators, their tools and orchestrators ask of one geode, and of the planet through it.
//!
//! | path | answers |
//! |---|---|
//! | `/healthz` | 200 while the process works |
//! | `/readyz` | 200 once it can serve, else 503 and what it waits for |
//! | `/metrics` | Prometheus text |
//! | `/v1/status` | every region as this geode knows it |
//! | `/v1/explain?who=…[&format=text]` | the decision for a client |
//! | `/v1/verify[?scope=planet][&examples=1,2]` | version vector and digests |
//! | `/v1/conflicts[?scope=planet][&limit=20][&key=K][&since_us=T][&after_us=R:T,…][&wait_ms=1000]` | conflicts that were resolved; with `wait_ms`, as soon as there is one |
//! | `/v1/backup` | a backup of this region, byte by byte; broken off if it cannot be completed |
//! | POST `/v1/add` `{"region":…,"link":…,"public":[…],"place":…,"capacity":…}` | adds a region |
//! | POST `/v1/evict` `{"region":…,"force":…}` | evicts a region that will not return |
//! | POST `/v1/rejoin` `{"region":…}` | lets an evicted region come back as new |
//! | POST `/v1/repair` `{"region":…}` | lets a region get all its rows anew from another |
//!
//! It listens on loopback only, as it demands no credentials yet.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use geode_planet::RegionName;
use serde::Deserialize;
use serde_json::Value;
use tokio::net::TcpListener;

use crate::geode::Geode;
use crate::metrics;
use crate::operator::status::StatusReport;
use crate::questions::{Answer, ConflictsQuestion, Question, ask_all};
use crate::regions::change::{self, Addition, Change, ChangeError};
use crate::store_report::{PlanetReport, RegionAnswer};

/// The type of Prometheus' text format: OpenMetrics, which is what the encoder writes.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Conflicts of each region, unless the question says otherwise.
const DEFAULT_CONFLICTS: usize = 20;
/// More conflicts than a geode keeps.
const MAX_CONFLICTS: usize = 10_000;

/// Answers on a geode's admin address for as long as it is polled.
pub(crate) async fn serve(listener: TcpListener, geode: Arc<Geode>) {
    if let Err(error) = axum::serve(listener, routes(geode)).await {
        tracing::error!(%error, "the admin address no longer answers");
    }
}

fn routes(geode: Arc<Geode>) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/v1/status", get(status))
        .route("/v1/explain", get(explain))
        .route("/v1/verify", get(verify))
        .route("/v1/conflicts", get(conflicts))
        .route("/v1/backup", get(backup))
        .route("/v1/add", post(add))
        .route("/v1/evict", post(evict))
        .route("/v1/rejoin", post(rejoin))
        .route("/v1/repair", post(repair))
        .fallback(unknown)
        .with_state(geode)
}

async fn healthz() -> &'static str {
    "ok\n"
}

async fn readyz(State(geode): State<Arc<Geode>>) -> (StatusCode, String) {
    let waits = geode.waits_for();
    if waits.is_empty() {
        return (StatusCode::OK, "ready\n".to_owned());
    }
    (StatusCode::SERVICE_UNAVAILABLE, waits.join("\n") + "\n")
}

async fn metrics(State(geode): State<Arc<Geode>>) -> Response {
    match metrics::render(&geode).await {
        Ok(text) => ([(header::CONTENT_TYPE, METRICS_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn status(State(geode): State<Arc<Geode>>) -> Json<StatusReport> {
    Json(StatusReport {
        planet: geode.planet.name.clone(),
        asked: geode.region.clone(),
        regions: geode.gossip.views().borrow().to_vec(),
        drift: geode.file_drift(),
    })
}

#[derive(Deserialize)]
struct WhoQuery {
    who: String,
    #[serde(default)]
    format: Format,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    #[default]
    Json,
    Text,
}

async fn explain(State(geode): State<Arc<Geode>>, Query(query): Query<WhoQuery>) -> Response {
    match (geode.router.explain(&query.who), query.format) {
        (Ok(explanation), Format::Json) => Json(explanation).into_response(),
        (Ok(explanation), Format::Text) => explanation.text().into_response(),
        (Err(error), _) => (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    }
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Scope {
    /// This geode alone.
    #[default]
    Geode,
    /// Every region, asked over links.
    Planet,
}

#[derive(Deserialize)]
struct VerifyQuery {
    #[serde(default)]
    scope: Scope,
    /// Key ranges to name example keys of, separated by commas.
    #[serde(default)]
    examples: String,
}

async fn verify(State(geode): State<Arc<Geode>>, Query(query): Query<VerifyQuery>) -> Response {
    let numbers = query.examples.split(',').filter(|number| !number.is_empty());
    match numbers.map(str::parse).collect::<Result<Vec<u8>, _>>() {
        Ok(ranges) => answer(&geode, Question::Verify { ranges }, query.scope).await,
        Err(_) => {
            (StatusCode::BAD_REQUEST, "examples: give key ranges from 0 to 255, like 3,17\n").into_response()
        }
    }
}

#[derive(Deserialize)]
struct ConflictsQuery {
    #[serde(default)]
    scope: Scope,
    limit: Option<usize>,
    key: Option<String>,
    #[serde(default)]
    since_us: u64,
    /// Regions with times, like `eu-west-1:1700000000000000`, separated by commas.
    #[serde(default)]
    after_us: String,
    #[serde(default)]
    wait_ms: u64,
}

async fn conflicts(State(geode): State<Arc<Geode>>, Query(query): Query<ConflictsQuery>) -> Response {
    let seen = |text: &str| {
        let (region, time_us) = text.rsplit_once(':')?;
        Some((region.parse::<RegionName>().ok()?, time_us.parse::<u64>().ok()?))
    };
    let seen = query.after_us.split(',').filter(|text| !text.is_empty()).map(seen).collect::<Option<_>>();
    let Some(after_us) = seen else {
        return (
            StatusCode::BAD_REQUEST,
            "after_us: give regions with times, like eu-west-1:1700000000000000\n",
        )
            .into_response();
    };
    let question = ConflictsQuestion {
        limit: query.limit.unwrap_or(DEFAULT_CONFLICTS).min(MAX_CONFLICTS),
        key: query.key,
        since_us: query.since_us,
        after_us,
        wait_ms: query.wait_ms,
    };
    answer(&geode, Question::Conflicts(question), query.scope).await
}

async fn backup(State(geode): State<Arc<Geode>>) -> Response {
    match geode.backup().await {
        Ok(body) => Body::new(body).into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
    }
}

// JSON alone is read, which no page in a browser on this machine can send here unasked.

async fn add(State(geode): State<Arc<Geode>>, Json(addition): Json<Addition>) -> Response {
    changed(change::add(&geode, &addition).await)
}

#[derive(Deserialize)]
struct EvictRequest {
    region: String,
    #[serde(default)]
    force: bool,
}

async fn evict(State(geode): State<Arc<Geode>>, Json(request): Json<EvictRequest>) -> Response {
    changed(change::evict(&geode, &request.region, request.force).await)
}

/// Which region.
#[derive(Deserialize)]
struct RegionRequest {
    region: String,
}

async fn rejoin(State(geode): State<Arc<Geode>>, Json(request): Json<RegionRequest>) -> Response {
    changed(change::rejoin(&geode, &request.region).await)
}

async fn repair(State(geode): State<Arc<Geode>>, Json(request): Json<RegionRequest>) -> Response {
    match geode.repair(&request.region).await {
        Ok(()) => Json(serde_json::json!({ "by": geode.region })).into_response(),
        Err(error) => (StatusCode::CONFLICT, format!("{error}\n")).into_response(),
    }
}

fn changed(change: Result<Change, ChangeError>) -> Response {
    match change {
        Ok(change) => Json(change).into_response(),
        Err(error @ ChangeError::Wrong(_)) => (StatusCode::CONFLICT, format!("{error}\n")).into_response(),
        Err(error @ ChangeError::Store(_)) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response()
        }
    }
}

/// Answers for this geode, or for the planet by asking the others.
async fn answer(geode: &Geode, question: Question, scope: Scope) -> Response {
    match scope {
        Scope::Geode => match geode.answer(question).await {
            Ok(value) => Json(value).into_response(),
            Err(error) => {
                (StatusCode::SERVICE_UNAVAILABLE, format!("{}: {error}\n", geode.region)).into_response()
            }
        },
        Scope::Planet => Json(ask_planet(geode, question).await).into_response(),
    }
}

async fn ask_planet(geode: &Geode, question: Question) -> PlanetReport<Value> {
    let (own, others) = tokio::join!(geode.answer(question.clone()), ask_all(&geode.dialer, &question));
    let answer = |answer: Answer| match answer {
        Ok(value) => RegionAnswer::Answer(value),
        Err(error) => RegionAnswer::Error(error),
    };
    let mut regions: BTreeMap<_, _> =
        others.into_iter().map(|(region, theirs)| (region, answer(theirs))).collect();
    regions.insert(geode.region.clone(), answer(own));
    PlanetReport { asked: geode.region.clone(), regions }
}

async fn unknown() -> (StatusCode, &'static str) {
    (
        StatusCode::NOT_FOUND,
        "there are /healthz, /readyz, /metrics, /v1/status, /v1/explain?who=, /v1/verify, /v1/conflicts, /v1/backup, /v1/add, \
         /v1/evict, /v1/rejoin and /v1/repair\n",
    )
}

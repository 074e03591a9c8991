//! One running geode as its own parts see it: what it is, whether it is ready, what it tells about itself.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use geode_crdt::HybridTime;
use geode_door::DoorMetrics;
use geode_embedded::{ConflictQuery, EmbeddedHandle};
use geode_host::{Host, HostStatus};
use geode_link::{Credentials, Dialer};
use geode_planet::{Planet, Program, RegionName};
use geode_resp::RespMetrics;
use serde_json::Value;
use tokio::sync::watch;

use crate::backup_body::BackupBody;
use crate::bundle::days_left_if_few;
use crate::gossip::Gossip;
use crate::membership::BEAT;
use crate::questions::{Answer, Question, ask_one};
use crate::router::Router;
use crate::state::{GeodeState, ServiceState, StoreState};
use crate::store_report::{Conflict, Conflicts, Proof, Side};

/// The version of this binary.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Over how many seconds the load that others hear of is smoothed, so that a burst moves no clients.
const LOAD_SMOOTHING_S: f64 = 5.0;
/// Example keys of one key range.
const EXAMPLES: usize = 5;
/// The longest that a question about conflicts waits for one: well below the patience of who asks over a link.
const LONGEST_POLL: Duration = Duration::from_secs(2);

/// One geode. The parts that need others are set while it starts, in order.
pub(crate) struct Geode {
    /// As planet.toml says, which may be behind in what regions there are.
    pub(crate) planet: Arc<Planet>,
    /// With the regions that it has now.
    pub(crate) standing: watch::Sender<Arc<Planet>>,
    /// Of the meaning of its planet.toml, with the regions that the planet has now.
    pub(crate) config_digest: RwLock<String>,
    /// Where planet.toml is.
    pub(crate) config_file: PathBuf,
    pub(crate) region: RegionName,
    pub(crate) gossip: Arc<Gossip>,
    pub(crate) router: Arc<Router>,
    pub(crate) dialer: Dialer,
    /// Set in a planet of more than one region.
    pub(crate) credentials: OnceLock<Arc<Credentials>>,
    /// Set with the door.
    pub(crate) door_metrics: OnceLock<Arc<DoorMetrics>>,
    /// Set when the store starts.
    pub(crate) redis_metrics: OnceLock<Arc<RespMetrics>>,
    /// Set once the log is read and commands are answered.
    pub(crate) store: OnceLock<EmbeddedHandle>,
    /// Set once the service's instances are being started.
    pub(crate) host: OnceLock<Arc<Host>>,
    /// Set once the door takes connections.
    pub(crate) door_open: AtomicBool,
    /// It stops: others take its clients.
    pub(crate) draining: AtomicBool,
    incarnation: u64,
    /// The smoothed load, as bits of an f64.
    load: AtomicU64,
}

impl Geode {
    /// A geode of which nothing runs yet.
    pub(crate) fn new(
        planet: Arc<Planet>,
        config_file: PathBuf,
        region: RegionName,
        dialer: Dialer,
    ) -> Arc<Self> {
        let incarnation =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let starting = GeodeState {
            trouble: Some("it is starting".into()),
            ..GeodeState::new(region.clone(), incarnation, planet.digest())
        };
        let peers = planet.regions.keys().filter(|peer| **peer != region).cloned();
        let gossip = Gossip::new(starting, peers);
        let standing = watch::Sender::new(Arc::clone(&planet));
        let router = Arc::new(Router::new(standing.subscribe(), region.clone(), gossip.views()));
        Arc::new(Self {
            config_digest: RwLock::new(planet.digest()),
            config_file,
            planet,
            standing,
            region,
            gossip,
            router,
            dialer,
            credentials: OnceLock::new(),
            door_metrics: OnceLock::new(),
            redis_metrics: OnceLock::new(),
            store: OnceLock::new(),
            host: OnceLock::new(),
            door_open: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            incarnation,
            load: AtomicU64::new(0),
        })
    }

    /// The digest of what its planet.toml means with the regions that the planet has now.
    pub(crate) fn config_digest(&self) -> String {
        self.config_digest.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What this geode waits for before it can serve, a line each; empty once it is ready.
    pub(crate) fn waits_for(&self) -> Vec<String> {
        let mut waits = Vec::new();
        waits.extend(self.store_trouble());
        if !self.door_open.load(Ordering::Relaxed) {
            waits.push("the door is not open yet".to_owned());
        }
        waits.extend(self.service_trouble(self.host_status().as_ref()));
        if self.draining.load(Ordering::Relaxed) {
            waits.push("it is stopping".to_owned());
        }
        if waits.is_empty() && !self.gossip.says_healthy(&self.region) {
            waits.push("the others have not been told yet".to_owned());
        }
        waits
    }

    /// What this geode tells the others, once a beat.
    pub(crate) fn state(&self) -> GeodeState {
        let status = self.host_status();
        let trouble = self.store_trouble().or_else(|| self.service_trouble(status.as_ref()));
        GeodeState {
            service_digest: status.as_ref().and_then(|status| status.service_digest.clone()),
            trouble,
            draining: self.draining.load(Ordering::Relaxed),
            service: status.as_ref().map(|status| self.service_state(status)),
            store: self.store.get().map(|store| StoreState {
                vector: portable(&store.vector()),
                clock_ahead_ms: store.clock_ahead_ms(),
                refuses_writes: store.write_refusal(),
                memory: store.memory().map(Into::into),
            }),
            bundle_days_left: self.credentials.get().and_then(|credentials| days_left_if_few(credentials)),
            ..GeodeState::new(self.region.clone(), self.incarnation, self.config_digest())
        }
    }

    /// The service's instances, if the planet has a service and it has been started.
    pub(crate) fn host_status(&self) -> Option<HostStatus> {
        self.host.get().map(|host| host.status())
    }

    /// A store that takes no writes makes the geode unfit: others take its users, whose writes then succeed.
    fn store_trouble(&self) -> Option<String> {
        let Some(store) = self.store.get() else { return Some("its store is reading its log".to_owned()) };
        if store.is_taking_in() {
            return Some("its store is taking in what another region holds".to_owned());
        }
        store.write_refusal().map(|_| "its store refuses writes".to_owned())
    }

    fn service_trouble(&self, status: Option<&HostStatus>) -> Option<String> {
        self.planet.service.as_ref()?;
        match status {
            None => Some("its service is not started yet".to_owned()),
            Some(status) if status.healthy() == 0 => Some("no instance of its service is healthy".to_owned()),
            Some(_) => None,
        }
    }

    fn service_state(&self, status: &HostStatus) -> ServiceState {
        let room = self.planet.service.as_ref().map_or(0, |service| {
            let most = if matches!(service.program, Program::Run(_)) { service.instances.max } else { 1 };
            u64::from(most) * u64::from(service.instances.in_flight)
        });
        let now = f64::from(status.in_flight) / room.max(1) as f64;
        let before = f64::from_bits(self.load.load(Ordering::Relaxed));
        let load = before + (now - before) * (BEAT.as_secs_f64() / LOAD_SMOOTHING_S);
        self.load.store(load.to_bits(), Ordering::Relaxed);
        let running = status.instances.iter().filter(|one| one.state != geode_host::InstanceState::Empty);
        ServiceState {
            healthy: status.healthy() as u32,
            instances: running.count() as u32,
            in_flight: status.in_flight,
            load,
        }
    }

    /// Answers an operator's question about this geode.
    pub(crate) async fn answer(&self, question: Question) -> Answer {
        let store = self.store.get().ok_or("its store is reading its log")?;
        let json = |value: Result<Value, _>| value.map_err(|error: serde_json::Error| error.to_string());
        match question {
            Question::Verify { ranges } => {
                json(serde_json::to_value(proof(store, &ranges).await.map_err(|error| error.to_string())?))
            }
            Question::Repair => store.reseed().await.map(|()| Value::Null),
            Question::Conflicts(asked) => {
                let after_us = asked.after_us.get(&self.region).map_or(0, |seen| *seen).max(asked.since_us);
                let query = ConflictQuery {
                    limit: asked.limit,
                    key: asked.key.map(String::into_bytes),
                    after: HybridTime(after_us),
                };
                if asked.wait_ms > 0 {
                    let patience = Duration::from_millis(asked.wait_ms).min(LONGEST_POLL);
                    store.wait_for_conflict(query.after, patience).await;
                }
                let report = store.conflicts(query).await.map_err(|error| error.to_string())?;
                json(serde_json::to_value(conflicts(report)))
            }
        }
    }
}

impl Geode {
    /// Lets a region of the planet get all its rows anew.
    ///
    /// # Errors
    /// Why it does not, in a line.
    pub(crate) async fn repair(&self, region: &str) -> Result<(), String> {
        let planet = self.standing.borrow().clone();
        let known = planet.regions.keys().find(|known| known.as_str() == region);
        let region = known.ok_or_else(|| format!("{region} is no region of this planet"))?;
        let answer = if *region == self.region {
            self.answer(Question::Repair).await
        } else {
            ask_one(&self.dialer, region, &Question::Repair).await
        };
        answer.map(drop).map_err(|error| format!("{region}: {error}"))
    }

    /// The bytes of a backup of this region.
    ///
    /// # Errors
    /// There is nothing to back up yet, or any more.
    pub(crate) async fn backup(&self) -> Result<BackupBody, String> {
        let store = self.store.get().ok_or("its store is reading its log")?;
        store.backup().await.map(BackupBody::new).map_err(|error| error.to_string())
    }
}

async fn proof(store: &EmbeddedHandle, ranges: &[u8]) -> Result<Proof, geode_embedded::Stopped> {
    let held = store.held_state().await?;
    let mut proof = Proof {
        vector: portable(&held.vector),
        digests: held.digest.iter().map(|sum| format!("{sum:016x}")).collect(),
        examples: Default::default(),
    };
    for range in ranges {
        let keys = store.example_keys(*range, EXAMPLES).await?;
        let named = keys.iter().map(|(database, key)| match database {
            0 => text(key),
            _ => format!("{} (database {database})", text(key)),
        });
        proof.examples.insert(*range, named.collect());
    }
    Ok(proof)
}

fn conflicts(report: geode_embedded::ConflictReport) -> Conflicts {
    let side =
        |side: geode_embedded::Side| Side { value: text(&side.value), dot: side.dot, time_us: side.time.0 };
    let recent = report.recent.into_iter().map(|conflict| Conflict {
        time_us: conflict.time.0,
        database: conflict.database,
        key: text(&conflict.key),
        kind: conflict.kind.name().to_owned(),
        element: text(&conflict.element),
        rule: conflict.rule.name().to_owned(),
        winner: side(conflict.winner),
        loser: side(conflict.loser),
    });
    Conflicts {
        recent: recent.collect(),
        totals: report.totals.into_iter().map(|(rule, count)| (rule.name().to_owned(), count)).collect(),
    }
}

/// A vector with its actors as text.
fn portable(vector: &geode_embedded::Vector) -> std::collections::BTreeMap<String, u64> {
    vector.0.iter().map(|(actor, sequence)| (actor.to_string(), *sequence)).collect()
}

/// Bytes for people: what is not printable ASCII or UTF-8 text is escaped.
fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => bytes.escape_ascii().to_string(),
    }
}

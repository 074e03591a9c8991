//! `/metrics`: what the parts count, in Prometheus' text format. The parts count in plain atomics; they are read here,
//! at the scrape, so nothing on a request's path knows of metrics.

use std::fmt;
use std::sync::Arc;

use geode_door::DoorMetrics;
use geode_embedded::Stats;
use geode_host::{HostStatus, InstanceState};
use geode_resp::RespMetrics;
use geode_steering::RegionHealth;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::geode::{Geode, VERSION};
use crate::membership::RegionView;

/// All numbers of a geode at one moment.
#[derive(Debug)]
struct Scrape {
    region: String,
    config_digest: String,
    ready: bool,
    views: Arc<Vec<RegionView>>,
    host: Option<HostStatus>,
    door: Option<Arc<DoorMetrics>>,
    redis: Option<Arc<RespMetrics>>,
    store: Option<Stats>,
    refuses_writes: bool,
}

/// The metrics of a geode as text.
///
/// # Errors
/// Never in practice: writing to a String cannot fail.
pub(crate) async fn render(geode: &Geode) -> Result<String, fmt::Error> {
    let store = match geode.store.get() {
        Some(store) => store.stats().await.ok(),
        None => None,
    };
    let scrape = Scrape {
        region: geode.region.to_string(),
        config_digest: geode.config_digest(),
        ready: geode.waits_for().is_empty(),
        views: Arc::clone(&geode.gossip.views().borrow()),
        host: geode.host_status(),
        door: geode.door_metrics.get().cloned(),
        redis: geode.redis_metrics.get().cloned(),
        store,
        refuses_writes: geode.store.get().is_some_and(|store| store.write_refusal().is_some()),
    };
    let mut registry = Registry::default();
    registry.register_collector(Box::new(scrape));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        self.geode(&mut page)?;
        self.regions(&mut page)?;
        self.door(&mut page)?;
        self.service(&mut page)?;
        self.redis(&mut page)?;
        self.store(&mut page)
    }
}

impl Scrape {
    fn geode(&self, page: &mut Page<'_>) -> fmt::Result {
        let labels = [("version", VERSION), ("region", &self.region), ("config", &self.config_digest)];
        page.gauges("geode_build", "The version and configuration of this geode, always 1", [(labels, 1.0)])?;
        page.gauge("geode_ready", "Whether this geode can serve", self.ready)
    }

    fn regions(&self, page: &mut Page<'_>) -> fmt::Result {
        let named = || self.views.iter().map(|view| ([("region", view.region.as_str())], view));
        let healthy = |view: &RegionView| f64::from(view.health == RegionHealth::Healthy);
        let healths = named().map(|(label, view)| (label, healthy(view)));
        page.gauges("geode_region_healthy", "Whether a region serves, by all vantage points", healths)?;
        let reached = named().map(|(label, view)| (label, f64::from(view.reachable)));
        page.gauges("geode_region_reachable", "Whether this geode reaches a region", reached)?;
        let rtts = named().filter_map(|(label, view)| Some((label, view.rtt_ms? / 1000.0)));
        page.gauges("geode_region_rtt_seconds", "Measured round trip to a region", rtts)
    }

    fn door(&self, page: &mut Page<'_>) -> fmt::Result {
        let Some(door) = &self.door else { return Ok(()) };
        let (connections, forward) = (&door.connections, &door.forward);
        let outcomes = [
            ("local", &door.answered_locally),
            ("peer", &door.answered_by_peer),
            ("refused", &door.refused),
            ("unavailable", &door.unavailable),
            ("failed", &door.failed),
            ("timed-out", &door.timed_out),
        ];
        let outcomes = outcomes.map(|(outcome, count)| ([("outcome", outcome)], count.get()));
        page.counters("geode_door_requests", "Requests, by who answered them or why nobody did", outcomes)?;
        let from_peers = door.from_peers.get();
        page.counter(
            "geode_door_requests_from_peers",
            "Requests that other geodes forwarded here",
            from_peers,
        )?;
        page.counter(
            "geode_door_stale",
            "Answers that may lack what the session has seen",
            door.stale.get(),
        )?;
        page.gauge(
            "geode_door_in_flight",
            "Requests without a complete answer",
            connections.in_flight.get() as f64,
        )?;
        page.gauge("geode_door_connections", "Open connections", connections.open.get() as f64)?;
        let turned_away = connections.turned_away.get();
        page.counter("geode_door_connections_turned_away", "Connections above the limit", turned_away)?;
        let bytes = [("in", connections.bytes_in.get()), ("out", connections.bytes_out.get())];
        let bytes = bytes.map(|(direction, count)| ([("direction", direction)], count));
        page.counters("geode_door_bytes", "Bytes to and from clients", bytes)?;
        page.counter("geode_door_retries", "Requests sent again", forward.retries.get())?;
        let denied = forward.retries_denied.get();
        page.counter("geode_door_retries_denied", "Retries that the budget did not allow", denied)?;
        let failures = forward.connect_failures.get();
        page.counter("geode_door_connect_failures", "Upstream connections that could not be opened", failures)
    }

    fn service(&self, page: &mut Page<'_>) -> fmt::Result {
        let Some(host) = &self.host else { return Ok(()) };
        let states = [
            ("starting", InstanceState::Starting),
            ("healthy", InstanceState::Healthy),
            ("unhealthy", InstanceState::Unhealthy),
            ("draining", InstanceState::Draining),
            ("stopping", InstanceState::Stopping),
            ("backing-off", InstanceState::BackingOff),
        ];
        let in_state =
            |state| host.instances.iter().filter(|instance| instance.state == state).count() as f64;
        let counts = states.map(|(name, state)| ([("state", name)], in_state(state)));
        page.gauges("geode_service_instances", "Instances of the service", counts)?;
        page.gauge("geode_service_in_flight", "Requests in flight", f64::from(host.in_flight))?;
        let restarts = host.instances.iter().map(|instance| instance.restarts).sum();
        page.counter("geode_service_restarts", "Instances that died and were tried again", restarts)
    }

    fn redis(&self, page: &mut Page<'_>) -> fmt::Result {
        let Some(redis) = &self.redis else { return Ok(()) };
        page.counter("geode_redis_commands", "Commands executed", redis.commands.get())?;
        page.counter("geode_redis_errors", "Commands answered with an error", redis.errors.get())?;
        let protocol_errors = redis.protocol_errors.get();
        page.counter(
            "geode_redis_protocol_errors",
            "Connections closed for what they sent",
            protocol_errors,
        )?;
        page.counter("geode_redis_batches", "Batches of commands, one log write each", redis.batches.get())?;
        let bytes = [("in", redis.bytes_in.get()), ("out", redis.bytes_out.get())];
        let bytes = bytes.map(|(direction, count)| ([("direction", direction)], count));
        page.counters("geode_redis_bytes", "Bytes to and from clients", bytes)?;
        page.gauge("geode_redis_connections", "Open connections", redis.connections_open.get() as f64)?;
        let refused = redis.connections_refused.get();
        page.counter("geode_redis_connections_refused", "Connections above the limit", refused)?;
        page.gauge(
            "geode_redis_held_bytes",
            "Input and output held for clients",
            redis.bytes_held.get() as f64,
        )
    }

    fn store(&self, page: &mut Page<'_>) -> fmt::Result {
        let Some(store) = &self.store else { return Ok(()) };
        page.gauge("geode_store_keys", "Keys with live data", store.keys as f64)?;
        page.gauge(
            "geode_store_memory_bytes",
            "Estimate of what rows take in memory",
            store.memory_bytes as f64,
        )?;
        page.gauge(
            "geode_store_refuses_writes",
            "Whether writes are refused because the disk does not take them",
            self.refuses_writes,
        )?;
        if let Some(limit) = store.memory_limit {
            page.gauge("geode_store_memory_limit_bytes", "What rows may take in memory", limit as f64)?;
            page.gauge("geode_store_cold_keys", "Keys that are on disk alone", store.cold_keys as f64)?;
            let fetched = store.fetched_keys;
            page.counter("geode_store_fetched_keys", "Keys read from the disk for commands", fetched)?;
            let waited = store.waited_keys;
            page.counter("geode_store_waited_keys", "Keys read from the disk while all waited", waited)?;
            page.counter("geode_store_evicted_keys", "Keys that left the memory", store.evicted_keys)?;
        }
        page.gauge("geode_store_log_bytes", "Log on disk", store.log_bytes as f64)?;
        let tail = store.log_tail_bytes as f64;
        page.gauge(
            "geode_store_log_tail_bytes",
            "Log that a start replays: behind the last checkpoint",
            tail,
        )?;
        page.gauge("geode_store_checkpoint_bytes", "Checkpoint on disk", store.checkpoint_bytes as f64)?;
        if let Some(age) = store.checkpoint_age {
            let age_s = age.as_secs_f64();
            page.gauge(
                "geode_store_checkpoint_age_seconds",
                "Since the last checkpoint was completed",
                age_s,
            )?;
        }
        let away = store.out_of_reach.iter().map(|region| ([("region", region.as_str())], 1.0));
        page.gauges("geode_store_peer_out_of_reach", "A region needs what the log no longer holds", away)?;
        let conflicts = store.conflicts.iter().map(|(rule, count)| ([("rule", *rule)], *count));
        page.counters("geode_store_conflicts", "Conflicts resolved, by rule", conflicts)?;
        let peers = || store.peers.iter().map(|peer| ([("region", peer.region.as_str())], peer));
        let connected = peers().map(|(label, peer)| (label, f64::from(peer.connected)));
        page.gauges("geode_store_peer_connected", "Whether replication with a region is up", connected)?;
        let behind = peers().map(|(label, peer)| (label, peer.behind_entries as f64));
        page.gauges("geode_store_peer_behind_entries", "Entries that a region is not known to hold", behind)?;
        let ahead = peers().map(|(label, peer)| (label, peer.ahead_entries as f64));
        page.gauges("geode_store_peer_ahead_entries", "Entries of a region that are missing here", ahead)?;
        let sent = peers().map(|(label, peer)| (label, peer.traffic.sent));
        page.counters("geode_store_peer_sent_bytes", "Replication to a region, compressed", sent)?;
        let plain = peers().map(|(label, peer)| (label, peer.traffic.sent_plain));
        page.counters("geode_store_peer_sent_plain_bytes", "The same before compression", plain)?;
        let received = peers().map(|(label, peer)| (label, peer.traffic.received));
        page.counters("geode_store_peer_received_bytes", "Replication from a region, compressed", received)
    }
}

/// A page of metrics that is being written.
struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.counters(name, help, [([], value)] as [([(&str, &str); 0], u64); 1])
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Into<f64>) -> fmt::Result {
        self.gauges(name, help, [([], value.into())] as [([(&str, &str); 0], f64); 1])
    }

    fn counters<'v, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = ([(&'v str, &'v str); N], u64)>,
    ) -> fmt::Result {
        self.family(name, help, values.into_iter().map(|(labels, value)| (labels, ConstCounter::new(value))))
    }

    fn gauges<'v, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = ([(&'v str, &'v str); N], f64)>,
    ) -> fmt::Result {
        self.family(name, help, values.into_iter().map(|(labels, value)| (labels, ConstGauge::new(value))))
    }

    fn family<'v, const N: usize, M: EncodeMetric>(
        &mut self,
        name: &str,
        help: &str,
        values: impl Iterator<Item = ([(&'v str, &'v str); N], M)>,
    ) -> fmt::Result {
        let mut values = values.peekable();
        let Some((_, first)) = values.peek() else { return Ok(()) };
        let mut family = self.0.encode_descriptor(name, help, None, first.metric_type())?;
        for (labels, value) in values {
            if N == 0 {
                return value.encode(family);
            }
            value.encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

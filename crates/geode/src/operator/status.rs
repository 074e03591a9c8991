//! `geode status`: every region at a glance, and whether all of them are the same.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, Table, presets};
use geode_planet::RegionName;
use geode_steering::RegionHealth;
use serde::{Deserialize, Serialize};

use super::{AdminArgs, OperatorError, Outcome, say_json};
use crate::membership::RegionView;
use crate::state::GeodeState;
use crate::terminal::say;

/// How much of a digest a person compares.
const SHOWN_DIGEST_CHARS: usize = 12;

/// Options of `geode status`.
#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    admin: AdminArgs,
}

/// What one geode knows of the planet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct StatusReport {
    pub(crate) planet: String,
    /// The region that was asked: `reachable` and `rtt_ms` are as seen from there.
    pub(crate) asked: RegionName,
    pub(crate) regions: Vec<RegionView>,
    /// Where the planet.toml of the region that was asked is behind the planet, with what to write. Nothing is broken by it.
    #[serde(default)]
    pub(crate) drift: Vec<String>,
}

/// Asks, prints, and judges.
///
/// # Errors
/// No geode answers.
pub(crate) async fn status(args: StatusArgs) -> Result<Outcome, OperatorError> {
    let report: StatusReport = args.admin.find().await?.ask("/v1/status").await?;
    let wrong = report.wrong();
    if args.admin.json {
        #[derive(Serialize)]
        struct Judged<'a> {
            #[serde(flatten)]
            report: &'a StatusReport,
            good: bool,
            wrong: &'a [String],
        }
        say_json(&Judged { report: &report, good: wrong.is_empty(), wrong: &wrong })?;
    } else {
        say(&report.text(&wrong))?;
    }
    Ok(if wrong.is_empty() { Outcome::Good } else { Outcome::Bad })
}

impl StatusReport {
    /// Everything that is not as it should be, a line each; empty if all regions serve and all copies are the same.
    pub(crate) fn wrong(&self) -> Vec<String> {
        let ailing = self.regions.iter().filter(|view| view.health != RegionHealth::Healthy);
        let mut wrong: Vec<String> =
            ailing.map(|view| format!("{} is {}", view.region, view.health)).collect();
        wrong.extend(self.regions.iter().filter_map(|view| {
            let ahead_ms = view.state.as_ref()?.store.as_ref()?.clock_ahead_ms?;
            let region = &view.region;
            Some(format!("{region} refuses writes: its clock is {ahead_ms} ms ahead; set it (NTP)"))
        }));
        wrong.extend(self.regions.iter().filter_map(|view| {
            let (region, days) = (&view.region, view.state.as_ref()?.bundle_days_left?);
            let ends = match days {
                ..0 => "has ended: other regions refuse it".to_owned(),
                0 => "ends today".to_owned(),
                1 => "ends in a day".to_owned(),
                _ => format!("ends in {days} days"),
            };
            Some(format!("{region}: its bundle {ends}; renew it with `geode init --renew {region}`"))
        }));
        wrong.extend(self.regions.iter().filter_map(|view| {
            let refusal = view.state.as_ref()?.store.as_ref()?.refuses_writes.as_ref()?;
            Some(format!(
                "{}: {}",
                view.region,
                refusal.trim_start_matches("DISK ").trim_start_matches("OOM ")
            ))
        }));
        wrong.extend(self.differing("versions", |state| Some(&state.version)));
        wrong.extend(self.differing("configurations", |state| Some(&state.config_digest)));
        wrong.extend(self.differing("services", |state| state.service_digest.as_ref()));
        wrong
    }

    /// One line if the regions do not all have the same of something.
    fn differing(&self, what: &str, of: impl Fn(&GeodeState) -> Option<&String>) -> Option<String> {
        let mut regions_by_value: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for view in &self.regions {
            if let Some(value) = view.state.as_ref().and_then(&of) {
                regions_by_value.entry(value).or_default().push(view.region.as_str());
            }
        }
        let groups = regions_by_value.iter().map(|(value, regions)| {
            let value: String = value.chars().take(SHOWN_DIGEST_CHARS).collect();
            format!("{value} in {}", regions.join(", "))
        });
        let groups: Vec<String> = groups.collect();
        (groups.len() > 1).then(|| format!("{what} differ: {}", groups.join("; ")))
    }

    /// For each region the entries that some other region holds and it does not; `None` where that is not known.
    fn lag_entries(&self) -> Vec<Option<u64>> {
        let vector = |view: &RegionView| Some(view.state.as_ref()?.store.as_ref()?.vector.clone());
        let vectors: Vec<_> = self.regions.iter().map(vector).collect();
        let mut greatest: BTreeMap<&String, u64> = BTreeMap::new();
        for (actor, sequence) in vectors.iter().flatten().flatten() {
            let known = greatest.entry(actor).or_default();
            *known = (*known).max(*sequence);
        }
        let lag = |held: &BTreeMap<String, u64>| {
            greatest.iter().map(|(actor, sequence)| sequence - held.get(*actor).unwrap_or(&0)).sum()
        };
        vectors.iter().map(|held| held.as_ref().map(lag)).collect()
    }

    /// The table, and below it what is wrong.
    pub(crate) fn text(&self, wrong: &[String]) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header([
            "region",
            "health",
            "rtt",
            "version",
            "config",
            "service",
            "instances",
            "in flight",
            "lag",
        ]);
        for (view, lag) in self.regions.iter().zip(self.lag_entries()) {
            table.add_row(self.row(view, lag));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        for number in [2, 6, 7, 8] {
            if let Some(column) = table.column_mut(number) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let mut text = format!("planet {}, seen from {}\n\n", self.planet, self.asked);
        for line in table.lines() {
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text.push('\n');
        for line in self.limited() {
            text.push_str(&line);
            text.push('\n');
        }
        if wrong.is_empty() {
            text.push_str("all regions serve, and all copies are the same\n");
        }
        for line in wrong.iter().chain(&self.drift) {
            text.push_str(line);
            text.push('\n');
        }
        text
    }

    /// A line for each region with a limit of memory.
    fn limited(&self) -> Vec<String> {
        let line = |view: &RegionView| {
            let memory = view.state.as_ref()?.store.as_ref()?.memory?;
            let mebibytes = |bytes: u64| bytes.div_ceil(1 << 20);
            let (taken, limit) = (mebibytes(memory.taken_bytes), mebibytes(memory.limit_bytes));
            Some(format!(
                "{}: {} of {} keys are on disk alone; rows take {taken} of {limit} MiB; {} keys read for commands since it started",
                view.region, memory.cold_keys, memory.keys, memory.fetched_keys
            ))
        };
        self.regions.iter().filter_map(line).collect()
    }

    fn row(&self, view: &RegionView, lag: Option<u64>) -> [String; 9] {
        let unknown = || "-".to_owned();
        let short = |digest: &String| digest.chars().take(SHOWN_DIGEST_CHARS).collect();
        let state = view.state.as_ref();
        let service = state.and_then(|state| state.service.as_ref());
        let health = match &view.health {
            RegionHealth::Healthy if !view.reachable => "healthy, cut off from here".to_owned(),
            RegionHealth::Unreachable { .. } => "unreachable".to_owned(),
            RegionHealth::Unhealthy { .. } => "unhealthy".to_owned(),
            health => health.to_string(),
        };
        [
            view.region.to_string(),
            health,
            view.rtt_ms.map_or_else(unknown, |rtt| format!("{rtt:.0} ms")),
            state.map_or_else(unknown, |state| state.version.clone()),
            state.map_or_else(unknown, |state| short(&state.config_digest)),
            state.and_then(|state| state.service_digest.as_ref()).map_or_else(unknown, short),
            service.map_or_else(unknown, |service| format!("{}/{}", service.healthy, service.instances)),
            service.map_or_else(unknown, |service| service.in_flight.to_string()),
            lag.map_or_else(unknown, |lag| lag.to_string()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{MemoryState, ServiceState, StoreState};

    fn view(region: &str, incarnation: u64, held: u64) -> RegionView {
        let region: RegionName = region.parse().unwrap();
        let vector = BTreeMap::from([("us-east-1.1f".to_owned(), held), ("eu-west-1.2e".to_owned(), 7)]);
        let state = GeodeState {
            region: region.clone(),
            incarnation,
            beat: 3,
            version: "0.1.0".into(),
            config_digest: "9c1185a5c5e9fc54".into(),
            service_digest: Some("ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb".into()),
            trouble: None,
            draining: false,
            service: Some(ServiceState { healthy: 1, instances: 1, in_flight: 3, load: 0.01 }),
            store: Some(StoreState { vector, clock_ahead_ms: None, refuses_writes: None, memory: None }),
            bundle_days_left: None,
        };
        RegionView {
            region,
            health: RegionHealth::Healthy,
            reachable: true,
            rtt_ms: Some(75.31),
            age_ms: 100,
            state: Some(state),
        }
    }

    fn report() -> StatusReport {
        let mut us = view("us-east-1", 1, 1200);
        us.rtt_ms = None;
        StatusReport {
            planet: "acme".into(),
            asked: "us-east-1".parse().unwrap(),
            regions: vec![view("ap-southeast-2", 1, 1188), view("eu-west-1", 1, 1200), us],
            drift: vec![],
        }
    }

    #[test]
    fn a_good_planet_reads_as_good() {
        let report = report();
        let wrong = report.wrong();
        assert_eq!(wrong, [""; 0]);
        insta::assert_snapshot!(report.text(&wrong), @r#"
        planet acme, seen from us-east-1

        region          health     rtt  version  config        service       instances  in flight  lag
        ap-southeast-2  healthy  75 ms  0.1.0    9c1185a5c5e9  ca978112ca1b        1/1          3   12
        eu-west-1       healthy  75 ms  0.1.0    9c1185a5c5e9  ca978112ca1b        1/1          3    0
        us-east-1       healthy      -  0.1.0    9c1185a5c5e9  ca978112ca1b        1/1          3    0

        all regions serve, and all copies are the same
        "#);
    }

    #[test]
    fn every_drift_is_named() {
        let mut report = report();
        let state = |report: &mut StatusReport, index: usize| report.regions[index].state.take().unwrap();
        let mut ap = state(&mut report, 0);
        ap.version = "0.2.0".into();
        ap.config_digest = "0000000000000000".into();
        report.regions[0].state = Some(ap);
        report.regions[0].reachable = false;
        let mut eu = state(&mut report, 1);
        eu.service_digest = None;
        eu.trouble = Some("no healthy instance".into());
        report.regions[1].state = Some(eu);
        report.regions[1].health = RegionHealth::Unhealthy { reason: "no healthy instance".into() };
        report.regions[2].health = RegionHealth::Unreachable { for_ms: 12_000 };
        let us = report.regions[2].state.as_mut().and_then(|state| state.store.as_mut());
        let us = us.unwrap();
        us.clock_ahead_ms = Some(2_000);
        us.memory = Some(MemoryState {
            limit_bytes: 64 << 20,
            taken_bytes: 55 << 20,
            keys: 140_000,
            cold_keys: 76_543,
            fetched_keys: 210,
        });
        report.regions[2].state.as_mut().unwrap().bundle_days_left = Some(12);
        insta::assert_snapshot!(report.text(&report.wrong()), @r#"
        planet acme, seen from us-east-1

        region          health                        rtt  version  config        service       instances  in flight  lag
        ap-southeast-2  healthy, cut off from here  75 ms  0.2.0    000000000000  ca978112ca1b        1/1          3   12
        eu-west-1       unhealthy                   75 ms  0.1.0    9c1185a5c5e9  -                   1/1          3    0
        us-east-1       unreachable                     -  0.1.0    9c1185a5c5e9  ca978112ca1b        1/1          3    0

        us-east-1: 76543 of 140000 keys are on disk alone; rows take 55 of 64 MiB; 210 keys read for commands since it started
        eu-west-1 is unhealthy: no healthy instance
        us-east-1 is unreachable for 12000 ms
        us-east-1 refuses writes: its clock is 2000 ms ahead; set it (NTP)
        us-east-1: its bundle ends in 12 days; renew it with `geode init --renew us-east-1`
        versions differ: 0.1.0 in eu-west-1, us-east-1; 0.2.0 in ap-southeast-2
        configurations differ: 000000000000 in ap-southeast-2; 9c1185a5c5e9 in eu-west-1, us-east-1
        "#);
    }

    #[test]
    fn a_region_never_heard_of_has_no_numbers() {
        let mut report = report();
        report.regions[0].state = None;
        report.regions[0].rtt_ms = None;
        report.regions[0].health = RegionHealth::Unhealthy { reason: "not heard from yet".into() };
        insta::assert_snapshot!(report.text(&report.wrong()), @r#"
        planet acme, seen from us-east-1

        region          health       rtt  version  config        service       instances  in flight  lag
        ap-southeast-2  unhealthy      -  -        -             -                     -          -    -
        eu-west-1       healthy    75 ms  0.1.0    9c1185a5c5e9  ca978112ca1b        1/1          3    0
        us-east-1       healthy        -  0.1.0    9c1185a5c5e9  ca978112ca1b        1/1          3    0

        ap-southeast-2 is unhealthy: not heard from yet
        "#);
    }
}

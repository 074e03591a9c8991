//! What is said when the planet is ready: a table for people, JSON for programs.

use std::fmt::Write as _;

use comfy_table::{ContentArrangement, Table, presets};
use geode_planet::rtt;
use serde::{Deserialize, Serialize};

use super::geodes::GeodeState;
use super::plan::{Addresses, Plan, PlannedRegion};
use super::processes;

/// More regions than this and the round trips do not fit beside the addresses.
const MAX_RTT_COLUMNS: usize = 5;

/// The ready file: where everything of the running planet is. A part that is not built is null.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ready {
    /// The address that stands for the internet.
    pub(crate) door: String,
    pub(crate) dns: Option<String>,
    pub(crate) console: Option<String>,
    /// Where `geode chaos` turns to.
    pub(crate) control: String,
    pub(crate) regions: Vec<ReadyRegion>,
}

/// One region of the ready file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ReadyRegion {
    pub(crate) name: String,
    pub(crate) door: String,
    pub(crate) redis: String,
    pub(crate) admin: String,
    pub(crate) dns: Option<String>,
    pub(crate) pid: Option<u32>,
    pub(crate) service_pids: Vec<u32>,
}

impl Ready {
    /// The planet of this plan, whose geodes are in these states.
    pub(super) fn new(plan: &Plan, states: &[GeodeState]) -> Self {
        let region = |(region, state): (&PlannedRegion, &GeodeState)| ReadyRegion {
            name: region.name.to_string(),
            door: format!("http://{}", region.door()),
            redis: format!("redis://{}", region.redis()),
            admin: format!("http://{}", region.admin()),
            dns: None,
            pid: state.pid,
            service_pids: state.pid.map(processes::children_of).unwrap_or_default(),
        };
        Self {
            door: format!("http://{}", plan.internet),
            dns: None,
            console: None,
            control: format!("http://{}", plan.control),
            regions: plan.regions.iter().zip(states).map(region).collect(),
        }
    }
}

/// The text that greets the user: the regions, and three lines to try. `program` is how this program was called.
pub(super) fn greeting(plan: &Plan, wan: bool, program: &str) -> String {
    let mut text = table(plan).to_string();
    text.push_str("\n\n");
    if plan.addresses == Addresses::Shared {
        text.push_str(
            "This system has no address 127.0.0.11, so the regions share 127.0.0.1: nothing is delayed between them and \
             no partition works.\nGive it more (macOS: sudo ifconfig lo0 alias 127.0.0.11 up, and so on for each region) \
             and start with a new --data.\n\n",
        );
    } else if !wan {
        text.push_str("--wan none: nothing is delayed; round trips are shown as they would be.\n\n");
    }
    let last = &plan.regions[plan.regions.len() - 1];
    let redis = last.redis();
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "The internet is at http://{}: it takes a client to the closest healthy region. Try:\n\
         \x20 curl -H 'Geode-From: sydney' http://{}/\n\
         \x20 redis-cli -h {} -p {} SET cup full\n\
         \x20 {program} chaos kill {}{}\n\
         The planet is described in {}. Ctrl-C ends it.\n",
        plan.internet,
        plan.internet,
        redis.ip(),
        redis.port(),
        last.name,
        admin_option(plan),
        plan.planet_file().display(),
    );
    text
}

/// Commands find the planet of the default directory by themselves.
fn admin_option(plan: &Plan) -> String {
    let default = std::env::current_dir().map(|here| here.join(super::DEFAULT_DATA));
    if default.is_ok_and(|default| default == plan.directory) {
        String::new()
    } else {
        format!(" --admin http://{}", plan.control)
    }
}

fn table(plan: &Plan) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    let with_rtt = plan.regions.len() <= MAX_RTT_COLUMNS && plan.regions.len() > 1;
    let mut header: Vec<String> = ["REGION", "PLACE", "DOOR", "REDIS", "ADMIN"].map(str::to_owned).into();
    if with_rtt {
        header.extend(plan.regions.iter().map(|region| format!("to {}", region.name)));
    }
    table.set_header(header);
    for region in &plan.regions {
        let mut row = vec![
            region.name.to_string(),
            region.place.coordinates.to_string(),
            format!("http://{}", region.door()),
            region.redis().to_string(),
            region.admin().to_string(),
        ];
        if with_rtt {
            row.extend(plan.regions.iter().map(|other| round_trip(region, other)));
        }
        table.add_row(row);
    }
    table
}

fn round_trip(a: &PlannedRegion, b: &PlannedRegion) -> String {
    if a.name == b.name {
        "-".to_owned()
    } else {
        format!("{:.0} ms", rtt(a.place.coordinates, b.place.coordinates).rtt_ms)
    }
}

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
    let with_rtt = (2..=MAX_RTT_COLUMNS).contains(&plan.regions.len());
    let header = ["REGION", "PLACE", "DOOR", "REDIS", "ADMIN", "RTT TO EACH (ms)"];
    table.set_header(&header[..if with_rtt { 6 } else { 5 }]);
    for region in &plan.regions {
        let mut row = vec![
            region.name.to_string(),
            region.place_name(),
            format!("http://{}", region.door()),
            format!(":{}", region.redis().port()),
            format!(":{}", region.admin().port()),
        ];
        if with_rtt {
            row.push(plan.regions.iter().map(|other| round_trip(region, other)).collect());
        }
        table.add_row(row);
    }
    table
}

fn round_trip(a: &PlannedRegion, b: &PlannedRegion) -> String {
    if a.name == b.name {
        format!("{:>5}", "-")
    } else {
        format!("{:>5.0}", rtt(a.place.coordinates, b.place.coordinates).rtt_ms)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::dev::geodes::Phase;

    fn plan(addresses: Addresses) -> Plan {
        let names = ["us-east-1", "eu-west-1", "ap-southeast-2"].map(str::to_owned);
        Plan::new(&names, 7100, None, PathBuf::from("/srv/planet"), addresses).unwrap()
    }

    #[test]
    fn the_user_is_greeted_like_this() {
        let text = greeting(&plan(Addresses::PerRegion), true, "geode");
        let text: Vec<&str> = text.lines().map(str::trim_end).collect();
        assert_eq!(
            text.join("\n"),
            " REGION          PLACE    DOOR                    REDIS  ADMIN  RTT TO EACH (ms)\n \
             us-east-1       Ashburn  http://127.0.0.11:7100  :7101  :7102      -   82  225\n \
             eu-west-1       Dublin   http://127.0.0.12:7100  :7101  :7102     82    -  294\n \
             ap-southeast-2  Sydney   http://127.0.0.13:7100  :7101  :7102    225  294    -\n\
             \n\
             The internet is at http://127.0.0.1:7100: it takes a client to the closest healthy region. Try:\n\
             \x20 curl -H 'Geode-From: sydney' http://127.0.0.1:7100/\n\
             \x20 redis-cli -h 127.0.0.13 -p 7101 SET cup full\n\
             \x20 geode chaos kill ap-southeast-2 --admin http://127.0.0.1:7102\n\
             The planet is described in /srv/planet/planet.toml. Ctrl-C ends it."
        );
        assert!(
            greeting(&plan(Addresses::PerRegion), false, "geode").contains("--wan none: nothing is delayed")
        );
        assert!(greeting(&plan(Addresses::Shared), true, "geode").contains("the regions share 127.0.0.1"));
    }

    #[test]
    fn the_ready_file_is_this_json() {
        let names = ["tokyo".to_owned()];
        let plan = Plan::new(&names, 7100, None, PathBuf::from("/x"), Addresses::PerRegion).unwrap();
        let states = [GeodeState { phase: Phase::Killed, pid: None }];
        assert_eq!(
            serde_json::to_value(Ready::new(&plan, &states)).unwrap(),
            serde_json::json!({
                "door": "http://127.0.0.1:7100",
                "dns": null,
                "console": null,
                "control": "http://127.0.0.1:7102",
                "regions": [{
                    "name": "tokyo",
                    "door": "http://127.0.0.11:7100",
                    "redis": "redis://127.0.0.11:7101",
                    "admin": "http://127.0.0.11:7102",
                    "dns": null,
                    "pid": null,
                    "service_pids": [],
                }],
            })
        );
    }
}

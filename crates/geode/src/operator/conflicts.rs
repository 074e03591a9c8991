//! `geode conflicts`: what concurrent writes did to each other, and which one stands.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{ErrorKind, Write as _};
use std::time::Duration;

use geode_crdt::SYSTEM_DATABASE;
use geode_planet::RegionName;

use super::explain::escape;
use super::moment;
use super::{Admin, AdminArgs, OperatorError, Outcome, say_json};
use crate::store_report::{Conflict, Conflicts, PlanetReport, RegionAnswer, Side};
use crate::terminal::{complain, say};

/// How long a region that found nothing new keeps `--follow` waiting for its answer.
const POLL: Duration = Duration::from_secs(1);
/// How long `--follow` waits before it asks again a geode that did not answer.
const PAUSE: Duration = Duration::from_secs(1);
/// What `--follow` takes of each region at once: all that a geode tells.
const FOLLOW_LIMIT: u16 = 10_000;

/// Options of `geode conflicts`.
#[derive(Debug, clap::Args)]
pub(crate) struct ConflictsArgs {
    /// Only conflicts of this key, or of this id of GEODE.ONCE.
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Only conflicts found since then: so long ago (30s, 10m, 2h, 7d), or a time like 2026-11-23T20:37:14Z.
    #[arg(long, value_name = "WHEN", value_parser = moment::parse)]
    since: Option<u64>,
    /// Go on and show conflicts as they are found, until interrupted.
    #[arg(long)]
    follow: bool,
    /// Show at most so many of each region, the latest.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    limit: u16,
    #[command(flatten)]
    admin: AdminArgs,
}

impl ConflictsArgs {
    fn path(&self) -> String {
        let mut path = format!("/v1/conflicts?scope=planet&limit={}", self.limit);
        path += &self.key.as_ref().map(|key| format!("&key={}", escape(key))).unwrap_or_default();
        path += &self.since.map(|since_us| format!("&since_us={since_us}")).unwrap_or_default();
        path
    }
}

/// Asks every region through one and prints what they resolved. Conflicts are no fault: each has a rule.
///
/// # Errors
/// No geode answers.
pub(crate) async fn conflicts(args: ConflictsArgs) -> Result<Outcome, OperatorError> {
    let admin = args.admin.find().await?;
    if args.follow {
        return follow(args, admin).await;
    }
    let report: PlanetReport<Conflicts> = admin.ask(&args.path()).await?;
    if args.admin.json {
        say_json(&report)?;
    } else {
        say(&text(&report))?;
    }
    let complete = report.regions.values().all(|answer| answer.answer().is_some());
    Ok(if complete { Outcome::Good } else { Outcome::Bad })
}

/// Prints conflicts as they are found, one JSON object a line with `--json`. Each region holds its answer back until it
/// found something or a second is over, so nobody is asked more often than that in vain.
async fn follow(mut args: ConflictsArgs, mut admin: Admin) -> Result<Outcome, OperatorError> {
    let mut seen: BTreeMap<RegionName, u64> = BTreeMap::new();
    let mut path = args.path();
    args.limit = FOLLOW_LIMIT;
    let mut is_silent = false;
    loop {
        let asked = admin.ask::<PlanetReport<Conflicts>>(&path).await;
        match asked {
            Ok(report) => {
                is_silent = false;
                if !print(&news(&report, &mut seen), args.admin.json)? {
                    return Ok(Outcome::Good);
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut is_silent, true) {
                    complain(&format!("geode: {error}; asking again until it answers"));
                }
                tokio::time::sleep(PAUSE).await;
                if let Ok(found) = args.admin.find().await {
                    admin = found;
                }
            }
        }
        let after: Vec<String> = seen.iter().map(|(region, time_us)| format!("{region}:{time_us}")).collect();
        path = format!("{}&after_us={}&wait_ms={}", args.path(), escape(&after.join(",")), POLL.as_millis());
    }
}

/// The conflicts of a report in the order in which they were found, which are then seen.
fn news<'r>(
    report: &'r PlanetReport<Conflicts>,
    seen: &mut BTreeMap<RegionName, u64>,
) -> Vec<(&'r RegionName, &'r Conflict)> {
    let mut news = Vec::new();
    for (region, answer) in &report.regions {
        let recent = answer.answer().map_or(&[][..], |conflicts| &conflicts.recent);
        if let Some(newest) = recent.first() {
            seen.insert(region.clone(), newest.time_us);
        }
        news.extend(recent.iter().map(|conflict| (region, conflict)));
    }
    news.sort_by_key(|(_, conflict)| conflict.time_us);
    news
}

/// Returns whether somebody still reads.
fn print(news: &[(&RegionName, &Conflict)], json: bool) -> std::io::Result<bool> {
    let mut text = String::new();
    for (region, conflict) in news {
        if json {
            let line = serde_json::json!({ "region": region, "conflict": conflict });
            let _ = writeln!(text, "{line}");
        } else {
            let _ = write!(text, "{region}");
            describe(&mut text, conflict);
        }
    }
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true),
    }
}

fn text(report: &PlanetReport<Conflicts>) -> String {
    let mut text = String::new();
    for (region, answer) in &report.regions {
        // Writing to a String cannot fail.
        let _ = match answer {
            RegionAnswer::Error(error) => writeln!(text, "{region} does not answer: {error}"),
            RegionAnswer::Answer(conflicts) if conflicts.totals.values().sum::<u64>() == 0 => {
                let older = if conflicts.recent.is_empty() { "" } else { "; before:" };
                writeln!(text, "{region}: no conflicts since it started{older}")
            }
            RegionAnswer::Answer(conflicts) => {
                let total: u64 = conflicts.totals.values().sum();
                let by_rule = conflicts.totals.iter().filter(|(_, count)| **count > 0);
                let by_rule: Vec<String> = by_rule.map(|(rule, count)| format!("{count} {rule}")).collect();
                writeln!(text, "{region}: {total} since it started ({})", by_rule.join(", "))
            }
        };
        if let RegionAnswer::Answer(conflicts) = answer {
            conflicts.recent.iter().for_each(|conflict| describe(&mut text, conflict));
        }
    }
    text
}

fn describe(text: &mut String, conflict: &Conflict) {
    let what = match conflict.rule.as_str() {
        "executed-twice" => "id",
        _ => &conflict.kind,
    };
    let database = match conflict.database {
        0 | SYSTEM_DATABASE => String::new(),
        database => format!(" (database {database})"),
    };
    let element = if conflict.element.is_empty() { String::new() } else { format!(" {}", conflict.element) };
    let side = |side: &Side| match side.value.as_str() {
        "" => format!("{} at {}", side.dot, moment::show(side.time_us)),
        value => format!("{value:?} of {} at {}", side.dot, moment::show(side.time_us)),
    };
    let _ = writeln!(
        text,
        "  {}  {} {}{element}{database}: {}",
        moment::show(conflict.time_us),
        what,
        conflict.key,
        conflict.rule
    );
    let _ = writeln!(text, "    stands: {}", side(&conflict.winner));
    let _ = writeln!(text, "    lost:   {}", side(&conflict.loser));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conflicts_read_as_what_stands_and_what_lost() {
        let side = |value: &str, dot: &str, time_us| Side { value: value.into(), dot: dot.into(), time_us };
        let conflict = Conflict {
            time_us: 1_700_000_000_123_456,
            database: 0,
            key: "menu".into(),
            kind: "hash".into(),
            element: "espresso".into(),
            rule: "later-write".into(),
            winner: side("2.40", "eu-west-1#2e/7.0", 1_700_000_000_100_000),
            loser: side("2.20", "us-east-1#1f/9.0", 1_700_000_000_090_000),
        };
        let some = Conflicts {
            totals: BTreeMap::from([("later-write".to_owned(), 3), ("survived-clear".to_owned(), 0)]),
            recent: vec![conflict],
        };
        let regions = BTreeMap::from([
            ("ap-southeast-2".parse().unwrap(), RegionAnswer::Error("no route".into())),
            ("eu-west-1".parse().unwrap(), RegionAnswer::Answer(some)),
            ("us-east-1".parse().unwrap(), RegionAnswer::Answer(Conflicts::default())),
        ]);
        let report = PlanetReport { asked: "us-east-1".parse().unwrap(), regions };
        insta::assert_snapshot!(text(&report), @r#"
        ap-southeast-2 does not answer: no route
        eu-west-1: 3 since it started (3 later-write)
          2023-11-14T22:13:20.123Z  hash menu espresso: later-write
            stands: "2.40" of eu-west-1#2e/7.0 at 2023-11-14T22:13:20.100Z
            lost:   "2.20" of us-east-1#1f/9.0 at 2023-11-14T22:13:20.090Z
        us-east-1: no conflicts since it started
        "#);
    }
}

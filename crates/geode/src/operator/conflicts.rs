//! `geode conflicts`: what concurrent writes did to each other, and which one stands.

use std::fmt::Write as _;
use std::time::Duration;

use super::{AdminArgs, OperatorError, Outcome, say_json};
use crate::store_report::{Conflict, Conflicts, PlanetReport, RegionAnswer, Side};
use crate::terminal::say;

/// Options of `geode conflicts`.
#[derive(Debug, clap::Args)]
pub(crate) struct ConflictsArgs {
    /// Show at most so many of each region, the latest.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    limit: u16,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Asks every region through one and prints what they resolved. Conflicts are no fault: each has a rule.
///
/// # Errors
/// No geode answers.
pub(crate) async fn conflicts(args: ConflictsArgs) -> Result<Outcome, OperatorError> {
    let path = format!("/v1/conflicts?scope=planet&limit={}", args.limit);
    let report: PlanetReport<Conflicts> = args.admin.find().await?.ask(&path).await?;
    if args.admin.json {
        say_json(&report)?;
    } else {
        say(&text(&report))?;
    }
    let complete = report.regions.values().all(|answer| answer.answer().is_some());
    Ok(if complete { Outcome::Good } else { Outcome::Bad })
}

fn text(report: &PlanetReport<Conflicts>) -> String {
    let mut text = String::new();
    for (region, answer) in &report.regions {
        // Writing to a String cannot fail.
        let _ = match answer {
            RegionAnswer::Error(error) => writeln!(text, "{region} does not answer: {error}"),
            RegionAnswer::Answer(conflicts) if conflicts.totals.values().sum::<u64>() == 0 => {
                writeln!(text, "{region}: no conflicts since it started")
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
    let database =
        if conflict.database == 0 { String::new() } else { format!(" (database {})", conflict.database) };
    let element = if conflict.element.is_empty() { String::new() } else { format!(" {}", conflict.element) };
    let side = |side: &Side| match side.value.as_str() {
        "" => format!("{} at {}", side.dot, utc(side.time_us)),
        value => format!("{value:?} of {} at {}", side.dot, utc(side.time_us)),
    };
    let _ = writeln!(
        text,
        "  {}  {} {}{element}{database}: {}",
        utc(conflict.time_us),
        conflict.kind,
        conflict.key,
        conflict.rule
    );
    let _ = writeln!(text, "    stands: {}", side(&conflict.winner));
    let _ = writeln!(text, "    lost:   {}", side(&conflict.loser));
}

/// Microseconds since 1970 as a time of day, UTC: conflicts are looked at soon after they happened.
fn utc(time_us: u64) -> String {
    let time = Duration::from_micros(time_us);
    let (seconds, millis) = (time.as_secs(), time.subsec_millis());
    format!("{:02}:{:02}:{:02}.{millis:03}Z", seconds / 3600 % 24, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

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
          22:13:20.123Z  hash menu espresso: later-write
            stands: "2.40" of eu-west-1#2e/7.0 at 22:13:20.100Z
            lost:   "2.20" of us-east-1#1f/9.0 at 22:13:20.090Z
        us-east-1: no conflicts since it started
        "#);
    }
}

//! `geode verify`: whether every region holds the same rows.
//!
//! Digests can only be compared where regions hold the same writes, so it waits until their vectors are equal; with
//! writes going on all the time that may not happen while it looks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use geode_planet::RegionName;
use serde::Serialize;
use tokio::time::Instant;

use super::{Admin, AdminArgs, OperatorError, Outcome, say_json};
use crate::store_report::{PlanetReport, Proof, RegionAnswer};
use crate::terminal::{complain, say};

/// Time between two looks while regions still exchange writes.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// Example keys are asked for in so many of the differing ranges at most.
const RANGES_WITH_EXAMPLES: usize = 8;

/// Options of `geode verify`.
#[derive(Debug, clap::Args)]
pub(crate) struct VerifyArgs {
    /// How long to wait until all regions hold the same writes, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    wait: u64,
    #[command(flatten)]
    admin: AdminArgs,
}

/// How the regions' stores compare.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub(crate) enum Verdict {
    /// All hold the same writes and the same rows.
    Converged {
        /// Entries that each of them holds.
        entries: u64,
    },
    /// All hold the same writes, but not the same rows.
    Diverged {
        /// The key ranges that differ.
        ranges: Vec<DivergedRange>,
    },
    /// They do not all hold the same writes, or do not all answer: nothing can be said yet.
    Exchanging {
        /// What is missing, a line for each region that lacks something.
        missing: Vec<String>,
    },
}

/// A key range whose rows differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct DivergedRange {
    /// Its number, 0 to 255: the first byte of the hash of its keys.
    pub(crate) range: usize,
    /// The digest of each region.
    pub(crate) digests: BTreeMap<RegionName, String>,
    /// Some keys in it, over all regions.
    pub(crate) examples: BTreeSet<String>,
}

/// Asks until the answer is definite or time is up, then prints it.
///
/// # Errors
/// No geode answers.
pub(crate) async fn verify(args: VerifyArgs) -> Result<Outcome, OperatorError> {
    let admin = args.admin.find().await?;
    let verdict = settle(&admin, Duration::from_secs(args.wait), args.admin.json).await?;
    if args.admin.json {
        say_json(&verdict)?;
    } else {
        say(&verdict.text())?;
    }
    Ok(match verdict {
        Verdict::Converged { .. } => Outcome::Good,
        Verdict::Diverged { .. } => Outcome::Bad,
        Verdict::Exchanging { .. } => Outcome::Undecided,
    })
}

async fn settle(admin: &Admin, wait: Duration, quiet: bool) -> Result<Verdict, OperatorError> {
    let deadline = Instant::now() + wait;
    let mut shown = Vec::new();
    loop {
        let report: PlanetReport<Proof> = admin.ask("/v1/verify?scope=planet").await?;
        match compare(&report) {
            Verdict::Exchanging { missing } if Instant::now() < deadline => {
                if !quiet && missing != shown {
                    complain(&format!("waiting: {}", missing.join("; ")));
                    shown = missing;
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            Verdict::Diverged { ranges } => {
                let numbers = ranges.iter().take(RANGES_WITH_EXAMPLES).map(|range| range.range.to_string());
                let numbers: Vec<String> = numbers.collect();
                let path = format!("/v1/verify?scope=planet&examples={}", numbers.join(","));
                let with_examples: PlanetReport<Proof> = admin.ask(&path).await?;
                // Writes may have come in between; the finding stands.
                return Ok(Verdict::Diverged { ranges: name_examples(ranges, &with_examples) });
            }
            verdict => return Ok(verdict),
        }
    }
}

/// What the regions' proofs say together.
pub(crate) fn compare(report: &PlanetReport<Proof>) -> Verdict {
    let missing = missing(report);
    if !missing.is_empty() {
        return Verdict::Exchanging { missing };
    }
    let proofs = || report.regions.iter().filter_map(|(region, answer)| Some((region, answer.answer()?)));
    let ranges = proofs().map(|(_, proof)| proof.digests.len()).max().unwrap_or(0);
    let digest = |proof: &Proof, range| proof.digests.get(range).cloned().unwrap_or_default();
    let differing = (0..ranges).filter_map(|range| {
        let digests: BTreeMap<RegionName, String> =
            proofs().map(|(region, proof)| (region.clone(), digest(proof, range))).collect();
        let differ = digests.values().collect::<BTreeSet<_>>().len() > 1;
        differ.then(|| DivergedRange { range, digests, examples: BTreeSet::new() })
    });
    let ranges: Vec<DivergedRange> = differing.collect();
    if !ranges.is_empty() {
        return Verdict::Diverged { ranges };
    }
    let entries = proofs().next().map_or(0, |(_, proof)| proof.vector.values().sum());
    Verdict::Converged { entries }
}

/// A line for every region that lacks writes of others or does not answer.
fn missing(report: &PlanetReport<Proof>) -> Vec<String> {
    let mut greatest: BTreeMap<&str, u64> = BTreeMap::new();
    for (actor, sequence) in
        report.regions.values().filter_map(RegionAnswer::answer).flat_map(|proof| &proof.vector)
    {
        let known = greatest.entry(actor).or_default();
        *known = (*known).max(*sequence);
    }
    let lines = report.regions.iter().filter_map(|(region, answer)| match answer {
        RegionAnswer::Error(error) => Some(format!("{region} does not answer: {error}")),
        RegionAnswer::Answer(proof) => {
            let held = |actor: &str| proof.vector.get(actor).copied().unwrap_or(0);
            let lacks: u64 = greatest.iter().map(|(actor, sequence)| sequence - held(actor)).sum();
            (lacks > 0).then(|| format!("{region} lacks {}", count(lacks)))
        }
    });
    lines.collect()
}

fn count(entries: u64) -> String {
    format!("{entries} {}", if entries == 1 { "entry" } else { "entries" })
}

fn name_examples(ranges: Vec<DivergedRange>, report: &PlanetReport<Proof>) -> Vec<DivergedRange> {
    let keys = |number: usize| {
        let number = u8::try_from(number).ok();
        let proofs = report.regions.values().filter_map(RegionAnswer::answer);
        proofs.filter_map(move |proof| proof.examples.get(&number?)).flatten().cloned()
    };
    let name = |range: DivergedRange| DivergedRange { examples: keys(range.range).collect(), ..range };
    ranges.into_iter().map(name).collect()
}

impl<T> RegionAnswer<T> {
    /// The answer, if there is one.
    pub(crate) fn answer(&self) -> Option<&T> {
        match self {
            Self::Answer(answer) => Some(answer),
            Self::Error(_) => None,
        }
    }
}

impl Verdict {
    fn text(&self) -> String {
        match self {
            Self::Converged { entries } => {
                let entries = count(*entries);
                format!("converged: all regions hold the same {entries} and the same rows\n")
            }
            Self::Exchanging { missing } => format!(
                "undecided: the regions never held the same writes while this looked\n  {}\n\
                 Wait longer with --wait, or look when fewer writes come in.\n",
                missing.join("\n  ")
            ),
            Self::Diverged { ranges } => {
                let mut text =
                    format!("DIVERGED: {} of 256 key ranges differ at equal vectors\n", ranges.len());
                for range in ranges {
                    let digests = range.digests.iter().map(|(region, digest)| format!("{region} {digest}"));
                    text.push_str(&format!(
                        "  key range {}: {}\n",
                        range.range,
                        digests.collect::<Vec<_>>().join(", ")
                    ));
                    if !range.examples.is_empty() {
                        let keys: Vec<&str> = range.examples.iter().map(String::as_str).collect();
                        text.push_str(&format!("    keys in it: {}\n", keys.join(", ")));
                    }
                }
                text
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proof(us: u64, eu: u64, digests: &[&str]) -> RegionAnswer<Proof> {
        RegionAnswer::Answer(Proof {
            vector: BTreeMap::from([("us-east-1#1f".to_owned(), us), ("eu-west-1#2e".to_owned(), eu)]),
            digests: digests.iter().map(|&digest| digest.to_owned()).collect(),
            examples: BTreeMap::new(),
        })
    }

    fn report(us: RegionAnswer<Proof>, eu: RegionAnswer<Proof>) -> PlanetReport<Proof> {
        let name = |name: &str| name.parse::<RegionName>().unwrap();
        let regions = BTreeMap::from([(name("us-east-1"), us), (name("eu-west-1"), eu)]);
        PlanetReport { asked: name("us-east-1"), regions }
    }

    #[test]
    fn the_same_rows_at_the_same_vector_are_converged() {
        let verdict = compare(&report(proof(7, 5, &["a", "b"]), proof(7, 5, &["a", "b"])));
        assert_eq!(verdict, Verdict::Converged { entries: 12 });
        assert_eq!(verdict.text(), "converged: all regions hold the same 12 entries and the same rows\n");
    }

    #[test]
    fn different_writes_are_never_called_divergence() {
        let verdict = compare(&report(proof(9, 5, &["a", "b"]), proof(7, 6, &["x", "b"])));
        insta::assert_snapshot!(verdict.text(), @r#"
        undecided: the regions never held the same writes while this looked
          eu-west-1 lacks 2 entries
          us-east-1 lacks 1 entry
        Wait longer with --wait, or look when fewer writes come in.
        "#);
        let away = RegionAnswer::Error("no route".into());
        let verdict = compare(&report(proof(9, 5, &["a"]), away));
        insta::assert_snapshot!(verdict.text(), @r#"
        undecided: the regions never held the same writes while this looked
          eu-west-1 does not answer: no route
        Wait longer with --wait, or look when fewer writes come in.
        "#);
    }

    #[test]
    fn divergence_names_ranges_and_keys() {
        let Verdict::Diverged { ranges } =
            compare(&report(proof(7, 5, &["a", "b", "c"]), proof(7, 5, &["a", "x", "c"])))
        else {
            panic!("the second range differs")
        };
        let mut examples = report(proof(7, 6, &[]), proof(7, 5, &[]));
        for (answer, keys) in examples.regions.values_mut().zip([vec!["menu"], vec!["cart:7", "menu"]]) {
            if let RegionAnswer::Answer(proof) = answer {
                proof.examples.insert(1, keys.into_iter().map(str::to_owned).collect());
            }
        }
        let verdict = Verdict::Diverged { ranges: name_examples(ranges, &examples) };
        insta::assert_snapshot!(verdict.text(), @r#"
        DIVERGED: 1 of 256 key ranges differ at equal vectors
          key range 1: eu-west-1 x, us-east-1 b
            keys in it: cart:7, menu
        "#);
        let json = serde_json::to_value(&verdict).unwrap();
        assert_eq!((&json["verdict"], &json["ranges"][0]["range"]), (&"diverged".into(), &1.into()));
    }
}

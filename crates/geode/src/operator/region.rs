//! `geode region`: changes which regions the planet has, while it runs.

use clap::Subcommand;

use super::{AdminArgs, OperatorError, Outcome, say_json};
use crate::regions::change::{Addition, Change};
use crate::terminal::say;

/// Options of `geode region`.
#[derive(Debug, clap::Args)]
pub(crate) struct RegionArgs {
    #[command(subcommand)]
    command: RegionCommand,
}

#[derive(Debug, Subcommand)]
enum RegionCommand {
    /// Add a region; every geode knows it within a moment, and its own may be started.
    Add {
        /// Its name: 1 to 32 characters of a-z, 0-9 and "-".
        region: String,
        /// Where other geodes reach it.
        #[arg(long, value_name = "HOST:PORT")]
        link: String,
        /// The addresses that users are sent to.
        #[arg(long, value_name = "IP[,IP]", value_delimiter = ',', required = true)]
        public: Vec<String>,
        /// Where it is, if its name does not tell: a cloud region, a large city, or a point.
        #[arg(long, value_name = "PLACE|LAT,LON", allow_hyphen_values = true)]
        place: Option<String>,
        /// How much it can carry, relative to the others; 1 unless said otherwise.
        #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
        capacity: Option<f64>,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Go on without a region that will not return.
    Evict {
        /// Its name.
        region: String,
        /// Although it is in touch, or most of the others are not: on your word that it will not return.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Let an evicted region come back, with an empty data directory.
    Rejoin {
        /// Its name.
        region: String,
        #[command(flatten)]
        admin: AdminArgs,
    },
}

/// Options of `geode repair`.
#[derive(Debug, clap::Args)]
pub(crate) struct RepairArgs {
    /// Its name in planet.toml.
    region: String,
    #[command(flatten)]
    admin: AdminArgs,
}

#[derive(serde::Deserialize, serde::Serialize)]
struct Told {
    by: String,
}

/// Orders it of the region, through any geode.
///
/// # Errors
/// No geode answers, or the region objects.
pub(crate) async fn repair(args: RepairArgs) -> Result<Outcome, OperatorError> {
    let body = serde_json::json!({ "region": args.region });
    let told: Told = args.admin.find().await?.order("/v1/repair", &body).await?;
    if args.admin.json {
        say_json(&told)?;
    } else {
        let region = &args.region;
        say(&format!(
            "{region} gets all its rows anew; until it has them its door forwards. `geode verify` tells when it is done\n"
        ))?;
    }
    Ok(Outcome::Good)
}

/// Orders it of one region, which tells the others, and prints what was done and what comes next.
///
/// # Errors
/// No geode answers, or it objects.
pub(crate) async fn region(args: RegionArgs) -> Result<Outcome, OperatorError> {
    let (admin, path, body) = match args.command {
        RegionCommand::Add { region, link, public, place, capacity, admin } => {
            let addition = Addition { region, link, public, place, capacity };
            (admin, "/v1/add", serde_json::json!(addition))
        }
        RegionCommand::Evict { region, force, admin } => {
            (admin, "/v1/evict", serde_json::json!({ "region": region, "force": force }))
        }
        RegionCommand::Rejoin { region, admin } => {
            (admin, "/v1/rejoin", serde_json::json!({ "region": region }))
        }
    };
    let change: Change = admin.find().await?.order(path, &body).await?;
    if admin.json {
        say_json(&change)?;
    } else {
        say(&change.text())?;
    }
    Ok(Outcome::Good)
}

impl Change {
    fn text(&self) -> String {
        let mut text = format!("{}\n", self.done);
        if let Some(section) = &self.section {
            text += &format!("\n  {}\n", section.trim_end().replace('\n', "\n  "));
        }
        text += "\nnext\n";
        for (number, step) in self.next.iter().enumerate() {
            text += &format!("  {}. {step}\n", number + 1);
        }
        text
    }
}

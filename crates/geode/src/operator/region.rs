//! `geode region`: who belongs to the planet.

use clap::Subcommand;

use super::{AdminArgs, OperatorError, Outcome, say_json};
use crate::terminal::say;

/// Options of `geode region`.
#[derive(Debug, clap::Args)]
pub(crate) struct RegionArgs {
    #[command(subcommand)]
    command: RegionCommand,
}

#[derive(Debug, Subcommand)]
enum RegionCommand {
    /// Go on without a region that will not return.
    Evict {
        /// Its name in planet.toml.
        region: String,
        /// Although it is in touch, or most of the others are not: on your word that it will not return.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Let an evicted region come back, with an empty data directory.
    Rejoin {
        /// Its name in planet.toml.
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

/// Orders it of one region, which tells the others.
///
/// # Errors
/// No geode answers, or it objects.
pub(crate) async fn region(args: RegionArgs) -> Result<Outcome, OperatorError> {
    let (admin, path, body, done) = match args.command {
        RegionCommand::Evict { region, force, admin } => {
            let body = serde_json::json!({ "region": region, "force": force });
            (admin, "/v1/evict", body, format!("{region} is evicted"))
        }
        RegionCommand::Rejoin { region, admin } => {
            let body = serde_json::json!({ "region": region });
            (admin, "/v1/rejoin", body, format!("{region} may come back, with an empty data directory"))
        }
    };
    let told: Told = admin.find().await?.order(path, &body).await?;
    if admin.json {
        say_json(&told)?;
    } else {
        say(&format!("{done}; {} tells the others\n", told.by))?;
    }
    Ok(Outcome::Good)
}

//! The command line.

use std::ffi::OsString;
use std::future::Future;
use std::net::Ipv4Addr;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use geode_demo::DemoSettings;

use crate::chaos::{self, ChaosCommand};
use crate::dev::{self, DevArguments};
use crate::init::{self, InitArgs};
use crate::operator::{
    BackupArgs, ConflictsArgs, ExplainArgs, Outcome, RegionArgs, RepairArgs, RestoreArgs, StatusArgs,
    VerifyArgs,
};
use crate::operator::{backup, conflicts, explain, region, repair, restore, status, verify};
use crate::run::{self, RunArgs};
use crate::terminal::complain;

const EXAMPLES: &str = "\
Examples:
  geode dev                                        a planet of three regions on this machine
  geode dev -- node server.js                      the same around your own service
  geode init --regions us-east-1,eu-west-1         what a planet of several machines needs
  geode run --config planet.toml --region eu-west-1
  geode status                                     every region at a glance
  geode explain sydney                             who serves a client in Sydney, and why
  geode verify                                     do all regions hold the same rows?

Exit codes: 0 good; 1 the answer is bad (drift, divergence, something unhealthy); 2 wrong usage or configuration, or \
nobody to ask.";

/// One complete copy of your service in every region, with a shared store that accepts writes everywhere.
#[derive(Debug, Parser)]
#[command(name = "geode", version, after_help = EXAMPLES, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Dev(DevArguments),
    Run(RunArgs),
    Init(InitArgs),
    /// Show every region: health, version, configuration and service digests, instances, lag.
    #[command(
        after_help = "Exits 1 if a region does not serve or the copies are not all the same, and says which \
                            differ.\n\nExamples:\n  geode status\n  geode status --admin http://127.0.0.1:7401 --json"
    )]
    Status(StatusArgs),
    /// Show which regions serve a client, in which order, and why.
    #[command(
        after_help = "Examples:\n  geode explain sydney\n  geode explain 203.0.113.210\n  geode explain \
                            eu-west-1 --json"
    )]
    Explain(ExplainArgs),
    /// Compare what the stores of all regions hold.
    #[command(
        after_help = "Waits until all regions hold the same writes, then compares digests of 256 key ranges.\n\
                            Exits 1 and names the key ranges if they differ; 3 if the regions never held the same \
                            writes while it looked.\n\nExamples:\n  geode verify\n  geode verify --wait 60 --json"
    )]
    Verify(VerifyArgs),
    /// Show what concurrent writes did to each other, and which of them stands.
    #[command(
        after_help = "Each region logs the conflicts that it found itself, and keeps some hundred thousand.\n\n\
                            Examples:\n  geode conflicts\n  geode conflicts --key menu --since 10m\n  \
                            geode conflicts --since 2026-11-23T20:00:00Z --limit 1000 --json\n  geode conflicts --follow"
    )]
    Conflicts(ConflictsArgs),
    /// Add a region to the running planet, evict one that will not return, or let it come back as new.
    #[command(
        after_help = "Evicting tells every region to go on without one: nobody waits for it any more, and what it alone \
                            holds is lost. Without --force only if it is not in touch and most of the others are.\n\nTo \
                            come back, it starts with an empty data directory, after `geode region rejoin` was asked of \
                            another region.\n\nExamples:\n  geode region add sa-east-1 --link 10.0.3.5:7400 --public \
                            192.0.2.10\n  geode region add depot --link 10.0.4.5:7400 --public 192.0.2.20 \
                            --place=-33.45,-70.67 --capacity 0.5\n  geode region evict us-east-1\n  geode region rejoin us-east-1"
    )]
    Region(RegionArgs),
    /// Take a backup of a region's rows into a file, while it goes on.
    #[command(
        after_help = "The file appears when it is whole and checked. Every region holds all rows, so one is enough.\n\nExamples:\n  \
                            geode backup monday.geode\n  geode backup /backups/monday.geode --admin http://127.0.0.1:7401 --json"
    )]
    Backup(BackupArgs),
    /// Let a region begin with a backup: in a living planet it catches up from there, in an empty one it is the first.
    #[command(
        after_help = "The region must not run, and its data directory must be empty. It comes back as a new writer; no deletion \
                            since the backup is undone.\n\nExamples:\n  geode restore monday.geode --config planet.toml --region \
                            eu-west-1"
    )]
    Restore(RestoreArgs),
    /// Let a region whose rows differ from all others' get them anew from one of these.
    #[command(
        after_help = "For when `geode verify` finds one region that differs. Nothing that was written there is lost: it \
                            begins once another region has seen all of it, and the region answers LOADING meanwhile.\n\nExamples:\n  \
                            geode repair eu-west-1"
    )]
    Repair(RepairArgs),
    /// Let something befall the planet of `geode dev`, and undo it.
    #[command(
        after_help = "Examples:\n  geode chaos kill us-east-1\n  geode chaos revive us-east-1\n  geode chaos \
                            partition eu-west-1 us-east-1\n  geode chaos heal"
    )]
    Chaos(ChaosArgs),
    /// Run the demo service: a coffee chain whose shops share one menu.
    #[command(after_help = "Listens on PORT, keeps its data in the store at REDIS_URL, and calls its shop \
                            GEODE_REGION: what every service gets from its geode.")]
    Demo,
    /// End what a killed `geode dev` has left behind.
    #[command(hide = true)]
    Guard {
        /// Process id of the `geode dev`.
        dev: u32,
    },
    /// Become a service that ends when its geode ends.
    #[command(hide = true)]
    Launch {
        /// Process id of the geode.
        parent: u32,
        /// The service.
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
}

#[derive(Debug, clap::Args)]
struct ChaosArgs {
    #[command(subcommand)]
    command: ChaosCommand,
    /// Control address of `geode dev`, as its ready file names it. Without it: the planet that `geode dev` runs from
    /// this directory.
    #[arg(long, global = true, value_name = "URL")]
    admin: Option<String>,
    /// Print JSON instead of text.
    #[arg(long, global = true)]
    json: bool,
}

/// Reads the command line and does what it says.
pub(crate) fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Dev(arguments) => dev::run(arguments),
        Command::Run(arguments) => run::run(&arguments),
        Command::Init(arguments) => init::run(&arguments),
        Command::Status(arguments) => ask("status", status(arguments)),
        Command::Explain(arguments) => ask("explain", explain(arguments)),
        Command::Verify(arguments) => ask("verify", verify(arguments)),
        Command::Conflicts(arguments) => ask("conflicts", conflicts(arguments)),
        Command::Region(arguments) => ask("region", region(arguments)),
        Command::Repair(arguments) => ask("repair", repair(arguments)),
        Command::Backup(arguments) => ask("backup", backup(arguments)),
        Command::Restore(arguments) => ask("restore", restore(arguments)),
        Command::Chaos(arguments) => {
            chaos::run(&arguments.command, arguments.admin.as_deref(), arguments.json)
        }
        Command::Demo => demo(),
        Command::Guard { dev } => {
            dev::guard(dev);
            ExitCode::SUCCESS
        }
        Command::Launch { parent, command } => {
            let error = geode_host::launch::become_service(parent, &command);
            fail("launch", &error)
        }
    }
}

/// Runs an operator's question to its end.
fn ask<E: std::fmt::Display>(name: &str, question: impl Future<Output = Result<Outcome, E>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.map(|runtime| runtime.block_on(question)) {
        Ok(Ok(outcome)) => outcome.into(),
        Ok(Err(error)) => fail(name, &error),
        Err(error) => fail(name, &error),
    }
}

/// The demo, told by its environment what every service is told.
fn demo() -> ExitCode {
    let told = |name: &str| {
        std::env::var(name).map_err(|_| format!("{name} is not set; a geode sets it for its service"))
    };
    let settings = || {
        let port = told("PORT")?.parse::<u16>().map_err(|_| "PORT is no port number".to_owned())?;
        let region = told("GEODE_REGION")?;
        Ok::<_, String>(DemoSettings {
            listen: (Ipv4Addr::LOCALHOST, port).into(),
            redis_url: told("REDIS_URL")?,
            region,
        })
    };
    let settings = match settings() {
        Ok(settings) => settings,
        Err(error) => return fail("demo", &error),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.map(|runtime| runtime.block_on(geode_demo::run(settings))) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => fail("demo", &error),
        Err(error) => fail("demo", &error),
    }
}

fn fail(name: &str, error: &dyn std::fmt::Display) -> ExitCode {
    complain(&format!("geode {name}: {error}"));
    Outcome::Failed.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }
}

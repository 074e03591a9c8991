//! `cargo xtask sim`: plays seeds, and for the first one that fails says how little it takes and how to see it again.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use geode_sim::{Counts, Fsync, Plan, Plant, Violation, cost, run, shrink};

/// Plays seeded planets through everything that may go wrong.
#[derive(Parser)]
#[command(name = "cargo xtask sim")]
struct Arguments {
    /// Plays so many seeds.
    #[arg(long, default_value_t = 1_000, conflicts_with_all = ["minutes", "seed"])]
    seeds: u64,
    /// Plays seeds for so many minutes.
    #[arg(long, conflicts_with = "seed")]
    minutes: Option<u64>,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Plays this one seed and prints a line for each event.
    #[arg(long)]
    seed: Option<u64>,
    /// Of the seed's faults only these, by number; "none" for none of them.
    #[arg(long, requires = "seed")]
    faults: Option<String>,
    /// With a fault planted (docs/simulator.md).
    #[arg(long)]
    plant: Option<Plant>,
    /// Prints what replication costs on the wire, against the number of regions, and plays nothing.
    #[arg(long, conflicts_with_all = ["seeds", "minutes", "seed"])]
    cost: bool,
}

/// How often progress is printed.
const PROGRESS: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match arguments {
        Arguments { cost: true, .. } => print_costs(),
        Arguments { seed: Some(seed), .. } => replay(seed, &arguments),
        _ => search(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn replay(seed: u64, arguments: &Arguments) -> Result<(), String> {
    let mut plan = Plan::of(seed);
    if let Some(kept) = &arguments.faults {
        let number =
            |text: &str| text.trim().parse().map_err(|_| format!("{text:?} is no number of a fault"));
        let numbers = kept.split(',').filter(|text| *text != "none");
        plan = plan.with_faults(&numbers.map(number).collect::<Result<Vec<usize>, String>>()?);
    }
    let counts = run(&plan, arguments.plant, Some(&mut |line| println!("{line}")));
    counts.map(|counts| println!("{}", summary(&counts))).map_err(|violation| violation.to_string())
}

fn search(arguments: &Arguments) -> Result<(), String> {
    let started = Instant::now();
    let until = arguments.minutes.map(|minutes| started + Duration::from_secs(60 * minutes));
    let (mut sum, mut seed, mut shown) = (Counts::default(), arguments.from, started);
    let goes_on = |seed| match until {
        Some(until) => Instant::now() < until,
        None => seed < arguments.from + arguments.seeds,
    };
    while goes_on(seed) {
        let plan = Plan::of(seed);
        match run(&plan, arguments.plant, None) {
            Ok(counts) => sum = sum.plus(&counts),
            Err(violation) => return Err(report(&plan, arguments.plant, violation)),
        }
        seed += 1;
        if shown.elapsed() >= PROGRESS {
            shown = Instant::now();
            println!("{} seeds, {}", seed - arguments.from, summary(&sum));
        }
    }
    let (seeds, seconds) = (seed - arguments.from, started.elapsed().as_secs());
    println!("{seeds} seeds in {seconds} s, every rule held: {}", summary(&sum));
    if arguments.plant.is_some() { Err("the planted fault was not found".to_owned()) } else { Ok(()) }
}

/// What failed, with how few faults, and how to see it.
fn report(plan: &Plan, plant: Option<Plant>, violation: Violation) -> String {
    let seed = plan.seed;
    let first = format!("seed {seed} fails: {violation}");
    let small = shrink(plan, plant, violation);
    let numbers: Vec<String> = small.faults.iter().map(usize::to_string).collect();
    let numbers = if numbers.is_empty() { "none".to_owned() } else { numbers.join(",") };
    let planted = plant.map(|plant| format!(" --plant {plant}")).unwrap_or_default();
    let mut lines = vec![first];
    lines.push(format!("{} of its {} faults are enough:", small.faults.len(), plan.faults.len()));
    lines.extend(small.faults.iter().map(|fault| format!("  {fault}: {}", plan.faults[*fault])));
    lines.push(format!("then: {}", small.violation));
    lines.push(format!("again: cargo xtask sim --seed {seed} --faults {numbers}{planted}"));
    lines.join("\n")
}

fn summary(counts: &Counts) -> String {
    let Counts { events, writes, answers, unknown, stale, lost, joined, .. } = counts;
    format!(
        "{events} events, {writes} writes, {answers} answers, {unknown} requests without one, {stale} tokens given up, \
         {lost} unsynced writes lost, {joined} snapshots joined"
    )
}

fn print_costs() -> Result<(), String> {
    println!("regions  fsync        idle msg/s  idle KB/s  msg/write  bytes/write");
    for regions in [3, 5, 10, 30] {
        for fsync in [Fsync::EverySecond, Fsync::Always] {
            let cost = cost(regions, fsync).map_err(|violation| violation.to_string())?;
            let mode = format!("{fsync:?}");
            println!(
                "{regions:7}  {mode:11}  {:10.0}  {:9.0}  {:9.1}  {:11.0}",
                cost.idle_messages_per_second,
                cost.idle_bytes_per_second / 1_000.0,
                cost.messages_per_write,
                cost.bytes_per_write,
            );
        }
    }
    Ok(())
}

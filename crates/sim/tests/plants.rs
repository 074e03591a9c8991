//! The rules find every mistake that is planted, as soon as docs/simulator.md says.

use std::collections::BTreeMap;
use std::sync::Mutex;

use geode_sim::{Plan, Plant, run};

/// The rows of the page's table: plant, what is wrong, seeds.
fn rows() -> Vec<(String, String, u64)> {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/simulator.md");
    let page = std::fs::read_to_string(page).expect("docs/simulator.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    let row = |line: &str| {
        let mut cells =
            line.trim_end_matches('|').split('|').map(|cell| cell.trim().trim_matches('`').to_owned());
        let (plant, mistake) = (cells.next()?, cells.next()?);
        Some((plant, mistake, cells.next()?.parse().ok()?))
    };
    rows.filter_map(row).collect()
}

#[test]
fn the_page_lists_the_planted_faults() {
    let listed: Vec<(String, String)> =
        rows().into_iter().map(|(plant, mistake, _)| (plant, mistake)).collect();
    let planted = Plant::ALL.iter().map(|plant| (plant.name().to_owned(), plant.mistake().to_owned()));
    assert_eq!(listed, planted.collect::<Vec<_>>());
}

#[test]
fn each_planted_fault_is_found_within_its_seeds() {
    let left: Mutex<Vec<(Plant, u64)>> = Mutex::new(
        rows().into_iter().map(|(name, _, seeds)| (name.parse().expect("a plant"), seeds)).collect(),
    );
    let found = Mutex::new(BTreeMap::new());
    let search = || {
        while let Some((plant, seeds)) = { left.lock().expect("no search panics").pop() } {
            let first = (1..=seeds).find(|seed| run(&Plan::of(*seed), Some(plant), None).is_err());
            println!("{plant}: {first:?} of {seeds}");
            found.lock().expect("no search panics").insert(plant.name(), first);
        }
    };
    std::thread::scope(|scope| {
        (0..2).for_each(|_| drop(scope.spawn(search)));
    });
    let found = found.into_inner().expect("no search panics");
    let missed: Vec<_> = found.iter().filter(|(_, first)| first.is_none()).map(|(plant, _)| plant).collect();
    assert!(missed.is_empty(), "not found: {missed:?}");
    assert_eq!(found.len(), Plant::ALL.len());
}

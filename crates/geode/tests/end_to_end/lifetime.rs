//! `geode dev` as a process: nothing outlives it, data does, and what cannot work is said in one line.

use std::process::{Command, Stdio};

use crate::support::{GEODE, Planet, family, is_running, signal, wait_for};
use redis::Commands;

#[test]
fn ctrl_c_ends_every_process_also_when_a_geode_hangs_and_the_data_stays() {
    let directory = tempfile::tempdir().unwrap();
    let mut planet = Planet::start(directory.path(), &[]);
    let processes = family(planet.parent());
    assert!(processes.len() >= 7, "a parent, three geodes, three services: {processes:?}");
    planet.redis(0).unwrap().set::<_, _, ()>("kept", "yes").unwrap();
    wait_for("the write everywhere", || {
        (0..3).all(|region| planet.redis(region).unwrap().get::<_, Option<String>>("kept").unwrap().is_some())
    });
    signal(planet.pid(2), "STOP");
    planet.signal("INT");
    planet.wait();
    wait_for("the end of all processes", || processes.iter().all(|pid| !is_running(*pid)));

    let planet = Planet::start(directory.path(), &[]);
    for region in 0..3 {
        assert_eq!(planet.redis(region).unwrap().get::<_, String>("kept").unwrap(), "yes");
    }
    planet.expect(&["verify"]);
}

#[test]
fn nothing_survives_the_death_of_the_parent() {
    let directory = tempfile::tempdir().unwrap();
    // A service that starts processes of its own, as `npm start` does.
    let wrapped = format!("'{GEODE}' demo; true");
    let planet = Planet::start(directory.path(), &["--", "sh", "-c", &wrapped]);
    let processes = family(planet.parent());
    assert!(processes.len() >= 10, "a parent, three geodes, three shells, three services: {processes:?}");
    signal(planet.pid(2), "STOP");
    planet.signal("KILL");
    wait_for("the end of all processes", || processes.iter().skip(1).all(|pid| !is_running(*pid)));
}

/// `geode …` that must fail with exit code 2; its one line.
fn refused(arguments: &[&str]) -> String {
    let output = Command::new(GEODE).args(arguments).stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    assert_eq!(output.status.code(), Some(2), "geode {arguments:?} said: {text}");
    assert_eq!(text.lines().count(), 1, "one clear line, not: {text}");
    text
}

#[test]
fn what_cannot_work_is_said_in_one_line_with_exit_code_2() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().to_str().unwrap();
    let line = refused(&["dev", "--data", data, "--regions", "us-east-1,eu-wset-1"]);
    assert!(
        line.contains("eu-wset-1") && line.contains("eu-west-1"),
        "names the region and the nearest known one: {line}"
    );

    let line = refused(&["dev", "--data", data, "--", "./no-such-server", "--fast"]);
    assert!(line.contains("`./no-such-server` does not exist"), "names the service's program: {line}");

    let planet = Planet::start(directory.path(), &[]);
    let line = refused(&["dev", "--data", data]);
    assert!(line.contains(data), "a second start names the directory in use: {line}");
    let door = planet.door();
    let port = door.rsplit_once(':').unwrap().1;
    let other = tempfile::tempdir().unwrap();
    let line = refused(&["dev", "--data", other.path().to_str().unwrap(), "--base-port", port]);
    assert!(line.contains(port), "names the port in use: {line}");
    drop(planet);

    let line = refused(&["dev", "--data", data, "--regions", "us-east-1,eu-central-1"]);
    assert!(line.contains(data), "the data of another planet is not touched: {line}");
}

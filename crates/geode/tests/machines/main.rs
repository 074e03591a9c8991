//! Off the laptop: `geode run` on three machines that share nothing but a network, each with planet.toml and its own
//! bundle and nothing else.
//!
//! Needs Linux, root and iproute2. Where that is not to be had, the test says so, and with `CI=true` it fails.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)] // a test that unwraps fails, which is what it is for

mod machine;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use machine::{GEODE, Machine, Network};

const REGIONS: [&str; 3] = ["us-east-1", "eu-west-1", "ap-southeast-2"];

/// Makes a planet in `directory` as its operator does, and lets `change` edit its planet.toml.
fn init(directory: &Path, change: impl Fn(String) -> String) {
    let mut command = Command::new(GEODE);
    command.args(["init", "--name", "acme", "--dir"]).arg(directory);
    for (region, number) in REGIONS.into_iter().zip(11..) {
        command.arg("--region").arg(format!("{region}=10.77.0.{number}"));
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let file = directory.join("planet.toml");
    fs::write(&file, change(fs::read_to_string(&file).unwrap())).unwrap();
}

/// The demo, unless the file `broken` lies beside it.
const SERVER: &str = "#!/bin/sh\n[ -e broken ] && exit 1\nexec \"$GEODE\" demo\n";

/// What each machine gets: planet.toml, its bundle, the service.
fn copy(operator: &Path, machine: &Machine) {
    fs::copy(operator.join("planet.toml"), machine.directory.join("planet.toml")).unwrap();
    copy_bundle(operator, machine);
    let server = machine.directory.join("server");
    fs::write(&server, SERVER).unwrap();
    fs::set_permissions(&server, fs::Permissions::from_mode(0o755)).unwrap();
}

fn copy_bundle(operator: &Path, machine: &Machine) {
    let name = format!("{}.bundle", machine.region);
    fs::copy(operator.join(&name), machine.directory.join(&name)).unwrap();
}

/// A network, or in words why there can be none here.
fn network() -> Option<Network> {
    match Network::new() {
        Ok(network) => Some(network),
        Err(why) => {
            let hint = "it needs root and iproute2: sudo apt-get install -y iproute2";
            assert!(std::env::var("CI").as_deref() != Ok("true"), "{why}; {hint}");
            eprintln!("SKIPPED: no planet was run on machines of its own ({why}); {hint}");
            None
        }
    }
}

#[test]
fn three_machines_are_one_planet_with_nothing_but_its_file_and_their_bundles() {
    let Some(network) = network() else { return };
    let temporary = tempfile::tempdir().unwrap();
    let operator = temporary.path().join("operator");
    init(&operator, |text| {
        text.replace("data = \"/var/lib/geode\"", "data = \"data\"")
            .replace("run = [\"geode\", \"demo\"]  ", "run = [\"./server\"]")
    });
    let mut machines = [0, 1, 2].map(|i| Machine::new(&network, 11 + i as u8, REGIONS[i], temporary.path()));
    for machine in &mut machines {
        copy(&operator, machine);
        machine.start();
    }
    machines.iter().for_each(Machine::until_ready);

    // What is written anywhere is read everywhere.
    let holds = |machine: &Machine, key: &str, value: &str| {
        machine.until(&format!("it holds {key}"), || machine.redis(&["GET", key]).as_deref() == Some(value));
    };
    for machine in &machines {
        let written = machine.redis(&["SET", &format!("from:{}", machine.region), machine.region]);
        assert_eq!(written.as_deref(), Some("OK"));
    }
    for machine in &machines {
        REGIONS.iter().for_each(|region| holds(machine, &format!("from:{region}"), region));
        machine.until("it serves its own", || machine.served_by().as_deref() == Some(machine.region));
    }

    // Links use BBR where there is such a thing.
    let offered =
        machines[0].within(|| fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control"));
    if offered.unwrap().contains("bbr") {
        let sockets = machines[0].links();
        assert!(sockets.lines().any(|line| line.trim_start().starts_with("bbr ")), "{sockets}");
    }

    // A door whose service is broken forwards, and to another region once that one is dead as well.
    let [us, eu, ap] = &mut machines;
    fs::write(eu.directory.join("broken"), "").unwrap();
    eu.kill_service();
    eu.until("us-east-1 serves for it", || eu.served_by().as_deref() == Some("us-east-1"));
    us.kill();
    eu.until("ap-southeast-2 serves for it", || eu.served_by().as_deref() == Some("ap-southeast-2"));
    assert_eq!(ap.redis(&["SET", "while", "away"]).as_deref(), Some("OK"));

    // It comes back with the bundle of another planet's authority: nobody talks to it, and both sides say why.
    let stranger = temporary.path().join("stranger");
    init(&stranger, |text| text);
    copy_bundle(&stranger, us);
    us.start();
    us.until_ready();
    let authority = "all bundles of a planet come from one `geode init` and its ca.key";
    us.until("it says why", || {
        us.log().contains(&format!("shows a certificate that is not of this planet's authority: {authority}"))
    });
    for other in [&*eu, &*ap] {
        other.until("it says why", || {
            other
                .log()
                .contains(&format!("does not know the authority of this geode's certificate: {authority}"))
        });
    }
    assert_eq!(us.redis(&["GET", "while"]), None, "it hears nothing");
    assert_eq!(us.redis(&["SET", "alone", "yes"]).as_deref(), Some("OK"), "it serves its region");

    // The right one is taken over while it runs, and it catches up both ways.
    copy_bundle(&operator, us);
    us.until("it takes the bundle over", || us.log().contains("was renewed; it is valid until"));
    holds(us, "while", "away");
    holds(eu, "alone", "yes");
    holds(ap, "alone", "yes");
}

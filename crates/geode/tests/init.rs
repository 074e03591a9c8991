//! `geode init` as a user meets it: what it makes, what it leaves alone, what it refuses.

#![allow(clippy::unwrap_used)] // a test that unwraps fails, which is what it is for

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Runs `geode init` in a directory: exit code, what it said, what it complained of.
fn init(directory: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_geode"))
        .arg("init")
        .args(arguments)
        .arg("--dir")
        .arg(directory)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn files(directory: &Path) -> BTreeMap<String, (u32, Vec<u8>)> {
    let entries = fs::read_dir(directory).unwrap().map(Result::unwrap);
    let read = |entry: fs::DirEntry| {
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        (entry.file_name().into_string().unwrap(), (mode, fs::read(entry.path()).unwrap()))
    };
    entries.map(read).collect()
}

#[test]
fn it_makes_what_is_missing_and_changes_nothing_that_is_there() {
    let temporary = tempfile::tempdir().unwrap();
    let directory = temporary.path();
    let (code, said, complaint) = init(
        directory,
        &["--name", "acme", "--regions", "us-east-1,eu-west-1", "--region", "tokyo=203.0.113.9"],
    );
    assert_eq!((code, complaint.as_str()), (Some(0), ""));
    assert!(said.starts_with(&format!("planet acme in {}\n", directory.display())), "{said}");
    assert!(said.contains("eu-west-1.bundle  made     a secret of this region, valid until 20"), "{said}");
    let first = files(directory);
    let modes: Vec<(&str, u32)> = first.iter().map(|(name, (mode, _))| (name.as_str(), *mode)).collect();
    assert_eq!(
        modes,
        [
            ("ca.key", 0o600),
            ("ca.pem", 0o644),
            ("eu-west-1.bundle", 0o600),
            ("planet.toml", 0o644),
            ("tokyo.bundle", 0o600),
            ("us-east-1.bundle", 0o600)
        ]
    );

    let (code, said, _) = init(directory, &["--json"]);
    let report: Value = serde_json::from_str(&said).unwrap();
    let kept = report["files"].as_array().unwrap().iter().all(|file| file["what"] == "kept");
    assert!(code == Some(0) && kept && report["placeholders"] == true, "{said}");
    assert!(files(directory) == first, "nothing changed");

    let planet = fs::read_to_string(directory.join("planet.toml")).unwrap();
    let grown = planet.replace("[service]", "[regions.sydney]\nlink = \"203.0.113.7:7400\"\n\n[service]");
    fs::write(directory.join("planet.toml"), grown).unwrap();
    let (code, said, _) = init(directory, &["--renew", "tokyo"]);
    assert_eq!(code, Some(0));
    assert!(said.contains("tokyo.bundle      renewed  "), "{said}");
    let second = files(directory);
    let changed: Vec<&String> =
        second.iter().filter(|(name, file)| first.get(*name) != Some(file)).map(|(name, _)| name).collect();
    assert_eq!(changed, ["planet.toml", "sydney.bundle", "tokyo.bundle"]);
}

#[test]
fn what_would_split_the_planet_is_refused_in_one_line() {
    let temporary = tempfile::tempdir().unwrap();
    let directory = temporary.path();
    let refused = |arguments: &[&str]| {
        let before = files(directory);
        let (code, said, complaint) = init(directory, arguments);
        assert_eq!((code, said.as_str(), complaint.lines().count()), (Some(2), "", 1), "{complaint}");
        assert!(files(directory) == before, "nothing was written");
        complaint.replace(&directory.display().to_string(), "DIR")
    };
    assert!(refused(&["--regions", "EU"]).contains("is not a region name"));
    assert!(refused(&["--region", "tokyo"]).contains("write it like --region tokyo=203.0.113.10"));
    assert!(refused(&["--regions", "tokyo,tokyo"]).contains("tokyo is named twice"));
    assert!(refused(&["--name", "a..b"]).contains("cannot stand in a certificate"));

    assert_eq!(init(directory, &["--name", "acme"]).0, Some(0));
    assert_eq!(
        refused(&["--name", "acme", "--regions", "tokyo"]),
        "geode init: DIR/planet.toml is there already, so --name, --regions cannot be given: edit the file, then run `geode \
         init` again for bundles that are missing\n"
    );
    assert!(
        refused(&["--renew", "mars"]).contains("there is no region \"mars\"; there are ap-southeast-2, ")
    );
    fs::remove_file(directory.join("ca.key")).unwrap();
    assert!(refused(&[]).starts_with("geode init: DIR has ca.pem but no ca.key: bring both here"));
    fs::remove_file(directory.join("ca.pem")).unwrap();
    assert!(
        refused(&[]).starts_with("geode init: DIR has ap-southeast-2.bundle but no ca.key: bring both here")
    );

    // The authority of another planet.
    let other = tempfile::tempdir().unwrap();
    assert_eq!(init(other.path(), &["--name", "other"]).0, Some(0));
    for file in ["ca.pem", "ca.key"] {
        fs::copy(other.path().join(file), directory.join(file)).unwrap();
    }
    assert!(refused(&["--renew", "us-east-1"]).contains("ca.pem and ca.key do not belong together"));
}

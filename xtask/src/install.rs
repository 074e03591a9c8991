//! What tests and benchmarks need beyond cargo: system packages, and language clients below `target/`.
//!
//! System packages are installed where this runs as root on Debian or Ubuntu. Elsewhere the tests that need them
//! skip loudly, and with `CI=true` that is a failure.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{Outcome, root, run};

/// A program, and the Debian package that holds it.
pub(crate) struct Tool {
    program: &'static str,
    package: &'static str,
}

/// Real peers that tests compare with, and the runtimes of the example services.
pub(crate) const FOR_TESTS: [Tool; 7] = [
    Tool { program: "ip", package: "iproute2" },
    Tool { program: "redis-server", package: "redis-server" },
    Tool { program: "redis-cli", package: "redis-tools" },
    Tool { program: "curl", package: "curl" },
    Tool { program: "node", package: "nodejs" },
    Tool { program: "npm", package: "npm" },
    Tool { program: "python3", package: "python3-pip" },
];

/// Real peers that benchmarks compare with.
pub(crate) const FOR_BENCHMARKS: [Tool; 3] = [
    Tool { program: "ip", package: "iproute2" },
    Tool { program: "redis-server", package: "redis-server" },
    Tool { program: "redis-benchmark", package: "redis-tools" },
];

/// Installs the packages of missing programs, or says which line would.
pub(crate) fn programs(tools: &[Tool]) -> Outcome {
    let missing = || tools.iter().filter(|tool| !on_path(tool.program));
    let packages: Vec<&str> = missing().map(|tool| tool.package).collect();
    if packages.is_empty() {
        return Ok(());
    }
    let line = format!("apt-get install -y {}", packages.join(" "));
    if is_root() && on_path("apt-get") {
        eprintln!("installing: {line}");
        apt(&["update", "-qq"])?;
        let mut arguments = vec!["install", "-y", "-qq", "--no-install-recommends"];
        arguments.extend(packages);
        apt(&arguments)?;
    }
    let left: Vec<&str> = missing().map(|tool| tool.program).collect();
    if left.is_empty() {
        return Ok(());
    }
    let message = format!("missing: {}. To install: sudo {line}", left.join(", "));
    if is_ci() {
        return Err(message);
    }
    eprintln!("SKIPPING what needs them: {message}");
    Ok(())
}

/// The Node and Python clients of the example services, below `target/test-clients`.
pub(crate) fn language_clients() -> Outcome {
    let clients = root().join("target/test-clients");
    std::fs::create_dir_all(&clients)
        .map_err(|error| format!("cannot create {}: {error}", clients.display()))?;
    let node = once(&clients, "node", "examples/node/package-lock.json", |clients| {
        for file in ["package.json", "package-lock.json"] {
            let from = root().join("examples/node").join(file);
            std::fs::copy(&from, clients.join(file))
                .map_err(|error| format!("{}: {error}", from.display()))?;
        }
        run(Command::new("npm")
            .args(["ci", "--no-audit", "--no-fund", "--loglevel=error", "--prefix"])
            .arg(clients))
    });
    let python = once(&clients, "python", "examples/python/requirements.txt", |clients| {
        let target = clients.join("python");
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade", "--target"];
        let list = root().join("examples/python/requirements.txt");
        run(Command::new("python3").args(pip).arg(target).arg("-r").arg(list))
    });
    for outcome in [node, python] {
        match outcome {
            Err(message) if is_ci() => return Err(message),
            Err(message) => eprintln!("SKIPPING an example service's tests: {message}"),
            Ok(()) => {}
        }
    }
    Ok(())
}

/// Installs unless the stamp says that it was done for the same list of dependencies.
fn once(clients: &Path, name: &str, list: &str, install: impl FnOnce(&Path) -> Outcome) -> Outcome {
    let wanted = std::fs::read(root().join(list)).map_err(|error| format!("{list}: {error}"))?;
    let stamp: PathBuf = clients.join(format!("{name}.installed"));
    if std::fs::read(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    eprintln!("installing the {name} client below {}", clients.display());
    install(clients)?;
    std::fs::write(&stamp, wanted).map_err(|error| format!("{}: {error}", stamp.display()))
}

fn apt(arguments: &[&str]) -> Outcome {
    run(Command::new("apt-get")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(arguments)
        .stdout(Stdio::null()))
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.starts_with(b"0\n"))
}

/// Where a skip counts as a failure.
fn is_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| value == "true")
}

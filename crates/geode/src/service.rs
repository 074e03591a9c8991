//! From `[service]` in planet.toml to what the host is told.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use geode_host::{
    HealthSettings, HostSettings, InstanceLimits, OutputLine, OutputStream, RunSettings, ServiceSource,
};
use geode_planet::{HostPort, Program, Region, Service};

/// How long a probe may take, unless it is repeated more often.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// How this process is run, as far as services are concerned.
#[derive(Debug, Clone)]
pub(crate) struct Surroundings {
    /// This program, which launches services so that they end with it.
    pub(crate) program: PathBuf,
    /// How long an instance may take to end after it was asked to.
    pub(crate) stop_grace: Duration,
    /// What becomes of the lines that instances print.
    pub(crate) output: Output,
}

/// What becomes of the lines that instances print.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// Printed after the region and the instance.
    Named,
    /// Printed as they are: the parent process puts the region before them.
    Plain,
    /// Log records.
    Log,
}

/// What the host of this region is told.
///
/// # Errors
/// An upstream's name that cannot be resolved.
pub(crate) async fn settings(
    service: &Service,
    region: &Region,
    surroundings: &Surroundings,
) -> std::io::Result<HostSettings> {
    let source = match &service.program {
        Program::Upstream(upstream) => ServiceSource::Upstream(resolve(upstream).await?),
        Program::Run(command) => ServiceSource::Run(run_settings(command, service, region, surroundings)),
    };
    let health = &service.health;
    let health = HealthSettings {
        path: health.path.clone(),
        interval: health.interval,
        timeout: health.interval.min(PROBE_TIMEOUT),
        up: health.up,
        down: health.down,
    };
    Ok(HostSettings { region: region.name.to_string(), service: source, health })
}

fn run_settings(
    command: &[String],
    service: &Service,
    region: &Region,
    surroundings: &Surroundings,
) -> RunSettings {
    let own_ip = |ip: IpAddr| if ip.is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { ip };
    let bind_ip = region
        .settings
        .door_listen
        .first()
        .map_or_else(|| Ipv4Addr::LOCALHOST.into(), |door| own_ip(door.ip()));
    let redis = region.settings.redis_listen;
    let redis = SocketAddr::new(own_ip(redis.ip()), redis.port());
    let output = surroundings.output;
    let output = Arc::new(move |line: OutputLine<'_>| show(line, output));
    let limits = service.instances;
    RunSettings {
        launcher: vec![surroundings.program.display().to_string(), "launch".to_owned()],
        environment: vec![("REDIS_URL".to_owned(), format!("redis://{redis}"))],
        instances: InstanceLimits {
            min: limits.min as usize,
            max: limits.max as usize,
            in_flight: limits.in_flight,
        },
        stop_grace: surroundings.stop_grace,
        ..RunSettings::new(command.to_vec(), bind_ip, output)
    }
}

async fn resolve(upstream: &HostPort) -> std::io::Result<SocketAddr> {
    let mut addresses = tokio::net::lookup_host((upstream.host.as_str(), upstream.port)).await?;
    addresses.next().ok_or_else(|| std::io::ErrorKind::NotFound.into())
}

fn show(line: OutputLine<'_>, output: Output) {
    let text = match output {
        Output::Named => line.to_string(),
        Output::Plain => line.text.to_owned(),
        Output::Log => {
            tracing::info!(target: "service", instance = line.instance, stream = ?line.stream, "{}", line.text);
            return;
        }
    };
    // Whoever reads them may be gone; that is no reason to end.
    let _ = match line.stream {
        OutputStream::Out => writeln!(std::io::stdout(), "{text}"),
        OutputStream::Error => writeln!(std::io::stderr(), "{text}"),
    };
}

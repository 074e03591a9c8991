//! This region's bundle: read at the start, read again when the file changes, and watched for its end.

use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use geode_link::{Bundle, BundleError, Credentials, utc_day};
use geode_planet::RegionName;

/// Time between two looks at the file: one `stat` each.
const LOOK: Duration = Duration::from_secs(2);
/// Time between two warnings that the bundle ends soon.
const WARN_EVERY: Duration = Duration::from_secs(24 * 3600);
/// How many days before its end people are told, so that they renew it in working hours.
const WARN_DAYS: i64 = 30;
/// A bundle is some 2 KiB.
const MAX_BYTES: u64 = 1 << 20;

/// Why a bundle's file is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BundleFileError {
    #[error(
        "cannot read {}, the bundle of {region}, without which no other region talks to it: {source}; `geode init` makes \
         one per region, and --bundle says where it is",
        .file.display()
    )]
    Io { file: PathBuf, region: RegionName, source: io::Error },
    #[error("{}: {source}", .file.display())]
    Bundle { file: PathBuf, source: BundleError },
}

/// Where a region's bundle is unless it is said: beside planet.toml.
pub(crate) fn default_file(config: &Path, region: &RegionName) -> PathBuf {
    config.with_file_name(format!("{region}.bundle"))
}

/// Reads a region's bundle.
///
/// # Errors
/// The file cannot be read, or is no bundle.
pub(crate) fn read(file: &Path, region: &RegionName) -> Result<Bundle, BundleFileError> {
    let mut text = String::new();
    let io = |source| BundleFileError::Io { file: file.to_owned(), region: region.clone(), source };
    let opened = File::open(file).map_err(io)?;
    if opened.metadata().is_ok_and(|data| data.permissions().mode() & 0o077 != 0) {
        tracing::warn!("{} is a secret that others on this machine can read: chmod 600", file.display());
    }
    opened.take(MAX_BYTES).read_to_string(&mut text).map_err(io)?;
    Bundle::read(&text).map_err(|source| BundleFileError::Bundle { file: file.to_owned(), source })
}

/// Whole days until the bundle ends, negative afterwards; none as long as nobody has to care.
pub(crate) fn days_left_if_few(credentials: &Credentials) -> Option<i64> {
    let days = days_left(credentials.valid_until()?, SystemTime::now());
    (days < WARN_DAYS).then_some(days)
}

fn days_left(end: SystemTime, now: SystemTime) -> i64 {
    let days = |duration: Duration| (duration.as_secs() / (24 * 3600)) as i64;
    match end.duration_since(now) {
        Ok(left) => days(left),
        Err(over) => -1 - days(over.duration()),
    }
}

/// Takes over the file whenever it changes, and warns before the bundle ends, for as long as it is polled.
pub(crate) async fn keep(credentials: Arc<Credentials>, file: PathBuf, region: RegionName) {
    let mut seen = fingerprint(&file);
    let mut warned: Option<tokio::time::Instant> = None;
    loop {
        if warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
            warn_of_the_end(&credentials, &region);
            warned = Some(tokio::time::Instant::now());
        }
        tokio::time::sleep(LOOK).await;
        let found = fingerprint(&file);
        if found == seen || found.is_none() {
            // A file that is gone has not changed: this is a copy under way, or somebody tidied up.
            continue;
        }
        seen = found;
        match take_over(&credentials, &file, &region) {
            Ok(until) => {
                tracing::info!("{} was renewed; it is valid until {until}", file.display());
                warned = None;
            }
            Err(error) => tracing::warn!("{error}; the bundle that was read before stays in use"),
        }
    }
}

fn take_over(credentials: &Credentials, file: &Path, region: &RegionName) -> Result<String, BundleFileError> {
    let bundle = read(file, region)?;
    let taken = credentials.renew(&bundle);
    taken.map_err(|source| BundleFileError::Bundle { file: file.to_owned(), source })?;
    Ok(credentials.valid_until().map_or_else(|| "?".to_owned(), utc_day))
}

fn warn_of_the_end(credentials: &Credentials, region: &RegionName) {
    let (Some(end), Some(days)) = (credentials.valid_until(), days_left_if_few(credentials)) else { return };
    let day = utc_day(end);
    if days < 0 {
        tracing::error!(
            "the bundle of {region} ended on {day}, so other regions refuse it: renew it with `geode init --renew {region}`"
        );
    } else {
        tracing::warn!(
            "the bundle of {region} ends on {day}: renew it with `geode init --renew {region}` and copy it here"
        );
    }
}

/// What changes when a file is written or replaced.
fn fingerprint(file: &Path) -> Option<(u64, u64, i64, i64)> {
    let of = |data: Metadata| (data.ino(), data.size(), data.mtime(), data.mtime_nsec());
    fs::metadata(file).ok().map(of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_counted_down_to_the_end_and_beyond() {
        let now = SystemTime::now();
        let hours = |hours: u64| Duration::from_secs(3600 * hours);
        assert_eq!(days_left(now + hours(49), now), 2);
        assert_eq!(days_left(now + hours(1), now), 0);
        assert_eq!(days_left(now - hours(1), now), -1);
        assert_eq!(days_left(now - hours(25), now), -2);
    }
}

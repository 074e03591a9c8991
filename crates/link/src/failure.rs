//! Why two geodes do not come together, in words that say what to do. Both sides log such a line, each from where it
//! stands: one sees the certificate that it does not believe, the other the alert by which it is told.

use std::io;
use std::time::{Duration, UNIX_EPOCH};

use rustls::{AlertDescription, CertificateError, Error};

use crate::authority::utc_day;

/// What went wrong in a handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The bytes are not TLS.
    NotTls,
    /// The connection broke.
    Io,
    /// One side does not believe the other, in words: a predicate to the other side.
    Distrust(String),
}

/// Which side this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Caller,
    Acceptor,
}

/// Reads what TLS says of a handshake, or of the first bytes after it, as seen from `side`.
pub(crate) fn explain(error: &io::Error, side: Side) -> Failure {
    let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
        return Failure::Io;
    };
    match error {
        Error::InvalidCertificate(error) => Failure::Distrust(of_certificate(error)),
        Error::NoCertificatesPresented => Failure::Distrust("shows no certificate: it is no geode".into()),
        Error::AlertReceived(alert) => Failure::Distrust(of_alert(*alert, side)),
        Error::PeerIncompatible(_) => Failure::Distrust("does not speak TLS 1.3: it is no geode".into()),
        Error::InvalidMessage(_) | Error::InappropriateMessage { .. } => Failure::NotTls,
        other => Failure::Distrust(format!("failed in the TLS handshake: {other}")),
    }
}

const ONE_AUTHORITY: &str = "all bundles of a planet come from one `geode init` and its ca.key";

fn of_certificate(error: &CertificateError) -> String {
    let day = |seconds: u64| utc_day(UNIX_EPOCH + Duration::from_secs(seconds));
    match error {
        CertificateError::ExpiredContext { not_after, .. } => format!(
            "shows a certificate that ended on {}: renew its bundle with `geode init --renew`; if it is still valid, this \
             machine's clock is ahead",
            day(not_after.as_secs())
        ),
        CertificateError::NotValidYetContext { not_before, .. } => format!(
            "shows a certificate that begins on {}: set the clocks of both machines (NTP)",
            day(not_before.as_secs())
        ),
        CertificateError::NotValidForNameContext { presented, .. } => {
            let names: Vec<&str> = presented.iter().map(|name| own_name(name)).collect();
            format!("shows the certificate of {}: check `link` in planet.toml", names.join(", "))
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            format!("shows a certificate that is not of this planet's authority: {ONE_AUTHORITY}")
        }
        other => format!("shows a certificate that is not good ({other:?}): {ONE_AUTHORITY}"),
    }
}

/// The name itself: the verifier writes `DnsName("eu-west-1.acme.geode")`.
fn own_name(name: &str) -> &str {
    name.strip_prefix("DnsName(\"").and_then(|name| name.strip_suffix("\")")).unwrap_or(name)
}

fn of_alert(alert: AlertDescription, side: Side) -> String {
    match alert {
        AlertDescription::UnknownCA | AlertDescription::DecryptError => {
            format!("does not know the authority of this geode's certificate: {ONE_AUTHORITY}")
        }
        AlertDescription::CertificateExpired => {
            "says that this geode's certificate has ended or not begun: renew its bundle with `geode init --renew`, or set \
             the clocks of both machines (NTP)"
                .into()
        }
        AlertDescription::BadCertificate if side == Side::Acceptor => {
            "looked for another region here: check `link` in its planet.toml".into()
        }
        other => format!("does not accept this geode's certificate ({other:?}): {ONE_AUTHORITY}"),
    }
}

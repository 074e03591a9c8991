//! What a certificate has to say for a geode to believe it: that it was issued by the planet's authority, to the host
//! name `REGION.PLANET.geode`. The name resolves nowhere; it only has to be nobody else's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use geode_planet::RegionName;
use rustls::pki_types::{CertificateDer, DnsName, ServerName, UnixTime};
use webpki::{EndEntityCert, Error, KeyUsage};

use crate::bundle::{Bundle, BundleError};
use crate::preface::Identity;

/// The last second of the year 9999, which is as far as certificates know.
pub(crate) const END_OF_TIME: Duration = Duration::from_secs(253_402_300_799);

/// The host name of a region in the certificates of a planet.
pub(crate) fn host_name(of: &Identity, region: &RegionName) -> String {
    format!("{region}.{}.geode", of.planet)
}

/// The same, in the form that certificates are compared with; none if it is no host name.
pub(crate) fn subject(of: &Identity, region: &RegionName) -> Option<ServerName<'static>> {
    DnsName::try_from(host_name(of, region)).ok().map(ServerName::DnsName)
}

/// Whether the first of these certificates, which TLS has verified, is `region`'s. If not, whose it is.
pub(crate) fn is_of(
    chain: &[CertificateDer<'_>],
    planet: &Identity,
    region: &RegionName,
) -> Result<(), String> {
    let is = chain
        .first()
        .and_then(|certificate| EndEntityCert::try_from(certificate).ok())
        .zip(subject(planet, region))
        .is_some_and(|(certificate, name)| certificate.verify_is_valid_for_subject_name(&name).is_ok());
    if is { Ok(()) } else { Err(names(chain)) }
}

/// The names in the first of these certificates, as one printable text.
pub(crate) fn names(chain: &[CertificateDer<'_>]) -> String {
    let certificate = chain.first().and_then(|certificate| EndEntityCert::try_from(certificate).ok());
    let names: Vec<&str> =
        certificate.iter().flat_map(|certificate| certificate.valid_dns_names()).take(4).collect();
    if names.is_empty() { "nobody".to_owned() } else { names.join(", ") }
}

/// Whether a bundle is what the geode `identity` needs. Says nothing of time.
pub(crate) fn check(bundle: &Bundle, identity: &Identity) -> Result<(), BundleError> {
    is_of(&bundle.chain, identity, &identity.region)
        .map_err(|found| BundleError::Other { found, wanted: host_name(identity, &identity.region) })?;
    let valid_until =
        not_after(bundle).ok_or_else(|| BundleError::Broken("its certificate has no end".into()))?;
    verify(bundle, valid_until).map_err(|error| BundleError::Broken(error.to_string()))
}

/// When a bundle's certificate ends.
pub(crate) fn valid_until(bundle: &Bundle) -> Option<SystemTime> {
    not_after(bundle).map(|end| UNIX_EPOCH + Duration::from_secs(end.as_secs()))
}

/// The end of a certificate's validity: what the verifier complains of at the end of time, before anything else.
fn not_after(bundle: &Bundle) -> Option<UnixTime> {
    match verify(bundle, UnixTime::since_unix_epoch(END_OF_TIME + Duration::from_secs(1))) {
        Err(Error::CertExpired { not_after, .. }) => Some(not_after),
        _ => None,
    }
}

/// Verifies the chain of a bundle up to its own authorities, as its peers will.
fn verify(bundle: &Bundle, at: UnixTime) -> Result<(), Error> {
    let certificate = EndEntityCert::try_from(bundle.chain.first().ok_or(Error::BadDer)?)?;
    let anchors = bundle.authorities.iter().map(webpki::anchor_from_trusted_cert);
    let anchors: Vec<_> = anchors.collect::<Result<_, _>>()?;
    let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
    let between = &bundle.chain[1..];
    certificate
        .verify_for_usage(algorithms.all, &anchors, between, at, KeyUsage::client_auth(), None, None)
        .map(|_| ())
}

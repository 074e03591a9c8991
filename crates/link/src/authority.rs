//! The planet's own certificate authority, which makes one bundle per region.
//!
//! Nothing but this authority is trusted on links, and nobody but links trusts it. Its key is needed to make bundles and
//! at no other time, so it can stay off every machine that serves. It is ECDSA on P-256 like the regions' keys: small,
//! quick, and what TLS 1.3 asks everybody to understand (RFC 8446, section 9.1).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use geode_planet::RegionName;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::bundle::{self, Bundle, CERTIFICATE, PRIVATE_KEY, SESSION_KEY};
use crate::preface::Identity;
use crate::trust;

/// How long a bundle is valid. A year: long enough to renew at leisure, short enough that it is done by people who
/// remember how.
pub const BUNDLE_DAYS: u32 = 365;
/// How long the authority is said to be valid. What ends earlier is the planet.
const AUTHORITY_DAYS: u32 = 50 * 365;
/// How far back validity begins, so that a machine whose clock is behind accepts a new bundle.
const BACKDATED: Duration = Duration::from_secs(24 * 3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Bytes of the key that seals session tokens: an HMAC-SHA-256 key of the hash's own length.
const SESSION_KEY_BYTES: usize = 32;

/// A planet's certificate authority with its key, and the key of session tokens that all bundles share.
#[derive(Debug)]
pub struct Authority {
    planet: String,
    certificate: CertificateDer<'static>,
    key: KeyPair,
    session_key: Vec<u8>,
}

/// Why an authority cannot be made or read, or makes no bundle. The text says which file is meant.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The file is not what [`Authority::key_pem`] or [`Authority::certificate_pem`] wrote.
    #[error("{0}")]
    Unreadable(String),
    /// The two files are of two authorities, or of another planet's.
    #[error(
        "ca.pem and ca.key do not belong together, or are not those of planet \"{0}\": bring the ones that `geode init` \
         made for it"
    )]
    Mismatch(String),
    /// No host name can be made of it.
    #[error("{0} cannot stand in a certificate: use letters, digits and \"-\", neither first nor last")]
    Name(String),
    /// The system gives no random bytes.
    #[error("the system gives no random bytes: {0}")]
    Random(String),
}

impl Authority {
    /// A new authority for a planet.
    ///
    /// # Errors
    /// The name fits no certificate, or the system gives no random bytes.
    pub fn new(planet: &str) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate().map_err(|error| AuthorityError::Random(error.to_string()))?;
        let mut params = authority_params(planet);
        let now = SystemTime::now();
        set_validity(&mut params, now - BACKDATED, now + DAY * AUTHORITY_DAYS);
        let certificate =
            params.self_signed(&key).map_err(|_| AuthorityError::Name(format!("planet \"{planet}\"")))?;
        let mut session_key = vec![0; SESSION_KEY_BYTES];
        getrandom::fill(&mut session_key).map_err(|error| AuthorityError::Random(error.to_string()))?;
        Ok(Self { planet: planet.to_owned(), certificate: certificate.der().clone(), key, session_key })
    }

    /// The authority of a planet, from the two texts that [`Self::certificate_pem`] and [`Self::key_pem`] gave.
    ///
    /// # Errors
    /// They are not such texts, or those of another planet.
    pub fn read(planet: &str, certificate: &str, key: &str) -> Result<Self, AuthorityError> {
        let unreadable = |file: &str, why: String| AuthorityError::Unreadable(format!("{file}: {why}"));
        let certificate = bundle::sections(certificate)
            .and_then(|sections| bundle::only(&sections, CERTIFICATE))
            .map_err(|error| unreadable("ca.pem", error.to_string()))?;
        let sections = bundle::sections(key).map_err(|error| unreadable("ca.key", error.to_string()))?;
        let section =
            |tag| bundle::only(&sections, tag).map_err(|error| unreadable("ca.key", error.to_string()));
        let (key, session_key) = (section(PRIVATE_KEY)?, section(SESSION_KEY)?);
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key));
        let key = KeyPair::try_from(&key).map_err(|error| unreadable("ca.key", error.to_string()))?;
        let certificate = CertificateDer::from(certificate);
        Ok(Self { planet: planet.to_owned(), certificate, key, session_key })
    }

    /// The certificate, for `ca.pem`. It is no secret.
    pub fn certificate_pem(&self) -> String {
        bundle::encode(CERTIFICATE, &self.certificate)
    }

    /// The keys, for `ca.key`. Who has them can join the planet as any region.
    pub fn key_pem(&self) -> String {
        bundle::encode(PRIVATE_KEY, self.key.serialized_der())
            + &bundle::encode(SESSION_KEY, &self.session_key)
    }

    /// Whether a region of this name can have a bundle.
    ///
    /// # Errors
    /// The two names make no host name.
    pub fn check_name(&self, region: &RegionName) -> Result<(), AuthorityError> {
        let identity = Identity { planet: self.planet.clone(), region: region.clone() };
        trust::subject(&identity, region).map(|_| ()).ok_or_else(|| self.not_a_name(region))
    }

    fn not_a_name(&self, region: &RegionName) -> AuthorityError {
        AuthorityError::Name(format!("region {region} of planet \"{}\"", self.planet))
    }

    /// A bundle for a region, valid for [`BUNDLE_DAYS`] from now.
    ///
    /// # Errors
    /// The region's name fits no certificate, or the authority's two files do not belong together.
    pub fn issue(&self, region: &RegionName) -> Result<Bundle, AuthorityError> {
        let now = SystemTime::now();
        self.issue_for(region, now - BACKDATED, now + DAY * BUNDLE_DAYS)
    }

    /// A bundle that is valid from the first of two times to the second.
    ///
    /// # Errors
    /// As [`Self::issue`].
    pub fn issue_for(
        &self,
        region: &RegionName,
        from: SystemTime,
        to: SystemTime,
    ) -> Result<Bundle, AuthorityError> {
        let identity = Identity { planet: self.planet.clone(), region: region.clone() };
        let not_a_name = || self.not_a_name(region);
        self.check_name(region)?;
        let key = KeyPair::generate().map_err(|error| AuthorityError::Random(error.to_string()))?;
        let mut params =
            CertificateParams::new([trust::host_name(&identity, region)]).map_err(|_| not_a_name())?;
        params.distinguished_name = common_name(&format!("geode {region}"));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, from, to);
        let authority = authority_params(&self.planet);
        let issuer = Issuer::from_params(&authority, &self.key);
        let certificate = params.signed_by(&key, &issuer).map_err(|_| not_a_name())?;
        let bundle = Bundle {
            chain: vec![certificate.der().clone()],
            key: key.serialize_der(),
            authorities: vec![self.certificate.clone()],
            session_key: self.session_key.clone(),
        };
        trust::check(&bundle, &identity).map_err(|_| AuthorityError::Mismatch(self.planet.clone()))?;
        Ok(bundle)
    }
}

fn authority_params(planet: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(&format!("planet {planet} (geode)"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    params
}

fn common_name(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

/// From when to when a certificate is valid.
fn set_validity(params: &mut CertificateParams, from: SystemTime, to: SystemTime) {
    let since_epoch = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default();
    params.not_before = rcgen::date_time_ymd(1970, 1, 1) + since_epoch(from);
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + since_epoch(to);
}

/// The day of a time in UTC, like 2031-04-30, for people.
pub fn utc_day(time: SystemTime) -> String {
    // Beyond the year 9999 the calendar of certificates ends.
    let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default().min(trust::END_OF_TIME);
    (rcgen::date_time_ymd(1970, 1, 1) + since_epoch).date().to_string()
}

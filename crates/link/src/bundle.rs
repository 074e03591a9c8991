//! The one file by which a region joins its planet: `REGION.bundle`.
//!
//! ```text
//! geode bundle 1
//! -----BEGIN CERTIFICATE-----          the region's, perhaps others up to the authority
//! -----BEGIN PRIVATE KEY-----          the region's (PKCS #8)
//! -----BEGIN CERTIFICATE-----          the planet's authorities, whose regions it talks to; usually one
//! -----BEGIN GEODE SESSION KEY-----    seals session tokens, the same in every region
//! ```
//! PEM (RFC 7468); text outside of the sections is ignored but for the first line, which carries the version.

use std::fmt;
use std::time::SystemTime;

use pem::{EncodeConfig, LineEnding, Pem};
use rustls::pki_types::CertificateDer;

use crate::preface::Identity;
use crate::trust;

pub(crate) const CERTIFICATE: &str = "CERTIFICATE";
pub(crate) const PRIVATE_KEY: &str = "PRIVATE KEY";
pub(crate) const SESSION_KEY: &str = "GEODE SESSION KEY";
/// The first line.
const TITLE: &str = "geode bundle ";
/// The version that this release writes and reads.
const VERSION: u32 = 1;

/// All that a region shows, trusts and keeps secret.
#[derive(Clone)]
pub struct Bundle {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// PKCS #8.
    pub(crate) key: Vec<u8>,
    pub(crate) authorities: Vec<CertificateDer<'static>>,
    pub(crate) session_key: Vec<u8>,
}

/// Why a bundle cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// The first line is another.
    #[error("it is no bundle: `geode init` makes one per region, and its first line is \"geode bundle 1\"")]
    NoBundle,
    /// A later release wrote it.
    #[error("it is a bundle of version {0}, and this geode knows {VERSION}: upgrade geode")]
    Newer(u32),
    /// What stands between BEGIN and END is not what PEM says.
    #[error("it is damaged ({0}): copy it again")]
    Damaged(String),
    /// A section is not there, or twice.
    #[error("it has no {0}, or more than one: copy it again, or make another with `geode init --renew`")]
    Section(&'static str),
    /// The certificate is that of another region.
    #[error("it is the bundle of {found}, not of {wanted}: give this machine its own")]
    Other {
        /// The name in its certificate.
        found: String,
        /// The name that it should have.
        wanted: String,
    },
    /// Certificate, key and authority do not belong together.
    #[error("its parts do not belong together ({0}): make another with `geode init --renew`")]
    Broken(String),
}

impl Bundle {
    /// Reads the text of a bundle.
    ///
    /// # Errors
    /// It is none, or not whole. Whose it is, is checked when it is used.
    pub fn read(text: &str) -> Result<Self, BundleError> {
        let version = text.lines().next().and_then(|line| line.strip_prefix(TITLE));
        match version.and_then(|version| version.trim().parse::<u32>().ok()) {
            None => return Err(BundleError::NoBundle),
            Some(VERSION) => {}
            Some(other) => return Err(BundleError::Newer(other)),
        }
        let sections = sections(text)?;
        let key = only(&sections, PRIVATE_KEY)?;
        let session_key = only(&sections, SESSION_KEY)?;
        let is_key = |section: &Pem| section.tag() == PRIVATE_KEY;
        let mut parts = sections.split(is_key);
        let mut certificates = || -> Vec<CertificateDer<'static>> {
            let part = parts.next().unwrap_or_default().iter();
            let part = part.filter(|section| section.tag() == CERTIFICATE);
            part.map(|section| section.contents().to_vec().into()).collect()
        };
        let (chain, authorities) = (certificates(), certificates());
        if chain.is_empty() || authorities.is_empty() {
            return Err(BundleError::Section(CERTIFICATE));
        }
        Ok(Self { chain, key, authorities, session_key })
    }

    /// The text of the bundle. It is a secret.
    pub fn text(&self) -> String {
        let certificates = |list: &[CertificateDer<'_>]| -> String {
            list.iter().map(|one| encode(CERTIFICATE, one)).collect()
        };
        [
            format!("{TITLE}{VERSION}\n"),
            certificates(&self.chain),
            encode(PRIVATE_KEY, &self.key),
            certificates(&self.authorities),
            encode(SESSION_KEY, &self.session_key),
        ]
        .concat()
    }

    /// The key that seals session tokens.
    pub fn session_key(&self) -> &[u8] {
        &self.session_key
    }

    /// When its certificate ends. None if that cannot be read.
    pub fn valid_until(&self) -> Option<SystemTime> {
        trust::valid_until(self)
    }

    /// Whether it is `region`'s bundle of `planet`, and whole. Says nothing of time.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, identity: &Identity) -> Result<(), BundleError> {
        trust::check(self, identity)
    }
}

/// Names nothing that is secret.
impl fmt::Debug for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bundle").field("names", &trust::names(&self.chain)).finish_non_exhaustive()
    }
}

/// A section as PEM text.
pub(crate) fn encode(tag: &str, contents: &[u8]) -> String {
    let config = EncodeConfig::new().set_line_ending(LineEnding::LF);
    pem::encode_config(&Pem::new(tag, contents), config)
}

/// The sections of a PEM text.
pub(crate) fn sections(text: &str) -> Result<Vec<Pem>, BundleError> {
    pem::parse_many(text).map_err(|error| BundleError::Damaged(error.to_string()))
}

/// The contents of the one section of this kind.
pub(crate) fn only(sections: &[Pem], tag: &'static str) -> Result<Vec<u8>, BundleError> {
    let mut found = sections.iter().filter(|section| section.tag() == tag);
    match (found.next(), found.next()) {
        (Some(section), None) => Ok(section.contents().to_vec()),
        _ => Err(BundleError::Section(tag)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Authority;

    fn identity(region: &str) -> Identity {
        Identity { planet: "acme".into(), region: region.parse().unwrap() }
    }

    /// A bundle as the first release wrote it.
    const GOLDEN: &str = include_str!("../tests/golden/bundle-1.pem");

    #[test]
    fn version_1_is_read_and_written_as_it_was() {
        let bundle = Bundle::read(GOLDEN).unwrap();
        bundle.check(&identity("eu-west-1")).unwrap();
        assert_eq!(bundle.text(), GOLDEN);
        assert_eq!(bundle.valid_until().map(crate::utc_day).as_deref(), Some("2049-12-31"));
        assert_eq!(format!("{bundle:?}"), "Bundle { names: \"eu-west-1.acme.geode\", .. }");
    }

    #[test]
    fn what_is_no_bundle_of_this_region_is_told_apart() {
        let authority = Authority::new("acme").unwrap();
        let good = authority.issue(&"eu-west-1".parse().unwrap()).unwrap().text();
        let wrong = |text: &str| {
            let checked = Bundle::read(text).and_then(|bundle| bundle.check(&identity("eu-west-1")));
            checked.unwrap_err().to_string()
        };
        assert!(wrong("").starts_with("it is no bundle"));
        assert!(wrong(&authority.certificate_pem()).starts_with("it is no bundle"));
        assert!(wrong(&good.replace("bundle 1", "bundle 2")).starts_with("it is a bundle of version 2"));
        assert!(wrong(&good.replacen("MII", "M*I", 1)).starts_with("it is damaged"));
        assert!(wrong(&good[..good.len() / 2]).contains(", or more than one: copy it again"));
        assert!(wrong("geode bundle 1\n").starts_with("it has no PRIVATE KEY, or more than one"));
        let twice = good.clone() + &encode(SESSION_KEY, b"another");
        assert!(wrong(&twice).starts_with("it has no GEODE SESSION KEY, or more than one"));
        let other = authority.issue(&"us-east-1".parse().unwrap()).unwrap().text();
        assert!(
            wrong(&other)
                .starts_with("it is the bundle of us-east-1.acme.geode, not of eu-west-1.acme.geode")
        );
        let foreign = Authority::new("acme").unwrap().certificate_pem();
        assert!(
            wrong(&good.replace(&authority.certificate_pem(), &foreign))
                .starts_with("its parts do not belong")
        );
        let own = Bundle::read(&good).unwrap();
        let swapped = Bundle { key: Bundle::read(&other).unwrap().key, ..own };
        let error = crate::Credentials::new(identity("eu-west-1"), &swapped).unwrap_err();
        assert!(error.to_string().starts_with("its parts do not belong"), "{error}");
    }
}

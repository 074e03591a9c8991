//! What a geode shows to others and what it demands of them, ready for use on connections.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use geode_planet::RegionName;
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig, version};

use crate::bundle::{Bundle, BundleError};
use crate::preface::Identity;
use crate::trust;

/// Who a geode is on its links, with the proof of it. The proof may be renewed while links are in use: those that are
/// open stay, new ones are opened with what is new.
pub struct Credentials {
    identity: Identity,
    current: RwLock<Current>,
}

#[derive(Clone)]
struct Current {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    valid_until: Option<SystemTime>,
}

impl Credentials {
    /// The credentials of the geode `identity`.
    ///
    /// # Errors
    /// The bundle is another region's, or its parts do not belong together. One that has expired is no error: a geode
    /// serves its region without links too, and its peers will say why they refuse it.
    pub fn new(identity: Identity, bundle: &Bundle) -> Result<Self, BundleError> {
        let current = RwLock::new(Current::new(&identity, bundle)?);
        Ok(Self { identity, current })
    }

    /// Uses another bundle of the same region from now on.
    ///
    /// # Errors
    /// As [`Self::new`]; the old one stays in use.
    pub fn renew(&self, bundle: &Bundle) -> Result<(), BundleError> {
        let renewed = Current::new(&self.identity, bundle)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = renewed;
        Ok(())
    }

    /// When the certificate ends.
    pub fn valid_until(&self) -> Option<SystemTime> {
        self.current().valid_until
    }

    /// The same proof with another claim.
    #[cfg(test)]
    pub(crate) fn claiming(self, identity: Identity) -> Self {
        Self { identity, ..self }
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        self.current().client
    }

    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        self.current().server
    }

    /// The name that a peer's certificate must have; none if it is no host name.
    pub(crate) fn subject(&self, peer: &RegionName) -> Option<ServerName<'static>> {
        trust::subject(&self.identity, peer)
    }

    /// Whether a peer's certificate, which TLS has verified, is `region`'s. If not, whose it is.
    pub(crate) fn is_of(&self, chain: &[CertificateDer<'_>], region: &RegionName) -> Result<(), String> {
        trust::is_of(chain, &self.identity, region)
    }

    fn current(&self) -> Current {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl Current {
    /// TLS 1.3 alone. No session is kept or resumed: links are few and long, and a ticket would outlive a renewal.
    fn new(identity: &Identity, bundle: &Bundle) -> Result<Self, BundleError> {
        trust::check(bundle, identity)?;
        let broken = |error: &dyn fmt::Display| BundleError::Broken(error.to_string());
        let provider: Arc<CryptoProvider> = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        for authority in &bundle.authorities {
            roots.add(authority.clone()).map_err(|error| broken(&error))?;
        }
        let roots = Arc::new(roots);
        let key = || PrivatePkcs8KeyDer::from(bundle.key.clone()).into();
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&version::TLS13])
            .map_err(|error| broken(&error))?
            .with_root_certificates(Arc::clone(&roots))
            .with_client_auth_cert(bundle.chain.clone(), key())
            .map_err(|error| broken(&error))?;
        client.resumption = Resumption::disabled();
        let callers = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider)).build();
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])
            .map_err(|error| broken(&error))?
            .with_client_cert_verifier(callers.map_err(|error| broken(&error))?)
            .with_single_cert(bundle.chain.clone(), key())
            .map_err(|error| broken(&error))?;
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Self {
            client: Arc::new(client),
            server: Arc::new(server),
            valid_until: trust::valid_until(bundle),
        })
    }
}

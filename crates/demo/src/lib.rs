//! The demo service of a planet: a coffee chain with one shop per region and one menu.
//!
//! It is a service as any user would write it: it listens on a port, keeps everything in the store at `REDIS_URL`, and
//! learns from `GEODE_REGION` which shop it is. It must not know that geode exists beyond these three: with any Redis
//! server it runs as well. Its data types are those that merge: counters by increment, a list, a hash per cart.

mod api;
mod error;
mod ledger;
mod menu;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

pub use error::DemoError;

/// What a shop needs to know.
#[derive(Clone, Debug)]
pub struct DemoSettings {
    /// Where it serves HTTP.
    pub listen: SocketAddr,
    /// Its store, as in `redis://127.0.0.1:6379`. It need not answer yet.
    pub redis_url: String,
    /// Its region, which is the shop's name.
    pub region: String,
}

/// Runs a shop until SIGTERM or SIGINT, then finishes the requests it has begun.
///
/// # Errors
/// The address is taken, or the store's URL is none.
pub async fn run(settings: DemoSettings) -> Result<(), DemoError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(DemoError::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(DemoError::Signal)?;
    let listener = TcpListener::bind(settings.listen)
        .await
        .map_err(|source| DemoError::Listen { address: settings.listen, source })?;
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    serve(listener, settings, stop).await
}

/// Runs a shop on a listener until `stop` completes; [`DemoSettings::listen`] is not looked at.
///
/// # Errors
/// The store's URL is none.
pub async fn serve(
    listener: TcpListener,
    settings: DemoSettings,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), DemoError> {
    let ledger = ledger::Ledger::open(&settings.redis_url)?;
    let shop = Arc::new(api::Shop { region: settings.region, ledger });
    axum::serve(listener, api::router(shop)).with_graceful_shutdown(stop).await.map_err(DemoError::Serve)
}

//! What happens after `101 Switching Protocols`: bytes pass both ways until both sides are done.

use http::header::{CONNECTION, UPGRADE};
use http::{HeaderMap, HeaderValue, Version};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use crate::headers;

/// The protocol the client asks to switch to, if it asks properly.
///
/// `h2c` is not passed on: RFC 9113 withdrew it, and through a tunnel it would smuggle requests past the door.
pub(crate) fn wanted_protocol(version: Version, headers: &HeaderMap) -> Option<HeaderValue> {
    let asks = version == Version::HTTP_11 && headers::has_token(headers, &CONNECTION, "upgrade");
    let protocol = headers.get(UPGRADE).filter(|_| asks)?;
    (!headers::has_token(headers, &UPGRADE, "h2c")).then(|| protocol.clone())
}

/// Asks for, or grants, the switch to a protocol.
pub(crate) fn set_protocol(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol);
}

/// Carries bytes between the two upgraded connections. `held` lives as long as the tunnel.
pub(crate) async fn carry<T>(client: OnUpgrade, upstream: OnUpgrade, held: T) {
    match tokio::try_join!(client, upstream) {
        Ok((client, upstream)) => {
            let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
            if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut upstream).await {
                tracing::debug!(%error, "a tunnel broke");
            }
        }
        Err(error) => tracing::debug!(%error, "an upgrade came to nothing"),
    }
    drop(held);
}

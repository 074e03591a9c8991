//! What can go wrong: at the start, and in a request.

use std::net::SocketAddr;

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::menu;

/// Why a shop cannot run.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}; choose another port with PORT")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Not the URL of a store.
    #[error("REDIS_URL is not the URL of a store ({0}); it looks like redis://127.0.0.1:6379")]
    StoreUrl(redis::RedisError),
    /// The system refused to tell about signals.
    #[error("cannot wait for signals: {0}")]
    Signal(std::io::Error),
    /// The server failed.
    #[error("the server failed: {0}")]
    Serve(std::io::Error),
}

/// Why a request fails. The answer is JSON: `{"error": "what is wrong and what to do"}`.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error(
        "the store does not answer: check that it is running and that REDIS_URL is right, then try again"
    )]
    Store(#[from] redis::RedisError),
    #[error("the body must be JSON such as {example}")]
    Body { example: &'static str },
    #[error("there is no such drink: choose one of {}", menu::ids().collect::<Vec<_>>().join(", "))]
    Drink,
    #[error("{field} must have 1 to {most} characters")]
    Length { field: &'static str, most: usize },
    #[error("quantity must be 1 to {most}")]
    Quantity { most: u32 },
    #[error("the system has no random numbers for a cart: {0}")]
    Random(#[from] getrandom::Error),
    #[error("nothing is here: see / for the shop and /api/menu for what it sells")]
    NotFound,
}

impl IntoResponse for RequestError {
    fn into_response(self) -> Response {
        let body = Json(serde_json::json!({ "error": self.to_string() }));
        match self {
            Self::Store(error) => {
                tracing::warn!(%error, "the store does not answer");
                (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], body).into_response()
            }
            Self::Random(_) => (StatusCode::INTERNAL_SERVER_ERROR, body).into_response(),
            Self::NotFound => (StatusCode::NOT_FOUND, body).into_response(),
            Self::Body { .. } | Self::Drink | Self::Length { .. } | Self::Quantity { .. } => {
                (StatusCode::BAD_REQUEST, body).into_response()
            }
        }
    }
}

//! What the door answers by itself, and the body type of all its answers.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use serde::Serialize;

use crate::forward::{AnswerBody, Upstreams};

/// The body of a door's answer: an upstream's, streaming, or a short text of the door's own.
pub enum DoorBody<U: Upstreams> {
    /// An upstream's.
    Upstream(AnswerBody<U>),
    /// The door's own; None once it was taken.
    Own(Option<Bytes>),
}

impl<U: Upstreams> Body for DoorBody<U> {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Upstream(body) => Pin::new(body).poll_frame(cx),
            Self::Own(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Upstream(body) => body.is_end_stream(),
            Self::Own(text) => text.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Upstream(body) => body.size_hint(),
            Self::Own(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
        }
    }
}

#[derive(Serialize)]
struct Problem<'p> {
    error: &'p str,
    what_to_do: &'p str,
}

/// An answer of the door's own: `{"error": "…", "what_to_do": "…"}`.
pub(crate) fn problem<U: Upstreams>(
    status: StatusCode,
    error: &str,
    what_to_do: &str,
) -> Response<DoorBody<U>> {
    // Two strings always serialise.
    let text = serde_json::to_vec(&Problem { error, what_to_do }).unwrap_or_default();
    let mut response = Response::new(DoorBody::Own(Some(Bytes::from(text))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

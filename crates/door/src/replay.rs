//! A request's body that can be sent again.
//!
//! A body streams from the client to the upstream. While it is small, a copy of what went by is kept, so that another
//! upstream can be tried. Past the limit the copy is dropped and the body can be sent only once.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

/// The body of one request, over all attempts to send it.
#[derive(Debug)]
pub(crate) struct Replay<S = Incoming> {
    /// None: the request has no body.
    shared: Option<Arc<Mutex<Shared<S>>>>,
    length: Option<u64>,
}

/// The body of one attempt.
#[derive(Debug)]
pub(crate) struct Attempt<S = Incoming> {
    shared: Option<Arc<Mutex<Shared<S>>>>,
    /// Which attempt this is: a later one takes the source away from an earlier one.
    number: u32,
    /// Bytes handed on by this attempt.
    position: u64,
    length: Option<u64>,
    trailers_sent: bool,
}

#[derive(Debug)]
struct Shared<S> {
    source: S,
    attempt: u32,
    /// What came out of the source so far; None when it is not kept, or no longer.
    kept: Option<Vec<u8>>,
    limit: usize,
    /// Whether anything came out of the source.
    started: bool,
    /// Bytes handed to upstreams, over all attempts.
    delivered: u64,
    progress: Progress,
    trailers: Option<HeaderMap>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Streaming,
    Ended,
    /// The client went away, or sent what is no body.
    Broken,
}

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReplayError<E> {
    #[error("the request is being sent to another upstream")]
    Superseded,
    #[error(transparent)]
    Source(E),
}

impl<S: Body<Data = Bytes> + Unpin> Replay<S> {
    /// Wraps a body; up to `keep_bytes` of it are kept for repetition.
    pub(crate) fn new(source: S, keep_bytes: usize) -> Self {
        let length = source.size_hint().exact();
        let shared = (!source.is_end_stream()).then(|| {
            let fits = length.is_none_or(|length| length <= keep_bytes as u64);
            Arc::new(Mutex::new(Shared {
                source,
                attempt: 0,
                kept: (fits && keep_bytes > 0).then(Vec::new),
                limit: keep_bytes,
                started: false,
                delivered: 0,
                progress: Progress::Streaming,
                trailers: None,
            }))
        });
        Self { shared, length }
    }

    /// Begins an attempt from the first byte. Attempts before it get nothing more. Only after [`Self::can_repeat`].
    pub(crate) fn attempt(&self) -> Attempt<S> {
        let number = self.shared.as_ref().map_or(0, |shared| {
            let mut shared = lock(shared);
            shared.attempt += 1;
            shared.attempt
        });
        Attempt {
            shared: self.shared.clone(),
            number,
            position: 0,
            length: self.length,
            trailers_sent: false,
        }
    }

    /// Whether the whole body can be sent from its first byte: nothing of it was taken, or all that was is kept.
    pub(crate) fn can_repeat(&self) -> bool {
        self.inspect(true, |shared| {
            shared.progress != Progress::Broken && (!shared.started || shared.kept.is_some())
        })
    }

    /// Whether the body is sure to stay repeatable, however far an attempt comes.
    pub(crate) fn surely_repeatable(&self, keep_bytes: usize) -> bool {
        self.shared.is_none() || self.length.is_some_and(|length| length <= keep_bytes as u64)
    }

    /// Whether the upstream has been given the whole body.
    pub(crate) fn is_sent(&self) -> bool {
        self.inspect(true, |shared| shared.progress == Progress::Ended)
    }

    /// Bytes handed to upstreams so far.
    pub(crate) fn delivered(&self) -> u64 {
        self.shared.as_ref().map_or(0, |shared| lock(shared).delivered)
    }

    /// Whether it was the client's side that failed.
    pub(crate) fn is_broken(&self) -> bool {
        self.inspect(false, |shared| shared.progress == Progress::Broken)
    }

    fn inspect(&self, without_body: bool, look: impl FnOnce(&Shared<S>) -> bool) -> bool {
        self.shared.as_ref().map_or(without_body, |shared| look(&lock(shared)))
    }
}

fn lock<S>(shared: &Mutex<Shared<S>>) -> MutexGuard<'_, Shared<S>> {
    // No code that runs under this lock leaves half a change behind when it panics.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S: Body<Data = Bytes> + Unpin> Shared<S> {
    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, S::Error>>> {
        let polled = Pin::new(&mut self.source).poll_frame(cx);
        match &polled {
            Poll::Pending => {}
            Poll::Ready(None) if self.progress == Progress::Streaming => self.progress = Progress::Ended,
            Poll::Ready(None) => {}
            Poll::Ready(Some(Err(_))) => self.progress = Progress::Broken,
            Poll::Ready(Some(Ok(frame))) => {
                self.started = true;
                self.keep(frame);
                if self.source.is_end_stream() {
                    self.progress = Progress::Ended;
                }
            }
        }
        polled
    }

    fn keep(&mut self, frame: &Frame<Bytes>) {
        if let Some(trailers) = frame.trailers_ref() {
            self.trailers = Some(trailers.clone());
            self.progress = Progress::Ended;
        } else if let (Some(data), Some(kept)) = (frame.data_ref(), &mut self.kept) {
            if kept.len() + data.len() <= self.limit {
                kept.extend_from_slice(data);
            } else {
                self.kept = None;
            }
        }
    }
}

impl<S: Body<Data = Bytes> + Unpin> Body for Attempt<S> {
    type Data = Bytes;
    type Error = ReplayError<S::Error>;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        let Some(shared) = &this.shared else { return Poll::Ready(None) };
        let mut shared = lock(shared);
        if shared.attempt != this.number {
            return Poll::Ready(Some(Err(ReplayError::Superseded)));
        }
        let at = usize::try_from(this.position).unwrap_or(usize::MAX);
        let missed =
            shared.kept.as_deref().and_then(|kept| kept.get(at..)).filter(|missed| !missed.is_empty());
        let polled = if let Some(missed) = missed {
            Poll::Ready(Some(Ok(Frame::data(Bytes::copy_from_slice(missed)))))
        } else if shared.progress == Progress::Ended {
            let trailers = shared.trailers.as_ref().filter(|_| !this.trailers_sent);
            Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers.clone()))))
        } else {
            shared.poll_source(cx).map_err(ReplayError::Source)
        };
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            let length = frame.data_ref().map_or(0, |data| data.len() as u64);
            this.position += length;
            shared.delivered += length;
            this.trailers_sent |= frame.is_trailers();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.shared.is_none() || self.length == Some(self.position)
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.shared, self.length) {
            (None, _) => SizeHint::with_exact(0),
            (Some(_), Some(length)) => SizeHint::with_exact(length.saturating_sub(self.position)),
            (Some(_), None) => SizeHint::default(),
        }
    }
}

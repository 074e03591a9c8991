//! A backup as the body of an answer: read on a thread that may block, as fast as whoever asked takes it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use geode_embedded::Backup;
use hyper::body::{Body, Frame};
use tokio::sync::mpsc::{Receiver, channel};

/// Parts that are read ahead.
const AHEAD: usize = 2;

/// The bytes of a backup. Ends with an error, so that the answer is broken off, if it cannot be completed.
#[derive(Debug)]
pub(crate) struct BackupBody {
    parts: Receiver<io::Result<Bytes>>,
}

impl BackupBody {
    pub(crate) fn new(mut backup: Backup) -> Self {
        let (send, parts) = channel(AHEAD);
        tokio::task::spawn_blocking(move || {
            while let Some(part) = backup.next_bytes().transpose() {
                if let Err(error) = &part {
                    tracing::error!("a backup was broken off: {error}");
                }
                let is_last = part.is_err();
                // Whoever asked may have gone.
                if send.blocking_send(part.map(Bytes::from)).is_err() || is_last {
                    return;
                }
            }
        });
        Self { parts }
    }
}

impl Body for BackupBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.parts.poll_recv(context).map(|part| part.map(|part| part.map(Frame::data)))
    }
}

//! A call under way, as its caller sees it: no runtime is needed to read one.

use std::sync::Arc;

use bytes::Bytes;
use futures_channel::{mpsc, oneshot};
use futures_util::StreamExt;
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use tokio::sync::Notify;
use weighbridge_core::{Error, ErrorKind, Result};

use crate::runtime::AbortOnDrop;

/// Status and headers of an answer.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
}

impl Head {
    pub(crate) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// A header's value; `None` also where it is not text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The media type in lower case, without parameters; empty if there is none.
    pub(crate) fn media_type(&self) -> String {
        let value = self.header(CONTENT_TYPE.as_str()).unwrap_or_default();
        value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
    }
}

/// What a call yields, in this order: one head, then chunks.
#[derive(Debug)]
pub(crate) enum Part {
    Head(Head),
    Chunk(Bytes),
}

/// A call under way. Dropping it closes the connection.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) parts: mpsc::Receiver<Part>,
    /// How it ended, once there are no more parts.
    pub(crate) end: Option<oneshot::Receiver<Result<()>>>,
    pub(crate) abort: AbortOnDrop,
    /// Tells the task that the caller has all it wants.
    pub(crate) is_finished: Arc<Notify>,
}

impl Exchange {
    /// Status and headers; ask once, and first.
    pub(crate) async fn head(&mut self) -> Result<Head> {
        match self.parts.next().await {
            Some(Part::Head(head)) => Ok(head),
            _ => Err(match self.ended().await {
                Err(error) => error,
                Ok(()) => unexpected_end(),
            }),
        }
    }

    /// The next piece of the body; `None` at its end.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>> {
        match self.parts.next().await {
            Some(Part::Chunk(chunk)) => Ok(Some(chunk)),
            Some(Part::Head(_)) => Err(unexpected_end()),
            None => self.ended().await.map(|()| None),
        }
    }

    /// The whole body, or its first `max_bytes` bytes or a little more.
    pub(crate) async fn body(&mut self, max_bytes: usize) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        while body.len() < max_bytes
            && let Some(chunk) = self.chunk().await?
        {
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// Says that the answer is complete: the rest of its body is awaited in the background, so
    /// that the connection can be used again.
    pub(crate) fn finish(mut self) {
        self.abort.disarm();
        self.is_finished.notify_one();
    }

    async fn ended(&mut self) -> Result<()> {
        match self.end.take() {
            Some(end) => end.await.unwrap_or_else(|_| Err(unexpected_end())),
            None => Ok(()),
        }
    }
}

fn unexpected_end() -> Error {
    Error::new(ErrorKind::Transport, "the network task ended unexpectedly")
}

//! The promise that a record was written.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use futures_channel::oneshot;

use super::digest::Digest;
use super::error::{Result, RunLogError};
use super::writer::Shared;

/// Where a record was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// Sequence number.
    pub seq: u64,
    /// Hash of the record: the next record's `prev`, and a leaf of the tree.
    pub hash: Digest,
    /// Whether the record was on stable storage when it was acknowledged.
    pub durable: bool,
}

/// How a log was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sealed {
    /// Sequence number of the `SEAL` record.
    pub seq: u64,
    /// Number of `OUTCOME` records.
    pub n_outcomes: u64,
    /// RFC 6962 root over the hashes of the records before the seal.
    pub root: Digest,
}

/// Resolves when the promise of a record holds. Await it, or call [`Ack::wait`]; it needs no runtime.
///
/// Dropping it gives up the answer, not the record.
#[derive(Debug)]
#[must_use = "a record is promised only once its ack resolved"]
pub struct Ack<T = Receipt> {
    answer: Answer<T>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
enum Answer<T> {
    Now(Option<RunLogError>),
    Later(oneshot::Receiver<Result<T>>),
}

impl<T> Ack<T> {
    pub(super) fn failed(error: RunLogError, shared: Arc<Shared>) -> Self {
        Self { answer: Answer::Now(Some(error)), shared }
    }

    pub(super) fn later(receiver: oneshot::Receiver<Result<T>>, shared: Arc<Shared>) -> Self {
        Self { answer: Answer::Later(receiver), shared }
    }

    /// Blocks this thread until the promise holds. Not for an executor's thread: await there.
    ///
    /// # Errors
    /// As awaiting it.
    pub fn wait(self) -> Result<T> {
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut context = Context::from_waker(&waker);
        let mut this = pin!(self);
        loop {
            if let Poll::Ready(answer) = this.as_mut().poll(&mut context) {
                return answer;
            }
            thread::park();
        }
    }
}

impl<T> Future for Ack<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.answer {
            Answer::Now(error) => {
                let error = error.take();
                Poll::Ready(Err(error.unwrap_or_else(|| self.shared.why_closed())))
            }
            Answer::Later(receiver) => match Pin::new(receiver).poll(context) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Ok(answer)) => Poll::Ready(answer),
                // The writer thread ended before it saw the record.
                Poll::Ready(Err(oneshot::Canceled)) => Poll::Ready(Err(self.shared.why_closed())),
            },
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

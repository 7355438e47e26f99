//! A call under way. It moves on while it is awaited, on any executor, and dropping it closes its
//! connection.

use std::borrow::Cow;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body as _, Frame, Incoming};
use hyper::client::conn::TrySendError;
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap};
use hyper::{Request, Response};
use tokio::time::{Sleep, sleep_until};
use weighbridge_core::{Error, ErrorKind, Result};

use crate::connection::Connection;
use crate::http::{Deadline, Http};
use crate::options::Timers;
use crate::runtime;

/// How long a finished answer may take to end its body, so that its connection can be used again.
const DRAIN: Duration = Duration::from_millis(250);

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
    pub(crate) fn media_type(&self) -> Cow<'_, str> {
        let value = self.header(CONTENT_TYPE.as_str()).unwrap_or_default();
        let value = value.split(';').next().unwrap_or_default().trim();
        match value.bytes().any(|b| b.is_ascii_uppercase()) {
            true => value.to_ascii_lowercase().into(),
            false => value.into(),
        }
    }
}

/// What a call may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) timers: Timers,
    /// Time of the whole call that has passed already.
    pub(crate) waited: Duration,
    /// Largest body of its answer.
    pub(crate) max_bytes: u64,
}

/// A call under way. Ask for its head once, and first.
pub(crate) struct Exchange {
    http: Arc<Http>,
    request: Option<Request<Full<Bytes>>>,
    limits: Limits,
    connection: Option<Connection>,
    body: Option<Incoming>,
    start: Instant,
    total: Deadline,
    first_byte: Deadline,
    /// Fires at the deadline or before. Made by the first wait, and handed on with the connection:
    /// to keep a timer is much cheaper than to make one.
    timer: Option<Pin<Box<Sleep>>>,
    n_sent: u64,
    n_received: u64,
    is_loopback: Option<bool>,
    /// It is in the ledger.
    is_entered: bool,
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").field("http", &self.http).finish_non_exhaustive()
    }
}

impl Exchange {
    pub(crate) fn new(http: Arc<Http>, request: Request<Full<Bytes>>, limits: Limits) -> Self {
        let Limits { timers, waited, .. } = limits;
        let start = Instant::now();
        Self {
            http,
            request: Some(request),
            limits,
            connection: None,
            body: None,
            start,
            total: Deadline::after(start, timers.total.saturating_sub(waited), "total"),
            first_byte: Deadline::after(start, timers.first_byte, "first_byte"),
            timer: None,
            n_sent: 0,
            n_received: 0,
            is_loopback: None,
            is_entered: false,
        }
    }

    /// Sends the request; status and headers of its answer.
    pub(crate) async fn head(&mut self) -> Result<Head> {
        let result = self.begin().await;
        self.ended_if_failed(result)
    }

    /// The next piece of the body; `None` at its end.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>> {
        let result = self.next_chunk().await;
        self.ended_if_failed(result)
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
        // Nearly always the end is there already.
        match self.poll_frame(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(None) => self.release(),
            // Data after the end of an answer: the connection is dropped, not reused.
            Poll::Ready(Some(_)) => {}
            Poll::Pending => {
                // Now, as the caller may look into the ledger as soon as it has the answer.
                self.enter();
                let deadline = Deadline::after(Instant::now(), DRAIN, "drain");
                let drain = async move {
                    if let Ok(None) = self.frame(deadline).await {
                        self.release();
                    }
                };
                if let Ok(runtime) = runtime::handle() {
                    runtime.spawn(drain);
                }
            }
        }
    }

    async fn begin(&mut self) -> Result<Head> {
        let deadline = self.total.min(self.first_byte);
        let response = loop {
            let is_used = match self.http.pool.idle() {
                Some(mut connection) => {
                    self.timer = connection.timer.take().or_else(|| self.timer.take());
                    self.connection = Some(connection);
                    true
                }
                None => {
                    self.connection = Some(self.connect(deadline).await?);
                    false
                }
            };
            match self.send(deadline).await? {
                Ok(response) => break response,
                Err(mut error) => match error.take_message() {
                    // Nothing of it was sent: the server had closed the idle connection.
                    Some(request) if is_used => {
                        self.request = Some(request);
                        self.n_sent = 0;
                    }
                    _ => return Err(self.http.send_error(error.error())),
                },
            }
        };
        let (head, body) = response.into_parts();
        self.body = Some(body);
        let head = Head { status: head.status.as_u16(), headers: head.headers };
        let encoding = head.header(CONTENT_ENCODING.as_str()).unwrap_or("identity").trim();
        if !encoding.is_empty() && !encoding.eq_ignore_ascii_case("identity") {
            return Err(self.http.compressed(encoding));
        }
        Ok(head)
    }

    async fn connect(&mut self, deadline: Deadline) -> Result<Connection> {
        let http = Arc::clone(&self.http);
        let connecting = runtime::run(async move { http.connect().await });
        let mut connecting = pin!(connecting);
        poll_fn(|cx| match connecting.as_mut().poll(cx) {
            Poll::Ready(result) => Poll::Ready(result),
            Poll::Pending => self.poll_deadline(deadline, cx).map(Err),
        })
        .await
    }

    async fn send(&mut self, deadline: Deadline) -> Result<Sent> {
        let (Some(connection), Some(request)) = (&mut self.connection, self.request.take()) else {
            return Err(unexpected_end());
        };
        self.n_sent = request.body().size_hint().lower();
        self.is_loopback = connection.is_loopback;
        let mut sent = pin!(connection.sender.try_send_request(request));
        poll_fn(|cx| {
            let mut response = sent.as_mut().poll(cx);
            if response.is_pending() {
                self.drive(cx);
                response = sent.as_mut().poll(cx);
            }
            match response {
                Poll::Ready(response) => Poll::Ready(Ok(response)),
                Poll::Pending => self.poll_deadline(deadline, cx).map(Err),
            }
        })
        .await
    }

    async fn next_chunk(&mut self) -> Result<Option<Bytes>> {
        // The body's first byte may still be awaited.
        let now = Instant::now();
        let deadline = self.total.min(match self.n_received {
            0 => self.first_byte,
            _ => Deadline::after(now, self.limits.timers.idle, "idle"),
        });
        loop {
            let Some(frame) = self.frame(deadline).await? else {
                self.release();
                return Ok(None);
            };
            // Trailers say nothing to us.
            let Ok(chunk) = frame.into_data() else { continue };
            // Of a body that never pauses, too.
            if now > self.total.at {
                return Err(self.http.timed_out(self.total, self.start));
            }
            self.n_received += chunk.len() as u64;
            if self.n_received > self.limits.max_bytes {
                return Err(self.http.too_long(self.limits.max_bytes));
            }
            return Ok(Some(chunk));
        }
    }

    async fn frame(&mut self, deadline: Deadline) -> Result<Option<Frame<Bytes>>> {
        poll_fn(|cx| match self.poll_frame(cx) {
            Poll::Ready(None) => Poll::Ready(Ok(None)),
            Poll::Ready(Some(Ok(frame))) => Poll::Ready(Ok(Some(frame))),
            Poll::Ready(Some(Err(error))) => Poll::Ready(Err(self.http.body_error(&error))),
            Poll::Pending => self.poll_deadline(deadline, cx).map(Err),
        })
        .await
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        for is_last_try in [false, true] {
            let Some(body) = &mut self.body else { return Poll::Ready(None) };
            let frame = Pin::new(body).poll_frame(cx);
            if frame.is_ready() || is_last_try {
                return frame;
            }
            self.drive(cx);
        }
        Poll::Pending
    }

    fn drive(&mut self, cx: &mut Context<'_>) {
        if let Some(connection) = &mut self.connection {
            connection.drive(cx);
        }
    }

    /// The error of a deadline that passed.
    fn poll_deadline(&mut self, deadline: Deadline, cx: &mut Context<'_>) -> Poll<Error> {
        // A timer is not ready for a task that has used up its turn, as one that always finds
        // something to read has.
        if Instant::now() >= deadline.at {
            return Poll::Ready(self.http.timed_out(deadline, self.start));
        }
        let timer = match &mut self.timer {
            Some(timer) => timer,
            None => {
                let _in_runtime = match runtime::handle() {
                    Ok(runtime) => runtime.enter(),
                    Err(error) => return Poll::Ready(error),
                };
                self.timer.insert(Box::pin(sleep_until(deadline.at.into())))
            }
        };
        // One that fires too early is set again then: calls rarely wait that long.
        let at = deadline.at.into();
        if timer.deadline() > at {
            timer.as_mut().reset(at);
        }
        while timer.as_mut().poll(cx).is_ready() {
            if timer.deadline() >= at {
                return Poll::Ready(self.http.timed_out(deadline, self.start));
            }
            timer.as_mut().reset(at);
        }
        Poll::Pending
    }

    /// The body was read to its end.
    fn release(&mut self) {
        self.body = None;
        if let Some(mut connection) = self.connection.take() {
            connection.timer = self.timer.take();
            self.http.pool.keep(connection);
        }
    }

    /// Enters the call into the ledger, once, when it is over, however it ended.
    fn enter(&mut self) {
        if !std::mem::replace(&mut self.is_entered, true) {
            self.http.enter(self.is_loopback, self.n_sent, self.n_received);
        }
    }

    /// A call that failed is over: its connection is closed, and it is in the ledger.
    fn ended_if_failed<T>(&mut self, result: Result<T>) -> Result<T> {
        result.map_err(|error| {
            (self.body, self.connection) = (None, None);
            self.enter();
            self.http.redactor().clean(error)
        })
    }
}

type Sent = std::result::Result<Response<Incoming>, TrySendError<Request<Full<Bytes>>>>;

impl Drop for Exchange {
    fn drop(&mut self) {
        self.enter();
    }
}

fn unexpected_end() -> Error {
    Error::new(ErrorKind::Transport, "the network task ended unexpectedly")
}

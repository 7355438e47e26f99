//! What is asked of the server, and what it answers.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use weighbridge_core::{Backend, BackendExt, CompletionStream, Event, StreamItem};

use crate::answer::{Label, document};
use crate::chunks::{Chunker, write};
use crate::failure::Failure;
use crate::guard::Guard;
use crate::journal::{Journal, JournalEntry, JournalEvent, sha256_hex};
use crate::json;
use crate::limits::Limits;
use crate::request::{Asked, Shape};
use crate::stats::{Counters, Stats};

pub(crate) type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// One served model.
pub(crate) struct Served {
    pub(crate) name: String,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) counters: Counters,
}

/// What all connections share.
pub(crate) struct State {
    pub(crate) models: Vec<Served>,
    pub(crate) guard: Guard,
    pub(crate) limits: Limits,
    pub(crate) journal: Option<Journal>,
    pub(crate) calls: Arc<Semaphore>,
    pub(crate) n_calls: AtomicU64,
    pub(crate) n_rejected: AtomicU64,
    pub(crate) started_at: u64,
    /// Part of every answer's id; differs between processes.
    pub(crate) id_prefix: String,
}

impl State {
    pub(crate) fn stats(&self) -> Stats {
        let models = self.models.iter().map(|m| (m.name.clone(), m.counters.read())).collect();
        Stats { models, rejected: self.n_rejected.load(Ordering::SeqCst) }
    }

    fn model(self: &Arc<Self>, name: &str) -> Option<usize> {
        self.models.iter().position(|model| model.name == name)
    }
}

/// Seconds since 1970; `created` of answers, and of nothing else.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// What tells this process from others that began in the same second.
pub(crate) fn id_prefix() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{:x}-{:x}", since.as_nanos(), std::process::id())
}

/// Answers one request.
pub(crate) async fn handle(state: Arc<State>, request: Request<Incoming>) -> Answer {
    let answer = match state.guard.check(request.uri(), request.headers()) {
        Ok(()) => route(&state, request).await,
        Err(failure) => Err(failure),
    };
    answer.unwrap_or_else(|failure| {
        state.n_rejected.fetch_add(1, Ordering::SeqCst);
        refuse(&failure)
    })
}

async fn route(state: &Arc<State>, request: Request<Incoming>) -> Result<Answer, Failure> {
    let path = request.uri().path().to_owned();
    let is_get = request.method() == Method::GET;
    let shape = match path.as_str() {
        "/v1/chat/completions" => Some(Shape::Chat),
        "/v1/completions" => Some(Shape::Text),
        _ => None,
    };
    if let Some(shape) = shape {
        return match *request.method() {
            Method::POST => generate(state, shape, request).await,
            _ => Err(wrong_method("POST")),
        };
    }
    let document = match path.as_str() {
        "/health" => json!({"status": "ok"}),
        "/weighbridge/stats" => serde_json::to_value(state.stats()).unwrap_or_default(),
        "/v1/models" => {
            let models: Vec<_> = state.models.iter().map(|m| model_object(state, m)).collect();
            json!({"object": "list", "data": models})
        }
        path => match path.strip_prefix("/v1/models/").and_then(|name| state.model(name)) {
            Some(i) => model_object(state, &state.models[i]),
            None => {
                return Err(Failure::new(
                    StatusCode::NOT_FOUND,
                    "invalid_request_error",
                    "no such route; see /v1/models, /v1/chat/completions, /health",
                ));
            }
        },
    };
    if is_get { Ok(json_answer(StatusCode::OK, &document)) } else { Err(wrong_method("GET")) }
}

fn model_object(state: &State, model: &Served) -> Value {
    json!({
        "id": model.name,
        "object": "model",
        "created": state.started_at,
        "owned_by": "weighbridge",
    })
}

async fn generate(
    state: &Arc<State>,
    shape: Shape,
    request: Request<Incoming>,
) -> Result<Answer, Failure> {
    let is_json = request
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok())
        .and_then(|kind| kind.split(';').next())
        .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"));
    if !is_json {
        return Err(Failure::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "invalid_request_error",
            "the content type must be application/json",
        )
        .closing());
    }
    let body = read_body(request.into_body(), &state.limits).await?;
    let document = json::parse(&body).map_err(Failure::bad_request)?;
    let asked = Asked::read(shape, document, &state.limits)?;
    let Some(model) = state.model(&asked.model) else {
        let names: Vec<_> = state.models.iter().map(|m| format!("`{}`", m.name)).collect();
        return Err(Failure::new(
            StatusCode::NOT_FOUND,
            "invalid_request_error",
            format!("no model of that name is served; there are: {}", names.join(", ")),
        )
        .with_code("model_not_found"));
    };
    let Ok(permit) = Arc::clone(&state.calls).try_acquire_owned() else {
        return Err(Failure::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "overloaded_error",
            format!("{} calls are under way; try again", state.limits.max_calls),
        )
        .with_code("server_is_overloaded")
        .with_retry_after(std::time::Duration::from_secs(1)));
    };
    let call = CallGuard::start(state, model, sha256_hex(&body), permit);
    let label =
        Label { shape, id: call.id(), created: now(), model: state.models[model].name.clone() };
    let backend = Arc::clone(&state.models[model].backend);
    // A call that reached the backend is not a rejected one, whatever it comes to.
    Ok(if asked.streams {
        let generation = CompletionStream::owned(backend, asked.request);
        stream_answer(generation, call, Chunker::new(label, asked.includes_usage)).await
    } else {
        whole_answer(&*backend, &asked.request, call, &label).await
    })
}

/// Nobody follows this one, which a backend may serve the sooner.
async fn whole_answer(
    backend: &dyn Backend,
    request: &weighbridge_core::Request,
    call: CallGuard,
    label: &Label,
) -> Answer {
    match backend.complete(request).await {
        Ok(completion) => {
            call.end(JournalEvent::Completed);
            json_answer(StatusCode::OK, &document(label, &completion))
        }
        Err(error) => {
            call.end(JournalEvent::Failed);
            refuse(&Failure::from(&error))
        }
    }
}

/// Waits for the first content, so that a failure before it has a status of its own; then streams.
/// The generation advances only as the client reads, and ends when the client is gone.
async fn stream_answer(
    mut generation: CompletionStream<'static>,
    call: CallGuard,
    mut chunker: Chunker,
) -> Answer {
    let mut first = Vec::new();
    let is_over = loop {
        match generation.next().await {
            Some(Ok(item @ StreamItem::Completion(_))) => {
                chunker.push(&item, &mut first);
                break true;
            }
            Some(Ok(item)) => {
                let is_content = matches!(&item, StreamItem::Event(event) if event.is_content());
                if is_content {
                    chunker.push(&item, &mut first);
                    break false;
                }
                debug_assert!(!matches!(&item, StreamItem::Event(Event::Text(_))));
            }
            Some(Err(error)) => {
                call.end(JournalEvent::Failed);
                return refuse(&Failure::from(&error));
            }
            None => {
                call.end(JournalEvent::Failed);
                return refuse(&no_terminal());
            }
        }
    };
    let rest = if is_over {
        call.end(JournalEvent::Completed);
        stream::empty().boxed()
    } else {
        stream::unfold(Some((generation, call, chunker)), next_chunk).boxed()
    };
    let frames = stream::once(async { Bytes::from(first) }).chain(rest);
    let body = StreamBody::new(frames.map(|bytes| Ok(Frame::data(bytes))));
    let mut answer = Response::new(body.boxed_unsync());
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    answer
}

type Streaming = (CompletionStream<'static>, CallGuard, Chunker);

async fn next_chunk(streaming: Option<Streaming>) -> Option<(Bytes, Option<Streaming>)> {
    let (mut generation, call, mut chunker) = streaming?;
    let mut bytes = Vec::new();
    loop {
        match generation.next().await {
            Some(Ok(item)) => {
                let is_over = matches!(item, StreamItem::Completion(_));
                chunker.push(&item, &mut bytes);
                if is_over {
                    call.end(JournalEvent::Completed);
                    return Some((bytes.into(), None));
                }
                if !bytes.is_empty() {
                    return Some((bytes.into(), Some((generation, call, chunker))));
                }
            }
            failed => {
                // No [DONE] follows: nobody may take this for a whole answer.
                call.end(JournalEvent::Failed);
                let failure = match failed {
                    Some(Err(error)) => Failure::from(&error),
                    _ => no_terminal(),
                };
                write(&failure.body(), &mut bytes);
                return Some((bytes.into(), None));
            }
        }
    }
}

async fn read_body(body: Incoming, limits: &Limits) -> Result<Bytes, Failure> {
    let too_large = || {
        Failure::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "invalid_request_error",
            format!("the body exceeds {} bytes", limits.max_body_bytes),
        )
        .closing()
    };
    if body.size_hint().lower() > limits.max_body_bytes as u64 {
        return Err(too_large());
    }
    let read = Limited::new(body, limits.max_body_bytes).collect();
    match tokio::time::timeout(limits.body_timeout, read).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(Failure::bad_request("the body is not whole").closing()),
        Err(_) => Err(Failure::new(
            StatusCode::REQUEST_TIMEOUT,
            "invalid_request_error",
            "the body took too long",
        )
        .closing()),
    }
}

fn wrong_method(right: &str) -> Failure {
    Failure::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "invalid_request_error",
        format!("this route takes {right}"),
    )
}

fn no_terminal() -> Failure {
    Failure::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "server_error",
        "the backend ended without an answer",
    )
}

fn refuse(failure: &Failure) -> Answer {
    let mut answer = json_answer(failure.status, &failure.body());
    let headers = answer.headers_mut();
    if failure.closes {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if let Some(wait) = failure.retry_after {
        let millis = wait.as_millis().min(u128::from(u64::MAX)) as u64;
        headers.insert("retry-after-ms", HeaderValue::from(millis));
        headers.insert(RETRY_AFTER, HeaderValue::from(millis.div_ceil(1000)));
    }
    answer
}

fn json_answer(status: StatusCode, document: &Value) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(document.to_string())).boxed_unsync());
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

/// Counts one call. Dropped before its end, it was cancelled: its client left.
struct CallGuard {
    state: Arc<State>,
    model: usize,
    number: u64,
    request_sha256: String,
    is_over: bool,
    _permit: OwnedSemaphorePermit,
}

impl CallGuard {
    fn start(
        state: &Arc<State>,
        model: usize,
        request_sha256: String,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        let number = state.n_calls.fetch_add(1, Ordering::SeqCst) + 1;
        let call = Self {
            state: Arc::clone(state),
            model,
            number,
            request_sha256,
            is_over: false,
            _permit: permit,
        };
        call.count(JournalEvent::Started);
        call
    }

    /// An id that no other answer of this server has, nor one of an earlier process.
    fn id(&self) -> String {
        format!("chatcmpl-{}-{:x}", self.state.id_prefix, self.number)
    }

    fn end(mut self, event: JournalEvent) {
        self.is_over = true;
        self.count(event);
    }

    fn count(&self, event: JournalEvent) {
        let counters = &self.state.models[self.model].counters;
        let counter = match event {
            JournalEvent::Started => &counters.started,
            JournalEvent::Completed => &counters.completed,
            JournalEvent::Failed => &counters.failed,
            JournalEvent::Cancelled => &counters.cancelled,
        };
        counter.fetch_add(1, Ordering::SeqCst);
        if let Some(journal) = &self.state.journal {
            journal(&JournalEntry {
                call: self.number,
                model: self.state.models[self.model].name.clone(),
                request_sha256: self.request_sha256.clone(),
                event,
            });
        }
    }
}

impl Drop for CallGuard {
    fn drop(&mut self) {
        if !self.is_over {
            self.count(JournalEvent::Cancelled);
        }
    }
}

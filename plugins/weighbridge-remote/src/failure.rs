//! Errors from what a server said: a refusal by status, or an error inside an answer.

use std::time::{Duration, SystemTime};

use serde_json::Value;
use weighbridge_core::{Error, ErrorKind, Retry};

use crate::classify::{Class, ErrorObject, classify};
use crate::emitter::Emitter;
use crate::exchange::Head;
use crate::google_rpc::until_daily_reset;
use crate::http::Http;
use crate::retry_after::{date_of, retry_after};
use crate::text::{MAX_EXCERPT_BYTES, Redactor};

/// Longest message of a server that is repeated.
const MAX_MESSAGE_BYTES: usize = 1 << 10;

/// What a refused call comes to.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// An error.
    Error(Error),
    /// The vendor's filter: an outcome, with its code.
    Filtered(String),
}

/// The refusal that status, headers and body tell.
pub(crate) fn by_status(http: &Http, head: &Head, body: &[u8], key_name: Option<&str>) -> Refusal {
    let text = String::from_utf8_lossy(body);
    let document = serde_json::from_slice::<Value>(body).ok();
    let object = document.as_ref().and_then(ErrorObject::find_in_error_body);
    let (kind, is_retryable) = match classify(Some(head.status), object.as_ref()) {
        Class::Error { kind, is_retryable } => (kind, is_retryable),
        Class::Filtered => {
            let code = object.and_then(|o| o.code.or(o.kind));
            return Refusal::Filtered(code.unwrap_or_else(|| "content_filter".to_owned()));
        }
    };
    let place = http.address().authority();
    let status = head.status;
    let said = object
        .as_ref()
        .and_then(|o| o.message.as_deref())
        .map(|message| format!(": {}", http.redactor().excerpt(message, MAX_MESSAGE_BYTES)))
        .unwrap_or_default();
    let advice = advice(kind, status, key_name);
    let mut error =
        Error::new(kind, format!("{place} answered {status}{said}{advice}")).with("status", status);
    if let Some(code) = object.as_ref().and_then(|o| o.code.as_deref()) {
        error = error.with("code", http.redactor().excerpt(code, 100));
    }
    let id = head.header("x-request-id").or_else(|| head.header("request-id"));
    if let Some(id) = id.or_else(|| document.as_ref()?["request_id"].as_str()) {
        error = error.with("request_id", http.redactor().excerpt(id, 100));
    }
    if kind == ErrorKind::Transport
        && let Some(target) = head.header("location").and_then(|l| url::Url::parse(l).ok())
    {
        // Only the origin: path and query may hold what must not be shown.
        error = error.with("location", target.origin().ascii_serialization());
    }
    if said.is_empty() && !text.trim().is_empty() {
        error = error.with("body", http.redactor().excerpt(text.trim(), MAX_EXCERPT_BYTES));
    }
    let is_retryable = match head.header("x-should-retry") {
        Some("false") => false,
        Some("true") => is_retryable || kind == ErrorKind::ServerError,
        _ => is_retryable,
    };
    if is_retryable {
        let now = date_of(&head.headers).unwrap_or_else(SystemTime::now);
        let after = retry_after(&head.headers).max(told_wait(kind, object.as_ref(), now));
        error = error.with_retry(Retry::Safe { after });
    }
    Refusal::Error(error)
}

/// The wait that an error itself asks for. A daily quota is not to be asked again before its day is
/// over, whatever shorter wait is told beside it.
fn told_wait(kind: ErrorKind, object: Option<&ErrorObject>, now: SystemTime) -> Option<Duration> {
    let google = &object?.google;
    match google.is_daily && kind == ErrorKind::RateLimited {
        true => until_daily_reset(now),
        false => google.retry_delay.filter(|delay| !delay.is_zero()),
    }
}

/// The error that an event or document inside a 200 is.
pub(crate) fn in_answer(document: &Value, out: &Emitter<'_>) -> Error {
    in_document(document, out.redactor())
}

/// As [`in_answer`], for an answer that is not pushed anywhere.
pub(crate) fn in_document(document: &Value, redactor: &Redactor) -> Error {
    let object = ErrorObject::find_in_error_body(document);
    let (kind, is_retryable) = match classify(None, object.as_ref()) {
        Class::Error { kind, is_retryable } => (kind, is_retryable),
        // The answer began, so this is neither a refusal of the prompt nor a finish reason.
        Class::Filtered => (ErrorKind::ServerError, false),
    };
    let said =
        object.as_ref().and_then(|o| o.message.clone()).unwrap_or_else(|| document.to_string());
    let said = redactor.excerpt(&said, MAX_MESSAGE_BYTES);
    let mut error = Error::new(kind, format!("the server sent an error inside its answer: {said}"));
    if is_retryable {
        let after = told_wait(kind, object.as_ref(), SystemTime::now());
        error = error.with_retry(Retry::Safe { after });
    }
    if let Some(word) = object.and_then(|o| o.code.or(o.kind)) {
        error = error.with("code", redactor.excerpt(&word, 100));
    }
    error
}

fn advice(kind: ErrorKind, status: u16, key_name: Option<&str>) -> String {
    match (kind, key_name) {
        (ErrorKind::Auth, Some(name)) => {
            format!("; check the key in `{name}` and what it is allowed to use")
        }
        (ErrorKind::Auth, None) => {
            "; no key was sent: name the secret that holds it by the option `api_key_env`".into()
        }
        (ErrorKind::NotFound, _) => {
            "; check the model's name, and that the URL is the base of the API, which often ends \
             in /v1"
                .into()
        }
        (ErrorKind::RateLimited, _) => "; too many requests for now".into(),
        (ErrorKind::Quota, _) => {
            "; the account's quota or spend limit is used up, and waiting does not help".into()
        }
        (ErrorKind::Transport, _) if (300..400).contains(&status) => {
            "; redirects are not followed: put the final address into the URL".into()
        }
        _ => String::new(),
    }
}

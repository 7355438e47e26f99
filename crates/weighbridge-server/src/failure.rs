//! Refusals and failures, as OpenAI's clients expect them.

use std::time::Duration;

use hyper::StatusCode;
use serde_json::{Value, json};
use weighbridge_core::{Error, ErrorKind, Retry};

/// An answer that is an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<String>,
    message: String,
    pub(crate) retry_after: Option<Duration>,
    /// The connection is not used again.
    pub(crate) closes: bool,
}

impl Failure {
    pub(crate) fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            code: None,
            param: None,
            message: message.into(),
            retry_after: None,
            closes: false,
        }
    }

    /// A 400 about one field.
    pub(crate) fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::bad_request(message) }
    }

    /// A 400.
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    pub(crate) fn with_code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    pub(crate) fn closing(self) -> Self {
        Self { closes: true, ..self }
    }

    pub(crate) fn with_retry_after(self, wait: Duration) -> Self {
        Self { retry_after: Some(wait), ..self }
    }

    /// The body, also of an error event inside a stream.
    pub(crate) fn body(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }})
    }
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        let (status, kind, code) = match error.kind() {
            ErrorKind::Unsupported => (400, "invalid_request_error", Some("unsupported_parameter")),
            ErrorKind::InvalidRequest
            | ErrorKind::InvalidInput
            | ErrorKind::Constraint
            | ErrorKind::Template => (400, "invalid_request_error", None),
            ErrorKind::ContextOverflow => {
                (400, "invalid_request_error", Some("context_length_exceeded"))
            }
            ErrorKind::NotFound => (404, "invalid_request_error", Some("model_not_found")),
            ErrorKind::RateLimited => (429, "rate_limit_error", Some("rate_limit_exceeded")),
            ErrorKind::Quota => (429, "insufficient_quota", Some("insufficient_quota")),
            ErrorKind::Overloaded => (503, "overloaded_error", Some("server_is_overloaded")),
            ErrorKind::Timeout => (504, "timeout_error", None),
            // The key of a model behind this server is the server's, not the client's.
            ErrorKind::Auth
            | ErrorKind::Transport
            | ErrorKind::Truncated
            | ErrorKind::Protocol
            | ErrorKind::EgressDenied => (502, "server_error", None),
            _ => (500, "server_error", None),
        };
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut failure = Self::new(status, kind, error.to_string());
        failure.code = code;
        failure.param = error.context("option").map(str::to_owned);
        if let Retry::Safe { after } = error.retry() {
            failure.retry_after = after;
        }
        failure
    }
}

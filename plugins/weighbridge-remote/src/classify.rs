//! What a refusal means, from status and code; message texts are for people.

use serde_json::Value;
use weighbridge_core::ErrorKind;

use crate::google_rpc;

/// Codes that end a run: waiting does not help.
const QUOTA_CODES: [&str; 9] = [
    "insufficient_quota",
    "credit_balance_exhausted",
    "organization_spend_limit_exceeded",
    "project_spend_limit_exceeded",
    "organization_usage_limit_exceeded",
    "enforced_spend_limit_reached",
    "billing_error",
    "contract_spend_limit_reached",
    "linked_organization_spend_limit_reached",
];

/// An error as a server words it, in any of the usual shapes.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct ErrorObject {
    /// `code` or `error_code`, where it is a word.
    pub(crate) code: Option<String>,
    /// `code` or `status`, where it is an HTTP status.
    pub(crate) status: Option<u16>,
    /// `type`, or `status` where it is a word.
    pub(crate) kind: Option<String>,
    /// For people.
    pub(crate) message: Option<String>,
    /// What Google's details add.
    pub(crate) google: google_rpc::Details,
}

impl ErrorObject {
    /// The error that a JSON document is or holds; `None` for anything else.
    ///
    /// Knows the five shapes that arrive inside a 200: `{"error": {…}}` also with a text,
    /// `{"type": "error", …}`, `{"type": "error", "error": {…}}`, `{"type": "response.failed", …}`
    /// and `{"object": "error", …}`.
    pub(crate) fn find(document: &Value) -> Option<Self> {
        let is = |field: &str, value: &str| document[field].as_str() == Some(value);
        if is("type", "response.failed") {
            return Some(Self::read(&document["response"]["error"]));
        }
        match &document["error"] {
            Value::Null | Value::Bool(false) => {}
            error => return Some(Self::read(error)),
        }
        if is("type", "error") || is("object", "error") {
            return Some(Self::read(document));
        }
        match document {
            // Some gateways wrap the one error in a list.
            Value::Array(items) if items.len() == 1 => Self::find(&items[0]),
            _ => None,
        }
    }

    /// As [`find`](Self::find), for a body whose status says already that it is an error.
    pub(crate) fn find_in_error_body(document: &Value) -> Option<Self> {
        Self::find(document).or_else(|| {
            let object = Self::read(document);
            let detail = match &document["detail"] {
                Value::Null => None,
                Value::String(text) => Some(text.clone()),
                other => Some(other.to_string()),
            };
            let object = Self { message: object.message.or(detail), ..object };
            (object != Self::default()).then_some(object)
        })
    }

    fn read(error: &Value) -> Self {
        if let Some(message) = error.as_str() {
            return Self { message: Some(message.to_owned()), ..Self::default() };
        }
        let word = |value: &Value| value.as_str().map(str::to_owned);
        let status = |value: &Value| {
            let number = value.as_u64().or_else(|| value.as_str()?.parse().ok())?;
            u16::try_from(number).ok().filter(|s| (400..600).contains(s))
        };
        let code = &error["code"];
        let google = google_rpc::Details::read(error);
        Self {
            status: status(code).or_else(|| status(&error["status"])),
            code: word(&error["details"]["error_code"])
                .or_else(|| word(code).filter(|_| status(code).is_none()))
                .or_else(|| google.reason.clone()),
            kind: word(&error["type"])
                .or_else(|| word(&error["status"]).filter(|_| status(&error["status"]).is_none())),
            message: word(&error["message"]),
            google,
        }
    }
}

/// What an error means for the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// An error of this kind; `is_retryable` if the same call may succeed later.
    Error { kind: ErrorKind, is_retryable: bool },
    /// The vendor's filter refused prompt or answer: an outcome of the model.
    Filtered,
}

/// The class of an error by `(status, code)`. `status` is `None` for an error inside a stream.
pub(crate) fn classify(status: Option<u16>, object: Option<&ErrorObject>) -> Class {
    let status = status.or_else(|| object.and_then(|o| o.status));
    let words = || {
        let words = object.map(|o| [o.code.as_deref(), o.kind.as_deref()]);
        words.into_iter().flatten().flatten()
    };
    let class = |kind, is_retryable| Class::Error { kind, is_retryable };

    if words().any(|w| QUOTA_CODES.contains(&w)) || object.is_some_and(|o| o.google.is_zero) {
        return class(ErrorKind::Quota, false);
    }
    if words().any(|w| matches!(w, "context_length_exceeded" | "exceed_context_size_error")) {
        return class(ErrorKind::ContextOverflow, false);
    }
    match status {
        Some(400 | 413 | 422) => {
            if words().any(|w| matches!(w, "content_filter" | "content_policy_violation")) {
                Class::Filtered
            } else if object.and_then(|o| o.message.as_deref()).is_some_and(names_the_context) {
                class(ErrorKind::ContextOverflow, false)
            } else if words().any(|w| w == "API_KEY_INVALID") {
                class(ErrorKind::Auth, false)
            } else {
                class(ErrorKind::InvalidRequest, false)
            }
        }
        Some(401 | 403) => class(ErrorKind::Auth, false),
        Some(402) => class(ErrorKind::Quota, false),
        Some(404 | 405 | 410) => class(ErrorKind::NotFound, false),
        Some(408 | 409 | 425) => class(ErrorKind::ServerError, true),
        Some(429) => class(ErrorKind::RateLimited, true),
        Some(503 | 529) => class(ErrorKind::Overloaded, true),
        Some(501 | 505) => class(ErrorKind::ServerError, false),
        Some(500..) => class(ErrorKind::ServerError, true),
        Some(300..400) => class(ErrorKind::Transport, false),
        Some(_) => class(ErrorKind::InvalidRequest, false),
        None => words().find_map(by_word).unwrap_or(class(ErrorKind::ServerError, true)),
    }
}

fn by_word(word: &str) -> Option<Class> {
    let (kind, is_retryable) = match word {
        "rate_limit_exceeded" | "rate_limit_error" | "slow_down" | "RESOURCE_EXHAUSTED" => {
            (ErrorKind::RateLimited, true)
        }
        "server_is_overloaded"
        | "overloaded_error"
        | "overloaded"
        | "unavailable_error"
        | "UNAVAILABLE" => (ErrorKind::Overloaded, true),
        "server_error" | "api_error" | "timeout_error" | "internal_error" | "INTERNAL"
        | "DEADLINE_EXCEEDED" | "ABORTED" => (ErrorKind::ServerError, true),
        "invalid_api_key"
        | "authentication_error"
        | "permission_error"
        | "API_KEY_INVALID"
        | "UNAUTHENTICATED"
        | "PERMISSION_DENIED" => (ErrorKind::Auth, false),
        "model_not_found" | "not_found_error" | "NOT_FOUND" => (ErrorKind::NotFound, false),
        "invalid_request_error"
        | "request_too_large"
        | "BadRequestError"
        | "INVALID_ARGUMENT"
        | "FAILED_PRECONDITION" => (ErrorKind::InvalidRequest, false),
        "content_filter" | "content_policy_violation" => return Some(Class::Filtered),
        _ => return None,
    };
    Some(Class::Error { kind, is_retryable })
}

/// vLLM and others refuse a long prompt with a bare 400; only the text tells it apart.
fn names_the_context(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    [
        "maximum context length",
        "exceeds the available context",
        // Anthropic's.
        "prompt is too long",
        // Gemini's, behind the number that was counted.
        "exceeds the maximum number of tokens",
    ]
    .iter()
    .any(|words| message.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn kind(status: Option<u16>, body: Value) -> (&'static str, bool) {
        match classify(status, ErrorObject::find_in_error_body(&body).as_ref()) {
            Class::Error { kind, is_retryable } => (kind.as_str(), is_retryable),
            Class::Filtered => ("filtered", false),
        }
    }

    #[test]
    fn status_and_code_decide() {
        let code = |code: &str| json!({"error": {"message": "m", "type": "t", "code": code}});
        for (status, body, expected) in [
            (401, code("invalid_api_key"), ("auth", false)),
            (403, Value::Null, ("auth", false)),
            (402, Value::Null, ("quota", false)),
            (404, code("model_not_found"), ("not_found", false)),
            (400, code("x"), ("invalid_request", false)),
            (413, Value::Null, ("invalid_request", false)),
            (422, json!({"detail": [{"loc": ["body"]}]}), ("invalid_request", false)),
            (400, code("context_length_exceeded"), ("context_overflow", false)),
            (
                400,
                json!({"object": "error", "message": "This model's maximum context length is 9"}),
                ("context_overflow", false),
            ),
            (
                400,
                json!({"error": {"code": 400, "type": "exceed_context_size_error"}}),
                ("context_overflow", false),
            ),
            (
                400,
                json!({"type": "error", "error": {"type": "invalid_request_error",
                    "message": "prompt is too long: 208310 tokens > 200000 maximum"}}),
                ("context_overflow", false),
            ),
            (
                400,
                json!({"error": {"code": 400, "status": "INVALID_ARGUMENT", "message":
                    "The input token count (9) exceeds the maximum number of tokens allowed (8)."}}),
                ("context_overflow", false),
            ),
            (400, code("organization_spend_limit_exceeded"), ("quota", false)),
            (400, code("content_filter"), ("filtered", false)),
            (408, Value::Null, ("server_error", true)),
            (409, Value::Null, ("server_error", true)),
            (429, Value::Null, ("rate_limited", true)),
            (429, code("rate_limit_exceeded"), ("rate_limited", true)),
            (429, code("brand_new_code"), ("rate_limited", true)),
            (429, code("insufficient_quota"), ("quota", false)),
            (
                429,
                json!({"error": {"details": {"error_code": "enforced_spend_limit_reached"}}}),
                ("quota", false),
            ),
            (500, json!("text"), ("server_error", true)),
            (502, Value::Null, ("server_error", true)),
            (504, Value::Null, ("server_error", true)),
            (501, Value::Null, ("server_error", false)),
            (503, code("server_is_overloaded"), ("overloaded", true)),
            (529, Value::Null, ("overloaded", true)),
            (307, Value::Null, ("transport", false)),
            (
                429,
                json!({"error": {"code": 429, "status": "RESOURCE_EXHAUSTED"}}),
                ("rate_limited", true),
            ),
            (
                429,
                json!({"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "limit: 0"}}),
                ("quota", false),
            ),
            (
                400,
                json!({"error": {"code": 400, "status": "INVALID_ARGUMENT", "details": [
                    {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"},
                ]}}),
                ("auth", false),
            ),
            (
                413,
                json!({"type": "error", "error": {"type": "request_too_large"}}),
                ("invalid_request", false),
            ),
            (402, json!({"type": "error", "error": {"type": "billing_error"}}), ("quota", false)),
            (
                504,
                json!({"type": "error", "error": {"type": "timeout_error"}}),
                ("server_error", true),
            ),
            (418, Value::Null, ("invalid_request", false)),
        ] {
            assert_eq!(kind(Some(status), body.clone()), expected, "{status} {body}");
        }
        for quota in QUOTA_CODES {
            assert_eq!(kind(Some(429), code(quota)), ("quota", false));
        }
    }

    #[test]
    fn five_shapes_inside_a_200_are_errors_and_chunks_are_not() {
        for (data, expected) in [
            (
                json!({"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}),
                ("overloaded", true),
            ),
            (
                json!({"type":"error","code":"server_is_overloaded","message":"m"}),
                ("overloaded", true),
            ),
            (
                json!({"type":"response.failed","response":{"error":{"code":"server_error"}}}),
                ("server_error", true),
            ),
            (json!({"error":{"message":"m"}}), ("server_error", true)),
            (json!({"error":"m"}), ("server_error", true)),
            (json!({"error":{"message":"m","code":429}}), ("rate_limited", true)),
            (json!({"object":"error","message":"m","code":"400"}), ("invalid_request", false)),
            (json!([{"error":{"message":"m","code":401}}]), ("auth", false)),
            (json!({"error":{"message":"m","status":"UNAVAILABLE"}}), ("overloaded", true)),
            (json!({"type":"error","error":{"type":"billing_error"}}), ("quota", false)),
        ] {
            assert!(ErrorObject::find(&data).is_some(), "{data}");
            assert_eq!(kind(None, data.clone()), expected, "{data}");
        }
        for data in [
            json!({"choices": [], "error": null}),
            json!({"object": "chat.completion.chunk", "choices": []}),
            json!([]),
            json!("error"),
            json!({"detail": "x"}),
        ] {
            assert_eq!(ErrorObject::find(&data), None, "{data}");
        }
    }
}

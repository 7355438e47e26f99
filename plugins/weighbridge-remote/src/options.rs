//! The provider's options.

use std::time::Duration;

use serde_json::{Map, Value, json};
use weighbridge_core::{Result, check_options};

/// Name of the request field that limits generated tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MaxTokensField {
    MaxTokens,
    MaxCompletionTokens,
}

impl MaxTokensField {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::MaxTokens => "max_tokens",
            Self::MaxCompletionTokens => "max_completion_tokens",
        }
    }
}

/// When a call is given up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Timers {
    pub(crate) connect: Duration,
    pub(crate) first_byte: Duration,
    pub(crate) idle: Duration,
    pub(crate) total: Duration,
}

/// What `open`, `probe` and `list` are told.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Options {
    pub(crate) model: Option<String>,
    pub(crate) api_key_env: Option<String>,
    pub(crate) url: Option<String>,
    pub(crate) is_verified: bool,
    pub(crate) timers: Timers,
    pub(crate) max_concurrency: u32,
    pub(crate) streams: bool,
    pub(crate) max_tokens_field: MaxTokensField,
    pub(crate) n_ctx: Option<u32>,
    pub(crate) enforces_json_schema: bool,
    pub(crate) takes_images: bool,
}

impl Options {
    /// JSON Schema of the options object.
    pub(crate) fn schema() -> Value {
        let seconds = |what: &str| json!({"type": "number", "minimum": 0.001, "maximum": 86_400, "description": what});
        let flag = |default: bool, what: &str| json!({"type": "boolean", "default": default, "description": what});
        json!({
            "type": "object",
            "additionalProperties": false,
            "properties": {
                "model": {"type": "string", "description":
                    "the model's name at the server; the same as what follows `#`"},
                "api_key_env": {"type": "string", "description":
                    "name of the secret that holds the key; default OPENAI_API_KEY for \
                     api.openai.com, none elsewhere; an empty text is none"},
                "url": {"type": "string", "description":
                    "base URL of the server whose models are listed; unused by `open`"},
                "verified": flag(false,
                    "you vouch that the server on this machine computes on this machine"),
                "timeout_s": seconds("limit of a whole call; default 120"),
                "connect_timeout_s": seconds("limit of name resolution and connect; default 10"),
                "first_byte_timeout_s": seconds(
                    "limit until the first byte of the answer; default timeout_s"),
                "idle_timeout_s": seconds("limit between two bytes of the answer; default 60"),
                "max_concurrency": {"type": "integer", "minimum": 1, "maximum": 4096, "default": 8,
                    "description": "calls at once; more are queued"},
                "stream": flag(true, "stream answers; otherwise each comes as one document"),
                "max_tokens_field": {"enum": ["max_tokens", "max_completion_tokens"],
                    "description": "request field for the token limit; default max_tokens"},
                "n_ctx": {"type": "integer", "minimum": 1, "maximum": u32::MAX,
                    "description": "context length in tokens, where you know it"},
                "json_schema": flag(false, "the server enforces response_format json_schema"),
                "image_input": flag(false, "the model takes images"),
            },
        })
    }

    /// Reads the options of provider `provider`.
    pub(crate) fn read(provider: &str, options: &Map<String, Value>) -> Result<Self> {
        check_options(provider, &Self::schema(), options)?;
        let text = |name| options.get(name).and_then(Value::as_str).map(str::to_owned);
        let flag = |name, default| options.get(name).and_then(Value::as_bool).unwrap_or(default);
        let seconds = |name| options.get(name).and_then(Value::as_f64).map(Duration::from_secs_f64);
        let number =
            |name| options.get(name).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
        let total = seconds("timeout_s").unwrap_or(Duration::from_secs(120));
        Ok(Self {
            model: text("model"),
            api_key_env: text("api_key_env"),
            url: text("url"),
            is_verified: flag("verified", false),
            timers: Timers {
                connect: seconds("connect_timeout_s").unwrap_or(Duration::from_secs(10)),
                first_byte: seconds("first_byte_timeout_s").unwrap_or(total),
                idle: seconds("idle_timeout_s").unwrap_or(Duration::from_secs(60)),
                total,
            },
            max_concurrency: number("max_concurrency").unwrap_or(8),
            streams: flag("stream", true),
            max_tokens_field: match options.get("max_tokens_field").and_then(Value::as_str) {
                Some("max_completion_tokens") => MaxTokensField::MaxCompletionTokens,
                _ => MaxTokensField::MaxTokens,
            },
            n_ctx: number("n_ctx"),
            enforces_json_schema: flag("json_schema", false),
            takes_images: flag("image_input", false),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(options: Value) -> Result<Options> {
        Options::read("openai-compatible", options.as_object().unwrap())
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let options = read(json!({})).unwrap();
        assert_eq!(options.timers.total, Duration::from_secs(120));
        assert_eq!(options.timers.first_byte, Duration::from_secs(120));
        assert_eq!(options.max_concurrency, 8);
        assert!(options.streams && !options.is_verified);
        assert_eq!(options.max_tokens_field.as_str(), "max_tokens");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (options, part) in [
            (json!({"timeout": 3}), "unknown option `timeout`"),
            (json!({"timeout_s": -1}), "`timeout_s`"),
            (json!({"stream": "yes"}), "`stream`"),
            (json!({"max_tokens_field": "n"}), "`max_tokens_field`"),
            (json!({"max_concurrency": 0}), "`max_concurrency`"),
        ] {
            let error = read(options).unwrap_err();
            assert!(error.message().contains(part), "{error}");
        }
    }
}

//! The provider's options.

use std::time::Duration;

use serde_json::{Map, Value, json};
use weighbridge_core::{Result, Weights, check_options};

use crate::governor::Limits;
use crate::vendor::{Base, Vendor};

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

/// Which of OpenAI's two protocols is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Api {
    Responses,
    Chat,
}

/// When a call is given up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Timers {
    pub(crate) connect: Duration,
    pub(crate) first_byte: Duration,
    pub(crate) idle: Duration,
    pub(crate) total: Duration,
}

impl Timers {
    /// The same with another limit for the first byte and for the whole call, where one is given.
    pub(crate) fn with_patience(self, patience: Option<Duration>) -> Self {
        match patience {
            Some(limit) => Self { first_byte: limit, total: limit, ..self },
            None => self,
        }
    }
}

/// What `open`, `probe` and `list` are told.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Options {
    pub(crate) model: Option<String>,
    pub(crate) api_key_env: Option<String>,
    /// Base URL of the API, from `base_url` or, for listing compatible servers, `url`.
    pub(crate) base_url: Option<String>,
    pub(crate) api: Api,
    pub(crate) is_verified: bool,
    pub(crate) timers: Timers,
    pub(crate) limits: Limits,
    pub(crate) streams: bool,
    pub(crate) max_tokens_field: Option<MaxTokensField>,
    pub(crate) n_ctx: Option<u32>,
    /// Size of the model's embeddings.
    pub(crate) dimensions: Option<u32>,
    pub(crate) enforces_json_schema: Option<bool>,
    pub(crate) takes_images: Option<bool>,
    /// The model takes neither temperature nor top-p.
    pub(crate) has_fixed_sampling: bool,
}

impl Options {
    /// JSON Schema of the options object of a vendor's provider.
    pub(crate) fn schema(vendor: Vendor) -> Value {
        let seconds = |what: &str| json!({"type": "number", "minimum": 0.001, "maximum": 86_400, "description": what});
        let flag = |what: &str| json!({"type": "boolean", "description": what});
        let text = |what: &str| json!({"type": "string", "description": what});
        let limit = |what: &str| json!({"type": "integer", "minimum": 1, "description": what});
        let facts = vendor.facts();
        let key = match facts.key_env {
            Some(name) => format!(
                "name of the secret that holds the key; default {name}; an empty text is none"
            ),
            None => "name of the secret that holds the key; default none".to_owned(),
        };
        let mut properties = json!({
            "api_key_env": text(&key),
            "timeout_s": seconds("limit of a whole call; default 120"),
            "connect_timeout_s": seconds("limit of name resolution and connect; default 10"),
            "first_byte_timeout_s": seconds(
                "limit until the first byte of the answer; default timeout_s"),
            "idle_timeout_s": seconds("limit between two bytes of the answer; default 60"),
            "max_concurrency": {"type": "integer", "minimum": 1, "maximum": 4096, "default": 8,
                "description": "most calls at once, fewer while the server pushes back; more are \
                                queued, which counts as part of timeout_s"},
            "requests_per_minute": limit("requests in any 60 seconds; default no own limit"),
            "tokens_per_minute": limit(
                "tokens in any 60 seconds: a quarter of the body's bytes and max_tokens until the \
                 real number is known; default no own limit"),
            "stream": {"type": "boolean", "default": true,
                "description": "stream answers; otherwise each comes as one document"},
            "n_ctx": {"type": "integer", "minimum": 1, "maximum": u32::MAX,
                "description": "context length in tokens, where you know it"},
            "fixed_sampling": flag("the model takes neither temperature nor top_p"),
            "dimensions": {"type": "integer", "minimum": 1, "maximum": 65_536,
                "description": "size of the model's embeddings; needed to embed with models whose \
                    size is not known"},
        });
        let mut add = |name: &str, schema: Value| properties[name] = schema;
        match facts.base {
            Base::Location => {
                add("model", text("the model's name at the server; the same as what follows `#`"));
                add(
                    "url",
                    text("base URL of the server whose models are listed; unused by `open`"),
                );
            }
            Base::At(url) => add("base_url", text(&format!("base URL of the API; default {url}"))),
            Base::Option => add("base_url", text("base URL of the API; needed")),
        }
        if matches!(vendor, Vendor::OpenAi | Vendor::AzureOpenAi) {
            let what = "which API is spoken; default responses";
            add("api", json!({"enum": ["responses", "chat"], "description": what}));
        }
        if facts.weights == Weights::Unknown {
            add(
                "verified",
                flag(
                    "you vouch that the server on this machine computes on this machine; default \
                     false",
                ),
            );
            let what = "request field for the token limit; default max_completion_tokens for vllm \
                        and openrouter, else max_tokens";
            add(
                "max_tokens_field",
                json!({"enum": ["max_tokens", "max_completion_tokens"], "description": what}),
            );
            add("json_schema", flag("the server enforces response_format json_schema"));
            add("image_input", flag("the model takes images"));
        }
        json!({"type": "object", "additionalProperties": false, "properties": properties})
    }

    /// Reads the options of a vendor's provider.
    pub(crate) fn read(vendor: Vendor, options: &Map<String, Value>) -> Result<Self> {
        check_options(vendor.facts().id, &Self::schema(vendor), options)?;
        let text = |name| options.get(name).and_then(Value::as_str).map(str::to_owned);
        let flag = |name| options.get(name).and_then(Value::as_bool);
        let seconds = |name| options.get(name).and_then(Value::as_f64).map(Duration::from_secs_f64);
        let number =
            |name| options.get(name).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
        let limit = |name| options.get(name).and_then(Value::as_u64);
        let total = seconds("timeout_s").unwrap_or(Duration::from_secs(120));
        Ok(Self {
            model: text("model"),
            api_key_env: text("api_key_env"),
            base_url: text("base_url").or_else(|| text("url")),
            api: match options.get("api").and_then(Value::as_str) {
                Some("chat") => Api::Chat,
                _ => Api::Responses,
            },
            is_verified: flag("verified").unwrap_or(false),
            timers: Timers {
                connect: seconds("connect_timeout_s").unwrap_or(Duration::from_secs(10)),
                first_byte: seconds("first_byte_timeout_s").unwrap_or(total),
                idle: seconds("idle_timeout_s").unwrap_or(Duration::from_secs(60)),
                total,
            },
            limits: Limits {
                max_concurrency: number("max_concurrency").unwrap_or(8),
                requests_per_minute: limit("requests_per_minute"),
                tokens_per_minute: limit("tokens_per_minute"),
            },
            streams: flag("stream").unwrap_or(true),
            max_tokens_field: match options.get("max_tokens_field").and_then(Value::as_str) {
                Some("max_completion_tokens") => Some(MaxTokensField::MaxCompletionTokens),
                Some(_) => Some(MaxTokensField::MaxTokens),
                None => None,
            },
            n_ctx: number("n_ctx"),
            dimensions: number("dimensions"),
            enforces_json_schema: flag("json_schema"),
            takes_images: flag("image_input"),
            has_fixed_sampling: flag("fixed_sampling").unwrap_or(false),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(options: Value) -> Result<Options> {
        Options::read(Vendor::OpenAiCompatible, options.as_object().unwrap())
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let options = read(json!({})).unwrap();
        assert_eq!(options.timers.total, Duration::from_secs(120));
        assert_eq!(options.timers.first_byte, Duration::from_secs(120));
        assert_eq!(options.limits.max_concurrency, 8);
        assert!(options.streams && !options.is_verified);
        assert_eq!(options.max_tokens_field, None);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (options, part) in [
            (json!({"timeout": 3}), "unknown option `timeout`"),
            (json!({"timeout_s": -1}), "`timeout_s`"),
            (json!({"stream": "yes"}), "`stream`"),
            (json!({"max_tokens_field": "n"}), "`max_tokens_field`"),
            (json!({"max_concurrency": 0}), "`max_concurrency`"),
            (json!({"requests_per_minute": 0}), "`requests_per_minute`"),
            (json!({"tokens_per_minute": 1.5}), "`tokens_per_minute`"),
        ] {
            let error = read(options).unwrap_err();
            assert!(error.message().contains(part), "{error}");
        }
    }
}

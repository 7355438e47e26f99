//! What differs between servers that speak Chat Completions: what each of them really honours, and
//! under which name.
//!
//! An option that a server ignores, or honours in another sense than the contract's, is left out
//! here, so that asking for it is an error. Its own spelling can still be sent verbatim.

use serde_json::{Value, json};
use weighbridge_core::{
    Constraint, ConstraintKind, Error, Reasoning, RequestOption, Result, TemperatureRange,
};

use crate::catalog::Catalog;
use crate::options::{MaxTokensField, Options};

/// Whose dialect it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaker {
    /// Nobody's: what every server should understand.
    Compatible,
    /// OpenAI itself, or Azure.
    OpenAi,
    Ollama,
    LmStudio,
    Vllm,
    LlamaServer,
    OpenRouter,
}

/// A server's dialect, as the provider's options adjust it.
#[derive(Clone, Debug)]
pub(crate) struct Dialect {
    pub(crate) server: Speaker,
    pub(crate) streams: bool,
    pub(crate) max_tokens_field: MaxTokensField,
    /// Sent with embeddings, to models whose vectors can be shortened.
    pub(crate) dimensions: Option<u32>,
    enforces_json_schema: bool,
    takes_images: bool,
}

impl Dialect {
    pub(crate) fn new(server: Speaker, options: &Options) -> Self {
        use Speaker::{Compatible, OpenAi, OpenRouter, Vllm};
        let field = match server {
            OpenAi | Vllm | OpenRouter => MaxTokensField::MaxCompletionTokens,
            _ => MaxTokensField::MaxTokens,
        };
        Self {
            server,
            streams: options.streams,
            max_tokens_field: options.max_tokens_field.unwrap_or(field),
            dimensions: options.dimensions.filter(|_| matches!(server, OpenAi | OpenRouter)),
            enforces_json_schema: options.enforces_json_schema.unwrap_or(server != Compatible),
            takes_images: options.takes_images.unwrap_or(server == OpenAi),
        }
    }

    pub(crate) fn catalog(&self) -> Catalog {
        match self.server {
            Speaker::Compatible | Speaker::OpenAi => Catalog::OpenAi,
            Speaker::Ollama => Catalog::Ollama,
            Speaker::LmStudio => Catalog::LmStudio,
            Speaker::Vllm => Catalog::Vllm,
            Speaker::LlamaServer => Catalog::LlamaServer,
            Speaker::OpenRouter => Catalog::OpenRouter,
        }
    }

    /// Options that are honoured as the contract means them.
    pub(crate) fn options(&self) -> Vec<RequestOption> {
        use RequestOption as O;
        let mut options =
            vec![O::ChatPrompt, O::Temperature, O::TopP, O::Seed, O::Stop, O::MaxTokens, O::Tools];
        options.extend(match self.server {
            Speaker::Compatible => &[
                O::FrequencyPenalty,
                O::PresencePenalty,
                O::LogitBias,
                O::Logprobs,
                O::ToolChoice,
                O::ParallelToolCalls,
            ][..],
            Speaker::OpenAi => &[
                O::FrequencyPenalty,
                O::PresencePenalty,
                O::LogitBias,
                O::Logprobs,
                O::ToolChoice,
                O::ParallelToolCalls,
                O::Reasoning,
            ],
            // Its penalties count the prompt's tokens too; it ignores `tool_choice`,
            // `parallel_tool_calls`, `logit_bias`, `top_k` and `min_p` on this route.
            Speaker::Ollama => &[O::Logprobs, O::Reasoning],
            // How far its `repeat_penalty` looks back is not documented.
            Speaker::LmStudio => {
                &[O::TopK, O::FrequencyPenalty, O::PresencePenalty, O::LogitBias, O::ToolChoice]
            }
            Speaker::Vllm | Speaker::OpenRouter => &[
                O::TopK,
                O::MinP,
                O::RepetitionPenalty,
                O::FrequencyPenalty,
                O::PresencePenalty,
                O::LogitBias,
                O::Logprobs,
                O::ToolChoice,
                O::ParallelToolCalls,
                O::Reasoning,
            ],
            // Its frequency and presence penalties count the prompt's tokens too.
            Speaker::LlamaServer => &[
                O::TopK,
                O::MinP,
                O::RepetitionPenalty,
                O::LogitBias,
                O::Logprobs,
                O::ToolChoice,
                O::ParallelToolCalls,
                O::Reasoning,
            ],
        });
        if !self.constraints().is_empty() {
            options.push(O::Constraint);
        }
        if self.takes_images {
            options.push(O::ImageInput);
        }
        options
    }

    pub(crate) fn constraints(&self) -> Vec<ConstraintKind> {
        let mut kinds = Vec::new();
        if self.enforces_json_schema {
            kinds.push(ConstraintKind::JsonSchema);
        }
        kinds.extend(match self.server {
            Speaker::Vllm => &[ConstraintKind::Regex, ConstraintKind::Choice][..],
            Speaker::LlamaServer => &[ConstraintKind::Choice],
            _ => &[],
        });
        kinds
    }

    /// The largest number of alternatives; 0 where there are no log-probabilities.
    pub(crate) fn max_top_logprobs(&self) -> u8 {
        match self.server {
            Speaker::LmStudio => 0,
            Speaker::LlamaServer => u8::MAX,
            _ => 20,
        }
    }

    pub(crate) fn max_stops(&self) -> Option<u32> {
        matches!(self.server, Speaker::OpenAi | Speaker::OpenRouter).then_some(4)
    }

    pub(crate) fn temperature_range(&self) -> Option<TemperatureRange> {
        matches!(self.server, Speaker::OpenAi | Speaker::OpenRouter)
            .then_some(TemperatureRange { min_milli: 0, max_milli: 2000 })
    }

    pub(super) fn repetition_field(&self) -> &'static str {
        match self.server {
            Speaker::LlamaServer => "repeat_penalty",
            _ => "repetition_penalty",
        }
    }

    /// The first seed that is too large.
    pub(super) fn seed_limit(&self) -> u64 {
        match self.server {
            // The largest 32-bit number asks llama.cpp for a random one.
            Speaker::LlamaServer | Speaker::Ollama | Speaker::LmStudio => u64::from(u32::MAX),
            _ => 1 << 63,
        }
    }

    /// Whether `tool_choice` may name a tool.
    pub(super) fn names_a_tool(&self) -> bool {
        !matches!(self.server, Speaker::LmStudio | Speaker::LlamaServer)
    }

    /// The field of a constraint.
    pub(super) fn constraint(&self, constraint: &Constraint) -> Result<(&'static str, Value)> {
        Ok(match (constraint, self.server) {
            (Constraint::JsonSchema(schema), _) => {
                let schema = json!({"name": "answer", "strict": true, "schema": schema});
                ("response_format", json!({"type": "json_schema", "json_schema": schema}))
            }
            (Constraint::Regex(pattern), Speaker::Vllm) => {
                ("structured_outputs", json!({ "regex": pattern }))
            }
            (Constraint::Choice(texts), Speaker::Vllm) => {
                ("structured_outputs", json!({ "choice": texts }))
            }
            (Constraint::Choice(texts), Speaker::LlamaServer) => ("grammar", gbnf(texts).into()),
            (other, _) => {
                let why = format!("{:?} is not enforced here", other.kind());
                return Err(Error::unsupported("constraint", why));
            }
        })
    }

    /// The field that says how much to think.
    pub(super) fn reasoning(&self, reasoning: Reasoning) -> Result<(&'static str, Value)> {
        let effort = match reasoning {
            Reasoning::Off => Some("none"),
            Reasoning::Low => Some("low"),
            Reasoning::Medium => Some("medium"),
            Reasoning::High => Some("high"),
            _ => None,
        };
        Ok(match (self.server, reasoning, effort) {
            (Speaker::OpenRouter, Reasoning::Budget(n), _) => {
                ("reasoning", json!({ "max_tokens": n }))
            }
            (Speaker::OpenRouter, _, Some(effort)) => ("reasoning", json!({ "effort": effort })),
            (Speaker::Vllm, Reasoning::Budget(n), _) => ("thinking_token_budget", n.into()),
            (Speaker::LlamaServer, Reasoning::Budget(n), _) => {
                ("reasoning_budget_tokens", n.into())
            }
            // Whether another effort means anything there is up to the model's template.
            (Speaker::LlamaServer, Reasoning::Off, Some(effort)) => {
                ("reasoning_effort", effort.into())
            }
            (Speaker::OpenAi | Speaker::Ollama | Speaker::Vllm, _, Some(effort)) => {
                ("reasoning_effort", effort.into())
            }
            _ => {
                let why = format!("{reasoning:?} has no word on this server");
                return Err(Error::unsupported("reasoning", why));
            }
        })
    }
}

/// A grammar in llama.cpp's own notation whose only sentences are these texts.
fn gbnf(texts: &[String]) -> String {
    let quoted = texts.iter().map(|text| {
        let mut quoted = String::from("\"");
        for c in text.chars() {
            match c {
                '"' | '\\' => quoted.extend(['\\', c]),
                '\n' => quoted.push_str("\\n"),
                '\r' => quoted.push_str("\\r"),
                '\t' => quoted.push_str("\\t"),
                c => quoted.push(c),
            }
        }
        quoted.push('"');
        quoted
    });
    format!("root ::= {}", quoted.collect::<Vec<_>>().join(" | "))
}

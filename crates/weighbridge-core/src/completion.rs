//! What a backend answers.

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Dropped, Message, Part, Role, ToolCall};

/// Index into a model's vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenId(pub u32);

/// Why a generation ended. Every variant is an outcome, and is scored.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopReason {
    /// End of turn, or a stop text.
    Stop,
    /// The token limit or the context window.
    Length,
    /// A filter of the vendor removed or cut the answer.
    ContentFilter,
    /// The model declined.
    Refusal,
    /// The model waits for tool results.
    ToolCalls,
    /// The model's own output cannot be used: it breaks the language that was demanded of it, or
    /// the vendor could not read the tool call that it made.
    Malformed,
    /// The sink asked for an early stop.
    Cancelled,
    /// A reason this build does not know; the raw text is in [`Completion::raw_stop_reason`].
    Other,
}

impl StopReason {
    /// The stable name used in records and reports.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ContentFilter => "content_filter",
            Self::Refusal => "refusal",
            Self::ToolCalls => "tool_calls",
            Self::Malformed => "malformed",
            Self::Cancelled => "cancelled",
            Self::Other => "other",
        }
    }
}

/// Tokens used, in one definition for every vendor. `None` is unknown, never zero.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Usage {
    /// All prompt tokens, cached ones included.
    pub n_prompt_tokens: Option<u64>,
    /// Prompt tokens read from a cache.
    pub n_cached_tokens: Option<u64>,
    /// Prompt tokens written to a cache that is billed for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_cache_write_tokens: Option<u64>,
    /// All generated tokens, reasoning included.
    pub n_generated_tokens: Option<u64>,
    /// Generated tokens spent on reasoning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_reasoning_tokens: Option<u64>,
    /// The vendor's own numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw: Option<Value>,
}

impl Usage {
    /// Known prompt and generated counts.
    pub fn new(n_prompt_tokens: u64, n_generated_tokens: u64) -> Self {
        Self {
            n_prompt_tokens: Some(n_prompt_tokens),
            n_generated_tokens: Some(n_generated_tokens),
            ..Self::default()
        }
    }
}

/// Where the time went. A phase that cannot be told apart is `None`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Timings {
    /// Submit to start of work.
    pub queue: Option<Duration>,
    /// The prompt pass.
    pub prefill: Option<Duration>,
    /// Submit to the first non-empty token.
    pub ttft: Option<Duration>,
    /// First to last token.
    pub decode: Option<Duration>,
    /// Submit to the end.
    pub total: Duration,
    /// How often the engine's memory was needed for older calls, and this one fed again later.
    pub n_preemptions: u32,
}

impl Timings {
    /// Only the total is known.
    pub fn total(total: Duration) -> Self {
        Self { total, ..Self::default() }
    }

    /// Time per output token after the first, `(total − ttft) / (n − 1)`; `None` if `n < 2` or
    /// the first token's time is unknown.
    pub fn tpot(&self, n_generated_tokens: u64) -> Option<Duration> {
        let rest = u32::try_from(n_generated_tokens.checked_sub(1)?).ok().filter(|&n| n > 0)?;
        Some(self.total.checked_sub(self.ttft?)? / rest)
    }
}

/// One token and its log-probability.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TokenLogprob {
    /// The token, where the vendor tells it.
    pub id: Option<TokenId>,
    /// The bytes of the token; may be half a character.
    pub bytes: Vec<u8>,
    /// Natural log of the probability under the unmodified distribution, in nats. `None` for a
    /// first token with nothing before it.
    pub logprob: Option<f64>,
    /// 0 for the most likely token; `None` where unknown.
    pub rank: Option<u32>,
    /// The most likely tokens, most likely first.
    pub top: Vec<TopLogprob>,
}

impl TokenLogprob {
    /// A token without alternatives.
    pub fn new(id: Option<TokenId>, bytes: Vec<u8>, logprob: Option<f64>) -> Self {
        Self { id, bytes, logprob, rank: None, top: Vec::new() }
    }
}

/// One alternative at a position.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TopLogprob {
    /// The token, where the vendor tells it.
    pub id: Option<TokenId>,
    /// The bytes of the token.
    pub bytes: Vec<u8>,
    /// Natural log of its probability, in nats.
    pub logprob: f64,
}

impl TopLogprob {
    /// An alternative.
    pub fn new(id: Option<TokenId>, bytes: Vec<u8>, logprob: f64) -> Self {
        Self { id, bytes, logprob }
    }
}

/// The settings that were really used, and what was lost of what was asked.
#[derive(Clone, Debug, PartialEq, Default)]
#[non_exhaustive]
pub struct EffectiveParams {
    /// Name to value: `temperature`, `seed`, `max_tokens`, `template_sha256`, `served_model`, …
    pub values: Map<String, Value>,
    /// Wishes that were not honoured.
    pub dropped: Vec<Dropped>,
}

impl EffectiveParams {
    /// No value known.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a value.
    #[must_use]
    pub fn with(mut self, name: impl Into<Cow<'static, str>>, value: impl Into<Value>) -> Self {
        self.values.insert(name.into().into_owned(), value.into());
        self
    }
}

/// A finished generation: the only success terminal.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Completion {
    /// The answer; equal to the pushed text deltas joined.
    pub text: String,
    /// Reasoning that was shown, apart from the answer.
    pub reasoning: String,
    /// Tools the model wants called.
    pub tool_calls: Vec<ToolCall>,
    /// Vendor data to be echoed back with this turn.
    pub opaque: Vec<(String, Value)>,
    /// Why it ended.
    pub stop_reason: StopReason,
    /// The reason in the vendor's own word.
    pub raw_stop_reason: Option<String>,
    /// Tokens used.
    pub usage: Usage,
    /// Where the time went.
    pub timings: Timings,
    /// One entry per generated token, if asked.
    pub logprobs: Option<Vec<TokenLogprob>>,
    /// What was really used.
    pub effective: EffectiveParams,
    /// Things worth knowing that are not errors.
    pub warnings: Vec<String>,
}

impl Completion {
    /// A completion of this text, everything else unknown.
    pub fn new(text: impl Into<String>, stop_reason: StopReason) -> Self {
        Self {
            text: text.into(),
            reasoning: String::new(),
            tool_calls: Vec::new(),
            opaque: Vec::new(),
            stop_reason,
            raw_stop_reason: None,
            usage: Usage::default(),
            timings: Timings::default(),
            logprobs: None,
            effective: EffectiveParams::default(),
            warnings: Vec::new(),
        }
    }

    /// This turn as a message of the conversation, opaque data included.
    pub fn to_message(&self) -> Message {
        let mut parts = Vec::new();
        if !self.reasoning.is_empty() {
            parts.push(Part::Reasoning(self.reasoning.clone()));
        }
        for (provider, data) in &self.opaque {
            parts.push(Part::Opaque { provider: provider.clone(), data: data.clone() });
        }
        if !self.text.is_empty() {
            parts.push(Part::Text(self.text.clone()));
        }
        parts.extend(self.tool_calls.iter().cloned().map(Part::ToolCall));
        Message::new(Role::Assistant, parts)
    }
}

/// Log-probabilities of one continuation.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Likelihood {
    /// One entry per token of the continuation.
    pub tokens: Vec<TokenLogprob>,
    /// Sum over the tokens, in nats; tokens without a log-probability count nothing.
    pub sum: f64,
    /// Every token was the most likely one at its position.
    pub is_greedy: bool,
    /// Tokens used.
    pub usage: Usage,
    /// Where the time went.
    pub timings: Timings,
    /// What was really used.
    pub effective: EffectiveParams,
}

impl Likelihood {
    /// Sums `tokens`; greedy if every rank is 0.
    pub fn new(tokens: Vec<TokenLogprob>) -> Self {
        let sum = tokens.iter().filter_map(|t| t.logprob).sum();
        let is_greedy = tokens.iter().all(|t| t.rank == Some(0));
        Self {
            tokens,
            sum,
            is_greedy,
            usage: Usage::default(),
            timings: Timings::default(),
            effective: EffectiveParams::default(),
        }
    }

    /// `exp(−sum / n)` over the `n` tokens that have a log-probability; `None` without any.
    pub fn perplexity(&self) -> Option<f64> {
        let n = self.tokens.iter().filter(|token| token.logprob.is_some()).count();
        (n > 0).then(|| (-self.sum / n as f64).exp())
    }
}

/// One embedding.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Embedding {
    /// Shape `(n_dims,)`.
    pub vector: Vec<f32>,
    /// Tokens used.
    pub usage: Usage,
    /// Where the time went.
    pub timings: Timings,
    /// What was really used.
    pub effective: EffectiveParams,
}

impl Embedding {
    /// A vector, everything else unknown.
    pub fn new(vector: Vec<f32>) -> Self {
        Self {
            vector,
            usage: Usage::default(),
            timings: Timings::default(),
            effective: EffectiveParams::default(),
        }
    }
}

/// One label of a classification.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ClassLabel {
    /// The label's name.
    pub label: String,
    /// Its probability, in [0, 1].
    pub probability: f64,
}

impl ClassLabel {
    /// A label with its probability.
    pub fn new(label: impl Into<String>, probability: f64) -> Self {
        Self { label: label.into(), probability }
    }
}

/// The classification of one text.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Classification {
    /// Labels, most likely first.
    pub labels: Vec<ClassLabel>,
    /// Tokens used.
    pub usage: Usage,
    /// Where the time went.
    pub timings: Timings,
    /// What was really used.
    pub effective: EffectiveParams,
}

impl Classification {
    /// Labels, everything else unknown.
    pub fn new(labels: Vec<ClassLabel>) -> Self {
        Self {
            labels,
            usage: Usage::default(),
            timings: Timings::default(),
            effective: EffectiveParams::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tpot_needs_two_tokens_and_a_first_one() {
        let mut timings = Timings::total(Duration::from_millis(110));
        assert_eq!(timings.tpot(11), None);
        timings.ttft = Some(Duration::from_millis(10));
        assert_eq!(timings.tpot(11), Some(Duration::from_millis(10)));
        assert_eq!(timings.tpot(1), None);
    }

    #[test]
    fn likelihood_sums_what_is_known() {
        let mut first = TokenLogprob::new(None, b"a".to_vec(), None);
        first.rank = Some(0);
        let mut second = TokenLogprob::new(None, b"b".to_vec(), Some(-0.5));
        second.rank = Some(1);
        let likelihood = Likelihood::new(vec![first, second]);
        assert_eq!(likelihood.sum, -0.5);
        assert!(!likelihood.is_greedy);
    }
}

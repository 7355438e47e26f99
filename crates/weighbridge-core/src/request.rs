//! What a backend is asked to do.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::{Error, ErrorKind, Prompt, RequestOption, Result, TokenId, Tool, ToolChoice};

/// How the next token is chosen. `None` leaves a setting to the model's own default, which the
/// completion's [`EffectiveParams`](crate::EffectiveParams) then name.
///
/// Local engines apply the settings in this order: constraint mask, repetition, frequency and
/// presence penalties, logit bias, temperature, top-k, top-p, min-p, draw.
#[derive(Clone, Debug, PartialEq, Default)]
#[non_exhaustive]
pub struct Sampling {
    /// Divides the logits. 0 is greedy: the highest logit, ties to the lowest id.
    pub temperature: Option<f64>,
    /// Keeps the `k` most likely tokens; at least 1.
    pub top_k: Option<u32>,
    /// Keeps the smallest set of tokens whose probability reaches this; in (0, 1].
    pub top_p: Option<f64>,
    /// Keeps tokens at least this fraction as likely as the most likely one; in [0, 1].
    pub min_p: Option<f64>,
    /// Divides positive and multiplies negative logits of tokens already seen; 1 is off.
    pub repetition_penalty: Option<f64>,
    /// Subtracted from a logit per earlier occurrence in the completion.
    pub frequency_penalty: Option<f64>,
    /// Subtracted from a logit once if the token occurred in the completion.
    pub presence_penalty: Option<f64>,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Seed of the draw.
    pub seed: Option<u64>,
}

impl Sampling {
    /// Temperature 0.
    pub fn greedy() -> Self {
        Self { temperature: Some(0.0), ..Self::default() }
    }
}

/// A language that the completion has to belong to.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Constraint {
    /// A JSON document valid under this JSON Schema.
    JsonSchema(Value),
    /// A text matched whole by this regular expression.
    Regex(String),
    /// A grammar in the Lark dialect of llguidance.
    Lark(String),
    /// Exactly one of these texts.
    Choice(Vec<String>),
}

/// How much a reasoning model may think.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reasoning {
    /// Not at all.
    Off,
    /// A little.
    Low,
    /// The vendor's middle setting.
    Medium,
    /// A lot.
    High,
    /// At most this many tokens.
    Budget(u32),
}

/// One generation.
///
/// An option that the backend cannot honour exactly is an
/// [`Unsupported`](crate::ErrorKind::Unsupported) error that names it, unless it is listed in
/// [`wishes`](Request::wishes).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Request {
    /// What to continue.
    pub prompt: Prompt,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Texts that end the completion; they are not part of it.
    pub stop: Vec<String>,
    /// Upper limit of generated tokens. `None`: up to the context window, or the vendor's default.
    pub max_tokens: Option<u32>,
    /// `Some(k)`: report each generated token's log-probability and the `k` most likely ones.
    pub logprobs: Option<u8>,
    /// A language the completion must belong to.
    pub constraint: Option<Constraint>,
    /// Tools the model may call.
    pub tools: Vec<Tool>,
    /// Which of them it may or must call.
    pub tool_choice: ToolChoice,
    /// Whether several tools may be called in one turn. `None`: the vendor's default.
    pub parallel_tool_calls: Option<bool>,
    /// How much to think. `None`: the vendor's default.
    pub reasoning: Option<Reasoning>,
    /// Fix batch width and chunk size and switch prefix reuse off, so that a local engine repeats
    /// bit for bit on one machine.
    pub deterministic: bool,
    /// Options whose loss is acceptable; a loss is reported in `Started` and in the completion.
    pub wishes: Vec<RequestOption>,
    /// Verbatim fields per provider id; recorded, and outside every promise.
    pub extra: BTreeMap<String, Map<String, Value>>,
}

impl Request {
    /// A request with every option unset.
    pub fn new(prompt: Prompt) -> Self {
        Self {
            prompt,
            sampling: Sampling::default(),
            stop: Vec::new(),
            max_tokens: None,
            logprobs: None,
            constraint: None,
            tools: Vec::new(),
            tool_choice: ToolChoice::default(),
            parallel_tool_calls: None,
            reasoning: None,
            deterministic: false,
            wishes: Vec::new(),
            extra: BTreeMap::new(),
        }
    }

    /// A request of one user message at temperature 0.
    pub fn user(text: impl Into<String>) -> Self {
        Self::new(Prompt::user(text)).with_sampling(Sampling::greedy())
    }

    /// Sets the sampling.
    #[must_use]
    pub fn with_sampling(mut self, sampling: Sampling) -> Self {
        self.sampling = sampling;
        self
    }

    /// Sets the upper limit of generated tokens.
    #[must_use]
    pub fn with_max_tokens(mut self, max_tokens: u32) -> Self {
        self.max_tokens = Some(max_tokens);
        self
    }

    /// Adds a stop text.
    #[must_use]
    pub fn with_stop(mut self, stop: impl Into<String>) -> Self {
        self.stop.push(stop.into());
        self
    }

    /// Asks for log-probabilities with the `top` most likely alternatives.
    #[must_use]
    pub fn with_logprobs(mut self, top: u8) -> Self {
        self.logprobs = Some(top);
        self
    }

    /// Sets the constraint.
    #[must_use]
    pub fn with_constraint(mut self, constraint: Constraint) -> Self {
        self.constraint = Some(constraint);
        self
    }

    /// Sets the tools.
    #[must_use]
    pub fn with_tools(mut self, tools: Vec<Tool>) -> Self {
        self.tools = tools;
        self
    }
}

/// One continuation to be scored in its context.
///
/// Context and continuation are tokenized apart and joined, so that the boundary is where the
/// caller put it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LikelihoodItem {
    /// What stands before; shared by items that hold the same `Arc`.
    pub context: Arc<Prompt>,
    /// The text whose tokens are scored.
    pub continuation: String,
}

impl LikelihoodItem {
    /// A continuation in its context.
    pub fn new(context: Arc<Prompt>, continuation: impl Into<String>) -> Self {
        Self { context, continuation: continuation.into() }
    }
}

/// Continuations to be scored in one call.
#[derive(Clone, Debug, PartialEq, Default)]
#[non_exhaustive]
pub struct LikelihoodRequest {
    /// The items; the answer has one entry each, in order.
    pub items: Vec<LikelihoodItem>,
    /// Report this many of the most likely tokens at each position.
    pub top: u8,
    /// As [`Request::deterministic`].
    pub deterministic: bool,
    /// Score each item in windows, so that it may be longer than the model's context.
    pub window: Option<Window>,
}

impl LikelihoodRequest {
    /// A request without alternatives.
    pub fn new(items: Vec<LikelihoodItem>) -> Self {
        Self { items, top: 0, deterministic: false, window: None }
    }
}

/// How a text that is longer than the context is scored: in overlapping windows.
///
/// The tokens of context and continuation are numbered from 0. Window `k` has the tokens
/// `k·stride .. k·stride + n_tokens`; there are as many as are needed to reach the end, and the last
/// may be shorter. Each scores those of its tokens that belong to the continuation and that no
/// earlier window had, given all of its own tokens before them. So every token of the continuation is
/// scored once, and all but those of the first window are conditioned on at least
/// `n_tokens − stride` and at most `n_tokens − 1` tokens. `stride = n_tokens − 1` is the rolling
/// log-likelihood of lm-evaluation-harness; smaller strides cost more and condition better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Tokens of a window; at most the model's context.
    pub n_tokens: u32,
    /// Tokens from one window's begin to the next one's; at least 1, below `n_tokens`.
    pub stride: u32,
}

impl Window {
    /// Itself, if it can be used with a context of `n_ctx` tokens.
    ///
    /// # Errors
    /// [`InvalidRequest`](crate::ErrorKind::InvalidRequest) naming the value and its bounds.
    pub fn check(self, n_ctx: u32) -> Result<Self> {
        if self.stride >= 1 && self.stride < self.n_tokens && self.n_tokens <= n_ctx {
            return Ok(self);
        }
        Err(Error::new(
            ErrorKind::InvalidRequest,
            "`window` needs 1 ≤ stride < n_tokens ≤ the context",
        )
        .with("n_tokens", self.n_tokens)
        .with("stride", self.stride)
        .with("n_ctx", n_ctx))
    }
}

/// Texts to be embedded.
#[derive(Clone, Debug, PartialEq, Default)]
#[non_exhaustive]
pub struct EmbedRequest {
    /// The texts; the answer has one vector each, in order.
    pub texts: Vec<String>,
    /// Scale each vector to length 1.
    pub normalize: bool,
}

impl EmbedRequest {
    /// Normalized embeddings of these texts.
    pub fn new(texts: Vec<String>) -> Self {
        Self { texts, normalize: true }
    }
}

/// Texts to be classified by a model with a classification head.
#[derive(Clone, Debug, PartialEq, Default)]
#[non_exhaustive]
pub struct ClassifyRequest {
    /// The texts; the answer has one entry each, in order.
    pub texts: Vec<String>,
}

impl ClassifyRequest {
    /// Classifications of these texts.
    pub fn new(texts: Vec<String>) -> Self {
        Self { texts }
    }
}

//! How a model is served.

use std::time::Duration;

use weighbridge_core::Sampling;

use crate::template::TemplateOptions;

/// Where the chat template comes from.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum TemplateChoice {
    /// The model's own, if it has one.
    #[default]
    Model,
    /// This source instead.
    Source(String),
    /// None: no conversations.
    None,
}

/// Options of [`LocalBackend::open`](crate::LocalBackend::open). The defaults suit one machine that
/// runs one model.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EngineOptions {
    /// Name of the worker thread and of the model in messages about it.
    pub name: String,
    /// Sequences that are fed at once, within what the engine can; default 8.
    pub max_concurrency: u32,
    /// Upper limit of the context length, within what the engine can.
    pub n_ctx: Option<u32>,
    /// Whether a new prompt may continue what a free sequence still holds; default true.
    pub reuses_prefixes: bool,
    /// Sampling settings of the model for those that a request leaves open, such as those of
    /// `generation_config.json`. What is open here too is: temperature 1, seed 0, the rest off.
    pub default_sampling: Sampling,
    /// The chat template.
    pub template: TemplateChoice,
    /// Limits of templates, and the date they may print.
    pub template_options: TemplateOptions,
    /// How long a feed of prompt tokens may take, so that a cancel is never waited for longer;
    /// default 2 s.
    pub cancel_latency: Duration,
    /// How long it may take while other sequences decode whose events somebody follows
    /// ([`EventSink::is_watched`](weighbridge_core::EventSink::is_watched)); default 250 ms.
    pub decode_latency: Duration,
    /// Prompt tokens per feed of a deterministic request; default 32.
    pub deterministic_chunk: u32,
}

impl EngineOptions {
    /// The defaults, under this name.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            max_concurrency: 8,
            n_ctx: None,
            reuses_prefixes: true,
            default_sampling: Sampling::default(),
            template: TemplateChoice::Model,
            template_options: TemplateOptions::default(),
            cancel_latency: Duration::from_secs(2),
            decode_latency: Duration::from_millis(250),
            deterministic_chunk: 32,
        }
    }

    /// Sets the number of sequences that are fed at once.
    #[must_use]
    pub fn with_max_concurrency(mut self, max_concurrency: u32) -> Self {
        self.max_concurrency = max_concurrency;
        self
    }

    /// Sets the upper limit of the context length.
    #[must_use]
    pub fn with_n_ctx(mut self, n_ctx: u32) -> Self {
        self.n_ctx = Some(n_ctx);
        self
    }

    /// Sets whether prompts may continue what a free sequence holds.
    #[must_use]
    pub fn with_prefix_reuse(mut self, reuses_prefixes: bool) -> Self {
        self.reuses_prefixes = reuses_prefixes;
        self
    }

    /// Sets the model's own sampling settings.
    #[must_use]
    pub fn with_default_sampling(mut self, sampling: Sampling) -> Self {
        self.default_sampling = sampling;
        self
    }

    /// Sets the chat template.
    #[must_use]
    pub fn with_template(mut self, template: TemplateChoice) -> Self {
        self.template = template;
        self
    }

    /// Sets limits and date of templates.
    #[must_use]
    pub fn with_template_options(mut self, options: TemplateOptions) -> Self {
        self.template_options = options;
        self
    }
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self::new("model")
    }
}

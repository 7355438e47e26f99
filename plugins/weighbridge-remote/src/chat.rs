//! The Chat Completions protocol of OpenAI, as many servers speak it.

mod answer;
mod body;

use serde_json::{Map, Value};
use weighbridge_core::{
    Capabilities, ConstraintKind, Dropped, EmbedRequest, Embedding, Request, RequestOption, Result,
};

use crate::embed;
use crate::options::{MaxTokensField, Options};
use crate::wire::{Decode, Route, Wire};

/// What differs between servers that speak the protocol.
#[derive(Clone, Debug)]
pub(crate) struct Dialect {
    pub(crate) streams: bool,
    pub(crate) max_tokens_field: MaxTokensField,
    pub(crate) enforces_json_schema: bool,
    pub(crate) takes_images: bool,
    /// Sent with embeddings, to models whose vectors can be shortened.
    pub(crate) dimensions: Option<u32>,
}

impl Dialect {
    /// What every server understands.
    pub(crate) fn compatible(options: &Options) -> Self {
        Self {
            streams: options.streams,
            max_tokens_field: options.max_tokens_field.unwrap_or(MaxTokensField::MaxTokens),
            enforces_json_schema: options.enforces_json_schema.unwrap_or(false),
            takes_images: options.takes_images.unwrap_or(false),
            dimensions: None,
        }
    }

    /// OpenAI's own.
    pub(crate) fn openai(options: &Options) -> Self {
        Self {
            streams: options.streams,
            max_tokens_field: MaxTokensField::MaxCompletionTokens,
            enforces_json_schema: true,
            takes_images: true,
            dimensions: options.dimensions,
        }
    }
}

/// Chat Completions in one dialect.
#[derive(Debug)]
pub(crate) struct Chat {
    /// Key of [`Request::extra`] whose fields are added verbatim.
    pub(crate) provider: &'static str,
    pub(crate) dialect: Dialect,
}

impl Chat {
    pub(crate) fn new(provider: &'static str, dialect: Dialect) -> Self {
        Self { provider, dialect }
    }
}

impl Wire for Chat {
    fn route(&self, _model: &str) -> Route {
        Route::new("/chat/completions")
    }

    fn capabilities(&self, _model: &str) -> Capabilities {
        let mut capabilities = Capabilities::none().with_options([
            RequestOption::ChatPrompt,
            RequestOption::Temperature,
            RequestOption::TopP,
            RequestOption::FrequencyPenalty,
            RequestOption::PresencePenalty,
            RequestOption::LogitBias,
            RequestOption::Seed,
            RequestOption::Stop,
            RequestOption::MaxTokens,
            RequestOption::Logprobs,
            RequestOption::Tools,
            RequestOption::ToolChoice,
            RequestOption::ParallelToolCalls,
        ]);
        capabilities.max_top_logprobs = 20;
        if self.dialect.enforces_json_schema {
            capabilities.options.push(RequestOption::Constraint);
            capabilities.constraints.push(ConstraintKind::JsonSchema);
        }
        if self.dialect.takes_images {
            capabilities.options.push(RequestOption::ImageInput);
        }
        capabilities
    }

    fn body(
        &self,
        model: &str,
        request: &Request,
        dropped: &[Dropped],
    ) -> Result<Map<String, Value>> {
        body::write(self, model, request, dropped)
    }

    fn decoder(&self, request: &Request) -> Box<dyn Decode> {
        Box::new(answer::ChatAnswer::new(request))
    }

    fn embedding_size(&self, model: &str) -> Option<u32> {
        embed::openai_size(model)
    }

    fn embed_call(
        &self,
        model: &str,
        request: &EmbedRequest,
    ) -> Option<Result<(Route, Map<String, Value>)>> {
        let dimensions = self.dialect.dimensions.filter(|&n| Some(n) != self.embedding_size(model));
        Some(Ok(embed::openai_call(model, request, dimensions)))
    }

    fn embedded(&self, answer: &Value) -> Result<Vec<Embedding>> {
        embed::openai_answer(answer)
    }
}

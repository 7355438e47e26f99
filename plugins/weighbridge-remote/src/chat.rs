//! The Chat Completions protocol of OpenAI, as many servers speak it.

mod answer;
mod body;
mod tokens;

use serde_json::{Map, Value};
use weighbridge_core::{Capabilities, ConstraintKind, Dropped, Request, RequestOption, Result};

use crate::options::{MaxTokensField, Options};
use crate::wire::{Decode, Wire};

/// Chat Completions, with what differs between its servers.
#[derive(Debug)]
pub(crate) struct Chat {
    /// Key of [`Request::extra`] whose fields are added verbatim.
    pub(crate) provider: &'static str,
    pub(crate) streams: bool,
    pub(crate) max_tokens_field: MaxTokensField,
    pub(crate) enforces_json_schema: bool,
    pub(crate) takes_images: bool,
}

impl Chat {
    pub(crate) fn new(provider: &'static str, options: &Options) -> Self {
        Self {
            provider,
            streams: options.streams,
            max_tokens_field: options.max_tokens_field,
            enforces_json_schema: options.enforces_json_schema,
            takes_images: options.takes_images,
        }
    }
}

impl Wire for Chat {
    fn route(&self) -> &'static str {
        "/chat/completions"
    }

    fn capabilities(&self) -> Capabilities {
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
        if self.enforces_json_schema {
            capabilities.options.push(RequestOption::Constraint);
            capabilities.constraints.push(ConstraintKind::JsonSchema);
        }
        if self.takes_images {
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
}

//! The Responses protocol of OpenAI.

mod answer;
mod body;
mod echo;

use serde_json::{Map, Value};
use weighbridge_core::{
    Capabilities, ConstraintKind, Dropped, EmbedRequest, Embedding, Prompt, Request, RequestOption,
    Result, TemperatureRange,
};

use crate::embed;
use crate::options::Options;
use crate::wire::{Decode, Route, Wire};

/// Responses, as OpenAI and Azure speak it.
#[derive(Debug)]
pub(crate) struct Responses {
    /// Key of [`Request::extra`] whose fields are added verbatim, and owner of what is echoed.
    provider: &'static str,
    streams: bool,
    counts_tokens: bool,
    /// Sent with embeddings, to models whose vectors can be shortened.
    dimensions: Option<u32>,
}

impl Responses {
    pub(crate) fn new(provider: &'static str, counts_tokens: bool, options: &Options) -> Self {
        let (streams, dimensions) = (options.streams, options.dimensions);
        Self { provider, streams, counts_tokens, dimensions }
    }
}

impl Wire for Responses {
    fn route(&self, _model: &str) -> Route {
        Route::new("/responses")
    }

    fn capabilities(&self, _model: &str) -> Capabilities {
        let mut capabilities = Capabilities::none().with_options([
            RequestOption::ChatPrompt,
            RequestOption::ImageInput,
            RequestOption::Temperature,
            RequestOption::TopP,
            RequestOption::MaxTokens,
            RequestOption::Logprobs,
            RequestOption::Constraint,
            RequestOption::Tools,
            RequestOption::ToolChoice,
            RequestOption::ParallelToolCalls,
            RequestOption::Reasoning,
        ]);
        capabilities.max_top_logprobs = 20;
        capabilities.constraints.push(ConstraintKind::JsonSchema);
        capabilities.temperature_range = Some(TemperatureRange { min_milli: 0, max_milli: 2000 });
        capabilities.count_tokens = self.counts_tokens;
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
        Box::new(answer::ResponsesAnswer::new(self.provider, request))
    }

    fn count_call(
        &self,
        model: &str,
        prompt: &Prompt,
    ) -> Option<Result<(Route, Map<String, Value>)>> {
        let call = || {
            let mut body = Map::from_iter([("model".to_owned(), model.into())]);
            body::write_prompt(self, prompt, true, &mut body)?;
            Ok((Route::new("/responses/input_tokens"), body))
        };
        self.counts_tokens.then(call)
    }

    fn counted(&self, answer: &Value) -> Option<u64> {
        answer["input_tokens"].as_u64()
    }

    fn embedding_size(&self, model: &str) -> Option<u32> {
        embed::openai_size(model)
    }

    fn embed_call(
        &self,
        model: &str,
        request: &EmbedRequest,
    ) -> Option<Result<(Route, Map<String, Value>)>> {
        let dimensions = self.dimensions.filter(|&n| Some(n) != self.embedding_size(model));
        Some(Ok(embed::openai_call(model, request, dimensions)))
    }

    fn embedded(&self, answer: &Value) -> Result<Vec<Embedding>> {
        embed::openai_answer(answer)
    }
}

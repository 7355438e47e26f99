//! The Chat Completions protocol of OpenAI, as many servers speak it.

mod answer;
mod body;
mod dialect;

use serde_json::{Map, Value, json};
use weighbridge_core::{Capabilities, Dropped, EmbedRequest, Embedding, Prompt, Request, Result};

pub(crate) use dialect::Speaker;

use crate::embed;
use crate::options::Options;
use crate::wire::{Decode, DetailsCall, Listed, Page, Route, Wire};
use dialect::Dialect;

/// Chat Completions in one dialect.
#[derive(Debug)]
pub(crate) struct Chat {
    /// Key of [`Request::extra`] whose fields are added verbatim.
    provider: &'static str,
    dialect: Dialect,
}

impl Chat {
    pub(crate) fn new(provider: &'static str, server: Speaker, options: &Options) -> Self {
        Self { provider, dialect: Dialect::new(server, options) }
    }
}

impl Wire for Chat {
    fn route(&self, _model: &str) -> Route {
        Route::new("/chat/completions")
    }

    fn models_route(&self, _next: Option<&str>) -> Route {
        self.dialect.catalog().route()
    }

    fn models(&self, document: &Value) -> Option<Page> {
        self.dialect.catalog().models(document)
    }

    fn details_call(&self, model: &str) -> Option<DetailsCall> {
        self.dialect.catalog().details_call(model)
    }

    fn add_details(&self, listed: &mut Listed, answer: &Value) {
        self.dialect.catalog().add_details(listed, answer);
    }

    fn capabilities(&self, _model: &str) -> Capabilities {
        let mut capabilities = Capabilities::none().with_options(self.dialect.options());
        capabilities.constraints = self.dialect.constraints();
        capabilities.max_top_logprobs = self.dialect.max_top_logprobs();
        capabilities.max_stops = self.dialect.max_stops();
        capabilities.temperature_range = self.dialect.temperature_range();
        capabilities.count_tokens =
            matches!(self.dialect.server, Speaker::Vllm | Speaker::LlamaServer);
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
        Box::new(answer::ChatAnswer::new(self.provider, request))
    }

    fn count_call(
        &self,
        model: &str,
        prompt: &Prompt,
    ) -> Option<Result<(Route, Map<String, Value>)>> {
        let route = match self.dialect.server {
            Speaker::Vllm => Route::beside("/tokenize"),
            Speaker::LlamaServer => Route::new("/chat/completions/input_tokens"),
            _ => return None,
        };
        let body = |messages| {
            Map::from_iter([("model".to_owned(), json!(model)), ("messages".to_owned(), messages)])
        };
        let messages = body::messages(self, prompt, true);
        Some(messages.map(|messages| (route, body(messages.into()))))
    }

    fn counted(&self, answer: &Value) -> Option<u64> {
        let name = if self.dialect.server == Speaker::Vllm { "count" } else { "input_tokens" };
        answer[name].as_u64()
    }

    fn embedding_size(&self, model: &str) -> Option<u32> {
        match self.dialect.server {
            Speaker::OpenAi => embed::openai_size(model),
            _ => None,
        }
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

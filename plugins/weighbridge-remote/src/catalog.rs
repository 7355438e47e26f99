//! How servers list their models, and what they tell of one.

mod llama_server;
mod lm_studio;
mod ollama;
mod openrouter;
mod vllm;

use serde_json::{Value, json};

use crate::wire::{DetailsCall, Listed, Page, Route};

/// Whose list it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Catalog {
    /// Names only.
    OpenAi,
    Ollama,
    LmStudio,
    Vllm,
    LlamaServer,
    OpenRouter,
}

impl Catalog {
    pub(crate) fn route(self) -> Route {
        match self {
            Self::Ollama => Route::beside("/api/tags"),
            Self::LmStudio => Route::beside("/api/v0/models"),
            Self::OpenAi | Self::Vllm | Self::LlamaServer | Self::OpenRouter => {
                Route::new("/models")
            }
        }
    }

    /// Reads the list; `None` if it is none.
    pub(crate) fn models(self, document: &Value) -> Option<Page> {
        let (field, read): (_, fn(&Value) -> Option<Listed>) = match self {
            Self::OpenAi => ("data", |model| Some(Listed::new(model["id"].as_str()?))),
            Self::Ollama => ("models", ollama::listed),
            Self::LmStudio => ("data", lm_studio::listed),
            Self::Vllm => ("data", vllm::listed),
            Self::LlamaServer => ("data", llama_server::listed),
            Self::OpenRouter => ("data", openrouter::listed),
        };
        // A server without models may say null.
        let models = match &document[field] {
            Value::Null if document.get(field).is_some() => Vec::new(),
            models => models.as_array()?.iter().filter_map(read).collect(),
        };
        Some(Page { models, next: None })
    }

    pub(crate) fn details_call(self, model: &str) -> Option<DetailsCall> {
        match self {
            Self::Ollama => Some((Route::beside("/api/show"), Some(json!({ "model": model })))),
            Self::LlamaServer => Some((Route::beside("/props"), None)),
            Self::OpenAi | Self::LmStudio | Self::Vllm | Self::OpenRouter => None,
        }
    }

    pub(crate) fn add_details(self, listed: &mut Listed, answer: &Value) {
        match self {
            Self::Ollama => ollama::add_details(listed, answer),
            Self::LlamaServer => llama_server::add_details(listed, answer),
            Self::OpenAi | Self::LmStudio | Self::Vllm | Self::OpenRouter => {}
        }
    }
}

/// A text that says something.
fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned)
}

/// A count above zero.
fn count(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|&n| n > 0)
}

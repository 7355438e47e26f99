//! The table of vendors and servers: where each is, how it takes a key, which protocol it speaks.

use weighbridge_core::Weights;

use crate::chat::{Chat, Speaker};
use crate::gemini::Gemini;
use crate::messages::Messages;
use crate::options::{Api, Options};
use crate::responses::Responses;
use crate::wire::Wire;

/// Whose API is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Vendor {
    /// Claude models, over the Messages API.
    Anthropic,
    /// GPT models, over the Responses API or Chat Completions.
    OpenAi,
    /// Gemini models, over `generateContent`.
    Gemini,
    /// Any server that speaks Chat Completions, named by its URL.
    OpenAiCompatible,
    /// An Ollama server.
    Ollama,
    /// An LM Studio server.
    LmStudio,
    /// A vLLM server.
    Vllm,
    /// llama.cpp's own server.
    LlamaServer,
    /// The gateway OpenRouter.
    OpenRouter,
    /// OpenAI's models in a resource of Azure.
    AzureOpenAi,
}

/// Where the base URL of the API comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Base {
    /// The model's location is the URL.
    Location,
    /// This one, unless option `base_url` names another. The location is the model.
    At(&'static str),
    /// Option `base_url` must name it. The location is the model.
    Option,
}

/// The header that carries the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyHeader {
    /// `Authorization: Bearer KEY`.
    Bearer,
    /// The key alone, in a header of this name.
    Named(&'static str),
}

/// What the code has to know of a vendor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    /// The provider's id.
    pub(crate) id: &'static str,
    /// One sentence for a list.
    pub(crate) summary: &'static str,
    /// What a location looks like.
    pub(crate) location_help: &'static str,
    pub(crate) base: Base,
    pub(crate) key_header: KeyHeader,
    /// Name of the secret that holds the key; `None`: no key unless `api_key_env` names one.
    pub(crate) key_env: Option<&'static str>,
    /// Headers of every call.
    pub(crate) headers: &'static [(&'static str, &'static str)],
    /// Who holds the weights of its models, as far as that is the same for all of them.
    pub(crate) weights: Weights,
}

impl Facts {
    /// The server is on this machine, unless its URL says otherwise.
    pub(crate) fn is_local(&self) -> bool {
        matches!(self.base, Base::At(url) if url.starts_with("http://127.0.0.1"))
    }
}

const SERVER: Facts = Facts {
    id: "",
    summary: "",
    location_help: "the model's name at the server; option `base_url` where it listens elsewhere",
    base: Base::Location,
    key_header: KeyHeader::Bearer,
    key_env: None,
    headers: &[],
    weights: Weights::Unknown,
};

const HOSTED: Facts = Facts { location_help: "the model's id", weights: Weights::Closed, ..SERVER };

impl Vendor {
    /// Every vendor.
    pub const ALL: [Self; 10] = [
        Self::Anthropic,
        Self::OpenAi,
        Self::Gemini,
        Self::OpenAiCompatible,
        Self::Ollama,
        Self::LmStudio,
        Self::Vllm,
        Self::LlamaServer,
        Self::OpenRouter,
        Self::AzureOpenAi,
    ];

    pub(crate) fn facts(self) -> Facts {
        match self {
            Self::Anthropic => Facts {
                id: "anthropic",
                summary: "Claude models behind Anthropic's Messages API",
                base: Base::At("https://api.anthropic.com/v1"),
                key_header: KeyHeader::Named("x-api-key"),
                key_env: Some("ANTHROPIC_API_KEY"),
                // Version 2026-10-21 has no sampling options; this one keeps them for the models
                // that know them, and is otherwise the same to us.
                headers: &[("anthropic-version", "2023-06-01")],
                ..HOSTED
            },
            Self::OpenAi => Facts {
                id: "openai",
                summary: "GPT models behind OpenAI's Responses or Chat Completions API",
                base: Base::At("https://api.openai.com/v1"),
                key_env: Some("OPENAI_API_KEY"),
                ..HOSTED
            },
            Self::Gemini => Facts {
                id: "gemini",
                summary: "Gemini models behind Google's generateContent API",
                base: Base::At("https://generativelanguage.googleapis.com/v1beta"),
                key_header: KeyHeader::Named("x-goog-api-key"),
                key_env: Some("GEMINI_API_KEY"),
                ..HOSTED
            },
            Self::OpenAiCompatible => Facts {
                id: "openai-compatible",
                summary: "models behind servers that speak OpenAI's Chat Completions",
                location_help: "URL of the API with the model behind `#`: \
                                http://127.0.0.1:8080/v1#my-model",
                ..SERVER
            },
            Self::Ollama => Facts {
                id: "ollama",
                summary: "models of an Ollama server",
                base: Base::At("http://127.0.0.1:11434/v1"),
                ..SERVER
            },
            Self::LmStudio => Facts {
                id: "lm-studio",
                summary: "models of an LM Studio server",
                base: Base::At("http://127.0.0.1:1234/v1"),
                ..SERVER
            },
            Self::Vllm => Facts {
                id: "vllm",
                summary: "models of a vLLM server",
                base: Base::At("http://127.0.0.1:8000/v1"),
                ..SERVER
            },
            Self::LlamaServer => Facts {
                id: "llama-server",
                summary: "the model of llama.cpp's own server",
                base: Base::At("http://127.0.0.1:8080/v1"),
                ..SERVER
            },
            Self::OpenRouter => Facts {
                id: "openrouter",
                summary: "models of many vendors behind OpenRouter",
                base: Base::At("https://openrouter.ai/api/v1"),
                key_env: Some("OPENROUTER_API_KEY"),
                weights: Weights::Unknown,
                ..HOSTED
            },
            Self::AzureOpenAi => Facts {
                id: "azure-openai",
                summary: "OpenAI's models in a resource of Azure",
                location_help: "the deployment's name; option `base_url` is \
                                https://RESOURCE.openai.azure.com/openai/v1",
                base: Base::Option,
                key_header: KeyHeader::Named("api-key"),
                key_env: Some("AZURE_OPENAI_API_KEY"),
                ..HOSTED
            },
        }
    }

    /// The protocol that these options ask for.
    pub(crate) fn wire(self, options: &Options) -> Box<dyn Wire> {
        let id = self.facts().id;
        if matches!(self, Self::OpenAi | Self::AzureOpenAi) && options.api == Api::Responses {
            // Whether Azure counts tokens is not documented.
            return Box::new(Responses::new(id, self == Self::OpenAi, options));
        }
        let server = match self {
            Self::Anthropic => return Box::new(Messages::new(options)),
            Self::Gemini => return Box::new(Gemini::new(options)),
            Self::OpenAi | Self::AzureOpenAi => Speaker::OpenAi,
            Self::Ollama => Speaker::Ollama,
            Self::LmStudio => Speaker::LmStudio,
            Self::Vllm => Speaker::Vllm,
            Self::LlamaServer => Speaker::LlamaServer,
            Self::OpenRouter => Speaker::OpenRouter,
            _ => Speaker::Compatible,
        };
        Box::new(Chat::new(id, server, options))
    }
}

#![doc = include_str!("../README.md")]

mod cpu;
mod decoder;
mod embedder;
mod engine;
mod loader;
mod native;
mod options;
mod provider;
mod runtime;
mod threads;
mod vocab;

pub use loader::LlamaLoader;
pub use provider::{LlamaCppProvider, plugin};

/// Id of plugin and provider.
pub(crate) const ID: &str = "llama-cpp";

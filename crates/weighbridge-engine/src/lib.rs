#![doc = include_str!("../README.md")]

pub mod constraint;
pub mod detokenizer;
pub mod files;
pub mod loader;
pub mod logits;
pub mod logprob;
pub mod prompt;
pub mod sampler;
pub mod stop;
pub mod template;
pub mod tokenizer;
pub mod tokens;
pub mod toy;

mod backend;
mod generation;
mod job;
mod options;
mod scheduler;
mod scoring;
mod worker;

pub use backend::LocalBackend;
pub use options::{EngineOptions, TemplateChoice};

//! The engine crate from outside: one binary, so that it links once.

// Clippy's own exception covers functions marked `#[test]`, not their helpers.
#![allow(clippy::unwrap_used)]

mod constrained;
mod constraints;
mod decode;
mod gguf;
mod prefix;
mod sampler;
mod scoring;
mod support;
mod templates;
mod tokenizer;
mod trouble;

//! Weighbridge plugin: Llama-family models in pure Rust on candle-core.

//! What the run is held to: our rate over the peer's, at least.
//!
//! A missed goal is printed and recorded; it fails nothing, because machines differ and are noisy.

/// One stream through `Backend::generate`, over llama-bench: prompt tokens per second.
pub(crate) const PREFILL: f64 = 0.97;
/// The same, generated tokens per second.
pub(crate) const DECODE: f64 = 0.97;

/// Requests that share a prefix, over llama-server with as many slots as it batches best.
pub(crate) const LOAD_SLOTS: f64 = 1.6;
/// Over llama-server with one slot and its prompt cache.
pub(crate) const LOAD_ONE_SLOT: f64 = 1.5;
/// Over llama-server with one slot and no prompt cache.
pub(crate) const LOAD_NO_CACHE: f64 = 4.5;

/// Multiple choice with few shots, over scoring each option with its full prompt.
pub(crate) const CHOICE: f64 = 10.0;

/// candle over llama.cpp where candle has fast kernels: width 1024, Q8_0 and Q4_K.
pub(crate) const CANDLE_PREFILL: f64 = 0.6;
/// The same for decode.
pub(crate) const CANDLE_DECODE: f64 = 0.8;

/// candle over stock candle-transformers where candle has none: width 896, or Q4_0.
pub(crate) const STOCK_PREFILL: f64 = 2.0;
/// The same for decode.
pub(crate) const STOCK_DECODE: f64 = 1.3;

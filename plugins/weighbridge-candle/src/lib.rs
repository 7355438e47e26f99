#![doc = include_str!("../README.md")]

mod attention;
mod cache;
mod decoder;
mod device;
mod engine;
mod feed_forward;
mod files;
mod layer;
mod linear;
mod loader;
mod ops;
mod options;
mod pairs;
mod product;
mod provider;
mod quant;
mod quant_product;
mod quantized;
mod rope;
mod weights;

pub use engine::CandleEngine;
pub use files::ModelFiles;
pub use loader::CandleLoader;
pub use provider::{CandleProvider, plugin};

/// Id of plugin and provider.
pub(crate) const ID: &str = "candle";

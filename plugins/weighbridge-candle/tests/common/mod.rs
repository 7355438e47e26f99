//! The models of these tests, and their reference numbers.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use weighbridge_candle::{CandleEngine, ModelFiles};
use weighbridge_core::OpenContext;

/// Tiny models with reference numbers.
pub(crate) const TINY: [&str; 7] = [
    "llama-gqa-tied",
    "llama3-bias-headdim",
    "llama-linear",
    "mistral-window",
    "qwen2-bias",
    "qwen2-window",
    "qwen2-yarn",
];

pub(crate) fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

pub(crate) fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// A copy of a tiny model's folder, with a tokenizer's file so that it is whole.
pub(crate) fn tiny_copy(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(data().join(name).join(file), folder.path().join(file)).unwrap();
    }
    fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    folder
}

/// Whose products compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kernels {
    /// The plugin's own, for the CPU.
    Own,
    /// candle's, as on a GPU.
    Candle,
}

impl Kernels {
    pub(crate) const ALL: [Self; 2] = [Self::Own, Self::Candle];

    /// The option of this name.
    pub(crate) fn option(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Candle => "candle",
        }
    }
}

pub(crate) fn engine_at(path: &Path, n_ctx: u32, kernels: Kernels) -> CandleEngine {
    engine_with(path, n_ctx, serde_json::json!({"kernels": kernels.option()}))
}

pub(crate) fn engine_with(path: &Path, n_ctx: u32, options: Value) -> CandleEngine {
    let mut files = ModelFiles::open(path).unwrap();
    let context = OpenContext::new().with_options(options.as_object().unwrap().clone());
    CandleEngine::load(&mut files, n_ctx, &context, 0.0).unwrap()
}

pub(crate) fn tiny(name: &str, kernels: Kernels) -> CandleEngine {
    engine_at(tiny_copy(name).path(), 128, kernels)
}

pub(crate) fn fixture(name: &str, kernels: Kernels) -> CandleEngine {
    engine_at(&fixtures().join(name), 512, kernels)
}

pub(crate) fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

pub(crate) fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

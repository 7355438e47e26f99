//! Feeding an engine, and log-probabilities of what comes back.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use weighbridge_candle::{CandleEngine, ModelFiles};
use weighbridge_core::OpenContext;
use weighbridge_engine::logits::{Input, LogitsEngine, SeqId, Span, Want};

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

/// Feeds one span and returns its rows.
pub(crate) fn feed(
    engine: &mut CandleEngine,
    seq: u32,
    tokens: &[u32],
    want: Want,
) -> Vec<Vec<f32>> {
    let seq = SeqId(seq);
    let pos = engine.len(seq);
    let span = Span { seq, pos, tokens: Input::Tokens(tokens), want };
    let mut out = Vec::new();
    let mut next = pos + want.first(tokens.len()) as u32;
    engine
        .feed(&[span], &mut |span_idx: usize, at: u32, row: &[f32]| {
            assert_eq!((span_idx, at), (0, next));
            next += 1;
            out.push(row.to_vec());
        })
        .unwrap();
    assert_eq!(engine.len(seq), pos + tokens.len() as u32);
    out
}

/// All rows of a text of any length, from scratch, in feeds of at most `chunk`.
pub(crate) fn all_rows(engine: &mut CandleEngine, tokens: &[u32], chunk: usize) -> Vec<Vec<f32>> {
    engine.release(SeqId(0));
    tokens.chunks(chunk).flat_map(|chunk| feed(engine, 0, chunk, Want::All)).collect()
}

pub(crate) fn argmax(row: &[f32]) -> u32 {
    let mut best = 0;
    for (i, value) in row.iter().enumerate() {
        if *value > row[best] {
            best = i;
        }
    }
    best as u32
}

pub(crate) fn log_softmax(row: &[f32]) -> Vec<f64> {
    let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = row.iter().map(|x| (f64::from(*x) - max).exp()).sum();
    row.iter().map(|x| f64::from(*x) - max - sum.ln()).collect()
}

/// Largest difference of two lists of rows.
#[track_caller]
pub(crate) fn difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!(a.len(), b.len());
    let values = a.iter().flatten().zip(b.iter().flatten());
    values.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

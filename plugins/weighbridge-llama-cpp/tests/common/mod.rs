//! Opening models, feeding them, and log-probabilities of what comes back.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use weighbridge_core::{OpenContext, Result};
use weighbridge_engine::loader::{EngineLoader, TextModel};
use weighbridge_engine::logits::{Input, LogitsEngine, SeqId, Span, Want};
use weighbridge_llama_cpp::LlamaLoader;
use weighbridge_models::gguf::Gguf;

pub(crate) fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

pub(crate) fn triage(name: &str) -> PathBuf {
    fixtures().join(format!("{name}/{name}-f16.gguf"))
}

pub(crate) fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Numbers of a tiny model, by transformers.
pub(crate) fn reference(name: &str) -> Value {
    json(&data(&format!("{name}.json")))
}

/// One thread unless options say otherwise: tests run beside each other, and tiny models gain
/// nothing from more.
pub(crate) fn context(options: Value) -> OpenContext {
    let mut options = options.as_object().unwrap().clone();
    options.entry("threads").or_insert(1.into());
    OpenContext::new().with_options(options)
}

/// Loads a model and works with it.
pub(crate) fn try_with<T>(
    path: &Path,
    context: &OpenContext,
    work: impl FnOnce(&TextModel, &mut dyn LogitsEngine) -> T,
) -> Result<T> {
    let (mut work, mut out) = (Some(work), None);
    Box::new(LlamaLoader::prepare(path, context)?).run(context, &mut |text, engine| {
        out = Some(work.take().unwrap()(&text, engine));
    })?;
    Ok(out.unwrap())
}

/// As [`try_with`], with keys and values in `f32` and without flash attention, whose CPU kernel
/// rounds: nothing is rounded but what F16 weights are multiplied with.
pub(crate) fn with<T>(path: &Path, work: impl FnOnce(&TextModel, &mut dyn LogitsEngine) -> T) -> T {
    let options = serde_json::json!({"kv_type": "f32", "flash_attention": "off"});
    try_with(path, &context(options), work).unwrap()
}

/// A copy of a GGUF file with F16 weights, with the same weights as F32: llama.cpp then computes
/// with them as they are, and does not round what they are multiplied with.
pub(crate) fn as_f32(path: &Path) -> tempfile::NamedTempFile {
    const ALIGNMENT: usize = 32;
    let bytes = fs::read(path).unwrap();
    let mut gguf = Gguf::open(path).unwrap();
    let mut tensors: Vec<_> = gguf.tensors().cloned().collect();
    tensors.sort_by_key(|tensor| tensor.offset);
    let record = |name: &str| [&(name.len() as u64).to_le_bytes()[..], name.as_bytes()].concat();
    let starts = tensors.iter().map(|tensor| {
        let record = record(&tensor.name);
        bytes.windows(record.len()).position(|window| window == record).unwrap()
    });
    // Header and metadata, then what tensors there are, then their values.
    let mut out = bytes[..starts.min().unwrap()].to_vec();
    let mut values: Vec<u8> = Vec::new();
    for tensor in &tensors {
        out.extend(record(&tensor.name));
        out.extend((tensor.dims.len() as u32).to_le_bytes());
        out.extend(tensor.dims.iter().flat_map(|dim| dim.to_le_bytes()));
        out.extend(0u32.to_le_bytes());
        out.extend((values.len() as u64).to_le_bytes());
        let mut stored = Vec::new();
        gguf.read(&tensor.name, &mut stored).unwrap();
        match tensor.dtype.name() {
            "F16" => values.extend(stored.chunks_exact(2).flat_map(|pair| {
                half::f16::from_le_bytes([pair[0], pair[1]]).to_f32().to_le_bytes()
            })),
            name => {
                assert_eq!(name, "F32");
                values.extend(stored);
            }
        }
        values.resize(values.len().next_multiple_of(ALIGNMENT), 0);
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    out.extend(values);
    let file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
    fs::write(file.path(), out).unwrap();
    file
}

pub(crate) fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

pub(crate) fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

/// Feeds one span and returns its rows.
pub(crate) fn feed(
    engine: &mut dyn LogitsEngine,
    seq: u32,
    tokens: &[u32],
    want: Want,
) -> Vec<Vec<f32>> {
    let seq = SeqId(seq);
    let pos = engine.len(seq);
    let span = Span { seq, pos, tokens: Input::Tokens(tokens), want };
    let mut out = Vec::new();
    let mut next = pos + want.first(tokens.len()) as u32;
    let n_vocab = engine.caps().n_vocab as usize;
    engine
        .feed(&[span], &mut |span_idx: usize, at: u32, row: &[f32]| {
            assert_eq!((span_idx, at, row.len()), (0, next, n_vocab));
            next += 1;
            out.push(row.to_vec());
        })
        .unwrap();
    assert_eq!(engine.len(seq), pos + tokens.len() as u32);
    out
}

/// All rows of a text of any length, from scratch in sequence 0, in feeds of at most `chunk`.
pub(crate) fn all_rows(
    engine: &mut dyn LogitsEngine,
    tokens: &[u32],
    chunk: usize,
) -> Vec<Vec<f32>> {
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

/// A text of token ids between 2 and 61, the same in each run.
pub(crate) fn text(seed: u32, n: usize) -> Vec<u32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            2 + (state >> 16) % 60
        })
        .collect()
}

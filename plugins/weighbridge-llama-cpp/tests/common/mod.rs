//! Opening models, and reference numbers.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::Value;
use weighbridge_core::{OpenContext, Result};
use weighbridge_engine::loader::{EngineLoader, TextModel};
use weighbridge_engine::logits::LogitsEngine;
use weighbridge_llama_cpp::LlamaLoader;
use weighbridge_models::gguf::Gguf;
use weighbridge_testkit::engine;

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

/// Token ids that every model here has, in texts.
pub(crate) const IDS: Range<u32> = 2..62;

/// A text of [`IDS`], the same in each run.
pub(crate) fn text(seed: u32, n: usize) -> Vec<u32> {
    engine::text(&IDS, seed, n)
}

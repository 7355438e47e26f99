//! Writes GGUF files, also wrong ones.

use std::path::PathBuf;

use tempfile::TempDir;
use weighbridge_core::{Error, ErrorKind};
use weighbridge_models::gguf::Gguf;

/// A value as it stands in a file: number of its type, then its bytes.
#[derive(Clone)]
pub(crate) struct Value(pub(crate) Vec<u8>);

const ARRAY: u32 = 9;

fn one(id: u32, bytes: &[u8]) -> Value {
    Value([&id.to_le_bytes(), bytes].concat())
}

pub(crate) fn array(id: u32, n: u64, bytes: &[u8]) -> Value {
    one(ARRAY, &[&id.to_le_bytes()[..], &n.to_le_bytes(), bytes].concat())
}

pub(crate) fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

macro_rules! from_numbers {
    ($($ty:ty = $id:literal),*) => {$(
        impl From<$ty> for Value {
            fn from(value: $ty) -> Self {
                one($id, &value.to_le_bytes())
            }
        }
        impl From<&[$ty]> for Value {
            fn from(values: &[$ty]) -> Self {
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                array($id, values.len() as u64, &bytes)
            }
        }
    )*};
}

from_numbers!(
    u8 = 0,
    i8 = 1,
    u16 = 2,
    i16 = 3,
    u32 = 4,
    i32 = 5,
    f32 = 6,
    u64 = 10,
    i64 = 11,
    f64 = 12
);

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        one(7, &[u8::from(value)])
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        one(8, &string(text.as_bytes()))
    }
}

impl<S: AsRef<[u8]>> From<Vec<S>> for Value {
    fn from(texts: Vec<S>) -> Self {
        let bytes: Vec<u8> = texts.iter().flat_map(|text| string(text.as_ref())).collect();
        array(8, texts.len() as u64, &bytes)
    }
}

#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dims: Vec<u64>,
    pub(crate) dtype: u32,
    /// As it stands in the file.
    pub(crate) offset: u64,
}

#[derive(Clone)]
pub(crate) struct Writer {
    pub(crate) version: u32,
    pub(crate) keys: Vec<(String, Value)>,
    pub(crate) tensors: Vec<Tensor>,
    pub(crate) alignment: u64,
    /// Bytes of the tensors with their padding.
    pub(crate) n_data: u64,
}

pub(crate) const TOKENS: [&str; 10] =
    ["<unk>", "<s>", "</s>", "<0x0A>", "a", "b", "c", "ab", "bc", "\u{2581}"];

impl Writer {
    pub(crate) fn new() -> Self {
        Self { version: 3, keys: Vec::new(), tensors: Vec::new(), alignment: 32, n_data: 0 }
    }

    /// A llama of one layer with a vocabulary of ten tokens, which llama.cpp loads.
    pub(crate) fn llama() -> Self {
        let mut writer = Self::vocabulary();
        writer.set("llama.context_length", 64u32);
        writer.set("llama.embedding_length", 8u32);
        writer.set("llama.block_count", 1u32);
        writer.set("llama.feed_forward_length", 16u32);
        writer.set("llama.attention.head_count", 2u32);
        writer.set("llama.attention.layer_norm_rms_epsilon", 1e-5f32);
        writer.tensor("token_embd.weight", &[8, 10]);
        writer.tensor("output_norm.weight", &[8]);
        writer.tensor("blk.0.attn_norm.weight", &[8]);
        for name in ["attn_q", "attn_k", "attn_v", "attn_output"] {
            writer.tensor(&format!("blk.0.{name}.weight"), &[8, 8]);
        }
        writer.tensor("blk.0.ffn_norm.weight", &[8]);
        writer.tensor("blk.0.ffn_gate.weight", &[8, 16]);
        writer.tensor("blk.0.ffn_up.weight", &[8, 16]);
        writer.tensor("blk.0.ffn_down.weight", &[16, 8]);
        writer
    }

    /// A vocabulary without tensors.
    pub(crate) fn vocabulary() -> Self {
        let mut writer = Self::new();
        writer.set("general.architecture", "llama");
        writer.set("general.name", "Ten Tokens");
        writer.set("general.license", "apache-2.0");
        writer.set("tokenizer.ggml.model", "llama");
        writer.set("tokenizer.ggml.tokens", TOKENS.to_vec());
        writer.set("tokenizer.ggml.scores", &[0f32; 10][..]);
        writer.set("tokenizer.ggml.token_type", &[2i32, 3, 3, 6, 1, 1, 1, 1, 1, 1][..]);
        writer.set("tokenizer.ggml.bos_token_id", 1u32);
        writer.set("tokenizer.ggml.eos_token_id", 2u32);
        writer
    }

    pub(crate) fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.unset(key);
        self.keys.push((key.to_owned(), value.into()));
    }

    pub(crate) fn unset(&mut self, key: &str) {
        self.keys.retain(|(known, _)| known != key);
    }

    /// Appends a tensor of `f32`.
    pub(crate) fn tensor(&mut self, name: &str, dims: &[u64]) {
        self.tensor_of(name, dims, 0, 4 * dims.iter().product::<u64>());
    }

    pub(crate) fn tensor_of(&mut self, name: &str, dims: &[u64], dtype: u32, n_bytes: u64) {
        let (name, dims) = (name.to_owned(), dims.to_vec());
        self.tensors.push(Tensor { name, dims, dtype, offset: self.n_data });
        self.n_data = (self.n_data + n_bytes).next_multiple_of(self.alignment);
    }

    pub(crate) fn header(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            out.extend(string(key.as_bytes()));
            out.extend(&value.0);
        }
        for tensor in &self.tensors {
            out.extend(string(tensor.name.as_bytes()));
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            out.extend(tensor.dims.iter().flat_map(|dim| dim.to_le_bytes()));
            out.extend(tensor.dtype.to_le_bytes());
            out.extend(tensor.offset.to_le_bytes());
        }
        out
    }

    /// The file; each byte of the tensors is the lowest of its position among them.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = self.header();
        out.resize(out.len().next_multiple_of(self.alignment as usize), 0);
        out.extend((0..self.n_data).map(|position| position as u8));
        out
    }
}

/// A folder with one file.
pub(crate) fn file(bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

pub(crate) fn open(bytes: &[u8]) -> Result<Gguf, Error> {
    let (_folder, path) = file(bytes);
    Gguf::open(&path)
}

/// The file is refused, and the message has all of `expected`.
#[track_caller]
pub(crate) fn refused(bytes: &[u8], expected: &[&str]) {
    let error = open(bytes).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ModelLoad, "{error}");
    let message = error.to_string();
    for part in expected.iter().chain(&["model.gguf"]) {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

/// The small llama, changed, is refused.
#[track_caller]
pub(crate) fn refused_when(change: impl FnOnce(&mut Writer), expected: &[&str]) {
    let mut writer = Writer::llama();
    change(&mut writer);
    refused(&writer.bytes(), expected);
}

/// The small llama, changed, is accepted.
#[track_caller]
pub(crate) fn accepted_when(change: impl FnOnce(&mut Writer)) -> Gguf {
    let mut writer = Writer::llama();
    change(&mut writer);
    open(&writer.bytes()).unwrap()
}

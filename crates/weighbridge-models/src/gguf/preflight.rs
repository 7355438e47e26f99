//! Whether the metadata and tensors of a model make sense together, as llama.cpp asserts.
//!
//! From `src/llama-model.cpp` (`load_hparams`), `src/llama-model-loader.cpp` and
//! `src/llama-vocab.cpp` of llama.cpp 0.5.0: keys of all architectures. What one architecture alone
//! requires, llama.cpp reports without aborting.

use std::path::Path;

use weighbridge_core::{Error, Result};

use super::value::ValueType::{Bool, F32, I8, I32, Str, U8, U32};
use super::value::{Kind, Value};
use super::{Content, Gguf, architectures, vocab};
use crate::files::{FETCH_AGAIN, fault, shown};

const MAX_LAYERS: u64 = 512;
const MAX_EXPERTS: u64 = 512;
const EMBEDDING: &str = "token_embd.weight";
const ROPE_SCALINGS: [&str; 4] = ["none", "linear", "yarn", "longrope"];
/// Heads for speculative decoding, which may borrow the embedding of their model, and a decoder of
/// audio whose embedding has a width of its own.
const OWN_EMBEDDING: [&str; 4] = ["dflash", "eagle3", "pockettts", "wavtokenizer-dec"];

const ONE_U32: &[Kind] = &[Kind::One(U32)];
const ONE_F32: &[Kind] = &[Kind::One(F32)];
const ONE_BOOL: &[Kind] = &[Kind::One(Bool)];
const ONE_STR: &[Kind] = &[Kind::One(Str)];
const STRS: &[Kind] = &[Kind::Array(Str)];
const ONE_OR_LAYERS: &[Kind] = &[Kind::One(U32), Kind::Array(U32), Kind::Array(I32)];

/// Keys that llama.cpp reads whatever the architecture, with the types it takes.
const KINDS: [(&str, &[Kind]); 19] = [
    ("general.architecture", ONE_STR),
    ("general.name", ONE_STR),
    ("general.file_type", ONE_U32),
    ("tokenizer.ggml.model", ONE_STR),
    ("tokenizer.ggml.pre", ONE_STR),
    ("tokenizer.ggml.token_type_count", ONE_U32),
    ("tokenizer.ggml.tokens", STRS),
    ("tokenizer.ggml.merges", STRS),
    ("tokenizer.ggml.scores", &[Kind::Array(F32), Kind::Array(I32)]),
    ("tokenizer.ggml.token_type", &[Kind::Array(I32)]),
    ("tokenizer.ggml.suppress_tokens", &[Kind::Array(I32)]),
    ("tokenizer.ggml.precompiled_charsmap", &[Kind::Array(I8), Kind::Array(U8)]),
    ("tokenizer.ggml.add_bos_token", ONE_BOOL),
    ("tokenizer.ggml.add_eos_token", ONE_BOOL),
    ("tokenizer.ggml.add_sep_token", ONE_BOOL),
    ("tokenizer.ggml.add_space_prefix", ONE_BOOL),
    ("tokenizer.ggml.remove_extra_whitespaces", ONE_BOOL),
    ("tokenizer.ggml.normalizer.lowercase", ONE_BOOL),
    ("tokenizer.ggml.normalizer.strip_accents", ONE_BOOL),
];

/// The same for keys that begin with the architecture's name.
const ARCH_KINDS: [(&str, &[Kind]); 28] = [
    ("context_length", ONE_U32),
    ("embedding_length", ONE_U32),
    ("embedding_length_out", ONE_U32),
    ("block_count", ONE_U32),
    ("nextn_predict_layers", ONE_U32),
    ("feed_forward_length", ONE_OR_LAYERS),
    ("attention.head_count", ONE_OR_LAYERS),
    ("attention.head_count_kv", ONE_OR_LAYERS),
    ("attention.key_length", ONE_U32),
    ("attention.value_length", ONE_U32),
    ("attention.key_length_swa", ONE_U32),
    ("attention.value_length_swa", ONE_U32),
    ("attention.causal", ONE_BOOL),
    ("pooling_type", ONE_U32),
    ("expert_count", ONE_U32),
    ("expert_used_count", ONE_OR_LAYERS),
    ("expert_group_count", ONE_U32),
    ("expert_group_used_count", ONE_U32),
    ("rope.dimension_count", ONE_U32),
    ("rope.dimension_count_swa", ONE_U32),
    ("rope.freq_base", ONE_F32),
    ("rope.scale_linear", ONE_F32),
    ("rope.scaling.type", ONE_STR),
    ("rope.scaling.factor", ONE_F32),
    ("rope.scaling.attn_factor", ONE_F32),
    ("rope.scaling.original_context_length", ONE_U32),
    ("rope.scaling.finetuned", ONE_BOOL),
    ("classifier.output_labels", STRS),
];

/// Refuses a value of a type that llama.cpp's typed getters fail or abort on.
pub(super) fn expect(path: &Path, key: &str, value: &Value, kinds: &[Kind]) -> Result<()> {
    if kinds.contains(&value.kind) {
        return Ok(());
    }
    let kinds: Vec<_> = kinds.iter().map(Kind::to_string).collect();
    Err(fault(
        path,
        format_args!(
            "has a value of type {} as `{key}`, {} is expected",
            value.kind,
            kinds.join(" or ")
        ),
        "use another conversion of the model",
    )
    .with("key", key))
}

/// Checks the types of keys that do not depend on the architecture.
pub(super) fn check_keys(gguf: &Gguf, path: &Path) -> Result<()> {
    let special = vocab::SPECIAL_KEYS.iter().map(|key| (*key, ONE_U32));
    for (key, kinds) in KINDS.into_iter().chain(special) {
        if let Some(value) = gguf.values.get(key) {
            expect(path, key, value, kinds)?;
        }
    }
    Ok(())
}

/// The architecture, if it is that of a language model that llama.cpp knows.
pub(super) fn architecture(gguf: &Gguf, path: &Path) -> Result<String> {
    let kind = gguf.str("general.type").unwrap_or("model");
    let arch = gguf.str("general.architecture");
    let is_not = |what: &str, remedy| {
        Err(fault(path, format_args!("is {what}, not a model"), remedy).with("type", kind))
    };
    let beside = "give the path of the model it belongs to";
    match (kind, arch) {
        ("adapter", _) => is_not("an adapter (LoRA)", beside),
        ("imatrix", _) => is_not("an importance matrix for quantizing (imatrix)", beside),
        ("mmproj", _) | (_, Some("clip")) => is_not("a projector of images (mmproj)", beside),
        (_, Some("controlvector")) => is_not("a control vector", beside),
        (_, None) => Err(fault(path, "has no `general.architecture`", FETCH_AGAIN)),
        (_, Some(arch)) if architectures::is_known(arch) => Ok(arch.to_owned()),
        (_, Some(arch)) => Err(fault(
            path,
            format_args!(
                "has the architecture `{}`, which is none of the {} that llama.cpp 0.5.0 knows",
                shown(arch),
                architectures::KNOWN_ARCHITECTURES.len()
            ),
            "use a newer version, or another model",
        )
        .with("key", "general.architecture")),
    }
}

/// Checks vocabulary, hyperparameters and the embedding.
pub(super) fn check(gguf: &Gguf, path: &Path, content: Content) -> Result<()> {
    for (name, kinds) in ARCH_KINDS {
        let key = gguf.arch_key(name);
        if let Some(value) = gguf.values.get(&key) {
            expect(path, &key, value, kinds)?;
        }
    }
    let n_vocab = vocab::check(gguf, path)?;
    if content == Content::Vocabulary {
        return Ok(());
    }
    if gguf.tensors.is_empty() {
        return Err(fault(
            path,
            "has a vocabulary but no tensors: it can tokenize, not generate",
            "download the model itself",
        ));
    }
    let model = Model { gguf, path };
    model.check_layers()?;
    model.check_experts()?;
    model.check_rope()?;
    model.check_embedding(n_vocab)
}

struct Model<'a> {
    gguf: &'a Gguf,
    path: &'a Path,
}

impl Model<'_> {
    fn bad(&self, key: &str, what: impl std::fmt::Display) -> Error {
        fault(self.path, what, "use another conversion of the model").with("key", key)
    }

    /// A hyperparameter; its type has been checked.
    fn get(&self, name: &str) -> Option<u64> {
        self.gguf.u64(&self.gguf.arch_key(name))
    }

    /// A hyperparameter that must be there and within bounds.
    fn within(&self, name: &str, max: u64) -> Result<u64> {
        let key = self.gguf.arch_key(name);
        match self.get(name) {
            None => Err(self.bad(&key, format_args!("has no `{key}`"))),
            Some(value) if value == 0 || value > max => {
                let max = if max == u64::MAX { String::new() } else { format!(" to {max}") };
                Err(self.bad(&key, format_args!("has {value} as `{key}`, it must be 1{max}")))
            }
            Some(value) => Ok(value),
        }
    }

    fn check_layers(&self) -> Result<()> {
        self.within("context_length", u32::MAX.into())?;
        let n_layers = self.within("block_count", MAX_LAYERS)?;
        let names = [
            "attention.head_count",
            "attention.head_count_kv",
            "feed_forward_length",
            "expert_used_count",
        ];
        for name in names {
            let key = self.gguf.arch_key(name);
            let len = self.gguf.values.get(&key).filter(|value| value.is_array()).map(Value::len);
            if let Some(len) = len.filter(|len| *len as u64 != n_layers) {
                return Err(self
                    .bad(&key, format_args!("has {len} values of `{key}` for {n_layers} layers")));
            }
        }
        let n_nextn = self.get("nextn_predict_layers").unwrap_or(0);
        if n_nextn > n_layers {
            let key = self.gguf.arch_key("nextn_predict_layers");
            return Err(
                self.bad(&key, format_args!("has {n_nextn} as `{key}`, of {n_layers} layers"))
            );
        }
        Ok(())
    }

    fn check_experts(&self) -> Result<()> {
        let key = self.gguf.arch_key("expert_used_count");
        let n_used = match self.gguf.i64s(&key) {
            // As llama.cpp reads them, a negative number is a huge one.
            Some(layers) => layers.iter().map(|n| u64::from(*n as u32)).max().unwrap_or(0),
            None => self.get("expert_used_count").unwrap_or(0),
        };
        let n_experts = self.get("expert_count").unwrap_or(0);
        let n_groups = self.get("expert_group_count").unwrap_or(0);
        let n_groups_used = self.get("expert_group_used_count").unwrap_or(0);
        // llama.cpp takes one expert of these for a dense model.
        if n_experts <= 1 && matches!(self.gguf.arch(), "hunyuan_vl" | "hunyuan-dense") {
            return Ok(());
        }
        let wrong = if n_experts > MAX_EXPERTS {
            format!("at most {MAX_EXPERTS} are possible")
        } else if n_used > n_experts {
            "more are used than there are".to_owned()
        } else if n_experts > 0 && n_used == 0 {
            "none is used".to_owned()
        } else if n_experts > 0 && n_groups >= n_experts {
            format!("{n_groups} groups are too many")
        } else if n_experts == 0 && n_groups > 0 {
            format!("{n_groups} groups have none")
        } else if n_groups > 1 && !n_experts.is_multiple_of(n_groups) {
            format!("{n_groups} groups are not of one size")
        } else if n_groups > 1 && (n_groups_used == 0 || n_groups_used >= n_groups) {
            format!("{n_groups_used} of {n_groups} groups are used")
        } else {
            return Ok(());
        };
        Err(self.bad(
            &key,
            format_args!(
                "has inconsistent expert counts: {n_used} (`{key}`) of {n_experts} (`{}`): {wrong}",
                self.gguf.arch_key("expert_count")
            ),
        ))
    }

    fn check_rope(&self) -> Result<()> {
        let key = self.gguf.arch_key("rope.scaling.type");
        match self.gguf.bytes(&key) {
            Some(name) if !ROPE_SCALINGS.iter().any(|known| known.as_bytes() == name) => Err(self
                .bad(
                    &key,
                    format_args!(
                        "has `{}` as `{key}`, known are {}",
                        shown(&String::from_utf8_lossy(name)),
                        ROPE_SCALINGS.join(", ")
                    ),
                )),
            _ => Ok(()),
        }
    }

    /// The embedding is `(embedding_length, n_vocab)` in ggml's order.
    fn check_embedding(&self, n_vocab: Option<u64>) -> Result<()> {
        let width = self.within("embedding_length", u32::MAX.into())?;
        if OWN_EMBEDDING.contains(&self.gguf.arch()) {
            return Ok(());
        }
        let tensor = self.gguf.tensor(EMBEDDING).ok_or_else(|| {
            fault(self.path, format_args!("has no tensor `{EMBEDDING}`"), FETCH_AGAIN)
                .with("tensor", EMBEDDING)
        })?;
        let n_rows = tensor.dims.get(1).copied().unwrap_or(1);
        let expected = [width, n_vocab.unwrap_or(n_rows), 1, 1];
        let dims = tensor.dims.iter().copied().chain(std::iter::repeat(1));
        if !dims.take(4).eq(expected) {
            return Err(fault(
                self.path,
                format_args!(
                    "has dimensions {:?} of tensor `{EMBEDDING}`; `{}` and the number of tokens make \
                     it [{width}, {}]",
                    tensor.dims,
                    self.gguf.arch_key("embedding_length"),
                    expected[1]
                ),
                "use another conversion of the model",
            )
            .with("tensor", EMBEDDING));
        }
        Ok(())
    }
}

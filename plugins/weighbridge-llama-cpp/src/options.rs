//! What `open` takes besides the file.

use std::path::PathBuf;

use llama_cpp_2::context::params::{KvCacheType, LlamaPoolingType};
use serde_json::{Map, Value, json};
use weighbridge_core::{Error, ErrorKind, OpenContext, Result, check_options};

/// Context length without an option, if the model has as much.
pub(crate) const DEFAULT_N_CTX: u32 = 4096;
/// Positions of one feed without an option.
const DEFAULT_N_BATCH: u32 = 512;
/// Sequence ids that llama.cpp has.
pub(crate) const MAX_SEQS: u32 = 256;

/// Options of the provider.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Options {
    pub(crate) n_ctx: Option<u32>,
    pub(crate) n_ctx_total: Option<u32>,
    pub(crate) n_batch: u32,
    pub(crate) n_ubatch: u32,
    pub(crate) n_seq_max: Option<u32>,
    pub(crate) threads: Option<u32>,
    pub(crate) threads_batch: Option<u32>,
    pub(crate) kv_type: KvType,
    pub(crate) flash_attention: FlashAttention,
    pub(crate) n_gpu_layers: Option<u32>,
    pub(crate) devices: Option<Vec<String>>,
    pub(crate) has_mmap: bool,
    pub(crate) has_mlock: bool,
    pub(crate) lora: Option<Lora>,
    pub(crate) embeddings: Option<bool>,
    pub(crate) pooling: Option<Pooling>,
}

/// Type of keys and values in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum KvType {
    F32,
    #[default]
    F16,
    Q8_0,
    Q4_0,
}

impl KvType {
    /// Bytes of a block, and values in it.
    pub(crate) fn block(self) -> (u64, u64) {
        match self {
            Self::F32 => (4, 1),
            Self::F16 => (2, 1),
            Self::Q8_0 => (34, 32),
            Self::Q4_0 => (18, 32),
        }
    }

    pub(crate) fn is_quantized(self) -> bool {
        matches!(self, Self::Q8_0 | Self::Q4_0)
    }
}

impl From<KvType> for KvCacheType {
    fn from(kv_type: KvType) -> Self {
        match kv_type {
            KvType::F32 => Self::F32,
            KvType::F16 => Self::F16,
            KvType::Q8_0 => Self::Q8_0,
            KvType::Q4_0 => Self::Q4_0,
        }
    }
}

/// Whether attention is computed block by block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum FlashAttention {
    /// Where every device in use can.
    #[default]
    Auto,
    On,
    Off,
}

/// How the vectors of a text's tokens become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pooling {
    Mean,
    Cls,
    Last,
}

impl From<Pooling> for LlamaPoolingType {
    fn from(pooling: Pooling) -> Self {
        match pooling {
            Pooling::Mean => Self::Mean,
            Pooling::Cls => Self::Cls,
            Pooling::Last => Self::Last,
        }
    }
}

/// An adapter to be applied.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Lora {
    pub(crate) path: PathBuf,
    pub(crate) scale: f32,
}

/// JSON Schema of the options.
pub(crate) fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "n_ctx": {
                "type": "integer", "minimum": 1, "maximum": 1 << 24,
                "description": "positions of one sequence; default: what the model has, at most 4096"
            },
            "n_ctx_total": {
                "type": "integer", "minimum": 1, "maximum": 1 << 24,
                "description": "positions of all sequences together, which share memory; default: \
                                8 times `n_ctx`, or as many as fit into 1 GiB, at least `n_ctx`"
            },
            "n_batch": {
                "type": "integer", "minimum": 1, "maximum": 8192, "default": DEFAULT_N_BATCH,
                "description": "positions of one feed; a cancel waits for one feed"
            },
            "n_ubatch": {
                "type": "integer", "minimum": 1, "maximum": 8192,
                "description": "positions computed at once within a feed; default: `n_batch`"
            },
            "n_seq_max": {
                "type": "integer", "minimum": 1, "maximum": MAX_SEQS,
                "description": "sequences that are kept at once; default: 64, or 8 for models with \
                                recurrent layers, whose states take memory for each"
            },
            "threads": {
                "type": "integer", "minimum": 1, "maximum": 1024,
                "description": "threads for one token of each sequence; default: the physical cores"
            },
            "threads_batch": {
                "type": "integer", "minimum": 1, "maximum": 1024,
                "description": "threads for prompts; default: `threads`"
            },
            "kv_type": {
                "enum": ["f32", "f16", "q8_0", "q4_0"], "default": "f16",
                "description": "type of keys and values; the quantized ones turn flash attention on"
            },
            "flash_attention": {
                "enum": ["auto", "on", "off"], "default": "auto",
                "description": "whether attention is computed block by block"
            },
            "n_gpu_layers": {
                "type": "integer", "minimum": 0, "maximum": 100_000,
                "description": "layers on the devices; default: all of them if there is a device"
            },
            "devices": {
                "type": "array", "items": {"type": "string"},
                "description": "names of the devices to use, such as CUDA0; none: only the CPU"
            },
            "mmap": {
                "type": "boolean", "default": true,
                "description": "whether weights stay in the file's pages instead of being copied"
            },
            "mlock": {
                "type": "boolean", "default": false,
                "description": "whether weights are kept from being swapped out"
            },
            "lora": {
                "type": "object",
                "properties": {"path": {"type": "string"}, "scale": {"type": "number"}},
                "required": ["path"],
                "description": "one adapter as a GGUF file, and its weight, by default 1"
            },
            "embeddings": {
                "type": "boolean",
                "description": "whether texts can be turned into vectors; default: if the file says \
                                how they are pooled"
            },
            "pooling": {
                "enum": ["mean", "cls", "last"],
                "description": "how the vectors of a text's tokens become one; default: the file's"
            }
        },
        "additionalProperties": false
    })
}

impl Options {
    /// The options of a context, checked.
    pub(crate) fn read(context: &OpenContext) -> Result<Self> {
        check_options(crate::ID, &schema(), &context.options)?;
        let options = &context.options;
        let number = |name: &str| {
            options.get(name).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok())
        };
        let flag = |name: &str| options.get(name).and_then(Value::as_bool);
        let word = |name: &str| options.get(name).and_then(Value::as_str);
        let n_batch = number("n_batch").unwrap_or(DEFAULT_N_BATCH);
        let read = Self {
            n_ctx: number("n_ctx"),
            n_ctx_total: number("n_ctx_total"),
            n_batch,
            n_ubatch: number("n_ubatch").unwrap_or(n_batch).min(n_batch),
            n_seq_max: number("n_seq_max"),
            threads: number("threads"),
            threads_batch: number("threads_batch"),
            kv_type: match word("kv_type") {
                Some("f32") => KvType::F32,
                Some("q8_0") => KvType::Q8_0,
                Some("q4_0") => KvType::Q4_0,
                _ => KvType::F16,
            },
            flash_attention: match word("flash_attention") {
                Some("on") => FlashAttention::On,
                Some("off") => FlashAttention::Off,
                _ => FlashAttention::Auto,
            },
            n_gpu_layers: number("n_gpu_layers"),
            devices: options.get("devices").map(names).transpose()?,
            has_mmap: flag("mmap").unwrap_or(true),
            has_mlock: flag("mlock").unwrap_or(false),
            lora: options
                .get("lora")
                .and_then(Value::as_object)
                .map(|lora| read_lora(context, lora))
                .transpose()?,
            embeddings: flag("embeddings"),
            pooling: word("pooling").map(|word| match word {
                "mean" => Pooling::Mean,
                "cls" => Pooling::Cls,
                _ => Pooling::Last,
            }),
        };
        read.check()?;
        Ok(read)
    }

    fn check(&self) -> Result<()> {
        if self.kv_type.is_quantized() && self.flash_attention == FlashAttention::Off {
            return Err(invalid(
                "option `kv_type` is quantized, which llama.cpp computes only with flash \
                 attention; leave `flash_attention` at `auto`, or take `f16`",
            ));
        }
        if self.embeddings == Some(false) && self.pooling.is_some() {
            return Err(invalid("option `pooling` says how to embed, `embeddings` says not to"));
        }
        Ok(())
    }

    /// The context length for a model made for `n_trained` positions.
    pub(crate) fn n_ctx(&self, n_trained: u32) -> Result<u32> {
        match self.n_ctx {
            Some(n_ctx) if n_ctx > n_trained => Err(invalid(format!(
                "option `n_ctx` is {n_ctx}, more than the {n_trained} positions the model is made \
                 for; leave it out or give at most that"
            ))
            .with("n_ctx", n_ctx)
            .with("context_length", n_trained)),
            Some(n_ctx) => Ok(n_ctx),
            None => Ok(n_trained.min(DEFAULT_N_CTX)),
        }
    }
}

fn read_lora(context: &OpenContext, lora: &Map<String, Value>) -> Result<Lora> {
    check_options(crate::ID, &schema()["properties"]["lora"], lora)?;
    let path = context.resolve(lora.get("path").and_then(Value::as_str).unwrap_or_default());
    let scale = lora.get("scale").and_then(Value::as_f64).unwrap_or(1.0) as f32;
    if !scale.is_finite() {
        return Err(invalid("`scale` of option `lora` is too large"));
    }
    Ok(Lora { path, scale })
}

fn names(value: &Value) -> Result<Vec<String>> {
    let names = value.as_array().into_iter().flatten();
    names
        .map(|name| match name.as_str() {
            Some(name) => Ok(name.to_owned()),
            None => Err(invalid(format!("option `devices` takes names, not {name}"))),
        })
        .collect()
}

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(options: Value) -> Result<Options> {
        let options = options.as_object().unwrap().clone();
        Options::read(&OpenContext::new().with_base_dir("/models").with_options(options))
    }

    #[test]
    fn defaults_and_values_are_read() {
        let options = read(json!({})).unwrap();
        assert_eq!((options.n_batch, options.n_ubatch), (512, 512));
        assert!(options.has_mmap && !options.has_mlock);
        assert_eq!(options.kv_type, KvType::F16);
        let options = read(json!({
            "n_batch": 64, "n_ubatch": 128, "kv_type": "q8_0", "devices": ["CUDA0"], "mmap": false,
            "lora": {"path": "a.gguf", "scale": 0.5}, "pooling": "cls", "flash_attention": "on"
        }))
        .unwrap();
        assert_eq!((options.n_batch, options.n_ubatch), (64, 64));
        assert_eq!(options.devices.unwrap(), ["CUDA0"]);
        assert_eq!(options.lora.unwrap(), Lora { path: "/models/a.gguf".into(), scale: 0.5 });
        assert_eq!(options.pooling, Some(Pooling::Cls));
        assert!(!options.has_mmap);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (options, expected) in [
            (json!({"ctx": 1}), "unknown option `ctx`"),
            (json!({"n_seq_max": 257}), "at most 256"),
            (json!({"kv_type": "q5_1"}), "takes one of"),
            (json!({"kv_type": "q4_0", "flash_attention": "off"}), "only with flash attention"),
            (json!({"lora": {"scale": 1}}), "needs the option `path`"),
            (json!({"lora": {"path": "a", "scale": 1e300}}), "too large"),
            (json!({"lora": {"path": "a", "weight": 1}}), "unknown option `weight`"),
            (json!({"devices": [1]}), "takes names, not 1"),
            (json!({"embeddings": false, "pooling": "mean"}), "says not to"),
        ] {
            let error = read(options).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains(expected), "{error}");
        }
        let options = read(json!({"n_ctx": 100})).unwrap();
        assert_eq!(options.n_ctx(100).unwrap(), 100);
        assert!(options.n_ctx(99).unwrap_err().to_string().contains("99 positions"));
        assert_eq!(read(json!({})).unwrap().n_ctx(1 << 20).unwrap(), DEFAULT_N_CTX);
    }
}

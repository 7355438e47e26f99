//! What `open` takes besides the folder.

use candle_core::DType;
use serde_json::{Value, json};
use weighbridge_core::{Error, ErrorKind, OpenContext, Result, check_options};
use weighbridge_models::decoder::DecoderConfig;

use crate::device::{Place, Target};

/// Context length without an option, if the model has as much.
const DEFAULT_N_CTX: usize = 4096;

/// Options of the provider.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    n_ctx: Option<u32>,
    place: Place,
    /// Whether candle's kernels compute, and not the plugin's own.
    is_candle: bool,
    dtype: Option<DType>,
}

/// What computes.
#[derive(Clone, Debug)]
pub(crate) enum Compute {
    /// The plugin's own kernels, on the CPU.
    Own,
    /// candle's kernels, on any device.
    Candle(Target),
}

impl Compute {
    pub(crate) fn place(&self) -> Place {
        match self {
            Self::Own => Place::Cpu,
            Self::Candle(target) => target.place,
        }
    }
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
            "device": {
                "type": "string", "default": "cpu",
                "description": "what computes: `cpu`, `cuda`, `cuda:N`, `metal`, `metal:N`; a GPU \
                                needs a build with its feature"
            },
            "kernels": {
                "enum": ["own", "candle"],
                "description": "whose products: this plugin's, for the CPU, or candle's, for every \
                                device; default: `own` on the CPU"
            },
            "dtype": {
                "enum": ["f32", "f16", "bf16"],
                "description": "type of products with weights that are not quantized; default: \
                                `f32` on the CPU, what they are stored in on a GPU"
            }
        },
        "additionalProperties": false
    })
}

impl Options {
    /// The options of a context, checked.
    pub(crate) fn read(context: &OpenContext) -> Result<Self> {
        check_options(crate::ID, &schema(), &context.options)?;
        let option = |name: &str| context.options.get(name);
        let text = |name: &str| option(name).and_then(Value::as_str);
        let place: Place = text("device").unwrap_or("cpu").parse()?;
        let is_gpu = place != Place::Cpu;
        let kernels = text("kernels");
        let dtype = match text("dtype") {
            Some("f16") => Some(DType::F16),
            Some("bf16") => Some(DType::BF16),
            Some(_) => Some(DType::F32),
            None => (!is_gpu).then_some(DType::F32),
        };
        let is_candle = is_gpu || kernels == Some("candle");
        if is_gpu && kernels == Some("own") {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "option `kernels` is `own`, and these are for the CPU only; for `{place}` leave \
                     it out or say `candle`"
                ),
            )
            .with("device", place));
        }
        if !is_candle && dtype != Some(DType::F32) {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "option `dtype` is a type of 16 bits, and the plugin's own kernels compute in \
                 `f32`; leave it out, or add `kernels = \"candle\"`",
            ));
        }
        if cfg!(feature = "accelerate") && !is_gpu && dtype == Some(DType::F16) {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "option `dtype` is `f16`, which candle does not multiply with Accelerate; leave it \
                 out, or use `bf16`",
            ));
        }
        let n_ctx = option("n_ctx").and_then(Value::as_u64).map(|n_ctx| n_ctx as u32);
        Ok(Self { n_ctx, place, is_candle, dtype })
    }

    /// What computes, with its device opened.
    pub(crate) fn compute(&self) -> Result<Compute> {
        if !self.is_candle {
            return Ok(Compute::Own);
        }
        let (place, dtype) = (self.place, self.dtype);
        Ok(Compute::Candle(Target { place, device: place.open()?, dtype, f16: DType::F16 }))
    }

    /// The context length for a model.
    pub(crate) fn n_ctx(&self, config: &DecoderConfig) -> Result<u32> {
        match self.n_ctx {
            Some(n_ctx) if n_ctx as usize > config.max_positions => Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "option `n_ctx` is {n_ctx}, more than the {} positions the model is made for; \
                     leave it out or give at most that",
                    config.max_positions
                ),
            )
            .with("n_ctx", n_ctx)
            .with("max_position_embeddings", config.max_positions)),
            Some(n_ctx) => Ok(n_ctx),
            None => Ok(config.max_positions.min(DEFAULT_N_CTX) as u32),
        }
    }
}

//! What `open` takes besides the folder.

use serde_json::{Value, json};
use weighbridge_core::{Error, ErrorKind, OpenContext, Result, check_options};
use weighbridge_models::decoder::DecoderConfig;

/// Context length without an option, if the model has as much.
const DEFAULT_N_CTX: usize = 4096;

/// Options of the provider.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    n_ctx: Option<u32>,
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
            "dtype": {
                "enum": ["f32"], "default": "f32",
                "description": "type the model is computed in; weights of other types are widened exactly"
            }
        },
        "additionalProperties": false
    })
}

impl Options {
    /// The options of a context, checked.
    pub(crate) fn read(context: &OpenContext) -> Result<Self> {
        check_options(crate::ID, &schema(), &context.options)?;
        let n_ctx = context.options.get("n_ctx").and_then(Value::as_u64);
        Ok(Self { n_ctx: n_ctx.map(|n_ctx| n_ctx as u32) })
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

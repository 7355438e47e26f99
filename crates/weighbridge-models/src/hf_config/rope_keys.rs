//! Rotary positions: `rope_parameters`, or the older `rope_theta` and `rope_scaling`.

use serde_json::{Map, Value};
use weighbridge_core::Result;

use super::Keys;
use crate::decoder::{Family, Rope, RopeScaling};
use crate::files::shown;

/// The keys and what of the rest is needed.
pub(super) struct RopeKeys<'a> {
    pub(super) keys: &'a Keys<'a>,
    pub(super) family: Family,
    pub(super) head_dim: usize,
    pub(super) max_positions: usize,
}

impl RopeKeys<'_> {
    /// Those of all layers, or of layers without and with a window.
    pub(super) fn read(&self) -> Result<(Rope, Option<Rope>)> {
        let (key, value) =
            match (self.keys.value("rope_parameters"), self.keys.value("rope_scaling")) {
                (Some(new), _) => ("rope_parameters", Some(new)),
                (None, old) => ("rope_scaling", old),
            };
        let empty = Map::new();
        let object = match value {
            None => &empty,
            Some(value) => value.as_object().ok_or_else(|| self.keys.takes(key, "an object"))?,
        };
        if self.family != Family::Gemma3 {
            return Ok((self.rope(key, object, 10_000.0)?, None));
        }
        let nested = |name: &str| object.get(name).and_then(Value::as_object);
        if let (Some(global), Some(local)) = (nested("full_attention"), nested("sliding_attention"))
        {
            let rope = self.rope(key, global, 1_000_000.0)?;
            return Ok((rope, Some(self.nested_rope(key, local, 10_000.0)?)));
        }
        let theta = self.keys.number("rope_local_base_freq", 1.0, 1e12)?.unwrap_or(10_000.0);
        let local = Rope { theta, dim: self.head_dim, scaling: RopeScaling::None };
        Ok((self.rope(key, object, 1_000_000.0)?, Some(local)))
    }

    fn rope(&self, key: &str, object: &Map<String, Value>, default: f64) -> Result<Rope> {
        let inner = Keys { path: self.keys.path, object };
        let outside = self.keys.number("rope_theta", 1.0, 1e12)?;
        let inside = inner.number("rope_theta", 1.0, 1e12)?;
        if let (Some(outside), Some(inside)) = (outside, inside)
            && outside != inside
        {
            return Err(self.keys.fault(
                "rope_theta",
                format_args!("is {outside} outside and {inside} inside of `{key}`"),
                "take config.json from the model's source",
            ));
        }
        self.nested_rope(key, object, outside.unwrap_or(default))
    }

    fn nested_rope(&self, key: &str, object: &Map<String, Value>, default: f64) -> Result<Rope> {
        let inner = Keys { path: self.keys.path, object };
        let theta = inner.number("rope_theta", 1.0, 1e12)?.unwrap_or(default);
        let factor_key = "partial_rotary_factor";
        let partial = inner.number(factor_key, 0.0, 1.0)?;
        let partial = partial.or(self.keys.number(factor_key, 0.0, 1.0)?).unwrap_or(1.0);
        let dim = (self.head_dim as f64 * partial) as usize;
        if dim == 0 || !dim.is_multiple_of(2) {
            return Err(self.keys.fault(
                factor_key,
                format_args!(
                    "is {partial}, which rotates {dim} of {} values of a head; it takes what gives \
                     an even number",
                    self.head_dim
                ),
                "take config.json from the model's source",
            ));
        }
        Ok(Rope { theta, dim, scaling: self.scaling(key, &inner, dim)? })
    }

    fn scaling(&self, key: &str, inner: &Keys<'_>, dim: usize) -> Result<RopeScaling> {
        // Older files say `type`; a Llama 3 file says `rope_type`.
        let kind = inner
            .text("rope_type")?
            .or(inner.text("type")?)
            .unwrap_or(if inner.value("factor").is_some() { "unnamed" } else { "default" });
        let original_key = "original_max_position_embeddings";
        match kind {
            "default" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear { factor: inner.needed("factor", 1.0, 1e6)? }),
            "llama3" => {
                let low_freq_factor = inner.needed("low_freq_factor", 1e-3, 1e6)?;
                let high_freq_factor = inner.needed("high_freq_factor", 1e-3, 1e6)?;
                if high_freq_factor <= low_freq_factor {
                    return Err(inner.takes(
                        "high_freq_factor",
                        format_args!("more than low_freq_factor {low_freq_factor}"),
                    ));
                }
                Ok(RopeScaling::Llama3 {
                    factor: inner.needed("factor", 1.0, 1e6)?,
                    low_freq_factor,
                    high_freq_factor,
                    original_max_positions: inner.needed(original_key, 1.0, 1e9)?,
                })
            }
            // Phi-3's first files say `su`.
            "longrope" | "su" => {
                let original = match self.keys.number(original_key, 1.0, 1e9)? {
                    Some(original) => original,
                    None => inner.needed(original_key, 1.0, 1e9)?,
                };
                let factor = self.max_positions as f64 / original;
                let attention_factor = match inner.number("attention_factor", 1e-3, 1e3)? {
                    Some(attention_factor) => attention_factor,
                    None if factor <= 1.0 => 1.0,
                    None => (1.0 + factor.ln() / original.ln()).sqrt(),
                };
                Ok(RopeScaling::LongRope {
                    short: factors(inner, "short_factor", dim / 2)?,
                    long: factors(inner, "long_factor", dim / 2)?,
                    attention_factor,
                    original_max_positions: original,
                })
            }
            "yarn" => {
                if inner.value("mscale").is_some() || inner.value("truncate").is_some() {
                    return Err(self.keys.fault(
                        key,
                        "has `mscale` or `truncate`, which no known model of this kind has",
                        "open a GGUF file of the model as `llama-cpp:PATH`",
                    ));
                }
                let factor = inner.needed("factor", 1.0, 1e6)?;
                let attention_factor = inner.number("attention_factor", 1e-3, 1e3)?;
                Ok(RopeScaling::Yarn {
                    factor,
                    beta_fast: inner.number("beta_fast", 1e-3, 1e6)?.unwrap_or(32.0),
                    beta_slow: inner.number("beta_slow", 1e-3, 1e6)?.unwrap_or(1.0),
                    attention_factor: attention_factor.unwrap_or(0.1 * factor.ln() + 1.0),
                    original_max_positions: match inner.number(original_key, 1.0, 1e9)? {
                        Some(original) => original,
                        None => self.max_positions as f64,
                    },
                })
            }
            other => Err(self.keys.fault(
                key,
                format_args!(
                    "asks for the position scaling `{}`; known are default, linear, llama3, \
                     longrope, yarn",
                    shown(other)
                ),
                "open a GGUF file of the model as `llama-cpp:PATH`",
            )),
        }
    }
}

fn factors(keys: &Keys<'_>, key: &str, n: usize) -> Result<Vec<f32>> {
    let takes = || keys.takes(key, format_args!("{n} positive numbers"));
    let values = keys.value(key).and_then(Value::as_array).ok_or_else(takes)?;
    let factors: Option<Vec<f32>> = values
        .iter()
        .map(|value| value.as_f64().map(|value| value as f32).filter(|value| *value > 0.0))
        .collect();
    factors.filter(|factors| factors.len() == n).ok_or_else(takes)
}

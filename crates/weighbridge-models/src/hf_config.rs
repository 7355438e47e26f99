//! `config.json` of a Hugging Face folder, for decoders of the Llama family.

use std::path::Path;

use serde_json::{Map, Value};
use weighbridge_core::{Error, Result};

use crate::files::{fault, parse_json, read_small, shown};

/// Name of the file.
pub const CONFIG_FILE: &str = "config.json";
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Architectures that [`HfConfig`] describes, as `architectures` names them.
pub const ARCHITECTURES: [&str; 3] = ["LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM"];

/// Which model's conventions hold: they differ in biases, sliding windows and defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Family {
    /// Llama: biases only where the configuration says so.
    Llama,
    /// Mistral: no biases; all layers may have a sliding window.
    Mistral,
    /// Qwen2: biases on query, key and value; upper layers may have a sliding window.
    Qwen2,
}

/// How rotary positions are stretched beyond the length of the first training.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Positions are divided by a factor.
    Linear {
        /// At least 1.
        factor: f64,
    },
    /// Llama 3: low frequencies are divided, high ones stay, those between are interpolated.
    Llama3 {
        /// Divisor of low frequencies.
        factor: f64,
        /// Wave lengths beyond `original_max_positions / low_freq_factor` are low frequencies.
        low_freq_factor: f64,
        /// Wave lengths below `original_max_positions / high_freq_factor` are high frequencies.
        high_freq_factor: f64,
        /// Context length of the first training.
        original_max_positions: f64,
    },
}

/// Shape and conventions of a decoder.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct HfConfig {
    /// The architecture as named in the file.
    pub architecture: String,
    /// Whose conventions hold.
    pub family: Family,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward blocks.
    pub intermediate_size: usize,
    /// Number of layers.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Added to the mean square in normalisations.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How rotary positions are stretched.
    pub rope_scaling: RopeScaling,
    /// Number of token ids.
    pub vocab_size: usize,
    /// Longest sequence the model is meant for.
    pub max_positions: usize,
    /// The output matrix is the embedding matrix.
    pub is_tied: bool,
    /// Query, key and value projections have a bias.
    pub has_qkv_bias: bool,
    /// The attention's output projection has a bias.
    pub has_o_bias: bool,
    /// The feed-forward projections have a bias.
    pub has_mlp_bias: bool,
    /// Per layer: how many positions a token sees, itself included; `None` for all.
    pub windows: Vec<Option<usize>>,
    /// Type the model was saved in, as the file says it: `float16`.
    pub dtype: Option<String>,
    /// Licence, where the file has one.
    pub license: Option<String>,
}

impl HfConfig {
    /// Reads `config.json` of a folder.
    ///
    /// # Errors
    /// [`NotFound`](weighbridge_core::ErrorKind::NotFound) without one; otherwise as
    /// [`HfConfig::parse`].
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(&read_small(path, MAX_CONFIG_BYTES)?, path)
    }

    /// Reads the text of a `config.json`; `path` is for messages only.
    ///
    /// # Errors
    /// [`ModelLoad`](weighbridge_core::ErrorKind::ModelLoad) naming the key, its value, and what it
    /// takes; for an unknown architecture naming the known ones.
    pub fn parse(json: &[u8], path: &Path) -> Result<Self> {
        let json = parse_json(json, path)?;
        let object = json
            .as_object()
            .ok_or_else(|| fault(path, "is not a JSON object", "is it the right file?"))?;
        let keys = Keys { path, object };
        let (architecture, family) = keys.architecture()?;
        if keys.value("quantization_config").is_some() {
            let method = keys.object["quantization_config"].get("quant_method");
            let method = method.and_then(Value::as_str).unwrap_or("an unnamed method");
            return Err(keys.fault(
                "quantization_config",
                format_args!("says that the weights are quantized with {}", shown(method)),
                "use the model's unquantized safetensors files",
            ));
        }
        if let Some(act) = keys.text("hidden_act")?
            && act != "silu"
        {
            return Err(keys.fault(
                "hidden_act",
                format_args!("is `{}`, only `silu` is known", shown(act)),
                "use another model, or another program behind `openai-compatible`",
            ));
        }

        let hidden_size = keys.size("hidden_size", 1 << 16)?;
        let n_heads = keys.size("num_attention_heads", 1 << 12)?;
        let n_kv_heads = match keys.value("num_key_value_heads") {
            None if family == Family::Llama => n_heads,
            _ => keys.size("num_key_value_heads", 1 << 12)?,
        };
        if !n_heads.is_multiple_of(n_kv_heads) {
            return Err(keys.fault(
                "num_key_value_heads",
                format_args!(
                    "is {n_kv_heads}, which does not divide num_attention_heads {n_heads}"
                ),
                "the file is damaged",
            ));
        }
        let head_dim = match keys.value("head_dim") {
            None if hidden_size.is_multiple_of(n_heads) => hidden_size / n_heads,
            _ => keys.size("head_dim", 1 << 10)?,
        };
        if !head_dim.is_multiple_of(2) || head_dim > 1 << 10 {
            return Err(keys.fault(
                "head_dim",
                format_args!("is {head_dim}, rotary positions need an even number of at most 1024"),
                "the file is damaged",
            ));
        }
        let n_layers = keys.size("num_hidden_layers", 512)?;
        let (rope_theta, rope_scaling) = keys.rope()?;
        let has_attention_bias = keys.flag("attention_bias")?;
        Ok(Self {
            hidden_size,
            intermediate_size: keys.size("intermediate_size", 1 << 20)?,
            n_layers,
            n_heads,
            n_kv_heads,
            head_dim,
            rms_norm_eps: keys.number("rms_norm_eps", 1e-12, 1e-1)?.ok_or_else(|| {
                keys.fault("rms_norm_eps", "is missing", "take config.json from the model's source")
            })?,
            rope_theta,
            rope_scaling,
            vocab_size: keys.size("vocab_size", 1 << 22)?,
            max_positions: keys.size("max_position_embeddings", 1 << 24)?,
            is_tied: keys.flag("tie_word_embeddings")?,
            has_qkv_bias: family == Family::Qwen2
                || (family == Family::Llama && has_attention_bias),
            has_o_bias: family == Family::Llama && has_attention_bias,
            has_mlp_bias: family == Family::Llama && keys.flag("mlp_bias")?,
            windows: keys.windows(family, n_layers)?,
            dtype: keys.text("dtype")?.or(keys.text("torch_dtype")?).map(str::to_owned),
            license: keys.text("license")?.map(shown),
            architecture,
            family,
        })
    }

    /// Every tensor of the weights with its shape, in the order of computation.
    pub fn tensors(&self) -> Vec<(String, Vec<u64>)> {
        let (hidden, inner) = (self.hidden_size as u64, self.intermediate_size as u64);
        let q = (self.n_heads * self.head_dim) as u64;
        let kv = (self.n_kv_heads * self.head_dim) as u64;
        let mut tensors =
            vec![("model.embed_tokens.weight".to_owned(), vec![self.vocab_size as u64, hidden])];
        for layer in 0..self.n_layers {
            let mut add = |name: &str, shape: &[u64]| {
                tensors.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
            };
            add("input_layernorm.weight", &[hidden]);
            for (name, n_out, n_in, has_bias) in [
                ("self_attn.q_proj", q, hidden, self.has_qkv_bias),
                ("self_attn.k_proj", kv, hidden, self.has_qkv_bias),
                ("self_attn.v_proj", kv, hidden, self.has_qkv_bias),
                ("self_attn.o_proj", hidden, q, self.has_o_bias),
                ("mlp.gate_proj", inner, hidden, self.has_mlp_bias),
                ("mlp.up_proj", inner, hidden, self.has_mlp_bias),
                ("mlp.down_proj", hidden, inner, self.has_mlp_bias),
            ] {
                add(&format!("{name}.weight"), &[n_out, n_in]);
                if has_bias {
                    add(&format!("{name}.bias"), &[n_out]);
                }
            }
            add("post_attention_layernorm.weight", &[hidden]);
        }
        tensors.push(("model.norm.weight".to_owned(), vec![hidden]));
        if !self.is_tied {
            tensors.push(("lm_head.weight".to_owned(), vec![self.vocab_size as u64, hidden]));
        }
        tensors
    }
}

/// Access to the keys with messages that name them. `null` counts as absent.
struct Keys<'a> {
    path: &'a Path,
    object: &'a Map<String, Value>,
}

impl<'a> Keys<'a> {
    fn fault(&self, key: &str, what: impl std::fmt::Display, remedy: &str) -> Error {
        fault(self.path, format_args!("has a key `{key}` that {what}"), remedy).with("key", key)
    }

    fn value(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    fn takes(&self, key: &str, takes: impl std::fmt::Display) -> Error {
        let value = self.value(key).map_or("nothing".to_owned(), |v| shown(&v.to_string()));
        fault(
            self.path,
            format_args!("has {value} as `{key}`, which takes {takes}"),
            "take config.json from the model's source",
        )
        .with("key", key)
    }

    fn size(&self, key: &str, max: usize) -> Result<usize> {
        let value = self.value(key).and_then(Value::as_u64);
        value
            .and_then(|value| usize::try_from(value).ok())
            .filter(|value| (1..=max).contains(value))
            .ok_or_else(|| self.takes(key, format_args!("an integer from 1 to {max}")))
    }

    fn number(&self, key: &str, min: f64, max: f64) -> Result<Option<f64>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let number = value.as_f64().filter(|number| (min..=max).contains(number));
        number
            .map(Some)
            .ok_or_else(|| self.takes(key, format_args!("a number from {min} to {max}")))
    }

    fn needed(&self, key: &str, min: f64, max: f64) -> Result<f64> {
        self.number(key, min, max)?
            .ok_or_else(|| self.takes(key, format_args!("a number from {min} to {max}")))
    }

    fn flag(&self, key: &str) -> Result<bool> {
        let Some(value) = self.value(key) else { return Ok(false) };
        value.as_bool().ok_or_else(|| self.takes(key, "true or false"))
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.takes(key, "a string"))
    }

    fn architecture(&self) -> Result<(String, Family)> {
        let named = match self.value("architectures").and_then(Value::as_array) {
            Some(names) => names.first().and_then(Value::as_str),
            None => None,
        };
        let model_type = self.text("model_type")?;
        let name = match (named, model_type) {
            (Some(name), _) => name,
            (None, Some("llama")) => ARCHITECTURES[0],
            (None, Some("mistral")) => ARCHITECTURES[1],
            (None, Some("qwen2")) => ARCHITECTURES[2],
            (None, Some(other)) => other,
            (None, None) => {
                return Err(fault(
                    self.path,
                    "names no architecture",
                    "take config.json from the model's source",
                ));
            }
        };
        let family = match name {
            "LlamaForCausalLM" => Family::Llama,
            "MistralForCausalLM" => Family::Mistral,
            "Qwen2ForCausalLM" => Family::Qwen2,
            other => {
                return Err(fault(
                    self.path,
                    format_args!(
                        "is for the architecture `{}`; known are {}",
                        shown(other),
                        ARCHITECTURES.join(", ")
                    ),
                    "serve the model with a program that knows it and name it \
                     `openai-compatible:URL#MODEL`",
                )
                .with("architecture", shown(other)));
            }
        };
        Ok((name.to_owned(), family))
    }

    /// Base and scaling, from `rope_parameters` or the older `rope_theta` and `rope_scaling`.
    fn rope(&self) -> Result<(f64, RopeScaling)> {
        let (key, scaling) = match (self.value("rope_parameters"), self.value("rope_scaling")) {
            (Some(new), _) => ("rope_parameters", Some(new)),
            (None, old) => ("rope_scaling", old),
        };
        let empty = Map::new();
        let object = match scaling {
            None => &empty,
            Some(value) => value.as_object().ok_or_else(|| self.takes(key, "an object"))?,
        };
        let inner = Keys { path: self.path, object };
        let theta_outside = self.number("rope_theta", 1.0, 1e12)?;
        let theta_inside = inner.number("rope_theta", 1.0, 1e12)?;
        if let (Some(outside), Some(inside)) = (theta_outside, theta_inside)
            && outside != inside
        {
            return Err(self.fault(
                "rope_theta",
                format_args!("is {outside} outside and {inside} inside of `{key}`"),
                "take config.json from the model's source",
            ));
        }
        let theta = theta_inside.or(theta_outside).unwrap_or(10_000.0);
        if let Some(partial) = inner.number("partial_rotary_factor", 0.0, 1.0)?.or(self.number(
            "partial_rotary_factor",
            0.0,
            1.0,
        )?) && partial != 1.0
        {
            return Err(self.fault(
                "partial_rotary_factor",
                format_args!("is {partial}, only 1 is known"),
                "use another model, or another program behind `openai-compatible`",
            ));
        }
        // Older files say `type`; a Llama 3 file says `rope_type`.
        let kind = inner
            .text("rope_type")?
            .or(inner.text("type")?)
            .unwrap_or(if inner.value("factor").is_some() { "unnamed" } else { "default" });
        let scaling = match kind {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: inner.needed("factor", 1.0, 1e6)? },
            "llama3" => {
                let low_freq_factor = inner.needed("low_freq_factor", 1e-3, 1e6)?;
                let high_freq_factor = inner.needed("high_freq_factor", 1e-3, 1e6)?;
                if high_freq_factor <= low_freq_factor {
                    return Err(inner.takes(
                        "high_freq_factor",
                        format_args!("more than low_freq_factor {low_freq_factor}"),
                    ));
                }
                RopeScaling::Llama3 {
                    factor: inner.needed("factor", 1.0, 1e6)?,
                    low_freq_factor,
                    high_freq_factor,
                    original_max_positions: inner.needed(
                        "original_max_position_embeddings",
                        1.0,
                        1e9,
                    )?,
                }
            }
            other => {
                return Err(self.fault(
                    key,
                    format_args!(
                        "asks for the position scaling `{}`; known are default, linear, llama3",
                        shown(other)
                    ),
                    "use another model, or another program behind `openai-compatible`",
                ));
            }
        };
        Ok((theta, scaling))
    }

    fn windows(&self, family: Family, n_layers: usize) -> Result<Vec<Option<usize>>> {
        let size = |default| match self.object.get("sliding_window") {
            None => Ok(default),
            Some(Value::Null) => Ok(None),
            Some(_) => self.size("sliding_window", 1 << 24).map(Some),
        };
        match family {
            Family::Llama => Ok(vec![None; n_layers]),
            // Without the key the model's reference implementation takes 4096.
            Family::Mistral => Ok(vec![size(Some(4096))?; n_layers]),
            Family::Qwen2 => {
                let window =
                    if self.flag("use_sliding_window")? { size(Some(4096))? } else { None };
                let Some(window) = window else { return Ok(vec![None; n_layers]) };
                if let Some(types) = self.value("layer_types") {
                    return self.layer_types(types, window, n_layers);
                }
                let n_full = match self.value("max_window_layers") {
                    None => 28,
                    Some(value) => value
                        .as_u64()
                        .ok_or_else(|| self.takes("max_window_layers", "a number of layers"))?,
                };
                Ok((0..n_layers as u64).map(|layer| (layer >= n_full).then_some(window)).collect())
            }
        }
    }

    fn layer_types(
        &self,
        types: &Value,
        window: usize,
        n_layers: usize,
    ) -> Result<Vec<Option<usize>>> {
        let takes = || {
            self.takes(
                "layer_types",
                format_args!(
                    "`full_attention` or `sliding_attention` for each of {n_layers} layers"
                ),
            )
        };
        let types = types.as_array().filter(|types| types.len() == n_layers).ok_or_else(takes)?;
        types
            .iter()
            .map(|kind| match kind.as_str() {
                Some("full_attention") => Ok(None),
                Some("sliding_attention") => Ok(Some(window)),
                _ => Err(takes()),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn base() -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 96,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "rms_norm_eps": 1e-5, "vocab_size": 200, "max_position_embeddings": 256
        })
    }

    fn parse(changes: Value) -> Result<HfConfig, String> {
        let mut json = base();
        for (key, value) in changes.as_object().unwrap() {
            json[key] = value.clone();
        }
        HfConfig::parse(json.to_string().as_bytes(), Path::new("m/config.json"))
            .map_err(|error| error.message().to_owned())
    }

    #[test]
    fn a_plain_file_gives_the_conventions_of_its_family() {
        let llama = parse(json!({})).unwrap();
        assert_eq!((llama.head_dim, llama.rope_theta, llama.is_tied), (16, 10_000.0, false));
        assert!(!llama.has_qkv_bias && llama.windows == [None, None]);
        let with_bias = parse(json!({"attention_bias": true, "mlp_bias": true})).unwrap();
        assert!(with_bias.has_qkv_bias && with_bias.has_o_bias && with_bias.has_mlp_bias);
        let qwen = parse(json!({
            "architectures": ["Qwen2ForCausalLM"], "sliding_window": 8,
            "use_sliding_window": true, "max_window_layers": 1
        }));
        let qwen = qwen.unwrap();
        assert!(qwen.has_qkv_bias && !qwen.has_o_bias);
        assert_eq!(qwen.windows, [None, Some(8)]);
        let unused = json!({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 8});
        assert_eq!(parse(unused).unwrap().windows, [None, None]);
        let mistral = parse(json!({"architectures": ["MistralForCausalLM"], "sliding_window": 8}));
        assert_eq!(mistral.unwrap().windows, [Some(8), Some(8)]);
        let whole = json!({"architectures": ["MistralForCausalLM"], "sliding_window": null});
        assert_eq!(parse(whole).unwrap().windows, [None, None]);
    }

    #[test]
    fn both_styles_of_rotary_parameters_are_read() {
        let new = json!({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}});
        assert_eq!(parse(new).unwrap().rope_theta, 5e5);
        let old = json!({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}});
        assert_eq!(parse(old).unwrap().rope_scaling, RopeScaling::Linear { factor: 2.0 });
        let llama3 = json!({"rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192
        }});
        assert!(matches!(parse(llama3).unwrap().rope_scaling, RopeScaling::Llama3 { .. }));
        let contradiction = json!({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}});
        assert!(parse(contradiction).unwrap_err().contains("10000 outside and 500000 inside"));
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        let refusals = [
            (
                json!({"architectures": ["Gemma3ForCausalLM"]}),
                "`Gemma3ForCausalLM`; known are Llama",
            ),
            (json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}), "scaling `yarn`"),
            (json!({"rope_scaling": {"factor": 4.0}}), "scaling `unnamed`"),
            (json!({"hidden_act": "gelu"}), "is `gelu`, only `silu` is known"),
            (json!({"quantization_config": {"quant_method": "gptq"}}), "quantized with gptq"),
            (json!({"partial_rotary_factor": 0.5}), "is 0.5, only 1 is known"),
            (json!({"hidden_size": -4}), "has -4 as `hidden_size`, which takes an integer from 1"),
            (json!({"num_hidden_layers": 100000}), "`num_hidden_layers`, which takes an integer"),
            (json!({"vocab_size": null}), "has nothing as `vocab_size`"),
            (json!({"num_key_value_heads": 3}), "3, which does not divide num_attention_heads 4"),
            (json!({"head_dim": 15}), "is 15, rotary positions need an even number"),
            (json!({"rms_norm_eps": null}), "`rms_norm_eps` that is missing"),
            (json!({"tie_word_embeddings": "yes"}), "takes true or false"),
        ];
        for (changes, expected) in refusals {
            let error = parse(changes.clone()).unwrap_err();
            assert!(error.contains(expected), "{changes}: {error}");
            assert!(error.contains("m/config.json"), "{error}");
        }
    }
}

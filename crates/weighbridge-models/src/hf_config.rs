//! `config.json` of a Hugging Face folder as a [`DecoderConfig`].

use std::path::Path;

use serde_json::{Map, Value};
use weighbridge_core::{Error, Result};

use crate::decoder::{Activation, DecoderConfig, Experts, Family};
use crate::files::{fault, parse_json, read_small, shown};
use rope_keys::RopeKeys;

mod rope_keys;

/// Name of the file.
pub const CONFIG_FILE: &str = "config.json";
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Reads `config.json` of a folder.
///
/// # Errors
/// [`NotFound`](weighbridge_core::ErrorKind::NotFound) without one; otherwise as [`parse`].
pub fn read(path: &Path) -> Result<DecoderConfig> {
    parse(&read_small(path, MAX_CONFIG_BYTES)?, path)
}

/// Reads the text of a `config.json`; `path` is for messages only.
///
/// # Errors
/// [`ModelLoad`](weighbridge_core::ErrorKind::ModelLoad) naming the key, its value, and what it
/// takes; for an unknown architecture naming the known ones.
pub fn parse(json: &[u8], path: &Path) -> Result<DecoderConfig> {
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
            "use the model's unquantized safetensors files, or a GGUF file of it",
        ));
    }
    if keys.flag("use_bidirectional_attention")? {
        return Err(keys.fault(
            "use_bidirectional_attention",
            "is true, which only encoders have",
            "use a model that generates text",
        ));
    }

    let hidden_size = keys.size("hidden_size", 1 << 16)?;
    let n_heads = keys.size("num_attention_heads", 1 << 12)?;
    let n_kv_heads = match keys.value("num_key_value_heads") {
        None if matches!(family, Family::Llama | Family::Olmo2 | Family::Phi3) => n_heads,
        _ => keys.size("num_key_value_heads", 1 << 12)?,
    };
    if !n_heads.is_multiple_of(n_kv_heads) {
        return Err(keys.fault(
            "num_key_value_heads",
            format_args!("is {n_kv_heads}, which does not divide num_attention_heads {n_heads}"),
            "the file is damaged",
        ));
    }
    let head_dim = match (keys.value("head_dim"), family) {
        // What the model's own configuration takes without the key.
        (None, Family::Gemma2 | Family::Gemma3) => 256,
        (None, Family::Qwen3) => 128,
        (None, _) if hidden_size.is_multiple_of(n_heads) => hidden_size / n_heads,
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
    let max_positions = keys.size("max_position_embeddings", 1 << 24)?;
    let ropes = RopeKeys { keys: &keys, family, head_dim, max_positions };
    let (rope, local_rope) = ropes.read()?;
    let has_attention_bias = keys.flag("attention_bias")?;
    let experts = keys.experts(family, n_layers)?;
    let attention_scale = match family {
        Family::Gemma2 | Family::Gemma3 => {
            keys.number("query_pre_attn_scalar", 1e-3, 1e6)?.unwrap_or(256.0).powf(-0.5)
        }
        _ => (head_dim as f64).powf(-0.5),
    };
    let cap = |key, default| match keys.object.get(key) {
        None if family == Family::Gemma2 => Ok(Some(default)),
        _ if family.is_gemma() => keys.number(key, 1e-3, 1e6),
        _ => Ok(None),
    };
    let intermediate_size = match (&experts, keys.value("intermediate_size")) {
        (Some(experts), None) => experts.intermediate_size,
        _ => keys.size("intermediate_size", 1 << 20)?,
    };
    Ok(DecoderConfig {
        hidden_size,
        intermediate_size,
        n_layers,
        n_heads,
        n_kv_heads,
        head_dim,
        rms_norm_eps: keys.number("rms_norm_eps", 1e-12, 1e-1)?.ok_or_else(|| {
            keys.fault("rms_norm_eps", "is missing", "take config.json from the model's source")
        })?,
        is_norm_offset: family.is_gemma(),
        rope,
        local_rope,
        vocab_size: keys.size("vocab_size", 1 << 22)?,
        max_positions,
        is_tied: match keys.value("tie_word_embeddings") {
            None => family.is_gemma(),
            Some(_) => keys.flag("tie_word_embeddings")?,
        },
        embedding_scale: if family.is_gemma() { (hidden_size as f64).sqrt() } else { 1.0 },
        has_qkv_bias: match family {
            Family::Qwen2 => true,
            Family::Qwen2Moe => keys.value("qkv_bias").is_none() || keys.flag("qkv_bias")?,
            Family::Mistral | Family::Mixtral | Family::Phi3 => false,
            _ => has_attention_bias,
        },
        has_o_bias: has_attention_bias
            && !matches!(
                family,
                Family::Mistral | Family::Mixtral | Family::Phi3 | Family::Qwen2 | Family::Qwen2Moe
            ),
        has_mlp_bias: family == Family::Llama && keys.flag("mlp_bias")?,
        activation: keys.activation(family)?,
        attention_scale,
        attention_cap: cap("attn_logit_softcapping", 50.0)?,
        logit_cap: cap("final_logit_softcapping", 30.0)?,
        experts,
        windows: keys.windows(family, n_layers)?,
        dtype: keys.text("dtype")?.or(keys.text("torch_dtype")?).map(str::to_owned),
        license: keys.text("license")?.map(shown),
        architecture,
        family,
    })
}

/// Access to the keys with messages that name them. `null` counts as absent.
#[derive(Clone, Copy)]
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
        let Some(name) = named.or(model_type) else {
            return Err(fault(
                self.path,
                "names no architecture",
                "take config.json from the model's source",
            ));
        };
        let known = Family::ALL
            .iter()
            .find(|(_, architecture, kind, _)| name == *architecture || name == *kind);
        let Some((family, architecture, ..)) = known else {
            let known: Vec<&str> = Family::ALL.iter().map(|(_, name, ..)| *name).collect();
            return Err(fault(
                self.path,
                format_args!(
                    "is for the architecture `{}`; known are {}",
                    shown(name),
                    known.join(", ")
                ),
                "open a GGUF file of the model as `llama-cpp:PATH`, or serve the model with a \
                 program that knows it and name it `openai-compatible:URL#MODEL`",
            )
            .with("architecture", shown(name)));
        };
        Ok(((*architecture).to_owned(), *family))
    }

    fn activation(&self, family: Family) -> Result<Activation> {
        let (key, default) = match family {
            Family::Gemma2 | Family::Gemma3 => {
                let key = match self.value("hidden_activation") {
                    Some(_) => "hidden_activation",
                    None => "hidden_act",
                };
                (key, "gelu_pytorch_tanh")
            }
            _ => ("hidden_act", "silu"),
        };
        match self.text(key)?.unwrap_or(default) {
            "silu" | "swish" => Ok(Activation::Silu),
            "gelu_pytorch_tanh" | "gelu_new" => Ok(Activation::GeluTanh),
            act => Err(self.fault(
                key,
                format_args!("is `{}`; known are `silu` and `gelu_pytorch_tanh`", shown(act)),
                "open a GGUF file of the model as `llama-cpp:PATH`",
            )),
        }
    }

    fn experts(&self, family: Family, n_layers: usize) -> Result<Option<Experts>> {
        if !family.has_experts() {
            return Ok(None);
        }
        let is_mixtral = family == Family::Mixtral;
        // Both names are written for Qwen3-MoE, depending on the version.
        let is_local = is_mixtral || self.value("num_experts").is_none();
        let n_key = if is_local { "num_local_experts" } else { "num_experts" };
        let n_experts = self.size(n_key, 1 << 12)?;
        let n_used = self.size("num_experts_per_tok", n_experts)?;
        let width_key = if is_mixtral { "intermediate_size" } else { "moe_intermediate_size" };
        let step = match self.value("decoder_sparse_step") {
            None => 1,
            Some(_) => self.size("decoder_sparse_step", 512)?,
        };
        let mut layers: Vec<bool> =
            (1..=n_layers).map(|layer| is_mixtral || layer.is_multiple_of(step)).collect();
        if let Some(dense) = self.value("mlp_only_layers") {
            let takes = || self.takes("mlp_only_layers", "a list of layers");
            for layer in dense.as_array().ok_or_else(takes)? {
                let layer = layer.as_u64().ok_or_else(takes)? as usize;
                *layers.get_mut(layer).ok_or_else(takes)? = false;
            }
        }
        Ok(Some(Experts {
            n_experts,
            n_used,
            intermediate_size: self.size(width_key, 1 << 20)?,
            is_normalized: is_mixtral || self.flag("norm_topk_prob")?,
            shared_intermediate_size: match family {
                Family::Qwen2Moe => Some(self.size("shared_expert_intermediate_size", 1 << 20)?),
                _ => None,
            },
            layers,
        }))
    }

    fn windows(&self, family: Family, n_layers: usize) -> Result<Vec<Option<usize>>> {
        let size = |default| match self.object.get("sliding_window") {
            None => Ok(default),
            Some(Value::Null) => Ok(None),
            Some(_) => self.size("sliding_window", 1 << 24).map(Some),
        };
        match family {
            Family::Llama | Family::Olmo2 => Ok(vec![None; n_layers]),
            // Without the key the model's reference implementation takes 4096.
            Family::Mistral => Ok(vec![size(Some(4096))?; n_layers]),
            Family::Mixtral | Family::Phi3 => Ok(vec![size(None)?; n_layers]),
            Family::Gemma2 | Family::Gemma3 => {
                let Some(window) = size(Some(4096))? else { return Ok(vec![None; n_layers]) };
                if let Some(types) = self.value("layer_types") {
                    return self.layer_types(types, window, n_layers);
                }
                // Every n-th layer sees everything.
                let pattern = match self.value("sliding_window_pattern") {
                    None if family == Family::Gemma2 => 2,
                    None => 6,
                    Some(_) => self.size("sliding_window_pattern", 512)?,
                };
                Ok((1..=n_layers)
                    .map(|layer| (!layer.is_multiple_of(pattern)).then_some(window))
                    .collect())
            }
            Family::Qwen2 | Family::Qwen2Moe | Family::Qwen3 | Family::Qwen3Moe => {
                let window =
                    if self.flag("use_sliding_window")? { size(Some(4096))? } else { None };
                let Some(window) = window else { return Ok(vec![None; n_layers]) };
                if family == Family::Qwen3Moe {
                    return Ok(vec![Some(window); n_layers]);
                }
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

    use crate::decoder::RopeScaling;

    fn base() -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 96,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "rms_norm_eps": 1e-5, "vocab_size": 200, "max_position_embeddings": 256
        })
    }

    fn parsed(changes: Value) -> Result<DecoderConfig, String> {
        let mut json = base();
        for (key, value) in changes.as_object().unwrap() {
            json[key] = value.clone();
        }
        parse(json.to_string().as_bytes(), Path::new("m/config.json"))
            .map_err(|error| error.message().to_owned())
    }

    #[test]
    fn a_plain_file_gives_the_conventions_of_its_family() {
        let llama = parsed(json!({})).unwrap();
        assert_eq!((llama.head_dim, llama.rope.theta, llama.is_tied), (16, 10_000.0, false));
        assert!(!llama.has_qkv_bias && llama.windows == [None, None]);
        let with_bias = parsed(json!({"attention_bias": true, "mlp_bias": true})).unwrap();
        assert!(with_bias.has_qkv_bias && with_bias.has_o_bias && with_bias.has_mlp_bias);
        let qwen = parsed(json!({
            "architectures": ["Qwen2ForCausalLM"], "sliding_window": 8,
            "use_sliding_window": true, "max_window_layers": 1
        }));
        let qwen = qwen.unwrap();
        assert!(qwen.has_qkv_bias && !qwen.has_o_bias);
        assert_eq!(qwen.windows, [None, Some(8)]);
        let unused = json!({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 8});
        assert_eq!(parsed(unused).unwrap().windows, [None, None]);
        let mistral = parsed(json!({"architectures": ["MistralForCausalLM"], "sliding_window": 8}));
        assert_eq!(mistral.unwrap().windows, [Some(8), Some(8)]);
        let whole = json!({"architectures": ["MistralForCausalLM"], "sliding_window": null});
        assert_eq!(parsed(whole).unwrap().windows, [None, None]);
    }

    #[test]
    fn both_styles_of_rotary_parameters_are_read() {
        let new = json!({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}});
        assert_eq!(parsed(new).unwrap().rope.theta, 5e5);
        let old = json!({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}});
        assert_eq!(parsed(old).unwrap().rope.scaling, RopeScaling::Linear { factor: 2.0 });
        let llama3 = json!({"rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192
        }});
        assert!(matches!(parsed(llama3).unwrap().rope.scaling, RopeScaling::Llama3 { .. }));
        let contradiction = json!({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}});
        assert!(parsed(contradiction).unwrap_err().contains("10000 outside and 500000 inside"));
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        let refusals = [
            (
                json!({"architectures": ["GptOssForCausalLM"]}),
                "`GptOssForCausalLM`; known are Llama",
            ),
            (json!({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}), "scaling `dynamic`"),
            (json!({"rope_scaling": {"factor": 4.0}}), "scaling `unnamed`"),
            (json!({"hidden_act": "gelu"}), "is `gelu`; known are `silu`"),
            (json!({"quantization_config": {"quant_method": "gptq"}}), "quantized with gptq"),
            (json!({"partial_rotary_factor": 0.05}), "is 0.05, which rotates 0 of 16"),
            (json!({"hidden_size": -4}), "has -4 as `hidden_size`, which takes an integer from 1"),
            (json!({"num_hidden_layers": 100000}), "`num_hidden_layers`, which takes an integer"),
            (json!({"vocab_size": null}), "has nothing as `vocab_size`"),
            (json!({"num_key_value_heads": 3}), "3, which does not divide num_attention_heads 4"),
            (json!({"head_dim": 15}), "is 15, rotary positions need an even number"),
            (json!({"rms_norm_eps": null}), "`rms_norm_eps` that is missing"),
            (json!({"tie_word_embeddings": "yes"}), "takes true or false"),
        ];
        for (changes, expected) in refusals {
            let error = parsed(changes.clone()).unwrap_err();
            assert!(error.contains(expected), "{changes}: {error}");
            assert!(error.contains("m/config.json"), "{error}");
        }
    }
}

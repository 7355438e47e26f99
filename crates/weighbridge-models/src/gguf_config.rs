//! The metadata of a GGUF file as a [`DecoderConfig`].
//!
//! Keys and defaults are those of llama.cpp 0.5.0 (`src/llama-model.cpp` and `src/models/*.cpp`).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use weighbridge_core::{Error, Result};

use crate::decoder::{Activation, DecoderConfig, Experts, Family, Naming, Rope, RopeScaling};
use crate::files::{fault, shown};
use crate::gguf::{GgmlType, Gguf};

/// Tables of rotary positions, which are a part of the configuration.
const ROPE_TABLES: [&str; 3] =
    ["rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"];
const LLAMA_CPP: &str = "open it as `llama-cpp:PATH`";

/// Reads shape and conventions, and checks that the file has every tensor of them in its shape, and
/// no other. Reads the tables of rotary positions, no other tensor.
///
/// # Errors
/// [`ModelLoad`](weighbridge_core::ErrorKind::ModelLoad) naming the key or tensor; for an
/// architecture that no [`Family`] has, naming the known ones.
pub fn read(gguf: &mut Gguf) -> Result<DecoderConfig> {
    let path: PathBuf = gguf.files().next().unwrap_or(Path::new("")).to_owned();
    let family = Keys { gguf, path: &path }.family()?;
    let tables = Tables::read(gguf)?;
    let config = Keys { gguf, path: &path }.config(family, tables)?;
    check_tensors(&config, gguf, &path)?;
    Ok(config)
}

/// Divisors of frequencies.
#[derive(Default)]
struct Tables {
    freqs: Option<Vec<f32>>,
    short: Option<Vec<f32>>,
    long: Option<Vec<f32>>,
}

impl Tables {
    fn read(gguf: &mut Gguf) -> Result<Self> {
        let [freqs, short, long] = ROPE_TABLES;
        Ok(Self {
            freqs: table(gguf, freqs)?,
            short: table(gguf, short)?,
            long: table(gguf, long)?,
        })
    }
}

fn table(gguf: &mut Gguf, name: &str) -> Result<Option<Vec<f32>>> {
    if gguf.tensor(name).is_none_or(|tensor| tensor.dtype != GgmlType::F32) {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    gguf.read(name, &mut bytes)?;
    Ok(Some(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()))
}

/// Access to the hyperparameters with messages that name them.
struct Keys<'a> {
    gguf: &'a Gguf,
    path: &'a Path,
}

impl Keys<'_> {
    fn family(&self) -> Result<Family> {
        let arch = self.gguf.arch();
        let known = Family::ALL.iter().find(|(.., name)| *name == arch);
        match known {
            Some((Family::Llama, ..)) if self.size_or("expert_count", 0)? > 0 => {
                Ok(Family::Mixtral)
            }
            Some((family, ..)) => Ok(*family),
            None => {
                let mut known: Vec<&str> = Family::ALL.iter().map(|(.., name)| *name).collect();
                known.dedup();
                Err(fault(
                    self.path,
                    format_args!(
                        "is of the architecture `{}`; candle knows {}",
                        shown(arch),
                        known.join(", ")
                    ),
                    LLAMA_CPP,
                )
                .with("architecture", shown(arch)))
            }
        }
    }

    fn takes(&self, key: &str, takes: &str) -> Error {
        let key = self.gguf.arch_key(key);
        fault(self.path, format_args!("has no `{key}` that is {takes}"), LLAMA_CPP)
            .with("key", &key)
    }

    fn has(&self, key: &str) -> bool {
        self.gguf.contains(&self.gguf.arch_key(key))
    }

    fn size(&self, key: &str) -> Result<usize> {
        let value = self.gguf.u64(&self.gguf.arch_key(key));
        value
            .filter(|value| *value < 1 << 31)
            .map(|value| value as usize)
            .ok_or_else(|| self.takes(key, "one integer below 2^31"))
    }

    fn size_or(&self, key: &str, default: usize) -> Result<usize> {
        if self.has(key) { self.size(key) } else { Ok(default) }
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        if !self.has(key) {
            return Ok(None);
        }
        let value = self.gguf.f64(&self.gguf.arch_key(key));
        let value = value.filter(|value| value.is_finite() && *value >= 0.0);
        value.map(Some).ok_or_else(|| self.takes(key, "a number of at least 0"))
    }

    fn n_heads(&self) -> Result<usize> {
        let n_heads = self.size("attention.head_count")?;
        if n_heads == 0 { Err(self.takes("attention.head_count", "positive")) } else { Ok(n_heads) }
    }

    fn head_dim(&self) -> Result<usize> {
        let head_dim = match self.has("attention.key_length") {
            true => self.size("attention.key_length")?,
            false => self.size("embedding_length")? / self.n_heads()?,
        };
        let value_dim = self.size_or("attention.value_length", head_dim)?;
        if value_dim != head_dim || head_dim == 0 || !head_dim.is_multiple_of(2) || head_dim > 1024
        {
            return Err(
                self.takes("attention.key_length", "that of the values, even, and at most 1024")
            );
        }
        Ok(head_dim)
    }

    fn config(&self, family: Family, tables: Tables) -> Result<DecoderConfig> {
        let (gguf, head_dim) = (self.gguf, self.head_dim()?);
        let (n_heads, n_layers) = (self.n_heads()?, self.size("block_count")?);
        let n_kv_heads = self.size_or("attention.head_count_kv", n_heads)?;
        if n_kv_heads == 0 || !n_heads.is_multiple_of(n_kv_heads) {
            return Err(self.takes("attention.head_count_kv", "a divisor of attention.head_count"));
        }
        let hidden_size = self.size("embedding_length")?;
        let vocab = gguf.tensor("token_embd.weight").and_then(|tensor| tensor.dims.get(1));
        let Some(vocab_size) = vocab.map(|n| *n as usize) else {
            return Err(fault(self.path, "has no matrix token_embd.weight", LLAMA_CPP));
        };
        let has = |name: &str| gguf.tensor(name).is_some();
        let cap = |key| Ok::<_, Error>(self.number(key)?.filter(|cap| *cap > 0.0));
        let is_large_gemma = match family {
            Family::Gemma2 => n_layers == 46,
            Family::Gemma3 => n_layers == 62,
            _ => false,
        };
        let attention_dim = if is_large_gemma { hidden_size / n_heads } else { head_dim };
        let experts = self.experts(family, n_layers)?;
        let eps = self.number("attention.layer_norm_rms_epsilon")?;
        let max_positions = self.size("context_length")?;
        let rope = self.rope(family, head_dim, max_positions, tables)?;
        let local_theta = self.number("rope.freq_base_swa")?;
        Ok(DecoderConfig {
            architecture: gguf.arch().to_owned(),
            family,
            hidden_size,
            intermediate_size: self.size("feed_forward_length")?,
            n_layers,
            n_heads,
            n_kv_heads,
            head_dim,
            rms_norm_eps: eps.ok_or_else(|| {
                self.takes("attention.layer_norm_rms_epsilon", "a number of at least 0")
            })?,
            // The conversion adds the 1.
            is_norm_offset: false,
            local_rope: (family == Family::Gemma3).then(|| Rope {
                theta: local_theta.unwrap_or(10_000.0),
                dim: rope.dim,
                scaling: RopeScaling::None,
            }),
            rope,
            vocab_size,
            max_positions,
            is_tied: !has("output.weight"),
            embedding_scale: if family.is_gemma() { (hidden_size as f64).sqrt() } else { 1.0 },
            has_qkv_bias: has("blk.0.attn_q.bias") || has("blk.0.attn_qkv.bias"),
            has_o_bias: has("blk.0.attn_output.bias"),
            has_mlp_bias: has("blk.0.ffn_up.bias"),
            activation: match family.is_gemma() {
                true => Activation::GeluTanh,
                false => Activation::Silu,
            },
            attention_scale: (attention_dim as f64).powf(-0.5),
            attention_cap: match family {
                Family::Gemma2 if !self.has("attn_logit_softcapping") => Some(50.0),
                Family::Gemma2 => cap("attn_logit_softcapping")?,
                _ => None,
            },
            logit_cap: match family {
                Family::Gemma2 if !self.has("final_logit_softcapping") => Some(30.0),
                Family::Gemma2 | Family::Gemma3 => cap("final_logit_softcapping")?,
                _ => None,
            },
            experts,
            windows: self.windows(family, n_layers)?,
            dtype: None,
            license: gguf.license().map(shown),
        })
    }

    fn experts(&self, family: Family, n_layers: usize) -> Result<Option<Experts>> {
        if !family.has_experts() {
            return Ok(None);
        }
        let n_experts = self.size("expert_count")?;
        let n_used = self.size("expert_used_count")?;
        if n_used == 0 || n_used > n_experts {
            return Err(self.takes("expert_used_count", "from 1 to expert_count"));
        }
        let inner = |key, tensor: &str, dim: usize| {
            if self.has(key) {
                return self.size(key);
            }
            let tensor = (0..n_layers).find_map(|layer_idx| {
                self.gguf.tensor(&format!("blk.{layer_idx}.{tensor}.weight"))
            });
            let width = tensor.and_then(|tensor| tensor.dims.get(dim));
            width.map(|n| *n as usize).ok_or_else(|| self.takes(key, "one integer below 2^31"))
        };
        Ok(Some(Experts {
            n_experts,
            n_used,
            intermediate_size: inner("expert_feed_forward_length", "ffn_gate_exps", 1)?,
            is_normalized: family != Family::Qwen2Moe,
            shared_intermediate_size: match family {
                Family::Qwen2Moe => {
                    Some(inner("expert_shared_feed_forward_length", "ffn_gate_shexp", 1)?)
                }
                _ => None,
            },
            layers: vec![true; n_layers],
        }))
    }

    fn rope(
        &self,
        family: Family,
        head_dim: usize,
        max_positions: usize,
        tables: Tables,
    ) -> Result<Rope> {
        let dim = self.size_or("rope.dimension_count", head_dim)?;
        if dim == 0 || !dim.is_multiple_of(2) || dim > head_dim {
            return Err(self.takes("rope.dimension_count", "even and at most the width of a head"));
        }
        if matches!(family, Family::Llama | Family::Mixtral) && dim != head_dim {
            return Err(self.takes("rope.dimension_count", "the width of a head"));
        }
        let theta = self.number("rope.freq_base")?.unwrap_or(10_000.0);
        let original = self.number("rope.scaling.original_context_length")?;
        let original_max_positions = original.unwrap_or(max_positions as f64);
        let attention_factor = self.number("rope.scaling.attn_factor")?.unwrap_or(1.0);
        let factor = self.number("rope.scaling.factor")?.or(self.number("rope.scale_linear")?);
        let factor = factor.filter(|factor| *factor > 0.0).unwrap_or(1.0);
        if self.has("rope.scaling.yarn_log_multiplier") {
            return Err(self.takes("rope.scaling.yarn_log_multiplier", "left out"));
        }
        let kind = self.gguf.str(&self.gguf.arch_key("rope.scaling.type")).unwrap_or("linear");
        let is_long = tables.long.is_some() || tables.short.is_some();
        let scaling = match (kind, tables) {
            (_, Tables { freqs: Some(factors), .. }) if factor == 1.0 => {
                RopeScaling::Factors { factors: self.factors(factors, dim)? }
            }
            (_, Tables { short: Some(short), long: Some(long), .. }) => RopeScaling::LongRope {
                short: self.factors(short, dim)?,
                long: self.factors(long, dim)?,
                attention_factor,
                original_max_positions,
            },
            ("linear", _) if !is_long && factor != 1.0 => RopeScaling::Linear { factor },
            ("linear" | "none", _) if !is_long => RopeScaling::None,
            ("yarn", _) if !is_long => RopeScaling::Yarn {
                factor,
                beta_fast: self.number("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                beta_slow: self.number("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
                attention_factor: attention_factor * (0.1 * factor.ln() + 1.0),
                original_max_positions,
            },
            _ => return Err(self.takes("rope.scaling.type", "none, linear or yarn")),
        };
        Ok(Rope { theta, dim, scaling })
    }

    fn factors(&self, factors: Vec<f32>, dim: usize) -> Result<Vec<f32>> {
        if factors.len() != dim / 2 || factors.iter().any(|factor| *factor <= 0.0) {
            return Err(fault(
                self.path,
                format_args!("has a table of rotary positions without {} divisors", dim / 2),
                LLAMA_CPP,
            ));
        }
        Ok(factors)
    }

    fn windows(&self, family: Family, n_layers: usize) -> Result<Vec<Option<usize>>> {
        let key = "attention.sliding_window";
        let default = if family == Family::Gemma2 { 4096 } else { 0 };
        let window = self.size_or(key, default)?;
        if window == 0 {
            return Ok(vec![None; n_layers]);
        }
        let pattern = match family {
            Family::Gemma2 => 2,
            Family::Gemma3 => 6,
            Family::Phi3 => return Ok(vec![Some(window); n_layers]),
            // OLMo 3 says `olmo2` as well, and rotates layers with a window otherwise.
            _ => return Err(self.takes(key, "left out or 0")),
        };
        let key = self.gguf.arch_key("attention.sliding_window_pattern");
        if let Some(layers) = self.gguf.bools(&key).filter(|layers| layers.len() == n_layers) {
            return Ok(layers.into_iter().map(|is_local| is_local.then_some(window)).collect());
        }
        let pattern = self.gguf.u64(&key).map_or(pattern, |pattern| pattern.max(1) as usize);
        Ok((1..=n_layers).map(|i| (!i.is_multiple_of(pattern)).then_some(window)).collect())
    }
}

/// Every tensor of the configuration is there in its shape, and no other that would be ignored.
fn check_tensors(config: &DecoderConfig, gguf: &Gguf, path: &Path) -> Result<()> {
    let expected = config.tensors(Naming::Gguf);
    // A matrix of one row may be stored as a vector.
    let squeezed =
        |shape: &[u64]| -> Vec<u64> { shape.iter().copied().skip_while(|n| *n == 1).collect() };
    for (name, shape) in &expected {
        let Some(tensor) = gguf.tensor(name) else {
            return Err(fault(
                path,
                format_args!("has no tensor {name}, which its metadata imply"),
                LLAMA_CPP,
            )
            .with("tensor", name));
        };
        let stored: Vec<u64> = tensor.dims.iter().rev().copied().collect();
        if squeezed(&stored) != squeezed(shape) {
            return Err(fault(
                path,
                format_args!("has tensor {name} of shape {stored:?}, its metadata imply {shape:?}"),
                "download it again",
            )
            .with("tensor", name));
        }
    }
    let expected: BTreeSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
    let left_over = gguf.tensors().find(|tensor| {
        !expected.contains(tensor.name.as_str()) && !ROPE_TABLES.contains(&tensor.name.as_str())
    });
    match left_over {
        None => Ok(()),
        Some(tensor) => Err(fault(
            path,
            format_args!(
                "has a tensor `{}` that the architecture `{}` as candle knows it does not use",
                shown(&tensor.name),
                config.architecture
            ),
            LLAMA_CPP,
        )
        .with("tensor", shown(&tensor.name))),
    }
}

//! What a decoder of the Llama kind is made of, whichever file says so.

/// Which model's conventions hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Family {
    /// Llama 1 to 3.
    Llama,
    /// Mistral.
    Mistral,
    /// Mixtral: Mistral with experts.
    Mixtral,
    /// Qwen2 and Qwen2.5.
    Qwen2,
    /// Qwen2-MoE: Qwen2 with experts, one of them shared.
    Qwen2Moe,
    /// Qwen3.
    Qwen3,
    /// Qwen3-MoE: Qwen3 with experts.
    Qwen3Moe,
    /// Gemma 2.
    Gemma2,
    /// Gemma 3, text only.
    Gemma3,
    /// Phi-3 and Phi-4 of the same shape.
    Phi3,
    /// OLMo 2.
    Olmo2,
}

impl Family {
    /// All families, each with its name in `architectures` of a `config.json`, its `model_type`
    /// there, and its `general.architecture` in a GGUF file.
    ///
    /// A GGUF file says `llama` for Mistral and Mixtral as well: the first of a name is meant.
    pub const ALL: [(Self, &str, &str, &str); 11] = [
        (Self::Llama, "LlamaForCausalLM", "llama", "llama"),
        (Self::Mistral, "MistralForCausalLM", "mistral", "llama"),
        (Self::Mixtral, "MixtralForCausalLM", "mixtral", "llama"),
        (Self::Qwen2, "Qwen2ForCausalLM", "qwen2", "qwen2"),
        (Self::Qwen2Moe, "Qwen2MoeForCausalLM", "qwen2_moe", "qwen2moe"),
        (Self::Qwen3, "Qwen3ForCausalLM", "qwen3", "qwen3"),
        (Self::Qwen3Moe, "Qwen3MoeForCausalLM", "qwen3_moe", "qwen3moe"),
        (Self::Gemma2, "Gemma2ForCausalLM", "gemma2", "gemma2"),
        (Self::Gemma3, "Gemma3ForCausalLM", "gemma3_text", "gemma3"),
        (Self::Phi3, "Phi3ForCausalLM", "phi3", "phi3"),
        (Self::Olmo2, "Olmo2ForCausalLM", "olmo2", "olmo2"),
    ];

    /// Whether it is one of Gemma's.
    pub fn is_gemma(self) -> bool {
        matches!(self, Self::Gemma2 | Self::Gemma3)
    }

    /// Whether it has experts.
    pub fn has_experts(self) -> bool {
        matches!(self, Self::Mixtral | Self::Qwen2Moe | Self::Qwen3Moe)
    }

    /// Where its layers normalise.
    pub fn norms(self) -> Norms {
        match self {
            Self::Gemma2 | Self::Gemma3 => Norms::Both,
            Self::Olmo2 => Norms::After,
            _ => Norms::Before,
        }
    }

    /// What of queries and keys it normalises.
    pub fn qk_norm(self) -> QkNorm {
        match self {
            Self::Qwen3 | Self::Qwen3Moe | Self::Gemma3 => QkNorm::Heads,
            Self::Olmo2 => QkNorm::Projection,
            _ => QkNorm::None,
        }
    }
}

/// Where attention and feed-forward are normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norms {
    /// Their input.
    Before,
    /// Their output.
    After,
    /// Both.
    Both,
}

/// What of queries and keys is normalised before rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// Nothing.
    None,
    /// Each head by itself, all with the same weights.
    Heads,
    /// All heads together.
    Projection,
}

/// The nonlinearity of the feed-forward blocks, which multiplies the other half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + e^-x)`.
    Silu,
    /// GELU in its approximation by tanh.
    GeluTanh,
}

/// Rotary positions of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// How many values of a head are rotated, from the first on; even.
    pub dim: usize,
    /// How positions are stretched.
    pub scaling: RopeScaling,
}

/// How rotary positions are stretched beyond the length of the first training.
#[derive(Clone, Debug, PartialEq)]
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
    /// A divisor for each frequency.
    Factors {
        /// Shape `(dim / 2,)`.
        factors: Vec<f32>,
    },
    /// LongRoPE (Ding et al. 2024): divisors for each frequency, others for long contexts.
    LongRope {
        /// For contexts of at most `original_max_positions`; shape `(dim / 2,)`.
        short: Vec<f32>,
        /// For longer ones; shape `(dim / 2,)`.
        long: Vec<f32>,
        /// Cosines and sines are multiplied with it.
        attention_factor: f64,
        /// Context length of the first training.
        original_max_positions: f64,
    },
    /// YaRN (Peng et al. 2023): low frequencies are divided, high ones stay, with a ramp between.
    Yarn {
        /// Divisor of low frequencies.
        factor: f64,
        /// Rotations within the original context from which on a frequency is high.
        beta_fast: f64,
        /// Rotations within the original context up to which a frequency is low.
        beta_slow: f64,
        /// Cosines and sines are multiplied with it.
        attention_factor: f64,
        /// Context length of the first training.
        original_max_positions: f64,
    },
}

/// Experts of the layers that have them.
#[derive(Clone, Debug, PartialEq)]
pub struct Experts {
    /// Number of experts.
    pub n_experts: usize,
    /// How many of them each token uses.
    pub n_used: usize,
    /// Width inside each.
    pub intermediate_size: usize,
    /// The weights of the used ones are divided by their sum.
    pub is_normalized: bool,
    /// Width inside the expert that all tokens use, which a gate of its own weighs.
    pub shared_intermediate_size: Option<usize>,
    /// Per layer: whether it has experts instead of one feed-forward block.
    pub layers: Vec<bool>,
}

/// Shape and conventions of a decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
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
    /// Stored weights of normalisations lack the 1 that they are multiplied as.
    pub is_norm_offset: bool,
    /// Rotary positions.
    pub rope: Rope,
    /// Rotary positions of layers with a window, where they differ.
    pub local_rope: Option<Rope>,
    /// Number of token ids.
    pub vocab_size: usize,
    /// Longest sequence the model is meant for.
    pub max_positions: usize,
    /// The output matrix is the embedding matrix.
    pub is_tied: bool,
    /// Embeddings are multiplied with it.
    pub embedding_scale: f64,
    /// Query, key and value projections have a bias.
    pub has_qkv_bias: bool,
    /// The attention's output projection has a bias.
    pub has_o_bias: bool,
    /// The feed-forward projections have a bias.
    pub has_mlp_bias: bool,
    /// Nonlinearity of the feed-forward blocks.
    pub activation: Activation,
    /// Scores are multiplied with it.
    pub attention_scale: f64,
    /// Scores become `cap · tanh(score / cap)`.
    pub attention_cap: Option<f64>,
    /// Logits become `cap · tanh(logit / cap)`.
    pub logit_cap: Option<f64>,
    /// Experts, where there are any.
    pub experts: Option<Experts>,
    /// Per layer: how many positions a token sees, itself included; `None` for all.
    pub windows: Vec<Option<usize>>,
    /// Type the model was saved in, as the file says it: `float16`.
    pub dtype: Option<String>,
    /// Licence, where the file has one.
    pub license: Option<String>,
}

/// A tensor's part in a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Part {
    AttentionNorm,
    Query,
    Key,
    Value,
    /// Query, key and value in one matrix.
    QueryKeyValue,
    QueryNorm,
    KeyNorm,
    Output,
    AttentionPostNorm,
    MlpNorm,
    Gate,
    Up,
    /// Gate and up in one matrix.
    GateUp,
    Down,
    Router,
    /// Those of all experts.
    ExpertGate,
    ExpertUp,
    ExpertDown,
    SharedRouter,
    SharedGate,
    SharedUp,
    SharedDown,
    MlpPostNorm,
}

/// Whose names tensors have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// `model.layers.0.self_attn.q_proj.weight`, one tensor for each expert.
    HuggingFace,
    /// `blk.0.attn_q.weight`, one tensor for all experts.
    Gguf,
}

impl DecoderConfig {
    /// Whether query, key and value, and gate and up, are one matrix each.
    pub fn is_fused(&self) -> bool {
        self.family == Family::Phi3
    }

    /// Whether a layer has experts.
    pub fn has_experts(&self, layer_idx: usize) -> bool {
        self.experts.as_ref().is_some_and(|experts| experts.layers[layer_idx])
    }

    /// Name of the embedding matrix.
    pub fn embedding_name(naming: Naming) -> &'static str {
        match naming {
            Naming::HuggingFace => "model.embed_tokens",
            Naming::Gguf => "token_embd",
        }
    }

    /// Name of the last normalisation.
    pub fn norm_name(naming: Naming) -> &'static str {
        match naming {
            Naming::HuggingFace => "model.norm",
            Naming::Gguf => "output_norm",
        }
    }

    /// Name of the output matrix if it is not tied.
    pub fn head_name(naming: Naming) -> &'static str {
        match naming {
            Naming::HuggingFace => "lm_head",
            Naming::Gguf => "output",
        }
    }

    /// Name of a layer's tensor, without `.weight` or `.bias`; `expert_idx` is for parts of which
    /// each expert has one.
    pub fn name(&self, naming: Naming, layer_idx: usize, part: Part, expert_idx: usize) -> String {
        let (hugging_face, gguf) = self.names(part);
        match naming {
            Naming::Gguf => format!("blk.{layer_idx}.{gguf}"),
            Naming::HuggingFace => {
                let name = hugging_face.replace('#', &expert_idx.to_string());
                format!("model.layers.{layer_idx}.{name}")
            }
        }
    }

    fn names(&self, part: Part) -> (&'static str, &'static str) {
        let is_mixtral = self.family == Family::Mixtral;
        match part {
            Part::AttentionNorm => ("input_layernorm", "attn_norm"),
            Part::Query => ("self_attn.q_proj", "attn_q"),
            Part::Key => ("self_attn.k_proj", "attn_k"),
            Part::Value => ("self_attn.v_proj", "attn_v"),
            Part::QueryKeyValue => ("self_attn.qkv_proj", "attn_qkv"),
            Part::QueryNorm => ("self_attn.q_norm", "attn_q_norm"),
            Part::KeyNorm => ("self_attn.k_norm", "attn_k_norm"),
            Part::Output => ("self_attn.o_proj", "attn_output"),
            Part::AttentionPostNorm => ("post_attention_layernorm", "post_attention_norm"),
            Part::MlpNorm if self.family.norms() == Norms::Both => {
                ("pre_feedforward_layernorm", "ffn_norm")
            }
            Part::MlpNorm => ("post_attention_layernorm", "ffn_norm"),
            Part::Gate => ("mlp.gate_proj", "ffn_gate"),
            Part::Up => ("mlp.up_proj", "ffn_up"),
            Part::GateUp => ("mlp.gate_up_proj", "ffn_up"),
            Part::Down => ("mlp.down_proj", "ffn_down"),
            Part::Router if is_mixtral => ("block_sparse_moe.gate", "ffn_gate_inp"),
            Part::Router => ("mlp.gate", "ffn_gate_inp"),
            Part::ExpertGate if is_mixtral => ("block_sparse_moe.experts.#.w1", "ffn_gate_exps"),
            Part::ExpertGate => ("mlp.experts.#.gate_proj", "ffn_gate_exps"),
            Part::ExpertUp if is_mixtral => ("block_sparse_moe.experts.#.w3", "ffn_up_exps"),
            Part::ExpertUp => ("mlp.experts.#.up_proj", "ffn_up_exps"),
            Part::ExpertDown if is_mixtral => ("block_sparse_moe.experts.#.w2", "ffn_down_exps"),
            Part::ExpertDown => ("mlp.experts.#.down_proj", "ffn_down_exps"),
            Part::SharedRouter => ("mlp.shared_expert_gate", "ffn_gate_inp_shexp"),
            Part::SharedGate => ("mlp.shared_expert.gate_proj", "ffn_gate_shexp"),
            Part::SharedUp => ("mlp.shared_expert.up_proj", "ffn_up_shexp"),
            Part::SharedDown => ("mlp.shared_expert.down_proj", "ffn_down_shexp"),
            Part::MlpPostNorm => ("post_feedforward_layernorm", "post_ffw_norm"),
        }
    }

    /// The parts of a layer with their shapes, in the order of computation, and whether they have a
    /// bias. Of parts of experts it is the shape of one.
    pub fn parts(&self, layer_idx: usize) -> Vec<(Part, Vec<u64>, bool)> {
        let (hidden, inner) = (self.hidden_size as u64, self.intermediate_size as u64);
        let (q, kv) = (self.q_width() as u64, self.kv_width() as u64);
        let (norms, has_bias) = (self.family.norms(), self.has_qkv_bias);
        let mut parts = Vec::new();
        let mut add = |part, shape: &[u64], has_bias| parts.push((part, shape.to_vec(), has_bias));
        if norms != Norms::After {
            add(Part::AttentionNorm, &[hidden], false);
        }
        if self.is_fused() {
            add(Part::QueryKeyValue, &[q + 2 * kv, hidden], has_bias);
        } else {
            add(Part::Query, &[q, hidden], has_bias);
            add(Part::Key, &[kv, hidden], has_bias);
            add(Part::Value, &[kv, hidden], has_bias);
        }
        let head_dim = self.head_dim as u64;
        match self.family.qk_norm() {
            QkNorm::None => {}
            QkNorm::Heads => {
                add(Part::QueryNorm, &[head_dim], false);
                add(Part::KeyNorm, &[head_dim], false);
            }
            QkNorm::Projection => {
                add(Part::QueryNorm, &[q], false);
                add(Part::KeyNorm, &[kv], false);
            }
        }
        add(Part::Output, &[hidden, q], self.has_o_bias);
        if norms != Norms::Before {
            add(Part::AttentionPostNorm, &[hidden], false);
        }
        if norms != Norms::After {
            add(Part::MlpNorm, &[hidden], false);
        }
        match &self.experts {
            Some(experts) if experts.layers[layer_idx] => {
                let inner = experts.intermediate_size as u64;
                add(Part::Router, &[experts.n_experts as u64, hidden], false);
                add(Part::ExpertGate, &[inner, hidden], false);
                add(Part::ExpertUp, &[inner, hidden], false);
                add(Part::ExpertDown, &[hidden, inner], false);
                if let Some(inner) = experts.shared_intermediate_size {
                    let inner = inner as u64;
                    add(Part::SharedRouter, &[1, hidden], false);
                    add(Part::SharedGate, &[inner, hidden], false);
                    add(Part::SharedUp, &[inner, hidden], false);
                    add(Part::SharedDown, &[hidden, inner], false);
                }
            }
            _ => {
                if self.is_fused() {
                    add(Part::GateUp, &[2 * inner, hidden], self.has_mlp_bias);
                } else {
                    add(Part::Gate, &[inner, hidden], self.has_mlp_bias);
                    add(Part::Up, &[inner, hidden], self.has_mlp_bias);
                }
                add(Part::Down, &[hidden, inner], self.has_mlp_bias);
            }
        }
        if norms != Norms::Before {
            add(Part::MlpPostNorm, &[hidden], false);
        }
        parts
    }

    /// Width of all query heads.
    pub fn q_width(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Width of all key heads, and of all value heads.
    pub fn kv_width(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    /// Every tensor of the weights with its shape, outermost dimension first, in the order of
    /// computation.
    pub fn tensors(&self, naming: Naming) -> Vec<(String, Vec<u64>)> {
        let matrix = vec![self.vocab_size as u64, self.hidden_size as u64];
        let mut tensors =
            vec![(format!("{}.weight", Self::embedding_name(naming)), matrix.clone())];
        for layer_idx in 0..self.n_layers {
            for (part, shape, has_bias) in self.parts(layer_idx) {
                let name = |expert_idx| self.name(naming, layer_idx, part, expert_idx);
                let is_expert =
                    matches!(part, Part::ExpertGate | Part::ExpertUp | Part::ExpertDown);
                let n_experts = self.experts.as_ref().map_or(1, |experts| experts.n_experts);
                match naming {
                    Naming::HuggingFace if is_expert => {
                        for expert_idx in 0..n_experts {
                            tensors.push((format!("{}.weight", name(expert_idx)), shape.clone()));
                        }
                        continue;
                    }
                    Naming::Gguf if is_expert => {
                        let shape = [&[n_experts as u64], shape.as_slice()].concat();
                        tensors.push((format!("{}.weight", name(0)), shape));
                        continue;
                    }
                    _ => {}
                }
                let n_out = shape[0];
                tensors.push((format!("{}.weight", name(0)), shape));
                if has_bias {
                    tensors.push((format!("{}.bias", name(0)), vec![n_out]));
                }
            }
        }
        let norm = format!("{}.weight", Self::norm_name(naming));
        tensors.push((norm, vec![self.hidden_size as u64]));
        if !self.is_tied {
            tensors.push((format!("{}.weight", Self::head_name(naming)), matrix));
        }
        tensors
    }
}

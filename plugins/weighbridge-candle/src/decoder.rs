//! The decoder graph of the Llama family.

use pulp::Arch;
use weighbridge_core::Result;
use weighbridge_models::hf_config::HfConfig;

use crate::attention::{Heads, Queries, attend};
use crate::cache::{Cache, CacheShape};
use crate::ops::{RmsNorm, SiluMul, add, rotate};
use crate::rope::Rope;
use crate::weights::{Linear, Reader, Table};

/// Most values of logits computed at once: rows of a large vocabulary are given out in blocks.
const MAX_LOGITS: usize = 1 << 22;

/// The layers with their weights.
#[derive(Debug)]
pub(crate) struct Decoder {
    heads: Heads,
    hidden_size: usize,
    intermediate_size: usize,
    vocab_size: usize,
    eps: f32,
    rope: Rope,
    embeddings: Table, // (vocab_size, hidden_size)
    layers: Vec<Layer>,
    norm: Vec<f32>, // (hidden_size,)
    head: Linear,
    /// The machine's vector instructions.
    arch: Arch,
}

#[derive(Debug)]
struct Layer {
    attention_norm: Vec<f32>, // (hidden_size,)
    qkv: Linear,
    out: Linear,
    mlp_norm: Vec<f32>, // (hidden_size,)
    gate_up: Linear,
    down: Linear,
    window: Option<usize>,
}

/// New positions of one sequence within a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part<'a> {
    /// Index of the sequence's cache.
    pub(crate) cache_idx: usize,
    /// What is appended.
    pub(crate) tokens: &'a [u32],
    /// Index of the first token whose row of logits is wanted; `tokens.len()` for none.
    pub(crate) first_wanted: usize,
}

impl Decoder {
    pub(crate) fn load(config: &HfConfig, reader: &mut Reader<'_>) -> Result<Self> {
        let heads = Heads {
            n_heads: config.n_heads,
            n_kv_heads: config.n_kv_heads,
            head_dim: config.head_dim,
        };
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let embeddings = reader.table("model.embed_tokens.weight", hidden)?;
        let mut layers = Vec::with_capacity(config.n_layers);
        for (layer_idx, window) in config.windows.iter().enumerate() {
            let name = |part: &str| format!("model.layers.{layer_idx}.{part}");
            let attention = |part: &str, n_out| (name(&format!("self_attn.{part}_proj")), n_out);
            let mlp = |part: &str, n_out| (name(&format!("mlp.{part}_proj")), n_out);
            let (q, kv) = (heads.q_width(), heads.kv_width());
            let qkv = [attention("q", q), attention("k", kv), attention("v", kv)];
            layers.push(Layer {
                attention_norm: reader.vector(&name("input_layernorm.weight"))?,
                qkv: reader.linear(&qkv, hidden, config.has_qkv_bias)?,
                out: reader.linear(&[attention("o", hidden)], q, config.has_o_bias)?,
                mlp_norm: reader.vector(&name("post_attention_layernorm.weight"))?,
                gate_up: reader.linear(
                    &[mlp("gate", inner), mlp("up", inner)],
                    hidden,
                    config.has_mlp_bias,
                )?,
                down: reader.linear(&[mlp("down", hidden)], inner, config.has_mlp_bias)?,
                window: *window,
            });
        }
        let norm = reader.vector("model.norm.weight")?;
        let head = if config.is_tied { "model.embed_tokens" } else { "lm_head" };
        let head = reader.linear(&[(head.to_owned(), config.vocab_size)], hidden, false)?;
        Ok(Self {
            heads,
            hidden_size: hidden,
            intermediate_size: inner,
            vocab_size: config.vocab_size,
            eps: config.rms_norm_eps as f32,
            rope: Rope::new(config),
            embeddings,
            layers,
            norm,
            head,
            arch: Arch::new(),
        })
    }

    pub(crate) fn cache_shape(&self) -> CacheShape {
        CacheShape {
            n_layers: self.layers.len(),
            n_kv_heads: self.heads.n_kv_heads,
            head_dim: self.heads.head_dim,
        }
    }

    /// Fills the caches with the parts' tokens and gives out the wanted rows in the order of parts
    /// and positions. The caches' lengths change only if all of it worked.
    ///
    /// All parts share the matrix products; attention goes sequence by sequence.
    pub(crate) fn forward(
        &mut self,
        parts: &[Part<'_>],
        caches: &mut [Cache],
        rows: &mut dyn FnMut(usize, usize, &[f32]),
    ) -> Result<()> {
        let n_reach =
            parts.iter().map(|part| caches[part.cache_idx].len() + part.tokens.len()).max();
        self.rope.reach(n_reach.unwrap_or(0));

        let n_tokens: usize = parts.iter().map(|part| part.tokens.len()).sum();
        let mut x = Vec::with_capacity(n_tokens * self.hidden_size); // (n_rows, hidden_size)
        for token in parts.iter().flat_map(|part| part.tokens) {
            self.embeddings.row(*token as usize, &mut x);
        }
        // Which of its tokens each part computes on: all, but in the last layer only the wanted.
        let mut firsts = vec![0; parts.len()];
        for (layer_idx, layer) in self.layers.iter().enumerate() {
            let is_last = layer_idx + 1 == self.layers.len();
            if is_last {
                firsts = parts.iter().map(|part| part.first_wanted).collect();
            }
            let attended = self.attention(layer, layer_idx, parts, &firsts, caches, &x)?;
            if is_last {
                x = wanted_rows(&x, parts, self.hidden_size);
                if x.is_empty() {
                    break;
                }
            }
            let stride = layer.out.stride();
            layer.out.forward(attended, |rows| add_rows(&mut x, rows, self.hidden_size, stride))?;
            self.feed_forward(layer, &mut x)?;
        }
        for part in parts {
            let cache = &mut caches[part.cache_idx];
            cache.set_len(cache.len() + part.tokens.len());
        }
        self.logits(parts, caches, &x, rows)
    }

    /// Keys and values of all tokens into the caches; returns what the tokens from `firsts` on
    /// attend to, shape `(n_rows, n_heads · head_dim)`.
    fn attention(
        &self,
        layer: &Layer,
        layer_idx: usize,
        parts: &[Part<'_>],
        firsts: &[usize],
        caches: &mut [Cache],
        x: &[f32],
    ) -> Result<Vec<f32>> {
        let heads = self.heads;
        let (q_width, kv_width, head_dim) = (heads.q_width(), heads.kv_width(), heads.head_dim);
        let scale = 1.0 / (head_dim as f32).sqrt();
        let normed = self.normed(x, &layer.attention_norm);
        let stride = layer.qkv.stride();
        layer.qkv.forward(normed, |qkv| {
            let n_rows = |(part, first): (&Part<'_>, &usize)| part.tokens.len() - first;
            let n_out: usize = parts.iter().zip(firsts).map(n_rows).sum();
            let mut attended = vec![0f32; n_out * q_width];
            let (mut queries, mut key) = (Vec::new(), vec![0f32; head_dim]);
            let (mut rest, mut out) = (qkv, attended.as_mut_slice());
            for (part, first) in parts.iter().zip(firsts) {
                let rows = rest.split_off(..part.tokens.len() * stride).unwrap_or_default();
                let n_out = n_rows((part, first)) * q_width;
                let out = out.split_off_mut(..n_out).unwrap_or_default();
                let cache = &mut caches[part.cache_idx];
                let start = cache.len();
                let cache = cache.layer(layer_idx, part.tokens.len());
                queries.clear();
                for (token_idx, row) in rows.chunks_exact(stride).enumerate() {
                    let (cos, sin) = self.rope.at(start + token_idx);
                    let (query, row) = row.split_at(q_width);
                    let (keys, values) = row[..2 * kv_width].split_at(kv_width);
                    let heads = keys.chunks_exact(head_dim).zip(values.chunks_exact(head_dim));
                    for (head, (key_row, value)) in heads.enumerate() {
                        key.copy_from_slice(key_row);
                        rotate(&mut key, cos, sin);
                        cache.set(head, start + token_idx, &key, value);
                    }
                    if token_idx < *first {
                        continue;
                    }
                    let at = queries.len();
                    queries.extend(query.iter().map(|value| value * scale));
                    for head in queries[at..].chunks_exact_mut(head_dim) {
                        rotate(head, cos, sin);
                    }
                }
                let (first, window) = (start + first, layer.window);
                attend(Queries { heads, rows: &queries, first, window }, cache, out);
            }
            attended
        })
    }

    fn feed_forward(&self, layer: &Layer, x: &mut [f32]) -> Result<()> {
        let normed = self.normed(x, &layer.mlp_norm);
        let (width, stride) = (self.intermediate_size, layer.gate_up.stride());
        let activated = layer.gate_up.forward(normed, |gate_up| {
            let mut activated = vec![0f32; gate_up.len() / stride * width];
            self.arch.dispatch(SiluMul { gate_up, stride, width, out: &mut activated });
            activated
        })?;
        let stride = layer.down.stride();
        layer.down.forward(activated, |rows| add_rows(x, rows, self.hidden_size, stride))
    }

    fn normed(&self, x: &[f32], weight: &[f32]) -> Vec<f32> {
        let mut normed = vec![0f32; x.len()];
        self.arch.dispatch(RmsNorm { x, weight, eps: self.eps, out: &mut normed });
        normed
    }

    /// The head, for the rows of `x`, which are the wanted ones.
    fn logits(
        &self,
        parts: &[Part<'_>],
        caches: &[Cache],
        x: &[f32],
        rows: &mut dyn FnMut(usize, usize, &[f32]),
    ) -> Result<()> {
        let mut wanted = parts.iter().enumerate().flat_map(|(part_idx, part)| {
            let start = caches[part.cache_idx].len() - part.tokens.len();
            (part.first_wanted..part.tokens.len()).map(move |i| (part_idx, start + i))
        });
        let stride = self.head.stride();
        let n_block = (MAX_LOGITS / stride).max(1);
        for block in x.chunks(n_block * self.hidden_size) {
            let normed = self.normed(block, &self.norm);
            self.head.forward(normed, |logits| {
                for (logits, (part_idx, position)) in logits.chunks_exact(stride).zip(&mut wanted) {
                    rows(part_idx, position, &logits[..self.vocab_size]);
                }
            })?;
        }
        Ok(())
    }
}

/// The wanted rows of all parts, shape `(n_wanted, width)`.
fn wanted_rows(x: &[f32], parts: &[Part<'_>], width: usize) -> Vec<f32> {
    let mut wanted = Vec::new();
    let mut start = 0;
    for part in parts {
        let end = start + part.tokens.len();
        wanted.extend_from_slice(&x[(start + part.first_wanted) * width..end * width]);
        start = end;
    }
    wanted
}

/// Adds rows with a stride to rows without one.
fn add_rows(x: &mut [f32], rows: &[f32], width: usize, stride: usize) {
    for (x, row) in x.chunks_exact_mut(width).zip(rows.chunks_exact(stride)) {
        add(x, &row[..width]);
    }
}

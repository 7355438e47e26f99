//! The decoder graph.

use std::ops::Range;

use pulp::Arch;
use weighbridge_core::Result;
use weighbridge_models::decoder::DecoderConfig;

use crate::attention::{Heads, Queries, attend};
use crate::cache::{Cache, CacheShape};
use crate::layer::{Layer, head};
use crate::linear::Linear;
use crate::ops::{RmsNorm, add, rotate, soft_cap};
use crate::product::in_pool;
use crate::rope::Rope;
use crate::weights::{Reader, Table};

/// Most values of logits computed at once: rows of a large vocabulary are given out in blocks.
const MAX_LOGITS: usize = 1 << 22;

/// The layers with their weights.
#[derive(Debug)]
pub(crate) struct Decoder {
    heads: Heads,
    hidden_size: usize,
    vocab_size: usize,
    eps: f32,
    embedding_scale: f32,
    attention_scale: f32,
    attention_cap: Option<f32>,
    logit_cap: Option<f32>,
    rope: Rope,
    /// Of layers with a window, where they have other positions.
    local_rope: Option<Rope>,
    embeddings: Table, // (vocab_size, hidden_size)
    layers: Vec<Layer<Linear, Vec<f32>>>,
    norm: Vec<f32>, // (hidden_size,)
    head: Linear,
    /// The machine's vector instructions.
    arch: Arch,
}

/// New positions of one sequence within a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment<'a> {
    /// Index of the sequence's cache.
    pub(crate) cache_idx: usize,
    /// What is appended.
    pub(crate) tokens: &'a [u32],
    /// Index of the first token whose row of logits is wanted; `tokens.len()` for none.
    pub(crate) first_wanted: usize,
}

impl Decoder {
    /// Reads all weights. `n_ctx`: most positions of a sequence.
    pub(crate) fn load(
        config: &DecoderConfig,
        n_ctx: usize,
        reader: &mut Reader<'_>,
    ) -> Result<Self> {
        let heads = Heads::of(config);
        let embedding = DecoderConfig::embedding_name(reader.naming());
        let embeddings = reader.table(&format!("{embedding}.weight"), config.hidden_size)?;
        let layers = (0..config.n_layers).map(|layer_idx| Layer::load(config, layer_idx, reader));
        let layers = layers.collect::<Result<_>>()?;
        let (norm, head) = head(config, reader)?;
        Ok(Self {
            heads,
            hidden_size: config.hidden_size,
            vocab_size: config.vocab_size,
            eps: config.rms_norm_eps as f32,
            embedding_scale: config.embedding_scale as f32,
            attention_scale: config.attention_scale as f32,
            attention_cap: config.attention_cap.map(|cap| cap as f32),
            logit_cap: config.logit_cap.map(|cap| cap as f32),
            rope: Rope::new(&config.rope, n_ctx),
            local_rope: config.local_rope.as_ref().map(|rope| Rope::new(rope, n_ctx)),
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
    /// and positions. The caches' lengths change only if all layers worked.
    ///
    /// All parts share the matrix products; attention goes sequence by sequence.
    pub(crate) fn forward(
        &mut self,
        parts: &[Segment<'_>],
        caches: &mut [Cache],
        rows: &mut dyn FnMut(usize, usize, &[f32]),
    ) -> Result<()> {
        let n_reach =
            parts.iter().map(|part| caches[part.cache_idx].len() + part.tokens.len()).max();
        self.rope.reach(n_reach.unwrap_or(0));
        if let Some(rope) = &mut self.local_rope {
            rope.reach(n_reach.unwrap_or(0));
        }

        let n_tokens: usize = parts.iter().map(|part| part.tokens.len()).sum();
        let mut x = Vec::with_capacity(n_tokens * self.hidden_size); // (n_tokens, hidden_size)
        for token in parts.iter().flat_map(|part| part.tokens) {
            self.embeddings.row(*token as usize, &mut x);
        }
        if self.embedding_scale != 1.0 {
            x.iter_mut().for_each(|value| *value *= self.embedding_scale);
        }
        // Each layer has at least as many weights as a square matrix.
        let n_work = n_tokens * self.layers.len() * self.hidden_size * self.hidden_size;
        let x = in_pool(n_work, || self.run_layers(parts, caches, x))?;
        for part in parts {
            let cache = &mut caches[part.cache_idx];
            cache.set_len(cache.len() + part.tokens.len());
        }
        self.logits(parts, caches, &x, rows)
    }

    /// What the last layer gives for the wanted rows, from the embeddings of all.
    fn run_layers(
        &self,
        parts: &[Segment<'_>],
        caches: &mut [Cache],
        mut x: Vec<f32>,
    ) -> Result<Vec<f32>> {
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
            let norm = layer.attention_post_norm.as_deref();
            layer.out.forward(attended, |rows| self.add_rows(&mut x, rows, stride, norm))?;
            let normed = self.normed(&x, layer.mlp_norm.as_deref());
            let norm = layer.mlp_post_norm.as_deref();
            layer.feed_forward.forward(self.arch, normed, self.hidden_size, |rows, stride| {
                self.add_rows(&mut x, rows, stride, norm);
            })?;
        }
        Ok(x)
    }

    /// Keys and values of all tokens into the caches; returns what the tokens from `firsts` on
    /// attend to, shape `(n_rows, n_heads · head_dim)`.
    fn attention(
        &self,
        layer: &Layer<Linear, Vec<f32>>,
        layer_idx: usize,
        parts: &[Segment<'_>],
        firsts: &[usize],
        caches: &mut [Cache],
        x: &[f32],
    ) -> Result<Vec<f32>> {
        let heads = self.heads;
        let (q_width, kv_width, head_dim) = (heads.q_width(), heads.kv_width(), heads.head_dim);
        let rope = match &self.local_rope {
            Some(rope) if layer.window.is_some() => rope,
            _ => &self.rope,
        };
        let normed = self.normed(x, layer.attention_norm.as_deref());
        let stride = layer.qkv.stride();
        layer.qkv.forward(normed, |qkv| {
            let n_rows = |(part, first): (&Segment<'_>, &usize)| part.tokens.len() - first;
            let n_out: usize = parts.iter().zip(firsts).map(n_rows).sum();
            let mut attended = vec![0f32; n_out * q_width];
            let (mut rest, mut out) = (qkv, attended.as_mut_slice());
            for (part, first) in parts.iter().zip(firsts) {
                let rows = rest.split_off(..part.tokens.len() * stride).unwrap_or_default();
                let out = out.split_off_mut(..n_rows((part, first)) * q_width).unwrap_or_default();
                let cache = &mut caches[part.cache_idx];
                let start = cache.len();
                let cache = cache.layer(layer_idx, part.tokens.len());
                let columns = |rows: &[f32], range: Range<usize>| -> Vec<f32> {
                    rows.chunks_exact(stride).flat_map(|row| &row[range.clone()]).copied().collect()
                };
                let mut keys = columns(rows, q_width..q_width + kv_width);
                let mut queries = columns(&rows[first * stride..], 0..q_width);
                if let Some(weight) = &layer.key_norm {
                    keys = self.normed(&keys, Some(weight));
                }
                if let Some(weight) = &layer.query_norm {
                    queries = self.normed(&queries, Some(weight));
                }
                let values = rows.chunks_exact(stride).map(|row| &row[q_width + kv_width..]);
                let tokens = keys.chunks_exact_mut(kv_width).zip(values);
                for (position, (keys, values)) in (start..).zip(tokens) {
                    let (cos, sin) = rope.at(position);
                    let heads = keys.chunks_exact_mut(head_dim).zip(values.chunks_exact(head_dim));
                    for (head, (key, value)) in heads.enumerate() {
                        rotate(key, cos, sin);
                        cache.set(head, position, key, value);
                    }
                }
                let first = start + first;
                for (position, query) in (first..).zip(queries.chunks_exact_mut(q_width)) {
                    let (cos, sin) = rope.at(position);
                    for head in query.chunks_exact_mut(head_dim) {
                        head.iter_mut().for_each(|value| *value *= self.attention_scale);
                        rotate(head, cos, sin);
                    }
                }
                let (window, cap) = (layer.window, self.attention_cap);
                attend(Queries { heads, rows: &queries, first, window, cap }, cache, out);
            }
            attended
        })
    }

    /// Rows of the width of `weight`, or as they are without one.
    fn normed(&self, x: &[f32], weight: Option<&[f32]>) -> Vec<f32> {
        let Some(weight) = weight else { return x.to_vec() };
        let mut normed = vec![0f32; x.len()];
        self.arch.dispatch(RmsNorm { x, weight, eps: self.eps, out: &mut normed });
        normed
    }

    /// Adds rows with a stride, normalised if there is a weight for it, to rows without one.
    fn add_rows(&self, x: &mut [f32], rows: &[f32], stride: usize, norm: Option<&[f32]>) {
        let width = self.hidden_size;
        for (x, row) in x.chunks_exact_mut(width).zip(rows.chunks_exact(stride)) {
            match norm {
                None => add(x, &row[..width]),
                Some(_) => add(x, &self.normed(&row[..width], norm)),
            }
        }
    }

    /// The head, for the rows of `x`, which are the wanted ones.
    fn logits(
        &self,
        parts: &[Segment<'_>],
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
            let normed = self.normed(block, Some(&self.norm));
            self.head.forward(normed, |logits| {
                for (logits, (part_idx, position)) in logits.chunks_exact(stride).zip(&mut wanted) {
                    let logits = &logits[..self.vocab_size];
                    match self.logit_cap {
                        None => rows(part_idx, position, logits),
                        Some(cap) => {
                            let mut logits = logits.to_vec();
                            soft_cap(&mut logits, cap);
                            rows(part_idx, position, &logits);
                        }
                    }
                }
            })?;
        }
        Ok(())
    }
}

/// The wanted rows of all parts, shape `(n_wanted, width)`.
fn wanted_rows(x: &[f32], parts: &[Segment<'_>], width: usize) -> Vec<f32> {
    let mut wanted = Vec::new();
    let mut start = 0;
    for part in parts {
        let end = start + part.tokens.len();
        wanted.extend_from_slice(&x[(start + part.first_wanted) * width..end * width]);
        start = end;
    }
    wanted
}

//! The decoder graph, and the sequences it is run on.

use candle_core::{D, DType, Device, Tensor};
use weighbridge_core::Result;
use weighbridge_models::decoder::{DecoderConfig, Naming};

use super::attention::{Attention, MAX_SCORES, Masks, soft_cap};
use super::cache::Cache;
use super::layers::{Linear, Norm, Rotation};
use super::{Target, engine_error};
use crate::attention::Heads;
use crate::cache::CacheShape;
use crate::decoder::Segment;
use crate::engine::Sequences;
use crate::layer::{Layer, Load, head};
use crate::rope::Rope;
use crate::weights::{Matrix, Reader, Table};

/// Most values of logits computed at once: rows of a large vocabulary are given out in blocks.
const MAX_LOGITS: usize = 1 << 22;

/// The layers with their weights.
#[derive(Debug)]
pub(crate) struct Decoder {
    device: Device,
    attention: Attention,
    hidden_size: usize,
    vocab_size: usize,
    embedding_scale: f64,
    attention_scale: f64,
    logit_cap: Option<f64>,
    rope: Rope,
    /// Of layers with a window, where they have other positions.
    local_rope: Option<Rope>,
    /// In the machine's memory: only the rows of a feed go to the device.
    embeddings: Table, // (vocab_size, hidden_size)
    layers: Vec<Layer<Linear, Norm>>,
    norm: Norm,
    head: Linear,
}

/// Rotations and masks of a feed.
struct Feed {
    rotation: Rotation,
    local_rotation: Option<Rotation>,
    masks: Masks,
}

fn normed(x: &Tensor, norm: Option<&Norm>) -> candle_core::Result<Tensor> {
    norm.map_or_else(|| Ok(x.clone()), |norm| norm.forward(x))
}

impl Decoder {
    /// Reads all weights. `n_ctx`: most positions of a sequence.
    pub(crate) fn load(
        config: &DecoderConfig,
        n_ctx: usize,
        reader: &mut Reader<'_>,
        target: &Target,
    ) -> Result<Self> {
        let heads = Heads::of(config);
        // Gemma's activations can be larger than what F16 holds.
        let f16 = if config.family.is_gemma() { DType::BF16 } else { DType::F16 };
        let target = &Target { f16, ..target.clone() };
        let embedding = DecoderConfig::embedding_name(reader.naming());
        let embeddings = reader.table(&format!("{embedding}.weight"), config.hidden_size)?;
        let mut loader = Loader { reader, target, eps: config.rms_norm_eps as f32 };
        let layers =
            (0..config.n_layers).map(|layer_idx| Layer::load(config, layer_idx, &mut loader));
        let layers = layers.collect::<Result<_>>()?;
        let (norm, head) = head(config, &mut loader)?;
        Ok(Self {
            device: target.device.clone(),
            attention: Attention { heads, cap: config.attention_cap, max_scores: MAX_SCORES },
            hidden_size: config.hidden_size,
            vocab_size: config.vocab_size,
            embedding_scale: config.embedding_scale,
            attention_scale: config.attention_scale,
            logit_cap: config.logit_cap,
            rope: Rope::new(&config.rope, n_ctx),
            local_rope: config.local_rope.as_ref().map(|rope| Rope::new(rope, n_ctx)),
            embeddings,
            layers,
            norm,
            head,
        })
    }

    pub(crate) fn cache_shape(&self) -> CacheShape {
        CacheShape {
            n_layers: self.layers.len(),
            n_kv_heads: self.attention.heads.n_kv_heads,
            head_dim: self.attention.heads.head_dim,
        }
    }

    /// Fills the caches with the parts' tokens and gives out the wanted rows in the order of parts
    /// and positions. The caches' lengths change only if all layers worked.
    fn forward(
        &mut self,
        parts: &[Segment<'_>],
        caches: &mut [Cache],
        rows: &mut dyn FnMut(usize, usize, &[f32]),
    ) -> candle_core::Result<()> {
        let mut positions = Vec::new();
        let mut wanted: Vec<u32> = Vec::new(); // of all rows
        let mut labels = Vec::new(); // part and position of each wanted row
        for (part_idx, part) in parts.iter().enumerate() {
            let start = caches[part.cache_idx].len();
            for i in 0..part.tokens.len() {
                if i >= part.first_wanted {
                    wanted.push(positions.len() as u32);
                    labels.push((part_idx, start + i));
                }
                positions.push(start + i);
            }
        }
        if positions.is_empty() {
            return Ok(());
        }
        let device = self.device.clone();
        let mut feed = Feed {
            rotation: Rotation::new(&mut self.rope, &positions, &device)?,
            local_rotation: match &mut self.local_rope {
                None => None,
                Some(rope) => Some(Rotation::new(rope, &positions, &device)?),
            },
            masks: Masks::default(),
        };
        let mut x = self.embedded(parts)?;
        for (layer_idx, layer) in self.layers.iter().enumerate() {
            let mut attended = self.attention(layer, layer_idx, parts, &mut feed, caches, &x)?;
            // Behind the last attention only the wanted rows matter.
            if layer_idx + 1 == self.layers.len() && wanted.len() < positions.len() {
                if wanted.is_empty() {
                    break;
                }
                let wanted = Tensor::new(wanted.as_slice(), &device)?;
                attended = attended.index_select(&wanted, 0)?;
                x = x.index_select(&wanted, 0)?;
            }
            let out = layer.out.forward(&attended)?;
            x = (x + normed(&out, layer.attention_post_norm.as_ref())?)?;
            let out = layer.feed_forward.forward(&normed(&x, layer.mlp_norm.as_ref())?)?;
            x = (x + normed(&out, layer.mlp_post_norm.as_ref())?)?;
        }
        if labels.is_empty() {
            // Rows that are read wait for a GPU. Without one the time of this feed, and an error in
            // it, would be the next one's.
            device.synchronize()?;
        }
        for part in parts {
            let cache = &mut caches[part.cache_idx];
            cache.set_len(cache.len() + part.tokens.len());
        }
        let n_block = (MAX_LOGITS / self.vocab_size).max(1);
        for (block_idx, labels) in labels.chunks(n_block).enumerate() {
            let x = x.narrow(0, block_idx * n_block, labels.len())?;
            let logits = soft_cap(self.head.forward(&self.norm.forward(&x)?)?, self.logit_cap)?;
            let logits = logits.flatten_all()?.to_vec1::<f32>()?;
            let logits = logits.chunks_exact(self.vocab_size);
            for ((part_idx, position), logits) in labels.iter().zip(logits) {
                rows(*part_idx, *position, logits);
            }
        }
        Ok(())
    }

    /// The embeddings of all tokens, shape `(n_rows, hidden_size)`.
    fn embedded(&self, parts: &[Segment<'_>]) -> candle_core::Result<Tensor> {
        let mut x = Vec::new();
        for token in parts.iter().flat_map(|part| part.tokens) {
            self.embeddings.row(*token as usize, &mut x);
        }
        let x = Tensor::new(x, &self.device)?.reshape(((), self.hidden_size))?;
        if self.embedding_scale == 1.0 { Ok(x) } else { x * self.embedding_scale }
    }

    /// Keys and values of all tokens into the caches; returns what the tokens attend to, shape
    /// `(n_rows, n_heads · head_dim)`.
    fn attention(
        &self,
        layer: &Layer<Linear, Norm>,
        layer_idx: usize,
        parts: &[Segment<'_>],
        feed: &mut Feed,
        caches: &mut [Cache],
        x: &Tensor,
    ) -> candle_core::Result<Tensor> {
        let heads = self.attention.heads;
        let (q_width, kv_width) = (heads.q_width(), heads.kv_width());
        let rotation = match &feed.local_rotation {
            Some(rotation) if layer.window.is_some() => rotation,
            _ => &feed.rotation,
        };
        let qkv = layer.qkv.forward(&normed(x, layer.attention_norm.as_ref())?)?;
        let by_head = |first, width, norm| {
            let columns = qkv.narrow(1, first, width)?;
            normed(&columns, norm)?.reshape(((), width / heads.head_dim, heads.head_dim))
        };
        let queries = by_head(0, q_width, layer.query_norm.as_ref())?;
        let queries = (rotation.apply(&queries)? * self.attention_scale)?;
        let keys = rotation.apply(&by_head(q_width, kv_width, layer.key_norm.as_ref())?)?;
        let values = by_head(q_width + kv_width, kv_width, None)?;
        let mut attended = Vec::with_capacity(parts.len());
        let mut start = 0;
        for part in parts.iter().filter(|part| !part.tokens.is_empty()) {
            let n_rows = part.tokens.len();
            let across =
                |rows: &Tensor| rows.narrow(0, start, n_rows)?.transpose(0, 1)?.contiguous();
            let cache = &mut caches[part.cache_idx];
            let first = cache.len();
            let (keys, values) = cache.append(layer_idx, &across(&keys)?, &across(&values)?)?;
            let queries = queries.narrow(0, start, n_rows)?;
            attended.push(self.attention.attend(
                &queries,
                first,
                layer.window,
                (&keys, &values),
                &mut feed.masks,
            )?);
            start += n_rows;
        }
        Tensor::cat(&attended, D::Minus2)
    }
}

/// Puts weights on a device.
struct Loader<'a, 'w> {
    reader: &'a mut Reader<'w>,
    target: &'a Target,
    eps: f32,
}

impl Load for Loader<'_, '_> {
    type Linear = Linear;
    type Norm = Norm;

    fn naming(&self) -> Naming {
        self.reader.naming()
    }

    fn vector(&mut self, name: &str) -> Result<Vec<f32>> {
        self.reader.vector(name)
    }

    fn linear(&mut self, matrices: &[Matrix], n_in: usize, has_bias: bool) -> Result<Linear> {
        Linear::load(matrices, n_in, has_bias, self.reader, self.target)
    }

    fn norm(&mut self, weight: Vec<f32>) -> Result<Norm> {
        Norm::new(weight, self.eps, self.target)
    }
}

/// A decoder with a cache for each sequence.
#[derive(Debug)]
pub(crate) struct DeviceModel {
    decoder: Decoder,
    caches: Vec<Cache>,
}

impl DeviceModel {
    pub(crate) fn new(decoder: Decoder, n_seqs: u32) -> Self {
        let cache = || Cache::new(decoder.cache_shape(), &decoder.device);
        let caches = (0..n_seqs).map(|_| cache()).collect();
        Self { decoder, caches }
    }
}

impl Sequences for DeviceModel {
    fn forward(
        &mut self,
        parts: &[Segment<'_>],
        rows: &mut dyn FnMut(usize, usize, &[f32]),
    ) -> Result<()> {
        self.decoder.forward(parts, &mut self.caches, rows).map_err(engine_error)
    }

    fn len(&self, cache_idx: usize) -> usize {
        self.caches[cache_idx].len()
    }

    fn truncate(&mut self, cache_idx: usize, len: usize) -> Result<()> {
        self.caches[cache_idx].truncate(len).map_err(engine_error)
    }

    fn copy(&mut self, from: usize, to: usize, len: usize) -> Result<()> {
        self.caches[to] = self.caches[from].fork(len).map_err(engine_error)?;
        Ok(())
    }
}

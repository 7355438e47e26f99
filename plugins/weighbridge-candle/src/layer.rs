//! What a layer is made of: its tensors, their names, heights and order, for both decoders.
//!
//! The decoders differ in what a projection and a normalisation are to them ([`Load`]) and in how they
//! compute; what they read is decided here.

use weighbridge_core::Result;
use weighbridge_models::decoder::{Activation, DecoderConfig, Family, Naming, Part};

use crate::attention::Heads;
use crate::weights::Matrix;

/// Makes a decoder's own things of the weights in a file.
pub(crate) trait Load {
    type Linear;
    type Norm;

    /// How the file names its tensors.
    fn naming(&self) -> Naming;

    /// A tensor of one dimension.
    fn vector(&mut self, name: &str) -> Result<Vec<f32>>;

    /// Projections of the same input, of `n_in` values, as one.
    fn linear(&mut self, matrices: &[Matrix], n_in: usize, has_bias: bool) -> Result<Self::Linear>;

    /// The normalisation with these weights.
    fn norm(&mut self, weight: Vec<f32>) -> Result<Self::Norm>;
}

/// A layer. Normalisations have the width of what they normalise.
#[derive(Debug)]
pub(crate) struct Layer<L, N> {
    pub(crate) attention_norm: Option<N>,
    pub(crate) qkv: L,
    pub(crate) query_norm: Option<N>,
    pub(crate) key_norm: Option<N>,
    pub(crate) out: L,
    pub(crate) attention_post_norm: Option<N>,
    pub(crate) mlp_norm: Option<N>,
    pub(crate) feed_forward: FeedForward<L>,
    pub(crate) mlp_post_norm: Option<N>,
    pub(crate) window: Option<usize>,
}

/// The feed-forward half of a layer: one block, or experts that a router chooses.
#[derive(Debug)]
pub(crate) enum FeedForward<L> {
    Dense(Block<L>),
    Experts(Experts<L>),
}

/// `down(activation(gate(x)) · up(x))`.
#[derive(Debug)]
pub(crate) struct Block<L> {
    pub(crate) gate_up: L,
    pub(crate) down: L,
    pub(crate) width: usize,
    pub(crate) activation: Activation,
}

/// Experts of a layer.
#[derive(Debug)]
pub(crate) struct Experts<L> {
    pub(crate) router: L,
    pub(crate) blocks: Vec<Block<L>>,
    n_used: usize,
    is_normalized: bool,
    /// The block that all tokens use, and what weighs it.
    pub(crate) shared: Option<(L, Block<L>)>,
}

impl<L, N> Layer<L, N> {
    pub(crate) fn load(
        config: &DecoderConfig,
        layer_idx: usize,
        loader: &mut impl Load<Linear = L, Norm = N>,
    ) -> Result<Self> {
        let (hidden, naming) = (config.hidden_size, loader.naming());
        let (q, kv) = (Heads::of(config).q_width(), Heads::of(config).kv_width());
        // llama.cpp rotates neighbours in files of this architecture.
        let is_paired =
            naming == Naming::Gguf && matches!(config.family, Family::Llama | Family::Mixtral);
        let paired_heads = is_paired.then_some(config.head_dim);
        let matrix = |part, n_out| Matrix::new(config.name(naming, layer_idx, part, 0), n_out);
        let qkv = if config.is_fused() {
            vec![matrix(Part::QueryKeyValue, q + 2 * kv)]
        } else {
            vec![
                Matrix { paired_heads, ..matrix(Part::Query, q) },
                Matrix { paired_heads, ..matrix(Part::Key, kv) },
                matrix(Part::Value, kv),
            ]
        };
        let parts = config.parts(layer_idx);
        let layer_norm = |part, loader: &mut _| match parts.iter().any(|known| known.0 == part) {
            true => norm(config, &config.name(naming, layer_idx, part, 0), loader).map(Some),
            false => Ok(None),
        };
        Ok(Self {
            attention_norm: layer_norm(Part::AttentionNorm, loader)?,
            qkv: loader.linear(&qkv, hidden, config.has_qkv_bias)?,
            query_norm: layer_norm(Part::QueryNorm, loader)?,
            key_norm: layer_norm(Part::KeyNorm, loader)?,
            out: loader.linear(&[matrix(Part::Output, hidden)], q, config.has_o_bias)?,
            attention_post_norm: layer_norm(Part::AttentionPostNorm, loader)?,
            mlp_norm: layer_norm(Part::MlpNorm, loader)?,
            feed_forward: FeedForward::load(config, layer_idx, loader)?,
            mlp_post_norm: layer_norm(Part::MlpPostNorm, loader)?,
            window: config.windows[layer_idx],
        })
    }
}

/// A normalisation by its name, with the 1 that the file may lack.
fn norm<T: Load>(config: &DecoderConfig, name: &str, loader: &mut T) -> Result<T::Norm> {
    let offset = if config.is_norm_offset { 1.0 } else { 0.0 };
    let weight = loader.vector(&format!("{name}.weight"))?;
    loader.norm(weight.into_iter().map(|weight| weight + offset).collect())
}

/// What stands behind the last layer: a normalisation, and the projection to logits.
pub(crate) fn head<T: Load>(
    config: &DecoderConfig,
    loader: &mut T,
) -> Result<(T::Norm, T::Linear)> {
    let naming = loader.naming();
    let norm = norm(config, DecoderConfig::norm_name(naming), loader)?;
    let name = match config.is_tied {
        true => DecoderConfig::embedding_name(naming),
        false => DecoderConfig::head_name(naming),
    };
    let head = Matrix::new(name.to_owned(), config.vocab_size);
    Ok((norm, loader.linear(&[head], config.hidden_size, false)?))
}

impl<L> FeedForward<L> {
    fn load(
        config: &DecoderConfig,
        layer_idx: usize,
        loader: &mut impl Load<Linear = L>,
    ) -> Result<Self> {
        let (hidden, naming) = (config.hidden_size, loader.naming());
        let name = |part, expert_idx| config.name(naming, layer_idx, part, expert_idx);
        let whole = |part, n_out| Matrix::new(name(part, 0), n_out);
        let Some(experts) = config.experts.as_ref().filter(|experts| experts.layers[layer_idx])
        else {
            let inner = config.intermediate_size;
            let gate_up = if config.is_fused() {
                vec![whole(Part::GateUp, 2 * inner)]
            } else {
                vec![whole(Part::Gate, inner), whole(Part::Up, inner)]
            };
            let (down, has_bias) = (whole(Part::Down, hidden), config.has_mlp_bias);
            return Block::load(config, &gate_up, down, inner, has_bias, loader).map(Self::Dense);
        };
        let inner = experts.intermediate_size;
        let router = loader.linear(&[whole(Part::Router, experts.n_experts)], hidden, false)?;
        let mut blocks = Vec::with_capacity(experts.n_experts);
        for expert_idx in 0..experts.n_experts {
            let matrix = |part, n_out| Matrix {
                first_row: if naming == Naming::Gguf { expert_idx * n_out } else { 0 },
                ..Matrix::new(name(part, expert_idx), n_out)
            };
            let gate_up = [matrix(Part::ExpertGate, inner), matrix(Part::ExpertUp, inner)];
            let down = matrix(Part::ExpertDown, hidden);
            blocks.push(Block::load(config, &gate_up, down, inner, false, loader)?);
        }
        let shared = match experts.shared_intermediate_size {
            None => None,
            Some(inner) => {
                let gate_up = [whole(Part::SharedGate, inner), whole(Part::SharedUp, inner)];
                let down = whole(Part::SharedDown, hidden);
                let block = Block::load(config, &gate_up, down, inner, false, loader)?;
                Some((loader.linear(&[whole(Part::SharedRouter, 1)], hidden, false)?, block))
            }
        };
        let (n_used, is_normalized) = (experts.n_used, experts.is_normalized);
        Ok(Self::Experts(Experts { router, blocks, n_used, is_normalized, shared }))
    }
}

impl<L> Block<L> {
    fn load(
        config: &DecoderConfig,
        gate_up: &[Matrix],
        down: Matrix,
        width: usize,
        has_bias: bool,
        loader: &mut impl Load<Linear = L>,
    ) -> Result<Self> {
        Ok(Self {
            gate_up: loader.linear(gate_up, config.hidden_size, has_bias)?,
            down: loader.linear(&[down], width, has_bias)?,
            width,
            activation: config.activation,
        })
    }
}

impl<L> Experts<L> {
    /// The experts that a token uses, with their weights, by the softmax of its scores. Equal ones:
    /// the first expert.
    pub(crate) fn choice(&self, weights: &[f32]) -> Vec<(usize, f32)> {
        let mut order: Vec<usize> = (0..weights.len()).collect();
        order.sort_by(|a, b| weights[*b].total_cmp(&weights[*a]));
        order.truncate(self.n_used);
        let total: f32 = order.iter().map(|expert_idx| weights[*expert_idx]).sum();
        let total = if self.is_normalized { total } else { 1.0 };
        order.into_iter().map(|expert_idx| (expert_idx, weights[expert_idx] / total)).collect()
    }
}

//! The feed-forward half of a layer: one block, or experts that a router chooses.

use candle_core::Tensor;
use candle_nn::ops::{sigmoid, softmax_last_dim};
use weighbridge_core::Result;
use weighbridge_models::decoder::{Activation, DecoderConfig, Naming, Part};

use super::Target;
use super::layers::Linear;
use crate::weights::{Matrix, Reader};

type Computed = candle_core::Result<Tensor>;

/// `down(activation(gate(x)) · up(x))`.
#[derive(Debug)]
struct Block {
    gate_up: Linear,
    down: Linear,
    width: usize,
    activation: Activation,
}

impl Block {
    fn forward(&self, x: &Tensor) -> Computed {
        let gate_up = self.gate_up.forward(x)?;
        let gate = gate_up.narrow(1, 0, self.width)?;
        let up = gate_up.narrow(1, self.width, self.width)?;
        let activated = match self.activation {
            Activation::Silu => gate.silu()?,
            Activation::GeluTanh => gate.gelu()?,
        };
        self.down.forward(&(activated * up)?)
    }
}

/// Experts of a layer.
#[derive(Debug)]
pub(crate) struct Experts {
    router: Linear,
    blocks: Vec<Block>,
    n_used: usize,
    is_normalized: bool,
    /// The block that all tokens use, and what weighs it.
    shared: Option<(Linear, Block)>,
}

#[derive(Debug)]
enum Kind {
    Dense(Block),
    Experts(Experts),
}

/// One of both.
#[derive(Debug)]
pub(crate) struct FeedForward(Kind);

impl FeedForward {
    pub(crate) fn load(
        config: &DecoderConfig,
        layer_idx: usize,
        reader: &mut Reader<'_>,
        target: &Target,
    ) -> Result<Self> {
        let (hidden, naming) = (config.hidden_size, reader.naming());
        let name = |part, expert_idx| config.name(naming, layer_idx, part, expert_idx);
        let whole = |part, n_out| Matrix::new(name(part, 0), n_out);
        let mut block = |gate_up: &[Matrix], down: Matrix, width, has_bias| {
            Ok(Block {
                gate_up: Linear::load(gate_up, hidden, has_bias, reader, target)?,
                down: Linear::load(&[down], width, has_bias, reader, target)?,
                width,
                activation: config.activation,
            })
        };
        let Some(experts) = config.experts.as_ref().filter(|experts| experts.layers[layer_idx])
        else {
            let inner = config.intermediate_size;
            let gate_up = if config.is_fused() {
                vec![whole(Part::GateUp, 2 * inner)]
            } else {
                vec![whole(Part::Gate, inner), whole(Part::Up, inner)]
            };
            let down = whole(Part::Down, hidden);
            return Ok(Self(Kind::Dense(block(&gate_up, down, inner, config.has_mlp_bias)?)));
        };
        let inner = experts.intermediate_size;
        let mut blocks = Vec::with_capacity(experts.n_experts);
        for expert_idx in 0..experts.n_experts {
            let matrix = |part, n_out| Matrix {
                first_row: if naming == Naming::Gguf { expert_idx * n_out } else { 0 },
                ..Matrix::new(name(part, expert_idx), n_out)
            };
            let gate_up = [matrix(Part::ExpertGate, inner), matrix(Part::ExpertUp, inner)];
            blocks.push(block(&gate_up, matrix(Part::ExpertDown, hidden), inner, false)?);
        }
        let shared = match experts.shared_intermediate_size {
            None => None,
            Some(inner) => {
                let gate_up = [whole(Part::SharedGate, inner), whole(Part::SharedUp, inner)];
                Some(block(&gate_up, whole(Part::SharedDown, hidden), inner, false)?)
            }
        };
        let mut router =
            |part, n_out| Linear::load(&[whole(part, n_out)], hidden, false, reader, target);
        Ok(Self(Kind::Experts(Experts {
            router: router(Part::Router, experts.n_experts)?,
            blocks,
            n_used: experts.n_used,
            is_normalized: experts.is_normalized,
            shared: match shared {
                None => None,
                Some(block) => Some((router(Part::SharedRouter, 1)?, block)),
            },
        })))
    }

    /// The result for each row of `x`, shape `(n_rows, hidden_size)`.
    pub(crate) fn forward(&self, x: &Tensor) -> Computed {
        match &self.0 {
            Kind::Dense(block) => block.forward(x),
            Kind::Experts(experts) => experts.forward(x),
        }
    }
}

impl Experts {
    fn forward(&self, x: &Tensor) -> Computed {
        let device = x.device();
        let scores = softmax_last_dim(&self.router.forward(x)?)?.to_vec2::<f32>()?;
        let mut uses = vec![(Vec::new(), Vec::new()); self.blocks.len()]; // rows, weights
        for (row_idx, scores) in scores.iter().enumerate() {
            for (expert_idx, weight) in self.choice(scores) {
                uses[expert_idx].0.push(row_idx as u32);
                uses[expert_idx].1.push(weight);
            }
        }
        let mut out = x.zeros_like()?;
        for (block, (rows, weights)) in self.blocks.iter().zip(uses) {
            if rows.is_empty() {
                continue;
            }
            let weights = Tensor::new(weights, device)?.unsqueeze(1)?;
            let rows = Tensor::new(rows, device)?;
            let y = block.forward(&x.index_select(&rows, 0)?)?.broadcast_mul(&weights)?;
            out = out.index_add(&rows, &y, 0)?;
        }
        let Some((router, block)) = &self.shared else { return Ok(out) };
        let gates = sigmoid(&router.forward(x)?)?;
        out + block.forward(x)?.broadcast_mul(&gates)?
    }

    /// The experts that a token uses, with their weights. Equal scores: the first expert.
    fn choice(&self, scores: &[f32]) -> Vec<(usize, f32)> {
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        order.truncate(self.n_used);
        let total: f32 = order.iter().map(|expert_idx| scores[*expert_idx]).sum();
        let total = if self.is_normalized { total } else { 1.0 };
        order.into_iter().map(|expert_idx| (expert_idx, scores[expert_idx] / total)).collect()
    }
}

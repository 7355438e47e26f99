//! The feed-forward half of a layer: one block, or experts that a router chooses.

use pulp::Arch;
use weighbridge_core::Result;
use weighbridge_models::decoder::{Activation, DecoderConfig, Naming, Part};

use crate::linear::Linear;
use crate::ops::{GatedMul, softmax_of};
use crate::weights::{Matrix, Reader};

/// `down(activation(gate(x)) · up(x))`.
#[derive(Debug)]
pub(crate) struct Block {
    gate_up: Linear,
    down: Linear,
    width: usize,
    activation: Activation,
}

impl Block {
    /// The result for each row of `x`, lent with its stride.
    fn forward<R>(
        &self,
        arch: Arch,
        x: Vec<f32>,
        use_rows: impl FnOnce(&[f32], usize) -> R,
    ) -> Result<R> {
        let stride = self.gate_up.stride();
        let activated = self.gate_up.forward(x, |gate_up| {
            let mut out = vec![0f32; gate_up.len() / stride * self.width];
            let (width, activation) = (self.width, self.activation);
            arch.dispatch(GatedMul { gate_up, stride, width, activation, out: &mut out });
            out
        })?;
        let stride = self.down.stride();
        self.down.forward(activated, |rows| use_rows(rows, stride))
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
pub(crate) enum FeedForward {
    Dense(Block),
    Experts(Experts),
}

impl FeedForward {
    pub(crate) fn load(
        config: &DecoderConfig,
        layer_idx: usize,
        reader: &mut Reader<'_>,
    ) -> Result<Self> {
        let (hidden, naming) = (config.hidden_size, reader.naming());
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
            let has_bias = config.has_mlp_bias;
            return Ok(Self::Dense(Block {
                gate_up: reader.linear(&gate_up, hidden, has_bias)?,
                down: reader.linear(&[whole(Part::Down, hidden)], inner, has_bias)?,
                width: inner,
                activation: config.activation,
            }));
        };
        let inner = experts.intermediate_size;
        let router = reader.linear(&[whole(Part::Router, experts.n_experts)], hidden, false)?;
        let mut blocks = Vec::with_capacity(experts.n_experts);
        for expert_idx in 0..experts.n_experts {
            let matrix = |part, n_out| Matrix {
                first_row: if naming == Naming::Gguf { expert_idx * n_out } else { 0 },
                ..Matrix::new(name(part, expert_idx), n_out)
            };
            let gate_up = [matrix(Part::ExpertGate, inner), matrix(Part::ExpertUp, inner)];
            blocks.push(Block {
                gate_up: reader.linear(&gate_up, hidden, false)?,
                down: reader.linear(&[matrix(Part::ExpertDown, hidden)], inner, false)?,
                width: inner,
                activation: config.activation,
            });
        }
        let shared = match experts.shared_intermediate_size {
            None => None,
            Some(inner) => {
                let gate_up = [whole(Part::SharedGate, inner), whole(Part::SharedUp, inner)];
                let block = Block {
                    gate_up: reader.linear(&gate_up, hidden, false)?,
                    down: reader.linear(&[whole(Part::SharedDown, hidden)], inner, false)?,
                    width: inner,
                    activation: config.activation,
                };
                let router = reader.linear(&[whole(Part::SharedRouter, 1)], hidden, false)?;
                Some((router, block))
            }
        };
        let (n_used, is_normalized) = (experts.n_used, experts.is_normalized);
        Ok(Self::Experts(Experts { router, blocks, n_used, is_normalized, shared }))
    }

    /// Lends the result for each row of `x`, shape `(n_rows, width)`, with its stride.
    pub(crate) fn forward<R>(
        &self,
        arch: Arch,
        x: Vec<f32>,
        width: usize,
        use_rows: impl FnOnce(&[f32], usize) -> R,
    ) -> Result<R> {
        match self {
            Self::Dense(block) => block.forward(arch, x, use_rows),
            Self::Experts(experts) => {
                let out = experts.forward(arch, &x, width)?;
                Ok(use_rows(&out, width))
            }
        }
    }
}

impl Experts {
    fn forward(&self, arch: Arch, x: &[f32], width: usize) -> Result<Vec<f32>> {
        let n_experts = self.blocks.len();
        let mut uses = vec![Vec::new(); n_experts]; // of each expert: rows and weights
        let stride = self.router.stride();
        self.router.forward(x.to_vec(), |rows| {
            for (row_idx, row) in rows.chunks_exact(stride).enumerate() {
                for (expert_idx, weight) in self.choice(arch, &row[..n_experts]) {
                    uses[expert_idx].push((row_idx, weight));
                }
            }
        })?;
        let mut out = vec![0f32; x.len()];
        let row_of = |row_idx: usize| row_idx * width..(row_idx + 1) * width;
        // Each row adds up its experts in their order, whatever other rows there are.
        for (block, uses) in self.blocks.iter().zip(&uses) {
            if uses.is_empty() {
                continue;
            }
            let x: Vec<f32> =
                uses.iter().flat_map(|(row_idx, _)| &x[row_of(*row_idx)]).copied().collect();
            block.forward(arch, x, |rows, stride| {
                for (row, (row_idx, weight)) in rows.chunks_exact(stride).zip(uses) {
                    for (out, value) in out[row_of(*row_idx)].iter_mut().zip(row) {
                        *out += value * weight;
                    }
                }
            })?;
        }
        let Some((router, block)) = &self.shared else { return Ok(out) };
        let stride = router.stride();
        let gates: Vec<f32> = router.forward(x.to_vec(), |rows| {
            rows.chunks_exact(stride).map(|row| 1.0 / (1.0 + (-row[0]).exp())).collect()
        })?;
        block.forward(arch, x.to_vec(), |rows, stride| {
            let rows = rows.chunks_exact(stride).zip(gates);
            for (out, (row, gate)) in out.chunks_exact_mut(width).zip(rows) {
                for (out, value) in out.iter_mut().zip(row) {
                    *out += value * gate;
                }
            }
        })?;
        Ok(out)
    }

    /// The experts that a token uses, with their weights. Equal scores: the first expert.
    fn choice(&self, arch: Arch, scores: &[f32]) -> Vec<(usize, f32)> {
        let mut weights = scores.to_vec();
        softmax_of(arch, &mut weights);
        let mut order: Vec<usize> = (0..weights.len()).collect();
        order.sort_by(|a, b| weights[*b].total_cmp(&weights[*a]));
        order.truncate(self.n_used);
        let total: f32 = order.iter().map(|expert_idx| weights[*expert_idx]).sum();
        let total = if self.is_normalized { total } else { 1.0 };
        order.into_iter().map(|expert_idx| (expert_idx, weights[expert_idx] / total)).collect()
    }
}

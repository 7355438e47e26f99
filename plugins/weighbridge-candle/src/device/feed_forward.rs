//! The feed-forward half of a layer, computed.

use candle_core::Tensor;
use candle_nn::ops::{sigmoid, softmax_last_dim};
use weighbridge_models::decoder::Activation;

use super::layers::Linear;
use crate::layer::{Block, Experts, FeedForward};

type Computed = candle_core::Result<Tensor>;

impl Block<Linear> {
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

impl FeedForward<Linear> {
    /// The result for each row of `x`, shape `(n_rows, hidden_size)`.
    pub(crate) fn forward(&self, x: &Tensor) -> Computed {
        match self {
            Self::Dense(block) => block.forward(x),
            Self::Experts(experts) => experts.forward(x),
        }
    }
}

impl Experts<Linear> {
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
}

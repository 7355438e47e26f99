//! The feed-forward half of a layer, computed.

use pulp::Arch;
use weighbridge_core::Result;

use crate::layer::{Block, Experts, FeedForward};
use crate::linear::Linear;
use crate::ops::{GatedMul, softmax_of};

impl Block<Linear> {
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

impl FeedForward<Linear> {
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

impl Experts<Linear> {
    fn forward(&self, arch: Arch, x: &[f32], width: usize) -> Result<Vec<f32>> {
        let n_experts = self.blocks.len();
        let mut uses = vec![Vec::new(); n_experts]; // of each expert: rows and weights
        let stride = self.router.stride();
        self.router.forward(x.to_vec(), |rows| {
            for (row_idx, row) in rows.chunks_exact(stride).enumerate() {
                let mut weights = row[..n_experts].to_vec();
                softmax_of(arch, &mut weights);
                for (expert_idx, weight) in self.choice(&weights) {
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
}

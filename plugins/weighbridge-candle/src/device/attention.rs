//! Attention of new positions to what a cache holds.

use std::collections::HashMap;

use candle_core::{D, Result, Tensor};
use candle_nn::ops::softmax_last_dim;

use crate::attention::Heads;

/// Scores that fit: later rows of a long feed wait.
pub(crate) const MAX_SCORES: usize = 1 << 25;

/// What all layers have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attention {
    pub(crate) heads: Heads,
    /// Scores become `cap · tanh(score / cap)`.
    pub(crate) cap: Option<f64>,
    /// Most scores computed at once: [`MAX_SCORES`].
    pub(crate) max_scores: usize,
}

/// `cap · tanh(x / cap)` for each value.
pub(crate) fn soft_cap(x: Tensor, cap: Option<f64>) -> Result<Tensor> {
    match cap {
        None => Ok(x),
        Some(cap) => (x / cap)?.tanh()? * cap,
    }
}

impl Attention {
    /// Attends from each row to its own position and those before it, of which it sees as many as
    /// `window` says.
    ///
    /// `queries`: rotated and scaled, shape `(n_rows, n_heads, head_dim)`, from the position `first`
    /// on. `keys`, `values`: shape `(n_kv_heads, n_positions, head_dim)`, from position 0 on. The
    /// result has the shape `(n_rows, n_heads · head_dim)`.
    pub(crate) fn attend(
        &self,
        queries: &Tensor,
        first: usize,
        window: Option<usize>,
        (keys, values): (&Tensor, &Tensor),
        masks: &mut Masks,
    ) -> Result<Tensor> {
        let Heads { n_heads, n_kv_heads, head_dim } = self.heads;
        let group = n_heads / n_kv_heads;
        let n_rows = queries.dim(0)?;
        let n_block = (self.max_scores / (n_heads * (first + n_rows))).max(1);
        let mut blocks = Vec::new();
        for start in (0..n_rows).step_by(n_block) {
            let n = n_block.min(n_rows - start);
            let seen = Seen::new(first + start, n, window);
            let queries = queries
                .narrow(0, start, n)?
                .reshape((n, n_kv_heads, group, head_dim))?
                .transpose(0, 1)?
                .reshape((n_kv_heads, n * group, head_dim))?;
            let keys = keys.narrow(1, seen.first_key, seen.n_keys)?;
            let values = values.narrow(1, seen.first_key, seen.n_keys)?;
            let mut scores = soft_cap(queries.matmul(&keys.transpose(1, 2)?)?, self.cap)?;
            // A single row sees all that was taken.
            if n > 1 {
                let mask = masks.get(seen, &scores)?;
                scores = scores
                    .reshape((n_kv_heads, n, group, seen.n_keys))?
                    .broadcast_add(mask)?
                    .reshape((n_kv_heads, n * group, seen.n_keys))?;
            }
            let mixed = softmax_last_dim(&scores)?.matmul(&values)?;
            let mixed = mixed.reshape((n_kv_heads, n, group, head_dim))?.transpose(0, 1)?;
            blocks.push(mixed.reshape((n, n_heads * head_dim))?);
        }
        match blocks.as_slice() {
            [block] => Ok(block.clone()),
            blocks => Tensor::cat(blocks, D::Minus2),
        }
    }
}

/// Rows and the positions that any of them sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Seen {
    first: usize,
    n_rows: usize,
    window: Option<usize>,
    first_key: usize,
    n_keys: usize,
}

impl Seen {
    fn new(first: usize, n_rows: usize, window: Option<usize>) -> Self {
        let first_key = window.map_or(0, |window| (first + 1).saturating_sub(window));
        Self { first, n_rows, window, first_key, n_keys: first + n_rows - first_key }
    }

    /// 0 where a row sees a position and -∞ elsewhere, shape `(n_rows, n_keys)`.
    fn mask(self) -> Vec<f32> {
        let rows = self.first..self.first + self.n_rows;
        let values = rows.flat_map(|row| {
            (self.first_key..self.first_key + self.n_keys).map(move |key| {
                let is_seen = key <= row && self.window.is_none_or(|window| key + window > row);
                if is_seen { 0.0 } else { f32::NEG_INFINITY }
            })
        });
        values.collect()
    }
}

/// The masks of a feed, which its layers share.
#[derive(Debug, Default)]
pub(crate) struct Masks(HashMap<Seen, Tensor>);

impl Masks {
    /// Shape `(n_rows, 1, n_keys)`, on the device of `like`.
    fn get(&mut self, seen: Seen, like: &Tensor) -> Result<&Tensor> {
        use std::collections::hash_map::Entry;
        match self.0.entry(seen) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                let shape = (seen.n_rows, 1, seen.n_keys);
                Ok(entry.insert(Tensor::from_vec(seen.mask(), shape, like.device())?))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn blocks_of_rows_are_parts_of_the_whole() {
        let heads = Heads { n_heads: 4, n_kv_heads: 2, head_dim: 8 };
        let rows = |n_rows: usize, n_heads: usize| {
            let n_values = n_rows * n_heads * heads.head_dim;
            let values: Vec<f32> = (0..n_values).map(|i| (i as f32 * 0.37).sin()).collect();
            Tensor::new(values, &Device::Cpu).unwrap()
        };
        let queries = rows(9, 4).reshape((9, 4, 8)).unwrap();
        let (keys, values) = (rows(32, 2), rows(32, 2).neg().unwrap());
        let (keys, values) =
            (keys.reshape((2, 32, 8)).unwrap(), values.reshape((2, 32, 8)).unwrap());
        for window in [None, Some(4)] {
            let attend = |max_scores| {
                let attention = Attention { heads, cap: Some(2.0), max_scores };
                let masks = &mut Masks::default();
                let out = attention.attend(&queries, 20, window, (&keys, &values), masks).unwrap();
                assert_eq!(out.dims(), [9, 32]);
                out.flatten_all().unwrap().to_vec1::<f32>().unwrap()
            };
            let whole = attend(MAX_SCORES);
            for max_scores in [1, 4 * 29 * 2, 4 * 29 * 5] {
                let worst = whole.iter().zip(attend(max_scores)).map(|(a, b)| (a - b).abs());
                assert!(worst.fold(0.0, f32::max) < 1e-6);
            }
        }
    }

    #[test]
    fn rows_see_themselves_and_what_a_window_leaves() {
        let (see, not) = (0.0, f32::NEG_INFINITY);
        let all = Seen::new(1, 2, None);
        assert_eq!((all.first_key, all.mask()), (0, vec![see, see, not, see, see, see]));
        let some = Seen::new(4, 2, Some(2));
        assert_eq!((some.first_key, some.mask()), (3, vec![see, see, not, not, see, see]));
        assert_eq!(Seen::new(0, 1, Some(8)).mask(), [see]);
    }
}

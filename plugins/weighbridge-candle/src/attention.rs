//! Attention of new positions to what a cache holds.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use crate::cache::LayerCache;
use crate::ops::{add_scaled, dot, softmax};

/// Heads and their width.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    pub(crate) n_heads: usize,
    pub(crate) n_kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl Heads {
    /// Width of all query heads.
    pub(crate) fn q_width(self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Width of all key heads, and of all value heads.
    pub(crate) fn kv_width(self) -> usize {
        self.n_kv_heads * self.head_dim
    }
}

/// New positions of one sequence that attend to its cache.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Queries<'a> {
    pub(crate) heads: Heads,
    /// Rotated and scaled, shape `(n_rows, n_heads, head_dim)`.
    pub(crate) rows: &'a [f32],
    /// Position of the first row; the cache has the keys and values of all of them.
    pub(crate) first: usize,
    /// How many positions each sees, itself included; `None` for all.
    pub(crate) window: Option<usize>,
}

/// Multiply-adds for which a second thread is worth waking.
const MIN_PARALLEL: usize = 4 << 20;

/// Attends from each row to its own position and those before it. `out` has the shape of the rows.
pub(crate) fn attend(queries: Queries<'_>, cache: &LayerCache, out: &mut [f32]) {
    let width = queries.heads.q_width();
    let arch = Arch::new();
    let run = |first_row: usize, out: &mut [f32]| {
        arch.dispatch(Attend { queries, cache, first_row, out });
    };
    let n_rows = out.len() / width;
    let n_seen = queries.window.unwrap_or(usize::MAX).min(queries.first + n_rows);
    if 2 * n_rows * n_seen * width < MIN_PARALLEL || rayon::current_num_threads() == 1 {
        return run(0, out);
    }
    // Small pieces: later rows see more than earlier ones.
    let n_each = n_rows.div_ceil(8 * rayon::current_num_threads());
    out.par_chunks_mut(n_each * width).enumerate().for_each(|(i, out)| run(i * n_each, out));
}

/// Rows from `first_row` on, as many as `out` has.
struct Attend<'a> {
    queries: Queries<'a>,
    cache: &'a LayerCache,
    first_row: usize,
    out: &'a mut [f32],
}

impl WithSimd for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Heads { n_heads, n_kv_heads, head_dim } = self.queries.heads;
        let width = self.queries.heads.q_width();
        let group = n_heads / n_kv_heads * head_dim;
        let queries = &self.queries.rows[self.first_row * width..];
        let mut scores = Vec::new();
        let rows = queries.chunks_exact(width).zip(self.out.chunks_exact_mut(width));
        for (row_idx, (query, out)) in rows.enumerate() {
            let end = self.queries.first + self.first_row + row_idx + 1;
            let first = match self.queries.window {
                Some(window) => end.saturating_sub(window),
                None => 0,
            };
            scores.resize(end - first, 0f32);
            let groups = query.chunks_exact(group).zip(out.chunks_exact_mut(group));
            for (kv_head, (query, out)) in groups.enumerate() {
                let keys = &self.cache.keys[kv_head][first * head_dim..end * head_dim];
                let values = &self.cache.values[kv_head][first * head_dim..end * head_dim];
                let heads = query.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim));
                for (query, out) in heads {
                    for (score, key) in scores.iter_mut().zip(keys.chunks_exact(head_dim)) {
                        *score = dot(query, key);
                    }
                    softmax(&mut scores);
                    out.fill(0.0);
                    for (probability, value) in scores.iter().zip(values.chunks_exact(head_dim)) {
                        add_scaled(out, *probability, value);
                    }
                }
            }
        }
    }
}

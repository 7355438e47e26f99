//! Attention of new positions to what a cache holds.

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

/// Attends from one position to itself and those before it, at most `window` altogether.
///
/// `query`, `out`: shape `(n_heads, head_dim)`, the query already rotated and scaled; the cache
/// already has the position's own key and value. `scores` is scratch.
pub(crate) fn attend(
    heads: Heads,
    query: &[f32],
    cache: &LayerCache,
    position: usize,
    window: Option<usize>,
    scores: &mut Vec<f32>,
    out: &mut [f32],
) {
    let Heads { n_heads, n_kv_heads, head_dim } = heads;
    let group = n_heads / n_kv_heads * head_dim;
    let first = window.map_or(0, |window| (position + 1).saturating_sub(window));
    let seen = first * head_dim..(position + 1) * head_dim;
    let per_kv_head = query.chunks_exact(group).zip(out.chunks_exact_mut(group));
    for ((keys, values), (query, out)) in cache.keys.iter().zip(&cache.values).zip(per_kv_head) {
        let (keys, values) = (&keys[seen.clone()], &values[seen.clone()]);
        for (query, out) in query.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim)) {
            scores.clear();
            scores.extend(keys.chunks_exact(head_dim).map(|key| dot(query, key)));
            softmax(scores);
            out.fill(0.0);
            for (probability, value) in scores.iter().zip(values.chunks_exact(head_dim)) {
                add_scaled(out, *probability, value);
            }
        }
    }
}

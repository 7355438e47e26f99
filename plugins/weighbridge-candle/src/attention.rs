//! Attention of new positions to what a cache holds.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use weighbridge_models::decoder::DecoderConfig;

use crate::cache::LayerCache;
use crate::ops::{LANES, lanes, load, mul_add, soft_cap, softmax, with_tile};

/// Heads and their width.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    pub(crate) n_heads: usize,
    pub(crate) n_kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl Heads {
    pub(crate) fn of(config: &DecoderConfig) -> Self {
        Self { n_heads: config.n_heads, n_kv_heads: config.n_kv_heads, head_dim: config.head_dim }
    }

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
    /// Scores become `cap · tanh(score / cap)`.
    pub(crate) cap: Option<f32>,
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
    fn with_simd<S: Simd>(self, simd: S) {
        with_tile!(S, V, self.run::<S, V>(simd))
    }
}

impl Attend<'_> {
    #[inline(always)]
    fn run<S: Simd, const V: usize>(self, simd: S) {
        let Heads { n_heads, n_kv_heads, head_dim } = self.queries.heads;
        let width = self.queries.heads.q_width();
        let group = n_heads / n_kv_heads * head_dim;
        let value_width = head_dim.next_multiple_of(LANES);
        let queries = &self.queries.rows[self.first_row * width..];
        let mut scores = Vec::new();
        let rows = queries.chunks_exact(width).zip(self.out.chunks_exact_mut(width));
        for (row_idx, (query, out)) in rows.enumerate() {
            let end = self.queries.first + self.first_row + row_idx + 1;
            let first = match self.queries.window {
                Some(window) => end.saturating_sub(window),
                None => 0,
            };
            // Whole blocks are scored; what lies outside of `first..end` is not looked at again.
            let (first_block, end_block) = (first / LANES, end.div_ceil(LANES));
            let seen = first - first_block * LANES..end - first_block * LANES;
            scores.resize((end_block - first_block) * LANES, 0f32);
            let groups = query.chunks_exact(group).zip(out.chunks_exact_mut(group));
            for (kv_head, (query, out)) in groups.enumerate() {
                let keys = &self.cache.keys[kv_head];
                let (keys, _) = keys[first_block * LANES * head_dim..end_block * LANES * head_dim]
                    .as_chunks::<LANES>();
                let values = &self.cache.values[kv_head][first * value_width..end * value_width];
                let heads = query.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim));
                for (query, out) in heads {
                    score::<S, V>(simd, query, keys, &mut scores);
                    let probabilities = &mut scores[seen.clone()];
                    if let Some(cap) = self.queries.cap {
                        soft_cap(probabilities, cap);
                    }
                    softmax::<S, V>(simd, probabilities);
                    mix::<S, V>(simd, probabilities, values, out);
                }
            }
        }
    }
}

/// `keys · query` for blocks of positions. `keys`: shape `(n_blocks, head_dim)` of lanes.
#[inline(always)]
fn score<S: Simd, const V: usize>(
    simd: S,
    query: &[f32],
    keys: &[[f32; LANES]],
    scores: &mut [f32],
) {
    // Several blocks at once: each sum is one chain, which alone would wait for itself.
    const BLOCKS: usize = 4;
    let head_dim = query.len();
    let (scores, _) = scores.as_chunks_mut::<LANES>();
    let keys = keys.chunks(BLOCKS * head_dim);
    for (keys, scores) in keys.zip(scores.chunks_mut(BLOCKS)) {
        if let [s0, s1, s2, s3] = scores {
            let mut sums = [[simd.splat_f32s(0.0); V]; BLOCKS];
            let (k0, rest) = keys.split_at(head_dim);
            let (k1, rest) = rest.split_at(head_dim);
            let (k2, k3) = rest.split_at(head_dim);
            for ((((query, k0), k1), k2), k3) in query.iter().zip(k0).zip(k1).zip(k2).zip(k3) {
                let query = [simd.splat_f32s(*query); V];
                mul_add(simd, &query, load::<S, V>(k0), &mut sums[0]);
                mul_add(simd, &query, load::<S, V>(k1), &mut sums[1]);
                mul_add(simd, &query, load::<S, V>(k2), &mut sums[2]);
                mul_add(simd, &query, load::<S, V>(k3), &mut sums[3]);
            }
            [*s0, *s1, *s2, *s3] = sums.map(lanes::<S, V>);
            continue;
        }
        for (keys, scores) in keys.chunks_exact(head_dim).zip(scores) {
            let mut sums = [simd.splat_f32s(0.0); V];
            for (query, key) in query.iter().zip(keys) {
                mul_add(simd, &[simd.splat_f32s(*query); V], load::<S, V>(key), &mut sums);
            }
            *scores = lanes::<S, V>(sums);
        }
    }
}

/// `Σ probability · value`. `values`: a row of whole tiles for each probability.
#[inline(always)]
fn mix<S: Simd, const V: usize>(simd: S, probabilities: &[f32], values: &[f32], out: &mut [f32]) {
    let (values, _) = values.as_chunks::<LANES>();
    let n_tiles = out.len().div_ceil(LANES);
    let (fours, rest) = probabilities.as_chunks::<4>();
    for (tile_idx, out) in out.chunks_mut(LANES).enumerate() {
        let mut sums = [[simd.splat_f32s(0.0); V]; 4];
        let mut rows = values[tile_idx..].iter().step_by(n_tiles);
        for four in fours {
            for (sums, probability) in sums.iter_mut().zip(four) {
                let Some(value) = rows.next() else { break };
                mul_add(simd, &[simd.splat_f32s(*probability); V], load::<S, V>(value), sums);
            }
        }
        for (sums, (probability, value)) in sums.iter_mut().zip(rest.iter().zip(rows)) {
            mul_add(simd, &[simd.splat_f32s(*probability); V], load::<S, V>(value), sums);
        }
        let [mut a, b, mut c, d] = sums;
        for v in 0..V {
            a[v] = simd.add_f32s(a[v], b[v]);
            c[v] = simd.add_f32s(c[v], d[v]);
            a[v] = simd.add_f32s(a[v], c[v]);
        }
        out.copy_from_slice(&lanes::<S, V>(a)[..out.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{Cache, CacheShape};

    #[test]
    fn threads_and_narrower_vectors_change_no_bit() {
        let heads = Heads { n_heads: 4, n_kv_heads: 2, head_dim: 24 };
        let (n_past, n_rows) = (700, 150);
        let mut state = 1u32;
        let mut values = |n: usize| -> Vec<f32> {
            let next = |_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / 8_388_608.0 - 1.0
            };
            (0..n).map(next).collect()
        };
        let mut cache = Cache::new(CacheShape { n_layers: 1, n_kv_heads: 2, head_dim: 24 });
        let layer = cache.layer(0, n_past + n_rows);
        for position in 0..n_past + n_rows {
            for head in 0..2 {
                layer.set(head, position, &values(24), &values(24));
            }
        }
        let rows = values(n_rows * heads.q_width());
        for window in [None, Some(600)] {
            let queries = Queries { heads, rows: &rows, first: n_past, window, cap: None };
            let attended = |n_threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
                let mut out = vec![0f32; rows.len()];
                pool.install(|| attend(queries, layer, &mut out));
                out
            };
            assert!(2 * n_rows * 600 * heads.q_width() > MIN_PARALLEL);
            assert_eq!(attended(1), attended(3));
            #[cfg(target_arch = "x86_64")]
            if let Some(narrow) = pulp::x86::V3::try_new() {
                let mut out = vec![0f32; rows.len()];
                Simd::vectorize(
                    narrow,
                    Attend { queries, cache: layer, first_row: 0, out: &mut out },
                );
                assert_eq!(out, attended(1), "vectors of 8 values");
            }
        }
    }

    /// The same in the plainest way and in `f64`.
    #[test]
    fn it_is_what_the_formula_says_for_every_length_and_window() {
        let heads = Heads { n_heads: 1, n_kv_heads: 1, head_dim: 6 };
        let mut cache = Cache::new(CacheShape { n_layers: 1, n_kv_heads: 1, head_dim: 6 });
        let value = |position: usize, i: usize| ((position * 7 + i * 3) % 11) as f32 / 5.0 - 1.0;
        let layer = cache.layer(0, 150);
        for position in 0..150 {
            let key: Vec<f32> = (0..6).map(|i| value(position * 5 + 1, i)).collect();
            let values: Vec<f32> = (0..6).map(|i| value(position, i)).collect();
            layer.set(0, position, &key, &values);
        }
        let query: Vec<f32> = (0..6).map(|i| value(3, i)).collect();
        for first in 0..150 {
            for window in [None, Some(1), Some(5), Some(16), Some(100)] {
                let mut out = [0f32; 6];
                attend(Queries { heads, rows: &query, first, window, cap: None }, layer, &mut out);
                let start = window.map_or(0, |window| (first + 1).saturating_sub(window));
                let weight = |position: usize| {
                    let dot: f64 = (0..6)
                        .map(|i| f64::from(query[i]) * f64::from(value(position * 5 + 1, i)))
                        .sum();
                    dot.exp()
                };
                let total: f64 = (start..=first).map(weight).sum();
                for (i, got) in out.iter().enumerate() {
                    let sum: f64 =
                        (start..=first).map(|p| weight(p) * f64::from(value(p, i))).sum();
                    assert!((f64::from(*got) - sum / total).abs() < 1e-5, "{first} {window:?}");
                }
            }
        }
    }
}

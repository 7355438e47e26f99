//! The small operations of a decoder, as loops over contiguous slices.
//!
//! At the widths of small models a tensor library spends more time on dispatch than on these, so
//! only matrix products go through it. Sums run over a fixed number of lanes, which lets the
//! compiler use vector instructions and gives the same bits with all of them. Everything is computed
//! in `f32` and inlined by force: code that is not inlined into the body that vector instructions
//! were chosen for does without them. Closures given to iterators are not, so there are loops.

use pulp::{Simd, WithSimd};

/// Lanes of the partial sums: one 512-bit register, or a few smaller ones.
const LANES: usize = 16;

/// `Σ a·b`. Both slices have the same length.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0f32; LANES];
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let mut sum = fold(sums);
    for (a, b) in a_rest.iter().zip(b_rest) {
        sum += a * b;
    }
    sum
}

#[inline(always)]
fn fold(sums: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    let mut sums = sums;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0]
}

/// `out += factor · x`.
#[inline(always)]
pub(crate) fn add_scaled(out: &mut [f32], factor: f32, x: &[f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out += factor * x;
    }
}

/// `out += x`.
#[inline(always)]
pub(crate) fn add(out: &mut [f32], x: &[f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out += x;
    }
}

/// Each row of `x` divided by its root mean square and multiplied with `weight`; `out` has the shape
/// of `x`.
///
/// Zhang and Sennrich 2019, equation 4, with `eps` inside the root as Llama has it.
pub(crate) struct RmsNorm<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) weight: &'a [f32],
    pub(crate) eps: f32,
    pub(crate) out: &'a mut [f32],
}

impl WithSimd for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let width = self.weight.len();
        for (row, out) in self.x.chunks_exact(width).zip(self.out.chunks_exact_mut(width)) {
            let scale = 1.0 / (dot(row, row) / width as f32 + self.eps).sqrt();
            for ((out, x), weight) in out.iter_mut().zip(row).zip(self.weight) {
                *out = x * scale * weight;
            }
        }
    }
}

/// `silu(gate) · up` for each row of `stride` values, which begins with `gate` and `up`; `out` has
/// rows of `width`.
pub(crate) struct SiluMul<'a> {
    pub(crate) gate_up: &'a [f32],
    pub(crate) stride: usize,
    pub(crate) width: usize,
    pub(crate) out: &'a mut [f32],
}

impl WithSimd for SiluMul<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let rows = self.gate_up.chunks_exact(self.stride);
        for (row, out) in rows.zip(self.out.chunks_exact_mut(self.width)) {
            let (gate, row) = row.split_at(self.width);
            for ((out, gate), up) in out.iter_mut().zip(gate).zip(&row[..self.width]) {
                *out = gate / (1.0 + exp(-gate)) * up;
            }
        }
    }
}

/// Turns scores into probabilities, in place. An empty slice stays empty.
#[inline(always)]
pub(crate) fn softmax(scores: &mut [f32]) {
    let max = max(scores);
    for score in scores.iter_mut() {
        *score = exp(*score - max);
    }
    let scale = 1.0 / sum(scores);
    for score in scores.iter_mut() {
        *score *= scale;
    }
}

#[inline(always)]
fn max(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = larger(lanes[lane], chunk[lane]);
        }
    }
    let mut max = f32::NEG_INFINITY;
    for value in lanes.iter().chain(rest) {
        max = larger(max, *value);
    }
    max
}

#[inline(always)]
fn sum(values: &[f32]) -> f32 {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [0f32; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] += chunk[lane];
        }
    }
    let mut sum = fold(lanes);
    for value in rest {
        sum += value;
    }
    sum
}

/// `e^x` to within 2 units in the last place; written so that a loop over it becomes vector code,
/// which a call of the C library's does not.
///
/// `x = n ln 2 + r` with `|r| ≤ ln 2 / 2`; the polynomial of `e^r` is the one of Cephes' `expf`.
/// Below -87 the result is the smallest normal number instead of a denormal one or 0.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding and subtracting 1.5 · 2^23 rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let e_r = p * r * r + r + 1.0;
    // The integer sits in the low bits of `shifted`; into the exponent with it.
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    e_r * scale
}

/// Rotates one head in place: element `i` with element `i + d/2`, as Hugging Face models have it.
///
/// `cos`, `sin`: shape `(d / 2,)`, for the position of the row.
#[inline(always)]
pub(crate) fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (low, high) = head.split_at_mut(cos.len());
    for (((low, high), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        (*low, *high) = (*low * cos - *high * sin, *high * cos + *low * sin);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dot_covers_lengths_that_lanes_do_not_divide() {
        for n in 0..70usize {
            let a: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let b = vec![2.0; n];
            assert_eq!(dot(&a, &b), (n * n.saturating_sub(1)) as f32);
        }
    }

    #[test]
    fn exp_is_close_over_the_whole_range() {
        let mut x = -87.0f32;
        let mut worst = 0f64;
        while x < 88.0 {
            let expected = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - expected).abs() / expected);
            x += 0.001_3;
        }
        assert!(worst < 2.5e-7, "{worst:e}");
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(-1e30) < 2e-38 && exp(f32::NEG_INFINITY) < 2e-38);
        assert!(exp(1e30).is_finite() && exp(1e30) > 1e38);
    }

    #[test]
    fn softmax_of_extremes_stays_a_distribution() {
        let mut scores = [1e4, -1e4, 1e4];
        softmax(&mut scores);
        assert!((scores[0] - 0.5).abs() < 1e-6 && scores[1] < 1e-30);
        softmax(&mut []);
        let mut one = [-3.0];
        softmax(&mut one);
        assert_eq!(one, [1.0]);
    }

    #[test]
    fn a_norm_of_a_constant_row_is_its_weight() {
        let mut out = [0.0; 4];
        let (x, weight) = (&[2.0, 2.0, -3.0, 3.0], &[1.0, 0.5]);
        pulp::Arch::new().dispatch(RmsNorm { x, weight, eps: 0.0, out: &mut out });
        assert_eq!(out, [1.0, 0.5, -1.0, 0.5]);
    }

    #[test]
    fn a_quarter_turn_swaps_the_halves() {
        let mut head = [1.0, 2.0, 3.0, 4.0];
        rotate(&mut head, &[0.0, 0.0], &[1.0, 1.0]);
        assert_eq!(head, [-3.0, -4.0, 1.0, 2.0]);
    }
}

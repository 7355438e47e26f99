//! The small operations of a decoder, on contiguous slices of `f32`.
//!
//! At the widths of small models a tensor library spends more time on dispatch than on these. They
//! are written on a tile of 16 lanes, whatever the machine's vectors hold: so sums run in the same
//! order everywhere, and the bits are the same wherever there is a fused multiply-add.
//!
//! All of it is inlined by force: code that is not inlined into the body for which vector
//! instructions were chosen does without them. That includes closures given to iterators.

use pulp::{Arch, Simd, WithSimd};
use weighbridge_models::decoder::Activation;

/// Lanes of a tile: one 512-bit register, or a few smaller ones.
pub(crate) const LANES: usize = 16;

/// Evaluates `$body` with `$V` as the number of vectors that make a tile.
macro_rules! with_tile {
    ($S:ident, $V:ident, $body:expr) => {
        match $crate::ops::LANES / $S::F32_LANES {
            1 => {
                const $V: usize = 1;
                $body
            }
            2 => {
                const $V: usize = 2;
                $body
            }
            4 => {
                const $V: usize = 4;
                $body
            }
            _ => {
                const $V: usize = 16;
                $body
            }
        }
    };
}
pub(crate) use with_tile;

/// A tile in vectors.
#[inline(always)]
pub(crate) fn load<S: Simd, const V: usize>(lanes: &[f32; LANES]) -> &[S::f32s; V] {
    let (vectors, _) = S::as_simd_f32s(lanes);
    vectors.first_chunk().expect("V vectors make a tile")
}

/// `sums + a·b` for a tile.
#[inline(always)]
pub(crate) fn mul_add<S: Simd, const V: usize>(
    simd: S,
    a: &[S::f32s; V],
    b: &[S::f32s; V],
    sums: &mut [S::f32s; V],
) {
    for v in 0..V {
        sums[v] = simd.mul_add_e_f32s(a[v], b[v], sums[v]);
    }
}

/// The lanes of a tile.
#[inline(always)]
pub(crate) fn lanes<S: Simd, const V: usize>(tile: [S::f32s; V]) -> [f32; LANES] {
    let mut lanes = [0f32; LANES];
    let (vectors, _) = S::as_mut_simd_f32s(&mut lanes);
    vectors.copy_from_slice(&tile);
    lanes
}

/// Up to a tile of values, the rest filled up.
#[inline(always)]
fn padded(values: &[f32], fill: f32) -> [f32; LANES] {
    let mut lanes = [fill; LANES];
    lanes[..values.len()].copy_from_slice(values);
    lanes
}

/// The lanes as one value, in a fixed order.
#[inline(always)]
fn fold(mut lanes: [f32; LANES], join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = join(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// `Σ x²`.
#[inline(always)]
fn sum_of_squares<S: Simd, const V: usize>(simd: S, x: &[f32]) -> f32 {
    let (tiles, rest) = x.as_chunks::<LANES>();
    let mut sums = [simd.splat_f32s(0.0); V];
    for tile in tiles {
        let tile = load::<S, V>(tile);
        mul_add(simd, tile, tile, &mut sums);
    }
    let rest = padded(rest, 0.0);
    let rest = load::<S, V>(&rest);
    mul_add(simd, rest, rest, &mut sums);
    fold(lanes::<S, V>(sums), |a, b| a + b)
}

/// `out += x`.
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
    fn with_simd<S: Simd>(self, simd: S) {
        let width = self.weight.len();
        for (row, out) in self.x.chunks_exact(width).zip(self.out.chunks_exact_mut(width)) {
            let squares = with_tile!(S, V, sum_of_squares::<S, V>(simd, row));
            let scale = 1.0 / (squares / width as f32 + self.eps).sqrt();
            for ((out, x), weight) in out.iter_mut().zip(row).zip(self.weight) {
                *out = x * scale * weight;
            }
        }
    }
}

/// `activation(gate) · up` for each row of `stride` values, which begins with `gate` and `up`; `out`
/// has rows of `width`.
pub(crate) struct GatedMul<'a> {
    pub(crate) gate_up: &'a [f32],
    pub(crate) stride: usize,
    pub(crate) width: usize,
    pub(crate) activation: Activation,
    pub(crate) out: &'a mut [f32],
}

impl WithSimd for GatedMul<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let rows = self.gate_up.chunks_exact(self.stride);
        for (row, out) in rows.zip(self.out.chunks_exact_mut(self.width)) {
            let (gate, row) = row.split_at(self.width);
            let values = out.iter_mut().zip(gate).zip(&row[..self.width]);
            match self.activation {
                Activation::Silu => {
                    for ((out, gate), up) in values {
                        *out = gate / (1.0 + exp(-gate)) * up;
                    }
                }
                Activation::GeluTanh => {
                    for ((out, gate), up) in values {
                        *out = gelu_tanh(*gate) * up;
                    }
                }
            }
        }
    }
}

/// GELU approximated by tanh: Hendrycks and Gimpel 2016, section 2.
#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    // (1 + tanh u) / 2 = 1 / (1 + e^-2u)
    x / (1.0 + exp(-2.0 * SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x)))
}

/// `cap · tanh(x / cap)` for each value.
#[inline(always)]
pub(crate) fn soft_cap(values: &mut [f32], cap: f32) {
    for value in values {
        *value = cap - 2.0 * cap / (exp(2.0 * *value / cap) + 1.0);
    }
}

/// [`softmax`] with the machine's vector instructions.
pub(crate) fn softmax_of(arch: Arch, scores: &mut [f32]) {
    struct Softmax<'a>(&'a mut [f32]);
    impl WithSimd for Softmax<'_> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            with_tile!(S, V, softmax::<S, V>(simd, self.0));
        }
    }
    arch.dispatch(Softmax(scores));
}

/// Turns scores into probabilities, in place. An empty slice stays empty.
#[inline(always)]
pub(crate) fn softmax<S: Simd, const V: usize>(simd: S, scores: &mut [f32]) {
    let (tiles, rest) = scores.as_chunks::<LANES>();
    let rest = padded(rest, f32::NEG_INFINITY);
    let mut largest = *load::<S, V>(&rest);
    for tile in tiles {
        let tile = load::<S, V>(tile);
        for v in 0..V {
            largest[v] = simd.max_f32s(largest[v], tile[v]);
        }
    }
    let max = fold(lanes::<S, V>(largest), |a, b| if a > b { a } else { b });
    for score in scores.iter_mut() {
        *score = exp(*score - max);
    }
    let (tiles, rest) = scores.as_chunks::<LANES>();
    let rest = padded(rest, 0.0);
    let mut sums = *load::<S, V>(&rest);
    for tile in tiles {
        let tile = load::<S, V>(tile);
        for v in 0..V {
            sums[v] = simd.add_f32s(sums[v], tile[v]);
        }
    }
    let scale = 1.0 / fold(lanes::<S, V>(sums), |a, b| a + b);
    for score in scores.iter_mut() {
        *score *= scale;
    }
}

/// `e^x` to within 2 units in the last place; written so that a loop over it becomes vector code,
/// which a call of the C library's does not.
///
/// `x = n ln 2 + r` with `|r| ≤ ln 2 / 2`; the polynomial of `e^r` is the one of Cephes' `expf`.
/// Below -87 the result is that of -87, in place of denormal numbers and 0.
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
/// `cos`, `sin`: shape `(d / 2,)`, for the position of the row. Values of the head beyond `d` stay.
pub(crate) fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (low, high) = head[..2 * cos.len()].split_at_mut(cos.len());
    for (((low, high), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        (*low, *high) = (*low * cos - *high * sin, *high * cos + *low * sin);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn softmax_is_a_distribution_for_every_length_and_for_extremes() {
        for n in 0..40usize {
            let mut scores: Vec<f32> = (0..n).map(|i| (i as f32 - 7.0) * 0.5).collect();
            let total: f64 = scores.iter().map(|x| f64::from(*x).exp()).sum();
            let expected: Vec<f64> = scores.iter().map(|x| f64::from(*x).exp() / total).collect();
            softmax_of(Arch::new(), &mut scores);
            for (got, expected) in scores.iter().zip(expected) {
                assert!((f64::from(*got) - expected).abs() < 1e-6);
            }
        }
        let mut scores = [1e4, -1e4, 1e4];
        softmax_of(Arch::new(), &mut scores);
        assert!((scores[0] - 0.5).abs() < 1e-6 && scores[1] < 1e-30);
    }

    #[test]
    fn a_norm_of_a_constant_row_is_its_weight() {
        for width in [1, 2, 15, 16, 17, 48] {
            let weight: Vec<f32> = (0..width).map(|i| i as f32 * 0.25).collect();
            let mut out = vec![0.0; width];
            let x = vec![-2.0; width];
            Arch::new().dispatch(RmsNorm { x: &x, weight: &weight, eps: 0.0, out: &mut out });
            assert!(out.iter().zip(&weight).all(|(out, weight)| *out == -weight), "{width}");
        }
    }

    #[test]
    fn a_quarter_turn_swaps_the_halves() {
        let mut head = [1.0, 2.0, 3.0, 4.0];
        rotate(&mut head, &[0.0, 0.0], &[1.0, 1.0]);
        assert_eq!(head, [-3.0, -4.0, 1.0, 2.0]);
    }
}

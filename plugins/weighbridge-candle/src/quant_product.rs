//! Products of rows with a packed quantized matrix, in `f32`.
//!
//! Weights stay quantized in memory and become `f32` a few hundred at a time; activations are not
//! rounded. Every element of a result is a sum over groups that share a scale, each of which is one
//! chain of multiply-adds, all in a fixed order: what a row gives does not depend on what it is
//! batched with, on the width of vectors or on the number of threads, bit for bit.

use pulp::{Arch, Simd, WithSimd};

use crate::product::{PANEL, Row, pack, spread};
use crate::quant::{Codes, Form};

/// Most rows that are computed together: their sums stay in registers.
const MAX_ROWS: usize = 6;
/// Inner values that are unpacked at once: they stay in the first-level cache.
const CHUNK: usize = 128;
/// Inner values of which two share a byte, the first sixteen with the last.
const PAIRED: usize = 32;

/// A matrix in panels of columns: its output dimension is cut, its inner dimension outermost.
#[derive(Debug)]
pub(crate) struct Quantized {
    form: Form,
    codes: Vec<[u8; PANEL]>, // (n_panels, n_in, PANEL), half of n_in for nibbles
    scales: Vec<Row>,        // (n_panels, n_groups, PANEL)
    mins: Vec<Row>,          // (n_panels, n_groups, PANEL), or empty
    n_in: usize,
    n_out: usize,
}

impl Quantized {
    /// One without rows yet. `n_in` is a multiple of 32.
    pub(crate) fn new(form: Form, n_in: usize, n_out: usize) -> Self {
        let n_panels = n_out.div_ceil(PANEL);
        let n_code_rows = if form.is_nibble { n_in / 2 } else { n_in };
        let n_groups = n_panels * n_in / form.group;
        Self {
            form,
            codes: vec![[0; PANEL]; n_panels * n_code_rows],
            scales: vec![[0.0; PANEL]; n_groups],
            mins: vec![[0.0; PANEL]; if form.has_min { n_groups } else { 0 }],
            n_in,
            n_out,
        }
    }

    /// Rows of the matrix.
    pub(crate) fn n_out(&self) -> usize {
        self.n_out
    }

    /// Columns of its products, whole panels.
    pub(crate) fn stride(&self) -> usize {
        self.n_out.next_multiple_of(PANEL)
    }

    /// Sets the weights of one output.
    pub(crate) fn set(&mut self, out_idx: usize, row: &Codes) {
        let (panel, column) = (out_idx / PANEL, out_idx % PANEL);
        if self.form.is_nibble {
            let codes = &mut self.codes[panel * self.n_in / 2..];
            let (blocks, _) = codes.as_chunks_mut::<{ PAIRED / 2 }>();
            for (block, codes) in blocks.iter_mut().zip(row.codes.chunks_exact(PAIRED)) {
                let (low, high) = codes.split_at(PAIRED / 2);
                for ((to, low), high) in block.iter_mut().zip(low).zip(high) {
                    to[column] = *low as u8 | (*high as u8) << 4;
                }
            }
        } else {
            let codes = &mut self.codes[panel * self.n_in..];
            for (to, code) in codes.iter_mut().zip(&row.codes) {
                to[column] = *code as u8;
            }
        }
        let at = panel * (self.n_in / self.form.group);
        for (to, scale) in self.scales[at..].iter_mut().zip(&row.scales) {
            to[column] = *scale;
        }
        if self.form.has_min {
            for (to, min) in self.mins[at..].iter_mut().zip(&row.mins) {
                to[column] = *min;
            }
        }
    }

    /// `x · W`, shape `(n_rows, stride)`; `x`: shape `(n_rows, n_in)`.
    pub(crate) fn product(&self, x: &[f32]) -> Vec<f32> {
        let n_rows = x.len() / self.n_in;
        let sums: Vec<f32> =
            x.chunks_exact(self.form.group).map(|group| group.iter().sum()).collect();
        let sums = pack(&sums, self.n_in / self.form.group, MAX_ROWS);
        let x = pack(x, self.n_in, MAX_ROWS);
        let arch = Arch::new();
        spread(n_rows, self.stride() / PANEL, self.n_in, |range, out| {
            let stride = range.len();
            arch.dispatch(Panels {
                matrix: self,
                x: &x,
                sums: &sums,
                first_panel: range.start,
                out,
                stride,
            });
        })
    }
}

/// Some panels for all rows.
struct Panels<'a> {
    matrix: &'a Quantized,
    x: &'a [f32],
    sums: &'a [f32],
    first_panel: usize,
    out: &'a mut [Row], // (n_rows, stride)
    stride: usize,
}

impl WithSimd for Panels<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { matrix, x, sums, first_panel, out, stride } = self;
        let (n_in, form) = (matrix.n_in, matrix.form);
        let n_groups = n_in / form.group;
        let mut scratch = [[0f32; PANEL]; CHUNK];
        for panel_idx in 0..stride {
            let panel = first_panel + panel_idx;
            for start in (0..n_in).step_by(CHUNK) {
                let n = CHUNK.min(n_in - start);
                let weights = &mut scratch[..n];
                if form.is_nibble {
                    let at = (panel * n_in + start) / 2;
                    unpack_nibbles(&matrix.codes[at..at + n / 2], weights);
                } else {
                    let at = panel * n_in + start;
                    unpack_bytes(&matrix.codes[at..at + n], weights);
                }
                let at = panel * n_groups + start / form.group;
                let groups = at..at + n / form.group;
                let part = Part {
                    weights,
                    scales: &matrix.scales[groups.clone()],
                    mins: matrix.mins.get(groups).unwrap_or_default(),
                    form,
                };
                let blocks = x.chunks(MAX_ROWS * n_in).zip(sums.chunks(MAX_ROWS * n_groups));
                for ((x, sums), out) in blocks.zip(out.chunks_mut(MAX_ROWS * stride)) {
                    let r = x.len() / n_in;
                    let x = &x[start * r..(start + n) * r];
                    let sums = &sums[start / form.group * r..];
                    let out = Out { rows: out, stride, panel_idx };
                    match r {
                        1 => rows::<S, 1>(simd, x, sums, &part, out),
                        2 => rows::<S, 2>(simd, x, sums, &part, out),
                        3 => rows::<S, 3>(simd, x, sums, &part, out),
                        4 => rows::<S, 4>(simd, x, sums, &part, out),
                        5 => rows::<S, 5>(simd, x, sums, &part, out),
                        _ => rows::<S, MAX_ROWS>(simd, x, sums, &part, out),
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn unpack_bytes(codes: &[[u8; PANEL]], out: &mut [Row]) {
    // One loop over all: loops of a known length are unrolled and then do without vectors.
    for (out, code) in out.as_flattened_mut().iter_mut().zip(codes.as_flattened()) {
        *out = f32::from(*code as i8);
    }
}

#[inline(always)]
fn unpack_nibbles(codes: &[[u8; PANEL]], out: &mut [Row]) {
    let blocks = out.chunks_exact_mut(PAIRED).zip(codes.chunks_exact(PAIRED / 2));
    for (out, codes) in blocks {
        let (low, high) = out.split_at_mut(PAIRED / 2);
        for ((low, high), codes) in low.iter_mut().zip(high).zip(codes) {
            for ((low, high), code) in low.iter_mut().zip(high).zip(codes) {
                *low = f32::from(code & 15);
                *high = f32::from(code >> 4);
            }
        }
    }
}

/// A few groups of a panel.
struct Part<'a> {
    weights: &'a [Row], // (n_groups · group,)
    scales: &'a [Row],  // (n_groups,)
    mins: &'a [Row],    // (n_groups,), or empty
    form: Form,
}

/// Where a panel's results of a block of rows are added.
struct Out<'a> {
    rows: &'a mut [Row],
    stride: usize,
    panel_idx: usize,
}

/// All columns of a panel for `R` rows, as many vectors at once as registers allow.
#[inline(always)]
fn rows<S: Simd, const R: usize>(
    simd: S,
    x: &[f32],
    sums: &[f32],
    part: &Part<'_>,
    mut out: Out<'_>,
) {
    let (x, _) = x.as_chunks::<R>();
    let (sums, _) = sums.as_chunks::<R>();
    let n_vectors = PANEL / S::F32_LANES;
    // Results, sums, weights of one inner index and one broadcast value at a time.
    if n_vectors >= 2 && 2 * R * 2 + 3 <= S::REGISTER_COUNT {
        for at in (0..n_vectors).step_by(2) {
            block::<S, R, 2>(simd, x, sums, part, &mut out, at);
        }
    } else {
        for at in 0..n_vectors {
            block::<S, R, 1>(simd, x, sums, part, &mut out, at);
        }
    }
}

/// `R` rows times `V` vectors of columns, from vector `at` of the panel on.
#[inline(always)]
fn block<S: Simd, const R: usize, const V: usize>(
    simd: S,
    x: &[[f32; R]],
    sums: &[[f32; R]],
    part: &Part<'_>,
    out: &mut Out<'_>,
    at: usize,
) {
    let Part { weights, scales, mins, form } = part;
    let mut totals = [[simd.splat_f32s(0.0); V]; R];
    let rows = || out.rows[out.panel_idx..].iter().step_by(out.stride);
    for (totals, out) in totals.iter_mut().zip(rows()) {
        let (out, _) = S::as_simd_f32s(out);
        if let Some(out) = out[at..].first_chunk::<V>() {
            *totals = *out;
        }
    }
    let zero = simd.splat_f32s(-form.zero);
    let groups = x.chunks_exact(form.group).zip(weights.chunks_exact(form.group));
    for (group_idx, (x, weights)) in groups.enumerate() {
        let mut products = [[simd.splat_f32s(0.0); V]; R];
        for (x, weights) in x.iter().zip(weights) {
            let (weights, _) = S::as_simd_f32s(weights);
            let Some(weights) = weights[at..].first_chunk::<V>() else { return };
            for (products, x) in products.iter_mut().zip(x) {
                let x = simd.splat_f32s(*x);
                for (product, weight) in products.iter_mut().zip(weights) {
                    *product = simd.mul_add_e_f32s(x, *weight, *product);
                }
            }
        }
        let (scales, _) = S::as_simd_f32s(&scales[group_idx]);
        for v in 0..V {
            let scale = scales[at + v];
            for r in 0..R {
                let mut product = products[r][v];
                if form.zero != 0.0 {
                    let sum = simd.splat_f32s(sums[group_idx][r]);
                    product = simd.mul_add_e_f32s(sum, zero, product);
                }
                totals[r][v] = simd.mul_add_e_f32s(product, scale, totals[r][v]);
            }
        }
        if let Some(mins) = mins.get(group_idx) {
            let (mins, _) = S::as_simd_f32s(mins);
            for v in 0..V {
                for r in 0..R {
                    let sum = simd.splat_f32s(-sums[group_idx][r]);
                    totals[r][v] = simd.mul_add_e_f32s(sum, mins[at + v], totals[r][v]);
                }
            }
        }
    }
    let rows = out.rows[out.panel_idx..].iter_mut().step_by(out.stride);
    for (out, totals) in rows.zip(totals) {
        let (out, _) = S::as_mut_simd_f32s(out);
        if let Some(out) = out[at..].first_chunk_mut::<V>() {
            *out = totals;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of codes with scales that are powers of two, so that all products and sums are exact.
    fn rows(form: Form, n_in: usize, n_out: usize) -> Vec<Codes> {
        let row = |out_idx: usize| {
            let code = |i: usize| {
                let code = ((i * 7 + out_idx * 5) % 16) as i8;
                if form.is_nibble { code } else { code - 8 }
            };
            let n_groups = n_in / form.group;
            let scale = |i: usize| [0.5, 1.0, 2.0][(i + out_idx) % 3];
            Codes {
                codes: (0..n_in).map(code).collect(),
                scales: (0..n_groups).map(scale).collect(),
                mins: if form.has_min { (0..n_groups).map(scale).collect() } else { Vec::new() },
            }
        };
        (0..n_out).map(row).collect()
    }

    #[test]
    fn every_form_and_number_of_rows_gives_the_product_of_the_values() {
        let (n_in, n_out) = (160, 70);
        for (group, is_nibble, zero, has_min) in [
            (32, true, 8.0, false),
            (32, true, 0.0, true),
            (32, false, 0.0, false),
            (32, false, 0.0, true),
            (16, false, 0.0, true),
            (16, false, 0.0, false),
        ] {
            let form = Form { group, is_nibble, zero, has_min };
            let mut matrix = Quantized::new(form, n_in, n_out);
            let mut values = Vec::new();
            for (out_idx, codes) in rows(form, n_in, n_out).iter().enumerate() {
                matrix.set(out_idx, codes);
                codes.append_values(form, &mut values);
            }
            for n_rows in 0..14 {
                let x: Vec<f32> = (0..n_rows * n_in).map(|i| (i * 31 % 17) as f32 - 8.0).collect();
                let y = matrix.product(&x);
                assert_eq!(y.len(), n_rows * matrix.stride());
                for (x, y) in x.chunks_exact(n_in).zip(y.chunks_exact(matrix.stride())) {
                    for (weights, y) in values.chunks_exact(n_in).zip(y) {
                        let expected: f32 = x.iter().zip(weights).map(|(x, w)| x * w).sum();
                        assert_eq!(*y, expected, "{form:?}, {n_rows} rows");
                    }
                }
            }
        }
    }

    #[test]
    fn threads_and_narrower_vectors_change_no_bit() {
        let (n_in, n_out, n_rows) = (1024, 640, 19);
        let form = Form { group: 32, is_nibble: true, zero: 8.0, has_min: false };
        let mut matrix = Quantized::new(form, n_in, n_out);
        for (out_idx, codes) in rows(form, n_in, n_out).iter_mut().enumerate() {
            codes.scales.iter_mut().for_each(|scale| *scale *= 0.3);
            matrix.set(out_idx, codes);
        }
        let x: Vec<f32> =
            (0..n_rows * n_in).map(|i| ((i * 7919) % 1013) as f32 / 997.0 - 0.5).collect();
        let pool = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
        let together = pool(3).install(|| matrix.product(&x));
        assert_eq!(pool(1).install(|| matrix.product(&x)), together);
        for (x, together) in x.chunks_exact(n_in).zip(together.chunks_exact(n_out)) {
            assert_eq!(matrix.product(x), together);
        }
        #[cfg(target_arch = "x86_64")]
        if let Some(narrow) = pulp::x86::V3::try_new() {
            let sums: Vec<f32> = x.chunks_exact(32).map(|group| group.iter().sum()).collect();
            let sums = pack(&sums, n_in / 32, MAX_ROWS);
            let packed = pack(&x, n_in, MAX_ROWS);
            let stride = n_out / PANEL;
            let mut out = vec![[0f32; PANEL]; n_rows * stride];
            let panels = Panels {
                matrix: &matrix,
                x: &packed,
                sums: &sums,
                first_panel: 0,
                out: &mut out,
                stride,
            };
            Simd::vectorize(narrow, panels);
            assert_eq!(out.as_flattened(), together, "vectors of 8 values");
        }
    }
}

//! Products of rows with a packed quantized matrix.
//!
//! Weights stay quantized in memory. Each group of a row's values that meets weights of one scale is
//! rounded to 16-bit integers with a scale of its own, so that codes are multiplied and added up as
//! integers, exactly. The sums of the groups become `f32` and are added in a fixed order: what a row
//! gives does not depend on what it is batched with, on the width of vectors or on the number of
//! threads, bit for bit. Rounding moves a value by at most 1/65534 of the largest of its group,
//! where the 8-bit integers of llama.cpp and candle move it by 1/254.

use crate::pairs::{Pairs, WithPairs, dispatch};
use crate::product::{PANEL, Row, spread};
use crate::quant::Form;
use crate::quantized::{Quantized, Store};

/// Most rows that are computed together: their sums stay in registers.
const MAX_ROWS: usize = 6;
/// Panels that a single row is multiplied with at once. Each is a stream of its own through memory;
/// processors fetch ahead in each of them, and more in several than in one.
const STREAMS: usize = 4;
/// Inner values that are unpacked at once: they stay in the first-level cache.
const CHUNK: usize = 256;
/// Values of the smallest groups.
const MIN_GROUP: usize = 16;
/// Multiply-adds for which a second thread is worth waking.
const MIN_PARALLEL: usize = 1 << 19;
/// Largest rounded value. With codes of eight bits a group's sum stays far below 2^31.
const MAX_CODE: f32 = 32767.0;

/// A chunk of a panel in the types it is computed in.
#[repr(align(64))]
struct Unpacked {
    weights: [[i32; PANEL]; CHUNK / 2],
    scales: [Row; CHUNK / MIN_GROUP],
    mins: [Row; CHUNK / MIN_GROUP],
}

impl Quantized {
    /// `x · W`, shape `(n_rows, stride)`; `x`: shape `(n_rows, n_in)`.
    pub(crate) fn product(&self, x: &[f32]) -> Vec<f32> {
        let n_rows = x.len() / self.n_in;
        let rounded = dispatch(Round { x, n_in: self.n_in, group: self.form.group });
        spread(n_rows, self.stride() / PANEL, self.n_in, MIN_PARALLEL, |range, out| {
            let stride = range.len();
            dispatch(Panels { matrix: self, x: &rounded, first_panel: range.start, out, stride });
        })
    }
}

/// Rows as integers, in blocks of at most [`MAX_ROWS`], each with its inner dimension outermost.
#[derive(Debug, Default)]
struct Rounded {
    pairs: Vec<i32>,  // (n_in / 2, n_rows) for each block: two codes
    scales: Vec<f32>, // (n_groups, n_rows) for each block
    sums: Vec<i32>,   // the same: of a group's codes
}

/// Rounds rows group by group.
struct Round<'a> {
    x: &'a [f32], // (n_rows, n_in)
    n_in: usize,
    group: usize,
}

impl WithPairs for Round<'_> {
    type Output = Rounded;

    #[inline(always)]
    fn with_pairs<S: Pairs>(self, _: S) -> Rounded {
        /// Adding 1.5 · 2^23 leaves the nearest integer in the low bits.
        const NEAREST: f32 = 12_582_912.0;
        let Self { x, n_in, group } = self;
        let n_groups = n_in / group;
        let mut out = Rounded {
            pairs: vec![0; x.len() / 2],
            scales: vec![0.0; x.len() / group],
            sums: vec![0; x.len() / group],
        };
        for (block_idx, block) in x.chunks(MAX_ROWS * n_in).enumerate() {
            let n_rows = block.len() / n_in;
            let pairs = &mut out.pairs[block_idx * MAX_ROWS * n_in / 2..];
            let at = block_idx * MAX_ROWS * n_groups;
            for (i, values) in block.chunks_exact(group).enumerate() {
                let (row, group_idx) = (i / n_groups, i % n_groups);
                // Magnitudes are ordered as their bits are; one that is not a number is the largest.
                let mut largest = 0;
                for value in values {
                    largest = largest.max(value.to_bits() & !(1 << 31));
                }
                let largest = f32::from_bits(largest);
                let inverse = if largest > 0.0 { MAX_CODE / largest } else { 0.0 };
                // Of values so small that this overflows, zeros are left.
                let inverse = if inverse.is_finite() { inverse } else { 0.0 };
                let mut sum = 0;
                let pairs = pairs[group_idx * group / 2 * n_rows..].chunks_exact_mut(n_rows);
                for (pairs, values) in pairs.zip(values.as_chunks::<2>().0) {
                    let [low, high] =
                        values.map(|value| (value * inverse + NEAREST).to_bits() as i16);
                    sum += i32::from(low) + i32::from(high);
                    pairs[row] = i32::from(low as u16) | i32::from(high) << 16;
                }
                out.scales[at + group_idx * n_rows + row] = largest / MAX_CODE;
                out.sums[at + group_idx * n_rows + row] = sum;
            }
        }
        out
    }
}

/// Some panels for all rows.
struct Panels<'a> {
    matrix: &'a Quantized,
    x: &'a Rounded,
    first_panel: usize,
    out: &'a mut [Row], // (n_rows, stride)
    stride: usize,
}

impl WithPairs for Panels<'_> {
    type Output = ();

    #[inline(always)]
    fn with_pairs<S: Pairs>(self, simd: S) {
        let Self { matrix, x, first_panel, out, stride } = self;
        let (n_in, form) = (matrix.n_in, matrix.form);
        let n_groups = n_in / form.group;
        if out.len() == stride {
            one_row(simd, matrix, x, first_panel, out);
            return;
        }
        let mut scratch = Unpacked {
            weights: [[0; PANEL]; CHUNK / 2],
            scales: [[0.0; PANEL]; CHUNK / MIN_GROUP],
            mins: [[0.0; PANEL]; CHUNK / MIN_GROUP],
        };
        for panel_idx in 0..stride {
            let panel = first_panel + panel_idx;
            for start in (0..n_in).step_by(CHUNK) {
                let n = CHUNK.min(n_in - start);
                let Unpacked { weights, scales, mins } = &mut scratch;
                let weights = &mut weights[..n / 2];
                let at = panel * n_in + start;
                matrix.unpack(simd, at, weights);
                let scales = &mut scales[..n / form.group];
                let mins = &mut mins[..if form.has_min { scales.len() } else { 0 }];
                for (i, scale) in scales.iter_mut().enumerate() {
                    let (group_scale, group_min) = matrix.factors(simd, at / form.group + i);
                    *scale = group_scale;
                    if let Some(min) = group_min {
                        mins[i] = min;
                    }
                }
                let part = Part { weights, scales, mins, form };
                let blocks = x.pairs.chunks(MAX_ROWS * n_in / 2);
                let scales = x.scales.chunks(MAX_ROWS * n_groups);
                let sums = x.sums.chunks(MAX_ROWS * n_groups);
                let blocks = blocks.zip(scales).zip(sums);
                for (((pairs, scales), sums), out) in blocks.zip(out.chunks_mut(MAX_ROWS * stride))
                {
                    let r = scales.len() / n_groups;
                    let x = Rows {
                        pairs: &pairs[start / 2 * r..(start + n) / 2 * r],
                        scales: &scales[start / form.group * r..],
                        sums: &sums[start / form.group * r..],
                    };
                    let out = Out { rows: out, stride, panel_idx };
                    match r {
                        1 => rows::<S, 1>(simd, &x, &part, out),
                        2 => rows::<S, 2>(simd, &x, &part, out),
                        3 => rows::<S, 3>(simd, &x, &part, out),
                        4 => rows::<S, 4>(simd, &x, &part, out),
                        5 => rows::<S, 5>(simd, &x, &part, out),
                        _ => rows::<S, MAX_ROWS>(simd, &x, &part, out),
                    }
                }
            }
        }
    }
}

/// Panels from `first_panel` on for a single row. It takes as long as their weights take to arrive,
/// so they come in several streams and are unpacked in registers.
#[inline(always)]
fn one_row<S: Pairs>(
    simd: S,
    matrix: &Quantized,
    x: &Rounded,
    first_panel: usize,
    out: &mut [Row],
) {
    let n_each = out.len() / STREAMS;
    for i in 0..n_each {
        let at: [usize; STREAMS] = std::array::from_fn(|stream| stream * n_each + i);
        let rows = some_panels(simd, matrix, x, at.map(|at| first_panel + at));
        for (at, row) in at.into_iter().zip(rows) {
            out[at] = row;
        }
    }
    for (out, panel) in out.iter_mut().zip(first_panel..).skip(n_each * STREAMS) {
        [*out] = some_panels(simd, matrix, x, [panel]);
    }
}

/// The given panels for a single row, group by group.
#[inline(always)]
fn some_panels<S: Pairs, const P: usize>(
    simd: S,
    matrix: &Quantized,
    x: &Rounded,
    panels: [usize; P],
) -> [Row; P] {
    match PANEL / S::I32_LANES {
        2 => some_panels_by::<S, P, 2>(simd, matrix, x, panels),
        4 => some_panels_by::<S, P, 4>(simd, matrix, x, panels),
        8 => some_panels_by::<S, P, 8>(simd, matrix, x, panels),
        _ => some_panels_by::<S, P, PANEL>(simd, matrix, x, panels),
    }
}

/// The same, for panels of `V` vectors.
#[inline(always)]
fn some_panels_by<S: Pairs, const P: usize, const V: usize>(
    simd: S,
    matrix: &Quantized,
    x: &Rounded,
    panels: [usize; P],
) -> [Row; P] {
    let Form { group, zero, .. } = matrix.form;
    let n_groups = matrix.n_in / group;
    let mut totals = [[[simd.splat_f32s(0.0); V]]; P];
    let groups = x.pairs.chunks_exact(group / 2).zip(x.scales.iter().zip(&x.sums));
    for (group_idx, (pairs, (x_scale, x_sum))) in groups.enumerate() {
        for (totals, panel) in totals.iter_mut().zip(panels) {
            let at = panel * n_groups + group_idx;
            let mut sums = [[simd.splat_i32s(-zero * x_sum); V]];
            match &matrix.codes {
                Store::Bytes(rows) => {
                    let n = group / 2;
                    for (pair, codes) in pairs.iter().zip(&rows[at * n..(at + 1) * n]) {
                        let pair = simd.splat_i32s(*pair);
                        for (v, sum) in sums[0].iter_mut().enumerate() {
                            let codes = simd.widen(&codes.0[v * 2 * S::I32_LANES..]);
                            *sum = simd.add_pairs(pair, codes, *sum);
                        }
                    }
                }
                Store::Nibbles(rows) => {
                    let n = group / 8;
                    let fours = pairs.as_chunks::<4>().0;
                    for (four, codes) in fours.iter().zip(&rows[at * n..(at + 1) * n]) {
                        let four = four.map(|pair| simd.splat_i32s(pair));
                        for (sum, codes) in sums[0].iter_mut().zip(codes.vectors::<S>()) {
                            *sum = simd.add_pairs(four[0], simd.nibbles::<0>(*codes), *sum);
                            *sum = simd.add_pairs(four[1], simd.nibbles::<4>(*codes), *sum);
                            *sum = simd.add_pairs(four[2], simd.nibbles::<8>(*codes), *sum);
                            *sum = simd.add_pairs(four[3], simd.nibbles::<12>(*codes), *sum);
                        }
                    }
                }
            }
            let (scales, mins) = matrix.factors(simd, at);
            let weights = (&scales, mins.as_ref());
            add_group(simd, &sums, weights, (&[*x_scale], &[*x_sum]), 0, totals);
        }
    }
    let mut rows = [[0f32; PANEL]; P];
    for (row, [totals]) in rows.iter_mut().zip(&totals) {
        S::as_mut_simd_f32s(row).0.copy_from_slice(totals);
    }
    rows
}

/// A few groups of a panel.
struct Part<'a> {
    weights: &'a [[i32; PANEL]], // (n_groups · group / 2,): pairs
    scales: &'a [Row],           // (n_groups,)
    mins: &'a [Row],             // (n_groups,), or empty
    form: Form,
}

/// The same groups of a block of rows.
struct Rows<'a> {
    pairs: &'a [i32],
    scales: &'a [f32],
    sums: &'a [i32],
}

/// Where a panel's results of a block of rows are added.
struct Out<'a> {
    rows: &'a mut [Row],
    stride: usize,
    panel_idx: usize,
}

/// All columns of a panel for `R` rows, as many vectors at once as registers allow.
#[inline(always)]
fn rows<S: Pairs, const R: usize>(simd: S, x: &Rows<'_>, part: &Part<'_>, mut out: Out<'_>) {
    let n_vectors = PANEL / S::F32_LANES;
    // Results, sums, weights of one pair of inner indices and one broadcast pair at a time.
    if n_vectors >= 2 && 2 * R * 2 + 3 <= S::REGISTER_COUNT {
        for at in (0..n_vectors).step_by(2) {
            block::<S, R, 2>(simd, x, part, &mut out, at);
        }
    } else {
        for at in 0..n_vectors {
            block::<S, R, 1>(simd, x, part, &mut out, at);
        }
    }
}

/// `R` rows times `V` vectors of columns, from vector `at` of the panel on.
#[inline(always)]
fn block<S: Pairs, const R: usize, const V: usize>(
    simd: S,
    x: &Rows<'_>,
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
    let pairs = x.pairs.as_chunks::<R>().0.chunks_exact(form.group / 2);
    let groups = pairs.zip(weights.chunks_exact(form.group / 2)).zip(scales.iter());
    let x_groups = x.scales.as_chunks::<R>().0.iter().zip(x.sums.as_chunks::<R>().0);
    for (group_idx, (((pairs, weights), scales), (x_scales, x_sums))) in
        groups.zip(x_groups).enumerate()
    {
        let mut sums = x_sums.map(|sum| [simd.splat_i32s(-form.zero * sum); V]);
        for (pairs, weights) in pairs.iter().zip(weights) {
            let (weights, _) = S::as_simd_i32s(weights);
            let Some(weights) = weights[at..].first_chunk::<V>() else { return };
            for (sums, pair) in sums.iter_mut().zip(pairs) {
                let pair = simd.splat_i32s(*pair);
                for (sum, weight) in sums.iter_mut().zip(weights) {
                    *sum = simd.add_pairs(pair, *weight, *sum);
                }
            }
        }
        let scales = (scales, mins.get(group_idx));
        add_group(simd, &sums, scales, (x_scales, x_sums), at, &mut totals);
    }
    let rows = out.rows[out.panel_idx..].iter_mut().step_by(out.stride);
    for (out, totals) in rows.zip(totals) {
        let (out, _) = S::as_mut_simd_f32s(out);
        if let Some(out) = out[at..].first_chunk_mut::<V>() {
            *out = totals;
        }
    }
}

/// Adds a group's products to the totals. `weights`: scales and mins, used from vector `at` on; `x`:
/// scales and sums of the rows.
#[inline(always)]
fn add_group<S: Pairs, const R: usize, const V: usize>(
    simd: S,
    products: &[[S::i32s; V]; R],
    weights: (&Row, Option<&Row>),
    x: (&[f32; R], &[i32; R]),
    at: usize,
    totals: &mut [[S::f32s; V]; R],
) {
    let (scales, _) = S::as_simd_f32s(weights.0);
    for ((totals, products), x_scale) in totals.iter_mut().zip(products).zip(x.0) {
        for v in 0..V {
            let scale = simd.mul_f32s(scales[at + v], simd.splat_f32s(*x_scale));
            totals[v] = simd.mul_add_e_f32s(simd.to_f32s(products[v]), scale, totals[v]);
        }
    }
    let Some(mins) = weights.1 else { return };
    let (mins, _) = S::as_simd_f32s(mins);
    for (totals, (x_scale, x_sum)) in totals.iter_mut().zip(x.0.iter().zip(x.1)) {
        let sum = simd.splat_f32s(-x_scale * *x_sum as f32);
        for v in 0..V {
            totals[v] = simd.mul_add_e_f32s(sum, mins[at + v], totals[v]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pairs::Run;
    use crate::quant::Codes;
    use pulp::{NullaryFnOnce, Scalar};

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

    fn matrix(form: Form, n_in: usize, rows: &[Codes]) -> Quantized {
        let mut matrix = Quantized::new(form, n_in, rows.len());
        for (out_idx, codes) in rows.iter().enumerate() {
            matrix.set(out_idx, codes);
        }
        matrix
    }

    fn values(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919) % 1013) as f32 / 997.0 - 0.5).collect()
    }

    /// The product with each kind of vectors that this machine has besides the widest.
    fn narrower_products(matrix: &Quantized, x: &[f32]) -> Vec<(&'static str, Vec<f32>)> {
        let rounded = dispatch(Round { x, n_in: matrix.n_in, group: matrix.form.group });
        let stride = matrix.stride() / PANEL;
        let with = |run: &dyn Fn(Panels<'_>)| {
            let mut out = vec![[0f32; PANEL]; x.len() / matrix.n_in * stride];
            run(Panels { matrix, x: &rounded, first_panel: 0, out: &mut out, stride });
            out.as_flattened().to_vec()
        };
        let plain = ("none", with(&|work| Run { simd: Scalar::new(), work }.call()));
        #[cfg(target_arch = "x86_64")]
        let narrow = pulp::x86::V3::try_new()
            .map(|simd| ("AVX2", with(&|work| simd.vectorize(Run { simd, work }))));
        #[cfg(not(target_arch = "x86_64"))]
        let narrow = None;
        [plain].into_iter().chain(narrow).collect()
    }

    const FORMS: [Form; 6] = [
        Form { group: 32, is_nibble: true, zero: 8, has_min: false, has_halves: true },
        Form { group: 32, is_nibble: true, zero: 0, has_min: true, has_halves: false },
        Form { group: 32, is_nibble: false, zero: 0, has_min: false, has_halves: true },
        Form { group: 32, is_nibble: false, zero: 0, has_min: true, has_halves: true },
        Form { group: 16, is_nibble: false, zero: 0, has_min: true, has_halves: false },
        Form { group: 16, is_nibble: false, zero: 0, has_min: false, has_halves: false },
    ];

    #[test]
    fn every_form_and_number_of_rows_gives_the_product_of_the_values() {
        // For a single row: panels in streams, some beyond, and the last of them not whole.
        let (n_in, n_out) = (160, 2 * STREAMS * PANEL + 70);
        for form in FORMS {
            let codes = rows(form, n_in, n_out);
            let matrix = matrix(form, n_in, &codes);
            let mut weights = Vec::new();
            codes.iter().for_each(|row| row.append_values(form, &mut weights));
            for n_rows in 0..14 {
                // The largest of each group makes its scale 1, so that integers stay exact.
                let value = |i: usize| match i % 16 {
                    3 => [MAX_CODE, -MAX_CODE][i / 16 % 2],
                    _ => (i * 31 % 17) as f32 - 8.0,
                };
                let x: Vec<f32> = (0..n_rows * n_in).map(value).collect();
                let y = matrix.product(&x);
                assert_eq!(y.len(), n_rows * matrix.stride());
                for (x, y) in x.chunks_exact(n_in).zip(y.chunks_exact(matrix.stride())) {
                    for (weights, y) in weights.chunks_exact(n_in).zip(y) {
                        let expected: f32 = x.iter().zip(weights).map(|(x, w)| x * w).sum();
                        assert_eq!(*y, expected, "{form:?}, {n_rows} rows");
                    }
                }
                for (vectors, narrow) in narrower_products(&matrix, &x) {
                    assert_eq!(narrow, y, "{form:?}, {n_rows} rows, vectors: {vectors}");
                }
            }
        }
    }

    /// Each value is off by half a step at most, and steps are 1/32767 of the largest of a group.
    #[test]
    fn rounding_moves_a_product_less_than_its_bound() {
        let n_in = 160;
        for form in FORMS {
            let codes = rows(form, n_in, 64);
            let mut weights = Vec::new();
            codes.iter().for_each(|row| row.append_values(form, &mut weights));
            for magnitude in [1e-30, 1.0, 1e30] {
                let x: Vec<f32> = values(n_in).iter().map(|value| value * magnitude).collect();
                let y = matrix(form, n_in, &codes).product(&x);
                for (weights, y) in weights.chunks_exact(n_in).zip(y) {
                    let mut expected = 0f64;
                    let mut bound = 0f64;
                    for (x, weights) in x.chunks(form.group).zip(weights.chunks(form.group)) {
                        let largest = x.iter().fold(0f32, |a, x| a.max(x.abs()));
                        for (x, weight) in x.iter().zip(weights) {
                            expected += f64::from(*x) * f64::from(*weight);
                            bound += f64::from(largest) / 65_000.0 * f64::from(weight.abs());
                        }
                    }
                    let error = (f64::from(y) - expected).abs();
                    assert!(error < bound, "{form:?}: {error} of {bound}");
                }
            }
        }
    }

    #[test]
    fn zeros_give_zeros_and_what_is_not_finite_stays_so() {
        let form = FORMS[0];
        let codes = rows(form, 64, 32);
        let matrix = matrix(form, 64, &codes);
        for (value, is_finite) in [
            (0.0, true),
            (f32::MIN_POSITIVE / 8.0, true),
            (f32::NAN, false),
            (f32::INFINITY, false),
        ] {
            let mut x = vec![0f32; 64];
            x[40] = value;
            let y = matrix.product(&x);
            assert!(y.iter().all(|y| y.is_finite() == is_finite), "{value}");
            assert!(!is_finite || y.iter().all(|y| y.abs() < 1e-30), "{value}");
        }
    }

    #[test]
    fn threads_and_narrower_vectors_change_no_bit() {
        let (n_in, n_out, n_rows) = (1024, 640, 19);
        for form in FORMS {
            let mut codes = rows(form, n_in, n_out);
            let scales = codes.iter_mut().flat_map(|row| &mut row.scales);
            scales.for_each(|scale| *scale *= 0.3);
            let matrix = matrix(form, n_in, &codes);
            let x = values(n_rows * n_in);
            let pool = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
            let together = pool(3).install(|| matrix.product(&x));
            assert_eq!(pool(1).install(|| matrix.product(&x)), together);
            for (x, together) in x.chunks_exact(n_in).zip(together.chunks_exact(n_out)) {
                assert_eq!(matrix.product(x), together);
            }
            for n_rows in [1, n_rows] {
                let x = &x[..n_rows * n_in];
                for (vectors, narrow) in narrower_products(&matrix, x) {
                    let wide = &together[..n_rows * n_out];
                    if vectors == "AVX2" {
                        assert_eq!(narrow, wide, "{form:?}, {n_rows} rows");
                    }
                    // Without a fused multiply-add the totals are rounded once more.
                    for (a, b) in narrow.iter().zip(wide) {
                        assert!((a - b).abs() < 1e-3 * b.abs().max(1.0), "{vectors}: {a} {b}");
                    }
                }
            }
        }
    }
}

//! Products of rows with a packed matrix.
//!
//! Every element of a result is one chain of multiply-adds over the inner dimension, in its order,
//! whatever the number of rows, the width of the vectors and the number of threads. So what a row
//! gives does not depend on what it is batched with, bit for bit; and it is the same on all
//! machines whose vector instructions have a fused multiply-add.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Columns of a panel.
pub(crate) const PANEL: usize = 32;
/// Most rows that are computed together: their sums stay in registers.
const MAX_ROWS: usize = 8;
/// Multiply-adds for which a second thread is worth waking.
const MIN_PARALLEL: usize = 4 << 20;

/// A value for each column of a panel.
pub(crate) type Row = [f32; PANEL];

/// `x · panels`, shape `(n_rows, n_panels · PANEL)`.
///
/// `x`: shape `(n_rows, n_in)`. `panels`: the matrix with its inner dimension outermost, cut into
/// panels of columns, shape `(n_panels, n_in, PANEL)`.
pub(crate) fn product(x: &[f32], panels: &[f32], n_in: usize) -> Vec<f32> {
    let (panels, _) = panels.as_chunks::<PANEL>();
    let (n_rows, n_panels) = (x.len() / n_in, panels.len() / n_in);
    let x = pack(x, n_in, MAX_ROWS);
    let arch = Arch::new();
    spread(n_rows, n_panels, n_in, MIN_PARALLEL, |range, out| {
        let (stride, panels) = (range.len(), &panels[range.start * n_in..range.end * n_in]);
        arch.dispatch(Panels { x: &x, panels, out, n_in, stride });
    })
}

/// Runs work of about `n_work` multiply-adds on a thread of the pool if it is long enough. There the
/// other threads take their parts of its products within a microsecond, where each product from
/// outside would have to wake one of them and then be woken.
///
/// Models of one process take turns: a thread that waits for a part of one model's product would
/// else begin the work of another, and the first would wait for all of it.
pub(crate) fn in_pool<R: Send>(n_work: usize, run: impl FnOnce() -> R + Send) -> R {
    if n_work < MIN_PARALLEL || rayon::current_num_threads() == 1 {
        return run();
    }
    static TURN: Mutex<()> = Mutex::new(());
    // Whoever is in the pool has the turn.
    let is_inside = rayon::current_thread_index().is_some();
    let _turn = (!is_inside).then(|| TURN.lock().unwrap_or_else(PoisonError::into_inner));
    rayon::scope(|_| run())
}

/// Lets `run` compute ranges of panels for all rows, on several threads from `min_parallel`
/// multiply-adds on.
pub(crate) fn spread(
    n_rows: usize,
    n_panels: usize,
    n_in: usize,
    min_parallel: usize,
    run: impl Fn(Range<usize>, &mut [Row]) + Sync,
) -> Vec<f32> {
    if n_rows == 0 {
        return Vec::new();
    }
    let mut out = vec![0f32; n_rows * n_panels * PANEL];
    let n_work = n_rows * n_in * n_panels * PANEL;
    if n_work < min_parallel || rayon::current_num_threads() == 1 {
        run(0..n_panels, out.as_chunks_mut::<PANEL>().0);
        return out;
    }
    let n_each = n_panels.div_ceil(rayon::current_num_threads());
    if n_rows == 1 {
        let (panels, _) = out.as_chunks_mut::<PANEL>();
        panels.par_chunks_mut(n_each).enumerate().for_each(|(part, out)| {
            let start = part * n_each;
            run(start..start + out.len(), out);
        });
        return out;
    }
    // Threads take panels, so each has a part of every row: it writes beside the others and the
    // rows are put together afterwards.
    let parts: Vec<Vec<Row>> = (0..n_panels.div_ceil(n_each))
        .into_par_iter()
        .map(|part| {
            let range = part * n_each..((part + 1) * n_each).min(n_panels);
            let mut out = vec![[0f32; PANEL]; n_rows * range.len()];
            run(range, &mut out);
            out
        })
        .collect();
    let mut at = 0;
    for part in &parts {
        let width = part.len() / n_rows * PANEL;
        let rows = out.chunks_exact_mut(n_panels * PANEL);
        for (row, part) in rows.zip(part.as_flattened().chunks_exact(width)) {
            row[at..at + width].copy_from_slice(part);
        }
        at += width;
    }
    out
}

/// Rows in blocks of at most `max_rows`, each with its inner dimension outermost.
pub(crate) fn pack(x: &[f32], n_in: usize, max_rows: usize) -> Vec<f32> {
    let mut packed = Vec::with_capacity(x.len());
    for block in x.chunks(max_rows * n_in) {
        let n_rows = block.len() / n_in;
        for i in 0..n_in {
            packed.extend((0..n_rows).map(|row| block[row * n_in + i]));
        }
    }
    packed
}

/// Some panels for all rows.
struct Panels<'a> {
    x: &'a [f32],
    panels: &'a [Row],  // (n_panels, n_in)
    out: &'a mut [Row], // (n_rows, stride)
    n_in: usize,
    stride: usize,
}

impl WithSimd for Panels<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for (panel_idx, panel) in self.panels.chunks_exact(self.n_in).enumerate() {
            let blocks = self.x.chunks(MAX_ROWS * self.n_in);
            for (x, out) in blocks.zip(self.out.chunks_mut(MAX_ROWS * self.stride)) {
                let out = Out { rows: out, stride: self.stride, panel_idx };
                match x.len() / self.n_in {
                    1 => rows::<S, 1>(simd, x, panel, out),
                    2 => rows::<S, 2>(simd, x, panel, out),
                    3 => rows::<S, 3>(simd, x, panel, out),
                    4 => rows::<S, 4>(simd, x, panel, out),
                    5 => rows::<S, 5>(simd, x, panel, out),
                    6 => rows::<S, 6>(simd, x, panel, out),
                    7 => rows::<S, 7>(simd, x, panel, out),
                    _ => rows::<S, MAX_ROWS>(simd, x, panel, out),
                }
            }
        }
    }
}

/// Where a panel's results of a block of rows go.
struct Out<'a> {
    rows: &'a mut [Row],
    stride: usize,
    panel_idx: usize,
}

/// All columns of a panel for `R` rows, as many vectors at once as registers allow.
#[inline(always)]
fn rows<S: Simd, const R: usize>(simd: S, x: &[f32], panel: &[Row], mut out: Out<'_>) {
    let (x, _) = x.as_chunks::<R>();
    let n_vectors = PANEL / S::F32_LANES;
    // Sums, weights of one inner index and one broadcast value at a time.
    if n_vectors >= 4 && R * 4 + 5 <= S::REGISTER_COUNT {
        (0..n_vectors).step_by(4).for_each(|at| block::<S, R, 4>(simd, x, panel, &mut out, at));
    } else if n_vectors >= 2 && R * 2 + 3 <= S::REGISTER_COUNT {
        (0..n_vectors).step_by(2).for_each(|at| block::<S, R, 2>(simd, x, panel, &mut out, at));
    } else {
        (0..n_vectors).for_each(|at| block::<S, R, 1>(simd, x, panel, &mut out, at));
    }
}

/// `R` rows times `V` vectors of columns, from vector `at` of the panel on.
#[inline(always)]
fn block<S: Simd, const R: usize, const V: usize>(
    simd: S,
    x: &[[f32; R]],
    panel: &[Row],
    out: &mut Out<'_>,
    at: usize,
) {
    let mut sums = [[simd.splat_f32s(0.0); V]; R];
    for (x, weights) in x.iter().zip(panel) {
        let (weights, _) = S::as_simd_f32s(weights);
        let Some(weights) = weights[at..].first_chunk::<V>() else { return };
        for (sums, x) in sums.iter_mut().zip(x) {
            let x = simd.splat_f32s(*x);
            for (sum, weight) in sums.iter_mut().zip(weights) {
                *sum = simd.mul_add_e_f32s(x, *weight, *sum);
            }
        }
    }
    for (out, sums) in out.rows[out.panel_idx..].iter_mut().step_by(out.stride).zip(sums) {
        let (out, _) = S::as_mut_simd_f32s(out);
        if let Some(out) = out[at..].first_chunk_mut::<V>() {
            *out = sums;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small integers, whose products and sums are exact.
    fn integers(n: usize, step: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * step) % 17) as f32 - 8.0).collect()
    }

    fn pack_matrix(matrix: &[f32], n_in: usize, n_out: usize) -> Vec<f32> {
        let mut panels = vec![0f32; n_out.div_ceil(PANEL) * n_in * PANEL];
        for o in 0..n_out {
            for i in 0..n_in {
                panels[(o / PANEL * n_in + i) * PANEL + o % PANEL] = matrix[o * n_in + i];
            }
        }
        panels
    }

    #[test]
    fn every_number_of_rows_gives_the_product() {
        let (n_in, n_out) = (37, 70);
        let matrix = integers(n_in * n_out, 29);
        let panels = pack_matrix(&matrix, n_in, n_out);
        for n_rows in 0..20 {
            let x = integers(n_rows * n_in, 31);
            let y = product(&x, &panels, n_in);
            let rows = y.chunks_exact(96);
            assert_eq!(rows.len(), n_rows);
            for (x, y) in x.chunks_exact(n_in).zip(rows) {
                for (o, y) in y.iter().enumerate() {
                    let weights = matrix.get(o * n_in..(o + 1) * n_in).unwrap_or(&[]);
                    let expected: f32 = x.iter().zip(weights).map(|(x, w)| x * w).sum();
                    assert_eq!(*y, expected);
                }
            }
        }
    }

    #[test]
    fn a_row_gives_the_same_bits_in_any_company_and_on_any_number_of_threads() {
        let (n_in, n_out, n_rows) = (1024, 640, 19);
        let values = |n: usize| (0..n).map(|i| ((i * 7919) % 1013) as f32 / 997.0 - 0.5).collect();
        let (x, panels): (Vec<f32>, Vec<f32>) = (values(n_rows * n_in), values(n_in * n_out));
        let pool = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
        let together = pool(3).install(|| product(&x, &panels, n_in));
        assert!(n_rows * n_in * n_out > MIN_PARALLEL);
        assert_eq!(pool(1).install(|| product(&x, &panels, n_in)), together);
        for (x, together) in x.chunks_exact(n_in).zip(together.chunks_exact(n_out)) {
            assert_eq!(product(x, &panels, n_in), together);
        }
    }

    /// Vectors of 8 and of 16 values take different paths through [`rows`].
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn narrower_vectors_give_the_same_bits_and_none_the_same_values() {
        let (n_in, n_panels) = (200, 2);
        let values = |n: usize| (0..n).map(|i| ((i * 7919) % 1013) as f32 / 997.0 - 0.5).collect();
        let panels: Vec<f32> = values(n_in * n_panels * PANEL);
        for n_rows in [1, 2, 3, 5, 8, 19] {
            let x: Vec<f32> = values(n_rows * n_in);
            let expected = product(&x, &panels, n_in);
            let packed = pack(&x, n_in, MAX_ROWS);
            let mut out = vec![[0f32; PANEL]; n_rows * n_panels];
            let panels = panels.as_chunks::<PANEL>().0;
            let mut with = |run: &dyn Fn(Panels<'_>)| {
                run(Panels { x: &packed, panels, out: &mut out, n_in, stride: n_panels });
                out.as_flattened().to_vec()
            };
            if let Some(narrow) = pulp::x86::V3::try_new() {
                assert_eq!(with(&|panels| Simd::vectorize(narrow, panels)), expected);
            }
            let plain = with(&|panels| Simd::vectorize(pulp::Scalar::new(), panels));
            let worst = plain.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-4, "{worst}");
        }
    }
}

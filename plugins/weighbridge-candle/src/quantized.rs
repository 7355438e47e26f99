//! Quantized matrices, packed for products.

use pulp::bytemuck;

use crate::pairs::Pairs;
use crate::product::{PANEL, Row};
use crate::quant::{Codes, Form, half_of};

/// A matrix in panels of columns: its output dimension is cut, its inner dimension outermost.
#[derive(Debug)]
pub(crate) struct Quantized {
    pub(crate) form: Form,
    pub(crate) codes: Store,
    scales: Factors,
    mins: Option<Factors>,
    pub(crate) n_in: usize,
    n_out: usize,
}

/// Codes in panels.
#[derive(Debug)]
pub(crate) enum Store {
    Bytes(Vec<CodeRow<i8>>), // (n_panels, n_in / 2)
    /// Four pairs of inner indices in order, from the low bits on.
    Nibbles(Vec<CodeRow<u16>>), // (n_panels, n_in / 8)
}

/// Codes of a few neighbours in the inner dimension, two of which are multiplied at once: columns
/// outermost, then whether the inner index is even or odd. Begins where a line of the cache begins, so
/// that no vector lies in two.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(crate) struct CodeRow<T>(pub(crate) [T; 2 * PANEL]);

impl CodeRow<u16> {
    /// The codes as pairs.
    #[inline(always)]
    pub(crate) fn vectors<S: Pairs>(&self) -> &[S::i32s] {
        let pairs: &[i32; PANEL] = bytemuck::cast_ref(&self.0);
        S::as_simd_i32s(pairs).0
    }
}

/// What groups are multiplied with, for each column, shape `(n_panels, n_groups)`.
#[derive(Debug)]
enum Factors {
    /// As binary16, which takes half the memory.
    Halves(Vec<[u16; PANEL]>),
    Singles(Vec<Row>),
}

impl Factors {
    fn zeros(form: Form, n: usize) -> Self {
        if form.has_halves {
            Self::Halves(vec![[0; PANEL]; n])
        } else {
            Self::Singles(vec![[0.0; PANEL]; n])
        }
    }

    /// Sets those of a column from group `at` on.
    fn set(&mut self, at: usize, column: usize, factors: &[f32]) {
        match self {
            Self::Halves(rows) => {
                for (to, factor) in rows[at..].iter_mut().zip(factors) {
                    to[column] = half_of(*factor);
                }
            }
            Self::Singles(rows) => {
                for (to, factor) in rows[at..].iter_mut().zip(factors) {
                    to[column] = *factor;
                }
            }
        }
    }

    /// Those of group `at`.
    #[inline(always)]
    fn row<S: Pairs>(&self, simd: S, at: usize) -> Row {
        match self {
            Self::Halves(rows) => {
                let mut row = [0.0; PANEL];
                let (vectors, _) = S::as_mut_simd_f32s(&mut row);
                for (out, halves) in vectors.iter_mut().zip(rows[at].chunks_exact(S::F32_LANES)) {
                    *out = simd.widen_halves(halves);
                }
                row
            }
            Self::Singles(rows) => rows[at],
        }
    }
}

impl Quantized {
    /// One without rows yet. `n_in` is a multiple of 32.
    pub(crate) fn new(form: Form, n_in: usize, n_out: usize) -> Self {
        let n_panels = n_out.div_ceil(PANEL);
        let n_groups = n_panels * n_in / form.group;
        let codes = if form.is_nibble {
            Store::Nibbles(vec![CodeRow([0; 2 * PANEL]); n_panels * n_in / 8])
        } else {
            Store::Bytes(vec![CodeRow([0; 2 * PANEL]); n_panels * n_in / 2])
        };
        Self {
            form,
            codes,
            scales: Factors::zeros(form, n_groups),
            mins: form.has_min.then(|| Factors::zeros(form, n_groups)),
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
        match &mut self.codes {
            Store::Bytes(rows) => {
                let (pairs, _) = row.codes.as_chunks::<2>();
                for (to, pair) in rows[panel * self.n_in / 2..].iter_mut().zip(pairs) {
                    to.0[2 * column..2 * column + 2].copy_from_slice(pair);
                }
            }
            Store::Nibbles(rows) => {
                let (eights, _) = row.codes.as_chunks::<8>();
                for (to, eight) in rows[panel * self.n_in / 8..].iter_mut().zip(eights) {
                    for (i, code) in eight.iter().enumerate() {
                        to.0[2 * column + i % 2] |= (*code as u16) << (i / 2 * 4);
                    }
                }
            }
        }
        let at = panel * (self.n_in / self.form.group);
        self.scales.set(at, column, &row.scales);
        if let Some(mins) = &mut self.mins {
            mins.set(at, column, &row.mins);
        }
    }

    /// Scales and mins of a group, counted over all panels.
    #[inline(always)]
    pub(crate) fn factors<S: Pairs>(&self, simd: S, at: usize) -> (Row, Option<Row>) {
        let scales = self.scales.row(simd, at);
        if let Some(mins) = &self.mins {
            return (scales, Some(mins.row(simd, at)));
        }
        (scales, None)
    }

    /// Unpacks `weights.len()` pairs of a panel, from inner value `at` on, counted over all panels.
    #[inline(always)]
    pub(crate) fn unpack<S: Pairs>(&self, simd: S, at: usize, weights: &mut [[i32; PANEL]]) {
        match &self.codes {
            Store::Bytes(rows) => {
                for (weights, codes) in weights.iter_mut().zip(&rows[at / 2..]) {
                    let (weights, _) = S::as_mut_simd_i32s(weights);
                    for (v, weights) in weights.iter_mut().enumerate() {
                        *weights = simd.widen(&codes.0[v * 2 * S::I32_LANES..]);
                    }
                }
            }
            Store::Nibbles(rows) => {
                let fours = weights.as_chunks_mut::<4>().0;
                for ([w0, w1, w2, w3], codes) in fours.iter_mut().zip(&rows[at / 8..]) {
                    let codes = codes.vectors::<S>();
                    unpack_nibbles::<S, 0>(simd, codes, w0);
                    unpack_nibbles::<S, 4>(simd, codes, w1);
                    unpack_nibbles::<S, 8>(simd, codes, w2);
                    unpack_nibbles::<S, 12>(simd, codes, w3);
                }
            }
        }
    }
}

#[inline(always)]
fn unpack_nibbles<S: Pairs, const SHIFT: u32>(
    simd: S,
    codes: &[S::i32s],
    weights: &mut [i32; PANEL],
) {
    let (weights, _) = S::as_mut_simd_i32s(weights);
    for (weights, codes) in weights.iter_mut().zip(codes) {
        *weights = simd.nibbles::<SHIFT>(*codes);
    }
}

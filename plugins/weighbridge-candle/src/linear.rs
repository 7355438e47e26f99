//! Projections as the decoder wants them: fused and packed.

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Shape, Storage, Tensor};
use weighbridge_core::{Error, ErrorKind, Result};

use crate::product::{PANEL, product};
use crate::quantized::Quantized;

/// A packed matrix.
#[derive(Debug)]
pub(crate) enum Packed {
    F32 {
        panels: Vec<f32>, // (n_panels, n_in, PANEL)
        n_in: usize,
        n_out: usize,
    },
    Quantized(Quantized),
}

impl Packed {
    pub(crate) fn n_out(&self) -> usize {
        match self {
            Self::F32 { n_out, .. } => *n_out,
            Self::Quantized(matrix) => matrix.n_out(),
        }
    }

    /// Values from one row of the product to the next.
    fn stride(&self) -> usize {
        self.n_out().next_multiple_of(PANEL)
    }
}

/// `y = x·Wᵀ + b` for projections of the same input, whose results lie side by side.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) parts: Vec<Packed>,
    pub(crate) bias: Option<Vec<f32>>, // (n_out,)
    pub(crate) n_in: usize,
}

impl Linear {
    fn n_out(&self) -> usize {
        self.parts.iter().map(Packed::n_out).sum()
    }

    /// Values from one row of the result to the next; the first `n_out` of each are the result.
    pub(crate) fn stride(&self) -> usize {
        match self.parts.as_slice() {
            [part] => part.stride(),
            _ => self.n_out(),
        }
    }

    /// The products of all rows of `x`, shape `(n_rows, n_in)`, lent to `use_rows` with shape
    /// `(n_rows, stride)`.
    pub(crate) fn forward<R>(&self, x: Vec<f32>, use_rows: impl FnOnce(&[f32]) -> R) -> Result<R> {
        let n_rows = x.len() / self.n_in;
        let x = Tensor::from_vec(x, (n_rows, self.n_in), &Device::Cpu).map_err(engine_error)?;
        let apply = |part: &Packed| x.apply_op1_no_bwd(&Product(part)).map_err(engine_error);
        if let ([part], None) = (self.parts.as_slice(), &self.bias) {
            return with_rows(&apply(part)?, use_rows);
        }
        let stride = self.stride();
        let mut rows = vec![0f32; n_rows * stride];
        let mut at = 0;
        for part in &self.parts {
            let n_out = part.n_out();
            with_rows(&apply(part)?, |y| {
                let y = y.chunks_exact(part.stride());
                for (row, y) in rows.chunks_exact_mut(stride).zip(y) {
                    row[at..at + n_out].copy_from_slice(&y[..n_out]);
                }
            })?;
            at += n_out;
        }
        if let Some(bias) = &self.bias {
            for row in rows.chunks_exact_mut(stride) {
                crate::ops::add(&mut row[..at], bias);
            }
        }
        Ok(use_rows(&rows))
    }
}

fn with_rows<R>(y: &Tensor, use_rows: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let (storage, _) = y.storage_and_layout();
    let Storage::Cpu(CpuStorage::F32(rows)) = &*storage else {
        return Err(Error::new(ErrorKind::Engine, "a product is not f32 on the CPU"));
    };
    Ok(use_rows(rows))
}

/// The product with a packed matrix as an operation of candle's.
///
/// candle 0.11.1 has one of its own, which asks the operating system for the number of cores at
/// each call unless `RAYON_NUM_THREADS` is set: it reads `/proc/cpuinfo`, which takes longer than
/// all the arithmetic of a small model's layer, and milliseconds on a machine with many cores. It
/// also sums in another order for each number of rows, and rounds activations to eight bits where
/// weights are quantized.
struct Product<'a>(&'a Packed);

impl CustomOp1 for Product<'_> {
    fn name(&self) -> &'static str {
        "product-with-panels"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (n_rows, _) = layout.shape().dims2()?;
        let CpuStorage::F32(x) = x else { candle_core::bail!("the product takes f32") };
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("the product takes contiguous rows");
        };
        let y = match self.0 {
            Packed::F32 { panels, n_in, .. } => product(&x[start..end], panels, *n_in),
            Packed::Quantized(matrix) => matrix.product(&x[start..end]),
        };
        Ok((CpuStorage::F32(y), Shape::from((n_rows, self.0.stride()))))
    }
}

fn engine_error(error: candle_core::Error) -> Error {
    Error::new(ErrorKind::Engine, "candle could not compute a product").with_source(error)
}

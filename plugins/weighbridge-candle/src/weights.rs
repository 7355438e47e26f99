//! Weights as the decoder wants them: `f32`, fused, packed.

use candle_core::{CpuStorage, CustomOp2, Device, Layout, Shape, Storage, Tensor};
use weighbridge_core::{Error, ErrorKind, OpenContext, Result};
use weighbridge_models::checkpoint::Checkpoint;
use weighbridge_models::safetensors::Dtype;

use crate::product::{PANEL, product};

/// `y = x·Wᵀ + b`.
#[derive(Debug)]
pub(crate) struct Linear {
    panels: Tensor,         // (n_panels, n_in, PANEL)
    bias: Option<Vec<f32>>, // (n_out,)
    n_in: usize,
    n_out: usize,
    stride: usize,
}

impl Linear {
    /// Values from one row of the result to the next; the first `n_out` of each are the result.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// The products of all rows of `x`, shape `(n_rows, n_in)`, lent to `use_rows` with shape
    /// `(n_rows, stride)`.
    pub(crate) fn forward<R>(&self, x: Vec<f32>, use_rows: impl FnOnce(&[f32]) -> R) -> Result<R> {
        let run = || {
            let n_rows = x.len() / self.n_in;
            let x = Tensor::from_vec(x, (n_rows, self.n_in), &Device::Cpu)?;
            x.apply_op2_no_bwd(&self.panels, &Product)
        };
        let y = run().map_err(engine_error)?;
        let (storage, _) = y.storage_and_layout();
        let Storage::Cpu(CpuStorage::F32(rows)) = &*storage else {
            return Err(Error::new(ErrorKind::Engine, "a product is not f32 on the CPU"));
        };
        let Some(bias) = &self.bias else { return Ok(use_rows(rows)) };
        let mut rows = rows.clone();
        for row in rows.chunks_exact_mut(self.stride) {
            crate::ops::add(&mut row[..self.n_out], bias);
        }
        Ok(use_rows(&rows))
    }
}

/// The product with a packed matrix as an operation of candle's.
///
/// candle 0.11.1 has one of its own, which asks the operating system for the number of cores at
/// each call unless `RAYON_NUM_THREADS` is set: it reads `/proc/cpuinfo`, which takes longer than
/// all the arithmetic of a small model's layer, and milliseconds on a machine with many cores. It
/// also sums in another order for each number of rows.
struct Product;

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "product-with-panels"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        panels: &CpuStorage,
        panels_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (n_rows, n_in) = x_layout.shape().dims2()?;
        let (n_panels, n_inner, _) = panels_layout.shape().dims3()?;
        let (CpuStorage::F32(x), CpuStorage::F32(panels)) = (x, panels) else {
            candle_core::bail!("the product takes f32");
        };
        let (Some((x_start, x_end)), Some((start, end))) =
            (x_layout.contiguous_offsets(), panels_layout.contiguous_offsets())
        else {
            candle_core::bail!("the product takes contiguous tensors");
        };
        if n_in != n_inner {
            candle_core::bail!("rows of {n_in} values times panels of {n_inner}");
        }
        let y = product(&x[x_start..x_end], &panels[start..end], n_in);
        Ok((CpuStorage::F32(y), Shape::from((n_rows, n_panels * PANEL))))
    }
}

pub(crate) fn engine_error(error: candle_core::Error) -> Error {
    Error::new(ErrorKind::Engine, "candle could not compute a product").with_source(error)
}

/// A matrix whose rows are looked up, kept in the type it is stored in.
#[derive(Debug)]
pub(crate) struct Table {
    bytes: Vec<u8>,
    dtype: Dtype,
    width: usize,
}

impl Table {
    /// Appends row `row_idx` as `f32`.
    pub(crate) fn row(&self, row_idx: usize, out: &mut Vec<f32>) {
        let n_row = self.width * n_value_bytes(self.dtype);
        append_f32(&self.bytes[row_idx * n_row..(row_idx + 1) * n_row], self.dtype, out);
    }
}

/// Reads tensors one by one, between which it reports progress and looks for a cancellation.
pub(crate) struct Reader<'a> {
    weights: &'a mut Checkpoint,
    context: &'a OpenContext,
    /// Progress before the first tensor, as a fraction.
    start: f32,
    n_bytes: u64,
    n_read: u64,
    bytes: Vec<u8>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(weights: &'a mut Checkpoint, context: &'a OpenContext, start: f32) -> Self {
        let n_bytes = weights.n_bytes().max(1);
        Self { weights, context, start, n_bytes, n_read: 0, bytes: Vec::new() }
    }

    /// Reads a tensor's bytes; returns its type, which is one that can be computed with.
    fn read(&mut self, name: &str) -> Result<Dtype> {
        check_cancelled(self.context)?;
        self.weights.read(name, &mut self.bytes)?;
        self.n_read += self.bytes.len() as u64;
        let fraction = self.n_read as f32 / self.n_bytes as f32;
        self.context.report_progress((self.start + (1.0 - self.start) * fraction).min(1.0));
        let dtype = self.weights.tensor(name).map_or(Dtype::F32, |tensor| tensor.dtype);
        if n_value_bytes(dtype) == 0 {
            let file = self.weights.file_of(name).map(|file| file.display().to_string());
            return Err(Error::new(
                ErrorKind::ModelLoad,
                format!("tensor {name} is stored as {dtype}; candle reads F32, F16 and BF16: use the model's files in one of these"),
            )
            .with("file", file.unwrap_or_default())
            .with("tensor", name));
        }
        Ok(dtype)
    }

    /// A tensor of one dimension, or any as one.
    pub(crate) fn vector(&mut self, name: &str) -> Result<Vec<f32>> {
        let dtype = self.read(name)?;
        let mut values = Vec::new();
        append_f32(&self.bytes, dtype, &mut values);
        check_finite(name, &values)?;
        Ok(values)
    }

    /// A matrix whose rows are looked up.
    pub(crate) fn table(&mut self, name: &str, width: usize) -> Result<Table> {
        let dtype = self.read(name)?;
        let mut row = Vec::new();
        for bytes in self.bytes.chunks_exact(width * n_value_bytes(dtype)) {
            row.clear();
            append_f32(bytes, dtype, &mut row);
            check_finite(name, &row)?;
        }
        Ok(Table { bytes: std::mem::take(&mut self.bytes), dtype, width })
    }

    /// Projections of the same input as one: matrices `PREFIX.weight` of shape `(n_out, n_in)`, and
    /// `PREFIX.bias` if `has_bias`.
    pub(crate) fn linear(
        &mut self,
        prefixes: &[(String, usize)],
        n_in: usize,
        has_bias: bool,
    ) -> Result<Linear> {
        let n_out: usize = prefixes.iter().map(|(_, n_out)| n_out).sum();
        let n_panels = n_out.div_ceil(PANEL);
        let mut panels = vec![0f32; n_panels * n_in * PANEL];
        let mut bias = Vec::new();
        let mut column = 0;
        let mut block = Vec::new();
        for (prefix, _) in prefixes {
            let name = format!("{prefix}.weight");
            let dtype = self.read(&name)?;
            for row in self.bytes.chunks_exact(n_in * n_value_bytes(dtype)) {
                block.clear();
                append_f32(row, dtype, &mut block);
                check_finite(&name, &block)?;
                let panel = &mut panels[column / PANEL * n_in * PANEL..];
                for (to, value) in panel.chunks_exact_mut(PANEL).zip(&block) {
                    to[column % PANEL] = *value;
                }
                column += 1;
            }
            if has_bias {
                bias.extend(self.vector(&format!("{prefix}.bias"))?);
            }
        }
        let panels = Tensor::from_vec(panels, (n_panels, n_in, PANEL), &Device::Cpu)
            .map_err(engine_error)?;
        let bias = has_bias.then_some(bias);
        Ok(Linear { panels, bias, n_in, n_out, stride: n_panels * PANEL })
    }
}

/// The error of a cancelled load, if it was.
pub(crate) fn check_cancelled(context: &OpenContext) -> Result<()> {
    if context.is_cancelled() {
        return Err(Error::new(ErrorKind::Cancelled, "loading the model was cancelled"));
    }
    Ok(())
}

fn check_finite(name: &str, values: &[f32]) -> Result<()> {
    if values.iter().all(|value| value.is_finite()) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::ModelLoad,
        format!("tensor {name} has values that are not finite numbers; download the model again"),
    )
    .with("tensor", name))
}

/// Bytes of one value; 0 for types that are not computed with.
fn n_value_bytes(dtype: Dtype) -> usize {
    match dtype {
        Dtype::F32 => 4,
        Dtype::F16 | Dtype::BF16 => 2,
        _ => 0,
    }
}

/// Appends little-endian values as `f32`, exactly.
fn append_f32(bytes: &[u8], dtype: Dtype, out: &mut Vec<f32>) {
    match dtype {
        Dtype::F32 => out.extend(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b))),
        Dtype::F16 => {
            out.extend(bytes.as_chunks::<2>().0.iter().map(|b| f16_to_f32(u16::from_le_bytes(*b))));
        }
        Dtype::BF16 => out.extend(
            bytes
                .as_chunks::<2>()
                .0
                .iter()
                .map(|b| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16)),
        ),
        _ => {}
    }
}

/// IEEE 754 binary16 to binary32, exactly.
fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let exponent = u32::from(bits >> 10) & 0x1f;
    let fraction = u32::from(bits & 0x3ff);
    match exponent {
        // Zero and denormal numbers: fraction · 2^-24, which f32 holds exactly.
        0 => f32::from_bits(sign | (fraction as f32 / 16_777_216.0).to_bits()),
        0x1f => f32::from_bits(sign | 0x7f80_0000 | fraction << 13),
        _ => f32::from_bits(sign | (exponent + 112) << 23 | fraction << 13),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_becomes_the_same_number() {
        for bits in 0..=u16::MAX {
            let exponent = i32::from(bits >> 10 & 0x1f);
            let fraction = f64::from(bits & 0x3ff);
            let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
            let value = f64::from(f16_to_f32(bits));
            match exponent {
                0x1f if fraction == 0.0 => assert_eq!(value, sign * f64::INFINITY),
                0x1f => assert!(value.is_nan()),
                0 => assert_eq!(value, sign * fraction * 2f64.powi(-24)),
                _ => assert_eq!(value, sign * (1.0 + fraction / 1024.0) * 2f64.powi(exponent - 15)),
            }
            assert_eq!(value.is_sign_negative(), sign < 0.0);
        }
    }
}

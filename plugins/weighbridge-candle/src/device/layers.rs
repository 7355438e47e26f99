//! Weights on the device and what is computed with them: projections, normalisations, rotations.

use std::borrow::Cow;

use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{D, DType, Device, Module, Tensor};
use candle_nn::ops::rms_norm;
use candle_nn::rotary_emb::rope_thd;
use weighbridge_core::Result;
use weighbridge_models::gguf::GgmlType;

use super::Target;
use crate::rope::Rope;
use crate::weights::{Matrix, Reader, Stored};

type Computed = candle_core::Result<Tensor>;

/// A matrix of shape `(n_out, n_in)`.
#[derive(Debug)]
enum Weight {
    Dense(Tensor),
    Quantized(QMatMul),
}

impl Weight {
    fn load(stored: Stored, n_in: usize, target: &Target) -> candle_core::Result<Self> {
        let Stored { dtype, n_out, bytes } = stored;
        let as_stored = match dtype {
            GgmlType::F32 => DType::F32,
            GgmlType::F16 => DType::F16,
            GgmlType::BF16 => DType::BF16,
            _ => {
                let dtype = quantized_type(dtype)?;
                let storage = QStorage::from_data(Cow::Owned(bytes), &target.device, dtype)?;
                let matrix = QTensor::new(storage, (n_out, n_in))?;
                if has_product(dtype, n_in, &target.device) {
                    return Ok(Self::Quantized(QMatMul::from_qtensor(matrix)?));
                }
                let matrix = matrix.dequantize(&target.device)?;
                return Ok(Self::Dense(matrix.to_dtype(target.dtype.unwrap_or(DType::F32))?));
            }
        };
        let kept = if as_stored == DType::F16 { target.f16 } else { as_stored };
        let matrix = Tensor::from_raw_buffer(&bytes, as_stored, &[n_out, n_in], &target.device)?;
        Ok(Self::Dense(matrix.to_dtype(target.dtype.unwrap_or(kept))?))
    }

    fn forward(&self, x: &Tensor) -> Computed {
        match self {
            Self::Quantized(matrix) => matrix.forward(x),
            Self::Dense(matrix) => {
                x.to_dtype(matrix.dtype())?.matmul(&matrix.t()?)?.to_dtype(DType::F32)
            }
        }
    }
}

/// Whether candle multiplies rows of these blocks. candle 0.11.1 does not on the CPU where it takes
/// them in pairs and one would be left over: it panics.
fn has_product(dtype: GgmlDType, n_in: usize, device: &Device) -> bool {
    let is_paired = matches!(dtype, GgmlDType::Q4_1 | GgmlDType::Q5_0 | GgmlDType::Q5_1);
    !(device.is_cpu() && is_paired && (n_in / dtype.block_size()) % 2 == 1)
}

/// candle's name of a type of blocks.
fn quantized_type(dtype: GgmlType) -> candle_core::Result<GgmlDType> {
    Ok(match dtype {
        GgmlType::Q4_0 => GgmlDType::Q4_0,
        GgmlType::Q4_1 => GgmlDType::Q4_1,
        GgmlType::Q5_0 => GgmlDType::Q5_0,
        GgmlType::Q5_1 => GgmlDType::Q5_1,
        GgmlType::Q8_0 => GgmlDType::Q8_0,
        GgmlType::Q2_K => GgmlDType::Q2K,
        GgmlType::Q3_K => GgmlDType::Q3K,
        GgmlType::Q4_K => GgmlDType::Q4K,
        GgmlType::Q5_K => GgmlDType::Q5K,
        GgmlType::Q6_K => GgmlDType::Q6K,
        dtype => candle_core::bail!("candle has no product with {}", dtype.name()),
    })
}

/// `y = x·Wᵀ + b` for projections of the same input, whose results lie side by side.
#[derive(Debug)]
pub(crate) struct Linear {
    parts: Vec<Weight>,
    bias: Option<Tensor>, // (n_out,)
}

impl Linear {
    /// As [`Reader::linear`].
    pub(crate) fn load(
        matrices: &[Matrix],
        n_in: usize,
        has_bias: bool,
        reader: &mut Reader<'_>,
        target: &Target,
    ) -> Result<Self> {
        let (stored, bias) = reader.stored_linear(matrices, n_in, has_bias)?;
        let parts = stored.into_iter().map(|stored| Weight::load(stored, n_in, target));
        let parts = parts.collect::<candle_core::Result<_>>();
        let bias = bias.map(|bias| Tensor::new(bias, &target.device)).transpose();
        Ok(Self {
            parts: parts.map_err(|error| target.load_error(error))?,
            bias: bias.map_err(|error| target.load_error(error))?,
        })
    }

    /// From shape `(n_rows, n_in)` to `(n_rows, n_out)`.
    pub(crate) fn forward(&self, x: &Tensor) -> Computed {
        let y = match self.parts.as_slice() {
            [part] => part.forward(x)?,
            parts => {
                let parts = parts.iter().map(|part| part.forward(x));
                Tensor::cat(&parts.collect::<candle_core::Result<Vec<_>>>()?, D::Minus1)?
            }
        };
        match &self.bias {
            None => Ok(y),
            Some(bias) => y.broadcast_add(bias),
        }
    }
}

/// Division by the root mean square, and multiplication with weights.
#[derive(Debug)]
pub(crate) struct Norm {
    weight: Tensor, // (width,)
    eps: f32,
}

impl Norm {
    pub(crate) fn new(weight: Vec<f32>, eps: f32, target: &Target) -> Result<Self> {
        let weight = Tensor::new(weight, &target.device);
        Ok(Self { weight: weight.map_err(|error| target.load_error(error))?, eps })
    }

    /// Normalises rows of the width of the weights, of which `x` may have several side by side.
    pub(crate) fn forward(&self, x: &Tensor) -> Computed {
        let rows = x.reshape(((), self.weight.dim(0)?))?;
        rms_norm(&rows, &self.weight, self.eps)?.reshape(x.shape())
    }
}

/// Cosines and sines of the rows of a feed, each of shape `(n_rows, dim / 2)`.
#[derive(Debug)]
pub(crate) struct Rotation {
    cos: Tensor,
    sin: Tensor,
}

impl Rotation {
    pub(crate) fn new(
        rope: &mut Rope,
        positions: &[usize],
        device: &Device,
    ) -> candle_core::Result<Self> {
        rope.reach(positions.iter().max().map_or(0, |last| last + 1));
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for position in positions {
            let (cos_row, sin_row) = rope.at(*position);
            cos.extend_from_slice(cos_row);
            sin.extend_from_slice(sin_row);
        }
        let table =
            |values| Tensor::new::<Vec<f32>>(values, device)?.reshape((positions.len(), ()));
        Ok(Self { cos: table(cos)?, sin: table(sin)? })
    }

    /// Rotates each head of `x`, shape `(n_rows, n_heads, head_dim)`: element `i` with element
    /// `i + dim / 2`. Values of a head beyond `dim` stay.
    pub(crate) fn apply(&self, x: &Tensor) -> Computed {
        let (dim, head_dim) = (2 * self.cos.dim(1)?, x.dim(2)?);
        let rotated = x.narrow(2, 0, dim)?.contiguous()?.unsqueeze(0)?;
        let rotated = rope_thd(&rotated, &self.cos, &self.sin)?.squeeze(0)?;
        match head_dim - dim {
            0 => Ok(rotated),
            rest => Tensor::cat(&[&rotated, &x.narrow(2, dim, rest)?], 2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Place;
    use crate::quant::is_known;

    /// Rows of the identity are not changed by rounding, so their products are the weights.
    #[test]
    fn blocks_of_every_type_have_the_values_that_gguf_py_gives_them() {
        let reference: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/data/quant.json")).unwrap();
        let target =
            Target { place: Place::Cpu, device: Device::Cpu, dtype: None, f16: DType::F16 };
        let known =
            GgmlType::ALL.iter().filter(|dtype| is_known(**dtype) && dtype.block_size() > 1);
        for dtype in known.copied() {
            let reference = &reference["types"][dtype.name()];
            let digits = reference["blocks"].as_str().unwrap().as_bytes().as_chunks::<2>().0;
            let byte = |digits| u8::from_str_radix(std::str::from_utf8(digits).unwrap(), 16);
            let bytes: Vec<u8> = digits.iter().map(|digits| byte(digits).unwrap()).collect();
            let values = reference["values"].as_array().unwrap();
            let values: Vec<f32> = values.iter().map(|x| x.as_f64().unwrap() as f32).collect();

            let largest = values.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            for n_blocks in [1, 2] {
                let n_in = n_blocks * dtype.block_size() as usize;
                let n_out = values.len() / n_in;
                let stored = Stored { dtype, n_out, bytes: bytes.clone() };
                let weight = Weight::load(stored, n_in, &target).unwrap();
                if n_blocks == 2 {
                    let is_kept = matches!(weight, Weight::Quantized(QMatMul::QTensor(_)));
                    assert!(is_kept, "{}", dtype.name());
                }
                let identity = Tensor::eye(n_in, DType::F32, &Device::Cpu).unwrap();
                let columns = weight.forward(&identity).unwrap();
                let got = columns.t().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert_eq!(got.len(), values.len());
                let apart = got.iter().zip(&values).map(|(a, b)| (a - b).abs());
                let worst = apart.fold(0.0, f32::max);
                let name = dtype.name();
                assert!(worst < 2e-3 * largest, "{name} {n_in}: {worst} of {largest}");
            }
        }
    }
}

//! Reads tensors from safetensors or GGUF files and packs them.

use weighbridge_core::{Error, ErrorKind, OpenContext, Result};
use weighbridge_models::checkpoint::Checkpoint;
use weighbridge_models::decoder::Naming;
use weighbridge_models::gguf::{GgmlType, Gguf};
use weighbridge_models::safetensors::Dtype;

use crate::layer::Load;
use crate::linear::{Linear, Packed};
use crate::product::PANEL;
use crate::quant::{Codes, Form, append_values, is_known};
use crate::quantized::Quantized;

/// Opened files with weights.
#[derive(Debug)]
pub(crate) enum Weights<'a> {
    Safetensors(&'a mut Checkpoint),
    Gguf(&'a mut Gguf),
}

impl Weights<'_> {
    pub(crate) fn naming(&self) -> Naming {
        match self {
            Self::Safetensors(_) => Naming::HuggingFace,
            Self::Gguf(_) => Naming::Gguf,
        }
    }

    fn n_bytes(&self) -> u64 {
        match self {
            Self::Safetensors(weights) => weights.n_bytes(),
            Self::Gguf(weights) => weights.n_bytes(),
        }
    }

    fn read(&mut self, name: &str, into: &mut Vec<u8>) -> Result<GgmlType> {
        match self {
            Self::Safetensors(weights) => {
                weights.read(name, into)?;
                let dtype = weights.tensor(name).map_or(Dtype::F32, |tensor| tensor.dtype);
                match dtype {
                    Dtype::F32 => Ok(GgmlType::F32),
                    Dtype::F16 => Ok(GgmlType::F16),
                    Dtype::BF16 => Ok(GgmlType::BF16),
                    _ => {
                        let file = weights.file_of(name).map(|file| file.display().to_string());
                        Err(unreadable(name, dtype.as_str()).with("file", file.unwrap_or_default()))
                    }
                }
            }
            Self::Gguf(weights) => {
                weights.read(name, into)?;
                let dtype = weights.tensor(name).map_or(GgmlType::F32, |tensor| tensor.dtype);
                if is_known(dtype) { Ok(dtype) } else { Err(unreadable(name, dtype.name())) }
            }
        }
    }
}

/// The refusal of a type that cannot be computed with.
pub(crate) fn unreadable(name: &str, dtype: &str) -> Error {
    Error::new(
        ErrorKind::ModelLoad,
        format!(
            "tensor {name} is stored as {dtype}; candle reads F32, F16 and BF16, and of GGUF files \
             Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and Q2_K to Q6_K: use the model's files in one of these, \
             or open a GGUF file of it as `llama-cpp:PATH`"
        ),
    )
    .with("tensor", name)
}

/// A matrix whose rows are looked up, kept in the type it is stored in.
#[derive(Debug)]
pub(crate) struct Table {
    bytes: Vec<u8>,
    dtype: GgmlType,
    width: usize,
}

impl Table {
    /// Appends row `row_idx` as `f32`.
    pub(crate) fn row(&self, row_idx: usize, out: &mut Vec<f32>) {
        let n_row = n_row_bytes(self.dtype, self.width);
        let row = &self.bytes[row_idx * n_row..(row_idx + 1) * n_row];
        append_values(self.dtype, row, &mut Codes::default(), out);
    }
}

fn n_row_bytes(dtype: GgmlType, width: usize) -> usize {
    width / dtype.block_size() as usize * dtype.type_size() as usize
}

/// A matrix to read as a part of a [`Linear`].
#[derive(Clone, Debug)]
pub(crate) struct Matrix {
    /// Name of the tensor without `.weight` or `.bias`.
    pub(crate) name: String,
    pub(crate) n_out: usize,
    /// First row of the matrix in the tensor.
    pub(crate) first_row: usize,
    /// Width of heads whose rotated pairs are neighbours in the file, where the decoder has them
    /// half a head apart.
    pub(crate) paired_heads: Option<usize>,
}

impl Matrix {
    pub(crate) fn new(name: String, n_out: usize) -> Self {
        Self { name, n_out, first_row: 0, paired_heads: None }
    }

    /// The row in the file of a row of the matrix, both counted from its first.
    fn source_row(&self, row: usize) -> usize {
        match self.paired_heads {
            None => row,
            Some(width) => {
                let (head, i) = (row / width, row % width);
                head * width + 2 * (i % (width / 2)) + i / (width / 2)
            }
        }
    }
}

/// For the plugin's own decoder.
impl Load for Reader<'_> {
    type Linear = Linear;
    type Norm = Vec<f32>;

    fn naming(&self) -> Naming {
        Reader::naming(self)
    }

    fn vector(&mut self, name: &str) -> Result<Vec<f32>> {
        Reader::vector(self, name)
    }

    fn linear(&mut self, matrices: &[Matrix], n_in: usize, has_bias: bool) -> Result<Linear> {
        Reader::linear(self, matrices, n_in, has_bias)
    }

    fn norm(&mut self, weight: Vec<f32>) -> Result<Vec<f32>> {
        Ok(weight)
    }
}

/// Reads tensors one by one, between which it reports progress and looks for a cancellation.
pub(crate) struct Reader<'a> {
    weights: Weights<'a>,
    context: &'a OpenContext,
    /// Progress before the first tensor, as a fraction.
    start: f32,
    n_bytes: u64,
    n_read: u64,
    /// The tensors that experts share, by name; of one layer.
    shared: Vec<(String, GgmlType, Vec<u8>)>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(weights: Weights<'a>, context: &'a OpenContext, start: f32) -> Self {
        let n_bytes = weights.n_bytes().max(1);
        Self { weights, context, start, n_bytes, n_read: 0, shared: Vec::new() }
    }

    pub(crate) fn naming(&self) -> Naming {
        self.weights.naming()
    }

    fn read(&mut self, name: &str) -> Result<(GgmlType, Vec<u8>)> {
        check_cancelled(self.context)?;
        let mut bytes = Vec::new();
        let dtype = self.weights.read(name, &mut bytes)?;
        self.n_read += bytes.len() as u64;
        let fraction = self.n_read as f32 / self.n_bytes as f32;
        self.context.report_progress((self.start + (1.0 - self.start) * fraction).min(1.0));
        Ok((dtype, bytes))
    }

    /// A tensor of one dimension, or any as one.
    pub(crate) fn vector(&mut self, name: &str) -> Result<Vec<f32>> {
        let (dtype, bytes) = self.read(name)?;
        let mut values = Vec::new();
        append_values(dtype, &bytes, &mut Codes::default(), &mut values);
        check_finite(name, &values)?;
        Ok(values)
    }

    /// A matrix whose rows are looked up.
    pub(crate) fn table(&mut self, name: &str, width: usize) -> Result<Table> {
        let (dtype, bytes) = self.read(name)?;
        let (mut row, mut codes) = (Vec::new(), Codes::default());
        for bytes in bytes.chunks_exact(n_row_bytes(dtype, width)) {
            row.clear();
            append_values(dtype, bytes, &mut codes, &mut row);
            check_finite(name, &row)?;
        }
        Ok(Table { bytes, dtype, width })
    }

    /// Projections of the same input as one: matrices `NAME.weight` of shape `(n_out, n_in)`, and
    /// `NAME.bias` if `has_bias`. Neighbours of the same type are packed together.
    pub(crate) fn linear(
        &mut self,
        matrices: &[Matrix],
        n_in: usize,
        has_bias: bool,
    ) -> Result<Linear> {
        let (read, bias) = self.projections(matrices, n_in, has_bias)?;
        let parts = read.chunk_by(|a, b| a.dtype == b.dtype).map(|rows| pack(rows, n_in));
        let parts = parts.collect::<Result<Vec<_>>>()?;
        Ok(Linear { parts, bias, n_in })
    }

    /// The same as [`linear`](Self::linear) with the blocks that the file has.
    pub(crate) fn stored_linear(
        &mut self,
        matrices: &[Matrix],
        n_in: usize,
        has_bias: bool,
    ) -> Result<(Vec<Stored>, Option<Vec<f32>>)> {
        let (read, bias) = self.projections(matrices, n_in, has_bias)?;
        let parts = read.chunk_by(|a, b| a.dtype == b.dtype).map(|rows| Stored::new(rows, n_in));
        Ok((parts.collect::<Result<Vec<_>>>()?, bias))
    }

    fn projections<'m>(
        &mut self,
        matrices: &'m [Matrix],
        n_in: usize,
        has_bias: bool,
    ) -> Result<(Vec<Rows<'m>>, Option<Vec<f32>>)> {
        let mut read = Vec::with_capacity(matrices.len());
        let mut bias = Vec::new();
        for matrix in matrices {
            let (dtype, bytes) = self.rows(&format!("{}.weight", matrix.name), matrix, n_in)?;
            read.push(Rows { matrix, dtype, bytes });
            if has_bias {
                let values = self.vector(&format!("{}.bias", matrix.name))?;
                bias.extend((0..matrix.n_out).map(|row| values[matrix.source_row(row)]));
            }
        }
        Ok((read, has_bias.then_some(bias)))
    }

    /// Type and bytes of a matrix' rows in the order of the file. A tensor that experts share is read
    /// once.
    fn rows(&mut self, name: &str, matrix: &Matrix, n_in: usize) -> Result<(GgmlType, Vec<u8>)> {
        let is_shared = self.weights.naming() == Naming::Gguf && matrix.name.ends_with("_exps");
        if !is_shared {
            return self.read(name);
        }
        if !self.shared.iter().any(|(held, ..)| held == name) {
            if self.shared.len() == 3 {
                self.shared.clear();
            }
            let (dtype, bytes) = self.read(name)?;
            self.shared.push((name.to_owned(), dtype, bytes));
        }
        let Some((_, dtype, bytes)) = self.shared.iter().find(|(held, ..)| held == name) else {
            return self.read(name);
        };
        let n_row = n_row_bytes(*dtype, n_in);
        let first = matrix.first_row * n_row;
        Ok((*dtype, bytes[first..first + matrix.n_out * n_row].to_vec()))
    }
}

/// A matrix as it is stored.
struct Rows<'a> {
    matrix: &'a Matrix,
    dtype: GgmlType,
    bytes: Vec<u8>,
}

impl Rows<'_> {
    /// Name and bytes of each row in the order of the decoder.
    fn in_order(&self, n_row: usize) -> impl Iterator<Item = (&str, &[u8])> {
        (0..self.matrix.n_out).map(move |row| {
            let row = self.matrix.source_row(row);
            (self.matrix.name.as_str(), &self.bytes[row * n_row..(row + 1) * n_row])
        })
    }
}

/// Matrices of one type, one below the other, in the blocks that the file has.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) dtype: GgmlType,
    pub(crate) n_out: usize,
    /// Rows in the order of the decoder.
    pub(crate) bytes: Vec<u8>,
}

impl Stored {
    fn new(matrices: &[Rows<'_>], n_in: usize) -> Result<Self> {
        let dtype = matrices.first().map_or(GgmlType::F32, |rows| rows.dtype);
        let n_out = matrices.iter().map(|rows| rows.matrix.n_out).sum();
        let n_row = n_row_bytes(dtype, n_in);
        let mut bytes = Vec::with_capacity(n_out * n_row);
        let (mut values, mut codes) = (Vec::new(), Codes::default());
        for (name, row) in matrices.iter().flat_map(|rows| rows.in_order(n_row)) {
            values.clear();
            append_values(dtype, row, &mut codes, &mut values);
            check_finite(name, &values)?;
            bytes.extend_from_slice(row);
        }
        Ok(Self { dtype, n_out, bytes })
    }
}

/// Packs matrices of one type as one.
fn pack(matrices: &[Rows<'_>], n_in: usize) -> Result<Packed> {
    let dtype = matrices.first().map_or(GgmlType::F32, |rows| rows.dtype);
    let n_out: usize = matrices.iter().map(|rows| rows.matrix.n_out).sum();
    let n_row = n_row_bytes(dtype, n_in);
    let rows = matrices.iter().flat_map(|rows| rows.in_order(n_row));
    if let Some(form) = Form::of(dtype) {
        let mut packed = Quantized::new(form, n_in, n_out);
        let mut codes = Codes::default();
        for (out_idx, (name, row)) in rows.enumerate() {
            codes.read(dtype, row);
            check_finite(name, &codes.scales)?;
            check_finite(name, &codes.mins)?;
            packed.set(out_idx, &codes);
        }
        return Ok(Packed::Quantized(packed));
    }
    let mut panels = vec![0f32; n_out.div_ceil(PANEL) * n_in * PANEL];
    let mut values = Vec::new();
    for (column, (name, row)) in rows.enumerate() {
        values.clear();
        append_values(dtype, row, &mut Codes::default(), &mut values);
        check_finite(name, &values)?;
        let panel = &mut panels[column / PANEL * n_in * PANEL..];
        for (to, value) in panel.chunks_exact_mut(PANEL).zip(&values) {
            to[column % PANEL] = *value;
        }
    }
    Ok(Packed::F32 { panels, n_in, n_out })
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

//! The header of a safetensors file, read with limits and believed only where the numbers agree.
//!
//! The format: eight bytes little-endian header length, the header as JSON, then the tensors'
//! bytes. The tensors must fill the rest of the file exactly, without gaps and overlaps.

use std::collections::HashSet;
use std::fmt;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use weighbridge_core::{Error, Result};

use crate::files::{FETCH_AGAIN, fault, shown};

/// Longest header that is read, in bytes.
pub const MAX_HEADER_BYTES: u64 = 25_000_000;
/// Most tensors of one file.
pub const MAX_TENSORS: usize = 100_000;
/// Most tensors without elements of one file: any number of them could share one offset.
pub const MAX_EMPTY_TENSORS: usize = 1_000;
/// Most dimensions of a tensor.
pub const MAX_RANK: usize = 8;
/// Longest name of a tensor, in bytes.
pub const MAX_NAME_BYTES: usize = 1_024;

/// Type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the names are the format's own")]
#[non_exhaustive]
pub enum Dtype {
    Bool,
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F4,
    F6E2M3,
    F6E3M2,
    F8E4M3,
    F8E5M2,
    F8E8M0,
    F16,
    BF16,
    F32,
    F64,
    C64,
}

impl Dtype {
    const ALL: [(Self, &'static str, u64); 20] = [
        (Self::Bool, "BOOL", 8),
        (Self::U8, "U8", 8),
        (Self::I8, "I8", 8),
        (Self::U16, "U16", 16),
        (Self::I16, "I16", 16),
        (Self::U32, "U32", 32),
        (Self::I32, "I32", 32),
        (Self::U64, "U64", 64),
        (Self::I64, "I64", 64),
        (Self::F4, "F4", 4),
        (Self::F6E2M3, "F6_E2M3", 6),
        (Self::F6E3M2, "F6_E3M2", 6),
        (Self::F8E4M3, "F8_E4M3", 8),
        (Self::F8E5M2, "F8_E5M2", 8),
        (Self::F8E8M0, "F8_E8M0", 8),
        (Self::F16, "F16", 16),
        (Self::BF16, "BF16", 16),
        (Self::F32, "F32", 32),
        (Self::F64, "F64", 64),
        (Self::C64, "C64", 64),
    ];

    /// The format's name of the type, for instance `BF16`.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(dtype, ..)| *dtype == self).map_or("?", |(_, name, _)| name)
    }

    /// Bits of one element.
    pub fn bits(self) -> u64 {
        Self::ALL.iter().find(|(dtype, ..)| *dtype == self).map_or(0, |(.., bits)| *bits)
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known, _)| *known == name).map(|(dtype, ..)| *dtype)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where one tensor lies in its file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Type of its elements.
    pub dtype: Dtype,
    /// Its dimensions, outermost first; empty for a scalar.
    pub shape: Vec<u64>,
    /// Its bytes, counted from the start of the file.
    pub range: Range<u64>,
}

impl TensorInfo {
    /// Number of elements; 1 for a scalar.
    pub fn n_elements(&self) -> u64 {
        // Checked when the header was read.
        self.shape.iter().product()
    }
}

/// A header whose numbers agree with each other and with the file's length.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Header {
    /// The tensors in the order of their bytes.
    pub tensors: Vec<TensorInfo>,
}

impl Header {
    /// Reads the header at the start of a file of `file_len` bytes. Reads at most 8 bytes and the
    /// header, and at most [`MAX_HEADER_BYTES`] of that.
    ///
    /// `path` is for messages only.
    ///
    /// # Errors
    /// [`ModelLoad`](weighbridge_core::ErrorKind::ModelLoad) for a header that is too long,
    /// malformed, or does not describe exactly the bytes that follow it.
    pub fn read(reader: &mut dyn Read, file_len: u64, path: &Path) -> Result<Self> {
        let unreadable =
            |error: std::io::Error| fault(path, "cannot be read", "").with_source(error);
        if file_len < 8 {
            return Err(fault(
                path,
                format_args!("is truncated: {file_len} bytes cannot hold a safetensors header"),
                FETCH_AGAIN,
            ));
        }
        let mut prefix = [0u8; 8];
        reader.read_exact(&mut prefix).map_err(unreadable)?;
        if let Some(what) = pickle_kind(&prefix) {
            return Err(pickle_refused(path, what));
        }
        let header_len = u64::from_le_bytes(prefix);
        if header_len > MAX_HEADER_BYTES {
            return Err(fault(
                path,
                format_args!(
                    "announces a header of {header_len} bytes, more than {MAX_HEADER_BYTES}"
                ),
                "it is damaged or not a safetensors file",
            ));
        }
        if header_len > file_len - 8 {
            return Err(fault(
                path,
                format_args!(
                    "is truncated: its header needs {header_len} bytes, {} are there",
                    file_len - 8
                ),
                FETCH_AGAIN,
            ));
        }
        let mut bytes = vec![0u8; header_len as usize];
        reader.read_exact(&mut bytes).map_err(unreadable)?;
        if bytes.first() != Some(&b'{') {
            return Err(fault(
                path,
                "has a header that is not JSON",
                "it is not a safetensors file",
            ));
        }
        let raw: RawHeader = serde_json::from_slice(&bytes).map_err(|error| {
            fault(path, format_args!("has a header that is not valid: {error}"), FETCH_AGAIN)
        })?;
        let n_data = file_len - 8 - header_len;
        let mut tensors = Vec::with_capacity(raw.0.len());
        for (name, tensor) in raw.0 {
            tensors.push(tensor.checked(name, path)?);
        }
        check_layout(&mut tensors, n_data, path)?;
        for tensor in &mut tensors {
            let start = 8 + header_len;
            tensor.range = start + tensor.range.start..start + tensor.range.end;
        }
        Ok(Self { tensors })
    }
}

/// Sorts by offset and refuses gaps, overlaps, and data that is missing or left over.
fn check_layout(tensors: &mut [TensorInfo], n_data: u64, path: &Path) -> Result<()> {
    // Empty tensors first among equal offsets, so that they cannot look like overlaps.
    tensors.sort_by(|a, b| {
        (a.range.start, a.range.end, &a.name).cmp(&(b.range.start, b.range.end, &b.name))
    });
    let n_empty = tensors.iter().filter(|tensor| tensor.range.is_empty()).count();
    if n_empty > MAX_EMPTY_TENSORS {
        return Err(fault(
            path,
            format_args!("has {n_empty} tensors without elements, more than {MAX_EMPTY_TENSORS}"),
            "it is damaged or hostile",
        ));
    }
    // A cut file first: it is the most frequent case and has the simplest remedy.
    let n_needed = tensors.iter().map(|tensor| tensor.range.end).max().unwrap_or(0);
    if n_needed > n_data {
        return Err(fault(
            path,
            format_args!("is truncated: its tensors need {n_needed} bytes after the header, {n_data} are there"),
            FETCH_AGAIN,
        )
        .with("n_bytes_needed", n_needed)
        .with("n_bytes", n_data));
    }
    let mut end = 0;
    for tensor in tensors.iter() {
        let (name, start) = (shown(&tensor.name), tensor.range.start);
        if start < end {
            return Err(fault(
                path,
                format_args!(
                    "has overlapping tensors: `{name}` starts at {start}, before the end of another at {end}"
                ),
                FETCH_AGAIN,
            ));
        }
        if start > end {
            return Err(fault(
                path,
                format_args!(
                    "has a hole: nothing describes the {} bytes before tensor `{name}`",
                    start - end
                ),
                FETCH_AGAIN,
            ));
        }
        end = tensor.range.end;
    }
    if end < n_data {
        return Err(fault(
            path,
            format_args!("has {} bytes after its last tensor", n_data - end),
            FETCH_AGAIN,
        ));
    }
    Ok(())
}

/// What a file of pickled Python objects looks like from its first bytes, or `None`.
pub(crate) fn pickle_kind(start: &[u8]) -> Option<&'static str> {
    match start {
        // Protocol byte, then the version; every pickle since Python 2.3 that torch writes.
        [0x80, 1..=5, ..] => Some("a Python pickle"),
        [b'P', b'K', 3, 4, ..] => Some("a PyTorch archive, a zip of a Python pickle,"),
        _ => None,
    }
}

pub(crate) fn pickle_refused(path: &Path, what: &str) -> Error {
    fault(
        path,
        format_args!("is {what} which can run code when it is loaded, and is refused"),
        "use the model's safetensors files, or convert it where that is safe: load it with \
         transformers and call `save_pretrained(folder)`",
    )
}

struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    offsets: (u64, u64),
}

impl RawTensor {
    fn checked(self, name: String, path: &Path) -> Result<TensorInfo> {
        let bad = |what: String| {
            fault(path, format_args!("has a bad tensor `{}`: {what}", shown(&name)), FETCH_AGAIN)
                .with("tensor", shown(&name))
        };
        let dtype = Dtype::from_name(&self.dtype)
            .ok_or_else(|| bad(format!("unknown dtype `{}`", shown(&self.dtype))))?;
        let (start, end) = self.offsets;
        if end < start {
            return Err(bad(format!("its bytes end at {end}, before they start at {start}")));
        }
        let n_bits = self
            .shape
            .iter()
            .try_fold(dtype.bits(), |n, dim| n.checked_mul(*dim))
            .ok_or_else(|| bad(format!("the size of shape {:?} overflows", self.shape)))?;
        if !n_bits.is_multiple_of(8) || n_bits / 8 != end - start {
            return Err(bad(format!(
                "{dtype} of shape {:?} is {} bytes, the header gives it {}",
                self.shape,
                n_bits.div_ceil(8),
                end - start
            )));
        }
        Ok(TensorInfo { name, dtype, shape: self.shape, range: start..end })
    }
}

/// The header's JSON as pairs; duplicates are refused, which a map would hide.
struct RawHeader(Vec<(String, RawTensor)>);

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = RawHeader;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut tensors = Vec::new();
                let mut names = HashSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name.len() > MAX_NAME_BYTES {
                        return Err(A::Error::custom(format!(
                            "a tensor's name is longer than {MAX_NAME_BYTES} bytes"
                        )));
                    }
                    if !names.insert(name.clone()) {
                        return Err(A::Error::custom(format!("`{}` stands twice", shown(&name))));
                    }
                    if name == "__metadata__" {
                        map.next_value::<Metadata>()?;
                        continue;
                    }
                    if tensors.len() == MAX_TENSORS {
                        return Err(A::Error::custom(format!("more than {MAX_TENSORS} tensors")));
                    }
                    let tensor = map.next_value::<RawTensor>()?;
                    tensors.push((name, tensor));
                }
                Ok(RawHeader(tensors))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

/// Text about the file; checked for its form and dropped.
struct Metadata;

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Texts;
        impl<'de> Visitor<'de> for Texts {
            type Value = Metadata;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings as `__metadata__`")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metadata, A::Error> {
                while map.next_entry::<String, String>()?.is_some() {}
                Ok(Metadata)
            }
        }
        deserializer.deserialize_map(Texts)
    }
}

impl<'de> Deserialize<'de> for RawTensor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = RawTensor;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a tensor with `dtype`, `shape` and `data_offsets`")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawTensor, A::Error> {
                let (mut dtype, mut shape, mut offsets) = (None, None, None);
                while let Some(key) = map.next_key::<String>()? {
                    let is_twice = match key.as_str() {
                        "dtype" => dtype.replace(map.next_value::<String>()?).is_some(),
                        "shape" => shape.replace(map.next_value::<Shape>()?.0).is_some(),
                        "data_offsets" => {
                            offsets.replace(map.next_value::<(u64, u64)>()?).is_some()
                        }
                        other => {
                            let other = shown(other);
                            return Err(A::Error::custom(format!("unknown key `{other}`")));
                        }
                    };
                    if is_twice {
                        return Err(A::Error::custom(format!("`{}` stands twice", shown(&key))));
                    }
                }
                Ok(RawTensor {
                    dtype: dtype.ok_or_else(|| A::Error::missing_field("dtype"))?,
                    shape: shape.ok_or_else(|| A::Error::missing_field("shape"))?,
                    offsets: offsets.ok_or_else(|| A::Error::missing_field("data_offsets"))?,
                })
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

/// At most [`MAX_RANK`] dimensions.
struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Dims;
        impl<'de> Visitor<'de> for Dims {
            type Value = Shape;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {MAX_RANK} dimensions")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
                let mut dims = Vec::new();
                while let Some(dim) = seq.next_element()? {
                    if dims.len() == MAX_RANK {
                        return Err(A::Error::custom(format!("more than {MAX_RANK} dimensions")));
                    }
                    dims.push(dim);
                }
                Ok(Shape(dims))
            }
        }
        deserializer.deserialize_seq(Dims)
    }
}

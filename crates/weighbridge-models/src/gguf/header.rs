//! The header of one GGUF file, read with limits and believed only where the numbers agree.
//!
//! The format (`ggml/docs/gguf.md`), little-endian: the magic `GGUF`, version, number of tensors,
//! number of keys; the keys with their values; name, dimensions, type and offset of each tensor;
//! padding; the tensors' bytes, each padded to the alignment.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::io::Read;
use std::path::Path;

use weighbridge_core::{Error, Result};

use super::TensorInfo;
use super::foreign;
use super::ggml_type::{GgmlType, removed};
use super::value::{Data, Kind, Value, ValueType};
use crate::files::{FETCH_AGAIN, fault, shown};

/// Longest header that is read, in bytes: keys, values and descriptions of tensors. The largest
/// known, a vocabulary of 262,144 tokens with its merges, has 16 MiB.
pub const MAX_HEADER_BYTES: u64 = 256 << 20;
/// Longest name of a tensor, in bytes; ggml has a fixed field for it.
pub const MAX_NAME_BYTES: usize = 63;
/// Largest alignment of tensors, in bytes. Files have 32 or a page.
pub const MAX_ALIGNMENT: u64 = 16 << 20;

const MAX_KEY_BYTES: u64 = 65_535;
const MAX_DIMS: u32 = 4;
const DEFAULT_ALIGNMENT: u64 = 32;
/// `TENSOR_ALIGNMENT` of ggml, which aborts if it maps a tensor elsewhere: a smaller alignment of
/// the file does not suffice.
const MAPPED_ALIGNMENT: u64 = 32;
const ALIGNMENT_KEY: &str = "general.alignment";
/// Least bytes of a key with its value: two lengths of 1, the type, one byte.
const MIN_KEY_BYTES: u64 = 8 + 1 + 4 + 1;
/// Least bytes that describe a tensor: length of the name, one letter, rank, type, offset.
const MIN_TENSOR_BYTES: u64 = 8 + 1 + 4 + 4 + 8;

/// A header whose numbers agree with each other and with the file's length.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) values: BTreeMap<String, Value>,
    /// In the order of their bytes.
    pub(super) tensors: Vec<TensorInfo>,
}

impl Header {
    /// Reads the header at the start of a file of `file_len` bytes.
    pub(super) fn read(reader: &mut dyn Read, file_len: u64, path: &Path) -> Result<Self> {
        let mut reader = Bounded { reader, position: 0, file_len, path };
        let (n_tensors, n_keys) = reader.start()?;
        let mut values = BTreeMap::new();
        for _ in 0..n_keys {
            let (key, value) = reader.pair()?;
            if values.contains_key(&key) {
                return Err(fault(
                    path,
                    format_args!("has the key `{}` twice", shown(&key)),
                    FETCH_AGAIN,
                ));
            }
            values.insert(key, value);
        }
        let alignment = alignment(&values, path)?;
        let mut names = HashSet::new();
        let mut tensors = Vec::new();
        for _ in 0..n_tensors {
            let tensor = reader.tensor()?;
            if !names.insert(tensor.name.clone()) {
                return Err(fault(
                    path,
                    format_args!("has the tensor `{}` twice", shown(&tensor.name)),
                    FETCH_AGAIN,
                ));
            }
            tensors.push(tensor);
        }
        place(&mut tensors, reader.position, alignment, file_len, path)?;
        Ok(Self { values, tensors })
    }
}

fn alignment(values: &BTreeMap<String, Value>, path: &Path) -> Result<u64> {
    let Some(value) = values.get(ALIGNMENT_KEY) else { return Ok(DEFAULT_ALIGNMENT) };
    let bad = |what: String| {
        fault(path, format_args!("has {what} as `{ALIGNMENT_KEY}`"), FETCH_AGAIN)
            .with("key", ALIGNMENT_KEY)
    };
    if value.kind != Kind::One(ValueType::U32) {
        return Err(bad(format!("a value of type {}, not u32,", value.kind)));
    }
    let alignment = value.integers().and_then(|mut numbers| numbers.next()).unwrap_or(0);
    u64::try_from(alignment)
        .ok()
        .filter(|alignment| alignment.is_power_of_two() && *alignment <= MAX_ALIGNMENT)
        .ok_or_else(|| {
            bad(format!("{alignment}, which is not a power of two up to {MAX_ALIGNMENT},"))
        })
}

/// Turns offsets into the tensors' section into offsets into the file, and refuses those that ggml
/// does not expect: each tensor follows the one before it, at the next multiple of the alignment.
fn place(
    tensors: &mut [TensorInfo],
    header_end: u64,
    alignment: u64,
    file_len: u64,
    path: &Path,
) -> Result<()> {
    let section = header_end.next_multiple_of(alignment);
    let mut end = 0u64;
    for tensor in tensors.iter_mut() {
        let bad = |what: String| {
            fault(
                path,
                format_args!("has a bad tensor `{}`: {what}", shown(&tensor.name)),
                FETCH_AGAIN,
            )
            .with("tensor", shown(&tensor.name))
        };
        let offset = tensor.offset;
        let expected = end.checked_next_multiple_of(alignment);
        if !offset.is_multiple_of(alignment) {
            return Err(bad(format!(
                "its offset {offset} is not a multiple of the alignment {alignment}"
            )));
        }
        match expected {
            Some(expected) if offset < expected => {
                return Err(bad(format!(
                    "its offset {offset} overlaps the tensor before it, which ends at {end}"
                )));
            }
            Some(expected) if offset == expected => {}
            _ => {
                return Err(bad(format!(
                    "its offset {offset} leaves a hole after the tensor before it, which ends at {end}"
                )));
            }
        }
        let (in_file, in_section) =
            (section.checked_add(offset), offset.checked_add(tensor.n_bytes));
        let (Some(in_file), Some(in_section)) = (in_file, in_section) else {
            return Err(bad(format!("its end overflows at offset {offset}")));
        };
        if !in_file.is_multiple_of(MAPPED_ALIGNMENT) {
            return Err(bad(format!(
                "it starts at byte {in_file}, not at a multiple of {MAPPED_ALIGNMENT} as llama.cpp \
                 requires of mapped tensors"
            )));
        }
        tensor.offset = in_file;
        end = in_section;
    }
    let n_needed = if tensors.is_empty() { 0 } else { section.saturating_add(end) };
    if n_needed > file_len {
        return Err(fault(
            path,
            format_args!(
                "is truncated: its tensors need {n_needed} bytes, {file_len} are there, {} are missing",
                n_needed - file_len
            ),
            FETCH_AGAIN,
        )
        .with("n_bytes_needed", n_needed)
        .with("n_bytes", file_len));
    }
    Ok(())
}

/// Reads no byte and allocates nothing that the file's length does not cover.
struct Bounded<'a> {
    reader: &'a mut dyn Read,
    position: u64,
    file_len: u64,
    path: &'a Path,
}

impl Bounded<'_> {
    fn fault(&self, what: impl fmt::Display) -> Error {
        fault(self.path, what, FETCH_AGAIN).with("offset", self.position)
    }

    /// Refuses what cannot be in the file before it is read.
    fn need(&self, n_bytes: Option<u64>, what: impl fmt::Display) -> Result<u64> {
        let n_left = self.file_len - self.position;
        let Some(n_bytes) = n_bytes.filter(|n_bytes| *n_bytes <= n_left) else {
            let n_bytes = n_bytes.map_or_else(|| "more than 2^64".to_owned(), |n| n.to_string());
            return Err(self.fault(format_args!(
                "is truncated or damaged: {what} at byte {} needs {n_bytes} bytes, {n_left} are there",
                self.position
            )));
        };
        if self.position + n_bytes > MAX_HEADER_BYTES {
            return Err(self.fault(format_args!(
                "has a header of more than {MAX_HEADER_BYTES} bytes: {what} needs {n_bytes}"
            )));
        }
        Ok(n_bytes)
    }

    fn bytes(&mut self, n_bytes: u64, what: impl fmt::Display) -> Result<Box<[u8]>> {
        self.need(Some(n_bytes), what)?;
        let mut bytes = vec![0u8; n_bytes as usize];
        self.fill(&mut bytes)?;
        Ok(bytes.into_boxed_slice())
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.reader
            .read_exact(bytes)
            .map_err(|error| fault(self.path, "cannot be read", "").with_source(error))?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    fn u32(&mut self, what: impl fmt::Display) -> Result<u32> {
        let mut bytes = [0; 4];
        self.need(Some(4), what)?;
        self.fill(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn u64(&mut self, what: impl fmt::Display) -> Result<u64> {
        let mut bytes = [0; 8];
        self.need(Some(8), what)?;
        self.fill(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn string(&mut self, what: impl fmt::Display + Copy) -> Result<Box<[u8]>> {
        let len = self.u64(what)?;
        self.bytes(len, what)
    }

    /// Magic, version and the two counts: tensors, keys.
    fn start(&mut self) -> Result<(u64, u64)> {
        let mut start = [0u8; 32];
        let n_start = self.file_len.min(4) as usize;
        self.fill(&mut start[..n_start])?;
        if start[..n_start] != *b"GGUF" {
            let n_more = (self.file_len.min(32) as usize) - n_start;
            self.fill(&mut start[n_start..n_start + n_more])?;
            let (what, remedy) = foreign::recognise(&start[..n_start + n_more])
                .unwrap_or_else(|| ("is truncated".to_owned(), FETCH_AGAIN));
            return Err(fault(self.path, what, remedy));
        }
        match self.u32("the version")? {
            2 | 3 => {}
            1 => {
                return Err(fault(
                    self.path,
                    "is a GGUF file of version 1, which engines no longer read",
                    "download a current conversion",
                ));
            }
            version if version.swap_bytes() <= 0xFFFF && version != 0 => {
                return Err(fault(
                    self.path,
                    format_args!(
                        "is a byte-swapped (big-endian) GGUF file of version {}",
                        version.swap_bytes()
                    ),
                    "download the little-endian file",
                ));
            }
            version => {
                return Err(fault(
                    self.path,
                    format_args!("has GGUF version {version}; versions 2 and 3 are known"),
                    "download it again, or update the program if the version is new",
                ));
            }
        }
        let n_tensors = self.u64("the number of tensors")?;
        let n_keys = self.u64("the number of keys")?;
        self.need(n_keys.checked_mul(MIN_KEY_BYTES), format_args!("{n_keys} keys"))?;
        self.need(n_tensors.checked_mul(MIN_TENSOR_BYTES), format_args!("{n_tensors} tensors"))?;
        Ok((n_tensors, n_keys))
    }

    fn pair(&mut self) -> Result<(String, Value)> {
        let len = self.u64("the length of a key")?;
        if len == 0 || len > MAX_KEY_BYTES {
            return Err(self.fault(format_args!(
                "has a key of {len} bytes, which is not within 1 and {MAX_KEY_BYTES}"
            )));
        }
        let key = String::from_utf8(self.bytes(len, "a key")?.into_vec()).map_err(|error| {
            let key = String::from_utf8_lossy(error.as_bytes()).into_owned();
            self.fault(format_args!("has the key `{}`, which is not UTF-8", shown(&key)))
        })?;
        let name = shown(&key);
        let id = self.u32(format_args!("the type of `{name}`"))?;
        let value = if id == ValueType::ARRAY_ID {
            let id = self.u32(format_args!("the type of `{name}`"))?;
            if id == ValueType::ARRAY_ID {
                return Err(self
                    .fault(format_args!("has an array of arrays as `{name}`"))
                    .with("key", name));
            }
            let ty = self.value_type(id, &name)?;
            let n = self.u64(format_args!("the length of `{name}`"))?;
            self.array(ty, n, &name)?
        } else {
            let ty = self.value_type(id, &name)?;
            let data = match ty {
                ValueType::Str => Data::Strings(Box::new([self.string(format_args!("`{name}`"))?])),
                _ => Data::Numbers(self.bytes(ty.size() as u64, format_args!("`{name}`"))?),
            };
            Value { kind: Kind::One(ty), data }
        };
        Ok((key, value))
    }

    fn value_type(&self, id: u32, key: &str) -> Result<ValueType> {
        ValueType::from_id(id).ok_or_else(|| {
            self.fault(format_args!("has the unknown type {id} for `{key}`")).with("key", key)
        })
    }

    fn array(&mut self, ty: ValueType, n: u64, key: &str) -> Result<Value> {
        let what = format_args!("`{key}` with {n} elements");
        let n_bytes = self.need(n.checked_mul(ty.size() as u64), what)?;
        let data = if ty == ValueType::Str {
            let mut strings = Vec::with_capacity(n as usize);
            for _ in 0..n {
                strings.push(self.string(what)?);
            }
            Data::Strings(strings.into_boxed_slice())
        } else {
            Data::Numbers(self.bytes(n_bytes, what)?)
        };
        Ok(Value { kind: Kind::Array(ty), data })
    }

    fn tensor(&mut self) -> Result<TensorInfo> {
        let name = self.string("the name of a tensor")?;
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            return Err(self.fault(format_args!(
                "has a tensor with a name of {} bytes, which is not within 1 and {MAX_NAME_BYTES}",
                name.len()
            )));
        }
        let name = String::from_utf8(name.into_vec()).map_err(|error| {
            let name = String::from_utf8_lossy(error.as_bytes()).into_owned();
            self.fault(format_args!("has the tensor `{}`, which is not UTF-8", shown(&name)))
        })?;
        let bad = |reader: &Self, what: String| {
            reader
                .fault(format_args!("has a bad tensor `{}`: {what}", shown(&name)))
                .with("tensor", shown(&name))
        };
        let what = format_args!("tensor `{}`", shown(&name)).to_string();
        let n_dims = self.u32(&what)?;
        if n_dims > MAX_DIMS {
            return Err(bad(self, format!("{n_dims} dimensions, at most {MAX_DIMS} are possible")));
        }
        let mut dims = Vec::with_capacity(n_dims as usize);
        for _ in 0..n_dims {
            dims.push(self.u64(&what)?);
        }
        let id = self.u32(&what)?;
        let offset = self.u64(&what)?;
        let dtype = GgmlType::from_id(id).ok_or_else(|| match removed(id) {
            Some(old) => bad(
                self,
                format!("its type {old} is no longer supported; a current conversion is needed"),
            ),
            None => bad(self, format!("unknown type {id}")),
        })?;
        if dims.contains(&0) {
            return Err(bad(self, format!("its dimensions {dims:?} have a zero")));
        }
        let n_elements = dims
            .iter()
            .try_fold(1u64, |n, dim| n.checked_mul(*dim))
            .filter(|n| i64::try_from(*n).is_ok())
            .ok_or_else(|| bad(self, format!("the size of dimensions {dims:?} overflows")))?;
        let row = dims.first().copied().unwrap_or(1);
        if !row.is_multiple_of(dtype.block_size()) {
            return Err(bad(
                self,
                format!(
                    "{row} elements per row are not a multiple of the {} of a block of {dtype}",
                    dtype.block_size()
                ),
            ));
        }
        let n_bytes = (n_elements / dtype.block_size())
            .checked_mul(dtype.type_size())
            .ok_or_else(|| bad(self, format!("the size of dimensions {dims:?} overflows")))?;
        Ok(TensorInfo { name, dims, dtype, offset, n_bytes })
    }
}

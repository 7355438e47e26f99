//! GGUF files: read with limits and checked before an engine sees them.
//!
//! llama.cpp aborts the process for files that are well-formed but contradict themselves (two equal
//! tokens, no layers, more experts used than there are), and its typed getters fail on a value of
//! another type. [`Gguf::open`] refuses those first, with an error that names the place. What it
//! requires is what llama.cpp 0.5.0 (ggml 0.25.3) requires; no tensor is read.
//!
//! Metadata is kept as it is in the file: an accessor of another type than the value's returns
//! `None`.

use std::collections::BTreeMap;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use weighbridge_core::Result;

pub use self::architectures::KNOWN_ARCHITECTURES;
pub use self::ggml_type::GgmlType;
pub use self::header::{MAX_ALIGNMENT, MAX_HEADER_BYTES, MAX_NAME_BYTES};
use self::value::Value;
use crate::files::{fault, open_regular, shown};
use crate::weight_file::{WeightFile, sha256};

mod architectures;
mod foreign;
mod ggml_type;
mod header;
mod preflight;
mod split;
mod value;
mod vocab;

/// An opened model: headers are read and checked, tensors are read when asked for.
///
/// The files stay open, so what was checked is what is read, even if a path is replaced.
#[derive(Debug)]
pub struct Gguf {
    files: Vec<WeightFile>,
    values: BTreeMap<String, Value>,
    tensors: BTreeMap<String, (usize, TensorInfo)>,
    /// `general.architecture`.
    arch: String,
    name: String,
}

/// Where one tensor lies in its file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its dimensions in ggml's order: elements along the first lie side by side. Empty for a
    /// scalar.
    pub dims: Vec<u64>,
    /// Type of its elements.
    pub dtype: GgmlType,
    /// Where its bytes start, counted from the start of the file.
    pub offset: u64,
    /// Number of its bytes.
    pub n_bytes: u64,
}

impl TensorInfo {
    /// Number of elements; 1 for a scalar.
    pub fn n_elements(&self) -> u64 {
        // Checked when the header was read.
        self.dims.iter().product()
    }
}

/// What of a model is expected in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    Model,
    Vocabulary,
}

impl Gguf {
    /// Opens a model: one file, or all shards of a split one, given any of them
    /// (`NAME-00001-of-00003.gguf`). Shards are checked against `split.no`, `split.count` and
    /// `split.tensors.count`; metadata is that of the first.
    ///
    /// # Errors
    /// [`NotFound`](weighbridge_core::ErrorKind::NotFound) without the file;
    /// [`ModelLoad`](weighbridge_core::ErrorKind::ModelLoad) for a file that is something else, is
    /// damaged, or would make llama.cpp fail or abort.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_as(path, Content::Model)
    }

    /// Opens the vocabulary of a file, which may be without tensors, to tokenize only.
    /// Hyperparameters and tensors are not checked against each other.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_vocab_only(path: &Path) -> Result<Self> {
        Self::open_as(path, Content::Vocabulary)
    }

    fn open_as(path: &Path, content: Content) -> Result<Self> {
        let split::Parts { files, values, tensors } = split::open(path)?;
        let mut gguf =
            Self { files, values, tensors, arch: String::new(), name: split::model_name(path) };
        preflight::check_keys(&gguf, path)?;
        gguf.arch = preflight::architecture(&gguf, path)?;
        if let Some(name) = gguf.str("general.name").filter(|name| !name.trim().is_empty()) {
            gguf.name = name.to_owned();
        }
        preflight::check(&gguf, path, content)?;
        Ok(gguf)
    }

    /// Whether a file starts as a GGUF file does. `false` also if it cannot be read.
    pub fn is_gguf(path: &Path) -> bool {
        let mut magic = [0u8; 4];
        open_regular(path).is_ok_and(|(mut file, _)| file.read_exact(&mut magic).is_ok())
            && magic == *b"GGUF"
    }

    /// The architecture, one of [`KNOWN_ARCHITECTURES`].
    pub fn arch(&self) -> &str {
        &self.arch
    }

    /// `general.name`, else the name of the file without its ending and shard number.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `general.license`: what the file claims.
    pub fn license(&self) -> Option<&str> {
        self.str("general.license")
    }

    /// The name of `general.file_type`, for instance `Q4_K_M`, as `llama-quantize` has it; without
    /// one the type that most elements are stored in.
    pub fn quantization(&self) -> String {
        let named = self.u64("general.file_type").and_then(ggml_type::file_type_name);
        named.map_or_else(|| self.most_common_type().to_string(), str::to_owned)
    }

    fn most_common_type(&self) -> GgmlType {
        let mut counts = BTreeMap::<GgmlType, u64>::new();
        for tensor in self.tensors() {
            let count = counts.entry(tensor.dtype).or_default();
            *count = count.saturating_add(tensor.n_elements());
        }
        counts.into_iter().max_by_key(|(_, n)| *n).map_or(GgmlType::F32, |(dtype, _)| dtype)
    }

    /// Number of elements of all tensors together.
    pub fn n_params(&self) -> u64 {
        self.tensors().map(TensorInfo::n_elements).fold(0, u64::saturating_add)
    }

    /// Bytes of all files together.
    pub fn n_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.n_bytes).sum()
    }

    /// The files, shards in their order.
    pub fn files(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }

    /// The keys of the metadata, sorted.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// Whether there is a key.
    pub fn contains(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// `ARCHITECTURE.NAME`: the key of a hyperparameter.
    pub fn arch_key(&self, name: &str) -> String {
        format!("{}.{name}", self.arch)
    }

    /// A string that is valid UTF-8.
    pub fn str(&self, key: &str) -> Option<&str> {
        std::str::from_utf8(self.bytes(key)?).ok()
    }

    /// The bytes of a string.
    pub fn bytes(&self, key: &str) -> Option<&[u8]> {
        self.values.get(key)?.bytes()
    }

    /// An integer of any type that is not negative.
    pub fn u64(&self, key: &str) -> Option<u64> {
        u64::try_from(self.one(key)?.integers()?.next()?).ok()
    }

    /// An integer of any type.
    pub fn i64(&self, key: &str) -> Option<i64> {
        i64::try_from(self.one(key)?.integers()?.next()?).ok()
    }

    /// A number of any type.
    pub fn f64(&self, key: &str) -> Option<f64> {
        let value = self.one(key)?;
        match value.floats() {
            Some(mut floats) => floats.next(),
            None => value.integers()?.next().map(|integer| integer as f64),
        }
    }

    /// A truth value.
    pub fn bool(&self, key: &str) -> Option<bool> {
        self.one(key)?.bools()?.next()
    }

    /// An array of integers of any type, none negative.
    pub fn u64s(&self, key: &str) -> Option<Vec<u64>> {
        self.array(key)?.integers()?.map(|integer| u64::try_from(integer).ok()).collect()
    }

    /// An array of integers of any type.
    pub fn i64s(&self, key: &str) -> Option<Vec<i64>> {
        self.array(key)?.integers()?.map(|integer| i64::try_from(integer).ok()).collect()
    }

    /// An array of floating-point numbers; those of 64 bits are rounded.
    pub fn f32s(&self, key: &str) -> Option<Vec<f32>> {
        Some(self.array(key)?.floats()?.map(|float| float as f32).collect())
    }

    /// An array of truth values.
    pub fn bools(&self, key: &str) -> Option<Vec<bool>> {
        Some(self.array(key)?.bools()?.collect())
    }

    /// An array of strings as bytes: tokens need not be valid UTF-8.
    pub fn strs(&self, key: &str) -> Option<&[Box<[u8]>]> {
        self.values.get(key)?.strings()
    }

    fn one(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| !value.is_array())
    }

    fn array(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| value.is_array())
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &TensorInfo> {
        self.tensors.values().map(|(_, tensor)| tensor)
    }

    /// One tensor, or `None`.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name).map(|(_, tensor)| tensor)
    }

    /// Reads one tensor's bytes into `into`, which is cleared first.
    ///
    /// # Errors
    /// [`ModelLoad`](weighbridge_core::ErrorKind::ModelLoad) if there is no such tensor or the file
    /// has become shorter since it was opened.
    pub fn read(&mut self, name: &str, into: &mut Vec<u8>) -> Result<()> {
        let Some((file_idx, tensor)) = self.tensors.get(name) else {
            let path = self.files.first().map_or(Path::new(""), |file| &file.path);
            return Err(fault(path, format_args!("has no tensor `{}`", shown(name)), ""));
        };
        let range = tensor.offset..tensor.offset + tensor.n_bytes;
        self.files[*file_idx].read_tensor(name, &range, into)
    }

    /// SHA-256 over the bytes of the files in the order of the shards, as lower-case hex. For one
    /// file it is what `sha256sum model.gguf` prints; for shards
    /// `cat model-*-of-*.gguf | sha256sum`.
    ///
    /// Reads all files. `progress` is called with the bytes read so far, after each mebibyte.
    ///
    /// # Errors
    /// What `progress` returns, to cancel; [`ModelLoad`](weighbridge_core::ErrorKind::ModelLoad) if
    /// a file cannot be read or has changed its length.
    pub fn sha256(&mut self, progress: &mut dyn FnMut(u64) -> Result<()>) -> Result<String> {
        sha256(&mut self.files, progress)
    }
}

/// One file with its header.
fn open_one(path: PathBuf) -> Result<(WeightFile, header::Header)> {
    let file = WeightFile::open(path)?;
    let header = header::Header::read(&mut BufReader::new(&file.file), file.n_bytes, &file.path)?;
    Ok((file, header))
}

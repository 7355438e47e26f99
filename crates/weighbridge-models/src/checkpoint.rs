//! The weights of a model: one safetensors file, or several with an index.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use weighbridge_core::Result;

use crate::files::{FETCH_AGAIN, fault, read_json, shown};
use crate::safetensors::{Dtype, Header, TensorInfo};
use crate::weight_file::{WeightFile, sha256};

/// Name of the file of a model that is not sharded.
pub const SINGLE_FILE: &str = "model.safetensors";
/// Name of the index of a sharded model.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
/// Most shards.
pub const MAX_FILES: usize = 1_000;

const MAX_INDEX_BYTES: u64 = 25_000_000;

/// Opened weights: headers are read and checked, tensors are read when asked for.
///
/// The files stay open, so what was checked is what is read, even if a path is replaced.
#[derive(Debug)]
pub struct Checkpoint {
    files: Vec<WeightFile>,
    tensors: BTreeMap<String, (usize, TensorInfo)>,
}

impl Checkpoint {
    /// Opens the weights in a folder: `model.safetensors`, else the shards of
    /// `model.safetensors.index.json`.
    ///
    /// # Errors
    /// [`NotFound`](weighbridge_core::ErrorKind::NotFound) without either;
    /// [`ModelLoad`](weighbridge_core::ErrorKind::ModelLoad) for files that do not add up.
    pub fn open(folder: &Path) -> Result<Self> {
        let index = folder.join(INDEX_FILE);
        if !folder.join(SINGLE_FILE).exists() && index.exists() {
            return Self::open_sharded(folder, &index);
        }
        let mut checkpoint = Self { files: Vec::new(), tensors: BTreeMap::new() };
        for tensor in checkpoint.add_file(folder.join(SINGLE_FILE))? {
            checkpoint.tensors.insert(tensor.name.clone(), (0, tensor));
        }
        Ok(checkpoint)
    }

    fn open_sharded(folder: &Path, index: &Path) -> Result<Self> {
        let json = read_json(index, MAX_INDEX_BYTES)?;
        let bad = |what: String| fault(index, what, FETCH_AGAIN);
        let map = json
            .get("weight_map")
            .and_then(Value::as_object)
            .ok_or_else(|| bad("has no `weight_map` object".to_owned()))?;
        let mut by_file: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (tensor, file) in map {
            let file = file.as_str().filter(|name| is_plain_name(name)).ok_or_else(|| {
                bad(format!(
                    "places tensor `{}` in `{}`, which is not the name of a safetensors file in the same folder",
                    shown(tensor),
                    shown(&file.to_string())
                ))
            })?;
            by_file.entry(file).or_default().push(tensor);
        }
        if by_file.len() > MAX_FILES {
            return Err(bad(format!("names {} files, more than {MAX_FILES}", by_file.len())));
        }
        let mut checkpoint = Self { files: Vec::new(), tensors: BTreeMap::new() };
        for (file, tensors) in by_file {
            let path = folder.join(file);
            if !path.exists() {
                return Err(fault(
                    folder,
                    format_args!("has no `{file}`, which `{INDEX_FILE}` names"),
                    "download the missing file",
                ));
            }
            let file_idx = checkpoint.files.len();
            let mut held: BTreeMap<String, TensorInfo> =
                checkpoint.add_file(path)?.into_iter().map(|t| (t.name.clone(), t)).collect();
            for name in tensors {
                let tensor = held.remove(name).ok_or_else(|| {
                    bad(format!(
                        "places tensor `{}` in `{file}`, which does not have it",
                        shown(name)
                    ))
                })?;
                checkpoint.tensors.insert(name.to_owned(), (file_idx, tensor));
            }
        }
        Ok(checkpoint)
    }

    /// Opens one more file and returns what its header lists.
    fn add_file(&mut self, path: PathBuf) -> Result<Vec<TensorInfo>> {
        let mut file = WeightFile::open(path)?;
        let header = Header::read(&mut file.file, file.n_bytes, &file.path)?;
        self.files.push(file);
        Ok(header.tensors)
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &TensorInfo> {
        self.tensors.values().map(|(_, tensor)| tensor)
    }

    /// One tensor, or `None`.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name).map(|(_, tensor)| tensor)
    }

    /// The file that holds a tensor.
    pub fn file_of(&self, name: &str) -> Option<&Path> {
        let (file_idx, _) = self.tensors.get(name)?;
        Some(&self.files[*file_idx].path)
    }

    /// The files, by name.
    pub fn files(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }

    /// Bytes of all files together.
    pub fn n_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.n_bytes).sum()
    }

    /// Number of elements of all tensors together. A tensor that two layers share counts as often
    /// as it is stored.
    pub fn n_params(&self) -> u64 {
        self.tensors().map(TensorInfo::n_elements).fold(0, u64::saturating_add)
    }

    /// The type that most elements are stored in; `F32` without any.
    pub fn dtype(&self) -> Dtype {
        let mut counts = BTreeMap::<Dtype, u64>::new();
        for tensor in self.tensors() {
            let count = counts.entry(tensor.dtype).or_default();
            *count = count.saturating_add(tensor.n_elements());
        }
        counts.into_iter().max_by_key(|(_, count)| *count).map_or(Dtype::F32, |(dtype, _)| dtype)
    }

    /// Reads one tensor's bytes into `out`, which is cleared first.
    ///
    /// # Errors
    /// [`ModelLoad`](weighbridge_core::ErrorKind::ModelLoad) if there is no such tensor or the file
    /// has become shorter since it was opened.
    pub fn read(&mut self, name: &str, out: &mut Vec<u8>) -> Result<()> {
        let Some((file_idx, tensor)) = self.tensors.get(name) else {
            let path = self.files.first().map_or(Path::new(""), |file| &file.path);
            return Err(fault(path, format_args!("has no tensor `{}`", shown(name)), ""));
        };
        self.files[*file_idx].read_tensor(name, &tensor.range, out)
    }

    /// SHA-256 over the bytes of the files in the order of their names, as lower-case hex. For one
    /// file it is what `sha256sum model.safetensors` prints; for shards
    /// `cat model-*.safetensors | sha256sum`.
    ///
    /// Reads all files. `step` is called with the bytes read so far, after each mebibyte.
    ///
    /// # Errors
    /// What `step` returns, to cancel; [`ModelLoad`](weighbridge_core::ErrorKind::ModelLoad) if a
    /// file cannot be read or has changed its length.
    pub fn sha256(&mut self, step: &mut dyn FnMut(u64) -> Result<()>) -> Result<String> {
        sha256(&mut self.files, step)
    }
}

/// Whether a name from an index stays in its folder on every platform.
fn is_plain_name(name: &str) -> bool {
    name.len() <= 255
        && name.ends_with(".safetensors")
        && !name.starts_with('.')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

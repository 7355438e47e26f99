//! The weights of a model: one safetensors file, or several with an index.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};
use weighbridge_core::Result;

use crate::files::{FETCH_AGAIN, fault, open_regular, read_json, shown};
use crate::safetensors::{Dtype, Header, TensorInfo};

/// Name of the file of a model that is not sharded.
pub const SINGLE_FILE: &str = "model.safetensors";
/// Name of the index of a sharded model.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
/// Most shards.
pub const MAX_FILES: usize = 1_000;

const MAX_INDEX_BYTES: u64 = 25_000_000;
const HASH_BUFFER_BYTES: usize = 1 << 20;

/// Opened weights: headers are read and checked, tensors are read when asked for.
///
/// The files stay open, so what was checked is what is read, even if a path is replaced.
#[derive(Debug)]
pub struct Checkpoint {
    files: Vec<WeightFile>,
    tensors: BTreeMap<String, (usize, TensorInfo)>,
}

#[derive(Debug)]
struct WeightFile {
    path: PathBuf,
    file: File,
    n_bytes: u64,
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
        let (mut file, n_bytes) = open_regular(&path)?;
        let header = Header::read(&mut file, n_bytes, &path)?;
        self.files.push(WeightFile { path, file, n_bytes });
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
        let file = &mut self.files[*file_idx];
        let n_bytes = tensor.range.end - tensor.range.start;
        let failed = |error: std::io::Error| {
            fault(
                &file.path,
                format_args!("cannot be read at tensor `{}`", shown(name)),
                FETCH_AGAIN,
            )
            .with_source(error)
        };
        file.file.seek(SeekFrom::Start(tensor.range.start)).map_err(failed)?;
        out.clear();
        // The header was checked against the file's length, so this is at most the file's size.
        out.reserve_exact(n_bytes as usize);
        let n_read = (&file.file).take(n_bytes).read_to_end(out).map_err(failed)?;
        if n_read as u64 != n_bytes {
            return Err(fault(
                &file.path,
                format_args!(
                    "has become shorter: {n_read} of {n_bytes} bytes of tensor `{}` are there",
                    shown(name)
                ),
                FETCH_AGAIN,
            ));
        }
        Ok(())
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
        let mut hash = Sha256::new();
        let mut buffer = vec![0u8; HASH_BUFFER_BYTES];
        let mut n_done = 0;
        for WeightFile { path, file, n_bytes } in &mut self.files {
            let failed = |error: std::io::Error| {
                fault(path, "cannot be read", FETCH_AGAIN).with_source(error)
            };
            file.seek(SeekFrom::Start(0)).map_err(failed)?;
            let mut n_file = 0;
            loop {
                let n_read = file.read(&mut buffer).map_err(failed)?;
                if n_read == 0 {
                    break;
                }
                hash.update(&buffer[..n_read]);
                n_file += n_read as u64;
                step(n_done + n_file)?;
            }
            if n_file != *n_bytes {
                return Err(fault(
                    path,
                    format_args!("has changed: {n_file} bytes, {n_bytes} when it was opened"),
                    "leave the file alone while it is loaded",
                ));
            }
            n_done += n_file;
        }
        Ok(hex::encode(hash.finalize()))
    }
}

/// Whether a name from an index stays in its folder on every platform.
fn is_plain_name(name: &str) -> bool {
    name.len() <= 255
        && name.ends_with(".safetensors")
        && !name.starts_with('.')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

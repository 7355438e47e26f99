//! A Hugging Face model folder as a whole, looked at before anything is loaded.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use weighbridge_core::{Error, ErrorKind, Result};

use crate::checkpoint::{Checkpoint, INDEX_FILE, SINGLE_FILE};
use crate::decoder::{DecoderConfig, Naming};
use crate::files::{fault, open_regular, read_small, shown};
use crate::hf_config::{self, CONFIG_FILE};
use crate::safetensors::{pickle_kind, pickle_refused};

/// Name of the tokenizer's definition.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

/// Folder entries looked at for a message about what is there instead of the weights.
const MAX_ENTRIES: usize = 1_000;
const MAX_README_BYTES: u64 = 4 << 20;

/// A model folder whose parts are there and fit together.
#[derive(Debug)]
#[non_exhaustive]
pub struct ModelFolder {
    /// The folder.
    pub path: PathBuf,
    /// Its last component: the model's name.
    pub name: String,
    /// Shape and conventions.
    pub config: DecoderConfig,
    /// Opened weights that have every tensor of the configuration in its shape, and no others that
    /// matter.
    pub weights: Checkpoint,
    /// The tokenizer's definition.
    pub tokenizer: PathBuf,
    /// Licence from `config.json` or the front matter of `README.md`, as declared.
    pub license: Option<String>,
}

impl ModelFolder {
    /// Looks at a folder: configuration, weights' headers, tokenizer. Reads no tensor.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) if there is no such folder;
    /// [`ModelLoad`](ErrorKind::ModelLoad) naming what is missing or does not fit, and the remedy.
    pub fn open(path: &Path) -> Result<Self> {
        let config = check_files(path)?;
        let weights = Checkpoint::open(path)?;
        check_tensors(&config, &weights)?;
        let license = config.license.clone().or_else(|| readme_license(&path.join("README.md")));
        let tokenizer = path.join(TOKENIZER_FILE);
        Ok(Self {
            name: folder_name(path),
            path: path.to_owned(),
            config,
            weights,
            tokenizer,
            license,
        })
    }
}

/// Whether a folder looks like a model: it has a `config.json` and weights of any kind.
pub fn is_model_folder(path: &Path) -> bool {
    path.join(CONFIG_FILE).is_file()
        && (path.join(SINGLE_FILE).is_file() || path.join(INDEX_FILE).is_file())
}

fn folder_name(path: &Path) -> String {
    let absolute = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    absolute
        .file_name()
        .map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
}

fn missing(path: &Path, file: &str, remedy: &str) -> Error {
    Error::new(
        ErrorKind::ModelLoad,
        format!("model folder `{}` has no `{file}`: {remedy}", path.display()),
    )
    .with("folder", path.display())
    .with("file", file)
}

/// What must be there, and the configuration.
fn check_files(path: &Path) -> Result<DecoderConfig> {
    if !path.exists() {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!(
                "no model folder at `{}`: give the path of a Hugging Face folder",
                path.display()
            ),
        )
        .with("folder", path.display()));
    }
    if !path.is_dir() {
        return Err(fault(
            path,
            "is not a folder",
            "give the folder that holds config.json and the weights",
        ));
    }
    if !path.join(CONFIG_FILE).exists() {
        return Err(missing(path, CONFIG_FILE, "put the model's configuration there"));
    }
    let config = hf_config::read(&path.join(CONFIG_FILE))?;
    if !path.join(SINGLE_FILE).exists() && !path.join(INDEX_FILE).exists() {
        return Err(no_weights(path));
    }
    if !path.join(TOKENIZER_FILE).exists() {
        return Err(missing(
            path,
            TOKENIZER_FILE,
            "put the tokenizer's file of the same model there; where there is only a \
             tokenizer.model, transformers' `AutoTokenizer.from_pretrained(folder)\
             .save_pretrained(folder)` writes one",
        ));
    }
    Ok(config)
}

/// Names what is there instead of safetensors; pickles are judged by their content.
fn no_weights(path: &Path) -> Error {
    let mut names: Vec<PathBuf> = fs::read_dir(path)
        .into_iter()
        .flatten()
        .take(MAX_ENTRIES)
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    names.sort();
    let extension = |file: &PathBuf| file.extension().map(|e| e.to_string_lossy().to_lowercase());
    for file in &names {
        if !matches!(extension(file).as_deref(), Some("bin" | "pt" | "pth" | "pkl" | "ckpt")) {
            continue;
        }
        let mut start = [0u8; 8];
        if let Ok((mut file_start, _)) = open_regular(file)
            && file_start.read_exact(&mut start).is_ok()
            && let Some(what) = pickle_kind(&start)
        {
            return pickle_refused(file, what);
        }
    }
    if let Some(gguf) = names.iter().find(|file| extension(file).as_deref() == Some("gguf")) {
        let name = gguf.file_name().unwrap_or_default().to_string_lossy();
        return missing(
            path,
            SINGLE_FILE,
            &format!(
                "it has `{}`, a GGUF file; put the model's safetensors files there",
                shown(&name)
            ),
        );
    }
    missing(path, SINGLE_FILE, "put the model's safetensors files there")
}

/// Every tensor of the configuration is there in its shape, and no other that would be ignored.
fn check_tensors(config: &DecoderConfig, weights: &Checkpoint) -> Result<()> {
    let expected = config.tensors(Naming::HuggingFace);
    for (name, shape) in &expected {
        let Some(tensor) = weights.tensor(name) else {
            let file = weights.files().next().unwrap_or(Path::new(""));
            return Err(fault(
                file,
                format_args!("has no tensor {name}, which config.json implies"),
                "weights and config.json must be of the same model",
            )
            .with("tensor", name));
        };
        if tensor.shape != *shape {
            let file = weights.file_of(name).unwrap_or(Path::new(""));
            return Err(fault(
                file,
                format_args!(
                    "does not fit: tensor {name} has shape {:?}, config.json implies {shape:?}",
                    tensor.shape
                ),
                "weights and config.json must be of the same model",
            )
            .with("tensor", name));
        }
    }
    let expected: BTreeSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
    let is_harmless = |name: &str| {
        // Tables that older versions stored and all recompute, and a copy of a tied matrix.
        name.ends_with(".rotary_emb.inv_freq") || (config.is_tied && name == "lm_head.weight")
    };
    let left_over = weights
        .tensors()
        .find(|tensor| !expected.contains(tensor.name.as_str()) && !is_harmless(&tensor.name));
    if let Some(tensor) = left_over {
        let file = weights.file_of(&tensor.name).unwrap_or(Path::new(""));
        return Err(fault(
            file,
            format_args!(
                "has a tensor `{}` that {} as config.json describes it does not use",
                shown(&tensor.name),
                config.architecture
            ),
            "weights and config.json must be of the same model",
        )
        .with("tensor", shown(&tensor.name)));
    }
    Ok(())
}

/// `license:` of the front matter between the first two `---` lines.
fn readme_license(path: &Path) -> Option<String> {
    let bytes = read_small(path, MAX_README_BYTES).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines = text.lines();
    if lines.next()?.trim_end() != "---" {
        return None;
    }
    let value = |line: &str, key: &str| {
        let value = line.strip_prefix(key)?.trim().trim_matches(['"', '\'']);
        (!value.is_empty() && !value.starts_with(['[', '-', '{', '|', '>'])).then(|| shown(value))
    };
    let (mut license, mut license_name) = (None, None);
    for line in lines.take_while(|line| line.trim_end() != "---") {
        license = license.or_else(|| value(line, "license:"));
        license_name = license_name.or_else(|| value(line, "license_name:"));
    }
    // `other` with a name says less than the name.
    if license.as_deref() == Some("other") { license_name.or(license) } else { license }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_licence_is_read_from_front_matter_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("README.md");
        let license = |text: &str| {
            fs::write(&path, text).unwrap();
            readme_license(&path)
        };
        assert_eq!(license("---\nlicense: apache-2.0\n---\n# Model"), Some("apache-2.0".into()));
        assert_eq!(license("---\ntags: [x]\nlicense: \"mit\"\n---"), Some("mit".into()));
        let other = "---\nlicense: other\nlicense_name: own-terms\n---";
        assert_eq!(license(other), Some("own-terms".into()));
        assert_eq!(license("# Model\nlicense: mit\n"), None);
        assert_eq!(license("---\ntags: x\n---\nlicense: mit\n"), None);
        assert_eq!(license(""), None);
    }
}

//! The provider `candle`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use weighbridge_core::{
    Backend, Error, ErrorKind, ModelListing, ModelRef, OpenContext, Plugin, Probe, Provider,
    ProviderInfo, Result,
};
use weighbridge_engine::files::off_thread;
use weighbridge_engine::{EngineOptions, LocalBackend};
use weighbridge_models::folder::is_model_folder;
use weighbridge_models::gguf::Gguf;

use crate::engine::MAX_SEQS;
use crate::files::ModelFiles;
use crate::loader::{CandleLoader, engine_info};
use crate::options::Compute;
use crate::{ID, options};

/// Folder entries that `list` looks at.
const MAX_ENTRIES: usize = 10_000;
/// Models that `list` names.
const MAX_LISTED: usize = 200;

/// This plugin. Opens no file and loads no library.
pub fn plugin() -> Plugin {
    Plugin::new(ID, env!("CARGO_PKG_VERSION")).provider(CandleProvider)
}

weighbridge_core::register_plugin!(plugin);

/// Opens Hugging Face folders and GGUF files.
#[derive(Clone, Copy, Debug, Default)]
pub struct CandleProvider;

#[async_trait]
impl Provider for CandleProvider {
    fn id(&self) -> &str {
        ID
    }

    fn describe(&self) -> ProviderInfo {
        let mut info = ProviderInfo::new(
            "runs Llama, Mistral, Mixtral, Qwen2, Qwen3, Gemma 2 and 3, Phi-3 and OLMo 2 models \
             in this process, in pure Rust on the CPU, or on a GPU in builds for it",
            "the path of a Hugging Face folder with config.json, tokenizer.json and \
             model.safetensors, or of a GGUF file, for instance `candle:models/my-model` or \
             `candle:models/my-model-Q4_K_M.gguf`",
        )
        .with_option_schema(options::schema());
        info.engine = Some(engine_info(&Compute::Own));
        info
    }

    async fn probe(&self, model: &ModelRef, context: &OpenContext) -> Probe {
        let (model, path) = (model.clone(), context.resolve(&model.location));
        let looked = off_thread(ID, move || {
            check_name(&model)?;
            check_location(&path)?;
            ModelFiles::open(&path).map(drop)
        });
        match looked.await {
            Ok(()) => Probe::Yes,
            Err(error) => Probe::No { reason: error.message().to_owned() },
        }
    }

    async fn list(&self, context: &OpenContext) -> Result<Vec<ModelListing>> {
        let base = context.base_dir.clone();
        off_thread(ID, move || Ok(list(&base))).await
    }

    async fn open(&self, model: &ModelRef, context: &OpenContext) -> Result<Arc<dyn Backend>> {
        let (model, path) = (model.clone(), context.resolve(&model.location));
        let for_thread = context.clone();
        let loader = off_thread(ID, move || {
            check_name(&model)?;
            check_location(&path)?;
            CandleLoader::prepare(&path, &for_thread)
        })
        .await?;
        let options = EngineOptions::new(loader.name())
            .with_max_concurrency(MAX_SEQS)
            .with_default_sampling(loader.default_sampling());
        LocalBackend::open(Box::new(loader), context, options).await
    }
}

fn check_name(model: &ModelRef) -> Result<()> {
    let extra = match (&model.revision, &model.variant) {
        (None, None) => return Ok(()),
        (Some(revision), _) => format!("@{revision}"),
        (None, Some(variant)) => format!("#{variant}"),
    };
    Err(Error::new(
        ErrorKind::InvalidInput,
        format!(
            "`{model}` has `{extra}`, which neither a folder nor a file has; write `{ID}:{}`",
            model.location
        ),
    ))
}

/// Says of files of other kinds what can be done with them.
fn check_location(path: &Path) -> Result<()> {
    let Some(kind) = other_kind(path) else { return Ok(()) };
    Err(Error::new(
        ErrorKind::ModelLoad,
        format!(
            "`{}` is {kind}; candle reads Hugging Face folders with safetensors, and GGUF files: \
             give one of the same model, or serve the file with another program and name it \
             `openai-compatible:URL#MODEL`",
            path.display()
        ),
    )
    .with("file", path.display()))
}

fn other_kind(path: &Path) -> Option<&'static str> {
    if path.is_dir() {
        let is_onnx = path.join("genai_config.json").is_file() || path.join("model.onnx").is_file();
        let is_ours = path.join("config.json").exists();
        return (is_onnx && !is_ours).then_some("a folder of an ONNX model");
    }
    if !path.is_file() || Gguf::is_gguf(path) {
        return None;
    }
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("gguf") => Some("a file named as GGUF that is not one"),
        Some("onnx") => Some("an ONNX file"),
        Some("safetensors") => Some("only the weights of a model"),
        _ => Some("a file"),
    }
}

/// Model folders and GGUF files directly below `base`, by name.
fn list(base: &Path) -> Vec<ModelListing> {
    let base = if base.as_os_str().is_empty() { Path::new(".") } else { base };
    let Ok(entries) = fs::read_dir(base) else { return Vec::new() };
    let mut folders: Vec<PathBuf> = entries
        .take(MAX_ENTRIES)
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| is_model_folder(path) || is_gguf_model(path))
        .collect();
    folders.sort();
    folders
        .iter()
        .filter_map(|path| {
            let files = ModelFiles::open(path).ok()?;
            let name = path.file_name()?.to_str()?;
            Some(ModelListing::new(ModelRef::new(ID, name), files.card()))
        })
        .take(MAX_LISTED)
        .collect()
}

/// Whether it is a GGUF file, and of a split model the first.
fn is_gguf_model(path: &Path) -> bool {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let is_later_part = stem.contains("-of-") && !stem.contains("-00001-of-");
    path.extension().is_some_and(|extension| extension == "gguf")
        && !is_later_part
        && Gguf::is_gguf(path)
}

//! The provider `llama-cpp`.

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
use weighbridge_models::gguf::Gguf;

use crate::loader::{LlamaLoader, check_supported, listed_card};
use crate::runtime::described;
use crate::{ID, options};

/// Entries of all folders together that `list` looks at.
const MAX_ENTRIES: usize = 10_000;
/// Folders within folders that `list` goes into.
const MAX_DEPTH: usize = 4;
/// Models that `list` names.
const MAX_LISTED: usize = 200;
/// Sequences that are computed at once; llama.cpp's throughput on a CPU peaks about here.
const MAX_CONCURRENCY: u32 = 16;

/// This plugin. Opens no file and does not start llama.cpp.
pub fn plugin() -> Plugin {
    Plugin::new(ID, env!("CARGO_PKG_VERSION")).provider(LlamaCppProvider)
}

weighbridge_core::register_plugin!(plugin);

/// Opens GGUF files on llama.cpp.
#[derive(Clone, Copy, Debug, Default)]
pub struct LlamaCppProvider;

#[async_trait]
impl Provider for LlamaCppProvider {
    fn id(&self) -> &str {
        ID
    }

    fn describe(&self) -> ProviderInfo {
        let mut info = ProviderInfo::new(
            "runs GGUF models in this process on llama.cpp, on the CPU or the device it was built for",
            "the path of a GGUF file, or of any shard of a split one, for instance \
             `llama-cpp:models/my-model-Q4_K_M.gguf`",
        )
        .with_option_schema(options::schema());
        info.engine = Some(described());
        info
    }

    async fn probe(&self, model: &ModelRef, context: &OpenContext) -> Probe {
        let (model, path) = (model.clone(), context.resolve(&model.location));
        let looked = off_thread(ID, move || {
            check_location(&model, &path)?;
            check_supported(&Gguf::open(&path)?, &path)
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
            check_location(&model, &path)?;
            LlamaLoader::prepare(&path, &for_thread)
        })
        .await?;
        let options = EngineOptions::new(loader.name())
            .with_max_concurrency(MAX_CONCURRENCY)
            .with_default_sampling(loader.default_sampling());
        LocalBackend::open(Box::new(loader), context, options).await
    }
}

/// Refuses names with parts that a file does not have, and folders.
fn check_location(model: &ModelRef, path: &Path) -> Result<()> {
    let extra = match (&model.revision, &model.variant) {
        (None, None) => None,
        (Some(revision), _) => Some(format!("@{revision}")),
        (None, Some(variant)) => Some(format!("#{variant}")),
    };
    if let Some(extra) = extra {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!(
                "`{model}` has `{extra}`, which a file does not have; write `{ID}:{}`",
                model.location
            ),
        ));
    }
    if !path.is_dir() {
        return Ok(());
    }
    let within = list_paths(path, 1);
    let remedy = match within.first() {
        Some(first) => {
            format!("it has {} GGUF models, such as `{}`", within.len(), first.display())
        }
        None if path.join("config.json").exists() => format!(
            "it is a Hugging Face folder: convert it with `convert_hf_to_gguf.py` of llama.cpp, or \
             open it as `candle:{}`",
            model.location
        ),
        None => "it has no GGUF file".to_owned(),
    };
    Err(Error::new(
        ErrorKind::ModelLoad,
        format!("`{}` is a folder, llama.cpp reads GGUF files; {remedy}", path.display()),
    )
    .with("folder", path.display()))
}

/// Models below `base`, by path.
fn list(base: &Path) -> Vec<ModelListing> {
    let base = if base.as_os_str().is_empty() { Path::new(".") } else { base };
    let models = list_paths(base, MAX_DEPTH).into_iter().filter_map(|path| {
        let gguf = Gguf::open(&path).ok()?;
        check_supported(&gguf, &path).ok()?;
        let location = path.strip_prefix(base).ok()?.to_str()?;
        Some(ModelListing::new(ModelRef::new(ID, location), listed_card(&gguf)))
    });
    models.take(MAX_LISTED).collect()
}

/// GGUF files below a folder, hidden folders left out, of a split model the first shard, sorted.
fn list_paths(base: &Path, max_depth: usize) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![(base.to_owned(), 1)];
    let mut n_entries = 0;
    while let Some((folder, depth)) = folders.pop() {
        let Ok(entries) = fs::read_dir(folder) else { continue };
        for entry in entries.filter_map(|entry| entry.ok()) {
            n_entries += 1;
            if n_entries > MAX_ENTRIES {
                break;
            }
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() {
                if depth < max_depth && !name.starts_with('.') {
                    folders.push((path, depth + 1));
                }
            } else if name.ends_with(".gguf") && !is_later_shard(&name) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Whether a name is that of a shard other than the first, such as `x-00002-of-00003.gguf`.
fn is_later_shard(name: &str) -> bool {
    let Some(stem) = name.strip_suffix(".gguf") else { return false };
    let Some((rest, count)) = stem.rsplit_once("-of-") else { return false };
    let Some((_, number)) = rest.rsplit_once('-') else { return false };
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number(count) && is_number(number) && number != "00001"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_split_model_the_first_shard_is_listed() {
        assert!(is_later_shard("x-00002-of-00003.gguf"));
        for name in ["x-00001-of-00003.gguf", "x.gguf", "a-of-b.gguf", "x-2-of-3.gguf"] {
            assert!(!is_later_shard(name), "{name}");
        }
    }
}

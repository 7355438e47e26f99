//! From a folder to a served model.

use std::path::Path;
use std::sync::Arc;

use pulp::{Arch, Simd, WithSimd};
use weighbridge_core::{
    EngineInfo, Error, ErrorKind, ModelCard, OpenContext, Placement, Result, Sampling, Weights,
};
use weighbridge_engine::loader::{EngineLoader, TextModel};
use weighbridge_engine::logits::LogitsEngine;
use weighbridge_engine::tokenizer::{ModelText, load_folder};
use weighbridge_engine::tokens::TokenKind;
use weighbridge_models::folder::ModelFolder;

use crate::engine::CandleEngine;
use crate::options::Options;
use crate::weights::check_cancelled;

/// The version of candle-core that the manifest asks for.
const CANDLE_VERSION: &str = "0.11.1";
/// Share of the progress that hashing the weights gets; the rest is reading them.
const HASH_SHARE: f32 = 0.3;

/// A folder that was looked at and whose texts are read; [`run`](EngineLoader::run) loads its
/// weights.
#[derive(Debug)]
pub struct CandleLoader {
    folder: ModelFolder,
    text: ModelText,
    n_ctx: u32,
}

impl CandleLoader {
    /// Looks at a folder, reads its tokenizer, and checks the options of `context`. Reads no
    /// weights.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound), [`ModelLoad`](ErrorKind::ModelLoad) naming file, numbers
    /// and remedy, [`InvalidInput`](ErrorKind::InvalidInput) for options.
    pub fn prepare(path: &Path, context: &OpenContext) -> Result<Self> {
        let options = Options::read(context)?;
        let folder = ModelFolder::open(path)?;
        let n_ctx = options.n_ctx(&folder.config)?;
        check_memory(&folder, available_bytes())?;
        let text = load_folder(path)?;
        check_vocabulary(&folder, &text)?;
        Ok(Self { folder, text, n_ctx })
    }

    /// The model's name: its folder's.
    pub fn name(&self) -> &str {
        &self.folder.name
    }

    /// Sampling settings of `generation_config.json`.
    pub fn default_sampling(&self) -> Sampling {
        self.text.default_sampling.clone()
    }
}

/// The weights as `f32`, and the embeddings once more as they are stored.
fn check_memory(folder: &ModelFolder, n_available: Option<u64>) -> Result<()> {
    let config = &folder.config;
    let n_table = (config.vocab_size * config.hidden_size) as u64 * 4;
    let n_needed = folder.weights.n_params().saturating_mul(4).saturating_add(n_table);
    let Some(n_available) = n_available.filter(|n_available| n_needed > *n_available) else {
        return Ok(());
    };
    let giga = |n_bytes: u64| n_bytes as f64 / 1e9;
    Err(Error::new(
        ErrorKind::ModelLoad,
        format!(
            "`{}` needs about {:.1} GB of memory as f32, {:.1} GB are available; use a smaller \
             model, or serve this one with a program that keeps it quantized and name it \
             `openai-compatible:URL#MODEL`",
            folder.path.display(),
            giga(n_needed),
            giga(n_available)
        ),
    )
    .with("folder", folder.path.display())
    .with("n_bytes_needed", n_needed)
    .with("n_bytes_available", n_available))
}

/// Memory and swap that can still be had, where the system tells.
fn available_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kibibytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()
    };
    Some((kibibytes("MemAvailable:")? + kibibytes("SwapFree:").unwrap_or(0)).saturating_mul(1024))
}

/// More rows of logits than tokens is padding; a token without one could not be fed.
fn check_vocabulary(folder: &ModelFolder, text: &ModelText) -> Result<()> {
    let n_vocab = folder.config.vocab_size;
    let beyond =
        (n_vocab..text.table.len()).rfind(|id| text.table.kind(*id as u32) != TokenKind::Unused);
    let Some(id) = beyond else { return Ok(()) };
    Err(Error::new(
        ErrorKind::ModelLoad,
        format!(
            "`{}` has the token id {id}, config.json says vocab_size {n_vocab}; tokenizer and \
             weights must be of the same model",
            folder.tokenizer.display()
        ),
    )
    .with("file", folder.tokenizer.display())
    .with("vocab_size", n_vocab))
}

impl EngineLoader for CandleLoader {
    fn run(
        mut self: Box<Self>,
        context: &OpenContext,
        serve: &mut dyn FnMut(TextModel, &mut dyn LogitsEngine),
    ) -> Result<()> {
        context.report_progress(0.0);
        let n_bytes = self.folder.weights.n_bytes().max(1);
        let sha256 = self.folder.weights.sha256(&mut |n_done| {
            context.report_progress(HASH_SHARE * (n_done as f32 / n_bytes as f32));
            check_cancelled(context)
        })?;
        let mut engine = CandleEngine::load(&mut self.folder, self.n_ctx, context, HASH_SHARE)?;
        let mut card = card(&self.folder);
        card.weights_sha256 = Some(sha256);
        card.n_ctx = Some(self.n_ctx);
        card.tokenizer_sha256 = Some(self.text.tokenizer_sha256.clone());
        let text = TextModel {
            card,
            table: Arc::clone(&self.text.table),
            encoder: self.text.encoder.clone(),
            chat_template: self.text.chat_template.clone(),
        };
        context.report_progress(1.0);
        serve(text, &mut engine);
        Ok(())
    }
}

/// What the headers say about a model.
pub(crate) fn card(folder: &ModelFolder) -> ModelCard {
    let mut card =
        ModelCard::new(folder.name.clone(), crate::ID, Weights::Open, Placement::InProcess);
    card.quantization = Some(folder.weights.dtype().to_string());
    card.n_params = Some(folder.weights.n_params());
    card.n_ctx = u32::try_from(folder.config.max_positions).ok();
    card.license = folder.license.clone();
    card.engine = Some(engine_info());
    card.device = Some("cpu".to_owned());
    card
}

/// The engine with the facts that can change numbers or speed. No I/O.
pub(crate) fn engine_info() -> EngineInfo {
    let lanes = Arch::new().dispatch(Lanes);
    let vectors = match lanes {
        1 => "no vectors".to_owned(),
        _ => format!("vectors of {lanes} f32"),
    };
    let mut info = EngineInfo::new("candle", CANDLE_VERSION);
    info.build = Some(format!("f32, {}, {vectors}", std::env::consts::ARCH));
    info
}

/// Values in a vector of the instructions that this machine has.
struct Lanes;

impl WithSimd for Lanes {
    type Output = usize;

    fn with_simd<S: Simd>(self, _: S) -> usize {
        S::F32_LANES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_one_that_is_linked() {
        let lock = include_str!("../../../Cargo.lock");
        let expected = format!("name = \"candle-core\"\nversion = \"{CANDLE_VERSION}\"");
        assert!(lock.contains(&expected), "CANDLE_VERSION is not what Cargo.lock has");
    }

    #[test]
    fn a_model_that_cannot_fit_is_refused_before_it_is_read() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/triage-open");
        let folder = ModelFolder::open(&path).unwrap();
        assert!(check_memory(&folder, None).is_ok());
        assert!(check_memory(&folder, Some(1 << 30)).is_ok());
        let error = check_memory(&folder, Some(1_000)).unwrap_err();
        assert!(error.to_string().contains("GB of memory as f32, 0.0 GB are available"), "{error}");
        #[cfg(target_os = "linux")]
        assert!(available_bytes().is_some_and(|n| n > 1 << 20));
    }
}

//! From files to a served model.

use std::path::Path;
use std::sync::Arc;

use pulp::{Arch, Simd, WithSimd};
use weighbridge_core::{EngineInfo, Error, ErrorKind, OpenContext, Result, Sampling};
use weighbridge_engine::loader::{EngineLoader, TextModel};
use weighbridge_engine::logits::LogitsEngine;
use weighbridge_engine::tokenizer::ModelText;

use crate::device::{Place, Target};
use crate::engine::CandleEngine;
use crate::files::ModelFiles;
use crate::options::{Compute, Options};
use crate::weights::check_cancelled;

/// The version of candle-core that the manifest asks for.
const CANDLE_VERSION: &str = "0.11.1";
/// Share of the progress that hashing the weights gets; the rest is reading them.
const HASH_SHARE: f32 = 0.3;

/// Files that were looked at and whose tokenizer is read; [`run`](EngineLoader::run) loads its
/// weights.
#[derive(Debug)]
pub struct CandleLoader {
    files: ModelFiles,
    text: ModelText,
    n_ctx: u32,
    compute: Compute,
}

impl CandleLoader {
    /// Looks at a folder or a GGUF file, reads its tokenizer, and checks the options of `context`. Reads no
    /// weights.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound), [`ModelLoad`](ErrorKind::ModelLoad) naming file, numbers
    /// and remedy, [`InvalidInput`](ErrorKind::InvalidInput) for options.
    pub fn prepare(path: &Path, context: &OpenContext) -> Result<Self> {
        let options = Options::read(context)?;
        let files = ModelFiles::open(path)?;
        let n_ctx = options.n_ctx(files.config())?;
        let compute = options.compute()?;
        check_memory(&files, files.n_memory_bytes(&compute), available_bytes())?;
        let text = files.text()?;
        Ok(Self { files, text, n_ctx, compute })
    }

    /// The model's name: its folder's, or what the file says.
    pub fn name(&self) -> &str {
        self.files.name()
    }

    /// Sampling settings of `generation_config.json`.
    pub fn default_sampling(&self) -> Sampling {
        self.text.default_sampling.clone()
    }
}

fn check_memory(files: &ModelFiles, n_needed: u64, n_available: Option<u64>) -> Result<()> {
    let Some(n_available) = n_available.filter(|n_available| n_needed > *n_available) else {
        return Ok(());
    };
    let giga = |n_bytes: u64| n_bytes as f64 / 1e9;
    Err(Error::new(
        ErrorKind::ModelLoad,
        format!(
            "`{}` needs about {:.1} GB of memory, {:.1} GB are available; use a smaller model, or \
             a GGUF file of this one with more quantization",
            files.path().display(),
            giga(n_needed),
            giga(n_available)
        ),
    )
    .with("path", files.path().display())
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

impl EngineLoader for CandleLoader {
    fn run(
        mut self: Box<Self>,
        context: &OpenContext,
        serve: &mut dyn FnMut(TextModel, &mut dyn LogitsEngine),
    ) -> Result<()> {
        context.report_progress(0.0);
        let n_bytes = self.files.n_bytes().max(1);
        let sha256 = self.files.sha256(&mut |n_done| {
            context.report_progress(HASH_SHARE * (n_done as f32 / n_bytes as f32));
            check_cancelled(context)
        })?;
        let mut engine = CandleEngine::load_for(
            &self.compute,
            &mut self.files,
            self.n_ctx,
            context,
            HASH_SHARE,
        )?;
        let mut card = self.files.card();
        card.engine = Some(engine_info(&self.compute));
        card.device = Some(self.compute.place().to_string());
        card.weights_sha256 = Some(sha256);
        card.n_ctx = Some(self.n_ctx);
        card.tokenizer_sha256 = Some(self.text.tokenizer_sha256.clone());
        let text = TextModel {
            card,
            table: Arc::clone(&self.text.table),
            encoder: Arc::clone(&self.text.encoder),
            chat_template: self.text.chat_template.clone(),
        };
        context.report_progress(1.0);
        serve(text, &mut engine);
        Ok(())
    }
}

/// The engine with the facts that can change numbers or speed. No I/O.
pub(crate) fn engine_info(compute: &Compute) -> EngineInfo {
    let arch = std::env::consts::ARCH;
    let mut info = EngineInfo::new("candle", CANDLE_VERSION);
    info.build = Some(match compute {
        Compute::Own => match Arch::new().dispatch(Lanes) {
            1 => format!("f32, {arch}, no vectors"),
            lanes => format!("f32, {arch}, vectors of {lanes} f32"),
        },
        Compute::Candle(Target { place, dtype, .. }) => {
            let dtype = dtype.map_or("stored type", |dtype| dtype.as_str());
            let on = match place {
                Place::Cpu if cfg!(feature = "mkl") => format!("{arch} with mkl"),
                Place::Cpu if cfg!(feature = "accelerate") => format!("{arch} with accelerate"),
                Place::Cpu => arch.to_owned(),
                gpu => gpu.to_string(),
            };
            format!("candle's kernels, {dtype}, {on}")
        }
    });
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
        let files = ModelFiles::open(&path).unwrap();
        let n_needed = files.n_memory_bytes(&Compute::Own);
        assert!(check_memory(&files, n_needed, None).is_ok());
        assert!(check_memory(&files, n_needed, Some(1 << 30)).is_ok());
        let error = check_memory(&files, n_needed, Some(1_000)).unwrap_err();
        assert!(error.to_string().contains("GB of memory, 0.0 GB are available"), "{error}");
        #[cfg(target_os = "linux")]
        assert!(available_bytes().is_some_and(|n| n > 1 << 20));
    }
}

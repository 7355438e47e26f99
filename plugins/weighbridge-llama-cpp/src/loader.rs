//! From a file to a served model.

use std::num::NonZeroU32;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use llama_cpp_2::context::params::{LlamaContextParams, LlamaPoolingType};
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::model::{LlamaLoraAdapter, LlamaModel};
use llama_cpp_2::{LlamaBackendDevice, LlamaBackendDeviceType, list_llama_ggml_backend_devices};
use llama_cpp_sys_2::{
    LLAMA_FLASH_ATTN_TYPE_AUTO, LLAMA_FLASH_ATTN_TYPE_DISABLED, LLAMA_FLASH_ATTN_TYPE_ENABLED,
};
use weighbridge_core::{
    EngineInfo, Error, ErrorKind, ModelCard, OpenContext, Placement, Result, Sampling, Weights,
};
use weighbridge_engine::loader::{EngineLoader, TextModel};
use weighbridge_engine::logits::{
    Batching, EngineCaps, Fork, Interrupt, LogitsEngine, SnapshotKind, Truncate,
};
use weighbridge_models::gguf::Gguf;

use crate::decoder::{Decoder, TILE, with_log};
use crate::embedder::Embedder;
use crate::engine::LlamaEngine;
use crate::options::{FlashAttention, Options};
use crate::runtime::{Runtime, described, runtime};
use crate::vocab::{self, Encoder};
use crate::{native, threads};

/// Share of the progress that hashing the weights gets; the rest is reading them.
const HASH_SHARE: f32 = 0.7;
/// Rows of logits of one feed: llama.cpp keeps a buffer of `n_rows` times `n_vocab`.
const MAX_ROWS: u32 = 256;
/// Sequences kept at once, for those that are computed and those that are only remembered.
const N_SEQS: u32 = 64;
/// The same where each sequence has a state of its own size.
const N_RECURRENT_SEQS: u32 = 8;
/// Memory for keys and values of all sequences together, unless a single one needs more.
const KV_BUDGET_BYTES: u64 = 1 << 30;

/// Architectures for which llama.cpp keeps nothing between calls, because they read a text in both
/// directions: from `llama_model::create_memory`, and `t5encoder`.
const ENCODERS: [&str; 10] = [
    "bert",
    "eurobert",
    "gemma-embedding",
    "jina-bert-v2",
    "jina-bert-v3",
    "modern-bert",
    "neo-bert",
    "nomic-bert",
    "nomic-bert-moe",
    "t5encoder",
];
/// Architectures that are no left-to-right language model, and what they are.
const OTHERS: [(&str, &str); 8] = [
    ("clef", "not a language model"),
    ("dflash", "a helper of another model, for speculative decoding"),
    ("dream", "a diffusion model, which does not write from left to right"),
    ("eagle3", "a helper of another model, for speculative decoding"),
    ("llada", "a diffusion model, which does not write from left to right"),
    ("llada-moe", "a diffusion model, which does not write from left to right"),
    ("rnd1", "a diffusion model, which does not write from left to right"),
    ("t5", "an encoder with a decoder, which this plugin does not drive"),
];

/// A file that was looked at; [`run`](EngineLoader::run) loads it.
#[derive(Debug)]
pub struct LlamaLoader {
    gguf: Gguf,
    path: PathBuf,
    options: Options,
    n_ctx: u32,
}

impl LlamaLoader {
    /// Looks at a GGUF file, or the shards of one, and checks the options of `context`. Reads no
    /// weights and does not start llama.cpp.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound), [`ModelLoad`](ErrorKind::ModelLoad) naming file, key and
    /// remedy, [`InvalidInput`](ErrorKind::InvalidInput) for options.
    pub fn prepare(path: &Path, context: &OpenContext) -> Result<Self> {
        let options = Options::read(context)?;
        let gguf = Gguf::open(path)?;
        check_supported(&gguf, path)?;
        if let Some(lora) = &options.lora
            && !Gguf::is_gguf(&lora.path)
        {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("option `lora`: `{}` is no GGUF file", lora.path.display()),
            )
            .with("file", lora.path.display()));
        }
        let n_trained = gguf.u64(&gguf.arch_key("context_length"));
        let n_trained = n_trained.and_then(|n| u32::try_from(n).ok()).unwrap_or(1 << 24);
        let n_ctx = options.n_ctx(n_trained.max(1))?;
        // llama.cpp finds the others from the first.
        let path = gguf.files().next().unwrap_or(path).to_owned();
        Ok(Self { gguf, path, options, n_ctx })
    }

    /// The model's name: what the file says, else the file's.
    pub fn name(&self) -> &str {
        self.gguf.name()
    }

    /// Sampling settings in the file (`general.sampling.*`).
    pub fn default_sampling(&self) -> Sampling {
        let number = |name: &str| self.gguf.f64(&format!("general.sampling.{name}"));
        let mut sampling = Sampling::default();
        sampling.temperature = number("temp");
        sampling.top_k =
            self.gguf.u64("general.sampling.top_k").and_then(|top_k| u32::try_from(top_k).ok());
        sampling.top_p = number("top_p");
        sampling.min_p = number("min_p");
        sampling.repetition_penalty = number("penalty_repeat");
        sampling
    }

    fn load_error(&self, what: &str, log: &[String]) -> Error {
        let last = log.last().map_or("it did not say why", String::as_str);
        let error = Error::new(
            ErrorKind::ModelLoad,
            format!("llama.cpp could not {what} `{}`: {last}", self.path.display()),
        );
        with_log(error.with("file", self.path.display()), log)
    }

    fn load_model(
        &self,
        runtime: &Runtime,
        context: &OpenContext,
    ) -> Result<(LlamaModel, Option<LlamaLoraAdapter>, Option<String>)> {
        let shown = context.clone();
        let mut params = LlamaModelParams::default()
            .with_use_mmap(self.options.has_mmap)
            .with_use_mlock(self.options.has_mlock)
            .with_progress_callback(move |fraction| {
                // A panic must not reach C++.
                let report = || {
                    shown.report_progress(HASH_SHARE + (1.0 - HASH_SHARE) * fraction);
                    !shown.is_cancelled()
                };
                catch_unwind(AssertUnwindSafe(report)).unwrap_or(false)
            });
        if let Some(n_layers) = self.options.n_gpu_layers {
            params = params.with_n_gpu_layers(n_layers);
        }
        let devices = list_llama_ggml_backend_devices();
        if let Some(names) = &self.options.devices {
            let chosen = chosen_devices(names, &devices)?;
            params = params.with_devices(&chosen).map_err(|error| {
                Error::new(ErrorKind::InvalidInput, "option `devices` names too many devices")
                    .with_source(error)
            })?;
        }
        // It panics in debug builds if the file is gone since it was looked at.
        let text = self.path.to_str().filter(|_| self.path.exists()).ok_or_else(|| {
            Error::new(
                ErrorKind::ModelLoad,
                format!(
                    "`{}` is gone, or its name is not valid Unicode, which llama.cpp needs",
                    self.path.display()
                ),
            )
        })?;
        native::take_log();
        let loaded = LlamaModel::load_from_file(&runtime.backend, text, &params);
        let log = native::take_log();
        check_cancelled(context)?;
        let mut model = loaded.map_err(|error| self.load_error("load", &log).with_source(error))?;
        let device = self.device(&devices, &log)?;
        let adapter = self.load_adapter(&mut model)?;
        Ok((model, adapter, device))
    }

    fn load_adapter(&self, model: &mut LlamaModel) -> Result<Option<LlamaLoraAdapter>> {
        let Some(lora) = &self.options.lora else { return Ok(None) };
        let loaded = model.lora_adapter_init(&lora.path);
        let log = native::take_log();
        loaded.map(Some).map_err(|error| {
            let last = log.last().map_or("it did not say why", String::as_str);
            let error = Error::new(
                ErrorKind::ModelLoad,
                format!("llama.cpp could not load the adapter `{}`: {last}", lora.path.display()),
            )
            .with("file", lora.path.display())
            .with_source(error);
            with_log(error, &log)
        })
    }

    /// Where the weights really are, from the engine's own words; `None`: in the CPU's memory.
    fn device(&self, devices: &[LlamaBackendDevice], log: &[String]) -> Result<Option<String>> {
        let buffers: Vec<&str> = log.iter().filter_map(|line| buffer_name(line)).collect();
        let used = devices.iter().filter(|device| {
            device.device_type != LlamaBackendDeviceType::Cpu
                && buffers.contains(&device.name.as_str())
        });
        let used: Vec<String> =
            used.map(|device| format!("{} ({})", device.name, device.description)).collect();
        let is_asked = self.options.n_gpu_layers.is_some_and(|n| n > 0)
            || self.options.devices.as_ref().is_some_and(|names| !names.is_empty());
        match used.is_empty() {
            true if is_asked => Err(Error::new(
                ErrorKind::ModelLoad,
                format!(
                    "layers on a device were asked for, and all weights are in the CPU's memory; \
                     the devices are {}. Build the plugin with the feature of your device (`cuda`, \
                     `vulkan`, `metal`, `rocm`), or leave out `n_gpu_layers` and `devices`",
                    device_names(devices)
                ),
            )),
            true => Ok(None),
            false => {
                let offloaded = log.iter().find_map(|line| line.split_once("offloaded "));
                let layers = offloaded.map_or("", |(_, layers)| layers);
                Ok(Some(format!("{}, {layers}", used.join(", "))))
            }
        }
    }

    fn is_encoder(&self) -> bool {
        ENCODERS.contains(&self.gguf.arch())
    }

    fn has_embeddings(&self) -> Result<bool> {
        let in_file = self.gguf.u64(&self.gguf.arch_key("pooling_type"));
        // 4 is the score of a reranker, which is no embedding.
        let in_file = in_file.is_some_and(|kind| (1..=3).contains(&kind));
        let is_pooled = in_file || self.options.pooling.is_some();
        let is_wanted = self.options.embeddings.unwrap_or(is_pooled) || self.is_encoder();
        if is_wanted && !is_pooled {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "`{}` does not say how the vectors of a text's tokens become one; give the \
                     option `pooling` (`mean`, `cls` or `last`) as the model's makers say",
                    self.path.display()
                ),
            )
            .with("file", self.path.display()));
        }
        Ok(is_wanted)
    }

    fn context_params(&self) -> LlamaContextParams {
        let n_threads = self.options.threads.unwrap_or_else(threads::physical_cores);
        let n_batch_threads = self.options.threads_batch.unwrap_or(n_threads);
        LlamaContextParams::default()
            .with_type_k(self.options.kv_type.into())
            .with_type_v(self.options.kv_type.into())
            .with_flash_attention_policy(match self.options.flash_attention {
                FlashAttention::Auto => LLAMA_FLASH_ATTN_TYPE_AUTO,
                FlashAttention::On => LLAMA_FLASH_ATTN_TYPE_ENABLED,
                FlashAttention::Off => LLAMA_FLASH_ATTN_TYPE_DISABLED,
            })
            // Sequences share prefixes.
            .with_kv_unified(true)
            // Positions that fell out of a sliding window are kept, so that a sequence can be cut
            // back to any length exactly.
            .with_swa_full(true)
            .with_n_threads(n_threads as i32)
            .with_n_threads_batch(n_batch_threads as i32)
    }

    /// What the engine can do, before the context says how much of it there is.
    fn caps(&self, model: &LlamaModel) -> EngineCaps {
        let is_recurrent = model.is_recurrent() || model.is_hybrid();
        let n_vocab = u32::try_from(model.n_vocab()).unwrap_or(0);
        let n_seqs = if is_recurrent { N_RECURRENT_SEQS } else { N_SEQS };
        let n_ctx_total = self.options.n_ctx_total.unwrap_or_else(|| {
            let affordable = KV_BUDGET_BYTES / self.position_bytes(model).max(1);
            let affordable = u32::try_from(affordable).unwrap_or(u32::MAX);
            self.n_ctx.saturating_mul(8).min(affordable)
        });
        EngineCaps {
            n_vocab,
            max_seqs: self.options.n_seq_max.unwrap_or(n_seqs),
            ctx_total: n_ctx_total.max(self.n_ctx),
            ctx_per_seq: self.n_ctx,
            max_feed: self.options.n_batch,
            max_rows: if self.is_encoder() { 0 } else { MAX_ROWS },
            batching: Batching::Ragged,
            truncate: if is_recurrent { Truncate::No } else { Truncate::Any },
            fork: Fork::Shared,
            snapshot: if is_recurrent { SnapshotKind::Checkpoint } else { SnapshotKind::Full },
            all_rows: true,
            interrupt: Interrupt::BetweenSteps,
            n_embd_input: None,
            n_embd_output: None,
        }
    }

    /// Bytes of keys and values of one position, from above: models with sliding windows, shared or
    /// compressed keys need less.
    fn position_bytes(&self, model: &LlamaModel) -> u64 {
        let n_heads = u64::from(model.n_head().max(1));
        let n_embd = u64::try_from(model.n_embd()).unwrap_or(0);
        let width = |name: &str| {
            self.gguf.u64(&self.gguf.arch_key(name)).unwrap_or(n_embd / n_heads).min(1 << 16)
        };
        let n_values = (width("attention.key_length") + width("attention.value_length"))
            * u64::from(model.n_head_kv())
            * u64::from(model.n_layer());
        let (n_bytes, n_in_block) = self.options.kv_type.block();
        n_values * n_bytes / n_in_block
    }

    fn decoder<'m>(
        &self,
        runtime: &Runtime,
        model: &'m LlamaModel,
        adapter: Option<&mut LlamaLoraAdapter>,
        splits_feeds: bool,
        caps: &mut EngineCaps,
    ) -> Result<Decoder<'m>> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        let params = self
            .context_params()
            .with_n_ctx(NonZeroU32::new(caps.ctx_total))
            .with_n_batch(self.options.n_batch)
            .with_n_ubatch(self.options.n_ubatch)
            .with_n_seq_max(caps.max_seqs)
            .with_pooling_type(LlamaPoolingType::None);
        native::take_log();
        let context = model.new_context(&runtime.backend, params);
        let log = native::take_log();
        let mut context = context
            .map_err(|error| self.load_error("make a context for", &log).with_source(error))?;
        // It rounds what it is asked for.
        caps.max_feed = context.n_batch();
        caps.ctx_total = context.n_ctx();
        caps.max_rows = caps.max_rows.min(caps.max_feed);
        if let (Some(adapter), Some(lora)) = (adapter, &self.options.lora) {
            context.lora_adapter_set(adapter, lora.scale).map_err(|error| {
                self.load_error("apply the adapter to", &native::take_log()).with_source(error)
            })?;
        }
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let mut decoder = Decoder::new(context, caps, splits_feeds, id);
        decoder.warm_up(caps)?;
        Ok(decoder)
    }

    fn embedder<'m>(
        &self,
        runtime: &Runtime,
        model: &'m LlamaModel,
        adapter: Option<&mut LlamaLoraAdapter>,
        caps: &mut EngineCaps,
    ) -> Result<Embedder<'m>> {
        let mut params = self
            .context_params()
            .with_embeddings(true)
            .with_n_ctx(NonZeroU32::new(self.n_ctx))
            .with_n_batch(self.n_ctx)
            .with_n_ubatch(self.n_ctx)
            .with_n_seq_max(1);
        if let Some(pooling) = self.options.pooling {
            params = params.with_pooling_type(pooling.into());
        }
        native::take_log();
        let context = model.new_context(&runtime.backend, params);
        let log = native::take_log();
        let mut context = context
            .map_err(|error| self.load_error("make a context for", &log).with_source(error))?;
        if let (Some(adapter), Some(lora)) = (adapter, &self.options.lora) {
            context.lora_adapter_set(adapter, lora.scale).map_err(|error| {
                self.load_error("apply the adapter to", &native::take_log()).with_source(error)
            })?;
        }
        caps.n_embd_output = u32::try_from(model.n_embd_out()).ok().filter(|n| *n > 0);
        Ok(Embedder::new(context, caps.n_vocab, self.is_encoder(), vocab::marks(model)))
    }
}

impl EngineLoader for LlamaLoader {
    fn run(
        mut self: Box<Self>,
        context: &OpenContext,
        serve: &mut dyn FnMut(TextModel, &mut dyn LogitsEngine),
    ) -> Result<()> {
        let has_embeddings = self.has_embeddings()?;
        let runtime = runtime()?;
        context.report_progress(0.0);
        let n_bytes = self.gguf.n_bytes().max(1);
        let sha256 = self.gguf.sha256(&mut |n_done| {
            context.report_progress(HASH_SHARE * (n_done as f32 / n_bytes as f32));
            check_cancelled(context)
        })?;
        let (model, mut adapter, device) = self.load_model(runtime, context)?;
        let model = Arc::new(model);
        let mut caps = self.caps(&model);
        let decoder = match self.is_encoder() {
            true => None,
            false => {
                // Its attention goes tile by tile with this type of keys and values only.
                let has_tiles = device.is_none()
                    && self.options.flash_attention != FlashAttention::Off
                    && !self.options.kv_type.is_quantized()
                    && self.options.n_ubatch as usize >= TILE;
                Some(self.decoder(runtime, &model, adapter.as_mut(), has_tiles, &mut caps)?)
            }
        };
        let embedder = match has_embeddings {
            true => Some(self.embedder(runtime, &model, adapter.as_mut(), &mut caps)?),
            false => None,
        };
        check_cancelled(context)?;
        let mut card = card(&self.gguf, runtime.info.clone());
        card.weights_sha256 = Some(sha256);
        card.n_ctx = Some(self.n_ctx);
        card.n_params = Some(model.n_params());
        card.device = Some(device.unwrap_or_else(|| "cpu".to_owned()));
        let text = TextModel {
            card,
            table: Arc::new(vocab::table(&model)),
            encoder: Arc::new(Encoder::new(&model, self.gguf.str("tokenizer.ggml.model"))),
            chat_template: self.gguf.str("tokenizer.chat_template").map(str::to_owned),
        };
        // What was read of the file is not needed while the model is served.
        drop(self);
        context.report_progress(1.0);
        serve(text, &mut LlamaEngine { caps, decoder, embedder });
        Ok(())
    }
}

/// What the headers say about a model.
pub(crate) fn card(gguf: &Gguf, engine: EngineInfo) -> ModelCard {
    let mut card = ModelCard::new(gguf.name(), crate::ID, Weights::Open, Placement::InProcess);
    card.quantization = Some(gguf.quantization());
    card.n_params = Some(gguf.n_params());
    card.n_ctx =
        gguf.u64(&gguf.arch_key("context_length")).and_then(|n_ctx| u32::try_from(n_ctx).ok());
    card.license = gguf.license().map(str::to_owned);
    card.engine = Some(engine);
    card
}

/// What the headers say about a model, without starting llama.cpp.
pub(crate) fn listed_card(gguf: &Gguf) -> ModelCard {
    card(gguf, described())
}

/// Refuses what llama.cpp would load and this plugin could not drive.
pub(crate) fn check_supported(gguf: &Gguf, path: &Path) -> Result<()> {
    let refused = |what: &str, remedy: &str| {
        Err(Error::new(ErrorKind::ModelLoad, format!("`{}` is {what}; {remedy}", path.display()))
            .with("file", path.display())
            .with("architecture", gguf.arch()))
    };
    if let Some((_, what)) = OTHERS.iter().find(|(arch, _)| *arch == gguf.arch()) {
        return refused(what, "take a language model");
    }
    match gguf.str("tokenizer.ggml.model") {
        Some("none" | "no_vocab") | None => {
            refused("a model without a vocabulary", "take a conversion that has one")
        }
        Some(_) => Ok(()),
    }
}

fn check_cancelled(context: &OpenContext) -> Result<()> {
    if context.is_cancelled() {
        return Err(Error::new(ErrorKind::Cancelled, "loading the model was cancelled"));
    }
    Ok(())
}

/// The indices of devices by their names.
fn chosen_devices(names: &[String], devices: &[LlamaBackendDevice]) -> Result<Vec<usize>> {
    names
        .iter()
        .map(|name| {
            let device = devices.iter().find(|device| device.name.eq_ignore_ascii_case(name));
            device.map(|device| device.index).ok_or_else(|| {
                Error::new(
                    ErrorKind::InvalidInput,
                    format!(
                        "there is no device `{name}`; the devices are {}",
                        device_names(devices)
                    ),
                )
                .with("device", name)
            })
        })
        .collect()
}

fn device_names(devices: &[LlamaBackendDevice]) -> String {
    let names: Vec<_> = devices.iter().map(|device| format!("`{}`", device.name)).collect();
    names.join(", ")
}

/// The buffer of a line such as `load_tensors:   CPU_Mapped model buffer size =    0.82 MiB`.
fn buffer_name(line: &str) -> Option<&str> {
    let (start, _) = line.split_once(" model buffer size =")?;
    start.rsplit([' ', ':']).next().filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(index: usize, name: &str) -> LlamaBackendDevice {
        LlamaBackendDevice {
            index,
            name: name.to_owned(),
            description: String::new(),
            backend: String::new(),
            memory_total: 0,
            memory_free: 0,
            device_type: LlamaBackendDeviceType::Gpu,
        }
    }

    #[test]
    fn devices_are_chosen_by_name() {
        let devices = [device(0, "CUDA0"), device(1, "CPU")];
        assert_eq!(chosen_devices(&["cuda0".to_owned()], &devices).unwrap(), [0]);
        assert!(chosen_devices(&[], &devices).unwrap().is_empty());
        let error = chosen_devices(&["CUDA1".to_owned()], &devices).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains("the devices are `CUDA0`, `CPU`"), "{error}");
    }

    #[test]
    fn the_log_says_where_the_weights_are() {
        let line = "load_tensors:   CPU_Mapped model buffer size =     0.82 MiB";
        assert_eq!(buffer_name(line), Some("CPU_Mapped"));
        assert_eq!(
            buffer_name("load_tensors:        CUDA0 model buffer size = 1 MiB"),
            Some("CUDA0")
        );
        assert_eq!(buffer_name("llama_context: n_ctx = 512"), None);
    }
}

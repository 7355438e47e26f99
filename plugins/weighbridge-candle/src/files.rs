//! A model's files of either kind: a Hugging Face folder or a GGUF file.

use std::path::{Path, PathBuf};

use weighbridge_core::{Error, ErrorKind, ModelCard, Placement, Result, Sampling, Weights as Open};
use weighbridge_engine::tokenizer::gguf::{self as gguf_tokenizer, GgufVocab};
use weighbridge_engine::tokenizer::{ModelText, load_folder};
use weighbridge_models::decoder::DecoderConfig;
use weighbridge_models::folder::ModelFolder;
use weighbridge_models::gguf::{GgmlType, Gguf};
use weighbridge_models::gguf_config;

use crate::device::Place;
use crate::loader::engine_info;
use crate::options::Compute;
use crate::quant::is_known;
use crate::weights::{Weights, unreadable};

/// Files that were looked at. No tensor is read yet.
#[derive(Debug)]
pub struct ModelFiles {
    /// The folder or file.
    path: PathBuf,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Folder(Box<ModelFolder>),
    Gguf { gguf: Box<Gguf>, config: Box<DecoderConfig> },
}

impl ModelFiles {
    /// Looks at a folder, or at a GGUF file or the first of its shards: configuration and headers.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) without it; [`ModelLoad`](ErrorKind::ModelLoad) naming
    /// what is missing, does not fit, or is not known to candle.
    pub fn open(path: &Path) -> Result<Self> {
        let kind = if path.is_file() && Gguf::is_gguf(path) {
            let mut gguf = Gguf::open(path)?;
            if let Some(tensor) = gguf.tensors().find(|tensor| !is_known(tensor.dtype)) {
                let error = unreadable(&tensor.name, tensor.dtype.name());
                return Err(error.with("file", path.display()));
            }
            let config = gguf_config::read(&mut gguf)?;
            Kind::Gguf { gguf: Box::new(gguf), config: Box::new(config) }
        } else {
            Kind::Folder(Box::new(ModelFolder::open(path)?))
        };
        Ok(Self { path: path.to_owned(), kind })
    }

    /// Shape and conventions.
    pub fn config(&self) -> &DecoderConfig {
        match &self.kind {
            Kind::Folder(folder) => &folder.config,
            Kind::Gguf { config, .. } => config,
        }
    }

    /// The model's name: its folder's, or what the file says.
    pub fn name(&self) -> &str {
        match &self.kind {
            Kind::Folder(folder) => &folder.name,
            Kind::Gguf { gguf, .. } => gguf.name(),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn weights(&mut self) -> Weights<'_> {
        match &mut self.kind {
            Kind::Folder(folder) => Weights::Safetensors(&mut folder.weights),
            Kind::Gguf { gguf, .. } => Weights::Gguf(gguf),
        }
    }

    pub(crate) fn n_bytes(&self) -> u64 {
        match &self.kind {
            Kind::Folder(folder) => folder.weights.n_bytes(),
            Kind::Gguf { gguf, .. } => gguf.n_bytes(),
        }
    }

    pub(crate) fn sha256(&mut self, step: &mut dyn FnMut(u64) -> Result<()>) -> Result<String> {
        match &mut self.kind {
            Kind::Folder(folder) => folder.weights.sha256(step),
            Kind::Gguf { gguf, .. } => gguf.sha256(step),
        }
    }

    /// Bytes of the weights in this machine's memory: for products, and the embeddings once more as
    /// they are stored.
    pub(crate) fn n_memory_bytes(&self, compute: &Compute) -> u64 {
        let config = self.config();
        let n_table = (config.vocab_size * config.hidden_size) as u64;
        match &self.kind {
            Kind::Folder(folder) => {
                n_product_bytes(compute, GgmlType::F32, folder.weights.n_params())
                    .saturating_add(n_table.saturating_mul(4))
            }
            Kind::Gguf { gguf, .. } => gguf
                .tensors()
                .map(|tensor| {
                    let n_product = n_product_bytes(compute, tensor.dtype, tensor.n_elements());
                    match tensor.name.as_str() {
                        "token_embd.weight" if config.is_tied => n_product + tensor.n_bytes,
                        "token_embd.weight" => tensor.n_bytes,
                        _ => n_product,
                    }
                })
                .fold(0, u64::saturating_add),
        }
    }

    /// Tokenizer, table of tokens, chat template, default sampling.
    pub(crate) fn text(&self) -> Result<ModelText> {
        let text = match &self.kind {
            Kind::Folder(_) => load_folder(&self.path)?,
            Kind::Gguf { gguf, .. } => gguf_tokenizer::load(vocab(gguf))
                .map_err(|error| error.with("file", self.path.display()))?,
        };
        check_vocabulary(&self.path, self.config().vocab_size, &text)?;
        Ok(text)
    }

    /// What the headers say about a model.
    pub(crate) fn card(&self) -> ModelCard {
        let mut card = ModelCard::new(self.name(), crate::ID, Open::Open, Placement::InProcess);
        let (quantization, n_params, license) = match &self.kind {
            Kind::Folder(folder) => {
                let weights = &folder.weights;
                (weights.dtype().to_string(), weights.n_params(), folder.license.clone())
            }
            Kind::Gguf { gguf, config } => {
                (gguf.quantization(), gguf.n_params(), config.license.clone())
            }
        };
        card.quantization = Some(quantization);
        card.n_params = Some(n_params);
        card.n_ctx = u32::try_from(self.config().max_positions).ok();
        card.license = license;
        card.engine = Some(engine_info(&Compute::Own));
        card.device = Some("cpu".to_owned());
        card
    }
}

/// Bytes that values take in this machine's memory for products.
fn n_product_bytes(compute: &Compute, dtype: GgmlType, n_values: u64) -> u64 {
    match (compute, crate::quant::Form::of(dtype)) {
        (Compute::Candle(target), _) if target.place != Place::Cpu => 0,
        (Compute::Candle(target), None) => {
            n_values.saturating_mul(target.dtype.map_or(4, |dtype| dtype.size_in_bytes() as u64))
        }
        // As they are stored, and packed once more at the first product.
        (Compute::Candle(_), Some(_)) => {
            2 * (n_values / dtype.block_size()).saturating_mul(dtype.type_size())
        }
        (Compute::Own, None) => n_values.saturating_mul(4),
        (Compute::Own, Some(form)) => {
            let n_codes = if form.is_nibble { n_values / 2 } else { n_values };
            let n_scales = n_values / form.group as u64 * if form.has_min { 2 } else { 1 };
            let n_scale_bytes = if form.has_halves { 2 } else { 4 };
            n_codes.saturating_add(n_scales.saturating_mul(n_scale_bytes))
        }
    }
}

/// More rows of logits than tokens is padding; a token without one could not be fed.
fn check_vocabulary(path: &Path, n_vocab: usize, text: &ModelText) -> Result<()> {
    use weighbridge_engine::tokens::TokenKind;
    let beyond =
        (n_vocab..text.table.len()).rfind(|id| text.table.kind(*id as u32) != TokenKind::Unused);
    let Some(id) = beyond else { return Ok(()) };
    Err(Error::new(
        ErrorKind::ModelLoad,
        format!(
            "the tokenizer of `{}` has the token id {id}, the weights have a vocab_size of \
             {n_vocab}; tokenizer and weights must be of the same model",
            path.display()
        ),
    )
    .with("file", path.display())
    .with("vocab_size", n_vocab))
}

/// What a GGUF file says about text.
fn vocab(gguf: &Gguf) -> GgufVocab {
    let id = |key: &str| {
        let id = gguf.u64(&format!("tokenizer.ggml.{key}_token_id"))?;
        u32::try_from(id).ok()
    };
    let list = |key| Some(gguf.strs(key)?.iter().map(|item| item.to_vec()).collect::<Vec<_>>());
    let sampling = |key: &str| gguf.f64(&format!("general.sampling.{key}"));
    let mut default_sampling = Sampling::default();
    default_sampling.temperature = sampling("temp");
    default_sampling.top_p = sampling("top_p");
    default_sampling.min_p = sampling("min_p");
    default_sampling.repetition_penalty = sampling("penalty_repeat");
    default_sampling.top_k =
        gguf.u64("general.sampling.top_k").and_then(|top_k| u32::try_from(top_k).ok());
    GgufVocab {
        name: gguf.str("general.name").map(str::to_owned),
        model: gguf.str("tokenizer.ggml.model").unwrap_or_default().to_owned(),
        pre: gguf.str("tokenizer.ggml.pre").map(str::to_owned),
        tokens: list("tokenizer.ggml.tokens").unwrap_or_default(),
        scores: gguf.f32s("tokenizer.ggml.scores"),
        token_types: gguf
            .i64s("tokenizer.ggml.token_type")
            .map(|types| types.into_iter().map(|kind| kind as i32).collect()),
        merges: list("tokenizer.ggml.merges"),
        bos_id: id("bos"),
        eos_id: id("eos"),
        eot_id: id("eot"),
        eom_id: id("eom"),
        unk_id: id("unknown"),
        sep_id: id("seperator"),
        pad_id: id("padding"),
        fim_pre_id: id("fim_pre").or_else(|| id("prefix")),
        fim_suf_id: id("fim_suf").or_else(|| id("suffix")),
        fim_mid_id: id("fim_mid").or_else(|| id("middle")),
        fim_pad_id: id("fim_pad"),
        fim_rep_id: id("fim_rep"),
        fim_sep_id: id("fim_sep"),
        add_bos: gguf.bool("tokenizer.ggml.add_bos_token"),
        add_space_prefix: gguf.bool("tokenizer.ggml.add_space_prefix"),
        chat_template: gguf.str("tokenizer.chat_template").map(str::to_owned),
        default_sampling,
    }
}

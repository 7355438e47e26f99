//! Tokenizers of GGUF files, token for token those of llama.cpp.
//!
//! [`load`] takes a vocabulary as a GGUF file stores it. SentencePiece (`llama`), byte-level BPE
//! (`gpt2`) with every pre-tokenizer that llama.cpp has for generating models, and Gemma 4's BPE
//! (`gemma4`) are supported. Where the result differs from llama.cpp's, it does so on purpose:
//!
//! - Text outside markup never becomes a control token or, by spelling `<0x0A>`, a byte token; in
//!   llama.cpp it does where a vocabulary's merges lead there.
//! - Text that the vocabulary cannot express is an error; llama.cpp leaves the bytes out.
//! - A BPE token whose name is not spelt byte by byte stands for its name, as in `tokenizer.json`;
//!   llama.cpp writes `[UNK_BYTE_0x…]`.
//! - A BPE file that names no end token has none but those that are known by name; llama.cpp takes
//!   token 11.
//! - No EOS is put after a prompt, whatever `add_eos_token` says.

mod encoder;
mod merge;
mod partition;
mod pre;
mod special;

use std::collections::HashMap;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use weighbridge_core::{Error, ErrorKind, Result, Sampling};

use self::encoder::GgufTokenizer;
use self::pre::Pre;
use self::special::Kind;
use super::{ModelText, in_range, table};
use crate::tokens::{TokenKind, TokenTable};

/// What a GGUF file says about text. Ids are those of `tokenizer.ggml.*_token_id`.
#[derive(Clone, Debug, Default)]
pub struct GgufVocab {
    /// `general.name`: some models are told by it.
    pub name: Option<String>,
    /// `tokenizer.ggml.model`.
    pub model: String,
    /// `tokenizer.ggml.pre`.
    pub pre: Option<String>,
    /// `tokenizer.ggml.tokens`, by id.
    pub tokens: Vec<Vec<u8>>,
    /// `tokenizer.ggml.scores`, one per token.
    pub scores: Option<Vec<f32>>,
    /// `tokenizer.ggml.token_type`, one per token.
    pub token_types: Option<Vec<i32>>,
    /// `tokenizer.ggml.merges`, best first.
    pub merges: Option<Vec<Vec<u8>>>,
    /// `bos_token_id`
    pub bos_id: Option<u32>,
    /// `eos_token_id`
    pub eos_id: Option<u32>,
    /// `eot_token_id`
    pub eot_id: Option<u32>,
    /// `eom_token_id`
    pub eom_id: Option<u32>,
    /// `unknown_token_id`
    pub unk_id: Option<u32>,
    /// `seperator_token_id` (the key is spelt so)
    pub sep_id: Option<u32>,
    /// `padding_token_id`
    pub pad_id: Option<u32>,
    /// `fim_pre_token_id`, or the older `prefix_token_id`
    pub fim_pre_id: Option<u32>,
    /// `fim_suf_token_id`, or the older `suffix_token_id`
    pub fim_suf_id: Option<u32>,
    /// `fim_mid_token_id`, or the older `middle_token_id`
    pub fim_mid_id: Option<u32>,
    /// `fim_pad_token_id`
    pub fim_pad_id: Option<u32>,
    /// `fim_rep_token_id`
    pub fim_rep_id: Option<u32>,
    /// `fim_sep_token_id`
    pub fim_sep_id: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`
    pub add_bos: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix`
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.chat_template`
    pub chat_template: Option<String>,
    /// `general.sampling.temp`, `.top_k`, `.top_p`, `.min_p` and `.penalty_repeat`. What no request may
    /// ask for is dropped.
    pub default_sampling: Sampling,
}

/// Makes encoder, table, end ids, BOS, chat template and default sampling of a vocabulary.
///
/// `tokenizer_sha256` is the SHA-256 of what decides about tokens: the lists `[model]`, `[pre]` (empty
/// where there is none), `tokens` and `merges`, each as its number of items and, for each item, its
/// number of bytes and the bytes, numbers as little-endian `u64`; then `scores` as little-endian `f32`;
/// then `token_types`, the ids in the order of the fields, `add_bos` and `add_space_prefix` as
/// little-endian `i64`, −1 for what is absent.
///
/// # Errors
/// [`ErrorKind::ModelLoad`] that names the key: a kind of tokenizer or a pre-tokenizer that this build
/// does not have, a list that is missing or too short, a token twice, an id beyond the tokens.
pub fn load(vocab: GgufVocab) -> Result<ModelText> {
    let scheme = Scheme::of(&vocab)?;
    let n_tokens = vocab.tokens.len();
    check_lists(&vocab)?;
    let names = names(&vocab);
    let mut ids = HashMap::with_capacity(n_tokens);
    for (id, name) in (0u32..).zip(&names) {
        if let Some(first) = ids.insert(name.as_slice(), id) {
            return Err(broken("tokenizer.ggml.tokens", "has a token twice")
                .with("token", String::from_utf8_lossy(name))
                .with("token_ids", format!("{first}, {id}")));
        }
    }
    // The first SentencePiece files had no ids; these are LLaMA's.
    let default_id = |id: u32| matches!(scheme, Scheme::SentencePiece).then_some(id);
    let in_vocab = |id: &u32| (*id as usize) < n_tokens;
    let bos_id = vocab.bos_id.or_else(|| default_id(1)).filter(in_vocab);
    let eos_id = vocab.eos_id.or_else(|| default_id(2)).filter(in_vocab);
    let unk_id = vocab.unk_id.or_else(|| default_id(0)).filter(in_vocab);

    let types = vocab.token_types.iter().flatten();
    let mut kinds: Vec<Kind> = types.map(|token_type| Kind::from_type(*token_type)).collect();
    kinds.resize(n_tokens, Kind::Normal);
    let end_ids = special::ends(&vocab, eos_id, &ids, &mut kinds);

    let adds_bos = match scheme {
        // As llama.cpp: files said otherwise by mistake.
        Scheme::Gemma4 => true,
        Scheme::SentencePiece => vocab.add_bos.unwrap_or(true),
        Scheme::ByteLevel(pre) => vocab.add_bos.unwrap_or(pre.add_bos),
    };
    if adds_bos && bos_id.is_none() {
        return Err(broken(
            "tokenizer.ggml.bos_token_id",
            "is missing, but texts of this model begin with that token",
        ));
    }
    let mut table = table(scheme, &names, &kinds)?;
    table.bos_id = bos_id.filter(|_| adds_bos);
    for id in &end_ids {
        // Its text never belongs to a completion, whatever its type.
        table.kinds[*id as usize] = TokenKind::Control;
        table.bytes[*id as usize].clear();
    }
    table.end_ids = end_ids;

    let text_of = |id: u32| String::from_utf8_lossy(&names[id as usize]).into_owned();
    let variables = [
        ("bos_token", bos_id),
        ("eos_token", eos_id),
        ("unk_token", unk_id),
        ("pad_token", vocab.pad_id),
        ("sep_token", vocab.sep_id),
    ];
    let variables =
        variables.into_iter().filter_map(|(name, id)| Some((name.to_owned(), text_of(id?))));
    let encoder = GgufTokenizer::new(&vocab, scheme, &names, &kinds, variables.collect())?;
    Ok(ModelText {
        encoder: Arc::new(encoder),
        table: Arc::new(table),
        tokenizer_sha256: sha256(&vocab),
        chat_template: vocab.chat_template,
        default_sampling: in_range(vocab.default_sampling),
    })
}

/// How text becomes tokens.
#[derive(Clone, Copy, Debug)]
enum Scheme {
    /// `▁` for a space; neighbours are merged by the score of what they make.
    SentencePiece,
    /// Each byte as a printable character; words; neighbours are merged in the order of a list.
    ByteLevel(Pre),
    /// `▁` for a space; lines; neighbours are merged in the order of a list.
    Gemma4,
}

impl Scheme {
    fn of(vocab: &GgufVocab) -> Result<Self> {
        match vocab.model.as_str() {
            "llama" => Ok(Self::SentencePiece),
            "gemma4" => Ok(Self::Gemma4),
            "gpt2" => {
                let name = vocab.pre.as_deref().filter(|name| !name.is_empty());
                let name = name.unwrap_or("default");
                match pre::find(name) {
                    Some(pre) => Ok(Self::ByteLevel(pre)),
                    None if name == "gemma4" => Ok(Self::Gemma4),
                    None => Err(unknown("tokenizer.ggml.pre", name)),
                }
            }
            name => Err(unknown("tokenizer.ggml.model", name)),
        }
    }
}

/// The tokens' names; an empty one is given one as llama.cpp does.
fn names(vocab: &GgufVocab) -> Vec<Vec<u8>> {
    let name = |(id, token): (usize, &Vec<u8>)| match token.as_slice() {
        [] => format!("[EMPTY_{id}]").into_bytes(),
        name => name.to_vec(),
    };
    vocab.tokens.iter().enumerate().map(name).collect()
}

/// The bytes and kind of every token.
fn table(scheme: Scheme, names: &[Vec<u8>], kinds: &[Kind]) -> Result<TokenTable> {
    let alphabet = table::byte_level_alphabet();
    let mut table =
        TokenTable { bytes: Vec::new(), kinds: Vec::new(), end_ids: Vec::new(), bos_id: None };
    for (id, (name, kind)) in names.iter().zip(kinds).enumerate() {
        let text = String::from_utf8_lossy(name);
        let (kind, bytes) = match kind {
            Kind::Normal => match scheme {
                Scheme::ByteLevel(_) => (TokenKind::Text, table::byte_level(&text, &alphabet)),
                _ => (TokenKind::Text, text.replace('\u{2581}', " ").into_bytes()),
            },
            Kind::UserDefined => (TokenKind::Text, name.clone()),
            Kind::Byte => match table::byte(&text) {
                Some(byte) => (TokenKind::Text, vec![byte]),
                None => {
                    return Err(broken(
                        "tokenizer.ggml.token_type",
                        "says that a token is a byte, but it is not named like `<0x0A>`",
                    )
                    .with("token_id", id)
                    .with("token", text));
                }
            },
            Kind::Control => (TokenKind::Control, Vec::new()),
            Kind::Unused => (TokenKind::Unused, Vec::new()),
        };
        table.kinds.push(kind);
        table.bytes.push(bytes);
    }
    Ok(table)
}

fn check_lists(vocab: &GgufVocab) -> Result<()> {
    let n_tokens = vocab.tokens.len();
    let lengths = [
        ("tokenizer.ggml.scores", vocab.scores.as_ref().map(Vec::len)),
        ("tokenizer.ggml.token_type", vocab.token_types.as_ref().map(Vec::len)),
    ];
    for (key, n_items) in lengths {
        if let Some(n_items) = n_items.filter(|n_items| *n_items < n_tokens) {
            return Err(broken(key, "is shorter than `tokenizer.ggml.tokens`")
                .with("n_items", n_items)
                .with("n_tokens", n_tokens));
        }
    }
    if vocab.scores.iter().flatten().any(|score| score.is_nan()) {
        return Err(broken("tokenizer.ggml.scores", "has a value that is no number"));
    }
    for (key, id) in ID_KEYS.into_iter().zip(vocab.ids()) {
        if let Some(id) = id.filter(|id| *id as usize >= n_tokens) {
            return Err(broken(&format!("tokenizer.ggml.{key}"), "is beyond the vocabulary")
                .with("token_id", id)
                .with("n_tokens", n_tokens));
        }
    }
    Ok(())
}

const ID_KEYS: [&str; 13] = [
    "bos_token_id",
    "eos_token_id",
    "eot_token_id",
    "eom_token_id",
    "unknown_token_id",
    "seperator_token_id",
    "padding_token_id",
    "fim_pre_token_id",
    "fim_suf_token_id",
    "fim_mid_token_id",
    "fim_pad_token_id",
    "fim_rep_token_id",
    "fim_sep_token_id",
];

impl GgufVocab {
    /// All ids, in the order of [`ID_KEYS`].
    fn ids(&self) -> [Option<u32>; 13] {
        [
            self.bos_id,
            self.eos_id,
            self.eot_id,
            self.eom_id,
            self.unk_id,
            self.sep_id,
            self.pad_id,
            self.fim_pre_id,
            self.fim_suf_id,
            self.fim_mid_id,
            self.fim_pad_id,
            self.fim_rep_id,
            self.fim_sep_id,
        ]
    }
}

fn sha256(vocab: &GgufVocab) -> String {
    fn list<'a>(hasher: &mut Sha256, items: impl ExactSizeIterator<Item = &'a [u8]>) {
        hasher.update((items.len() as u64).to_le_bytes());
        for item in items {
            hasher.update((item.len() as u64).to_le_bytes());
            hasher.update(item);
        }
    }
    let mut hasher = Sha256::new();
    list(&mut hasher, [vocab.model.as_bytes()].into_iter());
    let pre: Vec<&[u8]> = vocab.pre.iter().map(String::as_bytes).collect();
    list(&mut hasher, pre.into_iter());
    list(&mut hasher, vocab.tokens.iter().map(Vec::as_slice));
    list(&mut hasher, vocab.merges.as_deref().unwrap_or_default().iter().map(Vec::as_slice));
    for score in vocab.scores.iter().flatten() {
        hasher.update(score.to_le_bytes());
    }
    let types = vocab.token_types.iter().flatten().map(|token_type| i64::from(*token_type));
    let ids = vocab.ids().map(|id| id.map_or(-1, i64::from));
    let flags = [vocab.add_bos, vocab.add_space_prefix].map(|flag| flag.map_or(-1, i64::from));
    for number in types.chain(ids).chain(flags) {
        hasher.update(number.to_le_bytes());
    }
    hex::encode(hasher.finalize())
}

fn broken(key: &str, what: &str) -> Error {
    Error::new(ErrorKind::ModelLoad, format!("`{key}` of this GGUF file {what}")).with("key", key)
}

fn unknown(key: &str, value: &str) -> Error {
    Error::new(
        ErrorKind::ModelLoad,
        format!(
            "this build has no tokenizer for a GGUF file whose `{key}` is `{value}`; llama.cpp may: \
             open the file as `llama-cpp:PATH`"
        ),
    )
    .with("key", key)
    .with("value", value)
}

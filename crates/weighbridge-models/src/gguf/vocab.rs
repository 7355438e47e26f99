//! The vocabulary, held to what llama.cpp requires when it loads and when it tokenizes.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use weighbridge_core::{Error, Result};

use super::Gguf;
use crate::files::{FETCH_AGAIN, fault, shown};

const MODEL_KEY: &str = "tokenizer.ggml.model";
const PRE_KEY: &str = "tokenizer.ggml.pre";
const TOKENS_KEY: &str = "tokenizer.ggml.tokens";
const TYPES_KEY: &str = "tokenizer.ggml.token_type";
const SCORES_KEY: &str = "tokenizer.ggml.scores";
const MERGES_KEY: &str = "tokenizer.ggml.merges";
const CHARSMAP_KEY: &str = "tokenizer.ggml.precompiled_charsmap";
const BOS_KEY: &str = "tokenizer.ggml.bos_token_id";
const ADD_BOS_KEY: &str = "tokenizer.ggml.add_bos_token";

/// Keys of ids of special tokens, `seperator` spelled as files have it.
pub(super) const SPECIAL_KEYS: [&str; 17] = [
    BOS_KEY,
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.eom_token_id",
    "tokenizer.ggml.unknown_token_id",
    "tokenizer.ggml.seperator_token_id",
    "tokenizer.ggml.padding_token_id",
    "tokenizer.ggml.mask_token_id",
    "tokenizer.ggml.fim_pre_token_id",
    "tokenizer.ggml.fim_suf_token_id",
    "tokenizer.ggml.fim_mid_token_id",
    "tokenizer.ggml.fim_pad_token_id",
    "tokenizer.ggml.fim_rep_token_id",
    "tokenizer.ggml.fim_sep_token_id",
    "tokenizer.ggml.prefix_token_id",
    "tokenizer.ggml.suffix_token_id",
    "tokenizer.ggml.middle_token_id",
];

/// The value of `tokenizer.ggml.token_type` for a token that stands for one byte.
const BYTE_TYPE: i64 = 6;

/// −1 in an unsigned field: no such token.
const NO_TOKEN: u64 = u32::MAX as u64;

/// Pre-tokenizers that put a BOS token first unless the file says otherwise.
const PRE_WITH_BOS: [&str; 13] = [
    "llama3",
    "llama-v3",
    "llama-bpe",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "jina-v5-nano",
    "tekken",
    "chameleon",
    PRE_GEMMA4[0],
    PRE_GEMMA4[1],
];

/// Pre-tokenizers that do so whatever the file says.
const PRE_GEMMA4: [&str; 2] = ["gemma4", "granite-embed-multi-311m"];

/// Checks the vocabulary and returns the number of its tokens, or `None` for a model that has
/// explicitly none.
pub(super) fn check(gguf: &Gguf, path: &Path) -> Result<Option<u64>> {
    let bad =
        |key: &str, what: String| -> Error { fault(path, what, FETCH_AGAIN).with("key", key) };
    let Some(model) = gguf.str(MODEL_KEY) else {
        return Err(bad(MODEL_KEY, format!("has no vocabulary: `{MODEL_KEY}` is missing")));
    };
    let needs_merges = match model {
        "none" | "no_vocab" => return Ok(None),
        "gpt2" | "hybriddna" | "whitespace" => gguf.str(PRE_KEY) != Some("kimi-k2"),
        "gemma4" => true,
        "llama" | "bert" | "t5" | "rwkv" | "plamo2" | "test" => false,
        _ => {
            return Err(bad(
                MODEL_KEY,
                format!("has the unknown tokenizer `{}` as `{MODEL_KEY}`", shown(model)),
            ));
        }
    };
    if needs_merges && !gguf.contains(MERGES_KEY) {
        return Err(bad(
            MERGES_KEY,
            format!("has no `{MERGES_KEY}`, which a `{model}` tokenizer needs"),
        ));
    }
    let tokens = gguf.strs(TOKENS_KEY).filter(|tokens| !tokens.is_empty()).ok_or_else(|| {
        bad(TOKENS_KEY, format!("has no vocabulary: `{TOKENS_KEY}` is missing or empty"))
    })?;
    for key in [SCORES_KEY, TYPES_KEY] {
        let len = gguf.values.get(key).map(super::value::Value::len);
        if let Some(len) = len.filter(|len| *len != tokens.len()) {
            return Err(bad(key, format!("has {} tokens but {len} of `{key}`", tokens.len())));
        }
    }
    check_unique(tokens, path)?;
    let n_tokens = tokens.len() as u64;
    for key in SPECIAL_KEYS {
        if let Some(id) = gguf.u64(key).filter(|id| *id >= n_tokens && *id != NO_TOKEN) {
            return Err(bad(
                key,
                format!("has {id} as `{key}`, its vocabulary has {n_tokens} tokens"),
            ));
        }
    }
    if model == "t5" {
        check_charsmap(gguf, path)?;
    }
    check_bytes(gguf, model, tokens, path)?;
    check_bos(gguf, model, n_tokens, path)?;
    Ok(Some(n_tokens))
}

/// llama.cpp keeps a token's text up to the first zero byte, names empty ones by their index, and
/// aborts if two are equal then.
fn check_unique(tokens: &[Box<[u8]>], path: &Path) -> Result<()> {
    let mut ids = HashMap::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate() {
        let text = token.split(|byte| *byte == 0).next().unwrap_or_default();
        let text = match text {
            [] => Cow::Owned(format!("[EMPTY_{id}]").into_bytes()),
            text => Cow::Borrowed(text),
        };
        if let Some(first) = ids.insert(text, id) {
            return Err(fault(
                path,
                format_args!(
                    "has the token `{}` twice, as {first} and {id}: llama.cpp would abort",
                    shown(&String::from_utf8_lossy(token))
                ),
                "use another conversion of the model",
            )
            .with("key", TOKENS_KEY));
        }
    }
    Ok(())
}

/// llama.cpp aborts at a line break that a SentencePiece vocabulary (`llama`) has no token for, never
/// ends with an RWKV vocabulary (whose tokens are escaped) without one, and aborts at a token of type
/// byte in a BERT vocabulary.
fn check_bytes(gguf: &Gguf, model: &str, tokens: &[Box<[u8]>], path: &Path) -> Result<()> {
    let bad = |key: &str, what: String| {
        Err(fault(path, what, "use another conversion of the model").with("key", key))
    };
    let line_breaks: &[&[u8]] = match model {
        "llama" => &[b"<0x0A>", b"\n"],
        "rwkv" => &[b"\\n", b"\\x0a", b"\\x0A", b"\n"],
        _ => &[],
    };
    if !line_breaks.is_empty() && !tokens.iter().any(|token| line_breaks.contains(&&**token)) {
        return bad(
            TOKENS_KEY,
            format!(
                "has no token for a line break (`{}`): llama.cpp would abort or hang at one",
                String::from_utf8_lossy(line_breaks[0])
            ),
        );
    }
    let types = gguf.i64s(TYPES_KEY).filter(|_| model == "bert").unwrap_or_default();
    if let Some(id) = types.iter().position(|ty| *ty == BYTE_TYPE) {
        return bad(
            TYPES_KEY,
            format!("has token {id} of type byte, which a `bert` vocabulary cannot have"),
        );
    }
    Ok(())
}

/// A length of four bytes and that many more must be inside.
fn check_charsmap(gguf: &Gguf, path: &Path) -> Result<()> {
    let Some(bytes) = gguf.i64s(CHARSMAP_KEY) else { return Ok(()) };
    let len = bytes.iter().take(4).rev().fold(0, |n, byte| n << 8 | (byte & 0xFF));
    if bytes.len() < 4 || len + 4 >= bytes.len() as i64 {
        return Err(fault(
            path,
            format_args!("has `{CHARSMAP_KEY}` of {} bytes, too short for its tables", bytes.len()),
            FETCH_AGAIN,
        )
        .with("key", CHARSMAP_KEY));
    }
    Ok(())
}

/// llama.cpp aborts at the first prompt if a BOS token is to be put first and there is none.
fn check_bos(gguf: &Gguf, model: &str, n_tokens: u64, path: &Path) -> Result<()> {
    let pre = gguf.str(PRE_KEY).unwrap_or("");
    let (default_bos, adds_bos) = match model {
        "llama" => (Some(1), true),
        "bert" => (Some(101), true),
        "plamo2" => (Some(1), false),
        "gemma4" => (None, true),
        "t5" | "rwkv" | "test" => (None, false),
        _ => (Some(11), PRE_WITH_BOS.contains(&pre)),
    };
    let is_token = |id: &u64| *id < n_tokens;
    let bos = gguf.u64(BOS_KEY).filter(is_token).or(default_bos.filter(is_token));
    // BERT's tokenizer always starts with one, Gemma 4 overrides the key.
    let adds_bos = match gguf.bool(ADD_BOS_KEY) {
        Some(adds) => adds || matches!(model, "bert" | "gemma4") || PRE_GEMMA4.contains(&pre),
        None => adds_bos,
    };
    if adds_bos && bos.is_none() {
        return Err(fault(
            path,
            format_args!(
                "starts every prompt with a BOS token and has none: `{BOS_KEY}` is missing, llama.cpp would abort"
            ),
            "use another conversion of the model",
        )
        .with("key", BOS_KEY));
    }
    Ok(())
}

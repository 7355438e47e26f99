//! What each token of a GGUF vocabulary is for, and which of them end a text, as llama.cpp sees it.
//!
//! Files often leave both out or say them wrongly, so that llama.cpp goes by names; the names are those
//! of `llama_vocab::impl::load` in `src/llama-vocab.cpp`.

use std::collections::{BTreeSet, HashMap};

use super::GgufVocab;

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    /// Control tokens and the unknown token: never text.
    Control,
    /// Text that is always found as this token.
    UserDefined,
    /// One byte, by its name `<0xXX>`.
    Byte,
    /// Never used, or of a type that nobody knows: it has no text.
    Unused,
}

impl Kind {
    /// From `tokenizer.ggml.token_type`.
    pub(super) fn from_type(token_type: i32) -> Self {
        match token_type {
            1 => Self::Normal,
            2 | 3 => Self::Control,
            4 => Self::UserDefined,
            6 => Self::Byte,
            _ => Self::Unused,
        }
    }
}

/// Names of the token that ends a turn; where several are there, all of them end a text.
const END_OF_TURN: [&str; 11] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<｜end▁of▁sentence｜>",
    "<end_of_utterance>",
];

/// Further names of tokens that end a text.
const ENDS: [&str; 11] = [
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "</s>",
    "<|eom_id|>",
    "[EOS]",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "[e~[",
];

/// Names of tokens for filling in the middle, which are control tokens whatever the file says: prefix,
/// suffix, middle.
const FILL_IN: [&[&str]; 3] = [
    &[
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<｜fim▁begin｜>",
        "<PRE>",
        "▁<PRE>",
        "<|code_prefix|>",
        "<|prefix|>",
    ],
    &[
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<｜fim▁hole｜>",
        "<SUF>",
        "▁<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
    ],
    &[
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<｜fim▁end｜>",
        "<MID>",
        "▁<MID>",
        "<|code_middle|>",
        "<|middle|>",
    ],
];

/// Those for padding, the name of a repository and the end of a file, which also end a text.
const FILL_IN_ENDS: [&[&str]; 3] = [
    &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"],
    &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"],
    &["<|file_sep|>"],
];

/// Tokens of gpt-oss that are shown.
const SHOWN: [&str; 4] = ["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// Corrects `kinds` by the tokens' names and gives the ids that end a text, in ascending order.
///
/// `ids` has every token by its name.
pub(super) fn ends(
    vocab: &GgufVocab,
    eos_id: Option<u32>,
    ids: &HashMap<&[u8], u32>,
    kinds: &mut [Kind],
) -> Vec<u32> {
    let id_of = |name: &str| ids.get(name.as_bytes()).copied();
    // Of several names, llama.cpp takes the one that its hash table has first; here it is the lowest id.
    let first = |names: &[&str]| names.iter().filter_map(|name| id_of(name)).min();
    let mut ends = BTreeSet::new();

    let given = [vocab.fim_pre_id, vocab.fim_suf_id, vocab.fim_mid_id];
    for (given, names) in given.into_iter().zip(FILL_IN) {
        if let (None, Some(id)) = (given, first(names)) {
            kinds[id as usize] = Kind::Control;
        }
    }
    let given = [vocab.fim_pad_id, vocab.fim_rep_id, vocab.fim_sep_id];
    for (given, names) in given.into_iter().zip(FILL_IN_ENDS) {
        if let (None, Some(id)) = (given, first(names)) {
            kinds[id as usize] = Kind::Control;
        }
        ends.extend(given.or_else(|| first(names)));
    }
    for id in END_OF_TURN.iter().chain(&ENDS).filter_map(|name| id_of(name)) {
        kinds[id as usize] = Kind::Control;
        ends.insert(id);
    }
    for id in SHOWN.iter().filter_map(|name| id_of(name)) {
        kinds[id as usize] = Kind::UserDefined;
    }
    ends.extend([eos_id, vocab.eot_id, vocab.eom_id].into_iter().flatten());

    // gpt-oss and Solar Open: `<|end|>` ends a message, not the answer.
    let has = |ends: &BTreeSet<u32>, name| id_of(name).is_some_and(|id| ends.contains(&id));
    let has_call = has(&ends, "<|call|>") || has(&ends, "<|calls|>");
    if has_call
        && (has(&ends, "<|return|>") || has(&ends, "<|flush|>"))
        && let Some(id) = id_of("<|end|>")
        && ends.remove(&id)
    {
        kinds[id as usize] = Kind::UserDefined;
    }
    // Gemma 4 has a `</s>` that is text.
    if has(&ends, "<|tool_response>")
        && let Some(id) = id_of("</s>")
        && ends.remove(&id)
    {
        kinds[id as usize] = Kind::Normal;
    }
    ends.into_iter().collect()
}

//! Tokenizers: those of Hugging Face (`tokenizer.json`) here, those of [GGUF files](gguf) below. Both
//! become a [`TokenEncoder`] and a [`TokenTable`].
//!
//! Text and control tokens are encoded apart: without `parse_special` no control token is ever
//! recognized, while added tokens that are ordinary text (`"special": false`) always are, as in every
//! peer. Truncation and padding that a file asks for are switched off.

pub mod gguf;

mod files;
mod table;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tokenizers::normalizer::Range as SliceRange;
use tokenizers::{
    AddedToken, Model, Normalizer, OffsetType, PreTokenizedString, PreTokenizer, Token, Tokenizer,
};
use weighbridge_core::{Error, ErrorKind, Result, Sampling};

pub use files::load_folder;

use crate::tokens::{Piece, TokenEncoder, TokenTable};

/// Everything about text that a model's files say.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ModelText {
    /// Text to tokens.
    pub encoder: Arc<dyn TokenEncoder>,
    /// Bytes and kind of every token, end ids, BOS.
    pub table: Arc<TokenTable>,
    /// The chat template's source.
    pub chat_template: Option<String>,
    /// Lower-case hex SHA-256: of `tokenizer.json`, or of the vocabulary as [`gguf::load`] says.
    pub tokenizer_sha256: String,
    /// Sampling settings that the model's files ask for.
    pub default_sampling: Sampling,
}

/// The tokenizer of a Hugging Face model.
pub struct HfTokenizer {
    /// Recognizes control tokens.
    parsing: Tokenizer,
    /// Takes the text of control tokens as text.
    plain: Tokenizer,
    added: Vec<Added>,
    /// Indices into `added` by the first byte of the content, longest content first.
    added_by_byte: HashMap<u8, Vec<usize>>,
    special_texts: Vec<String>,
    special_ids: HashSet<u32>,
    unk_id: Option<u32>,
    variables: Vec<(String, String)>,
    sha256: String,
}

struct Added {
    id: u32,
    token: AddedToken,
}

impl fmt::Debug for HfTokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HfTokenizer").field("sha256", &self.sha256).finish_non_exhaustive()
    }
}

impl HfTokenizer {
    /// Reads the content of a `tokenizer.json`; `file` is named in errors.
    ///
    /// # Errors
    /// [`ErrorKind::ModelLoad`] if it is not a tokenizer, or if an added token would get another id
    /// than the file says.
    pub fn from_json(json: &[u8], file: &str) -> Result<Self> {
        let definition: serde_json::Value =
            serde_json::from_slice(json).map_err(|e| broken(file, "is not JSON").with_source(e))?;
        let mut parsing = Tokenizer::from_bytes(json).map_err(|e| {
            broken(file, "is not a tokenizer that this build can read").with_source(e)
        })?;
        parsing
            .with_truncation(None)
            .map_err(|e| broken(file, "has an unusable truncation").with_source(e))?;
        parsing.with_padding(None);
        check_added_tokens(&definition, &parsing, file)?;
        let mut plain = parsing.clone();
        plain.set_encode_special_tokens(true);

        let decoder = parsing.get_added_tokens_decoder();
        let mut added: Vec<Added> =
            decoder.into_iter().map(|(id, token)| Added { id, token }).collect();
        added.sort_by_key(|added| added.id);
        let mut added_by_byte: HashMap<u8, Vec<usize>> = HashMap::new();
        for (index, added) in added.iter().enumerate() {
            if let Some(&byte) = added.token.content.as_bytes().first() {
                added_by_byte.entry(byte).or_default().push(index);
            }
        }
        for indices in added_by_byte.values_mut() {
            indices.sort_by_key(|&index| std::cmp::Reverse(added[index].token.content.len()));
        }
        let specials = || added.iter().filter(|added| added.token.special);
        let unk = definition["model"]["unk_token"].as_str();
        Ok(Self {
            special_ids: specials().map(|added| added.id).collect(),
            special_texts: specials().map(|added| added.token.content.clone()).collect(),
            unk_id: unk.and_then(|unk| parsing.token_to_id(unk)),
            added,
            added_by_byte,
            variables: Vec::new(),
            sha256: hex::encode(Sha256::digest(json)),
            parsing,
            plain,
        })
    }

    /// Lower-case hex SHA-256 of the `tokenizer.json`.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The id of a token by its name in the vocabulary.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.parsing.token_to_id(token)
    }

    /// Sets variables of chat templates, such as `bos_token`.
    #[must_use]
    pub fn with_template_variables(mut self, variables: Vec<(String, String)>) -> Self {
        self.variables = variables;
        self
    }

    /// The vocabulary as bytes; end and BOS ids are given by other files.
    ///
    /// # Errors
    /// [`ErrorKind::ModelLoad`] for a vocabulary whose tokens do not stand for bytes.
    pub fn table(&self, json: &[u8], file: &str) -> Result<TokenTable> {
        table::build(&self.parsing, json, file)
    }

    /// Whether the tokenizer itself puts this token before a text.
    pub(crate) fn puts_first(&self, id: u32) -> bool {
        let encoding = self.parsing.encode_fast("a", true);
        encoding.is_ok_and(|encoding| encoding.get_ids().first() == Some(&id))
    }

    fn append(&self, ids: &[u32], out: &mut Vec<u32>) -> Result<()> {
        if let Some(unk) = self.unk_id
            && ids.contains(&unk)
        {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                "the text has a character that the model's vocabulary cannot express",
            ));
        }
        out.extend_from_slice(ids);
        Ok(())
    }

    /// Splits a text at added tokens; control tokens do not count where they touch `protected`.
    fn split(&self, text: &str, protected: &[Range<usize>]) -> Vec<(Option<u32>, Range<usize>)> {
        let mut splits = Vec::new();
        let (mut start, mut at) = (0, 0);
        while at < text.len() {
            let Some((id, range)) = self.added_at(text, at, start, protected) else {
                at += text[at..].chars().next().map_or(1, char::len_utf8);
                continue;
            };
            if start < range.start {
                splits.push((None, start..range.start));
            }
            start = range.end;
            at = range.end;
            splits.push((Some(id), range));
        }
        if start < text.len() {
            splits.push((None, start..text.len()));
        }
        splits
    }

    /// The added token whose content stands at `at`, with the white space it takes in.
    fn added_at(
        &self,
        text: &str,
        at: usize,
        start: usize,
        protected: &[Range<usize>],
    ) -> Option<(u32, Range<usize>)> {
        let indices = self.added_by_byte.get(text.as_bytes().get(at)?)?;
        let fits = |added: &&Added| {
            let content = &added.token.content;
            let end = at + content.len();
            text[at..].starts_with(content.as_str())
                && !(added.token.special && protected.iter().any(|p| p.start < end && at < p.end))
        };
        let added = indices.iter().map(|&index| &self.added[index]).find(fits)?;
        let mut range = at..at + added.token.content.len();
        if added.token.lstrip {
            let before = text[start..at].trim_end();
            range.start = start + before.len();
        }
        if added.token.rstrip {
            let after = &text[range.end..];
            range.end += after.len() - after.trim_start().len();
        }
        Some((added.id, range))
    }
}

impl HfTokenizer {
    /// Encodes a text whose added tokens are found already.
    fn encode_splits(
        &self,
        text: &str,
        splits: &[(Option<u32>, Range<usize>)],
    ) -> tokenizers::Result<Vec<u32>> {
        let mut parts = PreTokenizedString::from(text);
        parts.split(|_, whole| {
            splits
                .iter()
                .map(|(id, range)| {
                    let slice = whole
                        .slice(SliceRange::Original(range.clone()))
                        .ok_or("a split inside a character")?;
                    let token = id.map(|id| {
                        let value = slice.get().to_owned();
                        let n_bytes = value.len();
                        vec![Token::new(id, value, (0, n_bytes))]
                    });
                    Ok((slice, token))
                })
                .collect::<tokenizers::Result<Vec<_>>>()
        })?;
        if let Some(normalizer) = self.parsing.get_normalizer() {
            parts.normalize(|part| normalizer.normalize(part))?;
        }
        if let Some(pre_tokenizer) = self.parsing.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut parts)?;
        }
        let model = self.parsing.get_model();
        parts.tokenize(|part| model.tokenize(part.get()))?;
        Ok(parts.into_encoding(None, 0, OffsetType::None)?.get_ids().to_vec())
    }

    /// Encodes a text in which control tokens count only outside `protected`.
    ///
    /// A Unigram vocabulary has control tokens as pieces and may put one together from plain text;
    /// the text is then cut inside it.
    fn encode_protected(&self, text: &str, protected: &[Range<usize>]) -> Result<Vec<u32>> {
        let mut splits = self.split(text, protected);
        let n_wanted = self.n_special(splits.iter().filter_map(|(id, _)| id.as_ref()));
        let ids = self.encode_splits(text, &splits).map_err(unusable)?;
        if self.n_special(&ids) == n_wanted {
            return Ok(ids);
        }
        splits = splits
            .into_iter()
            .flat_map(|(id, range)| match id {
                Some(id) => vec![(Some(id), range)],
                None => self.cut(text, range).into_iter().map(|range| (None, range)).collect(),
            })
            .collect();
        let ids = self.encode_splits(text, &splits).map_err(unusable)?;
        if self.n_special(&ids) == n_wanted {
            return Ok(ids);
        }
        Err(Error::new(
            ErrorKind::InvalidRequest,
            "the text contains the name of a control token, and this tokenizer has no other way to \
             write it",
        ))
    }

    fn n_special<'a>(&self, ids: impl IntoIterator<Item = &'a u32>) -> usize {
        let counts = |id: &&u32| self.special_ids.contains(id) && Some(**id) != self.unk_id;
        ids.into_iter().filter(counts).count()
    }

    /// Cuts a range after the first character of every control token's text in it.
    fn cut(&self, text: &str, range: Range<usize>) -> Vec<Range<usize>> {
        let mut ranges = Vec::new();
        let mut start = range.start;
        for (at, c) in text[range.clone()].char_indices() {
            let at = range.start + at;
            let rest = &text[at..range.end];
            if self.special_texts.iter().any(|special| rest.starts_with(special.as_str())) {
                ranges.push(start..at + c.len_utf8());
                start = at + c.len_utf8();
            }
        }
        if start < range.end {
            ranges.push(start..range.end);
        }
        ranges
    }
}

impl TokenEncoder for HfTokenizer {
    fn encode(&self, text: &str, parse_special: bool, out: &mut Vec<u32>) -> Result<()> {
        let tokenizer = if parse_special { &self.parsing } else { &self.plain };
        let encoding = tokenizer.encode_fast(text, false).map_err(unusable)?;
        let ids = encoding.get_ids();
        if !parse_special && self.n_special(ids) > 0 {
            let all = 0..text.len();
            return self.append(&self.encode_protected(text, &[all])?, out);
        }
        self.append(ids, out)
    }

    /// Encodes all pieces as one text, so that what a tokenizer does only at the beginning of a text
    /// is not done at every piece.
    fn encode_pieces(&self, pieces: &[Piece<'_>], out: &mut Vec<u32>) -> Result<()> {
        let (text, protected) = join(pieces);
        self.append(&self.encode_protected(&text, &protected)?, out)
    }

    fn special_texts(&self) -> &[String] {
        &self.special_texts
    }

    fn template_variables(&self) -> &[(String, String)] {
        &self.variables
    }
}

/// The pieces as one text, and where in it control tokens do not count.
fn join(pieces: &[Piece<'_>]) -> (String, Vec<Range<usize>>) {
    let mut text = String::new();
    let mut protected = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Markup(markup) => text.push_str(markup),
            Piece::Text(plain) => {
                protected.push(text.len()..text.len() + plain.len());
                text.push_str(plain);
            }
        }
    }
    (text, protected)
}

/// Settings without those that no request may ask for: they are no defaults either.
fn in_range(mut sampling: Sampling) -> Sampling {
    sampling.temperature = sampling.temperature.filter(|t| t.is_finite() && *t >= 0.0);
    sampling.top_p = sampling.top_p.filter(|p| *p > 0.0 && *p <= 1.0);
    sampling.min_p = sampling.min_p.filter(|p| (0.0..=1.0).contains(p));
    sampling.top_k = sampling.top_k.filter(|k| *k > 0);
    sampling.repetition_penalty = sampling.repetition_penalty.filter(|p| p.is_finite() && *p > 0.0);
    sampling
}

fn unusable(error: tokenizers::Error) -> Error {
    Error::new(ErrorKind::InvalidRequest, "the text cannot be tokenized").with_source(error)
}

fn broken(file: &str, what: &str) -> Error {
    Error::new(ErrorKind::ModelLoad, format!("`{file}` {what}"))
}

/// Every added token must have the id that the file says: a library that numbers them anew would
/// feed the model other tokens without a word.
fn check_added_tokens(
    definition: &serde_json::Value,
    tokenizer: &Tokenizer,
    file: &str,
) -> Result<()> {
    let added = definition["added_tokens"].as_array();
    for token in added.into_iter().flatten() {
        let (Some(content), Some(id)) = (token["content"].as_str(), token["id"].as_u64()) else {
            return Err(broken(file, "has an added token without content or id"));
        };
        let loaded = tokenizer.token_to_id(content);
        if loaded.map(u64::from) != Some(id) {
            return Err(broken(file, "has an added token whose id does not follow from the file")
                .with("token", content)
                .with("id", id)
                .with("loaded_id", loaded.map_or_else(|| "none".to_owned(), |id| id.to_string())));
        }
    }
    Ok(())
}

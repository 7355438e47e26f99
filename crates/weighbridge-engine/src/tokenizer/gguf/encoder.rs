//! Text to tokens with a GGUF vocabulary.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;

use weighbridge_core::{Error, ErrorKind, Result};

use super::merge::{Pair, merge};
use super::partition::{Fragment, Special, partition};
use super::pre::{self, Splitter};
use super::special::Kind;
use super::{GgufVocab, Scheme, broken};
use crate::tokenizer::{join, table};
use crate::tokens::{Piece, TokenEncoder};

/// The tokenizer of a GGUF file.
pub(super) struct GgufTokenizer {
    /// Tokens that text may become, by their names.
    ids: HashMap<Vec<u8>, u32>,
    /// Tokens for the bytes of a character that is none.
    byte_ids: Vec<Option<u32>>,
    /// Longest first.
    specials: Vec<Special>,
    special_texts: Vec<String>,
    variables: Vec<(String, String)>,
    merging: Merging,
}

/// What is merged first.
enum Merging {
    /// SentencePiece: what makes the token of the highest score.
    Scores {
        /// By id; equal scores have equal ranks.
        ranks: Vec<u32>,
        add_space_prefix: bool,
    },
    /// BPE: what stands first in a list.
    List {
        /// By `LEFT RIGHT`.
        ranks: HashMap<Vec<u8>, u32>,
        splitter: Splitter,
        /// A word that is a token becomes it.
        ignore_merges: bool,
        /// The character of each byte; none where text is merged as it is, with `▁` for a space.
        alphabet: Option<Vec<char>>,
    },
}

impl fmt::Debug for GgufTokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GgufTokenizer")
            .field("n_text_tokens", &self.ids.len())
            .finish_non_exhaustive()
    }
}

impl GgufTokenizer {
    pub(super) fn new(
        vocab: &GgufVocab,
        scheme: Scheme,
        names: &[Vec<u8>],
        kinds: &[Kind],
        variables: Vec<(String, String)>,
    ) -> Result<Self> {
        let tokens = || (0u32..).zip(names).zip(kinds.iter().copied());
        let is_phi3 = vocab.name.as_ref().is_some_and(|name| {
            let name = name.to_lowercase();
            name.contains("phi-3") || name.contains("phi3")
        });
        let mut specials: Vec<Special> = tokens()
            .filter(|(_, kind)| matches!(kind, Kind::Control | Kind::UserDefined))
            .filter_map(|((id, name), kind)| {
                let text = String::from_utf8(name.clone()).ok()?;
                let rstrip = is_phi3 && !matches!(text.as_str(), "<unk>" | "<s>" | "<|endoftext|>");
                Some(Special { id, text, is_control: kind == Kind::Control, rstrip })
            })
            .collect();
        specials.sort_by_key(|special| std::cmp::Reverse(special.text.len()));
        let controls = specials.iter().filter(|special| special.is_control);
        let special_texts = controls.map(|special| special.text.clone()).collect();

        let all: HashMap<&[u8], u32> =
            tokens().map(|((id, name), _)| (name.as_slice(), id)).collect();
        let byte_id = |byte: u8| {
            let by_name = || all.get(format!("<0x{byte:02X}>").as_bytes());
            let raw = || all.get([byte].as_slice());
            match scheme {
                Scheme::SentencePiece => by_name().or_else(raw).copied(),
                Scheme::Gemma4 => by_name().copied(),
                Scheme::ByteLevel(_) => raw().copied(),
            }
        };
        let byte_ids = (0..=255).map(byte_id).collect();
        let ids = tokens()
            .filter(|(_, kind)| !matches!(kind, Kind::Control | Kind::Byte))
            .map(|((id, name), _)| (name.clone(), id))
            .collect();
        let merging = Merging::new(vocab, scheme)?;
        Ok(Self { ids, byte_ids, specials, special_texts, variables, merging })
    }

    /// Encodes a text in which control tokens count only outside `protected`.
    fn encode_protected(
        &self,
        text: &str,
        protected: &[Range<usize>],
        out: &mut Vec<u32>,
    ) -> Result<()> {
        for fragment in partition(text, &self.specials, protected) {
            match fragment {
                Fragment::Token(id) => out.push(id),
                Fragment::Text(range) => self.encode_text(&text[range], out)?,
            }
        }
        Ok(())
    }

    fn encode_text(&self, text: &str, out: &mut Vec<u32>) -> Result<()> {
        match &self.merging {
            Merging::Scores { ranks, add_space_prefix } => {
                let prefix = if *add_space_prefix { " " } else { "" };
                let text = format!("{prefix}{text}").replace(' ', "\u{2581}");
                let rank = |pair: Pair<'_>| {
                    self.ids.get(pair.text.as_bytes()).map(|id| ranks[*id as usize])
                };
                self.append(merge(&text, rank), out)
            }
            Merging::List { ranks, splitter, ignore_merges, alphabet } => {
                let escaped;
                let text = match alphabet {
                    Some(_) => text,
                    None => {
                        escaped = text.replace(' ', "\u{2581}");
                        &escaped
                    }
                };
                let mut key = Vec::new();
                let mut rank = |pair: Pair<'_>| {
                    let (left, right) = pair.text.as_bytes().split_at(pair.n_left);
                    key.clear();
                    key.extend_from_slice(left);
                    key.push(b' ');
                    key.extend_from_slice(right);
                    ranks.get(&key).copied()
                };
                for word in splitter.words(text)? {
                    let spelt;
                    let word = match alphabet {
                        Some(alphabet) => {
                            let spell = |byte: u8| alphabet[usize::from(byte)];
                            spelt = word.bytes().map(spell).collect::<String>();
                            &spelt
                        }
                        None => word,
                    };
                    let is_lines = alphabet.is_none() && word.bytes().all(|byte| byte == b'\n');
                    match self.ids.get(word.as_bytes()) {
                        Some(id) if *ignore_merges || is_lines => out.push(*id),
                        _ => self.append(merge(word, &mut rank), out)?,
                    }
                }
                Ok(())
            }
        }
    }

    /// Appends the tokens of merged symbols, those of its bytes for one that is no token.
    fn append(&self, symbols: Vec<&str>, out: &mut Vec<u32>) -> Result<()> {
        for symbol in symbols {
            if let Some(id) = self.ids.get(symbol.as_bytes()) {
                out.push(*id);
                continue;
            }
            for byte in symbol.bytes() {
                let Some(id) = self.byte_ids[usize::from(byte)] else {
                    return Err(Error::new(
                        ErrorKind::InvalidRequest,
                        "the text has a character that the model's vocabulary cannot express",
                    )
                    .with("character", format!("{symbol:?}")));
                };
                out.push(id);
            }
        }
        Ok(())
    }
}

impl Merging {
    fn new(vocab: &GgufVocab, scheme: Scheme) -> Result<Self> {
        let pre = match scheme {
            Scheme::SentencePiece => {
                return Ok(Self::Scores {
                    ranks: ranks_of_scores(vocab),
                    add_space_prefix: vocab.add_space_prefix.unwrap_or(true),
                });
            }
            Scheme::ByteLevel(pre) => pre,
            Scheme::Gemma4 => pre::GEMMA4,
        };
        let Some(merges) = &vocab.merges else {
            return Err(broken("tokenizer.ggml.merges", "is missing"));
        };
        let mut ranks = HashMap::with_capacity(merges.len());
        for (rank, pair) in (0u32..).zip(merges) {
            ranks.entry(pair.clone()).or_insert(rank);
        }
        let alphabet = matches!(scheme, Scheme::ByteLevel(_)).then(|| {
            let mut alphabet = vec![char::REPLACEMENT_CHARACTER; 256];
            for (c, byte) in table::byte_level_alphabet() {
                alphabet[usize::from(byte)] = c;
            }
            alphabet
        });
        let splitter = Splitter::new(&pre)?;
        Ok(Self::List { ranks, splitter, ignore_merges: pre.ignore_merges, alphabet })
    }
}

/// Scores as ranks: 0 for the highest.
fn ranks_of_scores(vocab: &GgufVocab) -> Vec<u32> {
    let Some(scores) = &vocab.scores else { return vec![0; vocab.tokens.len()] };
    let mut sorted = scores.clone();
    sorted.sort_by(|a, b| b.total_cmp(a));
    sorted.dedup();
    let rank = |score: &f32| sorted.partition_point(|other| other > score) as u32;
    scores.iter().map(rank).collect()
}

impl TokenEncoder for GgufTokenizer {
    fn encode(&self, text: &str, parse_special: bool, out: &mut Vec<u32>) -> Result<()> {
        let all = 0..text.len();
        let protected: &[Range<usize>] = if parse_special { &[] } else { &[all] };
        self.encode_protected(text, protected, out)
    }

    fn encode_pieces(&self, pieces: &[Piece<'_>], out: &mut Vec<u32>) -> Result<()> {
        let (text, protected) = join(pieces);
        self.encode_protected(&text, &protected, out)
    }

    fn special_texts(&self) -> &[String] {
        &self.special_texts
    }

    fn template_variables(&self) -> &[(String, String)] {
        &self.variables
    }
}

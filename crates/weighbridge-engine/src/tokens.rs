//! Tokens and text: the vocabulary's bytes, and encoders.

use std::fmt;

use weighbridge_core::Result;

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// Stands for its bytes.
    Text,
    /// Controls the model; never part of a completion's text.
    Control,
    /// An id of the logits row that no token has: always masked.
    Unused,
}

/// The vocabulary as bytes, shape `(n_vocab,)`.
#[derive(Clone, Debug)]
pub struct TokenTable {
    /// The bytes each token stands for; empty for control and unused ids.
    pub bytes: Vec<Vec<u8>>,
    /// What each token is for.
    pub kinds: Vec<TokenKind>,
    /// Ids that end a turn or a text. Generation stops on these ids, never on their text.
    pub end_ids: Vec<u32>,
    /// Put before a raw text prompt that the model expects to begin with it.
    pub bos_id: Option<u32>,
}

impl TokenTable {
    /// Number of ids, unused ones included.
    pub fn len(&self) -> usize {
        self.kinds.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }

    /// What an id is for; ids beyond the table are unused.
    pub fn kind(&self, id: u32) -> TokenKind {
        self.kinds.get(id as usize).copied().unwrap_or(TokenKind::Unused)
    }

    /// The bytes an id stands for; none beyond the table.
    pub fn bytes_of(&self, id: u32) -> &[u8] {
        self.bytes.get(id as usize).map_or(&[], Vec::as_slice)
    }

    /// Whether generation ends with this id.
    pub fn is_end(&self, id: u32) -> bool {
        self.end_ids.contains(&id)
    }
}

/// A piece of a text that is encoded as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Written by a chat template: strings that name control tokens become those tokens.
    Markup(&'a str),
    /// Written by somebody else: never becomes a control token.
    Text(&'a str),
}

/// Text to tokens. Text and special tokens are encoded apart: user text never becomes a control
/// token unless `parse_special` is asked for.
pub trait TokenEncoder: fmt::Debug + Send + Sync {
    /// Appends the tokens of `text` to `out`. No BOS is added.
    ///
    /// `parse_special`: strings that name control tokens become those tokens (for a rendered chat
    /// template); otherwise they are text like any other.
    ///
    /// # Errors
    /// [`InvalidRequest`](weighbridge_core::ErrorKind::InvalidRequest) if the text has something
    /// that the vocabulary cannot express.
    fn encode(&self, text: &str, parse_special: bool, out: &mut Vec<u32>) -> Result<()>;

    /// Appends the tokens of a text made of pieces to `out`. Asked only for chat prompts in which a
    /// message contains the text of a special token.
    ///
    /// The provided body encodes piece by piece, which is right where a text's tokens do not depend
    /// on what stands before it; an encoder that knows better overrides it.
    ///
    /// # Errors
    /// As [`TokenEncoder::encode`].
    fn encode_pieces(&self, pieces: &[Piece<'_>], out: &mut Vec<u32>) -> Result<()> {
        for piece in pieces {
            match piece {
                Piece::Markup(text) => self.encode(text, true, out)?,
                Piece::Text(text) => self.encode(text, false, out)?,
            }
        }
        Ok(())
    }

    /// The strings that `parse_special` turns into control tokens. Occurrences in messages are kept
    /// apart from the template's own.
    fn special_texts(&self) -> &[String] {
        &[]
    }

    /// Variables of chat templates that come from the tokenizer: `bos_token`, `eos_token`, …
    fn template_variables(&self) -> &[(String, String)] {
        &[]
    }
}

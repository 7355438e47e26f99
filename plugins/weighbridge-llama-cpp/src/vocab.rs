//! The vocabulary of a loaded model, as the decode loop wants it.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::token_type::LlamaTokenAttr;
use llama_cpp_2::vocab::LlamaVocab;
use weighbridge_core::{Error, ErrorKind, Result};
use weighbridge_engine::tokens::{TokenEncoder, TokenKind, TokenTable};

/// Bytes of a text that are encoded at once at most; llama.cpp counts in 32 bits.
const MAX_TEXT_BYTES: usize = 1 << 29;

/// Reads the whole vocabulary.
pub(crate) fn table(model: &LlamaModel) -> TokenTable {
    let vocab = model.vocab();
    let mut table = TokenTable {
        bytes: Vec::new(),
        kinds: Vec::new(),
        end_ids: Vec::new(),
        bos_id: vocab.should_add_bos().then(|| id(vocab.bos())).flatten(),
    };
    for token in vocab.tokens() {
        let kind = kind(&vocab, token);
        let is_text = kind == TokenKind::Text;
        table.bytes.push(if is_text {
            vocab.token_to_piece(token, false, None)
        } else {
            Vec::new()
        });
        table.kinds.push(kind);
        if vocab.is_eog(token) {
            table.end_ids.extend(id(token));
        }
    }
    table
}

fn kind(vocab: &LlamaVocab<'_>, token: LlamaToken) -> TokenKind {
    let attributes = vocab.attr(token);
    if attributes.contains(LlamaTokenAttr::Unused) {
        TokenKind::Unused
    } else if attributes.intersects(LlamaTokenAttr::Control | LlamaTokenAttr::Unknown) {
        TokenKind::Control
    } else {
        TokenKind::Text
    }
}

/// The id of a token, unless it stands for "the model has none".
fn id(token: LlamaToken) -> Option<u32> {
    u32::try_from(token.0).ok()
}

/// What a model puts before and after the tokens of a text that is embedded.
pub(crate) fn marks(model: &LlamaModel) -> (Vec<u32>, Vec<u32>) {
    let vocab = model.vocab();
    // llama.cpp aborts where it should add a token that the model does not have.
    let asked = [
        (vocab.should_add_bos(), vocab.bos()),
        (vocab.should_add_eos(), vocab.eos()),
        (vocab.should_add_sep(), vocab.sep()),
    ];
    if asked.iter().any(|(is_added, token)| *is_added && id(*token).is_none()) {
        return (Vec::new(), Vec::new());
    }
    let all: Vec<u32> = vocab.tokenize(b"", true, false).into_iter().filter_map(id).collect();
    let n_before = usize::from(all.first().is_some_and(|first| Some(*first) == id(vocab.bos())));
    (all[..n_before].to_vec(), all[n_before..].to_vec())
}

/// llama.cpp's tokenizer, used by the threads of callers.
pub(crate) struct Encoder {
    model: Arc<LlamaModel>,
    special_texts: Vec<String>,
    variables: Vec<(String, String)>,
}

impl Encoder {
    pub(crate) fn new(model: Arc<LlamaModel>) -> Self {
        let vocab = model.vocab();
        let text = |token| String::from_utf8(vocab.token_to_piece(token, true, None)).ok();
        let control = vocab.tokens().filter(|token| kind(&vocab, *token) == TokenKind::Control);
        let special: HashSet<String> =
            control.filter_map(text).filter(|text| !text.is_empty()).collect();
        let mut special_texts: Vec<String> = special.into_iter().collect();
        special_texts.sort();
        let named =
            [("bos_token", vocab.bos()), ("eos_token", vocab.eos()), ("pad_token", vocab.pad())];
        let variables = named
            .into_iter()
            .filter(|(_, token)| id(*token).is_some())
            .filter_map(|(name, token)| Some((name.to_owned(), text(token)?)))
            .collect();
        Self { model, special_texts, variables }
    }
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder")
            .field("n_special", &self.special_texts.len())
            .finish_non_exhaustive()
    }
}

impl TokenEncoder for Encoder {
    fn encode(&self, text: &str, parse_special: bool, out: &mut Vec<u32>) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        if text.len() > MAX_TEXT_BYTES {
            return Err(Error::new(ErrorKind::InvalidRequest, "the text is too long to encode")
                .with("n_bytes", text.len())
                .with("most", MAX_TEXT_BYTES));
        }
        let tokens = self.model.vocab().tokenize(text.as_bytes(), false, parse_special);
        out.extend(tokens.into_iter().filter_map(id));
        Ok(())
    }

    fn special_texts(&self) -> &[String] {
        &self.special_texts
    }

    fn template_variables(&self) -> &[(String, String)] {
        &self.variables
    }
}

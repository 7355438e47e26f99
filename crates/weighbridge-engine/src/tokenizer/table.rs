//! The bytes of every token of a `tokenizer.json`.

use std::collections::HashMap;

use serde_json::Value;
use tokenizers::Tokenizer;
use weighbridge_core::{Error, ErrorKind, Result};

use crate::tokens::{TokenKind, TokenTable};

/// Ids without a token that a vocabulary may have; more is a damaged file.
const MAX_HOLES: usize = 1 << 20;

/// How a vocabulary writes bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    /// Each byte as a printable character (GPT-2).
    ByteLevel,
    /// `▁` for a space, `<0x0A>` for a byte.
    SentencePiece,
    /// As it is.
    Plain,
}

/// Builds the table, without end and BOS ids.
pub(super) fn build(tokenizer: &Tokenizer, json: &[u8], file: &str) -> Result<TokenTable> {
    let definition: Value = serde_json::from_slice(json).map_err(|error| {
        Error::new(ErrorKind::ModelLoad, format!("`{file}` is not JSON")).with_source(error)
    })?;
    let style = style(&definition, file)?;
    let vocab = tokenizer.get_vocab(true);
    let n_ids = vocab.values().max().map_or(0, |&id| id as usize + 1);
    if n_ids > vocab.len() + MAX_HOLES {
        return Err(Error::new(
            ErrorKind::ModelLoad,
            format!("`{file}` has ids far beyond its tokens"),
        )
        .with("n_tokens", vocab.len())
        .with("largest_id", n_ids - 1));
    }
    let mut table = TokenTable {
        bytes: vec![Vec::new(); n_ids],
        kinds: vec![TokenKind::Unused; n_ids],
        end_ids: Vec::new(),
        bos_id: None,
    };
    let bytes_of_char = byte_level_alphabet();
    for (token, id) in vocab {
        let index = id as usize;
        table.kinds[index] = TokenKind::Text;
        table.bytes[index] = match style {
            Style::ByteLevel => byte_level(&token, &bytes_of_char),
            Style::SentencePiece => sentence_piece(&token),
            Style::Plain => token.into_bytes(),
        };
    }
    for (id, token) in tokenizer.get_added_tokens_decoder() {
        let index = id as usize;
        let (kind, bytes) = if token.special {
            (TokenKind::Control, Vec::new())
        } else {
            (TokenKind::Text, token.content.into_bytes())
        };
        table.kinds[index] = kind;
        table.bytes[index] = bytes;
    }
    Ok(table)
}

fn style(definition: &Value, file: &str) -> Result<Style> {
    let mut types = Vec::new();
    for section in ["decoder", "pre_tokenizer", "normalizer"] {
        collect(&definition[section], &mut types);
    }
    let has = |name: &str| types.iter().any(|t| t == name);
    let kind = definition["model"]["type"].as_str().unwrap_or_default();
    if kind == "WordPiece" {
        return Err(Error::new(
            ErrorKind::ModelLoad,
            format!(
                "`{file}` is a WordPiece tokenizer, which no generating model of this build uses"
            ),
        ));
    }
    Ok(if has("ByteLevel") {
        Style::ByteLevel
    } else if has("Metaspace") || has("\u{2581}") || definition["model"]["byte_fallback"] == true {
        Style::SentencePiece
    } else {
        Style::Plain
    })
}

/// All values of `type`, and the `▁` that replaces spaces.
fn collect(value: &Value, types: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            types.extend(map.get("type").and_then(Value::as_str).map(str::to_owned));
            let content = map.get("content").and_then(Value::as_str);
            let pattern = map.get("pattern").and_then(|p| p["String"].as_str());
            types.extend([content, pattern].into_iter().flatten().map(str::to_owned));
            map.values().for_each(|value| collect(value, types));
        }
        Value::Array(items) => items.iter().for_each(|value| collect(value, types)),
        _ => {}
    }
}

/// GPT-2's `bytes_to_unicode`, inverted: printable Latin-1 bytes stand for themselves, the others
/// for the characters from U+0100 on.
pub(super) fn byte_level_alphabet() -> HashMap<char, u8> {
    let mut next = 0x100;
    (0..=255u8)
        .map(|byte| {
            let is_printable = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
            let code = if is_printable {
                u32::from(byte)
            } else {
                next += 1;
                next - 1
            };
            (char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER), byte)
        })
        .collect()
}

pub(super) fn byte_level(token: &str, bytes_of_char: &HashMap<char, u8>) -> Vec<u8> {
    let bytes: Option<Vec<u8>> = token.chars().map(|c| bytes_of_char.get(&c).copied()).collect();
    // A token outside the alphabet was added as text.
    bytes.unwrap_or_else(|| token.as_bytes().to_vec())
}

fn sentence_piece(token: &str) -> Vec<u8> {
    match byte(token) {
        Some(byte) => vec![byte],
        None => token.replace('\u{2581}', " ").into_bytes(),
    }
}

/// The byte that a name like `<0x0A>` stands for.
pub(super) fn byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let digits = Some(digits).filter(|digits| digits.len() == 2)?;
    u8::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_has_every_byte_once() {
        let alphabet = byte_level_alphabet();
        assert_eq!(alphabet.len(), 256);
        assert_eq!(alphabet[&'A'], b'A');
        assert_eq!(alphabet[&'Ġ'], b' ');
        assert_eq!(alphabet[&'Ċ'], b'\n');
        assert_eq!(alphabet[&'ł'], 0xa0 - 0x01 + 0x01);
        assert_eq!(byte_level("Ã©", &alphabet), "é".as_bytes());
    }

    #[test]
    fn sentence_piece_bytes_and_spaces() {
        assert_eq!(sentence_piece("▁the▁"), b" the ");
        assert_eq!(sentence_piece("<0x0A>"), b"\n");
        assert_eq!(sentence_piece("<0xZZ>"), b"<0xZZ>");
        assert_eq!(sentence_piece("<0x0A>>"), b"<0x0A>>");
    }
}

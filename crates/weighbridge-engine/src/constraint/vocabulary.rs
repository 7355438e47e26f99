//! A model's vocabulary as llguidance wants it.

use std::sync::Arc;

use llguidance::toktrie::{INVALID_TOKEN, TokRxInfo, TokTrie, TokenId, TokenizerEnv};

use crate::tokens::{TokenEncoder, TokenKind, TokenTable};

/// Longest token that the trie can hold; longer ones are never allowed.
const MAX_TOKEN_BYTES: usize = 1024;

/// The tokens as a trie of bytes, and the encoder that forced bytes are tokenized with.
pub(super) struct Vocabulary {
    trie: TokTrie,
    encoder: Arc<dyn TokenEncoder>,
    writes_all: bool,
}

impl Vocabulary {
    /// Builds the trie. Ids without a token have no bytes and are never allowed. Control tokens and
    /// end ids are marked, so that no text matches them; a Lark grammar names one as the model does,
    /// in angle brackets (`<|tool|>`), or by its id (`<[17]>`).
    pub(super) fn new(table: &TokenTable, encoder: Arc<dyn TokenEncoder>) -> Self {
        const MARKER: u8 = TokTrie::SPECIAL_TOKEN_MARKER;
        let mut words: Vec<Vec<u8>> = (0..table.len() as u32)
            .map(|id| match table.kind(id) {
                TokenKind::Unused => Vec::new(),
                TokenKind::Control => special(id),
                TokenKind::Text if table.is_end(id) => special(id),
                TokenKind::Text => {
                    let bytes = table.bytes_of(id);
                    // The byte 0xFF is in no UTF-8 text, and here it begins a marked token.
                    let is_usable = bytes.len() <= MAX_TOKEN_BYTES && !bytes.starts_with(&[MARKER]);
                    if is_usable { bytes.to_vec() } else { Vec::new() }
                }
            })
            .collect();
        for text in encoder.special_texts() {
            let mut ids = Vec::new();
            if encoder.encode(text, true, &mut ids).is_ok()
                && let &[id] = ids.as_slice()
                && table.kind(id) == TokenKind::Control
                && text.len() < MAX_TOKEN_BYTES
            {
                words[id as usize] = [&[MARKER], text.as_bytes()].concat();
            }
        }
        let is_token = |id: &u32| table.kind(*id) != TokenKind::Unused;
        let end_ids: Vec<u32> = table.end_ids.iter().copied().filter(is_token).collect();
        let end_id = end_ids.first().copied().unwrap_or(INVALID_TOKEN);
        let mut trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, end_id), &words);
        if !end_ids.is_empty() {
            trie = trie.with_eos_tokens(&end_ids);
        }
        // The bytes that occur in UTF-8.
        let mut bytes = (0x00..=0xbf).chain(0xc2..=0xf4);
        let writes_all = bytes.all(|byte| trie.token_id_at_bytes(&[byte]).is_some());
        Self { trie, encoder, writes_all }
    }
}

fn special(id: u32) -> Vec<u8> {
    [&[TokTrie::SPECIAL_TOKEN_MARKER], format!("<[{id}]>").as_bytes()].concat()
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    /// The model's own tokens for bytes that are forced. An encoder that puts a space before every
    /// text (SentencePiece) is given the bytes after a line break. What it cannot write, such as
    /// half a character, is cut into the longest tokens.
    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        let text = std::str::from_utf8(bytes).ok();
        let encode = |before: &str| {
            let mut ids = Vec::new();
            self.encoder.encode(&format!("{before}{}", text?), false, &mut ids).ok()?;
            let mut n_left: usize = ids.iter().map(|id| self.trie.token(*id).len()).sum();
            let begin = ids.iter().position(|id| {
                let is_begin = n_left == bytes.len();
                n_left -= self.trie.token(*id).len();
                is_begin
            })?;
            let ids = ids.split_off(begin);
            ids.iter().flat_map(|id| self.trie.token(*id)).eq(bytes).then_some(ids)
        };
        encode("").or_else(|| encode("\n")).unwrap_or_else(|| self.trie.greedy_tokenize(bytes))
    }

    /// Bytes can be forced only by a vocabulary that can write all of them.
    fn tokenize_is_canonical(&self) -> bool {
        self.writes_all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::toy::{END, ToyEncoder, table};

    #[test]
    fn control_unused_and_end_tokens_match_no_text() {
        let mut table = table(None);
        table.bytes.extend([b"\xff".to_vec(), vec![b'x'; MAX_TOKEN_BYTES + 1], b"ab".to_vec()]);
        table.kinds.extend([TokenKind::Text, TokenKind::Text, TokenKind::Unused]);
        table.bytes.push(vec![b'x'; MAX_TOKEN_BYTES]);
        table.kinds.push(TokenKind::Text);
        let n = table.len() as u32;
        // An end id without a token, and one that is text.
        table.end_ids.extend([n - 2, 2]);
        let vocabulary = Vocabulary::new(&table, Arc::new(ToyEncoder));
        let trie = vocabulary.tok_trie();
        assert_eq!(trie.eos_tokens(), [END, 2]);
        assert_eq!(trie.token_id_at_bytes(b"b"), None, "end ids are not text");
        assert_eq!(trie.token_id_at_bytes(b"ab"), None);
        assert_eq!(trie.token_id_at_bytes(&vec![b'x'; MAX_TOKEN_BYTES]), Some(n - 1));
        assert_eq!((trie.token(n - 4), trie.token(n - 3)), (&b""[..], &b""[..]));
        assert!(trie.is_special_token(END));
    }

    /// Writes a space before every text, as SentencePiece does.
    #[derive(Debug)]
    struct SpaceFirst;

    impl TokenEncoder for SpaceFirst {
        fn encode(&self, text: &str, _: bool, out: &mut Vec<u32>) -> weighbridge_core::Result<()> {
            out.extend(format!(" {text}").bytes().map(u32::from));
            Ok(())
        }
    }

    #[test]
    fn forced_bytes_are_written_exactly() {
        let bytes: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
        let kinds = vec![TokenKind::Text; bytes.len()];
        let table = TokenTable { bytes, kinds, end_ids: vec![], bos_id: None };
        let vocabulary = Vocabulary::new(&table, Arc::new(SpaceFirst));
        assert!(vocabulary.tokenize_is_canonical());
        for bytes in [&b"ab"[..], b" ab", "é".as_bytes(), b"\xc3", b"a\xa9b"] {
            let expected: Vec<u32> = bytes.iter().copied().map(u32::from).collect();
            assert_eq!(vocabulary.tokenize_bytes(bytes), expected);
        }
        assert!(
            !Vocabulary::new(&crate::toy::table(None), Arc::new(ToyEncoder))
                .tokenize_is_canonical()
        );
    }
}

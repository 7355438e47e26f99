//! Bytes of tokens to text that is always valid UTF-8.
//!
//! A character may be spread over several tokens; its bytes are held until it is whole. Bytes that
//! can never become a character, and a character that the end cuts, become U+FFFD, in the way of
//! [`String::from_utf8_lossy`], and are counted.

/// Joins bytes to text.
#[derive(Clone, Debug, Default)]
pub struct Detokenizer {
    held: Vec<u8>,
    n_replaced: usize,
}

impl Detokenizer {
    /// Nothing seen yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes and gives the text that is whole.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.held.extend_from_slice(bytes);
        let mut text = String::new();
        loop {
            match std::str::from_utf8(&self.held) {
                Ok(valid) => {
                    text.push_str(valid);
                    self.held.clear();
                    return text;
                }
                Err(error) => {
                    let (valid, rest) = self.held.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    let Some(n_bad) = error.error_len() else {
                        self.held = rest.to_vec();
                        return text;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    self.n_replaced += 1;
                    self.held = rest[n_bad..].to_vec();
                }
            }
        }
    }

    /// Ends the text; a cut character becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        if self.held.is_empty() {
            return String::new();
        }
        self.held.clear();
        self.n_replaced += 1;
        char::REPLACEMENT_CHARACTER.to_string()
    }

    /// Number of U+FFFD put in so far.
    pub fn n_replaced(&self) -> usize {
        self.n_replaced
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_over_several_tokens_comes_out_whole() {
        let mut detokenizer = Detokenizer::new();
        let bytes = "é🙂x".as_bytes();
        let shown: Vec<_> = bytes.iter().map(|b| detokenizer.push(&[*b])).collect();
        assert_eq!(shown, ["", "é", "", "", "", "🙂", "x"]);
        assert_eq!(detokenizer.finish(), "");
        assert_eq!(detokenizer.n_replaced(), 0);
    }

    #[test]
    fn a_cut_character_and_a_stray_byte_are_replaced_and_counted() {
        let mut detokenizer = Detokenizer::new();
        assert_eq!(detokenizer.push(b"a\xffb\xe2\x82"), "a\u{fffd}b");
        assert_eq!(detokenizer.finish(), "\u{fffd}");
        assert_eq!(detokenizer.n_replaced(), 2);
    }
}

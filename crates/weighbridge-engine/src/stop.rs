//! Stop texts on bytes, with hold-back.
//!
//! The rule does not depend on where tokens end: the first stop text to become complete ends the
//! text, and of those that become complete with the same byte the longest. What comes before it is
//! the answer; the stop text itself is never let out.

/// Looks for stop texts in a stream of bytes.
#[derive(Clone, Debug)]
pub struct StopScanner {
    stops: Vec<Vec<u8>>,
    held: Vec<u8>,
}

/// What a push let out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scanned {
    /// Bytes that belong to the text.
    pub bytes: Vec<u8>,
    /// Index of the stop text that was found; nothing may be pushed after it.
    pub matched: Option<usize>,
}

impl StopScanner {
    /// A scanner for these texts; empty ones never match.
    pub fn new<S: AsRef<[u8]>>(stops: impl IntoIterator<Item = S>) -> Self {
        let stops = stops.into_iter().map(|stop| stop.as_ref().to_vec()).collect();
        Self { stops, held: Vec::new() }
    }

    /// Takes the bytes of a token and lets out what can no longer be part of a stop text.
    pub fn push(&mut self, bytes: &[u8]) -> Scanned {
        if self.stops.is_empty() {
            return Scanned { bytes: bytes.to_vec(), matched: None };
        }
        for &byte in bytes {
            self.held.push(byte);
            let complete = self
                .stops
                .iter()
                .enumerate()
                .filter(|(_, stop)| !stop.is_empty() && self.held.ends_with(stop))
                .max_by_key(|(index, stop)| (stop.len(), std::cmp::Reverse(*index)));
            if let Some((index, stop)) = complete {
                self.held.truncate(self.held.len() - stop.len());
                return Scanned { bytes: std::mem::take(&mut self.held), matched: Some(index) };
            }
        }
        let n_out = self.held.len() - self.n_possible();
        Scanned { bytes: self.held.drain(..n_out).collect(), matched: None }
    }

    /// Lets out what was held back: the text ended without a stop text.
    pub fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }

    /// Length of the longest end of what is held that may begin a stop text.
    fn n_possible(&self) -> usize {
        let longest = self.stops.iter().map(Vec::len).max().unwrap_or(0);
        let most = self.held.len().min(longest.saturating_sub(1));
        (1..=most)
            .rev()
            .find(|&n| {
                let end = &self.held[self.held.len() - n..];
                self.stops.iter().any(|stop| stop.len() > n && stop.starts_with(end))
            })
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], chunks: &[&str]) -> (Vec<String>, Option<usize>) {
        let mut scanner = StopScanner::new(stops);
        let mut out = Vec::new();
        for chunk in chunks {
            let scanned = scanner.push(chunk.as_bytes());
            out.push(String::from_utf8(scanned.bytes).unwrap());
            if scanned.matched.is_some() {
                return (out, scanned.matched);
            }
        }
        out.push(String::from_utf8(scanner.finish()).unwrap());
        (out, None)
    }

    #[test]
    fn a_stop_text_over_several_tokens_never_shows() {
        let (out, matched) = run(&["###"], &["a#", "b##", "#c"]);
        assert_eq!(out, ["a", "#b", ""]);
        assert_eq!(matched, Some(0));
    }

    #[test]
    fn what_only_looked_like_a_stop_text_is_let_out() {
        assert_eq!(
            run(&["END"], &["x E", "N", "d"]),
            (vec!["x ".into(), "".into(), "ENd".into(), "".into()], None)
        );
        assert_eq!(run(&["END"], &["EN"]), (vec!["".into(), "EN".into()], None));
    }

    #[test]
    fn the_first_to_become_complete_wins_and_of_these_the_longest() {
        assert_eq!(run(&["abc", "b"], &["xabc"]), (vec!["xa".into()], Some(1)));
        assert_eq!(run(&["b", "ab"], &["xab"]), (vec!["x".into()], Some(1)));
        assert_eq!(run(&["aab"], &["aaa", "ab"]), (vec!["a".into(), "a".into()], Some(0)));
    }
}

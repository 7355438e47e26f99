//! What is asked: prompts of token ids, new in every round, so that no cache of an earlier round
//! helps anybody.

use std::sync::Arc;

use weighbridge_core::{LikelihoodItem, Prompt, TokenId};

/// Ids below these are single bytes, ids above the end tokens are none; every model of the bench
/// has the ones between.
const IDS: std::ops::Range<u32> = 300..49_000;

/// Few-shot examples of a multiple-choice question: five of 80 tokens.
const N_SHOT_TOKENS: usize = 5 * 80;
const N_QUESTION_TOKENS: usize = 60;
/// Tokens of the four options of every question.
const OPTION_LENGTHS: [usize; 4] = [1, 2, 4, 6];

/// Draws token ids. A run draws the same ones every time.
#[derive(Debug)]
pub(crate) struct Draw(u64);

impl Draw {
    pub(crate) fn new() -> Self {
        Self(0)
    }

    /// SplitMix64 (Steele, Lea and Flood 2014).
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A prompt that nobody has seen.
    pub(crate) fn tokens(&mut self, n: usize) -> Vec<TokenId> {
        let span = u64::from(IDS.end - IDS.start);
        (0..n).map(|_| TokenId(IDS.start + (self.next() % span) as u32)).collect()
    }

    /// Prompts that begin with the same `n_shared` tokens and go on with `n_own` each.
    pub(crate) fn sharing(
        &mut self,
        n_prompts: usize,
        n_shared: usize,
        n_own: usize,
    ) -> Vec<Vec<TokenId>> {
        let shared = self.tokens(n_shared);
        (0..n_prompts).map(|_| [shared.clone(), self.tokens(n_own)].concat()).collect()
    }

    /// Text of exactly `n` tokens: the vocabulary has every digit and no merge of digits.
    fn digits(&mut self, n: usize) -> String {
        (0..n).map(|_| char::from(b'0' + (self.next() % 10) as u8)).collect()
    }

    /// A continuation of exactly `n_scored` tokens in its context.
    pub(crate) fn item(&mut self, context: Vec<TokenId>, n_scored: usize) -> LikelihoodItem {
        LikelihoodItem::new(Arc::new(Prompt::Tokens(context)), self.digits(n_scored))
    }

    /// Multiple-choice questions behind the same few-shot examples: the options of each in its
    /// context.
    pub(crate) fn questions(&mut self, n: usize) -> Vec<Vec<LikelihoodItem>> {
        let contexts = self.sharing(n, N_SHOT_TOKENS, N_QUESTION_TOKENS);
        let questions = contexts.into_iter().map(|context| {
            let context = Arc::new(Prompt::Tokens(context));
            OPTION_LENGTHS
                .map(|n| LikelihoodItem::new(Arc::clone(&context), self.digits(n)))
                .to_vec()
        });
        questions.collect()
    }

    /// Options of such questions, each with a full prompt of its own: the lengths are the same,
    /// but already the first token of each differs.
    pub(crate) fn lone_options(&mut self, n_questions: usize) -> Vec<Vec<LikelihoodItem>> {
        let lengths = (0..n_questions).flat_map(|_| OPTION_LENGTHS);
        let options = lengths.map(|n| {
            let context = self.tokens(N_SHOT_TOKENS + N_QUESTION_TOKENS);
            vec![self.item(context, n)]
        });
        options.collect()
    }
}

/// Options of a question.
pub(crate) const N_OPTIONS: usize = OPTION_LENGTHS.len();
/// Tokens of an option with its full prompt, in the mean.
pub(crate) const N_FULL_PROMPT_TOKENS: f64 = {
    let [a, b, c, d] = OPTION_LENGTHS;
    (N_SHOT_TOKENS + N_QUESTION_TOKENS) as f64 + (a + b + c + d) as f64 / N_OPTIONS as f64
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_share_what_they_should_and_nothing_is_drawn_twice() {
        let mut draw = Draw::new();
        let first = draw.sharing(2, 50, 10);
        assert_eq!(first[0].len(), 60);
        assert_eq!(first[0][..50], first[1][..50]);
        assert_ne!(first[0][50..], first[1][50..]);
        let second = draw.sharing(2, 50, 10);
        assert_ne!(first[0][..50], second[0][..50]);
        assert!(first[0].iter().all(|id| IDS.contains(&id.0)));
    }

    #[test]
    fn lone_options_are_as_long_as_those_that_share_a_context() {
        let lengths = |questions: Vec<Vec<LikelihoodItem>>| -> Vec<(usize, usize)> {
            let items = questions.iter().flatten().map(|item| match &*item.context {
                Prompt::Tokens(tokens) => (tokens.len(), item.continuation.len()),
                other => panic!("{other:?}"),
            });
            items.collect()
        };
        let mut draw = Draw::new();
        assert_eq!(lengths(draw.questions(3)), lengths(draw.lone_options(3)));
    }
}

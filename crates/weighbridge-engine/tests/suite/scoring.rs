//! Log-probabilities of given texts, and the toy engine against brute force.

use std::sync::Arc;

use weighbridge_core::{
    Backend, ErrorKind, Likelihood, LikelihoodItem, LikelihoodRequest, Message, Prompt, Request,
    Result, block_on,
};
use weighbridge_engine::EngineOptions;
use weighbridge_engine::logits::{Fork, Input, LogitsEngine, SeqId, Span, Truncate, Want};
use weighbridge_engine::toy::{N_VOCAB, ToyCounters, ToyEngine, ToyOptions, row, weight};

use crate::support::{TEMPLATE, Toy, complete, open, text, tokens, toy};

fn score(backend: &dyn Backend, items: &[(&str, &str)], top: u8) -> Result<Vec<Likelihood>> {
    let mut contexts: Vec<Arc<Prompt>> = Vec::new();
    let items = items.iter().map(|(context, continuation)| {
        let context = Prompt::Text((*context).to_owned());
        let shared = contexts.iter().find(|known| ***known == context).cloned();
        let context = shared.unwrap_or_else(|| {
            contexts.push(Arc::new(context));
            contexts[contexts.len() - 1].clone()
        });
        LikelihoodItem::new(context, *continuation)
    });
    let mut request = LikelihoodRequest::new(items.collect());
    request.top = top;
    block_on(backend.log_likelihood(&request))
}

/// `ln p(token | after)` straight from the toy's weights.
pub(crate) fn logprob(after: u32, token: u32) -> f64 {
    let sum: f64 = (0..N_VOCAB).map(|t| f64::from(weight(after, t)).exp()).sum();
    f64::from(weight(after, token)) - sum.ln()
}

fn ids(text: &str) -> Vec<u32> {
    text.bytes().map(|b| u32::from(b - b'a') + 1).collect()
}

#[test]
fn likelihoods_are_those_worked_out_from_the_weights() {
    let toy = toy();
    let scored = score(&*toy.backend, &[("ab", "ehk"), ("ab", "zz"), ("c", "f")], 3).unwrap();
    let chain = |text: &str, skip: usize| -> Vec<f64> {
        let ids = ids(text);
        ids.windows(2).skip(skip - 1).map(|pair| logprob(pair[0], pair[1])).collect()
    };
    for (likelihood, (text, skip)) in scored.iter().zip([("abehk", 2), ("abzz", 2), ("cf", 1)]) {
        let want = chain(text, skip);
        assert_eq!(likelihood.tokens.len(), want.len());
        for (token, want) in likelihood.tokens.iter().zip(&want) {
            assert!((token.logprob.unwrap() - want).abs() < 1e-12);
        }
        assert!((likelihood.sum - want.iter().sum::<f64>()).abs() < 1e-12);
    }
    assert!(scored[0].is_greedy, "e after b, h after e, k after h");
    assert!(!scored[1].is_greedy);
    assert_eq!(scored[0].tokens[0].rank, Some(0));
    assert_eq!(scored[0].tokens[0].top.len(), 3);
    assert_eq!(scored[0].tokens[0].top[0].bytes, b"e");
    assert_eq!(scored[0].usage.n_prompt_tokens, Some(5));
    assert_eq!(scored[0].usage.n_cached_tokens, Some(0));
    assert_eq!(scored[1].usage.n_cached_tokens, Some(2), "the context was there already");
}

#[test]
fn a_first_token_with_nothing_before_it_has_no_logprob() {
    let toy = toy();
    let scored = score(&*toy.backend, &[("", "de"), ("", "d"), ("", "")], 0).unwrap();
    assert_eq!(scored[0].tokens[0].logprob, None);
    assert!((scored[0].tokens[1].logprob.unwrap() - logprob(4, 5)).abs() < 1e-12);
    assert_eq!(scored[1].tokens.len(), 1);
    assert_eq!(scored[1].sum, 0.0);
    assert!(scored[2].tokens.is_empty());
    let options = ToyOptions { bos_id: Some(3), ..ToyOptions::default() };
    let toy = open(options, EngineOptions::new("toy"));
    let scored = score(&*toy.backend, &[("", "d")], 0).unwrap();
    assert!((scored[0].tokens[0].logprob.unwrap() - logprob(3, 4)).abs() < 1e-12);
}

#[test]
fn every_kind_of_engine_gives_the_same_likelihoods() {
    let items = [
        ("hello world", "abc"),
        ("hello world", "abd"),
        ("hello world", "a"),
        ("other", "the quick brown fox"),
        ("hello world", "zebra"),
        ("", "xyz"),
        ("other", "the lazy dog"),
    ];
    let toy = toy();
    let want = score(&*toy.backend, &items, 2).unwrap();
    for all_rows in [true, false] {
        for truncate in [Truncate::Any, Truncate::Last(2), Truncate::No] {
            for (max_feed, max_rows) in [(256, 256), (256, 2), (5, 1), (1, 1)] {
                let mut options = ToyOptions::default();
                options.caps.all_rows = all_rows;
                options.caps.truncate = truncate;
                options.caps.max_feed = max_feed;
                options.caps.max_rows = max_rows;
                let toy = open(options, EngineOptions::new("toy"));
                let scored = score(&*toy.backend, &items, 2).unwrap();
                for (scored, want) in scored.iter().zip(&want) {
                    assert_eq!(scored.tokens, want.tokens, "{all_rows} {truncate:?} {max_feed}");
                }
            }
        }
    }
}

#[test]
fn an_equal_context_is_fed_once() {
    let toy = toy();
    let context = "a context of some length";
    let answers = ["yes", "no", "maybe", "y"];
    let items: Vec<_> = answers.iter().map(|answer| (context, *answer)).collect();
    score(&*toy.backend, &items, 0).unwrap();
    let n_answers: usize = answers.iter().map(|a| a.len() - 1).sum();
    assert_eq!(toy.counters.n_tokens(), context.len() + n_answers);
}

#[test]
fn generated_logprobs_are_the_likelihoods_of_the_same_text() {
    let toy = toy();
    let mut request = text("abc").with_max_tokens(20).with_logprobs(4);
    request.sampling.temperature = Some(0.7);
    request.sampling.top_k = Some(9);
    request.sampling.repetition_penalty = Some(1.2);
    // No end, and no half characters: the text has to be encoded again.
    request.sampling.logit_bias =
        [0, 31, 32].map(|id| (weighbridge_core::TokenId(id), f32::NEG_INFINITY)).into();
    let completion = complete(&*toy.backend, &request);
    let generated = completion.logprobs.unwrap();
    let prompt = Arc::new(tokens(&ids("abc")));
    let continuation: Vec<u8> = generated.iter().flat_map(|t| t.bytes.clone()).collect();
    let item = LikelihoodItem::new(prompt, String::from_utf8(continuation).unwrap());
    let mut likelihood = LikelihoodRequest::new(vec![item]);
    likelihood.top = 4;
    let scored = block_on(toy.backend.log_likelihood(&likelihood)).unwrap();
    assert_eq!(scored[0].tokens, generated);
}

#[test]
fn a_chat_context_ends_with_the_generation_prompt() {
    let options = ToyOptions { chat_template: Some(TEMPLATE.to_owned()), ..ToyOptions::default() };
    let toy = open(options, EngineOptions::new("toy"));
    let context = Arc::new(Prompt::Chat(vec![Message::user("hi")]));
    let request = LikelihoodRequest::new(vec![LikelihoodItem::new(context, "d")]);
    let scored = block_on(toy.backend.log_likelihood(&request)).unwrap();
    // The prompt ends with a space, which has the id 27.
    assert!((scored[0].tokens[0].logprob.unwrap() - logprob(27, 4)).abs() < 1e-12);
    assert!(scored[0].effective.values.contains_key("template_sha256"));
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut options = ToyOptions::default();
    options.caps.ctx_per_seq = 8;
    let Toy { backend, counters } = open(options, EngineOptions::new("toy"));
    let error = score(&*backend, &[("abcd", "ef"), ("abcd", "efghi")], 0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ContextOverflow);
    assert_eq!(counters.n_feeds(), 0);
    assert_eq!(score(&*backend, &[("abcd", "efgh")], 0).unwrap()[0].tokens.len(), 4);
    assert!(score(&*backend, &[], 0).unwrap().is_empty());
}

fn feed(engine: &mut ToyEngine, seq: u32, tokens: &[u32], want: Want) -> Vec<(u32, Vec<f32>)> {
    let mut rows = Vec::new();
    let pos = engine.len(SeqId(seq));
    let span = Span { seq: SeqId(seq), pos, tokens: Input::Tokens(tokens), want };
    engine.feed(&[span], &mut |_, pos, row: &[f32]| rows.push((pos, row.to_vec()))).unwrap();
    rows
}

#[test]
fn truncate_and_fork_equal_feeding_from_scratch() {
    let mut engine = ToyEngine::new(ToyOptions::default(), ToyCounters::default());
    let all: Vec<u32> = (1..=30).collect();
    feed(&mut engine, 0, &all, Want::None);
    assert_eq!(engine.fork(SeqId(0), SeqId(1), 12).unwrap(), 12);
    assert_eq!(engine.truncate(SeqId(0), 20).unwrap(), 20);
    assert_eq!(engine.truncate(SeqId(0), 25).unwrap(), 20);
    for (seq, kept) in [(0, 20), (1, 12)] {
        let rows = feed(&mut engine, seq, &[5, 9, 2], Want::From(1));
        let want: Vec<_> =
            [(kept + 1, 9), (kept + 2, 2)].map(|(pos, t)| (pos, row(t, N_VOCAB as usize))).into();
        assert_eq!(rows, want);
        assert_eq!(engine.len(SeqId(seq)), kept + 3);
    }
    engine.release(SeqId(0));
    assert_eq!(engine.len(SeqId(0)), 0);
    let mut options = ToyOptions::default();
    options.caps.truncate = Truncate::Last(4);
    options.caps.fork = Fork::No;
    let mut engine = ToyEngine::new(options, ToyCounters::default());
    feed(&mut engine, 0, &all, Want::None);
    assert_eq!(engine.truncate(SeqId(0), 27).unwrap(), 27);
    assert_eq!(engine.truncate(SeqId(0), 20).unwrap(), 0, "too far back: all is gone");
    assert_eq!(engine.fork(SeqId(0), SeqId(1), 0).unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn requests_of_both_kinds_run_side_by_side() {
    let toy = toy();
    let want = score(&*toy.backend, &[("hello", "world")], 0).unwrap();
    std::thread::scope(|scope| {
        for n in 0..16 {
            let (toy, want) = (&toy, &want);
            scope.spawn(move || {
                if n % 2 == 0 {
                    let scored = score(&*toy.backend, &[("hello", "world")], 0).unwrap();
                    assert_eq!(scored[0].tokens, want[0].tokens);
                } else {
                    let request: Request = text("a").with_max_tokens(9);
                    assert_eq!(complete(&*toy.backend, &request).text, "dgjmpsvy.");
                }
            });
        }
    });
}

//! What this engine promises the decode loop: however the tokens are cut into feeds, cut back,
//! copied or batched, a position has the same logits: bit for bit with the plugin's own kernels, and
//! up to the order of sums with candle's.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::*;
use weighbridge_candle::CandleEngine;
use weighbridge_core::ErrorKind;
use weighbridge_engine::logits::{Input, LogitsEngine, SeqId, Span, Want};

/// How far logits may be apart with candle's kernels, whose sums run in another order for each number
/// of rows.
const MOST_APART: f32 = 1e-4;

/// A text of token ids, the same in each run.
fn text(seed: u32, n: usize) -> Vec<u32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            3 + (state >> 16) % 190
        })
        .collect()
}

/// A model and what computes it.
struct Case {
    name: &'static str,
    kernels: Kernels,
}

impl Case {
    fn engine(&self) -> CandleEngine {
        match TINY.contains(&self.name) {
            true => tiny(self.name, self.kernels),
            false => fixture(self.name, self.kernels),
        }
    }

    #[track_caller]
    fn assert_same(&self, got: &[Vec<f32>], expected: &[Vec<f32>], what: &str) {
        let worst = difference(got, expected);
        let Self { name, kernels } = self;
        match kernels {
            Kernels::Own => assert_eq!(worst, 0.0, "{name}: {what}"),
            Kernels::Candle => assert!(worst < MOST_APART, "{name}: {what}: {worst}"),
        }
    }
}

/// Tiny models and one that was trained.
fn each_model(check: impl Fn(&Case, &mut CandleEngine)) {
    for kernels in Kernels::ALL {
        for name in TINY.into_iter().chain(["triage-open"]) {
            let case = Case { name, kernels };
            check(&case, &mut case.engine());
        }
    }
}

#[test]
fn chunks_of_a_prompt_do_not_change_it() {
    each_model(|case, engine| {
        let tokens = text(1, 100);
        let whole = all_rows(engine, &tokens, 100);
        for chunk in [1, 2, 3, 7, 64] {
            let what = format!("chunks of {chunk}");
            case.assert_same(&all_rows(engine, &tokens, chunk), &whole, &what);
        }
        engine.release(SeqId(0));
        assert!(feed(engine, 0, &tokens[..60], Want::None).is_empty());
        let last = feed(engine, 0, &tokens[60..], Want::Last);
        case.assert_same(&last, &whole[99..], "the last row");
    });
}

#[test]
fn a_cut_sequence_continues_as_one_that_was_never_longer() {
    each_model(|case, engine| {
        let (tokens, other) = (text(2, 60), text(3, 30));
        feed(engine, 0, &tokens, Want::None);
        for len in [59, 31, 8, 1] {
            assert_eq!(engine.truncate(SeqId(0), len).unwrap(), len);
            let continued = feed(engine, 0, &other, Want::All);
            let mut scratch = tokens[..len as usize].to_vec();
            scratch.extend(&other);
            engine.release(SeqId(1));
            let expected = feed(engine, 1, &scratch, Want::From(len as usize));
            case.assert_same(&continued, &expected, &format!("cut at {len}"));
            assert_eq!(engine.truncate(SeqId(0), len).unwrap(), len);
            feed(engine, 0, &tokens[len as usize..], Want::None);
        }
        assert_eq!(engine.truncate(SeqId(0), 1000).unwrap(), 60);
        assert_eq!(engine.truncate(SeqId(0), 0).unwrap(), 0);
        assert_eq!(engine.len(SeqId(0)), 0);
    });
}

#[test]
fn a_fork_lives_its_own_life() {
    each_model(|case, engine| {
        let (tokens, a, b) = (text(4, 50), text(5, 20), text(6, 20));
        feed(engine, 0, &tokens, Want::None);
        feed(engine, 3, &b, Want::None);
        assert_eq!(engine.fork(SeqId(0), SeqId(3), 40).unwrap(), 40);
        assert_eq!(engine.len(SeqId(3)), 40);
        let in_fork = feed(engine, 3, &a, Want::All);
        let in_source = feed(engine, 0, &b, Want::All);
        let expected_fork = all_rows(&mut case.engine(), &[&tokens[..40], &a].concat(), 256);
        let expected_source = all_rows(&mut case.engine(), &[&tokens[..], &b].concat(), 256);
        case.assert_same(&in_fork, &expected_fork[40..], "the fork");
        case.assert_same(&in_source, &expected_source[50..], "the source");
        assert_eq!(engine.fork(SeqId(0), SeqId(3), 1000).unwrap(), 70);
        assert_eq!(engine.fork(SeqId(0), SeqId(0), 10).unwrap(), 10);
        assert_eq!(engine.fork(SeqId(9), SeqId(3), 10).unwrap(), 0);
        assert_eq!(engine.len(SeqId(3)), 0);
    });
}

#[test]
fn ragged_batches_equal_single_sequences() {
    each_model(|case, engine| {
        let texts: Vec<Vec<u32>> =
            (0..6).map(|i| text(10 + i, [1, 40, 3, 25, 16, 70][i as usize])).collect();
        let singles: Vec<Vec<Vec<f32>>> =
            texts.iter().map(|tokens| all_rows(engine, tokens, 256)).collect();
        engine.release(SeqId(0));
        // Different chunks and different wants in each feed, until all are through.
        let chunks = [1, 9, 1, 4, 16, 23];
        let mut got: Vec<Vec<Option<Vec<f32>>>> =
            texts.iter().map(|tokens| vec![None; tokens.len()]).collect();
        for round in 0.. {
            let mut spans = Vec::new();
            for (i, tokens) in texts.iter().enumerate() {
                let seq = SeqId(2 * i as u32 + 1);
                let pos = engine.len(seq);
                let rest = &tokens[pos as usize..];
                let part = &rest[..rest.len().min(chunks[i])];
                let want = [Want::All, Want::Last, Want::None, Want::From(2)][(round + i) % 4];
                if !part.is_empty() {
                    spans.push((i, Span { seq, pos, tokens: Input::Tokens(part), want }));
                }
            }
            if spans.is_empty() {
                break;
            }
            let only: Vec<Span<'_>> = spans.iter().map(|(_, span)| *span).collect();
            let mut order = Vec::new();
            engine
                .feed(&only, &mut |span_idx: usize, pos: u32, row: &[f32]| {
                    order.push((span_idx, pos));
                    got[spans[span_idx].0][pos as usize] = Some(row.to_vec());
                })
                .unwrap();
            let expected: Vec<(usize, u32)> = only
                .iter()
                .enumerate()
                .flat_map(|(i, s)| {
                    (s.want.first(s.len())..s.len()).map(move |k| (i, s.pos + k as u32))
                })
                .collect();
            assert_eq!(order, expected);
        }
        let mut n_compared = 0;
        for (got, single) in got.iter().zip(&singles) {
            for (got, single) in got.iter().zip(single) {
                if let Some(got) = got {
                    n_compared += 1;
                    use std::slice::from_ref;
                    case.assert_same(from_ref(got), from_ref(single), "in company");
                }
            }
        }
        assert!(n_compared > 40, "{n_compared}");
    });
}

#[test]
fn the_same_feeds_give_the_same_bits() {
    let tokens = text(7, 90);
    for kernels in Kernels::ALL {
        let run = || all_rows(&mut tiny("llama-gqa-tied", kernels), &tokens, 30);
        assert_eq!(run(), run(), "{kernels:?}");
    }
}

#[test]
fn broken_rules_are_errors_and_change_nothing() {
    Kernels::ALL.into_iter().for_each(rules_hold);
}

fn rules_hold(kernels: Kernels) {
    let mut engine = tiny("llama-gqa-tied", kernels);
    feed(&mut engine, 0, &[5, 6, 7], Want::None);
    let long = vec![5u32; 126];
    let cases: [(u32, u32, &[u32], Want, &str); 6] = [
        (0, 2, &[5], Want::Last, "does not start where its sequence ends"),
        (0, 4, &[5], Want::Last, "does not start where its sequence ends"),
        (0, 3, &[199], Want::Last, "token id 199 is out of range"),
        (0, 3, &[4, u32::MAX], Want::Last, "token id 4294967295 is out of range"),
        (16, 0, &[5], Want::Last, "sequence 16 is out of range"),
        (0, 3, &long, Want::Last, "would exceed the context"),
    ];
    let mut refused = |spans: &[Span<'_>], expected: &str| {
        let error =
            engine.feed(spans, &mut |_: usize, _: u32, _: &[f32]| panic!("a row")).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(engine.len(SeqId(0)), 3);
        error.kind()
    };
    for (seq, pos, tokens, want, expected) in cases {
        let span = Span { seq: SeqId(seq), pos, tokens: Input::Tokens(tokens), want };
        assert_eq!(refused(&[span], expected), ErrorKind::Engine);
    }
    let span = Span { seq: SeqId(0), pos: 3, tokens: Input::Tokens(&[5]), want: Want::Last };
    refused(&[span, span], "two spans in one feed");
    let many: Vec<Span<'_>> = (1..6)
        .map(|seq| Span { seq: SeqId(seq), pos: 0, tokens: Input::Tokens(&long), want: Want::None })
        .collect();
    refused(&many, "too many positions in one feed");
    let rows: Vec<Span<'_>> = many.iter().take(3).map(|s| Span { want: Want::All, ..*s }).collect();
    refused(&rows, "too many rows in one feed");
    let embeddings = Input::Embeddings { values: &[0.0; 48], n_embd: 48 };
    let kind = refused(&[Span { tokens: embeddings, ..span }], "candle takes tokens only");
    assert_eq!(kind, ErrorKind::Unsupported);
    // After all of that it still computes.
    let row = feed(&mut engine, 0, &[8], Want::Last);
    let expected = all_rows(&mut tiny("llama-gqa-tied", kernels), &[5, 6, 7, 8], 4);
    let case = Case { name: "llama-gqa-tied", kernels };
    case.assert_same(&row, &expected[3..], "after refusals");
    engine.feed(&[], &mut |_: usize, _: u32, _: &[f32]| panic!("a row")).unwrap();
    assert!(feed(&mut engine, 0, &[], Want::All).is_empty());
}

//! What this engine promises the decode loop: however the tokens are cut into feeds, cut back,
//! copied or batched, a position has the same logits: bit for bit with the plugin's own kernels, and
//! up to the order of sums with candle's.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::ops::Range;

use common::*;
use weighbridge_core::ErrorKind;
use weighbridge_engine::logits::{Input, LogitsEngine, SeqId, Span, Want};
use weighbridge_testkit::engine::{Subject, all_rows, difference, feed, text};

/// Token ids that every model of these tests has.
const IDS: Range<u32> = 3..193;

/// How far logits may be apart: with candle's kernels sums run in another order for each number of
/// rows.
fn tolerance(kernels: Kernels) -> f32 {
    match kernels {
        Kernels::Own => 0.0,
        Kernels::Candle => 1e-4,
    }
}

/// Holds tiny models and one that was trained to a law.
fn each_model(law: impl Fn(Subject<'_>)) {
    for kernels in Kernels::ALL {
        for name in TINY.into_iter().chain(["triage-open"]) {
            let mut engine = match TINY.contains(&name) {
                true => tiny(name, kernels),
                false => fixture(name, kernels),
            };
            let name = format!("{name}, {kernels:?}");
            law(Subject {
                engine: &mut engine,
                name: &name,
                tolerance: tolerance(kernels),
                ids: IDS,
            });
        }
    }
}

#[test]
fn chunks_of_a_prompt_do_not_change_it() {
    each_model(|mut subject| subject.chunks_of_a_prompt_do_not_change_it());
}

#[test]
fn a_cut_sequence_continues_as_one_that_was_never_longer() {
    each_model(|mut subject| subject.a_cut_sequence_continues_as_one_that_was_never_longer());
}

#[test]
fn a_fork_lives_its_own_life() {
    each_model(|mut subject| subject.a_fork_lives_its_own_life());
}

#[test]
fn ragged_batches_equal_single_sequences() {
    each_model(|mut subject| subject.ragged_batches_equal_single_sequences());
}

#[test]
fn the_same_feeds_give_the_same_bits() {
    let tokens = text(&IDS, 7, 90);
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
    assert!(difference(&row, &expected[3..]) <= tolerance(kernels), "{kernels:?}");
    engine.feed(&[], &mut |_: usize, _: u32, _: &[f32]| panic!("a row")).unwrap();
    assert!(feed(&mut engine, 0, &[], Want::All).is_empty());
}

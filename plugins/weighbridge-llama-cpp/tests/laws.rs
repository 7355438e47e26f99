//! What this engine promises the decode loop, for models that attend to everything, through sliding
//! windows, and with a recurrent state; and what llama.cpp leaves to its caller.
//!
//! llama.cpp chooses its kernels by the shape of a batch, and its tables of activations are in F16,
//! so equal positions are compared within a tolerance and not bit for bit. The logits are tens, and
//! a token or a position that is wrong changes them by more than 1.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::{Path, PathBuf};

use common::*;
use serde_json::json;
use weighbridge_core::ErrorKind;
use weighbridge_engine::loader::TextModel;
use weighbridge_engine::logits::{
    Fork, Input, LogitsEngine, SeqId, SnapshotKind, Span, Truncate, Want,
};
use weighbridge_testkit::engine::{Subject, all_rows, difference, feed};

/// Largest difference of a logit.
const TOLERANCE: f32 = 5e-2;

/// F32 and F16 weights, windows of 8 positions.
fn attention_models() -> [PathBuf; 2] {
    [data("gemma2.gguf"), triage("triage-open")]
}

fn every_model() -> Vec<PathBuf> {
    let mut models = attention_models().to_vec();
    models.push(data("mamba.gguf"));
    models
}

#[track_caller]
fn assert_close(got: &[Vec<f32>], expected: &[Vec<f32>], what: &str) {
    let worst = difference(got, expected);
    assert!(worst < TOLERANCE, "{what}: {worst}");
}

/// With flash attention where llama.cpp chooses it, as users have it.
fn with<T>(path: &Path, work: impl FnOnce(&TextModel, &mut dyn LogitsEngine) -> T) -> T {
    try_with(path, &context(json!({"kv_type": "f32"})), work).unwrap()
}

/// Holds these models to a law.
fn each(paths: &[PathBuf], law: impl Fn(Subject<'_>)) {
    for path in paths {
        let name = shown(path);
        with(path, |_, engine| {
            law(Subject { engine, name: &name, tolerance: TOLERANCE, ids: IDS });
        });
    }
}

fn shown(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

#[test]
fn chunks_of_a_prompt_do_not_change_it() {
    each(&every_model(), |mut subject| subject.chunks_of_a_prompt_do_not_change_it());
}

#[test]
fn a_cut_sequence_continues_as_one_that_was_never_longer() {
    each(&attention_models(), |mut subject| {
        assert_eq!(subject.engine.caps().truncate, Truncate::Any);
        subject.a_cut_sequence_continues_as_one_that_was_never_longer();
    });
}

#[test]
fn a_fork_lives_its_own_life() {
    each(&attention_models(), |mut subject| {
        assert_eq!(subject.engine.caps().fork, Fork::Shared);
        subject.a_fork_lives_its_own_life();
    });
}

#[test]
fn a_recurrent_state_is_kept_or_dropped_as_a_whole() {
    with(&data("mamba.gguf"), |_, engine| {
        let caps = engine.caps().clone();
        assert_eq!((caps.truncate, caps.snapshot), (Truncate::No, SnapshotKind::Checkpoint));
        assert_eq!(caps.max_seqs, 8);
        let (tokens, a) = (text(7, 30), text(8, 10));
        let expected = all_rows(engine, &[&tokens[..], &a].concat(), 256);
        engine.release(SeqId(0));
        feed(engine, 0, &tokens, Want::None);
        assert_eq!(engine.fork(SeqId(0), SeqId(1), 29).unwrap(), 0);
        assert_eq!(engine.fork(SeqId(0), SeqId(1), 30).unwrap(), 30);
        assert_close(&feed(engine, 1, &a, Want::All), &expected[30..], "fork");
        assert_close(&feed(engine, 0, &a, Want::All), &expected[30..], "source");
        assert_eq!(engine.truncate(SeqId(0), 40).unwrap(), 40);
        assert_eq!(engine.truncate(SeqId(0), 39).unwrap(), 0);
        assert_eq!(engine.len(SeqId(0)), 0);
        assert_close(&all_rows(engine, &tokens, 256), &expected[..30], "again");
    });
}

#[test]
fn a_snapshot_goes_on_from_where_it_was_taken() {
    let mut of_another = None;
    for path in every_model() {
        with(&path, |_, engine| {
            let (tokens, a) = (text(9, 40), text(10, 15));
            let expected = all_rows(engine, &[&tokens[..], &a].concat(), 256);
            engine.release(SeqId(0));
            feed(engine, 0, &tokens, Want::None);
            let kept = engine.snapshot(SeqId(0)).unwrap();
            assert_eq!(kept.len, 40);
            assert!(kept.n_bytes > 40, "{}", kept.n_bytes);
            feed(engine, 0, &text(11, 9), Want::None);
            feed(engine, 4, &text(12, 9), Want::None);
            for seq in [0, 4] {
                engine.restore(SeqId(seq), &kept).unwrap();
                assert_eq!(engine.len(SeqId(seq)), 40);
                let rows = feed(engine, seq, &a, Want::All);
                assert_close(&rows, &expected[40..], &shown(&path));
            }
            let empty = engine.snapshot(SeqId(5)).unwrap();
            engine.restore(SeqId(4), &empty).unwrap();
            assert_eq!((empty.len, engine.len(SeqId(4))), (0, 0));
            if let Some(kept) = &of_another {
                let error = engine.restore(SeqId(4), kept).unwrap_err();
                assert!(error.to_string().contains("not one of this engine"), "{error}");
            }
            of_another = Some(kept);
        });
    }
}

#[test]
fn ragged_batches_equal_single_sequences() {
    each(&every_model(), |mut subject| subject.ragged_batches_equal_single_sequences());
}

#[test]
fn broken_rules_are_errors_and_change_nothing() {
    let options = json!({"n_ctx": 128, "n_batch": 200, "kv_type": "f32"});
    try_with(&triage("triage-open"), &context(options), |_, engine| {
        let n_vocab = engine.caps().n_vocab;
        assert_eq!((engine.caps().max_feed, engine.caps().max_rows), (200, 200));
        feed(engine, 0, &[5, 6, 7], Want::None);
        let long = vec![5u32; 126];
        let cases: [(u32, u32, &[u32], &str); 7] = [
            (0, 2, &[5], "does not start where its sequence ends"),
            (0, 4, &[5], "does not start where its sequence ends"),
            (0, 3, &[n_vocab], "token id 1152 is out of range"),
            (0, 3, &[4, u32::MAX], "token id 4294967295 is out of range"),
            (64, 0, &[5], "sequence 64 is out of range"),
            (u32::MAX, 0, &[5], "sequence 4294967295 is out of range"),
            (0, 3, &long, "would exceed the context"),
        ];
        let refused = |engine: &mut dyn LogitsEngine, spans: &[Span<'_>], expected: &str| {
            let error =
                engine.feed(spans, &mut |_: usize, _: u32, _: &[f32]| panic!("a row")).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
            assert_eq!(engine.len(SeqId(0)), 3);
            error.kind()
        };
        for (seq, pos, tokens, expected) in cases {
            let want = Want::Last;
            let span = Span { seq: SeqId(seq), pos, tokens: Input::Tokens(tokens), want };
            assert_eq!(refused(engine, &[span], expected), ErrorKind::Engine);
        }
        let span = Span { seq: SeqId(0), pos: 3, tokens: Input::Tokens(&[5]), want: Want::Last };
        refused(engine, &[span, span], "two spans in one feed");
        let other = |seq| Span {
            seq: SeqId(seq),
            pos: 0,
            tokens: Input::Tokens(&long[..100]),
            want: Want::None,
        };
        refused(engine, &[other(1), other(2), other(3)], "too many positions in one feed");
        let embeddings = Input::Embeddings { values: &[0.0; 96], n_embd: 96 };
        let kind = refused(engine, &[Span { tokens: embeddings, ..span }], "takes tokens only");
        assert_eq!(kind, ErrorKind::Unsupported);
        for seq in [64, 256, u32::MAX] {
            let seq = SeqId(seq);
            assert_eq!(engine.len(seq), 0);
            assert!(engine.truncate(seq, 0).is_err());
            assert!(engine.fork(SeqId(0), seq, 1).is_err());
            assert!(engine.fork(seq, SeqId(0), 1).is_err());
            assert!(engine.snapshot(seq).is_err());
            engine.release(seq);
        }
        // After all of that it still computes.
        let row = feed(engine, 0, &[8], Want::Last);
        let expected = all_rows(engine, &[5, 6, 7, 8], 4);
        assert_close(&row, &expected[3..], "after errors");
        engine.feed(&[], &mut |_: usize, _: u32, _: &[f32]| panic!("a row")).unwrap();
        assert!(feed(engine, 0, &[], Want::All).is_empty());
    })
    .unwrap();
}

#[test]
fn rows_are_counted() {
    let options = json!({"n_batch": 400});
    try_with(&triage("triage-open"), &context(options), |_, engine| {
        assert_eq!((engine.caps().max_feed, engine.caps().max_rows), (400, 256));
        let tokens = text(30, 300);
        let mut feed_all = |want| {
            let span = Span { seq: SeqId(0), pos: 0, tokens: Input::Tokens(&tokens), want };
            let mut n_rows = 0;
            let fed = engine.feed(&[span], &mut |_: usize, _: u32, _: &[f32]| n_rows += 1);
            fed.map(|()| n_rows)
        };
        let error = feed_all(Want::All).unwrap_err();
        assert!(error.to_string().contains("too many rows in one feed"), "{error}");
        assert_eq!(feed_all(Want::From(44)).unwrap(), 256);
    })
    .unwrap();
}

#[test]
fn a_full_cache_is_an_error_that_leaves_everything_as_it_was() {
    let options = json!({"n_ctx": 200, "n_ctx_total": 256, "kv_type": "f32"});
    try_with(&triage("triage-open"), &context(options), |_, engine| {
        assert_eq!((engine.caps().ctx_total, engine.caps().ctx_per_seq), (256, 200));
        let tokens = text(31, 200);
        feed(engine, 0, &tokens, Want::None);
        // A fork takes no room.
        assert_eq!(engine.fork(SeqId(0), SeqId(1), 150).unwrap(), 150);
        feed(engine, 1, &tokens[..50], Want::None);
        let span =
            Span { seq: SeqId(2), pos: 0, tokens: Input::Tokens(&tokens[..7]), want: Want::Last };
        let error =
            engine.feed(&[span], &mut |_: usize, _: u32, _: &[f32]| panic!("a row")).unwrap_err();
        assert!(error.to_string().contains("no room for these positions"), "{error}");
        let lens: Vec<u32> = (0..3).map(|seq| engine.len(SeqId(seq))).collect();
        assert_eq!(lens, [200, 200, 0]);
        engine.release(SeqId(0));
        let row = feed(engine, 2, &tokens[..7], Want::Last);
        engine.release(SeqId(1));
        let expected = feed(engine, 3, &tokens[..7], Want::Last);
        assert_close(&row, &expected, "after it was full");
    })
    .unwrap();
}

#[test]
fn quantized_keys_and_values_stay_close() {
    let tokens = text(32, 64);
    let rows = |kv_type: &str| {
        let options = json!({"kv_type": kv_type});
        try_with(&triage("triage-open"), &context(options), |_, engine| {
            all_rows(engine, &tokens, 64)
        })
        .unwrap()
    };
    let exact = rows("f32");
    let [half, eight, four] = ["f16", "q8_0", "q4_0"].map(|name| difference(&rows(name), &exact));
    assert!(half < eight && eight < four, "{half} {eight} {four}");
    assert!(half < 0.05 && four < 5.0, "{half} {four}");
}

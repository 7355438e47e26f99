//! Loading: what the card and the vocabulary say, damaged files, cancelling, several models at once.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Barrier, Mutex};

use common::*;
use serde_json::{Value, json};
use weighbridge_core::{Error, ErrorKind, OpenContext, Placement, Weights};
use weighbridge_engine::logits::{SeqId, Want};
use weighbridge_engine::tokens::TokenKind;
use weighbridge_testkit::engine::{all_rows, difference, feed};

fn refused(path: &Path, options: Value) -> Error {
    try_with(path, &context(options), |_, _| panic!("it was loaded")).unwrap_err()
}

#[test]
fn the_card_says_what_runs_and_where() {
    with(&triage("triage-open"), |text, engine| {
        let card = &text.card;
        assert_eq!((card.provider.as_str(), card.weights), ("llama-cpp", Weights::Open));
        assert_eq!(card.placement, Placement::InProcess);
        assert_eq!(card.quantization.as_deref(), Some("F16"));
        assert_eq!((card.n_params, card.n_ctx), (Some(430_944), Some(512)));
        assert_eq!(card.device.as_deref(), Some("cpu"));
        assert_eq!(card.weights_sha256.as_ref().unwrap().len(), 64);
        let engine_info = card.engine.as_ref().unwrap();
        assert_eq!(engine_info.name, "llama.cpp");
        let build = engine_info.build.as_ref().unwrap();
        assert!(build.starts_with("ggml 0.") && build.contains(std::env::consts::ARCH), "{build}");
        #[cfg(all(target_arch = "x86_64", not(feature = "dynamic-backends")))]
        assert!(build.contains("avx2"), "{build}");
        assert_eq!(engine.caps().max_seqs, 64);
        assert_eq!((engine.caps().ctx_per_seq, engine.caps().ctx_total), (512, 4096));
    });
}

#[test]
fn the_vocabulary_has_bytes_kinds_and_ends() {
    with(&triage("triage-open"), |text, _| {
        let table = &text.table;
        assert_eq!(table.len(), 1152);
        assert_eq!(table.end_ids, [0, 2]);
        assert_eq!(table.bos_id, None);
        for id in 0..3 {
            assert_eq!((table.kind(id), table.bytes_of(id)), (TokenKind::Control, &b""[..]));
        }
        let all: Vec<u8> = (3..1152).flat_map(|id| table.bytes_of(id).to_vec()).collect();
        assert!((0..=255u8).filter(|byte| all.contains(byte)).count() > 240);
        assert!(text.chat_template.as_ref().unwrap().contains("im_start"));
        let encoder = &text.encoder;
        assert_eq!(encoder.special_texts(), ["<|endoftext|>", "<|im_end|>", "<|im_start|>"]);
        let eos = ("eos_token".to_owned(), "<|im_end|>".to_owned());
        assert!(encoder.template_variables().contains(&eos), "{:?}", encoder.template_variables());
        let encoded = |text: &str, parse_special| {
            let mut ids = vec![7];
            encoder.encode(text, parse_special, &mut ids).unwrap();
            ids
        };
        assert_eq!(encoded("", true), [7]);
        assert_eq!(encoded("<|im_start|>", true), [7, 1]);
        let as_text = encoded("<|im_start|>", false);
        assert!(as_text.len() > 2 && !as_text.contains(&1), "{as_text:?}");
        let ids = encoded("Grüße, 😀\0!", false);
        let bytes: Vec<u8> = ids[1..].iter().flat_map(|id| table.bytes_of(*id).to_vec()).collect();
        assert_eq!(String::from_utf8(bytes).unwrap(), "Grüße, 😀\0!");
    });
    // Ids without a token are never sampled.
    with(&data("mamba.gguf"), |text, _| {
        let unused = (0..64).filter(|id| text.table.kind(*id) == TokenKind::Unused).count();
        assert_eq!((text.table.len(), unused), (64, 0));
    });
}

#[test]
fn callers_encode_on_their_own_threads() {
    with(&triage("triage-open"), |text, _| {
        let encode = || {
            let mut ids = Vec::new();
            for _ in 0..200 {
                ids.clear();
                text.encoder.encode("a refund for order 482913, please", false, &mut ids).unwrap();
            }
            ids
        };
        let expected = encode();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(encode)).collect();
            for thread in threads {
                assert_eq!(thread.join().unwrap(), expected);
            }
        });
    });
}

#[test]
fn damaged_files_are_errors() {
    let whole = fs::read(triage("triage-open")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let mut v99 = whole.clone();
    v99[4] = 99;
    let mut garbage = whole.clone();
    garbage[24..4000].fill(0xff);
    let cases: [(&str, &[u8]); 7] = [
        ("empty", b""),
        ("3 bytes", b"GGU"),
        ("something else", b"PK\x03\x04 a zip archive, with some more bytes"),
        ("of version 99", &v99),
        ("garbage in the header", &garbage),
        ("cut in the header", &whole[..5000]),
        ("cut in the middle", &whole[..whole.len() / 2]),
    ];
    for (what, bytes) in cases {
        fs::write(&path, bytes).unwrap();
        let error = refused(&path, json!({}));
        assert_eq!(error.kind(), ErrorKind::ModelLoad, "{what}: {error}");
        assert!(error.to_string().contains("model.gguf"), "{what}: {error}");
    }
    let error = refused(&dir.path().join("none.gguf"), json!({}));
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    // The whole file is fine.
    fs::write(&path, &whole).unwrap();
    with(&path, |_, engine| assert_eq!(feed(engine, 0, &[5], Want::Last).len(), 1));
}

/// What passes every check of the headers and llama.cpp refuses: its own words are in the error.
#[test]
fn what_llama_cpp_says_is_in_the_error() {
    // The name of a tensor that the model needs, changed.
    let mut bytes = fs::read(triage("triage-open")).unwrap();
    let name = b"blk.0.attn_norm.weight";
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
    bytes[at..at + name.len()].copy_from_slice(b"blk.0.attn_mron.weight");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    fs::write(&path, bytes).unwrap();
    let error = refused(&path, json!({}));
    assert_eq!(error.kind(), ErrorKind::ModelLoad);
    assert!(error.to_string().contains("llama.cpp could not load"), "{error}");
    assert!(error.context("engine_log").unwrap().contains("attn_norm"), "{}", error.report());

    let damaged = dir.path().join("lora.gguf");
    let mut bytes = fs::read(data("lora.gguf")).unwrap();
    let at = bytes.windows(8).position(|window| window == b"attn_v.w").unwrap();
    bytes[at..at + 8].copy_from_slice(b"attn_x.w");
    fs::write(&damaged, bytes).unwrap();
    let error = refused(&triage("triage-open"), json!({"lora": {"path": damaged}}));
    assert_eq!(error.kind(), ErrorKind::ModelLoad);
    assert!(error.to_string().contains("could not load the adapter"), "{error}");

    // Heads of 16 values do not fill a block of 32.
    let error = refused(&data("gemma2.gguf"), json!({"kv_type": "q8_0"}));
    assert_eq!(error.kind(), ErrorKind::ModelLoad);
    assert!(error.to_string().contains("block size 32"), "{error}");
}

#[test]
fn options_that_cannot_be_are_refused() {
    let open = triage("triage-open");
    for (options, expected) in [
        (json!({"n_ctx": 513}), "more than the 512 positions"),
        (json!({"devices": ["CUDA7"]}), "there is no device `CUDA7`; the devices are `CPU`"),
        (json!({"embeddings": true}), "give the option `pooling`"),
        (json!({"lora": {"path": fixtures().join("README.md")}}), "is no GGUF file"),
    ] {
        let error = refused(&open, options);
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains(expected), "{error}");
    }
    let error = refused(&open, json!({"n_gpu_layers": 3}));
    assert!(error.to_string().contains("all weights are in the CPU's memory"), "{error}");
    let on_cpu = context(json!({"devices": [], "mmap": false, "n_gpu_layers": 0}));
    try_with(&open, &on_cpu, |_, engine| {
        assert_eq!(feed(engine, 0, &[5], Want::Last).len(), 1);
        assert_eq!(engine.embed(&[5]).unwrap_err().kind(), ErrorKind::Unsupported);
    })
    .unwrap();
}

#[test]
fn an_encoder_embeds_and_does_not_write() {
    try_with(&data("bert.gguf"), &context(json!({})), |_, engine| {
        let span = weighbridge_engine::logits::Span {
            seq: SeqId(0),
            pos: 0,
            tokens: weighbridge_engine::logits::Input::Tokens(&[5]),
            want: Want::Last,
        };
        let error = engine.feed(&[span], &mut |_: usize, _: u32, _: &[f32]| {}).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(engine.embed(&[5; 63]).unwrap_err().kind(), ErrorKind::ContextOverflow);
        assert_eq!(engine.embed(&[64]).unwrap_err().kind(), ErrorKind::Engine);
        // The longest text, and a short one after it.
        assert_eq!(engine.embed(&[5; 62]).unwrap().len(), 32);
        let short = engine.embed(&[7, 8]).unwrap();
        assert_eq!(engine.embed(&[7, 8]).unwrap(), short);
    })
    .unwrap();
}

#[test]
fn a_decoder_embeds_beside_writing() {
    let options = context(json!({"pooling": "last"}));
    try_with(&triage("triage-open"), &options, |_, engine| {
        assert_eq!(engine.caps().n_embd_output, Some(96));
        let before = feed(engine, 0, &[5, 6, 7], Want::Last);
        let (a, b) = (engine.embed(&[5, 6, 7]).unwrap(), engine.embed(&[9]).unwrap());
        assert_eq!(engine.embed(&[5, 6, 7]).unwrap(), a);
        assert!(a.len() == 96 && a != b);
        assert_eq!(engine.len(SeqId(0)), 3);
        assert!(difference(&all_rows(engine, &[5, 6, 7], 3)[2..], &before) < 1e-3);
    })
    .unwrap();
}

#[test]
fn a_load_can_be_cancelled_and_tells_how_far_it_is() {
    let seen: Arc<Mutex<Vec<f32>>> = Arc::default();
    let sink = Arc::clone(&seen);
    let context =
        OpenContext::new().with_progress(Arc::new(move |at| sink.lock().unwrap().push(at)));
    try_with(&triage("triage-open"), &context, |_, _| ()).unwrap();
    let seen = seen.lock().unwrap().clone();
    assert!(seen.is_sorted() && seen.len() > 3, "{seen:?}");
    assert_eq!((seen[0], seen[seen.len() - 1]), (0.0, 1.0));

    // While the weights are hashed, and while llama.cpp reads them.
    for limit in [0.0, 0.7] {
        let context = OpenContext::new();
        let flag = context.cancel_flag();
        let context = context.with_progress(Arc::new(move |at| {
            if at >= limit {
                flag.store(true, Ordering::Relaxed);
            }
        }));
        let cancelled = try_with(&triage("triage-open"), &context, |_, _| panic!("it was loaded"));
        assert_eq!(cancelled.unwrap_err().kind(), ErrorKind::Cancelled);
    }
}

#[test]
fn a_panic_while_progress_is_shown_ends_the_load_and_not_the_process() {
    let context = OpenContext::new().with_progress(Arc::new(|at| {
        assert!(!(0.71..0.99).contains(&at), "a progress bar that breaks");
    }));
    let outcome = try_with(&triage("triage-open"), &context, |_, _| ());
    if let Err(error) = outcome {
        assert_eq!(error.kind(), ErrorKind::ModelLoad, "{error}");
    }
}

#[test]
fn two_models_run_at_once() {
    let barrier = Barrier::new(2);
    let alone = |name: &str| with(&triage(name), |_, engine| all_rows(engine, &text(1, 60), 16));
    let names = ["triage-open", "triage-large"];
    let expected = names.map(alone);
    std::thread::scope(|scope| {
        let barrier = &barrier;
        let threads = names.map(|name| {
            scope.spawn(move || {
                with(&triage(name), |_, engine| {
                    barrier.wait();
                    (0..5).map(|_| all_rows(engine, &text(1, 60), 16)).collect::<Vec<_>>()
                })
            })
        });
        for (thread, expected) in threads.into_iter().zip(&expected) {
            for rows in thread.join().unwrap() {
                assert_eq!(difference(&rows, expected), 0.0);
            }
        }
    });
}

//! The provider as a program uses it: probe, list, open, generate, score; and what it says of
//! folders and requests that cannot work.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use common::*;
use serde_json::{Map, json};
use weighbridge_candle::{CandleProvider, plugin};
use weighbridge_core::{
    Backend, BackendExt, Error, ErrorKind, LikelihoodItem, LikelihoodRequest, Message, ModelRef,
    OpenContext, Placement, Probe, Prompt, Provider, Request, Result, Sampling, StopReason,
    TokenId, Weights, block_on,
};
use weighbridge_testkit::engine::{all_rows, difference};

fn open(base: &Path, location: &str) -> Result<Arc<dyn Backend>> {
    open_with(base, location, json!({}))
}

fn open_with(base: &Path, location: &str, options: serde_json::Value) -> Result<Arc<dyn Backend>> {
    let options = options.as_object().cloned().unwrap_or_else(Map::new);
    let context = OpenContext::new().with_base_dir(base).with_options(options);
    block_on(CandleProvider.open(&ModelRef::new("candle", location), &context))
}

fn probe(base: &Path, location: &str) -> String {
    let context = OpenContext::new().with_base_dir(base);
    match block_on(CandleProvider.probe(&ModelRef::new("candle", location), &context)) {
        Probe::Yes => "yes".to_owned(),
        Probe::No { reason } => reason,
        other => panic!("{other:?}"),
    }
}

fn tokens(ids: &[u32]) -> Prompt {
    Prompt::Tokens(ids.iter().map(|id| TokenId(*id)).collect())
}

fn greedy(prompt: Prompt, max_tokens: u32) -> Request {
    let mut request = Request::new(prompt).with_sampling(Sampling::greedy());
    request.max_tokens = Some(max_tokens);
    request.logprobs = Some(0);
    request
}

/// A copy of a fixture model that may be damaged.
fn triage_copy() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixtures().join("triage-open")).unwrap() {
        let path = entry.unwrap().path();
        let is_needed = matches!(
            path.extension().and_then(|e| e.to_str()),
            Some("json" | "jinja" | "safetensors")
        );
        if path.is_file() && is_needed {
            fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    folder
}

#[test]
fn the_plugin_is_registered_under_its_name() {
    let registry = weighbridge_core::link_plugins!(weighbridge_candle).unwrap();
    let provider = registry.provider("candle").unwrap();
    assert!(provider.describe().engine.unwrap().build.unwrap().starts_with("f32, "));
    assert_eq!(plugin().providers.len(), 1);
}

#[test]
fn chats_and_scores_are_those_of_transformers() {
    let names = ["triage-open", "triage-large"];
    for (name, kernels) in names.iter().flat_map(|name| Kernels::ALL.map(|k| (name, k))) {
        let options = json!({"kernels": kernels.option()});
        let backend = open_with(&fixtures(), name, options).unwrap();
        let reference = json(&fixtures().join(format!("reference/{name}.json")));
        let prompts = reference["prompts"].as_array().unwrap();
        let (mut worst, mut n_stopped) = (0f64, 0);
        for prompt in prompts {
            let messages: Vec<Message> = prompt["messages"]
                .as_array()
                .unwrap()
                .iter()
                .map(|message| {
                    let text = message["content"].as_str().unwrap();
                    match message["role"].as_str().unwrap() {
                        "system" => Message::system(text),
                        "assistant" => Message::assistant(text),
                        _ => Message::user(text),
                    }
                })
                .collect();
            // Not more than was generated: the longest prompt leaves little of the context.
            let n_expected = prompt["completion_ids"].as_array().unwrap().len() as u32;
            let request = greedy(Prompt::Chat(messages), n_expected);
            let completion = backend.complete_blocking(&request).unwrap();
            assert_eq!(
                completion.text,
                prompt["completion"].as_str().unwrap(),
                "{name}: {}",
                prompt["id"]
            );
            if prompt["stopped"].as_bool().unwrap() {
                n_stopped += 1;
                assert_eq!(completion.stop_reason, StopReason::Stop);
            }
            let got = completion.logprobs.unwrap();
            for (got, step) in got.iter().zip(prompt["steps"].as_array().unwrap()) {
                assert_eq!(u64::from(got.id.unwrap().0), step["id"].as_u64().unwrap());
                worst = worst.max((got.logprob.unwrap() - step["logprob"].as_f64().unwrap()).abs());
            }
        }
        assert!(n_stopped > 0);
        let pairs = reference["continuations"].as_array().unwrap();
        let scored = pairs.iter().filter(|pair| !pair["conditioned_on_bos"].as_bool().unwrap());
        let scored: Vec<_> = scored.collect();
        let items = scored.iter().map(|pair| {
            let context = Arc::new(tokens(&ids(&pair["context_ids"])));
            LikelihoodItem::new(context, pair["continuation"].as_str().unwrap())
        });
        let request = LikelihoodRequest::new(items.collect());
        let likelihoods = block_on(backend.log_likelihood(&request)).unwrap();
        for (got, pair) in likelihoods.iter().zip(&scored) {
            assert_eq!(got.is_greedy, pair["greedy"].as_bool().unwrap());
            worst = worst.max((got.sum - pair["sum"].as_f64().unwrap()).abs());
        }
        assert!(worst < 1e-3, "{name}, {kernels:?}: {worst}");
    }
}

#[test]
fn the_card_says_what_the_model_is() {
    let backend = open(&fixtures(), "triage-open").unwrap();
    let card = backend.card();
    let on_disk = fs::read(fixtures().join("triage-open/model.safetensors")).unwrap();
    assert_eq!((card.id.as_str(), card.provider.as_str()), ("triage-open", "candle"));
    assert_eq!(card.weights, Weights::Open);
    assert_eq!(card.placement, Placement::InProcess);
    assert_eq!(card.quantization.as_deref(), Some("F16"));
    assert_eq!((card.n_ctx, card.device.as_deref()), (Some(512), Some("cpu")));
    assert!(card.n_params.unwrap() * 2 < on_disk.len() as u64);
    for digest in [&card.weights_sha256, &card.template_sha256, &card.tokenizer_sha256] {
        assert_eq!(digest.as_deref().unwrap().len(), 64);
    }
    let engine = card.engine.as_ref().unwrap();
    assert_eq!(engine.name, "candle");
    assert!(engine.build.as_deref().unwrap().contains(std::env::consts::ARCH));
}

#[test]
fn calls_at_once_give_what_they_give_alone() {
    for kernels in Kernels::ALL {
        let options = json!({"kernels": kernels.option()});
        calls_at_once(open_with(&fixtures(), "triage-open", options).unwrap());
    }
}

fn calls_at_once(backend: Arc<dyn Backend>) {
    let reference = json(&fixtures().join("reference/triage-open.json"));
    let prompts = reference["prompts"].as_array().unwrap();
    std::thread::scope(|scope| {
        for prompt in prompts {
            let backend = &backend;
            scope.spawn(move || {
                let n_expected = ids(&prompt["completion_ids"]).len() as u32;
                let request = greedy(tokens(&ids(&prompt["prompt_ids"])), n_expected);
                let completion = backend.complete_blocking(&request).unwrap();
                assert_eq!(completion.text, prompt["completion"].as_str().unwrap());
            });
        }
    });
}

#[test]
fn listing_names_the_folders_directly_below() {
    let context = OpenContext::new().with_base_dir(fixtures());
    let listed = block_on(CandleProvider.list(&context)).unwrap();
    let names: Vec<String> = listed.iter().map(|listing| listing.model.to_string()).collect();
    for name in ["candle:triage-large", "candle:triage-open"] {
        assert!(names.iter().any(|listed| listed == name), "{names:?}");
    }
    assert!(!names.iter().any(|listed| listed == "candle:reference"));
    assert!(listed.iter().all(|listing| listing.card.n_params.is_some()));
    let nowhere = OpenContext::new().with_base_dir("/nowhere/at/all");
    assert!(block_on(CandleProvider.list(&nowhere)).unwrap().is_empty());
}

#[test]
fn probing_looks_at_headers_and_names_the_way_out() {
    assert_eq!(probe(&fixtures(), "triage-open"), "yes");
    let others = tempfile::tempdir().unwrap();
    fs::write(others.path().join("weights"), b"GGUF\x03\0\0\0").unwrap();
    let gguf = probe(others.path(), "weights");
    assert!(gguf.contains("is truncated or damaged"), "{gguf}");
    fs::write(others.path().join("model.onnx"), b"\x08\x0a").unwrap();
    let onnx = probe(others.path(), ".");
    assert!(onnx.contains("a folder of an ONNX model"), "{onnx}");
    let weights = probe(&fixtures(), "triage-open/model.safetensors");
    assert!(weights.contains("only the weights of a model"), "{weights}");
    assert!(probe(&fixtures(), "nope").contains("no model folder at"));
    let model = "candle:triage-open@main".parse().unwrap();
    let context = OpenContext::new().with_base_dir(fixtures());
    let error = block_on(CandleProvider.open(&model, &context)).unwrap_err();
    assert!(
        error.to_string().contains("has `@main`, which neither a folder nor a file has"),
        "{error}"
    );
}

/// Opens a folder that was damaged and says how it failed; probe must agree.
#[track_caller]
fn fails(folder: &Path, kind: ErrorKind, expected: &str) -> Error {
    let error = open(folder, ".").unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(expected), "{error}");
    error
}

#[test]
fn damaged_folders_are_refused_with_file_numbers_and_remedy() {
    let folder = triage_copy();
    let path = |file: &str| folder.path().join(file);
    let restore = |file: &str| {
        fs::copy(fixtures().join("triage-open").join(file), path(file)).unwrap();
    };
    open(folder.path(), ".").unwrap();

    fs::remove_file(path("tokenizer.json")).unwrap();
    fails(folder.path(), ErrorKind::ModelLoad, "has no `tokenizer.json`: put the tokenizer's file");
    assert!(probe(folder.path(), ".").contains("has no `tokenizer.json`"));
    fs::write(path("tokenizer.json"), "{").unwrap();
    fails(folder.path(), ErrorKind::ModelLoad, "tokenizer.json");
    restore("tokenizer.json");

    let mut config = json(&path("config.json"));
    config["architectures"] = json!(["GptOssForCausalLM"]);
    fs::write(path("config.json"), config.to_string()).unwrap();
    let error = fails(folder.path(), ErrorKind::ModelLoad, "architecture `GptOssForCausalLM`");
    assert!(error.to_string().contains("`openai-compatible:URL#MODEL`"), "{error}");
    restore("config.json");

    let mut config = json(&path("config.json"));
    config["num_key_value_heads"] = config["num_attention_heads"].clone();
    fs::write(path("config.json"), config.to_string()).unwrap();
    let error = fails(
        folder.path(),
        ErrorKind::ModelLoad,
        "model.layers.0.self_attn.k_proj.weight has shape [",
    );
    assert!(error.to_string().contains("config.json implies ["), "{error}");
    restore("config.json");

    let mut config = json(&path("config.json"));
    config["vocab_size"] = json!(1000);
    fs::write(path("config.json"), config.to_string()).unwrap();
    fails(folder.path(), ErrorKind::ModelLoad, "model.embed_tokens.weight has shape [");
    restore("config.json");

    let weights = fs::read(path("model.safetensors")).unwrap();
    fs::write(path("model.safetensors"), &weights[..weights.len() / 2]).unwrap();
    let error = fails(folder.path(), ErrorKind::ModelLoad, "is truncated: its tensors need");
    assert!(error.to_string().contains("download or copy it again"), "{error}");
    // A NaN in the last tensor.
    let mut poisoned = weights.clone();
    let n = poisoned.len();
    poisoned[n - 2..].copy_from_slice(&[0x00, 0x7e]);
    fs::write(path("model.safetensors"), &poisoned).unwrap();
    fails(folder.path(), ErrorKind::ModelLoad, "values that are not finite numbers");
    fs::remove_file(path("model.safetensors")).unwrap();
    fs::write(path("pytorch_model.bin"), b"PK\x03\x04 and more of a zip").unwrap();
    fails(folder.path(), ErrorKind::ModelLoad, "Python pickle, which can run code");
    fails(&folder.path().join("absent"), ErrorKind::NotFound, "no model folder at");
}

#[test]
fn options_are_checked() {
    let fails = |options: serde_json::Value, expected: &str| {
        let error = open_with(&fixtures(), "triage-open", options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains(expected), "{error}");
    };
    fails(
        json!({"n_ctx": 100_000}),
        "is 100000, more than the 512 positions the model is made for",
    );
    fails(json!({"n_ctx": 0}), "takes at least 1");
    fails(json!({"dtype": "int4"}), "takes one of \"f32\", \"f16\", \"bf16\"");
    fails(json!({"dtype": "f16"}), "add `kernels = \"candle\"`");
    fails(json!({"kernels": "fast"}), "takes one of \"own\", \"candle\"");
    fails(json!({"device": "tpu"}), "is `tpu`; candle knows `cpu`, `cuda`, `cuda:N`, `metal`");
    fails(
        json!({"device": "cuda", "kernels": "own"}),
        "for the CPU only; for `cuda:0` leave it out",
    );
    fails(json!({"ctx": 5}), "unknown option `ctx` of provider `candle`");
    let backend = open_with(&fixtures(), "triage-open", json!({"n_ctx": 64})).unwrap();
    assert_eq!(backend.card().n_ctx, Some(64));
}

#[test]
fn the_card_names_what_computes() {
    let card_of = |options| open_with(&fixtures(), "triage-open", options).unwrap().card().clone();
    let build = |options| card_of(options).engine.unwrap().build.unwrap();
    let candle = build(json!({"kernels": "candle"}));
    assert!(candle.starts_with("candle's kernels, f32, "), "{candle}");
    let half = json!({"kernels": "candle", "dtype": "f16", "device": "cpu"});
    assert_eq!(card_of(half.clone()).device.as_deref(), Some("cpu"));
    assert!(build(half).starts_with("candle's kernels, f16, "));
}

/// The products are rounded to the type, the rest is `f32`.
#[test]
fn sixteen_bits_change_logits_a_little() {
    let path = fixtures().join("triage-open");
    let rows_in = |dtype: &str| {
        let options = json!({"kernels": "candle", "dtype": dtype});
        all_rows(&mut engine_with(&path, 64, options), &[1, 5, 6, 7, 8, 9], 64)
    };
    let whole = rows_in("f32");
    for (dtype, most) in [("f16", 0.1), ("bf16", 1.0)] {
        let worst = difference(&rows_in(dtype), &whole);
        assert!(worst > 0.0 && worst < most, "{dtype}: {worst}");
    }
}

#[cfg(not(any(feature = "cuda", feature = "metal")))]
#[test]
fn a_gpu_that_the_build_does_not_have_is_refused_with_the_feature_to_build_with() {
    for (device, feature) in [("cuda", "cuda"), ("cuda:1", "cuda"), ("metal", "metal")] {
        let error = open_with(&fixtures(), "triage-open", json!({"device": device}))
            .unwrap_err()
            .to_string();
        assert!(error.contains(&format!("cannot use `{feature}:")), "{error}");
        assert!(error.contains(&format!("build with `--features candle-{feature}`")), "{error}");
    }
}

#[test]
fn requests_that_do_not_fit_are_refused_before_they_run() {
    let backend = open_with(&fixtures(), "triage-open", json!({"n_ctx": 64})).unwrap();
    let error = backend.complete_blocking(&greedy(tokens(&[5; 65]), 1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ContextOverflow, "{error}");
    assert_eq!(error.context("n_ctx"), Some("64"));
    let error = backend.complete_blocking(&greedy(tokens(&[5, 60_000]), 1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{error}");
    assert!(error.to_string().contains("60000"), "{error}");
    // And it still answers.
    assert!(backend.complete_blocking(&greedy(tokens(&[1, 5, 6]), 4)).is_ok());
}

#[test]
fn loading_reports_progress_and_can_be_cancelled() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let seen_by = Arc::clone(&seen);
    let context = OpenContext::new()
        .with_base_dir(fixtures())
        .with_progress(Arc::new(move |fraction| seen_by.lock().unwrap().push(fraction)));
    let model = ModelRef::new("candle", "triage-large");
    block_on(CandleProvider.open(&model, &context)).unwrap();
    let seen = seen.lock().unwrap().clone();
    assert!(seen.len() > 20 && seen.windows(2).all(|pair| pair[0] <= pair[1]), "{seen:?}");
    assert_eq!((seen[0], seen[seen.len() - 1]), (0.0, 1.0));

    let context = OpenContext::new().with_base_dir(fixtures());
    let flag = context.cancel_flag();
    let context = context.with_progress(Arc::new(move |fraction| {
        // In the middle of the tensors.
        if fraction > 0.6 {
            flag.store(true, Ordering::Relaxed);
        }
    }));
    let error = block_on(CandleProvider.open(&model, &context)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
}

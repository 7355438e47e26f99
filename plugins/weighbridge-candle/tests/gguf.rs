//! GGUF files: opened, batched, listed, refused. Their numbers are compared in `parity.rs`.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking and may print"
)]

mod common;

use std::fs;

use common::*;
use weighbridge_candle::CandleProvider;
use weighbridge_core::{
    BackendExt, ModelRef, OpenContext, Prompt, Provider, Request, Result, block_on,
};
use weighbridge_engine::logits::{Input, LogitsEngine, SeqId, Span, Want};
use weighbridge_testkit::engine::{all_rows, difference};

fn open(location: &str) -> Result<std::sync::Arc<dyn weighbridge_core::Backend>> {
    let model: ModelRef = format!("candle:{location}").parse().unwrap();
    let context = OpenContext::new().with_base_dir(fixtures().join("parity"));
    block_on(CandleProvider.open(&model, &context))
}

#[test]
fn a_file_is_opened_with_its_own_tokenizer_and_says_what_it_is() {
    let backend = open("llama2/llama2-q4_0.gguf").unwrap();
    let card = backend.card();
    assert_eq!(card.quantization.as_deref(), Some("Q4_0"));
    assert_eq!(card.id, "llama2");
    let sha256 = card.tokenizer_sha256.clone();
    assert!(sha256.is_some() && card.weights_sha256.is_some());
    let other = open("llama2/llama2-f32.gguf").unwrap();
    assert_eq!(other.card().quantization.as_deref(), Some("F32"));
    assert_eq!(other.card().tokenizer_sha256, sha256);
    let request = Request::new(Prompt::Text("to be".to_owned())).with_max_tokens(4);
    assert_eq!(backend.complete_blocking(&request).unwrap().usage.n_generated_tokens, Some(4));
}

/// How far company and cuts move a logit of a quantized model; with our products not at all.
fn moved_by_company_and_cuts(kernels: Kernels) -> f32 {
    let mut worst = 0f32;
    for file in
        ["llama2/llama2-q4_0.gguf", "llama-k/llama-k-q4_k_m.gguf", "qwen2-96/qwen2-96-q8_0.gguf"]
    {
        let mut engine = engine_at(&fixtures().join("parity").join(file), 256, kernels);
        let tokens: Vec<u32> = (0..40).map(|i| 5 + i * 7 % 200).collect();
        let whole = all_rows(&mut engine, &tokens, 64);
        for cut in [1, 3, 8, 13] {
            worst = worst.max(difference(&all_rows(&mut engine, &tokens, cut), &whole));
        }
        engine.release(SeqId(0));
        let span = |seq, tokens| Span {
            seq: SeqId(seq),
            pos: 0,
            tokens: Input::Tokens(tokens),
            want: Want::All,
        };
        let others = [&tokens[3..20], &tokens[..40], &tokens[7..8]];
        let spans = [span(0, others[0]), span(1, others[1]), span(2, others[2])];
        let mut rows = Vec::new();
        engine
            .feed(&spans, &mut |span_idx: usize, _: u32, row: &[f32]| {
                if span_idx == 1 {
                    rows.push(row.to_vec());
                }
            })
            .unwrap();
        worst = worst.max(difference(&rows, &whole));
    }
    worst
}

#[test]
fn company_and_cuts_change_no_bit_of_quantized_models() {
    assert_eq!(moved_by_company_and_cuts(Kernels::Own), 0.0);
}

#[test]
fn company_and_cuts_change_little_with_candles_kernels() {
    let worst = moved_by_company_and_cuts(Kernels::Candle);
    println!("at most {worst:.2e} apart");
    assert!(worst < 1e-1, "{worst}");
}

#[test]
fn files_are_listed_beside_folders_and_parts_of_one_model_once() {
    let folder = tempfile::tempdir().unwrap();
    let source = fixtures().join("parity/llama2/llama2-q8_0.gguf");
    fs::copy(&source, folder.path().join("small.gguf")).unwrap();
    fs::write(folder.path().join("noise.gguf"), b"noise").unwrap();
    fs::copy(&source, folder.path().join("x-00002-of-00002.gguf")).unwrap();
    let context = OpenContext::new().with_base_dir(folder.path());
    let listed = block_on(CandleProvider.list(&context)).unwrap();
    let names: Vec<String> = listed.iter().map(|listing| listing.model.to_string()).collect();
    assert_eq!(names, ["candle:small.gguf"]);
    assert_eq!(listed[0].card.quantization.as_deref(), Some("Q8_0"));
}

#[test]
fn what_is_not_known_is_refused_by_name_with_the_plugin_that_knows_it() {
    for (file, expected) in [
        ("mamba/mamba-f32.gguf", "is of the architecture `mamba`; candle knows llama, qwen2"),
        ("deepseek-v2/deepseek-v2-f32.gguf", "is of the architecture `deepseek2`"),
        ("gpt-oss/gpt-oss-mxfp4_moe.gguf", "is stored as MXFP4; candle reads F32"),
    ] {
        let error = open(file).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(error.contains("`llama-cpp:PATH`"), "{error}");
    }
    let error = open("mamba").unwrap_err().to_string();
    assert!(error.contains("the architecture `MambaForCausalLM`"), "{error}");
}

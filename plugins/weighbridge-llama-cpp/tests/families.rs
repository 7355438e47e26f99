//! The log-probabilities of Hugging Face transformers, for a tiny model of every family, through
//! the plugin's public face. How the files, numbers and tolerances came about stands in
//! `fixtures/README.md`.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking and may print"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};
use weighbridge_core::{
    Backend, BackendExt, LikelihoodItem, LikelihoodRequest, ModelRef, OpenContext, Prompt,
    Provider, Request, Sampling, StopReason, TokenId, TokenLogprob, block_on,
};
use weighbridge_llama_cpp::LlamaCppProvider;

/// Models in the folder; fewer would mean that it was not found whole.
const N_MODELS: usize = 25;

fn parity() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/parity")
}

fn array(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

fn floats(value: &Value) -> Vec<f64> {
    array(value).iter().map(|v| v.as_f64().unwrap()).collect()
}

fn ids(value: &Value) -> Vec<TokenId> {
    array(value).iter().map(|id| TokenId(id.as_u64().unwrap() as u32)).collect()
}

fn ids_of(tokens: &[TokenLogprob]) -> Vec<TokenId> {
    tokens.iter().map(|token| token.id.unwrap()).collect()
}

/// Differences of log-probabilities, in nats.
#[derive(Default)]
struct Differences(Vec<f64>);

impl Differences {
    fn add(&mut self, got: f64, expected: f64) {
        self.0.push((got - expected).abs());
    }

    /// The k-th largest of one distribution against the k-th largest of the other: no further apart
    /// than the two distributions, whichever tokens they are.
    fn add_top(&mut self, got: &TokenLogprob, expected: &Value) {
        let expected = floats(&expected["logprobs"]);
        assert_eq!(got.top.len(), expected.len());
        for (got, expected) in got.top.iter().zip(expected) {
            self.add(got.logprob, expected);
        }
    }

    fn max(&self) -> f64 {
        self.0.iter().copied().fold(0.0, f64::max)
    }

    fn mean(&self) -> f64 {
        self.0.iter().sum::<f64>() / self.0.len() as f64
    }
}

/// Scores and continues one reference prompt; an error names what differs beyond numbers.
fn compare(backend: &dyn Backend, case: &Value, found: &mut Differences) -> Result<(), String> {
    let prompt = ids(&case["ids"]);
    let n_context = case["n_context"].as_u64().unwrap() as usize;
    let logprobs = floats(&case["logprobs"]);
    let top = array(&case["top"]);

    let context = Arc::new(Prompt::Tokens(prompt[..n_context].to_vec()));
    let item = LikelihoodItem::new(context, case["continuation"].as_str().unwrap());
    let mut request = LikelihoodRequest::new(vec![item]);
    request.top = 5;
    let scored = block_on(backend.log_likelihood(&request)).unwrap().remove(0).tokens;
    if ids_of(&scored) != prompt[n_context..] {
        return Err("the continuation has other tokens".to_owned());
    }
    for (got, expected) in scored.iter().zip(&logprobs[n_context - 1..]) {
        found.add(got.logprob.unwrap(), *expected);
    }
    let (last, within) = top.split_last().unwrap();
    for expected in within {
        found.add_top(&scored[expected["at"].as_u64().unwrap() as usize + 1 - n_context], expected);
    }

    let greedy = ids(&case["greedy"]);
    let n_generated = greedy.len().max(1);
    let request = Request::new(Prompt::Tokens(prompt))
        .with_sampling(Sampling::greedy())
        .with_max_tokens(n_generated as u32)
        .with_logprobs(5);
    let completion = backend.complete_blocking(&request).unwrap();
    let generated = completion.logprobs.unwrap();
    found.add_top(&generated[0], last);
    if !greedy.is_empty() {
        if ids_of(&generated) != greedy {
            return Err(format!("greedy {:?}, expected {greedy:?}", ids_of(&generated)));
        }
        assert_eq!(completion.stop_reason, StopReason::Length);
        for (got, expected) in generated.iter().zip(floats(&case["greedy_logprobs"])) {
            found.add(got.logprob.unwrap(), expected);
        }
    }
    Ok(())
}

/// Every GGUF file with this cache: `cache` names the entry of the reference, `options` makes it.
fn all_equal_transformers(cache: &str, options: &Value) {
    let mut names: Vec<String> = fs::read_dir(parity())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names.len(), N_MODELS, "{names:?}");
    let mut failures = Vec::new();
    for name in names {
        let folder = parity().join(&name);
        let reference: Value =
            serde_json::from_slice(&fs::read(folder.join("reference.json")).unwrap()).unwrap();
        for group in array(&reference["groups"]) {
            for entry in array(&group["files"]) {
                let file = entry["file"].as_str().unwrap();
                if !file.ends_with(".gguf") {
                    continue;
                }
                let context = OpenContext::new()
                    .with_base_dir(&folder)
                    .with_options(options.as_object().unwrap().clone());
                let model = ModelRef::new("llama-cpp", file);
                let backend = block_on(LlamaCppProvider.open(&model, &context)).unwrap();
                let mut found = Differences::default();
                for case in array(&group["cases"]) {
                    if let Err(what) = compare(&*backend, case, &mut found) {
                        failures.push(format!("{file}: {what}"));
                    }
                }
                let (max, mean) = (found.max(), found.mean());
                let limit = |key: &str| entry[cache][key].as_f64().unwrap();
                println!("{file}: {} numbers, at most {max:.1e}, mean {mean:.1e}", found.0.len());
                if max > limit("tolerance") || mean > limit("mean_tolerance") {
                    failures.push(format!("{file}: {max:.1e} and {mean:.1e}, of {}", entry[cache]));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn with_an_f32_cache_every_family_equals_transformers() {
    all_equal_transformers(
        "f32_cache",
        &json!({"kv_type": "f32", "flash_attention": "off", "threads": 1}),
    );
}

#[test]
fn with_flash_attention_on_an_f16_cache_every_family_equals_transformers() {
    all_equal_transformers(
        "f16_cache",
        &json!({"kv_type": "f16", "flash_attention": "on", "threads": 1}),
    );
}

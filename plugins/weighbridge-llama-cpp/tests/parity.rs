//! The same numbers as Hugging Face transformers, for the fixture models and for tiny models of the
//! kinds that llama.cpp treats differently. The numbers were computed once and are committed with
//! the scripts that made them.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking and may print"
)]

mod common;

use std::path::Path;

use common::*;
use serde_json::{Value, json};
use weighbridge_engine::logits::{LogitsEngine, SeqId, Want};
use weighbridge_testkit::engine::{all_rows, argmax, feed, log_softmax};

/// Largest difference of a log-probability where all weights are F32.
const TOLERANCE: f64 = 1e-3;
/// The same with the activation GELU, which llama.cpp looks up in a table of F16 values.
const GELU_TOLERANCE: f64 = 1e-2;
/// The same where weights are F16: llama.cpp rounds what they are multiplied with to F16 as well,
/// which shows most in the log-probabilities of tokens that are next to impossible.
const F16_TOLERANCE: f64 = 0.1;
/// The same with flash attention, whose CPU kernel rounds as well.
const FLASH_TOLERANCE: f64 = 0.2;

fn greedy(
    engine: &mut dyn LogitsEngine,
    prompt: &[u32],
    n: usize,
    mut step: impl FnMut(usize, &[f32]),
) -> Vec<u32> {
    engine.release(SeqId(0));
    let mut out = Vec::new();
    let mut row = feed(engine, 0, prompt, Want::Last).remove(0);
    while out.len() < n {
        step(out.len(), &row);
        let token = argmax(&row);
        out.push(token);
        if out.len() < n {
            row = feed(engine, 0, &[token], Want::Last).remove(0);
        }
    }
    out
}

/// The largest difference seen.
#[derive(Default)]
struct Worst {
    difference: f64,
    n_compared: usize,
}

impl Worst {
    fn compare(&mut self, got: f64, expected: f64) {
        self.difference = self.difference.max((got - expected).abs());
        self.n_compared += 1;
    }

    #[track_caller]
    fn check(&self, name: &str, tolerance: f64) {
        println!("{name}: {} numbers, at most {:.2e} apart", self.n_compared, self.difference);
        assert!(self.n_compared > 0 && self.difference < tolerance, "{name}: {}", self.difference);
    }
}

fn fixture_equals_its_reference(name: &str) {
    let exact = json!({"kv_type": "f32", "flash_attention": "off"});
    fixture_at_equals(name, as_f32(&triage(name)).path(), &exact, TOLERANCE);
    fixture_at_equals(name, &triage(name), &exact, F16_TOLERANCE);
    fixture_at_equals(name, &triage(name), &json!({}), FLASH_TOLERANCE);
}

fn fixture_at_equals(name: &str, path: &Path, options: &Value, tolerance: f64) {
    let reference = json(&fixtures().join(format!("reference/{name}.json")));
    let mut worst = Worst::default();
    try_with(path, &context(options.clone()), |_, engine| {
        let prompts = reference["prompts"].as_array().unwrap();
        assert!(!prompts.is_empty());
        for prompt in prompts {
            let expected = ids(&prompt["completion_ids"]);
            let steps = prompt["steps"].as_array().unwrap();
            let got = greedy(engine, &ids(&prompt["prompt_ids"]), expected.len(), |i, row| {
                let logprobs = log_softmax(row);
                for top in steps[i]["top"].as_array().unwrap() {
                    let id = top[0].as_u64().unwrap() as usize;
                    worst.compare(logprobs[id], top[1].as_f64().unwrap());
                }
            });
            assert_eq!(got, expected, "{name}: {}", prompt["id"]);
        }
        for pair in reference["continuations"].as_array().unwrap() {
            let mut tokens = ids(&pair["context_ids"]);
            if pair["conditioned_on_bos"].as_bool().unwrap() {
                tokens.push(0);
            }
            let n_context = tokens.len();
            let continuation = ids(&pair["continuation_ids"]);
            tokens.extend(&continuation);
            engine.release(SeqId(0));
            let rows = feed(engine, 0, &tokens[..tokens.len() - 1], Want::From(n_context - 1));
            let expected = floats(&pair["logprobs"]);
            assert_eq!(rows.len(), expected.len());
            for ((row, token), expected) in rows.iter().zip(&continuation).zip(expected) {
                worst.compare(log_softmax(row)[*token as usize], expected);
            }
        }
        let whole = &reference["whole_text"];
        let tokens = ids(&whole["ids"]);
        let rows = all_rows(engine, &tokens, 256);
        let expected = floats(&whole["logprobs"]);
        for ((row, next), expected) in rows.iter().zip(&tokens[1..]).zip(expected) {
            worst.compare(log_softmax(row)[*next as usize], expected);
        }
    })
    .unwrap();
    worst.check(&format!("{name} {options}"), tolerance);
}

#[test]
fn triage_open_equals_transformers() {
    fixture_equals_its_reference("triage-open");
}

#[test]
fn triage_large_equals_transformers() {
    fixture_equals_its_reference("triage-large");
}

/// A recurrent model, and one with sliding windows and soft caps.
#[test]
fn every_kind_equals_transformers() {
    for (name, tolerance) in [("mamba", TOLERANCE), ("gemma2", GELU_TOLERANCE)] {
        let reference = reference(name);
        let mut worst = Worst::default();
        with(&data(&format!("{name}.gguf")), |_, engine| {
            let tokens = ids(&reference["ids"]);
            let rows = all_rows(engine, &tokens, 256);
            let argmaxes: Vec<u32> = rows.iter().map(|row| argmax(row)).collect();
            assert_eq!(argmaxes, ids(&reference["argmax"]), "{name}");
            let expected = floats(&reference["logprobs"]);
            for ((row, next), expected) in rows.iter().zip(&tokens[1..]).zip(expected) {
                worst.compare(log_softmax(row)[*next as usize], expected);
            }
            for (got, expected) in rows[rows.len() - 1].iter().zip(floats(&reference["last_row"])) {
                worst.compare(f64::from(*got), expected);
            }
        });
        worst.check(name, tolerance);
    }
}

#[test]
fn an_adapter_changes_the_model_as_its_weights_say() {
    let reference = reference("lora");
    let tokens = ids(&reference["ids"]);
    let base = as_f32(&triage("triage-open"));
    let last_row = |options| {
        try_with(base.path(), &context(options), |_, engine| {
            log_softmax(&feed(engine, 0, &tokens, Want::Last)[0])
        })
        .unwrap()
    };
    let lora = json!({"path": data("lora.gguf"), "scale": reference["scale"]});
    let got = last_row(json!({"kv_type": "f32", "flash_attention": "off", "lora": lora}));
    let plain = last_row(json!({"kv_type": "f32", "flash_attention": "off"}));
    let (mut worst, mut without) = (Worst::default(), Worst::default());
    for (expected, (got, plain)) in
        floats(&reference["last_logprobs"]).into_iter().zip(got.into_iter().zip(plain))
    {
        worst.compare(got, expected);
        without.compare(plain, expected);
    }
    worst.check("lora", TOLERANCE);
    assert!(without.difference > 0.5, "{}", without.difference);
}

#[test]
fn an_encoder_gives_the_vectors_of_transformers() {
    let reference = reference("bert");
    let tokens = ids(&reference["ids"]);
    for (options, name) in [(json!({}), "mean"), (json!({"pooling": "cls"}), "cls")] {
        let vector = try_with(&data("bert.gguf"), &context(options), |_, engine| {
            assert_eq!(engine.caps().n_embd_output, Some(32));
            // The marks of the model are put there, unless they are there already.
            let marked = [&[2], &tokens[..], &[3]].concat();
            assert_eq!(engine.embed(&tokens).unwrap(), engine.embed(&marked).unwrap());
            engine.embed(&tokens).unwrap()
        })
        .unwrap();
        let mut worst = Worst::default();
        for (got, expected) in vector.iter().zip(floats(&reference[name])) {
            worst.compare(f64::from(*got), expected);
        }
        assert_eq!(worst.n_compared, 32);
        worst.check(name, GELU_TOLERANCE);
    }
}

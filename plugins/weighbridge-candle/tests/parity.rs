//! The same numbers as Hugging Face transformers, for the fixture models and for tiny models of
//! every shape. The numbers were computed once and are committed with the scripts that made them.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking and may print"
)]

mod common;

use common::*;
use serde_json::Value;
use weighbridge_candle::CandleEngine;
use weighbridge_engine::logits::{LogitsEngine, SeqId, Want};
use weighbridge_testkit::engine::{all_rows, argmax, feed, log_softmax};

/// Largest difference of a log-probability that is accepted.
const TOLERANCE: f64 = 1e-3;
/// The same for the models of `fixtures/parity`, whose logits are small.
const TINY_TOLERANCE: f64 = 5e-5;
/// The same for their quantized files, where the rounding of activations is added: to 16 bits in our
/// products, to 8 bits in candle's.
const fn tiny_quantized_tolerance(kernels: Kernels) -> f64 {
    match kernels {
        Kernels::Own => 1e-3,
        Kernels::Candle => 2e-1,
    }
}

fn greedy(
    engine: &mut CandleEngine,
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

fn fixture_equals_its_reference(name: &str, kernels: Kernels) {
    let reference = json(&fixtures().join(format!("reference/{name}.json")));
    let mut engine = fixture(name, kernels);
    let mut worst = 0f64;
    let mut n_compared = 0usize;
    let mut compare = |got: f64, expected: f64| {
        worst = worst.max((got - expected).abs());
        n_compared += 1;
    };

    let prompts = reference["prompts"].as_array().unwrap();
    assert!(!prompts.is_empty());
    for (i, prompt) in prompts.iter().enumerate() {
        let prompt_ids = ids(&prompt["prompt_ids"]);
        let expected = ids(&prompt["completion_ids"]);
        let steps = prompt["steps"].as_array().unwrap();
        let got = greedy(&mut engine, &prompt_ids, expected.len(), |step_idx, row| {
            let logprobs = log_softmax(row);
            if i == 0 && step_idx == 0 {
                for (got, expected) in
                    row.iter().zip(floats(&reference["last_logits_of_first_prompt"]))
                {
                    compare(f64::from(*got), expected);
                }
            }
            for top in steps[step_idx]["top"].as_array().unwrap() {
                let id = top[0].as_u64().unwrap() as usize;
                compare(logprobs[id], top[1].as_f64().unwrap());
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
        let rows = feed(&mut engine, 0, &tokens[..tokens.len() - 1], Want::From(n_context - 1));
        assert_eq!(rows.len(), continuation.len());
        let expected = floats(&pair["logprobs"]);
        for ((row, token), expected) in rows.iter().zip(&continuation).zip(expected) {
            compare(log_softmax(row)[*token as usize], expected);
        }
        let is_greedy = rows.iter().zip(&continuation).all(|(row, token)| argmax(row) == *token);
        assert_eq!(is_greedy, pair["greedy"].as_bool().unwrap());
    }

    let whole = &reference["whole_text"];
    let tokens = ids(&whole["ids"]);
    let rows = all_rows(&mut engine, &tokens, 256);
    let argmaxes: Vec<u32> = rows.iter().map(|row| argmax(row)).collect();
    assert_eq!(argmaxes, ids(&whole["argmax"]));
    for ((row, next), expected) in rows.iter().zip(&tokens[1..]).zip(floats(&whole["logprobs"])) {
        compare(log_softmax(row)[*next as usize], expected);
    }
    println!("{name}, {kernels:?}: {n_compared} numbers, at most {worst:.2e} apart");
    assert!(worst < TOLERANCE, "{name}, {kernels:?}: {worst}");
}

#[test]
fn triage_open_equals_transformers() {
    for kernels in Kernels::ALL {
        fixture_equals_its_reference("triage-open", kernels);
    }
}

#[test]
fn triage_large_equals_transformers() {
    for kernels in Kernels::ALL {
        fixture_equals_its_reference("triage-large", kernels);
    }
}

#[test]
fn every_shape_equals_transformers() {
    let cases = TINY.iter().flat_map(|name| Kernels::ALL.map(|kernels| (name, kernels)));
    for (name, kernels) in cases {
        let reference = json(&data().join(format!("{name}.json")));
        let mut engine = tiny(name, kernels);
        let tokens = ids(&reference["ids"]);
        let rows = all_rows(&mut engine, &tokens, 256);
        let argmaxes: Vec<u32> = rows.iter().map(|row| argmax(row)).collect();
        assert_eq!(argmaxes, ids(&reference["argmax"]), "{name}");
        let mut worst = 0f64;
        let expected = floats(&reference["logprobs"]);
        for ((row, next), expected) in rows.iter().zip(&tokens[1..]).zip(expected) {
            worst = worst.max((log_softmax(row)[*next as usize] - expected).abs());
        }
        for (at, expected) in reference["rows"].as_object().unwrap() {
            let row = &rows[at.parse::<usize>().unwrap()];
            for (got, expected) in row.iter().zip(floats(expected)) {
                worst = worst.max((f64::from(*got) - expected).abs());
            }
        }
        let continued = greedy(&mut engine, &tokens[..12], 24, |_, _| {});
        assert_eq!(continued, ids(&reference["greedy_of_first_12"]), "{name}");
        println!("{name}, {kernels:?}: at most {worst:.2e} apart");
        assert!(worst < TOLERANCE, "{name}, {kernels:?}: {worst}");
    }
}

/// Folders of `fixtures/parity` that candle reads; the others are refused.
const FAMILIES: [&str; 15] = [
    "gemma2",
    "olmo2",
    "gemma3",
    "llama-k",
    "llama2",
    "llama3",
    "mistral",
    "mixtral",
    "phi3",
    "phi3-longrope",
    "qwen2",
    "qwen2-96",
    "qwen2-moe",
    "qwen3",
    "qwen3-moe",
];

/// Largest difference over all cases of a file of a family.
fn worst_of(engine: &mut CandleEngine, cases: &[Value]) -> f64 {
    let mut worst = 0f64;
    for case in cases {
        let tokens = ids(&case["ids"]);
        let rows: Vec<Vec<f64>> =
            all_rows(engine, &tokens, 64).iter().map(|row| log_softmax(row)).collect();
        let expected = floats(&case["logprobs"]);
        assert_eq!(expected.len(), tokens.len() - 1);
        for ((row, next), expected) in rows.iter().zip(&tokens[1..]).zip(expected) {
            worst = worst.max((row[*next as usize] - expected).abs());
        }
        for top in case["top"].as_array().unwrap() {
            let row = &rows[top["at"].as_u64().unwrap() as usize];
            for (id, expected) in ids(&top["ids"]).iter().zip(floats(&top["logprobs"])) {
                worst = worst.max((row[*id as usize] - expected).abs());
            }
        }
        let expected = ids(&case["greedy"]);
        assert_eq!(greedy(engine, &tokens, expected.len(), |_, _| {}), expected);
    }
    worst
}

#[test]
fn every_family_equals_transformers_in_every_format() {
    for family in FAMILIES {
        let folder = fixtures().join("parity").join(family);
        let reference = json(&folder.join("reference.json"));
        let mut n_files = 0;
        for group in reference["groups"].as_array().unwrap() {
            for file in group["files"].as_array().unwrap() {
                let name = file["file"].as_str().unwrap();
                let is_folder = name.ends_with(".safetensors");
                let path = if is_folder { folder.clone() } else { folder.join(name) };
                let cases = group["cases"].as_array().unwrap();
                for kernels in Kernels::ALL {
                    let worst = worst_of(&mut engine_at(&path, 256, kernels), cases);
                    println!("{name}, {kernels:?}: at most {worst:.2e} apart");
                    let tolerance = if name.contains("-q") {
                        tiny_quantized_tolerance(kernels)
                    } else {
                        TINY_TOLERANCE
                    };
                    assert!(worst < tolerance, "{family} {name}, {kernels:?}: {worst}");
                }
                n_files += 1;
            }
        }
        assert!(n_files > 0, "{family}");
    }
}

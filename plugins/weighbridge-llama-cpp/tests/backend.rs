//! The provider as a program uses it: probe, list, open, generate, score; and what it says of paths
//! that cannot work.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use common::*;
use serde_json::{Value, json};
use weighbridge_core::{
    Backend, EmbedRequest, ErrorKind, LikelihoodItem, LikelihoodRequest, ModelRef, OpenContext,
    Probe, Prompt, Provider, Request, Result, Sampling, TokenId, block_on,
};
use weighbridge_llama_cpp::{LlamaCppProvider, plugin};

fn open_with(base: &Path, location: &str, options: Value) -> Result<Arc<dyn Backend>> {
    let context = context(options).with_base_dir(base);
    block_on(LlamaCppProvider.open(&ModelRef::new("llama-cpp", location), &context))
}

fn probe(base: &Path, location: &str) -> String {
    let context = OpenContext::new().with_base_dir(base);
    match block_on(LlamaCppProvider.probe(&ModelRef::new("llama-cpp", location), &context)) {
        Probe::Yes => "yes".to_owned(),
        Probe::No { reason } => reason,
        other => panic!("{other:?}"),
    }
}

fn tokens(value: &Value) -> Prompt {
    Prompt::Tokens(ids(value).into_iter().map(TokenId).collect())
}

#[test]
fn the_plugin_is_registered_under_its_name() {
    let registry = weighbridge_core::link_plugins!(weighbridge_llama_cpp).unwrap();
    let info = registry.provider("llama-cpp").unwrap().describe();
    assert!(info.engine.unwrap().build.unwrap().starts_with("ggml "));
    assert!(info.option_schema["properties"]["kv_type"].is_object());
    assert_eq!(plugin().providers.len(), 1);
}

#[test]
fn completions_are_those_of_transformers_also_many_at_once() {
    let backend = open_with(&fixtures(), "triage-open/triage-open-f16.gguf", json!({})).unwrap();
    let reference = json(&fixtures().join("reference/triage-open.json"));
    let prompts = reference["prompts"].as_array().unwrap();
    std::thread::scope(|scope| {
        let threads: Vec<_> = prompts
            .iter()
            .map(|prompt| {
                let backend = Arc::clone(&backend);
                scope.spawn(move || {
                    let n_expected = ids(&prompt["completion_ids"]).len() as u32;
                    let mut request = Request::new(tokens(&prompt["prompt_ids"]))
                        .with_sampling(Sampling::greedy())
                        .with_max_tokens(n_expected);
                    request.logprobs = Some(0);
                    block_on(backend.generate(&request, &mut |_: weighbridge_core::Event<'_>| {
                        std::ops::ControlFlow::Continue(())
                    }))
                    .unwrap()
                })
            })
            .collect();
        for (thread, prompt) in threads.into_iter().zip(prompts) {
            let completion = thread.join().unwrap();
            let got: Vec<u32> =
                completion.logprobs.unwrap().iter().filter_map(|t| Some(t.id?.0)).collect();
            let expected = ids(&prompt["completion_ids"]);
            assert_eq!(got, expected[..got.len()], "{}", prompt["id"]);
            assert!(expected.len() - got.len() <= 1);
        }
    });
}

#[test]
fn continuations_are_scored_as_transformers_scores_them() {
    let backend =
        open_with(&fixtures(), "triage-large/triage-large-f16.gguf", json!({"kv_type": "f32"}))
            .unwrap();
    let reference = json(&fixtures().join("reference/triage-large.json"));
    let pairs = reference["continuations"].as_array().unwrap();
    let pairs: Vec<_> =
        pairs.iter().filter(|pair| !pair["conditioned_on_bos"].as_bool().unwrap()).collect();
    let items = pairs.iter().map(|pair| {
        let context = tokens(&pair["context_ids"]);
        LikelihoodItem::new(Arc::new(context), pair["continuation"].as_str().unwrap())
    });
    let scored =
        block_on(backend.log_likelihood(&LikelihoodRequest::new(items.collect()))).unwrap();
    assert!(!scored.is_empty());
    for (scored, pair) in scored.iter().zip(pairs) {
        let expected: f64 = floats(&pair["logprobs"]).iter().sum();
        let got: f64 = scored.tokens.iter().map(|token| token.logprob.unwrap()).sum();
        assert!((got - expected).abs() < 0.1, "{got} {expected}");
    }
}

#[test]
fn models_are_found_and_paths_explained() {
    let context = OpenContext::new().with_base_dir(fixtures());
    let listed = block_on(LlamaCppProvider.list(&context)).unwrap();
    let names: Vec<String> = listed.iter().map(|listing| listing.model.to_string()).collect();
    assert!(names.contains(&"llama-cpp:triage-open/triage-open-f16.gguf".to_owned()), "{names:?}");
    assert!(listed.iter().all(|listing| listing.card.n_params.is_some()));
    assert_eq!(probe(&fixtures(), "triage-open/triage-open-f16.gguf"), "yes");

    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("README.md"), "# A model").unwrap();
    fs::create_dir(dir.path().join("nothing")).unwrap();
    let lora = data("lora.gguf").display().to_string();
    let bert = data("bert.gguf").display().to_string();
    let open = fixtures().join("triage-open");
    for (base, location, expected) in [
        (dir.path(), "README.md", "is not a GGUF file"),
        (dir.path(), "missing.gguf", "missing.gguf"),
        (dir.path(), "nothing", "it has no GGUF file"),
        (fixtures().as_path(), "triage-open", "GGUF models, such as `"),
        (open.as_path(), "model.safetensors", "is a safetensors file"),
        (dir.path(), &lora, "is an adapter (LoRA)"),
        (dir.path(), &bert, "yes"),
    ] {
        let reason = probe(base, location);
        assert!(reason.contains(expected), "{location}: {reason}");
    }
    let error = open_with(&fixtures(), "triage-open", json!({})).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ModelLoad);
    let model: ModelRef = "llama-cpp:x.gguf#Q4_K_M".parse().unwrap();
    let error = block_on(LlamaCppProvider.open(&model, &context)).unwrap_err();
    assert!(error.to_string().contains("which a file does not have"), "{error}");
}

#[test]
fn an_encoder_embeds_texts_and_says_that_it_does_nothing_else() {
    let backend = open_with(&data(""), "bert.gguf", json!({ "pooling": "cls" })).unwrap();
    let capabilities = backend.capabilities();
    assert!(capabilities.embeddings.is_some() && !capabilities.prompt_logprobs);

    let texts = vec!["ab".to_owned(), "ba ab".to_owned(), "ab".to_owned()];
    let embedded = block_on(backend.embed(&EmbedRequest::new(texts))).unwrap();
    for embedding in &embedded {
        assert_eq!(embedding.vector.len() as u32, capabilities.embeddings.unwrap());
        let norm: f32 = embedding.vector.iter().map(|x| x * x).sum();
        assert!((norm - 1.0).abs() < 1e-5, "{norm}");
    }
    assert_eq!(embedded[0].vector, embedded[2].vector);
    assert_ne!(embedded[0].vector, embedded[1].vector);

    let request = Request::new(Prompt::Text("ab".to_owned()));
    let mut sink = |_: weighbridge_core::Event<'_>| std::ops::ControlFlow::Continue(());
    let error = block_on(backend.generate(&request, &mut sink)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    let item = LikelihoodItem::new(Arc::new(Prompt::Text("ab".to_owned())), "c");
    let error = block_on(backend.log_likelihood(&LikelihoodRequest::new(vec![item]))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
}

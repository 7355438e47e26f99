//! Presets: what is asked when their models are listed and opened, and what their cards say.

use std::sync::Arc;

use serde_json::{Value, json};
use weighbridge_core::{
    Backend, BackendExt, EgressScope, EmbedRequest, ErrorKind, Placement, Prompt, Provider,
    Request, RequestOption, Result, Weights, block_on,
};
use weighbridge_remote::{Remote, Vendor};

use crate::support::{Ledger, context};
use weighbridge_testkit::player::{Act, Player, answer, json as json_answer};

fn document(document: &Value) -> Vec<Act> {
    vec![json_answer("200 OK", &document.to_string())]
}

fn absent() -> Vec<Act> {
    vec![answer("404 Not Found", "", "")]
}

fn open(vendor: Vendor, model: &str, player: &Player, more: Value) -> Result<Arc<dyn Backend>> {
    open_within(EgressScope::Loopback, vendor, model, player, more)
}

fn open_within(
    scope: EgressScope,
    vendor: Vendor,
    model: &str,
    player: &Player,
    more: Value,
) -> Result<Arc<dyn Backend>> {
    let mut options = json!({"base_url": player.url()});
    options.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let provider = Remote::new(vendor);
    let model = format!("{}:{model}", provider.id()).parse().unwrap();
    block_on(provider.open(&model, &context(options, scope, &Arc::default())))
}

fn routes(player: &Player) -> Vec<String> {
    let line = |head: &str| head.lines().next().unwrap_or_default().to_owned();
    player.journal().iter().map(|seen| line(&seen.head)).collect()
}

fn tags() -> Value {
    json!({"models": [{"name": "a:latest", "model": "a:latest", "details":
        {"format": "gguf", "quantization_level": "Q4_K_M", "context_length": 8192},
        "capabilities": ["completion", "vision"]}]})
}

#[test]
fn an_ollama_model_says_what_it_is() {
    let shown = json!({"details": {"format": "gguf", "quantization_level": "Q4_K_M"},
        "model_info": {"general.architecture": "llama", "general.license": "mit",
            "general.parameter_count": 7, "llama.context_length": 8192},
        "modelfile": format!("FROM /m/sha256-{}\n", "a".repeat(64)),
        "capabilities": ["completion", "vision"]});
    let player = Player::start(vec![document(&tags()), document(&shown)]);
    let backend = open(Vendor::Ollama, "a:latest", &player, json!({"verified": true})).unwrap();
    assert_eq!(routes(&player), ["GET /api/tags HTTP/1.1", "POST /api/show HTTP/1.1"]);
    assert_eq!(player.journal()[1].body, r#"{"model":"a:latest"}"#);
    let card = backend.card();
    assert_eq!(card.weights, Weights::Open);
    assert_eq!(card.placement, Placement::LocalServer { verified: true });
    assert_eq!(card.quantization.as_deref(), Some("Q4_K_M"));
    assert_eq!((card.n_params, card.n_ctx), (Some(7), Some(8192)));
    assert_eq!(card.license.as_deref(), Some("mit"));
    assert_eq!(card.weights_sha256, Some("a".repeat(64)));
    assert!(backend.capabilities().supports(RequestOption::ImageInput));
    assert_eq!(backend.capabilities().n_ctx, None, "what it was loaded with is not told");
}

#[test]
fn an_ollama_model_in_the_cloud_is_on_the_network() {
    let shown = json!({"remote_model": "a", "remote_host": "https://cloud.test:443",
        "details": {"format": "gguf"}});
    for (name, shown, host) in
        [("a", shown, "cloud.test"), ("a:20b-cloud", json!({}), "ollama.com")]
    {
        let scripts = vec![document(&tags()), document(&shown)];
        let open = |scope| {
            let player = Player::start(scripts.clone());
            // The user's word does not move a model.
            open_within(scope, Vendor::Ollama, name, &player, json!({"verified": true}))
        };
        let backend = open(EgressScope::Network).unwrap();
        assert_eq!(backend.card().placement, Placement::Network { host: host.to_owned() });
        assert_eq!(backend.card().weights, Weights::Unknown);
        let error = open(EgressScope::Loopback).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::EgressDenied, "{error}");
    }
    // A model of which it is not known where it runs is not opened.
    let player = Player::start(vec![document(&tags()), absent()]);
    let error = open(Vendor::Ollama, "b", &player, json!({})).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn other_presets_open_also_where_nothing_is_told() {
    let list = json!({"data": [{"id": "m", "max_model_len": 4096}]});
    for (vendor, model, expected) in
        [(Vendor::Vllm, "m", Some(4096)), (Vendor::Vllm, "other", None)]
    {
        let player = Player::one(document(&list));
        let backend = open(vendor, model, &player, json!({})).unwrap();
        assert_eq!(backend.capabilities().n_ctx, expected);
        assert_eq!(backend.card().weights, Weights::Unknown);
    }
    for vendor in [Vendor::Vllm, Vendor::LmStudio, Vendor::LlamaServer] {
        let backend = open(vendor, "m", &Player::one(absent()), json!({"n_ctx": 7})).unwrap();
        assert_eq!(backend.card().n_ctx, Some(7));
        assert_eq!(backend.card().placement, Placement::LocalServer { verified: false });
    }
}

#[test]
fn presets_list_what_is_there_and_are_no_error_where_nothing_is() {
    let list = |vendor, options: Value| {
        let context = context(options, EgressScope::Loopback, &Arc::<Ledger>::default());
        block_on(Remote::new(vendor).list(&context))
    };
    let player = Player::one(document(&tags()));
    let found = list(Vendor::Ollama, json!({"base_url": player.url()})).unwrap();
    assert_eq!(found[0].model.to_string(), "ollama:a:latest");
    assert_eq!(found[0].card.weights, Weights::Open);
    for vendor in [Vendor::Ollama, Vendor::LmStudio, Vendor::Vllm, Vendor::LlamaServer] {
        // Whatever else may listen at the usual ports of this machine, this is no error.
        assert!(list(vendor, json!({})).is_ok(), "{vendor:?}");
    }
}

#[test]
fn tokens_are_counted_and_texts_embedded() {
    let counted = json!({"count": 11, "max_model_len": 4096, "tokens": []});
    let embedded = json!({"model": "m", "usage": {"prompt_tokens": 2, "total_tokens": 2}, "data":
        [{"index": 1, "embedding": [0.0, 2.0]}, {"index": 0, "embedding": [3.0, 4.0]}]});
    let player = Player::start(vec![absent(), document(&counted), document(&embedded)]);
    let backend = open(Vendor::Vllm, "m", &player, json!({"dimensions": 2})).unwrap();
    assert!(backend.capabilities().count_tokens);
    assert_eq!(block_on(backend.count_tokens(&Prompt::user("Hi"))).unwrap(), 11);
    assert_eq!(backend.capabilities().embeddings, Some(2));
    let mut request = EmbedRequest::new(vec!["a".into(), "b".into()]);
    let vectors = |request: &EmbedRequest| -> Vec<Vec<f32>> {
        block_on(backend.embed(request)).unwrap().into_iter().map(|e| e.vector).collect()
    };
    assert_eq!(vectors(&request), [[0.6, 0.8], [0.0, 1.0]]);
    request.normalize = false;
    assert_eq!(vectors(&request), [[3.0, 4.0], [0.0, 2.0]]);
    let routes = routes(&player);
    assert_eq!(routes[1..3], ["POST /tokenize HTTP/1.1", "POST /v1/embeddings HTTP/1.1"]);
    // One vector too few.
    request.texts.push("c".into());
    let error = block_on(backend.embed(&request)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol);

    // Without a known size nothing is promised, and nothing is asked.
    let player = Player::one(absent());
    let backend = open(Vendor::Vllm, "m", &player, json!({})).unwrap();
    let error = block_on(backend.embed(&request)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(player.journal().len(), 1);
    let player = Player::start(vec![absent(), vec![answer("429 Too Many Requests", "", "{}")]]);
    let backend = open(Vendor::Vllm, "m", &player, json!({"dimensions": 2})).unwrap();
    let error = block_on(backend.count_tokens(&Prompt::user("Hi"))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RateLimited);
}

#[test]
fn openai_speaks_responses_unless_told_otherwise() {
    let whole = json!({"id": "r", "object": "response", "status": "completed", "model": "m",
        "output": [{"type": "message", "role": "assistant",
            "content": [{"type": "output_text", "text": "Hi"}]}]});
    let player = Player::one(document(&whole));
    let keyless = json!({"api_key_env": ""});
    let backend = open(Vendor::OpenAi, "m", &player, keyless).unwrap();
    let completion = backend.complete_blocking(&Request::user("Hi")).unwrap();
    assert_eq!(completion.text, "Hi");
    assert_eq!(completion.effective.values["store"], false);
    assert_eq!(routes(&player), ["POST /v1/responses HTTP/1.1"]);
    let error = backend.complete_blocking(&Request::user("Hi").with_stop("x")).unwrap_err();
    assert_eq!(error.context("option"), Some("stop"));

    let chat = json!({"api_key_env": "", "api": "chat", "fixed_sampling": true});
    let backend = open(Vendor::OpenAi, "m", &player, chat).unwrap();
    let mut request = Request::user("Hi");
    let error = backend.complete_blocking(&request).unwrap_err();
    assert_eq!(error.context("option"), Some("temperature"));
    request.wishes.push(RequestOption::Temperature);
    assert_eq!(
        backend.complete_blocking(&request).unwrap_err().kind(),
        ErrorKind::Protocol,
        "a response is no chat completion"
    );
    assert_eq!(routes(&player)[1], "POST /v1/chat/completions HTTP/1.1");
    assert!(!player.journal()[1].body.contains("temperature"));
}

//! Names, options, keys, egress, and callers with and without a runtime.

use std::sync::Arc;

use serde_json::{Value, json};
use weighbridge_core::{
    BackendExt, EgressScope, ErrorKind, ModelRef, OpenContext, Placement, Probe, Provider, Request,
    Weights, block_on,
};
use weighbridge_remote::{Remote, Vendor, plugin};

use crate::support::{CANARY, Ledger, assert_no_canary, context, open, try_open};
use weighbridge_testkit::player::{Player, answer, json as json_answer};

const ANSWER: &str = r#"{"choices":[{"message":{"content":"a"},"finish_reason":"stop"}]}"#;

fn reference(url: &str) -> ModelRef {
    format!("openai-compatible:{url}").parse().unwrap()
}

fn listing(ids: &[&str]) -> Player {
    let models: Vec<Value> = ids.iter().map(|id| json!({"id": id, "object": "model"})).collect();
    let list = json!({"object": "list", "data": models}).to_string();
    Player::start(vec![vec![json_answer("200 OK", &list)], vec![json_answer("200 OK", ANSWER)]])
}

#[test]
fn without_egress_nothing_leaves() {
    let player = listing(&["m"]);
    let model = reference(&player.url());
    let provider = Remote::new(Vendor::OpenAiCompatible);
    let error = block_on(provider.open(&model, &OpenContext::new())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::EgressDenied);
    let error = block_on(provider.list(&OpenContext::new())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::EgressDenied);
    let Probe::No { reason } = block_on(provider.probe(&model, &OpenContext::new())) else {
        panic!("probed without egress");
    };
    assert!(reason.contains("offline"), "{reason}");
    assert_eq!(player.n_connections(), 0);
    assert!(provider.describe().needs_egress);
}

#[test]
fn loopback_scope_reaches_no_other_host() {
    for host in ["10.1.2.3", "[2001:db8::1]", "0.0.0.0", "192.168.0.1:8080"] {
        let error = try_open(&format!("http://{host}/v1#m"), json!({})).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::EgressDenied, "{host}");
        assert!(error.context("host").is_some());
    }
    // The name of this machine's loopback is judged by what it stands for.
    assert!(try_open("http://localhost:1/v1#m", json!({})).is_ok());
    let ledger = Arc::<Ledger>::default();
    let open = |options| {
        let context = context(options, EgressScope::Network, &ledger);
        block_on(
            Remote::new(Vendor::OpenAiCompatible)
                .open(&reference("http://10.1.2.3/v1#m"), &context),
        )
    };
    let backend = open(json!({})).unwrap();
    assert_eq!(backend.card().placement, Placement::Network { host: "10.1.2.3".into() });
    let error = open(json!({"api_key_env": "CANARY_KEY"})).unwrap_err();
    assert!(error.message().contains("never sent to 10.1.2.3 over plain http"), "{error}");
    assert_no_canary(&error);
}

#[test]
fn every_exchange_is_in_the_ledger() {
    let player = listing(&["m"]);
    let ledger = Arc::<Ledger>::default();
    let context = context(json!({"stream": false}), EgressScope::Loopback, &ledger);
    let backend =
        block_on(Remote::new(Vendor::OpenAiCompatible).open(&reference(&player.url()), &context))
            .unwrap();
    backend.complete_blocking(&Request::user("Hi")).unwrap();
    let n_sent = player.journal()[1].body.len() as u64;
    let entries = ledger.0.lock().unwrap();
    assert_eq!(entries.len(), 2);
    assert!(entries.iter().all(|e| e.is_loopback && e.host == player.address().to_string()));
    assert_eq!((entries[0].n_bytes_sent, entries[1].n_bytes_sent), (0, n_sent));
    assert_eq!(entries[1].n_bytes_received, ANSWER.len() as u64);
}

#[test]
fn a_model_need_not_be_named_where_there_is_one() {
    let player = listing(&["only"]);
    let backend = try_open(&player.url(), json!({"verified": true, "n_ctx": 512})).unwrap();
    let card = backend.card();
    assert_eq!((card.id.as_str(), card.n_ctx), ("only", Some(512)));
    assert_eq!(card.placement, Placement::LocalServer { verified: true });
    assert_eq!(card.weights, Weights::Unknown);
    assert_eq!(player.journal()[0].head.lines().next(), Some("GET /v1/models HTTP/1.1"));

    let error = try_open(&listing(&["a", "b"]).url(), json!({})).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.message().contains("behind `#` in the URL; it lists `a`, `b`"), "{error}");
    let error = try_open(&listing(&[]).url(), json!({})).unwrap_err();
    assert!(error.message().contains("lists none"), "{error}");
    let html = Player::one(vec![answer("200 OK", "content-type: text/html\r\n", "<html>")]);
    let error = try_open(&html.url(), json!({})).unwrap_err();
    assert!(error.message().contains("lists no models"), "{error}");
    let error = try_open(&format!("{}#a", html.url()), json!({"model": "b"})).unwrap_err();
    assert!(error.message().contains("named twice"), "{error}");
}

#[test]
fn servers_are_listed_and_probed() {
    let player = listing(&["a", "b"]);
    let ledger = Arc::<Ledger>::default();
    let context = context(json!({"url": player.url()}), EgressScope::Loopback, &ledger);
    let provider = Remote::new(Vendor::OpenAiCompatible);
    let found = block_on(provider.list(&context)).unwrap();
    let names: Vec<_> = found.iter().map(|l| l.model.to_string()).collect();
    assert_eq!(names[1], format!("openai-compatible:{}#b", player.url()));

    let probe = |url: &str| block_on(provider.probe(&reference(url), &context));
    assert_eq!(probe(&listing(&["a"]).url()), Probe::Yes);
    let two = listing(&["a", "b"]);
    assert_eq!(probe(&format!("{}#x", two.url())), Probe::Yes);
    assert!(matches!(probe(&listing(&["a", "b"]).url()), Probe::No { .. }));
    let unlisted = Player::one(vec![answer("404 Not Found", "", "")]);
    assert_eq!(probe(&format!("{}#x", unlisted.url())), Probe::Yes);
    let Probe::No { reason } = probe("http://127.0.0.1:1/v1#x") else { panic!("nothing is there") };
    assert!(reason.contains("nothing listens at 127.0.0.1:1"), "{reason}");
}

#[test]
fn bad_names_and_options_say_what_to_do() {
    for (url, options, part) in [
        ("http://h/v1?key=sk-canary", json!({}), "must not hold a query"),
        ("http://sk-canary@h", json!({}), "takes no `@`"),
        ("http://sk-canary@h/v1", json!({}), "must not hold a user"),
        ("models/sk-canary", json!({}), "is not a URL"),
        ("http://127.0.0.1:1/v1#m", json!({"timeout": 5}), "unknown option `timeout`"),
        ("http://127.0.0.1:1/v1#m", json!({"api_key_env": "ABSENT"}), "secret `ABSENT` is not set"),
    ] {
        let error = try_open(url, options).unwrap_err();
        assert!(error.message().contains(part), "{error}");
        assert_no_canary(&error);
    }
}

#[test]
fn a_key_is_sent_only_where_one_is_named() {
    let player = Player::one(vec![json_answer("200 OK", ANSWER)]);
    let backend = try_open(&format!("{}#m", player.url()), json!({})).unwrap();
    backend.complete_blocking(&Request::user("Hi")).unwrap();
    assert_eq!(player.journal()[0].header("authorization"), None);
    let backend = open(&player, json!({}));
    backend.complete_blocking(&Request::user("Hi")).unwrap();
    assert_eq!(player.journal()[1].header("authorization").unwrap(), format!("Bearer {CANARY}"));
    assert!(!format!("{backend:?} {backend:#?}").contains("canary"));
}

#[test]
fn the_request_on_the_wire() {
    let player = Player::one(vec![json_answer("200 OK", ANSWER)]);
    let backend = open(&player, json!({}));
    backend.complete_blocking(&Request::user("Hi").with_max_tokens(5).with_stop("\n")).unwrap();
    let seen = &player.journal()[0];
    let head = seen.head.replace(&player.address().to_string(), "ADDR").replace(CANARY, "KEY");
    let mut lines: Vec<&str> = head.trim_end().lines().collect();
    lines[1..].sort_unstable();
    insta::assert_snapshot!(format!("{}\n\n{}", lines.join("\n"), seen.body), @r#"
    POST /v1/chat/completions HTTP/1.1
    accept-encoding: identity
    accept: text/event-stream, application/json
    authorization: Bearer KEY
    content-length: 158
    content-type: application/json
    host: ADDR
    user-agent: weighbridge/0.1.0

    {"model":"m","messages":[{"role":"user","content":"Hi"}],"temperature":0.0,"stop":["\n"],"max_tokens":5,"stream":true,"stream_options":{"include_usage":true}}
    "#);
}

#[test]
fn works_without_a_runtime_and_within_any() {
    let player = Player::one(vec![json_answer("200 OK", ANSWER)]);
    let backend = open(&player, json!({}));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let backend = Arc::clone(&backend);
            std::thread::spawn(move || {
                backend.complete_blocking(&Request::user("Hi")).unwrap().text
            })
        })
        .collect();
    for thread in threads {
        assert_eq!(thread.join().unwrap(), "a");
    }
    // A runtime of the caller that has neither I/O nor time.
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let model = reference(&format!("{}#m", player.url()));
    let text = runtime.block_on(async {
        let context = context(json!({}), EgressScope::Loopback, &Arc::default());
        let backend = Remote::new(Vendor::OpenAiCompatible).open(&model, &context).await.unwrap();
        let task = tokio::spawn(async move { backend.complete(&Request::user("Hi")).await });
        task.await.unwrap().unwrap().text
    });
    assert_eq!(text, "a");
    drop(runtime);
    assert_eq!(backend.complete_blocking(&Request::user("Hi")).unwrap().text, "a");
}

#[test]
fn the_plugin_registers_itself() {
    let registry = weighbridge_core::Registry::linked(&[("weighbridge_remote", plugin)]).unwrap();
    assert_eq!(registry.provider("openai-compatible").unwrap().id(), "openai-compatible");
}

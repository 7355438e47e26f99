//! Keys: where they go, and that nothing of an answer shows them.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use serde_json::{Value, json};
use weighbridge_core::{
    Backend, BackendExt, Completion, Egress, EgressScope, Event, ModelRef, OpenContext, Provider,
    Request, block_on,
};
use weighbridge_remote::{Remote, Vendor};

use crate::support::{CANARY, Keys, Ledger, ask, open};
use weighbridge_testkit::player::{Player, answer, json as json_answer, stream};

/// Names under which vendors' keys are kept.
const VENDOR_KEYS: [&str; 5] = [
    "ANTHROPIC_API_KEY",
    "OPENAI_API_KEY",
    "GEMINI_API_KEY",
    "OPENROUTER_API_KEY",
    "AZURE_OPENAI_API_KEY",
];

fn open_vendor(vendor: Vendor, player: &Player, options: Value) -> Arc<dyn Backend> {
    let names = VENDOR_KEYS.into_iter().chain(["OTHER_KEY"]);
    let keys: BTreeMap<_, _> =
        names.map(|name| (name.to_owned(), format!("{CANARY}-{name}"))).collect();
    let mut all = json!({"base_url": player.url()});
    all.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
    let context = OpenContext::new()
        .with_options(all.as_object().unwrap().clone())
        .with_egress(Egress::grant(EgressScope::Loopback, Arc::<Ledger>::default()))
        .with_secrets(Arc::new(Keys(keys)));
    let provider = Remote::new(vendor);
    let model: ModelRef = format!("{}:m", provider.id()).parse().unwrap();
    block_on(provider.open(&model, &context)).unwrap()
}

#[test]
fn row_84_a_vendors_key_is_not_sent_to_another_address() {
    for vendor in [Vendor::Anthropic, Vendor::OpenAi, Vendor::Gemini, Vendor::OpenRouter] {
        let player = Player::one(vec![answer("500 Internal Server Error", "", "")]);
        let backend = open_vendor(vendor, &player, json!({}));
        backend.complete_blocking(&Request::user("Hi").with_max_tokens(5)).unwrap_err();
        let head = &player.journal()[0].head;
        assert!(!head.contains("canary"), "{vendor:?}: {head}");

        // Named by its user it goes there, and it is that one.
        let player = Player::one(vec![answer("500 Internal Server Error", "", "")]);
        let backend = open_vendor(vendor, &player, json!({"api_key_env": "OTHER_KEY"}));
        backend.complete_blocking(&Request::user("Hi").with_max_tokens(5)).unwrap_err();
        let head = &player.journal()[0].head;
        assert!(head.contains(&format!("{CANARY}-OTHER_KEY")), "{vendor:?}: {head}");
        assert_eq!(head.matches("canary").count(), 1, "{vendor:?}: {head}");
    }
}

/// What was pushed as text, reasoning and arguments, and what the call came to.
fn pushed(player: &Player) -> ([String; 3], Completion) {
    let mut pushed = [const { String::new() }; 3];
    let mut sink = |event: Event<'_>| {
        match event {
            Event::Text(text) => pushed[0].push_str(&text),
            Event::Reasoning(text) => pushed[1].push_str(&text),
            Event::ToolArgs { fragment, .. } => pushed[2].push_str(&fragment),
            _ => {}
        }
        ControlFlow::Continue(())
    };
    let backend = open(player, json!({}));
    let completion = block_on(backend.generate(&Request::user("Hi"), &mut sink)).unwrap();
    (pushed, completion)
}

fn deltas(deltas: &[Value]) -> Player {
    let chunk = |delta: &Value, reason: Value| {
        let choice = json!({"index": 0, "delta": delta, "finish_reason": reason});
        format!("data: {}\n\n", json!({"choices": [choice]}))
    };
    let mut body: String = deltas.iter().map(|delta| chunk(delta, Value::Null)).collect();
    body += &chunk(&json!({}), "stop".into());
    Player::one(stream(body + "data: [DONE]\n\n"))
}

#[test]
fn row_83_a_key_in_an_answer_is_taken_out_wherever_it_is_cut() {
    for cut in 0..=CANARY.len() {
        let parts = [format!("my key is {}", &CANARY[..cut]), format!("{}, is", &CANARY[cut..])];
        let expected = "my key is [redacted], is";
        let player = deltas(&parts.clone().map(|part| json!({"content": part})));
        let (pushed, completion) = pushed(&player);
        assert_eq!((pushed[0].as_str(), completion.text.as_str()), (expected, expected), "{cut}");
        assert_eq!(
            completion.warnings,
            ["key_redacted: the answer held the key, which was taken out"]
        );
    }
    // One character at a time, in every place that content goes to.
    let call = |args: &str| json!({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": args}}]});
    let text = format!("<{CANARY}>");
    let mut all = Vec::new();
    for c in text.chars().map(String::from) {
        all.push(json!({"reasoning_content": c}));
    }
    for c in text.chars().map(String::from) {
        all.push(json!({"content": c}));
    }
    for c in text.chars().map(String::from) {
        all.push(call(&c));
    }
    let (pushed, completion) = pushed(&deltas(&all));
    assert_eq!(pushed, ["<[redacted]>"; 3]);
    assert_eq!(completion.text, pushed[0]);
    assert_eq!(completion.reasoning, pushed[1]);
    assert_eq!(completion.tool_calls[0].arguments, pushed[2]);
}

#[test]
fn row_83_a_key_is_taken_out_though_something_else_comes_in_its_middle() {
    let (first, rest) = CANARY.split_at(9);
    let call = json!({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}]});
    let (content, reasoning) = (|s| json!({"content": s}), |s| json!({"reasoning_content": s}));
    for other in [reasoning("so"), call] {
        let player = deltas(&[content(first), other.clone(), content(rest), content(" s")]);
        let (pushed, completion) = pushed(&player);
        assert_eq!(completion.text, "[redacted] s", "{other}");
        assert_eq!(pushed[0], completion.text);
        assert_eq!(pushed[1], completion.reasoning);
    }
    let player = deltas(&[reasoning(first), content("a"), reasoning(rest), content("s")]);
    let (pushed, completion) = pushed(&player);
    assert_eq!((completion.reasoning.as_str(), completion.text.as_str()), ("[redacted]", "as"));
    assert_eq!((&pushed[1], &pushed[0]), (&completion.reasoning, &completion.text));
}

#[test]
fn row_83_a_token_shows_no_key() {
    let token = |text: &str| json!({"token": text, "bytes": text.as_bytes(), "logprob": -1.0});
    let mut entry = token(CANARY);
    entry["top_logprobs"] = json!([token(CANARY), token("a")]);
    let body = json!({"choices": [{"index": 0, "finish_reason": "stop",
        "message": {"content": CANARY}, "logprobs": {"content": [entry]}}]});
    let player = Player::one(vec![json_answer("200 OK", &body.to_string())]);
    let mut request = Request::user("Hi");
    request.logprobs = Some(2);
    let completion = open(&player, json!({})).complete_blocking(&request).unwrap();
    let token = &completion.logprobs.unwrap()[0];
    assert_eq!(token.bytes, b"[redacted]");
    assert_eq!(token.top[0].bytes, b"[redacted]");
    assert_eq!(token.top[1].bytes, b"a");
}

#[test]
fn what_only_begins_like_a_key_is_the_models_own() {
    for text in ["task", "risks", "sk-", &CANARY[..CANARY.len() - 1], "sk-sk-sk-canary/", "c2st"] {
        let parts: Vec<_> = text.chars().map(|c| json!({"content": c.to_string()})).collect();
        let (pushed, completion) = pushed(&deltas(&parts));
        assert_eq!((pushed[0].as_str(), completion.text.as_str()), (text, text));
        assert!(completion.warnings.is_empty());
    }
}

#[test]
fn a_sink_that_stops_has_seen_all_that_is_returned() {
    let player = deltas(&["one s", "k-two"].map(|part| json!({"content": part})));
    let mut seen = String::new();
    let mut sink = |event: Event<'_>| {
        if let Event::Text(text) = event {
            seen.push_str(&text);
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    };
    let backend = open(&player, json!({}));
    let completion = block_on(backend.generate(&Request::user("Hi"), &mut sink)).unwrap();
    assert_eq!((seen.as_str(), completion.text.as_str()), ("one ", "one "));
}

#[test]
fn row_83_what_a_server_says_beside_the_answer_shows_no_key() {
    let body = json!({
        "id": CANARY, "model": CANARY, "system_fingerprint": CANARY, "x": {CANARY: [CANARY]},
        "choices": [{"index": 0, "finish_reason": "stop", "message": {
            "content": "a", "y": CANARY,
            "tool_calls": [{"id": CANARY, "function": {"name": CANARY, "arguments": "{}"}}],
        }}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "z": CANARY},
    });
    let completion = ask(vec![json_answer("200 OK", &body.to_string())]).unwrap();
    let shown = format!("{completion:?}");
    assert!(!shown.contains("canary"), "{shown}");
    assert!(shown.contains("[redacted]"), "{shown}");
}

/// Programs unwrap, and print what they hold.
#[test]
fn a_panic_shows_no_key() {
    use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
    use std::sync::Mutex;

    let heard = Arc::new(Mutex::new(String::new()));
    let ear = Arc::clone(&heard);
    let usual = take_hook();
    set_hook(Box::new(move |panic| ear.lock().unwrap().push_str(&format!("{panic}\n"))));
    for vendor in [Vendor::Anthropic, Vendor::OpenAi, Vendor::Gemini, Vendor::OpenRouter] {
        // A server that repeats the key it got.
        let echo = format!(r#"{{"error":{{"message":"no such key: {CANARY}-OTHER_KEY"}}}}"#);
        let player = Player::one(vec![json_answer("401 Unauthorized", &echo)]);
        let backend = open_vendor(vendor, &player, json!({"api_key_env": "OTHER_KEY"}));
        let panics: [&dyn Fn(); 2] = [
            &|| drop(backend.complete_blocking(&Request::user("Hi").with_max_tokens(5)).unwrap()),
            &|| panic!("{backend:?} {:#?}", backend.card()),
        ];
        for panics in panics {
            catch_unwind(AssertUnwindSafe(panics)).unwrap_err();
        }
    }
    set_hook(usual);
    let heard = heard.lock().unwrap();
    assert_eq!(heard.matches("[redacted]").count(), 4, "{heard}");
    assert!(!heard.contains("canary"), "{heard}");
}

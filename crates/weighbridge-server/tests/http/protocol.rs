//! Answers in OpenAI's form, streamed and not, and how they end.

use std::io::Read;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use weighbridge_core::{Backend, ErrorKind, Prompt, Sampling, StopReason, TokenId};
use weighbridge_server::{JournalEntry, JournalEvent, Server};

use crate::support::{
    Scripted, Step, chat, connect, free, get, post, post_chat, request, server, within_a_second,
};

fn hello() -> Vec<Step> {
    vec![Step::think("hm"), Step::token("Hel", -0.5), Step::token("lo", -0.25)]
}

/// An answer without what differs from run to run.
fn shown(mut document: Value) -> String {
    assert!(document["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert!(document["created"].as_u64().unwrap() > 0);
    document["id"] = "ID".into();
    document["created"] = 0.into();
    document.to_string()
}

#[test]
fn a_document_has_openais_form() {
    let model = Scripted::new(hello());
    let server = server(&model);
    let reply = post_chat(
        server.addr(),
        json!({
            "temperature": 0.5, "seed": 3, "stop": ["\n"], "max_completion_tokens": 9, "user": "u",
        }),
    );
    assert_eq!(reply.status, 200);
    insta::assert_snapshot!(shown(reply.json()), @r#"{"id":"ID","object":"chat.completion","created":0,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"Hello","refusal":null,"reasoning_content":"hm"},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}"#);
    let seen = model.requests()[0].clone();
    let mut sampling = Sampling::default();
    sampling.temperature = Some(0.5);
    sampling.seed = Some(3);
    assert_eq!(seen.sampling, sampling);
    assert_eq!((seen.stop, seen.max_tokens), (vec!["\n".to_owned()], Some(9)));
    assert_eq!(seen.prompt, Prompt::user("Hi"));
}

#[test]
fn a_stream_has_openais_form() {
    let model = Scripted::new(hello());
    let server = server(&model);
    let reply = post_chat(
        server.addr(),
        json!({
            "stream": true, "stream_options": {"include_usage": true}, "logprobs": true,
        }),
    );
    assert_eq!(reply.headers["content-type"], "text/event-stream; charset=utf-8");
    let mut events = reply.events();
    assert_eq!(events.pop().as_deref(), Some("[DONE]"));
    let events: Vec<String> =
        events.iter().map(|e| shown(serde_json::from_str(e).unwrap())).collect();
    let cut = |event: &String| event.split_once("\"choices\":").unwrap().1.to_owned();
    insta::assert_snapshot!(events.iter().map(cut).collect::<Vec<_>>().join("\n"), @r#"
    [{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"usage":null}
    [{"index":0,"delta":{"reasoning_content":"hm"},"logprobs":null,"finish_reason":null}],"usage":null}
    [{"index":0,"delta":{"content":"Hel"},"logprobs":{"content":[{"token":"Hel","logprob":-0.5,"bytes":[72,101,108],"top_logprobs":[{"token":"Hel","logprob":-0.5,"bytes":[72,101,108]},{"token":"other","logprob":-1.5,"bytes":[111,116,104,101,114]}]}],"refusal":null},"finish_reason":null}],"usage":null}
    [{"index":0,"delta":{"content":"lo"},"logprobs":{"content":[{"token":"lo","logprob":-0.25,"bytes":[108,111],"top_logprobs":[{"token":"lo","logprob":-0.25,"bytes":[108,111]},{"token":"other","logprob":-1.25,"bytes":[111,116,104,101,114]}]}],"refusal":null},"finish_reason":null}],"usage":null}
    [{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],"usage":null}
    [],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}
    "#);
    assert!(
        events[0]
            .starts_with(r#"{"id":"ID","object":"chat.completion.chunk","created":0,"model":"m","#)
    );
}

#[test]
fn reasons_refusals_and_tools_have_openais_words() {
    for (reason, word) in [
        (StopReason::Length, "length"),
        (StopReason::ContentFilter, "content_filter"),
        (StopReason::Other, "other"),
    ] {
        let model = Scripted::new(vec![Step::say("a"), Step::End(reason)]);
        let server = server(&model);
        assert_eq!(post_chat(server.addr(), json!({})).json()["choices"][0]["finish_reason"], word);
    }
    let model = Scripted::new(vec![Step::say("no"), Step::End(StopReason::Refusal)]);
    let running = server(&model);
    let message = &post_chat(running.addr(), json!({})).json()["choices"][0]["message"];
    assert_eq!((&message["content"], &message["refusal"]), (&Value::Null, &json!("no")));

    let steps =
        vec![Step::Call("f", "{\"a\":1}"), Step::Call("g", "{}"), Step::End(StopReason::ToolCalls)];
    let model = Scripted::new(steps);
    let running = server(&model);
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]);
    let reply = post_chat(running.addr(), json!({"tools": tools})).json();
    let choice = &reply["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(choice["message"]["tool_calls"][0]["function"]["arguments"], "{\"a\":1}");
    let reply = post_chat(running.addr(), json!({"tools": tools, "stream": true}));
    let pieces: String = reply
        .events()
        .iter()
        .filter_map(|e| serde_json::from_str::<Value>(e).ok())
        .filter_map(|e| {
            let call = &e["choices"][0]["delta"]["tool_calls"][0];
            (call["index"] == 0).then(|| call["function"]["arguments"].as_str().unwrap().to_owned())
        })
        .collect();
    assert_eq!(pieces, "{\"a\":1}");
}

#[test]
fn raw_completions_take_text_and_tokens() {
    let model = Scripted::new(hello());
    let server = server(&model);
    let body = json!({"model": "m", "prompt": [1, 2], "logprobs": 2});
    let reply = post(server.addr(), "/v1/completions", &body).json();
    assert_eq!(reply["object"], "text_completion");
    let choice = &reply["choices"][0];
    assert_eq!(choice["text"], "Hello");
    assert_eq!(choice["logprobs"]["tokens"], json!(["Hel", "lo"]));
    assert_eq!(choice["logprobs"]["text_offset"], json!([0, 3]));
    assert_eq!(choice["logprobs"]["token_logprobs"], json!([-0.5, -0.25]));
    let prompt = model.requests()[0].prompt.clone();
    assert_eq!(prompt, Prompt::Tokens(vec![TokenId(1), TokenId(2)]));
    let body = json!({"model": "m", "prompt": "a", "stream": true});
    let events = post(server.addr(), "/v1/completions", &body).events();
    assert!(events[0].contains(r#""choices":[{"index":0,"text":"Hel""#), "{events:?}");
    assert_eq!(events.last().unwrap(), "[DONE]");
}

#[test]
fn models_health_and_unknown_routes() {
    let model = Scripted::new(vec![]);
    let server = server(&model);
    let addr = server.addr();
    assert_eq!(get(addr, "/health").json(), json!({"status": "ok"}));
    assert_eq!(get(addr, "/v1/models").json()["data"][0]["id"], "m");
    assert_eq!(get(addr, "/v1/models/m").json()["object"], "model");
    assert_eq!(get(addr, "/v1/models/x").status, 404);
    assert_eq!(get(addr, "/api/pull").status, 404);
    assert_eq!(get(addr, "/v1/chat/completions").status, 405);
    assert_eq!(post(addr, "/health", &json!({})).status, 405);
    let reply = post_chat(addr, json!({"model": "other"}));
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (404, &json!("model_not_found")));
    assert_eq!(server.stats().models["m"].started, 0);
    assert_eq!(server.stats().rejected, 5);
}

#[test]
fn failures_before_content_have_a_status_and_after_it_an_event() {
    for (kind, status) in [
        (ErrorKind::ContextOverflow, 400),
        (ErrorKind::Unsupported, 400),
        (ErrorKind::RateLimited, 429),
        (ErrorKind::Quota, 429),
        (ErrorKind::Overloaded, 503),
        (ErrorKind::Timeout, 504),
        (ErrorKind::Truncated, 502),
        (ErrorKind::Auth, 502),
        (ErrorKind::Engine, 500),
        (ErrorKind::EngineDied, 500),
    ] {
        let model = Scripted::new(vec![Step::fail(kind)]);
        let server = server(&model);
        for stream in [false, true] {
            let reply = post_chat(server.addr(), json!({"stream": stream}));
            assert_eq!(reply.status, status, "{kind:?}");
            assert_eq!(reply.json()["error"]["message"], "the script failed");
        }
        assert_eq!(server.stats().models["m"].failed, 2);
    }
    let model = Scripted::new(vec![Step::say("half"), Step::fail(ErrorKind::Truncated)]);
    let server = server(&model);
    let reply = post_chat(server.addr(), json!({"stream": true}));
    assert_eq!(reply.status, 200);
    let events = reply.events();
    assert!(events.last().unwrap().starts_with(r#"{"error":{"message":"the script failed""#));
    assert!(!reply.body.contains("[DONE]"));
    let reply = post_chat(server.addr(), json!({"temperature": 0, "top_k": 4, "min_p": 0.1}));
    assert_eq!(reply.status, 400);
    assert_eq!(reply.json()["error"]["param"], "top_k,min_p");
}

#[test]
fn a_client_that_leaves_cancels_its_generation() {
    let wait = Step::Wait(Duration::from_secs(60));
    for (steps, stream) in [
        (vec![wait.clone()], false),
        (vec![wait.clone()], true),
        (vec![Step::say("a"), wait], true),
    ] {
        let model = Scripted::new(steps);
        let server = server(&model);
        let body = chat(json!({"stream": stream})).to_string();
        let headers = "content-type: application/json\r\n";
        let mut client = connect(server.addr());
        client
            .write_all(&request(server.addr(), "POST", "/v1/chat/completions", headers, &body))
            .unwrap();
        within_a_second("started", || server.stats().models["m"].started == 1);
        if stream && model.requests().len() == 1 {
            std::thread::sleep(Duration::from_millis(50));
        }
        drop(client);
        within_a_second("dropped", || model.n_ended() == 1);
        within_a_second("cancelled", || server.stats().models["m"].cancelled == 1);
    }
}

#[test]
fn every_call_is_counted_and_journaled() {
    let model = Scripted::new(hello());
    let backend: Arc<dyn Backend> = model.clone();
    let entries = Arc::new(Mutex::new(Vec::<JournalEntry>::new()));
    let log = Arc::clone(&entries);
    let server = Server::new([("m".to_owned(), backend.clone())])
        .with_journal(move |entry| log.lock().unwrap().push(entry.clone()))
        .spawn(free())
        .unwrap();
    for _ in 0..3 {
        assert_eq!(post_chat(server.addr(), json!({"stream": true})).status, 200);
    }
    assert_eq!(post_chat(server.addr(), json!({"novel": 1})).status, 400);
    let stats = get(server.addr(), "/weighbridge/stats").json();
    assert_eq!(
        stats,
        json!({"models": {"m": {"started": 3, "completed": 3, "failed": 0, "cancelled": 0}},
            "rejected": 1})
    );
    let entries = entries.lock().unwrap().clone();
    assert_eq!(entries.len(), 6);
    assert!(entries.iter().all(|e| e.request_sha256 == entries[0].request_sha256));
    assert_eq!(entries.iter().filter(|e| e.event == JournalEvent::Completed).count(), 3);

    let path = std::env::temp_dir().join(format!("weighbridge-journal-{}", std::process::id()));
    let server = Server::new([("m".to_owned(), backend)])
        .with_journal_file(&path)
        .unwrap()
        .spawn(free())
        .unwrap();
    post_chat(server.addr(), json!({}));
    let lines = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let parsed: Vec<JournalEntry> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(parsed.len(), 2);
    assert_eq!(server.stop().unwrap().models["m"].completed, 1);
}

#[test]
fn a_shutdown_lets_calls_end() {
    let model =
        Scripted::new(vec![Step::say("a"), Step::Wait(Duration::from_millis(300)), Step::say("b")]);
    let server = server(&model);
    let addr = server.addr();
    let client = std::thread::spawn(move || post_chat(addr, json!({"stream": true})));
    within_a_second("started", || server.stats().models["m"].started == 1);
    let stats = server.stop().unwrap();
    assert_eq!(stats.models["m"].completed, 1);
    assert_eq!(client.join().unwrap().events().last().unwrap(), "[DONE]");
    assert!(std::net::TcpStream::connect(addr).is_err());
}

#[test]
fn a_kept_connection_serves_several_requests() {
    let model = Scripted::new(hello());
    let server = server(&model);
    let body = chat(json!({})).to_string();
    let mut client = connect(server.addr());
    for _ in 0..3 {
        let bytes = request(
            server.addr(),
            "POST",
            "/v1/chat/completions",
            "content-type: application/json\r\n",
            &body,
        );
        let bytes = String::from_utf8(bytes).unwrap().replace("connection: close\r\n", "");
        client.write_all(bytes.as_bytes()).unwrap();
        let mut answer = Vec::new();
        let mut buffer = [0; 4096];
        while !answer.ends_with(b"}") {
            let n = client.read(&mut buffer).unwrap();
            answer.extend_from_slice(&buffer[..n]);
        }
        assert!(answer.starts_with(b"HTTP/1.1 200"));
    }
    assert_eq!(server.stats().models["m"].completed, 3);
}

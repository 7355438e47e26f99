//! Whole, odd and cut streams.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weighbridge_core::{
    BackendExt, Completion, ErrorKind, Message, Outcome, Prompt, Request, Result, Retry,
    StopReason, StopSink, block_on,
};

use crate::support::{ask, open, transcript};
use weighbridge_testkit::player::{
    Act, Player, chunked, json as json_answer, send, sse_head, stream,
};

fn event(value: Value) -> String {
    format!("data: {value}\n\n")
}

fn delta(delta: Value, finish: Option<&str>) -> String {
    event(json!({"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m-served",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}))
}

fn text(text: &str) -> String {
    delta(json!({"content": text}), None)
}

fn usage(prompt: u64, generated: u64) -> String {
    event(json!({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": generated,
        "total_tokens": prompt + generated}}))
}

fn whole() -> String {
    [
        delta(json!({"role": "assistant", "content": ""}), None),
        text("Gr\u{fc}\u{df}e "),
        text("\u{1F600}!"),
        delta(json!({}), Some("stop")),
        usage(9, 4),
        "data: [DONE]\n\n".to_owned(),
    ]
    .concat()
}

fn outcome(result: &Result<Completion>) -> Outcome {
    Outcome::of(result)
}

#[test]
fn a_stream_is_read_whole() {
    let completion = ask(stream(whole())).unwrap();
    assert_eq!(completion.text, "Gr\u{fc}\u{df}e \u{1F600}!");
    assert_eq!(completion.stop_reason, StopReason::Stop);
    assert_eq!(completion.raw_stop_reason.as_deref(), Some("stop"));
    assert_eq!(completion.usage.n_prompt_tokens, Some(9));
    assert_eq!(completion.usage.n_generated_tokens, Some(4));
    assert_eq!(completion.effective.values["served_model"], "m-served");
    assert_eq!(completion.effective.values["temperature"], 0.0);
    assert_eq!(completion.warnings, Vec::<String>::new());
    let timings = completion.timings;
    assert!(timings.ttft.unwrap() <= timings.total);
}

#[test]
fn a_document_is_read_whole_streamed_or_not_asked() {
    let document = json!({"id": "c", "object": "chat.completion", "model": "m", "choices": [
        {"index": 0, "finish_reason": "length",
         "message": {"role": "assistant", "content": "Hi", "reasoning_content": "hm"}}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4,
            "prompt_tokens_details": {"cached_tokens": 2}}});
    for options in [json!({"stream": false}), json!({"stream": true})] {
        let player = Player::one(vec![json_answer("200 OK", &document.to_string())]);
        let completion = open(&player, options).complete_blocking(&Request::user("Hi")).unwrap();
        assert_eq!(completion.text, "Hi");
        assert_eq!(completion.reasoning, "hm");
        assert_eq!(completion.stop_reason, StopReason::Length);
        assert_eq!(completion.usage.n_cached_tokens, Some(2));
        assert_eq!(completion.timings.ttft, None);
    }
    // Row 11, the reverse: a stream where a document was asked for.
    let player = Player::one(stream(whole()));
    let completion =
        open(&player, json!({"stream": false})).complete_blocking(&Request::user("Hi"));
    assert_eq!(completion.unwrap().text, "Gr\u{fc}\u{df}e \u{1F600}!");
}

#[test]
fn row_26_to_29_every_split_over_a_socket_gives_the_same_events() {
    let stream_text = [
        ": OPENROUTER PROCESSING\r\n\r\n",
        &text("Gr\u{fc}\u{df}e \u{1F600}").replace('\n', "\r\n"),
        "event: x\nid: 1\nretry: 3\n\n",
        &text("!").replace("data: ", "data:"),
        &delta(json!({"reasoning": "hm", "novel": 1}), None).replace('\n', "\r"),
        &delta(json!({}), Some("stop")),
        "data: [DONE]\n\n",
    ]
    .concat();
    let bytes = stream_text.as_bytes();
    let mut scripts = vec![stream(bytes)];
    // Text is split at most a few times per connection here; the parser's own tests cut at every
    // pair of offsets.
    for i in 1..bytes.len() {
        scripts.push(vec![sse_head(), send(&bytes[..i]), send(&bytes[i..])]);
    }
    scripts.push(vec![sse_head(), Act::Drip(bytes.to_vec(), Duration::ZERO)]);
    let n = scripts.len();
    let player = Player::start(scripts);
    let backend = open(&player, json!({}));
    let request = Request::user("Hi");
    let expected = transcript(&*backend, &request);
    assert_eq!(expected.len(), 5, "{expected:#?}");
    assert!(expected[0].contains("Gr\u{fc}\u{df}e \u{1F600}"));
    for i in 1..n {
        assert_eq!(transcript(&*backend, &request), expected, "split {i}");
    }
    assert_eq!(player.journal().len(), n);
}

#[test]
fn row_23_a_clean_end_after_every_event_is_a_cut_stream() {
    let whole = whole();
    let events: Vec<&str> = whole.split_inclusive("\n\n").collect();
    let n_to_finish = 4;
    for n in 0..=events.len() {
        let result = ask(stream(events[..n].concat()));
        if n < n_to_finish {
            assert_eq!(outcome(&result), Outcome::CutStream, "{n} events");
            let error = result.unwrap_err();
            let expected = if n < 2 { Retry::Safe { after: None } } else { Retry::Never };
            assert_eq!(error.retry(), expected, "{n} events");
        } else {
            let completion = result.unwrap();
            let is_noted = completion.warnings.iter().any(|w| w.starts_with("done_missing"));
            assert_eq!(is_noted, n < events.len(), "{n} events: {:?}", completion.warnings);
        }
    }
}

#[test]
fn row_23_a_clean_end_at_every_byte_is_never_a_short_answer() {
    let whole = whole();
    let bytes = whole.as_bytes();
    let finish_end = whole.find("\"stop\"").unwrap()
        + whole[whole.find("\"stop\"").unwrap()..].find("\n\n").unwrap()
        + 2;
    let scripts = (0..=bytes.len()).map(|n| stream(&bytes[..n])).collect();
    let player = Player::start(scripts);
    let backend = open(&player, json!({}));
    for n in 0..=bytes.len() {
        let result = backend.complete_blocking(&Request::user("Hi"));
        if n < finish_end {
            assert_eq!(outcome(&result), Outcome::CutStream, "{n} bytes");
        } else {
            assert_eq!(result.unwrap().text, "Gr\u{fc}\u{df}e \u{1F600}!", "{n} bytes");
        }
    }
}

#[test]
fn row_19_24_a_connection_that_breaks_off_is_a_cut_stream() {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n";
    let unended = format!(
        "{head}transfer-encoding: chunked\r\n\r\n{:x}\r\n{}\r\n",
        text("a").len(),
        text("a")
    );
    assert_eq!(outcome(&ask(vec![send(unended)])), Outcome::CutStream);
    let short = format!("{head}content-length: 9999\r\n\r\n{}", text("a"));
    assert_eq!(outcome(&ask(vec![send(short)])), Outcome::CutStream);
    let damaged = format!("{head}transfer-encoding: chunked\r\n\r\nzz\r\n{}", text("a"));
    assert_eq!(outcome(&ask(vec![send(damaged)])), Outcome::Transport);
    let short = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{";
    assert_eq!(outcome(&ask(vec![send(short)])), Outcome::CutStream);
    let reset = vec![sse_head(), send(text("a")), Act::Wait(Duration::from_millis(50)), Act::Reset];
    assert_eq!(outcome(&ask(reset)), Outcome::CutStream);
    assert_eq!(outcome(&ask(vec![Act::Reset])), Outcome::Transport);
    // Whole before it broke: nothing is lost.
    let finished = [text("a"), delta(json!({}), Some("stop"))].concat();
    let late = format!("{head}content-length: 9999\r\n\r\n{finished}");
    let completion = ask(vec![send(late)]).unwrap();
    assert_eq!(completion.text, "a");
    assert!(completion.warnings.iter().any(|w| w.starts_with("failed_after_finish")));
}

#[test]
fn row_25_errors_inside_a_200_keep_their_class() {
    for (data, expected) in [
        (
            r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#,
            Outcome::Overloaded,
        ),
        (
            r#"{"type":"error","code":"server_is_overloaded","message":"m","sequence_number":1}"#,
            Outcome::Overloaded,
        ),
        (
            r#"{"type":"response.failed","response":{"error":{"code":"server_error"}}}"#,
            Outcome::ServerError,
        ),
        (r#"{"error":{"message":"m"}}"#, Outcome::ServerError),
        (r#"{"error":{"message":"m","code":429}}"#, Outcome::RateLimited),
        (r#"{"object":"error","message":"m"}"#, Outcome::ServerError),
        (
            r#"{"choices":[{"index":0,"delta":{},"error":{"code":503,"message":"m"}}]}"#,
            Outcome::Overloaded,
        ),
        (r#"{"choices":[{"index":0,"delta":{},"finish_reason":"error"}]}"#, Outcome::ServerError),
    ] {
        let is_chunk = data.contains("choices");
        for name in if is_chunk { &[""][..] } else { &["", "event: error\n"] } {
            let body = format!("{}{name}data: {data}\n\n", text("half "));
            let result = ask(stream(body));
            assert_eq!(outcome(&result), expected, "{data}");
            assert_eq!(result.unwrap_err().retry(), Retry::Never, "content was shown");
        }
        if !is_chunk {
            let result = ask(vec![json_answer("200 OK", data)]);
            assert_eq!(outcome(&result), expected, "{data} as a document");
        }
    }
    let error = ask(stream("event: error\ndata: it broke\n\n")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ServerError);
    assert!(error.message().contains("it broke"));
}

#[test]
fn row_27_31_damaged_events_say_nothing_about_the_model() {
    for damaged in [
        &b"data: {\"choices\": [\n\n"[..],
        b"data: \xFF\xFE\n\n",
        b"data: 5\n\n",
        b"data: {\"choices\": {}}\n\n",
    ] {
        let body = [text("a").as_bytes(), damaged].concat();
        let result = ask(stream(body));
        assert_eq!(
            outcome(&result),
            Outcome::MalformedWire,
            "{}",
            String::from_utf8_lossy(damaged)
        );
    }
    let error = ask(stream(format!("{}data: {{\n\n", text("a")))).unwrap_err();
    assert_eq!(error.context("offset"), Some(text("a").len().to_string().as_str()));
}

#[test]
fn row_30_what_is_unknown_is_kept() {
    let player = Player::one(stream(
        [
            &event(json!({"object": "ping", "beat": 1})),
            "event: keep\ndata: {\"x\":1}\n\n",
            &event(json!({"timings": {"n": 3}, "choices": [{"index": 0, "novel": true,
                "delta": {"content": "a", "mood": "fine"}, "finish_reason": "because"}]})),
            "data: [DONE]\n\n",
        ]
        .concat(),
    ));
    let backend = open(&player, json!({}));
    let shown = transcript(&*backend, &Request::user("Hi"));
    assert!(shown[0].starts_with("Unknown") && shown[0].contains("beat"), "{shown:#?}");
    assert!(shown[1].contains("event: keep"), "{shown:#?}");
    assert!(shown.iter().any(|s| s.contains("mood")), "{shown:#?}");
    assert!(shown.last().unwrap().starts_with("OkUnknownReason Some(\"because\")"), "{shown:#?}");
    let completion = backend.complete_blocking(&Request::user("Hi")).unwrap();
    assert_eq!(completion.stop_reason, StopReason::Other);
    let other = &completion.effective.values["other_fields"];
    assert_eq!(other["timings"]["n"], 3);
    assert_eq!(other["choice.novel"], true);
}

#[test]
fn an_answer_beside_an_unused_field_is_not_lost() {
    for unused in [json!(null), json!({})] {
        let document = json!({"choices": [{"index": 0, "delta": unused,
            "message": {"role": "assistant", "content": "42"}, "finish_reason": "stop"}]});
        let completion = ask(vec![json_answer("200 OK", &document.to_string())]).unwrap();
        assert_eq!(completion.text, "42");
    }
    let other = json!({"choices": [{"index": 0, "text": "42", "finish_reason": "stop"}]});
    let result = ask(vec![json_answer("200 OK", &other.to_string())]);
    assert_eq!(outcome(&result), Outcome::MalformedWire);
}

#[test]
fn row_32_33_34_outcomes_stay_apart() {
    let done = "data: [DONE]\n\n";
    for (body, expected) in [
        (format!("{}{done}", event(json!({"choices": []}))), Outcome::Empty),
        (event(json!({"choices": []})), Outcome::CutStream),
        (format!("{}{done}", text("a")), Outcome::CutStream),
        (format!("{}{done}", delta(json!({"content": ""}), Some("stop"))), Outcome::Empty),
        (
            format!("{}{done}", delta(json!({"content": "a"}), Some("length"))),
            Outcome::TruncatedByLimit,
        ),
        (format!("{}{done}", delta(json!({}), Some("content_filter"))), Outcome::Filtered),
        (
            format!(
                "{}{}{done}",
                delta(json!({"refusal": "I can't"}), None),
                delta(json!({}), Some("stop"))
            ),
            Outcome::Refused,
        ),
        (String::new(), Outcome::CutStream),
        // Nothing but the end mark says nothing about the model.
        (done.to_owned(), Outcome::CutStream),
    ] {
        assert_eq!(outcome(&ask(stream(&body))), expected, "{body}");
    }
    let refusal = [delta(json!({"refusal": "I can't"}), None), delta(json!({}), Some("stop"))];
    assert_eq!(ask(stream(refusal.concat())).unwrap().text, "I can't");
    let filtered = r#"{"error":{"code":"content_filter","message":"no"}}"#;
    assert_eq!(outcome(&ask(vec![json_answer("400 Bad Request", filtered)])), Outcome::Filtered);
    for (document, expected) in [
        (json!({"choices": []}), Outcome::Empty),
        (
            json!({"choices": [{"message": {"content": "a"}, "finish_reason": null}]}),
            Outcome::CutStream,
        ),
        (json!({"ok": true}), Outcome::MalformedWire),
    ] {
        let result = ask(vec![json_answer("200 OK", &document.to_string())]);
        assert_eq!(outcome(&result), expected, "{document}");
    }
}

fn call(index: u64, id: Option<&str>, name: Option<&str>, args: &str) -> Value {
    let mut call = json!({"index": index, "function": {"arguments": args}});
    if let Some(id) = id {
        call["id"] = id.into();
    }
    if let Some(name) = name {
        call["function"]["name"] = name.into();
    }
    call
}

#[test]
fn row_35_tool_calls_are_put_together_by_index() {
    let calls = |calls: Vec<Value>| delta(json!({"tool_calls": calls}), None);
    let body = [
        calls(vec![
            call(0, Some("c1"), Some("weather"), ""),
            call(1, Some("c2"), Some("time"), "{"),
        ]),
        calls(vec![call(1, None, None, "\"z\":1}"), call(0, None, None, "{\"city\":")]),
        calls(vec![call(0, Some("c1"), Some("weather"), "\"Bonn\"}")]),
        delta(json!({}), Some("tool_calls")),
        "data: [DONE]\n\n".to_owned(),
    ]
    .concat();
    let completion = ask(stream(&body)).unwrap();
    let calls_made: Vec<_> = completion
        .tool_calls
        .iter()
        .map(|c| (c.id.as_str(), c.name.as_str(), c.arguments.as_str()))
        .collect();
    assert_eq!(calls_made, [("c1", "weather", "{\"city\":\"Bonn\"}"), ("c2", "time", "{\"z\":1}")]);
    assert_eq!(completion.stop_reason, StopReason::ToolCalls);

    // The same index twice, no id at all, no name, arguments that are no JSON.
    let body = [
        calls(vec![call(0, Some("a"), Some("f"), "{}")]),
        calls(vec![call(0, Some("b"), Some("g"), "{}")]),
        delta(json!({}), Some("stop")),
    ]
    .concat();
    let completion = ask(stream(&body)).unwrap();
    assert_eq!(completion.tool_calls.len(), 2);
    assert_eq!(completion.stop_reason, StopReason::ToolCalls);
    let body = [calls(vec![call(0, None, Some("f"), "{}")]), delta(json!({}), Some("tool_calls"))];
    let completion = ask(stream(body.concat())).unwrap();
    assert_eq!(completion.tool_calls[0].id, "call_0");
    let body =
        [calls(vec![call(0, Some("a"), Some("f"), "{\"x")]), delta(json!({}), Some("tool_calls"))];
    assert_eq!(outcome(&ask(stream(body.concat()))), Outcome::MalformedOutput);
    let body = calls(vec![call(0, Some("a"), Some("f"), "{}")]);
    assert_eq!(outcome(&ask(stream(body))), Outcome::CutStream, "unclosed");
}

#[test]
fn row_36_usage_that_is_not_known_is_not_zero() {
    let with = |usage: String| {
        ask(stream(
            [&text("a"), &delta(json!({}), Some("stop")), &usage].map(|s| s.as_str()).concat(),
        ))
        .unwrap()
    };
    let completion = with(String::new());
    assert_eq!(completion.usage.n_prompt_tokens, None);
    assert_eq!(completion.usage.n_generated_tokens, None);
    let completion = with(usage(0, 0));
    assert_eq!(completion.usage.n_prompt_tokens, None);
    assert_eq!(completion.usage.n_generated_tokens, None);
    assert!(completion.usage.raw.is_some());
    let completion = with(usage(3, 1) + &usage(3, 2));
    assert_eq!(completion.usage.n_generated_tokens, Some(2));
    let completion = with(event(json!({"choices": [], "usage":
        {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 9}})));
    assert!(completion.warnings.iter().any(|w| w.starts_with("usage_contradicts")));
}

#[test]
fn row_38_data_after_the_end_is_ignored_and_noted() {
    let completion = ask(stream(format!("{}{}", whole(), text("more")))).unwrap();
    assert_eq!(completion.text, "Gr\u{fc}\u{df}e \u{1F600}!");
    assert!(completion.warnings[0].starts_with("data_after_done"));
    let late =
        [text("a"), delta(json!({}), Some("stop")), text("b"), "data: [DONE]\n\n".to_owned()];
    let completion = ask(stream(late.concat())).unwrap();
    assert_eq!(completion.text, "a");
    assert!(completion.warnings[0].starts_with("content_after_finish"));
}

#[test]
fn log_probabilities_come_with_their_alternatives_or_are_an_error() {
    let entry =
        |token: &str, p: f64| json!({"token": token, "logprob": p, "bytes": token.as_bytes()});
    let mut first = entry("a", -0.5);
    first["top_logprobs"] = json!([entry("b", -0.25), entry("a", -0.5)]);
    let body = [
        event(json!({"choices": [{"index": 0, "delta": {"content": "a"},
            "logprobs": {"content": [first]}, "finish_reason": "stop"}]})),
        "data: [DONE]\n\n".to_owned(),
    ]
    .concat();
    let request = Request::user("Hi").with_logprobs(2);
    let player = Player::one(stream(&body));
    let backend = open(&player, json!({}));
    let tokens = backend.complete_blocking(&request).unwrap().logprobs.unwrap();
    assert_eq!(tokens[0].logprob, Some(-0.5));
    assert_eq!(tokens[0].rank, Some(1));
    assert_eq!(tokens[0].top.len(), 2);
    assert!(backend.complete_blocking(&Request::user("Hi")).unwrap().logprobs.is_none());

    let player = Player::one(stream(whole()));
    let backend = open(&player, json!({}));
    let error = backend.complete_blocking(&request).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(error.context("option"), Some("logprobs"));
    let mut wish = request.clone();
    wish.wishes.push(weighbridge_core::RequestOption::Logprobs);
    let completion = backend.complete_blocking(&wish).unwrap();
    assert!(completion.warnings.iter().any(|w| w.starts_with("logprobs_missing")));
    assert_eq!(
        block_on(backend.chat(vec![Message::user("x")])).unwrap().stop_reason,
        StopReason::Stop
    );
    assert_eq!(
        backend.complete_blocking(&Request::new(Prompt::Text("x".into()))).unwrap_err().kind(),
        ErrorKind::Unsupported
    );
}

#[test]
fn connections_are_used_again() {
    let player = Player::one(chunked(whole()));
    let backend = open(&player, json!({}));
    for _ in 0..20 {
        backend.complete_blocking(&Request::user("Hi")).unwrap();
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(player.journal().len(), 20);
    assert!(player.n_connections() <= 3, "{} connections", player.n_connections());
}

#[test]
fn row_41_a_stop_or_a_drop_closes_the_connection_within_a_second() {
    let script = vec![sse_head(), send(text("a")), Act::AwaitClose];
    let player = Player::one(script.clone());
    let backend = open(&player, json!({}));
    let completion =
        block_on(backend.generate(&Request::user("Hi"), &mut StopSink::after_texts(1))).unwrap();
    let stopped = Instant::now();
    assert_eq!(completion.stop_reason, StopReason::Cancelled);
    assert_eq!(completion.text, "a");
    let closed = player.closed_at(Duration::from_secs(5)).expect("never closed");
    assert!(closed.saturating_duration_since(stopped) < Duration::from_secs(1));

    for script in [script, vec![Act::AwaitClose]] {
        let player = Player::one(script.clone());
        let backend = open(&player, json!({}));
        let mut stream = backend.stream(Request::user("Hi"));
        // `Started` is the first event; a second one exists only where content came.
        stream.next_blocking().unwrap().unwrap();
        if script.len() > 1 {
            stream.next_blocking().unwrap().unwrap();
        } else {
            let waker = std::task::Waker::noop();
            let mut cx = std::task::Context::from_waker(waker);
            // A call gets on while it is polled.
            while player.journal().is_empty() {
                let next = futures_util::StreamExt::next(&mut stream);
                assert!(std::pin::pin!(next).poll(&mut cx).is_pending());
                std::thread::yield_now();
            }
        }
        drop(stream);
        let dropped = Instant::now();
        let closed = player.closed_at(Duration::from_secs(5)).expect("never closed");
        assert!(closed.saturating_duration_since(dropped) < Duration::from_secs(1));
    }
}

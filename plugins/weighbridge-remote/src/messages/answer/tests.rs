//! Answers of Messages, feature by feature.

use weighbridge_core::{Completion, Outcome, Request};

use super::*;
use crate::messages::Messages;
use crate::testing;

fn wire() -> Messages {
    Messages { streams: true }
}

fn read(stream: &str) -> Result<Completion> {
    testing::stream(&wire(), &Request::user("Hi"), &[stream.as_bytes()]).map(|read| read.0)
}

fn event(data: &Value) -> String {
    let name = data["type"].as_str().unwrap();
    format!("event: {name}\r\ndata: {data}\r\n\r\n")
}

fn events(list: &[Value]) -> String {
    list.iter().map(event).collect()
}

fn start() -> Value {
    json!({"type": "message_start", "message": {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-served",
        "content": [], "stop_reason": null, "stop_sequence": null, "container": null,
        "usage": {"input_tokens": 10, "cache_read_input_tokens": 100,
                  "cache_creation_input_tokens": 1000, "output_tokens": 1}}})
}

fn block(index: u64, block: Value, deltas: &[Value]) -> Vec<Value> {
    let mut events =
        vec![json!({"type": "content_block_start", "index": index, "content_block": block})];
    for delta in deltas {
        events.push(json!({"type": "content_block_delta", "index": index, "delta": delta}));
    }
    events.push(json!({"type": "content_block_stop", "index": index}));
    events
}

fn text(index: u64, pieces: &[&str]) -> Vec<Value> {
    let deltas: Vec<_> =
        pieces.iter().map(|text| json!({"type": "text_delta", "text": text})).collect();
    block(index, json!({"type": "text", "text": ""}), &deltas)
}

fn end(reason: &str) -> [Value; 2] {
    [
        json!({"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": null},
            "usage": {"output_tokens": 7, "output_tokens_details": {"thinking_tokens": 3}}}),
        json!({"type": "message_stop"}),
    ]
}

/// Text that was thought about, two calls, a ping.
fn golden() -> String {
    let thinking = json!({"type": "thinking", "thinking": "", "signature": ""});
    let json_delta = |text: &str| json!({"type": "input_json_delta", "partial_json": text});
    let mut list = vec![start()];
    list.extend(block(
        0,
        thinking,
        &[
            json!({"type": "thinking_delta", "thinking": "hm, "}),
            json!({"type": "thinking_delta", "thinking": "ja"}),
            json!({"type": "signature_delta", "signature": "c2ln"}),
        ],
    ));
    list.push(json!({"type": "ping"}));
    list.extend(text(1, &["Grü", "ße 😀"]));
    list.extend(block(
        2,
        json!({"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}}),
        &[json_delta(""), json_delta("{\"x\""), json_delta(": 1}")],
    ));
    list.extend(block(
        3,
        json!({"type": "tool_use", "id": "toolu_2", "name": "g", "input": {}}),
        &[json_delta("")],
    ));
    list.extend(end("tool_use"));
    events(&list)
}

#[test]
fn a_whole_answer_is_read() {
    let completion = read(&golden()).unwrap();
    assert_eq!(completion.text, "Grüße 😀");
    assert_eq!(completion.reasoning, "hm, ja");
    let calls: Vec<_> =
        completion.tool_calls.iter().map(|c| (&*c.id, &*c.name, &*c.arguments)).collect();
    assert_eq!(calls, [("toolu_1", "f", "{\"x\": 1}"), ("toolu_2", "g", "{}")]);
    assert_eq!(completion.stop_reason, StopReason::ToolCalls);
    assert_eq!(completion.raw_stop_reason.as_deref(), Some("tool_use"));
    assert_eq!(completion.effective.values["served_model"], "claude-served");
    assert_eq!(completion.effective.values["response_id"], "msg_1");
    assert_eq!(completion.warnings, [""; 0]);

    let usage = &completion.usage;
    assert_eq!(usage.n_prompt_tokens, Some(1110));
    assert_eq!(usage.n_cached_tokens, Some(100));
    assert_eq!(usage.n_cache_write_tokens, Some(1000));
    assert_eq!(usage.n_generated_tokens, Some(7));
    assert_eq!(usage.n_reasoning_tokens, Some(3));
    assert_eq!(usage.raw.as_ref().unwrap()["input_tokens"], 10);
    assert_eq!(usage.raw.as_ref().unwrap()["output_tokens"], 7);
}

#[test]
fn signatures_go_back_with_the_turn() {
    let completion = read(&golden()).unwrap();
    let mut request = Request::user("Hi");
    request.sampling.temperature = None;
    request.prompt = weighbridge_core::Prompt::Chat(vec![
        weighbridge_core::Message::user("Hi"),
        completion.to_message(),
    ]);
    let body = super::super::body::write(&wire(), "claude-opus-5", &request, &[]).unwrap();
    let expected = json!([
        {"type": "thinking", "thinking": "hm, ja", "signature": "c2ln"},
        {"type": "text", "text": "Grüße 😀"},
        {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"x": 1}},
        {"type": "tool_use", "id": "toolu_2", "name": "g", "input": {}},
    ]);
    assert_eq!(body["messages"][1]["content"], expected);
}

#[test]
fn a_turn_of_text_and_calls_alone_needs_no_opaque_data() {
    let mut list = vec![start()];
    list.extend(text(0, &["a"]));
    let call =
        json!({"type": "tool_use", "id": "i", "name": "f", "input": {"x": 1}, "caller": null});
    list.extend(block(1, call, &[]));
    list.extend(end("tool_use"));
    let completion = read(&events(&list)).unwrap();
    assert!(completion.opaque.is_empty());
    assert_eq!(completion.tool_calls[0].arguments, "{\"x\":1}");
}

#[test]
fn every_two_cuts_give_the_same_answer() {
    let stream = golden();
    let bytes = stream.as_bytes();
    let whole = read(&stream).unwrap();
    let ask = Request::user("Hi");
    for i in 0..bytes.len() {
        for j in (i..bytes.len()).step_by(97) {
            let chunks = [&bytes[..i], &bytes[i..j], &bytes[j..]];
            let cut = testing::stream(&wire(), &ask, &chunks).unwrap().0;
            assert_eq!(cut, whole, "cut at {i} and {j}");
        }
    }
    let single: Vec<&[u8]> = bytes.chunks(1).collect();
    assert_eq!(testing::stream(&wire(), &ask, &single).unwrap().0, whole);
}

#[test]
fn no_cut_stream_passes_and_no_damage_panics() {
    let stream = golden().into_bytes();
    let ask = Request::user("Hi");
    for i in 0..stream.len() {
        let cut = testing::stream(&wire(), &ask, &[&stream[..i]]);
        // The second CR of a blank line ends an event by itself.
        if i < stream.len() - 1 {
            assert_eq!(cut.unwrap_err().kind(), ErrorKind::Truncated, "cut at {i}");
        }
        for byte in [0, b'\n', b'\r', b'"', b'{', b'}', b':', b'9', 0xC3, 0xFF] {
            let mut damaged = stream.clone();
            damaged[i] = byte;
            // Damage inside of a text cannot be seen; there is only no panic.
            let _ = testing::stream(&wire(), &ask, &[&damaged]);
        }
    }
}

#[test]
fn message_stop_with_an_open_block_is_a_cut_stream() {
    let mut list = vec![start()];
    list.extend(text(0, &["a"]));
    list.pop();
    list.extend(end("end_turn"));
    let error = read(&events(&list)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Truncated);
    assert_eq!(error.context("n_open_blocks"), Some("1"));
    assert_eq!(Outcome::of(&Err(error)), Outcome::CutStream);
}

#[test]
fn each_reason_has_its_outcome() {
    for (reason, stop, outcome) in [
        ("end_turn", StopReason::Stop, Outcome::Ok),
        ("stop_sequence", StopReason::Stop, Outcome::Ok),
        ("max_tokens", StopReason::Length, Outcome::TruncatedByLimit),
        ("model_context_window_exceeded", StopReason::Length, Outcome::TruncatedByLimit),
        ("tool_use", StopReason::ToolCalls, Outcome::Ok),
        ("refusal", StopReason::Refusal, Outcome::Refused),
        ("pause_turn", StopReason::Other, Outcome::OkUnknownReason),
        ("brand_new", StopReason::Other, Outcome::OkUnknownReason),
    ] {
        let mut list = vec![start()];
        list.extend(text(0, &["a"]));
        list.extend(end(reason));
        let completion = read(&events(&list)).unwrap();
        assert_eq!(completion.stop_reason, stop, "{reason}");
        assert_eq!(completion.raw_stop_reason.as_deref(), Some(reason));
        assert_eq!(Outcome::of(&Ok(completion)), outcome, "{reason}");
    }
}

#[test]
fn an_empty_turn_and_a_missing_reason_are_no_errors() {
    let mut list = vec![start()];
    list.extend(end("end_turn"));
    assert_eq!(Outcome::of(&read(&events(&list))), Outcome::Empty);

    let mut list = vec![start()];
    list.extend(text(0, &["a"]));
    list.push(json!({"type": "message_stop"}));
    let completion = read(&events(&list)).unwrap();
    assert_eq!(completion.stop_reason, StopReason::Other);
    assert_eq!(completion.warnings, ["stop_reason_missing: the message ended without one"]);
    // The count at the begin is not that of the end.
    assert_eq!(completion.usage.n_generated_tokens, None);
    assert_eq!(completion.usage.n_prompt_tokens, Some(1110));
}

#[test]
fn what_is_unknown_is_kept_and_the_answer_goes_on() {
    let mut list = vec![start(), json!({"type": "brand_new_event", "x": 1})];
    list.extend(block(
        0,
        json!({"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}),
        &[json!({"type": "input_json_delta", "partial_json": "{\"query\": \"q\"}"})],
    ));
    list.extend(block(
        1,
        json!({"type": "text", "text": ""}),
        &[
            json!({"type": "citations_delta", "citation": {"cited_text": "c"}}),
            json!({"type": "text_delta", "text": "a"}),
            json!({"type": "brand_new_delta", "y": 2}),
        ],
    ));
    list.push(json!({"type": "message_delta",
        "delta": {"stop_reason": "refusal", "container": {"id": "c"},
                  "stop_details": {"type": "refusal", "category": "bio"}},
        "usage": {"output_tokens": 2}}));
    list.push(json!({"type": "message_stop"}));
    let stream = events(&list);
    let (completion, unknown) =
        testing::stream(&wire(), &Request::user("Hi"), &[stream.as_bytes()]).unwrap();
    assert_eq!(completion.text, "a");
    assert_eq!(unknown.len(), 4);
    for part in ["brand_new_event", "web_search", "cited_text", "brand_new_delta"] {
        assert!(unknown.iter().any(|raw| raw.contains(part)), "{part}");
    }
    let values = &completion.effective.values;
    assert_eq!(values["stop_details"]["category"], "bio");
    assert_eq!(values["other_fields"]["container"]["id"], "c");
    let kept = &completion.opaque[0].1["content"];
    assert_eq!(kept[0]["input"], json!({"query": "q"}));
    assert_eq!(kept[1]["citations"], json!([{"cited_text": "c"}]));
}

#[test]
fn broken_arguments_are_the_models_own() {
    let delta = json!({"type": "input_json_delta", "partial_json": "{\"x\": "});
    let mut list = vec![start()];
    let call = json!({"type": "tool_use", "id": "", "name": "f", "input": {}});
    list.extend(block(0, call, &[delta]));
    list.extend(end("tool_use"));
    let completion = read(&events(&list)).unwrap();
    assert_eq!(completion.tool_calls[0].arguments, "{\"x\": ");
    assert_eq!(completion.tool_calls[0].id, "call_0");
    assert_eq!(completion.warnings, ["tool_call_without_id: an id was made up"]);
    assert_eq!(Outcome::of(&Ok(completion)), Outcome::MalformedOutput);
}

#[test]
fn interleaved_blocks_are_put_together_by_index() {
    let call = |index: u64, id: &str| {
        json!({"type": "content_block_start", "index": index,
            "content_block": {"type": "tool_use", "id": id, "name": "f", "input": {}}})
    };
    let args = |index: u64, json: &str| {
        json!({"type": "content_block_delta", "index": index,
            "delta": {"type": "input_json_delta", "partial_json": json}})
    };
    let stop = |index: u64| json!({"type": "content_block_stop", "index": index});
    let mut list = vec![start(), call(0, "a"), call(1, "b")];
    list.extend([args(1, "[1"), args(0, "[0"), args(1, "]"), args(0, "]"), stop(1), stop(0)]);
    list.extend(end("tool_use"));
    let calls = read(&events(&list)).unwrap().tool_calls;
    let calls: Vec<_> = calls.iter().map(|call| (&*call.id, &*call.arguments)).collect();
    assert_eq!(calls, [("a", "[0]"), ("b", "[1]")]);
}

#[test]
fn events_out_of_order_are_damaged_framing_and_repetitions_are_noted() {
    let delta = json!({"type": "content_block_delta", "index": 0,
        "delta": {"type": "text_delta", "text": "a"}});
    let stop = json!({"type": "content_block_stop", "index": 0});
    let begin = json!({"type": "content_block_start", "index": 0,
        "content_block": {"type": "text", "text": ""}});
    let no_index = json!({"type": "content_block_stop"});
    for list in [
        vec![start(), delta.clone()],
        vec![start(), stop.clone()],
        vec![start(), no_index],
        vec![start(), begin.clone(), delta.clone(), begin.clone()],
        vec![start(), begin.clone(), stop.clone(), delta.clone()],
    ] {
        assert_eq!(read(&events(&list)).unwrap_err().kind(), ErrorKind::Protocol);
    }
    let mut list = vec![start(), start(), begin.clone(), begin, delta, stop.clone(), stop];
    list.extend(end("end_turn"));
    let completion = read(&events(&list)).unwrap();
    assert_eq!(completion.text, "a");
    let names: Vec<_> = completion.warnings.iter().map(|w| w.split(':').next().unwrap()).collect();
    assert_eq!(names, ["message_start_twice", "block_started_twice", "block_stopped_twice"]);
}

#[test]
fn errors_inside_a_stream_are_errors_by_their_type() {
    for (kind, expected) in [
        ("overloaded_error", ErrorKind::Overloaded),
        ("api_error", ErrorKind::ServerError),
        ("rate_limit_error", ErrorKind::RateLimited),
    ] {
        let error = json!({"type": "error", "error": {"type": kind, "message": "m"}});
        let stream = events(&[start(), error]);
        assert_eq!(read(&stream).unwrap_err().kind(), expected, "{kind}");
    }
    assert_eq!(read("data: 5\n\n").unwrap_err().kind(), ErrorKind::Protocol);
    let error = read("event: message_start\ndata: {\"type\":\n\n").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol);
    assert_eq!(error.context("offset"), Some("0"));
}

#[test]
fn counts_that_are_zero_or_shrink_are_not_believed() {
    let mut list = vec![json!({"type": "message_start", "message": {"id": "m",
        "usage": {"input_tokens": 0, "output_tokens": 0, "cache_read_input_tokens": null}}})];
    list.extend(text(0, &["a"]));
    list.push(json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"},
        "usage": {"output_tokens": 0}}));
    list.push(json!({"type": "message_stop"}));
    let completion = read(&events(&list)).unwrap();
    assert_eq!(completion.usage.n_prompt_tokens, None);
    assert_eq!(completion.usage.n_generated_tokens, None);
    assert_eq!(completion.usage.n_cached_tokens, None);

    let delta = |n: u64| {
        json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"},
            "usage": {"output_tokens": n}})
    };
    let list = [start(), delta(9), delta(4), json!({"type": "message_stop"})];
    let warnings = read(&events(&list)).unwrap().warnings;
    assert!(warnings[0].starts_with("usage_contradicts_itself"), "{warnings:?}");
}

#[test]
fn a_document_is_the_same_answer() {
    let ask = Request::user("Hi");
    let mut whole = json!({
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-served",
        "content": [
            {"type": "thinking", "thinking": "hm, ja", "signature": "c2ln"},
            {"type": "text", "text": "Grüße 😀"},
            {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"x": 1}},
            {"type": "tool_use", "id": "toolu_2", "name": "g", "input": {}},
        ],
        "stop_reason": "tool_use", "stop_sequence": null,
        "usage": {"input_tokens": 10, "cache_read_input_tokens": 100,
            "cache_creation_input_tokens": 1000, "output_tokens": 7,
            "output_tokens_details": {"thinking_tokens": 3}},
    });
    let (read_whole, unknown) = testing::document(&wire(), &ask, &whole).unwrap();
    let mut streamed = read(&golden()).unwrap();
    streamed.tool_calls[0].arguments = "{\"x\":1}".to_owned();
    assert_eq!(read_whole, streamed);
    assert!(unknown.is_empty());

    whole["stop_reason"] = Value::Null;
    let error = testing::document(&wire(), &ask, &whole).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Truncated);
    for (document, kind) in [
        (json!({"choices": []}), ErrorKind::Protocol),
        (
            json!({"type": "error", "error": {"type": "overloaded_error", "message": "m"}}),
            ErrorKind::Overloaded,
        ),
    ] {
        assert_eq!(testing::document(&wire(), &ask, &document).unwrap_err().kind(), kind);
    }
}

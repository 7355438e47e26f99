//! Streams and documents of the Responses protocol, whole, cut and damaged.

use super::*;
use crate::sse::SseParser;
use crate::text::Redactor;
use std::time::{Duration, Instant};
use weighbridge_core::{Completion, Event, Outcome};

/// What a stream comes to, and the unknown events that were passed on.
fn read(chunks: &[&[u8]]) -> (Result<Completion>, Vec<String>) {
    let mut unknown = Vec::new();
    let mut sink = |event: Event<'_>| {
        if let Event::Unknown(raw) = event {
            unknown.push(raw.into_owned());
        }
        std::ops::ControlFlow::Continue(())
    };
    let result = read_into(chunks, &mut sink);
    (result, unknown)
}

fn read_into(chunks: &[&[u8]], sink: &mut dyn weighbridge_core::EventSink) -> Result<Completion> {
    let redactor = Redactor::default();
    let mut out = Emitter::new(sink, &redactor, Instant::now());
    let mut parser = SseParser::new();
    let mut answer = ResponsesAnswer::new("openai", &Request::user("Hi").with_logprobs(1));
    'stream: for chunk in chunks {
        let mut input = *chunk;
        while let Some(frame) = parser.next(&mut input)? {
            if answer.frame(&frame, &mut out)? == Flow::End {
                break 'stream;
            }
        }
    }
    let ending = answer.close(&mut out)?;
    Ok(out.completion(ending, Duration::ZERO, true, true))
}

fn document(document: &Value) -> Result<Completion> {
    let redactor = Redactor::default();
    let mut sink = weighbridge_core::StopSink::never();
    let mut out = Emitter::new(&mut sink, &redactor, Instant::now());
    let mut answer = ResponsesAnswer::new("openai", &Request::user("Hi").with_logprobs(1));
    answer.document(document, &mut out)?;
    let ending = answer.close(&mut out)?;
    Ok(out.completion(ending, Duration::ZERO, false, true))
}

fn items() -> Value {
    json!([
        {"id": "rs_0", "type": "reasoning", "encrypted_content": "gAAA", "summary":
            [{"type": "summary_text", "text": "one"}, {"type": "summary_text", "text": "two"}]},
        {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed",
            "phase": "commentary",
            "content": [{"type": "output_text", "text": "Looking.", "annotations": []}]},
        {"id": "msg_2", "type": "message", "role": "assistant", "status": "completed",
            "content": [{"type": "output_text", "text": "Gr\u{fc}\u{df}e \u{1F600}",
            "annotations": [], "logprobs": [
                {"token": "Gr\u{fc}\u{df}e", "bytes": [71, 114, 195, 188, 195, 159, 101],
                 "logprob": -0.5, "top_logprobs": []},
                {"token": " \u{1F600}", "bytes": [32, 240, 159, 152, 128], "logprob": -0.25,
                 "top_logprobs": []}]}]},
        {"id": "fc_3", "type": "function_call", "status": "completed", "call_id": "c1",
            "name": "f", "arguments": "{\"a\":1}"},
        {"id": "fc_4", "type": "function_call", "status": "completed", "call_id": "c2",
            "name": "g", "arguments": "{}"},
        {"id": "x_5", "type": "novel_call", "beat": 77},
    ])
}

fn response(output: &Value) -> Value {
    json!({"id": "resp_1", "object": "response", "status": "completed", "error": null,
        "incomplete_details": null, "model": "m-served", "output": output, "novel": {"x": 1},
        "usage": {"input_tokens": 9, "input_tokens_details": {"cached_tokens": 5},
            "output_tokens": 4, "output_tokens_details": {"reasoning_tokens": 2},
            "total_tokens": 13}})
}

fn events() -> Vec<Value> {
    let items = items();
    let text = |i: u64, delta: &str| {
        json!({"type": "response.output_text.delta", "output_index": i, "content_index": 0,
            "delta": delta, "logprobs": []})
    };
    let args = |i: u64, delta: &str| {
        json!({"type": "response.function_call_arguments.delta", "output_index": i,
            "delta": delta})
    };
    let summary = |i: u64, delta: &str| {
        [
            json!({"type": "response.reasoning_summary_part.added", "output_index": 0,
                "summary_index": i}),
            json!({"type": "response.reasoning_summary_text.delta", "output_index": 0,
                "summary_index": i, "delta": delta}),
        ]
    };
    let edge = |kind: &str, i: usize| {
        let mut item = items[i].clone();
        if kind == "added" {
            if item["type"] == "function_call" {
                item["arguments"] = "".into();
            }
            item["content"] = json!([]);
        }
        json!({"type": format!("response.output_item.{kind}"), "output_index": i,
            "item": item})
    };
    let mut events = vec![
        json!({"type": "response.created", "response": {"id": "resp_1", "model": "m"}}),
        edge("added", 0),
    ];
    events.extend(summary(0, "one"));
    events.extend(summary(1, "two"));
    events.extend([edge("done", 0), edge("added", 1), text(1, "Looking."), edge("done", 1)]);
    events.extend([edge("added", 2), text(2, "Gr\u{fc}\u{df}"), text(2, "e \u{1F600}")]);
    // Two calls at once, their pieces interleaved.
    events.extend([edge("done", 2), edge("added", 3), edge("added", 4)]);
    events.extend([args(3, "{\"a\""), args(4, "{}"), args(3, ":1}")]);
    events.extend([edge("done", 4), edge("done", 3), edge("done", 5)]);
    events.push(json!({"type": "response.novel", "beat": 78}));
    events.push(json!({"type": "response.completed", "response": response(&items)}));
    numbered(events)
}

fn numbered(mut events: Vec<Value>) -> Vec<Value> {
    for (n, event) in events.iter_mut().enumerate() {
        event["sequence_number"] = n.into();
    }
    events
}

fn stream(events: &[Value]) -> Vec<u8> {
    let frame =
        |event: &Value| format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap());
    events.iter().map(frame).collect::<String>().into_bytes()
}

/// What has to be the same however an answer came.
fn summary(completion: &Completion) -> String {
    format!(
        "{:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?}",
        completion.text,
        completion.reasoning,
        completion.tool_calls,
        completion.opaque,
        completion.stop_reason,
        completion.usage,
        completion.logprobs,
        completion.effective.values,
        completion.warnings,
    )
}

#[test]
fn a_stream_and_its_document_are_read_alike() {
    let (streamed, unknown) = read(&[&stream(&events())]);
    let streamed = streamed.unwrap();
    assert_eq!(streamed.text, "Gr\u{fc}\u{df}e \u{1F600}");
    assert_eq!(streamed.reasoning, "one\n\ntwoLooking.");
    assert_eq!(streamed.stop_reason, StopReason::ToolCalls);
    assert_eq!(streamed.tool_calls[0].arguments, "{\"a\":1}");
    assert_eq!(streamed.tool_calls[1].id, "c2");
    assert_eq!(streamed.usage.n_cached_tokens, Some(5));
    assert_eq!(streamed.usage.n_reasoning_tokens, Some(2));
    assert_eq!(streamed.effective.values["served_model"], "m-served");
    assert_eq!(streamed.effective.values["other_fields"], json!({"novel": {"x": 1}}));
    assert_eq!(streamed.opaque, [("openai".to_owned(), json!({"output": items()}))]);
    assert_eq!(streamed.logprobs.as_ref().unwrap().len(), 2);
    assert_eq!(streamed.warnings, Vec::<String>::new());
    assert_eq!(unknown.len(), 2, "{unknown:?}");
    let whole = document(&response(&items())).unwrap();
    assert_eq!(summary(&whole), summary(&streamed));
}

#[test]
fn every_two_cuts_give_the_same_answer() {
    let stream = stream(&events());
    let whole = summary(&read(&[&stream]).0.unwrap());
    for i in (0..stream.len()).step_by(7) {
        for j in (i..stream.len()).step_by(97) {
            let cut = read(&[&stream[..i], &stream[i..j], &stream[j..]]).0.unwrap();
            assert_eq!(summary(&cut), whole, "cut at {i} and {j}");
        }
    }
    for i in 0..stream.len() - 2 {
        assert!(read(&[&stream[..i]]).0.is_err(), "a stream that ends at {i}");
    }
}

#[test]
fn an_event_that_is_missing_or_comes_twice_is_seen() {
    let events = events();
    for i in 0..events.len() - 1 {
        let mut fewer = events.clone();
        fewer.remove(i);
        // Some servers count from 1, so the loss of the very first event cannot be seen, and
        // nothing is lost with it.
        assert_eq!(read(&[&stream(&fewer)]).0.is_err(), i > 0, "without event {i}");
        let mut more = events.clone();
        more.insert(i, events[i].clone());
        assert_eq!(read(&[&stream(&more)]).0.unwrap_err().kind(), ErrorKind::Protocol);
        let mut swapped = events.clone();
        swapped.swap(i, i + 1);
        let is_lost = read(&[&stream(&swapped)]).0.is_err();
        assert!(is_lost, "events {i} and {} swapped", i + 1);
    }
    let mut bare = events;
    for event in &mut bare {
        event.as_object_mut().unwrap().remove("sequence_number");
    }
    let completion = read(&[&stream(&bare)]).0.unwrap();
    assert!(completion.warnings[0].starts_with("sequence_missing"));
    // Pieces that are not what their item is in the end cannot both be right.
    bare.remove(11);
    assert_eq!(read(&[&stream(&bare)]).0.unwrap_err().kind(), ErrorKind::Protocol);
}

#[test]
fn why_an_answer_ended() {
    let text = |kind: &str, text: &str| {
        json!([{"id": "m", "type": "message", "role": "assistant", "content":
            [{"type": kind, kind.trim_start_matches("output_"): text}]}])
    };
    let with = |status: &str, reason: Value, output: Value| {
        let mut response = response(&output);
        response["status"] = status.into();
        response["incomplete_details"] = json!({"reason": reason});
        response
    };
    let failed = |code: &str| {
        json!({"status": "failed", "output": [],
        "error": {"code": code, "message": "m"}})
    };
    let said = text("output_text", "Hi");
    for (response, expected) in [
        (with("completed", Value::Null, said.clone()), Outcome::Ok),
        (with("completed", Value::Null, json!([])), Outcome::Empty),
        (with("completed", Value::Null, text("refusal", "no")), Outcome::Refused),
        (with("incomplete", "max_output_tokens".into(), said.clone()), Outcome::TruncatedByLimit),
        (with("incomplete", "content_filter".into(), said.clone()), Outcome::Filtered),
        (with("incomplete", "paused_for_tea".into(), said.clone()), Outcome::OkUnknownReason),
        (with("in_progress", Value::Null, said), Outcome::CutStream),
        (failed("server_error"), Outcome::ServerError),
        (failed("rate_limit_exceeded"), Outcome::RateLimited),
        (failed("image_content_policy_violation"), Outcome::Filtered),
    ] {
        assert_eq!(Outcome::of(&document(&response)), expected, "{response}");
        let kind = format!("response.{}", response["status"].as_str().unwrap());
        let events = [json!({"type": kind, "sequence_number": 0, "response": response})];
        assert_eq!(Outcome::of(&read(&[&stream(&events)]).0), expected, "{kind}");
    }
    let error = json!({"type": "error", "code": "server_is_overloaded", "message": "m",
        "sequence_number": 0});
    assert_eq!(Outcome::of(&read(&[&stream(&[error])]).0), Outcome::Overloaded);
}

#[test]
fn arguments_that_are_not_json_are_the_models_own_doing() {
    let call = json!([{"type": "function_call", "call_id": "c", "name": "f",
        "arguments": "{\"a\":"}]);
    assert_eq!(Outcome::of(&document(&response(&call))), Outcome::MalformedOutput);
}

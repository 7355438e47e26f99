//! Answers of generateContent, feature by feature.

use weighbridge_core::{Completion, Outcome, RequestOption, TokenId};

use super::*;
use crate::gemini::Gemini;
use crate::testing;
use crate::wire::Wire;

fn wire() -> Gemini {
    Gemini { streams: true, dimensions: None }
}

fn events(chunks: &[Value]) -> String {
    chunks.iter().map(|chunk| format!("data: {chunk}\r\n\r\n")).collect()
}

fn read(chunks: &[Value]) -> Result<Completion> {
    let stream = events(chunks);
    testing::stream(&wire(), &Request::user("Hi"), &[stream.as_bytes()]).map(|read| read.0)
}

fn chunk(parts: Value) -> Value {
    json!({"candidates": [{"content": {"parts": parts, "role": "model"}, "index": 0}],
        "modelVersion": "gemini-served", "responseId": "r1"})
}

fn finish(reason: &str) -> Value {
    json!({"candidates": [{"content": {"role": "model"}, "finishReason": reason, "index": 0}]})
}

/// Thoughts, text in pieces, two calls of which one is signed.
fn golden() -> Vec<Value> {
    let mut last = chunk(json!([{"functionCall": {"name": "g"}}]));
    last["candidates"][0]["finishReason"] = "STOP".into();
    last["usageMetadata"] = json!({"promptTokenCount": 10, "cachedContentTokenCount": 4,
        "candidatesTokenCount": 5, "thoughtsTokenCount": 3, "toolUsePromptTokenCount": 2,
        "totalTokenCount": 20});
    let mut first = chunk(json!([{"text": "hm, ", "thought": true}]));
    first["usageMetadata"] = json!({"promptTokenCount": 10, "totalTokenCount": 10});
    vec![
        first,
        chunk(json!([{"text": "ja", "thought": true}, {"text": "Grü"}])),
        chunk(json!([{"text": "ße 😀"}])),
        chunk(json!([{"functionCall": {"id": "c1", "name": "f", "args": {"x": 1}},
            "thoughtSignature": "c2ln"}])),
        last,
    ]
}

#[test]
fn a_whole_answer_is_read() {
    let completion = read(&golden()).unwrap();
    assert_eq!(completion.text, "Grüße 😀");
    assert_eq!(completion.reasoning, "hm, ja");
    let calls: Vec<_> =
        completion.tool_calls.iter().map(|c| (&*c.id, &*c.name, &*c.arguments)).collect();
    assert_eq!(calls, [("c1", "f", "{\"x\":1}"), ("weighbridge-call-1", "g", "{}")]);
    assert_eq!(completion.stop_reason, StopReason::ToolCalls);
    assert_eq!(completion.raw_stop_reason.as_deref(), Some("STOP"));
    assert_eq!(completion.effective.values["served_model"], "gemini-served");
    assert_eq!(completion.effective.values["response_id"], "r1");
    assert_eq!(completion.warnings, [""; 0]);

    let usage = &completion.usage;
    assert_eq!(usage.n_prompt_tokens, Some(12));
    assert_eq!(usage.n_cached_tokens, Some(4));
    assert_eq!(usage.n_generated_tokens, Some(8));
    assert_eq!(usage.n_reasoning_tokens, Some(3));
    assert_eq!(usage.raw.as_ref().unwrap()["candidatesTokenCount"], 5);

    let kept = json!([
        {"text": "hm, ja", "thought": true},
        {"text": "Grüße 😀"},
        {"functionCall": {"id": "c1", "name": "f", "args": {"x": 1}}, "thoughtSignature": "c2ln"},
        {"functionCall": {"name": "g"}},
    ]);
    assert_eq!(completion.opaque, [("gemini".to_owned(), json!({ "parts": kept }))]);
    let messages = vec![weighbridge_core::Message::user("Hi"), completion.to_message()];
    let request = Request::new(weighbridge_core::Prompt::Chat(messages));
    let body = wire().body("gemini-3-flash", &request, &[]).unwrap();
    assert_eq!(body["contents"][1], json!({"role": "model", "parts": kept}));
}

#[test]
fn parts_with_a_signature_are_not_joined_and_one_may_come_last() {
    let signed = json!({"text": "b", "thoughtSignature": "s1"});
    let chunks = [
        chunk(json!([{"text": "a"}])),
        chunk(json!([signed])),
        chunk(json!([{"text": "c"}])),
        finish("STOP"),
        chunk(json!([{"text": "", "thoughtSignature": "s2"}])),
    ];
    let completion = read(&chunks).unwrap();
    assert_eq!((completion.text.as_str(), completion.warnings.len()), ("abc", 0));
    let kept =
        json!([{"text": "a"}, signed, {"text": "c"}, {"text": "", "thoughtSignature": "s2"}]);
    assert_eq!(completion.opaque[0].1["parts"], kept);

    let plain = read(&[chunk(json!([{"text": "a"}])), finish("STOP")]).unwrap();
    assert!(plain.opaque.is_empty());
}

#[test]
fn every_two_cuts_give_the_same_answer() {
    let stream = events(&golden());
    let bytes = stream.as_bytes();
    let whole = read(&golden()).unwrap();
    let ask = Request::user("Hi");
    for i in 0..bytes.len() {
        for j in (i..bytes.len()).step_by(53) {
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
    let stream = events(&golden()).into_bytes();
    let ask = Request::user("Hi");
    for i in 0..stream.len() {
        // The second CR of a blank line ends an event by itself.
        if i < stream.len() - 1 {
            let error = testing::stream(&wire(), &ask, &[&stream[..i]]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Truncated, "cut at {i}");
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
fn each_reason_has_its_outcome() {
    let filtered = (StopReason::ContentFilter, Outcome::Filtered);
    let other = (StopReason::Other, Outcome::OkUnknownReason);
    let malformed = (StopReason::Malformed, Outcome::MalformedOutput);
    let length = (StopReason::Length, Outcome::TruncatedByLimit);
    for (reason, (stop, outcome)) in [
        ("STOP", (StopReason::Stop, Outcome::Ok)),
        ("MAX_TOKENS", length.clone()),
        ("CONTINUATION", length),
        ("SAFETY", filtered.clone()),
        ("RECITATION", filtered.clone()),
        ("LANGUAGE", filtered.clone()),
        ("BLOCKLIST", filtered.clone()),
        ("PROHIBITED_CONTENT", filtered.clone()),
        ("SPII", filtered.clone()),
        ("MODEL_ARMOR", filtered.clone()),
        ("ESCALATION", filtered.clone()),
        ("IMAGE_SAFETY", filtered.clone()),
        ("IMAGE_PROHIBITED_CONTENT", filtered.clone()),
        ("IMAGE_RECITATION", filtered),
        ("IMAGE_OTHER", other.clone()),
        ("NO_IMAGE", other.clone()),
        ("MALFORMED_FUNCTION_CALL", malformed.clone()),
        ("UNEXPECTED_TOOL_CALL", malformed.clone()),
        ("TOO_MANY_TOOL_CALLS", other.clone()),
        ("MALFORMED_RESPONSE", malformed),
        ("OTHER", other.clone()),
        ("BRAND_NEW", other),
    ] {
        let completion = read(&[chunk(json!([{"text": "a"}])), finish(reason)]).unwrap();
        assert_eq!(completion.stop_reason, stop, "{reason}");
        assert_eq!(completion.raw_stop_reason.as_deref(), Some(reason));
        assert_eq!(Outcome::of(&Ok(completion)), outcome, "{reason}");
    }
    for (reason, outcome) in [
        ("PUP_LIMITED_DISABLED", Outcome::Auth),
        ("MISSING_THOUGHT_SIGNATURE", Outcome::BadRequest),
    ] {
        assert_eq!(Outcome::of(&read(&[finish(reason)])), outcome);
    }
}

#[test]
fn an_answer_is_complete_by_every_candidates_reason_or_a_blocked_prompt() {
    assert_eq!(Outcome::of(&read(&[finish("STOP")])), Outcome::Empty);
    let blocked = read(&[json!({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"},
        "usageMetadata": {"promptTokenCount": 4, "totalTokenCount": 4}})])
    .unwrap();
    assert_eq!(blocked.stop_reason, StopReason::ContentFilter);
    assert_eq!(blocked.raw_stop_reason.as_deref(), Some("PROHIBITED_CONTENT"));
    assert_eq!(blocked.usage.n_prompt_tokens, Some(4));

    let second = |reason: Value| json!({"candidates": [{"index": 1, "finishReason": reason}]});
    let both = [second(Value::Null), finish("STOP"), second("STOP".into())];
    assert!(read(&both).is_ok());
    for cut in [
        &[][..],
        &[json!({"candidates": []})],
        &[json!({"promptFeedback": {"safetyRatings": []}})],
        &[json!({"promptFeedback": {"blockReason": "BLOCK_REASON_UNSPECIFIED"}})],
        &[json!({"usageMetadata": {"promptTokenCount": 3}})],
        &[chunk(json!([{"text": "a"}]))],
        &[finish("FINISH_REASON_UNSPECIFIED")],
        &both[..2],
    ] {
        assert_eq!(Outcome::of(&read(cut)), Outcome::CutStream, "{cut:?}");
    }
}

#[test]
fn what_is_unknown_is_kept_and_the_answer_goes_on() {
    let mut known = chunk(json!([
        {"executableCode": {"code": "1"}},
        {"text": "a"},
        {"thoughtSignature": "s"},
    ]));
    known["candidates"][0]["safetyRatings"] = json!([{"category": "x"}]);
    known["candidates"][0]["finishMessage"] = "fin".into();
    known["modelStatus"] = json!({"modelStage": "STABLE"});
    let stream = events(&[
        json!({"brandNew": 1}),
        known,
        json!({"candidates": [{"index": 1, "finishReason": "STOP"}]}),
        finish("STOP"),
        chunk(json!([{"text": "late"}])),
    ]);
    let (completion, unknown) =
        testing::stream(&wire(), &Request::user("Hi"), &[stream.as_bytes()]).unwrap();
    assert_eq!(completion.text, "a");
    assert!(completion.warnings[0].starts_with("content_after_finish"));
    assert_eq!(unknown.len(), 3, "{unknown:?}");
    let values = &completion.effective.values;
    assert_eq!(values["finish_message"], "fin");
    assert_eq!(values["other_fields"]["brandNew"], 1);
    assert_eq!(values["other_fields"]["modelStatus"]["modelStage"], "STABLE");
    assert_eq!(values["other_fields"]["candidate.safetyRatings"][0]["category"], "x");
    let kept = json!([{"executableCode": {"code": "1"}}, {"text": "a"}, {"thoughtSignature": "s"}]);
    assert_eq!(completion.opaque[0].1["parts"], kept);
}

#[test]
fn errors_inside_a_stream_are_errors_by_their_code() {
    let error = json!({"error": {"code": 503, "message": "m", "status": "UNAVAILABLE"}});
    assert_eq!(Outcome::of(&read(&[chunk(json!([{"text": "a"}])), error])), Outcome::Overloaded);
    for damaged in
        [json!(3), json!({"candidates": 3}), json!({"candidates": [3]}), chunk(json!([3]))]
    {
        assert_eq!(Outcome::of(&read(&[damaged])), Outcome::MalformedWire);
    }
}

#[test]
fn a_document_and_a_list_of_chunks_are_the_same_answer() {
    let ask = Request::user("Hi");
    let streamed = read(&golden()).unwrap();
    let list = Value::Array(golden());
    assert_eq!(testing::document(&wire(), &ask, &list).unwrap().0, streamed);

    let parts: Vec<_> = golden()
        .iter()
        .flat_map(|chunk| chunk["candidates"][0]["content"]["parts"].as_array().unwrap().clone())
        .collect();
    let mut whole = golden().pop().unwrap();
    whole["candidates"][0]["content"]["parts"] = parts.into();
    assert_eq!(testing::document(&wire(), &ask, &whole).unwrap().0, streamed);

    let cut = Value::Array(golden()[..3].to_vec());
    let error = testing::document(&wire(), &ask, &cut).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Truncated);
    let error = json!([golden()[0], {"error": {"code": 429, "message": "m"}}]);
    let error = testing::document(&wire(), &ask, &error).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RateLimited);
}

#[test]
fn log_probabilities_are_read_and_missed() {
    let mut ask = Request::user("Hi").with_logprobs(2);
    let mut answer = chunk(json!([{"text": "ab"}]));
    answer["candidates"][0]["finishReason"] = "STOP".into();
    let stream = events(std::slice::from_ref(&answer));
    let error = testing::stream(&wire(), &ask, &[stream.as_bytes()]).unwrap_err();
    assert_eq!(error.context("option"), Some("logprobs"));
    ask.wishes = vec![RequestOption::Logprobs];
    let warned = testing::stream(&wire(), &ask, &[stream.as_bytes()]).unwrap().0;
    assert!(warned.warnings[0].starts_with("logprobs_missing"));

    answer["candidates"][0]["logprobsResult"] = json!({
        "chosenCandidates": [
            {"token": "a", "tokenId": 5, "logProbability": -0.5},
            {"token": "b", "tokenId": 6, "logProbability": -2.0},
        ],
        "topCandidates": [
            {"candidates": [{"token": "a", "tokenId": 5, "logProbability": -0.5},
                            {"token": "c", "tokenId": 7, "logProbability": -1.0}]},
            {"candidates": [{"token": "c", "tokenId": 7, "logProbability": -0.25}]},
        ],
    });
    let stream = events(&[answer]);
    let tokens = testing::stream(&wire(), &ask, &[stream.as_bytes()]).unwrap().0.logprobs.unwrap();
    let short: Vec<_> = tokens.iter().map(|t| (t.id, t.logprob, t.rank, t.top.len())).collect();
    assert_eq!(
        short,
        [(Some(TokenId(5)), Some(-0.5), Some(0), 2), (Some(TokenId(6)), Some(-2.0), None, 1)]
    );
    assert_eq!(tokens[1].bytes, b"b");
}

#[test]
fn counts_that_are_zero_or_contradict_are_not_believed() {
    let with = |counts: Value| {
        let mut last = finish("STOP");
        last["usageMetadata"] = counts;
        read(&[chunk(json!([{"text": "a"}])), last]).unwrap()
    };
    let zeros =
        with(json!({"promptTokenCount": 0, "candidatesTokenCount": 0, "totalTokenCount": 0}));
    assert_eq!(zeros.usage.n_prompt_tokens, None);
    assert_eq!(zeros.usage.n_generated_tokens, None);
    let part = with(json!({"promptTokenCount": 3, "thoughtsTokenCount": 2}));
    assert_eq!(part.usage.n_generated_tokens, None);
    let wrong =
        with(json!({"promptTokenCount": 3, "candidatesTokenCount": 1, "totalTokenCount": 9}));
    assert!(wrong.warnings[0].starts_with("usage_contradicts_itself"));
    assert_eq!(with(Value::Null).usage, Default::default());
}

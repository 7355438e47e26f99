//! Rows 30 and 32–36: what the model or its vendor did, told apart. Most of it is read from golden
//! streams over a socket; each also as the document that the vendor sends for it.

use crate::table::rows;

rows!(
    row_30_what_nobody_knows_is_kept_and_the_answer_goes_on,
    row_32_empty_answers_and_blocked_prompts_are_told_apart,
    row_33_refusals_and_filters_are_counted_apart,
    row_34_answers_cut_at_a_limit_are_no_whole_answers,
    row_35_tool_calls_are_put_together,
    row_36_usage_that_is_not_known_is_not_zero,
);

mod checks {
    use serde_json::{Value, json};
    use weighbridge_core::{Completion, Outcome, StopReason};
    use weighbridge_testkit::golden::{Golden, goldens, transcribe};
    use weighbridge_testkit::player::{Player, chunked, json as json_answer, stream};

    use crate::bench::{Wire, data, named};

    /// Reads golden streams over a socket; all that is expected of them holds.
    #[track_caller]
    fn holds(wire: Wire, names: &[&str]) {
        let all = goldens(wire.name());
        for name in names {
            let golden: &Golden = all.iter().find(|golden| golden.name == *name).unwrap();
            let player = Player::one(chunked(&golden.stream));
            let (seen, _) = transcribe(&*wire.open(&player, json!({})), &golden.request());
            let differences = golden.differences(&seen);
            assert!(differences.is_empty(), "{wire:?}/{name}: {differences:#?}");
        }
    }

    pub(super) fn row_30_what_nobody_knows_is_kept_and_the_answer_goes_on(wire: Wire) {
        holds(wire, &["unknown"]);
        if wire == Wire::Responses {
            holds(wire, &["unknown_reason"]);
        }
    }

    pub(super) fn row_32_empty_answers_and_blocked_prompts_are_told_apart(wire: Wire) {
        holds(wire, &["empty"]);
        let (nothing, outcome) = match wire {
            // A usage chunk alone says nothing about the model.
            Wire::Chat => (data(&json!({"choices": []})), Outcome::CutStream),
            Wire::Gemini => {
                holds(wire, &["blocked_prompt"]);
                (data(&json!({"usageMetadata": {"promptTokenCount": 9}})), Outcome::CutStream)
            }
            Wire::Messages => (wire.events(&[])[..1].concat(), Outcome::CutStream),
            Wire::Responses => (wire.events(&[])[..1].concat(), Outcome::CutStream),
        };
        assert_eq!(wire.outcome(stream(nothing)), outcome, "{wire:?}");
        assert_eq!(wire.outcome(stream("")), Outcome::CutStream, "{wire:?}: no byte");
        assert_eq!(wire.outcome(stream(wire.whole(" \n"))), Outcome::Empty, "{wire:?}: blanks");
        let empty = match wire {
            Wire::Chat => json!({"choices": [{"index": 0, "message":
                {"role": "assistant", "content": null}, "finish_reason": "stop"}]}),
            Wire::Messages => {
                json!({"id": "m", "type": "message", "role": "assistant", "model": "m",
                "content": [], "stop_reason": "end_turn", "stop_sequence": null,
                "usage": {"input_tokens": 9, "output_tokens": 2}})
            }
            Wire::Responses => {
                let mut document = wire.document("");
                document["output"] = json!([]);
                document
            }
            Wire::Gemini => json!({"candidates": [{"finishReason": "STOP", "index": 0}]}),
        };
        let script = vec![json_answer("200 OK", &empty.to_string())];
        assert_eq!(wire.outcome(script), Outcome::Empty, "{wire:?}: document");
        if wire == Wire::Gemini {
            let blocked = json!({"promptFeedback": {"blockReason": "SAFETY"}}).to_string();
            let outcome = wire.outcome(vec![json_answer("200 OK", &blocked)]);
            assert_eq!(outcome, Outcome::Filtered, "blocked prompt as a document");
        }
    }

    pub(super) fn row_33_refusals_and_filters_are_counted_apart(wire: Wire) {
        match wire {
            Wire::Chat | Wire::Responses => holds(wire, &["refusal", "filter"]),
            Wire::Messages => holds(wire, &["refusal"]),
            Wire::Gemini => holds(wire, &["safety", "recitation", "blocked_prompt"]),
        }
        if wire == Wire::Gemini {
            for reason in ["BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY"] {
                let body = data(&json!({"candidates": [{"finishReason": reason, "index": 0}]}));
                assert_eq!(wire.outcome(stream(body)), Outcome::Filtered, "{reason}");
            }
        }
        let refused = match wire {
            Wire::Chat => json!({"choices": [{"index": 0, "message": {"role": "assistant",
                "content": null, "refusal": "no"}, "finish_reason": "stop"}]}),
            Wire::Messages => {
                let mut document = wire.document("no");
                document["stop_reason"] = "refusal".into();
                document
            }
            Wire::Responses => {
                let mut document = wire.document("");
                document["output"][0]["content"] = json!([{"type": "refusal", "refusal": "no"}]);
                document
            }
            Wire::Gemini => json!({"candidates": [{"finishReason": "SAFETY", "index": 0}]}),
        };
        let outcome = wire.outcome(vec![json_answer("200 OK", &refused.to_string())]);
        let expected = if wire == Wire::Gemini { Outcome::Filtered } else { Outcome::Refused };
        assert_eq!(outcome, expected, "{wire:?}: document");
    }

    pub(super) fn row_34_answers_cut_at_a_limit_are_no_whole_answers(wire: Wire) {
        holds(
            wire,
            match wire {
                Wire::Chat => &["length"],
                Wire::Messages => &["max_tokens", "context_window"],
                Wire::Responses => &["length", "length_open"],
                Wire::Gemini => &["max_tokens", "max_tokens_in_thoughts"],
            },
        );
        let mut document = wire.document("One, two");
        match wire {
            Wire::Chat => document["choices"][0]["finish_reason"] = "length".into(),
            Wire::Messages => document["stop_reason"] = "max_tokens".into(),
            Wire::Responses => {
                document["status"] = "incomplete".into();
                document["incomplete_details"] = json!({"reason": "max_output_tokens"});
            }
            Wire::Gemini => document["candidates"][0]["finishReason"] = "MAX_TOKENS".into(),
        }
        let result = wire.ask(vec![json_answer("200 OK", &document.to_string())]);
        assert_eq!(Outcome::of(&result), Outcome::TruncatedByLimit, "{wire:?}: document");
        assert_eq!(result.unwrap().stop_reason, StopReason::Length);
    }

    pub(super) fn row_35_tool_calls_are_put_together(wire: Wire) {
        holds(
            wire,
            match wire {
                Wire::Chat => &["tool", "tools_parallel", "tool_no_arguments", "tool_bad_json"],
                Wire::Messages => &["tool", "tools_parallel", "tool_no_input", "tool_bad_json"],
                Wire::Responses => &["tool", "tools_parallel", "tool_bad_json"],
                Wire::Gemini => &["tool", "tools_parallel", "tool_no_args", "tools_same_name"],
            },
        );
        let arguments = json!({"city": "Oslo"});
        let mut document = wire.document("");
        match wire {
            Wire::Chat => {
                document["choices"][0] = json!({"index": 0, "finish_reason": "tool_calls",
                    "message": {"role": "assistant", "content": null, "tool_calls": [{"id": "c1",
                        "type": "function", "function": {"name": "f",
                            "arguments": arguments.to_string()}}]}});
            }
            Wire::Messages => {
                document["content"] =
                    json!([{"type": "tool_use", "id": "c1", "name": "f", "input": arguments}]);
                document["stop_reason"] = "tool_use".into();
            }
            Wire::Responses => {
                document["output"] = json!([{"type": "function_call", "id": "fc_0",
                    "status": "completed", "call_id": "c1", "name": "f",
                    "arguments": arguments.to_string()}]);
            }
            Wire::Gemini => {
                document["candidates"][0]["content"]["parts"] =
                    json!([{"functionCall": {"id": "c1", "name": "f", "args": arguments}}]);
            }
        }
        let completion = wire.ask(vec![json_answer("200 OK", &document.to_string())]).unwrap();
        let call = &completion.tool_calls[0];
        assert_eq!((call.id.as_str(), call.name.as_str()), ("c1", "f"), "{wire:?}");
        let made: Value = serde_json::from_str(&call.arguments).unwrap();
        assert_eq!(made, arguments, "{wire:?}");
        assert_eq!(completion.stop_reason, StopReason::ToolCalls, "{wire:?}");
        // A call that is still open where the stream stops is not a call.
        let open = match wire {
            Wire::Chat => {
                data(&json!({"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0,
                "id": "a", "function": {"name": "f", "arguments": "{}"}}]}}]}))
            }
            Wire::Messages => {
                let start =
                    named(&json!({"type": "content_block_start", "index": 0, "content_block":
                    {"type": "tool_use", "id": "a", "name": "f", "input": {}}}));
                format!("{}{start}", wire.events(&[])[0])
            }
            Wire::Responses => {
                let start = named(&json!({"type": "response.output_item.added", "output_index": 0,
                    "sequence_number": 1, "item": {"id": "fc_0", "type": "function_call",
                        "status": "in_progress", "call_id": "a", "name": "f", "arguments": ""}}));
                format!("{}{start}", wire.events(&[])[0])
            }
            Wire::Gemini => data(&json!({"candidates": [{"index": 0, "content": {"role": "model",
                "parts": [{"functionCall": {"name": "f", "args": {}}}]}}]})),
        };
        assert_eq!(wire.outcome(stream(open)), Outcome::CutStream, "{wire:?}: unclosed");
        if wire == Wire::Messages {
            // The same under an end that claims to be one: the block was never stopped.
            let events = wire.events(&["a"]);
            let open: String = events
                .iter()
                .filter(|event| !event.contains("content_block_stop"))
                .cloned()
                .collect();
            let outcome = wire.outcome(stream(open));
            assert!(
                matches!(outcome, Outcome::CutStream | Outcome::MalformedWire),
                "a block without its stop: {outcome:?}"
            );
        }
    }

    pub(super) fn row_36_usage_that_is_not_known_is_not_zero(wire: Wire) {
        /// The document with its usage replaced.
        fn with(wire: Wire, usage: Option<Value>) -> Completion {
            let mut document = wire.document("Hi");
            let name = if wire == Wire::Gemini { "usageMetadata" } else { "usage" };
            let fields = document.as_object_mut().unwrap();
            fields.remove(name);
            if let Some(usage) = usage {
                fields.insert(name.to_owned(), usage);
            }
            wire.ask(vec![json_answer("200 OK", &document.to_string())]).unwrap()
        }
        let counts = |prompt: u64, generated: u64| match wire {
            Wire::Chat => json!({"prompt_tokens": prompt, "completion_tokens": generated,
                "total_tokens": prompt + generated}),
            Wire::Messages => json!({"input_tokens": prompt, "output_tokens": generated}),
            Wire::Responses => json!({"input_tokens": prompt, "output_tokens": generated,
                "total_tokens": prompt + generated}),
            Wire::Gemini => json!({"promptTokenCount": prompt, "candidatesTokenCount": generated,
                "totalTokenCount": prompt + generated}),
        };
        for missing in [None, Some(Value::Null), Some(json!({}))] {
            let usage = with(wire, missing.clone()).usage;
            let counts = (usage.n_prompt_tokens, usage.n_generated_tokens);
            assert_eq!(counts, (None, None), "{wire:?} {missing:?}");
        }
        // A prompt is never of no tokens: zeros are what servers write that do not count.
        let zero = with(wire, Some(counts(0, 0))).usage;
        assert_eq!((zero.n_prompt_tokens, zero.n_generated_tokens), (None, None), "{wire:?}");
        assert!(zero.raw.is_some(), "{wire:?}: the vendor's own numbers are kept");
        let known = with(wire, Some(counts(9, 4))).usage;
        assert_eq!((known.n_prompt_tokens, known.n_generated_tokens), (Some(9), Some(4)));
        let absurd = match wire {
            Wire::Gemini => json!({"promptTokenCount": -5, "candidatesTokenCount": "many"}),
            Wire::Messages | Wire::Responses => {
                json!({"input_tokens": -5, "output_tokens": "many"})
            }
            Wire::Chat => json!({"prompt_tokens": -5, "completion_tokens": "many"}),
        };
        let usage = with(wire, Some(absurd)).usage;
        assert_eq!((usage.n_prompt_tokens, usage.n_generated_tokens), (None, None), "{wire:?}");
        if wire != Wire::Messages {
            let mut contradiction = counts(9, 4);
            let total = if wire == Wire::Gemini { "totalTokenCount" } else { "total_tokens" };
            contradiction[total] = 99.into();
            let completion = with(wire, Some(contradiction));
            let is_noted = completion.warnings.iter().any(|w| w.starts_with("usage_contradicts"));
            assert!(is_noted, "{wire:?}: {:?}", completion.warnings);
        }
        match wire {
            Wire::Chat => holds(wire, &["usage_details", "usage_in_every_chunk"]),
            Wire::Messages => holds(wire, &["usage_cache"]),
            Wire::Responses => holds(wire, &["usage_details"]),
            Wire::Gemini => holds(wire, &["usage_cached", "thoughts"]),
        }
    }
}

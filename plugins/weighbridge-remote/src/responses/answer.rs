//! Reading Responses answers, streamed or in one document.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use weighbridge_core::{Error, ErrorKind, Request, Result, Retry, StopReason, TokenLogprob};

use super::echo;
use crate::classify::ErrorObject;
use crate::emitter::{Emitter, Ending};
use crate::sse::Frame;
use crate::wire::{Decode, Flow};
use crate::{failure, logprobs, usage};

/// Fields of a response that are read, or that repeat the request.
const KNOWN_FIELDS: [&str; 31] = [
    "id",
    "object",
    "created_at",
    "completed_at",
    "status",
    "error",
    "incomplete_details",
    "instructions",
    "metadata",
    "model",
    "output",
    "usage",
    "parallel_tool_calls",
    "temperature",
    "tool_choice",
    "tools",
    "top_p",
    "background",
    "conversation",
    "max_output_tokens",
    "max_tool_calls",
    "previous_response_id",
    "prompt",
    "prompt_cache_key",
    "reasoning",
    "safety_identifier",
    "store",
    "text",
    "top_logprobs",
    "truncation",
    "user",
];
/// Events whose content comes again, whole, with the end of its item.
const REPEATING_EVENTS: [&str; 8] = [
    "response.content_part.added",
    "response.content_part.done",
    "response.output_text.done",
    "response.refusal.done",
    "response.function_call_arguments.done",
    "response.reasoning_summary_part.done",
    "response.reasoning_summary_text.done",
    "response.reasoning_text.done",
];
/// Codes of a failed response by which the vendor's filter speaks.
const FILTER_CODES: [&str; 4] = [
    "content_filter",
    "image_content_policy_violation",
    "bio_policy",
    "misalignment_policy_violation",
];
const MAX_SNIPPET_BYTES: usize = 200;

/// One answer in the making.
#[derive(Debug)]
pub(super) struct ResponsesAnswer {
    provider: &'static str,
    n_top: u8,
    /// The number that the next event has to have.
    next_sequence: Option<u64>,
    is_numbered: bool,
    /// By `output_index`.
    items: BTreeMap<u64, Item>,
    n_calls: usize,
    is_refusal: bool,
    ending: Option<Ending>,
}

/// An item of the output in the making.
#[derive(Debug, Default)]
struct Item {
    /// Text, refusal, reasoning or arguments passed on so far.
    passed: String,
    /// Of a tool call that has begun: its index in the emitter.
    position: Option<usize>,
    is_commentary: bool,
    /// Log-probabilities that came with the pieces of the text.
    tokens: Vec<TokenLogprob>,
    /// The whole item, once it is done.
    whole: Option<Value>,
}

impl ResponsesAnswer {
    pub(super) fn new(provider: &'static str, request: &Request) -> Self {
        Self {
            provider,
            n_top: request.logprobs.unwrap_or(0),
            next_sequence: None,
            is_numbered: true,
            items: BTreeMap::new(),
            n_calls: 0,
            is_refusal: false,
            ending: None,
        }
    }

    /// Events are numbered from 0 or 1 without a gap, so that a lost one shows.
    fn check_sequence(&mut self, event: &Value, frame: &Frame) -> Result<()> {
        let Some(number) = event["sequence_number"].as_u64() else {
            self.is_numbered = false;
            return Ok(());
        };
        let is_next = self.next_sequence.map_or(number <= 1, |expected| number == expected);
        if !is_next {
            return Err(Error::new(
                ErrorKind::Protocol,
                "an event of the stream is missing, came twice or out of order",
            )
            .with("expected", self.next_sequence.unwrap_or(0))
            .with("sequence_number", number)
            .with("offset", frame.offset)
            .with_retry(Retry::Safe { after: None }));
        }
        self.next_sequence = Some(number + 1);
        Ok(())
    }

    fn event(&mut self, kind: &str, event: &Value, out: &mut Emitter<'_>) -> Result<()> {
        let index = event["output_index"].as_u64().unwrap_or(0);
        let delta = event["delta"].as_str().unwrap_or_default();
        match kind {
            "response.created" | "response.in_progress" | "response.queued" => {
                tell(&event["response"], out);
            }
            "response.output_item.added" => self.begin(index, &event["item"], out),
            "response.output_text.delta" => {
                let tokens = logprobs::tokens(&event["logprobs"], self.n_top);
                let item = self.items.entry(index).or_default();
                item.tokens.extend(tokens);
                item.text(delta, out);
            }
            "response.refusal.delta" => {
                self.is_refusal = true;
                self.items.entry(index).or_default().text(delta, out);
            }
            "response.reasoning_summary_part.added" => {
                let item = self.items.entry(index).or_default();
                if !item.passed.is_empty() {
                    item.reasoning("\n\n", out);
                }
            }
            "response.reasoning_summary_text.delta" | "response.reasoning_text.delta" => {
                self.items.entry(index).or_default().reasoning(delta, out);
            }
            "response.function_call_arguments.delta" => {
                self.items.entry(index).or_default().arguments(delta, out);
            }
            "response.output_item.done" => self.finish(index, &event["item"], out)?,
            "response.completed" | "response.incomplete" => {
                self.end(&event["response"], out)?;
            }
            _ if REPEATING_EVENTS.contains(&kind) => {}
            _ => out.unknown(&event.to_string()),
        }
        Ok(())
    }

    fn begin(&mut self, index: u64, item: &Value, out: &mut Emitter<'_>) {
        let slot = self.items.entry(index).or_default();
        slot.is_commentary = echo::is_commentary(item);
        if item["type"] == "function_call" && slot.position.is_none() {
            slot.position = Some(self.n_calls);
            self.n_calls += 1;
            let word = |name: &str| item[name].as_str().unwrap_or_default();
            out.tool_start(word("call_id"), word("name"));
            out.tool_args(self.n_calls - 1, &slot.passed);
        }
    }

    /// Takes the whole item and passes on what of it has not come in pieces.
    fn finish(&mut self, index: u64, item: &Value, out: &mut Emitter<'_>) -> Result<()> {
        let is_done = self.items.get(&index).is_some_and(|slot| slot.whole.is_some());
        if is_done {
            return Ok(());
        }
        self.begin(index, item, out);
        let slot = self.items.entry(index).or_default();
        slot.whole = Some(item.clone());
        match item["type"].as_str() {
            Some("message") => {
                let rest = slot.rest_of(&echo::text_of(item))?;
                slot.text(&rest, out);
                let parts = item["content"].as_array().map_or(&[][..], Vec::as_slice);
                self.is_refusal |= parts.iter().any(|part| part["type"] == "refusal");
                for part in parts {
                    if !matches!(part["type"].as_str(), Some("output_text" | "refusal")) {
                        out.unknown(&part.to_string());
                    }
                }
                // Those of the whole item have bytes, those of its pieces only text.
                let whole =
                    parts.iter().flat_map(|part| logprobs::tokens(&part["logprobs"], self.n_top));
                let whole: Vec<_> = whole.collect();
                let pieces = std::mem::take(&mut slot.tokens);
                if !slot.is_commentary {
                    out.tokens(if whole.len() < pieces.len() { pieces } else { whole });
                }
            }
            Some("function_call") => {
                let rest = slot.rest_of(item["arguments"].as_str().unwrap_or_default())?;
                slot.arguments(&rest, out);
                if let Some(position) = slot.position {
                    out.tool_end(position);
                }
            }
            Some("reasoning") if slot.passed.is_empty() => {
                let parts = ["summary", "content"].map(|name| {
                    let parts = item[name].as_array().into_iter().flatten();
                    parts.filter_map(|part| part["text"].as_str()).collect::<Vec<_>>().join("\n\n")
                });
                slot.reasoning(&parts.join(""), out);
            }
            Some("reasoning") => {}
            _ => out.unknown(&item.to_string()),
        }
        Ok(())
    }

    /// Takes the whole response, with which a stream ends and of which a document consists.
    fn end(&mut self, response: &Value, out: &mut Emitter<'_>) -> Result<()> {
        let output = response["output"].as_array().map_or(&[][..], Vec::as_slice);
        for (index, item) in output.iter().enumerate() {
            self.finish(index as u64, item, out)?;
        }
        for item in self.items.values().filter(|item| item.whole.is_none()) {
            out.warning("item_unclosed: an item of the answer was begun and not ended");
            if let Some(position) = item.position {
                out.tool_end(position);
            }
        }
        let items: Vec<_> = self.items.values().filter_map(|item| item.whole.clone()).collect();
        if let Some(data) = echo::of_answer(&items) {
            out.opaque(self.provider, data);
        }
        tell(response, out);
        if response["usage"].is_object() {
            let usage = usage::read(&response["usage"], &usage::RESPONSES, out);
            out.usage(usage);
        }
        let is_known = |name: &String| KNOWN_FIELDS.contains(&name.as_str());
        let other: Map<_, _> = response
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(name, value)| !is_known(name) && !value.is_null())
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        if !other.is_empty() {
            out.told("other_fields", other.into());
        }
        self.ending = Some(self.why(response, out)?);
        Ok(())
    }

    fn why(&self, response: &Value, out: &Emitter<'_>) -> Result<Ending> {
        let status = response["status"].as_str().unwrap_or("completed");
        let reason = response["incomplete_details"]["reason"].as_str();
        let stop_reason = match (status, reason) {
            ("completed", _) if self.is_refusal => StopReason::Refusal,
            ("completed", _) if out.has_tool_calls() => StopReason::ToolCalls,
            ("completed", _) => StopReason::Stop,
            ("incomplete", Some("content_filter")) => StopReason::ContentFilter,
            ("incomplete", Some("max_output_tokens" | "max_messages")) => StopReason::Length,
            ("incomplete", _) => StopReason::Other,
            _ => {
                return Err(Error::new(
                    ErrorKind::Truncated,
                    "the answer is not finished, so it is not taken for an answer",
                )
                .with("status", out.excerpt(status, MAX_SNIPPET_BYTES))
                .with_retry(Retry::Safe { after: None }));
            }
        };
        Ok(Ending { stop_reason, raw: Some(reason.unwrap_or(status).to_owned()) })
    }

    /// An error in place of an answer, or the vendor's filter.
    fn failed(&mut self, document: &Value, out: &Emitter<'_>) -> Result<()> {
        let code = ErrorObject::find(document).and_then(|object| object.code);
        match code.filter(|code| FILTER_CODES.contains(&code.as_str())) {
            Some(code) => {
                let stop_reason = StopReason::ContentFilter;
                self.ending = Some(Ending { stop_reason, raw: Some(code) });
                Ok(())
            }
            None => Err(failure::in_answer(document, out)),
        }
    }
}

impl Item {
    fn text(&mut self, text: &str, out: &mut Emitter<'_>) {
        self.passed.push_str(text);
        // What the model says on its way is not its answer.
        if self.is_commentary { out.reasoning(text) } else { out.text(text) }
    }

    fn reasoning(&mut self, text: &str, out: &mut Emitter<'_>) {
        self.passed.push_str(text);
        out.reasoning(text);
    }

    fn arguments(&mut self, text: &str, out: &mut Emitter<'_>) {
        self.passed.push_str(text);
        if let Some(position) = self.position {
            out.tool_args(position, text);
        }
    }

    /// What has not come in pieces of the whole.
    fn rest_of(&self, whole: &str) -> Result<String> {
        whole.strip_prefix(self.passed.as_str()).map(str::to_owned).ok_or_else(|| {
            Error::new(
                ErrorKind::Protocol,
                "an item of the answer is not what its pieces were together",
            )
            .with_retry(Retry::Safe { after: None })
        })
    }
}

/// Notes which model answered, under which id.
fn tell(response: &Value, out: &mut Emitter<'_>) {
    for (name, field) in
        [("served_model", "model"), ("response_id", "id"), ("service_tier", "service_tier")]
    {
        if response[field].is_string() {
            out.told(name, response[field].clone());
        }
    }
}

impl Decode for ResponsesAnswer {
    fn frame(&mut self, frame: &Frame, out: &mut Emitter<'_>) -> Result<Flow> {
        if frame.data.trim() == "[DONE]" {
            // Not of this protocol; some gateways add it to everything.
            return Ok(Flow::More);
        }
        let event: Value = serde_json::from_str(&frame.data).map_err(|error| {
            if frame.event == "error" {
                return failure::in_answer(&json!({"error": frame.data}), out);
            }
            Error::new(ErrorKind::Protocol, "an event of the stream is not JSON")
                .with("offset", frame.offset)
                .with("data", out.excerpt(&frame.data, MAX_SNIPPET_BYTES))
                .with_source(error)
        })?;
        if ErrorObject::find(&event).is_some() || frame.event == "error" {
            self.failed(&event, out)?;
            return Ok(Flow::End);
        }
        let Some(kind) = event["type"].as_str() else {
            return Err(Error::new(
                ErrorKind::Protocol,
                "an event of the stream has no type: this is not a Responses API; correct the \
                 URL, or set option `api` to `chat`",
            )
            .with("data", out.excerpt(&frame.data, MAX_SNIPPET_BYTES)));
        };
        self.check_sequence(&event, frame)?;
        self.event(kind, &event, out)?;
        Ok(if self.is_complete() { Flow::End } else { Flow::More })
    }

    fn document(&mut self, document: &Value, out: &mut Emitter<'_>) -> Result<()> {
        if ErrorObject::find(document).is_some() {
            return self.failed(document, out);
        }
        if !document["output"].is_array() {
            return Err(Error::new(
                ErrorKind::Protocol,
                "the answer has no `output`: this is not a Responses API; correct the URL, or set \
                 option `api` to `chat`",
            )
            .with("body", out.excerpt(&document.to_string(), MAX_SNIPPET_BYTES)));
        }
        self.end(document, out)
    }

    fn is_complete(&self) -> bool {
        self.ending.is_some()
    }

    fn close(&mut self, out: &mut Emitter<'_>) -> Result<Ending> {
        let Some(ending) = self.ending.take() else {
            return Err(Error::new(
                ErrorKind::Truncated,
                "the answer ended without its last event, so it is cut; it is not taken for an \
                 answer",
            )
            .with_retry(Retry::Safe { after: None }));
        };
        if !self.is_numbered {
            out.warning("sequence_missing: events had no sequence_number, so a lost one is unseen");
        }
        Ok(ending)
    }
}

#[cfg(test)]
mod tests {
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

    fn read_into(
        chunks: &[&[u8]],
        sink: &mut dyn weighbridge_core::EventSink,
    ) -> Result<Completion> {
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
        let frame = |event: &Value| {
            format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap())
        };
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
            (
                with("incomplete", "max_output_tokens".into(), said.clone()),
                Outcome::TruncatedByLimit,
            ),
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
}

//! Reading Chat Completions answers, streamed or in one document.

mod plain;

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use weighbridge_core::{Error, ErrorKind, Request, Result, Retry, StopReason};

use crate::classify::ErrorObject;
use crate::emitter::{Emitter, Ending};
use crate::sse::Frame;
use crate::wire::{Decode, Flow, not_json};
use crate::{failure, logprobs, usage};

/// Fields of a chunk or document that are read, or that carry nothing.
const KNOWN_FIELDS: [&str; 11] = [
    "id",
    "object",
    "created",
    "model",
    "choices",
    "usage",
    "system_fingerprint",
    "provider",
    "service_tier",
    "error",
    "obfuscation",
];
const KNOWN_CHOICE_FIELDS: [&str; 6] =
    ["index", "delta", "message", "finish_reason", "logprobs", "text"];
const KNOWN_MESSAGE_FIELDS: [&str; 10] = [
    "role",
    "content",
    "refusal",
    "tool_calls",
    "function_call",
    "reasoning_content",
    "reasoning",
    "reasoning_details",
    "annotations",
    "audio",
];
/// Most unknown top-level fields that are kept.
const MAX_KEPT_FIELDS: usize = 32;
const MAX_SNIPPET_BYTES: usize = 200;

/// One answer in the making.
#[derive(Debug)]
pub(super) struct ChatAnswer {
    provider: &'static str,
    /// Reasoning in the blocks that it has to be sent back in.
    reasoning_details: Vec<Value>,
    /// Finish reason by choice, `None` while the choice goes on.
    choices: BTreeMap<u64, Option<String>>,
    /// The answer came as a stream.
    is_stream: bool,
    /// `[DONE]` was seen, or the document is whole.
    is_done: bool,
    /// Something came before it that says what the model did.
    has_choices_field: bool,
    is_refusal: bool,
    n_top: u8,
    calls: Vec<Call>,
    /// The last call of each index of the wire.
    call_slots: BTreeMap<u64, usize>,
    n_begun: usize,
    other_fields: Map<String, Value>,
}

/// A tool call in the making; its position is its index in the emitter once it has begun.
#[derive(Debug, Default)]
struct Call {
    id: String,
    name: String,
    /// Arguments that came before the name.
    early_args: String,
    position: Option<usize>,
}

impl ChatAnswer {
    pub(super) fn new(provider: &'static str, request: &Request) -> Self {
        Self {
            provider,
            reasoning_details: Vec::new(),
            choices: BTreeMap::new(),
            is_stream: false,
            is_done: false,
            has_choices_field: false,
            is_refusal: false,
            n_top: request.logprobs.unwrap_or(0),
            calls: Vec::new(),
            call_slots: BTreeMap::new(),
            n_begun: 0,
            other_fields: Map::new(),
        }
    }

    /// A chunk of a stream or a whole document; they differ in `delta` and `message`.
    fn whole(&mut self, chunk: &Value, out: &mut Emitter<'_>) -> Result<()> {
        let Some(fields) = chunk.as_object() else {
            return Err(Error::new(ErrorKind::Protocol, "a chunk of the answer is no object"));
        };
        self.has_choices_field |= fields.get("choices").is_some_and(Value::is_array);
        for (name, wire) in [
            ("served_model", "model"),
            ("system_fingerprint", "system_fingerprint"),
            ("response_id", "id"),
            ("upstream_provider", "provider"),
            ("service_tier", "service_tier"),
        ] {
            if let Some(value) = fields.get(wire).filter(|value| value.is_string())
                && out.effective.values.get(name) != Some(value)
            {
                out.told(name, value.clone());
            }
        }
        for (name, value) in fields {
            let is_kept = !KNOWN_FIELDS.contains(&name.as_str())
                && !value.is_null()
                && (self.other_fields.len() < MAX_KEPT_FIELDS
                    || self.other_fields.contains_key(name));
            if is_kept {
                self.other_fields.insert(name.clone(), value.clone());
            }
        }
        match fields.get("choices") {
            Some(Value::Array(choices)) => {
                for choice in choices {
                    self.choice(choice, out)?;
                }
            }
            Some(Value::Null) | None => {
                if !fields.contains_key("usage") {
                    out.unknown(&chunk.to_string());
                }
            }
            Some(_) => {
                return Err(Error::new(ErrorKind::Protocol, "`choices` of the answer is no list"));
            }
        }
        if let Some(usage) = fields.get("usage").filter(|usage| usage.is_object()) {
            let usage = usage::read(usage.clone(), &usage::CHAT, out);
            out.usage(usage);
        }
        Ok(())
    }

    fn choice(&mut self, choice: &Value, out: &mut Emitter<'_>) -> Result<()> {
        let Some(fields) = choice.as_object() else {
            return Err(Error::new(ErrorKind::Protocol, "a choice of the answer is no object"));
        };
        if let Some(error) = fields.get("error").filter(|error| !error.is_null()) {
            return Err(failure::in_answer(&json!({"error": error}), out));
        }
        let index = fields.get("index").and_then(Value::as_u64).unwrap_or(0);
        let finished = self.choices.entry(index).or_default().is_some();
        let reason = fields.get("finish_reason").and_then(Value::as_str).filter(|r| !r.is_empty());
        if index != 0 {
            // One answer was asked for; more come only by a verbatim `n`.
            out.unknown(&choice.to_string());
        } else {
            self.message(fields, finished, out)?;
            if let Some(raw) = fields.get("logprobs").filter(|_| !finished) {
                for name in ["content", "refusal"] {
                    out.tokens(logprobs::tokens(&raw[name], self.n_top));
                }
            }
            for (name, value) in fields {
                if !KNOWN_CHOICE_FIELDS.contains(&name.as_str())
                    && !value.is_null()
                    && self.other_fields.len() < MAX_KEPT_FIELDS
                {
                    self.other_fields.insert(format!("choice.{name}"), value.clone());
                }
            }
        }
        if let Some(reason) = reason
            && !finished
        {
            self.choices.insert(index, Some(reason.to_owned()));
            if index == 0 {
                self.end_calls(out);
            }
            if reason == "error" {
                return Err(Error::new(
                    ErrorKind::ServerError,
                    "the server gave up in the middle of its answer",
                )
                .with_retry(Retry::Safe { after: None }));
            }
        }
        Ok(())
    }

    fn message(
        &mut self,
        choice: &Map<String, Value>,
        finished: bool,
        out: &mut Emitter<'_>,
    ) -> Result<()> {
        // Servers that write every field leave the one they do not use null or empty.
        let written = |name: &str| {
            choice.get(name).and_then(Value::as_object).filter(|fields| !fields.is_empty())
        };
        let Some(fields) = written("delta").or_else(|| written("message")) else {
            // An answer in the words of another protocol is not an empty one.
            return match choice.get("text").and_then(Value::as_str) {
                Some(text) if !text.is_empty() => Err(Error::new(
                    ErrorKind::Protocol,
                    "the choice has a `text` and no message: the server answers as for \
                     completions, not for chat completions",
                )),
                _ => Ok(()),
            };
        };
        let text_of = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default();
        if finished {
            if !text_of("content").is_empty()
                || fields.get("tool_calls").is_some_and(|c| !c.is_null())
            {
                out.warning("content_after_finish: content after finish_reason was ignored");
            }
            return Ok(());
        }
        // Some servers send their reasoning under both names.
        let reasoning = match text_of("reasoning_content") {
            "" => text_of("reasoning"),
            text => text,
        };
        out.reasoning(reasoning);
        for block in fields.get("reasoning_details").and_then(Value::as_array).into_iter().flatten()
        {
            self.reasoning_block(block);
        }
        match fields.get("content") {
            Some(Value::String(text)) => out.text(text),
            Some(Value::Array(parts)) => {
                for part in parts {
                    match (part["type"].as_str(), part["text"].as_str()) {
                        (Some("text"), Some(text)) => out.text(text),
                        _ => out.unknown(&part.to_string()),
                    }
                }
            }
            Some(Value::Null) | None => {}
            Some(other) => {
                return Err(Error::new(ErrorKind::Protocol, "the answer's content is no text")
                    .with("content", out.excerpt(&other.to_string(), MAX_SNIPPET_BYTES)));
            }
        }
        let refusal = text_of("refusal");
        if !refusal.is_empty() {
            self.is_refusal = true;
            out.text(refusal);
        }
        for (position, call) in
            fields.get("tool_calls").and_then(Value::as_array).into_iter().flatten().enumerate()
        {
            let index = call["index"].as_u64();
            let id = call["id"].as_str().unwrap_or_default();
            self.call(index.unwrap_or(position as u64), id, &call["function"], out);
        }
        if let Some(function) = fields.get("function_call").filter(|f| f.is_object()) {
            self.call(0, "", function, out);
        }
        for (name, value) in fields {
            if !KNOWN_MESSAGE_FIELDS.contains(&name.as_str()) && !value.is_null() {
                out.unknown(&json!({ name: value }).to_string());
            }
        }
        Ok(())
    }

    /// A block of reasoning or a piece of one; pieces of a block follow one another.
    fn reasoning_block(&mut self, piece: &Value) {
        let is_same =
            |block: &&mut Value| block["type"] == piece["type"] && block["index"] == piece["index"];
        let Some(block) = self.reasoning_details.last_mut().filter(is_same) else {
            self.reasoning_details.push(piece.clone());
            return;
        };
        for (name, value) in piece.as_object().into_iter().flatten() {
            match (&mut block[name], value) {
                (Value::String(text), Value::String(more))
                    if matches!(name.as_str(), "text" | "summary" | "data") =>
                {
                    text.push_str(more);
                }
                (_, Value::Null) => {}
                (field, value) => *field = value.clone(),
            }
        }
    }

    /// A whole tool call or a piece of one; pieces are put together by their index.
    fn call(&mut self, wire_index: u64, id: &str, function: &Value, out: &mut Emitter<'_>) {
        let name = function["name"].as_str().unwrap_or_default();
        let args = match &function["arguments"] {
            Value::String(args) => args.clone(),
            Value::Null => String::new(),
            // Some servers send the object itself.
            other => other.to_string(),
        };
        // Another id under the same index is another call: some servers count wrongly.
        let known = self.call_slots.get(&wire_index).copied();
        let slot = match known {
            Some(slot)
                if id.is_empty() || self.calls[slot].id.is_empty() || self.calls[slot].id == id =>
            {
                slot
            }
            _ => {
                self.calls.push(Call::default());
                self.call_slots.insert(wire_index, self.calls.len() - 1);
                self.calls.len() - 1
            }
        };
        let call = &mut self.calls[slot];
        if call.id.is_empty() {
            call.id = id.to_owned();
        }
        if call.name.is_empty() {
            call.name = name.to_owned();
        }
        match call.position {
            Some(position) => out.tool_args(position, &args),
            None => {
                call.early_args.push_str(&args);
                if !call.name.is_empty() && !call.id.is_empty() {
                    call.begin(self.n_begun, out);
                    self.n_begun += 1;
                }
            }
        }
    }

    fn end_calls(&mut self, out: &mut Emitter<'_>) {
        for (slot, call) in self.calls.iter_mut().enumerate() {
            if call.position.is_none() {
                if call.id.is_empty() {
                    call.id = format!("call_{slot}");
                    out.warning("tool_call_without_id: an id was made up");
                }
                if call.name.is_empty() {
                    out.warning("tool_call_without_name");
                }
                call.begin(self.n_begun, out);
                self.n_begun += 1;
            }
        }
        for position in 0..self.n_begun {
            out.tool_end(position);
        }
    }
}

impl Call {
    fn begin(&mut self, position: usize, out: &mut Emitter<'_>) {
        self.position = Some(position);
        out.tool_start(&self.id, &self.name);
        out.tool_args(position, &std::mem::take(&mut self.early_args));
    }
}

impl Decode for ChatAnswer {
    fn frame(&mut self, frame: &Frame, out: &mut Emitter<'_>) -> Result<Flow> {
        self.is_stream = true;
        if frame.data.trim() == "[DONE]" {
            self.is_done = true;
            return Ok(Flow::End);
        }
        let is_message = frame.event.is_empty() || frame.event == "message";
        if is_message && self.take_plain(&frame.data, out) {
            return Ok(Flow::More);
        }
        let chunk: Value = serde_json::from_str(&frame.data).map_err(|error| {
            if frame.event == "error" {
                return failure::in_answer(&json!({"error": frame.data}), out);
            }
            not_json(frame, error, out)
        })?;
        if ErrorObject::find(&chunk).is_some() || frame.event == "error" {
            return Err(failure::in_answer(&chunk, out));
        }
        if !is_message && chunk.get("choices").is_none() {
            out.unknown(&format!("event: {}\ndata: {}", frame.event, frame.data));
            return Ok(Flow::More);
        }
        self.whole(&chunk, out)?;
        Ok(Flow::More)
    }

    fn plain_document(&mut self, json: &[u8], out: &mut Emitter<'_>) -> bool {
        let is_taken = std::str::from_utf8(json).is_ok_and(|json| self.take_plain(json, out));
        self.is_done |= is_taken;
        is_taken
    }

    fn document(&mut self, document: &Value, out: &mut Emitter<'_>) -> Result<()> {
        if ErrorObject::find(document).is_some() {
            return Err(failure::in_answer(document, out));
        }
        if document.get("choices").is_none() {
            return Err(Error::new(
                ErrorKind::Protocol,
                "the answer has no `choices`: this is not a Chat Completions API; correct the URL",
            )
            .with("body", out.excerpt(&document.to_string(), MAX_SNIPPET_BYTES)));
        }
        self.whole(document, out)?;
        self.is_done = true;
        Ok(())
    }

    fn is_complete(&self) -> bool {
        let all_finished = self.choices.values().all(Option::is_some);
        all_finished && (!self.choices.is_empty() || (self.is_done && self.has_choices_field))
    }

    fn close(&mut self, out: &mut Emitter<'_>) -> Result<Ending> {
        if !self.is_complete() {
            return Err(Error::new(
                ErrorKind::Truncated,
                "the answer ended without a finish_reason, so it may be cut; it is not taken for \
                 an answer",
            )
            .with("saw_done", self.is_done)
            .with_retry(Retry::Safe { after: None }));
        }
        if self.is_stream && !self.is_done {
            out.warning("done_missing: the stream ended after finish_reason without [DONE]");
        }
        if !self.reasoning_details.is_empty() {
            let blocks = std::mem::take(&mut self.reasoning_details);
            out.opaque(self.provider, json!({ "reasoning_details": blocks }));
        }
        if !self.other_fields.is_empty() {
            out.told("other_fields", Value::Object(std::mem::take(&mut self.other_fields)));
        }
        let raw = self.choices.get(&0).cloned().flatten();
        let stop_reason = match raw.as_deref() {
            Some("content_filter") => StopReason::ContentFilter,
            _ if self.is_refusal => StopReason::Refusal,
            Some("length") => StopReason::Length,
            Some("tool_calls" | "function_call") => StopReason::ToolCalls,
            Some("stop") if out.has_tool_calls() => StopReason::ToolCalls,
            Some("stop") => StopReason::Stop,
            Some(_) => StopReason::Other,
            None => {
                out.warning("no_choices: the server answered without any choice");
                StopReason::Other
            }
        };
        Ok(Ending { stop_reason, raw })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sse::SseParser;
    use crate::text::Redactor;
    use std::time::{Duration, Instant};
    use weighbridge_core::StopSink;

    /// The text of a stream and why it ended, or the error.
    fn read(chunks: &[&[u8]]) -> Result<(String, StopReason)> {
        let redactor = Redactor::default();
        let mut sink = StopSink::never();
        let mut out = Emitter::new(&mut sink, &redactor, Instant::now());
        let mut parser = SseParser::new();
        let mut answer = ChatAnswer::new("p", &Request::user("Hi"));
        'stream: for chunk in chunks {
            let mut input = *chunk;
            while let Some(frame) = parser.next(&mut input)? {
                if answer.frame(&frame, &mut out)? == Flow::End {
                    break 'stream;
                }
            }
        }
        let ending = answer.close(&mut out)?;
        let completion = out.completion(ending, Duration::ZERO, true, false);
        Ok((completion.text, completion.stop_reason))
    }

    fn golden() -> Vec<u8> {
        let call = r#"{"index":0,"id":"c","function":{"name":"f","arguments":"{}"}}"#;
        [
            r#"{"choices":[{"index":0,"delta":{"content":"Gr\u00fc\u00df üß😀"}}]}"#,
            &format!(r#"{{"choices":[{{"index":0,"delta":{{"tool_calls":[{call}]}}}}]}}"#),
            r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#,
            "[DONE]",
        ]
        .map(|data| format!("data: {data}\r\n\r\n"))
        .concat()
        .into_bytes()
    }

    #[test]
    fn every_two_cuts_give_the_same_answer() {
        let stream = golden();
        let whole = read(&[&stream]).unwrap();
        assert_eq!(whole, ("Grüß üß😀".to_owned(), StopReason::ToolCalls));
        for i in 0..stream.len() {
            for j in (i..stream.len()).step_by(5) {
                let cut = read(&[&stream[..i], &stream[i..j], &stream[j..]]).unwrap();
                assert_eq!(cut, whole, "cut at {i} and {j}");
            }
        }
    }

    #[test]
    fn damage_of_any_byte_panics_nowhere_and_no_cut_passes() {
        let stream = golden();
        let n_finished = stream.len() - "data: [DONE]\r\n\r\n".len();
        for i in 0..stream.len() {
            for byte in [0, b'\n', b'\r', b'"', b'{', b'}', b':', b'9', 0xC3, 0xFF] {
                let mut damaged = stream.clone();
                damaged[i] = byte;
                // Damage inside of a text cannot be seen; there is only no panic.
                let _ = read(&[&damaged]);
            }
            // The second CR of a blank line ends an event by itself.
            assert_eq!(read(&[&stream[..i]]).is_ok(), i >= n_finished - 1, "cut at {i}");
        }
    }
}

//! Reading Messages answers, streamed or in one document.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use weighbridge_core::{Error, ErrorKind, Result, Retry, StopReason};

use super::{CONTENT, PROVIDER, usage};
use crate::classify::ErrorObject;
use crate::emitter::{Emitter, Ending};
use crate::failure;
use crate::sse::Frame;
use crate::wire::{Decode, Flow, not_json};

/// Fields of a message, and of the change at its end, that are read or carry nothing.
const KNOWN_FIELDS: [&str; 9] = [
    "id",
    "type",
    "role",
    "model",
    "content",
    "stop_reason",
    "stop_sequence",
    "stop_details",
    "usage",
];
/// Most unknown fields that are kept.
const MAX_KEPT_FIELDS: usize = 32;
const MAX_SNIPPET_BYTES: usize = 200;

/// One answer in the making.
#[derive(Debug, Default)]
pub(super) struct MessagesAnswer {
    has_start: bool,
    /// `message_stop` was seen, or the document is whole.
    has_stop: bool,
    stop_reason: Option<String>,
    blocks: BTreeMap<u64, Block>,
    n_calls: usize,
    counts: Map<String, Value>,
    /// The counts are those of the end; before it, what was generated is not known.
    has_final_counts: bool,
    other_fields: Map<String, Value>,
}

/// A content block in the making.
#[derive(Debug)]
struct Block {
    /// As the server would have sent it in one piece.
    whole: Value,
    /// Partial JSON of its `input`.
    input: String,
    /// Its position among the tool calls, if it is one.
    call: Option<usize>,
    is_stopped: bool,
}

impl Block {
    /// It can be written again from the text and calls of the completion.
    fn is_plain(&self) -> bool {
        let known: &[&str] = match self.whole["type"].as_str() {
            Some("text") => &["type", "text"],
            Some("tool_use") => &["type", "id", "name", "input"],
            _ => return false,
        };
        let fields = self.whole.as_object().into_iter().flatten();
        fields.filter(|(_, value)| !value.is_null()).all(|(name, _)| known.contains(&name.as_str()))
    }

    /// Adds to a text field of the block.
    fn add(&mut self, name: &str, more: &str) {
        match &mut self.whole[name] {
            Value::String(text) => text.push_str(more),
            none => *none = more.into(),
        }
    }
}

impl MessagesAnswer {
    /// Takes what `message_start` or a document tells of the message itself.
    fn message(&mut self, message: &Value, out: &mut Emitter<'_>) {
        if std::mem::replace(&mut self.has_start, true) {
            out.warning("message_start_twice: the message began more than once");
        }
        for (name, wire) in [("served_model", "model"), ("response_id", "id")] {
            if message[wire].is_string() {
                out.told(name, message[wire].clone());
            }
        }
        self.change(message, &message["usage"], out);
    }

    /// Takes what is told at the end: why it ended, and the counts.
    fn change(&mut self, fields: &Value, counts: &Value, out: &mut Emitter<'_>) {
        if let Some(reason) = fields["stop_reason"].as_str() {
            self.stop_reason = Some(reason.to_owned());
        }
        for name in ["stop_sequence", "stop_details"] {
            if !fields[name].is_null() {
                out.told(name, fields[name].clone());
            }
        }
        for (name, value) in fields.as_object().into_iter().flatten() {
            if !KNOWN_FIELDS.contains(&name.as_str())
                && !value.is_null()
                && self.other_fields.len() < MAX_KEPT_FIELDS
            {
                self.other_fields.insert(name.clone(), value.clone());
            }
        }
        if counts.is_object() {
            usage::merge(&mut self.counts, counts, out);
            let mut usage = usage::normalized(&self.counts, out.has_content());
            if !self.has_final_counts {
                usage.n_generated_tokens = None;
            }
            out.usage(usage);
        }
    }

    fn begin(&mut self, index: u64, block: &Value, out: &mut Emitter<'_>) -> Result<()> {
        if let Some(known) = self.blocks.get(&index) {
            if known.whole == *block && !known.is_stopped {
                out.warning("block_started_twice: the repetition was ignored");
                return Ok(());
            }
            return Err(out_of_order("a content block began under an index that was taken", index));
        }
        let Some(kind) = block["type"].as_str() else {
            return Err(out_of_order("a content block has no type", index));
        };
        let text_of = |name: &str| block[name].as_str().unwrap_or_default();
        let mut call = None;
        match kind {
            "text" => out.text(text_of("text")),
            "thinking" => out.reasoning(text_of("thinking")),
            "redacted_thinking" => {}
            "tool_use" => {
                call = Some(self.n_calls);
                self.n_calls += 1;
                if text_of("name").is_empty() {
                    out.warning("tool_call_without_name");
                }
                if text_of("id").is_empty() {
                    out.warning("tool_call_without_id: an id was made up");
                    out.tool_start(&format!("call_{index}"), text_of("name"));
                } else {
                    out.tool_start(text_of("id"), text_of("name"));
                }
            }
            _ => out.unknown(&block.to_string()),
        }
        let begun = Block { whole: block.clone(), input: String::new(), call, is_stopped: false };
        self.blocks.insert(index, begun);
        Ok(())
    }

    fn delta(&mut self, index: u64, delta: &Value, out: &mut Emitter<'_>) -> Result<()> {
        let block = self.blocks.get_mut(&index).filter(|block| !block.is_stopped);
        let Some(block) = block else {
            return Err(out_of_order("content came for a block that is not open", index));
        };
        let text_of = |name: &str| delta[name].as_str().unwrap_or_default();
        let kind = block.whole["type"].as_str().unwrap_or_default();
        match (delta["type"].as_str().unwrap_or_default(), kind) {
            ("text_delta", "text") => {
                out.text(text_of("text"));
                block.add("text", text_of("text"));
            }
            ("thinking_delta", "thinking") => {
                out.reasoning(text_of("thinking"));
                block.add("thinking", text_of("thinking"));
            }
            // Comes whole.
            ("signature_delta", "thinking") => {
                block.whole["signature"] = text_of("signature").into();
            }
            ("input_json_delta", _) => {
                block.input.push_str(text_of("partial_json"));
                if let Some(call) = block.call {
                    out.tool_args(call, text_of("partial_json"));
                }
            }
            ("citations_delta", "text") => {
                match &mut block.whole["citations"] {
                    Value::Array(citations) => citations.push(delta["citation"].clone()),
                    none => *none = json!([delta["citation"]]),
                }
                out.unknown(&delta.to_string());
            }
            _ => out.unknown(&delta.to_string()),
        }
        Ok(())
    }

    fn end(&mut self, index: u64, out: &mut Emitter<'_>) -> Result<()> {
        let Some(block) = self.blocks.get_mut(&index) else {
            return Err(out_of_order("a block ended that never began", index));
        };
        if std::mem::replace(&mut block.is_stopped, true) {
            out.warning("block_stopped_twice: the repetition was ignored");
            return Ok(());
        }
        if let Ok(input) = serde_json::from_str(&block.input) {
            block.whole["input"] = input;
        }
        if let Some(call) = block.call {
            if block.input.trim().is_empty() {
                let input = &block.whole["input"];
                let input = if input.is_null() { "{}".to_owned() } else { input.to_string() };
                out.tool_args(call, &input);
            }
            out.tool_end(call);
        }
        Ok(())
    }

    /// The blocks as they came, where text and calls do not say all of them: signatures hold for
    /// these blocks in this order only.
    fn keep_turn(&mut self, out: &mut Emitter<'_>) {
        if self.blocks.values().any(|block| !block.is_plain()) {
            let blocks: Vec<_> =
                std::mem::take(&mut self.blocks).into_values().map(|block| block.whole).collect();
            out.opaque(PROVIDER, json!({ CONTENT: blocks }));
        }
    }
}

impl Decode for MessagesAnswer {
    fn frame(&mut self, frame: &Frame, out: &mut Emitter<'_>) -> Result<Flow> {
        let event: Value =
            serde_json::from_str(&frame.data).map_err(|error| not_json(frame, error, out))?;
        if ErrorObject::find(&event).is_some() || frame.event == "error" {
            return Err(failure::in_answer(&event, out));
        }
        if !event.is_object() {
            return Err(Error::new(ErrorKind::Protocol, "an event of the stream is no object"));
        }
        let index = || {
            event["index"].as_u64().ok_or_else(|| {
                Error::new(ErrorKind::Protocol, "an event of a content block has no index")
            })
        };
        match event["type"].as_str().unwrap_or(&frame.event) {
            "message_start" => self.message(&event["message"], out),
            "content_block_start" => self.begin(index()?, &event["content_block"], out)?,
            "content_block_delta" => self.delta(index()?, &event["delta"], out)?,
            "content_block_stop" => self.end(index()?, out)?,
            "message_delta" => {
                self.has_final_counts |= event["usage"].is_object();
                self.change(&event["delta"], &event["usage"], out);
            }
            "message_stop" => {
                self.has_stop = true;
                return Ok(Flow::End);
            }
            "ping" => {}
            _ => out.unknown(&format!("event: {}\ndata: {}", frame.event, frame.data)),
        }
        Ok(Flow::More)
    }

    fn document(&mut self, document: &Value, out: &mut Emitter<'_>) -> Result<()> {
        if ErrorObject::find(document).is_some() {
            return Err(failure::in_answer(document, out));
        }
        let Some(content) = document["content"].as_array() else {
            return Err(Error::new(
                ErrorKind::Protocol,
                "the answer has no `content`: this is not a Messages API; correct the URL",
            )
            .with("body", out.excerpt(&document.to_string(), MAX_SNIPPET_BYTES)));
        };
        for (index, block) in (0..).zip(content) {
            self.begin(index, block, out)?;
            self.end(index, out)?;
        }
        self.has_final_counts = true;
        self.message(document, out);
        self.has_stop = self.stop_reason.is_some();
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.has_stop && self.blocks.values().all(|block| block.is_stopped)
    }

    fn close(&mut self, out: &mut Emitter<'_>) -> Result<Ending> {
        if !self.is_complete() {
            let n_open = self.blocks.values().filter(|block| !block.is_stopped).count();
            return Err(Error::new(
                ErrorKind::Truncated,
                "the answer ended without message_stop or with a block open, so it may be cut; it \
                 is not taken for an answer",
            )
            .with("saw_message_stop", self.has_stop)
            .with("n_open_blocks", n_open)
            .with_retry(Retry::Safe { after: None }));
        }
        self.keep_turn(out);
        if !self.other_fields.is_empty() {
            out.told("other_fields", Value::Object(std::mem::take(&mut self.other_fields)));
        }
        let raw = self.stop_reason.take();
        let stop_reason = match raw.as_deref() {
            Some("end_turn") if out.has_tool_calls() => StopReason::ToolCalls,
            Some("end_turn" | "stop_sequence") => StopReason::Stop,
            Some("max_tokens" | "model_context_window_exceeded") => StopReason::Length,
            Some("tool_use") => StopReason::ToolCalls,
            Some("refusal") => StopReason::Refusal,
            Some("pause_turn") => {
                out.warning(
                    "pause_turn: the vendor paused a long turn; send it back as it is to go on",
                );
                StopReason::Other
            }
            Some(_) => StopReason::Other,
            None => {
                out.warning("stop_reason_missing: the message ended without one");
                StopReason::Other
            }
        };
        Ok(Ending { stop_reason, raw })
    }
}

fn out_of_order(what: &str, index: u64) -> Error {
    Error::new(ErrorKind::Protocol, what.to_owned()).with("index", index)
}

#[cfg(test)]
mod tests;

//! Reading `generateContent` answers, streamed, in one document or as a list of chunks.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use weighbridge_core::{Error, ErrorKind, Request, Result, Retry, StopReason};

use super::{MADE_UP_ID, PARTS, PROVIDER, tokens};
use crate::classify::ErrorObject;
use crate::emitter::{Emitter, Ending};
use crate::failure;
use crate::sse::Frame;
use crate::wire::{AskedLogprobs, Decode, Flow, not_json};

const KNOWN_FIELDS: [&str; 5] =
    ["candidates", "promptFeedback", "usageMetadata", "modelVersion", "responseId"];
const KNOWN_CANDIDATE_FIELDS: [&str; 5] =
    ["index", "content", "finishReason", "finishMessage", "logprobsResult"];
/// Most unknown fields that are kept.
const MAX_KEPT_FIELDS: usize = 32;

/// One answer in the making.
#[derive(Debug)]
pub(super) struct GeminiAnswer {
    /// Finish reason by candidate, `None` while the candidate goes on.
    candidates: BTreeMap<u64, Option<String>>,
    /// Why the prompt was blocked.
    block_reason: Option<String>,
    /// The parts of the turn; texts that came in pieces are joined.
    parts: Vec<Value>,
    n_calls: usize,
    asked_logprobs: AskedLogprobs,
    other_fields: Map<String, Value>,
}

impl GeminiAnswer {
    pub(super) fn new(request: &Request) -> Self {
        Self {
            candidates: BTreeMap::new(),
            block_reason: None,
            parts: Vec::new(),
            n_calls: 0,
            asked_logprobs: AskedLogprobs::new(request),
            other_fields: Map::new(),
        }
    }

    /// A chunk of a stream or a whole document; they have the same shape.
    fn chunk(&mut self, chunk: &Value, out: &mut Emitter<'_>) -> Result<()> {
        if ErrorObject::find(chunk).is_some() {
            return Err(failure::in_answer(chunk, out));
        }
        let Some(fields) = chunk.as_object() else {
            return Err(Error::new(ErrorKind::Protocol, "a chunk of the answer is no object"));
        };
        for (name, wire) in [("served_model", "modelVersion"), ("response_id", "responseId")] {
            if let Some(value) = fields.get(wire).filter(|value| value.is_string())
                && out.effective.values.get(name) != Some(value)
            {
                out.told(name, value.clone());
            }
        }
        if !["candidates", "promptFeedback", "usageMetadata"]
            .iter()
            .any(|name| fields.contains_key(*name))
        {
            out.unknown(&chunk.to_string());
        }
        for (name, value) in fields {
            if !KNOWN_FIELDS.contains(&name.as_str()) {
                self.keep(name.clone(), value);
            }
        }
        let feedback = &chunk["promptFeedback"];
        if let Some(reason) = given(&feedback["blockReason"]) {
            self.block_reason = Some(reason);
            out.told("prompt_feedback", feedback.clone());
        }
        match &chunk["candidates"] {
            Value::Null => {}
            Value::Array(candidates) => {
                for candidate in candidates {
                    self.candidate(candidate, out)?;
                }
            }
            _ => {
                let why = "`candidates` of the answer is no list";
                return Err(Error::new(ErrorKind::Protocol, why));
            }
        }
        if chunk["usageMetadata"].is_object() {
            let has_output = out.has_content();
            let usage = tokens::usage(&chunk["usageMetadata"], has_output, out);
            out.usage(usage);
        }
        Ok(())
    }

    fn candidate(&mut self, candidate: &Value, out: &mut Emitter<'_>) -> Result<()> {
        let Some(fields) = candidate.as_object() else {
            return Err(Error::new(ErrorKind::Protocol, "a candidate is no object"));
        };
        let index = candidate["index"].as_u64().unwrap_or(0);
        let is_finished = self.candidates.entry(index).or_default().is_some();
        if index != 0 {
            // One answer was asked for; more come only by a verbatim `candidateCount`.
            out.unknown(&candidate.to_string());
        } else {
            let parts = candidate["content"]["parts"].as_array().map_or(&[][..], Vec::as_slice);
            for part in parts {
                // The signature of the turn may come last, in a part without text.
                if is_finished && part["text"] != "" {
                    out.warning("content_after_finish: content after finishReason was ignored");
                } else {
                    self.part(part, out)?;
                }
            }
            if !is_finished {
                out.tokens(tokens::logprobs(&candidate["logprobsResult"]));
            }
            if let Some(message) = given(&candidate["finishMessage"]) {
                out.told("finish_message", message.into());
            }
            for (name, value) in fields {
                if !KNOWN_CANDIDATE_FIELDS.contains(&name.as_str()) {
                    self.keep(format!("candidate.{name}"), value);
                }
            }
        }
        if let Some(reason) = given(&candidate["finishReason"])
            && !is_finished
        {
            self.candidates.insert(index, Some(reason));
        }
        Ok(())
    }

    fn part(&mut self, part: &Value, out: &mut Emitter<'_>) -> Result<()> {
        let Some(fields) = part.as_object() else {
            return Err(Error::new(ErrorKind::Protocol, "a part of the answer is no object"));
        };
        match (fields.get("text"), fields.get("functionCall")) {
            (Some(Value::String(text)), _) if part["thought"] == true => out.reasoning(text),
            (Some(Value::String(text)), _) => out.text(text),
            (None, Some(call)) if call.is_object() => self.call(call, out),
            _ if fields.keys().all(|name| name == "thoughtSignature" || name == "thought") => {}
            _ => out.unknown(&part.to_string()),
        }
        // A signature belongs to the part that it came with, so only parts without one are joined.
        let is_text = |part: &Value| {
            let mut names = part.as_object().into_iter().flat_map(|fields| fields.keys());
            part["text"].is_string() && names.all(|name| name == "text" || name == "thought")
        };
        match self.parts.last_mut() {
            Some(last) if is_text(last) && is_text(part) && last["thought"] == part["thought"] => {
                if let (Value::String(text), Some(more)) =
                    (&mut last["text"], part["text"].as_str())
                {
                    text.push_str(more);
                }
            }
            _ => self.parts.push(part.clone()),
        }
        Ok(())
    }

    /// A tool call, which this protocol sends in one piece.
    fn call(&mut self, call: &Value, out: &mut Emitter<'_>) {
        let position = self.n_calls;
        self.n_calls += 1;
        let name = call["name"].as_str().unwrap_or_default();
        if name.is_empty() {
            out.warning("tool_call_without_name");
        }
        match call["id"].as_str().filter(|id| !id.is_empty()) {
            Some(id) => out.tool_start(id, name),
            None => out.tool_start(&format!("{MADE_UP_ID}{position}"), name),
        }
        let args = &call["args"];
        let args = if args.is_null() { "{}".to_owned() } else { args.to_string() };
        out.tool_args(position, &args);
        out.tool_end(position);
    }

    fn keep(&mut self, name: String, value: &Value) {
        let has_place =
            self.other_fields.len() < MAX_KEPT_FIELDS || self.other_fields.contains_key(&name);
        if has_place && !value.is_null() {
            self.other_fields.insert(name, value.clone());
        }
    }

    /// The parts as they came, where text and calls do not say all of them.
    fn keep_turn(&mut self, out: &mut Emitter<'_>) {
        let is_plain = |part: &Value| {
            let mut names = part.as_object().into_iter().flat_map(|fields| fields.keys());
            names.all(|name| matches!(name.as_str(), "text" | "thought" | "functionCall"))
        };
        if !self.parts.iter().all(is_plain) {
            out.opaque(PROVIDER, json!({ PARTS: std::mem::take(&mut self.parts) }));
        }
    }
}

impl Decode for GeminiAnswer {
    fn frame(&mut self, frame: &Frame, out: &mut Emitter<'_>) -> Result<Flow> {
        let chunk: Value =
            serde_json::from_str(&frame.data).map_err(|error| not_json(frame, error, out))?;
        if frame.event == "error" {
            return Err(failure::in_answer(&chunk, out));
        }
        self.chunk(&chunk, out)?;
        Ok(Flow::More)
    }

    fn document(&mut self, document: &Value, out: &mut Emitter<'_>) -> Result<()> {
        // A stream without `alt=sse` is one list of chunks.
        let chunks = match document {
            Value::Array(chunks) => chunks.as_slice(),
            one => std::slice::from_ref(one),
        };
        chunks.iter().try_for_each(|chunk| self.chunk(chunk, out))
    }

    fn is_complete(&self) -> bool {
        let is_finished = self.candidates.values().all(Option::is_some);
        (!self.candidates.is_empty() && is_finished) || self.block_reason.is_some()
    }

    fn close(&mut self, out: &mut Emitter<'_>) -> Result<Ending> {
        if !self.is_complete() {
            return Err(Error::new(
                ErrorKind::Truncated,
                "the answer ended without a finishReason or a blockReason, so it may be cut; it is \
                 not taken for an answer",
            )
            .with("n_candidates", self.candidates.len())
            .with_retry(Retry::Safe { after: None }));
        }
        if !self.other_fields.is_empty() {
            out.told("other_fields", Value::Object(std::mem::take(&mut self.other_fields)));
        }
        if let Some(reason) = self.block_reason.take() {
            return Ok(Ending { stop_reason: StopReason::ContentFilter, raw: Some(reason) });
        }
        self.keep_turn(out);
        let raw = self.candidates.get(&0).cloned().flatten();
        let stop_reason = match raw.as_deref().unwrap_or_default() {
            "STOP" if out.has_tool_calls() => StopReason::ToolCalls,
            "STOP" => StopReason::Stop,
            // CONTINUATION is the limit of one request, below that of the answer.
            "MAX_TOKENS" | "CONTINUATION" => StopReason::Length,
            "SAFETY"
            | "RECITATION"
            | "LANGUAGE"
            | "BLOCKLIST"
            | "PROHIBITED_CONTENT"
            | "SPII"
            | "MODEL_ARMOR"
            | "ESCALATION"
            | "IMAGE_SAFETY"
            | "IMAGE_PROHIBITED_CONTENT"
            | "IMAGE_RECITATION" => StopReason::ContentFilter,
            // Neither says anything about the model.
            "PUP_LIMITED_DISABLED" => {
                return Err(Error::new(
                    ErrorKind::Auth,
                    "the vendor has limited or disabled the account",
                )
                .with("code", "PUP_LIMITED_DISABLED"));
            }
            "MISSING_THOUGHT_SIGNATURE" => {
                return Err(Error::new(
                    ErrorKind::InvalidRequest,
                    "a turn of the conversation lacks its thought signature; send each turn back \
                     with its opaque data",
                )
                .with("code", "MISSING_THOUGHT_SIGNATURE"));
            }
            // The model's own mistake: it tried to call a tool and wrote something else.
            "MALFORMED_FUNCTION_CALL" | "MALFORMED_RESPONSE" | "UNEXPECTED_TOOL_CALL" => {
                StopReason::Malformed
            }
            _ => StopReason::Other,
        };
        self.asked_logprobs.check(out)?;
        Ok(Ending { stop_reason, raw })
    }
}

/// A word that was really given: the protocol writes an unset enumeration as `…_UNSPECIFIED`.
fn given(value: &Value) -> Option<String> {
    let word = value.as_str().filter(|word| !word.is_empty() && !word.ends_with("_UNSPECIFIED"))?;
    Some(word.to_owned())
}

#[cfg(test)]
mod tests;

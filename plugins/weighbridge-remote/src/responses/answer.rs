//! Reading Responses answers, streamed or in one document.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use weighbridge_core::{Error, ErrorKind, Request, Result, Retry, StopReason, TokenLogprob};

use super::echo;
use crate::classify::ErrorObject;
use crate::emitter::{Emitter, Ending};
use crate::sse::Frame;
use crate::wire::{Decode, Flow, not_json};
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
            let usage = usage::read(response["usage"].clone(), &usage::RESPONSES, out);
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
            not_json(frame, error, out)
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
mod tests;

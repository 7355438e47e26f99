//! Answers of backends, as OpenAI's clients expect them.

use serde_json::{Map, Value, json};
use weighbridge_core::{Completion, StopReason, TokenLogprob, Usage};

use crate::request::Shape;

/// What every part of one answer repeats.
#[derive(Clone, Debug)]
pub(crate) struct Label {
    pub(crate) shape: Shape,
    pub(crate) id: String,
    pub(crate) created: u64,
    pub(crate) model: String,
}

impl Label {
    /// An object of this answer with these choices.
    pub(crate) fn object(&self, is_chunk: bool, choices: Value) -> Value {
        let object = match (self.shape, is_chunk) {
            (Shape::Chat, false) => "chat.completion",
            (Shape::Chat, true) => "chat.completion.chunk",
            (Shape::Text, _) => "text_completion",
        };
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        })
    }
}

/// A whole answer in one document.
pub(crate) fn document(label: &Label, completion: &Completion) -> Value {
    let finish = finish_reason(completion);
    let logprobs = completion.logprobs.as_deref();
    let choice = match label.shape {
        Shape::Chat => json!({
            "index": 0,
            "message": message(completion),
            "logprobs": logprobs.map(chat_logprobs),
            "finish_reason": finish,
        }),
        Shape::Text => json!({
            "index": 0,
            "text": completion.text,
            "logprobs": logprobs.map(|tokens| text_logprobs(tokens, 0)),
            "finish_reason": finish,
        }),
    };
    let mut document = label.object(false, json!([choice]));
    document["usage"] = usage(&completion.usage);
    document
}

fn message(completion: &Completion) -> Value {
    let is_refusal = completion.stop_reason == StopReason::Refusal;
    let has_calls = !completion.tool_calls.is_empty();
    let text = Value::from(completion.text.as_str());
    let mut message = json!({
        "role": "assistant",
        "content": if is_refusal || (has_calls && completion.text.is_empty()) {
            Value::Null
        } else {
            text.clone()
        },
        "refusal": if is_refusal { text } else { Value::Null },
    });
    if !completion.reasoning.is_empty() {
        message["reasoning_content"] = completion.reasoning.as_str().into();
    }
    if has_calls {
        let calls = completion.tool_calls.iter().map(|call| {
            json!({"id": call.id, "type": "function",
                "function": {"name": call.name, "arguments": call.arguments}})
        });
        message["tool_calls"] = calls.collect();
    }
    message
}

/// The reason in OpenAI's words; an unknown one in the vendor's.
pub(crate) fn finish_reason(completion: &Completion) -> &str {
    match completion.stop_reason {
        StopReason::Length => "length",
        StopReason::ContentFilter => "content_filter",
        StopReason::ToolCalls => "tool_calls",
        StopReason::Stop | StopReason::Refusal => "stop",
        _ => completion.raw_stop_reason.as_deref().unwrap_or("other"),
    }
}

/// `null` where a count is not known: a zero would look like one.
pub(crate) fn usage(usage: &Usage) -> Value {
    let (Some(prompt), Some(generated)) = (usage.n_prompt_tokens, usage.n_generated_tokens) else {
        return Value::Null;
    };
    let mut counts = json!({
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt.saturating_add(generated),
    });
    if let Some(cached) = usage.n_cached_tokens {
        counts["prompt_tokens_details"] = json!({"cached_tokens": cached});
    }
    if let Some(reasoning) = usage.n_reasoning_tokens {
        counts["completion_tokens_details"] = json!({"reasoning_tokens": reasoning});
    }
    counts
}

/// Log-probabilities in the form of chat completions.
pub(crate) fn chat_logprobs(tokens: &[TokenLogprob]) -> Value {
    let entry = |bytes: &[u8], logprob: Option<f64>| {
        json!({
            "token": String::from_utf8_lossy(bytes),
            "logprob": logprob.map(finite),
            "bytes": bytes,
        })
    };
    let content: Vec<Value> = tokens
        .iter()
        .map(|token| {
            let mut shown = entry(&token.bytes, token.logprob);
            let top = token.top.iter().map(|top| entry(&top.bytes, Some(top.logprob)));
            shown["top_logprobs"] = top.collect();
            shown
        })
        .collect();
    json!({"content": content, "refusal": null})
}

/// Log-probabilities in the form of raw completions; `offset` is where the text begins.
pub(crate) fn text_logprobs(tokens: &[TokenLogprob], offset: usize) -> Value {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut next = offset;
    let mut offsets = Vec::new();
    for token in tokens {
        offsets.push(next);
        next += text(&token.bytes).chars().count();
    }
    let top = tokens.iter().map(|token| {
        let tops = token.top.iter().map(|top| (text(&top.bytes), finite(top.logprob)));
        Value::Object(tops.collect::<Map<_, _>>())
    });
    json!({
        "tokens": tokens.iter().map(|t| text(&t.bytes)).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|t| t.logprob.map(finite)).collect::<Vec<_>>(),
        "top_logprobs": top.collect::<Vec<_>>(),
        "text_offset": offsets,
    })
}

/// JSON has no infinity; OpenAI writes -9999 for a probability of zero.
fn finite(logprob: f64) -> Value {
    if logprob.is_finite() { logprob.into() } else { (-9999.0).into() }
}

//! Events of a generation, as the chunks of a stream.

use serde_json::{Value, json};
use weighbridge_core::{Completion, Event, StreamItem, TokenLogprob};

use crate::answer::{Label, chat_logprobs, finish_reason, text_logprobs, usage};
use crate::request::Shape;

/// Makes chunks. Log-probabilities wait for the text they belong to.
#[derive(Debug)]
pub(crate) struct Chunker {
    label: Label,
    includes_usage: bool,
    tokens: Vec<TokenLogprob>,
    n_chars: usize,
    has_begun: bool,
}

impl Chunker {
    pub(crate) fn new(label: Label, includes_usage: bool) -> Self {
        Self { label, includes_usage, tokens: Vec::new(), n_chars: 0, has_begun: false }
    }

    /// Adds what an item comes to, as the bytes of its events.
    pub(crate) fn push(&mut self, item: &StreamItem, out: &mut Vec<u8>) {
        if !self.has_begun && self.label.shape == Shape::Chat {
            self.has_begun = true;
            self.delta(json!({"role": "assistant", "content": ""}), out);
        }
        match item {
            StreamItem::Event(event) => self.event(event, out),
            StreamItem::Completion(completion) => self.end(completion, out),
            _ => {}
        }
    }

    fn event(&mut self, event: &Event<'_>, out: &mut Vec<u8>) {
        match event {
            Event::Text(text) => self.text(text, out),
            Event::Tokens(tokens) => self.tokens.extend_from_slice(tokens),
            _ if self.label.shape == Shape::Text => {}
            Event::Reasoning(text) => self.delta(json!({"reasoning_content": text}), out),
            Event::ToolStart { index, id, name } => {
                let call = json!({"index": index, "id": id, "type": "function",
                    "function": {"name": name, "arguments": ""}});
                self.delta(json!({"tool_calls": [call]}), out);
            }
            Event::ToolArgs { index, fragment } => {
                let call = json!({"index": index, "function": {"arguments": fragment}});
                self.delta(json!({"tool_calls": [call]}), out);
            }
            _ => {}
        }
    }

    fn text(&mut self, text: &str, out: &mut Vec<u8>) {
        let tokens = std::mem::take(&mut self.tokens);
        let choice = match self.label.shape {
            Shape::Chat => json!({
                "index": 0,
                "delta": {"content": text},
                "logprobs": (!tokens.is_empty()).then(|| chat_logprobs(&tokens)),
                "finish_reason": null,
            }),
            Shape::Text => json!({
                "index": 0,
                "text": text,
                "logprobs": (!tokens.is_empty()).then(|| text_logprobs(&tokens, self.n_chars)),
                "finish_reason": null,
            }),
        };
        self.n_chars += text.chars().count();
        self.chunk(choice, out);
    }

    fn delta(&self, delta: Value, out: &mut Vec<u8>) {
        let choice = json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": null});
        self.chunk(choice, out);
    }

    fn chunk(&self, choice: Value, out: &mut Vec<u8>) {
        let mut chunk = self.label.object(true, json!([choice]));
        if self.includes_usage {
            chunk["usage"] = Value::Null;
        }
        write(&chunk, out);
    }

    fn end(&mut self, completion: &Completion, out: &mut Vec<u8>) {
        // Tokens of a stop text, or of half a character, have no text of their own.
        if !self.tokens.is_empty() {
            self.text("", out);
        }
        let finish = finish_reason(completion);
        let choice = match self.label.shape {
            Shape::Chat => {
                json!({"index": 0, "delta": {}, "logprobs": null, "finish_reason": finish})
            }
            Shape::Text => {
                json!({"index": 0, "text": "", "logprobs": null, "finish_reason": finish})
            }
        };
        self.chunk(choice, out);
        if self.includes_usage {
            let mut chunk = self.label.object(true, json!([]));
            chunk["usage"] = usage(&completion.usage);
            write(&chunk, out);
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
    }
}

/// One event.
pub(crate) fn write(data: &Value, out: &mut Vec<u8>) {
    out.extend_from_slice(format!("data: {data}\n\n").as_bytes());
}

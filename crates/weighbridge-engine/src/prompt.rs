//! Prompts to tokens: templates for conversations, BOS for raw text, and user text that stays text.
//!
//! A chat template writes control tokens as text, so a message that holds the same text could forge a
//! turn. Before rendering, every occurrence of a special token's text in what the caller wrote is put
//! between two private-use characters; the template still sees the text and may trim, split and join
//! as it likes. After rendering, what stands between the two is encoded as plain text; one of the two
//! alone, left over by a template that cut there, is dropped, and no control token is recognized
//! across it. A prompt without such text, which is nearly every prompt, is encoded in one go.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use weighbridge_core::{Error, ErrorKind, Message, Part, Prompt, Result, Role, Tool};

use crate::template::ChatTemplate;
use crate::tokens::{Piece, TokenEncoder, TokenTable};

/// Stand before and after a special text of the caller's.
const OPEN: char = '\u{F0000}';
const CLOSE: char = '\u{F0001}';
/// Stands before `0`, `1` or `2` for one of these three characters in the caller's own text.
const ESCAPE: char = '\u{F0002}';

/// Turns prompts into tokens.
#[derive(Debug)]
pub struct PromptEncoder {
    table: Arc<TokenTable>,
    encoder: Arc<dyn TokenEncoder>,
    template: Option<ChatTemplate>,
}

impl PromptEncoder {
    /// An encoder; without a template it takes no conversations.
    pub fn new(
        table: Arc<TokenTable>,
        encoder: Arc<dyn TokenEncoder>,
        template: Option<ChatTemplate>,
    ) -> Self {
        Self { table, encoder, template }
    }

    /// The chat template.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// The tokens of a prompt as they are fed: a conversation rendered with generation prompt, raw
    /// text with the BOS that the model expects, or token ids as they are.
    ///
    /// # Errors
    /// [`ErrorKind::Template`], [`ErrorKind::Unsupported`] for a conversation without a template,
    /// [`ErrorKind::InvalidRequest`] for ids beyond the vocabulary.
    pub fn encode(&self, prompt: &Prompt, tools: &[Tool]) -> Result<Vec<u32>> {
        let mut tokens = Vec::new();
        match prompt {
            Prompt::Chat(messages) => {
                let rendered = self.render_marked(messages, tools)?;
                match pieces(&rendered, self.encoder.special_texts()).as_slice() {
                    [] => {}
                    [Piece::Markup(all)] => self.encoder.encode(all, true, &mut tokens)?,
                    pieces => self.encoder.encode_pieces(pieces, &mut tokens)?,
                }
            }
            Prompt::Text(text) => {
                tokens.extend(self.table.bos_id);
                self.encoder.encode(text, false, &mut tokens)?;
            }
            Prompt::Tokens(ids) => {
                let n_vocab = self.table.len();
                if let Some(id) = ids.iter().find(|id| id.0 as usize >= n_vocab) {
                    return Err(Error::new(
                        ErrorKind::InvalidRequest,
                        "the prompt has a token id beyond the vocabulary",
                    )
                    .with("token_id", id.0)
                    .with("n_vocab", n_vocab));
                }
                tokens.extend(ids.iter().map(|id| id.0));
            }
            _ => {
                return Err(Error::unsupported("prompt", "a kind of prompt unknown to this build"));
            }
        }
        Ok(tokens)
    }

    /// The tokens of a continuation: plain text, no BOS, nothing parsed as special.
    ///
    /// # Errors
    /// As [`TokenEncoder::encode`].
    pub fn encode_continuation(&self, text: &str) -> Result<Vec<u32>> {
        let mut tokens = Vec::new();
        self.encoder.encode(text, false, &mut tokens)?;
        Ok(tokens)
    }

    /// The text that the template makes of a conversation, with generation prompt.
    ///
    /// # Errors
    /// As [`PromptEncoder::encode`].
    pub fn render(&self, messages: &[Message], tools: &[Tool]) -> Result<String> {
        let rendered = self.render_marked(messages, tools)?;
        Ok(pieces(&rendered, self.encoder.special_texts())
            .iter()
            .map(|piece| match piece {
                Piece::Markup(text) | Piece::Text(text) => *text,
            })
            .collect())
    }

    fn render_marked(&self, messages: &[Message], tools: &[Tool]) -> Result<String> {
        let Some(template) = &self.template else {
            return Err(Error::unsupported(
                "prompt.chat",
                "this model has no chat template; send text, or give a template when opening it",
            ));
        };
        let specials = Specials::new(self.encoder.special_texts());
        let mut variables = Map::new();
        for (name, value) in self.encoder.template_variables() {
            variables.insert(name.clone(), value.clone().into());
        }
        let mut call_names = BTreeMap::new();
        let messages: Vec<Value> = messages
            .iter()
            .flat_map(|message| message_values(message, &mut call_names))
            .map(|value| mark(value, &specials))
            .collect();
        variables.insert("messages".into(), messages.into());
        let tools: Vec<Value> =
            tools.iter().map(|tool| mark(tool_value(tool), &specials)).collect();
        let tools = if tools.is_empty() { Value::Null } else { tools.into() };
        variables.insert("tools".into(), tools);
        variables.insert("documents".into(), Value::Null);
        variables.insert("add_generation_prompt".into(), true.into());
        template.render(&variables)
    }
}

/// Marks special texts in every string of a value, keys included.
fn mark(value: Value, specials: &Specials<'_>) -> Value {
    match value {
        Value::String(text) => Value::String(mark_text(text, specials)),
        Value::Array(items) => items.into_iter().map(|item| mark(item, specials)).collect(),
        Value::Object(map) => map
            .into_iter()
            .map(|(key, value)| (mark_text(key, specials), mark(value, specials)))
            .collect(),
        other => other,
    }
}

fn mark_text(text: String, specials: &Specials<'_>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(c) = rest.chars().next() {
        let mut n_taken = c.len_utf8();
        if let Some(special) = specials.at(rest) {
            n_taken = special.len();
            out.extend([OPEN.to_string().as_str(), special, CLOSE.to_string().as_str()]);
        } else if let Some(digit) = [OPEN, CLOSE, ESCAPE].iter().position(|own| *own == c) {
            out.push(ESCAPE);
            out.push(char::from(b'0' + digit as u8));
        } else {
            out.push(c);
        }
        rest = &rest[n_taken..];
    }
    out
}

/// The texts of control tokens, found by their first byte: some models have hundreds.
struct Specials<'a> {
    texts: &'a [String],
    begins: [bool; 256],
}

impl<'a> Specials<'a> {
    fn new(texts: &'a [String]) -> Self {
        let mut begins = [false; 256];
        for byte in texts.iter().filter_map(|text| text.as_bytes().first()) {
            begins[usize::from(*byte)] = true;
        }
        Self { texts, begins }
    }

    /// The longest one that a text begins with.
    fn at(&self, text: &str) -> Option<&'a str> {
        let first = text.as_bytes().first()?;
        if !self.begins[usize::from(*first)] {
            return None;
        }
        let fits = self.texts.iter().filter(|s| !s.is_empty() && text.starts_with(s.as_str()));
        fits.max_by_key(|special| special.len()).map(String::as_str)
    }
}

/// Splits a rendering at its marks. A mark without its partner becomes an empty piece of text.
fn pieces<'a>(rendered: &'a str, specials: &[String]) -> Vec<Piece<'a>> {
    let specials = Specials::new(specials);
    let mut pieces = Vec::new();
    let mut start = 0;
    while let Some(at) = rendered[start..].find([OPEN, CLOSE, ESCAPE]).map(|n| start + n) {
        if start < at {
            pieces.push(Piece::Markup(&rendered[start..at]));
        }
        let c = rendered[at..].chars().next().unwrap_or(OPEN);
        let inner = at + c.len_utf8();
        let rest = &rendered[inner..];
        start = inner;
        let special = specials
            .at(rest)
            .filter(|special| c == OPEN && rest[special.len()..].starts_with(CLOSE));
        if let Some(special) = special {
            pieces.push(Piece::Text(&rest[..special.len()]));
            start += special.len() + CLOSE.len_utf8();
        } else if c == ESCAPE && rest.starts_with(['0', '1', '2']) {
            let own = match rest.as_bytes()[0] {
                b'0' => "\u{F0000}",
                b'1' => "\u{F0001}",
                _ => "\u{F0002}",
            };
            pieces.push(Piece::Text(own));
            start += 1;
        } else {
            pieces.push(Piece::Text(""));
        }
    }
    if start < rendered.len() {
        pieces.push(Piece::Markup(&rendered[start..]));
    }
    pieces
}

/// A message in the shape that templates expect. Tool results are messages of their own.
fn message_values(message: &Message, call_names: &mut BTreeMap<String, String>) -> Vec<Value> {
    let mut values = Vec::new();
    let mut reasoning = String::new();
    let mut calls = Vec::new();
    for part in &message.parts {
        match part {
            Part::ToolResult { call_id, content, .. } => {
                let mut value = json!({
                    "role": "tool", "content": content, "tool_call_id": call_id
                });
                if let Some(name) = call_names.get(call_id) {
                    value["name"] = name.clone().into();
                }
                values.push(value);
            }
            Part::ToolCall(call) => {
                call_names.insert(call.id.clone(), call.name.clone());
                // Templates expect an object; what does not parse is passed as the model wrote it.
                let arguments = serde_json::from_str::<Map<String, Value>>(&call.arguments)
                    .map_or_else(|_| call.arguments.clone().into(), Value::Object);
                calls.push(json!({
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": arguments},
                }));
            }
            Part::Reasoning(text) => reasoning.push_str(text),
            _ => {}
        }
    }
    let text = message.text();
    let is_only_results = !values.is_empty() && text.is_empty() && calls.is_empty();
    if !is_only_results {
        // A tool message may carry its answer as text.
        let role = if message.role == Role::Tool { "tool" } else { message.role.as_str() };
        let mut value = json!({"role": role, "content": text});
        if !reasoning.is_empty() {
            value["reasoning_content"] = reasoning.into();
        }
        if !calls.is_empty() {
            value["tool_calls"] = calls.into();
        }
        values.push(value);
    }
    values
}

fn tool_value(tool: &Tool) -> Value {
    json!({
        "type": "function",
        "function": {
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.parameters,
        },
    })
}

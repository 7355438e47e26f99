//! Prompts: messages with parts, plain text, or tokens.

use std::sync::Arc;

use serde_json::Value;

use crate::TokenId;

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Role {
    /// Instructions of the application.
    System,
    /// The person, or whoever plays that part.
    User,
    /// The model.
    Assistant,
    /// The result of a tool call.
    Tool,
}

impl Role {
    /// The name used by chat templates and by every vendor.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// One piece of a message.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Part {
    /// Text.
    Text(String),
    /// An image, as its bytes.
    Image {
        /// For instance `image/png`.
        media_type: String,
        /// The encoded file, not pixels.
        data: Arc<[u8]>,
    },
    /// A call that the model asked for.
    ToolCall(ToolCall),
    /// What a tool answered.
    ToolResult {
        /// The id of the [`ToolCall`] this answers.
        call_id: String,
        /// The answer as text; JSON is passed as its text.
        content: String,
        /// The tool failed and `content` says how.
        is_error: bool,
    },
    /// Reasoning that the model showed. Vendors' signatures travel as [`Part::Opaque`].
    Reasoning(String),
    /// Vendor data to be echoed back verbatim to the provider it came from.
    Opaque {
        /// The id of the provider that made it and may read it.
        provider: String,
        /// The data.
        data: Value,
    },
}

/// A call of a tool, as the model made it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ToolCall {
    /// The id the result has to name.
    pub id: String,
    /// The tool's name.
    pub name: String,
    /// The arguments as the model wrote them: JSON text, possibly malformed.
    pub arguments: String,
}

impl ToolCall {
    /// A call with its arguments as JSON text.
    pub fn new(
        id: impl Into<String>,
        name: impl Into<String>,
        arguments: impl Into<String>,
    ) -> Self {
        Self { id: id.into(), name: name.into(), arguments: arguments.into() }
    }
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said, in order.
    pub parts: Vec<Part>,
}

impl Message {
    /// A message with the given parts.
    pub fn new(role: Role, parts: Vec<Part>) -> Self {
        Self { role, parts }
    }

    /// A system message of plain text.
    pub fn system(text: impl Into<String>) -> Self {
        Self::new(Role::System, vec![Part::Text(text.into())])
    }

    /// A user message of plain text.
    pub fn user(text: impl Into<String>) -> Self {
        Self::new(Role::User, vec![Part::Text(text.into())])
    }

    /// An assistant message of plain text.
    pub fn assistant(text: impl Into<String>) -> Self {
        Self::new(Role::Assistant, vec![Part::Text(text.into())])
    }

    /// The text parts joined without separator.
    pub fn text(&self) -> String {
        self.parts
            .iter()
            .filter_map(|part| match part {
                Part::Text(text) => Some(text.as_str()),
                _ => None,
            })
            .collect()
    }
}

/// What a model is asked to continue.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Prompt {
    /// A conversation; local engines render it with the model's chat template.
    Chat(Vec<Message>),
    /// Raw text; special-token strings in it stay text.
    Text(String),
    /// Token ids of this model's vocabulary, fed as they are.
    Tokens(Vec<TokenId>),
}

impl Prompt {
    /// A conversation of one user message.
    pub fn user(text: impl Into<String>) -> Self {
        Self::Chat(vec![Message::user(text)])
    }
}

/// A tool the model may call.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Tool {
    /// The name the model uses.
    pub name: String,
    /// What it does, for the model.
    pub description: String,
    /// JSON Schema of the arguments object.
    pub parameters: Value,
}

impl Tool {
    /// A tool with the JSON Schema of its arguments.
    pub fn new(name: impl Into<String>, description: impl Into<String>, parameters: Value) -> Self {
        Self { name: name.into(), description: description.into(), parameters }
    }
}

/// Which tools the model may or must use.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ToolChoice {
    /// The model decides.
    #[default]
    Auto,
    /// No tool may be called.
    None,
    /// Some tool must be called.
    Required,
    /// This tool must be called.
    Named(String),
}
